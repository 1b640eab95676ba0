// The JavaScript client in Node, against a real site; run by test_javascript.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect, FederatedArray, FederatedError } from "../../federated_dask/js/federated-dask.js";

const { ADDRESS, TOKEN } = process.env;
const site = await connect(ADDRESS, { token: TOKEN });

test("a site tells its name and its peers", async () => {
  assert.equal(site.name, "north");
  const sites = await site.sites();
  assert.deepEqual(sites.map((each) => each.name), ["north", "south"]);
  assert.equal(sites[0].address, ADDRESS);
});

test("datasets and their variables", async () => {
  const [a1b] = await site.datasets();
  assert.equal(a1b.title, "Scenario A1B over Europe");
  const described = await site.dataset("a1b");
  assert.deepEqual(described.variables.air.dimensions, ["time", "lat", "lon"]);
});

test("a slice is a typed array", async () => {
  const air = await site.read("a1b", "air", [0, [0, 4, 2], { take: [3, 1, 0] }]);
  assert.ok(air.data instanceof Float32Array);
  assert.deepEqual(air.shape, [2, 3]);
  assert.deepEqual(air.dims, ["lat", "lon"]);
  const row = await site.read("a1b", "air", [0, 2, 1]);
  assert.equal(air.get(1, 1), row.data[0]);
  assert.deepEqual(row.shape, []);
  assert.equal(air.toNested()[1][1], air.get(-1, -2));
  assert.throws(() => air.get(2, 0), RangeError);
});

test("times and texts", async () => {
  const time = await site.read("a1b", "time", [[0, 2, null]]);
  assert.ok(time.data instanceof BigInt64Array);
  assert.equal(time.toDates()[0].toISOString(), "2070-01-01T00:00:00.000Z");
  const station = await site.read("a1b", "station");
  assert.equal(station.get(3), "row 3");
});

test("a preview is a picture", async () => {
  const blob = await site.preview("a1b", { variable: "air", at: { time: 3 } });
  assert.equal(blob.type, "image/png");
});

test("what is refused is an error with its reason", async () => {
  await assert.rejects(site.read("a1b", "nothing"), (error) => {
    assert.ok(error instanceof FederatedError);
    assert.equal(error.reason, "unknown_variable");
    assert.equal(error.site, "north");
    assert.equal(error.status, 404);
    return true;
  });
  await assert.rejects(connect(ADDRESS, { token: "wrong" }), { reason: "token_invalid", status: 401 });
  await assert.rejects(connect(ADDRESS), { reason: "token_missing" });
  await assert.rejects(connect("https://127.0.0.1:1"), { reason: "unreachable" });
  assert.throws(() => new FederatedArray({}).get(0), TypeError);
});

test("an aborted request is no failure of the site", async () => {
  const controller = new AbortController();
  controller.abort();
  await assert.rejects(site.datasets({ signal: controller.signal }), { name: "AbortError" });
});

test("a licence, a budget, and the project by which one asks", async () => {
  const terms = await site.license("soil");
  assert.equal(terms.license, "Of the north");
  assert.equal(terms.required, true);
  await assert.rejects(site.acceptLicense("soil", "another"), { reason: "invalid_argument" });
  const budget = await site.budget("soil");
  assert.equal(budget.tier, "derived");
  assert.ok(budget.total > budget.used);
  const asked = [];
  const fetching = (url, options) => {
    asked.push(options.headers["Federated-Project"]);
    return fetch(url, options);
  };
  await connect(ADDRESS, { token: TOKEN, project: "drought@north", fetch: fetching });
  assert.deepEqual(asked, ["drought@north"]);
});
