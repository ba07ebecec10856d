/** Queries and mutations over HTTP. */

import { adjustClock } from "./time.js";

/** @import { GraphQLError, GraphQLResponse, JsonObject, Operation } from "../../dashboard" */

const TIMEOUT_SECONDS = 15;

/** An error that the registry returned, or code UNAVAILABLE where it does not answer. */
export class RegistryError extends Error {
  /** @type {string} */
  code;
  /** Whether the registry says that the same request may succeed later. @type {boolean} */
  retryable;
  /** The remaining extensions of the error, e.g. `requestId`. @type {{ requestId?: string }} */
  facts;

  /**
   * @param {string} message
   * @param {GraphQLError["extensions"]} extensions
   */
  constructor(message, { code = "INTERNAL", retryable = false, ...facts } = {}) {
    super(message);
    this.code = code;
    this.retryable = retryable;
    this.facts = facts;
  }

  /** Whether it may pass by itself: a fault of the registry may, a rejected request does not. */
  get isTransient() {
    return this.retryable || this.code === "INTERNAL";
  }

  /**
   * Return the first error of a GraphQL response.
   * @param {GraphQLError[]} errors
   */
  static fromErrors([error]) {
    return new RegistryError(error.message, error.extensions);
  }
}

/**
 * Throw `error` again unless it is a RegistryError: anything else is a fault of this page.
 * @param {unknown} error
 * @returns {asserts error is RegistryError}
 */
export function assertRegistryError(error) {
  if (!(error instanceof RegistryError)) throw error;
}

/** A GraphQL client over HTTP. */
export class Api {
  /**
   * The bearer token that each request sends, or null for none. It is stored nowhere else.
   * @type {string | null}
   */
  token = null;

  /** @type {URL} */
  #url;

  /** @param {URL} url the address of the GraphQL endpoint */
  constructor(url) {
    this.#url = url;
  }

  /**
   * Return the data of an operation.
   * @template Data
   * @template {JsonObject} Variables
   * @param {Operation<Data, Variables>} query
   * @param {Variables} variables
   * @param {number} timeoutSeconds
   * @returns {Promise<Data>}
   * @throws {RegistryError}
   */
  async execute(query, variables, timeoutSeconds = TIMEOUT_SECONDS) {
    const body = await this.#post(JSON.stringify({ query, variables }), timeoutSeconds);
    if (body.errors) throw RegistryError.fromErrors(body.errors);
    return /** @type {Data} */ (body.data);
  }

  /**
   * @param {string} request
   * @param {number} timeoutSeconds
   * @returns {Promise<GraphQLResponse>}
   */
  async #post(request, timeoutSeconds) {
    /** @type {Record<string, string>} */
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
