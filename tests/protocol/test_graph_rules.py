"""What a graph may call, and with what."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated_dask.errors import NotPermitted, RequestRefused
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.graph import (
    Block,
    Compose,
    Dictionary,
    Graph,
    List,
    Local,
    Node,
    Number,
    Reference,
    Same,
    Slice,
    Template,
    Tuple,
)
from federated_dask.protocol.trees import (
    DictValue,
    InstanceValue,
    ListValue,
    OperationValue,
    PartialValue,
    TupleValue,
)
from federated_dask.protocol.values import encode_value
from tests.protocol.graphs import (
    FLOX,
    INT,
    READ,
    REF,
    TABLE,
    bind,
    call,
    check,
    graph_of,
    holes,
    op,
    refused,
)

# What is refused: operations


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "", "numpy.sum.__call__", "dask.utils.apply"]
)
@pytest.mark.parametrize(
    "place",
    [
        lambda x: call(x, REF),
        lambda x: call(bind(x), REF),
        lambda x: call(bind(bind(x)), REF),
        lambda x: call(Compose((op("numpy.sqrt"), x)), REF),
        lambda x: call(Compose((x, op("numpy.sqrt"))), REF),
        lambda x: call("numpy.sqrt", call(x, REF)),
        lambda x: call("numpy.sqrt", List((Tuple((call(x, REF),)),))),
        lambda x: call("numpy.sqrt", REF, dtype=x),
        lambda x: Dictionary((("a", call(x)),)),
        lambda x: Slice(None, call(x), None),
        lambda x: x,
        lambda x: call("dask.array.reductions.mean_chunk", REF, sum=x),
        lambda x: call("dask.array.core._enforce_dtype", REF, enforce_dtype_function=bind(x)),
    ],
)
def test_operations_outside_of_the_table(name: str, place: Any) -> None:
    refused(graph_of(place(op(name))), kind=NotPermitted)


@pytest.mark.parametrize(
    "node",
    [
        op("numpy.sum"),
        bind("numpy.sum"),
        Compose((op("numpy.sum"),)),
        List((op("numpy.sum"),)),
        call("operator.getitem", List((op("numpy.add"), op("numpy.sum"))), INT),
        call("numpy.array", List((op("numpy.sum"),))),
        call("numpy.sum", op("numpy.sum")),
        Dictionary((("f", op("numpy.sum")),)),
        call("dask.array.core._pass_extra_kwargs", REF, Tuple(()), REF),
        call(
            "dask.array.core._pass_extra_kwargs", call("operator.getitem", REF, INT), Tuple(()), REF
        ),
        call("dask.array.core._enforce_dtype", REF, enforce_dtype_function=REF),
        call("dask.array.core._enforce_dtype", REF, enforce_dtype_function="numpy.sum"),
        call("dask.array.chunk.coarsen", REF, REF, REF),
        call("dask.array.chunk.coarsen", "sum", REF, REF),
        call("dask.array.chunk.coarsen", x=REF, axes=REF, reduction=REF),
        call("dask.array.reductions.mean_chunk", REF, REF),
        call("dask.array.reductions.mean_chunk", REF, sum=REF),
        call(bind("dask.array.reductions.arg_chunk", REF), op("numpy.argmax"), REF),
        call(
            bind("dask.array.reductions.arg_chunk", op("numpy.max")), REF, REF, Tuple((INT,)), INT
        ),
        call("dask.array.reductions.moment_agg", REF, Number(2), Number(0), None, REF),
        call("flox.dask._aggregate", REF, combine=REF),
        call("flox.dask._aggregate", REF, combine=op("numpy.sum"), agg=call("numpy.sqrt", REF)),
    ],
)
def test_callables_are_structure(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


@pytest.mark.parametrize(
    "node",
    [
        # Other rules may not be left behind by being called through another operation.
        call(
            "dask.array.core._pass_extra_kwargs",
            op("flox.core.chunk_reduce"),
            Tuple(("func",)),
            REF,
            REF,
        ),
        call("dask.array.core._pass_extra_kwargs", op("numpy.sum"), Tuple(("out",)), REF, REF),
        call("dask.array.core._pass_extra_kwargs", op("numpy.sum"), REF, REF, REF),
        call("dask.array.core._pass_extra_kwargs", op("numpy.sum"), List((REF,)), REF, REF),
        call(
            "dask.array.core._pass_extra_kwargs",
            op("numpy.add"),
            Tuple(()),
            REF,
            REF,
            REF,
            REF,
            REF,
        ),
        call(
            "dask.array.core._enforce_dtype",
            REF,
            REF,
            enforce_dtype_function=op("flox.core.chunk_reduce"),
        ),
        call(
            "dask.array.core._enforce_dtype",
            REF,
            enforce_dtype_function=op("dask.array.core._enforce_dtype"),
        ),
        call(
            "dask.array.core._enforce_dtype", REF, REF, REF, enforce_dtype_function=op("numpy.add")
        ),
        call(
            "dask.array.core._enforce_dtype",
            REF,
            enforce_dtype_function=bind("numpy.add", REF, REF),
        ),
        call("dask.array.reductions.mean_chunk", REF, sum=bind("numpy.clip", REF, REF, REF)),
        call("dask.array.reductions.mean_chunk", REF, sum=bind("numpy.add", REF)),
        call("dask.array.reductions.mean_chunk", REF, sum=bind("numpy.sum", out=REF)),
        call("dask.array.reductions.mean_chunk", REF, sum=op("flox.core.chunk_reduce")),
        call("flox.dask._aggregate", REF, combine=op("flox.core.chunk_reduce")),
        call("flox.dask._aggregate", REF, combine=bind("flox.dask._simple_combine", REF)),
    ],
)
def test_rules_hold_for_what_is_called_by_an_operation(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


@pytest.mark.parametrize(
    "node",
    [
        call("numpy.add", REF, REF, out=REF),
        call("numpy.add", REF, REF, REF),
        call(bind("numpy.add", REF), REF, REF),
        call(bind(bind("numpy.add", REF), REF), REF),
        call(bind("numpy.add", out=REF), REF, REF),
        call(bind("numpy.add", out=Tuple((REF,))), REF, REF),
        call(Compose((op("numpy.sqrt"), bind("numpy.add", out=REF))), REF, REF),
        call(Compose((bind("numpy.sqrt", REF), op("numpy.add"))), REF, REF),
        call("numpy.sum", REF, INT, None, REF),
        call("numpy.clip", REF, None, None, REF),
        call("numpy.concatenate", List((REF,)), INT, REF),
        call("numpy.take", REF, REF, INT, REF),
        call("numpy.median", REF, overwrite_input=True),
        call("numpy.median", REF, None, None, True),
        call("numpy.percentile", REF, REF, INT, REF),
        call("numpy.percentile", REF, REF, overwrite_input=REF),
        call("numpy.nan_to_num", REF, False),
        call("numpy.nan_to_num", REF, copy=False),
        call("numpy.nan_to_num", REF, copy=INT),
        call("numpy.fft.fft", REF, INT, INT, None, REF),
        call("numpy.modf", REF, REF),
        call("flox.dask._expand_dims", REF),
        call(Compose((op("flox.dask._expand_dims"), op("builtins.list"))), REF),
        call(Compose((op("flox.core.chunk_reduce"), op("flox.dask._expand_dims"))), REF),
    ],
)
def test_nothing_writes_into_its_arguments(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


def test_copies_may_be_asked_for() -> None:
    check(graph_of(call("numpy.nan_to_num", REF, copy=True)))
    check(graph_of(call("numpy.sum", REF, out=None)))
    check(
        graph_of(
            call(Compose((op("flox.dask._expand_dims"), bind("flox.core.chunk_reduce"))), REF, REF)
        )
    )


@pytest.mark.parametrize(
    "node",
    [
        REF,
        List((REF,)),
        call("numpy.sum", REF),
        call(bind(READ), REF, INT),
        call(bind(READ, REF), INT),
        call(Compose((op(READ),)), REF, INT),
        call(READ, List((REF,)), INT),
        call(READ, call("numpy.array", REF), INT),
        call("dask.array.core._enforce_dtype", REF, INT, enforce_dtype_function=op(READ)),
        call(READ, a=REF, b=INT),
        call("numpy.sum", List((Tuple((REF,)),)), axis=None),
        call("numpy.sum", Number(1), axis=REF),
        call(bind("numpy.sum", initial=REF), Number(1)),
        call("builtins.list", REF),
    ],
)
def test_a_stored_variable_is_only_read(node: Node) -> None:
    refused(graph_of(node, sources=1, references=[0] * holes(node, Reference)), kind=NotPermitted)


def test_a_stored_variable_stands_only_at_the_first_place_of_a_read() -> None:
    node = call("numpy.add", call(READ, REF, Tuple((INT, REF))), REF)
    assert check(graph_of(node, sources=1, references=[0, 1, 1]))
    for references in ([0, 0, 1], [0, 1, 0], [1, 0, 1]):
        refused(graph_of(node, sources=1, references=references), "stored variable", NotPermitted)


def test_a_local_result_hides_no_source() -> None:
    graph = graph_of(REF, call(READ, Local(0), INT), sources=1, references=[0])
    refused(graph, "stored variable", NotPermitted)


@pytest.mark.parametrize(
    "node",
    [
        call(FLOX, REF, REF, func="__import__"),
        call(FLOX, REF, REF, "__import__"),
        call(FLOX, REF, REF, func=Tuple(("sum", "np"))),
        call(FLOX, REF, REF, func=Tuple((List(("np",)),))),
        call(bind(FLOX, func="np"), REF, REF),
        call(bind(bind(FLOX, engine="os")), REF, REF),
        call(Compose((op("flox.dask._expand_dims"), bind(FLOX, func="np"))), REF, REF),
        call(FLOX, REF, REF, func=call("numpy.array", "np")),
        call(FLOX, REF, REF, func=call("operator.getitem", REF, INT)),
        call(FLOX, REF, REF, kwargs=Tuple((Dictionary((("out", REF),)),))),
        call("flox.dask._aggregate", REF, combine=bind("flox.dask._grouped_combine", engine="os")),
    ],
)
def test_functions_reached_by_name_are_listed(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


def test_what_steers_by_name_is_a_constant_that_can_be_read() -> None:
    node = call(bind(FLOX, func=REF), REF, REF)
    assert check(graph_of(node, values=("sum",)))
    assert check(graph_of(node, values=(TupleValue(("sum", "nanlen")),)))
    texts = ("np", "sum ", "__import__")
    for value in (
        *texts,
        TupleValue(("np",)),
        ListValue((TupleValue(("np",)),)),
        DictValue((("np", 1),)),
    ):
        refused(graph_of(node, values=(value,)), "text", NotPermitted)
    refused(graph_of(call("numpy.sqrt", REF), node, values=(1,), references=[0, 0, 0, -1]))
    template = Template((node,))
    graph = Graph(
        values=("np",),
        templates=(Template((REF,)), template),
        blocks=(Block(0, 1, (Same(0),)), Block(1, 1, (Same(1), Same(0), Same(0)))),
    )
    refused(graph, "constants", NotPermitted)


def test_a_local_result_steers_nothing() -> None:
    refused(graph_of("np", call(FLOX, REF, REF, func=Local(0))), kind=NotPermitted)


def test_labels_of_groups_are_data() -> None:
    buffers: list[Buffer] = []
    for labels in (pd.Index(["DJF", "np"]), np.array(["np"]), np.array(["np"], dtype=object)):
        value = encode_value(labels, buffers, TABLE)
        node = call(bind(FLOX, func="sum", expected_groups=REF), REF, REF)
        check(graph_of(node, values=(value, 1), references=[0, 1, 1]))


@pytest.mark.parametrize(
    "value",
    [
        OperationValue("numpy.sum"),
        OperationValue("os.system"),
        ListValue((OperationValue("numpy.sum"),)),
        PartialValue(OperationValue("numpy.sum"), (), {}),
        DictValue((("f", PartialValue(OperationValue("numpy.sum"), (), {"axis": 0})),)),
        InstanceValue("flox.Aggregation", {"finalize": OperationValue("os.system")}),
        InstanceValue("flox.Aggregation", {"finalize": OperationValue(FLOX)}),
        InstanceValue(
            "flox.Aggregation", {"finalize": OperationValue("dask.array.core._enforce_dtype")}
        ),
        InstanceValue(
            "flox.Aggregation", {"chunk": TupleValue((PartialValue(OperationValue(FLOX), (), {}),))}
        ),
        InstanceValue(
            "flox.Aggregation", {"chunk": PartialValue(OperationValue("numpy.add"), (1,), {})}
        ),
        InstanceValue(
            "flox.Aggregation", {"chunk": PartialValue(OperationValue("numpy.add"), (), {"out": 1})}
        ),
    ],
    ids=repr,
)
def test_callables_in_values(value: Any) -> None:
    refused(graph_of(REF, values=(value,)), kind=NotPermitted)


def test_types_are_data() -> None:
    check(
        graph_of(
            call("numpy.sum", REF, dtype=op("builtins.float")),
            values=(OperationValue("numpy.float64"),),
        )
    )


@pytest.mark.parametrize(
    "keys",
    [
        (Number(2**61 - 1),),
        (Tuple((Number(-(2**62)),)),),
        tuple(Tuple((Number(number),)) for number in range(300)),
    ],
)
def test_keys_of_a_dict_cannot_be_made_to_collide(keys: Any) -> None:
    node = Dictionary(tuple((key, None) for key in keys))
    refused(graph_of(call("builtins.bool", node)), "key", RequestRefused)
