"""Small JSON that would become large, and results that would: refused before they are made."""

import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import xarray as xr
from starlette.requests import Request

from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.protocol.limits import Limits
from site_plugins.endpoint import web_bodies
from site_plugins.endpoint.byte_budgets import EXPANSION, Intake
from site_plugins.endpoint.plain import MOST_BYTES, object_from_json
from site_plugins.endpoint.renderings import ARROW, render
from site_plugins.endpoint.web_bodies import receive_arguments
from site_plugins.signatures import ArgumentError, Signature

MEBI = 2**20


@contextlib.contextmanager
def little_memory(most: int = 16 * MEBI) -> Iterator[None]:
    """Hold what happens in the block to an amount of memory."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


LONG = ["a" * 20_000] + [""] * 20_000
WIDE = {"dtype": "<U10000000", "data": ["a"] * 20}
BOMBS: dict[str, tuple[str, Any]] = {
    "texts as wide as the longest": ("ndarray", LONG),
    "texts of a dtype without a length": ("ndarray", {"dtype": "<U0", "data": LONG}),
    "nested texts": ("ndarray", [[text] for text in LONG]),
    "numbers beside a text": ("ndarray", ["a" * 20_000] + [0] * 20_000),
    "a wide dtype": ("ndarray", WIDE),
    "a wide dtype of bytes": ("ndarray", {"dtype": "|S40000000", "data": ["a"] * 20}),
    "a wide dtype in many variables": (
        "dataset",
        {
            "data_vars": {
                f"v{number}": {"dims": [], "dtype": "<U400000", "data": "a"}
                for number in range(100)
            }
        },
    ),
    "a wide dtype in many columns": (
        "dataframe",
        {"columns": {f"c{number}": {"dtype": "<U400000", "data": ["a"]} for number in range(100)}},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_lists_that_would_become_large(name: str) -> None:
    kind, given = BOMBS[name]
    with little_memory(MOST_BYTES), pytest.raises(RequestRefused) as error:
        object_from_json(given, kind, "x")
    assert error.value.reason is Reason.LIMIT_EXCEEDED


def test_a_shape_of_many_axes_is_not_multiplied() -> None:
    given = {"dtype": "<f8", "shape": [2**62] * 100_000, "base64": ""}
    with pytest.raises(RequestRefused, match="too many axes"):
        object_from_json(given, "ndarray", "x")


def test_honest_lists_are_taken() -> None:
    numbers = np.arange(200_000.0).reshape(2, -1)
    given = {"a": {"dims": ["x", "y"], "data": numbers.tolist()}}
    found = object_from_json({"data_vars": given}, "dataset", "x")
    np.testing.assert_array_equal(found.a, numbers)
    texts = [f"name {number}" for number in range(10_000)]
    assert object_from_json(texts, "ndarray", "x").tolist() == texts


def test_plain_texts_for_an_array_of_numbers() -> None:
    def mean(x: np.ndarray) -> float:
        return float(x.mean())

    parameter = Signature(mean).parameters["x"]
    for given in (LONG, [[b"a" * 20_000], *[[b""]] * 20_000]):
        with little_memory(), pytest.raises(ArgumentError, match="must be numbers"):
            parameter.fitted(given)
    assert parameter.fitted([[1, 2], [3, 4]]).shape == (2, 2)


@pytest.mark.parametrize("as_array", [False, True])
def test_a_table_of_all_combinations(as_array: bool) -> None:
    sizes = {"a": 500, "b": 500, "c": 500}
    obj: Any = xr.Dataset({name: (name, np.zeros(size)) for name, size in sizes.items()})
    if as_array:
        obj = xr.DataArray(np.zeros((5000, 5000), "i1"), dims=("x", "y"))
    with little_memory(), pytest.raises(RequestRefused) as error:
        render(obj, ARROW)
    assert error.value.reason is Reason.LIMIT_EXCEEDED


# Bodies


def body_of(content: bytes, kind: str = "application/json") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(content))]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def multipart(content: bytes) -> Request:
    head = b'--b\r\nContent-Disposition: form-data; name="arguments"; filename="a"\r\n\r\n'
    return body_of(head + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b")


@contextlib.asynccontextmanager
async def received(
    request: Request, intake: Intake | None = None, **limits: int
) -> AsyncIterator[dict[str, Any]]:
    intake = intake or Intake(Limits(**limits))
    async with receive_arguments(request, Limits(**limits), 60.0, intake, "ada") as (found, _, _):
        yield found


@pytest.mark.parametrize("made", [body_of, multipart])
@pytest.mark.parametrize("item", [b"{},", b"[],", b"0,", b'{"":0},'])
async def test_json_of_many_items_is_not_decoded(
    made: Any, item: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(body: bytes) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(web_bodies.msgspec.json, "decode", decode)
    content = b'{"x":[' + item * 10_000 + b"0]}"
    with pytest.raises(FederatedError) as error:
        async with received(made(content), parts=5_000):
            pass
    assert error.value.reason is Reason.LIMIT_EXCEEDED


@pytest.mark.parametrize("made", [body_of, multipart])
async def test_decoded_json_counts_as_what_it_takes(made: Any) -> None:
    content = msgspec.json.encode({"x": [{}] * 50_000})
    intake = Intake(Limits())
    shares = [intake.headers.all, intake.buffers.all]
    before = [each.free for each in shares if each is not None]
    async with received(made(content), intake) as arguments:
        assert len(arguments["x"]) == 50_000
        during = [each.free for each in shares if each is not None]
    taken = [much - less for much, less in zip(before, during, strict=True)]
    assert taken[0] >= len(content) * (1 + EXPANSION)
    assert taken[0] + taken[1] < 2.01 * len(content) * (1 + EXPANSION)
    assert [each.free for each in shares if each is not None] == before


async def test_json_is_held_to_its_cap_beside_other_parts() -> None:
    content = msgspec.json.encode({"x": "a" * 2_000})
    with pytest.raises(RequestRefused) as error:
        async with received(multipart(content), header_bytes=1_000):
            pass
    assert error.value.reason is Reason.LIMIT_EXCEEDED
