/** The page of the fleet: the counts, the table of nodes with its filters, and the latest changes. */

import { h, setText } from "./elements.js";
import * as filters from "./filters.js";
import { renderBadge, renderShape, setBadge, STATUSES, toLowerCase, toTitle, toWords } from "./status.js";
import { Table } from "./table.js";
import { formatDateTime, formatDuration, formatTime, now, runEverySecond } from "./time.js";

/** @import { NodeCounts, NodeStatus, StatusChange } from "../../dashboard" */
/** @import { Filters, SortKey } from "./filters.js" */
/** @import { Fleet, FleetNode } from "./fleet.js" */
/** @import { Column } from "./table.js" */

/** @typedef {{ tile: HTMLElement, count: HTMLElement }} Tile */

const HIGHLIGHT_MS = 4000;
const SAVE_ADDRESS_MS = 200;
const MAX_SUGGESTIONS = 200;
const CONTROL_NAMES = /** @type {const} */ (["search", "role", "type", "sort", "label"]);

/** @type {Column<FleetNode, SortKey>[]} */
const COLUMNS = [
  { name: "status", label: "Status", create: () => renderBadge("ONLINE"), fill: (content, node) => setBadge(content, node.status) },
  { name: "node", label: "Node", create: () => h("a", { tabindex: -1 }, h("b"), h("small")), fill: fillNode },
  { name: "role", label: "Role", create: createText, fill: (content, node) => setText(content, toWords(node.role)) },
  { name: "type", label: "Type", create: createText, fill: (content, node) => setText(content, toWords(node.type)) },
  { name: "labels", label: "Labels", create: createText, fill: fillLabels },
  { name: "reason", label: "Reason", create: createText, fill: (content, node) => setText(content, toWords(node.statusReason)) },
  { name: "since", label: "Since", create: createText, fill: fillSince },
];
const SINCE_COLUMN = COLUMNS.findIndex(({ name }) => name === "since");

/** The page of the fleet, live while it is open. */
export class FleetPage {
  title = "Fleet";
  /** @type {HTMLElement} */
  element;

  /** @type {Fleet} */
  #fleet;
  #filters = filters.parse(new URLSearchParams());
  /** @type {Table<FleetNode, SortKey>} */
  #table;
  /** @type {Map<NodeStatus, Tile>} */
  #tiles = new Map();
  #total = h("b", {}, "–");
  #barParts = new Map(STATUSES.toReversed().map((status) => [status, h("i", { class: toLowerCase(status) })]));
  #shown = h("p", { class: "quiet shown", role: "status" });
  #clear = h("button", { type: "button", onclick: () => this.#changeFilters(filters.parse(new URLSearchParams())) }, "Clear filters");
  #latest = h("ol", { class: "latest" });
  #controls = this.#createControls();
  #labels = h("datalist", { id: "labels" });
  #isScheduled = false;
  /** @type {number | undefined} */
  #saveTimer;
  #isOpen = false;
  /** When each node last changed, by this machine's clock in milliseconds. @type {Map<string, number>} */
  #changedAt = new Map();
  /** The newest change that the list of changes shows. @type {StatusChange | null} */
  #drawnNewest = null;

