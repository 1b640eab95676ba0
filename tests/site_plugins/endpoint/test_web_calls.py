"""Calls over plain HTTP: JSON in, whatever is accepted out."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import h5netcdf
import numpy as np
import pyarrow as pa
import pytest
import xarray as xr

from site_plugins import LocalFederation
from site_plugins.endpoint import web_calls
from tests.site_plugins.calls import says
from tests.site_plugins.helpers import AIR, DEADLINE, Caller
from tests.site_plugins.helpers import dataset as stored
from tests.waiting import async_until

ASYNC = {"Prefer": "respond-async"}
EVERYTHING = ["dataset:*", "function:*"]


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    sites: dict[str, Any] = {
        "north": {
            "datasets": {
                "a1b": stored(),
                "two": stored().assign(wind=stored().air * 2),
                "secret": {"path": stored(), "egress": "derived", "share": 0.1},
            },
            "functions": {"modules": ["tests.site_plugins.published"]},
            "grants": [
                {"to": "anyone", "may": ["describe", "compute", "call"], "on": EVERYTHING},
            ],
            "limits": {"header_bytes": "64KiB", "heartbeat_seconds": "0.2s"},
        },
    }
    with LocalFederation(sites, threads_per_worker=2) as running:
        yield running


@pytest.fixture
def north(federation: LocalFederation) -> Iterator[Caller]:
    """The site "north"; the test's calls are forgotten, and nothing may be left of them."""
    caller = Caller(federation, "north", federation.token["north"])
    yield caller
    federation.run(federation.sites["north"].book.close)
    caller.wait_until_idle()


@pytest.fixture
def other(federation: LocalFederation) -> Caller:
    return Caller(federation, "north", federation.new_token("north", "somebody-else"))


async def call(caller: Caller, name: str, arguments: Any, **options: Any) -> Any:
    """The JSON that a function returned."""
    status, body = await caller.read("POST", f"/functions/{name}", json=arguments, **options)
    assert status == 200, body
    return json.loads(body)


async def begun(caller: Caller, name: str, arguments: Any) -> str:
    """The id of a call that goes on by itself."""
    async with caller.request("POST", f"/functions/{name}", json=arguments, headers=ASYNC) as reply:
        status = await reply.json()
        assert reply.status == 202, status
        assert reply.headers["Location"] == f"/calls/{status['call']}"
        assert status["function"] == name
    return str(status["call"])


async def ended(caller: Caller, call: str) -> Any:
    async with asyncio.timeout(DEADLINE):
        while True:
            status = await caller.json(f"/calls/{call}")
            if status["status"] != "running":
                return status
            await asyncio.sleep(0.02)


async def test_plain_values(north: Caller) -> None:
    assert await call(north, "add", {"a": 1.5}) == 2.0
    found = await call(north, "describe", {"start": 2000, "season": "JJA", "day": "2001-02-03",
                                           "boxes": [{"south": 1, "north": 2}]})  # fmt: skip
    assert found == {"start": 2000, "season": "JJA", "day": "2001-02-03", "north": [2.0],
                     "method": "fast", "names": []}  # fmt: skip


@pytest.mark.parametrize(
    "data",
    ["a1b", "north/a1b", "a1b/air", {"dataset": "a1b"}, {"dataset": "two", "variable": "air"}],
)
async def test_datasets_by_name(north: Caller, data: Any) -> None:
    found = await call(north, "total", {"data": data})
    assert found == pytest.approx(AIR.sum())


async def test_a_lazy_result_in_every_media_type(north: Caller) -> None:
    expected = AIR.mean(0)
    name = await begun(north, "mean", {"data": "a1b/air"})
    status = await ended(north, name)
    assert status["result"] == {"kind": "dataarray", "size": expected.nbytes + 48, "parts": 1}
    path = f"/calls/{name}/result"
    found = await north.json(path)
    assert (found["name"], found["dims"]) == ("air", ["lat", "lon"])
    np.testing.assert_allclose(found["data"], expected)
    assert found["coords"]["lat"]["data"] == list(range(6))
    accept = "application/octet-stream"
    async with north.request("GET", path, headers={"Accept": accept}) as reply:
        raw = np.frombuffer(await reply.read(), reply.headers["Federated-DType"])
    np.testing.assert_allclose(raw.reshape(6, 5), expected)
    _, body = await north.read("GET", path, headers={"Accept": "application/x-netcdf"})
    with h5netcdf.File(io.BytesIO(body), "r") as file:
        np.testing.assert_allclose(file["air"][...], expected)
    _, body = await north.read(
        "GET", path, headers={"Accept": "application/vnd.apache.arrow.stream"}
    )
    table = pa.ipc.open_stream(io.BytesIO(body)).read_pandas()
    np.testing.assert_allclose(table["air"].to_numpy().reshape(6, 5), expected)
    _, body = await north.read("GET", path, headers={"Accept": "image/*"})
    assert body.startswith(b"\x89PNG")
    status_code, failure = await north.refused("GET", path, headers={"Accept": "text/html"})
    assert (status_code, failure.site) == (406, "north")
    _, body = await north.read("GET", path + "?variable=lat")
    assert json.loads(body)["data"] == list(range(6))
    status_code, failure = await north.refused("GET", path + "?variable=nothing")
    assert failure.reason == "unknown_variable"


