// Batches of the Predict page: a file to the server, its progress, the answers back. This tab keeps only their numbers.

import { ask, pause, send, settings } from "./api.js";
import { byId, count, download, el, fill } from "./dom.js";
import { clearProblem, problem } from "./shell.js";

const KNOWN = "polysome.batches";
const POLL = 3000;

/** Bring the batch section to life; `task` and `model` give what is chosen above. */
export function batches({ task, model }) {
  byId("batch").hidden = false;
  byId("batch-limit").textContent = `${Math.round(settings.batchBytes / 1048576)} MB`;
  byId("batch-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) await guarded(() => upload(file, task(), model()));
  });
  byId("batch-find").addEventListener("click", () => guarded(() => look(byId("batch-id").value.trim())));
  byId("batch-id").addEventListener("keydown", (event) => { if (event.key === "Enter") byId("batch-find").click(); });
  if (known().length) byId("batch").open = true;
  known().forEach((id) => follow(id));
}

async function guarded(work) {
  clearProblem();
  try {
    await work();
  } catch (error) {
    problem(error);
  }
}

async function upload(file, task, model) {
  const query = new URLSearchParams({ task: task.name, ...(model && { model }) });
  const type = /\.(csv|tsv)$/i.test(file.name) ? "text/csv" : "text/x-fasta";
  const batch = await ask(`/v1/predict/batch?${query}`, { method: "POST", body: file, headers: { "content-type": type } });
  remember(batch.id);
  follow(batch.id);
}

async function look(id) {
  if (!id) return;
  await ask(`/v1/predict/batch/${encodeURIComponent(id)}`);
  remember(id);
  follow(id);
}

async function follow(id) {
  const at = `/v1/predict/batch/${encodeURIComponent(id)}`;
  const row = document.querySelector(`[data-batch="${CSS.escape(id)}"]`) ?? el("div", { class: "job", "data-batch": id });
  byId("batches").prepend(row);
  for (;;) {
    let batch;
    try {
      batch = await ask(at);
    } catch (error) {
      fill(row, el("p", {}, el("code", {}, id), ` ${error.message} `, forget(id, row)));
      if (error.status === 404 || error.status === 401) return;
      await pause(POLL);
      continue;
    }
    show(row, batch, at);
    if (!["queued", "running"].includes(batch.status)) return;
    await pause(POLL);
    if (!row.isConnected) return;
  }
}

function show(row, batch, at) {
  const [done, all] = [batch.done ?? 0, batch.records ?? batch.total ?? 0];
  const going = ["queued", "running"].includes(batch.status);
  const kind = { finished: "good", running: "running", failed: "bad" }[batch.status] ?? "";
  fill(row,
    el("h3", {}, el("code", {}, batch.id), " ", el("span", { class: `chip ${kind}` }, batch.status)),
    el("p", { class: "facts" }, el("span", {}, batch.task), el("span", {}, `${done.toLocaleString("en")} of ${count(all, "record")}`), batch.errors ? el("span", {}, `${count(batch.errors, "row")} with errors`) : null, batch.message ? el("span", {}, batch.message) : null),
    going ? el("progress", { value: done, max: all || 1, "aria-label": `Progress of ${batch.id}` }) : null,
    el("p", { class: "actions" },
      batch.status === "finished" ? el("button", { type: "button", class: "quiet small", onclick: () => guarded(async () => download(`${batch.id}.csv`, "text/csv", await (await send(`${at}/result`)).blob())) }, "Download CSV") : null,
      el("button", { type: "button", class: "quiet small", onclick: () => guarded(async () => { await send(at, { method: "DELETE" }); drop(batch.id, row); }) }, going ? "Stop and delete" : "Delete from the server")));
}

function forget(id, row) {
  return el("button", { type: "button", class: "quiet small", onclick: () => drop(id, row) }, "Forget it");
}

function drop(id, row) {
  sessionStorage.setItem(KNOWN, JSON.stringify(known().filter((other) => other !== id)));
  row.remove();
}

function known() {
  return JSON.parse(sessionStorage.getItem(KNOWN) ?? "[]");
}

function remember(id) {
  sessionStorage.setItem(KNOWN, JSON.stringify([...new Set([...known(), id])]));
}
