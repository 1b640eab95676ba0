// A form for the arguments of a function, built from its description.

import { el } from "./elements.js";

// The schema that is meant: references followed, and "or null" taken off.
function resolved(schema, definitions) {
  let found = schema ?? {};
  let optional = false;
  for (let depth = 0; depth < 8; depth += 1) {
    if (found.$ref) {
      const name = found.$ref.split("/").at(-1);
      found = { ...(definitions[name] ?? {}), ...found, $ref: undefined };
    } else if (found.allOf?.length === 1) {
      found = { ...found.allOf[0], ...found, allOf: undefined };
    } else if (found.anyOf) {
      const others = found.anyOf.filter((each) => each.type !== "null");
      optional ||= others.length < found.anyOf.length;
      if (others.length !== 1) return { schema: { ...found, type: "any" }, optional };
      found = { ...others[0], ...found, anyOf: undefined };
    } else {
      break;
    }
  }
  return { schema: found, optional };
}

function rules(schema) {
  const said = [];
  if (schema.minimum !== undefined) said.push(`at least ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) said.push(`more than ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) said.push(`at most ${schema.maximum}`);
  if (schema.exclusiveMaximum !== undefined) said.push(`less than ${schema.exclusiveMaximum}`);
  if (schema.multipleOf !== undefined) said.push(`a multiple of ${schema.multipleOf}`);
  if (schema.minLength !== undefined) said.push(`at least ${schema.minLength} characters`);
  if (schema.maxLength !== undefined) said.push(`at most ${schema.maxLength} characters`);
  if (schema.minItems !== undefined) said.push(`at least ${schema.minItems} items`);
  if (schema.maxItems !== undefined) said.push(`at most ${schema.maxItems} items`);
  return said.join(", ");
}

function option(value, text, selected) {
  return el("option", { value, selected }, text);
}

// Each of these gives { control, read }; read() gives undefined where nothing was entered.

function choice(schema, parameter, id) {
  const values = schema.enum ?? [schema.const];
  const control = el(
    "select",
    { id, required: parameter.required },
    !parameter.required && option("", "default"),
    values.map((value, number) => option(String(number), String(value), value === parameter.default)),
  );
  return { control, read: () => (control.value === "" ? undefined : values[Number(control.value)]) };
}

function number(schema, parameter, id) {
  const control = el("input", {
    id,
    type: "number",
    required: parameter.required,
    min: schema.minimum ?? schema.exclusiveMinimum,
    max: schema.maximum ?? schema.exclusiveMaximum,
    step: schema.type === "integer" ? (schema.multipleOf ?? 1) : "any",
    value: parameter.default ?? "",
  });
  const read = () => (control.value === "" ? undefined : control.valueAsNumber);
  return { control, read };
}

function text(schema, parameter, id) {
  const type = { date: "date", "date-time": "datetime-local", time: "time", email: "email", uri: "url" }[schema.format];
  const control = el("input", {
    id,
    type: type ?? "text",
    required: parameter.required,
    minLength: schema.minLength,
    maxLength: schema.maxLength,
    step: type === "datetime-local" ? 1 : undefined,
    value: parameter.default ?? "",
    autocomplete: "off",
    spellcheck: false,
  });
  return { control, read: () => (control.value === "" ? undefined : control.value) };
}

function boolean(schema, parameter, id) {
  const control = el("input", { id, type: "checkbox", checked: parameter.default === true });
  return { control, read: () => control.checked };
}

function anything(schema, parameter, id) {
  const control = el("textarea", {
    id,
    required: parameter.required,
    value: parameter.default === undefined || parameter.default === null ? "" : JSON.stringify(parameter.default),
    placeholder: schema.type === "array" ? "[1, 2, 3]" : "JSON",
    spellcheck: false,
  });
  const read = () => {
    control.setCustomValidity("");
    if (control.value.trim() === "") return undefined;
    try {
      return JSON.parse(control.value);
    } catch {
      control.setCustomValidity("This is no JSON.");
      return undefined;
    }
  };
  control.addEventListener("input", read);
  return { control, read };
}

