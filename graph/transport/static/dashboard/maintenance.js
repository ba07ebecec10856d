/** Takes a node out of use and back, with a note that the change log keeps. */

import { MAINTENANCE } from "./documents.js";
import { renderCard, h, renderProblem } from "./elements.js";
import { now } from "./time.js";

const HOUR_MS = 3_600_000;
const DURATION_HOURS = { "Until it is ended": null, "For 1 hour": 1, "For 4 hours": 4, "For 1 day": 24 };

export class MaintenanceForm {
  element;

  #nodeId;
  #api;
  #isOn = null;
  #note = h("input", { id: "maintenance-note", maxlength: 1000, autocomplete: "off", placeholder: "e.g. new disk" });
  #duration = h("select", { id: "maintenance-lasts" }, Object.keys(DURATION_HOURS).map((name) => h("option", {}, name)));
  #durationLabel = h("label", { for: "maintenance-lasts" }, "How long");
  #button = h("button", { type: "submit" });
  #problem = h("div");

  constructor(nodeId, api) {
    this.#nodeId = nodeId;
    this.#api = api;
    this.element = renderCard("Maintenance",
      h("form", { class: "maintenance-form", onsubmit: (event) => this.#submit(event) },
        h("label", { for: "maintenance-note" }, "Note"), this.#note, this.#durationLabel, this.#duration, this.#button),
      this.#problem);
  }

  /** Offers what there is to do for a node of this status. */
  show(status) {
    const isOn = status === "MAINTENANCE";
    if (isOn === this.#isOn) return;
    this.#isOn = isOn;
    this.#duration.hidden = this.#durationLabel.hidden = isOn;
    this.#button.textContent = isOn ? "End maintenance" : "Begin maintenance";
    this.#problem.replaceChildren();
  }

  async #submit(event) {
    event.preventDefault();
    const hours = DURATION_HOURS[this.#duration.value];
    const until = this.#isOn || hours === null ? null : new Date(now() + hours * HOUR_MS).toISOString();
    const note = this.#note.value.trim() || null;
    this.#button.disabled = true;
    try {
      const input = { nodeId: this.#nodeId, enabled: !this.#isOn, note, until };
      const { setMaintenance } = await this.#api.execute(MAINTENANCE, { input });
      this.#note.value = "";
      this.#problem.replaceChildren();
      this.show(setMaintenance.node.status);
    } catch (error) {
      this.#problem.replaceChildren(renderProblem(error));
    } finally {
      this.#button.disabled = false;
    }
  }
}
