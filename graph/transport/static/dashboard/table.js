/**
 * A table of any length: only the visible rows have elements, which are reused as it scrolls.
 *
 * It is an ARIA grid with a single stop for the Tab key. Arrow keys, Page Up and Down, Home and End
 * move from row to row, Enter opens one. The mark follows its row when rows move.
 */

import { h } from "./elements.js";

/**
 * A column: `create` returns the content of a new cell, `fill` shows a row in it.
 * @template Row
 * @template {string} Name
 * @typedef {{
 *   name: Name, label: string, create: () => HTMLElement, fill: (content: HTMLElement, row: Row) => void,
 * }} Column
 */

/**
 * An element of the pool: the row that it shows, at which place, and the contents of its cells.
 * @template Row
 * @typedef {{ element: HTMLElement, contents: HTMLElement[], row: Row | null, place: number }} DrawnRow
 */

const OVERSCAN = 5;

/**
 * @template Row
 * @template {string} Name the names of its columns
 */
export class Table {
  /** @type {HTMLElement} */
  element;
  /** The key of the row last moved to, or null. @type {string | null} */
  marked = null;

  /** @type {Column<Row, Name>[]} */
  #columns;
  /** @type {(row: Row) => string} */
  #getKey;
  /** @type {(row: Row) => void} */
  #onOpen;
  /** @type {Row[]} */
  #rows = [];
  /** @type {Map<string | null, number>} */
  #places = new Map();
  /** @type {DrawnRow<Row>[]} */
  #pool = [];
  #body = h("div", { role: "rowgroup", class: "rows" });
  /** @type {HTMLElement} */
  #head;
  /** @type {HTMLElement[]} */
  #headers;
  #rowHeight = 1;
  #scheduled = false;

  /**
   * @param {object} options
   * @param {string} options.label the name of the table for screen readers
   * @param {Column<Row, Name>[]} options.columns
   * @param {(row: Row) => string} options.getKey returns what tells a row from others
   * @param {(row: Row) => void} options.onOpen called when a row is clicked or opened by Enter
   * @param {(name: Name) => void} options.onSort called when the header of a column is clicked
   */
  constructor({ label, columns, getKey, onOpen, onSort }) {
    this.#columns = columns;
    this.#getKey = getKey;
    this.#onOpen = onOpen;
    this.#headers = columns.map((column) => renderHeader(column, onSort));
    this.#head = h("div", { role: "rowgroup", class: "head" }, h("div", { role: "row", class: "row", "aria-rowindex": 1 }, this.#headers));
    this.element = h("div",
      {
        class: "table", role: "grid", tabindex: 0, "aria-label": label, "aria-readonly": "true",
        "aria-colcount": columns.length,
        onkeydown: (event) => this.#handleKey(event),
        onscroll: () => this.#schedule(),
      },
      this.#head, this.#body);
    this.#body.addEventListener("click", (event) => this.#handleClick(event));
    new ResizeObserver(() => this.#measure()).observe(this.element);
  }

  /**
   * Show other rows. A row is drawn again only if it is another object than before.
   * @param {Row[]} rows
   */
  show(rows) {
    this.#rows = rows;
    this.#places = new Map(rows.map((row, place) => [this.#getKey(row), place]));
    this.element.setAttribute("aria-rowcount", String(rows.length + 1));
    this.#schedule();
  }

  /**
   * Show in the headers which column the rows are sorted by.
   * @param {Name} name
   * @param {boolean} descending
   */
  showOrder(name, descending) {
    this.#columns.forEach((column, index) => {
      const order = descending ? "descending" : "ascending";
      this.#headers[index].setAttribute("aria-sort", column.name === name ? order : "none");
    });
  }

  /**
   * Call back with each row that is drawn, the contents of its cells, and its element.
   * @param {(row: Row, contents: HTMLElement[], element: HTMLElement) => void} callback
   */
  forEachDrawn(callback) {
    for (const { element, row, contents } of this.#pool) {
      if (row !== null) callback(row, contents, element);
    }
  }

  scrollToTop() {
    this.element.scrollTop = 0;
  }

  #measure() {
    const height = parseFloat(getComputedStyle(this.element).getPropertyValue("--row"));
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.#rowHeight = Math.round(height * rem);
    for (const drawn of this.#pool) drawn.place = -1;
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

  /** @returns {DrawnRow<Row>} */
  #createRow() {
    const contents = this.#columns.map((column) => column.create());
    const cells = this.#columns.map((column, index) =>
      h("div", { role: "gridcell", class: `cell ${column.name}` }, contents[index]));
    const element = h("div", { role: "row", class: "row", id: `row-${this.#pool.length}` }, cells);
    this.#body.append(element);
    return { element, contents, row: null, place: -1 };
  }

  /**
   * @param {DrawnRow<Row>} drawn
   * @param {number} place
   */
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
      drawn.element.setAttribute("aria-rowindex", String(place + 2));
    }
    if (drawn.row !== row) {
      drawn.row = row;
      this.#columns.forEach((column, index) => column.fill(drawn.contents[index], row));
    }
  }

  #showMarked() {
    let active = null;
    for (const { element, row } of this.#pool) {
      const isMarked = row !== null && this.#getKey(row) === this.marked;
      element.classList.toggle("marked", isMarked);
      if (isMarked) active = element.id;
    }
    if (active === null) this.element.removeAttribute("aria-activedescendant");
    else this.element.setAttribute("aria-activedescendant", active);
  }

  /** @param {KeyboardEvent} event */
  #handleKey(event) {
    if (event.target !== this.element || event.altKey || event.ctrlKey || event.metaKey) return;
    const place = this.#places.get(this.marked) ?? -1;
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.#rowHeight) - 2);
    const end = this.#rows.length - 1;
    const moves = new Map([
      ["ArrowDown", place + 1], ["ArrowUp", place - 1], ["PageDown", place + page], ["PageUp", place - page], ["Home", 0], ["End", end],
    ]);
    const target = moves.get(event.key);
    if (event.key === "Enter" && place >= 0) {
      this.#onOpen(this.#rows[place]);
    } else if (target !== undefined && end >= 0) {
      event.preventDefault();
      this.#moveTo(Math.min(end, Math.max(0, target)));
    }
  }

  /** @param {number} place */
  #moveTo(place) {
    this.marked = this.#getKey(this.#rows[place]);
    const head = this.#head.offsetHeight;
    const top = place * this.#rowHeight;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.#rowHeight + head > scrollTop + clientHeight) {
      this.element.scrollTop = top + this.#rowHeight + head - clientHeight;
    }
    this.#draw();
  }

  /** @param {MouseEvent} event */
  #handleClick(event) {
    const opensElsewhere = event.ctrlKey || event.metaKey || event.shiftKey;
    const target = /** @type {Element} */ (event.target);
    const row = this.#pool.find(({ element }) => element.contains(target))?.row ?? null;
    if (opensElsewhere || row === null || String(getSelection()) !== "") return;
    event.preventDefault();
    this.marked = this.#getKey(row);
    this.#onOpen(row);
  }
}

/**
 * @template Row
 * @template {string} Name
 * @param {Column<Row, Name>} column
 * @param {(name: Name) => void} onSort
 */
function renderHeader(column, onSort) {
  return h("div", { role: "columnheader", class: `cell ${column.name}`, "aria-sort": "none" },
    h("button", { type: "button", onclick: () => onSort(column.name) }, column.label));
}
