/** The fleet at a glance: how many, which, and what happened last. */

import { h, setText } from "./elements.js";
import * as filters from "./filters.js";
import { renderBadge, setBadge, renderShape, STATUSES, toTitle, toWords } from "./status.js";
import { Table } from "./table.js";
import { everySecond, formatDateTime, formatTime, now, formatDuration } from "./time.js";

const FRESH_MS = 4000;
const ADDRESS_MS = 200;

const COLUMNS = [
  { name: "status", label: "Status", sorts: true, create: () => renderBadge("ONLINE"), fill: (cell, node) => setBadge(cell, node.status) },
  { name: "node", label: "Node", sorts: true, create: () => h("a", { tabindex: -1 }, h("b"), h("small")), fill: fillNode },
  { name: "role", label: "Role", sorts: true, create: createText, fill: (cell, node) => setText(cell, toWords(node.role)) },
  { name: "type", label: "Type", sorts: true, create: createText, fill: (cell, node) => setText(cell, toWords(node.type)) },
  { name: "labels", label: "Labels", sorts: true, create: createText, fill: fillLabels },
  { name: "reason", label: "Reason", sorts: true, create: createText, fill: (cell, node) => setText(cell, toWords(node.statusReason)) },
  { name: "since", label: "Since", sorts: true, create: createText, fill: fillSince },
];

export class FleetPage {
  title = "Fleet";
  element;

  #fleet;
  #filters = filters.parse(new URLSearchParams());
  #table;
  #tiles = new Map();
  #bar = h("div", { class: "bar", "aria-hidden": "true" });
  #shown = h("p", { class: "quiet shown", role: "status" });
  #clear = h("button", { type: "button", onclick: () => this.#changeFilters(filters.parse(new URLSearchParams())) }, "Clear filters");
  #latest = h("ol", { class: "latest" });
  #controls;
  #labels = h("datalist", { id: "labels" });
  #scheduled = false;
  #saveTimer = null;
  #open = false;
  #changedAt = new Map();
  #drawnNewest = null;

