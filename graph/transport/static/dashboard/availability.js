/** How available a node was over a day, a week and a month, and which statuses that came from. */

import { renderCard, h } from "./elements.js";
import { toTitle } from "./status.js";
import { DAY, formatDateTime, now, formatAxisTime } from "./time.js";

const PERIODS = [["day", "Day", DAY], ["week", "Week", 7 * DAY], ["month", "Month", 30 * DAY]];

/** The variables of a query for all three. */
export function buildPeriodVariables() {
  return Object.fromEntries(PERIODS.map(([name, , length]) => [name, new Date(now() - length).toISOString()]));
}

/** `node` has a share for each period, and its changes newest first. */
export function renderAvailability(node) {
  const to = now();
  const spans = toSpans(node.statusChanges.nodes, to);
  const rows = PERIODS.map(([name, label, length]) => {
    const from = to - length;
    // The registry counts the time before a node was registered as missed; nobody asks for that.
    const start = Math.min(to, Math.max(from, Date.parse(node.registeredAt)));
    const share = start < to ? Math.min(1, (node[name] * length) / (to - start)) : 1;
    return h("tr", {},
      h("th", { scope: "row" }, label),
      h("td", { class: "part" }, formatPercentage(share)),
      h("td", {}, renderStrip(spans, from, to), h("small", {}, start > from ? `registered ${formatAxisTime(start)}` : `since ${formatAxisTime(from)}`)));
  });
  return renderCard("Availability", h("table", { class: "availability" }, h("tbody", {}, rows)));
}

function formatPercentage(share) {
  // Never 100 % where anything is missing.
  return `${(Math.floor(share * 100_000) / 1000).toFixed(share === 1 ? 0 : 2)} %`;
}

function toSpans(changes, to) {
  let until = to;
  return changes.map(({ status, changedAt }) => {
    const span = { status, from: Date.parse(changedAt), to: until };
    until = span.from;
    return span;
  });
}

function renderStrip(spans, from, to) {
  const inside = spans.filter((span) => span.to > from).toReversed();
  const beginning = inside[0]?.from ?? to;
  const pieces = inside.map(({ status, from: since, to: until }) => {
    const piece = h("i", { class: status.toLowerCase(), title: `${toTitle(status)} from ${formatDateTime(since)}` });
    piece.style.flexGrow = (until - Math.max(since, from)) / (to - from);
    return piece;
  });
  const unknown = h("i", { class: "unknown" });
  unknown.style.flexGrow = Math.max(0, beginning - from) / (to - from);
  return h("div", { class: "strip", "aria-hidden": "true" }, unknown, pieces);
}
