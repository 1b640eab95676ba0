"""Graphs written by hand."""

from typing import Any

import numpy as np

from federated_dask.protocol.graph import (
    Block,
    Call,
    Float,
    Graph,
    Integer,
    Node,
    Number,
    Operation,
    Reference,
    Slice,
    Source,
    Template,
    Tuple,
    encode_column,
)


def template(*steps: Node) -> Template:
    return Template(steps)


def call(name: str, *arguments: Node, **keywords: Node) -> Call:
    return Call(Operation(name), arguments, tuple(keywords.items()))


def block(number: int, *columns: Any) -> Block:
    encoded = tuple(
        encode_column(np.atleast_1d(np.asarray(column, np.int64))) for column in columns
    )
    count = max((np.size(column) for column in columns), default=1)
    return Block(number, count, encoded)


READ = template(
    call(
        "dask.array.core.getter",
        Reference(),
        Tuple((Slice(Integer(), Integer(), None), Slice(None, None, None))),
    )
)
"""Reads rows from … to … of a source."""

SUM = template(call("numpy.sum", Reference(), axis=Number(0)))
ADD = template(call("operator.add", Reference(), Reference()))


def chunk_sums(version: str, dataset: str = "a1b", chunks: int = 4) -> Graph:
    """Sum of the first axis of 40 rows, chunk by chunk; the last task is the sum of the sums.

    Tasks: the reads, their sums, then the running totals.
    """
    size = 40 // chunks
    starts = np.arange(0, 40, size)
    first = 1
    sums = first + chunks + np.arange(chunks)
    blocks = [
        block(0, np.zeros(chunks), starts, starts + size),
        block(1, first + np.arange(chunks)),
    ]
    total = sums[0]
    for position in range(1, chunks):
        blocks.append(block(2, total, sums[position]))
        total = first + 2 * chunks + position - 1
    return Graph(
        sources=(Source(dataset, version, "air"),),
        templates=(READ, SUM, ADD),
        blocks=tuple(blocks),
    )


SLOW = template(
    call(
        "numpy.linalg.svd",
        call(
            "operator.add",
            call("numpy.eye", Number(500)),
            Integer(),
        ),
        call("operator.gt", Float((0.0).hex()), Float((1.0).hex())),
    )
)
"""A tenth of a second or so of work that a site knows nothing of yet."""


def slow_graph(first: int, count: int = 400) -> Graph:
    """Many slow tasks, and one quick task that takes the first of each."""
    collect = template(call("builtins.bool", Tuple(tuple(Reference() for _ in range(count)))))
    return Graph(
        templates=(SLOW, collect),
        blocks=(block(0, first + np.arange(count)), block(1, *range(count))),
    )
