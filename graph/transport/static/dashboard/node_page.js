/** One node: what it is, how it fares now, and what befell it. */

import { renderAvailability, buildPeriodVariables } from "./availability.js";
import { NODE } from "./documents.js";
import { renderCard, h, renderProblem, setText } from "./elements.js";
import { LoadPanel } from "./load.js";
import { MaintenanceForm } from "./maintenance.js";
import { renderProfiles } from "./profiles.js";
import { renderBadge, setBadge, toWords } from "./status.js";
import { everySecond, formatDateTime, now, formatDuration } from "./time.js";
import { renderTimeline } from "./timeline.js";

const RETRY_MS = 5000;

export class NodePage {
  title;
  element;

  #nodeId;
  #api;
  #fleet;
  #loadPanel;
  #maintenanceForm;
  #node = null;
  #badge = renderBadge("ONLINE");
  #heartbeatAt = null;
  #heartbeatAge = h("span", { class: "quiet" });
  #since = h("span", { class: "quiet" });
  #problem = h("div");
  #facts = h("div");
  #story = h("div", { class: "story" });
  #profiles = h("div");
  #name = h("span", { class: "quiet" });
  #isOpen = false;
  #loadCount = 0;
  #stopTicking = () => {};
  #handleChange = ({ detail }) => detail.nodeId === this.#nodeId && this.#load();

  /** `fleetAddress` is the address of the fleet as it was left. */
  constructor(nodeId, { api, fleet, socket, fleetAddress }) {
    this.title = nodeId;
    this.#nodeId = nodeId;
    this.#api = api;
    this.#fleet = fleet;
    this.#loadPanel = new LoadPanel(nodeId, { api, socket, onHeartbeat: (at) => this.#recordHeartbeat(at) });
    this.#maintenanceForm = new MaintenanceForm(nodeId, api);
    this.#badge.hidden = true;
    this.element = h("div", { class: "node-page" },
      h("nav", { "aria-label": "Breadcrumb" }, h("a", { href: fleetAddress }, "← Fleet")),
      h("div", { class: "title" }, h("h1", {}, nodeId), this.#name, this.#badge, this.#since, this.#heartbeatAge),
      this.#problem,
      h("div", { class: "parts" },
        h("div", { class: "wide" }, this.#loadPanel.element, this.#story),
        h("div", { class: "side" }, this.#facts, this.#maintenanceForm.element, this.#profiles)));
  }

  open() {
    this.#isOpen = true;
    this.#show(this.#fleet.nodes.get(this.#nodeId));
    this.#fleet.addEventListener("change", this.#handleChange);
    this.#stopTicking = everySecond(() => this.#updateAges());
    this.#loadPanel.open();
    this.#load();
  }

  close() {
    this.#isOpen = false;
    this.#fleet.removeEventListener("change", this.#handleChange);
    this.#stopTicking();
    this.#loadPanel.close();
  }

  /** Its address says all there is to keep. */
  saveAddress() {}

  async #load() {
    const loadNumber = ++this.#loadCount;
    const known = this.#fleet.nodes.get(this.#nodeId);
    if (known) this.#show(known);
    try {
      const { node } = await this.#api.execute(NODE, { nodeId: this.#nodeId, ...buildPeriodVariables() });
      if (loadNumber !== this.#loadCount) return; // what was asked later is newer
      if (node === null) {
        this.#badge.hidden = true;
        this.#node = null;
        setText(this.#since, "");
        setText(this.#heartbeatAge, "");
        this.#problem.replaceChildren(h("p", { class: "problem" }, "No node is registered under this id now."));
        return;
      }
      this.#problem.replaceChildren();
      this.#show(node);
      if (node.lastHeartbeat !== null) this.#recordHeartbeat(node.lastHeartbeat);
      this.#facts.replaceChildren(renderFacts(node));
      this.#profiles.replaceChildren(renderProfiles(node));
      this.#story.replaceChildren(renderAvailability(node), renderTimeline(node.statusChanges.nodes, node.statusChanges.pageInfo.hasNextPage));
      this.#updateAges();
    } catch (error) {
      this.#problem.replaceChildren(renderProblem(error));
      if (error.retryable && this.#isOpen) setTimeout(() => this.#isOpen && this.#load(), RETRY_MS);
    }
  }

  #show(node) {
    if (!node) return;
    this.#node = node;
    this.#badge.hidden = false;
    setBadge(this.#badge, node.status);
    setText(this.#name, node.name === node.nodeId ? "" : node.name);
    this.#maintenanceForm.show(node.status);
    this.#updateAges();
  }

  #recordHeartbeat(at) {
    this.#heartbeatAt = Math.max(this.#heartbeatAt ?? 0, Date.parse(at));
    this.#updateAges();
  }

  #updateAges() {
    if (!this.#isOpen || this.#node === null) return;
    const { statusReason, statusSince } = this.#node;
    setText(this.#since, `${toWords(statusReason)}, for ${formatDuration(now() - Date.parse(statusSince))}`);
    setText(this.#heartbeatAge, this.#heartbeatAt === null ? "never heard" : `heard ${formatDuration(now() - this.#heartbeatAt)} ago`);
  }
}

function renderFacts(node) {
  const known = [
    ["Role", toWords(node.role)],
    ["Type", toWords(node.type)],
    ["Labels", node.labels.length > 0 ? node.labels.map((label) => h("span", { class: "chip" }, label)) : null],
    ["Hostname", node.hostname],
    ["Address", node.ipAddress],
    ["Local address", node.localIp],
    ["Registered", formatDateTime(node.registeredAt)],
  ].filter(([, value]) => value !== null);
  return renderCard("Node",
    h("dl", { class: "facts" }, known.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    renderDocument("Capabilities", node.capabilities), renderDocument("Metadata", node.metadata));
}

function renderDocument(name, value) {
  if (Object.keys(value).length === 0) return null;
  return h("details", {}, h("summary", {}, name), h("pre", { tabindex: 0 }, JSON.stringify(value, null, 2)));
}
