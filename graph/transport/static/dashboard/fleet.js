/**
 * The nodes as this page knows them: loaded page by page, then kept current by the change log.
 *
 * Pages and changes may overtake one another. Each carries its revision, and of two states of a node
 * the one with the newer revision counts: that alone keeps them consistent.
 */

import { assertRegistryError } from "./api.js";
import { CHANGES, FIRST_PAGE, LATEST_CHANGES, NEXT_PAGE, REGISTRY } from "./documents.js";
import { toLowerCase } from "./status.js";
import { now } from "./time.js";

/** @import { JsonObject, NodeCounts, NodeStatusEvent, NodeSummary, Operation, Registry, StatusChange, TypedEventTarget } from "../../dashboard" */
/** @import { Api, RegistryError } from "./api.js" */
/** @import { Socket } from "./socket.js" */

/**
 * A node with the revision that it was read at, and the text that a search looks in.
 * @typedef {NodeSummary & { revision: bigint, text: string }} FleetNode
 * @typedef {{ nodes: Event, registry: Event, change: CustomEvent<StatusChange>, rejected: CustomEvent<RegistryError> }} FleetEvents
 */

const FIRST_PAGE_SIZE = 100;
// A page of this size delays a heartbeat that waits behind it by no more than some 60 ms.
const PAGE_SIZE = 500;
const LATEST_SIZE = 50;
const POLL_MS = 3000;
const POLL_TIMEOUT_SECONDS = 6;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 10_000;

/**
 * The nodes and the state of the registry. Dispatches `nodes` when any node changed, `change` with each
 * status change as it happens, `registry` when anything else changed, and `rejected` with the error
 * when the registry rejects its requests.
 */
export class Fleet extends /** @type {new () => TypedEventTarget<FleetEvents>} */ (EventTarget) {
  /** The nodes by node id. An entry is never modified, only replaced. @type {Map<string, FleetNode>} */
  nodes = new Map();
  /** Whether all nodes are loaded. */
  isComplete = false;
  /** What the registry last reported of itself. @type {Registry | null} */
  registry = null;
  /** How far the change log was followed. */
  revision = 0n;
  /** The last instant, by the registry's clock in milliseconds, at which nothing was missing. @type {number | null} */
  confirmedAt = null;
  /** Whether the registry answered the last request. */
  isAnswering = true;
  /** Whether the registry rejected the token, or requires one. */
  isRejected = false;
  /** The newest changes, newest first. @type {StatusChange[]} */
  latestChanges = [];

  /** @type {Api} */
  #api;
  /** @type {Socket} */
  #socket;
  /** The counts from the first page, until all nodes are loaded. @type {NodeCounts | null} */
  #initialCounts = null;
  /** The revisions at which nodes were removed, while pages that may still hold them are loaded. @type {Map<string, bigint>} */
  #removedNodes = new Map();
  /** The number of the current load: what belongs to an earlier one is ignored. */
  #loadNumber = 0;
  /** @type {() => void} */
  #unsubscribe = () => {};
  /** The revision that the registry had at an instant of its clock. @type {{ revision: bigint, at: number } | null} */
  #target = null;
  /** The revision at which the last poll found this page behind the registry. @type {bigint | null} */
  #stalledAt = null;

