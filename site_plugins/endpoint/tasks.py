"""From a checked graph to Dask tasks, with keys that the site mints.

::

    checked graph ─► what the outputs need ─► linear chains ─► digests = keys ─► Dask tasks
                        (columns)               (columns)       (task by task)    (column by column)

A key is a digest of what its task does: template, integers and the digests of
its operands, down to the versions of the datasets.  Equal work gets equal keys
and is done once, whoever asks; and nobody can name another's key.

Chains of tasks with one consumer each become one Dask task, and slices of slices
become one slice, so that a read fetches only what is used: what
`dask.array.optimization.optimize` does, but before keys are minted.  There, a
key stays the same whether or not something was fused into its task; two jobs
that differ in this would give the scheduler two definitions of one key, which
can make it hang (dask/dask#9888).  Here, what is fused is part of the digest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from dask._task_spec import GraphNode, TaskRef

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol import graph as wire
from federated_dask.protocol.operations import OperationTable
from site_plugins.datasets import StoredVariable
from site_plugins.endpoint.fusion import one_task
from site_plugins.endpoint.operands import Digest, Operands, digest_of, operands_of
from site_plugins.endpoint.programs import Program
from site_plugins.scheduler_plugin import LeasedOutput

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["BuiltGraph", "build_graph"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """Dask tasks, and what is asked of them."""

    tasks: dict[Key, GraphNode]
    keys: list[Key]
    """Key of each output."""
    labels: list[frozenset[str]]
    """Datasets that each output derives from."""
    resources: dict[Key, dict[str, float]] = dataclasses.field(default_factory=dict)
    """What tasks ask for of a worker."""


def build_graph(
    checked: wire.CheckedGraph,
    outputs: Sequence[int],
    *,
    sources: Sequence[StoredVariable],
    buffers: Sequence[bytearray],
    held: Sequence[LeasedOutput],
    table: OperationTable,
    limit: int | None = None,
) -> BuiltGraph:
    """Build Dask tasks.

    Parameters
    ----------
    checked : CheckedGraph
        From `check_graph`.
    outputs : sequence of int
        Tasks that are asked for, as indices among the tasks of the graph.
    sources : sequence of StoredVariable
        What the graph's sources stand for.
    buffers : sequence of bytearray
        Buffers of the frame, for the graph's values.
    held : sequence of LeasedOutput
        What the graph's held results stand for.
    table : OperationTable
        Where operations are looked up.
    limit : int, optional
        Bytes that the result of one operation may take; checked before it is called.

    Returns
    -------
    BuiltGraph
        Only what the outputs need.

    Raises
    ------
    RequestRefused
        If a value does not parse, or an output is no task of the graph.
    """
    first, count = checked.graph.first_task, checked.graph.tasks
    if any(not 0 <= output < count for output in outputs):
        raise RequestRefused("An output is no task of the graph.", reason=Reason.MALFORMED)
    wanted = np.unique(np.asarray([first + output for output in outputs], dtype=np.int64))
    operands = operands_of(checked.graph, sources, buffers, held, table, limit)
    blocks = _needed(checked, wanted)
    fused = _linear(blocks, wanted, operands, checked.graph)
    names = [_Names.of(template) for template in checked.graph.templates]
    minted = _mint(blocks, fused, names, operands, checked.graph)
    tasks = dict(operands.nodes)
    programs = [Program(template, table, limit) for template in checked.graph.templates]
    _assemble(tasks, blocks, fused, minted, programs, operands)
    labels = _labels(blocks, checked.graph, sources, held)
    keys = [minted.keys[first + output] for output in outputs]
    return BuiltGraph(
        tasks=_without_unused(tasks, operands.nodes),
        keys=keys,
        labels=[labels(first + output) for output in outputs],
        resources=_resources(tasks, blocks, minted, checked.graph),
    )


def _resources(
    tasks: Mapping[Key, GraphNode], blocks: list[_Block], minted: _Minted, graph: wire.Graph
) -> dict[Key, dict[str, float]]:
    """List what tasks ask for of a worker, by key."""
    found: dict[Key, dict[str, float]] = {}
    for block in blocks:
        asked = dict(graph.templates[block.template].resources)
        if asked:
            keys = (minted.keys[number] for number in block.numbers.tolist())
            found.update((key, asked) for key in keys if key in tasks)
    return found


def _without_unused(
    tasks: dict[Key, GraphNode], values: Mapping[Key, GraphNode]
) -> dict[Key, GraphNode]:
    if values:
        used = {key for task in tasks.values() for key in task.dependencies}
        for key in values.keys() - used:
            del tasks[key]
    return tasks


# What is needed, and what becomes one Dask task


class _Block(msgspec.Struct):
    """The needed tasks of a block."""

    template: int
    numbers: np.ndarray
    """Operand numbers of the tasks, shape (count,), ascending."""
    references: np.ndarray
    integers: np.ndarray


def _needed(checked: wire.CheckedGraph, wanted: np.ndarray) -> list[_Block]:
    needed = np.zeros(checked.graph.first_task + checked.graph.tasks, dtype=bool)
    needed[wanted] = True
    end = len(needed)
    found = []
    # Tasks refer to earlier blocks only, so one look at each block is enough.
    for block in reversed(checked.blocks):
        start = end - len(block.references)
        chosen = needed[start:end]
        if chosen.any():
            references = block.references[chosen]
            needed[references] = True
            numbers = start + np.flatnonzero(chosen)
            found.append(_Block(block.template, numbers, references, block.integers[chosen]))
        end = start
    return found[::-1]


class _Fused(msgspec.Struct):
    """Which tasks are parts of their one consumer's Dask task."""

    into: np.ndarray
    """The consumer of an operand that is fused into it, else -1; shape (operands,), int64."""
    first: np.ndarray
    """The operand that is fused into a task, else -1; shape (operands,), int64."""


