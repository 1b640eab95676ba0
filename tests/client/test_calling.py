"""Calling functions, against an endpoint whose functions this process runs itself."""

import datetime
import inspect
import pydoc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import dask.array as da
import msgspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import federated_dask
from federated_dask import FederatedClient, FederatedFuture, as_completed, progress, wait
from federated_dask.errors import (
    ConfigurationError,
    NotFound,
    Reason,
    RequestRefused,
    SiteUnavailable,
    TaskFailed,
)
from federated_dask.protocol.call_messages import (
    DatasetArgument,
    FunctionDescription,
    FunctionLimits,
    ParameterDescription,
    PlainArgument,
    ResultDescription,
    SentArgument,
)
from tests.client.conftest import TOKEN, StubSite
from tests.waiting import until

PATIENCE = 60.0


def parameter(name: str, schema: dict[str, Any] | None = None, **fields: Any) -> Any:
    return ParameterDescription(name=name, json_schema=schema or {}, **fields)


START = parameter(
    "start",
    {"type": "integer", "minimum": 1900},
    annotation="int",
    required=False,
    default=2070,
    description="First year.",
)
TREND = FunctionDescription(
    name="trend",
    version="2",
    title="Linear trend per grid cell",
    description="Linear trend per grid cell\n\nBy least squares.",
    tags=("climate",),
    parameters=(parameter("data", kind="dataset", annotation="xr.Dataset"), START),
    returns=ResultDescription(kind="dataarray", annotation="xr.DataArray", description="Slopes."),
    limits=FunctionLimits(seconds=60),
)


def described(name: str, *parameters: Any) -> FunctionDescription:
    return FunctionDescription(name=name, parameters=parameters)


def anything(value: Any = None) -> Any:
    return value


def field() -> xr.DataArray:
    values = da.arange(24.0, chunks=8).reshape(4, 6).rechunk((2, 3))
    return xr.DataArray(
        values, dims=("y", "x"), coords={"y": np.arange(4)}, attrs={"units": "K"}, name="slope"
    )


@pytest.fixture
def fed(stub: StubSite, address: str, ca: str) -> Iterator[FederatedClient]:
    stub.functions = (
        TREND,
        described("anything", parameter("value", required=False)),
        described("array", parameter("values", kind="ndarray")),
        described("table", parameter("rows", kind="dataframe")),
        described("field", parameter("field", kind="dataarray", required=False)),
        described("slow", parameter("seconds", {"type": "number"})),
        described("broken"),
        described("sum-of.all", parameter("values", {"type": "array"})),
    )
    stub.released = threading.Event()

    def slow(seconds: float, report: Any) -> str:
        report(0.25, "a quarter\x1b[2J")
        stub.released.wait(PATIENCE)
        report(1.0, "all")
        return "done"

    def broken() -> None:
        raise ValueError("negative depth")

    stub.bodies = {
        "trend": lambda data, start=2070: field() * start,
        "anything": anything,
        "array": lambda values: values * 2,
        "table": lambda rows: rows * 2,
        "field": lambda field: field.compute() * 2,
        "slow": slow,
        "broken": broken,
        "sum-of.all": lambda values: sum(values),
    }
    with FederatedClient(address, token=TOKEN, verify=ca, timeout=PATIENCE) as client:
        yield client
    stub.released.set()


