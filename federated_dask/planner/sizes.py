"""Estimated bytes of what tasks make and of what they read from storage.

Collections state shape, dtype and chunks of what they hold; for the partials of
reductions that is the shape *before* the reduction (Dask takes the note too
early), so partials have rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from dask._task_spec import DataNode

from federated_dask.planner.graph import PlanGraph, PlanTask
from federated_dask.planner.nodes import (
    count_references,
    keyword,
    last_call,
    operation_name,
    tree_node,
    uses,
)
from federated_dask.planner.programs import Program
from federated_dask.planner.shapes import sliced_from, sliced_shape
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.frames import Buffer, encode_frame
from federated_dask.protocol.messages import Heartbeat, Result
from federated_dask.protocol.operation_names import READS
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.values import encode_value

__all__ = [
    "all_read_bytes",
    "estimate_sizes",
    "framed",
    "is_stated_exactly",
    "read_bytes",
    "wire_size",
]

_REDUCTIONS = "dask.array.reductions."

ARRAYS_IN_PARTIAL = {
    # Counts are equal all over a chunk as a rule, and shrink to nothing on the wire.
    _REDUCTIONS + "mean_chunk": 1,
    _REDUCTIONS + "moment_chunk": 2,
    _REDUCTIONS + "arg_chunk": 2,
}
"""How many arrays of the result's shape a partial holds."""

FRAME_BYTES = 70
"""What a result takes on a link beside its values: a frame and its header."""
FLOX_CHUNK = "flox.core.chunk_reduce"
FLOX_COUNTS = frozenset({"len", "nanlen"})
FLOX_VARIANCE = "flox.aggregations.var_chunk"
"""Makes three arrays: squared deviations, sums and counts."""
OBJECT_ITEMSIZE = 8
SAMPLES, SAMPLE = 8, 16 * 1024
"""Parts of an array that are compressed to see what is left of it, and bytes of each."""
ELEMENTWISE = frozenset(
    "abs add and_ eq floordiv ge gt inv invert le lshift lt mod mul ne neg or_ pos pow rshift sub "
    "truediv xor".split()
)
"""Functions of the module `operator` that keep the shape."""


def framed(size: int) -> int:
    """Bytes on a link of a result whose values have `size` bytes."""
    return size + FRAME_BYTES


def estimate_sizes(graph: PlanGraph) -> list[int]:
    """Estimate the bytes of every task's result.

    Parameters
    ----------
    graph : PlanGraph
        In topological order.

    Returns
    -------
    list of int
        Bytes.
    """
    return _Estimates(graph).all()


class _Estimates:
    """Sizes, and what they are made of, of tasks in topological order."""

    def __init__(self, graph: PlanGraph) -> None:
        self.graph = graph
        self.sizes: list[int] = []
        self.shapes: list[tuple[int, ...] | None] = []
        self.itemsizes: list[float] = []
        """Bytes per element; less than those of the dtype where they are known to shrink."""
        # Tasks of a layer share their template; what it says is read once.
        self.readings: dict[int, _Reading] = {}

    def all(self) -> list[int]:
        for task in self.graph.tasks:
            self.add(task)
        return self.sizes

    def add(self, task: PlanTask) -> None:
        reading = _NOTHING
        if task.program is not None:
            template = task.program.template
            found = self.readings.get(id(template))
            reading = found or self.readings.setdefault(id(template), _Reading.of(task.program))
        shape = task.shape
        itemsize = float(OBJECT_ITEMSIZE if task.dtype is None else task.dtype.itemsize)
        if shape is None or task.dtype is None:
            sliced = sliced_from(task)
            if sliced is not None and (before := self.shapes[sliced]) is not None:
                shape = sliced_shape(task, self.graph, before)
                itemsize = self.itemsizes[sliced]
        elif (share := _own_share(task)) is not None:
            itemsize *= share
        self.shapes.append(shape)
        self.itemsizes.append(itemsize)
        self.sizes.append(self.estimate(task, reading, shape, itemsize))

    def estimate(
        self, task: PlanTask, reading: _Reading, shape: tuple[int, ...] | None, itemsize: float
    ) -> int:
        if reading.combines:
            return max(self.sizes[dependency] for dependency in task.dependencies)
        if reading.groups:
            return _groups(task, reading, self.graph)
        if shape is None:
            return sum(self.sizes[dependency] for dependency in task.dependencies)
        if reading.itemsize is not None:
            itemsize = reading.itemsize
        kept = math.prod(size for axis, size in enumerate(shape) if axis not in reading.reduced)
        return int(kept * itemsize) * reading.arrays


def _own_share(task: PlanTask) -> float | None:
    """Share of an array of the researcher's own that is left of it on the wire, or None."""
    if task.program is not None or not isinstance(task.node, DataNode):
        return None
    return _share_left(task.node.value)


