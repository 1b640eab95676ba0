"""Task graphs on the wire: templates with holes, and columns that fill them.

Tasks of one layer do the same thing to different chunks.  They share a
*template*: nested nodes with holes for operands and integers.  A *block* is
``count`` tasks of one template, one column of numbers for every hole::

    template 0:  [ getter(▢ , (slice(▢, ▢), slice(▢, ▢))) ]        references: 1, integers: 4
    block:       template 0, count 1000, columns: 0 | 0 10 20 … | 10 20 30 … | 0 | 360

Operands are numbered: first the sources, then the values, then the held
results, then the tasks in the order of the blocks.  A task refers only to
smaller numbers, so that a cycle cannot be written down.

A template is a short straight-line program: a tuple of steps, of which each may
use the results of earlier ones (`Local`); the last step is the task's result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta

from federated_dask.errors import FederatedError, NotPermitted, Reason, RequestRefused
from federated_dask.protocol.dtypes import DType, decode_dtype
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.operation_names import READS, TEXTS
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.values import Value

__all__ = [
    "Block",
    "Bytes",
    "Call",
    "CheckedBlock",
    "CheckedGraph",
    "Column",
    "Compose",
    "DataType",
    "Dictionary",
    "EllipsisNode",
    "Float",
    "Graph",
    "Held",
    "Integer",
    "List",
    "Local",
    "Node",
    "Number",
    "Operation",
    "Partial",
    "Reference",
    "Scalar",
    "Slice",
    "Source",
    "Template",
    "Tuple",
    "check_graph",
    "children",
    "decode_column",
    "encode_column",
    "walk",
]

MAX_STEPS = 10_000
MAX_TEXT = 65_536
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
    None
    | bool
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
)
"""Any node of a template."""


class Template(Tagged, frozen=True, array_like=True):
    """What the tasks of a block have in common."""

    steps: tuple[Node, ...]


class Same(Tagged, frozen=True, array_like=True, tag="same"):
    """A column of equal numbers."""

    value: int


class Steps(Tagged, frozen=True, array_like=True, tag="steps"):
    """An arithmetic progression."""

    start: int
    step: int


class Packed(Tagged, frozen=True, array_like=True, tag="packed"):
    """Numbers as differences from one to the next, in the narrowest integer type."""

    width: Annotated[int, Meta(ge=1, le=8)]
    data: bytes


Column: TypeAlias = Same | Steps | Packed


class Block(Tagged, frozen=True, array_like=True):
    """`count` tasks of one template: columns of references, then of integers."""

    template: Position
    count: Annotated[int, Meta(ge=1)]
    columns: tuple[Column, ...]


class Source(Tagged, frozen=True, array_like=True):
    """A stored variable of a dataset version."""

    dataset: str
    version: str
    variable: str


class Held(Tagged, frozen=True, array_like=True):
    """A result that the site holds under a lease."""

    lease: str
    output: Position


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """A task graph for one site."""

    sources: tuple[Source, ...] = ()
    values: tuple[Value, ...] = ()
    held: tuple[Held, ...] = ()
    templates: tuple[Template, ...]
    blocks: tuple[Block, ...]

    @property
    def first_task(self) -> int:
        """Number of the first task: operands below it are sources, values and held results."""
        return len(self.sources) + len(self.values) + len(self.held)

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return sum(block.count for block in self.blocks)


def encode_column(numbers: np.ndarray) -> Column:
    """Encode a column.

    Parameters
    ----------
    numbers : ndarray, shape (n,), int64
        At least one number.

    Examples
    --------
    >>> encode_column(np.arange(0, 100, 10))
    Steps(start=0, step=10)
    """
    first = int(numbers[0])
    if len(numbers) == 1:
        return Same(first)
    steps = np.diff(numbers)
    low, high = int(steps.min()), int(steps.max())
    if low == high:
        return Same(first) if low == 0 else Steps(first, low)
    differences = np.concatenate([numbers[:1], steps])
    low, high = min(low, first), max(high, first)
    for width in (1, 2, 4, 8):
        bound = 2 ** (8 * width - 1)
        if -bound <= low and high < bound:
            break
    return Packed(width, differences.astype(f"<i{width}").tobytes())


def decode_column(column: Column, count: int) -> np.ndarray:
    """Decode a column of `count` numbers.

    Returns
    -------
    ndarray, shape (count,), int64

    Raises
    ------
    RequestRefused
        If the column has another length or numbers beyond 64 bits.
    """
    try:
        if isinstance(column, Same):
            return np.full(count, column.value, dtype=np.int64)
        if isinstance(column, Steps):
            last = column.start + column.step * (count - 1)
            np.int64(column.start), np.int64(last)
            return column.start + column.step * np.arange(count, dtype=np.int64)
        differences = np.frombuffer(column.data, dtype=f"<i{column.width}")
    except (OverflowError, TypeError, ValueError) as error:
        raise _malformed("A column does not parse.") from error
    if len(differences) != count:
        raise _malformed("A column does not have the length of its block.")
    return np.cumsum(differences, dtype=np.int64)


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


def walk(node: Node) -> Iterator[Node]:
    """Give a node and all nodes below it, in the order in which their holes are filled."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(children(current)))


class CheckedBlock(msgspec.Struct, frozen=True):
    """A block that passed the checks, its columns decoded."""

    template: int
    references: np.ndarray
    """Operand numbers, shape (count, references of the template), int64."""
    integers: np.ndarray
    """Integers, shape (count, integers of the template), int64."""


class CheckedGraph(msgspec.Struct, frozen=True):
    """A graph that passed the checks."""

    graph: Graph
    blocks: list[CheckedBlock]
    operations: frozenset[str]
    """Names of all operations that the graph uses."""