def _linear(
    blocks: list[_Block], wanted: np.ndarray, operands: Operands, graph: wire.Graph
) -> _Fused:
    """Fuse a task into its only consumer where it is that one's only dependency."""
    asks = [template.resources for template in graph.templates]
    size = graph.first_task + graph.tasks
    is_key = np.ones(size, dtype=bool)
    is_key[: graph.first_task] = operands.separate
    dependencies = np.zeros(size, dtype=np.int64)
    dependents = np.zeros(size, dtype=np.int64)
    consumer = np.full(size, -1, dtype=np.int64)
    # Tasks that ask for different resources are not for the same worker.
    kinds = {resources: number for number, resources in enumerate({(), *asks})}
    asked = np.full(size, kinds[()], dtype=np.int64)
    for block in blocks:
        asked[block.numbers] = kinds[asks[block.template]]
        references = np.sort(block.references, axis=1)
        counts = is_key[references]
        if references.shape[1] > 1:
            counts[:, 1:] &= references[:, 1:] != references[:, :-1]
        dependencies[block.numbers] = counts.sum(axis=1)
        chosen = references[counts]
        if chosen.size:
            dependents += np.bincount(chosen, minlength=size)
            consumer[chosen] = np.repeat(block.numbers, counts.sum(axis=1))
    fusible = (dependents == 1) & (dependencies[consumer] == 1)
    fusible &= asked == asked[consumer]
    fusible[: graph.first_task] = False
    fusible[wanted] = False
    into = np.where(fusible, consumer, -1)
    first = np.full(size, -1, dtype=np.int64)
    first[into[fusible]] = np.flatnonzero(fusible)
    return _Fused(into, first)


# Keys


class _Names(msgspec.Struct):
    """What keys of a template's tasks are made of."""

    name: str
    digest: Digest

    @classmethod
    def of(cls, template: wire.Template) -> _Names:
        digest = digest_of(b"template", msgspec.msgpack.encode(template))
        return cls(_short_name(template.steps[-1]), digest)


