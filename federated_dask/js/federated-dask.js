// Client of one site of a federation: its datasets, its functions, and calls of them.
//
// One module without dependencies, for browsers and Node 20 or newer:
//
//   import { connect } from "https://north.example/js/federated-dask.js";
//   const north = await connect("https://north.example", { token });
//   const mean = await north.call("mean", { data: "a1b/air", start: 2070 }, { onProgress: console.log });
//
// A site answers pages of other origins where its site.toml says `[endpoint] origins = [...]`.

const JSON_TYPE = "application/json";
const RAW_TYPE = "application/octet-stream";
const EVENT_TYPE = "text/event-stream";
const LARGE = 64 * 1024; // Bytes above which an array goes as a raw part instead of base64.

/** What a site refused, or what failed there; `reason` is one of a closed set. */
export class FederatedError extends Error {
  constructor(failure, status = 0) {
    const where = failure.site ? `[${failure.site}] ` : "";
    const hint = failure.hint ? ` ${failure.hint}` : "";
    super(`${where}${failure.message}${hint} (${failure.reason})`);
    this.name = "FederatedError";
    this.reason = failure.reason;
    this.detail = failure.message;
    this.site = failure.site ?? null;
    this.hint = failure.hint ?? null;
    this.argument = failure.argument ?? null;
    this.exception = failure.exception ?? null;
    this.traceback = failure.traceback ?? null;
    this.status = status;
  }
}

const TYPES = {
  "|b1": Uint8Array,
  "|i1": Int8Array,
  "|u1": Uint8Array,
  "<i2": Int16Array,
  "<u2": Uint16Array,
  "<i4": Int32Array,
  "<u4": Uint32Array,
  "<i8": BigInt64Array,
  "<u8": BigUint64Array,
  "<f4": Float32Array,
  "<f8": Float64Array,
  // Pairs of real and imaginary parts.
  "<c8": Float32Array,
  "<c16": Float64Array,
};

function typeOf(dtype) {
  if (/^<[mM]8/.test(dtype)) return BigInt64Array;
  return TYPES[dtype] ?? null;
}

const DTYPES = new Map([
  [Int8Array, "|i1"],
  [Uint8Array, "|u1"],
  [Uint8ClampedArray, "|u1"],
  [Int16Array, "<i2"],
  [Uint16Array, "<u2"],
  [Int32Array, "<i4"],
  [Uint32Array, "<u4"],
  [BigInt64Array, "<i8"],
  [BigUint64Array, "<u8"],
  [Float32Array, "<f4"],
  [Float64Array, "<f8"],
]);

