/** A node's load: the last heartbeats, kept current as they arrive, or its hours over days. */

import { Chart } from "./chart.js";
import { HEARTBEATS, HEARTBEAT_STREAM, HOURS } from "./documents.js";
import { h, problem } from "./elements.js";
import { DAY, now } from "./time.js";

const KEPT = 400;
const HOUR = DAY / 24;
const RANGES = { Live: null, Day: DAY, Week: 7 * DAY, Month: 30 * DAY };

const percent = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
const gigabytes = (value) => `${(value / 1000).toFixed(1)} GB`;
const celsius = (value) => `${Math.round(value)} °C`;

/** What is charted: of a heartbeat's metrics, of a GPU of theirs, and of an hour. */
const MEASURES = [
  { title: "CPU", format: percent, most: 100, of: "cpuPercent", hour: "cpuPercent" },
  { title: "Memory", format: percent, most: 100, of: "memoryPercent", hour: "memoryPercent" },
  { title: "Disk", format: percent, most: 100, of: "diskPercent", hour: "diskPercent" },
  { title: "GPU load", format: percent, most: 100, ofGpu: (gpu) => gpu.utilizationPercent, hour: "gpuUtilizationPercent" },
  { title: "GPU memory free", format: gigabytes, most: 1, ofGpu: (gpu) => gpu.memoryFreeMb, hour: "gpuMemoryFreeMb" },
  { title: "GPU temperature", format: celsius, most: 90, ofGpu: (gpu) => gpu.temperatureCelsius, hour: "gpuTemperatureCelsius" },
];

export class Load {
  element;

  #nodeId;
  #api;
  #socket;
  #heard;
  #charts = MEASURES.map(({ title, format, most }) => new Chart(title, { format, most }));
  #buttons;
  #problem = h("div");
  #heartbeats = [];
  #hours = [];
  #range = "Live";
  #unfollow = () => {};
  #onReady = () => this.#loadHeartbeats();

  /** `heard` is called with the time of the newest heartbeat. */
  constructor(nodeId, { api, socket, heard }) {
    this.#nodeId = nodeId;
    this.#api = api;
    this.#socket = socket;
    this.#heard = heard;
    this.#buttons = Object.keys(RANGES).map((name) =>
      h("button", { type: "button", "aria-pressed": String(name === this.#range), onclick: () => this.#choose(name) }, name));
    this.element = h("section", { class: "load", "aria-labelledby": "load-title" },
      h("div", { class: "heading" }, h("h2", { id: "load-title" }, "Load"), h("div", { class: "choice", role: "group", "aria-label": "Time shown" }, this.#buttons)),
      this.#problem,
      h("div", { class: "charts" }, this.#charts.map((chart) => chart.element)));
    this.#draw();
  }

  open() {
    this.#socket.addEventListener("ready", this.#onReady); // what came while it was cut off
    this.#unfollow = this.#socket.subscribe(HEARTBEAT_STREAM, () => ({ nodeId: this.#nodeId }), {
      next: (data) => this.#take([data.heartbeats]),
      error: (error) => this.#problem.replaceChildren(problem(error)),
    });
    this.#loadHeartbeats();
  }

  close() {
    this.#socket.removeEventListener("ready", this.#onReady);
    this.#unfollow();
  }

  async #loadHeartbeats() {
    await this.#ask(HEARTBEATS, { nodeId: this.#nodeId, first: KEPT }, (node) => this.#take(node.heartbeats.nodes));
  }

  async #loadHours() {
    const since = new Date(now() - RANGES[this.#range]).toISOString();
    await this.#ask(HOURS, { nodeId: this.#nodeId, since }, (node) => {
      this.#hours = node.metricsHistory.nodes.toReversed();
      this.#draw();
    });
  }

  async #ask(document, variables, take) {
    try {
      const { node } = await this.#api.ask(document, variables);
      this.#problem.replaceChildren();
      if (node !== null) take(node);
    } catch (error) {
      this.#problem.replaceChildren(problem(error));
    }
  }

  /** Old and new may overlap. */
  #take(heartbeats) {
    const known = new Map([...this.#heartbeats, ...heartbeats].map((each) => [each.receivedAt, each]));
    const inOrder = [...known.values()].sort((one, other) => Date.parse(one.receivedAt) - Date.parse(other.receivedAt));
    this.#heartbeats = inOrder.slice(-KEPT);
    if (inOrder.length > 0) this.#heard(inOrder.at(-1).receivedAt);
    if (this.#range === "Live") this.#draw();
  }

  #choose(name) {
    this.#range = name;
    this.#buttons.forEach((button) => button.setAttribute("aria-pressed", button.textContent === name));
    this.#hours = [];
    this.#draw();
    if (name !== "Live") this.#loadHours();
  }

  #draw() {
    const live = this.#range === "Live";
    const span = live ? this.#liveSpan() : { from: now() - RANGES[this.#range], to: now(), gap: 1.5 * HOUR };
    MEASURES.forEach((measure, index) => {
      const lines = live ? linesOf(measure, this.#heartbeats) : hoursOf(measure, this.#hours);
      const chart = this.#charts[index];
      chart.element.hidden = measure.ofGpu !== undefined && lines.length === 0;
      chart.show({ ...span, lines });
    });
  }

  /** The pace is the registry's to set: three times the usual distance is a gap. */
  #liveSpan() {
    const times = this.#heartbeats.map(({ receivedAt }) => Date.parse(receivedAt));
    const to = times.at(-1) ?? now();
    const from = Math.min(times[0] ?? to, to - 60_000);
    const apart = times.slice(1).map((at, index) => at - times[index]).sort((one, other) => one - other);
    return { from, to, gap: 3 * (apart[Math.floor(apart.length / 2)] ?? HOUR) };
  }
}

function linesOf({ of, ofGpu }, heartbeats) {
  const at = (heartbeat) => Date.parse(heartbeat.receivedAt);
  if (of !== undefined) {
    return [{ name: of, points: heartbeats.map((each) => ({ at: at(each), value: each.metrics[of] })) }];
  }
  const gpus = heartbeats.at(-1)?.metrics.gpus ?? [];
  const lines = gpus.map(({ name }, index) => ({
    name: gpus.length > 1 ? `${index}: ${name}` : name,
    points: heartbeats.map((each) => ({ at: at(each), value: each.metrics.gpus[index] ? ofGpu(each.metrics.gpus[index]) : null })),
  }));
  return lines.filter(({ points }) => points.some(({ value }) => value !== null));
}

function hoursOf({ title, ofGpu, hour }, hours) {
  const points = hours.map((each) => {
    const at = Date.parse(each.startsAt) + HOUR / 2;
    const measured = each[hour];
    return measured === null ? { at, value: null } : { at, value: measured.avg, low: measured.min, high: measured.max };
  });
  const measured = points.some(({ value }) => value !== null);
  return ofGpu === undefined || measured ? [{ name: title, points }] : [];
}
