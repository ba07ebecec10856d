/** Time by the registry's clock, which may differ from this machine's. */

// The Date header counts whole seconds, and a response takes a while to arrive.
const TOLERATED_MS = 2000;
const SECOND = 1000;
const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

/** How far the registry's clock is ahead of this machine's, in milliseconds. */
let registryAheadMs = 0;

/**
 * Set the registry's clock by the Date header of a response.
 * @param {string | null} header
 */
export function adjustClock(header) {
  const difference = Date.parse(header ?? "") - Date.now();
  if (Number.isFinite(difference)) registryAheadMs = Math.abs(difference) > TOLERATED_MS ? difference : 0;
}

/** Return the milliseconds since 1970 by the registry's clock. */
export function now() {
  return Date.now() + registryAheadMs;
}

/**
 * Return a duration in its two largest units, e.g. `3 min 20 s`; `0 s` for a negative one.
 * @param {number} milliseconds
 */
export function formatDuration(milliseconds) {
  const ms = Math.max(0, milliseconds);
  if (ms < MINUTE) return `${Math.floor(ms / SECOND)} s`;
  if (ms < HOUR) return formatTwoUnits(ms, MINUTE, "min", SECOND, "s");
  if (ms < DAY) return formatTwoUnits(ms, HOUR, "h", MINUTE, "min");
  return formatTwoUnits(ms, DAY, "d", HOUR, "h");
}

/**
 * @param {number} ms
 * @param {number} large
 * @param {string} largeName
 * @param {number} small
 * @param {string} smallName
 */
function formatTwoUnits(ms, large, largeName, small, smallName) {
  const rest = Math.floor((ms % large) / small);
  const whole = `${Math.floor(ms / large)} ${largeName}`;
  return rest === 0 ? whole : `${whole} ${rest} ${smallName}`;
}

const timeFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const dateTimeFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
const axisFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/**
 * Return an instant in the reader's time zone, without its date when it is less than a day away.
 * @param {string | number} instant ISO 8601, or milliseconds since 1970
 */
export function formatTime(instant) {
  const at = new Date(instant);
  return Math.abs(now() - at.getTime()) < DAY ? timeFormat.format(at) : dateTimeFormat.format(at);
}

/**
 * Return an instant with its date, in the reader's time zone.
 * @param {string | number} instant ISO 8601, or milliseconds since 1970
 */
export function formatDateTime(instant) {
  return dateTimeFormat.format(new Date(instant));
}

/**
 * Return an instant to the minute, for the axis of a chart.
 * @param {string | number} instant ISO 8601, or milliseconds since 1970
 */
export function formatAxisTime(instant) {
  return axisFormat.format(new Date(instant));
}

/**
 * Run a callback every second, and return the function that ends it.
 * @param {() => void} callback
 * @returns {() => void}
 */
export function runEverySecond(callback) {
  const timer = setInterval(callback, SECOND);
  return () => clearInterval(timer);
}
