import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from federated_dask.errors import Reason, from_reason
from federated_dask.protocol.frames import FrameDecoder, encode_frame
from federated_dask.protocol.graph import Graph
from federated_dask.protocol.messages import (
    FRAMES_MEDIA_TYPE,
    Catalogue,
    DatasetDescription,
    Progress,
    Result,
    SiteDescription,
)
from federated_dask.protocol.operations import operation_table
from site_plugins import LocalFederation
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import AIR, Caller, as_message, dataset, submission, value_of

ROUTES = [
    ("GET", "/site"),
    ("GET", "/operations"),
    ("GET", "/datasets"),
    ("GET", "/datasets/a1b"),
    ("GET", "/datasets/nothing"),
    ("GET", "/datasets/a1b/variables/air?version=v&index=[]"),
    ("GET", "/datasets/a1b/variables/air"),
    ("POST", "/jobs"),
    ("GET", "/leases/x/0"),
    ("GET", "/leases/x/y"),
    ("POST", "/leases/x"),
    ("DELETE", "/leases/x"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_no_token_no_answer(nobody: Caller, method: str, path: str) -> None:
    async with nobody.request(method, path) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert (await response.json())["reason"] == "token_missing"


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_wrong_token_gives_no_answer(
    federation: LocalFederation, method: str, path: str
) -> None:
    # That of another site of the same federation.
    caller = Caller(federation, "north", federation.token["south"])
    status, failure = await caller.refused(method, path)
    assert (status, failure.reason, failure.site) == (401, "token_invalid", "north")


async def test_an_expired_token(federation: LocalFederation) -> None:
    token = federation.new_token("north", "ada", 0.001)
    await asyncio.sleep(0.01)
    status, failure = await Caller(federation, "north", token).refused("GET", "/site")
    assert (status, failure.reason) == (401, "token_expired")


async def test_two_tokens_are_none(north: Caller) -> None:
    token = north.headers["Authorization"]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(north.base.rpartition(":")[2]), ssl=north.ssl
    )
    header = f"Authorization: {token}\r\n"
    writer.write(f"GET /site HTTP/1.1\r\nHost: x\r\n{header}{header}\r\n".encode())
    assert b" 401 " in await reader.readline()
    # A polite end of TLS would meet the rest of the reply.
    writer.transport.abort()


async def test_health_needs_no_token(nobody: Caller) -> None:
    assert await nobody.json("/health") == {"status": "ok", "site": "north"}


async def test_site(north: Caller, federation: LocalFederation) -> None:
    status, body = await north.read("GET", "/site")
    assert status == 200
    site = msgspec.json.decode(body, type=SiteDescription)
    assert (site.name, site.title) == ("north", "The north")
    [peer] = site.peers
    assert (peer.name, peer.address) == ("south", federation.addresses["south"])
    assert (site.workers, site.threads) == (1, 2)
    assert site.memory > 0
    assert site.operations_digest == operation_table().digest
    assert (await north.json("/operations"))["names"] == list(operation_table().names)
    assert site.limits["tasks"] == 1000
    assert site.versions["dask"]


async def test_catalogue(north: Caller) -> None:
    _, body = await north.read("GET", "/datasets")
    catalogue = msgspec.json.decode(body, type=Catalogue)
    assert [item.name for item in catalogue.datasets] == ["a1b", "broken", "secret"]
    assert catalogue.datasets[0].title == "A1B"
    assert catalogue.datasets[2].egress.tier == "derived"
    assert b"canary" not in body


async def test_dataset_as_frames(north: Caller) -> None:
    headers = {"Accept": FRAMES_MEDIA_TYPE}
    async with north.request("GET", "/datasets/a1b", headers=headers) as response:
        assert response.content_type == FRAMES_MEDIA_TYPE
        [frame] = FrameDecoder().feed(await response.read())
    description = as_message(frame, DatasetDescription)
    assert description.variables["air"].shape == AIR.shape
    assert description.variables["air"].chunks == (10, 6, 5)
    latitudes = description.variables["lat"].value
    np.testing.assert_array_equal(value_of(latitudes, frame), np.arange(6.0))


async def test_dataset_as_json(north: Caller) -> None:
    described = await north.json("/datasets/secret")
    assert described["variables"]["lat"]["value"] is None
    assert described["egress"] == {"tier": "derived", "limit": int(0.1 * (AIR.nbytes + 48))}


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/datasets/nothing", 404, "unknown_dataset"),
        ("/datasets/broken", 503, "dataset_unreadable"),
        ("/nothing", 404, "unknown_route"),
        ("/leases/x/0", 404, "unknown_result"),
        ("/leases/x/y", 400, "malformed"),
        ("/leases/x/-1", 400, "malformed"),
        ("/datasets/a1b/variables/air", 400, "malformed"),
        ("/datasets/a1b/variables/air?version=v&index=[]", 409, "version_changed"),
        ("/datasets/a1b/variables/air?version=v&index=]", 400, "malformed"),
        ("/datasets/nothing/variables/air?version=v&index=[]", 404, "unknown_dataset"),
    ],
)
async def test_refusals(north: Caller, path: str, status: int, reason: str) -> None:
    found, failure = await north.refused("GET", path)
    assert (found, failure.reason, failure.site) == (status, reason, "north")
    assert "canary" not in str(failure)


