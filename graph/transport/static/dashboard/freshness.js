/** What the page says of itself at its top: whether it is live, and if not, how old it is. */

import { setText } from "./elements.js";
import { toTitle } from "./status.js";
import { everySecond, formatTime, now, formatDuration } from "./time.js";

const FRESH_MS = 10_000;

/** Keeps the top of the page true to the fleet. */
export function showFreshness(fleet) {
  const [environment, mode, freshness, revision, alarm] =
    ["environment", "mode", "freshness", "revision", "alarm"].map((id) => document.getElementById(id));
  const announcements = document.getElementById("announcements");
  let announcedKind = "waiting";

  function update() {
    const state = describeFreshness(fleet);
    freshness.className = `freshness ${state.kind}`;
    setText(freshness, state.text);
    // What ticks is not read out; that it began is.
    if (state.kind !== announcedKind) setText(announcements, state.text);
    announcedKind = state.kind;
    document.body.classList.toggle("stale", state.kind === "stale");
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
  everySecond(update);
}

function describeFreshness({ isAnswering, confirmedAt, isLive, isRefused }) {
  const age = confirmedAt === null ? null : now() - confirmedAt;
  const cause = isRefused ? "Signed out" : !isAnswering ? "Cut off" : age > FRESH_MS ? "Behind" : null;
  if (cause !== null) {
    return { kind: "stale", text: age === null ? cause : `${cause}: as of ${formatTime(confirmedAt)}, ${formatDuration(age)} ago` };
  }
  if (age === null) return { kind: "waiting", text: "Loading" };
  return isLive ? { kind: "live", text: "Live" } : { kind: "waiting", text: "Connecting" };
}