function halfFloats(bytes) {
  const halves = new Uint16Array(bytes);
  return Float32Array.from(halves, (half) => {
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    const sign = half >> 15 ? -1 : 1;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

/** An array: typed values in C order, shape, and the names of its dimensions. */
export class FederatedArray {
  constructor({ data, shape, dtype, dims = null, name = null, attrs = {}, coords = {} }) {
    this.data = data;
    this.shape = shape;
    this.dtype = dtype;
    this.dims = dims;
    this.name = name;
    this.attrs = attrs;
    this.coords = coords;
  }

  /** Make an array of what the caller has, for an argument of a function. */
  static from(data, { shape = null, dims = null, name = null, attrs = {}, coords = {}, dtype = null } = {}) {
    const found = dtype ?? DTYPES.get(data.constructor);
    if (!found) throw new TypeError("an array is made of a typed array");
    return new FederatedArray({ data, shape: shape ?? [data.length], dtype: found, dims, name, attrs, coords });
  }

  get size() {
    return this.shape.reduce((product, length) => product * length, 1);
  }

  /** The value at a position: one integer for each axis. */
  get(...index) {
    if (index.length !== this.shape.length) throw new RangeError(`${this.shape.length} integers are needed`);
    let offset = 0;
    index.forEach((position, axis) => {
      const length = this.shape[axis];
      const place = position < 0 ? position + length : position;
      if (!Number.isInteger(place) || place < 0 || place >= length) {
        throw new RangeError(`there is no ${position} on an axis of ${length}`);
      }
      offset = offset * length + place;
    });
    return this.data[offset];
  }

  /** Lists in lists, as the array is. */
  toNested() {
    const build = (axis, offset, stride) => {
      if (axis === this.shape.length) return this.data[offset];
      const step = stride / (this.shape[axis] || 1);
      return Array.from({ length: this.shape[axis] }, (_, i) => build(axis + 1, offset + i * step, step));
    };
    return build(0, 0, this.size);
  }

  /** Times as Date, where the dtype is one of times. */
  toDates() {
    const unit = /^<M8\[(\w+)\]$/.exec(this.dtype)?.[1];
    const perUnit = { D: 86400000, h: 3600000, m: 60000, s: 1000, ms: 1 }[unit];
    const perMillisecond = { us: 1000n, ns: 1000000n }[unit];
    if (!perUnit && !perMillisecond) throw new TypeError(`${this.dtype} is no time`);
    return Array.from(this.data, (value) =>
      value === -(2n ** 63n)
        ? null
        : new Date(perUnit ? Number(value) * perUnit : Number(value / perMillisecond)),
    );
  }
}

/** A dataset: variables and coordinates by name. */
export class FederatedDataset {
  constructor({ variables, coords, attrs }) {
    this.variables = variables;
    this.coords = coords;
    this.attrs = attrs;
  }
}

/** A table: columns by name. */
export class FederatedTable {
  constructor({ columns, index }) {
    this.columns = columns;
    this.index = index;
  }
}

function fromBytes(bytes, dtype) {
  if (dtype === "<f2") return halfFloats(bytes);
  const Type = typeOf(dtype);
  if (!Type) throw new TypeError(`arrays of ${dtype} have no typed form`);
  return new Type(bytes);
}

function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes.buffer;
}

function toBase64(bytes) {
  let binary = "";
  for (let i = 0; i < bytes.length; i += 0x8000) {
    binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  }
  return btoa(binary);
}

function decodedArray(plain, more = {}) {
  const { dtype, shape, dims = null, attrs = {} } = plain;
  const data = "base64" in plain ? fromBytes(fromBase64(plain.base64), dtype) : [plain.data].flat(Infinity);
  return new FederatedArray({ data, shape, dtype, dims, attrs, ...more });
}

function decodedVariables(items) {
  return Object.fromEntries(Object.entries(items ?? {}).map(([name, item]) => [name, decodedArray(item)]));
}

function decoded(plain, kind) {
  switch (kind) {
    case "ndarray":
      return decodedArray(plain);
    case "dataarray":
      return decodedArray(plain, { name: plain.name, coords: decodedVariables(plain.coords) });
    case "dataset":
      return new FederatedDataset({
        variables: decodedVariables(plain.data_vars),
        coords: decodedVariables(plain.coords),
        attrs: plain.attrs,
      });
    case "dataframe":
      return new FederatedTable({
        columns: decodedVariables(plain.columns),
        index: decodedArray(plain.index),
      });
    default:
      return plain;
  }
}

function bytesOf(array) {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

// Arguments as JSON; large arrays become parts.
function encoded(value, parts) {
  if (value instanceof Call) return { result: { call: value.id } };
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) {
    return encoded(FederatedArray.from(value), parts);
  }
  if (value instanceof FederatedArray) {
    const plain = { dtype: value.dtype, shape: value.shape };
    if (ArrayBuffer.isView(value.data)) {
      const bytes = bytesOf(value.data);
      if (bytes.length > LARGE) {
        plain.part = `array-${parts.length}`;
        parts.push([plain.part, new Blob([bytes])]);
      } else {
        plain.base64 = toBase64(bytes);
      }
    } else {
      plain.data = value.toNested();
    }
    if (value.dims) {
      plain.dims = value.dims;
      plain.attrs = value.attrs;
      // Those of a variable inside of a dataset are the dataset's.
      if (value.name !== null) plain.name = value.name;
      if (Object.keys(value.coords).length) plain.coords = encodedItems(value.coords, parts);
    }
    return plain;
  }
  if (value instanceof FederatedDataset) {
    return {
      data_vars: encodedItems(value.variables, parts),
      coords: encodedItems(value.coords, parts),
      attrs: value.attrs ?? {},
    };
  }
  if (value instanceof FederatedTable) {
    return { columns: encodedItems(value.columns, parts), ...(value.index ? { index: encoded(value.index, parts) } : {}) };
  }
  if (value instanceof Date) return value.toISOString();
  if (Array.isArray(value)) return value.map((item) => encoded(item, parts));
  if (value && typeof value === "object") return encodedItems(value, parts);
  return value;
}

function encodedItems(items, parts) {
  return Object.fromEntries(Object.entries(items).map(([name, item]) => [name, encoded(item, parts)]));
}

async function failureOf(response) {
  try {
    const failure = await response.json();
    if (typeof failure?.reason === "string") return new FederatedError(failure, response.status);
  } catch {
    // What answered was no site.
  }
  return new FederatedError(
    { reason: "internal", message: `The answer has the status ${response.status} and is no site's.` },
    response.status,
  );
}

// Server-sent events of a body, as { event, data }.
async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      pending += decoder.decode(value, { stream: true });
      const blocks = pending.split("\n\n");
      pending = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(
          block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
        );
        yield { event: fields.event, data: JSON.parse(fields.data) };
      }
    }
  } finally {
    // Leaving early ends the request.
    await reader.cancel().catch(() => {});
  }
}

