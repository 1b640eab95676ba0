"""From a Dask expression to a `PlanGraph`: tasks in topological order, and what they read.

::

    expression ──► raw high-level graph ──► blockwise layers fused ──► tasks ──► programs
                   (finalise kept apart)    (never across sites)       (culled)  (or a reason)

Dask's default optimisation would fuse a task that reads at one site with a task
that reads at another; from then on neither can run at its data.  So blockwise
layers are fused here, with the inputs of every layer in which data of several
sites meet kept as they are.

Every task becomes a `PlanTask`.  Where all it does is in the operation table it
carries a `Program`, the form in which it can be sent to a site; else it says
what stands in the way (`blocker`) and can only run at home.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import xarray.core.indexing as xarray_indexing
from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    Task,
    TaskRef,
    convert_legacy_graph,
)
from dask._task_spec import List as DaskList
from dask.array.chunk import getitem
from dask.array.core import getter, getter_inline, getter_nofancy
from dask.blockwise import Blockwise, optimize_blockwise
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.utils import ensure_dict, key_split

from federated_dask.errors import ConfigurationError
from federated_dask.planner.objects import OBJECTS, KnownObjects
from federated_dask.planner.programs import Foreign, Program, ProgramMaker
from federated_dask.planner.sources import HOME, HeldReference, SourceReference, StoredFacts
from federated_dask.protocol import graph as wire
from federated_dask.protocol.operations import OperationTable

__all__ = [
    "Key",
    "Leaf",
    "PlanGraph",
    "PlanTask",
    "aggregate_node",
    "has_site_data",
    "home_graph",
    "lower",
]

Key: TypeAlias = Hashable
Leaf: TypeAlias = SourceReference | HeldReference | Any
"""An operand that is no task: a stored variable, a held result, or a constant."""

AT_HOME = frozenset({HOME})
GETTERS = (getter, getter_inline, getter_nofancy, getitem, operator.getitem)
LARGEST_CONSTANT = 64 * 1024
"""Arrays of the researcher's own above this many bytes are data at home, not constants."""


@dataclass(slots=True)
class PlanTask:
    """One task of a `PlanGraph`."""

    key: Key
    label: str
    """Name of its layer without the digest, as Dask's dashboards show it."""
    dependencies: tuple[int, ...]
    """Positions of the tasks whose results it needs."""
    program: Program | None
    """What to send to a site; None where it can only run at home."""
    blocker: str | None
    """Why it can only run at home, in words."""
    node: GraphNode | None = field(repr=False)
    """Dask's own node, to run at home; None for what only hands a result to a site."""
    sources: tuple[SourceReference, ...] = ()
    """Stored variables that it reads."""
    held_at: str | None = None
    """Site that holds its result already."""
    shape: tuple[int, ...] | None = None
    """Shape of its result as the collection states it, where it does."""
    dtype: np.dtype | None = None
    finalise: bool = False
    """True for Dask's own last step, which puts chunks together at home."""
    unsendable: str | None = None
    """Why its result, an object of the researcher, has no wire form."""

    @property
    def constant(self) -> object | None:
        """The value that it hands on, where that stands in the graph; None where it is computed."""
        return self.node.value if isinstance(self.node, DataNode) else None


@dataclass
class PlanGraph:
    """Tasks in topological order, the operands that are no tasks, and the outputs.

    `Program.references` holds positions of tasks, or ``-1 - position`` of leaves.
    """

    tasks: list[PlanTask]
    leaves: list[Leaf]
    outputs: dict[Key, int]
    """Requested key to the task that makes it."""
    data: dict[Key, GraphNode] = field(repr=False, default_factory=dict)
    """Dask's nodes of leaves and aliases, needed by tasks that run at home."""
    stored: dict[SourceReference, StoredFacts] = field(default_factory=dict)
    """What is known of the stored variables."""

    def dependents(self) -> list[list[int]]:
        """For every task, the tasks that need its result."""
        result: list[list[int]] = [[] for _ in self.tasks]
        for position, task in enumerate(self.tasks):
            for dependency in task.dependencies:
                result[dependency].append(position)
        return result

    def reordered(self) -> PlanGraph:
        """Bring the tasks into topological order again, without those no output needs.

        The tasks themselves go over to the graph that is returned.
        """
        order: list[int] = []
        state = bytearray(len(self.tasks))
        stack = list(dict.fromkeys(self.outputs.values()))[::-1]
        while stack:
            position = stack[-1]
            if state[position] == 2:
                stack.pop()
            elif state[position] == 1:
                state[position] = 2
                order.append(position)
                stack.pop()
            else:
                state[position] = 1
                stack.extend(d for d in self.tasks[position].dependencies if not state[d])
        new = {old: position for position, old in enumerate(order)}
        tasks = [self.tasks[old] for old in order]
        for task in tasks:
            program = task.program
            if program is not None:
                references = tuple([r if r < 0 else new[r] for r in program.references])
                task.program = Program(program.template, references, program.integers)
            task.dependencies = tuple([new[d] for d in task.dependencies])
        outputs = {key: new[position] for key, position in self.outputs.items()}
        return PlanGraph(tasks, self.leaves, outputs, self.data, self.stored)


