/** The filters and the order of the fleet's table, kept in the page's address so that they can be shared. */

import { SEVERITY, STATUSES } from "./status.js";

/** @import { NodeRole, NodeStatus, NodeType } from "../../dashboard" */
/** @import { FleetNode } from "./fleet.js" */

/**
 * Empty texts and sets let every node pass. `search` and `label` hold words that a node must all match.
 * @typedef {{
 *   search: string, statuses: Set<NodeStatus>, role: NodeRole | "", type: NodeType | "", label: string,
 *   sort: SortKey, descending: boolean,
 * }} Filters
 * @typedef {"status" | "node" | "role" | "type" | "labels" | "reason" | "since"} SortKey
 */

/** @type {NodeRole[]} */
export const ROLES = ["PRODUCTION", "DEVELOPMENT", "BACKUP"];
/** @type {NodeType[]} */
export const TYPES = ["ROUTER", "GATEWAY", "WORKER"];

/**
 * The value that each column sorts by; nodes of the same value are sorted by node id.
 * @type {Record<SortKey, (node: FleetNode) => string | number>}
 */
export const SORT_KEYS = {
  status: (node) => SEVERITY[node.status],
  node: (node) => node.nodeId,
  role: (node) => node.role,
  type: (node) => node.type,
  labels: (node) => node.labels.join(" "),
  reason: (node) => node.statusReason,
  since: (node) => -Date.parse(node.statusSince),
};

/**
 * Return the filters that the parameters of an address stand for; unknown values are ignored.
 * @param {URLSearchParams} parameters
 * @returns {Filters}
 */
export function parse(parameters) {
  const statuses = (parameters.get("status") ?? "").toUpperCase().split(",");
  return {
    search: parameters.get("q") ?? "",
    statuses: new Set(STATUSES.filter((status) => statuses.includes(status))),
    role: parseChoice(ROLES, parameters.get("role")),
    type: parseChoice(TYPES, parameters.get("type")),
    label: parameters.get("label") ?? "",
    sort: parseSortKey(parameters.get("sort")),
    descending: parameters.has("desc"),
  };
}

/**
 * Return the parameters of an address from which `parse` reads the same filters.
 * @param {Filters} filters
 */
export function toParameters(filters) {
  const parameters = {
    q: filters.search,
    status: [...filters.statuses].join(",").toLowerCase(),
    role: filters.role.toLowerCase(),
    type: filters.type.toLowerCase(),
    label: filters.label,
    sort: filters.sort === "status" ? "" : filters.sort,
    desc: filters.descending ? "1" : "",
  };
  return new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== ""));
}

/**
 * Return whether every node passes the filters.
 * @param {Filters} filters
 */
export function isEmpty({ search, statuses, role, type, label }) {
  return search === "" && statuses.size === 0 && role === "" && type === "" && label === "";
}

/**
 * Return the nodes that pass the filters, in their order.
 * @param {Iterable<FleetNode>} nodes
 * @param {Filters} filters
 */
export function selectNodes(nodes, filters) {
  const words = splitWords(filters.search.toLowerCase());
  const labels = splitWords(filters.label);
  const passes = (/** @type {FleetNode} */ node) =>
    (filters.statuses.size === 0 || filters.statuses.has(node.status)) &&
    (filters.role === "" || node.role === filters.role) &&
    (filters.type === "" || node.type === filters.type) &&
    labels.every((label) => node.labels.includes(label)) &&
    words.every((word) => node.text.includes(word));
  return sortNodes([...nodes].filter(passes), SORT_KEYS[filters.sort], filters.descending ? -1 : 1);
}

/**
 * @param {FleetNode[]} nodes
 * @param {(node: FleetNode) => string | number} getKey
 * @param {1 | -1} direction
 */
function sortNodes(nodes, getKey, direction) {
  const keyed = nodes.map((node) => ({ key: getKey(node), node }));
  keyed.sort((a, b) => {
    if (a.key !== b.key) return a.key < b.key ? -direction : direction;
    return a.node.nodeId < b.node.nodeId ? -1 : 1;
  });
  return keyed.map(({ node }) => node);
}

/** @param {string} text */
function splitWords(text) {
  return text.split(/[\s,]+/).filter(Boolean);
}

/**
 * Return the choice that a text names, in any case, or "" for none.
 * @template {string} Choice
 * @param {Choice[]} choices
 * @param {string | null} text
 * @returns {Choice | ""}
 */
export function parseChoice(choices, text) {
  return choices.find((choice) => choice === (text ?? "").toUpperCase()) ?? "";
}

/**
 * Return the sort key that a text names, or the status for none.
 * @param {string | null} text
 * @returns {SortKey}
 */
export function parseSortKey(text) {
  return text !== null && Object.hasOwn(SORT_KEYS, text) ? /** @type {SortKey} */ (text) : "status";
}