async def test_a_kept_result_lasts(north: Caller) -> None:
    """What nobody reads ends soon, unless the site itself keeps it for the caller."""
    await ended(north, await begun(north, "mean", {"data": "two/wind", "dim": "lon"}))
    [seconds] = north.on_scheduler(_lease_seconds)
    assert seconds > 1_000


def _lease_seconds(dask_scheduler: Any) -> list[float]:
    leases = dask_scheduler.plugins["federated-site"]._leases
    return [lease.end - time.monotonic() for lease in leases.values()]


async def test_a_result_as_zarr(north: Caller, federation: LocalFederation) -> None:
    name = await begun(north, "mean", {"data": "two/wind", "dim": "lon"})
    await ended(north, name)
    options = {"headers": north.headers, "ssl": north.ssl}

    def opened() -> xr.DataArray:
        with xr.open_zarr(
            f"{north.base}/calls/{name}/zarr", storage_options=options, chunks={}
        ) as found:
            return found["wind"].load(scheduler="synchronous")

    found = await asyncio.to_thread(opened)
    np.testing.assert_allclose(found, 2 * AIR.mean(2))
    assert found.dims == ("time", "lat")
    status, failure = await north.refused("GET", f"/calls/{name}/zarr/nothing/c/0")
    assert (status, failure.reason) == (404, "unknown_result")


@pytest.mark.parametrize("form", ["lists", "base64", "part"])
async def test_arrays_sent_along(north: Caller, form: str) -> None:
    array = np.arange(6, dtype="<f8").reshape(2, 3)
    described: dict[str, Any] = {"dtype": "<f8", "shape": [2, 3]}
    if form == "part":
        with aiohttp.MultipartWriter("form-data") as body:
            part = body.append(json.dumps({"data": {**described, "part": "big"}}))
            part.set_content_disposition("form-data", name="arguments")
            part = body.append(array.tobytes(), {"Content-Type": "application/octet-stream"})
            part.set_content_disposition("form-data", name="big", filename="big")
        status, reply = await north.read("POST", "/functions/double", data=body)
        assert status == 200, reply
        found = json.loads(reply)
    else:
        data: Any = array.tolist()
        if form == "base64":
            data = {**described, "base64": base64.b64encode(array.tobytes()).decode()}
        found = await call(north, "double", {"data": data})
    assert found == {"dtype": "<f8", "shape": [2, 3], "data": (2 * array).tolist()}


async def test_xarray_objects_and_tables_sent_along(north: Caller) -> None:
    data = {
        "dims": ["time"],
        "data": [1, 2, 6],
        "coords": {"time": {"dims": ["time"], "data": [0, 1, 2]}},
        "attrs": {},
    }
    assert (await call(north, "mean", {"data": data}))["data"] == 3.0
    table = {"columns": {"a": [1, 2], "b": [0.5, 0.25]}}
    found = await call(north, "columns", {"table": table})
    assert found["columns"]["sum"]["data"] == [3.0, 0.75]
    assert found["index"]["data"] == ["a", "b"]


async def test_earlier_results_are_arguments(north: Caller, other: Caller) -> None:
    lazily = await begun(north, "mean", {"data": "a1b/air"})
    await ended(north, lazily)
    found = await call(north, "total", {"data": {"result": {"call": lazily}}})
    assert found == pytest.approx(AIR.mean(0).sum())
    sent = await begun(north, "double", {"data": [1.0, 2.0]})
    await ended(north, sent)
    found = await call(north, "double", {"data": {"result": {"call": sent}}})
    assert found["data"] == [4.0, 8.0]
    # Of somebody else there is nothing.
    given = {"data": {"result": {"call": lazily}}}
    status, failure = await other.refused("POST", "/functions/total", json=given)
    assert (status, failure.reason) == (404, "unknown_call")


