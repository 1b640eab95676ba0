"""Templates, turned into the Dask tasks of a block column by column.

Nodes become objects for all tasks of a block at once, by `map` and `zip`, which is
several times faster than task by task::

    Slice(▢, ▢, None)   ─►   map(slice, [0, 10, 20, …], [10, 20, 30, …], repeat(None))
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
import toolz
from dask._task_spec import DataNode, GraphNode, Task, TaskRef

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.nodes import applied_first
from federated_dask.protocol.operation_names import READS, TEXTS
from federated_dask.protocol.operations import OperationTable
from site_plugins.endpoint.guards import guarded

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["Program"]

"""One object for each task of a block."""


_Column: TypeAlias = Iterable[Any]
"""One object for each task of a block."""


class _Constant(msgspec.Struct, frozen=True):
    """What is the same for each task of a block."""

    value: Any


class Program:
    """A template, ready to make the tasks of a block, whose results have at most `limit` bytes.

    Nodes are turned into objects for all tasks of a block at once, by `map` and
    `zip`, which is several times faster than task by task.
    """

    def __init__(
        self, template: wire.Template, table: OperationTable, limit: int | None = None
    ) -> None:
        self.template = template
        self.table = table
        self.limit = limit
        used = {len(template.steps) - 1}
        for position in range(len(template.steps) - 1, -1, -1):
            if position in used:
                used |= {
                    node.step
                    for node in wire.walk(template.steps[position])
                    if isinstance(node, wire.Local)
                }
        self.used = used
        self.dynamic = _dynamic(template)

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
        columns = _Columns(iter(references), iter(integers), self.table, self.dynamic, self.limit)
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
        self,
        references: Iterator[list[Any]],
        integers: Iterator[list[int]],
        table: OperationTable,
        dynamic: frozenset[int],
        limit: int | None,
    ) -> None:
        self.references = references
        self.integers = integers
        self.table = table
        self.dynamic = dynamic
        self.limit = limit
        self.steps: list[list[TaskRef]] = []

    def step(self, node: wire.Node, keys: list[Key]) -> list[GraphNode]:
        if isinstance(node, wire.Call):
            function, arguments, names = self.call(node)
            return _tasks(
                keys, function, arguments, names, is_read=_is_read(node) and bool(arguments)
            )
        is_dynamic = id(node) in self.dynamic
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
            first, *others = wire.children(node) or (None,)
            if isinstance(node, wire.Partial):
                parts = [self.expand(first), *self.arguments(first, others)]
            else:
                parts = [self.expand(child) for child in wire.children(node)]
            if id(node) in self.dynamic:
                return _combine(functools.partial(_nested, make, names), parts)
            return _combine(functools.partial(_called, make, names) if names else make, parts)
        if isinstance(node, wire.Dictionary):
            parts = [self.expand(child) for child in wire.children(node)]
            make = functools.partial(_nested, _dict, ()) if id(node) in self.dynamic else _dict
            return _combine(make, parts)
        return _Constant(self.constant(node))

    def call(
        self, node: wire.Call
    ) -> tuple[Callable[..., Any], list[_Constant | _Column], tuple[str, ...]]:
        """Give function, arguments and names of the last arguments, which are keywords."""
        function = self.expand(node.function)
        given = [*node.arguments, *(value for _, value in node.keywords)]
        arguments = self.arguments(node.function, given)
        names = _keywords(node.keywords)
        if isinstance(function, _Constant) and not isinstance(function.value, GraphNode):
            return function.value, arguments, names
        return _call, [function, *arguments], names

    def arguments(
        self, function: wire.Node, nodes: Sequence[wire.Node]
    ) -> list[_Constant | _Column]:
        """Expand what is given to a function."""
        # flox knows some functions by what they are, and looks after their results itself.
        is_text = applied_first(function)[0] in TEXTS
        limit, self.limit = self.limit, None if is_text else self.limit
        found = [self.expand(node) for node in nodes]
        self.limit = limit
        return found

    def constant(self, node: Any) -> Any:
        if isinstance(node, wire.Operation):
            return guarded(self.table, node.name, self.limit)
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


def _dynamic(template: wire.Template) -> frozenset[int]:
    """Ids of the nodes that a worker has to evaluate: they hold results of tasks, or calls.

    Found from below, in one walk: asked anew at each level, deep nesting of wide lists
    would be walked as often as it is deep.
    """
    found: set[int] = set()

    def visit(node: wire.Node) -> bool:
        below = [visit(child) for child in wire.children(node)]
        is_dynamic = any(below) or isinstance(node, wire.Reference | wire.Local | wire.Call)
        if is_dynamic:
            found.add(id(node))
        return is_dynamic

    for step in template.steps:
        visit(step)
    return frozenset(found)


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
