/** Statuses and their reasons in words, and a status as colour, shape and word. */

import { h } from "./elements.js";

/** From what an operator looks at first to what is well. */
export const STATUSES = ["OFFLINE", "DEGRADED", "MAINTENANCE", "ONLINE"];
export const SEVERITY = new Map(STATUSES.map((status, index) => [status, index]));

/** An enum's value as a word: `MISSED_HEARTBEATS` is `missed heartbeats`. */
export function word(value) {
  return value === "LLM" ? value : value.toLowerCase().replaceAll("_", " ");
}

/** A value as a word that begins a line. */
export function title(value) {
  const said = word(value);
  return said.charAt(0).toUpperCase() + said.slice(1);
}

/** The shape alone: round is well, a triangle warns, a cross is gone, a diamond was put aside. */
export function shape(status) {
  return h("span", { class: `shape ${status.toLowerCase()}`, "aria-hidden": "true" });
}

/** The shape and the word. */
export function badge(status) {
  return h("span", { class: `badge ${status.toLowerCase()}` }, shape(status), h("span", {}, title(status)));
}

/** Shows another status in a badge. */
export function setBadge(element, status) {
  const name = status.toLowerCase();
  element.className = `badge ${name}`;
  element.firstChild.className = `shape ${name}`;
  element.lastChild.textContent = title(status);
}