async def test_calls_belong_to_whoever_made_them(north: Caller, other: Caller) -> None:
    name = await begun(north, "add", {"a": 1})
    await ended(north, name)
    assert [each["call"] for each in await north.json("/calls")] == [name]
    assert await other.json("/calls") == []
    for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/result"), ("DELETE", ""),
                         ("GET", "/zarr/zarr.json")):  # fmt: skip
        status, failure = await other.refused(method, f"/calls/{name}{path}")
        assert (status, failure.reason) == (404, "unknown_call"), path


async def server_sent(reply: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    assert reply.content_type == "text/event-stream"
    kind = ""
    async for line in reply.content:
        name, _, text = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = text
        elif name == "data":
            yield kind, json.loads(text)


async def test_progress_by_server_sent_events(north: Caller) -> None:
    # So many that it does not end before it is told to.
    name = await begun(north, "steps", {"count": 10_000})
    told = []
    async with north.request("GET", f"/calls/{name}/events") as reply:
        async for kind, status in server_sent(reply):
            told.append(kind)
            assert "canary" not in status["message"]
            if kind == "progress" and status["fraction"] > 0:
                assert status["status"] == "running"
                assert status["message"].startswith("step")
                assert (await north.read("DELETE", f"/calls/{name}"))[0] == 204
    assert told[-1] == "end"
    assert status["failure"]["reason"] == "cancelled"


async def test_whoever_asks_late_is_told_the_end(north: Caller) -> None:
    name = await begun(north, "steps", {"count": 2})
    await ended(north, name)
    async with north.request("GET", f"/calls/{name}/events") as reply:
        [(kind, status)] = [event async for event in server_sent(reply)]
    assert (kind, status["status"], status["fraction"]) == ("end", "finished", 1.0)
    assert (status["message"], status["result"]["kind"]) == ("done", "value")


async def test_signs_of_life(north: Caller, tmp_path: Path) -> None:
    name = await begun(north, "spin_long", {"path": str(tmp_path / "mark")})
    async with north.request("GET", f"/calls/{name}/events") as reply:
        async for line in reply.content:
            if line == b"event: heartbeat\n":
                break
    assert (await north.read("DELETE", f"/calls/{name}"))[0] == 204


async def test_cancelling_stops_the_function(north: Caller, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    name = await begun(north, "spin_long", {"path": str(mark)})
    await async_until(says(mark, "started"), "the function runs")
    waiting = asyncio.create_task(north.refused("GET", f"/calls/{name}/result"))
    events = asyncio.create_task(_all_events(north, name))
    # Both wait for the call before it is cancelled.
    assert (await north.json(f"/calls/{name}"))["status"] == "running"
    assert (await north.read("DELETE", f"/calls/{name}"))[0] == 204
    await async_until(says(mark, "ended"), "the function is stopped")
    status, failure = await waiting
    assert failure.reason in ("cancelled", "unknown_call")
    assert (await events)[-1][0] in ("end", "")
    status, failure = await north.refused("GET", f"/calls/{name}")
    assert (status, failure.reason) == (404, "unknown_call")


async def _all_events(caller: Caller, name: str) -> list[tuple[str, Any]]:
    async with caller.request("GET", f"/calls/{name}/events") as reply:
        if reply.status != 200:
            return [("", None)]
        return [event async for event in server_sent(reply)]


async def test_who_leaves_ends_the_call(north: Caller, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def waits() -> None:
        await call(north, "spin_long", {"path": str(mark)})

    waiting = asyncio.create_task(waits())
    await async_until(says(mark, "started"), "the function runs")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await async_until(says(mark, "ended"), "the function is stopped")


async def test_waiting_for_a_while(north: Caller) -> None:
    headers = {"Prefer": "respond-async, wait=60"}
    assert await call(north, "add", {"a": 1}, headers=headers) == 1.5


@pytest.mark.parametrize(
    ("name", "arguments", "status", "reason", "argument"),
    [
        ("nothing", {}, 404, "unknown_function", None),
        ("add", {}, 422, "invalid_argument", "a"),
        ("add", {"a": "x"}, 422, "invalid_argument", "a"),
        ("add", {"a": 1, "c": 2}, 422, "invalid_argument", "c"),
        ("describe", {"start": 1}, 422, "invalid_argument", "start"),
        ("total", {"data": "nothing"}, 404, "unknown_dataset", "data"),
        ("total", {"data": {"dataset": "nothing"}}, 404, "unknown_dataset", "data"),
        ("total", {"data": {"dataset": 3}}, 422, "invalid_argument", "data"),
        ("total", {"data": {"result": 3}}, 422, "invalid_argument", "data"),
        ("total", {"data": {"result": {"call": "x"}}}, 404, "unknown_call", "data"),
        ("total", {"data": 3}, 422, "invalid_argument", "data"),
        ("double", {"data": [[1], [1, 2]]}, 422, "invalid_argument", "data"),
        ("fail_inside", {"data": "a1b/air"}, 422, None, None),
        ("zeros", {"count": 1000}, 413, "limit_exceeded", None),
        ("add", [1, 2], 400, "malformed", None),
    ],
)
async def test_refusals(
    north: Caller, name: str, arguments: Any, status: int, reason: str, argument: str | None
) -> None:
    found, failure = await north.refused("POST", f"/functions/{name}", json=arguments)
    assert (found, failure.site) == (status, "north"), failure
    if reason:
        assert failure.reason == reason
    assert failure.argument == argument


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"{", "application/json", 400, "malformed"),
        (b"[" * 100_000, "application/json", 413, "limit_exceeded"),
        (b"[" * 10_000, "application/json", 400, "malformed"),
        (b'{"a": 1}', "text/plain", 415, "malformed"),
        (b"{}", "multipart/form-data", 400, "malformed"),
        (b"{}", "multipart/form-data; boundary=x", 400, "malformed"),
        (b'--x\r\nContent-Disposition: form-data; name="b"\r\n\r\n1\r\n--x--\r\n',
         "multipart/form-data; boundary=x", 400, "malformed"),
        (b'--x\r\nContent-Disposition: form-data; name="arguments"\r\n\r\n[]\r\n--x--\r\n',
         "multipart/form-data; boundary=x", 400, "malformed"),
    ],
)  # fmt: skip
async def test_bodies_that_do_not_parse(
    north: Caller, body: bytes, kind: str, status: int, reason: str
) -> None:
    found, failure = await north.refused(
        "POST", "/functions/add", data=body, headers={"Content-Type": kind}
    )
    assert (found, failure.reason) == (status, reason), failure


