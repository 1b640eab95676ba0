"""Task graphs on the wire: templates with holes, and columns that fill them.

Tasks of one layer do the same thing to different chunks.  They share a
*template*: nested nodes with holes for operands and integers.  A *block* is
``count`` tasks of one template, one column of numbers for every hole::

    template 0:  [ getter(▢ , (slice(▢, ▢), slice(▢, ▢))) ]        references: 1, integers: 4
    block:       template 0, count 1000, columns: 0 | 0 10 20 … | 10 20 30 … | 0 | 360

Operands are numbered: first the sources, then the values, then the held
results, then the tasks in the order of the blocks.  A task refers only to
smaller numbers, so that a cycle cannot be written down.

What a template is made of stands in `federated_dask.protocol.nodes`, what may be
written in it in `federated_dask.protocol.rules`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta

from federated_dask.errors import FederatedError, NotPermitted, Reason, RequestRefused
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.nodes import (
    Bytes,
    Call,
    Compose,
    DataType,
    Dictionary,
    EllipsisNode,
    Float,
    Integer,
    List,
    Local,
    Node,
    Number,
    Operation,
    Partial,
    Position,
    Reference,
    Resources,
    Scalar,
    Slice,
    Template,
    Tuple,
    children,
    walk,
)
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.rules import (
    TemplateFacts,
    check_bound_value,
    check_template,
    check_value,
)
from federated_dask.protocol.trees import Value

__all__ = [
    "NODES_PER_TASK",
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
    "Resources",
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

ARGUMENTS_PER_TASK = 32
"""Arguments of all tasks, as a multiple of the cap on tasks: 8 bytes each once decoded."""
NODES_PER_TASK = 64
"""Nodes of all tasks, each of them with those of its template, as a multiple of that cap."""


class Same(msgspec.Struct, frozen=True, array_like=True, tag="same"):
    """A column of equal numbers."""

    value: int


class Steps(msgspec.Struct, frozen=True, array_like=True, tag="steps"):
    """An arithmetic progression."""

    start: int
    step: int


class Packed(msgspec.Struct, frozen=True, array_like=True, tag="packed"):
    """Numbers as differences from one to the next, in the narrowest integer type."""

    width: Annotated[int, Meta(ge=1, le=8)]
    data: bytes


Column: TypeAlias = Same | Steps | Packed


class Block(msgspec.Struct, frozen=True, array_like=True):
    """`count` tasks of one template: columns of references, then of integers."""

    template: Position
    count: Annotated[int, Meta(ge=1)]
    columns: tuple[Column, ...]


class Source(msgspec.Struct, frozen=True, array_like=True):
    """A stored variable of a dataset version."""

    dataset: str
    version: str
    variable: str


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A result that the site holds under a lease, or that one of its peers does."""

    lease: str
    output: Position
    peer: str | None = None
    """Name of the peer that holds it; the site fetches it from there."""


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
        if low == 0:
            return Same(first)
        if first + low * (len(numbers) - 1) == int(numbers[-1]):
            # Else the differences wrapped around, which packed ones may.
            return Steps(first, low)
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
    nodes: int
    """Argument nodes of all its templates, and of all its tasks."""


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
        # Each level of dependencies needs a block of its own, see `_check_block`.
        raise _over("blocks of tasks", len(graph.blocks), limits.depth)
    operations: set[str] = set()
    facts = []
    nodes = 0
    for template in graph.templates:
        facts.append(check_template(template, table, operations, limits.nodes - nodes))
        nodes += facts[-1].nodes
    arguments = sum(len(block.columns) * block.count for block in graph.blocks)
    if arguments > ARGUMENTS_PER_TASK * limits.tasks:
        raise _over("arguments", arguments, ARGUMENTS_PER_TASK * limits.tasks)
    unfolded = sum(
        facts[block.template].nodes * block.count
        for block in graph.blocks
        if block.template < len(facts)
    )
    most = max(limits.nodes, NODES_PER_TASK * limits.tasks)
    if unfolded > most:
        # Many blocks of one large template are few bytes.
        raise _over("argument nodes in all of its tasks", unfolded, most)
    for value in graph.values:
        check_value(value, table)
    checked_values: set[int] = set()
    blocks = []
    number = graph.first_task
    for block in graph.blocks:
        if block.template >= len(facts):
            raise _malformed("A block names no template.")
        checked = _check_block(block, facts[block.template], number, len(graph.sources))
        _check_bound(checked.references[:, facts[block.template].bound], graph, checked_values)
        blocks.append(checked)
        number += block.count
    return CheckedGraph(graph, blocks, frozenset(operations), nodes + unfolded)


def _check_block(block: Block, facts: TemplateFacts, number: int, sources: int) -> CheckedBlock:
    if len(block.columns) != facts.references + facts.integers:
        raise _malformed("A block does not have one column for every hole of its template.")
    references = np.empty((block.count, facts.references), np.int64)
    integers = np.empty((block.count, facts.integers), np.int64)
    holes = (*references.T, *integers.T)
    for hole, column in zip(holes, block.columns, strict=True):
        hole[:] = decode_column(column, block.count)
    # Earlier blocks only: then the number of blocks bounds the depth.
    if references.size and (references.min() < 0 or references.max() >= number):
        raise _malformed("A task refers to something that does not come before it.")
    if sources:
        elsewhere = np.delete(references, facts.reads, axis=1)
        if (elsewhere < sources).any():
            raise NotPermitted(
                "A stored variable may only be the first argument of a reading operation.",
                reason=Reason.OPERATION_NOT_ALLOWED,
            )
    return CheckedBlock(block.template, references, integers)


def _check_bound(references: np.ndarray, graph: Graph, checked: set[int]) -> None:
    first = len(graph.sources)
    for number in np.unique(references).tolist():
        if number in checked:
            continue
        if not 0 <= number - first < len(graph.values):
            raise NotPermitted(
                "An operation that reaches functions by name may be steered by constants only.",
                reason=Reason.OPERATION_NOT_ALLOWED,
            )
        check_bound_value(graph.values[number - first])
        checked.add(number)


def _malformed(message: str) -> FederatedError:
    return RequestRefused(message, reason=Reason.MALFORMED)


def _over(what: str, number: int, cap: int) -> FederatedError:
    return RequestRefused(
        f"The graph has {number} {what}; this site accepts {cap}.",
        reason=Reason.LIMIT_EXCEEDED,
        hint="Use larger chunks, or compute the expression in parts.",
    )
