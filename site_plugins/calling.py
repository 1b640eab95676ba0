"""Calls on a worker: running a published function, and what becomes of its result.

::

    CallTask ──► arguments: opened, decoded, or arrays over held keys
                     │
                     ▼
                 function ── report_progress ──► event ──► endpoint
                     │
                     ▼
    result ── small ──► into the Outcome        errors ──► into the Outcome, as text
           └─ lazy: persisted; large: scattered ──► keys, pinned until the endpoint holds them

One task runs one call.  Whatever the function raises is part of what the task returns,
so that Dask neither retries it nor carries the exception's class around.
"""

from __future__ import annotations

import contextvars
import dataclasses
import inspect
import itertools
import math
import pickle
import secrets
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import (
    Object,
    Parts,
    array_of,
    put_together,
    take_apart,
)
from site_plugins.datasets import StoredDataset
from site_plugins.functions import CodeOrigin, Origin, signature_of
from site_plugins.opening import open_lazily, without_paths
from site_plugins.signatures import ArgumentError, Signature
from site_plugins.stopping import CALL_TOPIC, CallStopped, Running, plugin_of
from site_plugins.worker_clients import own_client

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = [
    "CallTask",
    "Data",
    "HeldData",
    "Outcome",
    "PlainData",
    "Raised",
    "SentData",
    "StoredData",
    "overdue",
    "report_progress",
    "run_call",
]

LARGEST_INLINE = 64 * 1024
"""Bytes of an array up to which it is part of the outcome."""
LARGEST_TOLD = 8 * 1024
"""Bytes of an outcome up to which it goes by an event."""
REPORT_SECONDS = 0.1
"""Shortest time between two reports of progress."""
LONGEST_TEXT = 4_000
LONGEST_NAME = 200


@dataclasses.dataclass(frozen=True)
class PlainData:
    """Plain data, as it came."""

    value: Any


@dataclasses.dataclass(frozen=True)
class StoredData:
    """A dataset of the site, or one variable of it."""

    dataset: StoredDataset
    version: str
    variable: str | None = None


@dataclasses.dataclass(frozen=True)
class SentData:
    """Data that was sent along."""

    content: Object


@dataclasses.dataclass(frozen=True)
class HeldData:
    """Data whose parts the cluster holds."""

    content: Object
    keys: tuple[Key, ...]


