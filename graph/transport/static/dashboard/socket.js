/**
 * Subscriptions over one websocket that reconnects by itself, by the protocol graphql-transport-ws.
 *
 * https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
 */

import { RegistryError } from "./api.js";

/** @import { GraphQLError, GraphQLResponse, JsonObject, Operation, TypedEventTarget } from "../../dashboard" */

/**
 * @typedef {{
 *   query: string, variables: () => JsonObject,
 *   next: (data: unknown) => void, error: (error: RegistryError) => void, complete: () => void,
 * }} Subscription
 * @typedef {{ ready: Event, lost: Event, rejected: CustomEvent<RegistryError> }} SocketEvents
 */

/**
 * A message from the server.
 * @typedef {{ type: "connection_ack" } | { type: "ping" } | { type: "pong" }
 *   | { type: "next", id: string, payload: GraphQLResponse }
 *   | { type: "error", id: string, payload: GraphQLError[] }
 *   | { type: "complete", id: string }} Message
 */

const PROTOCOL = "graphql-transport-ws";
const PING_MS = 10_000;
const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 15_000;
const REJECTED_CODES = new Set([4401, 4403]);

/**
 * A websocket for subscriptions. Dispatches `ready` when it is connected, `lost` when it no longer is,
 * and `rejected` with the error when the registry does not accept its token.
 */
export class Socket extends /** @type {new () => TypedEventTarget<SocketEvents>} */ (EventTarget) {
  isReady = false;

  /** @type {URL} */
  #url;
  /** @type {() => string | null} */
  #getToken;
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  #lastId = 0;
  #retryDelay = FIRST_RETRY_MS;
  /** @type {number | null} */
  #retryTimer = null;
  /** @type {number | undefined} */
  #pingTimer;
  /** Whether a message has arrived since the last ping, or no ping was sent yet. */
  #isHeard = false;

  /**
   * @param {URL} url
   * @param {() => string | null} getToken called at each connection for the token that it sends
   */
  constructor(url, getToken) {
    super();
    this.#url = url;
    this.#getToken = getToken;
    addEventListener("online", () => this.reconnectNow());
  }

  /**
   * Subscribe, connecting if necessary, and return the function that ends the subscription.
   *
   * After each interruption it subscribes again, with what `variables` returns then. `error` is called
   * for an error that a retry cannot resolve, `complete` when the stream ends; both end the
   * subscription.
   * @template Data
   * @template {JsonObject} Variables
   * @param {Operation<Data, Variables>} query
   * @param {() => Variables} variables
   * @param {object} callbacks
   * @param {(data: Data) => void} callbacks.next
   * @param {(error: RegistryError) => void} [callbacks.error]
   * @param {() => void} [callbacks.complete]
   * @returns {() => void}
   */
  subscribe(query, variables, { next, error = () => {}, complete = () => {} }) {
    const id = String(++this.#lastId);
    const subscription = { query, variables, next: (/** @type {unknown} */ data) => next(/** @type {Data} */ (data)), error, complete };
    this.#subscriptions.set(id, subscription);
    if (this.isReady) this.#startSubscription(id, subscription);
    else this.#connect();
    return () => {
      if (this.#subscriptions.delete(id) && this.isReady) this.#send({ type: "complete", id });
    };
  }

  /** Connect at once if a retry is scheduled. */
  reconnectNow() {
    if (this.#retryTimer === null) return;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
    this.#connect();
  }

  /** Replace the connection by a new one, e.g. to send another token. */
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

  /**
   * @param {WebSocket} socket
   * @param {Message} message
   */
  #handleMessage(socket, message) {
    if (socket !== this.#socket) return;
    this.#isHeard = true;
    switch (message.type) {
      case "connection_ack":
        this.#handleAck();
        break;
      case "ping":
        this.#send({ type: "pong" });
        break;
      case "next":
        if (message.payload.errors) this.#handleError(message.id, RegistryError.fromErrors(message.payload.errors));
        else this.#subscriptions.get(message.id)?.next(message.payload.data);
        break;
      case "error":
        this.#handleError(message.id, RegistryError.fromErrors(message.payload));
        break;
      case "complete": {
        const subscription = this.#subscriptions.get(message.id);
        this.#subscriptions.delete(message.id);
        subscription?.complete();
        break;
      }
    }
  }

  #handleAck() {
    this.isReady = true;
    this.#retryDelay = FIRST_RETRY_MS;
    for (const [id, subscription] of this.#subscriptions) this.#startSubscription(id, subscription);
    this.dispatchEvent(new Event("ready"));
  }

  /**
   * Send a ping, or drop a connection on which nothing arrived since the last one.
   * @param {WebSocket} socket
   */
  #checkConnection(socket) {
    if (!this.#isHeard) {
      this.#dropConnection(socket, 0);
      return;
    }
    this.#isHeard = false;
    this.#send({ type: "ping" });
  }

  /**
   * @param {string} id
   * @param {Subscription} subscription
   */
  #startSubscription(id, { query, variables }) {
    this.#send({ type: "subscribe", id, payload: { query, variables: variables() } });
  }

  /**
   * End a subscription with an error. A retryable error drops the connection instead: everything is
   * tried again over a new one, so that the delay grows in a single place.
   * @param {string} id
   * @param {RegistryError} error
   */
  #handleError(id, error) {
    const subscription = this.#subscriptions.get(id);
    if (subscription === undefined) return;
    if (error.retryable) {
      if (this.#socket !== null) this.#dropConnection(this.#socket, 0);
    } else {
      this.#subscriptions.delete(id);
      subscription.error(error);
    }
  }

  /**
   * @param {WebSocket} socket
   * @param {number} code the close code, or 0 when this page drops the connection
   */
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
      // The jitter keeps the pages of a restarted registry from reconnecting all at the same moment.
      this.#retryTimer = setTimeout(() => this.reconnectNow(), this.#retryDelay * (0.5 + Math.random()));
      this.#retryDelay = Math.min(2 * this.#retryDelay, LONGEST_RETRY_MS);
    }
    this.dispatchEvent(new Event("lost"));
  }

  /** @param {object} message */
  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
