/** Asks for a key, and why one is needed. */

/** Calls back with what was entered, or with null for none; the dialog keeps nothing. */
export function createSignInDialog(onToken) {
  const dialog = document.getElementById("sign-in-dialog");
  const key = document.getElementById("sign-in-key");
  const problem = document.getElementById("sign-in-problem");

  function open(error = null) {
    problem.hidden = error === null;
    problem.textContent = error?.message ?? "";
    if (!dialog.open) dialog.showModal();
  }

  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const token = key.value.trim().replace(/^bearer\s+/i, "");
    key.value = "";
    dialog.close();
    onToken(token === "" ? null : token);
  });
  dialog.addEventListener("close", () => (key.value = ""));
  document.getElementById("sign-in-cancel").addEventListener("click", () => dialog.close());
  return open;
}