def lower(expression: Any, keys: Iterable[Key], table: OperationTable) -> PlanGraph:
    """Lower what Dask hands to a scheduler to a `PlanGraph`.

    Parameters
    ----------
    expression : dask Expr, HighLevelGraph or mapping
        What Dask passes as first argument of a scheduler.
    keys : iterable of keys
        What is to be computed; may be nested lists.
    table : OperationTable
        Operations that at least one site of the federation has.

    Returns
    -------
    PlanGraph
        Culled to what the keys need, in topological order.
    """
    wanted = list(dict.fromkeys(flatten(keys, container=list)))
    graph = _high_level(expression)
    hints: dict[Hashable, Mapping[str, Any]] = {}
    resources: dict[Key, wire.Resources] = {}
    if graph is None:
        nodes = convert_legacy_graph(ensure_dict(_low_level(expression)))
    else:
        hints = {
            name: layer.collection_annotations
            for name, layer in graph.layers.items()
            if layer.collection_annotations
        }
        graph = optimize_blockwise(graph, keys=[*wanted, *_meeting_points(graph, table)])
        graph = graph.cull(set(wanted))
        resources = _resources(graph)
        nodes = convert_legacy_graph(ensure_dict(graph))
    return _Lowering(nodes, hints, table, resources).run(wanted)


def _resources(graph: HighLevelGraph) -> dict[Key, wire.Resources]:
    """Read what ``dask.annotate(resources=…)`` asks for, by key."""
    found: dict[Key, wire.Resources] = {}
    for layer in graph.layers.values():
        stated = (layer.annotations or {}).get("resources")
        if not stated:
            continue
        for key in layer:
            asked = stated(key) if callable(stated) else stated
            found[key] = tuple(sorted((str(name), float(asked[name])) for name in asked))
    return found


def has_site_data(expression: Any) -> bool:
    """Say whether a graph has leaves that sites store or hold."""
    graph = _high_level(expression)
    if graph is not None:
        return any(_sources_of_layer(layer) for layer in graph.layers.values())
    return any(_reference_of(value) is not None for value in _low_level(expression).values())


def _high_level(expression: Any) -> HighLevelGraph | None:
    if isinstance(expression, HighLevelGraph):
        return expression
    operands = [expression] if hasattr(expression, "hlg") else getattr(expression, "operands", [])
    if not operands or not all(hasattr(operand, "hlg") for operand in operands):
        return None
    return HighLevelGraph.merge(*(operand.hlg for operand in operands))


def _low_level(expression: Any) -> Mapping[Key, Any]:
    if isinstance(expression, Mapping):
        return expression
    graph: Mapping[Key, Any] = expression.__dask_graph__()
    return graph