Data: TypeAlias = PlainData | StoredData | SentData | HeldData


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallTask:
    """One call, as it travels to a worker."""

    call: str
    key: str
    name: str
    digest: str
    origin: Origin
    arguments: Mapping[str, Data]
    buffers: Sequence[bytes] = ()
    """Of what was sent along, where they are not an argument of the task."""
    seconds: float
    result_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raised:
    """An exception of the function, as text."""

    exception: str
    message: str
    traceback: str
    is_memory: bool = False


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of a call."""

    content: bytes = b""
    """The result, an `Object` as msgpack."""
    buffers: Sequence[bytes] = ()
    parts: Sequence[Key] = ()
    seconds: float = 0.0
    raised: Raised | None = None
    refused: ArgumentError | None = None
    error: FederatedError | None = None


_current: contextvars.ContextVar[_Reporter | None] = contextvars.ContextVar(
    "federated_call", default=None
)


def report_progress(fraction: float, message: str = "") -> None:
    """Tell the caller of the function that calls this how far it is.

    Does nothing where the function was not called through a site, so that it can be used
    and tested like any other.

    Parameters
    ----------
    fraction : float
        Between 0 and 1.
    message : str, optional
        What it is doing.

    Examples
    --------
    >>> report_progress(0.5, "half of the years")
    """
    reporter = _current.get()
    if reporter is not None:
        reporter.report(fraction, message)


class _Reporter:
    def __init__(self, call: str, worker: Any) -> None:
        self.call = call
        self.worker = worker
        self.last = -math.inf

    def report(self, fraction: float, message: str) -> None:
        fraction = min(1.0, max(0.0, float(fraction)))
        now = time.monotonic()
        # The last one is always told.
        if now - self.last < REPORT_SECONDS and fraction < 1:
            return
        self.last = now
        told = {"call": self.call, "fraction": fraction, "message": str(message)[:LONGEST_TEXT]}
        self.worker.log_event(CALL_TOPIC, told)


def run_call(task: CallTask, sent: Sequence[Any] = ()) -> Outcome | None:
    """Run a call; the task of it.

    A small outcome goes by an event of Dask's and is not returned: it is at the endpoint
    before Dask has told it that the task is done, and need not be asked for.

    Parameters
    ----------
    task : CallTask
        The call.
    sent : sequence of array, optional
        Buffers of what was sent along, where they are not in `task`.
    """
    from distributed.worker import get_worker

    worker = get_worker()
    plugin = plugin_of(worker)
    token = _current.set(_Reporter(task.call, worker))
    start = time.perf_counter()
    running: Running | None = None
    signature: Signature | None = None
    has_begun = False
    try:
        running = plugin.enter(task.key, task.call, task.seconds)
        with own_client(worker):
            signature = signature_of(task.digest, task.origin)
            values = _values(task, signature, sent or task.buffers)
            has_begun = True
            outcome = _outcome(task, signature, values, plugin)
    except CallStopped:
        if running is None or not running.overdue:
            raise
        outcome = Outcome(error=overdue(task.name, task.seconds))
    except (ArgumentError, FederatedError) as error:
        if has_begun and isinstance(task.origin, CodeOrigin):
            # A caller's own code does not speak for the site.
            outcome = Outcome(raised=_raised(error, signature))
        elif isinstance(error, ArgumentError):
            outcome = Outcome(refused=error)
        else:
            outcome = Outcome(error=error.with_traceback(None))
    except BaseException as error:
        # The boundary to the function, which raises whatever its author wrote.
        outcome = Outcome(raised=_raised(error, signature))
    finally:
        while True:
            # An exception may meet the thread at the entrance of a function, before its `try`.
            try:
                plugin.leave(task.key)
                break
            except CallStopped:
                continue
        _current.reset(token)
    outcome.seconds = time.perf_counter() - start
    if not outcome.parts:
        told = pickle.dumps(outcome)
        if len(told) <= LARGEST_TOLD:
            worker.log_event(CALL_TOPIC, {"call": task.call, "outcome": told})
            return None
    return outcome


def overdue(name: str, seconds: float) -> FederatedError:
    """Make the error of a call that took too long."""
    return RequestRefused(
        f"Function {name!r} was stopped after {seconds:g} seconds, the longest that it may run.",
        reason=Reason.LIMIT_EXCEEDED,
        hint="Ask for less: fewer years, a smaller region, coarser data.",
    )


# Arguments


def _values(task: CallTask, signature: Signature, sent: Sequence[Any]) -> dict[str, Any]:
    buffers = _writable(sent)
    values = {}
    for name, argument in task.arguments.items():
        parameter = signature.parameters[name]
        match argument:
            case PlainData():
                values[name] = parameter.fitted(argument.value)
            case StoredData():
                values[name] = parameter.fitted(_opened(name, argument, task.call))
            case SentData():
                values[name] = parameter.fitted(
                    put_together(argument.content, buffers, _no_parts, operation_table())
                )
            case HeldData():
                values[name] = parameter.fitted(_held(argument, buffers))
    return values


def _opened(name: str, argument: StoredData, call: str) -> Any:
    opened = open_lazily(argument.dataset, argument.version, call)
    if argument.variable is None:
        return opened
    if argument.variable not in opened.variables:
        known = ", ".join(map(str, list(opened.variables)[:20]))
        raise ArgumentError(name, f"names a variable that is not there; there are {known}")
    return opened[argument.variable]


def _writable(buffers: Sequence[Any]) -> list[Any]:
    """Give buffers that a function may write into, as it may into arrays of its own."""
    return [
        bytearray(buffer) if memoryview(buffer).readonly else memoryview(buffer)
        for buffer in buffers
    ]


def _no_parts(parts: Parts) -> Any:
    raise RequestRefused("Data that is sent along has no parts.", reason=Reason.MALFORMED)


def _held(argument: HeldData, buffers: Sequence[Any]) -> Any:
    from distributed import Future, get_client

    client = get_client()
    # As long as this client wants the parts, they stay where they are.
    wanted = {"op": "client-desires-keys", "keys": list(argument.keys), "client": client.id}
    client._send_to_scheduler(wanted)
    name = f"held-{secrets.token_hex(16)}"
    count = itertools.count()

    def make(parts: Parts) -> Any:
        keys = argument.keys[parts.first : parts.first + parts.count]
        # The futures keep the parts as long as the arrays are there.
        return array_of(parts, [Future(key, client) for key in keys], f"{name}-{next(count)}")

    return put_together(argument.content, buffers, make, operation_table())


# Results


def _outcome(task: CallTask, signature: Signature, values: dict[str, Any], plugin: Any) -> Outcome:
    result = without_paths(signature.checked_result(signature.call(values)))
    buffers: list[Any] = []
    try:
        described, arrays = take_apart(
            result, buffers, operation_table(), is_part=_crosses_in_parts
        )
    except TypeError as error:
        raise TypeError(f"the result cannot be sent: {error}") from None
    content = msgspec.msgpack.encode(described)
    # Plain data is all in the content.
    size = len(content) + sum(array.nbytes for array in arrays)
    size += sum(memoryview(buffer).nbytes for buffer in buffers)
    if size > task.result_bytes:
        return Outcome(
            error=RequestRefused(
                f"The result of {task.name!r} has {int(size):,} bytes; at most "
                f"{task.result_bytes:,} are returned.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Ask for less: fewer years, a smaller region, coarser data.",
            )
        )
    return Outcome(
        content=content,
        buffers=[bytes(buffer) for buffer in buffers],
        parts=_kept(task, arrays, plugin) if arrays else (),
    )


def _crosses_in_parts(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return array.nbytes > LARGEST_INLINE and not array.dtype.hasobject
    return hasattr(array, "dask")


def _kept(task: CallTask, arrays: Sequence[Any], plugin: Any) -> list[Key]:
    """Compute lazy arrays on the cluster and leave all there; give the keys of their parts."""
    from distributed import futures_of, get_client, wait, worker_client

    lazy = [array for array in arrays if not isinstance(array, np.ndarray)]
    large = {
        f"federated-part-{secrets.token_hex(16)}": np.ascontiguousarray(array)
        for array in arrays
        if isinstance(array, np.ndarray)
    }
    persisted: Sequence[Any] = ()
    futures: list[Any] = []
    try:
        if large:
            futures += get_client().scatter(large).values()
        if lazy:
            with worker_client() as client:
                persisted = client.persist(lazy)
                computed = [future for array in persisted for future in futures_of(array)]
                futures += computed
                wait(computed)
                for future in computed:
                    if future.status == "error":
                        future.result()
    except BaseException:
        # The traceback would keep them, and with them what they compute.
        for future in futures:
            future.release()
        raise
    plugin.pin(task.key, futures)
    in_order, names = iter(persisted), iter(large)
    keys: list[Key] = []
    for array in arrays:
        if isinstance(array, np.ndarray):
            keys.append(next(names))
        else:
            keys += _flat(next(in_order).__dask_keys__())
    return keys


def _flat(keys: Any) -> list[Key]:
    if isinstance(keys, list):
        return [key for part in keys for key in _flat(part)]
    return [keys]


# Errors


def _raised(error: BaseException, signature: Signature | None) -> Raised:
    cls = type(error)
    try:
        message = str(error)
    except Exception:
        # Not every class can show itself.
        message = ""
    return Raised(
        exception=f"{cls.__module__}.{cls.__qualname__}"[:LONGEST_NAME],
        message=message[:LONGEST_TEXT],
        traceback="" if signature is None else _own_lines(error, signature),
        is_memory=isinstance(error, MemoryError),
    )


def _own_lines(error: BaseException, signature: Signature) -> str:
    """Those lines of a traceback that are in the function's own module."""
    code = getattr(inspect.unwrap(signature.function), "__code__", None)
    if code is None:
        return ""
    module = getattr(signature.function, "__module__", None) or "function"
    lines = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename != code.co_filename:
            continue
        lines.append(f"  {module}, line {frame.lineno}, in {frame.name}\n")
        if frame.line:
            lines.append(f"    {frame.line}\n")
    return "".join(lines)
