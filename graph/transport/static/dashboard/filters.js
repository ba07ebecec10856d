/** Which nodes the table shows, and in which order: kept in the address, so that it can be shared. */

import { SEVERITY, STATUSES } from "./status.js";

export const ROLES = ["PRODUCTION", "DEVELOPMENT", "BACKUP"];
export const TYPES = ["ROUTER", "GATEWAY", "WORKER"];

/** What each column sorts by. Ties fall to the node id. */
export const SORT_KEYS = {
  status: (node) => SEVERITY.get(node.status),
  node: (node) => node.nodeId,
  role: (node) => node.role,
  type: (node) => node.type,
  labels: (node) => node.labels.join(" "),
  reason: (node) => node.statusReason,
  since: (node) => -Date.parse(node.statusSince),
};

/** From the parameters of an address; what it does not know, it leaves out. */
export function parse(parameters) {
  const statuses = (parameters.get("status") ?? "").toUpperCase().split(",");
  const sort = parameters.get("sort") ?? "status";
  return {
    search: parameters.get("q") ?? "",
    statuses: new Set(STATUSES.filter((status) => statuses.includes(status))),
    role: parseChoice(ROLES, parameters.get("role")),
    type: parseChoice(TYPES, parameters.get("type")),
    label: parameters.get("label") ?? "",
    sort: Object.hasOwn(SORT_KEYS, sort) ? sort : "status",
    descending: parameters.has("desc"),
  };
}

/** The parameters of an address that leads here again. */
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

/** Whether nothing is left out. */
export function isEmpty({ search, statuses, role, type, label }) {
  return search === "" && statuses.size === 0 && role === "" && type === "" && label === "";
}

/** Those that fit, in order. Words of the search, and labels, must all be met. */
export function selectNodes(nodes, filters) {
  const words = splitWords(filters.search.toLowerCase());
  const labels = splitWords(filters.label);
  const fits = (node) =>
    (filters.statuses.size === 0 || filters.statuses.has(node.status)) &&
    (filters.role === "" || node.role === filters.role) &&
    (filters.type === "" || node.type === filters.type) &&
    labels.every((label) => node.labels.includes(label)) &&
    words.every((word) => node.text.includes(word));
  return sortNodes([...nodes].filter(fits), SORT_KEYS[filters.sort], filters.descending ? -1 : 1);
}

function sortNodes(nodes, key, direction) {
  const keyed = nodes.map((node) => [key(node), node]);
  keyed.sort(([one, a], [other, b]) => {
    if (one !== other) return one < other ? -direction : direction;
    return a.nodeId < b.nodeId ? -1 : 1;
  });
  return keyed.map(([, node]) => node);
}

function splitWords(text) {
  return text.split(/[\s,]+/).filter(Boolean);
}

function parseChoice(choices, text) {
  const value = (text ?? "").toUpperCase();
  return choices.includes(value) ? value : "";
}
