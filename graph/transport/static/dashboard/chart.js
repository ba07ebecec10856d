/** A chart of measurements over time: lines, bands around them, and gaps where nothing was measured. */

import { createSvg, h, setText } from "./elements.js";
import { formatAxisTime, formatDateTime } from "./time.js";

/**
 * A point at `at`, in milliseconds since 1970. `value` is null where nothing was measured; `low` and
 * `high` bound the band around the line, for lines that have one.
 * @typedef {{ at: number, value: number | null, low?: number, high?: number }} Point
 * @typedef {Point & { value: number }} MeasuredPoint
 * @typedef {{ name: string, points: Point[] }} Line
 */

/**
 * What a chart shows: lines from one instant to another, interrupted where two points lie further
 * apart than `gap`. All three are in milliseconds.
 * @typedef {{ from: number, to: number, gap: number, lines: Line[] }} ChartData
 */

const HEIGHT = 110;
const MAX_LINES = 6;

/** A chart with its title, its last values, and the values under the pointer. */
export class Chart {
  /** @type {HTMLElement} */
  element;

  /** @type {string} */
  #title;
  /** @type {(value: number) => string} */
  #format;
  /** @type {number} */
  #minimumTop;
  #drawing = createSvg("svg", { role: "img", height: HEIGHT, preserveAspectRatio: "none" });
  #value = h("b", {}, "–");
  #detail = h("span", { class: "quiet" });
  #legend = h("ul", { class: "legend" });
  #cursor = createSvg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
  #axisStart = h("span");
  #axisEnd = h("span");
  /** @type {ChartData | null} */
  #data = null;
  #width = 300;

