// The page of a site: datasets, functions, calls and peers, through the same client as everybody's.

import { connect, FederatedError } from "../js/federated-dask.js";
import { bytes, definitions, el, failureBox, picture, shown, table } from "./elements.js";
import { formOf } from "./forms.js";
import { follow, showResult } from "./runs.js";

const KEY = "federated-dask-token";
const main = document.getElementById("main");
const sections = document.getElementById("sections");
const signOut = document.getElementById("sign-out");
const announcer = document.getElementById("announcer");
const address = new URL(".", document.baseURI).href;

let site = null;
// Counts views, so that a slow one does not draw over the next.
let view = 0;

function announce(text) {
  announcer.textContent = text;
}

async function signedIn(token) {
  site = await connect(address, { token });
  sessionStorage.setItem(KEY, token);
  document.title = `${site.title || site.name} – federated_dask`;
  document.getElementById("site-name").textContent = site.name;
  document.getElementById("site-title").textContent = site.title ?? "";
  sections.hidden = false;
  signOut.hidden = false;
}

function showSignIn(error = null) {
  sections.hidden = true;
  signOut.hidden = true;
  const input = el("input", { id: "token", type: "password", required: true, autocomplete: "off", spellcheck: false });
  const button = el("button", { className: "main", type: "submit" }, "Connect");
  const form = el(
    "form",
    {},
    el("div", { className: "field" },
      el("label", { for: "token" }, "Token"),
      el("p", { className: "quiet", id: "token-help" },
        "From your institute, or from the site's operator (", el("code", {}, "federated-dask token create"),
        "). It stays in this tab and is sent to this site only."),
      input),
    el("div", { className: "buttons" }, button),
  );
  input.setAttribute("aria-describedby", "token-help");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await signedIn(input.value.trim());
      await show();
    } catch (refused) {
      showSignIn(refused);
    }
  });
  main.replaceChildren(el("div", { className: "card narrow" }, el("h2", {}, "Connect to this site"), error && failureBox(error), form));
  input.focus();
}

signOut.addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  site = null;
  location.hash = "";
  showSignIn();
});

function heading(text) {
  return el("h2", { tabIndex: -1 }, text);
}

// A list to choose from beside what was chosen; the list is filtered as one types.
function browser(kind, items, chosen, detail) {
  const list = el("ul", { className: "list" });
  const fill = (words) => {
    const found = items.filter((item) => words.every((word) => JSON.stringify(item).toLowerCase().includes(word)));
    list.replaceChildren(
      ...found.map((item) =>
        el("li", {},
          el("a", { href: `#/${kind}/${encodeURIComponent(item.name)}`, "aria-current": item.name === chosen && "true" },
            el("strong", {}, item.name), item.title && el("span", {}, item.title)))),
    );
    if (!found.length) list.append(el("li", { className: "quiet" }, items.length ? "None of these." : `There are no ${kind} that you may see.`));
  };
  const search = el("input", { type: "search", placeholder: "Search", "aria-label": `Search ${kind}` });
  search.addEventListener("input", () => fill(search.value.toLowerCase().split(/\s+/).filter(Boolean)));
  fill([]);
  return el("div", { className: "columns" }, el("div", { className: "card" }, search, list), el("div", { id: "detail" }, detail));
}

