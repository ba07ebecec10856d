/** Takes a node out of use and back, with a note that the change log keeps. */

import { MAINTENANCE } from "./documents.js";
import { card, h, problem } from "./elements.js";
import { now } from "./time.js";

const HOUR_MS = 3_600_000;
const LASTS = { "Until it is ended": null, "For 1 hour": 1, "For 4 hours": 4, "For 1 day": 24 };

export class Maintenance {
  element;

  #nodeId;
  #api;
  #on = null;
  #note = h("input", { id: "maintenance-note", maxlength: 1000, autocomplete: "off", placeholder: "e.g. new disk" });
  #lasts = h("select", { id: "maintenance-lasts" }, Object.keys(LASTS).map((name) => h("option", {}, name)));
  #lastsLabel = h("label", { for: "maintenance-lasts" }, "How long");
  #button = h("button", { type: "submit" });
  #problem = h("div");

  constructor(nodeId, api) {
    this.#nodeId = nodeId;
    this.#api = api;
    this.element = card("Maintenance",
      h("form", { class: "maintenance-form", onsubmit: (event) => this.#submit(event) },
        h("label", { for: "maintenance-note" }, "Note"), this.#note, this.#lastsLabel, this.#lasts, this.#button),
      this.#problem);
  }

  /** Offers what there is to do for a node of this status. */
  show(status) {
    const on = status === "MAINTENANCE";
    if (on === this.#on) return;
    this.#on = on;
    this.#lasts.hidden = this.#lastsLabel.hidden = on;
    this.#button.textContent = on ? "End maintenance" : "Begin maintenance";
    this.#problem.replaceChildren();
  }

  async #submit(event) {
    event.preventDefault();
    const hours = LASTS[this.#lasts.value];
    const until = this.#on || hours === null ? null : new Date(now() + hours * HOUR_MS).toISOString();
    const note = this.#note.value.trim() || null;
    this.#button.disabled = true;
    try {
      const input = { nodeId: this.#nodeId, enabled: !this.#on, note, until };
      const { setMaintenance } = await this.#api.ask(MAINTENANCE, { input });
      this.#note.value = "";
      this.#problem.replaceChildren();
      this.show(setMaintenance.node.status);
    } catch (error) {
      this.#problem.replaceChildren(problem(error));
    } finally {
      this.#button.disabled = false;
    }
  }
}
