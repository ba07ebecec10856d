/** A node's load: the last heartbeats, kept current as they arrive, or its hours over days. */

import { Chart } from "./chart.js";
import { HEARTBEATS, HEARTBEAT_STREAM, HOURS } from "./documents.js";
import { h, renderProblem } from "./elements.js";
import { DAY, now } from "./time.js";

const MAX_HEARTBEATS = 400;
const HOUR = DAY / 24;
const RANGES = { Live: null, Day: DAY, Week: 7 * DAY, Month: 30 * DAY };

const formatPercent = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
const formatGigabytes = (value) => `${(value / 1000).toFixed(1)} GB`;
const formatCelsius = (value) => `${Math.round(value)} °C`;

/** What is charted: of a heartbeat's metrics, of a GPU of theirs, and of an hour. */
const MEASURES = [
  { title: "CPU", format: formatPercent, minimumTop: 100, metric: "cpuPercent", hourlyMetric: "cpuPercent" },
  { title: "Memory", format: formatPercent, minimumTop: 100, metric: "memoryPercent", hourlyMetric: "memoryPercent" },
  { title: "Disk", format: formatPercent, minimumTop: 100, metric: "diskPercent", hourlyMetric: "diskPercent" },
  { title: "GPU load", format: formatPercent, minimumTop: 100, readGpu: (gpu) => gpu.utilizationPercent, hourlyMetric: "gpuUtilizationPercent" },
  { title: "GPU memory free", format: formatGigabytes, minimumTop: 1, readGpu: (gpu) => gpu.memoryFreeMb, hourlyMetric: "gpuMemoryFreeMb" },
  { title: "GPU temperature", format: formatCelsius, minimumTop: 90, readGpu: (gpu) => gpu.temperatureCelsius, hourlyMetric: "gpuTemperatureCelsius" },
];

export class LoadPanel {
  element;

  #nodeId;
  #api;
  #socket;
  #onHeartbeat;
  #charts = MEASURES.map(({ title, format, minimumTop }) => new Chart(title, { format, minimumTop }));
  #buttons;
  #problem = h("div");
  #heartbeats = [];
  #hours = [];
  #range = "Live";
  #unsubscribe = () => {};
  #onReady = () => this.#loadHeartbeats();

  /** `onHeartbeat` is called with the time of the newest heartbeat. */
  constructor(nodeId, { api, socket, onHeartbeat }) {
    this.#nodeId = nodeId;
    this.#api = api;
    this.#socket = socket;
    this.#onHeartbeat = onHeartbeat;
    this.#buttons = Object.keys(RANGES).map((name) =>
      h("button", { type: "button", "aria-pressed": String(name === this.#range), onclick: () => this.#chooseRange(name) }, name));
    this.element = h("section", { class: "load", "aria-labelledby": "load-title" },
      h("div", { class: "heading" }, h("h2", { id: "load-title" }, "Load"), h("div", { class: "choice", role: "group", "aria-label": "Time shown" }, this.#buttons)),
      this.#problem,
      h("div", { class: "charts" }, this.#charts.map((chart) => chart.element)));
    this.#draw();
  }

  open() {
    this.#socket.addEventListener("ready", this.#onReady); // what came while it was cut off
    this.#unsubscribe = this.#socket.subscribe(HEARTBEAT_STREAM, () => ({ nodeId: this.#nodeId }), {
      next: (data) => this.#addHeartbeats([data.heartbeats]),
      error: (error) => this.#problem.replaceChildren(renderProblem(error)),
    });
    this.#loadHeartbeats();
  }

  close() {
    this.#socket.removeEventListener("ready", this.#onReady);
    this.#unsubscribe();
  }

  async #loadHeartbeats() {
    await this.#query(HEARTBEATS, { nodeId: this.#nodeId, first: MAX_HEARTBEATS }, (node) => this.#addHeartbeats(node.heartbeats.nodes));
  }

  async #loadHours() {
    const since = new Date(now() - RANGES[this.#range]).toISOString();
    await this.#query(HOURS, { nodeId: this.#nodeId, since }, (node) => {
      this.#hours = node.metricsHistory.nodes.toReversed();
      this.#draw();
    });
  }

  async #query(document, variables, useNode) {
    try {
      const { node } = await this.#api.execute(document, variables);
      this.#problem.replaceChildren();
      if (node !== null) useNode(node);
    } catch (error) {
      this.#problem.replaceChildren(renderProblem(error));
    }
  }

  /** Old and new may overlap. */
  #addHeartbeats(heartbeats) {
    const known = new Map([...this.#heartbeats, ...heartbeats].map((each) => [each.receivedAt, each]));
    const inOrder = [...known.values()].sort((one, other) => Date.parse(one.receivedAt) - Date.parse(other.receivedAt));
    this.#heartbeats = inOrder.slice(-MAX_HEARTBEATS);
    if (inOrder.length > 0) this.#onHeartbeat(inOrder.at(-1).receivedAt);
    if (this.#range === "Live") this.#draw();
  }

  #chooseRange(name) {
    this.#range = name;
    this.#buttons.forEach((button) => button.setAttribute("aria-pressed", button.textContent === name));
    this.#hours = [];
    this.#draw();
    if (name !== "Live") this.#loadHours();
  }

  #draw() {
    const live = this.#range === "Live";
    const span = live ? this.#findLiveSpan() : { from: now() - RANGES[this.#range], to: now(), gap: 1.5 * HOUR };
    MEASURES.forEach((measure, index) => {
      const lines = live ? buildLiveLines(measure, this.#heartbeats) : buildHourlyLines(measure, this.#hours);
      const chart = this.#charts[index];
      chart.element.hidden = measure.readGpu !== undefined && lines.length === 0;
      chart.show({ ...span, lines });
    });
  }

  /** The pace is the registry's to set: three times the usual distance is a gap. */
  #findLiveSpan() {
    const times = this.#heartbeats.map(({ receivedAt }) => Date.parse(receivedAt));
    const to = times.at(-1) ?? now();
    const from = Math.min(times[0] ?? to, to - 60_000);
    const apart = times.slice(1).map((at, index) => at - times[index]).sort((one, other) => one - other);
    return { from, to, gap: 3 * (apart[Math.floor(apart.length / 2)] ?? HOUR) };
  }
}

function buildLiveLines({ metric, readGpu }, heartbeats) {
  const at = (heartbeat) => Date.parse(heartbeat.receivedAt);
  if (metric !== undefined) {
    return [{ name: metric, points: heartbeats.map((each) => ({ at: at(each), value: each.metrics[metric] })) }];
  }
  const gpus = heartbeats.at(-1)?.metrics.gpus ?? [];
  const lines = gpus.map(({ name }, index) => ({
    name: gpus.length > 1 ? `${index}: ${name}` : name,
    points: heartbeats.map((each) => ({ at: at(each), value: each.metrics.gpus[index] ? readGpu(each.metrics.gpus[index]) : null })),
  }));
  return lines.filter(({ points }) => points.some(({ value }) => value !== null));
}

function buildHourlyLines({ title, readGpu, hourlyMetric }, hours) {
  const points = hours.map((each) => {
    const at = Date.parse(each.startsAt) + HOUR / 2;
    const measured = each[hourlyMetric];
    return measured === null ? { at, value: null } : { at, value: measured.avg, low: measured.min, high: measured.max };
  });
  const measured = points.some(({ value }) => value !== null);
  return readGpu === undefined || measured ? [{ name: title, points }] : [];
}