def wire_size(value: Any, table: OperationTable) -> int:
    """Bytes that a value takes on a link, without its frame, near enough.

    Parameters
    ----------
    value : object
        What is to be sent, with a wire form.
    table : OperationTable
        Resolves callables inside of it.

    Examples
    --------
    >>> from federated_dask.protocol.operations import operation_table
    >>> wire_size(np.random.default_rng(0).random(1000), operation_table()) > 7900
    True
    >>> wire_size(np.zeros(1000), operation_table()) < 100
    True
    """
    share = _share_left(value)
    if share is not None:
        return int(share * value.nbytes)
    buffers: list[Buffer] = []
    message = Result(output=0, value=encode_value(value, buffers, table))
    pieces = encode_frame(message, buffers)
    return max(0, sum(memoryview(piece).nbytes for piece in pieces) - FRAME_BYTES)


def _share_left(values: Any) -> float | None:
    """Share of an array that compression leaves, judged by some parts of it; else None."""
    if type(values) is not np.ndarray or values.dtype.hasobject or not values.nbytes:
        return None
    flat = values.reshape(-1)
    step = max(1, flat.nbytes // SAMPLES)
    length = max(1, min(step, SAMPLE) // values.itemsize)
    starts = range(0, flat.size, max(1, step // values.itemsize))
    sample = np.concatenate([flat[start : start + length] for start in starts])
    pieces = encode_frame(Heartbeat(), [sample.tobytes()])
    return min(1.0, sum(len(memoryview(piece)) for piece in pieces) / sample.nbytes)


def is_stated_exactly(task: PlanTask, graph: PlanGraph) -> bool:
    """Say whether a task's result has the shape and dtype that its collection states.

    Dask often takes the note before it changes the shape: for partials, for
    selections by masks and more.  So it is said of few kinds of tasks: held
    results, slices, elementwise operations and the last step of reductions.
    """
    program = task.program
    if task.shape is None or program is None:
        return False
    call = last_call(program)
    if call is None:
        return isinstance(program.template.steps[-1], wire.Reference)
    name = operation_name(call.function) or ""
    if "flox." in name:
        return False
    if keyword(call, "keepdims") is False:
        return not _sums_tensordot(task, graph)
    if name in READS or name == "operator.getitem":
        return len(call.arguments) > 1 and _is_slicing(call.arguments[1])
    module, _, function = name.rpartition(".")
    if module == "operator":
        return function in ELEMENTWISE
    return module == "numpy" and isinstance(getattr(np, function, None), np.ufunc)


def _sums_tensordot(task: PlanTask, graph: PlanGraph) -> bool:
    """Say whether a reduction is the second half of a tensordot.

    Dask states (and makes) chunks of other shapes there, if an array is
    multiplied with itself: measured with dask 2026.8.
    """
    stack = [task]
    while stack:
        for position in stack.pop().dependencies:
            below = graph.tasks[position]
            if below.program is None:
                continue
            used = (name for step in below.program.template.steps for name in uses(step))
            if "dask.array.routines._tensordot" in used:
                return True
            if tree_node(below.program) is not None:
                stack.append(below)
    return False


def _is_slicing(index: wire.Node) -> bool:
    return isinstance(index, wire.Tuple) and all(
        isinstance(part, wire.Slice | wire.Integer | wire.Number) for part in index.items
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a template says about the size of its tasks' results."""

    bound: tuple[int, int] = (0, 0)
    """First and end of the reference holes of flox's callable itself."""
    combines: bool = False
    """It combines partials: the result is as large as one of them."""
    groups: bool = False
    """It is flox's first step: groups × kept axes."""
    reduced: tuple[int, ...] = ()
    """Axes that the result keeps with length 1."""
    itemsize: int | None = None
    """Bytes per element, all arrays of a partial together."""
    arrays: int = 1

    @classmethod
    def of(cls, program: Program) -> _Reading:
        call = last_call(program)
        if call is None:
            return _NOTHING
        name = operation_name(call.function)
        bound = count_references(call.function)
        keeps = keyword(call, "keepdims") is True
        if tree_node(program) is not None and keyword(call.function, "keepdims") is True:
            return cls(combines=True)
        if FLOX_CHUNK in uses(call.function):
            itemsize = _flox_itemsize(call)
            before = sum(map(count_references, program.template.steps[:-1]))
            axes = _axes(_given_first(call, "axis"))
            return cls((before, before + bound), groups=True, reduced=axes, itemsize=itemsize)
        arrays = ARRAYS_IN_PARTIAL.get(name or "")
        return cls(
            reduced=_axes(keyword(call, "axis")) if keeps else (),
            itemsize=_itemsize(keyword(call, "dtype")) if arrays else None,
            arrays=arrays or 1,
        )


_NOTHING = _Reading()


def _groups(task: PlanTask, reading: _Reading, graph: PlanGraph) -> int:
    """Bytes of groups × kept axes × the arrays that flox keeps per group."""
    if task.shape is None or task.program is None:
        return 0
    kept = math.prod(size for axis, size in enumerate(task.shape) if axis not in reading.reduced)
    groups = task.shape[reading.reduced[0]] if reading.reduced else 1
    for operand in task.program.references[slice(*reading.bound)]:
        leaf: Any = graph.leaves[-1 - operand] if operand < 0 else None
        if hasattr(leaf, "__len__"):
            groups = len(leaf)
    return kept * groups * (reading.itemsize or OBJECT_ITEMSIZE)


def _flox_itemsize(call: wire.Call) -> int:
    """Bytes per group of all arrays that flox keeps; counts shrink to nothing on the wire."""
    stated, functions = _given_first(call, "dtype"), _given_first(call, "func")
    dtypes = stated.items if isinstance(stated, wire.Tuple) else (stated,)
    names = functions.items if isinstance(functions, wire.Tuple) else (None,) * len(dtypes)
    total = 0
    for dtype, name in zip(dtypes, names, strict=False):
        if len(dtypes) > 1 and name in FLOX_COUNTS:
            continue
        several = 2 if FLOX_VARIANCE in uses(name) else 1
        total += several * (_itemsize(dtype) or 0)
    return total or OBJECT_ITEMSIZE


def _itemsize(stated: wire.Node) -> int | None:
    return decode_dtype(stated.dtype).itemsize if isinstance(stated, wire.DataType) else None


def _axes(axes: wire.Node) -> tuple[int, ...]:
    items = axes.items if isinstance(axes, wire.Tuple | wire.List) else (axes,)
    return tuple(item.value for item in items if isinstance(item, wire.Number))


def _given_first(node: wire.Node, name: str) -> wire.Node:
    """Value of a keyword of the function that is applied first, wherever it is bound."""
    while True:
        if isinstance(node, wire.Call | wire.Partial):
            for key, value in node.keywords:
                if key == name:
                    return value
            node = node.function
        elif isinstance(node, wire.Compose) and node.functions:
            node = node.functions[-1]
        else:
            return None


def read_bytes(task: PlanTask, graph: PlanGraph) -> int:
    """Bytes, decoded, that a task reads from stored variables.

    Returns
    -------
    int
        0 where the task reads nothing; the whole variables where it does not say what.
    """
    return _Reads(graph).of(task)


def all_read_bytes(graph: PlanGraph) -> list[int]:
    """Bytes, decoded, that every task reads from stored variables, see `read_bytes`."""
    reads = _Reads(graph)
    return [reads.of(task) if task.sources else 0 for task in graph.tasks]


@dataclass(frozen=True, slots=True)
class _Read:
    """A read of a stored variable, as a template says it."""

    operand: int
    """Which of the references is what it reads from."""
    index: wire.Node
    integers: int
    """How many integers are filled in before those of its index."""


class _Reads:
    """What the tasks of one graph read."""

    def __init__(self, graph: PlanGraph) -> None:
        self.graph = graph
        # Tasks of a layer share their template; what it says is read once.
        self.known: dict[int, list[_Read]] = {}

    def of(self, task: PlanTask) -> int:
        program = task.program
        if not task.sources:
            return 0
        if program is None:
            return sum(_stored_bytes(source, self.graph) for source in task.sources)
        reads = self.known.get(id(program.template))
        if reads is None:
            reads = self.known[id(program.template)] = list(_reads_of(program.template))
        total = 0
        for read in reads:
            operand = program.references[read.operand]
            leaf = self.graph.leaves[-1 - operand] if operand < 0 else None
            if isinstance(leaf, SourceReference):
                stored = self.graph.stored[leaf]
                numbers = iter(program.integers[read.integers :])
                lengths = _lengths(read.index, stored.shape, numbers)
                total += math.prod(lengths) * stored.dtype.itemsize
        return total


def _reads_of(template: wire.Template) -> Iterator[_Read]:
    references = integers = 0
    for step in template.steps:
        for node in wire.walk(step):
            if isinstance(node, wire.Reference):
                references += 1
            elif isinstance(node, wire.Integer):
                integers += 1
            elif _is_read(node):
                # The holes of a call come after it in the walk, its operand's first.
                yield _Read(references, node.arguments[1], integers)


def _stored_bytes(source: SourceReference, graph: PlanGraph) -> int:
    stored = graph.stored[source]
    itemsize = OBJECT_ITEMSIZE if stored.dtype.hasobject else stored.dtype.itemsize
    return math.prod(stored.shape) * itemsize


def _is_read(node: wire.Node) -> TypeGuard[wire.Call]:
    return (
        isinstance(node, wire.Call)
        and operation_name(node.function) in READS
        and len(node.arguments) > 1
        and isinstance(node.arguments[0], wire.Reference)
    )


def _lengths(index: wire.Node, shape: tuple[int, ...], numbers: Iterator[int]) -> list[int]:
    """Length of a selection along every axis; an axis that is not understood counts in full."""
    parts = index.items if isinstance(index, wire.Tuple) else (index,)
    lengths = list(shape)
    for axis, (part, size) in enumerate(zip(parts, shape, strict=False)):
        if isinstance(part, wire.Slice):
            bounds = [_integer(bound, numbers) for bound in (part.start, part.stop, part.step)]
            lengths[axis] = len(range(*slice(*bounds).indices(size)))
        elif _integer(part, numbers) is not None:
            lengths[axis] = 1
    return lengths


def _integer(node: wire.Node, numbers: Iterator[int]) -> int | None:
    if isinstance(node, wire.Integer):
        return next(numbers)
    return node.value if isinstance(node, wire.Number) else None
