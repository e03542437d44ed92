// One dialog, for questions that have to be answered first.

import { h } from "./dom.js";

/** Resolves to whether it was confirmed. */
export function confirm(title, text, action) {
  const dialog = document.getElementById("dialog");
  const yes = h("button", { class: "strong", value: "yes" }, action);
  const no = h("button", { value: "no", autofocus: true }, "Cancel");
  dialog.replaceChildren(
    h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), h("p", {}, text), h("div", { class: "row" }, yes, no)),
  );
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}
