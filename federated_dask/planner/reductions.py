"""Tree reductions whose inputs lie at several sites: one partial per site.

Dask reduces chunks to partials, combines partials in a tree, and aggregates what
is left.  The tree follows the order of the chunks, so that after a `concat` its
nodes mix sites, and every input of such a node would have to travel::

    n0 n1 s0 s1   n2 n3 s2 s3            n0 n1 n2 n3       s0 s1 s2 s3
      combine       combine         ►      combine           combine
           aggregate                        north ── aggregate ── south
    8 partials cross                     2 partials cross: sites × output

A reduction can be split where combining is associative, and Dask's layers say
how to combine: the combine nodes of the same tree where there are any, else the
keywords of the chunk step and the aggregate step.  Reductions over positions
(`argmin` …) keep the order of their inputs: equal values are told apart by it.
Which reductions can be split was found by trying each over two stores against
the plain result.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from federated_dask.planner.graph import PlanGraph, PlanTask, aggregate_node
from federated_dask.planner.interpretation import node_of
from federated_dask.planner.nodes import (
    TreeNode,
    count_references,
    keyword,
    last_call,
    operation_name,
    tree_node,
    uses,
)
from federated_dask.planner.origins import origins, resources_of
from federated_dask.planner.programs import Program
from federated_dask.planner.sources import HOME, SiteFacts
from federated_dask.protocol import graph as wire
from federated_dask.protocol.operations import OperationTable

__all__ = ["split_reductions"]

FAN_IN = 16
"""Inputs of one combine task: bounds the memory of a worker that combines."""

_REDUCTIONS = "dask.array.reductions."
ITSELF = frozenset(
    {
        "numpy.all",
        "numpy.any",
        "numpy.max",
        "numpy.min",
        "numpy.prod",
        "numpy.sum",
        "numpy.nansum",
        "numpy.nanprod",
        _REDUCTIONS + "_nanmax_skip",
        _REDUCTIONS + "_nanmin_skip",
        _REDUCTIONS + "chunk_max",
        _REDUCTIONS + "chunk_min",
    }
)
"""Operations that combine their own results."""

COMBINE = {
    _REDUCTIONS + "mean_agg": _REDUCTIONS + "mean_combine",
    _REDUCTIONS + "moment_agg": _REDUCTIONS + "moment_combine",
    _REDUCTIONS + "arg_agg": _REDUCTIONS + "arg_combine",
    _REDUCTIONS + "nanarg_agg": _REDUCTIONS + "arg_combine",
}
"""Aggregating operation to the operation that combines for it."""

ALIKE = {
    _REDUCTIONS + "chunk_max": "numpy.max",
    _REDUCTIONS + "chunk_min": "numpy.min",
}
"""Combining operation to another that combines the same way: in the tree below it."""

CONCATENATE = "dask.array.core._concatenate2"
FLOX_AGGREGATE = "flox.dask._aggregate"
FLOX_COMBINE = frozenset({"flox.dask._grouped_combine", "flox.dask._simple_combine"})
COMBINING = ITSELF | frozenset(COMBINE.values()) | FLOX_COMBINE

ORDERED = frozenset(
    {_REDUCTIONS + "arg_agg", _REDUCTIONS + "nanarg_agg", _REDUCTIONS + "arg_combine"}
)
"""Reductions that must combine neighbours only."""

_UNORDERED = ("all", "any", "count", "len", "max", "mean", "min", "prod", "std", "sum", "var")
FLOX_UNORDERED = frozenset((*_UNORDERED, *(f"nan{name}" for name in _UNORDERED)))
"""Aggregations of flox that may combine their inputs in any order; not so `first` or `argmax`."""

COPIED = {
    _REDUCTIONS + "mean_combine": ("sum", "numel"),
    _REDUCTIONS + "moment_combine": ("sum", "order"),
}
"""Keywords that combining takes over from the chunk step (those of the aggregate can differ)."""


def split_reductions(
    graph: PlanGraph, facts: Mapping[str, SiteFacts], table: OperationTable
) -> PlanGraph:
    """Rewrite every tree reduction that mixes sites into per-site partials and one aggregate.

    Parameters
    ----------
    graph : PlanGraph
        In topological order.
    facts : mapping of str to SiteFacts
        The sites.
    table : OperationTable
        Operations of this process: a partial may turn out to be best made at home.

    Returns
    -------
    PlanGraph
        In topological order; the same graph where nothing mixes.
    """
    sites = origins(graph, facts)
    mixed = [position for position, where in enumerate(sites) if len(where) > 1]
    nodes = {position: tree_node(graph.tasks[position].program) for position in mixed}
    splitter = _Splitter(graph, facts, sites, nodes, table)
    for position in reversed(mixed):
        splitter.split(position)
    return graph.reordered() if splitter.changed else graph


class _Splitter:
    def __init__(
        self,
        graph: PlanGraph,
        facts: Mapping[str, SiteFacts],
        sites: list[frozenset[str]],
        nodes: dict[int, TreeNode | None],
        table: OperationTable,
    ) -> None:
        self.graph = graph
        self.facts = facts
        self.sites = sites
        self.nodes = nodes
        self.table = table
        self.absorbed: set[int] = set()
        # Tasks that do the same share their template, here as well.
        self.templates: dict[wire.Template, wire.Template] = {}
        self.changed = False

    def split(self, position: int) -> None:
        node = self.nodes[position]
        if node is None or position in self.absorbed:
            return
        combining = _combining(node)
        if combining is None:
            return
        inputs = self.flatten(node, combining)
        combine = self.combine_function(node, combining, inputs)
        if combine is None:
            return
        runs = _runs(inputs, self.sites, self.is_ordered(node))
        if len(runs) == len(node.inputs) and inputs == list(node.inputs):
            return
        partials = []
        for number, run in enumerate(runs):
            if len(run) > 1 and self.can_combine(run, combine[0]):
                partials.append(self.combine_run(position, number, run, combine, node.depth))
            else:
                partials.extend(run)
        self.replace_inputs(position, node, partials)

    def is_ordered(self, node: TreeNode) -> bool:
        if not node.operation.startswith("flox."):
            return node.operation in ORDERED
        aggregation = _bound_leaf(node, "agg", self.graph)
        return getattr(aggregation, "name", None) not in FLOX_UNORDERED

    def flatten(self, node: TreeNode, combining: str) -> list[int]:
        """List a node's inputs, those of combine nodes that mix sites in place of these."""
        result = []
        stack = list(reversed(node.inputs))
        while stack:
            position = stack.pop()
            below = self.nodes.get(position)
            if below is not None and below.depth == node.depth and _same(below, combining):
                self.absorbed.add(position)
                stack.extend(reversed(below.inputs))
            else:
                result.append(position)
        return result

    def combine_function(
        self, node: TreeNode, combining: str, inputs: Sequence[int]
    ) -> tuple[wire.Node, tuple[int, ...]] | None:
        """Find the callable that combines partials of this tree, and the constants bound to it."""
        if node.operation == combining:
            return _kept_dimensions(node.function), node.bound
        for position in (*node.inputs, *inputs):
            below = tree_node(self.graph.tasks[position].program)
            if below is not None and below.operation == combining and below.depth == node.depth:
                return below.function, below.bound
        if combining.startswith("flox."):
            return _flox_combine(node)
        return self.derived_combine(node, combining, inputs[0])

    def derived_combine(
        self, node: TreeNode, combining: str, chunk: int
    ) -> tuple[wire.Node, tuple[int, ...]] | None:
        program = self.graph.tasks[chunk].program
        call = None if program is None else last_call(program)
        if call is None:
            return None
        copied = [(name, keyword(call, name)) for name in COPIED.get(combining, ())]
        keywords = (
            *((name, value) for name, value in copied if value is not None),
            ("axis", keyword(node.function, "axis")),
            ("keepdims", True),
        )
        inner, rest = _innermost(node.function)
        combine: wire.Node = wire.Partial(wire.Operation(combining), inner.arguments, keywords)
        if any(count_references(value) for _, value in keywords):
            return None
        return (wire.Compose((combine, *rest)) if rest else combine), ()

    def can_combine(self, run: list[int], function: wire.Node) -> bool:
        """Say whether a run lies at one site that has the operations to combine it."""
        if len(self.sites[run[0]]) != 1:
            return False
        (place,) = self.sites[run[0]]
        return place != HOME and uses(function) <= self.facts[place].operations

    def combine_run(
        self,
        position: int,
        number: int,
        run: list[int],
        combine: tuple[wire.Node, tuple[int, ...]],
        depth: int,
    ) -> int:
        """Add the tasks that combine one run at its site; give back the last one."""
        function, bound = combine
        aggregate = self.graph.tasks[position]
        level = list(run)
        count = itertools.count()
        while len(level) > 1:
            above = []
            for start in range(0, len(level), FAN_IN):
                part = level[start : start + FAN_IN]
                if len(part) == 1:
                    above.append(part[0])
                    continue
                key = ("federated-combine", aggregate.key, number, next(count))
                above.append(self.add_combine(key, part, function, bound, depth))
            level = above
        return level[0]

    def add_combine(
        self,
        key: tuple[object, ...],
        inputs: list[int],
        function: wire.Node,
        bound: tuple[int, ...],
        depth: int,
    ) -> int:
        first = self.graph.tasks[inputs[0]]
        keys = {other: self.graph.tasks[other].key for other in inputs}
        call = wire.Call(function, (_nested(len(inputs), depth),))
        program = Program(self.template(call), (*bound, *inputs), ())
        task = PlanTask(
            key=key,
            label=str(operation_name(function)).rpartition(".")[2],
            dependencies=tuple(sorted(set(inputs))),
            program=program,
            blocker=None,
            node=node_of(key, program, keys, self.graph.leaves, self.table),
            shape=first.shape,
            dtype=first.dtype,
        )
        self.graph.tasks.append(task)
        self.sites.append(self.sites[inputs[0]])
        return len(self.graph.tasks) - 1

    def template(self, call: wire.Call, resources: wire.Resources = ()) -> wire.Template:
        template = wire.Template((call,), resources)
        return self.templates.setdefault(template, template)

    def replace_inputs(self, position: int, node: TreeNode, inputs: list[int]) -> None:
        task = self.graph.tasks[position]
        call = wire.Call(node.function, (_nested(len(inputs), node.depth),))
        keys = [self.graph.tasks[other].key for other in inputs]
        self.graph.tasks[position] = replace(
            task,
            dependencies=tuple(sorted(set(inputs))),
            program=Program(self.template(call, resources_of(task)), (*node.bound, *inputs), ()),
            node=aggregate_node(task, keys, node.depth),
        )
        self.changed = True