async def test_a_failure_of_the_function(north: Caller, tmp_path: Path) -> None:
    name = await begun(north, "fail", {"path": str(tmp_path / "canary")})
    status = await ended(north, name)
    assert (status["status"], status["failure"]["reason"]) == ("failed", "function_failed")
    code, failure = await north.refused("GET", f"/calls/{name}/result")
    assert (code, failure.reason) == (422, "function_failed")
    assert failure.exception is not None
    assert failure.exception.endswith("OwnError")
    assert str(tmp_path) not in str(status)
    code, failure = await north.refused("GET", f"/calls/{name}/zarr/zarr.json")
    assert (code, failure.reason) == (404, "unknown_result")


async def test_what_may_not_leave_does_not(north: Caller) -> None:
    # A tenth of its bytes may: a mean over time is 240, all of it 9600.
    assert (await call(north, "mean", {"data": "secret/air"}))["shape"] == [6, 5]
    given = {"data": "secret/air"}
    status, failure = await north.refused("POST", "/functions/lazy_double", json=given)
    assert (status, failure.reason) == (403, "budget_exhausted")


async def test_how_many_calls_go_on_is_bounded(
    north: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_calls, "MOST_RUNNING", 1)
    await begun(north, "spin_long", {"path": str(tmp_path / "mark")})
    status, failure = await north.refused("POST", "/functions/add", json={"a": 1})
    assert (status, failure.reason) == (429, "quota_exceeded")


async def test_how_many_calls_are_kept_is_bounded(
    north: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_calls, "MOST_KEPT", 2)
    names = []
    for number in range(3):
        name = await begun(north, "mean", {"data": "a1b/air", "dim": ["lat", "lon"][number % 2]})
        await ended(north, name)
        names.append(name)
    assert [each["call"] for each in await north.json("/calls")] == names[:0:-1]
    await north.refused("GET", f"/calls/{names[0]}")


async def test_plain_results_count_among_the_bytes_that_are_kept(
    north: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_calls, "BYTES_KEPT", 20)
    names = []
    for number in range(3):
        name = await begun(north, "add", {"a": number})
        await ended(north, name)
        names.append(name)
    assert [each["call"] for each in await north.json("/calls")] == names[-1:]


async def test_a_call_is_forgotten_in_time(
    north: Caller, federation: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation.sites["north"].book, "seconds", 0.05)
    name = await begun(north, "mean", {"data": "a1b/air"})
    for _ in range(int(DEADLINE / 0.2)):
        if (await north.read("GET", f"/calls/{name}"))[0] == 404:
            break
        # Asking keeps it in mind.
        await asyncio.sleep(0.2)
    else:
        pytest.fail("the call is still remembered")
    # With it goes its lease, which the fixture waits for.
