"""What tasks refer to beside other tasks: stored variables, values and held results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.array.core import getter

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol import graph as wire
from federated_dask.protocol.bounded import over
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.trees import ArrayValue, CFTimeValue, TextArrayValue, Value
from federated_dask.protocol.values import ValueDecoder
from site_plugins.datasets import StoredVariable
from site_plugins.scheduler_plugin import READ_TOPIC, LeasedOutput

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["Digest", "MeteredVariable", "Operands", "digest_of", "operands_of", "read_task"]

INLINED_BYTES = 1024
"""A value smaller than this is written into each task that uses it."""

Digest: TypeAlias = bytes


@dataclasses.dataclass(frozen=True)
class MeteredVariable:
    """A stored variable that tells the scheduler how many bytes were read from it."""

    variable: StoredVariable
    limit: int | None = None
    """Bytes that may be read at once."""

    def __getitem__(self, index: Any) -> np.ndarray:
        from distributed.worker import get_worker

        if self.limit is not None and _selected_bytes(self.variable, index) > self.limit:
            raise over("Reading", self.limit)
        values = self.variable[index]
        get_worker().log_event(
            READ_TOPIC, {"key": get_worker().get_current_task(), "bytes": values.nbytes}
        )
        return values


def _selected_bytes(variable: StoredVariable, index: Any) -> int:
    shape = variable.shape
    parts = list(index) if isinstance(index, tuple) else [index]
    at = next((at for at, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + (at < len(parts)))
    size = math.prod(
        len(range(*part.indices(length))) if isinstance(part, slice) else np.size(part)
        for part, length in zip(parts, shape, strict=False)
    )
    return size * variable.dtype.itemsize


def read_task(variable: StoredVariable, index: tuple[Any, ...]) -> tuple[Key, Task]:
    """Make a task that reads a part of a stored variable."""
    described = msgspec.msgpack.encode(
        [
            [part.start, part.stop, part.step] if isinstance(part, slice) else _plain(part)
            for part in index
        ]
    )
    token = digest_of(b"read", _source_digest(variable), described).hex()
    key = ("read", token)
    return key, Task(key, getter, DataNode(None, MeteredVariable(variable)), index)


def _plain(part: Any) -> Any:
    return {"take": part.tolist()} if isinstance(part, np.ndarray) else part


class Operands(msgspec.Struct):
    """Sources, values and held results, by operand number."""

    arguments: list[Any]
    """What stands for the operand in a task."""
    digests: list[Digest]
    separate: np.ndarray
    """Whether it is a key of its own, shape (operands,), bool."""
    nodes: dict[Key, GraphNode]
    """Values that are keys of their own."""


def operands_of(
    graph: wire.Graph,
    sources: Sequence[StoredVariable],
    buffers: Sequence[bytearray],
    held: Sequence[LeasedOutput],
    table: OperationTable,
    limit: int | None = None,
) -> Operands:
    """Make what stands for operands in tasks; the arguments are those of `build_graph`."""
    arguments: list[Any] = []
    digests: list[Digest] = []
    separate = []
    nodes: dict[Key, GraphNode] = {}
    for variable in sources:
        digests.append(_source_digest(variable))
        # Slices are fused into the read, so the node is shared but never a key of its own.
        arguments.append(DataNode("source", MeteredVariable(variable, limit)))
        separate.append(False)
    decoder = ValueDecoder(buffers, table)
    for value in graph.values:
        # First: it refuses what would be digested as often as somebody likes.
        decoded = decoder.decode(value)
        size, digest = _value_digest(value, buffers)
        digests.append(digest)
        separate.append(size >= INLINED_BYTES)
        if size >= INLINED_BYTES:
            key: Key = ("value", digest.hex())
            nodes[key] = DataNode(key, decoded)
            arguments.append(TaskRef(key))
        else:
            arguments.append(decoded)
    for output in held:
        digests.append(digest_of(b"held", msgspec.msgpack.encode(output.key)))
        arguments.append(TaskRef(output.key))
        separate.append(True)
    return Operands(arguments, digests, np.array(separate, dtype=bool), nodes)


def _source_digest(variable: StoredVariable) -> Digest:
    dataset = variable.dataset
    described = (dataset.name, dataset.opening, variable.version, variable.variable)
    return digest_of(b"source", msgspec.msgpack.encode(described))


def _value_digest(value: Value, buffers: Sequence[bytearray]) -> tuple[int, Digest]:
    """Size and digest of a value; equal ones at other places of a frame may differ."""
    described = msgspec.msgpack.encode(value)
    parts = [b"value", described]
    size = len(described)
    for position in _buffers_of(value):
        if not 0 <= position < len(buffers):
            raise RequestRefused("A value names a buffer that is missing.", reason=Reason.MALFORMED)
        size += len(buffers[position])
        parts.append(blake2b(buffers[position], digest_size=16).digest())
    return size, digest_of(*parts)


def _buffers_of(value: Any) -> Iterator[int]:
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, ArrayValue | CFTimeValue):
            yield part.buffer
        elif isinstance(part, TextArrayValue):
            yield part.lengths
            yield part.data
        elif isinstance(part, msgspec.Struct):
            stack.extend(msgspec.structs.astuple(part))
        elif isinstance(part, tuple):
            stack.extend(part)
        elif isinstance(part, dict):
            stack.extend(part.values())


def digest_of(*parts: Buffer) -> Digest:
    """Digest parts so that no other parts have the same digest."""
    digest = blake2b(digest_size=16)
    for part in parts:
        # The length in front keeps two parts from reading as one.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
