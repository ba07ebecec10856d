/** Queries and mutations over HTTP. */

import { learn } from "./time.js";

const SECONDS = 15;

/** What the registry refused, or that it does not answer: then `code` is UNAVAILABLE. */
export class Refused extends Error {
  constructor(message, { code = "INTERNAL", retryable = false, ...facts } = {}) {
    super(message);
    Object.assign(this, { code, retryable, facts });
  }

  /** Whether it may pass by itself: a fault of the registry may, what it refuses does not. */
  get passes() {
    return this.retryable || this.code === "INTERNAL";
  }

  /** Of the first of GraphQL's errors. */
  static of([error]) {
    return new Refused(error.message, error.extensions);
  }
}

export class Api {
  /** Sent with each request; null: nobody in particular. It is kept nowhere else. */
  token = null;

  #url;

  constructor(url) {
    this.#url = url;
  }

  /** The data of an operation. Throws Refused. */
  async ask(query, variables = {}, seconds = SECONDS) {
    const body = await this.#body(JSON.stringify({ query, variables }), seconds);
    if (body.errors) throw Refused.of(body.errors);
    return body.data;
  }

  async #body(request, seconds) {
    const headers = { "content-type": "application/json", accept: "application/graphql-response+json" };
    if (this.token !== null) headers.authorization = `Bearer ${this.token}`;
    try {
      const signal = AbortSignal.timeout(seconds * 1000);
      const response = await fetch(this.#url, { method: "POST", headers, body: request, signal });
      learn(response.headers.get("date"));
      return await response.json();
    } catch {
      throw new Refused("The registry does not answer.", { code: "UNAVAILABLE", retryable: true });
    }
  }
}