def _same(below: TreeNode, combining: str) -> bool:
    return combining in (below.operation, ALIKE.get(below.operation))


def _combining(node: TreeNode) -> str | None:
    """Operation that combines partials of a tree, or None where it cannot be split."""
    if node.operation == FLOX_AGGREGATE:
        combine = keyword(node.function, "combine")
        found = None if combine is None else operation_name(combine)
    else:
        found = COMBINE.get(node.operation, node.operation)
    if found in ITSELF and CONCATENATE not in uses(node.function):
        # Over a bare list it reduces the list, which is no axis of the chunks.
        return None
    return found if found in COMBINING else None


def _bound_leaf(node: TreeNode, name: str, graph: PlanGraph) -> object:
    """Find the constant that a callable holds as a keyword, or None."""
    holes = iter(node.bound)
    function: wire.Node = node.function
    while isinstance(function, wire.Partial):
        inner = count_references(function.function)
        list(itertools.islice(holes, inner + sum(map(count_references, function.arguments))))
        for key, value in function.keywords:
            found = tuple(itertools.islice(holes, count_references(value)))
            if key == name and len(found) == 1 and found[0] < 0:
                return graph.leaves[-1 - found[0]]
        holes = iter(node.bound[:inner])
        function = function.function
    return None


def _runs(inputs: Sequence[int], sites: Sequence[frozenset[str]], ordered: bool) -> list[list[int]]:
    """Group inputs by site: neighbours only where the order counts."""
    if ordered:
        return [list(run) for _, run in itertools.groupby(inputs, key=sites.__getitem__)]
    groups: dict[frozenset[str], list[int]] = {}
    for position in inputs:
        groups.setdefault(sites[position], []).append(position)
    return list(groups.values())


