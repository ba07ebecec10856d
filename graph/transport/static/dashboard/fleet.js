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
const LATEST = 50;
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
  complete = false;
  /** What the registry said of itself last, or null. */
  registry = null;
  /** How far the change log was followed. */
  revision = 0n;
  /** When this was last known to be all there is, by the registry's clock; null: never yet. */
  confirmedAt = null;
  /** Whether the registry answered when it was last asked. */
  answering = true;
  /** Whether it wants a key, or another one. */
  refused = false;
  /** The newest changes, newest first. */
  latest = [];

  #api;
  #socket;
  #counted = null;
  #removed = new Map(); // while pages are loaded, which may still have them
  #round = 0;
  #unfollow = () => {};
  #goal = null;
  #stuckAt = null;

  constructor(api, socket) {
    super();
    this.#api = api;
    this.#socket = socket;
    socket.addEventListener("ready", () => this.#tell("registry"));
    socket.addEventListener("lost", () => this.#poll());
    setInterval(() => this.#poll(), POLL_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.#poll());
  }

  /** Whether changes reach this page as they happen. */
  get live() {
    return this.#socket.ready;
  }

  /** How many nodes there are, by status and in total; null until that is known. */
  get counts() {
    if (!this.complete) return this.#counted;
    const counts = { total: this.nodes.size, online: 0, degraded: 0, offline: 0, maintenance: 0 };
    for (const node of this.nodes.values()) counts[node.status.toLowerCase()] += 1;
    return counts;
  }

  /** Loads everything anew; what is shown stays until then. Of two that overlap the later counts. */
  async load() {
    const round = ++this.#round;
    this.#unfollow();
    this.complete = false;
    this.refused = false;
    // A registry that was restored from a backup counts from an older revision on.
    for (const [id, node] of this.nodes) this.nodes.set(id, { ...node, revision: -1n });
    this.#removed.clear();
    this.latest = [];
    const seen = new Set();
    let begun = null;
    let [document, variables] = [FIRST_PAGE, { first: FIRST_PAGE_SIZE }];
    while (document !== null) {
      const asked = now();
      const data = await this.#persist(round, document, variables);
      if (data === null) return;
      const revision = BigInt(data.nodes.revision);
      for (const node of data.nodes.nodes) {
        seen.add(node.nodeId);
        this.#put(node.nodeId, node, revision);
      }
      if (begun === null) {
        begun = revision;
        this.#counted = data.registry.nodeCounts;
        this.#follow(revision);
        this.#learn(data.registry, asked);
        this.#loadLatest(round);
      }
      this.#tell("nodes");
      const { hasNextPage, endCursor } = data.nodes.pageInfo;
      document = hasNextPage ? NEXT_PAGE : null;
      variables = { first: PAGE_SIZE, after: endCursor };
    }
    for (const [id, node] of this.nodes) {
      if (!seen.has(id) && node.revision <= begun) this.nodes.delete(id);
    }
    this.#removed.clear();
    this.complete = true;
    this.#tell("nodes");
  }

  async #loadLatest(round) {
    const data = await this.#persist(round, LATEST_CHANGES, { first: LATEST });
    if (data === null) return;
    const changes = [...data.statusChanges.nodes, ...this.latest];
    const known = new Map(changes.map((change) => [change.revision, change]));
    this.latest = [...known.values()].sort(newestFirst).slice(0, LATEST);
    this.#tell("registry");
  }

  /** Asks until there is an answer; null when it was refused, or another round began. */
  async #persist(round, document, variables) {
    for (let wait = FIRST_WAIT_MS; round === this.#round; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      try {
        const data = await this.#api.ask(document, variables);
        this.answering = true;
        return round === this.#round ? data : null;
      } catch (error) {
        if (!error.passes) return this.#refuse(error);
        this.answering = false;
        this.#tell("registry");
        await new Promise((resume) => setTimeout(resume, wait));
      }
    }
    return null;
  }

  #follow(revision) {
    const round = this.#round;
    this.revision = revision;
    this.#unfollow = this.#socket.subscribe(CHANGES, () => ({ after: String(this.revision) }), {
      next: (data) => this.#take(data.nodeStatusChanges),
      error: (error) => {
        if (error.code !== "BAD_INPUT") this.#refuse(error);
        // The log ends before where this page had come: it was set back. Should that not mend it,
        // the registry is asked no more often than this.
        else setTimeout(() => round === this.#round && this.load(), FIRST_WAIT_MS);
      },
    });
  }

  #take(event) {
    if (event.__typename === "ResyncRequired") {
      this.load();
      return;
    }
    if (event.__typename === "Bookmark") {
      this.#goal = { revision: BigInt(event.revision), at: now() };
      this.#reach(this.#goal.revision);
      this.#tell("registry");
      return;
    }
    const { change, node } = event;
    this.#reach(BigInt(change.revision));
    this.#put(change.nodeId, node, this.revision);
    this.latest = [change, ...this.latest].slice(0, LATEST);
    this.dispatchEvent(new CustomEvent("change", { detail: change }));
    this.#tell("nodes");
  }

  /** `node` is null once it was removed. */
  #put(id, node, revision) {
    const held = this.nodes.get(id)?.revision ?? this.#removed.get(id) ?? -1n;
    if (revision < held) return;
    if (node === null) {
      this.nodes.delete(id);
      if (!this.complete) this.#removed.set(id, revision);
    } else {
      const text = `${node.nodeId}\n${node.name}\n${node.hostname ?? ""}`.toLowerCase();
      this.nodes.set(id, { ...node, revision, text });
      this.#removed.delete(id);
    }
  }

  /** Asked in short intervals, for silence alone does not tell whether anything was missed. */
  async #poll() {
    if (this.registry === null || document.hidden) return;
    const at = now();
    try {
      const { registry } = await this.#api.ask(REGISTRY, {}, POLL_SECONDS);
      this.answering = true;
      if (this.live && this.#stuckAt === this.revision) this.#socket.restart();
      this.#socket.hurry();
      this.#learn(registry, at);
    } catch (error) {
      if (!error.passes) this.#refuse(error);
      else this.answering = false;
    }
    this.#tell("registry");
  }

  #learn(registry, at) {
    this.registry = registry;
    this.#goal = { revision: BigInt(registry.revision), at };
    this.#reach(this.revision);
    this.#stuckAt = this.revision < this.#goal.revision ? this.revision : null;
    this.#tell("registry");
  }

  /** Whoever has come as far as the registry had at some time has all there was then. */
  #reach(revision) {
    this.revision = revision;
    if (this.#goal !== null && revision >= this.#goal.revision) this.confirmedAt = this.#goal.at;
  }

  #refuse(error) {
    this.#round += 1;
    this.#unfollow();
    this.refused = true;
    this.registry = null;
    this.#goal = null;
    this.dispatchEvent(new CustomEvent("refused", { detail: error }));
    return null;
  }

  #tell(what) {
    this.dispatchEvent(new Event(what));
  }
}

function newestFirst(one, other) {
  return BigInt(one.revision) < BigInt(other.revision) ? 1 : -1;
}
