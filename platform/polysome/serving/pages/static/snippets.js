// "Copy as curl / Python": a request that does the same from a terminal. The key stays out of it.

import { key } from "./api.js";
import { el } from "./dom.js";
import { announce } from "./shell.js";

export function curl(path, json) {
  const lines = [`curl ${quoted(location.origin + path)}`];
  if (key.get()) lines.push(`  -H "Authorization: Bearer $POLYSOME_API_KEY"`);
  lines.push("  -H 'Content-Type: application/json'", `  -d ${quoted(JSON.stringify(json))}`);
  return lines.join(" \\\n") + "\n";
}

export function python(path, json) {
  const headers = key.get() ? `    headers={"Authorization": f"Bearer {os.environ['POLYSOME_API_KEY']}"},\n` : "";
  const imports = key.get() ? "import os\n\nimport httpx" : "import httpx";
  return `${imports}\n\nanswer = httpx.post(\n    ${literal(location.origin + path)},\n${headers}    json=${literal(json, 4)},\n    timeout=120,\n)\nanswer.raise_for_status()\nprint(answer.json())\n`;
}

/** OpenAI's own client, for what it knows. */
export function openai(json) {
  const secret = key.get() ? `os.environ["POLYSOME_API_KEY"]` : `"none"`;
  const { model, messages, ...rest } = json;
  const more = Object.entries(rest).map(([name, value]) => `    ${name}=${literal(value, 4)},\n`).join("");
  return `${key.get() ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url=${literal(`${location.origin}/v1`)}, api_key=${secret})\nanswer = client.chat.completions.create(\n    model=${literal(model)},\n    messages=${literal(messages, 4)},\n${more})\nprint(answer.choices[0].message.content)\n`;
}

/** Buttons that copy what `texts` gives: [label, () => text] pairs. */
export function copyButtons(texts) {
  return texts.map(([label, text]) => el("button", { type: "button", class: "quiet", onclick: (event) => copy(event.currentTarget, label, text()) }, label));
}

async function copy(button, label, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard outside of https and localhost: the old way still works there.
    const area = el("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => { button.textContent = label; }, 1500);
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A JSON value as Python writes it. */
export function literal(value, indent = 0) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(indent + 4);
  const entries = Array.isArray(value) ? value.map((item) => literal(item, indent + 4)) : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!entries.length) return open + close;
  return `${open}\n${entries.map((entry) => `${inner}${entry},\n`).join("")}${" ".repeat(indent)}${close}`;
}
