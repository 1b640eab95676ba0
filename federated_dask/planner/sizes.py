"""Estimated bytes of what tasks make.

Collections state shape, dtype and chunks of what they hold; for the partials of
reductions that is the shape *before* the reduction (Dask takes the note too
early), so partials have rules of their own.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from federated_dask.planner.contents import Expectations
from federated_dask.planner.expected import (
    Expected,
    expected_of_stored,
    expected_of_value,
    unknown,
)
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
from federated_dask.planner.shapes import sliced_from, sliced_shape, taken_shape
from federated_dask.planner.sources import HeldReference, SourceReference
from federated_dask.planner.stored_reads import OBJECT_ITEMSIZE
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.frames import Buffer, encode_frame
from federated_dask.protocol.messages import Result
from federated_dask.protocol.operation_names import READS
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.samples import share_left
from federated_dask.protocol.values import encode_value

__all__ = [
    "Sizes",
    "estimate_sizes",
    "framed",
    "is_stated_exactly",
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
DICT_BYTES = 140
"""What names, dtypes and shapes of the arrays of a partial take."""
DICTS = frozenset(
    {
        *(_REDUCTIONS + name for name in ("mean_chunk", "mean_combine", "moment_chunk")),
        _REDUCTIONS + "moment_combine",
        "flox.dask._simple_combine",
    }
)
"""Operations whose results are several arrays by name."""
TOPK, BINCOUNT = "dask.array.chunk.topk", "numpy.bincount"
FLOX_REINDEX, FLOX_AGGREGATE = "flox.dask.reindex_intermediates", "flox.dask._aggregate"
FLOX_CHUNK = "flox.core.chunk_reduce"
FLOX_COUNTS = frozenset({"len", "nanlen"})
FLOX_VARIANCE = "flox.aggregations.var_chunk"
"""Makes three arrays: squared deviations, sums and counts."""
ELEMENTWISE = frozenset(
    "abs add and_ eq floordiv ge gt inv invert le lshift lt mod mul ne neg or_ pos pow rshift sub "
    "truediv xor".split()
)
"""Functions of the module `operator` that keep the shape."""


def framed(size: int) -> int:
    """Bytes on a link of a result whose values have `size` bytes."""
    return size + FRAME_BYTES


@dataclass(frozen=True)
class Sizes:
    """Estimated bytes of every task's result."""

    plain: list[int]
    """Before compression, as sites count what leaves them."""
    wire: list[int]
    """On a link, without its frame."""


def estimate_sizes(graph: PlanGraph) -> Sizes:
    """Estimate the bytes of every task's result.

    Parameters
    ----------
    graph : PlanGraph
        In topological order.

    Returns
    -------
    Sizes
    """
    return _Estimates(graph).all()


