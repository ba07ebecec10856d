/** A node's availability over the last day, week and month, and the statuses that it comes from. */

import { h, renderCard } from "./elements.js";
import { toLowerCase, toTitle } from "./status.js";
import { DAY, formatAxisTime, formatDateTime, now } from "./time.js";

/** @import { NodeDetails, NodeStatus, StatusChange } from "../../dashboard" */

/**
 * The time from one status change to the next, in milliseconds since 1970.
 * @typedef {{ status: NodeStatus, from: number, to: number }} StatusSpan
 */

/** @type {{ name: "day" | "week" | "month", label: string, length: number }[]} */
const PERIODS = [
  { name: "day", label: "Day", length: DAY },
  { name: "week", label: "Week", length: 7 * DAY },
  { name: "month", label: "Month", length: 30 * DAY },
];

/** Return the beginnings of the periods, as variables of the query for a node. */
export function buildPeriodVariables() {
  const [day, week, month] = PERIODS.map(({ length }) => new Date(now() - length).toISOString());
  return { day, week, month };
}

/**
 * Return the card of a node's availability.
 * @param {NodeDetails} node with its status changes newest first
 */
export function renderAvailability(node) {
  const to = now();
  const spans = toSpans(node.statusChanges.nodes, to);
  const rows = PERIODS.map(({ name, label, length }) => {
    const from = to - length;
    // The registry counts the time before the node's registration as missed, which says nothing of the node.
    const start = Math.min(to, Math.max(from, Date.parse(node.registeredAt)));
    const share = start < to ? Math.min(1, (node[name] * length) / (to - start)) : 1;
    return h("tr", {},
      h("th", { scope: "row" }, label),
      h("td", { class: "part" }, formatPercentage(share)),
      h("td", {}, renderStrip(spans, from, to), h("small", {}, start > from ? `registered ${formatAxisTime(start)}` : `since ${formatAxisTime(from)}`)));
  });
  return renderCard("Availability", h("table", { class: "availability" }, h("tbody", {}, rows)));
}

/**
 * Return a share of 0 to 1 as a percentage, rounded down: 100 % only if nothing is missing.
 * @param {number} share
 */
function formatPercentage(share) {
  return `${(Math.floor(share * 100_000) / 1000).toFixed(share === 1 ? 0 : 2)} %`;
}

/**
 * @param {StatusChange[]} changes newest first
 * @param {number} to the end of the newest span
 * @returns {StatusSpan[]} newest first
 */
function toSpans(changes, to) {
  let end = to;
  return changes.map(({ status, changedAt }) => {
    const span = { status, from: Date.parse(changedAt), to: end };
    end = span.from;
    return span;
  });
}

/**
 * @param {StatusSpan[]} spans newest first
 * @param {number} from
 * @param {number} to
 */
function renderStrip(spans, from, to) {
  const inside = spans.filter((span) => span.to > from).toReversed();
  const beginning = inside[0]?.from ?? to;
  const pieces = inside.map(({ status, from: start, to: end }) => {
    const piece = h("i", { class: toLowerCase(status), title: `${toTitle(status)} from ${formatDateTime(start)}` });
    piece.style.flexGrow = String((end - Math.max(start, from)) / (to - from));
    return piece;
  });
  const unknown = h("i", { class: "unknown" });
  unknown.style.flexGrow = String(Math.max(0, beginning - from) / (to - from));
  return h("div", { class: "strip", "aria-hidden": "true" }, unknown, pieces);
}
