/** Statuses and enum values in words, and a status as colour, shape and word. */

import { h } from "./elements.js";

/** @import { NodeStatus } from "../../dashboard" */

/**
 * The statuses, the most severe first.
 * @type {NodeStatus[]}
 */
export const STATUSES = ["OFFLINE", "DEGRADED", "MAINTENANCE", "ONLINE"];

/** @type {Record<NodeStatus, number>} */
export const SEVERITY = { OFFLINE: 0, DEGRADED: 1, MAINTENANCE: 2, ONLINE: 3 };

/**
 * Return the name of a status in lower case, as it is in CSS classes and in node counts.
 * @param {NodeStatus} status
 */
export function toLowerCase(status) {
  return /** @type {Lowercase<NodeStatus>} */ (status.toLowerCase());
}

/**
 * Return an enum value in words: `MISSED_HEARTBEATS` becomes `missed heartbeats`.
 * @param {string} value
 */
export function toWords(value) {
  return value === "LLM" ? value : value.toLowerCase().replaceAll("_", " ");
}

/**
 * Return an enum value in words with a capital first letter.
 * @param {string} value
 */
export function toTitle(value) {
  const words = toWords(value);
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/**
 * Return the shape of a status: a circle for online, a triangle for degraded, a cross for offline,
 * a diamond for maintenance.
 * @param {NodeStatus} status
 */
export function renderShape(status) {
  return h("span", { class: `shape ${toLowerCase(status)}`, "aria-hidden": "true" });
}

/**
 * Return the shape and the word of a status.
 * @param {NodeStatus} status
 */
export function renderBadge(status) {
  return h("span", { class: `badge ${toLowerCase(status)}` }, renderShape(status), h("span", {}, toTitle(status)));
}

/**
 * Show another status in a badge.
 * @param {Element} badge
 * @param {NodeStatus} status
 */
export function setBadge(badge, status) {
  const name = toLowerCase(status);
  const [shape, word] = badge.children;
  badge.className = `badge ${name}`;
  shape.className = `shape ${name}`;
  word.textContent = toTitle(status);
}
