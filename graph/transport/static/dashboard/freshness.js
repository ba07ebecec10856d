/** The top of the page: whether what it shows is live, and if not, how old it is. */

import { getElement, setText } from "./elements.js";
import { toTitle } from "./status.js";
import { formatDuration, formatTime, now, runEverySecond } from "./time.js";

/** @import { Fleet } from "./fleet.js" */

/** @typedef {{ kind: "live" | "waiting" | "stale", text: string }} Freshness */

const FRESH_MS = 10_000;

/**
 * Keep the top of the page up to date with the fleet.
 * @param {Fleet} fleet
 */
export function showFreshness(fleet) {
  const [environment, mode, freshness, revision, alarm, announcements] =
    ["environment", "mode", "freshness", "revision", "alarm", "announcements"].map((id) => getElement(id, HTMLElement));
  let announcedKind = "waiting";

  function update() {
    const { kind, text } = describeFreshness(fleet);
    freshness.className = `freshness ${kind}`;
    setText(freshness, text);
    // A screen reader hears that the kind changed, not the seconds that count up.
    if (kind !== announcedKind) setText(announcements, text);
    announcedKind = kind;
    document.body.classList.toggle("stale", kind === "stale");
    if (fleet.confirmedAt !== null) setText(revision, `revision ${fleet.revision}`);
    const registry = fleet.registry;
    if (registry === null) return;
    environment.hidden = mode.hidden = false;
    setText(environment, registry.environment);
    environment.title = `Version ${registry.version}`;
    setText(mode, toTitle(registry.mode));
    mode.classList.toggle("protected", registry.mode === "PROTECTED");
    alarm.hidden = registry.mode !== "PROTECTED";
    if (!alarm.hidden) {
      const since = formatTime(registry.modeSince);
      setText(alarm, `Protected since ${since}: ${registry.modeReason ?? "too many nodes fell silent at once"}. Silent nodes are not marked offline for now.`);
    }
  }

  fleet.addEventListener("registry", update);
  fleet.addEventListener("nodes", update);
  fleet.addEventListener("rejected", update);
  runEverySecond(update);
}

/**
 * @param {Fleet} fleet
 * @returns {Freshness}
 */
function describeFreshness({ isAnswering, confirmedAt, isLive, isRejected }) {
  const age = confirmedAt === null ? 0 : now() - confirmedAt;
  const cause = isRejected ? "Signed out" : !isAnswering ? "Cut off" : age > FRESH_MS ? "Behind" : null;
  if (cause !== null) {
    return { kind: "stale", text: confirmedAt === null ? cause : `${cause}: as of ${formatTime(confirmedAt)}, ${formatDuration(age)} ago` };
  }
  if (confirmedAt === null) return { kind: "waiting", text: "Loading" };
  return isLive ? { kind: "live", text: "Live" } : { kind: "waiting", text: "Connecting" };
}
