"""Calling published functions, over a real endpoint and a real cluster."""

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from federated_dask.errors import Reason
from federated_dask.protocol.call_messages import (
    CallProgress,
    FunctionDescription,
    Functions,
    HeldArgument,
)
from federated_dask.protocol.graph import Held
from federated_dask.protocol.messages import Accepted, Failure
from site_plugins import LocalFederation, calling
from site_plugins.calling import CallTask
from site_plugins.endpoint.running import Run
from site_plugins.functions import ModuleOrigin
from site_plugins.policy import Policy
from site_plugins.signatures import Signature
from site_plugins.tokens import Principal
from tests.site_plugins.calls import (
    assembled,
    call,
    dataset,
    events,
    failed,
    refused,
    result,
    returned,
)
from tests.site_plugins.helpers import AIR, Caller
from tests.site_plugins.helpers import dataset as stored


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Two sites that publish the tests' functions."""
    sites: dict[str, Any] = {
        "north": {
            "datasets": {
                "a1b": stored(),
                "two": stored().assign(wind=stored().air * 2),
                "secret": {"path": stored(), "egress": "derived", "share": 0.3},
                "closed": {
                    "path": stored(),
                    "egress": "functions-only",
                    "functions": ["fail_inside", "watch"],
                },
            },
            "functions": {"modules": ["tests.site_plugins.published"]},
            "grants": [
                {"to": "anyone", "may": ["describe", "compute"], "on": ["dataset:*"]},
                {"to": "anyone", "may": ["describe", "call"], "on": ["function:*"]},
            ],
        },
        "south": {
            "functions": {"modules": ["tests.site_plugins.published"]},
            "grants": [
                {"to": "anyone", "may": ["describe", "call"], "on": ["function:add"]},
                {"to": "anyone", "may": ["describe"], "on": ["function:double"]},
            ],
        },
    }
    with LocalFederation(sites, threads_per_worker=2) as running:
        yield running


@pytest.fixture
def north(federation: LocalFederation) -> Iterator[Caller]:
    """The site "north"; after the test nothing may be left on its scheduler."""
    caller = Caller(federation, "north", federation.token["north"])
    yield caller
    caller.wait_until_idle()


@pytest.fixture
def south(federation: LocalFederation) -> Caller:
    return Caller(federation, "south", federation.token["south"])


async def test_the_functions_are_listed(north: Caller) -> None:
    import msgspec

    _, body = await north.read("GET", "/functions")
    listed = msgspec.json.decode(body, type=Functions)
    assert listed.site == "north"
    by_name = {function.name: function for function in listed.functions}
    assert {"add", "mean", "describe"} <= by_name.keys()
    add = by_name["add"]
    assert (add.title, add.tags, add.version) == ("Sum of two numbers", ("arithmetic",), "1")
    assert [parameter.name for parameter in add.parameters] == ["a", "b"]
    _, body = await north.read("GET", "/functions/add")
    assert msgspec.json.decode(body, type=FunctionDescription) == add


async def test_a_function_is_called(north: Caller) -> None:
    found = [event async for event, _ in events(north, call("add", 1, b=2))]
    assert [type(event).__name__ for event in found] == ["Accepted", "Returned"]
    assert isinstance(found[0], Accepted)
    assert await result(north, call("add", 1, b=2)) == 3.0
    assert await result(north, call("add", a=1)) == 1.5


