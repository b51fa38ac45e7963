// The Predict page: a task and sequences in, a table of answers out.

import { ask, patiently, settings } from "./api.js";
import { batches } from "./batches.js";
import { byId, count, el, facts, fill, number } from "./dom.js";
import { fastaOfTable, label, oddities, parseCsv, parseSequences } from "./fasta.js";
import { showResults } from "./results.js";
import { announce, begin, clearProblem, modelOptions, models, problem } from "./shell.js";

const state = { tasks: [], running: null };

const wanted = new URLSearchParams(location.search);
const task = () => state.tasks.find((one) => one.name === byId("task").value);
const areas = () => [...byId("inputs").querySelectorAll("textarea")];

function groups(tasks) {
  // What the model was measured at comes first: that is what it can be asked.
  const named = new Map([["Measured", []]]);
  for (const one of tasks) {
    const kinds = one.molecules.map((molecule) => label(molecule.type));
    const name = one.measured ? "Measured" : kinds.length === 1 ? kinds[0][0].toUpperCase() + kinds[0].slice(1) : "Pairs of molecules";
    named.set(name, [...(named.get(name) ?? []), one]);
  }
  const titles = tasks.map((one) => one.title);
  const titled = (one) => (titles.indexOf(one.title) === titles.lastIndexOf(one.title) ? one.title : `${one.title} (${one.name})`);
  return [...named].filter(([, members]) => members.length)
    .map(([name, members]) => el("optgroup", { label: name }, members.map((one) => el("option", { value: one.name }, titled(one)))));
}

function showTask() {
  const one = task();
  if (!one) {
    fill(byId("about"), el("p", { class: "hint" }, "This server has no tasks."));
    return;
  }
  const answers = one.labels ? (one.labels.length > 6 ? [`${count(one.labels.length, "class", "classes")} · `, one.labels.slice(0, 5).join(", "), ", …"] : one.labels.join(", ")) : numberOf(one);
  fill(byId("about"), one.question ? el("p", { class: "question" }, `“${one.question}”`) : null,
    facts([["Reads", one.molecules.map(reads).join(" and ")], ["Answers", answers], ["Measured", one.measured ? measured(one.measured) : null]]),
    one.measured ? null : el("p", { class: "notice warn" }, "Nobody has measured how good this model is at this task."));
  // The text stays where the next task reads as many molecules: a person may ask two things of the same sequences.
  const held = areas().map((area) => area.value);
  const keep = held.length === one.molecules.length;
  fill(byId("inputs"), one.molecules.map((molecule, place) => input(one, molecule, keep ? held[place] : "")));
  areas().forEach(checkArea);
  byId("controls").disabled = false;
  byId("example").textContent = one.examples_from === "random" ? "Use random letters" : "Use an example";
}

function numberOf(one) {
  if (one.minimum === null && one.maximum === null) return "a number";
  return `a number${one.minimum === null ? "" : ` from ${one.minimum}`}${one.maximum === null ? "" : ` to ${one.maximum}`}`;
}

function measured(found) {
  const interval = found.low === null || found.high === null ? "" : ` (${number(found.low, 3)} to ${number(found.high, 3)})`;
  return `${found.metric} ${number(found.value, 3)}${interval}, on ${count(found.rows, "row")}`;
}

function reads(molecule) {
  return `${label(molecule.type)}, ${molecule.minimum_length.toLocaleString("en")} to ${molecule.maximum_length.toLocaleString("en")} letters`;
}

function input(one, molecule, value) {
  const id = `input-${molecule.role}`;
  const title = one.molecules.length === 1 || molecule.role === molecule.type ? `${capital(label(molecule.type))} sequences` : `${capital(molecule.role.replaceAll("_", " "))} (${label(molecule.type)})`;
  const area = el("textarea", {
    id, rows: one.molecules.length === 1 ? 10 : 6, spellcheck: "false", autocapitalize: "off", autocomplete: "off", "aria-describedby": `${id}-check`,
    placeholder: molecule.type === "protein" ? ">protein_1\nMKTAYIAKQRQISFVKSHFSRQLEERLG…" : `>record_1\n${molecule.type === "rna" ? "GGCUACGUAGCUAGGC…" : "GCTATAAAAGGCTGCA…"}`,
    oninput: (event) => checkArea(event.currentTarget),
    ondragover: (event) => { event.preventDefault(); event.currentTarget.classList.add("over"); },
    ondragleave: (event) => event.currentTarget.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); event.currentTarget.classList.remove("over"); open(event.dataTransfer.files[0], event.currentTarget); },
  });
  area.value = value;
  area.molecule = molecule;
  return el("div", { class: "field" }, el("label", { for: id }, title), area, el("p", { class: "check", id: `${id}-check` }));
}

function checkArea(area) {
  const told = byId(`${area.id}-check`);
  let records;
  try {
    records = parseSequences(area.value);
  } catch (error) {
    told.className = "check warn";
    told.textContent = error.message;
    return;
  }
  const found = oddities(records, area.molecule);
  told.className = found.length ? "check warn" : "check";
  if (!records.length) told.textContent = "";
  else if (found.length) told.textContent = `${count(records.length, "sequence")}. ${found.join(" ")}`;
  else {
    const lengths = records.map((record) => record.sequence.length);
    const [low, high] = [Math.min(...lengths), Math.max(...lengths)];
    told.textContent = `${count(records.length, "sequence")}, ${low === high ? low : `${low} to ${high}`} letters${records.length > 1 && low === high ? " each" : ""}.`;
  }
}