def _short_name(node: wire.Node) -> str:
    for part in wire.walk(node):
        if isinstance(part, wire.Operation):
            return part.name.rpartition(".")[2].strip("_")
    return "data"


class _Minted(msgspec.Struct):
    keys: dict[int, Key]
    references: dict[int, TaskRef]


def _mint(
    blocks: list[_Block],
    fused: _Fused,
    names: list[_Names],
    operands: Operands,
    graph: wire.Graph,
) -> _Minted:
    digests: list[Digest] = [*operands.digests, *([b""] * graph.tasks)]
    # Tasks of one group do the same; the scheduler decides by group what to queue.
    groups: dict[tuple[int, str], str] = {}
    group_of: dict[int, str] = {}
    keys: dict[int, Key] = {}
    references: dict[int, TaskRef] = {}
    for block in blocks:
        template = names[block.template]
        width = 8 * block.integers.shape[1]
        integers = block.integers.tobytes()
        firsts = fused.first[block.numbers].tolist()
        rows = zip(block.numbers.tolist(), block.references.tolist(), firsts, strict=True)
        for row, (number, needs, inner) in enumerate(rows):
            described = (
                template.digest
                + (b"\1" if inner >= 0 else b"\0")
                + integers[row * width : (row + 1) * width]
                + b"".join([digests[needed] for needed in needs])
            )
            digest = digests[number] = blake2b(described, digest_size=16).digest()
            before = group_of[inner] if inner >= 0 else ""
            group = groups.get((block.template, before))
            if group is None:
                token = digest_of(template.digest, before.encode()).hex()[:16]
                group = groups[block.template, before] = f"{template.name}-{token}"
            group_of[number] = group
            key = keys[number] = (group, digest.hex())
            references[number] = TaskRef(key)
    return _Minted(keys, references)


# Dask tasks


def _assemble(
    tasks: dict[Key, GraphNode],
    blocks: list[_Block],
    fused: _Fused,
    minted: _Minted,
    programs: list[Program],
    operands: Operands,
) -> None:
    arguments = dict(enumerate(operands.arguments))
    arguments.update(minted.references)
    chains: dict[int, list[GraphNode]] = {}
    keys = minted.keys
    for block in blocks:
        numbers = block.numbers.tolist()
        columns = [
            [arguments[number] for number in column] for column in block.references.T.tolist()
        ]
        steps = programs[block.template].tasks(
            [keys[number] for number in numbers], columns, block.integers.T.tolist()
        )
        consumers = fused.into[block.numbers].tolist()
        firsts = fused.first[block.numbers].tolist()
        for number, into, inner, *nodes in zip(numbers, consumers, firsts, *steps, strict=True):
            chain = [*chains.pop(inner), *nodes] if inner >= 0 else nodes
            if into >= 0:
                chains[number] = chain
            else:
                tasks[keys[number]] = chain[0] if len(chain) == 1 else one_task(chain)


# Which datasets results derive from


def _labels(
    blocks: list[_Block],
    graph: wire.Graph,
    sources: Sequence[StoredVariable],
    held: Sequence[LeasedOutput],
) -> Callable[[int], frozenset[str]]:
    """Return a function from operand number to the datasets that the operand derives from."""
    names = dict.fromkeys(variable.dataset.name for variable in sources)
    names.update(dict.fromkeys(name for output in held for name in sorted(output.label)))
    bits = {name: position for position, name in enumerate(names)}
    shape = (graph.first_task + graph.tasks, len(bits))
    derives = np.zeros(shape, dtype=bool)
    for number, variable in enumerate(sources):
        derives[number, bits[variable.dataset.name]] = True
    for number, output in enumerate(held, start=len(sources) + len(graph.values)):
        for name in output.label:
            derives[number, bits[name]] = True
    for block in blocks:
        derives[block.numbers] = derives[block.references].any(axis=1)
    return lambda number: frozenset(name for name, bit in bits.items() if derives[number, bit])
