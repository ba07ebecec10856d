/** The dialog that asks for an API key or a bearer token, and says why one is needed. */

import { getElement } from "./elements.js";

/** @import { RegistryError } from "./api.js" */

/**
 * Return the function that opens the dialog, with the error that made it necessary, if any.
 *
 * The dialog itself stores nothing.
 * @param {(token: string | null) => void} onToken called with what was entered, null for nothing
 * @returns {(error?: RegistryError | null) => void}
 */
export function createSignInDialog(onToken) {
  const dialog = getElement("sign-in-dialog", HTMLDialogElement);
  const form = getElement("sign-in-form", HTMLFormElement);
  const key = getElement("sign-in-key", HTMLInputElement);
  const problem = getElement("sign-in-problem", HTMLElement);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const token = key.value.trim().replace(/^bearer\s+/i, "");
    key.value = "";
    dialog.close();
    onToken(token === "" ? null : token);
  });
  dialog.addEventListener("close", () => (key.value = ""));
  getElement("sign-in-cancel", HTMLElement).addEventListener("click", () => dialog.close());

  return (error = null) => {
    problem.hidden = error === null;
    problem.textContent = error?.message ?? "";
    if (!dialog.open) dialog.showModal();
  };
}
