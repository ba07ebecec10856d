/** Time as the registry has it: its clock decides, not this machine's. */

const TOLERATED_MS = 2000; // HTTP's Date has whole seconds, and an answer takes a while
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

let registryAheadMs = 0;

/** Learns from a response's Date header how far the registry's clock is ahead of this one. */
export function adjustClock(date) {
  const difference = Date.parse(date) - Date.now();
  if (Number.isFinite(difference)) registryAheadMs = Math.abs(difference) > TOLERATED_MS ? difference : 0;
}

/** Milliseconds since 1970 by the registry's clock. */
export function now() {
  return Date.now() + registryAheadMs;
}

/** A span in its two largest units, e.g. `3 min 20 s`; `0 s` for what lies in the future. */
export function formatDuration(milliseconds) {
  const ms = Math.max(0, milliseconds);
  if (ms < MINUTE) return `${Math.floor(ms / SECOND)} s`;
  if (ms < HOUR) return formatTwoUnits(ms, MINUTE, "min", SECOND, "s");
  if (ms < DAY) return formatTwoUnits(ms, HOUR, "h", MINUTE, "min");
  return formatTwoUnits(ms, DAY, "d", HOUR, "h");
}

function formatTwoUnits(ms, large, largeName, small, smallName) {
  const rest = Math.floor((ms % large) / small);
  const whole = `${Math.floor(ms / large)} ${largeName}`;
  return rest === 0 ? whole : `${whole} ${rest} ${smallName}`;
}

const timeFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const dateTimeFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
const axisFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** An instant in this reader's zone: the time alone when it is less than a day ago. */
export function formatTime(value) {
  const at = new Date(value);
  return Math.abs(now() - at) < DAY ? timeFormat.format(at) : dateTimeFormat.format(at);
}

/** An instant with its date, in this reader's zone. */
export function formatDateTime(value) {
  return dateTimeFormat.format(new Date(value));
}

/** An instant to the minute, for an axis. */
export function formatAxisTime(value) {
  return axisFormat.format(new Date(value));
}

/** Calls back each second, as that is what spans are told in; returns what ends it. */
export function everySecond(callback) {
  const timer = setInterval(callback, SECOND);
  return () => clearInterval(timer);
}