async def test_another_method(north: Caller) -> None:
    async with north.request("PUT", "/site") as response:
        assert response.status == 405
        assert (await response.json())["reason"] == "unknown_route"


# Reads


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("[[null, null, null], [null, null, null], [null, null, null]]", AIR),
        ("[[3, 17, 2], 4, [null, null, -1]]", AIR[3:17:2, 4, ::-1]),
        ("[-1, -1, -1]", AIR[-1, -1, -1]),
        (
            '[{"take": [30, 3, -1]}, {"take": [5, 0]}, [0, 1, null]]',
            AIR[[30, 3, -1]][:, [5, 0]][..., :1],
        ),
        ('[{"take": []}, 0, 0]', AIR[:0, 0, 0]),
        ("[[50, 60, null], 0, 0]", AIR[50:60, 0, 0]),
    ],
)
async def test_reads(north: Caller, index: str, expected: Any) -> None:
    options = {"params": {"version": await north.version(), "index": index}}
    async with north.request("GET", "/datasets/a1b/variables/air", **options) as response:
        assert response.status == 200, await response.read()
        [frame] = FrameDecoder().feed(await response.read())
    result = as_message(frame, Result)
    assert result.output == 0
    np.testing.assert_array_equal(value_of(result.value, frame), expected)


@pytest.mark.parametrize(
    ("variable", "index", "status", "reason"),
    [
        ("wind", "[0, 0, 0]", 404, "unknown_variable"),
        ("air", "[0, 0]", 400, "malformed"),
        ("air", "[40, 0, 0]", 400, "malformed"),
        ("air", "[[0, 1, 0], 0, 0]", 400, "malformed"),
        ("air", '[{"take": [-41]}, 0, 0]', 400, "malformed"),
        ("air", "[true, 0, 0]", 400, "malformed"),
        ("air", "[1e99, 0, 0]", 400, "malformed"),
        ("air", f"[{10**30}, 0, 0]", 400, "malformed"),
        ("air", f"[[0, {2**63}, null], 0, 0]", 400, "malformed"),
        (
            "air",
            json.dumps([{"take": [0] * 1000}, {"take": [0] * 1000}, {"take": [0] * 3}]),
            413,
            "limit_exceeded",
        ),
    ],
)
async def test_reads_that_do_not_fit(
    north: Caller, variable: str, index: str, status: int, reason: str
) -> None:
    params = {"version": await north.version(), "index": index}
    found, failure = await north.refused(
        "GET", f"/datasets/a1b/variables/{variable}", params=params
    )
    assert (found, failure.reason) == (status, reason)


async def test_reads_count_as_egress(north: Caller) -> None:
    path, version = "/datasets/secret/variables/air", await north.version("secret")
    params = {"version": version, "index": "[[0, 40, null], 0, 0]"}
    assert (await north.read("GET", path, params=params))[0] == 200
    params["index"] = "[[0, 5, null], [null, null, null], [null, null, null]]"
    # Five rows are 1200 bytes, more than may ever leave; three are 720, more than is left.
    status, failure = await north.refused("GET", path, params=params)
    assert (status, failure.reason) == (403, "budget_exhausted")
    params["index"] = "[[0, 3, null], [null, null, null], [null, null, null]]"
    status, failure = await north.refused("GET", path, params=params)
    assert (status, failure.reason) == (403, "budget_exhausted")


