// What every page has: the key, the line that names the model, problems and announcements.

import { ApiError, ask, key } from "./api.js";
import { byId, el, fill } from "./dom.js";

let fetched = null;

/** The models that this server has, asked for once: {id, parent, …}; the first is the base. */
export function models() {
  fetched ??= ask("/v1/models").then((answer) => {
    const data = [...answer.data].sort((one, other) => Boolean(one.parent) - Boolean(other.parent));
    if (data.length) showModel(data[0].id, data[0].fingerprint);
    return data;
  });
  return fetched;
}

/** Name, in the line on top, which weights answer. */
export function showModel(model, fingerprint, adapter = null) {
  fill(byId("serving"), "Model ", el("strong", {}, model), adapter && adapter !== model ? [" with adapter ", el("strong", {}, adapter)] : null,
    fingerprint ? [" · ", el("code", {}, fingerprint)] : null);
}

/** Run the page's beginning: failures are told, and it begins anew when a key is entered. */
export async function begin(load) {
  const attempt = async () => {
    clearProblem();
    try {
      // A key may have other scopes than the page needs for this line.
      models().catch((error) => fill(byId("serving"), error.status === 403 ? "Which model is served is not told to this key" : ""));
      await load();
    } catch (error) {
      problem(error);
    }
  };
  addEventListener("key-changed", () => {
    fetched = null;
    attempt();
  });
  await attempt();
}

/** Tell what went wrong, where a screen reader says it. */
export function problem(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof ApiError)) {
    console.error(error);
    show("error", "Something in this page went wrong.", error.message);
    return;
  }
  const titles = { 0: "No answer.", 401: "This server asks for an API key.", 403: "This key may not do that.", 408: "It took too long.", 413: "That is too much at once.", 429: "The server is busy.", 503: "The model is not available." };
  const uninvited = error.status === 401 && !key.get();
  show(uninvited ? "" : "error", titles[error.status] ?? "That did not work.", uninvited ? "" : error.message, error.status === 401 ? el("button", { type: "button", class: "quiet small", onclick: openKey }, "Enter a key") : null);
}

function show(kind, title, message, ...more) {
  fill(byId("problem"), el("div", { class: `notice ${kind}` }, el("p", {}, el("strong", {}, title), ` ${message ?? ""}`), more.filter(Boolean).length ? el("p", {}, more) : null));
  // Below the fold nobody would see it.
  byId("problem").scrollIntoView({ block: "nearest" });
}

export function clearProblem() {
  fill(byId("problem"));
}

/** Say something to screen readers alone. */
export function announce(text) {
  byId("announce").textContent = text;
}

/** A select of models; hidden in its field where there is but one. */
export function modelOptions(select, field, data, wanted) {
  fill(select, data.map((model) => el("option", { value: model.id }, model.parent ? `${model.id} (adapter)` : model.id)));
  if (data.some((model) => model.id === wanted)) select.value = wanted;
  if (field) field.hidden = data.length < 2;
}

function openKey() {
  byId("key-input").value = "";
  byId("key-dialog").showModal();
}

function showKey() {
  byId("key-button").classList.toggle("set", Boolean(key.get()));
  byId("key-state").textContent = key.get() ? "API key set" : "API key";
}

byId("key-button").addEventListener("click", openKey);
byId("key-form").addEventListener("submit", (event) => {
  const entered = byId("key-input").value.trim();
  const choice = event.submitter?.value ?? "save";
  if (choice === "save" && entered) key.set(entered);
  else if (choice === "forget") key.forget();
  else return;
  showKey();
  dispatchEvent(new CustomEvent("key-changed"));
});
showKey();
