"""Bytes that tasks read from stored variables, decoded and on a link."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

from federated_dask.planner.graph import PlanGraph, PlanTask
from federated_dask.planner.nodes import operation_name
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol import graph as wire
from federated_dask.protocol.operation_names import READS

__all__ = ["OBJECT_ITEMSIZE", "all_brought_bytes", "brought_bytes", "read_bytes"]

OBJECT_ITEMSIZE = 8
"""Bytes for which an element of unknown size is taken."""


def read_bytes(task: PlanTask, graph: PlanGraph) -> int:
    """Bytes, decoded, that a task reads from stored variables.

    Returns
    -------
    int
        0 where the task reads nothing; the whole variables where it does not say what.
    """
    return _Reads(graph).of(task)


def all_brought_bytes(graph: PlanGraph) -> list[int]:
    """Bytes that what every task reads takes on a link, see `brought_bytes`."""
    reads = _Reads(graph)
    return [
        int(reads.of(task) * _share_told(task, graph)) if task.sources else 0
        for task in graph.tasks
    ]


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


def brought_bytes(task: PlanTask, graph: PlanGraph) -> int:
    """Bytes that what a task reads from stored variables takes on a link.

    Returns
    -------
    int
        Those before compression where the site did not tell, or where they count as such.
    """
    return int(read_bytes(task, graph) * _share_told(task, graph)) if task.sources else 0


def _share_told(task: PlanTask, graph: PlanGraph) -> float:
    """Share of the bytes of what a task reads that is left on the wire, as its site told."""
    return max(
        1.0 if stored.content is None or stored.egress_limit is not None else stored.content.left
        for stored in (graph.stored[source] for source in task.sources)
    )


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
