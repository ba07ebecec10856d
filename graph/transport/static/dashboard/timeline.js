/** What befell a node: its status changes, newest first, with reason, note and who caused them. */

import { renderBadge, toWords } from "./status.js";
import { renderCard, h } from "./elements.js";
import { formatDateTime, formatTime, now, formatDuration } from "./time.js";

const SHOWN = 20;

/** `hasMore`: older changes are in the log than these. */
export function renderTimeline(changes, hasMore) {
  const list = h("ol", { class: "history" });
  const more = h("button", { type: "button", onclick: () => show(changes.length) }, "Show more");

  function show(count) {
    list.replaceChildren(...changes.slice(0, count).map((change, index) => renderEntry(change, changes[index - 1])));
    more.hidden = count >= changes.length;
  }

  show(SHOWN);
  const end = hasMore ? h("p", { class: "quiet" }, `The newest ${changes.length} changes; the change log has older ones.`) : null;
  return renderCard("Timeline", list, more, end);
}

function renderEntry(change, next) {
  const until = next === undefined ? now() : Date.parse(next.changedAt);
  const lasted = `${next === undefined ? "for" : "lasted"} ${formatDuration(until - Date.parse(change.changedAt))}`;
  return h("li", { class: change.status.toLowerCase() },
    renderBadge(change.status),
    h("span", { class: "why" }, toWords(change.reason), change.note ? h("q", {}, change.note) : null),
    h("span", { class: "by" }, change.actor === "registry" ? "" : `by ${change.actor}`),
    h("span", { class: "when" },
      h("time", { datetime: change.changedAt, title: formatDateTime(change.changedAt) }, formatTime(change.changedAt)),
      h("small", {}, lasted)));
}