/** One call of a function, which goes on at the site. */
export class Call {
  #site;

  constructor(site, status) {
    this.#site = site;
    this.id = status.call;
    this.status = status;
  }

  get #path() {
    return `/calls/${encodeURIComponent(this.id)}`;
  }

  /** Ask how it goes. */
  async refresh({ signal } = {}) {
    this.status = await this.#site.json(this.#path, { signal });
    return this.status;
  }

  /** Statuses as they change; the last one when the call has ended. */
  async *events({ signal } = {}) {
    let tries = 0;
    for (;;) {
      const response = await this.#site.request(`${this.#path}/events`, { accept: EVENT_TYPE, signal });
      try {
        for await (const { event, data } of eventsOf(response.body)) {
          tries = 0;
          this.status = data;
          if (event !== "heartbeat") yield data;
          if (event === "end") return;
        }
      } catch (error) {
        if (signal?.aborted || !(error instanceof TypeError)) throw error;
      }
      // The connection was lost on the way; the call goes on.
      tries += 1;
      if (tries > 5) {
        throw new FederatedError({ reason: "connection_lost", message: "The connection to the site was lost.", site: this.#site.name });
      }
      await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** tries));
    }
  }

  /** Wait for the end; throws what the call failed with. */
  async ended({ onProgress, signal } = {}) {
    for await (const status of this.events({ signal })) onProgress?.(status);
    if (this.status.failure) throw new FederatedError(this.status.failure);
    return this.status;
  }

  /** The result: plain data, FederatedArray, FederatedDataset or FederatedTable. */
  async result({ onProgress, signal, variable } = {}) {
    await this.ended({ onProgress, signal });
    const kind = this.status.result.kind;
    if (variable !== undefined || kind === "ndarray") {
      // Without a detour through text.
      return this.#site.array(`${this.#path}/result`, { variable }, { signal });
    }
    return decoded(await this.#site.json(`${this.#path}/result`, { query: { arrays: "base64" }, signal }), kind);
  }

  /** The result as a file: a Blob of a media type such as "application/x-netcdf" or "image/png". */
  async file(mediaType, { variable, arrays, signal } = {}) {
    const response = await this.#site.request(`${this.#path}/result`, { accept: mediaType, query: { variable, arrays }, signal });
    return response.blob();
  }

  /** A picture of the result: a Blob. */
  async plot(options = {}) {
    return this.file("image/png", options);
  }

  /** Stop the call where it goes on; let go of its result. */
  async cancel() {
    await this.#site.request(this.#path, { method: "DELETE" });
  }
}

/** A site, as one token sees it. */
export class Site {
  #token;

  constructor(address, { token, project = null, fetch: fetching = globalThis.fetch } = {}) {
    const url = new URL(address);
    if (url.protocol !== "https:" && !["localhost", "127.0.0.1", "[::1]"].includes(url.hostname)) {
      throw new TypeError("a site's address starts with https://");
    }
    this.address = url.origin + url.pathname.replace(/\/+$/, "");
    this.#token = token;
    this.project = project;
    this.fetch = (...given) => fetching(...given);
    this.name = null;
    this.title = null;
    this.description = null;
  }

