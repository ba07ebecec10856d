/** Queries and mutations over HTTP. */

import { adjustClock } from "./time.js";

const TIMEOUT_SECONDS = 15;

/** What the registry refused, or that it does not answer: then `code` is UNAVAILABLE. */
export class RegistryError extends Error {
  constructor(message, { code = "INTERNAL", retryable = false, ...facts } = {}) {
    super(message);
    Object.assign(this, { code, retryable, facts });
  }

  /** Whether it may pass by itself: a fault of the registry may, what it refuses does not. */
  get isTransient() {
    return this.retryable || this.code === "INTERNAL";
  }

  /** Of the first of GraphQL's errors. */
  static fromErrors([error]) {
    return new RegistryError(error.message, error.extensions);
  }
}

export class Api {
  /** Sent with each request; null: nobody in particular. It is kept nowhere else. */
  token = null;

  #url;

  constructor(url) {
    this.#url = url;
  }

  /** The data of an operation. Throws RegistryError. */
  async execute(query, variables = {}, timeoutSeconds = TIMEOUT_SECONDS) {
    const body = await this.#post(JSON.stringify({ query, variables }), timeoutSeconds);
    if (body.errors) throw RegistryError.fromErrors(body.errors);
    return body.data;
  }

  async #post(request, timeoutSeconds) {
    const headers = { "content-type": "application/json", accept: "application/graphql-response+json" };
    if (this.token !== null) headers.authorization = `Bearer ${this.token}`;
    try {
      const signal = AbortSignal.timeout(timeoutSeconds * 1000);
      const response = await fetch(this.#url, { method: "POST", headers, body: request, signal });
      adjustClock(response.headers.get("date"));
      return await response.json();
    } catch {
      throw new RegistryError("The registry does not answer.", { code: "UNAVAILABLE", retryable: true });
    }
  }
}
