"""Graphs of one task, and what checking them says."""

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated_dask.errors import FederatedError
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.graph import (
    Block,
    Call,
    Compose,
    DataType,
    Dictionary,
    EllipsisNode,
    Float,
    Graph,
    Integer,
    List,
    Local,
    Node,
    Number,
    Operation,
    Partial,
    Reference,
    Same,
    Scalar,
    Slice,
    Source,
    Steps,
    Template,
    Tuple,
    check_graph,
    encode_column,
    walk,
)
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import JobSubmission, Output
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import encode_value

TABLE = operation_table()
REF, INT = Reference(), Integer()


def op(name: str) -> Operation:
    return Operation(name)


def call(name: str | Node, *arguments: Node, **keywords: Node) -> Call:
    function = Operation(name) if isinstance(name, str) else name
    return Call(function, arguments, tuple(keywords.items()))


def bind(name: str | Node, *arguments: Node, **keywords: Node) -> Partial:
    function = Operation(name) if isinstance(name, str) else name
    return Partial(function, arguments, tuple(keywords.items()))


def holes(node: Node, kind: type) -> int:
    return sum(isinstance(part, kind) for part in walk(node))


def graph_of(*steps: Node, sources: int = 0, values: Any = (1,), references: Any = None) -> Graph:
    """One task of one template; its references are the first value unless given."""
    needed = sum(holes(step, Reference) for step in steps)
    numbers = [sources] * needed if references is None else references
    columns = [Same(number) for number in numbers]
    columns += [Same(0)] * sum(holes(step, Integer) for step in steps)
    return Graph(
        sources=(Source("d", "v", "x"),) * sources,
        values=tuple(values),
        templates=(Template(steps),),
        blocks=(Block(0, 1, tuple(columns)),),
    )


def check(graph: Graph, limits: Limits | None = None) -> Any:
    return check_graph(graph, TABLE, limits or Limits())


def refused(graph: Graph, words: str = "", kind: type = FederatedError) -> None:
    with pytest.raises(kind, match=words or None):
        check(graph)


# Templates and blocks

NODES: list[Node] = [
    *(None, True, "text", REF, INT, Number(-3), Float((0.1).hex()), Float("nan"), EllipsisNode()),
    *(Scalar("<f4", b"1234"), DataType("<M8[ns]"), Slice(None, INT, Number(2)), List(())),
    Tuple((REF,)),
    Dictionary((("a", REF), (Number(1), INT), (Tuple(("x", Number(2))), None))),
    call("numpy.add", REF, call("numpy.multiply", REF, INT)),
    call(bind("numpy.sum", axis=Tuple((Number(0),)), dtype=op("builtins.float")), REF),
    call(
        Compose(
            (bind("numpy.sum", keepdims=True), bind("dask.array.core._concatenate2", axes=INT))
        ),
        List((REF, REF)),
    ),
    call(
        "dask.array.core._enforce_dtype",
        REF,
        enforce_dtype=DataType("<f8"),
        enforce_dtype_function=op("numpy.cbrt"),
    ),
    call(
        "dask.array.reductions.mean_chunk",
        REF,
        sum=op("numpy.nansum"),
        numel=op("dask.array.reductions.nannumel"),
    ),
    call(
        bind(
            "flox.core.chunk_reduce",
            func=Tuple(("sum", "nanlen")),
            expected_groups=REF,
            engine="numpy",
        ),
        REF,
        REF,
    ),
]


def nested(depth: int) -> Node:
    node: Node = None
    for _ in range(depth):
        node = List((node,))
    return node


READ = "dask.array.core.getter"


FLOX = "flox.core.chunk_reduce"


# Damage


def submission() -> tuple[JobSubmission, list[Buffer]]:
    buffers: list[Buffer] = []
    values = (
        encode_value(pd.Index([1, 2]), buffers, TABLE),
        encode_value(functools.partial(np.sum, axis=0).keywords, buffers, TABLE),
    )
    read = Template((call(READ, REF, Tuple((Slice(INT, INT, None), Slice(None, None, None)))),))
    reduce_ = Template(
        (
            call(bind("numpy.sum", axis=Number(0), dtype=DataType("<f8")), REF),
            call(bind(FLOX, func=Tuple(("sum", "nanlen")), expected_groups=REF), Local(0), REF),
        )
    )
    column = encode_column(np.array([0, 5, 7, 20]))
    graph = Graph(
        sources=(Source("a", "1", "t"),),
        values=values,
        templates=(read, reduce_),
        blocks=(
            Block(0, 4, (Same(0), column, Steps(5, 5))),
            Block(1, 4, (Steps(3, 1), Same(1), Steps(3, 1))),
        ),
    )
    return JobSubmission(graph=graph, outputs=(Output(task=7),), label="é"), buffers
