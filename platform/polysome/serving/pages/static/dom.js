// Elements made of text alone: nothing that came from a model or a person is ever read as HTML.

/** An element; `properties` are attributes, `on…` listeners, or `class`; children are elements or text, null for none. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Put children in the place of what an element holds. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

/** A definition list of [name, value] pairs; those without a value are left out. */
export function facts(pairs) {
  const told = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {}, told.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** A table; a column is {title, number?, sort?: (row) => key, cell: (row) => child}. The first cell heads its row. */
export function table(columns, rows, { chosen = null, sorted = null } = {}) {
  const body = el("tbody");
  let order = sorted ?? { column: null, down: false };
  const heads = columns.map((column) => {
    const label = column.sort ? el("button", { type: "button", class: "plain", onclick: () => sortBy(column) }, column.title) : column.title;
    return el("th", { scope: "col", class: column.number ? "number" : null }, label);
  });
  function sortBy(column) {
    order = { column, down: order.column === column ? !order.down : true };
    show();
  }
  function show() {
    const key = order.column?.sort;
    const shown = key ? [...rows].sort((one, other) => compare(key(one), key(other)) * (order.down ? -1 : 1)) : rows;
    heads.forEach((head, place) => {
      if (columns[place] === order.column) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    fill(body, shown.map((row) => el("tr", { class: chosen?.(row) ? "chosen" : null }, columns.map((column, place) =>
      place === 0 ? el("th", { scope: "row" }, column.cell(row)) : el("td", { class: column.number ? "number" : null }, column.cell(row))))));
  }
  show();
  return el("table", {}, el("thead", {}, el("tr", {}, heads)), body);
}

function compare(one, other) {
  if (one === null || one === undefined) return other === null || other === undefined ? 0 : -1;
  if (other === null || other === undefined) return 1;
  return typeof one === "number" ? one - other : String(one).localeCompare(String(other));
}

/** A probability as a bar and a number. */
export function share(probability, name = null) {
  const fillIn = el("i");
  fillIn.style.width = `${100 * probability}%`;
  const parts = [el("span", { class: "gauge", "aria-hidden": "true" }, fillIn), el("b", {}, percent(probability))];
  return el("div", { class: name === null ? "share" : "share named" }, name === null ? parts : [el("span", {}, name), ...parts]);
}

/** A number with its interval on a line from `low` to `high`. */
export function range(value, interval, low, high) {
  const place = (number) => `${Math.min(100, Math.max(0, (100 * (number - low)) / (high - low || 1)))}%`;
  const line = el("div", { class: "range", "aria-hidden": "true" });
  if (interval) {
    const band = el("i");
    band.style.left = place(interval[0]);
    band.style.right = `calc(100% - ${place(interval[1])})`;
    line.append(band);
  }
  const mark = el("b");
  mark.style.left = place(value);
  line.append(mark);
  return line;
}

/** 97.3 %; nothing is told as certain that is not. */
export function percent(probability) {
  if (probability < 1 && probability > 0.999) return "> 99.9 %";
  if (probability > 0 && probability < 0.001) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

/** Decimals with which numbers that span so much are told apart. */
export function decimals(span) {
  return Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(span || 1))));
}

export function number(value, digits = 4) {
  return value === null || value === undefined ? "–" : Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

export function count(amount, one, many = `${one}s`) {
  return `${amount.toLocaleString("en")} ${amount === 1 ? one : many}`;
}

/** A moment, short, in the reader's own time. */
export function when(iso) {
  if (!iso) return "–";
  const moment = typeof iso === "number" ? new Date(1000 * iso) : new Date(iso);
  const text = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return el("time", { datetime: moment.toISOString(), title: moment.toISOString() }, text);
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Hand the reader a file. */
export function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Rows as CSV. Text that a spreadsheet would run as a formula is put behind an apostrophe. */
export function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
