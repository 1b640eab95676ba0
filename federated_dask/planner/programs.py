"""One Dask task → one program: a template with holes, and what fills them.

Only data that has a wire form and callables of the operation table get into a
program; for anything else `Foreign` is raised, and says what it was.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import sysconfig
import textwrap
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from dask._task_spec import (
    Alias,
    DataNode,
    Dict,
    GraphNode,
    List,
    Set,
    Task,
    TaskRef,
    Tuple,
    _execute_subgraph,
    _identity_cast,
)
from dask.utils import funcname
from toolz.functoolz import Compose, curry

from federated_dask.errors import FederatedError
from federated_dask.planner.sources import HeldReference, SourceReference
from federated_dask.planner.substitutes import CannotSubstitute, equivalent, is_wrapping, substitute
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import encode_dtype
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.rules import (
    TemplateFacts,
    check_bound_value,
    check_template,
    check_value,
)
from federated_dask.protocol.values import encode_value

__all__ = ["Foreign", "Program", "ProgramMaker", "describe_callable", "written_at"]

CONTAINERS = (List, Tuple, Dict, Set)
INT64 = range(-(2**63), 2**63)
LIBRARIES = frozenset({"site-packages", "dist-packages"})
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
LONGEST_LINE = 80
LONGEST_INLINE = 32
"""Sequences of plain data longer than this cross as one constant instead of many nodes."""


class Foreign(Exception):
    """Something in a task that cannot be sent to a site, in words."""


@dataclass(frozen=True, slots=True)
class Program:
    """A template and what fills its holes.

    `references` holds positions of tasks, or ``-1 - position`` of leaves.
    """

    template: wire.Template
    references: tuple[int, ...]
    integers: tuple[int, ...]


class _Holes:
    """The holes of the program in the making."""

    __slots__ = ("integers", "local", "references")

    def __init__(self) -> None:
        self.references: list[int] = []
        self.integers: list[int] = []
        self.local: dict[Hashable, Any] = {}


class ProgramMaker:
    """Make programs of the tasks of one graph.

    Parameters
    ----------
    table : OperationTable
        What may be called.
    operand : callable
        From a key to its operand number.
    leaves : list
        Operands that are no tasks; constants found in tasks are appended.
    """

    def __init__(
        self, table: OperationTable, operand: Callable[[Hashable], int], leaves: list[Any]
    ) -> None:
        self.table = table
        self.operand = operand
        self.leaves = leaves
        self._leaf_of: dict[Hashable, int] = {}
        # Tasks of one layer share their callable and much of their arguments;
        # by identity, with the object kept alive beside what was made of it.
        self._functions: dict[int, tuple[object, wire.Node, tuple[int, ...]]] = {}
        self._checked: dict[int, tuple[object, str | None]] = {}
        self._templates: dict[wire.Template, tuple[wire.Template, TemplateFacts | str]] = {}
        self._bound: dict[int, str | None] = {}

    def make(self, node: GraphNode, resources: wire.Resources = ()) -> Program:
        """Make the program of one task.

        Parameters
        ----------
        node : GraphNode
            The task.
        resources : tuple of (str, float), optional
            What it asks for of a worker.

        Raises
        ------
        Foreign
            If something in it has no wire form.
        """
        while isinstance(node, Task) and is_wrapping(node):
            # Dask gives some tasks another key in this way, fused ones too.
            node = node.args[0]
        holes = _Holes()
        if not isinstance(node, Task) or isinstance(node, CONTAINERS):
            steps: tuple[wire.Node, ...] = (self.argument(node, holes),)
        elif node.func is _execute_subgraph:
            steps = self.subgraph(node, holes)
        else:
            steps = (self.call(node, holes),)
        template, facts = self.template(steps, resources)
        self.check_references(holes.references, facts)
        return Program(template, tuple(holes.references), tuple(holes.integers))

    def template(
        self, steps: tuple[wire.Node, ...], resources: wire.Resources = ()
    ) -> tuple[wire.Template, TemplateFacts]:
        """Give the one template of these steps, checked as a site will check it."""
        template = wire.Template(steps, resources)
        known = self._templates.get(template)
        if known is None:
            facts: TemplateFacts | str
            try:
                facts = check_template(template, self.table, set(), Limits().nodes)
            except FederatedError as error:
                facts = error.message
            known = self._templates[template] = (template, facts)
        if isinstance(known[1], str):
            raise Foreign(known[1])
        return known[0], known[1]

    def check_references(self, references: list[int], facts: TemplateFacts) -> None:
        """Raise `Foreign` where an operand stands in a hole that a site keeps for others."""
        for position in facts.bound:
            blocker = self.bound_blocker(references[position])
            if blocker is not None:
                raise Foreign(blocker)
        for position, operand in enumerate(references):
            if operand < 0 and position not in facts.reads and self.is_source(operand):
                raise Foreign("it uses a stored variable otherwise than by reading from it")

    def is_source(self, operand: int) -> bool:
        """Say whether an operand is a stored variable."""
        return isinstance(self.leaves[-1 - operand], SourceReference)

    def bound_blocker(self, operand: int) -> str | None:
        """Say why an operand may not steer an operation, or None where it may."""
        if operand >= 0:
            return "it computes what an operation that reaches functions by name is given"
        if operand not in self._bound:
            try:
                check_bound_value(encode_value(self.leaves[-1 - operand], [], self.table))
                self._bound[operand] = None
            except (FederatedError, TypeError) as error:
                self._bound[operand] = str(error)
        return self._bound[operand]

    def leaf(self, value: Any) -> int:
        """Operand number of a leaf; equal references and the same constant share one."""
        is_reference = isinstance(value, SourceReference | HeldReference)
        key: Hashable = value if is_reference else id(value)
        if key not in self._leaf_of:
            self.leaves.append(value)
            self._leaf_of[key] = -len(self.leaves)
        return self._leaf_of[key]

    def blocker_of(self, value: Any) -> str | None:
        """Say why a constant cannot be sent, or None where it can."""
        known = self._checked.get(id(value))
        if known is not None:
            return known[1]
        try:
            if type(value) is np.ndarray and not value.dtype.hasobject:
                encode_dtype(value.dtype)
            else:
                check_value(encode_value(value, [], self.table), self.table)
            blocker = None
        except FederatedError as error:
            blocker = error.message
        except (TypeError, ValueError) as error:
            blocker = str(error)
        self._checked[id(value)] = (value, blocker)
        return blocker

    def subgraph(self, node: Task, holes: _Holes) -> tuple[wire.Node, ...]:
        """Turn a fused task into steps."""
        steps: list[wire.Node] = []
        self._expand(node, holes, steps, holes.local)
        holes.local = {}
        return tuple(steps)

    def _expand(
        self, node: Task, holes: _Holes, steps: list[wire.Node], names: dict[Hashable, Any]
    ) -> wire.Local:
        """Append the steps of a fused task, and of fused tasks inside it."""
        inner, outkey, inkeys, *outer = node.args
        # An outer key may have the name of an inner one: what is given from
        # outside is resolved with the names outside.
        local: dict[Hashable, Any] = {
            key: _Given(value, names) for key, value in zip(inkeys, outer, strict=True)
        }
        for key in _order(inner, outkey):
            part = inner[key]
            if isinstance(part, DataNode):
                # In place of the reference, as it would stand in an unfused task.
                local[key] = _Given(part.value, {})
            elif isinstance(part, Task) and part.func is _execute_subgraph:
                local[key] = self._expand(part, holes, steps, local)
            else:
                holes.local = local
                is_call = isinstance(part, Task) and not isinstance(part, CONTAINERS)
                steps.append(self.call(part, holes) if is_call else self.argument(part, holes))
                local[key] = wire.Local(len(steps) - 1)
        result = local[outkey]
        if not isinstance(result, wire.Local):
            raise Foreign("a fused task that gives back a constant has no wire form")
        return result

    def call(self, node: Task, holes: _Holes) -> wire.Node:
        """Turn one call into a node."""
        if node.func is _identity_cast:
            return self.container(node.kwargs["typ"], node.args, holes)
        try:
            function, arguments, keywords = substitute(node.func, node.args, node.kwargs)
        except CannotSubstitute as error:
            raise Foreign(str(error)) from None
        return wire.Call(
            self.function(function, holes),
            tuple(self.argument(argument, holes) for argument in arguments),
            tuple((name, self.argument(value, holes, True)) for name, value in keywords.items()),
        )

    def container(self, cls: type, items: Any, holes: _Holes) -> wire.Node:
        """Turn a sequence that may hold references into a node."""
        nodes = tuple(self.argument(item, holes) for item in items)
        if cls is list:
            return wire.List(nodes)
        if cls is tuple:
            return wire.Tuple(nodes)
        raise Foreign(f"a {cls.__name__} of tasks has no wire form")

    def function(self, function: Any, holes: _Holes) -> wire.Node:
        """Turn a callable into a node; constants bound to it become references."""
        known = self._functions.get(id(function))
        if known is None:
            own = _Holes()
            known = (function, self._function(function, own), tuple(own.references))
            self._functions[id(function)] = known
        holes.references.extend(known[2])
        return known[1]

    def _function(self, function: Any, holes: _Holes) -> wire.Node:
        name = self.table.name_of(equivalent(function))
        if name is not None:
            return wire.Operation(name)
        if isinstance(function, functools.partial | curry):
            return wire.Partial(
                self.function(function.func, holes),
                tuple(self.argument(argument, holes, True) for argument in function.args),
                tuple(
                    (key, self.argument(value, holes, True))
                    for key, value in function.keywords.items()
                ),
            )
        if isinstance(function, Compose):
            functions = (*reversed(function.funcs), function.first)
            return wire.Compose(tuple(self.function(part, holes) for part in functions))
        written = written_at(function)
        where = f" (written in {written})" if written else ""
        raise Foreign(f"{describe_callable(function)} is not in the operation table{where}")

    def argument(self, value: Any, holes: _Holes, shared: bool = False) -> wire.Node:
        """Turn an argument into a node; integers become holes unless `shared`."""
        if isinstance(value, TaskRef | Alias):
            return self.reference(value.key if isinstance(value, TaskRef) else value.target, holes)
        if value is None or type(value) is bool or type(value) is str:
            return value
        if type(value) is int:
            return self.integer(value, holes, shared)
        if isinstance(value, GraphNode):
            return self.graph_node(value, holes, shared)
        if type(value) is slice:
            parts = (value.start, value.stop, value.step)
            return wire.Slice(*(self.argument(part, holes, shared) for part in parts))
        if type(value) in (tuple, list) and len(value) <= LONGEST_INLINE:
            cls = wire.Tuple if type(value) is tuple else wire.List
            return cls(tuple(self.argument(item, holes, shared) for item in value))
        if type(value) is dict and len(value) <= LONGEST_INLINE:
            return wire.Dictionary(
                tuple(
                    (self.argument(key, holes, True), self.argument(item, holes, shared))
                    for key, item in value.items()
                )
            )
        return self.plain(value, holes)

    def integer(self, value: int, holes: _Holes, shared: bool) -> wire.Node:
        """Turn an integer into a hole, a number or a constant."""
        if value not in INT64:
            return self.constant(value, holes)
        if shared:
            return wire.Number(value)
        holes.integers.append(value)
        return wire.Integer()

    def reference(self, key: Hashable, holes: _Holes) -> wire.Node:
        """Turn the result of another task, or of an earlier step, into a node."""
        local = holes.local.get(key)
        if isinstance(local, _Given):
            names, holes.local = holes.local, local.names
            node = self.argument(local.value, holes)
            holes.local = names
            return node
        if local is not None:
            return cast(wire.Node, local)
        holes.references.append(self.operand(key))
        return wire.Reference()

    def graph_node(self, node: GraphNode, holes: _Holes, shared: bool) -> wire.Node:
        """Turn what Dask nests in arguments into a node."""
        if isinstance(node, DataNode):
            return self.argument(node.value, holes, shared)
        if isinstance(node, List):
            return self.container(list, node.args, holes)
        if isinstance(node, Tuple):
            return self.container(tuple, node.args, holes)
        if isinstance(node, Dict):
            parts = [self.argument(item, holes, True) for item in node.args]
            return wire.Dictionary(tuple(zip(parts[::2], parts[1::2], strict=True)))
        if isinstance(node, Task) and not isinstance(node, Set):
            return self.call(node, holes)
        raise Foreign(f"a {type(node).__name__} has no wire form")

    def plain(self, value: Any, holes: _Holes) -> wire.Node:
        """Turn plain data into a node."""
        if type(value) is float:
            return wire.Float(value.hex())
        if value is Ellipsis:
            return wire.EllipsisNode()
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            dtype = encode_dtype(value.dtype)
            if isinstance(dtype, str) and value.dtype.itemsize:
                return wire.Scalar(dtype, value.tobytes())
        elif isinstance(value, np.dtype):
            try:
                return wire.DataType(encode_dtype(value))
            except TypeError as error:
                raise Foreign(str(error)) from None
        elif callable(value) and not isinstance(value, np.ndarray):
            return self.function(value, holes)
        return self.constant(value, holes)

    def constant(self, value: Any, holes: _Holes) -> wire.Node:
        """Turn a value into a reference to a leaf."""
        blocker = self.blocker_of(value)
        if blocker is not None:
            raise Foreign(blocker)
        holes.references.append(self.leaf(value))
        return wire.Reference()


@dataclass(frozen=True, slots=True)
class _Given:
    """What a name inside a fused task stands for, and the names to resolve it with."""

    value: Any
    names: dict[Hashable, Any]


def _order(inner: dict[Hashable, GraphNode], outkey: Hashable) -> list[Hashable]:
    """Topological order of the tasks inside a fused task, what it gives back last."""
    order: list[Hashable] = []
    done: set[Hashable] = set()
    stack: list[tuple[Hashable, bool]] = [(outkey, False)]
    while stack:
        key, ready = stack.pop()
        if ready:
            order.append(key)
        elif key not in done:
            done.add(key)
            stack.append((key, True))
            stack.extend((below, False) for below in inner[key].dependencies if below in inner)
    return order


def describe_callable(function: Any) -> str:
    """Name a callable for people."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None) or funcname(function)
    return f"{module}.{name}" if module else str(name)


def written_at(function: Any) -> str | None:
    """Say where a function of the researcher's own is written: file and line; else None.

    Examples
    --------
    >>> written_at(np.sqrt) is written_at(functools.reduce) is None
    True
    """
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        code = getattr(vars(type(function)).get("__call__"), "__code__", None)
    if code is None or any(part in LIBRARIES for part in Path(code.co_filename).parts):
        return None
    if code.co_filename.startswith(STANDARD_LIBRARY):
        return None
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    name = Path(code.co_filename).name
    if "ipykernel" in code.co_filename or name.startswith("<"):
        name = "a cell" if "ipy" in code.co_filename else "the console"
    text = f": {textwrap.shorten(line, LONGEST_LINE, placeholder=' …')}" if line else ""
    return f"{name}, line {code.co_firstlineno}{text}"