async function datasetDetail(name) {
  const described = await site.dataset(name);
  const terms = await site.license(name);
  const [summary] = (await site.datasets()).filter((each) => each.name === name);
  const variables = Object.entries(described.variables);
  const sizes = {};
  for (const [, variable] of variables) variable.dimensions.forEach((dimension, i) => { sizes[dimension] = variable.shape[i]; });
  const data = variables.filter(([, variable]) => !variable.coordinate);
  const limited = described.egress.tier !== "open";
  const target = el("div");
  const select = el("select", { id: "previewed" }, data.map(([key]) => el("option", { value: key }, key)));
  const longest = data.reduce((best, each) => (each[1].dimensions.length > (best?.[1].dimensions.length ?? -1) ? each : best), null);
  if (longest) select.value = longest[0];
  const preview = async () => {
    target.replaceChildren(el("p", { className: "quiet" }, "Loading …"));
    try {
      target.replaceChildren(picture(await site.preview(name, { variable: select.value }), `Preview of ${select.value} of ${name}`));
    } catch (error) {
      target.replaceChildren(failureBox(error));
    }
    await showBudget();
  };
  const licence = el("div", { className: "card" });
  const agree = el("button", { type: "button", className: "main" }, "Accept the licence");
  agree.addEventListener("click", async () => {
    try {
      await site.acceptLicense(name, terms.license);
      licence.hidden = true;
      announce("The licence is accepted.");
    } catch (error) {
      licence.append(failureBox(error));
    }
  });
  licence.append(
    el("h3", {}, "Licence"),
    el("p", {}, "Its data may be used after you have accepted the licence ", el("strong", {}, terms.license), "."),
    el("div", { className: "buttons" }, agree),
  );
  const used = el("p", { className: "quiet" });
  const showBudget = async () => {
    const budget = limited ? await site.budget(name).catch(() => null) : null;
    if (budget?.total) used.textContent = `${bytes(budget.used)} of ${bytes(budget.total)} that may leave are used.`;
  };
  showBudget();
  const button = el("button", { type: "button" }, "Show preview");
  button.addEventListener("click", preview);
  select.addEventListener("change", () => target.childElementCount && preview());
  return [
    el("div", { className: "card" },
      heading(name),
      summary?.title && el("p", {}, el("strong", {}, summary.title)),
      summary?.description && el("p", { className: "prose" }, summary.description),
      summary?.keywords.length > 0 && el("ul", { className: "tags" }, summary.keywords.map((word) => el("li", {}, word))),
      definitions({
        Size: bytes(described.size),
        Dimensions: Object.entries(sizes).map(([key, size]) => `${key}: ${size}`).join(", "),
        ...(summary?.license ? { Licence: summary.license } : {}),
        "May leave": limited ? `a part of it only (${described.egress.tier})` : "freely",
        Version: el("code", {}, described.version),
      })),
    terms.required && !terms.accepted && licence,
    data.length > 0 && el("div", { className: "card" },
      el("h3", {}, "Preview"),
      limited && el("p", { className: "quiet" }, "Values that are shown count towards what may leave of this dataset."),
      limited && used,
      el("div", { className: "pair" }, el("div", {}, el("label", { for: "previewed" }, "Variable"), select)),
      el("div", { className: "buttons" }, button),
      target),
    el("div", { className: "card" },
      el("h3", {}, "Variables"),
      table(["Name", "Dimensions", "Type", "Meaning"],
        variables.map(([key, variable]) => [
          el("code", {}, key),
          variable.dimensions.map((dimension, i) => `${dimension}: ${variable.shape[i]}`).join(", ") || "–",
          el("code", {}, variable.dtype),
          [variable.attributes.long_name ?? variable.attributes.standard_name, variable.attributes.units && `[${shown(variable.attributes.units)}]`]
            .filter(Boolean).map(String).join(" ") || "–",
        ])),
      Object.keys(described.attributes).length > 0 && el("h3", {}, "Attributes"),
      Object.keys(described.attributes).length > 0 && definitions(described.attributes)),
  ];
}

async function functionDetail(described) {
  const [datasets, calls] = await Promise.all([site.datasets(), site.calls()]);
  const results = calls.filter((call) => call.status.result && call.status.result.kind !== "value");
  const outcome = el("div", { className: "card", hidden: true });
  const { form, refuse, busy } = formOf(described, {
    site,
    datasets,
    results,
    onSubmit: async (given) => {
      busy(true);
      outcome.hidden = false;
      outcome.replaceChildren(el("p", { className: "quiet" }, "Sending …"));
      try {
        const call = await site.submit(described.name, given, { version: described.version });
        const failed = await follow(call, outcome, announce);
        if (failed?.argument) refuse(failed.argument, failed.detail);
      } catch (error) {
        outcome.replaceChildren(failureBox(error));
        if (error.argument) refuse(error.argument, error.detail);
      }
      busy(false);
    },
  });
  const limits = Object.entries(described.limits).filter(([, value]) => value !== null);
  return [
    el("div", { className: "card" },
      heading(described.name),
      described.title && el("p", {}, el("strong", {}, described.title)),
      described.description && el("p", { className: "prose" }, described.description),
      described.tags.length > 0 && el("ul", { className: "tags" }, described.tags.map((tag) => el("li", {}, tag))),
      definitions({
        Returns: [described.returns.annotation, described.returns.description].filter(Boolean).join(" – ") || "–",
        Version: described.version,
        ...Object.fromEntries(limits.map(([key, value]) => [`Limit: ${key.replaceAll("_", " ")}`, String(value)])),
      })),
    el("div", { className: "card" }, el("h3", {}, "Arguments"), form),
    outcome,
  ];
}

