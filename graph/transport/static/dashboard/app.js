/** Builds the dashboard: one client, one fleet, and the page that the address names. */

import { Api } from "./api.js";
import { setText } from "./elements.js";
import { Fleet } from "./fleet.js";
import { FleetPage } from "./fleet_page.js";
import { showFreshness } from "./freshness.js";
import { NodePage } from "./node_page.js";
import { signInDialog } from "./sign_in.js";
import { Socket } from "./socket.js";
import { title, word } from "./status.js";

const ANNOUNCE_MS = 2000;

const graphql = new URL("/graphql", location.href);
const websocket = new URL(graphql);
websocket.protocol = graphql.protocol.replace("http", "ws");

const api = new Api(graphql);
const socket = new Socket(websocket, () => api.token);
const fleet = new Fleet(api, socket);
const main = document.getElementById("page");
const signInButton = document.getElementById("sign-in");

const askForKey = signInDialog((token) => {
  show(token);
  socket.restart();
  fleet.load();
  if (page instanceof NodePage) route();
});

signInButton.addEventListener("click", () => {
  if (api.token === null) askForKey();
  else location.reload(); // what was read goes with the token
});

for (const source of [fleet, socket]) {
  source.addEventListener("refused", ({ detail: refused }) => {
    show(null);
    askForKey(refused);
  });
}

/** Shows the registry this key from now on. */
function show(token) {
  api.token = token;
  setText(signInButton, token === null ? "Sign in" : "Sign out");
}

showFreshness(fleet);

const fleetPage = new FleetPage(fleet, go);
let page = null;

/** Shows what the address names. */
function route() {
  const nodeId = new URLSearchParams(location.search).get("node");
  page?.close();
  page = nodeId === null ? fleetPage : new NodePage(nodeId, { api, fleet, socket, back: fleetPage.address });
  main.replaceChildren(page.element);
  page.open();
  document.title = `${page.title} · node registry`;
}

/** Goes to an address of this page. */
function go(address) {
  page.keep();
  history.pushState(null, "", address);
  route();
  main.focus({ preventScroll: true });
}

addEventListener("popstate", route);
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/dashboard']");
  if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.href);
});

let unsaid = [];
fleet.addEventListener("change", ({ detail: change }) => unsaid.push(change));
setInterval(() => {
  if (unsaid.length === 0) return;
  const { nodeId, status, reason } = unsaid.at(-1);
  const others = unsaid.length > 1 ? `, and ${unsaid.length - 1} other changes` : "";
  setText(document.getElementById("announcements"), `${nodeId} is ${title(status)}: ${word(reason)}${others}`);
  unsaid = [];
}, ANNOUNCE_MS);

route();
fleet.load();
