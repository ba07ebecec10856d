/** Elements from plain data. Text is always text: nothing here parses HTML. */

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

/**
 * An HTML element. Attributes that are null or false are left out; `onclick` and its like are
 * listeners; children are elements, text, or null for none.
 */
export function h(tag, attributes = {}, ...children) {
  return fillElement(document.createElement(tag), attributes, children);
}

/** An SVG element, as `h`. */
export function createSvg(tag, attributes = {}, ...children) {
  return fillElement(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
}

function fillElement(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets the text only where it differs, so that what has not changed is not laid out again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A card of a page: a heading, and what is below it. */
export function renderCard(title, ...children) {
  const id = `card-${title.toLowerCase().replaceAll(" ", "-")}`;
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

/** What the registry refused, for people: its words, and the code and id by which to find it. */
export function renderProblem(error) {
  const facts = [error.code, error.facts?.requestId && `request ${error.facts.requestId}`];
  return h("p", { class: "problem", role: "alert" },
    `${error.message} `, h("small", {}, facts.filter(Boolean).join(" · ")));
}
