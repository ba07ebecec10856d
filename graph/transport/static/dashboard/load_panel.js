/** A node's load: its latest heartbeats as they arrive, or its hourly metrics over days. */

import { assertRegistryError } from "./api.js";
import { Chart } from "./chart.js";
import { HEARTBEATS, HEARTBEAT_STREAM, HOURS } from "./documents.js";
import { h, renderProblem } from "./elements.js";
import { DAY, HOUR, now } from "./time.js";

/** @import { GpuMetrics, Heartbeat, JsonObject, MetricsHour, Operation } from "../../dashboard" */
/** @import { Api } from "./api.js" */
/** @import { Line, Point } from "./chart.js" */
/** @import { Socket } from "./socket.js" */

/**
 * What a chart shows: `metric` of a heartbeat or, for GPUs, what `readGpu` returns of each, and
 * `hourlyMetric` of an hour.
 * @typedef {{
 *   title: string,
 *   format: (value: number) => string,
 *   minimumTop: number,
 *   metric?: "cpuPercent" | "memoryPercent" | "diskPercent",
 *   readGpu?: (gpu: GpuMetrics) => number | null,
 *   hourlyMetric: Exclude<keyof MetricsHour, "startsAt">,
 * }} Measure
 */

const MAX_HEARTBEATS = 400;

/**
 * The lengths of the ranges that a person can choose; Live shows the latest heartbeats instead.
 * @type {Record<string, number | null>}
 */
const RANGES = { Live: null, Day: DAY, Week: 7 * DAY, Month: 30 * DAY };

/** @type {Measure[]} */
const MEASURES = [
  { title: "CPU", format: formatPercent, minimumTop: 100, metric: "cpuPercent", hourlyMetric: "cpuPercent" },
  { title: "Memory", format: formatPercent, minimumTop: 100, metric: "memoryPercent", hourlyMetric: "memoryPercent" },
  { title: "Disk", format: formatPercent, minimumTop: 100, metric: "diskPercent", hourlyMetric: "diskPercent" },
  { title: "GPU load", format: formatPercent, minimumTop: 100, readGpu: (gpu) => gpu.utilizationPercent, hourlyMetric: "gpuUtilizationPercent" },
  { title: "GPU memory free", format: formatGigabytes, minimumTop: 1, readGpu: (gpu) => gpu.memoryFreeMb, hourlyMetric: "gpuMemoryFreeMb" },
  { title: "GPU temperature", format: formatCelsius, minimumTop: 90, readGpu: (gpu) => gpu.temperatureCelsius, hourlyMetric: "gpuTemperatureCelsius" },
];

/** The charts of a node's load, with the choice of their range. */
export class LoadPanel {
  /** @type {HTMLElement} */
  element;

  /** @type {string} */
  #nodeId;
  /** @type {Api} */
  #api;
  /** @type {Socket} */
  #socket;
  /** @type {(receivedAt: string) => void} */
  #onHeartbeat;
  #charts = MEASURES.map(({ title, format, minimumTop }) => new Chart(title, { format, minimumTop }));
  /** @type {HTMLButtonElement[]} */
  #buttons;
  #problem = h("div");
  /** In the order of their arrival. @type {Heartbeat[]} */
  #heartbeats = [];
  /** In the order of time. @type {MetricsHour[]} */
  #hours = [];
  #range = "Live";
  /** @type {() => void} */
  #unsubscribe = () => {};
  #loadMissed = () => this.#loadHeartbeats();