class _TemplateFacts(msgspec.Struct):
    references: int = 0
    integers: int = 0
    nodes: int = 0
    reads: list[int] = []
    """Positions of the reference holes in which a source may stand."""


def check_graph(graph: Graph, table: OperationTable, limits: Limits) -> CheckedGraph:
    """Check a graph before anything is built from it.

    Parameters
    ----------
    graph : Graph
        As it was decoded.
    table : OperationTable
        What the site has.
    limits : Limits
        Caps on tasks, nodes and depth.

    Raises
    ------
    RequestRefused
        ``malformed`` or ``limit_exceeded``.
    NotPermitted
        If an operation is not in the table or an argument breaks its rule.
    """
    if graph.tasks > limits.tasks:
        raise _over("tasks", graph.tasks, limits.tasks)
    if len(graph.blocks) > limits.depth:
        # Each level of dependencies needs a block of its own.
        raise _over("blocks of tasks", len(graph.blocks), limits.depth)
    operations: set[str] = set()
    facts = []
    nodes = 0
    for template in graph.templates:
        facts.append(_check_template(template, table, operations))
        nodes += facts[-1].nodes
        if nodes > limits.nodes:
            raise _over("argument nodes", nodes, limits.nodes)
    if sum(len(block.columns) * block.count for block in graph.blocks) > 64 * limits.tasks:
        raise _over("arguments", 64 * limits.tasks + 1, 64 * limits.tasks)
    blocks = []
    number = graph.first_task
    for block in graph.blocks:
        if block.template >= len(facts):
            raise _malformed("A block names no template.")
        blocks.append(_check_block(block, facts[block.template], number, len(graph.sources)))
        number += block.count
    return CheckedGraph(graph, blocks, frozenset(operations))


def _check_block(block: Block, facts: _TemplateFacts, number: int, sources: int) -> CheckedBlock:
    if len(block.columns) != facts.references + facts.integers:
        raise _malformed("A block does not have one column for every hole of its template.")
    columns = [decode_column(column, block.count) for column in block.columns]
    shape = (block.count, 0)
    references = (
        np.stack(columns[: facts.references], axis=1)
        if facts.references
        else np.empty(shape, np.int64)
    )
    integers = (
        np.stack(columns[facts.references :], axis=1)
        if facts.integers
        else np.empty(shape, np.int64)
    )
    if references.size and (
        references.min() < 0 or (references >= number + np.arange(block.count)[:, None]).any()
    ):
        raise _malformed("A task refers to something that does not come before it.")
    if sources:
        elsewhere = np.delete(references, facts.reads, axis=1)
        if (elsewhere < sources).any():
            raise NotPermitted(
                "A stored variable may only be the first argument of a reading operation.",
                reason=Reason.OPERATION_NOT_ALLOWED,
            )
    return CheckedBlock(block.template, references, integers)


def _check_template(
    template: Template, table: OperationTable, operations: set[str]
) -> _TemplateFacts:
    if not 1 <= len(template.steps) <= MAX_STEPS:
        raise _malformed("A template has no steps, or too many.")
    facts = _TemplateFacts(reads=[])
    for position, step in enumerate(template.steps):
        for node in walk(step):
            facts.nodes += 1
            if isinstance(node, Reference):
                facts.references += 1
            elif isinstance(node, Integer):
                facts.integers += 1
            elif isinstance(node, Local):
                if node.step >= position:
                    raise _malformed("A step uses the result of a later one.")
            elif isinstance(node, Operation):
                table.lookup(node.name)
                operations.add(node.name)
            elif isinstance(node, Call):
                _check_call(node, facts)
            else:
                _check_plain(node)
    return facts


def _check_call(call: Call, facts: _TemplateFacts) -> None:
    if not isinstance(call.function, Operation | Partial | Compose):
        raise _malformed("A call calls something that is not an operation.")
    is_read = isinstance(call.function, Operation) and call.function.name in READS
    if is_read and call.arguments and isinstance(call.arguments[0], Reference):
        # `walk` visits the function first, which has no holes here, then this.
        facts.reads.append(facts.references)
    for node in walk(call.function):
        rule = TEXTS.get(node.name) if isinstance(node, Operation) else None
        if rule is None:
            continue
        for text in walk(call):
            if isinstance(text, str) and text not in rule:
                raise NotPermitted(
                    f"{node.name} may not be given the text {text[:64]!r}.",
                    reason=Reason.OPERATION_NOT_ALLOWED,
                )


def _check_plain(node: Any) -> None:
    if isinstance(node, Scalar):
        dtype = decode_dtype(node.dtype)
        if dtype.hasobject or dtype.itemsize != len(node.data):
            raise _malformed("A scalar does not have the size of its dtype.")
    elif isinstance(node, DataType):
        decode_dtype(node.dtype)
    elif isinstance(node, Float):
        try:
            float.fromhex(node.text)
        except (ValueError, OverflowError) as error:
            raise _malformed("A float does not parse.") from error
    elif isinstance(node, str):
        if len(node) > MAX_TEXT:
            raise _over("characters of a text", len(node), MAX_TEXT)
    elif isinstance(node, Partial) and not isinstance(node.function, Operation | Partial | Compose):
        raise _malformed("A partial is made of something that is not an operation.")
    elif isinstance(node, Compose) and not all(
        isinstance(function, Operation | Partial | Compose) for function in node.functions
    ):
        raise _malformed("A composition is made of something that is not an operation.")


def _malformed(message: str) -> FederatedError:
    return RequestRefused(message, reason=Reason.MALFORMED)


def _over(what: str, number: int, cap: int) -> FederatedError:
    return RequestRefused(
        f"The graph has {number} {what}; this site accepts {cap}.",
        reason=Reason.LIMIT_EXCEEDED,
        hint="Use larger chunks, or compute the expression in parts.",
    )
