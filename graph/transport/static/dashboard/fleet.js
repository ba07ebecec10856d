/**
 * The nodes as this page knows them: loaded page by page, then kept current by the change log.
 *
 * Pages and changes may overtake one another. Each says to which revision it belongs, and of a node
 * whatever is newer counts: that is all that holds them together.
 */

import { CHANGES, FIRST_PAGE, LATEST_CHANGES, NEXT_PAGE, REGISTRY } from "./documents.js";
import { now } from "./time.js";

const FIRST_PAGE_SIZE = 100;
const PAGE_SIZE = 500; // what holds up a heartbeat behind it for no more than some 60 ms
const LATEST_SIZE = 50;
const POLL_MS = 3000;
const POLL_SECONDS = 6;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

/** Tells `nodes` when any of them changed, `change` with each one as it happens, `registry` when
 * anything else is known better, `refused` with the reason when it may not ask. */
export class Fleet extends EventTarget {
  /** By node id. An entry is never altered: what changes is another object. */
  nodes = new Map();
  /** Whether all of them are here. */
  isComplete = false;
  /** What the registry said of itself last, or null. */
  registry = null;
  /** How far the change log was followed. */
  revision = 0n;
  /** When this was last known to be all there is, by the registry's clock; null: never yet. */
  confirmedAt = null;
  /** Whether the registry answered when it was last asked. */
  isAnswering = true;
  /** Whether it wants a key, or another one. */
  isRefused = false;
  /** The newest changes, newest first. */
  latestChanges = [];

  #api;
  #socket;
  #initialCounts = null;
  #removedNodes = new Map(); // while pages are loaded, which may still have them
  #round = 0;
  #unsubscribe = () => {};
  #target = null;
  #stalledAt = null;

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

  /** How many nodes there are, by status and in total; null until that is known. */
  get counts() {
    if (!this.isComplete) return this.#initialCounts;
    const counts = { total: this.nodes.size, online: 0, degraded: 0, offline: 0, maintenance: 0 };
    for (const node of this.nodes.values()) counts[node.status.toLowerCase()] += 1;
    return counts;
  }

  /** Loads everything anew; what is shown stays until then. Of two that overlap the later counts. */
  async load() {
    const round = ++this.#round;
    this.#unsubscribe();
    this.isComplete = false;
    this.isRefused = false;
    // A registry that was restored from a backup counts from an older revision on.
    for (const [id, node] of this.nodes) this.nodes.set(id, { ...node, revision: -1n });
    this.#removedNodes.clear();
    this.latestChanges = [];
    const seen = new Set();
    let firstRevision = null;
    let [document, variables] = [FIRST_PAGE, { first: FIRST_PAGE_SIZE }];
    while (document !== null) {
      const askedAt = now();
      const data = await this.#executeUntilAnswered(round, document, variables);
      if (data === null) return;
      const revision = BigInt(data.nodes.revision);
      for (const node of data.nodes.nodes) {
        seen.add(node.nodeId);
        this.#putNode(node.nodeId, node, revision);
      }
      if (firstRevision === null) {
        firstRevision = revision;
        this.#initialCounts = data.registry.nodeCounts;
        this.#subscribe(revision);
        this.#recordRegistry(data.registry, askedAt);
        this.#loadLatest(round);
      }
      this.#notify("nodes");
      const { hasNextPage, endCursor } = data.nodes.pageInfo;
      document = hasNextPage ? NEXT_PAGE : null;
      variables = { first: PAGE_SIZE, after: endCursor };
    }
    for (const [id, node] of this.nodes) {
      if (!seen.has(id) && node.revision <= firstRevision) this.nodes.delete(id);
    }
    this.#removedNodes.clear();
    this.isComplete = true;
    this.#notify("nodes");
  }

  async #loadLatest(round) {
    const data = await this.#executeUntilAnswered(round, LATEST_CHANGES, { first: LATEST_SIZE });
    if (data === null) return;
    const changes = [...data.statusChanges.nodes, ...this.latestChanges];
    const known = new Map(changes.map((change) => [change.revision, change]));
    this.latestChanges = [...known.values()].sort(compareNewestFirst).slice(0, LATEST_SIZE);
    this.#notify("registry");
  }

  /** Asks until there is an answer; null when it was refused, or another round began. */
  async #executeUntilAnswered(round, document, variables) {
    for (let wait = FIRST_WAIT_MS; round === this.#round; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      try {
        const data = await this.#api.execute(document, variables);
        this.isAnswering = true;
        return round === this.#round ? data : null;
      } catch (error) {
        if (!error.isTransient) return this.#stop(error);
        this.isAnswering = false;
        this.#notify("registry");
        await new Promise((resume) => setTimeout(resume, wait));
      }
    }
    return null;
  }

  #subscribe(revision) {
    const round = this.#round;
    this.revision = revision;
    this.#unsubscribe = this.#socket.subscribe(CHANGES, () => ({ after: String(this.revision) }), {
      next: (data) => this.#applyEvent(data.nodeStatusChanges),
      error: (error) => {
        if (error.code !== "BAD_INPUT") this.#stop(error);
        // The log ends before where this page had come: it was set back. Should that not mend it,
        // the registry is asked no more often than this.
        else setTimeout(() => round === this.#round && this.load(), FIRST_WAIT_MS);
      },
    });
  }

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
    this.latestChanges = [change, ...this.latestChanges].slice(0, LATEST_SIZE);
    this.dispatchEvent(new CustomEvent("change", { detail: change }));
    this.#notify("nodes");
  }

  /** `node` is null once it was removed. */
  #putNode(id, node, revision) {
    const heldRevision = this.nodes.get(id)?.revision ?? this.#removedNodes.get(id) ?? -1n;
    if (revision < heldRevision) return;
    if (node === null) {
      this.nodes.delete(id);
      if (!this.isComplete) this.#removedNodes.set(id, revision);
    } else {
      const text = `${node.nodeId}\n${node.name}\n${node.hostname ?? ""}`.toLowerCase();
      this.nodes.set(id, { ...node, revision, text });
      this.#removedNodes.delete(id);
    }
  }

  /** Asked in short intervals, for silence alone does not tell whether anything was missed. */
  async #poll() {
    if (this.registry === null || document.hidden) return;
    const at = now();
    try {
      const { registry } = await this.#api.execute(REGISTRY, {}, POLL_SECONDS);
      this.isAnswering = true;
      if (this.isLive && this.#stalledAt === this.revision) this.#socket.restart();
      this.#socket.reconnectNow();
      this.#recordRegistry(registry, at);
    } catch (error) {
      if (!error.isTransient) this.#stop(error);
      else this.isAnswering = false;
    }
    this.#notify("registry");
  }

  #recordRegistry(registry, at) {
    this.registry = registry;
    this.#target = { revision: BigInt(registry.revision), at };
    this.#advanceTo(this.revision);
    this.#stalledAt = this.revision < this.#target.revision ? this.revision : null;
    this.#notify("registry");
  }

  /** Whoever has come as far as the registry had at some time has all there was then. */
  #advanceTo(revision) {
    this.revision = revision;
    if (this.#target !== null && revision >= this.#target.revision) this.confirmedAt = this.#target.at;
  }

  #stop(error) {
    this.#round += 1;
    this.#unsubscribe();
    this.isRefused = true;
    this.registry = null;
    this.#target = null;
    this.dispatchEvent(new CustomEvent("rejected", { detail: error }));
    return null;
  }

  #notify(what) {
    this.dispatchEvent(new Event(what));
  }
}

function compareNewestFirst(a, b) {
  return BigInt(a.revision) < BigInt(b.revision) ? 1 : -1;
}
