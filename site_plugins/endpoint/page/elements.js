// Elements of the page. Text of sites goes in as text, never as HTML.

/** Make an element: properties, attributes where their name has a dash, listeners as onclick … */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value === true ? "" : value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** A failure, as the site told it. */
export function failureBox(error) {
  const where = error.site ? ` at ${error.site}` : "";
  return el(
    "div",
    { className: "failure", role: "alert" },
    el("strong", {}, error.reason ? `${error.reason.replaceAll("_", " ")}${where}` : "Something went wrong"),
    el("p", {}, error.detail ?? error.message),
    error.hint && el("p", { className: "quiet" }, error.hint),
  );
}

/** A table of rows of texts or elements. */
export function table(head, rows) {
  return el(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": head.join(", ") },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell))))),
    ),
  );
}

/** Names and their values. */
export function definitions(items) {
  return el("dl", {}, Object.entries(items).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value instanceof Node ? value : shown(value))]));
}

/** A value as a short text. */
export function shown(value) {
  if (value === null || value === undefined) return "–";
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 400 ? `${text.slice(0, 400)}…` : text;
}

/** Bytes in words. */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = count;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit ? size.toPrecision(3) : size} ${units[unit]}`;
}

/** Hand a Blob to the browser as a file. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** A picture of a Blob. */
export function picture(blob, text) {
  const url = URL.createObjectURL(blob);
  const image = el("img", { src: url, alt: text, onload: () => URL.revokeObjectURL(url) });
  return el("figure", {}, image, el("figcaption", {}, text));
}