  /**
   * @param {Api} api
   * @param {Socket} socket
   */
  constructor(api, socket) {
    super();
    this.#api = api;
    this.#socket = socket;
    socket.addEventListener("ready", () => this.#notify("registry"));
    socket.addEventListener("lost", () => this.#poll());
    setInterval(() => this.#poll(), POLL_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.#poll());
  }

  /** Whether changes reach this page as they happen. */
  get isLive() {
    return this.#socket.isReady;
  }

  /** The number of nodes by status and in total, or null until it is known. */
  get counts() {
    if (!this.isComplete) return this.#initialCounts;
    const counts = { total: this.nodes.size, online: 0, degraded: 0, offline: 0, maintenance: 0 };
    for (const node of this.nodes.values()) counts[toLowerCase(node.status)] += 1;
    return counts;
  }

  /** Load all nodes again, keeping those shown until then. A later load supersedes an earlier one. */
  async load() {
    const loadNumber = ++this.#loadNumber;
    this.#unsubscribe();
    this.isComplete = false;
    this.isRejected = false;
    // A registry that was restored from a backup continues from an older revision.
    for (const [id, node] of this.nodes) this.nodes.set(id, { ...node, revision: -1n });
    this.#removedNodes.clear();
    this.latestChanges = [];
    /** @type {Set<string>} */
    const seen = new Set();
    const askedAt = now();
    const first = await this.#executeUntilAnswered(loadNumber, FIRST_PAGE, { first: FIRST_PAGE_SIZE });
    if (first === null) return;
    const firstRevision = BigInt(first.nodes.revision);
    this.#putNodes(first.nodes.nodes, firstRevision, seen);
    this.#initialCounts = first.registry.nodeCounts;
    this.#subscribe(firstRevision);
    this.#recordRegistry(first.registry, askedAt);
    this.#loadLatestChanges(loadNumber);
    this.#notify("nodes");
    let { hasNextPage, endCursor } = first.nodes.pageInfo;
    while (hasNextPage) {
      const page = await this.#executeUntilAnswered(loadNumber, NEXT_PAGE, { first: PAGE_SIZE, after: endCursor });
      if (page === null) return;
      this.#putNodes(page.nodes.nodes, BigInt(page.nodes.revision), seen);
      this.#notify("nodes");
      ({ hasNextPage, endCursor } = page.nodes.pageInfo);
    }
    for (const [id, node] of this.nodes) {
      if (!seen.has(id) && node.revision <= firstRevision) this.nodes.delete(id);
    }
    this.#removedNodes.clear();
    this.isComplete = true;
    this.#notify("nodes");
  }

  /** @param {number} loadNumber */
  async #loadLatestChanges(loadNumber) {
    const data = await this.#executeUntilAnswered(loadNumber, LATEST_CHANGES, { first: LATEST_SIZE });
    if (data === null) return;
    this.#addLatestChanges(data.statusChanges.nodes);
    this.#notify("registry");
  }

  /** @param {StatusChange[]} changes which may be listed already: the query and the stream overlap */
  #addLatestChanges(changes) {
    const byRevision = new Map([...this.latestChanges, ...changes].map((change) => [change.revision, change]));
    this.latestChanges = [...byRevision.values()].sort(compareNewestFirst).slice(0, LATEST_SIZE);
  }

  /**
   * Return the data of a query, repeated until the registry answers; null when the registry rejects
   * it, or another load has begun.
   * @template Data
   * @template {JsonObject} Variables
   * @param {number} loadNumber
   * @param {Operation<Data, Variables>} query
   * @param {Variables} variables
   */
  async #executeUntilAnswered(loadNumber, query, variables) {
    for (let delay = FIRST_RETRY_MS; loadNumber === this.#loadNumber; delay = Math.min(2 * delay, LONGEST_RETRY_MS)) {
      try {
        const data = await this.#api.execute(query, variables);
        this.isAnswering = true;
        return loadNumber === this.#loadNumber ? data : null;
      } catch (error) {
        assertRegistryError(error);
        if (!error.isTransient) {
          this.#stop(error);
          return null;
        }
        this.isAnswering = false;
        this.#notify("registry");
        await new Promise((resume) => setTimeout(resume, delay));
      }
    }
    return null;
  }