def _nested(count: int, depth: int) -> wire.Node:
    # Chunks of partials have length 1 along every reduced axis, so any of these
    # axes may hold the list: the innermost does.
    node: wire.Node = wire.List((wire.Reference(),) * count)
    for _ in range(depth - 1):
        node = wire.List((node,))
    return node


def _innermost(function: wire.Node) -> tuple[wire.Partial, tuple[wire.Node, ...]]:
    """Take off the partial that is applied last; give also what is composed before it."""
    rest: tuple[wire.Node, ...] = ()
    if isinstance(function, wire.Compose):
        first, *before = function.functions
        function, rest = first, tuple(before)
    return function if isinstance(function, wire.Partial) else wire.Partial(function), rest


def _kept_dimensions(function: wire.Node) -> wire.Node:
    """Make the same callable with ``keepdims=True``, as combining needs it."""
    inner, rest = _innermost(function)
    keywords = tuple((name, value) for name, value in inner.keywords if name != "keepdims")
    kept = wire.Partial(inner.function, inner.arguments, (*keywords, ("keepdims", True)))
    return wire.Compose((kept, *rest)) if rest else kept


def _flox_combine(node: TreeNode) -> tuple[wire.Node, tuple[int, ...]] | None:
    """Make the combining callable from the keywords of flox's aggregate."""
    outer = node.function
    if not isinstance(outer, wire.Partial):
        return None
    bound = iter(node.bound)
    held: dict[str, tuple[int, ...]] = {}
    for name, value in outer.keywords:
        held[name] = tuple(itertools.islice(bound, count_references(value)))
    combine, aggregation = keyword(outer, "combine"), keyword(outer, "agg")
    if not isinstance(combine, wire.Partial) or aggregation is None:
        return None
    keywords = (
        *combine.keywords,
        ("agg", aggregation),
        ("axis", keyword(outer, "axis")),
        ("keepdims", True),
    )
    function = wire.Partial(combine.function, combine.arguments, keywords)
    return function, (*held["combine"], *held["agg"])
