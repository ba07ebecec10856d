/**
 * Subscriptions over one websocket that comes back: graphql-transport-ws.
 *
 * https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
 */

import { RegistryError } from "./api.js";

const PROTOCOL = "graphql-transport-ws";
const PING_MS = 10_000;
const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 15_000;
const REJECTED_CODES = new Set([4401, 4403]);

/** Tells `ready` when it is connected, `lost` when it no longer is, `refused` with the reason. */
export class Socket extends EventTarget {
  isReady = false;

  #url;
  #getToken;
  #socket = null;
  #subscriptions = new Map();
  #lastId = 0;
  #retryDelay = FIRST_RETRY_MS;
  #retryTimer = null;
  #pingTimer = null;
  #isHeard = false;

  /** `token` is called at each connection: what to show, or null. */
  constructor(url, getToken) {
    super();
    this.#url = url;
    this.#getToken = getToken;
    addEventListener("online", () => this.reconnectNow());
  }

  /**
   * Follows until the function that it returns is called; connects if need be.
   *
   * After each interruption it subscribes again with what `variables` returns then. `error` gets
   * what trying again cannot mend, and `complete` is called when the stream ends: both are the end.
   */
  subscribe(query, variables, { next, error = () => {}, complete = () => {} }) {
    const id = String(++this.#lastId);
    this.#subscriptions.set(id, { query, variables, next, error, complete });
    if (this.isReady) this.#startSubscription(id);
    else this.#connect();
    return () => {
      if (this.#subscriptions.delete(id) && this.isReady) this.#send({ type: "complete", id });
    };
  }

  /** Connects at once, if it was waiting to. */
  reconnectNow() {
    if (this.#retryTimer === null) return;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
    this.#connect();
  }

  /** Leaves this connection for a new one, e.g. for another token. */
  restart() {
    this.#retryDelay = FIRST_RETRY_MS;
    if (this.#socket === null) this.reconnectNow();
    else this.#dropConnection(this.#socket, 0);
  }

  #connect() {
    if (this.#socket !== null || this.#retryTimer !== null) return;
    const socket = new WebSocket(this.#url, PROTOCOL);
    this.#socket = socket;
    this.#isHeard = true;
    this.#pingTimer = setInterval(() => this.#checkConnection(socket), PING_MS);
    socket.onopen = () => {
      const token = this.#getToken();
      const payload = token === null ? {} : { Authorization: `Bearer ${token}` };
      this.#send({ type: "connection_init", payload });
    };
    socket.onmessage = ({ data }) => this.#handleMessage(socket, JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#dropConnection(socket, code, reason);
  }

  #handleMessage(socket, message) {
    if (socket !== this.#socket) return;
    this.#isHeard = true;
    const subscription = this.#subscriptions.get(message.id);
    switch (message.type) {
      case "connection_ack":
        this.#handleAck();
        break;
      case "ping":
        this.#send({ type: "pong" });
        break;
      case "next":
        if (message.payload.errors) this.#endSubscription(message.id, RegistryError.fromErrors(message.payload.errors));
        else subscription?.next(message.payload.data);
        break;
      case "error":
        this.#endSubscription(message.id, RegistryError.fromErrors(message.payload));
        break;
      case "complete":
        if (this.#subscriptions.delete(message.id)) subscription.complete();
        break;
    }
  }

  #handleAck() {
    this.isReady = true;
    this.#retryDelay = FIRST_RETRY_MS;
    for (const id of this.#subscriptions.keys()) this.#startSubscription(id);
    this.dispatchEvent(new Event("ready"));
  }

  /** A connection on which nothing came since the last ping, nor since it was begun, is none. */
  #checkConnection(socket) {
    if (!this.#isHeard) return this.#dropConnection(socket, 0);
    this.#isHeard = false;
    this.#send({ type: "ping" });
  }

  #startSubscription(id) {
    const { query, variables } = this.#subscriptions.get(id);
    this.#send({ type: "subscribe", id, payload: { query, variables: variables() } });
  }

  /** What may be tried again is, over a new connection, so that the wait grows in one place. */
  #endSubscription(id, error) {
    const subscription = this.#subscriptions.get(id);
    if (subscription === undefined) return;
    if (error.retryable) {
      this.#dropConnection(this.#socket, 0);
    } else {
      this.#subscriptions.delete(id);
      subscription.error(error);
    }
  }

  #dropConnection(socket, code, reason = "") {
    if (socket !== this.#socket) return;
    clearInterval(this.#pingTimer);
    this.#socket = null;
    this.isReady = false;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    if (REJECTED_CODES.has(code)) {
      this.#subscriptions.clear();
      const error = new RegistryError(reason, { code: code === 4401 ? "UNAUTHENTICATED" : "FORBIDDEN" });
      this.dispatchEvent(new CustomEvent("rejected", { detail: error }));
    } else if (this.#subscriptions.size > 0) {
      // With jitter, so that all pages of a registry that was restarted do not come back in step.
      this.#retryTimer = setTimeout(() => this.reconnectNow(), this.#retryDelay * (0.5 + Math.random()));
      this.#retryDelay = Math.min(2 * this.#retryDelay, LONGEST_RETRY_MS);
    }
    this.dispatchEvent(new Event("lost"));
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
