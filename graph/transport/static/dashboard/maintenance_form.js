/** The form that begins and ends a node's maintenance, with a note for the change log. */

import { assertRegistryError } from "./api.js";
import { MAINTENANCE } from "./documents.js";
import { h, renderCard, renderProblem } from "./elements.js";
import { HOUR, now } from "./time.js";

/** @import { NodeStatus } from "../../dashboard" */
/** @import { Api } from "./api.js" */

/**
 * The choices of how long maintenance lasts, in hours; null: until it is ended.
 * @type {Record<string, number | null>}
 */
const DURATION_HOURS = { "Until it is ended": null, "For 1 hour": 1, "For 4 hours": 4, "For 1 day": 24 };

/** The card with which an operator begins or ends maintenance. */
export class MaintenanceForm {
  /** @type {HTMLElement} */
  element;

  /** @type {string} */
  #nodeId;
  /** @type {Api} */
  #api;
  /** Whether the node is in maintenance; null until that is known. @type {boolean | null} */
  #isOn = null;
  #note = h("input", { id: "maintenance-note", maxlength: 1000, autocomplete: "off", placeholder: "e.g. new disk" });
  #duration = h("select", { id: "maintenance-duration" }, Object.keys(DURATION_HOURS).map((name) => h("option", {}, name)));
  #durationLabel = h("label", { for: "maintenance-duration" }, "Duration");
  #button = h("button", { type: "submit" });
  #problem = h("div");

  /**
   * @param {string} nodeId
   * @param {Api} api
   */
  constructor(nodeId, api) {
    this.#nodeId = nodeId;
    this.#api = api;
    this.element = renderCard("Maintenance",
      h("form", { class: "maintenance-form", onsubmit: (event) => this.#submit(event) },
        h("label", { for: "maintenance-note" }, "Note"), this.#note, this.#durationLabel, this.#duration, this.#button),
      this.#problem);
  }

  /**
   * Offer to begin maintenance, or to end it when the node is in maintenance.
   * @param {NodeStatus} status
   */
  show(status) {
    const isOn = status === "MAINTENANCE";
    if (isOn === this.#isOn) return;
    this.#isOn = isOn;
    this.#duration.hidden = this.#durationLabel.hidden = isOn;
    this.#button.textContent = isOn ? "End maintenance" : "Begin maintenance";
    this.#problem.replaceChildren();
  }

  /** @param {SubmitEvent} event */
  async #submit(event) {
    event.preventDefault();
    const hours = DURATION_HOURS[this.#duration.value];
    const until = this.#isOn || hours === null ? null : new Date(now() + hours * HOUR).toISOString();
    const note = this.#note.value.trim() || null;
    this.#button.disabled = true;
    try {
      const input = { nodeId: this.#nodeId, enabled: !this.#isOn, note, until };
      const { setMaintenance } = await this.#api.execute(MAINTENANCE, { input });
      this.#note.value = "";
      this.#problem.replaceChildren();
      this.show(setMaintenance.node.status);
    } catch (error) {
      assertRegistryError(error);
      this.#problem.replaceChildren(renderProblem(error));
    } finally {
      this.#button.disabled = false;
    }
  }
}