def _meeting_points(graph: HighLevelGraph, table: OperationTable) -> set[Hashable]:
    """Name the layers that must not be fused into the layer that follows.

    These are the inputs of blockwise layers whose inputs come from different
    sets of sites, or that call what is not in the table and so run at home: a
    task fused of both could not run at the data.
    """
    sites: dict[Hashable, frozenset[str]] = {}
    for name in graph._toposort_layers():
        layer = graph.layers[name]
        found = {source.site for source in _sources_of_layer(layer)}
        sites[name] = frozenset(found).union(
            *(sites.get(below, frozenset()) for below in graph.dependencies[name])
        )
        if sites[name] and isinstance(layer, Blockwise) and _is_foreign(layer, table):
            # Its results are at home, and may meet data of its site again.
            sites[name] = AT_HOME
    kept: set[Hashable] = set()
    for name, layer in graph.layers.items():
        if _has_lazy_index(layer):
            # The index is folded into the reads, which must stand alone for that.
            kept.update(above for above, below in graph.dependencies.items() if name in below)
            kept.add(name)
        if (layer.annotations or {}).get("resources"):
            # Dask would have what it is fused with ask for the same.
            kept.update((name, *graph.dependencies[name]))
        if isinstance(layer, Blockwise):
            inputs = {below: sites[below] for below in graph.dependencies[name] if sites[below]}
            is_foreign = sites[name] == AT_HOME and inputs
            if len(set(inputs.values())) > 1 or is_foreign:
                kept.update(inputs)
    return kept


def _has_lazy_index(layer: Any) -> bool:
    for leaf in _leaves_of_layer(layer):
        _, lazy = _unwrap(_data_of(leaf))
        if lazy is not None and not _takes_all(lazy):
            return True
    return False


def _is_foreign(layer: Blockwise, table: OperationTable) -> bool:
    """Say whether what a layer calls is not in the table."""
    if not isinstance(layer.task, Task):
        return True
    try:
        ProgramMaker(table, lambda _: 0, []).make(layer.task)
    except Foreign:
        return True
    return False


def _leaves_of_layer(layer: Any) -> list[Any]:
    if isinstance(layer, Blockwise):
        return [value for value, indices in layer.indices if indices is None]
    return list(layer.mapping.values()) if isinstance(layer, MaterializedLayer) else []


def _sources_of_layer(layer: Any) -> list[SourceReference | HeldReference]:
    found = [_reference_of(candidate) for candidate in _leaves_of_layer(layer)]
    return [reference for reference in found if reference is not None]


def _reference_of(value: Any) -> SourceReference | HeldReference | None:
    """Find the stored variable or held result that a graph's leaf stands for."""
    array, _ = _unwrap(_data_of(value))
    reference = getattr(array, "source", None)
    return reference if isinstance(reference, SourceReference | HeldReference) else None


def _data_of(value: Any) -> Any:
    if isinstance(value, Task) and len(value.args) == 1:
        value = value.args[0]
    return value.value if isinstance(value, DataNode) else value


def _unwrap(value: Any) -> tuple[Any, xarray_indexing.LazilyIndexedArray | None]:
    """Take xarray's adapters off an array; give back its lazy index, if one is left."""
    lazy = None
    while isinstance(
        value,
        xarray_indexing.ImplicitToExplicitIndexingAdapter
        | xarray_indexing.CopyOnWriteArray
        | xarray_indexing.MemoryCachedArray
        | xarray_indexing.LazilyIndexedArray,
    ):
        if isinstance(value, xarray_indexing.LazilyIndexedArray):
            lazy = value
        value = value.array
    return value, lazy