async def test_plain_data_becomes_what_is_annotated(north: Caller) -> None:
    body = call(
        "describe",
        "2000",
        season="JJA",
        day="2001-02-03",
        boxes=[{"south": -10, "north": 10.5}],
        method="exact",
        names=["a", "b"],
    )
    assert await result(north, body) == {
        "start": 2000,
        "season": "JJA",
        "day": "2001-02-03",
        "north": [10.5],
        "method": "exact",
        "names": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("body", "argument", "rule"),
    [
        (call("describe"), "start", "is missing"),
        (call("describe", 1700), "start", "greater than or equal to 1850"),
        (call("describe", "early"), "start", "valid integer"),
        (call("describe", 2000, season="MAM"), "season", "'DJF' or 'JJA'"),
        (call("describe", 2000, day="tomorrow"), "day", "valid date"),
        (call("describe", 2000, boxes=[{"south": 0, "north": 91}]), "boxes.0.north", "90"),
        (call("describe", 2000, method="slow"), "method", "'fast' or 'exact'"),
        (call("describe", 2000, colour=1), "colour", "is not a parameter"),
        (call("describe", 2000, start=2001), "start", "given twice"),
        (call("add", np.ones(3)), "a", "takes float, not an array"),
        (call("mean", 3), "data", "DataArray"),
        (call("mean", dataset("two")), "data", "air, wind"),
        (call("mean", dataset("a1b", "wind")), "data", "air"),
        (call("mean", pd.DataFrame({"a": [1.0]})), "data", "not a DataFrame"),
        (call("add", dataset("a1b")), "a", "plain data"),
        (call("double", [[1, 2], [3]]), "data", "nested evenly"),
        (call("double", ["a"]), "data", "numbers"),
    ],
)
async def test_an_argument_that_does_not_fit_is_named(
    north: Caller, body: bytes, argument: str, rule: str
) -> None:
    status, failure = await refused(north, body)
    assert (status, failure.reason, failure.site) == (422, "invalid_argument", "north")
    assert failure.argument == argument
    assert rule in failure.message


async def test_too_many_arguments(north: Caller) -> None:
    _, failure = await refused(north, call("add", 1, 2, 3))
    assert failure.reason == "invalid_argument"
    assert "takes 2 positional arguments; 3 were given" in failure.message


async def test_what_is_refused_does_not_quote_what_was_given(north: Caller) -> None:
    _, failure = await refused(north, call("describe", "canary"))
    assert "canary" not in str(failure)


async def test_functions_and_versions_that_are_not_there(north: Caller) -> None:
    status, failure = await refused(north, call("nothing"))
    assert (status, failure.reason) == (404, "unknown_function")
    status, failure = await refused(north, call("add", 1, version="0"))
    assert (status, failure.reason) == (409, "version_changed")
    assert "'1'" in failure.message
    assert await result(north, call("add", 1, version="1")) == 1.5
    status, failure = await refused(north, call("mean", dataset("nothing")))
    assert (status, failure.reason, failure.argument) == (404, "unknown_dataset", "data")


async def test_only_those_may_call_whom_a_grant_allows(south: Caller) -> None:
    assert [each["name"] for each in (await south.json("/functions"))["functions"]] == [
        "add",
        "double",
    ]
    assert await result(south, call("add", 1)) == 1.5
    status, failure = await refused(south, call("double", [1]))
    assert (status, failure.reason) == (403, "not_permitted")
    status, failure = await refused(south, call("mean", 1))
    assert (status, failure.reason) == (404, "unknown_function")


@pytest.mark.parametrize("given", ["a1b", "north/a1b", "a1b/air", "north/a1b/air"])
async def test_a_dataset_is_opened_lazily_and_the_result_stays(north: Caller, given: str) -> None:
    event, frame = await returned(north, call("mean", given))
    assert event.outputs == 1
    assert event.lease is not None
    assert event.derived == (("a1b", None),)
    found = await assembled(north, event, frame)
    assert isinstance(found, xr.DataArray)
    np.testing.assert_allclose(found.values, AIR.mean(axis=0))
    np.testing.assert_array_equal(found.lat.values, np.arange(6.0))


async def test_the_chunks_are_those_of_the_store(north: Caller) -> None:
    found = await result(north, call("chunks", dataset("a1b")))
    assert found["air"] == [[10, 10, 10, 10], [6], [5]]


async def test_computing_inside_uses_the_cluster(north: Caller) -> None:
    assert await result(north, call("total", dataset("a1b", "air"))) == pytest.approx(AIR.sum())


async def test_data_is_sent_along(north: Caller) -> None:
    np.testing.assert_array_equal(await result(north, call("double", np.arange(4.0))), [0, 2, 4, 6])
    np.testing.assert_array_equal(await result(north, call("double", [1, 2])), [2, 4])
    large = np.arange(100_000.0)
    event, frame = await returned(north, call("double", large))
    assert event.outputs == 1
    np.testing.assert_array_equal(await assembled(north, event, frame), 2 * large)
    np.testing.assert_array_equal(await result(north, call("lazy_double", large)), 2 * large)
    found = await result(north, call("mean", stored().air.compute()))
    xr.testing.assert_allclose(found, stored().air.mean("time").compute())
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    pd.testing.assert_frame_equal(
        await result(north, call("columns", table)), table.sum().to_frame("sum")
    )


