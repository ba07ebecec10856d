/** Statuses and their reasons in words, and a status as colour, shape and word. */

import { h } from "./elements.js";

/** From what an operator looks at first to what is well. */
export const STATUSES = ["OFFLINE", "DEGRADED", "MAINTENANCE", "ONLINE"];
export const SEVERITY = new Map(STATUSES.map((status, index) => [status, index]));

/** An enum's value as a word: `MISSED_HEARTBEATS` is `missed heartbeats`. */
export function toWords(value) {
  return value === "LLM" ? value : value.toLowerCase().replaceAll("_", " ");
}

/** A value as a word that begins a line. */
export function toTitle(value) {
  const words = toWords(value);
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** The shape alone: round is well, a triangle warns, a cross is gone, a diamond was put aside. */
export function renderShape(status) {
  return h("span", { class: `shape ${status.toLowerCase()}`, "aria-hidden": "true" });
}

/** The shape and the word. */
export function renderBadge(status) {
  return h("span", { class: `badge ${status.toLowerCase()}` }, renderShape(status), h("span", {}, toTitle(status)));
}

/** Shows another status in a badge. */
export function setBadge(element, status) {
  const name = status.toLowerCase();
  element.className = `badge ${name}`;
  element.firstChild.className = `shape ${name}`;
  element.lastChild.textContent = toTitle(status);
}
