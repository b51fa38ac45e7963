// The Evaluations page: what was found, task by task, and the report behind it in a frame that runs nothing.

import { ask, send, settings } from "./api.js";
import { byId, count, download, duration, el, facts, fill, range, table, when } from "./dom.js";
import { begin, problem } from "./shell.js";

const state = { data: [], chosen: null };

function nothing(title, text) {
  return el("div", { class: "empty" }, el("p", {}, el("strong", {}, title)), el("p", {}, text));
}

function showList() {
  if (!state.data.length) {
    fill(byId("list"), nothing("No evaluation is finished yet.", "They appear here by themselves: run one with polysome evaluate, or submit an evaluation as a job."));
    return;
  }
  const dataset = byId("task").value;
  const of = (one) => one.tasks.find((task) => task.dataset === dataset);
  const rows = dataset ? state.data.filter(of) : state.data;
  const columns = [
    { title: "Evaluation", sort: (one) => one.id, cell: (one) => el("a", { href: `?${new URLSearchParams({ id: one.id })}`, onclick: (event) => { event.preventDefault(); choose(one.id, true); } }, one.id.replace("~", " / ")) },
    { title: "Model", sort: (one) => one.model, cell: (one) => [one.model ?? "–", one.adapter ? el("span", { class: "dim" }, ` + ${one.adapter}`) : null].filter(Boolean) },
    ...(dataset
      ? [{ title: of(rows[0]).metric, number: true, sort: (one) => of(one).value, cell: (one) => fixed(of(one).value) },
        { title: "95 % interval", cell: (one) => axis(of(one)) },
        { title: "Rows", number: true, sort: (one) => of(one).n, cell: (one) => of(one).n.toLocaleString("en") }]
      : [{ title: "Tasks", number: true, sort: (one) => one.tasks.length, cell: (one) => (one.problem ? el("span", { class: "chip bad" }, "unreadable") : one.tasks.length) }]),
    { title: "Finished", sort: (one) => one.finished, cell: (one) => when(one.finished) },
    { title: "By", sort: (one) => one.user, cell: (one) => one.team ? `${one.user}, ${one.team}` : one.user },
  ];
  fill(byId("list"), table(columns, rows, { chosen: (one) => one.id === state.chosen, sorted: dataset ? { column: columns[2], down: true } : null }));
}

/** Values are times 100, with two decimals. */
const fixed = (value) => (value === null ? "–" : value.toFixed(2));

function axis(task) {
  if (task.value === null) return "–";
  const low = Math.min(0, task.ci_low ?? task.value);
  return el("div", {}, range(task.value, task.ci_low === null ? null : [task.ci_low, task.ci_high], low, Math.max(100, task.ci_high ?? 0)),
    el("span", { class: "hint" }, task.ci_low === null ? "no interval" : `${fixed(task.ci_low)} to ${fixed(task.ci_high)}`));
}

function choose(id, byHand) {
  const one = state.data.find((other) => other.id === id);
  const detail = byId("detail");
  state.chosen = one?.id ?? null;
  showList();
  detail.hidden = false;
  if (!one) {
    fill(detail, el("p", { class: "notice" }, `There is no finished evaluation ${id} that this key may see.`));
    return;
  }
  if (byHand) history.pushState(null, "", `?${new URLSearchParams({ id })}`);
  const report = el("div");
  fill(detail,
    el("div", { class: "bar" }, el("h2", { id: "detail-title", tabindex: "-1" }, one.name),
      el("p", { class: "actions" },
        one.report ? el("button", { type: "button", class: "primary", onclick: (event) => show(event.currentTarget, one, report) }, "Open the report") : null,
        one.report ? el("button", { type: "button", class: "quiet", onclick: () => save(one) }, "Download it") : null)),
    one.problem ? el("p", { class: "notice error" }, one.problem) : facts([
      ["Run", el("code", {}, one.id)],
      ["Model", [one.model, " · ", el("code", {}, one.model_fingerprint.slice(0, 16))]],
      ["Adapter", one.adapter ? [one.adapter, " · ", el("code", {}, one.adapter_fingerprint.slice(0, 16))] : null],
      ["Took", duration(one.seconds)],
    ]),
    one.tasks.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Results, table" }, table([
      { title: "Task", sort: (task) => task.title, cell: (task) => task.title },
      { title: "Metric, × 100", sort: (task) => task.metric, cell: (task) => task.metric },
      { title: "Value", number: true, sort: (task) => task.value, cell: (task) => el("strong", {}, fixed(task.value)) },
      { title: "95 % interval", cell: axis },
      { title: "Rows", number: true, sort: (task) => task.n, cell: (task) => [task.errors ? el("span", { class: "chip warn" }, count(task.errors, "error")) : null, ` ${task.n.toLocaleString("en")}`] },
    ], one.tasks)) : null,
    report);
  if (byHand) byId("detail-title").focus();
}

