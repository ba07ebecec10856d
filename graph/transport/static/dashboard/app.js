/** Builds the dashboard: one client, one fleet, and the page that the address names. */

import { Api } from "./api.js";
import { getElement, setText } from "./elements.js";
import { Fleet } from "./fleet.js";
import { FleetPage } from "./fleet_page.js";
import { showFreshness } from "./freshness.js";
import { NodePage } from "./node_page.js";
import { createSignInDialog } from "./sign_in.js";
import { Socket } from "./socket.js";
import { toTitle, toWords } from "./status.js";

/** @import { StatusChange } from "../../dashboard" */
/** @import { RegistryError } from "./api.js" */

const ANNOUNCE_MS = 2000;

const graphqlUrl = new URL("/graphql", location.href);
const websocketUrl = new URL(graphqlUrl);
websocketUrl.protocol = graphqlUrl.protocol.replace("http", "ws");

const api = new Api(graphqlUrl);
const socket = new Socket(websocketUrl, () => api.token);
const fleet = new Fleet(api, socket);
const main = getElement("page", HTMLElement);
const announcements = getElement("announcements", HTMLElement);
const signInButton = getElement("sign-in", HTMLElement);
const fleetPage = new FleetPage(fleet, navigate);
/** @type {FleetPage | NodePage | null} */
let page = null;

const openSignIn = createSignInDialog((token) => {
  useToken(token);
  socket.restart();
  fleet.load();
  if (page instanceof NodePage) showPage();
});

signInButton.addEventListener("click", () => {
  if (api.token === null) openSignIn();
  else location.reload(); // forgets what was read with the token
});

/** @param {CustomEvent<RegistryError>} event */
function handleRejection({ detail: error }) {
  useToken(null);
  openSignIn(error);
}

fleet.addEventListener("rejected", handleRejection);
socket.addEventListener("rejected", handleRejection);

/**
 * Send this token with requests from now on, or none for null.
 * @param {string | null} token
 */
function useToken(token) {
  api.token = token;
  setText(signInButton, token === null ? "Sign in" : "Sign out");
}

/** Show the page that the address names. */
function showPage() {
  const nodeId = new URLSearchParams(location.search).get("node");
  page?.close();
  page = nodeId === null ? fleetPage : new NodePage(nodeId, { api, fleet, socket, fleetAddress: fleetPage.address });
  main.replaceChildren(page.element);
  page.open();
  document.title = `${page.title} · node registry`;
}

/**
 * Go to an address of the dashboard.
 * @param {string} address
 */
function navigate(address) {
  page?.saveAddress();
  history.pushState(null, "", address);
  showPage();
  main.focus({ preventScroll: true });
}

addEventListener("popstate", showPage);
document.addEventListener("click", (event) => {
  const target = /** @type {Element} */ (event.target);
  /** @type {HTMLAnchorElement | null} */
  const link = target.closest("a[href^='/dashboard']");
  if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  navigate(link.href);
});

/** @type {StatusChange[]} */
let unannounced = [];
fleet.addEventListener("change", ({ detail: change }) => unannounced.push(change));
setInterval(() => {
  const change = unannounced.at(-1);
  if (change === undefined) return;
  const others = unannounced.length > 1 ? `, and ${unannounced.length - 1} other changes` : "";
  setText(announcements, `${change.nodeId} is ${toTitle(change.status)}: ${toWords(change.reason)}${others}`);
  unannounced = [];
}, ANNOUNCE_MS);

showFreshness(fleet);
showPage();
fleet.load();
