import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from federated_dask.protocol import values
from federated_dask.protocol.frames import FrameDecoder, decode_message
from federated_dask.protocol.graph import Graph, Held, Integer, List, Reference, Source
from federated_dask.protocol.messages import (
    Accepted,
    Failure,
    Finished,
    Heartbeat,
    LeaseTerms,
    Output,
    Progress,
    Result,
)
from federated_dask.protocol.values import encode_value
from site_plugins import LocalFederation
from site_plugins.endpoint import job_admission, running
from site_plugins.endpoint.gateway import Gateway
from tests.site_plugins import graphs
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import AIR, DEADLINE, Caller, dataset, submission, value_of

TOTAL = AIR.sum(axis=0)


async def test_a_job_gives_what_numpy_gives(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version())
    results, last = await north.run(graph, graph.tasks - 1)
    np.testing.assert_allclose(results[0], TOTAL, rtol=1e-12)
    assert isinstance(last, Finished)
    assert last.lease is None
    assert last.read_bytes == AIR.nbytes
    assert 0 < last.compute_seconds < 60


async def test_the_first_event_is_accepted_with_the_tasks_that_are_left(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version())
    events = [event async for event, _ in north.events(submission(graph, graph.tasks - 1))]
    # Four reads are fused with their sums; three additions stay.
    assert isinstance(events[0], Accepted)
    assert events[0].tasks == 7
    assert [type(event) for event in events[1:]] == [Result, Finished]


async def test_many_outputs(north: Caller) -> None:
    graph = Graph(
        templates=(template(call("numpy.full", List((Integer(), Integer())), Integer())),),
        blocks=(block(0, 2, 3, np.arange(500)),),
    )
    results, last = await north.run(graph, *range(500))
    assert isinstance(last, Finished)
    assert sorted(results) == list(range(500))
    for number, value in results.items():
        np.testing.assert_array_equal(value, np.full([2, 3], number))


async def test_one_task_may_be_several_outputs(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version())
    results, _ = await north.run(graph, 4, 4, Output(task=4, release=False))
    assert sorted(results) == [0, 1]
    np.testing.assert_array_equal(results[0], results[1])


async def test_values_are_sent_along(north: Caller) -> None:
    small, large = np.arange(4.0), np.arange(4000.0)
    buffers: list[Any] = []
    values = tuple(encode_value(value, buffers) for value in (small, large))
    graph = Graph(
        values=values,
        templates=(template(call("numpy.sum", Reference())),),
        blocks=(block(0, [0, 1]),),
    )
    results, _ = await north.run(graph, 0, 1, buffers=buffers)
    assert results == {0: small.sum(), 1: large.sum()}


async def test_a_large_result_arrives_whole(north: Caller) -> None:
    graph = Graph(
        templates=(template(call("numpy.arange", Integer())),), blocks=(block(0, 1_000_000),)
    )
    results, _ = await north.run(graph, 0)
    np.testing.assert_array_equal(results[0], np.arange(1_000_000))


async def test_a_result_over_the_limit_is_not_gathered(north: Caller) -> None:
    graph = Graph(
        templates=(template(call("numpy.zeros", Integer())),), blocks=(block(0, 4_000_000),)
    )
    _, last = await north.run(graph, 0)
    assert isinstance(last, Failure)
    assert last.reason == "limit_exceeded"
    assert last.site == "north"


async def test_a_result_that_is_no_array(north: Caller) -> None:
    graph = Graph(templates=(template(call("builtins.slice", Integer())),), blocks=(block(0, 1),))
    results, _ = await north.run(graph, 0)
    assert results[0] == slice(1)


async def test_the_exception_of_a_task_is_told(north: Caller) -> None:
    graph = Graph(
        templates=(
            template(call("numpy.reshape", call("numpy.arange", Integer()), List((Integer(),)))),
        ),
        blocks=(block(0, 6, 7),),
    )
    _, last = await north.run(graph, 0)
    assert isinstance(last, Failure)
    assert (last.reason, last.exception, last.site) == (
        "task_failed",
        "builtins.ValueError",
        "north",
    )
    assert "cannot reshape array of size 6 into shape (7,)" in last.message
    assert last.traceback is not None
    assert 'File "numpy/_core/fromnumeric.py"' in last.traceback
    assert "site-packages" not in last.traceback
    assert str(Path.home()) not in last.traceback


