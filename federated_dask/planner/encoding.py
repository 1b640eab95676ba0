"""One site's share of a plan → the graph that is sent to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.sources import HeldReference, SourceReference
from federated_dask.protocol import graph as wire
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.trees import Value
from federated_dask.protocol.values import encode_value

__all__ = ["EncodedGraph", "encode_graph"]


@dataclass(frozen=True)
class EncodedGraph:
    """A graph in wire form."""

    graph: wire.Graph
    buffers: list[Buffer]
    numbers: dict[int, int]
    """Position of a task in the plan to its position among the tasks of the wire graph."""


def encode_graph(
    graph: PlanGraph,
    tasks: Sequence[int],
    values: Mapping[int, Any],
    held: Mapping[int, wire.Held],
    table: OperationTable,
    confirmed: Sequence[int] = (),
) -> EncodedGraph:
    """Encode some tasks of a plan for one site.

    Parameters
    ----------
    graph : PlanGraph
        The plan's graph.
    tasks : sequence of int
        Tasks to encode, in topological order.
    values : mapping of int to object
        Results sent along, by the position of the task that made them.
    held : mapping of int to Held
        Results that the site holds, by the position of the task that made them.
    table : OperationTable
        Resolves callables inside constants.
    confirmed : sequence of int
        Leaves to name although no task needs them.

    Returns
    -------
    EncodedGraph
    """
    leaves = list(dict.fromkeys((*_leaves_of(graph, tasks), *confirmed)))
    sources = [leaf for leaf in leaves if isinstance(graph.leaves[leaf], SourceReference)]
    own_held = [leaf for leaf in leaves if isinstance(graph.leaves[leaf], HeldReference)]
    references = {*sources, *own_held}
    constants = [leaf for leaf in leaves if leaf not in references]
    buffers: list[Buffer] = []
    encoded: list[Value] = [
        encode_value(value, buffers, table)
        for value in (*(graph.leaves[leaf] for leaf in constants), *values.values())
    ]
    numbers = np.full(len(graph.tasks), -1, dtype=np.int64)
    leaf_numbers = np.full(len(graph.leaves), -1, dtype=np.int64)
    leaf_numbers[[*sources, *constants]] = range(len(sources) + len(constants))
    number = len(sources) + len(constants)
    for positions in (values, held):
        for position in positions:
            numbers[position] = number
            number += 1
    leaf_numbers[own_held] = range(number, number + len(own_held))
    number += len(own_held)
    templates, groups = _groups(graph, tasks)
    for _, members in groups:
        numbers[members] = range(number, number + len(members))
        number += len(members)
    message = wire.Graph(
        sources=tuple(_source(cast(SourceReference, graph.leaves[leaf])) for leaf in sources),
        values=tuple(encoded),
        held=(
            *held.values(),
            *(_held(cast(HeldReference, graph.leaves[leaf])) for leaf in own_held),
        ),
        templates=tuple(templates),
        blocks=tuple(
            _block(graph, template, members, numbers, leaf_numbers) for template, members in groups
        ),
    )
    first = message.first_task
    return EncodedGraph(message, buffers, {task: int(numbers[task]) - first for task in tasks})


def _leaves_of(graph: PlanGraph, tasks: Sequence[int]) -> list[int]:
    found: dict[int, None] = {}
    for position in tasks:
        program = graph.tasks[position].program
        assert program is not None  # noqa: S101
        for reference in program.references:
            if reference < 0:
                found[-1 - reference] = None
    return list(found)


def _source(reference: SourceReference) -> wire.Source:
    return wire.Source(reference.dataset, reference.version, reference.variable)


def _held(reference: HeldReference) -> wire.Held:
    return wire.Held(reference.lease, reference.output)


def _groups(
    graph: PlanGraph, tasks: Sequence[int]
) -> tuple[list[wire.Template], list[tuple[int, list[int]]]]:
    """Group tasks by level and template: a block refers to earlier blocks only."""
    templates: dict[wire.Template, int] = {}
    levels: dict[int, int] = {}
    groups: dict[tuple[int, int], list[int]] = {}
    for position in tasks:
        task = graph.tasks[position]
        assert task.program is not None  # noqa: S101
        level = max(
            (levels[below] + 1 for below in task.dependencies if below in levels), default=0
        )
        levels[position] = level
        template = templates.setdefault(task.program.template, len(templates))
        groups.setdefault((level, template), []).append(position)
    return list(templates), [
        (template, groups[level, template]) for level, template in sorted(groups)
    ]


def _block(
    graph: PlanGraph,
    template: int,
    members: Sequence[int],
    numbers: np.ndarray,
    leaf_numbers: np.ndarray,
) -> wire.Block:
    programs = [program for position in members if (program := graph.tasks[position].program)]
    references = np.array([program.references for program in programs], dtype=np.int64)
    integers = np.array([program.integers for program in programs], dtype=np.int64)
    resolved = references.copy()
    of_tasks = references >= 0
    resolved[of_tasks] = numbers[references[of_tasks]]
    resolved[~of_tasks] = leaf_numbers[-1 - references[~of_tasks]]
    columns = (*resolved.T, *integers.T)
    return wire.Block(
        template, len(members), tuple(wire.encode_column(column) for column in columns)
    )