const html = async (one) => (await send(`/v1/evaluations/${encodeURIComponent(one.id)}/report`)).text();

async function save(one) {
  try {
    download(`${one.id}.html`, "text/html", await html(one));
  } catch (error) {
    problem(error);
  }
}

async function show(button, one, into) {
  button.disabled = true;
  try {
    fill(into, framed(await html(one), one.name));
    into.scrollIntoView({ block: "start" });
  } catch (error) {
    problem(error);
  } finally {
    button.disabled = false;
  }
}

/** The report in a frame without scripts, forms or ways out. Its key goes with the request, so it cannot be a `src`. */
function framed(content, name) {
  // This page's policy holds in the frame and takes no inline style; the same set by a script passes.
  const sheets = [];
  const plain = content.replace(/<style>([^]*?)<\/style>/g, (_, text) => (sheets.push(text), "")).replace(/(<[a-z][^<>]*?) style="/g, '$1 data-style="');
  const frame = el("iframe", { class: "frame", title: `Report of ${name}`, sandbox: "allow-same-origin", referrerpolicy: "no-referrer" });
  frame.addEventListener("load", () => {
    const page = frame.contentDocument;
    page.adoptedStyleSheets = sheets.map((text) => {
      const sheet = new frame.contentWindow.CSSStyleSheet();
      sheet.replaceSync(text);
      return sheet;
    });
    for (const styled of page.querySelectorAll("[data-style]")) styled.style.cssText = styled.dataset.style;
    page.addEventListener("click", (event) => {
      const link = event.target.closest?.("a[href]");
      if (!link) return;
      event.preventDefault();
      const target = link.getAttribute("href");
      if (target.startsWith("#")) page.getElementById(decodeURIComponent(target.slice(1)))?.scrollIntoView();
      else if (/^https?:/.test(target)) open(target, "_blank", "noopener,noreferrer");
    });
  });
  frame.srcdoc = plain;
  return frame;
}

byId("task").addEventListener("change", showList);
addEventListener("popstate", () => {
  const id = new URLSearchParams(location.search).get("id");
  if (id) choose(id, false);
  else {
    state.chosen = null;
    byId("detail").hidden = true;
    showList();
  }
});

begin(async () => {
  if (!settings.runs) {
    fill(byId("list"), nothing("This server shows no runs.", "Its configuration names no folder of runs."));
    return;
  }
  fill(byId("progress"), el("p", { class: "hint" }, "Loading…"));
  try {
    state.data = (await ask("/v1/evaluations")).data;
  } finally {
    fill(byId("progress"));
  }
  const titles = new Map(state.data.flatMap((one) => one.tasks).map((task) => [task.dataset, task.title]));
  fill(byId("task"), el("option", { value: "" }, "All tasks"), [...titles].sort((one, other) => one[1].localeCompare(other[1])).map(([dataset, title]) => el("option", { value: dataset }, title)));
  byId("task-field").hidden = titles.size < 2;
  showList();
  const id = new URLSearchParams(location.search).get("id");
  if (id) choose(id, false);
});
