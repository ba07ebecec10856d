/** What the page says of itself at its top: whether it is live, and if not, how old it is. */

import { setText } from "./elements.js";
import { title } from "./status.js";
import { eachSecond, instant, now, span } from "./time.js";

const FRESH_MS = 10_000;

/** Keeps the top of the page true to the fleet. */
export function showFreshness(fleet) {
  const [environment, mode, freshness, revision, alarm] =
    ["environment", "mode", "freshness", "revision", "alarm"].map((id) => document.getElementById(id));
  const announcements = document.getElementById("announcements");
  let told = "waiting";

  function show() {
    const state = stateOf(fleet);
    freshness.className = `freshness ${state.kind}`;
    setText(freshness, state.text);
    // What ticks is not read out; that it began is.
    if (state.kind !== told) setText(announcements, state.text);
    told = state.kind;
    document.body.classList.toggle("stale", state.kind === "stale");
    if (fleet.confirmedAt !== null) setText(revision, `revision ${fleet.revision}`);
    const registry = fleet.registry;
    if (registry === null) return;
    environment.hidden = mode.hidden = false;
    setText(environment, registry.environment);
    environment.title = `Version ${registry.version}`;
    setText(mode, title(registry.mode));
    mode.classList.toggle("protected", registry.mode === "PROTECTED");
    alarm.hidden = registry.mode !== "PROTECTED";
    if (!alarm.hidden) {
      const since = instant(registry.modeSince);
      setText(alarm, `Protected since ${since}: ${registry.modeReason ?? "too many nodes fell silent at once"}. Silent nodes are not marked offline for now.`);
    }
  }

  fleet.addEventListener("registry", show);
  fleet.addEventListener("nodes", show);
  fleet.addEventListener("refused", show);
  eachSecond(show);
}

function stateOf({ answering, confirmedAt, live, refused }) {
  const age = confirmedAt === null ? null : now() - confirmedAt;
  const why = refused ? "Signed out" : !answering ? "Cut off" : age > FRESH_MS ? "Behind" : null;
  if (why !== null) {
    return { kind: "stale", text: age === null ? why : `${why}: as of ${instant(confirmedAt)}, ${span(age)} ago` };
  }
  if (age === null) return { kind: "waiting", text: "Loading" };
  return live ? { kind: "live", text: "Live" } : { kind: "waiting", text: "Connecting" };
}
