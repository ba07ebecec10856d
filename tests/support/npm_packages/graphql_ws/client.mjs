// What the registry's websocket looks like to graphql-ws, the protocol's reference client.
// One scenario for each name; it prints what it saw as one line of JSON.
import { createClient } from "graphql-ws";
import WebSocket from "ws";

const [, , scenario, url] = process.argv;

function client(options = {}) {
  return createClient({ url, webSocketImpl: WebSocket, retryAttempts: 0, ...options });
}

async function first(iterator, count) {
  const seen = [];
  for await (const result of iterator) {
    seen.push(result);
    if (seen.length === count) break;
  }
  return seen;
}

const changes = `subscription($after: Revision) { nodeStatusChanges(after: $after) {
  ... on NodeStatusChanged { change { revision } } } }`;

// Sends messages as they are, and tells the code that the server closes with.
function raw(...messages) {
  return new Promise((resolve) => {
    const socket = new WebSocket(url, "graphql-transport-ws");
    socket.on("open", () => messages.forEach((m) => socket.send(JSON.stringify(m))));
    socket.on("close", (code) => resolve(code));
  });
}

const init = { type: "connection_init" };
const subscribe = { id: "1", type: "subscribe", payload: { query: changes } };

const scenarios = {
  query: async () => first(client().iterate({ query: "{ registry { mode } }" }), 1),
  subscribe: async () =>
    first(client().iterate({ query: changes, variables: { after: "0" } }), 2),
  refused: async () =>
    new Promise((resolve) =>
      client().subscribe(
        { query: "{ nothing }" },
        { next: () => {}, complete: () => resolve("complete"), error: (e) => resolve(e) },
      ),
    ),
  keepAlive: async () =>
    new Promise((resolve) => {
      const ping = { on: { pong: (received) => received && resolve("pong") } };
      client({ lazy: false, keepAlive: 50, onNonLazyError: resolve, ...ping });
    }),
  duplicateId: async () => raw(init, subscribe, subscribe),
  unauthorized: async () => raw(subscribe),
  tooManyInits: async () => raw(init, init),
  invalidMessage: async () => raw({ type: "nonsense" }),
};

console.log(JSON.stringify(await scenarios[scenario]()));
process.exit(0);
