/** What a site refused, or what failed there; `reason` is one of a closed set. */
export class FederatedError extends Error {
  readonly reason: string;
  /** The message without site, hint and reason. */
  readonly detail: string;
  readonly site: string | null;
  readonly hint: string | null;
  /** Name of the argument that does not fit. */
  readonly argument: string | null;
  readonly exception: string | null;
  readonly traceback: string | null;
  /** HTTP status; 0 where there was no answer, or the call failed after it was begun. */
  readonly status: number;
}

export type TypedArray =
  | Int8Array
  | Uint8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array
  | Float32Array
  | Float64Array;

export type Attributes = Record<string, unknown>;

export interface ArrayOptions {
  shape?: number[] | null;
  dims?: string[] | null;
  name?: string | null;
  attrs?: Attributes;
  coords?: Record<string, FederatedArray>;
  dtype?: string | null;
}

/** An array: typed values in C order, shape, and the names of its dimensions. */
export class FederatedArray {
  constructor(given: ArrayOptions & { data: TypedArray | unknown[]; shape: number[]; dtype: string });
  static from(data: TypedArray, options?: ArrayOptions): FederatedArray;
  /** A list for texts, and whatever else has no typed form. */
  readonly data: TypedArray | unknown[];
  readonly shape: number[];
  /** numpy's `dtype.str`. */
  readonly dtype: string;
  readonly dims: string[] | null;
  name: string | null;
  readonly attrs: Attributes;
  readonly coords: Record<string, FederatedArray>;
  readonly size: number;
  get(...index: number[]): unknown;
  toNested(): unknown;
  toDates(): (Date | null)[];
}

export class FederatedDataset {
  constructor(given: {
    variables: Record<string, FederatedArray>;
    coords: Record<string, FederatedArray>;
    attrs: Attributes;
  });
  readonly variables: Record<string, FederatedArray>;
  readonly coords: Record<string, FederatedArray>;
  readonly attrs: Attributes;
}

export class FederatedTable {
  constructor(given: { columns: Record<string, FederatedArray>; index?: FederatedArray });
  readonly columns: Record<string, FederatedArray>;
  readonly index?: FederatedArray;
}

export type Result = unknown | FederatedArray | FederatedDataset | FederatedTable;

/** A text names a dataset of the site ("a1b") or one variable of it ("a1b/air"). */
export type Argument =
  | null
  | boolean
  | number
  | string
  | Date
  | TypedArray
  | FederatedArray
  | FederatedDataset
  | FederatedTable
  | Call
  | { dataset: string; variable?: string }
  | Argument[]
  | { [name: string]: Argument };

export interface CallStatus {
  call: string;
  function: string;
  status: "running" | "finished" | "failed";
  /** Between 0 and 1, as the function reports. */
  fraction: number;
  message: string;
  seconds: number;
  result: { kind: "value" | "ndarray" | "dataarray" | "dataset" | "dataframe"; size: number; parts: number } | null;
  failure: Record<string, unknown> | null;
}

export interface Signalled {
  signal?: AbortSignal;
}

export interface Waiting extends Signalled {
  onProgress?: (status: CallStatus) => void;
}

/** One call of a function, which goes on at the site. */
export class Call {
  readonly id: string;
  readonly status: CallStatus;
  refresh(options?: Signalled): Promise<CallStatus>;
  events(options?: Signalled): AsyncGenerator<CallStatus, void, void>;
  ended(options?: Waiting): Promise<CallStatus>;
  result(options?: Waiting & { variable?: string }): Promise<Result>;
  file(
    mediaType: string,
    options?: Signalled & { variable?: string; arrays?: "lists" | "base64" | "omitted" },
  ): Promise<Blob>;
  plot(options?: Signalled & { variable?: string }): Promise<Blob>;
  cancel(): Promise<void>;
}

export interface SiteEntry {
  name: string;
  title: string;
  address: string;
}

export interface DatasetSummary {
  name: string;
  title: string;
  description: string;
  keywords: string[];
  license: string;
  egress: { tier: string; limit: number | null };
}

export interface VariableDescription {
  dimensions: string[];
  shape: number[];
  dtype: string;
  attributes: Attributes;
  encoding: Attributes;
  chunks: number[] | null;
  coordinate: boolean;
}

export interface DatasetDescription {
  site: string;
  name: string;
  version: string;
  variables: Record<string, VariableDescription>;
  attributes: Attributes;
  egress: { tier: string; limit: number | null };
  size: number;
}

export interface ParameterDescription {
  name: string;
  kind: "value" | "dataset" | "dataarray" | "ndarray" | "dataframe";
  annotation: string;
  required: boolean;
  default: unknown;
  description: string;
  json_schema: Record<string, unknown>;
}

export interface FunctionDescription {
  name: string;
  version: string;
  title: string;
  description: string;
  tags: string[];
  parameters: ParameterDescription[];
  returns: { kind: string; annotation: string; description: string };
  limits: { seconds: number | null; result_bytes: number | null; concurrent_calls: number | null };
  idempotent: boolean;
  json_schema: Record<string, unknown>;
}

export type IndexEntry = number | [number | null, number | null, number | null] | { take: number[] };

export interface ConnectOptions {
  token?: string;
  /** By which project you ask ("name@site"), where several give you the same dataset. */
  project?: string | null;
  fetch?: typeof fetch;
}

/** A site, as one token sees it. */
export class Site {
  constructor(address: string, options?: ConnectOptions);
  readonly address: string;
  project: string | null;
  readonly name: string | null;
  readonly title: string | null;
  readonly description: Record<string, unknown> | null;
  sites(options?: Signalled): Promise<SiteEntry[]>;
  datasets(options?: Signalled): Promise<DatasetSummary[]>;
  dataset(name: string, options?: Signalled): Promise<DatasetDescription>;
  license(dataset: string, options?: Signalled): Promise<{ license: string; required: boolean; accepted: boolean }>;
  acceptLicense(dataset: string, license: string, options?: Signalled): Promise<void>;
  budget(
    dataset: string,
    options?: Signalled,
  ): Promise<{ tier: string; project: string | null; total: number | null; used: number }>;
  read(
    dataset: string,
    variable: string,
    index?: IndexEntry[] | null,
    options?: Signalled & { version?: string },
  ): Promise<FederatedArray>;
  preview(
    dataset: string,
    options?: Signalled & { variable?: string; at?: Record<string, number> },
  ): Promise<Blob>;
  functions(options?: Signalled): Promise<FunctionDescription[]>;
  calls(options?: Signalled): Promise<Call[]>;
  submit(name: string, args?: Record<string, Argument>, options?: Signalled & { version?: string }): Promise<Call>;
  call(name: string, args?: Record<string, Argument>, options?: Waiting & { version?: string }): Promise<Result>;
}

/** Connect to a site; throws FederatedError where it does not answer or the token is not valid. */
export function connect(address: string, options?: ConnectOptions & Signalled): Promise<Site>;
