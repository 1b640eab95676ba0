"""Nodes of templates: what one task does, with holes for what differs between tasks.

A template is a short straight-line program: a tuple of steps, of which each may
use the results of earlier ones (`Local`); the last step is the task's result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from federated_dask.protocol.dtypes import DType

__all__ = [
    "Bytes",
    "Call",
    "Compose",
    "DataType",
    "Dictionary",
    "EllipsisNode",
    "Float",
    "Integer",
    "List",
    "Local",
    "Node",
    "Number",
    "Operation",
    "Partial",
    "Position",
    "Reference",
    "Resources",
    "Scalar",
    "Slice",
    "Template",
    "Tuple",
    "applied_first",
    "children",
    "walk",
]

Position: TypeAlias = Annotated[int, Meta(ge=0)]


class Tagged(msgspec.Struct, frozen=True, array_like=True):
    """Base of the nodes of a template."""


class Reference(Tagged, frozen=True, array_like=True, tag="ref"):
    """A hole for an operand."""


class Integer(Tagged, frozen=True, array_like=True, tag="int"):
    """A hole for an integer of 64 bits."""


class Local(Tagged, frozen=True, array_like=True, tag="local"):
    """The result of an earlier step of the same task."""

    step: Position


class Number(Tagged, frozen=True, array_like=True, tag="number"):
    """An integer that all tasks of the template share."""

    value: int


class Float(Tagged, frozen=True, array_like=True, tag="float"):
    """A float as hexadecimal text, so that -0.0 and NaN stay what they are."""

    text: Annotated[str, Meta(max_length=32)]


class Bytes(Tagged, frozen=True, array_like=True, tag="bytes"):
    """A bytes object."""

    data: Annotated[bytes, Meta(max_length=65_536)]


class Scalar(Tagged, frozen=True, array_like=True, tag="scalar"):
    """A numpy scalar."""

    dtype: str
    data: Annotated[bytes, Meta(max_length=65_536)]


class DataType(Tagged, frozen=True, array_like=True, tag="dtype"):
    """A numpy dtype."""

    dtype: DType


class EllipsisNode(Tagged, frozen=True, array_like=True, tag="ellipsis"):
    """The constant ``...``."""


class Slice(Tagged, frozen=True, array_like=True, tag="slice"):
    """A slice."""

    start: Node
    stop: Node
    step: Node


class List(Tagged, frozen=True, array_like=True, tag="list"):
    """A list."""

    items: tuple[Node, ...]


class Tuple(Tagged, frozen=True, array_like=True, tag="tuple"):
    """A tuple."""

    items: tuple[Node, ...]


class Dictionary(Tagged, frozen=True, array_like=True, tag="dict"):
    """A dict."""

    items: tuple[tuple[Node, Node], ...]


class Operation(Tagged, frozen=True, array_like=True, tag="op"):
    """A callable of the operation table."""

    name: Annotated[str, Meta(max_length=200)]


class Partial(Tagged, frozen=True, array_like=True, tag="partial"):
    """``functools.partial``, as structure."""

    function: Node
    arguments: tuple[Node, ...] = ()
    keywords: tuple[tuple[str, Node], ...] = ()


class Compose(Tagged, frozen=True, array_like=True, tag="compose"):
    """Functions applied one after the other, the last one first."""

    functions: tuple[Node, ...]


class Call(Tagged, frozen=True, array_like=True, tag="call"):
    """A function applied to arguments."""

    function: Node
    arguments: tuple[Node, ...] = ()
    keywords: tuple[tuple[str, Node], ...] = ()


# Texts, booleans and None stand for themselves.  Integers and floats do
# not: as keys of a dict of templates, 1, 1.0 and True would be one and the same.
Node: TypeAlias = (
    bool
    | str
    | Bytes
    | Reference
    | Integer
    | Local
    | Number
    | Float
    | Scalar
    | DataType
    | EllipsisNode
    | Slice
    | List
    | Tuple
    | Dictionary
    | Operation
    | Partial
    | Compose
    | Call
    | None
)
"""Any node of a template."""


Resources: TypeAlias = Annotated[
    tuple[
        tuple[
            Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.\-]+\Z")],
            Annotated[float, Meta(gt=0, le=1e6)],
        ],
        ...,
    ],
    Meta(max_length=8),
]
"""Names of resources and how much of each a task needs, in alphabetical order."""


class Template(Tagged, frozen=True, array_like=True):
    """What the tasks of a block have in common."""

    steps: tuple[Node, ...]
    resources: Resources = ()
    """What a worker must have free to run one of them, as with `dask.annotate`."""


def children(node: Node) -> Sequence[Node]:
    """Nodes directly below a node, in the order in which their holes are filled."""
    if isinstance(node, List | Tuple):
        return node.items
    if isinstance(node, Slice):
        return (node.start, node.stop, node.step)
    if isinstance(node, Dictionary):
        return [part for pair in node.items for part in pair]
    if isinstance(node, Partial | Call):
        return [node.function, *node.arguments, *(value for _, value in node.keywords)]
    if isinstance(node, Compose):
        return node.functions
    return ()


def applied_first(function: Node) -> tuple[str | None, int]:
    """Name of the operation that gets a callable's arguments, and how many it has got before.

    Examples
    --------
    >>> applied_first(Compose((Operation("len"), Partial(Operation("getitem"), (Number(1),)))))
    ('getitem', 1)
    """
    bound = 0
    while True:
        if isinstance(function, Operation):
            return function.name, bound
        if isinstance(function, Partial):
            bound += len(function.arguments)
            function = function.function
        elif isinstance(function, Compose) and function.functions:
            # What is bound to a composition goes to the function applied first.
            function = function.functions[-1]
        else:
            return None, bound


def walk(node: Node) -> Iterator[Node]:
    """Give a node and all nodes below it, in the order in which their holes are filled."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(children(current)))
