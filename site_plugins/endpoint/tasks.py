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
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import msgspec
import numpy as np
import toolz
from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.array import chunk
from dask.array.core import getter, getter_inline, getter_nofancy
from dask.array.optimization import fuse_slice

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operation_names import READS
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.values import (
    ArrayValue,
    CFTimeValue,
    TextArrayValue,
    Value,
    decode_value,
)
from site_plugins.datasets import StoredVariable
from site_plugins.scheduler_plugin import READ_TOPIC, LeasedOutput

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["BuiltGraph", "MeteredVariable", "build_graph", "read_task"]

INLINED_BYTES = 1024
"""A value smaller than this is written into each task that uses it."""

Digest: TypeAlias = bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """Dask tasks, and what is asked of them."""

    tasks: dict[Key, GraphNode]
    keys: list[Key]
    """Key of each output."""
    labels: list[frozenset[str]]
    """Datasets that each output derives from."""


@dataclasses.dataclass(frozen=True)
class MeteredVariable:
    """A stored variable that tells the scheduler how many bytes were read from it."""

    variable: StoredVariable

    def __getitem__(self, index: Any) -> np.ndarray:
        from distributed.worker import get_worker

        values = self.variable[index]
        get_worker().log_event(
            READ_TOPIC, {"key": get_worker().get_current_task(), "bytes": values.nbytes}
        )
        return values


def read_task(variable: StoredVariable, index: tuple[Any, ...]) -> tuple[Key, Task]:
    """Make a task that reads a part of a stored variable."""
    described = msgspec.msgpack.encode(
        [
            [part.start, part.stop, part.step] if isinstance(part, slice) else _plain(part)
            for part in index
        ]
    )
    token = _digest(b"read", _source_digest(variable), described).hex()
    key = ("read", token)
    return key, Task(key, getter, DataNode(None, MeteredVariable(variable)), index)


def _plain(part: Any) -> Any:
    return {"take": part.tolist()} if isinstance(part, np.ndarray) else part