async function callsView() {
  const calls = await site.calls();
  const target = el("div", { className: "card", hidden: true });
  const rows = calls.map((call) => {
    const { status } = call;
    const open = el("button", { type: "button" }, status.status === "running" ? "Follow" : "Show");
    open.addEventListener("click", async () => {
      target.hidden = false;
      if (status.status === "running") await follow(call, target, announce);
      else if (status.failure) target.replaceChildren(failureBox(new FederatedError(status.failure)));
      else await showResult(call, target);
    });
    const forget = el("button", { type: "button", "aria-label": `Forget the call of ${status.function}` }, "Forget");
    forget.addEventListener("click", async () => {
      await call.cancel().catch(() => {});
      await show();
    });
    return [el("code", {}, status.function), status.status, `${status.seconds} s`, el("div", { className: "pair" }, open, forget)];
  });
  return [
    el("div", { className: "card" },
      heading("Your calls"),
      rows.length ? table(["Function", "Status", "Time", ""], rows) : el("p", { className: "quiet" }, "No calls yet: choose a function and run it.")),
    target,
  ];
}

async function sitesView() {
  const sites = await site.sites();
  const rows = sites.map((each, number) => [
    number ? el("a", { href: `${each.address}/`, rel: "noreferrer" }, each.name) : el("strong", {}, `${each.name} (this one)`),
    each.title || "–",
    el("code", {}, each.address),
  ]);
  return [el("div", { className: "card" }, heading("Sites of the federation"), table(["Name", "Title", "Address"], rows))];
}

async function contentOf(kind, name) {
  switch (kind) {
    case "functions": {
      const functions = await site.functions();
      const chosen = functions.find((each) => each.name === name);
      const detail = chosen
        ? await functionDetail(chosen)
        : [el("div", { className: "card" }, heading("Functions"), el("p", { className: "quiet" }, name ? `There is no function ${name}.` : "Choose one to see what it does and to run it."))];
      return [browser(kind, functions, name, detail)];
    }
    case "calls":
      return callsView();
    case "sites":
      return sitesView();
    default: {
      const datasets = await site.datasets();
      const detail = name
        ? await datasetDetail(name).catch((error) => [failureBox(error)])
        : [el("div", { className: "card" }, heading("Datasets"), el("p", { className: "quiet" }, "Choose one to see its variables, and a preview."))];
      return [browser("datasets", datasets, name, detail)];
    }
  }
}

async function show() {
  view += 1;
  const current = view;
  const [kind = "datasets", name = null] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);
  for (const link of sections.querySelectorAll("a")) {
    if (link.hash === `#/${kind}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.setAttribute("aria-busy", "true");
  let content;
  try {
    content = await contentOf(kind, name);
  } catch (error) {
    if (error instanceof FederatedError && error.status === 401) {
      sessionStorage.removeItem(KEY);
      showSignIn(error);
      return;
    }
    content = [failureBox(error)];
  }
  if (current !== view) return;
  main.replaceChildren(...content.filter(Boolean));
  main.removeAttribute("aria-busy");
  main.querySelector("h2")?.focus();
}

window.addEventListener("hashchange", () => {
  // "#main" is the way past the navigation.
  if (site && location.hash !== "#main") show();
});

const kept = sessionStorage.getItem(KEY);
if (kept) {
  signedIn(kept).then(show).catch((error) => showSignIn(error));
} else {
  showSignIn();
}