// A dataset of the site, one of its variables, or an earlier result.
function data(parameter, id, site, datasets, results) {
  const control = el(
    "select",
    { id, required: parameter.required },
    option("", parameter.required ? "Choose …" : "default"),
    datasets.length > 0 &&
      el("optgroup", { label: "Datasets" }, datasets.map((each) => option(`d:${each.name}`, each.title ? `${each.name} – ${each.title}` : each.name))),
    results.length > 0 &&
      el("optgroup", { label: "Earlier results" }, results.map((each) => option(`r:${each.id}`, `${each.status.function}, ${each.status.seconds} s`))),
  );
  const variable = el("select", { id: `${id}-variable`, "aria-label": `Variable for ${parameter.name}`, hidden: true });
  control.addEventListener("change", async () => {
    variable.hidden = true;
    variable.replaceChildren();
    if (!control.value.startsWith("d:") || parameter.kind === "dataset") return;
    const described = await site.dataset(control.value.slice(2)).catch(() => null);
    const names = Object.entries(described?.variables ?? {}).filter(([, each]) => !each.coordinate);
    // The one with the most dimensions is most likely meant.
    names.sort(([, a], [, b]) => b.dimensions.length - a.dimensions.length);
    variable.append(...names.map(([name, each]) => option(name, `${name} (${each.dimensions.join(", ")})`)));
    variable.hidden = names.length === 0;
  });
  const read = () => {
    if (control.value === "") return undefined;
    const name = control.value.slice(2);
    if (control.value.startsWith("r:")) return { result: { call: name } };
    return variable.value ? { dataset: name, variable: variable.value } : { dataset: name };
  };
  return { control, more: variable, read };
}

function fieldOf(parameter, schema, id, site, datasets, results) {
  if (parameter.kind === "dataset" || parameter.kind === "dataarray") return data(parameter, id, site, datasets, results);
  if (parameter.kind === "ndarray") return data(parameter, id, site, datasets, results);
  if (parameter.kind === "dataframe") return data(parameter, id, site, [], results);
  if (schema.enum || schema.const !== undefined) return choice(schema, parameter, id);
  if (schema.type === "integer" || schema.type === "number") return number(schema, parameter, id);
  if (schema.type === "boolean") return boolean(schema, parameter, id);
  if (schema.type === "string") return text(schema, parameter, id);
  return anything(schema, parameter, id);
}

/** Make a form: { form, read, refuse }; read() gives the arguments, refuse(name, text) marks a field. */
export function formOf(described, { site, datasets, results, onSubmit }) {
  const fields = new Map();
  const definitions = described.json_schema?.$defs ?? {};
  const rows = described.parameters.map((parameter, position) => {
    const id = `argument-${position}`;
    const { schema } = resolved(parameter.json_schema, { ...definitions, ...parameter.json_schema?.$defs });
    const field = fieldOf(parameter, schema, id, site, datasets, results);
    const wrong = el("p", { className: "wrong", id: `${id}-wrong`, hidden: true });
    const help = [parameter.description.replace(/\.$/, ""), rules(schema)].filter(Boolean).join(" – ");
    const isCheck = field.control.type === "checkbox";
    field.control.setAttribute("aria-describedby", `${id}-help ${id}-wrong`);
    fields.set(parameter.name, { ...field, wrong });
    const label = el("label", { for: id, className: parameter.required ? "required" : "" }, isCheck && field.control, parameter.name);
    const inputs = isCheck ? [] : [field.more ? el("div", { className: "pair" }, field.control, field.more) : field.control];
    return el(
      "div",
      { className: isCheck ? "field check" : "field" },
      label,
      el("p", { className: "quiet", id: `${id}-help` }, help || parameter.annotation),
      inputs,
      wrong,
    );
  });
  const run = el("button", { className: "main", type: "submit" }, "Run");
  const form = el("form", { noValidate: false }, rows, el("div", { className: "buttons" }, run));
  const clear = () => {
    for (const { control, wrong } of fields.values()) {
      control.removeAttribute("aria-invalid");
      wrong.hidden = true;
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clear();
    const given = {};
    for (const [name, field] of fields) {
      const value = field.read();
      if (value !== undefined) given[name] = value;
    }
    if (form.reportValidity()) onSubmit(given);
  });
  const refuse = (name, message) => {
    const field = fields.get(name);
    if (!field) return;
    field.control.setAttribute("aria-invalid", "true");
    field.wrong.textContent = message;
    field.wrong.hidden = false;
    field.control.focus();
  };
  const busy = (is) => {
    run.disabled = is;
  };
  return { form, refuse, busy };
}