class _Lowering:
    def __init__(
        self,
        nodes: dict[Key, GraphNode],
        hints: Mapping[Hashable, Mapping[str, Any]],
        table: OperationTable,
        resources: Mapping[Key, wire.Resources],
    ) -> None:
        self.nodes = nodes
        self.resources = resources
        self.hints = hints
        self.tasks: list[PlanTask] = []
        self.leaves: list[Leaf] = []
        self.data: dict[Key, GraphNode] = {}
        self.stored: dict[SourceReference, StoredFacts] = {}
        self.position: dict[Key, int] = {}
        """Key to the position of its task, or ``-1 - position`` of its leaf."""
        self.lazy: dict[Key, xarray_indexing.LazilyIndexedArray] = {}
        self.maker = ProgramMaker(table, self.operand, self.leaves)
        self.objects = KnownObjects(self.leaves)

    def operand(self, key: Key) -> int:
        return self.position[self.resolve(key)]

    def resolve(self, key: Key) -> Key:
        node = self.nodes.get(key)
        while isinstance(node, Alias):
            self.data[key] = node
            key = node.target
            node = self.nodes.get(key)
        return key

    def run(self, wanted: Sequence[Key]) -> PlanGraph:
        for key in self.topological(wanted):
            self.add(key, self.nodes[key])
        outputs = {}
        for key in wanted:
            position = self.position[self.resolve(key)]
            outputs[key] = position if position >= 0 else self.leaf_task(key, position)
        return PlanGraph(self.tasks, self.leaves, outputs, self.data, self.stored)

    def topological(self, wanted: Sequence[Key]) -> list[Key]:
        order: list[Key] = []
        done: dict[Key, bool] = {}
        stack = [self.resolve(key) for key in reversed(wanted)]
        while stack:
            key = stack[-1]
            if done.get(key):
                stack.pop()
            elif key in done:
                done[key] = True
                order.append(key)
                stack.pop()
            else:
                done[key] = False
                if key not in self.nodes:
                    if key in wanted:
                        raise KeyError(f"the graph lacks the key {key!r}")
                    raise _missing(key)
                below = (self.resolve(other) for other in self.nodes[key].dependencies)
                stack.extend(other for other in below if other not in done)
        return order

    def add(self, key: Key, node: GraphNode) -> None:
        if isinstance(node, DataNode):
            self.add_data(key, node)
        elif isinstance(reference := _reference_of(node), HeldReference):
            self.add_held(key, node, reference)
        else:
            self.add_task(key, node)

    def add_data(self, key: Key, node: DataNode) -> None:
        reference = _reference_of(node)
        self.data[key] = node
        if isinstance(reference, SourceReference):
            array, lazy = _unwrap(node.value)
            limit = getattr(array, "egress_limit", None)
            content = getattr(array, "content", None)
            self.stored[reference] = StoredFacts(tuple(array.shape), array.dtype, limit, content)
            if lazy is not None and not _takes_all(lazy):
                self.lazy[key] = lazy
            self.position[key] = self.maker.leaf(reference)
            return
        blocker = self.maker.blocker_of(node.value)
        size = getattr(node.value, "nbytes", 0)
        if blocker is None and size <= LARGEST_CONSTANT:
            self.position[key] = self.maker.leaf(node.value)
            return
        task = PlanTask(key, _label(key), (), None, blocker or "data of the researcher", node)
        task.unsendable = blocker
        task.shape, task.dtype = (
            getattr(node.value, "shape", None),
            getattr(node.value, "dtype", None),
        )
        self.objects.add_value(len(self.tasks), node.value)
        self.append(task)

    def add_held(self, key: Key, node: GraphNode, reference: HeldReference) -> None:
        program = Program(wire.Template((wire.Reference(),)), (self.maker.leaf(reference),), ())
        task = PlanTask(key, _label(key), (), program, None, node, held_at=reference.site)
        self.append(self.with_hint(task))

    def add_task(self, key: Key, node: GraphNode) -> None:
        finalise = str(key).startswith("finalize-")
        program, blocker = None, None
        if not finalise:
            try:
                program = self.maker.make(
                    self.with_composed_indices(node), self.resources.get(key, ())
                )
            except Foreign as foreign:
                blocker = str(foreign)
        operands = {self.operand(below) for below in node.dependencies}
        dependencies = tuple(sorted(operand for operand in operands if operand >= 0))
        for below in dependencies:
            if (unsendable := self.tasks[below].unsendable) is not None:
                # Its value is no result of a task: it cannot be brought to a site later either.
                program, blocker = None, unsendable
        sources = tuple(
            leaf
            for operand in operands
            if operand < 0 and isinstance(leaf := self.leaves[-1 - operand], SourceReference)
        )
        grow, are_result = (False, False) if program is None else self.objects.followed(program)
        if grow:
            program, blocker = None, OBJECTS
        task = PlanTask(key, _label(key), dependencies, program, blocker, node, sources)
        task.finalise = finalise
        self.with_hint(task)
        made = task.dtype is not None and task.dtype.hasobject and program is None
        if made or (are_result and (task.dtype is None or task.dtype.hasobject)):
            self.objects.add(len(self.tasks))
        self.append(task)

    def with_composed_indices(self, node: GraphNode) -> GraphNode:
        """Fold the lazy index of an xarray variable into the task that reads from it.

        A variable indexed before it was chunked holds its index in the leaf; a
        stored variable at a site knows nothing of it.

        Raises
        ------
        Foreign
            If the task does something else with the variable.
        """
        indexed = [key for key in node.dependencies if self.resolve(key) in self.lazy]
        if not indexed:
            return node
        if not isinstance(node, Task) or node.func not in GETTERS or len(node.args) < 2:
            raise Foreign("it does not read an indexed variable by slicing")
        first, index, *rest = node.args
        if not isinstance(first, TaskRef | Alias) or isinstance(index, TaskRef | Alias):
            raise Foreign("it does not read an indexed variable by slicing")
        lazy = self.lazy[self.resolve(indexed[0])]
        if isinstance(index, DataNode):
            index = index.value
        composed = lazy.oindex[xarray_indexing.OuterIndexer(_outer(index, lazy.ndim))]
        return Task(node.key, node.func, first, composed.key.tuple, *rest, **node.kwargs)

    def with_hint(self, task: PlanTask) -> PlanTask:
        name, *index = task.key if isinstance(task.key, tuple) else (task.key,)
        hint = self.hints.get(name)
        chunks = hint.get("chunks") if hint else None
        if hint is None or chunks is None or len(chunks) != len(index):
            return task
        try:
            shape = tuple(sizes[i] for sizes, i in zip(chunks, index, strict=True))
        except (IndexError, TypeError):
            return task
        task.dtype = hint.get("dtype")
        task.shape = None if any(math.isnan(size) for size in shape) else shape
        return task

    def append(self, task: PlanTask) -> int:
        self.position[task.key] = len(self.tasks)
        self.tasks.append(task)
        return len(self.tasks) - 1

    def leaf_task(self, key: Key, position: int) -> int:
        """Make a task of a requested leaf: its value is at home already."""
        node = self.data[self.resolve(key)]
        return self.append(PlanTask(key, _label(key), (), None, "data of the researcher", node))


