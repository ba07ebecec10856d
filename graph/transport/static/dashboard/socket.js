/**
 * Subscriptions over one websocket that comes back: graphql-transport-ws.
 *
 * https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
 */

import { Refused } from "./api.js";

const PROTOCOL = "graphql-transport-ws";
const PING_MS = 10_000;
const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 15_000;
const REFUSED = new Set([4401, 4403]);

/** Tells `ready` when it is connected, `lost` when it no longer is, `refused` with the reason. */
export class Socket extends EventTarget {
  ready = false;

  #url;
  #token;
  #socket = null;
  #subscriptions = new Map();
  #lastId = 0;
  #wait = FIRST_WAIT_MS;
  #retry = null;
  #ping = null;
  #heard = false;

  /** `token` is called at each connection: what to show, or null. */
  constructor(url, token) {
    super();
    this.#url = url;
    this.#token = token;
    addEventListener("online", () => this.hurry());
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
    if (this.ready) this.#begin(id);
    else this.#connect();
    return () => {
      if (this.#subscriptions.delete(id) && this.ready) this.#send({ type: "complete", id });
    };
  }

  /** Connects at once, if it was waiting to. */
  hurry() {
    if (this.#retry === null) return;
    clearTimeout(this.#retry);
    this.#retry = null;
    this.#connect();
  }

  /** Leaves this connection for a new one, e.g. for another token. */
  restart() {
    this.#wait = FIRST_WAIT_MS;
    if (this.#socket === null) this.hurry();
    else this.#lose(this.#socket, 0);
  }

  #connect() {
    if (this.#socket !== null || this.#retry !== null) return;
    const socket = new WebSocket(this.#url, PROTOCOL);
    this.#socket = socket;
    this.#heard = true;
    this.#ping = setInterval(() => this.#pulse(socket), PING_MS);
    socket.onopen = () => {
      const token = this.#token();
      const payload = token === null ? {} : { Authorization: `Bearer ${token}` };
      this.#send({ type: "connection_init", payload });
    };
    socket.onmessage = ({ data }) => this.#receive(socket, JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#lose(socket, code, reason);
  }

  #receive(socket, message) {
    if (socket !== this.#socket) return;
    this.#heard = true;
    const subscription = this.#subscriptions.get(message.id);
    switch (message.type) {
      case "connection_ack":
        this.#acknowledged();
        break;
      case "ping":
        this.#send({ type: "pong" });
        break;
      case "next":
        if (message.payload.errors) this.#end(message.id, Refused.of(message.payload.errors));
        else subscription?.next(message.payload.data);
        break;
      case "error":
        this.#end(message.id, Refused.of(message.payload));
        break;
      case "complete":
        if (this.#subscriptions.delete(message.id)) subscription.complete();
        break;
    }
  }

  #acknowledged() {
    this.ready = true;
    this.#wait = FIRST_WAIT_MS;
    for (const id of this.#subscriptions.keys()) this.#begin(id);
    this.dispatchEvent(new Event("ready"));
  }

  /** A connection on which nothing came since the last ping, nor since it was begun, is none. */
  #pulse(socket) {
    if (!this.#heard) return this.#lose(socket, 0);
    this.#heard = false;
    this.#send({ type: "ping" });
  }

  #begin(id) {
    const { query, variables } = this.#subscriptions.get(id);
    this.#send({ type: "subscribe", id, payload: { query, variables: variables() } });
  }

  /** What may be tried again is, over a new connection, so that the wait grows in one place. */
  #end(id, refused) {
    const subscription = this.#subscriptions.get(id);
    if (subscription === undefined) return;
    if (refused.retryable) {
      this.#lose(this.#socket, 0);
    } else {
      this.#subscriptions.delete(id);
      subscription.error(refused);
    }
  }

  #lose(socket, code, reason = "") {
    if (socket !== this.#socket) return;
    clearInterval(this.#ping);
    this.#socket = null;
    this.ready = false;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    if (REFUSED.has(code)) {
      this.#subscriptions.clear();
      const error = new Refused(reason, { code: code === 4401 ? "UNAUTHENTICATED" : "FORBIDDEN" });
      this.dispatchEvent(new CustomEvent("refused", { detail: error }));
    } else if (this.#subscriptions.size > 0) {
      // With jitter, so that all pages of a registry that was restarted do not come back in step.
      this.#retry = setTimeout(() => this.hurry(), this.#wait * (0.5 + Math.random()));
      this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT_MS);
    }
    this.dispatchEvent(new Event("lost"));
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