/** Records {id, value} of all inputs together; value is what the API takes. */
function collect() {
  const one = task();
  const lists = areas().map((area) => parseSequences(area.value));
  const sizes = lists.map((list) => list.length);
  if (sizes.some((size) => size === 0)) throw new Error(one.molecules.length > 1 ? "Each of the molecules needs a sequence." : "Paste a sequence first, or use an example.");
  if (new Set(sizes).size > 1) throw new Error(`The first of one belongs to the first of the other: there must be as many, and there are ${sizes.join(" and ")}.`);
  return lists[0].map((record, place) => ({
    id: record.id,
    value: one.molecules.length === 1 ? record.sequence : Object.fromEntries(one.molecules.map((molecule, role) => [molecule.role, lists[role][place].sequence])),
  }));
}

async function predict() {
  clearProblem();
  let records;
  try {
    records = collect();
  } catch (error) {
    fill(byId("problem"), el("div", { class: "notice error" }, error.message));
    areas().find((area) => !area.value.trim())?.focus();
    return;
  }
  const one = task();
  const model = byId("model").value || undefined;
  state.running = new AbortController();
  busy(true);
  const began = performance.now();
  const answers = [];
  let top = {};
  try {
    for (let start = 0; start < records.length; start += settings.records) {
      const part = records.slice(start, start + settings.records);
      showProgress(start, records.length);
      const json = { task: one.name, sequences: part.map((record) => record.value), ...(model && { model }) };
      const answer = await patiently("/v1/predict", { method: "POST", json, signal: state.running.signal },
        (seconds) => showProgress(start, records.length, `The server is busy; going on in ${seconds} s.`)).catch((error) => { throw naming(error, part); });
      const { predictions, ...rest } = answer;
      top = rest;
      predictions.forEach((prediction, place) => answers.push({ ...prediction, id: part[place].id, input: part[place].value }));
    }
  } catch (error) {
    problem(error);
    if (error.name === "AbortError") announce("Cancelled");
  } finally {
    fill(byId("progress"));
    busy(false);
  }
  if (!answers.length) return;
  const requested = { task: one.name, sequences: records.slice(0, 4).map((record) => record.value), ...(model && { model }) };
  showResults({ task: one, top, answers, asked: records.length, seconds: (performance.now() - began) / 1000, requested });
}

/** The same error, with the record's name in the place of its number in the request. */
function naming(error, part) {
  const place = /^sequences\[(\d+)\]/.exec(error.param ?? "");
  if (place && part[Number(place[1])]) error.message = `Record ${part[Number(place[1])].id}: ${error.message}`;
  return error;
}

function showProgress(done, all, text = all > settings.records ? `${done} of ${all} answered` : `Asking about ${count(all, "sequence")}…`) {
  const bar = all > settings.records ? el("progress", { value: done, max: all, "aria-label": "Answered" }) : el("progress", { "aria-label": "Working" });
  fill(byId("progress"), el("p", { class: "hint" }, text), bar);
}

function busy(now) {
  byId("run").disabled = now;
  byId("cancel").hidden = !now;
  byId("form").setAttribute("aria-busy", String(now));
}

async function open(file, into = null) {
  if (!file) return;
  clearProblem();
  try {
    if (/\.(gz|zip|bz2|xz)$/i.test(file.name)) throw new Error("That file is compressed; unpack it first.");
    if (file.size > settings.records * settings.sequenceCharacters) throw new Error(`That file is too large for this form.${settings.batches ? " Send it as a batch, below." : ""}`);
    const text = await file.text();
    const targets = into ? [into] : areas();
    if (/\.(csv|tsv)$/i.test(file.name)) fastaOfTable(parseCsv(text), task().molecules.map((molecule) => molecule.role)).forEach((fasta, place) => put(areas()[place], fasta));
    else put(targets.find((area) => !area.value.trim()) ?? targets[0], text);
  } catch (error) {
    fill(byId("problem"), el("div", { class: "notice error" }, error.message));
  }
}

function put(area, text) {
  area.value = text;
  checkArea(area);
}

function useExample() {
  const examples = task().examples;
  areas().forEach((area) => put(area, examples.map((example, place) => `>example_${place + 1}\n${example[area.molecule.role]}\n`).join("")));
  byId("run").focus();
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

byId("task").addEventListener("change", () => { clearProblem(); showTask(); });
byId("form").addEventListener("submit", (event) => { event.preventDefault(); if (task() && !byId("run").disabled) predict(); });
byId("form").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit(); });
byId("cancel").addEventListener("click", () => state.running?.abort());
byId("example").addEventListener("click", useExample);
byId("clear").addEventListener("click", () => { areas().forEach((area) => put(area, "")); areas()[0]?.focus(); });
byId("file").addEventListener("change", (event) => { open(event.target.files[0]); event.target.value = ""; });

begin(async () => {
  const [tasks, available] = await Promise.all([ask("/v1/tasks"), models()]);
  state.tasks = tasks.data;
  const chosen = byId("task").value || wanted.get("task");
  fill(byId("task"), groups(state.tasks));
  if (state.tasks.some((one) => one.name === chosen)) byId("task").value = chosen;
  modelOptions(byId("model"), byId("model-field"), available, wanted.get("model"));
  showTask();
  if (settings.batches && byId("batch").hidden) batches({ task, model: () => byId("model").value });
});