async def test_an_argument_may_be_left_out(north: Caller) -> None:
    assert await result(north, call("optional")) == "nothing"
    assert await result(north, call("optional", None)) == "nothing"
    assert await result(north, call("optional", "a1b")) == "something"


async def test_a_held_result_is_an_argument(north: Caller) -> None:
    event, frame = await returned(north, call("mean", dataset("a1b", "air"), dim="lon"))
    assert event.lease is not None
    held = HeldArgument(
        content=event.content, held=tuple(Held(event.lease, n) for n in range(event.outputs))
    )
    # The coordinate stands in the first frame; here it is left behind.
    content = held.content.content
    import msgspec

    variables = {"data": content.variables["data"]}
    content = msgspec.structs.replace(content, variables=variables, coordinates=(), indexed=())
    held = msgspec.structs.replace(
        held, content=msgspec.structs.replace(held.content, content=content)
    )
    found, frame = await returned(north, call("mean", held))
    assert found.derived == (("a1b", None),)
    array = await assembled(north, found, frame)
    np.testing.assert_allclose(array.values, AIR.mean(axis=2).mean(axis=0))
    await north.read("DELETE", f"/leases/{event.lease}")


async def test_progress_is_told_without_paths(north: Caller) -> None:
    found = [event async for event, _ in events(north, call("steps", 3))]
    progress = [event for event in found if isinstance(event, CallProgress)]
    assert progress[-1].fraction == 1.0
    assert progress[-1].message == "done"
    assert progress[0].message == "step 0 in x.nc"
    assert "secret" not in str(found)


async def test_what_a_function_raises_is_told(north: Caller, tmp_path: Path) -> None:
    log = tmp_path / "canary-folder" / "log.txt"
    log.parent.mkdir()
    failure = await failed(north, call("fail", str(log)))
    assert failure.reason == "function_failed"
    assert failure.exception == "tests.site_plugins.published.OwnError"
    assert failure.message == "could not read log.txt"
    assert failure.traceback is not None
    assert "in fail" in failure.traceback
    assert "raise OwnError" in failure.traceback
    assert "calling" not in failure.traceback
    assert str(tmp_path) not in str(failure)
    assert log.read_text() == "ran\n"


async def test_what_a_task_of_a_lazy_result_raises_is_told(north: Caller) -> None:
    failure = await failed(north, call("fail_inside", dataset("a1b", "air")))
    assert failure.reason == "function_failed"
    assert failure.message == "this block is bad"
    assert failure.traceback is not None
    assert "in _raise" in failure.traceback


@pytest.mark.parametrize("lazily", [False, True])
async def test_a_result_over_the_limit(north: Caller, lazily: bool) -> None:
    failure = await failed(north, call("zeros", 1000, lazily))
    assert failure.reason == "limit_exceeded"
    assert re.search(r"8,\d{3} bytes; at most 1,000", failure.message)
    assert len(await result(north, call("zeros", 100, lazily))) == 100


@pytest.mark.parametrize("value", ["a" * 1000, list(range(1000)), {"a": {"b": "c" * 1000}}])
def test_a_plain_result_over_the_limit(value: Any) -> None:
    def give() -> Any:
        return value

    give.__annotations__["return"] = type(value)
    task = CallTask(
        call="call-0",
        key="give",
        name="give",
        digest="",
        origin=ModuleOrigin(__name__, "give"),
        arguments={},
        seconds=1.0,
        result_bytes=1000,
    )
    error = calling._outcome(task, Signature(give), {}, None).error
    assert error is not None
    assert error.reason is Reason.LIMIT_EXCEEDED
    task = dataclasses.replace(task, result_bytes=10_000)
    assert len(calling._outcome(task, Signature(give), {}, None).content) > 1000


