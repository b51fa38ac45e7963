// The Jobs page: recipes to submit, jobs as they go, their logs, and the team's runs.

import { ask, send, settings } from "./api.js";
import { byId, el, fill, when } from "./dom.js";
import { read, show as showForm } from "./forms.js";
import { showRuns } from "./runs.js";
import { announce, begin, clearProblem, problem } from "./shell.js";
import { copyButtons, curl, python } from "./snippets.js";

const ALIVE = ["queued", "running"];
const POLL = 4000;
const state = { recipes: [], jobs: null, log: null, timer: null };

async function showJobs() {
  if (!settings.jobs) {
    byId("new").hidden = true;
    fill(byId("jobs"), nothing("This server takes no jobs.", "Its configuration names no cluster to submit to. Runs that were started elsewhere stand below."));
    return;
  }
  fill(byId("jobs"), el("p", { class: "hint" }, "Loading…"));
  state.recipes = (await ask("/v1/recipes")).data;
  const chosen = byId("recipe").value;
  fill(byId("recipe"), state.recipes.map((recipe) => el("option", { value: recipe.name }, recipe.title ?? recipe.name)));
  if (state.recipes.some((recipe) => recipe.name === chosen)) byId("recipe").value = chosen;
  showRecipe();
  await refresh();
}

function nothing(title, text) {
  return el("div", { class: "empty" }, el("p", {}, el("strong", {}, title)), el("p", {}, text));
}

const recipe = () => state.recipes.find((one) => one.name === byId("recipe").value);
function showRecipe() {
  const one = recipe();
  byId("submit").disabled = !one;
  byId("recipe-about").textContent = one?.description ?? "No recipe may be submitted here.";
  showForm(byId("parameters"), one?.parameters ?? {});
  fill(byId("copies"), one ? copyButtons([["Copy as curl", () => curl("/v1/jobs", body(false))], ["Copy as Python", () => python("/v1/jobs", body(false))]]) : []);
}

function body(check = true) {
  return { recipe: recipe().name, parameters: read(byId("parameters"), recipe().parameters, { check }) };
}

async function submit() {
  clearProblem();
  const json = body();
  if (json.parameters === null) return;
  byId("submit").disabled = true;
  try {
    const job = await ask("/v1/jobs", { method: "POST", json });
    fill(byId("submitted"), el("p", { class: "hint" }, "Submitted as ", el("code", {}, job.id)));
    await refresh();
  } catch (error) {
    problem(error);
  } finally {
    byId("submit").disabled = false;
  }
}

async function refresh() {
  clearTimeout(state.timer);
  state.jobs = (await ask("/v1/jobs")).data;
  byId("refreshed").textContent = state.jobs.some((job) => ALIVE.includes(job.status)) ? "Refreshed every few seconds" : "";
  if (!state.jobs.length) fill(byId("jobs"), nothing("Nothing was submitted yet.", "Choose a recipe, fill in what it asks for, and submit it. It runs on the cluster, with this page open or not."));
  else rows();
  if (state.log) await follow();
  plan();
}

function plan() {
  clearTimeout(state.timer);
  if (document.hidden || !state.jobs?.some((job) => ALIVE.includes(job.status))) return;
  state.timer = setTimeout(() => refresh().catch((error) => { problem(error); state.timer = setTimeout(plan, POLL); }), POLL);
}

/** Rows are changed in place, so that the focus stays on a button while the list is refreshed. */
function rows() {
  const list = byId("jobs");
  const held = new Map([...list.children].map((row) => [row.dataset.job, row]));
  const shown = state.jobs.map((job) => {
    const row = held.get(job.id) ?? el("article", { class: "job", "data-job": job.id });
    const told = JSON.stringify(job);
    if (row.told === told) return row;
    if (row.told && JSON.parse(row.told).status !== job.status) announce(`${job.recipe}: ${job.status}`);
    const focused = row.contains(document.activeElement) ? document.activeElement.dataset.action : null;
    row.told = told;
    if (!row.firstChild) row.append(el("div"));
    show(row.firstChild, job);
    if (focused) (row.querySelector(`[data-action="${focused}"]`) ?? row.querySelector("button"))?.focus();
    return row;
  });
  if (shown.length !== list.children.length || shown.some((row, place) => list.children[place] !== row)) fill(list, shown);
}

