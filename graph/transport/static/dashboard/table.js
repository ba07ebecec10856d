/**
 * A table of any length: only the rows that can be seen are elements, used again as it scrolls.
 *
 * It is an ARIA grid with one stop for the Tab key. Arrow keys, Page Up and Down, Home and End move
 * from row to row, Enter opens one. Which row is marked follows the row, not its place.
 */

import { h } from "./elements.js";

const OVERSCAN = 5;

export class Table {
  element;
  /** The row last moved to, by its key; null: none yet. */
  marked = null;

  #columns;
  #getKey;
  #onOpen;
  #rows = [];
  #places = new Map();
  #pool = [];
  #body;
  #headers;
  #rowHeight = 1;
  #scheduled = false;

  /**
   * `columns` are {name, label, sorts, make, fill}: `make` gives a cell's content once, `fill` puts a
   * row into it. `key` tells a row from others, `open` is called with a row, `sort` with a column.
   */
  constructor({ label, columns, getKey, onOpen, onSort }) {
    this.#columns = columns;
    this.#getKey = getKey;
    this.#onOpen = onOpen;
    this.#headers = columns.map((column) => renderHeader(column, onSort));
    this.#body = h("div", { role: "rowgroup", class: "rows" });
    const head = h("div", { role: "row", class: "row", "aria-rowindex": 1 }, this.#headers);
    this.element = h("div",
      {
        class: "table", role: "grid", tabindex: 0, "aria-label": label, "aria-readonly": "true",
        "aria-colcount": columns.length,
        onkeydown: (event) => this.#handleKey(event),
        onscroll: () => this.#schedule(),
      },
      h("div", { role: "rowgroup", class: "head" }, head), this.#body);
    this.#body.addEventListener("click", (event) => this.#handleClick(event));
    new ResizeObserver(() => this.#measure()).observe(this.element);
  }

  /** Shows these rows. A row that is another object than before is drawn again. */
  show(rows) {
    this.#rows = rows;
    this.#places = new Map(rows.map((row, place) => [this.#getKey(row), place]));
    this.element.setAttribute("aria-rowcount", rows.length + 1);
    this.#schedule();
  }

  /** Says by the headers what the rows are sorted by. */
  showOrder(name, descending) {
    this.#columns.forEach((column, index) => {
      if (!column.sorts) return;
      const order = descending ? "descending" : "ascending";
      this.#headers[index].setAttribute("aria-sort", column.name === name ? order : "none");
    });
  }

  /** Calls back with the element and the row of each that is drawn. */
  forEachDrawn(callback) {
    for (const { element, row, cells } of this.#pool) {
      if (!element.hidden) callback(row, cells, element);
    }
  }

  /** Goes to the first row. */
  scrollToTop() {
    this.element.scrollTop = 0;
  }

  #measure() {
    const height = parseFloat(getComputedStyle(this.element).getPropertyValue("--row"));
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.#rowHeight = Math.round(height * rem);
    for (const each of this.#pool) each.place = -1;
    this.#schedule();
  }

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw() {
    const height = this.#rowHeight;
    this.#body.style.height = `${this.#rows.length * height}px`;
    const poolSize = Math.ceil(this.element.clientHeight / height) + 2 * OVERSCAN;
    while (this.#pool.length < poolSize) this.#pool.push(this.#createRow());
    const size = this.#pool.length;
    const last = Math.max(0, this.#rows.length - size);
    const first = Math.min(last, Math.max(0, Math.floor(this.element.scrollTop / height) - OVERSCAN));
    for (let place = first; place < first + size; place += 1) {
      this.#drawRow(this.#pool[place % size], place);
    }
    this.#showMarked();
  }

  #createRow() {
    const cells = this.#columns.map((column) =>
      h("div", { role: "gridcell", class: `cell ${column.name}` }, column.create()));
    const element = h("div", { role: "row", class: "row", id: `row-${this.#pool.length}` }, cells);
    this.#body.append(element);
    return { element, cells, row: null, place: -1 };
  }

  #drawRow(drawn, place) {
    const row = this.#rows[place];
    drawn.element.hidden = row === undefined;
    if (row === undefined) {
      drawn.row = null;
      return;
    }
    if (drawn.place !== place) {
      drawn.place = place;
      drawn.element.style.transform = `translateY(${place * this.#rowHeight}px)`;
      drawn.element.setAttribute("aria-rowindex", place + 2);
    }
    if (drawn.row !== row) {
      drawn.row = row;
      this.#columns.forEach((column, index) => column.fill(drawn.cells[index].firstChild, row));
    }
  }

  #showMarked() {
    let active = null;
    for (const { element, row } of this.#pool) {
      const marked = row !== null && this.#getKey(row) === this.marked;
      element.classList.toggle("marked", marked);
      if (marked) active = element.id;
    }
    if (active === null) this.element.removeAttribute("aria-activedescendant");
    else this.element.setAttribute("aria-activedescendant", active);
  }

  #handleKey(event) {
    if (event.target !== this.element || event.altKey || event.ctrlKey || event.metaKey) return;
    const at = this.#places.get(this.marked) ?? -1;
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.#rowHeight) - 2);
    const end = this.#rows.length - 1;
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: end };
    if (event.key === "Enter" && at >= 0) {
      this.#onOpen(this.#rows[at]);
    } else if (Object.hasOwn(moves, event.key) && end >= 0) {
      event.preventDefault();
      this.#moveTo(Math.min(end, Math.max(0, moves[event.key])));
    }
  }

  #moveTo(place) {
    this.marked = this.#getKey(this.#rows[place]);
    const head = this.element.firstChild.offsetHeight;
    const top = place * this.#rowHeight;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.#rowHeight + head > scrollTop + clientHeight) {
      this.element.scrollTop = top + this.#rowHeight + head - clientHeight;
    }
    this.#draw();
  }

  #handleClick(event) {
    const opensElsewhere = event.ctrlKey || event.metaKey || event.shiftKey;
    const drawn = this.#pool.find(({ element }) => element.contains(event.target));
    if (opensElsewhere || !drawn?.row || String(getSelection()) !== "") return;
    event.preventDefault();
    this.marked = this.#getKey(drawn.row);
    this.#onOpen(drawn.row);
  }
}

function renderHeader(column, onSort) {
  const content = column.sorts
    ? h("button", { type: "button", onclick: () => onSort(column.name) }, column.label)
    : column.label;
  return h("div", { role: "columnheader", class: `cell ${column.name}`, "aria-sort": column.sorts ? "none" : null }, content);
}
