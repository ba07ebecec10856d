/** Elements built from plain data. Text stays text: nothing here parses HTML. */

/** @import { RegistryError } from "./api.js" */

/**
 * The attributes of an element. One that is null, undefined or false is left out, true sets it empty.
 * @typedef {string | number | boolean | null | undefined} AttributeValue
 * @typedef {{
 *   onclick?: (event: MouseEvent) => void,
 *   onfocus?: (event: FocusEvent) => void,
 *   oninput?: (event: Event) => void,
 *   onkeydown?: (event: KeyboardEvent) => void,
 *   onscroll?: (event: Event) => void,
 *   onsubmit?: (event: SubmitEvent) => void,
 * }} Listeners
 * @typedef {Partial<Record<
 *   "autocomplete" | "class" | "cx" | "cy" | "d" | "datetime" | "for" | "height" | "href" | "id" | "list" |
 *   "maxlength" | "placeholder" | "preserveAspectRatio" | "r" | "role" | "scope" | "tabindex" | "title" |
 *   "type" | "value" | "visibility" | "x1" | "x2" | "y1" | "y2" | `aria-${string}`,
 *   AttributeValue>> & Listeners} Attributes
 */

/**
 * The content of an element; null stands for nothing.
 * @typedef {Node | string | null | Child[]} Child
 */

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

/**
 * Return a new HTML element (`h` is its usual name, after hyperscript).
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Attributes} attributes
 * @param {...Child} children
 */
export function h(tag, attributes = {}, ...children) {
  return fillElement(document.createElement(tag), attributes, children);
}

/**
 * Return a new SVG element.
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Attributes} attributes
 * @param {...Child} children
 */
export function createSvg(tag, attributes = {}, ...children) {
  return fillElement(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
}

/**
 * @template {Element} Filled
 * @param {Filled} element
 * @param {Attributes} attributes
 * @param {Child[]} children
 */
function fillElement(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    // The name says which event the listener takes: `Listeners` has checked that.
    if (typeof value === "function") element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...flatten(children));
  return element;
}

/**
 * @param {Child[]} children
 * @returns {(Node | string)[]}
 */
function flatten(children) {
  return children.flatMap((child) => (Array.isArray(child) ? flatten(child) : child ?? []));
}

/**
 * Return the element of the page with this id.
 * @template {HTMLElement} [Type=HTMLElement]
 * @param {string} id
 * @param {new () => Type} type the class that the element must have
 * @returns {Type}
 */
export function getElement(id, type) {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`The page has no ${type.name} with the id ${id}.`);
  return element;
}

/**
 * Set the text of a node only if it differs, to avoid laying out again what has not changed.
 * @param {Node} node
 * @param {string} text
 */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Return a card: a section of a page with a heading.
 * @param {string} title
 * @param {...Child} children
 */
export function renderCard(title, ...children) {
  const id = `card-${title.toLowerCase().replaceAll(" ", "-")}`;
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

/**
 * Return an error as a person reads it: its message, and the code and request id to look it up by.
 * @param {RegistryError} error
 */
export function renderProblem(error) {
  const facts = [error.code, error.facts.requestId && `request ${error.facts.requestId}`];
  return h("p", { class: "problem", role: "alert" },
    `${error.message} `, h("small", {}, facts.filter(Boolean).join(" · ")));
}
