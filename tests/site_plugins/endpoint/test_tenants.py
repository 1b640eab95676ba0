"""Two principals at one site: neither reads, ends nor changes what is the other's."""

import numpy as np
import pytest

from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.graph import Graph, Held, Integer, Number, Reference, Tuple
from federated_dask.protocol.messages import Failure, Finished, Output
from federated_dask.protocol.values import encode_value
from site_plugins import LocalFederation
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import Caller, submission

HELD = Output(task=0, release=False, hold=True)


def full(number: int) -> Graph:
    return Graph(
        templates=(template(call("numpy.full", Tuple((Number(7),)), Integer())),),
        blocks=(block(0, number),),
    )


@pytest.fixture
def ada(federation: LocalFederation, north: Caller) -> Caller:
    return Caller(federation, "north", federation.new_token("north", "ada"))


@pytest.fixture
def eve(federation: LocalFederation) -> Caller:
    return Caller(federation, "north", federation.new_token("north", "eve"))


async def held(caller: Caller, graph: Graph) -> str:
    _, last = await caller.run(graph, HELD)
    assert isinstance(last, Finished)
    assert last.lease is not None
    return last.lease


async def test_neither_reads_nor_ends_what_the_other_holds(ada: Caller, eve: Caller) -> None:
    lease = await held(ada, full(1))
    for method, path, options in (
        ("GET", f"/leases/{lease}/0", {}),
        ("POST", f"/leases/{lease}", {}),
        ("DELETE", f"/leases/{lease}", {}),
        (
            "POST",
            f"/leases/{lease}/delegations",
            {"json": {"receiver": "south", "outputs": [0]}},
        ),
    ):
        status, failure = await eve.refused(method, path, **options)
        assert (status, failure.reason) == (404, "unknown_result"), path
    graph = Graph(
        held=(Held(lease, 0),),
        templates=(template(call("numpy.sum", Reference())),),
        blocks=(block(0, 0),),
    )
    status, failure = await eve.refused("POST", "/jobs", data=submission(graph, 0))
    assert (status, failure.reason) == (404, "unknown_result")
    # It is still there, and hers.
    results, last = await ada.run(graph, 0)
    assert results == {0: 7}
    assert isinstance(last, Finished)
    assert (await ada.read("DELETE", f"/leases/{lease}"))[0] == 204


async def test_what_both_hold_stays_while_one_of_them_holds_it(ada: Caller, eve: Caller) -> None:
    """The same work has the same key; a lease that ends takes nothing from another."""
    hers, theirs = await held(ada, full(2)), await held(eve, full(2))
    assert hers != theirs
    assert (await eve.read("DELETE", f"/leases/{theirs}"))[0] == 204
    status, _ = await ada.read("GET", f"/leases/{hers}/0")
    assert status == 200
    assert (await eve.read("GET", f"/leases/{theirs}/0"))[0] == 404
    assert (await ada.read("DELETE", f"/leases/{hers}"))[0] == 204


async def test_nobody_chooses_a_key(ada: Caller, eve: Caller) -> None:
    """Keys are digests of what is done: what is done otherwise has another key."""
    lease = await held(ada, full(3))
    for number in (4, 5, 3):
        results, _ = await eve.run(full(number), 0)
        np.testing.assert_array_equal(results[0], np.full(7, number))
    graph = Graph(
        held=(Held(lease, 0),),
        templates=(template(call("numpy.sum", Reference())),),
        blocks=(block(0, 0),),
    )
    results, _ = await ada.run(graph, 0)
    assert results == {0: 21}
    assert (await ada.read("DELETE", f"/leases/{lease}"))[0] == 204


async def test_values_that_look_alike_are_told_apart(ada: Caller, eve: Caller) -> None:
    """Equal bytes of other types, shapes and orders are other values."""
    data = np.arange(256.0)
    alike = [
        data,
        data.reshape(16, 16),
        data.reshape(16, 16).T,
        data.view("i8"),
        data.view("M8[s]"),
    ]
    leases = []
    for caller, order in ((ada, alike), (eve, alike[::-1])):
        for value in order:
            buffers: list[Buffer] = []
            encoded = encode_value(value, buffers)
            graph = Graph(
                values=(encoded,),
                templates=(template(call("numpy.flip", Reference())),),
                blocks=(block(0, 0),),
            )
            results, last = await caller.run(
                graph, Output(task=0, release=True, hold=True), buffers=buffers
            )
            assert isinstance(last, Finished)
            leases.append((caller, last.lease))
            assert results[0].dtype == value.dtype
            assert results[0].shape == value.shape
            np.testing.assert_array_equal(results[0], np.flip(value))
    for caller, lease in leases:
        assert (await caller.read("DELETE", f"/leases/{lease}"))[0] == 204


async def test_a_failing_task_of_one_fails_nothing_of_the_other(ada: Caller, eve: Caller) -> None:
    bad = Graph(
        templates=(template(call("numpy.full", Tuple((Number(7),)), Integer(), "no dtype")),),
        blocks=(block(0, 6),),
    )
    _, last = await eve.run(bad, 0)
    assert isinstance(last, Failure)
    results, _ = await ada.run(full(6), 0)
    np.testing.assert_array_equal(results[0], np.full(7, 6))