class _Estimates:
    """Sizes, and what they are made of, of tasks in topological order."""

    def __init__(self, graph: PlanGraph) -> None:
        self.graph = graph
        self.expected: list[Expected] = []
        self.shapes: list[tuple[int, ...] | None] = []
        self.extra: list[int] = []
        """Bytes of results that are several arrays, beside those of the arrays."""
        self.expectations = Expectations()
        # Tasks of a layer share their template; what it says is read once.
        self.readings: dict[int, _Reading] = {}
        self.leaves: dict[int, Expected | None] = {}
        self.groups: dict[int, int] = {}
        self.own_groups: dict[int, int] = {}

    def all(self) -> Sizes:
        for task in self.graph.tasks:
            self.add(task)
        found = list(zip(self.expected, self.extra, strict=True))
        return Sizes(
            [int(each.plain_bytes) + extra for each, extra in found],
            [int(each.wire_bytes) + extra for each, extra in found],
        )

    def add(self, task: PlanTask) -> None:
        reading = _NOTHING
        if task.program is not None:
            template = task.program.template
            found = self.readings.get(id(template))
            reading = found or self.readings.setdefault(id(template), _Reading.of(task.program))
        shape = self.shape_of(task, reading)
        self.shapes.append(shape)
        below = [self.expected[dependency] for dependency in task.dependencies]
        count, most = self.count(task, reading, shape, below)
        size = self.itemsize(task, reading, below)
        expected = self.contents(task, count, size)
        if not expected.is_counted or task.program is None:
            expected = replace(expected, count=count)
        self.expected.append(
            replace(
                expected,
                size=size,
                each=min(expected.each, size),
                is_counted=False,
                most=min(most, expected.most) if expected.is_counted else most,
            )
        )
        self.extra.append(DICT_BYTES if reading.is_dict else 0)

    def shape_of(self, task: PlanTask, reading: _Reading) -> tuple[int, ...] | None:
        """Shape that a task's collection states, or that follows from what it is made of."""
        if reading.shape is not None:
            return reading.shape
        if task.shape is not None and task.dtype is not None:
            return task.shape
        sliced = sliced_from(task)
        if sliced is not None and (before := self.shapes[sliced]) is not None:
            return sliced_shape(task, self.graph, before)
        if task.shape is None and len(task.dependencies) == 1:
            before = self.shapes[task.dependencies[0]]
            if before is not None and (taken := taken_shape(task, self.graph, before)) is not None:
                return taken
        if reading.reduced and len(task.dependencies) == 1:
            # Where chunks have unknown lengths, those that are summed over do not matter.
            return self.shapes[task.dependencies[0]]
        return task.shape

    def count(
        self,
        task: PlanTask,
        reading: _Reading,
        shape: tuple[int, ...] | None,
        below: list[Expected],
    ) -> tuple[float, float]:
        """Elements of a result, and how many it can have when results like it are combined."""
        most = max((each.most for each in below), default=math.inf)
        total = sum(each.count for each in below)
        if reading.combines:
            largest = max((each.count for each in below), default=0.0)
            if reading.is_final and shape is not None:
                # Where groups are found while it runs, the collection states one.
                return max(largest, float(math.prod(shape))), math.inf
            return (largest if most == math.inf else min(total, most)), most
        if reading.groups:
            return self.grouped(task, reading), most
        if reading.passes:
            # Groups of one cohort are named; what is combined has no others.
            return total, self.cohort(task, total)
        if shape is None:
            return total, most
        kept = math.prod(size for axis, size in enumerate(shape) if axis not in reading.reduced)
        return float(kept * reading.arrays), math.inf

    def itemsize(self, task: PlanTask, reading: _Reading, below: list[Expected]) -> float:
        if reading.itemsize is not None:
            return float(reading.itemsize)
        if (reading.combines and not reading.is_final) or reading.passes or task.dtype is None:
            return max((each.size for each in below), default=float(OBJECT_ITEMSIZE))
        return float(OBJECT_ITEMSIZE if task.dtype.hasobject else task.dtype.itemsize)

    def grouped(self, task: PlanTask, reading: _Reading) -> float:
        """Count groups times kept axes of what flox makes of one chunk."""
        if task.shape is None or task.program is None:
            return 0.0
        kept = math.prod(n for axis, n in enumerate(task.shape) if axis not in reading.reduced)
        length = task.shape[reading.reduced[0]] if reading.reduced else 1
        groups = length
        start, end = reading.bound
        for operand in task.program.references[start:end]:
            leaf: Any = self.graph.leaves[-1 - operand] if operand < 0 else None
            if hasattr(leaf, "__len__"):
                groups = len(leaf)
        if start == end:
            groups = min([groups, *map(self.different, task.program.references[end:])])
        self.own_groups[len(self.expected)] = groups
        return float(kept * groups)

    def different(self, operand: int) -> int:
        """Different values of a constant that says which element is of which group."""
        if operand >= 0:
            return sys.maxsize
        if operand not in self.groups:
            leaf: Any = self.graph.leaves[-1 - operand]
            is_known = isinstance(leaf, np.ndarray) and leaf.ndim == 1 and leaf.dtype.kind in "iufM"
            self.groups[operand] = len(np.unique(leaf)) if is_known else sys.maxsize
        return self.groups[operand]

    def cohort(self, task: PlanTask, count: float) -> float:
        """Elements of a combination of results, where the groups of a cohort are named."""
        assert task.program is not None  # noqa: S101
        leaves = [self.graph.leaves[-1 - r] for r in task.program.references if r < 0]
        named = [len(leaf) for leaf in leaves if isinstance(leaf, pd.Index)]
        (below,) = task.dependencies if len(task.dependencies) == 1 else (None,)
        if below is None or not named:
            return math.inf
        groups = self.own_groups.get(below)
        return count * named[0] / groups if groups else math.inf

    def contents(self, task: PlanTask, count: float, size: float) -> Expected:
        """Say what is expected of the values of a task's result."""
        if task.program is None:
            return expected_of_value(task.constant) or unknown(count, size)
        operands = [self.operand(reference) for reference in task.program.references]
        return self.expectations.of(task.program, operands, count)

    def operand(self, reference: int) -> Expected | None:
        if reference >= 0:
            return self.expected[reference]
        if reference not in self.leaves:
            leaf: Any = self.graph.leaves[-1 - reference]
            if isinstance(leaf, SourceReference):
                self.leaves[reference] = expected_of_stored(self.graph.stored[leaf])
            elif isinstance(leaf, HeldReference):
                self.leaves[reference] = unknown(1.0, OBJECT_ITEMSIZE)
            else:
                self.leaves[reference] = expected_of_value(leaf)
        return self.leaves[reference]


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
    share = share_left(value)
    if share is not None:
        return int(share * value.nbytes)
    buffers: list[Buffer] = []
    message = Result(output=0, value=encode_value(value, buffers, table))
    pieces = encode_frame(message, buffers)
    return max(0, sum(memoryview(piece).nbytes for piece in pieces) - FRAME_BYTES)


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
    is_final: bool = False
    """It combines partials to what the collection states."""
    is_dict: bool = False
    """Several arrays by name."""
    passes: bool = False
    """It hands on what flox made."""
    shape: tuple[int, ...] | None = None
    """Where the template says it, and the collection something else."""

    @classmethod
    def of(cls, program: Program) -> _Reading:
        call = last_call(program)
        if call is None:
            return _NOTHING
        name = operation_name(call.function)
        bound = count_references(call.function)
        keeps = keyword(call, "keepdims") is True
        if name == FLOX_REINDEX:
            return cls(passes=True, is_dict=True)
        if tree_node(program) is not None and keyword(call.function, "keepdims") is True:
            final = name == FLOX_AGGREGATE
            return cls(combines=True, is_final=final, is_dict=final or name in DICTS)
        if FLOX_CHUNK in uses(call.function):
            itemsize = _flox_itemsize(call)
            before = sum(map(count_references, program.template.steps[:-1]))
            axes = _axes(keyword(call, "axis", first=True))
            return cls(
                (before, before + bound),
                groups=True,
                reduced=axes,
                itemsize=itemsize,
                is_dict=True,
            )
        arrays = ARRAYS_IN_PARTIAL.get(name or "")
        if (order := _number(keyword(call, "order"))) is not None and arrays:
            # The sum, and a sum of powers for each exponent from 2 on.
            arrays = order
        if name == TOPK:
            arrays = abs(_number(keyword(call, "k")) or 1)
        if name == BINCOUNT and (length := _number(keyword(call, "minlength"))):
            return cls(shape=(length,))
        return cls(
            reduced=_axes(keyword(call, "axis")) if keeps else (),
            itemsize=_itemsize(keyword(call, "dtype")) if arrays else None,
            arrays=arrays or 1,
            is_dict=name in DICTS,
        )


_NOTHING = _Reading()


def _flox_itemsize(call: wire.Call) -> int:
    """Bytes per group of all arrays that flox keeps; counts shrink to nothing on the wire."""
    stated, functions = keyword(call, "dtype", first=True), keyword(call, "func", first=True)
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


def _number(node: wire.Node) -> int | None:
    return node.value if isinstance(node, wire.Number) else None


def _axes(axes: wire.Node) -> tuple[int, ...]:
    items = axes.items if isinstance(axes, wire.Tuple | wire.List) else (axes,)
    return tuple(item.value for item in items if isinstance(item, wire.Number))
