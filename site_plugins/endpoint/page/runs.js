// A call as it goes, and what comes of it.

import { FederatedError } from "../js/federated-dask.js";
import { bytes, download, el, failureBox, picture, table } from "./elements.js";

const PNG = ["picture", "image/png", "png"];
const FILES = {
  value: [["JSON", "application/json", "json"]],
  ndarray: [["NetCDF", "application/x-netcdf", "nc"], ["JSON", "application/json", "json"], ["Raw bytes", "application/octet-stream", "bin"], PNG],
  dataarray: [["NetCDF", "application/x-netcdf", "nc"], ["Arrow", "application/vnd.apache.arrow.stream", "arrows"], ["JSON", "application/json", "json"], PNG],
  dataset: [["NetCDF", "application/x-netcdf", "nc"], ["Arrow", "application/vnd.apache.arrow.stream", "arrows"], ["JSON", "application/json", "json"]],
  dataframe: [["Arrow", "application/vnd.apache.arrow.stream", "arrows"], ["JSON", "application/json", "json"]],
};
const MOST_ROWS = 30;

/** Show a call until it has ended; gives what it failed with, or null. */
export async function follow(call, target, announce) {
  const bar = el("progress", { max: 1, "aria-label": "Progress" });
  const told = el("p", { className: "quiet" }, "Running …");
  const cancel = el("button", { type: "button" }, "Cancel");
  let cancelled = false;
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    cancelled = true;
    await call.cancel().catch(() => {});
  });
  target.replaceChildren(el("h3", {}, `Run of ${call.status.function}`), bar, told, el("div", { className: "buttons" }, cancel));
  const started = Date.now();
  try {
    await call.ended({
      onProgress: (status) => {
        if (status.fraction > 0) bar.value = status.fraction;
        const share = status.fraction > 0 ? `${Math.round(status.fraction * 100)} % ` : "";
        told.textContent = `${share}${status.message || `Running for ${Math.round((Date.now() - started) / 1000)} s`}`;
      },
    });
  } catch (error) {
    const known = error instanceof FederatedError ? error : new FederatedError({ reason: "internal", message: error.message });
    target.replaceChildren(
      cancelled || known.reason === "cancelled" ? el("p", { role: "status" }, "Cancelled.") : failureBox(known),
    );
    announce(cancelled ? "The call was cancelled." : "The call failed.");
    return cancelled ? null : known;
  }
  announce("The call has finished.");
  await showResult(call, target);
  return null;
}

/** Show what a call returned. */
export async function showResult(call, target) {
  const { result, seconds, function: name } = call.status;
  const body = el("div");
  const downloads = el("div", { className: "buttons", role: "group", "aria-label": "Downloads" });
  for (const [label, mediaType, suffix] of FILES[result.kind] ?? FILES.value) {
    const button = el("button", { type: "button" }, `Download ${label}`);
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        download(await call.file(mediaType), `${name}.${suffix}`);
      } catch (error) {
        body.append(failureBox(error));
      }
      button.disabled = false;
    });
    downloads.append(button);
  }
  const size = result.size ? `, ${bytes(result.size)}` : "";
  target.replaceChildren(
    el("h3", {}, `Result of ${name}`),
    el("p", { className: "finished" }, `Finished after ${seconds} s: ${result.kind}${size}.`),
    body,
    downloads,
  );
  try {
    if (result.kind === "value") body.append(el("pre", { tabIndex: 0 }, JSON.stringify(await call.result(), null, 2)));
    else await showData(call, result.kind, body);
  } catch (error) {
    body.append(failureBox(error));
  }
}

async function showData(call, kind, body) {
  const figure = el("div");
  const draw = async (variable) => {
    try {
      const text = variable ? `${variable} of ${call.status.function}` : `Result of ${call.status.function}`;
      figure.replaceChildren(picture(await call.plot({ variable }), text));
    } catch (error) {
      // What holds no numbers has no picture.
      figure.replaceChildren(error.status === 406 ? el("p", { className: "quiet" }, error.detail) : failureBox(error));
    }
  };
  if (kind === "dataframe") {
    const found = await call.result();
    const columns = Object.entries(found.columns);
    const length = columns[0]?.[1].size ?? 0;
    const rows = Array.from({ length: Math.min(length, MOST_ROWS) }, (_, i) =>
      columns.map(([, column]) => String(column.data[i])),
    );
    body.append(table(columns.map(([name]) => name), rows));
    if (length > MOST_ROWS) body.append(el("p", { className: "quiet" }, `The first ${MOST_ROWS} of ${length} rows.`));
  }
  if (kind === "dataset") {
    const outline = await (await call.file("application/json", { arrays: "omitted" })).text();
    const names = Object.keys(JSON.parse(outline).data_vars);
    if (names.length > 1) {
      const select = el("select", { id: "drawn" }, names.map((name) => el("option", { value: name }, name)));
      select.addEventListener("change", () => draw(select.value));
      body.append(el("div", { className: "field" }, el("label", { for: "drawn" }, "Variable"), select));
      body.append(figure);
      await draw(names[0]);
      return;
    }
  }
  body.append(figure);
  await draw();
}
