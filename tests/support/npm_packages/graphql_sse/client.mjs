// What the registry's event streams look like to graphql-sse, the protocol's reference client.
// One scenario for each name; it prints what it saw as one line of JSON, or, for `follow`, lines.
import { createClient } from "graphql-sse";

const [, , scenario, url] = process.argv;

const client = createClient({
  url,
  retryAttempts: 100,
  retry: async () => new Promise((resolve) => setTimeout(resolve, 20)),
});

const changes = `subscription($after: Revision) { nodeStatusChanges(after: $after) {
  ... on NodeStatusChanged { change { revision } } } }`;

async function seen(query, count = Infinity, variables = {}) {
  const results = [];
  for await (const result of client.iterate({ query, variables })) {
    results.push(result);
    if (results.length === count) break;
  }
  return results;
}

// Tells each revision as it comes, over all that happens to the connection.
async function follow() {
  for await (const { data } of client.iterate({ query: changes, variables: { after: "0" } })) {
    console.log(data.nodeStatusChanges.change?.revision ?? "");
  }
}

const scenarios = {
  query: () => seen("{ registry { mode } }"),
  subscribe: () => seen(changes, 2, { after: "0" }),
  refused: () => seen("{ nonsense }"),
};

if (scenario === "follow") {
  await follow();
} else {
  console.log(JSON.stringify(await scenarios[scenario]()));
}
