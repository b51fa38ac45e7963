// A form from a JSON Schema's properties, and what was filled in as JSON.

import { el, fill } from "./dom.js";

const id = (name) => `parameter-${name.replaceAll(/[^A-Za-z0-9_-]/g, "-")}`;

/** The properties, those that must be given first. */
const properties = (schema) => Object.entries(schema.properties ?? {}).sort(([one], [other]) => needed(schema, other) - needed(schema, one));
const needed = (schema, name) => Number((schema.required ?? []).includes(name));

/** Put a field for each property into `parent`. */
export function show(parent, schema) {
  const fields = properties(schema).map(([name, property]) => {
    const field = control(name, property, Boolean(needed(schema, name)));
    const title = property.title ?? name.split(".").at(-1).replaceAll("_", " ");
    const hint = [property.description, bounds(property)].filter(Boolean).join(" ");
    return el("div", { class: "field" },
      property.type === "boolean" ? el("label", { for: id(name) }, field, ` ${title}`) : [el("label", { for: id(name) }, title, needed(schema, name) ? el("span", { class: "dim" }, " (needed)") : null), field],
      hint ? el("p", { class: "hint", id: `${id(name)}-hint` }, hint) : null,
      el("p", { class: "check warn", id: `${id(name)}-error`, role: "alert", hidden: true }));
  });
  fill(parent, fields.length ? fields : el("p", { class: "hint" }, "It has no parameters."));
}

function control(name, property, required) {
  const choices = choicesOf(property);
  const shared = { id: id(name), "aria-describedby": `${id(name)}-hint ${id(name)}-error`, required };
  if (choices) {
    const made = el("select", shared, required ? null : el("option", { value: "" }, "As the recipe says"), choices.map((value) => el("option", { value: JSON.stringify(value) }, String(value))));
    if (property.default !== undefined) made.value = JSON.stringify(property.default);
    return made;
  }
  if (property.type === "boolean") return el("input", { ...shared, required: null, type: "checkbox", checked: property.default === true });
  const numeric = ["integer", "number"].includes(property.type);
  return el("input", {
    ...shared, type: numeric ? "number" : "text", value: property.default ?? null, spellcheck: "false", autocomplete: "off",
    step: property.type === "integer" ? "1" : numeric ? "any" : null, min: property.minimum, max: property.maximum,
    minlength: property.minLength, maxlength: property.maxLength, placeholder: required ? null : "As the recipe says",
  });
}

/** pydantic writes the only choice as a constant. */
const choicesOf = (property) => property.enum ?? (property.const === undefined ? null : [property.const]);

function bounds(property) {
  const low = property.minimum ?? property.exclusiveMinimum, high = property.maximum ?? property.exclusiveMaximum;
  if (low !== undefined && high !== undefined) return `${low} to ${high}.`;
  if (low !== undefined) return `${property.minimum === undefined ? "More than" : "At least"} ${low}.`;
  return high === undefined ? "" : `${property.maximum === undefined ? "Less than" : "At most"} ${high}.`;
}

/** The parameters; null, with the fields marked, where one does not hold. What is left empty is left to the recipe. */
export function read(parent, schema, { check = true } = {}) {
  const found = {};
  let wrong = null;
  for (const [name, property] of properties(schema)) {
    const field = parent.querySelector(`#${CSS.escape(id(name))}`);
    const told = parent.querySelector(`#${CSS.escape(id(name))}-error`);
    const value = valueOf(field, property, Boolean(needed(schema, name)));
    if (value !== undefined) found[name] = value;
    if (!check) continue;
    if (property.pattern) field.setCustomValidity(matches(property.pattern, field.value.trim()) ? "" : `It must match ${property.pattern}`);
    const sound = field.checkValidity();
    field.setAttribute("aria-invalid", String(!sound));
    told.hidden = sound;
    told.textContent = sound ? "" : field.validationMessage;
    if (!sound) wrong ??= field;
  }
  wrong?.focus();
  return wrong ? null : found;
}

/** An input's own `pattern` is read more strictly than JSON Schema's. What cannot be read here the server checks. */
function matches(pattern, text) {
  try {
    return text === "" || new RegExp(pattern, "u").test(text);
  } catch (error) {
    if (error instanceof SyntaxError) return true;
    throw error;
  }
}

function valueOf(field, property, required) {
  if (property.type === "boolean") return !required && field.checked === (property.default === true) ? undefined : field.checked;
  if (field.value.trim() === "") return undefined;
  if (choicesOf(property)) return JSON.parse(field.value);
  return ["integer", "number"].includes(property.type) ? Number(field.value) : field.value.trim();
}