  /**
   * @param {string} nodeId
   * @param {object} options
   * @param {Api} options.api
   * @param {Socket} options.socket
   * @param {(receivedAt: string) => void} options.onHeartbeat called with the time of the newest heartbeat
   */
  constructor(nodeId, { api, socket, onHeartbeat }) {
    this.#nodeId = nodeId;
    this.#api = api;
    this.#socket = socket;
    this.#onHeartbeat = onHeartbeat;
    this.#buttons = Object.keys(RANGES).map((name) =>
      h("button", { type: "button", "aria-pressed": String(name === this.#range), onclick: () => this.#chooseRange(name) }, name));
    this.element = h("section", { class: "load", "aria-labelledby": "load-title" },
      h("div", { class: "heading" }, h("h2", { id: "load-title" }, "Load"), h("div", { class: "choice", role: "group", "aria-label": "Time range" }, this.#buttons)),
      this.#problem,
      h("div", { class: "charts" }, this.#charts.map((chart) => chart.element)));
    this.#draw();
  }

  /** Load the latest heartbeats and follow new ones. */
  open() {
    // Heartbeats that arrived while the connection was lost are not sent again.
    this.#socket.addEventListener("ready", this.#loadMissed);
    this.#unsubscribe = this.#socket.subscribe(HEARTBEAT_STREAM, () => ({ nodeId: this.#nodeId }), {
      next: (data) => this.#addHeartbeats([data.heartbeats]),
      error: (error) => this.#problem.replaceChildren(renderProblem(error)),
    });
    this.#loadHeartbeats();
  }

  close() {
    this.#socket.removeEventListener("ready", this.#loadMissed);
    this.#unsubscribe();
  }

  async #loadHeartbeats() {
    const data = await this.#query(HEARTBEATS, { nodeId: this.#nodeId, first: MAX_HEARTBEATS });
    if (data?.node) this.#addHeartbeats(data.node.heartbeats.nodes);
  }

  /** @param {number} length in milliseconds until now */
  async #loadHours(length) {
    const since = new Date(now() - length).toISOString();
    const data = await this.#query(HOURS, { nodeId: this.#nodeId, since });
    if (!data?.node) return;
    this.#hours = data.node.metricsHistory.nodes.toReversed();
    this.#draw();
  }

  /**
   * Return the data of a query, or null after showing the error that the registry returned.
   * @template Data
   * @template {JsonObject} Variables
   * @param {Operation<Data, Variables>} query
   * @param {Variables} variables
   */
  async #query(query, variables) {
    try {
      const data = await this.#api.execute(query, variables);
      this.#problem.replaceChildren();
      return data;
    } catch (error) {
      assertRegistryError(error);
      this.#problem.replaceChildren(renderProblem(error));
      return null;
    }
  }

  /** @param {Heartbeat[]} heartbeats which may be known already */
  #addHeartbeats(heartbeats) {
    const byTime = new Map([...this.#heartbeats, ...heartbeats].map((heartbeat) => [heartbeat.receivedAt, heartbeat]));
    const inOrder = [...byTime.values()].sort((a, b) => Date.parse(a.receivedAt) - Date.parse(b.receivedAt));
    this.#heartbeats = inOrder.slice(-MAX_HEARTBEATS);
    const newest = inOrder.at(-1);
    if (newest !== undefined) this.#onHeartbeat(newest.receivedAt);
    if (this.#range === "Live") this.#draw();
  }

  /** @param {string} name */
  #chooseRange(name) {
    this.#range = name;
    this.#buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === name)));
    this.#hours = [];
    this.#draw();
    const length = RANGES[name];
    if (length !== null) this.#loadHours(length);
  }

  #draw() {
    const length = RANGES[this.#range];
    const span = length === null ? this.#findLiveSpan() : { from: now() - length, to: now(), gap: 1.5 * HOUR };
    MEASURES.forEach((measure, index) => {
      const lines = length === null ? buildLiveLines(measure, this.#heartbeats) : buildHourlyLines(measure, this.#hours);
      const chart = this.#charts[index];
      chart.element.hidden = measure.readGpu !== undefined && lines.length === 0;
      chart.show({ ...span, lines });
    });
  }

  /**
   * Return the span of the latest heartbeats. The registry sets the interval between heartbeats, so a
   * gap is three times their median distance.
   */
  #findLiveSpan() {
    const times = this.#heartbeats.map(({ receivedAt }) => Date.parse(receivedAt));
    const to = times.at(-1) ?? now();
    const from = Math.min(times[0] ?? to, to - 60_000);
    const distances = times.slice(1).map((at, index) => at - times[index]).sort((a, b) => a - b);
    return { from, to, gap: 3 * (distances[Math.floor(distances.length / 2)] ?? HOUR) };
  }
}

/** @param {number} value */
function formatPercent(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

/** @param {number} megabytes */
function formatGigabytes(megabytes) {
  return `${(megabytes / 1000).toFixed(1)} GB`;
}

/** @param {number} value */
function formatCelsius(value) {
  return `${Math.round(value)} °C`;
}

/**
 * Return one line for a metric, or one for each GPU that measured it.
 * @param {Measure} measure
 * @param {Heartbeat[]} heartbeats
 * @returns {Line[]}
 */
function buildLiveLines({ metric, readGpu }, heartbeats) {
  /** @type {(readValue: (heartbeat: Heartbeat) => number | null) => Point[]} */
  const toPoints = (readValue) => heartbeats.map((heartbeat) => ({ at: Date.parse(heartbeat.receivedAt), value: readValue(heartbeat) }));
  if (metric !== undefined) return [{ name: metric, points: toPoints(({ metrics }) => metrics[metric]) }];
  const gpus = heartbeats.at(-1)?.metrics.gpus ?? [];
  const lines = gpus.map(({ name }, index) => ({
    name: gpus.length > 1 ? `${index}: ${name}` : name,
    points: toPoints(({ metrics }) => (readGpu && metrics.gpus[index] ? readGpu(metrics.gpus[index]) : null)),
  }));
  return lines.filter(({ points }) => points.some(({ value }) => value !== null));
}

/**
 * Return the line of a measure's hourly means, with a band from minimum to maximum; no line for a GPU
 * that measured nothing.
 * @param {Measure} measure
 * @param {MetricsHour[]} hours
 * @returns {Line[]}
 */
function buildHourlyLines({ title, readGpu, hourlyMetric }, hours) {
  const points = hours.map((hour) => {
    const at = Date.parse(hour.startsAt) + HOUR / 2;
    const range = hour[hourlyMetric];
    return range === null ? { at, value: null } : { at, value: range.avg, low: range.min, high: range.max };
  });
  const isMeasured = points.some(({ value }) => value !== null);
  return readGpu === undefined || isMeasured ? [{ name: title, points }] : [];
}