async def test_a_grant_that_is_revoked_ends_a_call(
    north: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = tmp_path / "go-on"
    allows = Policy.allows

    def without(self: Policy, principal: Principal, action: str, resource: str) -> bool:
        return resource != "dataset:closed" and allows(self, principal, action, resource)

    found = []
    async for event, _ in events(north, call("watch", dataset("closed", "air"), str(go_on))):
        found.append(event)
        if isinstance(event, CallProgress):
            monkeypatch.setattr(Policy, "allows", without)
    go_on.touch()
    [progress] = [event for event in found if isinstance(event, CallProgress)]
    assert (progress.fraction, progress.message) == (0.5, "")
    assert isinstance(found[-1], Failure)
    assert found[-1].reason == "not_permitted"


async def test_calls_that_wait_or_are_cancelled_count(north: Caller, tmp_path: Path) -> None:
    async def used(line: int) -> float:
        found = (await north.json("/usage"))["lines"][line]
        return float(found["used"])

    seconds = await used(2)
    body = call("watch", dataset("closed", "air"), str(tmp_path / "go-on"))
    first, second = events(north, body), events(north, body)
    while not isinstance((await anext(first))[0], CallProgress):
        pass
    waiting = asyncio.ensure_future(anext(second))
    async with asyncio.timeout(60):
        while await used(0) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await second.aclose()
    await first.aclose()
    async with asyncio.timeout(60):
        while await used(0) or await used(2) <= seconds:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_who_waits_for_a_turn_has_brought_what_may_be_gone_by_then(
    north: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = []
    pull = Run.pull

    async def recorded(self: Run, peering: Any) -> dict[str, int]:
        found = await pull(self, peering)
        pulled.append(self)
        return found

    monkeypatch.setattr(Run, "pull", recorded)
    go_on = tmp_path / "go-on"
    first = events(north, call("watch", dataset("a1b", "air"), str(go_on)))
    while not isinstance((await anext(first))[0], CallProgress):
        pass
    large = xr.DataArray(np.zeros(100_000), dims="x", name="large")
    waiting = asyncio.ensure_future(returned(north, call("watch", large, str(go_on))))

    def sent(dask_scheduler: Any) -> int:
        return sum(str(key).startswith("federated-sent-") for key in dask_scheduler.tasks)

    async with asyncio.timeout(60):
        while not await asyncio.to_thread(north.on_scheduler, sent):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    # Values of peers come before it, while their delegations hold.
    assert len(pulled) == 2
    go_on.touch()
    await waiting
    async for _ in first:
        pass


@pytest.mark.parametrize("name", ["secret", "closed"])
async def test_the_message_of_an_exception_stays_where_data_stays(north: Caller, name: str) -> None:
    failure = await failed(north, call("fail_inside", dataset(name, "air")))
    assert failure.reason == "function_failed"
    assert "block" not in failure.message
    assert failure.traceback is None


async def test_results_count_towards_what_may_leave(north: Caller) -> None:
    # 0.3 of 1206 values of 8 bytes.
    event, _ = await returned(north, call("mean", dataset("secret", "air")))
    budget = await north.json("/datasets/secret/budget")
    assert budget["total"] == 2894
    # The call itself took of it, too: what is told is what is left.
    assert event.derived == (("secret", 2894 - budget["used"]),)
    assert budget["used"] > 0
    status, _ = await north.read("GET", f"/leases/{event.lease}/0")
    assert status == 200
    await north.read("DELETE", f"/leases/{event.lease}")
    event, _ = await returned(north, call("mean", dataset("secret", "air"), dim="lon"))
    for output in range(3):
        status, _ = await north.read("GET", f"/leases/{event.lease}/{output}")
        assert status == 200
    status, failure = await north.refused("GET", f"/leases/{event.lease}/3")
    assert (status, failure.reason) == (403, "budget_exhausted")
    await north.read("DELETE", f"/leases/{event.lease}")


@pytest.mark.parametrize("how", ["cancelled", "exit", "interrupt", "own"])
async def test_a_function_that_raises_no_exception_ends_its_call(north: Caller, how: str) -> None:
    failure = await failed(north, call("leave_abruptly", how))
    assert failure.reason == "function_failed"
    assert await result(north, call("add", 1)) == 1.5


async def test_equal_calls_give_the_cluster_tasks_of_their_own(north: Caller) -> None:
    """Else tasks of one name would differ in what they need, as xarray names some at random."""
    argument = dataset("two", "wind")
    first, second = [(await returned(north, call("mean", argument, "lon")))[0] for _ in range(2)]
    keys = north.on_scheduler(_held_keys)
    assert len(keys) == first.outputs + second.outputs
    for event in (first, second):
        await north.read("DELETE", f"/leases/{event.lease}")


def _held_keys(dask_scheduler: object) -> set[object]:
    leases = dask_scheduler.plugins["federated-site"]._leases.values()  # type: ignore[attr-defined]
    return {output.key for lease in leases for output in lease.outputs.values()}
