// The Chat page: a conversation that lives in this tab, answers written as they come.

import { settings, stream } from "./api.js";
import { byId, duration, el, fill } from "./dom.js";
import { announce, begin, clearProblem, modelOptions, models, problem, showModel } from "./shell.js";
import { copyButtons, curl, openai } from "./snippets.js";

const state = { turns: [], running: null };

byId("max-tokens").max = settings.maxTokens;
byId("max-tokens").value = settings.defaultMaxTokens;
function empty() {
  state.turns = [];
  fill(byId("transcript"), el("div", { class: "empty" }, el("p", {}, el("strong", {}, "Nothing was asked yet.")),
    el("p", {}, "The model knows the questions it was trained on best. For a label with a probability, use "), el("p", {}, el("a", { href: "/" }, "Predict"), ".")));
  fill(byId("copies"));
}

function request() {
  const system = byId("system").value.trim();
  const seed = byId("seed").value;
  return {
    model: byId("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...state.turns.map(({ role, content }) => ({ role, content }))],
    max_tokens: Number(byId("max-tokens").value) || settings.defaultMaxTokens,
    temperature: Number(byId("temperature").value) || 0,
    ...(seed !== "" && { seed: Number(seed) }),
  };
}

async function sendMessage() {
  const content = byId("message").value.trim();
  if (!content || state.running) return;
  clearProblem();
  try {
    // A fast writer is done before the list of models is here.
    await models();
  } catch (error) {
    problem(error);
    return;
  }
  if (!state.turns.length) fill(byId("transcript"));
  state.turns.push({ role: "user", content });
  byId("transcript").append(turn("user", "You", written(content)));
  byId("message").value = "";
  await answer();
}

async function answer() {
  const json = request();
  const text = el("p", { class: "text" });
  const facts = el("p", { class: "facts" });
  const shown = turn("assistant", json.model, text, facts);
  shown.setAttribute("aria-busy", "true");
  byId("transcript").append(shown);
  state.running = new AbortController();
  busy(true);
  scroll(true);
  const began = performance.now();
  let said = "", first = null, last = {}, usage = null, ended = null;
  try {
    for await (const event of stream("/v1/chat/completions", { json: { ...json, stream: true, stream_options: { include_usage: true } }, signal: state.running.signal })) {
      last = event;
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      ended = choice?.finish_reason ?? ended;
      const piece = choice?.delta?.content;
      if (!piece) continue;
      first ??= performance.now() - began;
      said += piece;
      const follow = atEnd();
      text.append(piece);
      scroll(follow);
    }
  } catch (error) {
    ended = error.name === "AbortError" ? "stopped" : "broken";
    problem(error);
  }
  state.running = null;
  shown.removeAttribute("aria-busy");
  busy(false);
  if (!said && ended === "broken") {
    // The question goes back to where it can be sent again.
    shown.remove();
    byId("transcript").lastElementChild?.remove();
    byId("message").value = state.turns.pop().content;
    return;
  }
  state.turns.push({ role: "assistant", content: said });
  const seconds = (performance.now() - began) / 1000;
  fill(facts, [
    { length: "Cut off: the answer reached its longest length", stopped: "Stopped", broken: "Incomplete" }[ended],
    usage ? `${usage.completion_tokens} tokens` : null,
    first === null ? null : `first after ${duration(first / 1000)}`,
    duration(seconds),
    last.model ? `${last.model}${last.system_fingerprint ? ` · ${last.system_fingerprint}` : ""}` : null,
  ].filter(Boolean).map((fact) => el("span", {}, fact)));
  if (last.model) showModel(last.model, last.system_fingerprint);
  announce(said ? `Answer: ${said}` : "The answer is empty");
  fill(byId("copies"), ...copyButtons([["Copy as curl", () => curl("/v1/chat/completions", json)], ["Copy as Python", () => openai(json)]]));
  byId("message").focus();
}

function turn(role, who, ...content) {
  return el("article", { class: `turn ${role}`, "aria-label": who }, el("p", { class: "who" }, who), ...content);
}

/** Text with long sequences set apart. */
function written(content) {
  const parts = content.split(/([A-Za-z*]{25,})/);
  return el("p", { class: "text" }, parts.map((part, place) => (place % 2 ? el("span", { class: "sequence" }, part) : part)));
}

function busy(now) {
  byId("send").hidden = now;
  byId("stop").hidden = !now;
}

function atEnd() {
  return innerHeight + scrollY >= document.body.scrollHeight - 120;
}

function scroll(follow) {
  if (follow) scrollTo({ top: document.body.scrollHeight });
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); sendMessage(); });
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    sendMessage();
  }
});
byId("stop").addEventListener("click", () => state.running?.abort());
byId("again").addEventListener("click", () => { state.running?.abort(); clearProblem(); empty(); byId("message").focus(); });
byId("insert").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  const sequences = (await file.text()).split(/^>.*$/m).map((part) => part.replace(/\s+/g, "")).filter(Boolean);
  byId("message").setRangeText(sequences.join("\n"), byId("message").selectionStart, byId("message").selectionEnd, "end");
  byId("message").focus();
});

empty();
begin(async () => {
  modelOptions(byId("model"), null, await models(), byId("model").value || new URLSearchParams(location.search).get("model"));
});
