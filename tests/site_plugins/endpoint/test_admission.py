"""What would take too much memory is refused: from the message, or right before the call."""

from typing import Any

import numpy as np
import pytest

from federated_dask.errors import RequestRefused
from federated_dask.protocol.graph import Call as CallNode
from federated_dask.protocol.graph import (
    Graph,
    Integer,
    List,
    Node,
    Number,
    Operation,
    Partial,
    Reference,
    Slice,
    Source,
    Tuple,
)
from federated_dask.protocol.messages import Failure, Finished
from site_plugins.endpoint.guards import Guard
from site_plugins.endpoint.job_admission import JobAdmission
from tests.site_plugins import graphs
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import AIR, Caller, submission

ROW = call("numpy.ones", Tuple((Number(1), Integer())))
COLUMN = call("numpy.ones", Tuple((Integer(), Number(1))))


async def little(self: JobAdmission) -> int:
    """Bytes that a task may take."""
    return 4_000


def graph_of(*steps: Node, integers: Any = ()) -> Graph:
    return Graph(templates=(template(*steps),), blocks=(block(0, *integers),))


async def test_what_a_message_asks_for_in_so_many_words(north: Caller) -> None:
    graph = graph_of(call("numpy.ones", List((Integer(), Integer()))), integers=(10**6, 10**6))
    status, failure = await north.refused("POST", "/jobs", data=submission(graph, 0))
    assert (status, failure.reason) == (413, "limit_exceeded")
    assert "numpy.ones" in failure.message


@pytest.mark.parametrize(
    ("node", "integers"),
    [
        (call("numpy.add", ROW, COLUMN), (400, 400)),
        (call("numpy.ones", Tuple((call("operator.mul", Integer(), Number(10)),))), (400,)),
        (call("numpy.concatenate", List((ROW,) * 1000)), (100,) * 1000),
        (
            CallNode(
                Partial(Operation("dask.array.core._enforce_dtype")),
                (ROW, COLUMN),
                (("enforce_dtype_function", Operation("numpy.multiply")),),
            ),
            (400, 400),
        ),
        (
            call(
                "dask.array.reductions.mean_chunk",
                call("numpy.broadcast_to", Number(1), Tuple((Integer(), Integer()))),
            ),
            (10**6, 10**6),
        ),
    ],
    ids=["broadcast", "computed", "concatenated", "forwarded", "summed"],
)
async def test_what_only_shows_when_it_is_run(
    north: Caller, node: Node, integers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobAdmission, "task_bytes", little)
    _, last = await north.run(graph_of(node, integers=integers), 0)
    assert isinstance(last, Failure)
    assert last.reason == "limit_exceeded", last.message
    assert last.site == "north"


async def test_a_read_of_too_much(north: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobAdmission, "task_bytes", little)
    everything = template(call("dask.array.core.getter", Reference(), Tuple(())))
    rows = template(
        call("dask.array.core.getter", Reference(), Tuple((Slice(None, Number(4), None),)))
    )
    source = Source("a1b", await north.version(), "air")
    graph = Graph(sources=(source,), templates=(everything, rows), blocks=(block(0, 0),))
    _, last = await north.run(graph, 0)
    assert isinstance(last, Failure)
    assert last.reason == "limit_exceeded"
    graph = Graph(sources=(source,), templates=(everything, rows), blocks=(block(1, 0),))
    results, last = await north.run(graph, 0)
    assert isinstance(last, Finished)
    np.testing.assert_array_equal(results[0], AIR[:4])


async def test_the_site_tells_how_much_a_task_may_take(north: Caller) -> None:
    told = await north.json("/site")
    assert told["limits"]["task_bytes"] == told["memory"] // told["workers"] // 2


async def test_reads_are_fused_with_slices_as_without_a_limit(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version())
    results, last = await north.run(graph, graph.tasks - 1)
    assert isinstance(last, Finished)
    assert last.read_bytes == AIR.nbytes
    np.testing.assert_allclose(results[0], AIR.sum(axis=0))


def test_what_a_task_holds_counts_together() -> None:
    ones = Guard("numpy.ones", np.ones, 10**6)
    held = [ones(10_000) for _ in range(12)]
    with pytest.raises(RequestRefused, match="more memory"):
        ones(10_000)
    # Views count once, and what is let go of does not count any more.
    view = Guard("numpy.transpose", np.transpose, 10**6)
    for _ in range(100):
        view(held[0])
    held.clear()
    for _ in range(100):
        ones(10_000)