def _missing(key: Key) -> ConfigurationError:
    """Error for a result that is not in the graph: a Client of Dask's holds it elsewhere."""
    return ConfigurationError(
        f"The expression needs {_label(key)!r}, which was persisted on another Dask Client.",
        hint="Compute that part with that Client first, and use its result here: "
        "`part = client.compute(part).result()`.",
    )


def _takes_all(lazy: xarray_indexing.LazilyIndexedArray) -> bool:
    return all(isinstance(part, slice) and part == slice(None) for part in lazy.key.tuple)


def _outer(index: Any, ndim: int) -> tuple[Any, ...]:
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(
        np.asarray(part) if isinstance(part, list) else part
        for part in (*parts, *[slice(None)] * (ndim - len(parts)))
    )


def _label(key: Key) -> str:
    return str(key_split(key))


def aggregate_node(task: PlanTask, inputs: Sequence[Key], depth: int) -> GraphNode:
    """Make Dask's node of a reduction over other inputs, nested `depth` lists deep."""
    assert isinstance(task.node, Task)  # noqa: S101
    nested: Any = DaskList(*(TaskRef(cast(Any, key)) for key in inputs))
    for _ in range(depth - 1):
        nested = DaskList(nested)
    return Task(task.key, task.node.func, nested, **task.node.kwargs)


def home_graph(
    graph: PlanGraph, positions: Iterable[int], values: Mapping[int, Any]
) -> dict[Key, GraphNode]:
    """Make the Dask graph of tasks that run at home.

    Parameters
    ----------
    graph : PlanGraph
        The graph.
    positions : iterable of int
        Tasks to run.
    values : mapping of int to object
        Results of other tasks, by position.

    Returns
    -------
    dict
        Key to node; keys of results given in `values` are data nodes.
    """
    nodes: dict[Key, GraphNode] = {}
    for position in positions:
        task = graph.tasks[position]
        assert task.node is not None  # noqa: S101
        nodes[task.key] = task.node
    for position, value in values.items():
        key = graph.tasks[position].key
        nodes[key] = DataNode(key, value)
    _close(nodes, graph)
    return nodes


def _close(nodes: dict[Key, GraphNode], graph: PlanGraph) -> None:
    """Add leaves and aliases that the nodes refer to."""
    stack = [key for node in nodes.values() for key in node.dependencies]
    while stack:
        key = stack.pop()
        if key in nodes:
            continue
        nodes[key] = graph.data[key]
        stack.extend(nodes[key].dependencies)
