"""Values from site to site: fetched, refused, and nothing left behind."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from distributed.client import Client

from federated_dask.protocol.graph import Graph, Held, Reference
from federated_dask.protocol.messages import (
    Failure,
    Finished,
    Output,
    delegation_key,
)
from site_plugins import LocalFederation
from site_plugins.endpoint.peering import DELEGATION_HEADER, Peering
from tests.site_plugins import graphs
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import AIR, Caller
from tests.site_plugins.peers import (
    FIRST,
    GOOD,
    LEASE,
    ask,
    credentials,
    delegated,
    hold,
    job,
    run,
    speaker,
    use,
)


@pytest.fixture
async def lease(north: Caller) -> AsyncIterator[str]:
    """A thousand ones that north holds."""
    name = await hold(north)
    yield name
    await north.read("DELETE", f"/leases/{name}")


async def test_pulled(
    federation: LocalFederation, north: Caller, south: Caller, lease: str
) -> None:
    delegation = await ask(north, lease)
    value, last = await run(
        south, use(Held(lease, 0, "north")), {delegation_key(lease, 0): delegation}
    )
    np.testing.assert_array_equal(value, np.ones(1000))
    assert isinstance(last, Finished)
    assert 0 < last.pulled_bytes["north"] < 10_000


async def test_pulled_once(
    south: Caller, north: Caller, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulls = []
    real = Peering.pull

    async def counted(self: Peering, *arguments: Any, **keywords: Any) -> Any:
        pulls.append(arguments)
        return await real(self, *arguments, **keywords)

    monkeypatch.setattr(Peering, "pull", counted)
    graph = use(*[Held(lease, 0, "north")] * 50)
    _, last = await run(south, graph, {delegation_key(lease, 0): await ask(north, lease)})
    assert isinstance(last, Finished)
    assert len(pulls) == 1


async def test_delegations_are_for_the_owner(
    federation: LocalFederation, north: Caller, lease: str
) -> None:
    other = Caller(federation, "north", federation.new_token("north", "eve"))
    body = json.dumps({"receiver": "south", "outputs": [0]})
    status, failure = await other.refused("POST", f"/leases/{lease}/delegations", data=body)
    assert (status, failure.reason) == (404, "unknown_result")
    status, same = await other.refused("POST", f"/leases/{'f' * 32}/delegations", data=body)
    assert (status, same) == (404, failure)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ('{"receiver": "south", "outputs": [1]}', 404, "unknown_result"),
        ('{"receiver": "south", "outputs": [0, 7]}', 404, "unknown_result"),
        ('{"receiver": "west", "outputs": [0]}', 404, "unknown_site"),
        ('{"receiver": "north", "outputs": [0]}', 404, "unknown_site"),
        ('{"receiver": "https://evil.example/", "outputs": [0]}', 400, "malformed"),
        ('{"receiver": "south", "outputs": []}', 400, "malformed"),
        ('{"receiver": "south", "outputs": [-1]}', 400, "malformed"),
        ('{"receiver": "south", "outputs": ["0"]}', 400, "malformed"),
        ('{"receiver": "south"}', 400, "malformed"),
        (json.dumps({"receiver": "south", "outputs": [0] * 501}), 400, "malformed"),
        ("", 400, "malformed"),
        ("[" * 60_000, 400, "malformed"),
        ("\x80", 400, "malformed"),
        ("x" * 70_000, 413, "limit_exceeded"),
    ],
)
async def test_requests_that_do_not_fit(
    north: Caller, lease: str, body: str, status: int, reason: str
) -> None:
    found, failure = await north.refused("POST", f"/leases/{lease}/delegations", data=body)
    assert (found, failure.reason, failure.site) == (status, reason, "north")


async def test_delegated_needs_both_credentials(
    federation: LocalFederation, nobody: Caller, north: Caller, lease: str
) -> None:
    delegation = await ask(north, lease)
    good = credentials(federation, delegation)
    path = f"/delegated/{lease}/0"
    assert (await nobody.read("GET", path, headers=good))[0] == 200
    bad = [
        {},
        {DELEGATION_HEADER: delegation},
        {"Authorization": good["Authorization"]},
        # The client itself holds the delegation, and a token.
        {**good, "Authorization": f"Bearer {federation.token['north']}"},
        {**good, "Authorization": f"Bearer {federation.token['south']}"},
        {**good, "Authorization": good["Authorization"].replace("Bearer", "Basic")},
        {**good, "Authorization": f"Bearer {delegation}"},
        {**good, DELEGATION_HEADER: federation.token["north"]},
        {**good, DELEGATION_HEADER: "x" * 20_000},
        credentials(federation, delegation, "north"),
    ]
    for headers in bad:
        status, failure = await nobody.refused("GET", path, headers=headers)
        assert (status, failure.reason, failure.site) == (401, "token_invalid", "north")
    # Whether there is such a lease is not for everybody.
    status, same = await nobody.refused("GET", f"/delegated/{'f' * 32}/0", headers={})
    assert (status, same) == (401, (await nobody.refused("GET", path, headers={}))[1])
    assert (await nobody.refused("GET", f"/delegated/{lease}/1", headers=good))[0] == 403


async def test_delegation_and_statement_are_no_tokens(
    federation: LocalFederation, nobody: Caller, north: Caller, lease: str
) -> None:
    delegation = await ask(north, lease)
    statement = credentials(federation, delegation)["Authorization"]
    for bearer in (statement, f"Bearer {delegation}"):
        for method, path in (("GET", f"/leases/{lease}/0"), ("DELETE", f"/leases/{lease}")):
            headers = {"Authorization": bearer, DELEGATION_HEADER: delegation}
            status, failure = await nobody.refused(method, path, headers=headers)
            assert (status, failure.reason) == (401, "token_invalid")


async def test_a_delegation_ends_with_the_lease(
    federation: LocalFederation, nobody: Caller, north: Caller
) -> None:
    lease = await hold(north)
    good = credentials(federation, await ask(north, lease))
    await north.read("DELETE", f"/leases/{lease}")
    status, failure = await nobody.refused("GET", f"/delegated/{lease}/0", headers=good)
    assert (status, failure.reason) == (404, "unknown_result")


async def test_the_limit_of_a_delegation(
    federation: LocalFederation, nobody: Caller, lease: str, north: Caller
) -> None:
    claims = {**GOOD, "iss": "north", "aud": "north", "owner": north.owner, "receiver": "south"}
    small = speaker(federation, "north").sign(
        "delegation+jwt", {**claims, "lease": lease, "bytes": 10}, 60
    )
    status, failure = await nobody.refused(
        "GET", f"/delegated/{lease}/0", headers=credentials(federation, small)
    )
    assert (status, failure.reason) == (403, "export_not_allowed")


# What no message can do


@pytest.mark.parametrize(
    "peer",
    ["south", "west", "", ".", "..", "../north", "https://127.0.0.1:1", "127.0.0.1", "north/", "é"],
)
async def test_only_peers_are_asked(south: Caller, north: Caller, lease: str, peer: str) -> None:
    delegation = await ask(north, lease)
    value, failure = await run(
        south, use(Held(lease, 0, peer)), {delegation_key(lease, 0): delegation}
    )
    assert value is None
    assert isinstance(failure, Failure)
    assert failure.site == "south"
    assert failure.reason in ("unknown_result", "malformed")


@pytest.mark.parametrize(
    "lease",
    [
        "../datasets/a1b",
        "..",
        ".",
        "x?y=1",
        "x#y",
        "x/0",
        "",
        "a b",
        "x" * 5000,
        "%2e%2e",
        "@h",
        "é",
    ],
)
async def test_no_lease_is_a_path(
    federation: LocalFederation, south: Caller, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*arguments: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(Peering, "_fetch", never)
    value, failure = await run(south, use(Held(lease, 0, "north")), delegated(federation, lease))
    assert value is None
    assert (failure.reason, failure.site) == ("malformed", "south")


@pytest.mark.parametrize("delegation", ["a\r\nHost: b", "a b", "é", "\x00", "x" * 10_000])
async def test_no_delegation_is_a_header(south: Caller, delegation: str) -> None:
    value, failure = await run(
        south, use(Held(LEASE, 0, "north")), {delegation_key(LEASE, 0): delegation}
    )
    assert value is None
    assert (failure.reason, failure.site) == ("malformed", "south")


@pytest.mark.parametrize("delegations", [{}, {delegation_key(LEASE, 0): ""}, {LEASE: "a.b.c"}])
async def test_without_a_delegation(south: Caller, delegations: dict[str, str]) -> None:
    _, failure = await run(south, use(Held(LEASE, 0, "north")), delegations)
    assert failure.reason == "unknown_result"


async def test_a_delegation_that_the_source_refuses(
    south: Caller, north: Caller, lease: str
) -> None:
    # It is for another output.
    delegation = await ask(north, lease)
    _, failure = await run(
        south, use(Held(lease, 1, "north")), {delegation_key(lease, 1): delegation}
    )
    assert (failure.reason, failure.site) == ("operation_not_allowed", "north")
    assert "'north' refused" in failure.message


async def test_a_delegation_that_does_not_hold_ends_before_the_pull(
    south: Caller, north: Caller, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*arguments: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(Peering, "_fetch", never)
    delegation = await ask(north, lease)
    for wrong in ("a.b.c", f"{delegation[:-8]}AAAAAAAA"):
        value, failure = await run(
            south, use(Held(lease, 0, "north")), {delegation_key(lease, 0): wrong}
        )
        assert value is None
        assert (failure.reason, failure.site) == ("unknown_result", "south")


# What may leave


async def test_derived_data_is_refused_by_its_source(
    federation: LocalFederation, north: Caller, south: Caller, nobody: Caller
) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    # One chunk of 2400 bytes, where 964 may leave; and sums of 240.
    lease = await hold(north, graph, 0)
    delegation = await ask(north, lease)
    status, failure = await nobody.refused(
        "GET", f"/delegated/{lease}/0", headers=credentials(federation, delegation)
    )
    assert (status, failure.reason) == (403, "budget_exhausted")
    _, failure = await run(
        south, use(Held(lease, 0, "north")), {delegation_key(lease, 0): delegation}
    )
    assert (failure.reason, failure.site) == ("budget_exhausted", "north")
    await north.read("DELETE", f"/leases/{lease}")


@pytest.mark.parametrize("who", ["owner", "peer"])
async def test_derived_data_does_not_leave_piece_by_piece(
    federation: LocalFederation, north: Caller, nobody: Caller, who: str
) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    lease = await hold(north, graph, 4, 5, 6, 7)
    delegation = await ask(north, lease, 0, 1, 2, 3)
    headers = credentials(federation, delegation)
    kept = {
        "peer": (nobody, f"/delegated/{lease}", headers),
        "owner": (north, f"/leases/{lease}", {}),
    }
    caller, path, headers = kept[who]
    statuses = [(await caller.read("GET", f"{path}/{n}", headers=headers))[0] for n in range(4)]
    # Four sums of 240 bytes, each with its frame.
    assert statuses == [200, 200, 200, 403]
    # What has left may be fetched once more, also by the other.
    for caller, path, headers in kept.values():
        assert (await caller.read("GET", f"{path}/0", headers=headers))[0] == 200
        assert (await caller.read("GET", f"{path}/3", headers=headers))[0] == 403
    await north.read("DELETE", f"/leases/{lease}")


async def test_what_a_job_released_counts_for_what_it_holds(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    outputs = [*range(4, 7), Output(task=7, release=False, hold=True), Output(task=4, hold=True)]
    results, last = await north.run(graph, *outputs[:3], outputs[3])
    assert isinstance(last, Finished), last
    assert len(results) == 3
    assert (await north.read("GET", f"/leases/{last.lease}/3"))[0] == 403
    await north.read("DELETE", f"/leases/{last.lease}")


# Nothing is left


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.1])
async def test_a_client_that_goes_away_while_values_come(
    north: Caller, south: Caller, monkeypatch: pytest.MonkeyPatch, moment: float
) -> None:
    graph = graphs.chunk_sums(await north.version())
    lease = await hold(north, graph, *range(8))
    delegation = await ask(north, lease, *range(8))
    begun = asyncio.Event()
    real = Client._scatter
    loop = asyncio.get_running_loop()

    async def slow(self: Client, *arguments: Any, **keywords: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        await asyncio.sleep(0.05)
        found = await real(self, *arguments, **keywords)
        await asyncio.sleep(0.05)
        return found

    monkeypatch.setattr(Client, "_scatter", slow)
    held = tuple(Held(lease, n, "north") for n in range(8))
    body = job(use(*held), {delegation_key(lease, 0): delegation}, FIRST)
    task = asyncio.create_task(south.read("POST", "/jobs", data=body))
    await begun.wait()
    await asyncio.sleep(moment)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        while await south.running_jobs():
            pass
    south.wait_until_idle()
    await north.read("DELETE", f"/leases/{lease}")


async def test_pulled_values_last_as_long_as_they_are_used(north: Caller, south: Caller) -> None:
    """A job that holds what it made of them; the source lets go meanwhile."""
    graph = graphs.chunk_sums(await north.version())
    lease = await hold(north, graph, *range(4, 8))
    delegation = await ask(north, lease, *range(4))
    total = template(call("operator.add", Reference(), Reference()))
    graph = Graph(
        held=tuple(Held(lease, n, "north") for n in range(4)),
        templates=(total,),
        blocks=(block(0, 0, 1), block(0, 2, 3), block(0, 4, 5)),
    )
    output = Output(task=2, release=False, hold=True)
    _, last = await run(south, graph, {delegation_key(lease, 0): delegation}, output)
    assert isinstance(last, Finished), last
    await north.read("DELETE", f"/leases/{lease}")
    value, _ = await run(south, use(Held(str(last.lease), 0)), {})
    np.testing.assert_allclose(value, AIR.sum(axis=0))
    await south.read("DELETE", f"/leases/{last.lease}")
