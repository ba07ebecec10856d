/** One node: what it is, how it fares now, and what befell it. */

import { availability, periods } from "./availability.js";
import { NODE } from "./documents.js";
import { card, h, problem, setText } from "./elements.js";
import { Load } from "./load.js";
import { Maintenance } from "./maintenance.js";
import { profiles } from "./profiles.js";
import { badge, setBadge, word } from "./status.js";
import { eachSecond, fullInstant, now, span } from "./time.js";
import { timeline } from "./timeline.js";

const AGAIN_MS = 5000;

export class NodePage {
  title;
  element;

  #nodeId;
  #api;
  #fleet;
  #load;
  #maintenance;
  #node = null;
  #badge = badge("ONLINE");
  #heardAt = null;
  #heard = h("span", { class: "quiet" });
  #since = h("span", { class: "quiet" });
  #problem = h("div");
  #facts = h("div");
  #story = h("div", { class: "story" });
  #profiles = h("div");
  #name = h("span", { class: "quiet" });
  #open = false;
  #reading = 0;
  #stopTicking = () => {};
  #onChange = ({ detail }) => detail.nodeId === this.#nodeId && this.#read();

  /** `back` is the address of the fleet as it was left. */
  constructor(nodeId, { api, fleet, socket, back }) {
    this.title = nodeId;
    this.#nodeId = nodeId;
    this.#api = api;
    this.#fleet = fleet;
    this.#load = new Load(nodeId, { api, socket, heard: (at) => this.#hear(at) });
    this.#maintenance = new Maintenance(nodeId, api);
    this.#badge.hidden = true;
    this.element = h("div", { class: "node-page" },
      h("nav", { "aria-label": "Breadcrumb" }, h("a", { href: back }, "← Fleet")),
      h("div", { class: "title" }, h("h1", {}, nodeId), this.#name, this.#badge, this.#since, this.#heard),
      this.#problem,
      h("div", { class: "parts" },
        h("div", { class: "wide" }, this.#load.element, this.#story),
        h("div", { class: "side" }, this.#facts, this.#maintenance.element, this.#profiles)));
  }

  open() {
    this.#open = true;
    this.#show(this.#fleet.nodes.get(this.#nodeId));
    this.#fleet.addEventListener("change", this.#onChange);
    this.#stopTicking = eachSecond(() => this.#tick());
    this.#load.open();
    this.#read();
  }

  close() {
    this.#open = false;
    this.#fleet.removeEventListener("change", this.#onChange);
    this.#stopTicking();
    this.#load.close();
  }

  /** Its address says all there is to keep. */
  keep() {}

  async #read() {
    const reading = ++this.#reading;
    const known = this.#fleet.nodes.get(this.#nodeId);
    if (known) this.#show(known);
    try {
      const { node } = await this.#api.ask(NODE, { nodeId: this.#nodeId, ...periods() });
      if (reading !== this.#reading) return; // what was asked later is newer
      if (node === null) {
        this.#badge.hidden = true;
        this.#node = null;
        setText(this.#since, "");
        setText(this.#heard, "");
        this.#problem.replaceChildren(h("p", { class: "problem" }, "No node is registered under this id now."));
        return;
      }
      this.#problem.replaceChildren();
      this.#show(node);
      if (node.lastHeartbeat !== null) this.#hear(node.lastHeartbeat);
      this.#facts.replaceChildren(facts(node));
      this.#profiles.replaceChildren(profiles(node));
      this.#story.replaceChildren(availability(node), timeline(node.statusChanges.nodes, node.statusChanges.pageInfo.hasNextPage));
      this.#tick();
    } catch (error) {
      this.#problem.replaceChildren(problem(error));
      if (error.retryable && this.#open) setTimeout(() => this.#open && this.#read(), AGAIN_MS);
    }
  }

  #show(node) {
    if (!node) return;
    this.#node = node;
    this.#badge.hidden = false;
    setBadge(this.#badge, node.status);
    setText(this.#name, node.name === node.nodeId ? "" : node.name);
    this.#maintenance.show(node.status);
    this.#tick();
  }

  #hear(at) {
    this.#heardAt = Math.max(this.#heardAt ?? 0, Date.parse(at));
    this.#tick();
  }

  #tick() {
    if (!this.#open || this.#node === null) return;
    const { statusReason, statusSince } = this.#node;
    setText(this.#since, `${word(statusReason)}, for ${span(now() - Date.parse(statusSince))}`);
    setText(this.#heard, this.#heardAt === null ? "never heard" : `heard ${span(now() - this.#heardAt)} ago`);
  }
}

function facts(node) {
  const known = [
    ["Role", word(node.role)],
    ["Type", word(node.type)],
    ["Labels", node.labels.length > 0 ? node.labels.map((label) => h("span", { class: "chip" }, label)) : null],
    ["Hostname", node.hostname],
    ["Address", node.ipAddress],
    ["Local address", node.localIp],
    ["Registered", fullInstant(node.registeredAt)],
  ].filter(([, value]) => value !== null);
  return card("Node",
    h("dl", { class: "facts" }, known.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    documentOf("Capabilities", node.capabilities), documentOf("Metadata", node.metadata));
}

function documentOf(name, value) {
  if (Object.keys(value).length === 0) return null;
  return h("details", {}, h("summary", {}, name), h("pre", { tabindex: 0 }, JSON.stringify(value, null, 2)));
}