async def test_a_task_that_failed_does_not_stay(north: Caller) -> None:
    graph = Graph(
        templates=(template(call("operator.truediv", Integer(), Integer())),),
        blocks=(block(0, [1, 4], [0, 2]),),
    )
    _, last = await north.run(graph, 0, 1)
    assert isinstance(last, Failure)
    assert last.exception == "builtins.ZeroDivisionError"
    results, _ = await north.run(graph, 1)
    assert results == {0: 2.0}


async def test_messages_about_data_that_may_not_leave_stay(north: Caller) -> None:
    # The index is made of the data and would be quoted by the message.
    version = await north.version("secret")
    index = call("builtins.int", call("operator.mul", Reference(), Integer()))
    graph = Graph(
        sources=(Source("secret", version, "air"),),
        templates=(
            graphs.READ,
            template(call("numpy.max", Reference())),
            template(call("operator.getitem", call("builtins.list", List(())), index)),
        ),
        blocks=(block(0, 0, 0, 40), block(1, 1), block(2, 2, 10**9)),
    )
    _, last = await north.run(graph, 2)
    assert isinstance(last, Failure)
    assert last.exception == "builtins.IndexError"
    assert "stays at the site" in last.message
    assert last.traceback is None


# Refusals before anything runs


async def test_unknown_dataset(north: Caller) -> None:
    graph = graphs.chunk_sums("v", "nothing")
    status, failure = await north.refused("POST", "/jobs", data=submission(graph, 0))
    assert (status, failure.reason, failure.site) == (404, "unknown_dataset", "north")


async def test_another_version(north: Caller) -> None:
    graph = graphs.chunk_sums("0" * 32)
    status, failure = await north.refused("POST", "/jobs", data=submission(graph, 0))
    assert (status, failure.reason) == (409, "version_changed")


async def test_unreadable_dataset(north: Caller) -> None:
    graph = graphs.chunk_sums("v", "broken")
    status, failure = await north.refused("POST", "/jobs", data=submission(graph, 0))
    assert (status, failure.reason) == (503, "dataset_unreadable")
    assert "canary" not in str(failure)


async def test_unknown_variable(north: Caller) -> None:
    version = await north.version()
    graph = Graph(
        sources=(Source("a1b", version, "wind"),),
        templates=(graphs.READ,),
        blocks=(block(0, 0, 0, 1),),
    )
    _, last = await north.run(graph, 0)
    assert isinstance(last, Failure)
    assert last.reason == "unknown_variable"
    assert last.site == "north"


@pytest.mark.parametrize(
    ("graph", "status", "reason"),
    [
        pytest.param(
            Graph(templates=(template(call("os.system", "ls")),), blocks=(block(0),)),
            403,
            "operation_not_allowed",
            id="unknown operation",
        ),
        pytest.param(
            Graph(templates=(graphs.ADD,), blocks=(block(0, 0, 0),)),
            400,
            "malformed",
            id="to itself",
        ),
        pytest.param(
            Graph(templates=(graphs.ADD,), blocks=(block(0, [1, 0], [1, 0]),)),
            400,
            "malformed",
            id="forward",
        ),
        pytest.param(
            Graph(
                sources=(Source("a1b", "v", "air"),), templates=(graphs.SUM,), blocks=(block(0, 0),)
            ),
            403,
            "operation_not_allowed",
            id="source where nothing reads",
        ),
        pytest.param(
            Graph(templates=(template(Integer()),), blocks=(block(0, np.arange(1001)),)),
            413,
            "limit_exceeded",
            id="too many tasks",
        ),
        pytest.param(
            Graph(
                templates=(template(call("numpy.ones", Integer(), **{"_data_producer": True})),),
                blocks=(block(0, 1),),
            ),
            400,
            "malformed",
            id="keyword of Dask's own",
        ),
    ],
)
async def test_refused_graphs(north: Caller, graph: Graph, status: int, reason: str) -> None:
    found, failure = await north.refused("POST", "/jobs", data=submission(graph, 0))
    assert (found, failure.reason, failure.site) == (status, reason, "north")


