"""Any graph crosses; any damage to it is the same graph or a refusal, and nothing else happens."""

import math
import os
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federated_dask.errors import FederatedError
from federated_dask.protocol import operation_names as names
from federated_dask.protocol.bounded import check_written_sizes
from federated_dask.protocol.frames import Buffer, FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.graph import (
    Block,
    Bytes,
    Call,
    CheckedGraph,
    Compose,
    DataType,
    Dictionary,
    EllipsisNode,
    Float,
    Graph,
    Held,
    Integer,
    List,
    Local,
    Node,
    Number,
    Operation,
    Partial,
    Reference,
    Scalar,
    Slice,
    Template,
    Tuple,
    check_graph,
    encode_column,
    walk,
)
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import JobSubmission, Output
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import decode_value, encode_value
from tests.protocol.watching import watched

TABLE = operation_table()
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
LIMITS = Limits(tasks=1000, nodes=2000, depth=50)
RULED = {*names.CALLS, *names.TEXTS, *names.IN_PLACE, *names.READS, *names.COPYING}
PLAIN = sorted(
    name
    for name in TABLE.names
    if name not in RULED and TABLE.most_positional(name) >= 2 and not name.startswith("builtins.")
)
DTYPES = st.sampled_from(["<f8", "<f4", "|b1", "<i2", "<M8[ns]", "<U3", "|S2"])
INT64 = st.integers(-(2**63), 2**63 - 1)


def bounded(examples: int) -> Any:
    return settings(
        max_examples=20 * examples if THOROUGH else examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# Strategies

LEAVES: st.SearchStrategy[Node] = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.builds(Bytes, st.binary(max_size=5)),
    st.just(Reference()),
    st.just(Integer()),
    st.builds(Number, st.integers(-(2**63), 2**64 - 1)),
    st.builds(Float, st.floats().map(float.hex)),
    st.builds(DataType, DTYPES),
    st.just(Scalar("<f4", b"\0\0\0\0")),
    st.just(EllipsisNode()),
)
KEYS = st.text(max_size=3) | st.builds(Number, st.integers(-100, 100))
WORDS = st.sampled_from(["axis", "keepdims", "mode", "fill_value", "ddof"])


def composed(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    sequence = st.lists(inner, max_size=3).map(tuple)
    keywords = st.dictionaries(WORDS, inner, max_size=2).map(lambda each: tuple(each.items()))
    pair = st.lists(inner, min_size=1, max_size=2).map(tuple)
    operation = st.builds(Operation, st.sampled_from(PLAIN))
    return st.one_of(
        st.builds(List, sequence),
        st.builds(Tuple, sequence),
        st.builds(Slice, inner, inner, inner),
        st.dictionaries(KEYS, inner, max_size=2).map(lambda each: Dictionary(tuple(each.items()))),
        st.builds(Call, operation, pair, keywords),
        st.builds(Call, st.builds(Partial, operation, st.just(()), keywords), pair),
        st.builds(
            Call,
            st.builds(Compose, st.tuples(operation, operation)),
            pair,
        ),
    )


NODES = st.recursive(LEAVES, composed, max_leaves=8)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, list[Buffer]]:
    """A graph that passes, and the buffers of its values."""
    buffers: list[Buffer] = []
    values = draw(
        st.lists(
            st.integers(-(2**100), 2**100)
            | st.floats()
            | st.text(max_size=4)
            | st.builds(np.arange, st.integers(0, 9))
            | st.lists(st.integers(0, 5), max_size=3),
            min_size=1,
            max_size=3,
        )
    )
    encoded = tuple(encode_value(value, buffers, TABLE) for value in values)
    held = draw(st.lists(st.builds(Held, st.just("lease"), st.integers(0, 9)), max_size=2))
    templates, blocks = [], []
    number = len(encoded) + len(held)
    for position in range(draw(st.integers(1, 3))):
        first = draw(NODES)
        steps = [first]
        if draw(st.booleans()):
            steps.append(Call(Operation("numpy.sum"), (Local(0),), (("axis", draw(NODES)),)))
        templates.append(Template(tuple(steps)))
        for _ in range(draw(st.integers(1, 2))):
            count = draw(st.integers(1, 4))
            columns = []
            parts = [part for step in steps for part in walk(step)]
            for kind, numbers in ((Reference, st.integers(0, number - 1)), (Integer, INT64)):
                for _ in range(sum(isinstance(part, kind) for part in parts)):
                    column = draw(st.lists(numbers, min_size=count, max_size=count))
                    columns.append(encode_column(np.array(column, dtype=np.int64)))
            blocks.append(Block(position, count, tuple(columns)))
            number += count
    graph = Graph(
        values=encoded, held=tuple(held), templates=tuple(templates), blocks=tuple(blocks)
    )
    return graph, buffers


def sent(graph: Graph, buffers: list[Buffer]) -> bytes:
    message = JobSubmission(graph=graph, outputs=(Output(task=0),))
    return b"".join(bytes(piece) for piece in encode_frame(message, buffers))