class TestLookingAround:
    def test_functions(self, fed: FederatedClient) -> None:
        assert "north/trend" in fed.functions
        assert list(fed.functions.search("LEAST climate")) == ["north/trend"]
        assert fed.functions._ipython_key_completions_() == list(fed.functions)
        assert "north/trend" in repr(fed.functions)
        assert "Linear trend per grid cell" in repr(fed.functions)
        assert repr(fed.functions["north/trend"]) == (
            "<Function north/trend(data: xr.Dataset, start: int = 2070) -> xr.DataArray>"
        )
        for shown in (fed.functions, fed.functions["north/trend"]):
            html = shown._repr_html_()
            assert "start: int = 2070) -&gt; xr.DataArray" in html
            assert "First year." in html

    def test_unknown_names(self, fed: FederatedClient) -> None:
        with pytest.raises(NotFound, match="Did you mean 'north/trend'") as caught:
            fed.submit("north/trent")
        assert caught.value.reason is Reason.UNKNOWN_FUNCTION
        with pytest.raises(NotFound, match="Did you mean 'north/trend'"):
            fed.functions["trend"]
        with pytest.raises(AttributeError, match="no function 'tent'"):
            fed.sites["north"].tent  # noqa: B018

    def test_a_function_is_an_attribute_of_its_site(self, fed: FederatedClient) -> None:
        north = fed.sites["north"]
        assert {"trend", "sum_of_all", "dashboard_link"} <= set(dir(north))
        signature = inspect.signature(north.trend)
        assert list(signature.parameters) == ["data", "start"]
        assert signature.parameters["start"].default == 2070
        told = pydoc.plain(pydoc.render_doc(north.trend))
        assert "trend(data: xr.Dataset, start: int = 2070) -> xr.DataArray" in told
        for text in ("By least squares.", "start : int, default 2070", "First year.", "Slopes."):
            assert text in told
        assert north.sum_of_all([1, 2]).result() == 3

    def test_what_no_python_function_can_look_like_is_left_out(
        self, stub: StubSite, fed: FederatedClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        twice = described("twice", parameter("a"), parameter("a"))
        stub.functions = (described("odd", parameter("not a name")), twice, TREND)
        fed.refresh()
        assert list(fed.functions) == ["north/trend"]
        assert "has a parameter without a name" in caplog.text

    def test_what_must_be_given_after_a_default_is_given_by_name(
        self, stub: StubSite, fed: FederatedClient
    ) -> None:
        stub.functions = (described("f", START, parameter("end")),)
        fed.refresh()
        assert str(fed.functions["north/f"].signature) == "(start: int = 2070, *, end)"

    def test_a_site_without_functions(self, stub: StubSite, fed: FederatedClient) -> None:
        stub.functions = None
        fed.refresh()
        assert len(fed.functions) == 0
        assert list(fed.sites["north"].functions) == []


class TestArguments:
    def test_only_what_was_given_is_sent(self, stub: StubSite, fed: FederatedClient) -> None:
        fed.submit("north/trend", "north/a1b", start=2080).result()
        fed.submit("north/trend", "north/a1b").result()
        (first, given), (second, _) = stub.calls
        assert given == {"data": DatasetArgument(name="a1b"), "start": 2080}
        assert list(second.keywords) == ["data"]
        assert (first.function, first.version, first.label) == ("trend", "2", "north/trend")

    def test_a_version_may_be_asked_for(self, stub: StubSite, fed: FederatedClient) -> None:
        fed.submit("north/trend@1", "north/a1b").result()
        assert stub.calls[0][0].version == "1"

    @pytest.mark.parametrize(
        ("arguments", "keywords", "message"),
        [
            ((), {}, "missing a required argument: 'data'"),
            (("north/a1b",), {"strat": 2080}, "no parameter 'strat'.*Did you mean 'start'"),
            (("north/a1b",), {"start": 1850}, "'start' must be at least 1900, not 1850"),
            (("north/a1b",), {"start": "2070"}, "'start' must be of type integer, not '2070'"),
            (("north/a1b",), {"start": object()}, "'start' takes plain data: a object has no"),
            (("north/a1b", 1, 2), {}, "too many positional arguments"),
            (("a1b",), {}, "'data' takes a dataset.*'a1b' has another form"),
            (("north/a1b/air",), {}, "'data' takes a dataset"),
            ((np.ones(3),), {}, "'data' takes a dataset.*ndarray was given"),
            ((xr.DataArray([1]),), {}, "to_dataset"),
            ((None,), {}, "'data' takes a dataset"),
        ],
    )
    def test_what_does_not_fit_is_refused_at_home(
        self,
        stub: StubSite,
        fed: FederatedClient,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(RequestRefused, match=message) as caught:
            fed.submit("north/trend", *arguments, **keywords)
        assert caught.value.reason is Reason.INVALID_ARGUMENT
        assert caught.value.site == "north"
        assert stub.calls == []

    @pytest.mark.parametrize(
        ("function", "value"),
        [
            ("array", np.arange(6.0).reshape(2, 3)),
            ("array", np.arange(1_000_000.0)),
            ("array", [1, 2]),
            ("array", xr.DataArray([1.5])),
            ("table", pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})),
        ],
    )
    def test_data_is_sent_along(
        self, stub: StubSite, fed: FederatedClient, function: str, value: Any
    ) -> None:
        result = fed.submit(f"north/{function}", value).result()
        expected = stub.bodies[function](np.asarray(value) if function == "array" else value)
        np.testing.assert_array_equal(result, expected)
        assert isinstance(stub.calls[0][0].keywords.popitem()[1], SentArgument)

    def test_xarray_objects_are_sent_whole(self, stub: StubSite, fed: FederatedClient) -> None:
        here = field().compute().to_dataset(name="slope")
        fed.submit("north/trend", here).result()
        xr.testing.assert_identical(stub.calls[0][1]["data"], here)

    def test_plain_data(self, stub: StubSite, fed: FederatedClient) -> None:
        since = datetime.date(2070, 1, 1)
        result = fed.submit("north/anything", {"since": since, "levels": np.arange(3)}).result()
        assert result == {"since": "2070-01-01", "levels": [0, 1, 2]}
        assert isinstance(stub.calls[0][0].keywords["value"], PlainArgument)

    def test_futures_in_plain_data(self, fed: FederatedClient) -> None:
        futures = [fed.submit("north/anything", number) for number in (1, 2)]
        assert fed.submit("north/sum-of.all", futures).result() == 3
        nested = fed.submit("north/anything", {"a": futures, "b": (futures[0],)})
        assert nested.result() == {"a": [1, 2], "b": [1]}

    def test_a_future_whose_result_does_not_fit(self, fed: FederatedClient) -> None:
        text = fed.submit("north/anything", "text")
        with pytest.raises(RequestRefused, match="'values' must be of type array, not 'text'"):
            fed.submit("north/sum-of.all", text).result()
        with pytest.raises(RequestRefused, match="'data' takes a dataset"):
            fed.submit("north/trend", text).result()

    def test_a_future_that_failed_says_why_it_did(self, fed: FederatedClient) -> None:
        with pytest.raises(ValueError, match="negative depth"):
            fed.submit("north/anything", fed.submit("north/broken")).result()

    def test_a_result_goes_on_by_reference(self, stub: StubSite, fed: FederatedClient) -> None:
        slope = fed.submit("north/field", xr.DataArray(np.ones(3), dims="x"))
        del slope
        trend = fed.submit("north/trend", "north/a1b")
        stub.bodies["field"] = lambda field: len(field.held)
        assert fed.submit("north/field", trend).result() == 4
        held = stub.calls[-1][1]["field"].held
        [lease] = {each.lease for each in held}
        assert [each.output for each in held] == [0, 1, 2, 3]
        assert lease in stub.held
        # And so does what was made lazy of it.
        assert fed.submit("north/field", trend.to_dataarray()).result() == 4
        assert stub.calls[-1][1]["field"].held == held
        assert not [each for each in stub.requests if each.startswith("GET /leases")]