async def test_an_output_that_is_no_task(north: Caller) -> None:
    graph = Graph(templates=(template(Integer()),), blocks=(block(0, 1),))
    status, failure = await north.refused("POST", "/jobs", data=submission(graph, 1))
    assert (status, failure.reason) == (400, "malformed")


# Holding


async def test_held_results_are_used_by_a_second_job(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version())
    results, last = await north.run(graph, Output(task=4, release=False, hold=True), 5)
    assert sorted(results) == [1]
    assert isinstance(last, Finished)
    assert last.lease is not None
    second = Graph(
        held=(Held(last.lease, 0),),
        templates=(template(call("operator.neg", Reference())), template(Reference())),
        blocks=(block(0, 0), block(1, 0)),
    )
    results, again = await north.run(second, 0, 1)
    assert isinstance(again, Finished)
    assert again.read_bytes == 0
    np.testing.assert_allclose(results[0], -AIR[:10].sum(axis=0))
    np.testing.assert_allclose(results[1], AIR[:10].sum(axis=0))
    async with north.request("GET", f"/leases/{last.lease}/0") as response:
        [frame] = FrameDecoder().feed(await response.read())
        result = decode_message(frame, Result)
        assert result.output == 0
        np.testing.assert_array_equal(value_of(result.value, frame), results[1])
    assert await north.read("DELETE", f"/leases/{last.lease}") == (204, b"")
    _, failure = await north.refused("GET", f"/leases/{last.lease}/0")
    assert failure.reason == "unknown_result"


async def test_a_lease_is_renewed(north: Caller, federation: LocalFederation) -> None:
    graph = Graph(templates=(template(Integer()),), blocks=(block(0, 1),))
    _, last = await north.run(graph, Output(task=0, hold=True))
    assert isinstance(last, Finished)
    path = f"/leases/{last.lease}"
    status, body = await north.read("POST", path)
    assert status == 200
    terms = msgspec.json.decode(body, type=LeaseTerms)
    # A client that never hears of a lease cannot let go of it.
    assert last.lease_seconds == pytest.approx(60, abs=10)
    assert terms.lease_seconds == pytest.approx(3600, abs=10)
    other = Caller(federation, "north", federation.new_token("north", "somebody else"))
    for caller in (other, north):
        status, failure = await caller.refused("POST", path)
        assert (status, failure.reason) == (404, "unknown_result")
        assert failure.hint == "persist() the expression again."
        await north.read("DELETE", path)


def _leases(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.plugins["federated-site"]._leases)


