"""Shapes that no collection states, as far as they follow from the task itself.

Dask's helper layers (the pieces of a rechunk, the edges of an overlap) hold slices whose
keys do not match the chunks of their layer.  What a slice of a known shape is like
follows from its index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from federated_dask.planner.graph import PlanGraph, PlanTask
from federated_dask.planner.nodes import last_call, operation_name
from federated_dask.protocol import graph as wire
from federated_dask.protocol.operation_names import READS

__all__ = ["sliced_from", "sliced_shape", "taken_shape"]

SHUFFLE_TAKE = "dask.array._shuffle._getitem"


def sliced_from(task: PlanTask) -> int | None:
    """Position of the task of whose result a task is a slice, or None where it is none."""
    program = task.program
    if program is None or len(program.template.steps) != 1:
        return None
    call = last_call(program)
    if call is None or operation_name(call.function) not in READS or len(call.arguments) < 2:
        return None
    if not isinstance(call.arguments[0], wire.Reference):
        return None
    first = program.references[0]
    return first if first >= 0 else None


def taken_shape(task: PlanTask, graph: PlanGraph, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of what a task of a shuffle takes, along one axis, from a result of a known shape.

    Parameters
    ----------
    task : PlanTask
        The task; its index is a constant of Dask's.
    graph : PlanGraph
        Its graph.
    shape : sequence of int
        Shape of what it takes from.

    Returns
    -------
    tuple of int or None
        None where it is another kind of task.
    """
    call = None if task.program is None else last_call(task.program)
    if task.program is None or call is None or operation_name(call.function) != SHUFFLE_TAKE:
        return None
    operand = task.program.references[-1]
    leaf: Any = graph.leaves[-1 - operand] if operand < 0 else None
    # Dask puts the key of what is sorted in front of the index.
    index = leaf[1] if isinstance(leaf, tuple) and len(leaf) == 2 else None
    if not isinstance(index, tuple) or len(index) != len(shape):
        return None
    return tuple(
        size if isinstance(part, slice) else len(part)
        for part, size in zip(index, shape, strict=True)
    )


def sliced_shape(task: PlanTask, graph: PlanGraph, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of the slice that a task takes, see `sliced_from`.

    Parameters
    ----------
    task : PlanTask
        The task.
    graph : PlanGraph
        Its graph.
    shape : sequence of int
        Shape of what it takes the slice of.

    Returns
    -------
    tuple of int or None
        None where the index is not understood.
    """
    program = task.program
    call = None if program is None else last_call(program)
    if program is None or call is None:
        return None
    index = call.arguments[1]
    parts = index.items if isinstance(index, wire.Tuple) else (index,)
    numbers = iter(program.integers)
    references = iter(program.references[1:])
    result: list[int] = []
    axes = iter(shape)
    for part in parts:
        if part is None:
            result.append(1)
            continue
        size = next(axes, None)
        if size is None:
            return None
        if isinstance(part, wire.Slice):
            bounds = [_integer(bound, numbers) for bound in (part.start, part.stop, part.step)]
            result.append(len(range(*slice(*bounds).indices(size))))
        elif isinstance(part, wire.Integer | wire.Number):
            _integer(part, numbers)
        elif isinstance(part, wire.List):
            if not all(isinstance(item, wire.Integer | wire.Number) for item in part.items):
                return None
            for item in part.items:
                _integer(item, numbers)
            result.append(len(part.items))
        else:
            chosen = _chosen(part, references, graph)
            if chosen is None:
                return None
            result.append(chosen)
    return (*result, *axes)


def _integer(node: wire.Node, numbers: Iterator[int]) -> int | None:
    if isinstance(node, wire.Integer):
        return next(numbers)
    return node.value if isinstance(node, wire.Number) else None


def _chosen(part: wire.Node, references: Iterator[int], graph: PlanGraph) -> int | None:
    """Length of a constant index along its axis."""
    if not isinstance(part, wire.Reference):
        return None
    operand = next(references, 0)
    leaf: Any = graph.leaves[-1 - operand] if operand < 0 else None
    kind = getattr(getattr(leaf, "dtype", None), "kind", "i")
    if not hasattr(leaf, "__len__") or getattr(leaf, "ndim", 1) != 1:
        return None
    return int(leaf.sum()) if kind == "b" else len(leaf)