const KINDS = { running: "running", finished: "good", failed: "bad", interrupted: "warn", stopped: "" };

function show(row, job) {
  const alive = ALIVE.includes(job.status);
  const button = (action, label, work) => el("button", { type: "button", class: "quiet small", "data-action": action, "aria-label": `${label}: ${job.recipe}, ${job.id}`, onclick: work }, label);
  fill(row,
    el("div", { class: "bar" }, el("h3", {}, job.recipe), el("span", { class: `chip ${KINDS[job.status] ?? ""}` }, job.status)),
    el("p", { class: "facts" }, el("code", {}, job.id), el("span", {}, [job.user, job.team].filter(Boolean).join(", ")), el("span", {}, when(job.submitted)), job.run && job.run !== job.id ? el("span", {}, "run ", el("code", {}, job.run)) : null),
    job.message ? el("p", { class: `hint ${job.status === "failed" ? "notice error" : ""}` }, job.message) : null,
    alive && job.progress !== null && job.progress !== undefined ? el("progress", { value: job.progress, max: 1, "aria-label": `Progress of ${job.id}: ${Math.round(100 * job.progress)} %` }) : null,
    el("p", { class: "actions" },
      button("log", "Log", () => openLog(job)),
      alive ? button("stop", "Stop", () => stop(job)) : null,
      ["failed", "stopped", "interrupted"].includes(job.status) ? button("resume", "Resume", () => act(job, "resume")) : null));
}

async function act(job, what) {
  clearProblem();
  try {
    await send(`/v1/jobs/${encodeURIComponent(job.id)}/${what}`, { method: "POST" });
    announce(what === "stop" ? "Stopping" : "Resumed");
    await refresh();
  } catch (error) {
    problem(error);
  }
}

function stop(job) {
  byId("stop-about").textContent = `${job.recipe} (${job.id}) ends at its last checkpoint. Resume goes on from there.`;
  const dialog = byId("stop-dialog");
  dialog.returnValue = "";
  dialog.addEventListener("close", () => { if (dialog.returnValue === "stop") act(job, "stop"); }, { once: true });
  dialog.showModal();
}

async function openLog(job) {
  state.log = job.id;
  byId("log-title").textContent = `Log of ${job.recipe}`;
  fill(byId("log-text"), "Loading…");
  const panel = byId("log");
  document.querySelector(`[data-job="${CSS.escape(job.id)}"]`).append(panel);
  panel.hidden = false;
  byId("log-title").focus({ preventScroll: true });
  byId("log").scrollIntoView({ block: "nearest" });
  try {
    await follow();
  } catch (error) {
    problem(error);
  }
}

async function follow() {
  const { logs: told } = await ask(`/v1/jobs/${encodeURIComponent(state.log)}/logs?tail=500`);
  const text = byId("log-text");
  const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
  if (text.textContent === told) return;
  text.textContent = told || "Nothing was said yet.";
  if (atEnd) text.scrollTop = text.scrollHeight;
}

byId("recipe").addEventListener("change", showRecipe);
byId("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
byId("log-close").addEventListener("click", () => {
  const row = document.querySelector(`[data-job="${CSS.escape(state.log)}"] [data-action="log"]`);
  state.log = null;
  byId("log").hidden = true;
  row.focus();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && state.jobs) refresh().catch(problem); });

begin(async () => {
  byId("runs-section").hidden = !settings.runs;
  await Promise.all([showJobs(), settings.runs ? showRuns() : null]);
});
