/** The page of one node: what it is, its load, its availability and its history. */

import { assertRegistryError } from "./api.js";
import { buildPeriodVariables, renderAvailability } from "./availability.js";
import { NODE } from "./documents.js";
import { h, renderCard, renderProblem, setText } from "./elements.js";
import { LoadPanel } from "./load_panel.js";
import { MaintenanceForm } from "./maintenance_form.js";
import { renderProfiles } from "./profiles.js";
import { renderBadge, setBadge, toWords } from "./status.js";
import { formatDateTime, formatDuration, now, runEverySecond } from "./time.js";
import { renderTimeline } from "./timeline.js";

/** @import { JsonObject, NodeDetails, NodeSummary, StatusChange } from "../../dashboard" */
/** @import { Api } from "./api.js" */
/** @import { Child } from "./elements.js" */
/** @import { Fleet } from "./fleet.js" */
/** @import { Socket } from "./socket.js" */

const RETRY_MS = 5000;

/** The page of one node, live while it is open. */
export class NodePage {
  /** @type {string} */
  title;
  /** @type {HTMLElement} */
  element;

  /** @type {string} */
  #nodeId;
  /** @type {Api} */
  #api;
  /** @type {Fleet} */
  #fleet;
  /** @type {LoadPanel} */
  #loadPanel;
  /** @type {MaintenanceForm} */
  #maintenanceForm;
  /** @type {NodeSummary | null} */
  #node = null;
  #badge = renderBadge("ONLINE");
  /** The time of the newest heartbeat, in milliseconds since 1970. @type {number | null} */
  #heartbeatAt = null;
  #heartbeatAge = h("span", { class: "quiet" });
  #since = h("span", { class: "quiet" });
  #problem = h("div");
  #facts = h("div");
  #historyCards = h("div", { class: "history-cards" });
  #profiles = h("div");
  #name = h("span", { class: "quiet" });
  #isOpen = false;
  #loadNumber = 0;
  /** @type {() => void} */
  #stopTicking = () => {};
  #handleChange = (/** @type {CustomEvent<StatusChange>} */ { detail: change }) => {
    if (change.nodeId === this.#nodeId) this.#load();
  };

  /**
   * @param {string} nodeId
   * @param {object} options
   * @param {Api} options.api
   * @param {Fleet} options.fleet
   * @param {Socket} options.socket
   * @param {string} options.fleetAddress the address of the fleet's page as the reader left it
   */
  constructor(nodeId, { api, fleet, socket, fleetAddress }) {
    this.title = nodeId;
    this.#nodeId = nodeId;
    this.#api = api;
    this.#fleet = fleet;
    this.#loadPanel = new LoadPanel(nodeId, { api, socket, onHeartbeat: (receivedAt) => this.#recordHeartbeat(receivedAt) });
    this.#maintenanceForm = new MaintenanceForm(nodeId, api);
    this.#badge.hidden = true;
    this.element = h("div", { class: "node-page" },
      h("nav", { "aria-label": "Breadcrumb" }, h("a", { href: fleetAddress }, "← Fleet")),
      h("div", { class: "title" }, h("h1", {}, nodeId), this.#name, this.#badge, this.#since, this.#heartbeatAge),
      this.#problem,
      h("div", { class: "parts" },
        h("div", { class: "wide" }, this.#loadPanel.element, this.#historyCards),
        h("div", { class: "side" }, this.#facts, this.#maintenanceForm.element, this.#profiles)));
  }

  open() {
    this.#isOpen = true;
    this.#showKnown();
    this.#fleet.addEventListener("change", this.#handleChange);
    this.#stopTicking = runEverySecond(() => this.#updateAges());
    this.#loadPanel.open();
    this.#load();
  }

  close() {
    this.#isOpen = false;
    this.#fleet.removeEventListener("change", this.#handleChange);
    this.#stopTicking();
    this.#loadPanel.close();
  }

  /** Do nothing: the address of this page always says all that it shows. */
  saveAddress() {}

  async #load() {
    const loadNumber = ++this.#loadNumber;
    this.#showKnown();
    try {
      const { node } = await this.#api.execute(NODE, { nodeId: this.#nodeId, ...buildPeriodVariables() });
      if (loadNumber !== this.#loadNumber) return; // a later load has begun
      if (node === null) this.#showMissing();
      else this.#showDetails(node);
    } catch (error) {
      assertRegistryError(error);
      this.#problem.replaceChildren(renderProblem(error));
      if (error.retryable && this.#isOpen) setTimeout(() => this.#isOpen && this.#load(), RETRY_MS);
    }
  }

  /** Show what the fleet knows of the node, if anything, until its details are loaded. */
  #showKnown() {
    const node = this.#fleet.nodes.get(this.#nodeId);
    if (node !== undefined) this.#show(node);
  }

  #showMissing() {
    this.#badge.hidden = true;
    this.#node = null;
    setText(this.#since, "");
    setText(this.#heartbeatAge, "");
    this.#problem.replaceChildren(h("p", { class: "problem" }, "No node is registered under this id."));
  }

  /** @param {NodeDetails} node */
  #showDetails(node) {
    this.#problem.replaceChildren();
    this.#show(node);
    if (node.lastHeartbeat !== null) this.#recordHeartbeat(node.lastHeartbeat);
    this.#facts.replaceChildren(renderFacts(node));
    this.#profiles.replaceChildren(renderProfiles(node));
    this.#historyCards.replaceChildren(renderAvailability(node), renderTimeline(node.statusChanges.nodes, node.statusChanges.pageInfo.hasNextPage));
    this.#updateAges();
  }

  /** @param {NodeSummary} node */
  #show(node) {
    this.#node = node;
    this.#badge.hidden = false;
    setBadge(this.#badge, node.status);
    setText(this.#name, node.name === node.nodeId ? "" : node.name);
    this.#maintenanceForm.show(node.status);
    this.#updateAges();
  }

  /** @param {string} receivedAt */
  #recordHeartbeat(receivedAt) {
    this.#heartbeatAt = Math.max(this.#heartbeatAt ?? 0, Date.parse(receivedAt));
    this.#updateAges();
  }

  #updateAges() {
    if (!this.#isOpen || this.#node === null) return;
    const { statusReason, statusSince } = this.#node;
    setText(this.#since, `${toWords(statusReason)}, for ${formatDuration(now() - Date.parse(statusSince))}`);
    setText(this.#heartbeatAge, this.#heartbeatAt === null ? "no heartbeat yet" : `last heartbeat ${formatDuration(now() - this.#heartbeatAt)} ago`);
  }
}

/** @param {NodeDetails} node */
function renderFacts(node) {
  /** @type {[string, Child][]} */
  const facts = [
    ["Role", toWords(node.role)],
    ["Type", toWords(node.type)],
    ["Labels", node.labels.length > 0 ? node.labels.map((label) => h("span", { class: "chip" }, label)) : null],
    ["Hostname", node.hostname],
    ["Address", node.ipAddress],
    ["Local address", node.localIp],
    ["Registered", formatDateTime(node.registeredAt)],
  ];
  const known = facts.filter(([, value]) => value !== null);
  return renderCard("Node",
    h("dl", { class: "facts" }, known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    renderDocument("Capabilities", node.capabilities), renderDocument("Metadata", node.metadata));
}

/**
 * Return a JSON object under its name, or null for an empty one.
 * @param {string} name
 * @param {JsonObject} value
 */
function renderDocument(name, value) {
  if (Object.keys(value).length === 0) return null;
  return h("details", {}, h("summary", {}, name), h("pre", { tabindex: 0 }, JSON.stringify(value, null, 2)));
}