def taken(data: bytes) -> CheckedGraph:
    """Take bytes as an endpoint does, up to where tasks would be built."""
    decoder = FrameDecoder(Limits(header_bytes=2**20, buffer_bytes=2**20, buffers=100))
    found = decoder.feed(data)
    decoder.close()
    checked = None
    for frame in found:
        graph = decode_message(frame, JobSubmission).graph
        checked = check_graph(graph, TABLE, LIMITS)
        check_written_sizes(checked, 2**30)
        for value in graph.values:
            decode_value(value, frame.buffers, TABLE)
    if checked is None:
        pytest.fail("nothing came out of a whole frame")
    return checked


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Once before anything is watched: libraries load parts of themselves on first use."""
    graph = Graph(values=(1,), templates=(Template((Reference(),)),), blocks=(Block(0, 1, ()),))
    with pytest.raises(FederatedError):
        taken(sent(graph, []))


@bounded(60)
@given(graphs())
def test_any_graph_comes_back_and_passes(drawn: tuple[Graph, list[Buffer]]) -> None:
    graph, buffers = drawn
    data = sent(graph, buffers)
    with watched():
        try:
            checked = taken(data)
        except FederatedError as error:
            # Sizes that are written in it are the only thing that may be wrong with it.
            assert error.reason == "limit_exceeded"  # noqa: PT017
            return
    # NaN and -0.0 included: compared as bytes.
    assert msgspec.msgpack.encode(checked.graph) == msgspec.msgpack.encode(graph)
    operations = {
        part.name
        for template in graph.templates
        for step in template.steps
        for part in walk(step)
        if isinstance(part, Operation)
    }
    assert checked.operations == operations
    assert sum(len(block.references) for block in checked.blocks) == graph.tasks


def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes changed, taken out, put in, cut off."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(found) - 1))
        match draw(st.sampled_from(["change", "flip", "remove", "insert", "cut", "repeat"])):
            case "change":
                found[at] = draw(st.integers(0, 255))
            case "flip":
                found[at] ^= 1 << draw(st.integers(0, 7))
            case "remove":
                del found[at : at + draw(st.integers(1, 8))]
            case "insert":
                found[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del found[at:]
            case "repeat":
                found[at:at] = found[at : at + draw(st.integers(1, 30))]
        if not found:
            break
    return bytes(found)


@bounded(120)
@given(st.data())
def test_any_damage_is_the_same_graph_or_a_refusal(data: st.DataObject) -> None:
    graph, buffers = data.draw(graphs())
    message = JobSubmission(graph=graph, outputs=(Output(task=0),))
    # Not compressed, so that damage reaches what is inside.
    header = msgspec.msgpack.encode((message, [(len(b), len(b)) for b in map(memoryview, buffers)]))
    changed = data.draw(st.composite(damaged)(header))
    size = len(changed).to_bytes(4, "little")
    frame = b"FDF1" + size + size + changed + b"".join(bytes(buffer) for buffer in buffers)
    with watched():
        try:
            checked = taken(frame)
        except FederatedError:
            return
    # What is taken is a graph like any other: it can be sent, and passes again.
    again = taken(sent(checked.graph, [bytearray(2**10)] * 0 + list(buffers)))
    assert again.operations == checked.operations <= set(TABLE.names)


@bounded(80)
@given(st.data())
def test_any_damage_to_a_whole_frame_is_the_same_graph_or_a_refusal(data: st.DataObject) -> None:
    graph, buffers = data.draw(graphs())
    whole = sent(graph, buffers)
    changed = data.draw(st.composite(damaged)(whole))
    with watched():
        try:
            decoder = FrameDecoder(Limits(header_bytes=2**20, buffer_bytes=2**20, buffers=100))
            for frame in decoder.feed(changed):
                taken_graph = decode_message(frame, JobSubmission).graph
                check_graph(taken_graph, TABLE, LIMITS)
            decoder.close()
        except FederatedError:
            return


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.sampled_from(sorted(["os.system", "array", "operation", "instance", "numpy.add", "|O"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@bounded(120)
@given(st.data())
def test_any_other_part_is_the_same_graph_or_a_refusal(data: st.DataObject) -> None:
    graph, buffers = data.draw(graphs())
    message = msgspec.msgpack.decode(
        msgspec.msgpack.encode(JobSubmission(graph=graph, outputs=(Output(task=0),)))
    )
    parent: Any = message
    node: Any = message["graph"]
    key: Any = "graph"
    while isinstance(node, dict | list) and node and data.draw(st.integers(0, 6)):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, data.draw(st.sampled_from(list(keys)))
        node = node[key]
    parent[key] = data.draw(JUNK)
    sizes = [(len(b), len(b)) for b in map(memoryview, buffers)]
    header = msgspec.msgpack.encode((message, sizes))
    size = len(header).to_bytes(4, "little")
    frame = b"FDF1" + size + size + header + b"".join(bytes(buffer) for buffer in buffers)
    with watched():
        try:
            checked = taken(frame)
        except FederatedError:
            return
    assert checked.operations <= set(TABLE.names)


@bounded(80)
@given(st.lists(INT64, min_size=1, max_size=6), st.sampled_from(["numpy.ones", "numpy.zeros"]))
def test_sizes_written_in_a_message_are_found_as_they_are(sizes: list[int], name: str) -> None:
    shape = Tuple(tuple(Integer() for _ in sizes))
    columns = tuple(encode_column(np.array([size])) for size in sizes)
    graph = Graph(
        templates=(Template((Call(Operation(name), (shape,)),)),), blocks=(Block(0, 1, columns),)
    )
    checked = check_graph(graph, TABLE, LIMITS)
    refused = False
    try:
        check_written_sizes(checked, 2**30)
    except FederatedError as error:
        refused = error.reason == "limit_exceeded"
    asked = 8 * math.prod(map(abs, sizes))
    # In floats, so a size within a billionth of the limit may fall on either side.
    if asked > 2**30 + 16:
        assert refused
    elif asked < 2**30 - 16:
        assert not refused