class TestResults:
    def test_in_parts(self, stub: StubSite, fed: FederatedClient) -> None:
        future = fed.submit("north/trend", "north/a1b", start=2000)
        wait(future)
        assert not [each for each in stub.requests if each.startswith("GET /leases")]
        result = future.result()
        xr.testing.assert_identical(result, (field() * 2000).compute())
        assert len([each for each in stub.requests if each.startswith("GET /leases")]) == 4
        assert type(result.data) is np.ndarray

    def test_lazily(self, stub: StubSite, fed: FederatedClient) -> None:
        lazy = fed.submit("north/trend", "north/a1b", start=2000).to_dataarray()
        assert lazy.chunks == ((2, 2), (3, 3))
        assert lazy.attrs == {"units": "K"}
        assert not [each for each in stub.requests if each.startswith("GET /leases")]
        # Any other scheduler brings the parts that it needs.
        corner = lazy[:2, :3].compute(scheduler="sync")
        np.testing.assert_array_equal(corner, field()[:2, :3] * 2000)
        assert len([each for each in stub.requests if each.startswith("GET /leases")]) == 1

    def test_of_another_kind(self, fed: FederatedClient) -> None:
        future = fed.submit("north/anything", 3)
        with pytest.raises(ConfigurationError, match="a int, not a DataArray"):
            future.to_dataarray()
        with pytest.raises(ConfigurationError, match="not a Dataset"):
            future.to_dataset()
        array = fed.submit("north/array", np.ones(3)).to_dataarray()
        xr.testing.assert_identical(array, xr.DataArray(np.full(3, 2.0)))

    def test_a_lease_ends_when_nobody_needs_it(self, stub: StubSite, fed: FederatedClient) -> None:
        future = fed.submit("north/trend", "north/a1b")
        lazy = future.to_dataarray()
        del future
        assert lazy.sum().compute(scheduler="sync") > 0
        assert "DELETE /leases/result-0" not in stub.requests
        del lazy
        until(lambda: "DELETE /leases/result-0" in stub.requests, "the lease is released")

    @pytest.mark.parametrize(
        "change",
        [
            {"outputs": 3},
            {"outputs": 5},
            {"lease": None},
        ],
    )
    def test_what_contradicts_itself_is_refused(
        self, stub: StubSite, fed: FederatedClient, change: dict[str, Any]
    ) -> None:
        returned = stub._returned

        def other(running: Any, buffers: Any) -> Any:
            return msgspec.structs.replace(returned(running, buffers), **change)

        stub._returned = other
        with pytest.raises(SiteUnavailable) as caught:
            fed.submit("north/trend", "north/a1b").result()
        assert caught.value.reason is Reason.INTERNAL

    def test_a_part_of_another_shape_is_refused(self, stub: StubSite, fed: FederatedClient) -> None:
        future = fed.submit("north/trend", "north/a1b")
        wait(future)
        stub.held["result-0"][2] = np.ones((7, 7))
        with pytest.raises(SiteUnavailable, match=r"a part of shape \(7, 7\)"):
            future.result()


