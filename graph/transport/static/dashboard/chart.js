/** A chart of measures over time: lines, bands around them, gaps where nothing was measured. */

import { h, setText, createSvg } from "./elements.js";
import { formatDateTime, formatAxisTime } from "./time.js";

const HEIGHT = 110;
const MAX_LINES = 6;

/**
 * Lines are {name, points}, a point is {at, value, low, high}: `at` in milliseconds, `value` null where
 * there is none, `low` and `high` only where a band is to be drawn.
 */
export class Chart {
  element;

  #title;
  #format;
  #minimumTop;
  #drawing;
  #value;
  #detail;
  #legend;
  #cursor;
  #axis;
  #shown = null;
  #width = 300;

  /** `format` makes text of a value; `most` is the least that the top of the chart stands for. */
  constructor(title, { format, minimumTop }) {
    this.#title = title;
    this.#format = format;
    this.#minimumTop = minimumTop;
    this.#value = h("b", {}, "–");
    this.#detail = h("span", { class: "quiet" });
    this.#drawing = createSvg("svg", { role: "img", height: HEIGHT, preserveAspectRatio: "none" });
    this.#cursor = createSvg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.#legend = h("ul", { class: "legend" });
    this.#axis = h("div", { class: "axis quiet", "aria-hidden": "true" }, h("span"), h("span"));
    this.element = h("figure", { class: "chart card" },
      h("figcaption", {}, h("h3", {}, title), this.#value, this.#detail),
      this.#drawing, this.#axis, this.#legend);
    this.#drawing.addEventListener("pointermove", (event) => this.#showValuesAt(event.offsetX));
    this.#drawing.addEventListener("pointerleave", () => this.#showValuesAt(null));
    new ResizeObserver(([{ contentRect }]) => {
      this.#width = Math.max(50, contentRect.width);
      if (this.#shown) this.#draw();
    }).observe(this.#drawing);
  }

  /** Shows what was measured from one time to another; `gap` is what two points may lie apart. */
  show({ from, to, gap, lines }) {
    this.#shown = { from, to, gap, lines: lines.slice(0, MAX_LINES) };
    this.#draw();
  }

  #draw() {
    const { from, to, lines } = this.#shown;
    const values = lines.flatMap(({ points }) => points.map(({ value, high }) => high ?? value)).filter((value) => value !== null);
    const top = Math.max(this.#minimumTop, ...values);
    const x = (at) => (((at - from) / (to - from)) * this.#width).toFixed(1);
    const y = (value) => (HEIGHT - 1 - (value / top) * (HEIGHT - 6)).toFixed(1);
    const grid = [0.25, 0.5, 0.75].map((part) => createSvg("line", { class: "grid", x1: 0, x2: this.#width, y1: y(top * part), y2: y(top * part) }));
    const strokes = lines.flatMap(({ points }, index) => this.#buildStrokes(points, x, y, `line-${index}`));
    this.#drawing.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    this.#drawing.setAttribute("aria-label", this.#summarize(values));
    this.#drawing.replaceChildren(...grid, ...strokes, this.#cursor);
    const many = lines.length > 1;
    this.#legend.hidden = !many;
    if (many) this.#legend.replaceChildren(...lines.map(({ name }, index) => h("li", { class: `line-${index}` }, name)));
    setText(this.#axis.firstChild, formatAxisTime(from));
    setText(this.#axis.lastChild, formatAxisTime(to));
    this.#showValuesAt(null);
  }

  #buildStrokes(points, x, y, name) {
    return splitAtGaps(points, this.#shown.gap).flatMap((part) => {
      const line = part.map(({ at, value }, index) => `${index === 0 ? "M" : "L"}${x(at)} ${y(value)}`).join("");
      const banded = part.every(({ low }) => low !== undefined);
      const above = part.map(({ at, value, high }) => `${x(at)} ${y(banded ? high : value)}`);
      const below = part.toReversed().map(({ at, low }) => `${x(at)} ${y(banded ? low : 0)}`);
      // A part of one point would be a line without length.
      const dot = part.length === 1 ? [createSvg("circle", { class: `dot ${name}`, cx: x(part[0].at), cy: y(part[0].value), r: 1.5 })] : [];
      const filled = banded || this.#shown.lines.length === 1;
      return [
        filled && createSvg("path", { class: `area ${name}`, d: `M${[...above, ...below].join("L")}Z` }),
        createSvg("path", { class: `stroke ${name}`, d: line }),
        ...dot,
      ].filter(Boolean);
    });
  }

  #summarize(values) {
    if (values.length === 0) return `${this.#title}: nothing measured in this time`;
    const [least, most] = [Math.min(...values), Math.max(...values)].map(this.#format);
    return `${this.#title}: ${this.#formatLast(this.#shown.lines)} last, between ${least} and ${most} in this time`;
  }

  #formatLast(lines) {
    const last = lines.map(({ points }) => points.findLast(({ value }) => value !== null)).filter(Boolean);
    return last.map(({ value }) => this.#format(value)).join(" · ") || "–";
  }

  /** Shows the values at a place, or the last ones. */
  #showValuesAt(position) {
    const { from, to, lines } = this.#shown;
    if (position === null) {
      this.#cursor.setAttribute("visibility", "hidden");
      setText(this.#value, this.#formatLast(lines));
      setText(this.#detail, "");
      return;
    }
    const at = from + (position / this.#width) * (to - from);
    const nearest = lines.map(({ points }) => findClosest(points, at)).filter(Boolean);
    if (nearest.length === 0) return;
    const x = ((nearest[0].at - from) / (to - from)) * this.#width;
    for (const side of ["x1", "x2"]) this.#cursor.setAttribute(side, x);
    this.#cursor.setAttribute("visibility", "visible");
    setText(this.#value, nearest.map(({ value }) => this.#format(value)).join(" · "));
    setText(this.#detail, formatDateTime(nearest[0].at));
  }
}

/** The points that hang together. */
function splitAtGaps(points, gap) {
  const found = [];
  let previous = null;
  for (const point of points) {
    if (point.value === null) continue;
    if (previous === null || point.at - previous.at > gap) found.push([]);
    found.at(-1).push(point);
    previous = point;
  }
  return found;
}

function findClosest(points, at) {
  const measured = points.filter(({ value }) => value !== null);
  return measured.reduce((best, point) => (best && Math.abs(best.at - at) <= Math.abs(point.at - at) ? best : point), null);
}
