"""Programs as Dask nodes: what the planner itself added to a graph, run at home.

A partial that `reductions` adds has no node of Dask's.  Its program says what to call;
looked up in the operation table it is made of functions, `functools.partial` and `compose`
again, so that a home cluster's workers need nothing of this package.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from dask._task_spec import GraphNode, Task, TaskRef
from dask._task_spec import List as DaskList
from toolz import compose

from federated_dask.planner.programs import Program
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.operations import OperationTable

__all__ = ["node_of"]


def node_of(
    key: Any,
    program: Program,
    keys: Mapping[int, Any],
    leaves: Sequence[Any],
    table: OperationTable,
) -> GraphNode:
    """Make the Dask node of a program that is one call.

    Parameters
    ----------
    key : key
        Key of the node.
    program : Program
        What it does; a call whose arguments are nested lists of tasks.
    keys : mapping of int to key
        Keys of the tasks that the program refers to, by position.
    leaves : sequence
        Operands that are no tasks.
    table : OperationTable
        Where operations are looked up.

    Returns
    -------
    GraphNode

    Examples
    --------
    >>> from federated_dask.protocol.operations import operation_table
    >>> call = wire.Call(wire.Operation("numpy.sum"), (wire.List((wire.Reference(),) * 2),))
    >>> program = Program(wire.Template((call,)), (0, 1), ())
    >>> node = node_of("s", program, {0: "a", 1: "b"}, [], operation_table())
    >>> int(node({"a": 1, "b": 2}))
    3
    """
    (call,) = program.template.steps
    if not isinstance(call, wire.Call) or program.integers:
        raise ValueError("only a single call can be made a node")
    operands: Iterator[Any] = iter(
        [TaskRef(keys[r]) if r >= 0 else leaves[-1 - r] for r in program.references]
    )
    function = _value(call.function, operands, table)
    arguments = [_argument(argument, operands, table) for argument in call.arguments]
    keywords = {name: _value(value, operands, table) for name, value in call.keywords}
    return Task(key, function, *arguments, **keywords)


def _argument(node: wire.Node, operands: Iterator[Any], table: OperationTable) -> Any:
    if isinstance(node, wire.List):
        return DaskList(*(_argument(item, operands, table) for item in node.items))
    return _value(node, operands, table)


def _value(node: wire.Node, operands: Iterator[Any], table: OperationTable) -> Any:
    match node:
        case wire.Reference():
            return next(operands)
        case wire.Number():
            return node.value
        case wire.Float():
            return float.fromhex(node.text)
        case wire.Bytes():
            return node.data
        case wire.Scalar():
            return np.frombuffer(node.data, decode_dtype(node.dtype), 1)[0]
        case wire.DataType():
            return decode_dtype(node.dtype)
        case wire.EllipsisNode():
            return ...
        case wire.Operation():
            return table.lookup(node.name)
        case None | bool() | str():
            return node
    parts = [_value(child, operands, table) for child in wire.children(node)]
    match node:
        case wire.Slice():
            return slice(*parts)
        case wire.List():
            return parts
        case wire.Tuple():
            return tuple(parts)
        case wire.Dictionary():
            return dict(zip(parts[::2], parts[1::2], strict=True))
        case wire.Compose():
            return compose(*parts)
        case wire.Partial():
            function, *rest = parts
            count = len(node.arguments)
            names = [name for name, _ in node.keywords]
            named = dict(zip(names, rest[count:], strict=True))
            return functools.partial(function, *rest[:count], **named)
    raise ValueError(f"a {type(node).__name__} does not stand in a partial")
