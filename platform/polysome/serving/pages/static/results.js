// The table of answers: labels with probabilities, numbers with intervals, warnings, and what can be taken away.

import { byId, count, csv, decimals, download, duration, el, fill, range, share, table } from "./dom.js";
import { announce, showModel } from "./shell.js";
import { copyButtons, curl, python } from "./snippets.js";

const MOST_SHOWN = 8;

/** Show `answers` about `task`; `top` is what the API said of all, `requested` a request to copy. */
export function showResults({ task, top, answers, asked, seconds, requested }) {
  const numbers = task.kind === "regression";
  fill(byId("provenance"), provenance(top, answers, numbers), el("span", {}, duration(seconds)));
  fill(byId("summary"), totals(answers, numbers, asked));
  const values = answers.flatMap((answer) => [answer.value, ...(answer.interval ?? [])]).filter((value) => value !== null && value !== undefined);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const warned = answers.some((answer) => answer.warnings?.length);
  const columns = [
    { title: "Record", sort: (answer) => answer.id, cell: (answer) => answer.id },
    ...(numbers ? numberColumns(low, high) : labelColumns()),
    ...(warned ? [{ title: "Notes", sort: (answer) => answer.warnings?.length ?? 0, cell: notes }] : []),
    { title: "Details", cell: (answer) => behind(answer) },
  ];
  fill(byId("table"), table(columns, answers));
  fill(byId("downloads"), ...downloads(task, top, answers), ...copyButtons([["Copy as curl", () => curl("/v1/predict", requested)], ["Copy as Python", () => python("/v1/predict", requested)]]));
  byId("results").hidden = false;
  byId("results-title").focus({ preventScroll: true });
  byId("results").scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  announce(`${count(answers.length, "answer")} below`);
  showModel(top.model, top.system_fingerprint, top.adapter);
}

function provenance(top, answers, numbers) {
  const calibrated = answers.every((answer) => answer.calibrated);
  const told = numbers
    ? answers.some((answer) => answer.interval) ? ["good", "90 % interval"] : ["warn", "No interval"]
    : calibrated ? ["good", "Calibrated probabilities"] : ["warn", "Not calibrated"];
  return [
    el("span", {}, "Answered by ", el("strong", {}, top.model), top.adapter && top.adapter !== top.model ? [" with adapter ", el("strong", {}, top.adapter)] : null, " · ", el("code", {}, top.system_fingerprint)),
    el("span", { class: `chip ${told[0]}` }, told[1]),
    el("span", {}, top.calibration),
  ];
}

function totals(answers, numbers, asked) {
  const parts = [];
  if (!numbers) {
    const counts = new Map();
    for (const answer of answers) counts.set(answer.label, (counts.get(answer.label) ?? 0) + 1);
    for (const [label, amount] of [...counts].sort((one, other) => other[1] - one[1]).slice(0, 4)) parts.push([amount, label]);
  } else parts.push([answers.length, answers.length === 1 ? "answer" : "answers"]);
  const warned = answers.filter((answer) => answer.warnings?.length).length;
  if (warned) parts.push([warned, "with notes"]);
  if (asked > answers.length) parts.push([asked - answers.length, "not answered"]);
  return el("div", { class: "totals" }, parts.map(([amount, what]) => el("div", {}, el("b", {}, amount.toLocaleString("en")), " ", el("span", { class: "dim" }, what))));
}

function labelColumns() {
  return [
    { title: "Answer", sort: (answer) => answer.label, cell: (answer) => el("span", { class: "label" }, answer.label ?? "–") },
    { title: "Probability", sort: (answer) => answer.probability, cell: (answer) => (answer.probability === null ? "–" : share(answer.probability)) },
  ];
}

function numberColumns(low, high) {
  const written = (value) => (value === null ? "–" : value.toFixed(Math.min(decimals(high - low), 3)));
  return [
    { title: "Value", number: true, sort: (answer) => answer.value, cell: (answer) => el("span", { class: "label" }, written(answer.value)) },
    { title: "90 % interval", sort: (answer) => (answer.interval ? answer.interval[1] - answer.interval[0] : null), cell: (answer) => answer.value === null ? "–" : [answer.interval ? `${written(answer.interval[0])} to ${written(answer.interval[1])}` : "unknown", range(answer.value, answer.interval, low, high)] },
  ];
}

function notes(answer) {
  return answer.warnings?.length ? el("ul", { class: "warnings" }, answer.warnings.map((warning) => el("li", {}, warning.message))) : "";
}

function behind(answer) {
  const others = Object.entries(answer.probabilities ?? {}).sort((one, other) => other[1] - one[1]);
  return el("details", {}, el("summary", {}, "Show"),
    others.slice(0, MOST_SHOWN).map(([label, probability]) => share(probability, label)),
    others.length > MOST_SHOWN ? el("p", { class: "hint" }, `and ${others.length - MOST_SHOWN} less likely ones`) : null,
    answer.text ? [el("p", { class: "hint said" }, "In the model’s words: ", answer.text)] : null);
}

function downloads(task, top, answers) {
  const name = `${task.name}_${new Date().toISOString().slice(0, 16).replaceAll(/[:T]/g, "-")}`;
  const labels = task.labels ?? [];
  const rows = () => [
    ["id", "label", "probability", "value", "interval_low", "interval_high", "calibrated", "warnings", "text", ...labels.map((label) => `p_${label}`), "task", "model", "adapter", "system_fingerprint"],
    ...answers.map((answer) => [answer.id, answer.label, answer.probability, answer.value, answer.interval?.[0], answer.interval?.[1], String(answer.calibrated ?? false),
      (answer.warnings ?? []).map((warning) => warning.message).join("; "), answer.text, ...labels.map((label) => answer.probabilities?.[label]), top.task, top.model, top.adapter, top.system_fingerprint]),
  ];
  return [
    el("button", { type: "button", class: "quiet", onclick: () => download(`${name}.csv`, "text/csv", csv(rows())) }, "Download CSV"),
    el("button", { type: "button", class: "quiet", onclick: () => download(`${name}.json`, "application/json", JSON.stringify({ ...top, predictions: answers }, null, 2)) }, "Download JSON"),
  ];
}