  /** @param {bigint} revision the revision after which to follow the change log */
  #subscribe(revision) {
    const loadNumber = this.#loadNumber;
    this.revision = revision;
    this.#unsubscribe = this.#socket.subscribe(CHANGES, () => ({ after: String(this.revision) }), {
      next: (data) => this.#applyEvent(data.nodeStatusChanges),
      error: (error) => {
        if (error.code !== "BAD_INPUT") this.#stop(error);
        // The change log was reset: it ends before the revision of this page. The delay bounds how
        // often the registry is asked if a load does not help.
        else setTimeout(() => loadNumber === this.#loadNumber && this.load(), FIRST_RETRY_MS);
      },
    });
  }

  /** @param {NodeStatusEvent} event */
  #applyEvent(event) {
    if (event.__typename === "ResyncRequired") {
      this.load();
      return;
    }
    if (event.__typename === "Bookmark") {
      this.#target = { revision: BigInt(event.revision), at: now() };
      this.#advanceTo(this.#target.revision);
      this.#notify("registry");
      return;
    }
    const { change, node } = event;
    this.#advanceTo(BigInt(change.revision));
    this.#putNode(change.nodeId, node, this.revision);
    this.#addLatestChanges([change]);
    this.dispatchEvent(new CustomEvent("change", { detail: change }));
    this.#notify("nodes");
  }

  /**
   * @param {NodeSummary[]} nodes
   * @param {bigint} revision
   * @param {Set<string>} seen receives the ids of the nodes
   */
  #putNodes(nodes, revision, seen) {
    for (const node of nodes) {
      seen.add(node.nodeId);
      this.#putNode(node.nodeId, node, revision);
    }
  }

  /**
   * Record the state of a node at a revision, unless a newer one is known.
   * @param {string} id
   * @param {NodeSummary | null} node null when it was removed
   * @param {bigint} revision
   */
  #putNode(id, node, revision) {
    const knownRevision = this.nodes.get(id)?.revision ?? this.#removedNodes.get(id) ?? -1n;
    if (revision < knownRevision) return;
    if (node === null) {
      this.nodes.delete(id);
      if (!this.isComplete) this.#removedNodes.set(id, revision);
    } else {
      const text = `${node.nodeId}\n${node.name}\n${node.hostname ?? ""}`.toLowerCase();
      this.nodes.set(id, { ...node, revision, text });
      this.#removedNodes.delete(id);
    }
  }

  /** Ask the registry for its revision, because a silent stream does not show whether anything was missed. */
  async #poll() {
    if (this.registry === null || document.hidden) return;
    const askedAt = now();
    try {
      const { registry } = await this.#api.execute(REGISTRY, {}, POLL_TIMEOUT_SECONDS);
      this.isAnswering = true;
      if (this.isLive && this.#stalledAt === this.revision) this.#socket.restart();
      this.#socket.reconnectNow();
      this.#recordRegistry(registry, askedAt);
    } catch (error) {
      assertRegistryError(error);
      if (!error.isTransient) this.#stop(error);
      else this.isAnswering = false;
    }
    this.#notify("registry");
  }

  /**
   * @param {Registry} registry
   * @param {number} askedAt
   */
  #recordRegistry(registry, askedAt) {
    this.registry = registry;
    this.#target = { revision: BigInt(registry.revision), at: askedAt };
    this.#advanceTo(this.revision);
    this.#stalledAt = this.revision < this.#target.revision ? this.revision : null;
    this.#notify("registry");
  }

  /**
   * Record how far the change log was followed. A page at the revision that the registry had at some
   * instant had missed nothing at that instant.
   * @param {bigint} revision
   */
  #advanceTo(revision) {
    this.revision = revision;
    if (this.#target !== null && revision >= this.#target.revision) this.confirmedAt = this.#target.at;
  }

  /**
   * Stop all requests until the next load.
   * @param {RegistryError} error
   */
  #stop(error) {
    this.#loadNumber += 1;
    this.#unsubscribe();
    this.isRejected = true;
    this.registry = null;
    this.#target = null;
    this.dispatchEvent(new CustomEvent("rejected", { detail: error }));
  }

  /** @param {"nodes" | "registry"} name */
  #notify(name) {
    this.dispatchEvent(new Event(name));
  }
}

/**
 * @param {StatusChange} a
 * @param {StatusChange} b
 */
function compareNewestFirst(a, b) {
  return BigInt(a.revision) < BigInt(b.revision) ? 1 : -1;
}