async def test_a_changed_dataset(zarr_path: Path) -> None:
    sites = {"north": {"datasets": {"a1b": zarr_path}, "limits": {"version_check_seconds": 0.001}}}
    with LocalFederation(sites) as federation:
        caller = Caller(federation, "north", federation.token["north"])
        params = {"version": await caller.version(), "index": "[0, 0, 0]"}
        path = "/datasets/a1b/variables/air"
        assert (await caller.read("GET", path, params=params))[0] == 200
        dataset().isel(time=slice(30)).to_zarr(
            zarr_path, mode="w", zarr_format=2, consolidated=True
        )
        status, failure = await caller.refused("GET", path, params=params)
        assert (status, failure.reason) == (409, "version_changed")
        params["version"] = await caller.version()
        assert (await caller.read("GET", path, params=params))[0] == 200


# Bodies

GOOD = submission(
    Graph(templates=(template(call("numpy.ones", "x" * 100)),), blocks=(block(0),)), 0
)
OVER_HEADER = b"FDF1" + (2**20 + 1).to_bytes(4, "little") * 2


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        pytest.param(b"", 400, "malformed", id="empty"),
        pytest.param(b"\x80\x04garbage" * 100, 400, "malformed", id="garbage"),
        pytest.param(GOOD[:-1], 400, "malformed", id="truncated"),
        pytest.param(GOOD[:7], 400, "malformed", id="truncated prefix"),
        pytest.param(GOOD + GOOD, 400, "malformed", id="two frames"),
        pytest.param(GOOD + b"x", 400, "malformed", id="more behind"),
        pytest.param(OVER_HEADER, 413, "limit_exceeded", id="header too large"),
        pytest.param(
            b"".join(encode_frame(Progress(done=1, total=2))),
            400,
            "malformed",
            id="another message",
        ),
        pytest.param(
            b"".join(map(bytes, encode_frame(Progress(done=1, total=2), [bytes(17 * 2**20)]))),
            413,
            "limit_exceeded",
            id="bomb",
        ),
        pytest.param(
            b"FDF1" + (99_990).to_bytes(4, "little") * 2 + b"\x91" * 99_990,
            400,
            "malformed",
            id="nested",
        ),
    ],
)
async def test_bad_bodies(north: Caller, body: bytes, status: int, reason: str) -> None:
    found, failure = await north.refused("POST", "/jobs", data=body)
    assert (found, failure.reason, failure.site) == (status, reason, "north")


async def test_a_body_that_breaks_off(north: Caller) -> None:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", int(north.base.rpartition(":")[2]), ssl=north.ssl
    )
    head = f"POST /jobs HTTP/1.1\r\nHost: x\r\nAuthorization: {north.headers['Authorization']}\r\n"
    writer.write(head.encode() + b"Content-Length: 10000\r\n\r\nFDF1")
    await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    # The site is none the worse for it.
    assert (await north.json("/health"))["status"] == "ok"


# Errors nobody expected, and documentation


async def test_what_is_unexpected_is_not_told(
    north: Caller,
    federation: LocalFederation,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from site_plugins.endpoint.gateway import Gateway

    async def broken(self: Gateway) -> None:
        raise RuntimeError("canary in the machine room")

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "state", broken)
        status, failure = await north.refused("GET", "/site")
    assert (status, failure.reason) == (500, "internal")
    assert "canary" not in str(failure)
    assert "canary in the machine room" in caplog.text


async def test_openapi_documents_every_route(nobody: Caller, federation: LocalFederation) -> None:
    document = await nobody.json("/openapi.json")
    from site_plugins.endpoint.routes import router

    routes = {route.path for route in router.routes if route.include_in_schema}
    assert routes <= set(document["paths"])
    assert len(routes) >= 10
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            assert operation["description"], path
            if path not in ("/health", "/login", "/peers", "/memberships"):
                # A peer shows no token of this site but a delegation and who it is.
                if not path.startswith("/delegated"):
                    assert operation["security"] == [{"token": []}], path
                assert "401" in operation["responses"], (path, method)
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in _references(value)]
    if isinstance(part, list):
        return [found for value in part for found in _references(value)]
    return []


async def test_docs_need_nothing_from_elsewhere(nobody: Caller) -> None:
    async with nobody.request("GET", "/docs") as response:
        assert response.content_type == "text/html"
        page = await response.text()
    assert "POST /jobs" in page
    assert "version_changed" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


async def test_tls_is_current(federation: LocalFederation) -> None:
    context = ssl.create_default_context(cafile=federation.verify)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    _, writer = await asyncio.open_connection(
        "127.0.0.1", int(federation.addresses["north"].rpartition(":")[2]), ssl=context
    )
    assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
    writer.close()
    await writer.wait_closed()


def test_every_reason_maps_to_a_status() -> None:
    for reason in Reason:
        assert 400 <= from_reason(reason, "").http_status < 600
