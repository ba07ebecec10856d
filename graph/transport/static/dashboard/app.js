/** Builds the dashboard: one client, one fleet, and the page that the address names. */

import { Api } from "./api.js";
import { setText } from "./elements.js";
import { Fleet } from "./fleet.js";
import { FleetPage } from "./fleet_page.js";
import { showFreshness } from "./freshness.js";
import { NodePage } from "./node_page.js";
import { createSignInDialog } from "./sign_in.js";
import { Socket } from "./socket.js";
import { toTitle, toWords } from "./status.js";

const ANNOUNCE_MS = 2000;

const graphql = new URL("/graphql", location.href);
const websocket = new URL(graphql);
websocket.protocol = graphql.protocol.replace("http", "ws");

const api = new Api(graphql);
const socket = new Socket(websocket, () => api.token);
const fleet = new Fleet(api, socket);
const main = document.getElementById("page");
const signInButton = document.getElementById("sign-in");

const openSignIn = createSignInDialog((token) => {
  useToken(token);
  socket.restart();
  fleet.load();
  if (page instanceof NodePage) showPage();
});

signInButton.addEventListener("click", () => {
  if (api.token === null) openSignIn();
  else location.reload(); // what was read goes with the token
});

for (const source of [fleet, socket]) {
  source.addEventListener("rejected", ({ detail: error }) => {
    useToken(null);
    openSignIn(error);
  });
}

/** Shows the registry this key from now on. */
function useToken(token) {
  api.token = token;
  setText(signInButton, token === null ? "Sign in" : "Sign out");
}

showFreshness(fleet);

const fleetPage = new FleetPage(fleet, navigate);
let page = null;

/** Shows what the address names. */
function showPage() {
  const nodeId = new URLSearchParams(location.search).get("node");
  page?.close();
  page = nodeId === null ? fleetPage : new NodePage(nodeId, { api, fleet, socket, fleetAddress: fleetPage.address });
  main.replaceChildren(page.element);
  page.open();
  document.title = `${page.title} · node registry`;
}

/** Goes to an address of this page. */
function navigate(address) {
  page.saveAddress();
  history.pushState(null, "", address);
  showPage();
  main.focus({ preventScroll: true });
}

addEventListener("popstate", showPage);
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/dashboard']");
  if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  navigate(link.href);
});

let unannounced = [];
fleet.addEventListener("change", ({ detail: change }) => unannounced.push(change));
setInterval(() => {
  if (unannounced.length === 0) return;
  const { nodeId, status, reason } = unannounced.at(-1);
  const others = unannounced.length > 1 ? `, and ${unannounced.length - 1} other changes` : "";
  setText(document.getElementById("announcements"), `${nodeId} is ${toTitle(status)}: ${toWords(reason)}${others}`);
  unannounced = [];
}, ANNOUNCE_MS);

showPage();
fleet.load();
