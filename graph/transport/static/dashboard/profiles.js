/** A node's profiles as they are in effect, and of each setting whether role or node gave it. */

import { renderCard, h } from "./elements.js";
import { toTitle } from "./status.js";

export function renderProfiles(node) {
  const own = new Map(node.profiles.map((profile) => [profile.name, profile]));
  const effective = node.effectiveProfiles.map((profile) => renderEffectiveProfile(profile, own.get(profile.name)));
  const inEffect = new Set(node.effectiveProfiles.map(({ name }) => name));
  const idle = node.profiles.filter(({ name }) => !inEffect.has(name)).map(renderIdleProfile);
  const none = h("p", { class: "quiet" }, "Neither its role nor the node itself has a profile.");
  return renderCard("Profiles", effective.length + idle.length === 0 ? none : h("div", { class: "profiles" }, effective, idle));
}

function renderEffectiveProfile({ name, type, config, fromRole, fromNode }, own) {
  const ownConfig = (fromNode && own?.config) || {};
  // The node's null takes away what its role had (RFC 7396).
  const removed = Object.keys(ownConfig).filter((key) => ownConfig[key] === null && !Object.hasOwn(config, key));
  const rows = Object.entries(config).map(([key, value]) => renderSetting(key, value, findOrigin(key, ownConfig, fromRole, fromNode)));
  const origins = fromRole && fromNode ? "role, node over it" : fromNode ? "node" : "role";
  return renderProfile(name, type, origins, [...rows, ...removed.map((key) => renderSetting(key, null, "node", true))]);
}

function findOrigin(key, ownConfig, fromRole, fromNode) {
  if (!fromNode || !Object.hasOwn(ownConfig, key)) return "role";
  const nested = typeof ownConfig[key] === "object" && ownConfig[key] !== null && !Array.isArray(ownConfig[key]);
  return fromRole && nested ? "merged" : "node";
}

function renderIdleProfile({ name, type, config, enabled }) {
  const rows = Object.entries(config).map(([key, value]) => renderSetting(key, value, "node"));
  return renderProfile(name, type, enabled ? "node" : "node, disabled", rows);
}

function renderProfile(name, type, origins, rows) {
  const empty = h("tr", {}, h("td", { class: "quiet" }, "no settings"));
  return h("section", { class: "profile" },
    h("h3", {}, name, h("span", { class: "chip" }, toTitle(type)), h("span", { class: "chip" }, `from ${origins}`)),
    h("table", {}, h("tbody", {}, rows.length > 0 ? rows : empty)));
}

function renderSetting(key, value, origin, removed = false) {
  return h("tr", { class: removed ? "taken" : null },
    h("th", { scope: "row" }, key),
    h("td", {}, h("code", {}, removed ? "taken away" : JSON.stringify(value, null, 1))),
    h("td", { class: "quiet" }, origin));
}
