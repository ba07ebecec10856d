/** What befell a node: its status changes, newest first, with reason, note and who caused them. */

import { badge, word } from "./status.js";
import { card, h } from "./elements.js";
import { fullInstant, instant, now, span } from "./time.js";

const SHOWN = 20;

/** `hasMore`: older changes are in the log than these. */
export function timeline(changes, hasMore) {
  const list = h("ol", { class: "history" });
  const more = h("button", { type: "button", onclick: () => show(changes.length) }, "Show more");

  function show(count) {
    list.replaceChildren(...changes.slice(0, count).map((change, index) => entry(change, changes[index - 1])));
    more.hidden = count >= changes.length;
  }

  show(SHOWN);
  const end = hasMore ? h("p", { class: "quiet" }, `The newest ${changes.length} changes; the change log has older ones.`) : null;
  return card("Timeline", list, more, end);
}

function entry(change, next) {
  const until = next === undefined ? now() : Date.parse(next.changedAt);
  const lasted = `${next === undefined ? "for" : "lasted"} ${span(until - Date.parse(change.changedAt))}`;
  return h("li", { class: change.status.toLowerCase() },
    badge(change.status),
    h("span", { class: "why" }, word(change.reason), change.note ? h("q", {}, change.note) : null),
    h("span", { class: "by" }, change.actor === "registry" ? "" : `by ${change.actor}`),
    h("span", { class: "when" },
      h("time", { datetime: change.changedAt, title: fullInstant(change.changedAt) }, instant(change.changedAt)),
      h("small", {}, lasted)));
}
