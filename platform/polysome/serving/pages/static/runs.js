// The team's runs on the Jobs page: who ran what, how it ended, what it cost, and how a training went.

import { ask } from "./api.js";
import { byId, duration, el, facts, fill, number, table, when } from "./dom.js";
import { problem } from "./shell.js";

const KINDS = { running: "running", finished: "good", failed: "bad", interrupted: "warn" };

export async function showRuns() {
  let answer;
  try {
    answer = await ask("/v1/runs?limit=500");
  } catch (error) {
    if (error.status !== 403) throw error;
    byId("runs-section").hidden = true;
    return;
  }
  // A pipeline's steps are told with it.
  const runs = answer.data.filter((run) => !run.id.includes("~"));
  if (!runs.length) {
    fill(byId("runs"), el("div", { class: "empty" }, el("p", {}, "No run stands in this server’s folder of runs yet.")));
    return;
  }
  const costs = runs.some((run) => run.cost);
  const gpus = runs.some((run) => gpuHours(run));
  fill(byId("runs"), table([
    { title: "Run", sort: (run) => run.id, cell: (run) => el("button", { type: "button", class: "plain", "aria-label": `Show run ${run.id}`, onclick: () => showRun(run.id, answer.data) }, el("code", {}, run.id)) },
    { title: "Kind", sort: (run) => run.job, cell: (run) => run.job },
    { title: "Status", sort: (run) => run.status, cell: (run) => el("span", { class: `chip ${KINDS[run.status] ?? ""}` }, run.status) },
    { title: "Started", sort: (run) => run.started, cell: (run) => when(run.started) },
    { title: "Took", number: true, sort: seconds, cell: (run) => (seconds(run) === null ? "–" : duration(seconds(run))) },
    ...(gpus ? [{ title: "GPU hours", number: true, sort: gpuHours, cell: (run) => number(gpuHours(run), 3) }] : []),
    ...(costs ? [{ title: "Cost", number: true, sort: (run) => run.cost, cell: (run) => (run.cost ? `${number(run.cost, 3)} ${run.rates?.currency ?? ""}` : "–") }] : []),
    { title: "By", sort: (run) => run.user, cell: (run) => [run.user, run.team].filter(Boolean).join(", ") },
  ], runs));
}

const gpuHours = (run) => run.usage?.gpu_hours ?? 0;
const seconds = (run) => (run.finished ? (new Date(run.finished) - new Date(run.started)) / 1000 : null);

async function showRun(id, all) {
  try {
    const run = await ask(`/v1/runs/${encodeURIComponent(id)}`);
    const newest = run.metrics.at(-1);
    const steps = all.filter((other) => other.id.startsWith(`${id}~`));
    const whole = id.split("~")[0];
    fill(byId("run"), el("section", { class: "card", "aria-labelledby": "run-title" },
      el("div", { class: "bar" }, el("h3", { id: "run-title", tabindex: "-1" }, whole === id ? id : [el("button", { type: "button", class: "plain link", onclick: () => showRun(whole, all) }, whole), ` / ${id.split("~")[1]}`]), el("span", { class: `chip ${KINDS[run.status] ?? ""}` }, run.status)),
      run.error ? el("p", { class: "notice error" }, run.error) : null,
      facts([
        ["Command", el("code", {}, run.command)],
        ["Recipe", el("code", {}, run.config_fingerprint)],
        ["Commit", run.commit ? el("code", {}, run.commit.slice(0, 12)) : null],
        ["Builds on", run.parents.join(", ")],
        ["Attempts", run.attempt > 1 ? run.attempt : null],
        ["Update", newest?.updates ? `${newest.update} of ${newest.updates}` : null],
        ["Speed", newest?.tokens_per_second ? `${Math.round(newest.tokens_per_second).toLocaleString("en")} tokens/s` : null],
        ["To go", run.status === "running" && newest?.eta_seconds ? duration(newest.eta_seconds) : null],
      ]),
      steps.length ? el("div", { class: "scroll" }, table([
        { title: "Step", cell: (step) => el("button", { type: "button", class: "plain link", "aria-label": `Show step ${step.id.split("~")[1]}`, onclick: () => showRun(step.id, all) }, step.id.split("~")[1]) },
        { title: "Kind", cell: (step) => step.job },
        { title: "Status", cell: (step) => el("span", { class: `chip ${KINDS[step.status] ?? ""}` }, step.status) },
        { title: "Took", number: true, cell: (step) => (seconds(step) === null ? "–" : duration(seconds(step))) },
      ], steps)) : null,
      curve(run.metrics.filter((row) => typeof row.loss === "number").map((row) => [row.update, row.loss]))));
    byId("run-title").focus();
  } catch (error) {
    problem(error);
  }
}

/** The loss over the updates, as a line. */
function curve(points) {
  if (points.length < 2) return null;
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const scale = Math.min(...ys) > 0 ? Math.log : (y) => y;
  const [left, right, low, high] = [xs[0], xs.at(-1), scale(Math.min(...ys)), scale(Math.max(...ys))];
  const place = ([x, y]) => `${((1000 * (x - left)) / (right - left || 1)).toFixed(1)} ${(100 - (100 * (scale(y) - low)) / (high - low || 1)).toFixed(1)}`;
  const svg = (tag, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const told = `Loss from ${number(ys[0])} to ${number(ys.at(-1))} over ${right.toLocaleString("en")} updates`;
  return el("figure", {}, svg("svg", { class: "curve", viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": told }, svg("path", { d: `M${points.map(place).join("L")}` })), el("figcaption", { class: "hint" }, `${told}${scale === Math.log ? ", on a logarithmic scale" : ""}.`));
}
