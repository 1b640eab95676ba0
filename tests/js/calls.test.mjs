// Calls by the JavaScript client in Node, against a real site; run by test_javascript.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Call,
  connect,
  FederatedArray,
  FederatedDataset,
  FederatedTable,
} from "../../federated_dask/js/federated-dask.js";

const { ADDRESS, TOKEN } = process.env;
const site = await connect(ADDRESS, { token: TOKEN });

test("functions and their signatures", async () => {
  const functions = await site.functions();
  const trend = functions.find((each) => each.name === "trend");
  assert.equal(trend.title, "Linear trend of each grid cell");
  assert.deepEqual(trend.parameters.map((each) => each.kind), ["dataarray", "value", "value", "value", "value"]);
  assert.equal(trend.parameters[1].json_schema.minimum, 1850);
});

test("plain data there and back", async () => {
  const values = { a: [1, "x", null, true], b: { c: 1.5 } };
  assert.deepEqual(await site.call("told", { values }), values);
});

test("typed arrays there and back, small and large", async () => {
  for (const length of [6, 60_000]) {
    const values = FederatedArray.from(Float64Array.from({ length }, (_, i) => i), { shape: [2, length / 2] });
    const doubled = await site.call("scale", { values, factor: 2 });
    assert.ok(doubled.data instanceof Float64Array);
    assert.deepEqual(doubled.shape, [2, length / 2]);
    assert.equal(doubled.get(1, -1), 2 * (length - 1));
  }
  const bare = await site.call("scale", { values: Int32Array.of(1, 2), factor: 0.5 });
  assert.deepEqual([...bare.data], [0.5, 1]);
});

test("a DataArray with its coordinates", async () => {
  const trend = await site.call("trend", { data: "a1b/air", start: 2071 });
  assert.ok(trend instanceof FederatedArray);
  assert.deepEqual(trend.dims, ["lat", "lon"]);
  assert.equal(trend.attrs.long_name, "Trend");
  assert.equal(trend.coords.lat.get(0), 35);
  assert.ok(Number.isFinite(trend.get(3, 4)));
});

test("datasets and tables", async () => {
  const both = await site.call("both", { data: { dataset: "a1b", variable: "air" } });
  assert.ok(both instanceof FederatedDataset);
  assert.ok(both.variables.largest.get(0, 0) > both.variables.mean.get(0, 0));
  const table = await site.call("summary", { data: "a1b/air" });
  assert.ok(table instanceof FederatedTable);
  assert.equal(table.columns.month.get(0), 1n);
  const sent = new FederatedArray({
    data: Float64Array.of(1, 2, 3, 4, 5, 9),
    shape: [3, 2],
    dtype: "<f8",
    dims: ["time", "lat"],
    coords: { lat: FederatedArray.from(Float64Array.of(10, 20), { dims: ["lat"] }) },
  });
  const again = await site.call("both", { data: sent });
  assert.deepEqual([...again.variables.mean.data], [3, 5]);
  assert.deepEqual([...again.coords.lat.data], [10, 20]);
});

test("a call that goes on: progress, files, and its result as an argument", async () => {
  const call = await site.submit("trend", { data: "a1b/air" });
  const statuses = [];
  await call.ended({ onProgress: (status) => statuses.push(status.status) });
  assert.equal(statuses.at(-1), "finished");
  assert.equal(call.status.result.kind, "dataarray");
  assert.equal((await call.plot()).type, "image/png");
  assert.ok((await call.file("application/x-netcdf")).size > 1000);
  const lat = await call.result({ variable: "lat" });
  assert.equal(lat.get(1), 36.5);
  const doubled = await site.submit("scale", { values: call });
  const result = await doubled.result();
  const slope = await call.result();
  assert.equal(result.get(2, 3), 2 * slope.get(2, 3));
  const known = (await site.calls()).map((each) => each.id);
  assert.ok(known.includes(call.id) && known.includes(doubled.id));
  await call.cancel();
  await doubled.cancel();
  await assert.rejects(call.refresh(), { reason: "unknown_call" });
});

test("progress, and aborting a call", async () => {
  const controller = new AbortController();
  const fractions = [];
  const running = site.call(
    "steps",
    { count: 100_000 },
    {
      signal: controller.signal,
      onProgress: (status) => {
        if (status.fraction > 0) {
          fractions.push(status.fraction);
          controller.abort();
        }
      },
    },
  );
  await assert.rejects(running, { name: "AbortError" });
  assert.ok(fractions.length >= 1);
  // The call was cancelled with it.
  assert.equal((await site.calls()).filter((each) => each.status.function === "steps").length, 0);
});

test("cancelling ends whoever waits", async () => {
  const call = await site.submit("steps", { count: 100_000 });
  assert.ok(call instanceof Call);
  const waiting = assert.rejects(call.result(), (error) => ["cancelled", "unknown_call"].includes(error.reason));
  await call.cancel();
  await waiting;
});

test("what does not fit is told by name", async () => {
  await assert.rejects(site.call("trend", { data: "a1b/air", start: 1 }), {
    reason: "invalid_argument",
    argument: "start",
    site: "north",
    status: 422,
  });
  await assert.rejects(site.call("nothing"), { reason: "unknown_function", status: 404 });
});
