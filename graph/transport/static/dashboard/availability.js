/** How available a node was over a day, a week and a month, and which statuses that came from. */

import { card, h } from "./elements.js";
import { title } from "./status.js";
import { DAY, fullInstant, now, shortInstant } from "./time.js";

const PERIODS = [["day", "Day", DAY], ["week", "Week", 7 * DAY], ["month", "Month", 30 * DAY]];

/** The variables of a query for all three. */
export function periods() {
  return Object.fromEntries(PERIODS.map(([name, , length]) => [name, new Date(now() - length).toISOString()]));
}

/** `node` has a part for each period, and its changes newest first. */
export function availability(node) {
  const to = now();
  const spans = spansOf(node.statusChanges.nodes, to);
  const rows = PERIODS.map(([name, label, length]) => {
    const from = to - length;
    // The registry counts the time before a node was registered as missed; nobody asks for that.
    const known = Math.min(to, Math.max(from, Date.parse(node.registeredAt)));
    const part = known < to ? Math.min(1, (node[name] * length) / (to - known)) : 1;
    return h("tr", {},
      h("th", { scope: "row" }, label),
      h("td", { class: "part" }, percentage(part)),
      h("td", {}, strip(spans, from, to), h("small", {}, known > from ? `registered ${shortInstant(known)}` : `since ${shortInstant(from)}`)));
  });
  return card("Availability", h("table", { class: "availability" }, h("tbody", {}, rows)));
}

function percentage(part) {
  // Never 100 % where anything is missing.
  return `${(Math.floor(part * 100_000) / 1000).toFixed(part === 1 ? 0 : 2)} %`;
}

function spansOf(changes, to) {
  let until = to;
  return changes.map(({ status, changedAt }) => {
    const span = { status, from: Date.parse(changedAt), to: until };
    until = span.from;
    return span;
  });
}

function strip(spans, from, to) {
  const inside = spans.filter((span) => span.to > from).toReversed();
  const begun = inside[0]?.from ?? to;
  const pieces = inside.map(({ status, from: since, to: until }) => {
    const piece = h("i", { class: status.toLowerCase(), title: `${title(status)} from ${fullInstant(since)}` });
    piece.style.flexGrow = (until - Math.max(since, from)) / (to - from);
    return piece;
  });
  const unknown = h("i", { class: "unknown" });
  unknown.style.flexGrow = Math.max(0, begun - from) / (to - from);
  return h("div", { class: "strip", "aria-hidden": "true" }, unknown, pieces);
}
