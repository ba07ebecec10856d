/** The status changes of a node, newest first, with reason, note and actor. */

import { h, renderCard } from "./elements.js";
import { renderBadge, toLowerCase, toWords } from "./status.js";
import { formatDateTime, formatDuration, formatTime, now } from "./time.js";

/** @import { StatusChange } from "../../dashboard" */

const FIRST_SHOWN = 20;

/**
 * Return the card of a node's status changes.
 * @param {StatusChange[]} changes newest first
 * @param {boolean} hasMore whether the change log has older changes than these
 */
export function renderTimeline(changes, hasMore) {
  const list = h("ol", { class: "history" });
  const more = h("button", { type: "button", onclick: () => show(changes.length) }, "Show more");

  /** @param {number} count */
  function show(count) {
    list.replaceChildren(...changes.slice(0, count).map((change, index) =>
      renderEntry(change, index === 0 ? null : changes[index - 1])));
    more.hidden = count >= changes.length;
  }

  show(FIRST_SHOWN);
  const end = hasMore ? h("p", { class: "quiet" }, `The newest ${changes.length} changes; the change log has older ones.`) : null;
  return renderCard("Timeline", list, more, end);
}

/**
 * @param {StatusChange} change
 * @param {StatusChange | null} next the change that followed, or null for the current status
 */
function renderEntry(change, next) {
  const end = next === null ? now() : Date.parse(next.changedAt);
  const duration = `${next === null ? "for" : "lasted"} ${formatDuration(end - Date.parse(change.changedAt))}`;
  return h("li", { class: toLowerCase(change.status) },
    renderBadge(change.status),
    h("span", { class: "why" }, toWords(change.reason), change.note ? h("q", {}, change.note) : null),
    h("span", { class: "by" }, change.actor === "system/registry" ? "" : `by ${change.actor}`),
    h("span", { class: "when" },
      h("time", { datetime: change.changedAt, title: formatDateTime(change.changedAt) }, formatTime(change.changedAt)),
      h("small", {}, duration)));
}