  /** One request; throws FederatedError unless the site did what was asked. */
  async request(path, { method = "GET", query = {}, accept = JSON_TYPE, headers = {}, body, signal } = {}) {
    const url = new URL(this.address + path);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== null) url.searchParams.set(name, value);
    }
    const sent = { Accept: accept, ...headers };
    if (this.#token) sent.Authorization = `Bearer ${this.#token}`;
    if (this.project) sent["Federated-Project"] = this.project;
    let response;
    try {
      response = await this.fetch(url, { method, headers: sent, body, signal, cache: "no-store", redirect: "error" });
    } catch (error) {
      if (signal?.aborted) throw error;
      const failure = {
        reason: "unreachable",
        message: `${this.address} does not answer, or may not be asked from here.`,
        site: this.name,
        hint: "Check the address; a page of another origin has to be among the site's [endpoint] origins.",
      };
      throw Object.assign(new FederatedError(failure), { cause: error });
    }
    if (!response.ok) throw await failureOf(response);
    return response;
  }

  /** JSON of a route. */
  async json(path, options = {}) {
    return (await this.request(path, options)).json();
  }

  /** One array of a route, as typed values; texts and the like as a list. */
  async array(path, query, { signal } = {}) {
    const accept = `${RAW_TYPE}, ${JSON_TYPE};q=0.5`;
    let response;
    try {
      response = await this.request(path, { query, accept, signal });
    } catch (error) {
      if (!(error instanceof FederatedError) || error.status !== 406) throw error;
      return decodedArray(await this.json(path, { query, signal }));
    }
    if (response.headers.get("Content-Type") !== RAW_TYPE) return decodedArray(await response.json());
    const dtype = response.headers.get("Federated-DType");
    return new FederatedArray({
      data: fromBytes(await response.arrayBuffer(), dtype),
      shape: JSON.parse(response.headers.get("Federated-Shape")),
      dims: JSON.parse(response.headers.get("Federated-Dimensions") ?? "null"),
      dtype,
      name: query.variable ?? null,
    });
  }

  /** This site and its peers: name, title, address. */
  async sites({ signal } = {}) {
    this.description = await this.json("/site", { signal });
    this.name = this.description.name;
    this.title = this.description.title;
    return [{ name: this.name, title: this.title, address: this.address }, ...this.description.peers];
  }

  /** The datasets: name, title, description, keywords, license, egress. */
  async datasets({ signal } = {}) {
    return (await this.json("/datasets", { signal })).datasets;
  }

  /** One dataset: variables with dimensions, shape, dtype and attributes. */
  async dataset(name, { signal } = {}) {
    return this.json(`/datasets/${encodeURIComponent(name)}`, { signal });
  }

  /** The licence of a dataset: license, required, accepted. */
  async license(dataset, { signal } = {}) {
    return this.json(`/datasets/${encodeURIComponent(dataset)}/license`, { signal });
  }

  /** Accept the licence of a dataset: the text that was shown. */
  async acceptLicense(dataset, license, { signal } = {}) {
    const headers = { "Content-Type": JSON_TYPE };
    const path = `/datasets/${encodeURIComponent(dataset)}/license`;
    await this.request(path, { method: "POST", headers, body: JSON.stringify({ license }), signal });
  }

  /** What may still leave of a dataset, for you or your project: tier, total, used. */
  async budget(dataset, { signal } = {}) {
    return this.json(`/datasets/${encodeURIComponent(dataset)}/budget`, { signal });
  }

  /**
   * Read a part of a variable. The index has one entry for each axis: an integer,
   * [start, stop, step] (each may be null), or { take: [integers] }; all of it by default.
   */
  async read(dataset, variable, index = null, { version, signal } = {}) {
    const path = `/datasets/${encodeURIComponent(dataset)}/variables/${encodeURIComponent(variable)}/values`;
    const array = await this.array(path, { index: index && JSON.stringify(index), version }, { signal });
    array.name = variable;
    return array;
  }

  /** A small picture of a dataset: a Blob (PNG). */
  async preview(dataset, { variable, at, signal } = {}) {
    const query = { variable, at: at && JSON.stringify(at) };
    const path = `/datasets/${encodeURIComponent(dataset)}/preview`;
    return (await this.request(path, { query, accept: "image/png", signal })).blob();
  }

  /** The functions: name, title, description, parameters, json_schema. */
  async functions({ signal } = {}) {
    return (await this.json("/functions", { signal })).functions;
  }

  /** Your calls, the newest first. */
  async calls({ signal } = {}) {
    return (await this.json("/calls", { signal })).map((status) => new Call(this, status));
  }

  /** Begin a call; it goes on at the site until it has ended or is cancelled. */
  async submit(name, args = {}, { version, signal } = {}) {
    const parts = [];
    const plain = JSON.stringify(encodedItems(args, parts));
    let body = plain;
    const headers = { Prefer: "respond-async" };
    if (parts.length) {
      body = new FormData();
      body.append("arguments", plain);
      for (const [part, blob] of parts) body.append(part, blob, part);
    } else {
      headers["Content-Type"] = JSON_TYPE;
    }
    const path = `/functions/${encodeURIComponent(name)}`;
    return new Call(this, await this.json(path, { method: "POST", query: { version }, headers, body, signal }));
  }

  /** Call a function and wait for its result; aborting `signal` cancels the call. */
  async call(name, args = {}, { version, onProgress, signal } = {}) {
    const call = await this.submit(name, args, { version, signal });
    try {
      const result = await call.result({ onProgress, signal });
      // Nobody else knows of it.
      call.cancel().catch(() => {});
      return result;
    } catch (error) {
      await call.cancel().catch(() => {});
      throw error;
    }
  }
}

/** Connect to a site; throws FederatedError where it does not answer or the token is not valid. */
export async function connect(address, options = {}) {
  const site = new Site(address, options);
  await site.sites({ signal: options.signal });
  return site;
}