class TestFutures:
    def test_that_finish(self, fed: FederatedClient) -> None:
        future = fed.submit("north/anything", 3)
        assert isinstance(future, FederatedFuture)
        assert future.result(PATIENCE) == 3
        assert (future.status, future.done(), future.cancelled()) == ("finished", True, False)
        assert future.exception() is None
        assert future.traceback() is None
        assert future.progress.fraction == 1.0
        assert repr(future) == "<FederatedFuture: north/anything, finished>"

    def test_that_fail(self, fed: FederatedClient) -> None:
        future = fed.submit("north/broken")
        with pytest.raises(ValueError, match="negative depth") as caught:
            future.result()
        assert isinstance(caught.value.__cause__, TaskFailed)
        assert caught.value.__cause__.reason is Reason.FUNCTION_FAILED
        assert future.status == "error"
        told = future.traceback()
        assert "at line 1" in told
        assert "negative depth" in told

    def test_progress_and_cancelling(self, stub: StubSite, fed: FederatedClient) -> None:
        future = fed.submit("north/slow", 1)
        until(lambda: future.progress.fraction == 0.25, "progress is told")
        assert future.progress.message == "a quarter�[2J"
        assert future.status == "pending"
        with pytest.raises(SiteUnavailable) as caught:
            future.result(0.01)
        assert caught.value.reason is Reason.TIMED_OUT
        fed.cancel(future)
        assert future.status == "cancelled"
        # The site sees the connection end.
        assert stub.disconnected.wait(PATIENCE)
        with pytest.raises(CancelledError):
            future.result()

    def test_trying_again(self, stub: StubSite, fed: FederatedClient) -> None:
        future = fed.submit("north/broken")
        wait(future)
        stub.bodies["broken"] = lambda: "mended"
        fed.retry([future])
        assert future.result() == "mended"
        with pytest.raises(ConfigurationError, match="Only calls"):
            fed.compute(1).retry()

    def test_callbacks_may_wait_for_a_site(self, fed: FederatedClient) -> None:
        found: list[Any] = []
        called = threading.Event()

        def callback(future: FederatedFuture[Any]) -> None:
            found.append(future.result())
            called.set()

        fed.submit("north/trend", "north/a1b").add_done_callback(callback)
        assert called.wait(PATIENCE)
        assert found[0].shape == (4, 6)

    def test_a_callback_that_raises_is_told_of(
        self, fed: FederatedClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        future = fed.submit("north/anything", 1)
        future.add_done_callback(lambda _: 1 / 0)
        future.result()
        until(lambda: "ZeroDivisionError" in caplog.text, "the error is logged")

    @pytest.mark.parametrize("idempotent", [False, True])
    def test_only_what_may_run_twice_is_sent_again(
        self, stub: StubSite, fed: FederatedClient, idempotent: bool
    ) -> None:
        stub.functions = (msgspec.structs.replace(described("anything"), idempotent=idempotent),)
        fed.refresh()
        stub.breaks_calls = True
        with pytest.raises(SiteUnavailable) as caught:
            fed.submit("north/anything").result()
        assert caught.value.reason is Reason.CONNECTION_LOST
        assert len(stub.calls) == (2 if idempotent else 1)


class TestSeveral:
    def test_map_and_gather(self, fed: FederatedClient) -> None:
        futures = fed.map("north/anything", range(50))
        assert fed.gather(futures) == list(range(50))
        nested = {"a": futures[:2], "b": (futures[3], 7), "c": {futures[4]}}
        assert fed.gather(nested) == {"a": [0, 1], "b": (3, 7), "c": {4}}
        assert fed.gather(futures[5]) == 5
        with pytest.raises(ConfigurationError, match="Give a list"):
            fed.map("north/anything", "north/a1b")

    def test_gathering_what_failed(self, fed: FederatedClient) -> None:
        futures = [fed.submit("north/anything", 1), fed.submit("north/broken")]
        with pytest.raises(ValueError, match="negative depth"):
            fed.gather(futures)
        assert fed.gather(futures, errors="skip") == [1]
        with pytest.raises(ConfigurationError):
            fed.gather(futures, errors="omit")

    def test_as_completed(self, stub: StubSite, fed: FederatedClient) -> None:
        slow = fed.submit("north/slow", 1)
        quick = fed.map("north/anything", range(3))
        ended = as_completed([slow, *quick])
        assert {next(ended) for _ in range(3)} == set(quick)
        assert ended.count() == 1
        stub.released.set()
        assert next(ended) is slow
        assert list(ended) == []
        pairs = as_completed(quick, with_results=True)
        assert sorted(result for _, result in pairs) == [0, 1, 2]

    def test_wait(self, stub: StubSite, fed: FederatedClient) -> None:
        slow, quick = fed.submit("north/slow", 1), fed.submit("north/anything", 1)
        assert wait([slow, quick], return_when="FIRST_COMPLETED") == ({quick}, {slow})
        with pytest.raises(SiteUnavailable, match="1 of 2 futures"):
            wait([slow, quick], timeout=0.01)
        stub.released.set()
        assert wait([slow, quick], timeout=PATIENCE).not_done == set()
        assert wait([]) == (set(), set())
        cancelled = fed.submit("north/slow", 1)
        cancelled.cancel()
        assert wait([cancelled, quick], timeout=PATIENCE).done == {cancelled, quick}

    @pytest.mark.parametrize("use", [wait, progress, as_completed])
    def test_what_is_no_future(self, use: Callable[..., Any]) -> None:
        with pytest.raises(ConfigurationError, match="nothing to wait for"):
            use(da.ones(3))
        with pytest.raises(ConfigurationError, match="type int is no future"):
            use([1])

    async def test_in_coroutines(self, stub: StubSite, address: str, ca: str) -> None:
        stub.functions = (described("anything", parameter("value", required=False)), TREND)
        stub.bodies = {"anything": anything, "trend": lambda data: field()}
        client = FederatedClient(address, token=TOKEN, verify=ca, asynchronous=True)
        async with client as fed:
            assert await fed.submit("north/anything", 3) == 3
            assert (await fed.submit("north/trend", "north/a1b")).shape == (4, 6)
            futures = fed.map("north/anything", range(4))
            assert await fed.gather(futures) == [0, 1, 2, 3]
            found = [await future async for future in as_completed(futures)]
            assert sorted(found) == [0, 1, 2, 3]
            pairs = [pair async for pair in as_completed(futures, with_results=True)]
            assert sorted(result for _, result in pairs) == [0, 1, 2, 3]

    def test_progress_in_a_terminal(
        self, stub: StubSite, fed: FederatedClient, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stub.released.set()
        federated_dask.progress(fed.submit("north/slow", 1), notebook=False)
        told = capsys.readouterr().err
        assert "north/slow" in told
        assert "100%" in told

    def test_progress_in_a_notebook(self, stub: StubSite, fed: FederatedClient) -> None:
        from federated_dask.client.waiting import bars_as_html

        future = fed.submit("north/slow", 1)
        until(lambda: future.progress.fraction == 0.25, "progress is told")
        assert "width:25%" in bars_as_html([future])
        stub.released.set()
        wait(future)
        assert "width:100%" in bars_as_html([future])
        many = fed.map("north/anything", range(40))
        wait(many)
        assert "40 of 40" in bars_as_html(many)
        federated_dask.progress(future, notebook=True)
