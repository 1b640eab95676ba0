"""Results that do not fit what was planned, of a site that misbehaves."""

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from federated_dask import FederatedClient
from federated_dask.client.results import decode_result
from federated_dask.errors import FederatedError, Reason, SiteUnavailable
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.messages import Accepted, Finished, Result
from federated_dask.protocol.trees import ArrayValue, DictValue, ListValue
from federated_dask.protocol.values import encode_value

MEAN = np.ones((18, 432), "float32")
ENDLESS = ArrayValue("<f8", (10**6, 10**6), (1, 1), False, 0)
"""7 TiB, in 8 bytes."""


def sent(value: object, output: int = 0) -> list[Any]:
    buffers: list[Any] = []
    return encode_frame(Result(output=output, value=encode_value(value, buffers)), buffers)


@pytest.fixture
def answering(stub: Any, address: str, ca: str) -> Iterator[Callable[..., Any]]:
    """The mean of a variable of the stub, which sends these frames for it."""
    with FederatedClient(address, token="good-token", verify=ca, progress=False) as fed:
        lazy = fed.open_dataset("north/sst", chunks={}).surface_temperature.mean("time")
        assert lazy.shape == MEAN.shape

        def compute(*frames: list[Any]) -> np.ndarray:
            async def events() -> AsyncIterator[list[Any]]:
                yield encode_frame(Accepted(job="j", tasks=1))
                for frame in frames:
                    yield frame
                yield encode_frame(Finished())

            stub.events = events
            return lazy.compute().values

        yield compute


def test_what_was_asked_for(answering: Callable[..., Any]) -> None:
    np.testing.assert_array_equal(answering(sent(MEAN)), MEAN)


def test_another_precision(answering: Callable[..., Any]) -> None:
    np.testing.assert_array_equal(answering(sent(MEAN.astype("float64"))), MEAN)


@pytest.mark.parametrize(
    "value",
    [MEAN[:1], MEAN[0], MEAN[:1, :1], MEAN.T, MEAN * 1j, MEAN.astype("U3"), 1.0, [1.0], None],
    ids=["one row", "a row", "one", "turned", "complex", "texts", "number", "list", "nothing"],
)
def test_another_shape_or_dtype(answering: Callable[..., Any], value: object) -> None:
    with pytest.raises(SiteUnavailable, match=r"of shape \(18, 432\)") as error:
        answering(sent(value))
    assert (error.value.reason, error.value.site) == (Reason.INTERNAL, "north")


def test_an_array_of_any_size_in_a_few_bytes(answering: Callable[..., Any]) -> None:
    with pytest.raises(SiteUnavailable, match="announced a result of") as error:
        answering(encode_frame(Result(output=0, value=ENDLESS), [bytes(8)]))
    assert (error.value.reason, error.value.site) == (Reason.INTERNAL, "north")


@pytest.mark.parametrize("output", [1, 10**9])
def test_a_result_that_nobody_asked_for(answering: Callable[..., Any], output: int) -> None:
    with pytest.raises(SiteUnavailable, match="not asked for") as error:
        answering(sent(MEAN), sent(MEAN, output))
    assert (error.value.reason, error.value.site) == (Reason.INTERNAL, "north")


def test_a_result_that_comes_twice(answering: Callable[..., Any]) -> None:
    with pytest.raises(SiteUnavailable, match="or twice") as error:
        answering(sent(MEAN), sent(MEAN + 1))
    assert (error.value.reason, error.value.site) == (Reason.INTERNAL, "north")


def test_no_result(answering: Callable[..., Any]) -> None:
    with pytest.raises(SiteUnavailable, match="without 1 of 1 results"):
        answering()


@pytest.mark.parametrize(
    "value", [ListValue((ENDLESS,)), DictValue((("a", ENDLESS),)), DictValue(((ENDLESS, 1),))]
)
def test_repeats_are_found_wherever_they_are(value: Any) -> None:
    with pytest.raises(FederatedError, match="announced"):
        decode_result(value, [bytearray(8)], None, "north", 2**30)


def test_repeats_within_the_limit() -> None:
    value = ArrayValue("<f8", (1000, 1000), (1, 1), False, 0)
    found = decode_result(value, [bytearray(8)], None, "north", 8 * 10**6)
    np.testing.assert_array_equal(found, np.zeros((1000, 1000)))
    with pytest.raises(FederatedError, match="announced"):
        decode_result(value, [bytearray(8)], None, "north", 8 * 10**6 - 1)


class TestPlanning:
    def test_the_collector_rests(self, answering: Callable[..., Any], monkeypatch: Any) -> None:
        from federated_dask.client import computing

        seen = []
        plan = computing.make_plan

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.append(gc.isenabled())
            return plan(*arguments, **options)

        monkeypatch.setattr(computing, "make_plan", watched)
        answering(sent(MEAN))
        assert seen == [False]
        assert gc.isenabled()
