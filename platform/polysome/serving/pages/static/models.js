// The Models page: the base, its adapters, how each was evaluated, and how to call them.

import { ask, settings } from "./api.js";
import { byId, count, el, facts, fill, number, table, when } from "./dom.js";
import { begin, models } from "./shell.js";
import { copyButtons, curl, openai } from "./snippets.js";

function card(model, kind, evaluations) {
  const print = model.fingerprint;
  const of = evaluations.filter((one) => print.startsWith(`fp_${one.model_fingerprint}`) && one.adapter_fingerprint === model.adapter_fingerprint);
  const query = new URLSearchParams({ model: model.id });
  return el("section", { class: "card", "aria-label": model.id },
    el("p", { class: "chips" }, el("span", { class: "chip good" }, kind), of.length ? null : el("span", { class: "chip warn" }, "not evaluated here")),
    el("h3", {}, model.id),
    facts([
      ["Weights", print ? el("code", {}, print) : null],
      ["On top of", model.parent],
      ["Context", model.max_model_len ? `${model.max_model_len.toLocaleString("en")} tokens` : null],
      ["Served since", model.parent ? null : when(model.created)],
    ]),
    of.length ? results(of[0]) : null,
    el("p", { class: "actions" }, el("a", { class: "quiet button small", href: `/?${query}` }, "Predict with it"), el("a", { class: "quiet button small", href: `/chat?${query}` }, "Chat with it")));
}

function results(evaluation) {
  return el("details", {}, el("summary", {}, `Evaluated on ${count(evaluation.tasks.length, "task")}`),
    table([
      { title: "Task", cell: (task) => task.title },
      { title: "Metric", cell: (task) => task.metric },
      { title: "Value", number: true, cell: (task) => number(task.value) },
    ], evaluation.tasks),
    el("p", {}, el("a", { href: `/evaluations?${new URLSearchParams({ id: evaluation.id })}` }, "Open the evaluation")));
}

begin(async () => {
  fill(byId("progress"), el("p", { class: "hint" }, "Loading…"));
  try {
    const [available, evaluated] = await Promise.all([models(), settings.runs ? ask("/v1/evaluations") : { data: [] }]);
    const [base] = available;
    const adapters = available.filter((model) => model.parent);
    fill(byId("models"),
      el("div", { class: "cards" }, card(base, "Base model", evaluated.data), adapters.map((model) => card(model, "Adapter", evaluated.data))),
      adapters.length ? null : el("div", { class: "empty" }, el("p", {}, el("strong", {}, "No adapter is published yet.")), el("p", {}, "An adapter is a small set of weights for one purpose: ", el("code", {}, "polysome adapters publish"), " brings one here, without a restart.")));
    const json = { model: base.id, messages: [{ role: "user", content: "GCTATAAAAGGCTGCA Is there a core promoter in this sequence?" }] };
    fill(byId("snippet"), el("pre", { class: "code", tabindex: "0", "aria-label": "Python" }, openai(json)),
      el("p", { class: "actions" }, copyButtons([["Copy as Python", () => openai(json)], ["Copy as curl", () => curl("/v1/chat/completions", json)]])));
    byId("use").hidden = false;
  } finally {
    fill(byId("progress"));
  }
});
