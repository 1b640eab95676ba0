"""Parts of variables and previews, for programs that know HTTP, JSON and bytes."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from tests.site_plugins.helpers import AIR, Caller

VALUES = "/datasets/a1b/variables/air/values"
RAW = {"Accept": "application/octet-stream"}


def index_of(*parts: Any) -> str:
    return f"?index={quote(json.dumps(parts))}"


async def test_raw_bytes_of_a_part(north: Caller) -> None:
    path = VALUES + index_of(3, [1, 4, None], {"take": [4, 0]})
    async with north.request("GET", path, headers=RAW) as response:
        assert response.status == 200
        assert response.content_type == "application/octet-stream"
        assert json.loads(response.headers["Federated-Shape"]) == [3, 2]
        assert json.loads(response.headers["Federated-Dimensions"]) == ["lat", "lon"]
        assert response.headers["Federated-Version"] == await north.version()
        found = np.frombuffer(await response.read(), response.headers["Federated-DType"])
    np.testing.assert_array_equal(found.reshape(3, 2), AIR[3, 1:4][:, [4, 0]])


async def test_json_of_a_part_and_of_all(north: Caller) -> None:
    found = await north.json(VALUES + index_of(0, 0, [None, None, None]))
    assert found["dims"] == ["lon"]
    assert found["data"] == AIR[0, 0].tolist()
    found = await north.json(VALUES + "?arrays=omitted")
    assert found["shape"] == list(AIR.shape)
    assert "data" not in found


async def test_what_is_not_accepted(north: Caller) -> None:
    status, failure = await north.refused("GET", VALUES, headers={"Accept": "text/html"})
    assert (status, failure.site) == (406, "north")
    assert "application/json" in failure.message


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/datasets/a1b/variables/nothing/values", 404, "unknown_variable"),
        ("/datasets/nothing/variables/air/values", 404, "unknown_dataset"),
        (VALUES + "?version=other", 409, "version_changed"),
        (VALUES + "?index=[0]", 400, "malformed"),
        (VALUES + "?index=[999,0,0]", 400, "malformed"),
        (VALUES + "?arrays=other", 400, "malformed"),
        ("/datasets/secret/variables/air/values", 403, "budget_exhausted"),
        ("/datasets/broken/variables/air/values", 503, "dataset_unreadable"),
        ("/datasets/a1b/preview?variable=nothing", 404, "unknown_variable"),
        ("/datasets/a1b/preview?at=3", 400, "malformed"),
        ("/datasets/a1b/preview?at=" + quote('{"time": 40}'), 422, "invalid_argument"),
        ("/datasets/a1b/preview?at=" + quote('{"depth": 0}'), 422, "invalid_argument"),
        ("/datasets/broken/preview", 503, "dataset_unreadable"),
    ],
)
async def test_refusals(north: Caller, path: str, status: int, reason: str) -> None:
    found, failure = await north.refused("GET", path)
    assert (found, failure.reason) == (status, reason)


async def test_nothing_without_a_token(nobody: Caller) -> None:
    for path in (VALUES, "/datasets/a1b/preview"):
        status, failure = await nobody.refused("GET", path)
        assert (status, failure.reason) == (401, "token_missing")


async def test_a_preview_is_a_map(north: Caller) -> None:
    async with north.request("GET", "/datasets/a1b/preview") as response:
        assert response.content_type == "image/png"
        assert (await response.read())[:8] == b"\x89PNG\r\n\x1a\n"
    path = "/datasets/a1b/preview?at=" + quote('{"time": 3}')
    async with north.request("GET", path, headers={"Accept": "application/json"}) as response:
        found = await response.json()
    assert (found["name"], found["dims"]) == ("air", ["lat", "lon"])
    np.testing.assert_array_equal(found["data"], AIR[3])
    assert found["coords"]["lat"]["data"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


async def test_a_preview_counts_as_a_release(north: Caller) -> None:
    # A map of it has 240 bytes, all of its times at one point 320; 964 may leave at once.
    status, body = await north.read("GET", "/datasets/secret/preview")
    assert status == 200, body
    path = "/datasets/secret/preview?variable=air&at=" + quote('{"lat": 0}')
    assert (await north.read("GET", path))[0] == 200