@pytest.mark.parametrize("where", ["hold", "account"])
async def test_who_leaves_before_being_told_of_a_lease_has_none(
    north: Caller, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    begun, left = threading.Event(), threading.Event()
    real = getattr(Gateway, where)

    async def slow(self: Gateway, *arguments: Any, **options: Any) -> Any:
        answer = await real(self, *arguments, **options)
        if where == "hold" or options.get("close"):
            begun.set()
            while not left.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return answer

    monkeypatch.setattr(Gateway, where, slow)
    graph = Graph(templates=(template(Integer()),), blocks=(block(0, 1),))
    body = submission(graph, Output(task=0, hold=True))
    async with north.request("POST", "/jobs", data=body):
        assert await asyncio.to_thread(begun.wait, DEADLINE)
        assert len(north.on_scheduler(_leases)) == 1
    left.set()
    async with asyncio.timeout(DEADLINE):
        while north.on_scheduler(_leases):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_equal_work_is_done_once(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version())
    last_task = graph.tasks - 1
    _, first = await north.run(graph, Output(task=last_task, hold=True))
    results, second = await north.run(graph, last_task)
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert (second.read_bytes, second.compute_seconds) == (0, 0.0)
    np.testing.assert_allclose(results[0], TOTAL)
    await north.read("DELETE", f"/leases/{first.lease}")


async def test_anothers_lease_is_unknown(north: Caller, federation: LocalFederation) -> None:
    graph = Graph(templates=(template(Integer()),), blocks=(block(0, 1),))
    _, last = await north.run(graph, Output(task=0, hold=True))
    assert isinstance(last, Finished)
    other = Caller(federation, "north", federation.new_token("north", "somebody else"))
    for method, path in [("GET", f"/leases/{last.lease}/0"), ("DELETE", f"/leases/{last.lease}")]:
        status, failure = await other.refused(method, path)
        assert (status, failure.reason) == (404, "unknown_result")
        assert failure == (await other.refused(method, path.replace(str(last.lease), "0" * 32)))[1]
    use = Graph(
        held=(Held(str(last.lease), 0),), templates=(template(Reference()),), blocks=(block(0, 0),)
    )
    status, failure = await other.refused("POST", "/jobs", data=submission(use, 0))
    assert (status, failure.reason) == (404, "unknown_result")
    assert await north.read("DELETE", f"/leases/{last.lease}") == (204, b"")


# Egress


async def test_a_limit_of_egress_is_kept(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    results, last = await north.run(graph, graph.tasks - 1)
    np.testing.assert_allclose(results[0], TOTAL)
    # One sum has 240 bytes; of the budget of 964, 700 are left.
    results, last = await north.run(graph, *range(4, 8))
    assert isinstance(last, Failure)
    assert last.reason == "budget_exhausted"
    assert len(results) == 2
    results, last = await north.run(graph, 0)
    assert isinstance(last, Failure)
    assert last.reason == "budget_exhausted"
    assert results == {}


async def test_shapes_count_as_egress(north: Caller) -> None:
    # Empty arrays whose shapes tell of the data.
    version = await north.version("secret")
    shape = List((call("builtins.int", call("numpy.absolute", Reference())), Integer()))
    graph = Graph(
        sources=(Source("secret", version, "air"),),
        templates=(
            graphs.READ,
            template(call("numpy.max", Reference())),
            template(call("numpy.zeros", shape)),
        ),
        blocks=(block(0, 0, 0, 40), block(1, 1), block(2, 2, np.zeros(100))),
    )
    results, last = await north.run(graph, *range(2, 102))
    assert isinstance(last, Failure)
    assert last.reason == "budget_exhausted"
    assert 0 < len(results) < 60
    assert results[0].shape == (int(AIR.max()), 0)


async def test_held_results_keep_their_label(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    results, last = await north.run(graph, Output(task=0, release=False, hold=True))
    assert isinstance(last, Finished)
    status, failure = await north.refused("GET", f"/leases/{last.lease}/0")
    assert (status, failure.reason) == (403, "budget_exhausted")
    use = Graph(
        held=(Held(str(last.lease), 0),), templates=(template(Reference()),), blocks=(block(0, 0),)
    )
    results, again = await north.run(use, 0)
    assert isinstance(again, Failure)
    assert again.reason == "budget_exhausted"
    assert results == {}
    await north.read("DELETE", f"/leases/{last.lease}")


# The life line


async def test_a_client_that_goes_away_cancels(north: Caller) -> None:
    graph = graphs.slow_graph(1)
    events = north.events(submission(graph, graph.tasks - 1))
    async for event, _ in events:
        assert isinstance(event, Accepted | Progress | Heartbeat)
        if isinstance(event, Progress):
            assert 0 < event.done < event.total == 401
            break
    await events.aclose()
    # The fixture waits until the scheduler knows of nothing; the graph would take a minute.


async def test_a_client_that_goes_away_takes_nothing_from_another(north: Caller) -> None:
    graph = graphs.slow_graph(1000, 12)
    events = north.events(submission(graph, graph.tasks - 1))
    async for event, _ in events:
        assert isinstance(event, Accepted)
        break
    other = asyncio.create_task(north.run(graph, graph.tasks - 1))
    async with asyncio.timeout(60):
        while await north.running_jobs() < 2:
            pass
    await events.aclose()
    results, last = await other
    assert isinstance(last, Finished)
    assert results == {0: True}


async def test_a_quiet_job_beats() -> None:
    sites = {"north": {"limits": {"heartbeat_seconds": "0.1s"}}}
    with LocalFederation(sites, threads_per_worker=1) as federation:
        caller = Caller(federation, "north", federation.token["north"])
        graph = Graph(
            templates=(
                template(
                    call("numpy.linalg.svd", call("numpy.ones", List((Integer(), Integer()))))
                ),
            ),
            blocks=(block(0, 1200, 1200),),
        )
        seen = [
            type(event)
            async for event, _ in caller.events(submission(graph, Output(task=0, release=False)))
        ]
    assert seen[0] is Accepted
    assert Heartbeat in seen
    assert seen[-1] is Finished


async def test_a_version_that_changes_while_the_job_waits(zarr_path: Path) -> None:
    sites = {"north": {"datasets": {"a1b": zarr_path}, "limits": {"version_check_seconds": "1h"}}}
    with LocalFederation(sites) as federation:
        caller = Caller(federation, "north", federation.token["north"])
        graph = graphs.chunk_sums(await caller.version())
        dataset().isel(time=slice(30)).to_zarr(
            zarr_path, mode="w", zarr_format=2, consolidated=True
        )
        # A worker that has just looked at the store does not look again at once.
        async with asyncio.timeout(60):
            while isinstance((await caller.run(graph, graph.tasks - 1))[1], Finished):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        _, last = await caller.run(graph, graph.tasks - 1)
    assert isinstance(last, Failure)
    assert (last.reason, last.site) == ("version_changed", "north")
    assert "canary" not in str(last)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Names of the threads in which the endpoint does what."""
    found: dict[str, set[str]] = {}

    def watch(module: Any, name: str) -> None:
        function = getattr(module, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            found.setdefault(name, set()).add(threading.current_thread().name)
            return function(*arguments, **keywords)

        monkeypatch.setattr(module, name, watched)

    for name in ("decode_message", "check_graph", "build_graph"):
        watch(job_admission, name)
    watch(running, "encode_value")
    return found


async def test_what_takes_long_is_done_beside_the_event_loop(
    north: Caller, threads: dict[str, set[str]]
) -> None:
    few = Graph(templates=(template(call("builtins.bool", Integer())),), blocks=(block(0, 1),))
    await north.run(few, 0)
    [[loop]] = {tuple(names) for names in threads.values()}
    threads.clear()

    # One task whose template is large though it is few bytes.
    node = List((List((None,) * 20_000),))
    wide = Graph(templates=(template(call("builtins.bool", node)),), blocks=(block(0),))
    results, _ = await north.run(wide, 0)
    assert results == {0: True}
    assert all(loop not in threads[name] for name in threads if name != "encode_value")
    threads.clear()

    # Many nodes by way of many tasks of one template.
    many = Graph(
        templates=(template(call("builtins.bool", List((None,) * 200))),),
        blocks=tuple(block(0) for _ in range(100)),
    )
    await north.run(many, 0)
    assert loop in threads["check_graph"]
    assert loop not in threads["build_graph"]
    threads.clear()

    buffers: list[Any] = []
    texts = encode_value(np.array([""] * 10_000, dtype=object), buffers)
    graph = Graph(
        values=(texts,),
        templates=(template(call("numpy.ravel", Reference())),),
        blocks=(block(0, 0),),
    )
    results, _ = await north.run(graph, 0, buffers=buffers)
    assert len(results[0]) == 10_000
    assert all(loop not in names for names in threads.values())


async def test_a_result_of_too_many_objects_is_a_failure(
    north: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "LARGEST_ELEMENTWISE", 10)
    graph = Graph(
        templates=(template(call("builtins.list", call("numpy.arange", Integer()))),),
        blocks=(block(0, 20),),
    )
    _, last = await north.run(graph, 0)
    assert isinstance(last, Failure)
    assert last.reason == "task_failed"
    assert "10 Python objects" in last.message


async def test_points_that_were_not_written_are_not_those_of_others(north: Caller) -> None:
    graph = Graph(
        templates=(
            template(
                call(
                    "dask.array.core._vindex_merge",
                    List((call("numpy.zeros", Integer(), dtype="i8"),)),
                    List((call("numpy.ones", List((Integer(),))),)),
                )
            ),
        ),
        blocks=(block(0, 60_000, 60_000),),
    )
    results, _ = await north.run(graph, 0)
    assert set(np.unique(results[0])) == {0.0, 1.0}