  /** `navigate` is called with an address of the dashboard. */
  constructor(fleet, navigate) {
    this.#fleet = fleet;
    this.#table = new Table({
      label: "Nodes",
      columns: COLUMNS,
      getKey: (node) => node.nodeId,
      onOpen: (node) => navigate(buildNodeAddress(node)),
      onSort: (name) => this.#sortBy(name),
    });
    this.#controls = this.#createControls();
    this.element = this.#build();
    for (const what of ["nodes", "registry"]) fleet.addEventListener(what, () => this.#schedule());
    fleet.addEventListener("change", ({ detail }) => this.#changedAt.set(detail.nodeId, Date.now()));
    everySecond(() => this.#updateAges());
    document.addEventListener("keydown", (event) => this.#handleKey(event));
  }

  /** Where it is shown again as it was left. */
  get address() {
    return `/dashboard${buildQuery(this.#filters)}`;
  }

  /** Shows what the address says. */
  open() {
    this.#open = true;
    this.#applyFilters(filters.parse(new URLSearchParams(location.search)));
  }

  close() {
    this.#open = false;
    clearTimeout(this.#saveTimer);
  }

  /** Writes what is shown into the address: browsers refuse what would do so at each key. */
  saveAddress() {
    clearTimeout(this.#saveTimer);
    history.replaceState(null, "", this.address);
  }

  #build() {
    const tiles = ["ONLINE", "DEGRADED", "OFFLINE", "MAINTENANCE"].map((status) => {
      const count = h("b", {}, "–");
      const tile = h("button", { type: "button", class: "tile", "aria-pressed": "false", onclick: () => this.#toggleStatus(status) },
        count, h("span", {}, renderShape(status), toTitle(status)));
      this.#tiles.set(status, { tile, count });
      return tile;
    });
    const total = h("b", {}, "–");
    this.#tiles.set("TOTAL", { count: total });
    return h("div", { class: "fleet" },
      h("h1", { class: "unseen" }, "Fleet"),
      h("section", { class: "glance", "aria-label": "Nodes by status" },
        h("div", { class: "tile total" }, total, h("span", {}, "Nodes")), tiles, this.#bar),
      h("div", { class: "filters", role: "search" }, Object.values(this.#controls), this.#labels, this.#clear, this.#shown),
      h("div", { class: "columns" }, this.#table.element,
        h("section", { class: "card recent", "aria-labelledby": "latest-title" },
          h("h2", { id: "latest-title" }, "Latest changes"), this.#latest)));
  }

  #createControls() {
    const oninput = () => this.#readControls();
    const select = (name, all, values) => h("select", { "aria-label": name, oninput },
      h("option", { value: "" }, all), values.map((value) => h("option", { value }, toTitle(value))));
    return {
      search: h("input", { type: "search", placeholder: "Search nodes", "aria-label": "Search by node id, name or hostname", "aria-keyshortcuts": "/", oninput }),
      role: select("Role", "All roles", filters.ROLES),
      type: select("Type", "All types", filters.TYPES),
      sort: h("select", { "aria-label": "Order", class: "order", oninput },
        Object.keys(filters.SORT_KEYS).map((value) => h("option", { value }, `By ${value}`))),
      label: h("input", { type: "search", placeholder: "Label", "aria-label": "Label", list: "labels", class: "label", oninput, onfocus: () => this.#suggestLabels() }),
    };
  }

  #applyFilters(given) {
    this.#filters = given;
    for (const [name, control] of Object.entries(this.#controls)) {
      if (control.value !== given[name]) control.value = given[name];
    }
    this.#table.showOrder(given.sort, given.descending);
    this.#schedule();
  }

  #changeFilters(changed) {
    this.#applyFilters({ ...this.#filters, ...changed });
    this.#table.scrollToTop();
    clearTimeout(this.#saveTimer);
    this.#saveTimer = setTimeout(() => this.saveAddress(), ADDRESS_MS);
  }

  #readControls() {
    const read = Object.entries(this.#controls).map(([name, control]) => [name, control.value]);
    this.#changeFilters(Object.fromEntries(read));
  }

  #toggleStatus(status) {
    const statuses = new Set(this.#filters.statuses);
    if (!statuses.delete(status)) statuses.add(status);
    this.#changeFilters({ statuses });
  }

  #sortBy(name) {
    const { sort, descending } = this.#filters;
    this.#changeFilters({ sort: name, descending: sort === name && !descending });
  }

  #suggestLabels() {
    const labels = new Set();
    for (const node of this.#fleet.nodes.values()) node.labels.forEach((label) => labels.add(label));
    this.#labels.replaceChildren(...[...labels].sort().slice(0, 200).map((value) => h("option", { value })));
  }

  #schedule() {
    if (this.#scheduled || !this.#open) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw() {
    const { nodes, counts, isRefused } = this.#fleet;
    const complete = this.#fleet.isComplete || isRefused;
    const rows = filters.selectNodes(nodes.values(), this.#filters);
    this.#table.show(rows);
    const all = filters.isEmpty(this.#filters);
    this.#clear.hidden = all;
    const of = counts?.total ?? nodes.size;
    setText(this.#shown, !complete && counts === null ? "Loading nodes" : !complete ? `Loading: ${formatCount(nodes.size)} of ${formatCount(of)}`
      : all ? `${formatCount(of)} nodes` : `${formatCount(rows.length)} of ${formatCount(of)} nodes`);
    this.#drawCounts(counts);
    this.#drawLatest();
    requestAnimationFrame(() => this.#updateAges());
  }

  #drawCounts(counts) {
    if (counts === null) return;
    for (const [status, { tile, count: element }] of this.#tiles) {
      setText(element, formatCount(counts[status.toLowerCase()]));
      tile?.setAttribute("aria-pressed", this.#filters.statuses.has(status));
    }
    const parts = STATUSES.toReversed().map((status) => [status.toLowerCase(), counts[status.toLowerCase()]]);
    if (this.#bar.childElementCount === 0) this.#bar.append(...parts.map(([name]) => h("i", { class: name })));
    parts.forEach(([, number], index) => (this.#bar.children[index].style.flexGrow = number));
  }

  #drawLatest() {
    const newest = this.#fleet.latestChanges[0] ?? null;
    if (newest === this.#drawnNewest) return;
    this.#drawnNewest = newest;
    this.#latest.replaceChildren(...this.#fleet.latestChanges.map((change) =>
      h("li", {},
        h("a", { href: buildNodeAddress(change) }, renderShape(change.status), h("b", {}, change.nodeId)),
        h("time", { datetime: change.changedAt, title: formatDateTime(change.changedAt) }, formatTime(change.changedAt)),
        h("span", {}, `${toTitle(change.status)}: ${toWords(change.reason)}${change.note ? `, “${change.note}”` : ""}`))));
  }

  #updateAges() {
    if (!this.#open) return;
    const since = COLUMNS.findIndex((column) => column.name === "since");
    this.#table.forEachDrawn((node, cells, element) => {
      fillSince(cells[since].firstChild, node);
      element.classList.toggle("fresh", Date.now() - (this.#changedAt.get(node.nodeId) ?? 0) < FRESH_MS);
    });
    for (const [id, at] of this.#changedAt) if (Date.now() - at > FRESH_MS) this.#changedAt.delete(id);
  }

  #handleKey(event) {
    if (!this.#open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, dialog");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      this.#controls.search.focus();
    } else if (event.key === "Escape" && event.target === this.#controls.search) {
      this.#table.element.focus();
    }
  }
}

function buildNodeAddress({ nodeId }) {
  return `/dashboard?${new URLSearchParams({ node: nodeId })}`;
}

function buildQuery(given) {
  const parameters = String(filters.toParameters(given));
  return parameters === "" ? "" : `?${parameters}`;
}

function createText() {
  return h("span");
}

function fillNode(cell, node) {
  cell.setAttribute("href", buildNodeAddress(node));
  setText(cell.firstChild, node.nodeId);
  setText(cell.lastChild, [node.name, node.hostname].find((name) => name && name !== node.nodeId) ?? "");
}

function fillLabels(cell, node) {
  // As a row that scrolls in has about as many as the one before, its chips are used again.
  while (cell.childElementCount < node.labels.length) cell.append(h("span", { class: "chip" }));
  [...cell.children].forEach((chip, index) => {
    chip.hidden = index >= node.labels.length;
    if (!chip.hidden) setText(chip, node.labels[index]);
  });
}

function fillSince(cell, node) {
  setText(cell, formatDuration(now() - Date.parse(node.statusSince)));
}

function formatCount(number) {
  return number.toLocaleString("en");
}