  /**
   * @param {Fleet} fleet
   * @param {(address: string) => void} navigate goes to an address of the dashboard
   */
  constructor(fleet, navigate) {
    this.#fleet = fleet;
    this.#table = new Table({
      label: "Nodes",
      columns: COLUMNS,
      getKey: (node) => node.nodeId,
      onOpen: (node) => navigate(buildNodeAddress(node)),
      onSort: (name) => this.#sortBy(name),
    });
    this.element = this.#build();
    fleet.addEventListener("nodes", () => this.#schedule());
    fleet.addEventListener("registry", () => this.#schedule());
    fleet.addEventListener("change", ({ detail: change }) => this.#changedAt.set(change.nodeId, Date.now()));
    runEverySecond(() => this.#updateAges());
    document.addEventListener("keydown", (event) => this.#handleKey(event));
  }

  /** The address that shows this page with its present filters. */
  get address() {
    const parameters = String(filters.toParameters(this.#filters));
    return parameters === "" ? "/dashboard" : `/dashboard?${parameters}`;
  }

  /** Show the page with the filters that the address names. */
  open() {
    this.#isOpen = true;
    this.#applyFilters(filters.parse(new URLSearchParams(location.search)));
  }

  close() {
    this.#isOpen = false;
    clearTimeout(this.#saveTimer);
  }

  /** Write the filters into the address. Browsers reject this if it is done at every keystroke. */
  saveAddress() {
    clearTimeout(this.#saveTimer);
    history.replaceState(null, "", this.address);
  }

  #build() {
    return h("div", { class: "fleet" },
      h("h1", { class: "visually-hidden" }, "Fleet"),
      h("section", { class: "glance", "aria-label": "Nodes by status" },
        h("div", { class: "tile total" }, this.#total, h("span", {}, "Nodes")), this.#createTiles(),
        h("div", { class: "bar", "aria-hidden": "true" }, [...this.#barParts.values()])),
      h("div", { class: "filters", role: "search" }, Object.values(this.#controls), this.#labels, this.#clear, this.#shown),
      h("div", { class: "columns" }, this.#table.element,
        h("section", { class: "card recent", "aria-labelledby": "latest-title" },
          h("h2", { id: "latest-title" }, "Latest changes"), this.#latest)));
  }

  #createTiles() {
    /** @type {NodeStatus[]} */
    const statuses = ["ONLINE", "DEGRADED", "OFFLINE", "MAINTENANCE"];
    return statuses.map((status) => {
      const count = h("b", {}, "–");
      const tile = h("button", { type: "button", class: "tile", "aria-pressed": "false", onclick: () => this.#toggleStatus(status) },
        count, h("span", {}, renderShape(status), toTitle(status)));
      this.#tiles.set(status, { tile, count });
      return tile;
    });
  }

  #createControls() {
    const oninput = () => this.#readControls();
    /** @type {(name: string, all: string, values: string[]) => HTMLSelectElement} */
    const createSelect = (name, all, values) => h("select", { "aria-label": name, oninput },
      h("option", { value: "" }, all), values.map((value) => h("option", { value }, toTitle(value))));
    return {
      search: h("input", { type: "search", placeholder: "Search nodes", "aria-label": "Search by node id, name or hostname", "aria-keyshortcuts": "/", oninput }),
      role: createSelect("Role", "All roles", filters.ROLES),
      type: createSelect("Type", "All types", filters.TYPES),
      sort: h("select", { "aria-label": "Order", class: "order", oninput },
        Object.keys(filters.SORT_KEYS).map((value) => h("option", { value }, `By ${value}`))),
      label: h("input", { type: "search", placeholder: "Label", "aria-label": "Label", list: "labels", class: "label", oninput, onfocus: () => this.#suggestLabels() }),
    };
  }

  /** @param {Filters} newFilters */
  #applyFilters(newFilters) {
    this.#filters = newFilters;
    for (const name of CONTROL_NAMES) {
      if (this.#controls[name].value !== newFilters[name]) this.#controls[name].value = newFilters[name];
    }
    this.#table.showOrder(newFilters.sort, newFilters.descending);
    this.#schedule();
  }

  /** @param {Partial<Filters>} changes */
  #changeFilters(changes) {
    this.#applyFilters({ ...this.#filters, ...changes });
    this.#table.scrollToTop();
    clearTimeout(this.#saveTimer);
    this.#saveTimer = setTimeout(() => this.saveAddress(), SAVE_ADDRESS_MS);
  }

  #readControls() {
    const { search, role, type, sort, label } = this.#controls;
    this.#changeFilters({
      search: search.value,
      role: filters.parseChoice(filters.ROLES, role.value),
      type: filters.parseChoice(filters.TYPES, type.value),
      sort: filters.parseSortKey(sort.value),
      label: label.value,
    });
  }

  /** @param {NodeStatus} status */
  #toggleStatus(status) {
    const statuses = new Set(this.#filters.statuses);
    if (!statuses.delete(status)) statuses.add(status);
    this.#changeFilters({ statuses });
  }

  /**
   * Sort by a column, or reverse the order of the column that the table is sorted by.
   * @param {SortKey} name
   */
  #sortBy(name) {
    const { sort, descending } = this.#filters;
    this.#changeFilters({ sort: name, descending: sort === name && !descending });
  }

  #suggestLabels() {
    const labels = new Set([...this.#fleet.nodes.values()].flatMap((node) => node.labels));
    this.#labels.replaceChildren(...[...labels].sort().slice(0, MAX_SUGGESTIONS).map((value) => h("option", { value })));
  }

  #schedule() {
    if (this.#isScheduled || !this.#isOpen) return;
    this.#isScheduled = true;
    requestAnimationFrame(() => {
      this.#isScheduled = false;
      this.#draw();
    });
  }

  #draw() {
    const { nodes, counts, latestChanges } = this.#fleet;
    const rows = filters.selectNodes(nodes.values(), this.#filters);
    this.#table.show(rows);
    this.#clear.hidden = filters.isEmpty(this.#filters);
    setText(this.#shown, this.#describeShown(rows.length));
    if (counts !== null) this.#drawCounts(counts);
    this.#drawLatest(latestChanges);
    requestAnimationFrame(() => this.#updateAges());
  }

  /** @param {number} shown the number of nodes that pass the filters */
  #describeShown(shown) {
    const { nodes, counts, isComplete, isRejected } = this.#fleet;
    const total = counts?.total ?? nodes.size;
    if (!isComplete && !isRejected) {
      return counts === null ? "Loading nodes" : `Loading: ${formatCount(nodes.size)} of ${formatCount(total)}`;
    }
    if (filters.isEmpty(this.#filters)) return `${formatCount(total)} nodes`;
    return `${formatCount(shown)} of ${formatCount(total)} nodes`;
  }

  /** @param {NodeCounts} counts */
  #drawCounts(counts) {
    setText(this.#total, formatCount(counts.total));
    for (const [status, { tile, count }] of this.#tiles) {
      setText(count, formatCount(counts[toLowerCase(status)]));
      tile.setAttribute("aria-pressed", String(this.#filters.statuses.has(status)));
    }
    for (const [status, part] of this.#barParts) part.style.flexGrow = String(counts[toLowerCase(status)]);
  }

  /** @param {StatusChange[]} changes newest first */
  #drawLatest(changes) {
    const newest = changes[0] ?? null;
    if (newest === this.#drawnNewest) return;
    this.#drawnNewest = newest;
    this.#latest.replaceChildren(...changes.map((change) =>
      h("li", {},
        h("a", { href: buildNodeAddress(change) }, renderShape(change.status), h("b", {}, change.nodeId)),
        h("time", { datetime: change.changedAt, title: formatDateTime(change.changedAt) }, formatTime(change.changedAt)),
        h("span", {}, `${toTitle(change.status)}: ${toWords(change.reason)}${change.note ? `, “${change.note}”` : ""}`))));
  }

  /** Update the durations in the rows, and which rows are highlighted as recently changed. */
  #updateAges() {
    if (!this.#isOpen) return;
    this.#table.forEachDrawn((node, contents, element) => {
      fillSince(contents[SINCE_COLUMN], node);
      element.classList.toggle("fresh", Date.now() - (this.#changedAt.get(node.nodeId) ?? 0) < HIGHLIGHT_MS);
    });
    for (const [id, at] of this.#changedAt) if (Date.now() - at > HIGHLIGHT_MS) this.#changedAt.delete(id);
  }

  /** @param {KeyboardEvent} event */
  #handleKey(event) {
    if (!this.#isOpen || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = /** @type {Element} */ (event.target);
    if (event.key === "/" && !target.closest("input, select, dialog")) {
      event.preventDefault();
      this.#controls.search.focus();
    } else if (event.key === "Escape" && target === this.#controls.search) {
      this.#table.element.focus();
    }
  }
}

/** @param {{ nodeId: string }} node */
function buildNodeAddress({ nodeId }) {
  return `/dashboard?${new URLSearchParams({ node: nodeId })}`;
}

function createText() {
  return h("span");
}

/**
 * @param {HTMLElement} content
 * @param {FleetNode} node
 */
function fillNode(content, node) {
  const [id, alias] = content.children;
  content.setAttribute("href", buildNodeAddress(node));
  setText(id, node.nodeId);
  setText(alias, [node.name, node.hostname].find((name) => name && name !== node.nodeId) ?? "");
}

/**
 * @param {HTMLElement} content
 * @param {FleetNode} node
 */
function fillLabels(content, { labels }) {
  // Rows have about as many labels as one another, so the chips of the row before are reused.
  while (content.childElementCount < labels.length) content.append(h("span", { class: "chip" }));
  [...content.children].forEach((chip, index) => {
    chip.toggleAttribute("hidden", index >= labels.length);
    if (index < labels.length) setText(chip, labels[index]);
  });
}

/**
 * @param {HTMLElement} content
 * @param {FleetNode} node
 */
function fillSince(content, node) {
  setText(content, formatDuration(now() - Date.parse(node.statusSince)));
}

/** @param {number} number */
function formatCount(number) {
  return number.toLocaleString("en");
}
