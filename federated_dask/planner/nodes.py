"""Reading programs: which operation, over what, with which keywords."""

from __future__ import annotations

from dataclasses import dataclass

from federated_dask.planner.programs import Program
from federated_dask.protocol import graph as wire

__all__ = [
    "TreeNode",
    "count_references",
    "keyword",
    "last_call",
    "operation_name",
    "tree_node",
    "uses",
]


def operation_name(function: wire.Node) -> str | None:
    """Name of the operation that a callable node applies last.

    Examples
    --------
    >>> operation_name(wire.Partial(wire.Operation("numpy.sum")))
    'numpy.sum'
    """
    while True:
        if isinstance(function, wire.Operation):
            return function.name
        if isinstance(function, wire.Partial):
            function = function.function
        elif isinstance(function, wire.Compose):
            function = function.functions[0]
        else:
            return None


def last_call(program: Program) -> wire.Call | None:
    """Return the call whose result is the task's result."""
    step = program.template.steps[-1]
    return step if isinstance(step, wire.Call) else None


def keyword(node: wire.Node, name: str, *, first: bool = False) -> wire.Node:
    """Value of a keyword, wherever in a call's or callable's layers it is bound; else None.

    Of composed functions that of the one applied last is given, or of the one applied `first`.
    """
    while True:
        if isinstance(node, wire.Call | wire.Partial):
            for key, value in node.keywords:
                if key == name:
                    return value
            node = node.function
        elif isinstance(node, wire.Compose) and node.functions:
            node = node.functions[-1 if first else 0]
        else:
            return None


def count_references(node: wire.Node) -> int:
    """Count the reference holes of a node."""
    return sum(isinstance(part, wire.Reference) for part in wire.walk(node))


def uses(node: wire.Node) -> frozenset[str]:
    """Name the operations that a node uses."""
    return frozenset(part.name for part in wire.walk(node) if isinstance(part, wire.Operation))


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A node of a tree reduction: a callable over a nested list of inputs."""

    operation: str
    function: wire.Node
    bound: tuple[int, ...]
    """References that the callable itself holds (constants)."""
    inputs: tuple[int, ...]
    """Positions of the tasks that it reduces, in order."""
    depth: int
    """How deep the list is nested: one level per reduced axis."""


def tree_node(program: Program | None) -> TreeNode | None:
    """Read a program as a node of a tree reduction, or return None."""
    if program is None or len(program.template.steps) != 1:
        return None
    call = last_call(program)
    if call is None or len(call.arguments) != 1 or call.keywords:
        return None
    name = operation_name(call.function)
    depth, level = 0, [call.arguments[0]]
    while level and all(isinstance(node, wire.List) for node in level):
        depth += 1
        level = [item for node in level if isinstance(node, wire.List) for item in node.items]
    if name is None or depth == 0 or not all(isinstance(node, wire.Reference) for node in level):
        return None
    bound = count_references(call.function)
    inputs = program.references[bound:]
    if not inputs or min(inputs) < 0:
        return None
    return TreeNode(name, call.function, program.references[:bound], inputs, depth)
