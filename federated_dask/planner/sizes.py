"""Estimated bytes of what tasks make and of what they read from storage.

Collections state shape, dtype and chunks of what they hold; for the partials of
reductions that is the shape *before* the reduction (Dask takes the note too
early), so partials have rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from federated_dask.planner.graph import PlanGraph, PlanTask
from federated_dask.planner.nodes import keyword, last_call, operation_name, tree_node, uses
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.operation_names import READS

__all__ = ["estimate_sizes", "read_bytes"]

_REDUCTIONS = "dask.array.reductions."

ARRAYS_IN_PARTIAL = {
    # Counts are equal all over a chunk as a rule, and shrink to nothing on the wire.
    _REDUCTIONS + "mean_chunk": 1,
    _REDUCTIONS + "moment_chunk": 2,
    _REDUCTIONS + "arg_chunk": 2,
}
"""How many arrays of the result's shape a partial holds."""

FLOX_CHUNK = "flox.core.chunk_reduce"
OBJECT_ITEMSIZE = 8


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
    sizes: list[int] = []
    for task in graph.tasks:
        sizes.append(_estimate(task, graph, sizes))
    return sizes


def _estimate(task: PlanTask, graph: PlanGraph, sizes: Sequence[int]) -> int:
    inputs = [sizes[dependency] for dependency in task.dependencies]
    call = None if task.program is None else last_call(task.program)
    name = None if call is None else operation_name(call.function)
    if call is not None and task.program is not None:
        node = tree_node(task.program)
        if node is not None and keyword(call.function, "keepdims") is True:
            return max(inputs)
        if FLOX_CHUNK in uses(call.function):
            return _flox_chunk(task, call, graph)
    if task.shape is None:
        return sum(inputs)
    itemsize = OBJECT_ITEMSIZE if task.dtype is None else task.dtype.itemsize
    shape = task.shape
    if call is not None:
        shape = _kept(shape, call)
        stated = keyword(call, "dtype")
        if isinstance(stated, wire.DataType) and name in ARRAYS_IN_PARTIAL:
            itemsize = decode_dtype(stated.dtype).itemsize
    return math.prod(shape) * itemsize * ARRAYS_IN_PARTIAL.get(name or "", 1)


def _kept(shape: tuple[int, ...], call: wire.Call) -> tuple[int, ...]:
    """Shape after a reduction that keeps its axes with length 1."""
    if keyword(call, "keepdims") is not True:
        return shape
    axes = _integers(keyword(call, "axis"))
    return tuple(1 if axis in axes else length for axis, length in enumerate(shape))


def _integers(node: wire.Node) -> tuple[int, ...]:
    if isinstance(node, wire.Number):
        return (node.value,)
    if isinstance(node, wire.Tuple | wire.List):
        return tuple(item.value for item in node.items if isinstance(item, wire.Number))
    return ()


def _flox_chunk(task: PlanTask, call: wire.Call, graph: PlanGraph) -> int:
    """Groups × kept axes × the arrays that flox keeps per group."""
    assert task.program is not None  # noqa: S101
    if task.shape is None:
        return 0
    inner = _applied_first(call.function)
    axes = _integers(keyword(inner, "axis"))
    kept = math.prod(size for axis, size in enumerate(task.shape) if axis not in axes)
    groups = task.shape[axes[0]] if axes else 1
    references = iter(task.program.references)
    for part in wire.walk(call.function):
        if isinstance(part, wire.Reference):
            operand = next(references)
            leaf: Any = graph.leaves[-1 - operand] if operand < 0 else None
            if hasattr(leaf, "__len__"):
                groups = len(leaf)
    dtypes = keyword(inner, "dtype")
    items = dtypes.items if isinstance(dtypes, wire.Tuple) else (dtypes,)
    itemsizes = [
        decode_dtype(item.dtype).itemsize for item in items if isinstance(item, wire.DataType)
    ]
    return kept * groups * (sum(itemsizes) or OBJECT_ITEMSIZE)


def _applied_first(function: wire.Node) -> wire.Node:
    while isinstance(function, wire.Compose) and function.functions:
        function = function.functions[-1]
    return function


def read_bytes(task: PlanTask, graph: PlanGraph) -> int:
    """Bytes, decoded, that a task reads from stored variables.

    Returns
    -------
    int
        0 where the task reads nothing; the whole variables where it does not say what.
    """
    program = task.program
    if not task.sources:
        return 0
    if program is None:
        return sum(_stored_bytes(source, graph) for source in task.sources)
    total = references = integers = 0
    for step in program.template.steps:
        for node in wire.walk(step):
            if isinstance(node, wire.Reference):
                references += 1
            elif isinstance(node, wire.Integer):
                integers += 1
            elif _is_read(node):
                # The holes of a call come after it in the walk, its operand's first.
                operand = program.references[references]
                leaf = graph.leaves[-1 - operand] if operand < 0 else None
                if isinstance(leaf, SourceReference):
                    stored = graph.stored[leaf]
                    numbers = iter(program.integers[integers:])
                    lengths = _lengths(node.arguments[1], stored.shape, numbers)
                    total += math.prod(lengths) * stored.dtype.itemsize
    return total


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