def build_graph(
    checked: wire.CheckedGraph,
    outputs: Sequence[int],
    *,
    sources: Sequence[StoredVariable],
    buffers: Sequence[bytearray],
    held: Sequence[LeasedOutput],
    table: OperationTable,
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
    operands = _operands(checked.graph, sources, buffers, held, table)
    blocks = _needed(checked, wanted)
    fused = _linear(blocks, wanted, operands, checked.graph)
    names = [_Names.of(template) for template in checked.graph.templates]
    minted = _mint(blocks, fused, names, operands, checked.graph)
    tasks = dict(operands.nodes)
    programs = [_Program(template, table) for template in checked.graph.templates]
    _assemble(tasks, blocks, fused, minted, programs, operands)
    labels = _labels(blocks, checked.graph, sources, held)
    keys = [minted.keys[first + output] for output in outputs]
    return BuiltGraph(
        tasks=_without_unused(tasks, operands.nodes),
        keys=keys,
        labels=[labels(first + output) for output in outputs],
    )


def _without_unused(
    tasks: dict[Key, GraphNode], values: Mapping[Key, GraphNode]
) -> dict[Key, GraphNode]:
    if values:
        used = {key for task in tasks.values() for key in task.dependencies}
        for key in values.keys() - used:
            del tasks[key]
    return tasks


# Operands that are not tasks


class _Operands(msgspec.Struct):
    """Sources, values and held results, by operand number."""

    arguments: list[Any]
    """What stands for the operand in a task."""
    digests: list[Digest]
    separate: np.ndarray
    """Whether it is a key of its own, shape (operands,), bool."""
    nodes: dict[Key, GraphNode]
    """Values that are keys of their own."""


def _operands(
    graph: wire.Graph,
    sources: Sequence[StoredVariable],
    buffers: Sequence[bytearray],
    held: Sequence[LeasedOutput],
    table: OperationTable,
) -> _Operands:
    arguments: list[Any] = []
    digests: list[Digest] = []
    separate = []
    nodes: dict[Key, GraphNode] = {}
    for variable in sources:
        digests.append(_source_digest(variable))
        # Slices are fused into the read, so the node is shared but never a key of its own.
        arguments.append(DataNode("source", MeteredVariable(variable)))
        separate.append(False)
    for value in graph.values:
        size, digest = _value_digest(value, buffers)
        digests.append(digest)
        decoded = decode_value(value, buffers, resolver=table)
        separate.append(size >= INLINED_BYTES)
        if size >= INLINED_BYTES:
            key: Key = ("value", digest.hex())
            nodes[key] = DataNode(key, decoded)
            arguments.append(TaskRef(key))
        else:
            arguments.append(decoded)
    for output in held:
        digests.append(_digest(b"held", msgspec.msgpack.encode(output.key)))
        arguments.append(TaskRef(output.key))
        separate.append(True)
    return _Operands(arguments, digests, np.array(separate, dtype=bool), nodes)


def _source_digest(variable: StoredVariable) -> Digest:
    dataset = variable.dataset
    described = (dataset.name, dataset.opening, variable.version, variable.variable)
    return _digest(b"source", msgspec.msgpack.encode(described))


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
    return size, _digest(*parts)


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


def _digest(*parts: Buffer) -> Digest:
    digest = blake2b(digest_size=16)
    for part in parts:
        # The length in front keeps two parts from reading as one.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


# What is needed, and what becomes one Dask task


class _Block(msgspec.Struct):
    """The needed tasks of a block."""

    template: int
    numbers: np.ndarray
    """Operand numbers of the tasks, shape (count,), ascending."""
    references: np.ndarray
    integers: np.ndarray
    within: bool
    """Whether tasks refer to others of the same block."""


def _needed(checked: wire.CheckedGraph, wanted: np.ndarray) -> list[_Block]:
    needed = np.zeros(checked.graph.first_task + checked.graph.tasks, dtype=bool)
    needed[wanted] = True
    end = len(needed)
    found = []
    for block in reversed(checked.blocks):
        count = len(block.references)
        start = end - count
        within = bool(block.references.size) and bool(block.references.max() >= start)
        if within:
            for row in range(count - 1, -1, -1):
                if needed[start + row]:
                    needed[block.references[row]] = True
        else:
            needed[block.references[needed[start:end]]] = True
        chosen = needed[start:end]
        if chosen.any():
            numbers = start + np.flatnonzero(chosen)
            found.append(
                _Block(
                    block.template,
                    numbers,
                    block.references[chosen],
                    block.integers[chosen],
                    within,
                )
            )
        end = start
    return found[::-1]


class _Fused(msgspec.Struct):
    """Which tasks are parts of their one consumer's Dask task."""

    into: np.ndarray
    """The consumer of an operand that is fused into it, else -1; shape (operands,), int64."""
    first: np.ndarray
    """The operand that is fused into a task, else -1; shape (operands,), int64."""


def _linear(
    blocks: list[_Block], wanted: np.ndarray, operands: _Operands, graph: wire.Graph
) -> _Fused:
    """Fuse a task into its only consumer where it is that one's only dependency."""
    size = graph.first_task + graph.tasks
    is_key = np.ones(size, dtype=bool)
    is_key[: graph.first_task] = operands.separate
    dependencies = np.zeros(size, dtype=np.int64)
    dependents = np.zeros(size, dtype=np.int64)
    consumer = np.full(size, -1, dtype=np.int64)
    for block in blocks:
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
        digest = _digest(b"template", msgspec.msgpack.encode(template))
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
    operands: _Operands,
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
                token = _digest(template.digest, before.encode()).hex()[:16]
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
    programs: list[_Program],
    operands: _Operands,
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
                tasks[keys[number]] = chain[0] if len(chain) == 1 else _one_task(chain)


def _one_task(steps: list[GraphNode]) -> GraphNode:
    """Make one Dask task of steps of which each uses earlier ones; the last one is the result."""
    steps = _fuse_slices(steps)
    if len(steps) == 1:
        return steps[0]
    needed: dict[Key, None] = {}
    inside: set[Key] = set()
    for step in steps:
        needed.update(dict.fromkeys(step.dependencies - inside))
        inside.add(step.key)
    return Task(
        steps[-1].key,
        run_steps,
        tuple(steps),
        tuple(needed),
        *map(TaskRef, needed),
        _data_producer=any(step.data_producer for step in steps),
    )


def run_steps(steps: tuple[GraphNode, ...], names: tuple[Key, ...], *inputs: object) -> Any:
    """Run the steps of a task one after the other, at a worker."""
    values = dict(zip(names, inputs, strict=True))
    last_use = {name: at for at, step in enumerate(steps) for name in step.dependencies}
    result: object = None
    for at, step in enumerate(steps):
        values[step.key] = result = step(values)
        for name in step.dependencies:
            if last_use[name] == at:
                del values[name]
    return result


GETTERS = (getter, getter_nofancy, getter_inline, chunk.getitem)


def _fuse_slices(steps: list[GraphNode]) -> list[GraphNode]:
    """Read ``x[a][b]`` as ``x[a∘b]``, by the rules of `dask.array.optimization`."""
    uses: dict[Key, int] = {}
    for step in steps:
        for key in step.dependencies:
            uses[key] = uses.get(key, 0) + 1
    kept: dict[Key, GraphNode] = {}
    for step in steps:
        inner = _getter_below(step, kept, uses)
        merged = None if inner is None else _merged(*inner)
        if merged is not None and inner is not None:
            del kept[inner[1].key]
        kept[step.key] = merged or step
    return list(kept.values())


def _getter_below(
    step: GraphNode, kept: Mapping[Key, GraphNode], uses: Mapping[Key, int]
) -> tuple[Task, Task] | None:
    """Give a getter and the getter that it alone reads from, if it is one."""
    if not _is_getter(step) or not isinstance(step.args[0], TaskRef):
        return None
    key = step.args[0].key
    inner = kept.get(key)
    # An index may refer to it once more, which the second condition sees.
    if inner is None or uses[key] != 1 or key not in step.dependencies or not _is_getter(inner):
        return None
    return step, inner


def _is_getter(step: GraphNode) -> TypeGuard[Task]:
    return (
        type(step) is Task
        and step.func in GETTERS
        and len(step.args) in (2, 4)
        and not step.kwargs
        and not isinstance(step.args[1], GraphNode | TaskRef)
    )


def _merged(outer: Task, inner: Task) -> Task | None:
    a_index, b_index = outer.args[1], inner.args[1]
    a_asarray, a_lock = outer.args[2:] or (outer.func is not chunk.getitem, None)
    b_asarray, b_lock = inner.args[2:] or (inner.func is not chunk.getitem, None)
    is_tuple = type(a_index) is tuple
    if (a_lock and a_lock is not b_lock) or is_tuple != (type(b_index) is tuple):
        return None
    indices = (*b_index, *a_index) if is_tuple else (b_index, a_index)
    if is_tuple and len(a_index) != len(b_index) and None in map(_none, indices):
        return None
    fancy = any(isinstance(index, list | np.ndarray) for index in indices)
    if inner.func is getter_nofancy and fancy:
        return None
    try:
        index = fuse_slice(b_index, a_index)
    except (NotImplementedError, IndexError, TypeError, ValueError):
        return None
    get = getter if inner.func is getter_inline else inner.func
    asarray = a_asarray or b_asarray
    options = () if get is chunk.getitem or (asarray and not b_lock) else (asarray, b_lock)
    return Task(outer.key, get, inner.args[0], index, *options, _data_producer=inner.data_producer)


def _none(item: object) -> object:
    # Arrays compare elementwise; only whether an item is None matters.
    return None if item is None else 0


# Templates, column by column

_Column: TypeAlias = Iterable[Any]
"""One object for each task of a block."""


class _Constant(msgspec.Struct, frozen=True):
    """What is the same for each task of a block."""

    value: Any


class _Program:
    """A template, ready to make the tasks of a block.

    Nodes are turned into objects for all tasks of a block at once, by `map` and
    `zip`, which is several times faster than task by task.
    """

    def __init__(self, template: wire.Template, table: OperationTable) -> None:
        self.template = template
        self.table = table
        used = {len(template.steps) - 1}
        for position in range(len(template.steps) - 1, -1, -1):
            if position in used:
                used |= {
                    node.step
                    for node in wire.walk(template.steps[position])
                    if isinstance(node, wire.Local)
                }
        self.used = used

    def tasks(
        self, keys: list[Key], references: list[list[Any]], integers: list[list[int]]
    ) -> list[list[GraphNode]]:
        """Make the nodes of each step that is used, one for each key.

        Parameters
        ----------
        keys : list of key
            Keys of the tasks.
        references : list of list
            For each hole of a reference, the argument of each task.
        integers : list of list of int
            For each hole of an integer, the integer of each task.
        """
        columns = _Columns(iter(references), iter(integers), self.table)
        last = len(self.template.steps) - 1
        found = []
        for position, step in enumerate(self.template.steps):
            names: list[Key] = (
                keys if position == last else [(*_parts(key), position) for key in keys]
            )
            nodes = columns.step(step, names)
            if position in self.used:
                found.append(nodes)
            columns.steps.append([TaskRef(name) for name in names] if position < last else [])
        return found


def _parts(key: Key) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


class _Columns:
    """Turns nodes into columns; takes the holes in the order in which `walk` visits them."""

    def __init__(
        self, references: Iterator[list[Any]], integers: Iterator[list[int]], table: OperationTable
    ) -> None:
        self.references = references
        self.integers = integers
        self.table = table
        self.steps: list[list[TaskRef]] = []

    def step(self, node: wire.Node, keys: list[Key]) -> list[GraphNode]:
        if isinstance(node, wire.Call):
            function, arguments, names = self.call(node)
            return _tasks(
                keys, function, arguments, names, is_read=_is_read(node) and bool(arguments)
            )
        is_dynamic = _is_dynamic(node)
        column = self.expand(node)
        values = itertools.repeat(column.value) if isinstance(column, _Constant) else column
        pairs = zip(keys, values, strict=False)
        if is_dynamic:
            return [Task(key, _same, value) for key, value in pairs]
        return [DataNode(key, value) for key, value in pairs]

    def expand(self, node: wire.Node) -> _Constant | _Column:
        if isinstance(node, wire.Reference):
            return next(self.references)
        if isinstance(node, wire.Integer):
            return next(self.integers)
        if isinstance(node, wire.Local):
            return self.steps[node.step]
        if isinstance(node, wire.Call):
            function, arguments, names = self.call(node)
            return _combine(functools.partial(_nested, function, names), arguments)
        if isinstance(node, wire.Partial | wire.Compose | wire.Slice | wire.List | wire.Tuple):
            make, names = _maker(node)
            parts = [self.expand(child) for child in wire.children(node)]
            if _is_dynamic(node):
                return _combine(functools.partial(_nested, make, names), parts)
            return _combine(functools.partial(_called, make, names) if names else make, parts)
        if isinstance(node, wire.Dictionary):
            parts = [self.expand(child) for child in wire.children(node)]
            make = functools.partial(_nested, _dict, ()) if _is_dynamic(node) else _dict
            return _combine(make, parts)
        return _Constant(self.constant(node))

    def call(
        self, node: wire.Call
    ) -> tuple[Callable[..., Any], list[_Constant | _Column], tuple[str, ...]]:
        """Give function, arguments and names of the last arguments, which are keywords."""
        function = self.expand(node.function)
        arguments = [self.expand(argument) for argument in node.arguments]
        names = _keywords(node.keywords)
        arguments += [self.expand(value) for _, value in node.keywords]
        if isinstance(function, _Constant) and not isinstance(function.value, GraphNode):
            return function.value, arguments, names
        return _call, [function, *arguments], names

    def constant(self, node: Any) -> Any:
        if isinstance(node, wire.Operation):
            return self.table.lookup(node.name)
        if isinstance(node, wire.Number):
            return node.value
        if isinstance(node, wire.Float):
            return float.fromhex(node.text)
        if isinstance(node, wire.Bytes):
            return node.data
        if isinstance(node, wire.Scalar):
            return np.frombuffer(node.data, dtype=decode_dtype(node.dtype), count=1)[0]
        if isinstance(node, wire.DataType):
            return decode_dtype(node.dtype)
        if isinstance(node, wire.EllipsisNode):
            return Ellipsis
        return node


def _combine(make: Callable[..., Any], parts: list[_Constant | _Column]) -> _Constant | _Column:
    if all(isinstance(part, _Constant) for part in parts):
        return _Constant(make(*(part.value for part in parts if isinstance(part, _Constant))))
    return map(
        make,
        *(itertools.repeat(part.value) if isinstance(part, _Constant) else part for part in parts),
    )


def _tasks(
    keys: list[Key],
    function: Callable[..., Any],
    arguments: list[_Constant | _Column],
    names: tuple[str, ...],
    *,
    is_read: bool,
) -> list[GraphNode]:
    columns = [
        itertools.repeat(part.value) if isinstance(part, _Constant) else part for part in arguments
    ]
    rows = zip(*columns, strict=False) if columns else itertools.repeat(())
    pairs = zip(keys, rows, strict=False)
    if not names:
        return [Task(key, function, *row, _data_producer=is_read) for key, row in pairs]
    at = len(arguments) - len(names)
    return [
        Task(key, function, *row[:at], **dict(zip(names, row[at:], strict=True)))
        for key, row in pairs
    ]


def _is_read(node: wire.Call) -> bool:
    return isinstance(node.function, wire.Operation) and node.function.name in READS


def _is_dynamic(node: wire.Node) -> bool:
    """Whether a worker has to evaluate the node: it holds results of tasks, or calls."""
    return any(
        isinstance(part, wire.Reference | wire.Local | wire.Call) for part in wire.walk(node)
    )


def _maker(
    node: wire.Partial | wire.Compose | wire.Slice | wire.List | wire.Tuple,
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    if isinstance(node, wire.Partial):
        return functools.partial, _keywords(node.keywords)
    if isinstance(node, wire.Compose):
        return toolz.compose, ()
    if isinstance(node, wire.Slice):
        return slice, ()
    return (_list if isinstance(node, wire.List) else _tuple), ()


def _keywords(pairs: tuple[tuple[str, wire.Node], ...]) -> tuple[str, ...]:
    names = tuple(name for name, _ in pairs)
    # The one keyword that Dask's tasks keep for themselves is no argument of any operation.
    if len(set(names)) != len(names) or "_data_producer" in names:
        raise RequestRefused("The keywords of a call do not fit.", reason=Reason.MALFORMED)
    return names


def _called(function: Callable[..., Any], names: tuple[str, ...], /, *arguments: Any) -> Any:
    at = len(arguments) - len(names)
    return function(*arguments[:at], **dict(zip(names, arguments[at:], strict=True)))


def _nested(function: Callable[..., Any], names: tuple[str, ...], /, *arguments: Any) -> Task:
    return _called(functools.partial(Task, None, function), names, *arguments)  # type: ignore[no-any-return]


# Dask's own containers take a lone tuple for the arguments themselves.


def _same(value: object) -> object:
    return value


def _list(*items: object) -> list[object]:
    return list(items)


def _tuple(*items: object) -> tuple[object, ...]:
    return items


def _dict(*items: Any) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _call(function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    return function(*arguments, **keywords)


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
        if block.within:
            for number, needs in zip(block.numbers.tolist(), block.references, strict=True):
                derives[number] = derives[needs].any(axis=0)
        elif bits:
            derives[block.numbers] = derives[block.references].any(axis=1)
    return lambda number: frozenset(name for name, bit in bits.items() if derives[number, bit])
