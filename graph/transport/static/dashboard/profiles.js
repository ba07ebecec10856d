/** A node's profiles as they are in effect, with the origin of each setting: role or node. */

import { h, renderCard } from "./elements.js";
import { toTitle } from "./status.js";

/** @import { EffectiveProfile, Json, JsonObject, NodeDetails, NodeProfile, ProfileType } from "../../dashboard" */

/**
 * Return the card of a node's profiles: those in effect, then those of its own that are not.
 * @param {NodeDetails} node
 */
export function renderProfiles(node) {
  const ownProfiles = new Map(node.profiles.map((profile) => [profile.name, profile]));
  const effective = node.effectiveProfiles.map((profile) => renderEffectiveProfile(profile, ownProfiles.get(profile.name)));
  const inEffect = new Set(node.effectiveProfiles.map(({ name }) => name));
  const idle = node.profiles.filter(({ name }) => !inEffect.has(name)).map(renderIdleProfile);
  const none = h("p", { class: "quiet" }, "Neither the node nor its role has a profile.");
  return renderCard("Profiles", effective.length + idle.length === 0 ? none : h("div", { class: "profiles" }, effective, idle));
}

/**
 * @param {EffectiveProfile} profile
 * @param {NodeProfile | undefined} ownProfile the node's own profile of this name
 */
function renderEffectiveProfile({ name, type, config, fromRole, fromNode }, ownProfile) {
  const ownConfig = (fromNode && ownProfile?.config) || {};
  // A null in the node's profile removes the setting of its role (RFC 7396).
  const removed = Object.keys(ownConfig).filter((key) => ownConfig[key] === null && !Object.hasOwn(config, key));
  const rows = Object.entries(config).map(([key, value]) => renderSetting(key, value, findOrigin(key, ownConfig, fromRole, fromNode)));
  const origins = fromRole && fromNode ? "role, overridden by node" : fromNode ? "node" : "role";
  return renderProfile(name, type, origins, [...rows, ...removed.map((key) => renderSetting(key, null, "node", true))]);
}

/**
 * @param {string} key
 * @param {JsonObject} ownConfig the settings of the node's own profile
 * @param {boolean} fromRole
 * @param {boolean} fromNode
 */
function findOrigin(key, ownConfig, fromRole, fromNode) {
  if (!fromNode || !Object.hasOwn(ownConfig, key)) return "role";
  const isNested = typeof ownConfig[key] === "object" && ownConfig[key] !== null && !Array.isArray(ownConfig[key]);
  return fromRole && isNested ? "merged" : "node";
}

/** @param {NodeProfile} profile */
function renderIdleProfile({ name, type, config, enabled }) {
  const rows = Object.entries(config).map(([key, value]) => renderSetting(key, value, "node"));
  return renderProfile(name, type, enabled ? "node" : "node, disabled", rows);
}

/**
 * @param {string} name
 * @param {ProfileType} type
 * @param {string} origins
 * @param {HTMLElement[]} rows
 */
function renderProfile(name, type, origins, rows) {
  const empty = h("tr", {}, h("td", { class: "quiet" }, "no settings"));
  return h("section", { class: "profile" },
    h("h3", {}, name, h("span", { class: "chip" }, toTitle(type)), h("span", { class: "chip" }, `from ${origins}`)),
    h("table", {}, h("tbody", {}, rows.length > 0 ? rows : empty)));
}

/**
 * @param {string} key
 * @param {Json} value
 * @param {string} origin
 */
function renderSetting(key, value, origin, isRemoved = false) {
  return h("tr", { class: isRemoved ? "removed" : null },
    h("th", { scope: "row" }, key),
    h("td", {}, h("code", {}, isRemoved ? "removed" : JSON.stringify(value, null, 1))),
    h("td", { class: "quiet" }, origin));
}