  /**
   * @param {string} title
   * @param {object} options
   * @param {(value: number) => string} options.format turns a value into text
   * @param {number} options.minimumTop the lowest value that the top of the chart may stand for
   */
  constructor(title, { format, minimumTop }) {
    this.#title = title;
    this.#format = format;
    this.#minimumTop = minimumTop;
    this.element = h("figure", { class: "chart card" },
      h("figcaption", {}, h("h3", {}, title), this.#value, this.#detail),
      this.#drawing,
      h("div", { class: "axis quiet", "aria-hidden": "true" }, this.#axisStart, this.#axisEnd),
      this.#legend);
    this.#drawing.addEventListener("pointermove", (event) => this.#showValuesAt(event.offsetX));
    this.#drawing.addEventListener("pointerleave", () => this.#showLastValues());
    new ResizeObserver(([{ contentRect }]) => {
      this.#width = Math.max(50, contentRect.width);
      this.#draw();
    }).observe(this.#drawing);
  }

  /**
   * Draw the chart with other data.
   * @param {ChartData} data of whose lines only the first six are drawn
   */
  show(data) {
    this.#data = { ...data, lines: data.lines.slice(0, MAX_LINES) };
    this.#draw();
  }

  #draw() {
    if (this.#data === null) return;
    const { from, to, lines } = this.#data;
    const values = lines.flatMap(({ points }) => points.map(({ value, high }) => high ?? value)).filter((value) => value !== null);
    const top = Math.max(this.#minimumTop, ...values);
    const x = (/** @type {number} */ at) => (((at - from) / (to - from)) * this.#width).toFixed(1);
    const y = (/** @type {number} */ value) => (HEIGHT - 1 - (value / top) * (HEIGHT - 6)).toFixed(1);
    const grid = [0.25, 0.5, 0.75].map((part) => createSvg("line", { class: "grid", x1: 0, x2: this.#width, y1: y(top * part), y2: y(top * part) }));
    const strokes = lines.flatMap(({ points }, index) => this.#buildStrokes(this.#splitAtGaps(points), x, y, `line-${index}`));
    this.#drawing.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    this.#drawing.setAttribute("aria-label", this.#summarize(values));
    this.#drawing.replaceChildren(...grid, ...strokes, this.#cursor);
    this.#legend.hidden = lines.length <= 1;
    if (lines.length > 1) this.#legend.replaceChildren(...lines.map(({ name }, index) => h("li", { class: `line-${index}` }, name)));
    setText(this.#axisStart, formatAxisTime(from));
    setText(this.#axisEnd, formatAxisTime(to));
    this.#showLastValues();
  }

  /**
   * @param {MeasuredPoint[][]} parts
   * @param {(at: number) => string} x
   * @param {(value: number) => string} y
   * @param {string} name the class of the line
   */
  #buildStrokes(parts, x, y, name) {
    const isAlone = this.#data?.lines.length === 1;
    return parts.flatMap((part) => {
      const line = part.map(({ at, value }, index) => `${index === 0 ? "M" : "L"}${x(at)} ${y(value)}`).join("");
      const hasBand = part.every(({ low }) => low !== undefined);
      const above = part.map(({ at, value, high }) => `${x(at)} ${y(high ?? value)}`);
      const below = part.toReversed().map(({ at, low }) => `${x(at)} ${y(hasBand ? low ?? 0 : 0)}`);
      const area = createSvg("path", { class: `area ${name}`, d: `M${[...above, ...below].join("L")}Z` });
      const stroke = createSvg("path", { class: `stroke ${name}`, d: line });
      // The line of a single point would have no length.
      const dot = createSvg("circle", { class: `dot ${name}`, cx: x(part[0].at), cy: y(part[0].value), r: 1.5 });
      return [...(hasBand || isAlone ? [area] : []), stroke, ...(part.length === 1 ? [dot] : [])];
    });
  }

  /**
   * Return the measured points, divided where two of them lie too far apart.
   * @param {Point[]} points
   */
  #splitAtGaps(points) {
    /** @type {MeasuredPoint[][]} */
    const parts = [];
    const gap = this.#data?.gap ?? 0;
    let previousAt = -Infinity;
    for (const point of points.filter(isMeasured)) {
      if (point.at - previousAt > gap) parts.push([]);
      parts[parts.length - 1].push(point);
      previousAt = point.at;
    }
    return parts;
  }

  /** @param {number[]} values */
  #summarize(values) {
    if (values.length === 0) return `${this.#title}: nothing measured in this time`;
    const [lowest, highest] = [Math.min(...values), Math.max(...values)].map(this.#format);
    return `${this.#title}: ${this.#formatLastValues()} last, between ${lowest} and ${highest} in this time`;
  }

  #formatLastValues() {
    const lines = this.#data?.lines ?? [];
    return lines.flatMap(({ points }) => points.findLast(isMeasured) ?? []).map(({ value }) => this.#format(value)).join(" · ") || "–";
  }

  #showLastValues() {
    this.#cursor.setAttribute("visibility", "hidden");
    setText(this.#value, this.#formatLastValues());
    setText(this.#detail, "");
  }

  /** @param {number} position in pixels from the left of the drawing */
  #showValuesAt(position) {
    if (this.#data === null) return;
    const { from, to, lines } = this.#data;
    const at = from + (position / this.#width) * (to - from);
    const nearest = lines.flatMap(({ points }) => findClosest(points, at) ?? []);
    if (nearest.length === 0) return;
    const x = String(((nearest[0].at - from) / (to - from)) * this.#width);
    for (const side of ["x1", "x2"]) this.#cursor.setAttribute(side, x);
    this.#cursor.setAttribute("visibility", "visible");
    setText(this.#value, nearest.map(({ value }) => this.#format(value)).join(" · "));
    setText(this.#detail, formatDateTime(nearest[0].at));
  }
}

/**
 * @param {Point} point
 * @returns {point is MeasuredPoint}
 */
function isMeasured(point) {
  return point.value !== null;
}

/**
 * Return the measured point that is closest to an instant, or null where nothing was measured.
 * @param {Point[]} points
 * @param {number} at
 */
function findClosest(points, at) {
  /** @type {MeasuredPoint | null} */
  let closest = null;
  for (const point of points.filter(isMeasured)) {
    if (closest === null || Math.abs(closest.at - at) > Math.abs(point.at - at)) closest = point;
  }
  return closest;
}
