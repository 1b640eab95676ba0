"""What values of a site are bound by at another one, and what revoking does on the way."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from federated_dask.errors import NotFound, RequestRefused
from federated_dask.protocol.graph import Held
from federated_dask.protocol.messages import (
    Finished,
    Output,
    delegation_key,
)
from site_plugins import LocalFederation
from site_plugins.audit import AUDIT_LOG, entries
from site_plugins.endpoint.peering import DELEGATION, PEER, Peering
from site_plugins.policy import Policy
from site_plugins.registry import REGISTRY, Registry
from site_plugins.statements import StatementSigner
from tests.site_plugins import graphs
from tests.site_plugins.helpers import AIR, DEADLINE, Caller, dataset
from tests.site_plugins.peers import ask, hold, run, use

OPEN = {"to": "anyone", "may": ["compute"], "on": ["dataset:all"]}


@pytest.fixture(scope="module")
def sites() -> Iterator[LocalFederation]:
    derived = {"path": dataset(), "egress": "derived", "share": 0.1}
    north = {"datasets": {"all": derived, "late": derived}, "grants": [OPEN]}
    with LocalFederation({"north": north, "south": {"datasets": {}}}) as running:
        yield running


def pair(sites: LocalFederation, subject: str) -> tuple[Caller, Caller]:
    made = [Caller(sites, name, sites.new_token(name, subject)) for name in ("north", "south")]
    return made[0], made[1]


async def hold_sum(north: Caller, name: str) -> str:
    graph = graphs.chunk_sums(await north.version(name), name)
    return await hold(north, graph, graph.tasks - 1)


async def pull(south: Caller, lease: str, delegation: str, output: Output) -> tuple[Any, Any]:
    """Have the south compute with what the north holds: the result, and the last event."""
    held = use(Held(lease, 0, "north"))
    return await run(south, held, {delegation_key(lease, 0): delegation}, output)


async def used(north: Caller, name: str = "all") -> int:
    return int((await north.json(f"/datasets/{name}/budget"))["used"])


async def test_the_source_charges_what_it_hands_over_and_the_rest_is_free(
    sites: LocalFederation,
) -> None:
    north, south = pair(sites, "ada")
    lease = await hold_sum(north, "all")
    before = await used(north)
    delegation = await ask(north, lease)
    value, last = await pull(south, lease, delegation, Output(task=0, hold=True))
    assert isinstance(last, Finished)
    np.testing.assert_allclose(value, AIR.sum(0))
    charged = await used(north)
    assert charged - before >= value.nbytes
    # It has left already: the south may give it away as often as it is asked for.
    for _ in range(10):
        assert (await south.read("GET", f"/leases/{last.lease}/0"))[0] == 200
    assert await used(north) == charged
    log = sites._configs["south"].site.state / AUDIT_LOG
    admitted = [each for each in entries(log) if each["event"] == "job_admitted"][-1]
    assert (admitted["derives"], admitted["peers"]) == (["north/all"], ["north"])
    await south.read("DELETE", f"/leases/{last.lease}")
    await north.read("DELETE", f"/leases/{lease}")


async def test_what_is_for_functions_only_ends_where_it_came_by_mistake(
    sites: LocalFederation,
) -> None:
    north, south = pair(sites, "bo")
    lease = await hold_sum(north, "all")
    config = sites._configs["north"]
    claims = {
        "iss": "north",
        "aud": "north",
        "owner": f"{config.token_issuer}\nbo",
        "receiver": "south",
        "lease": lease,
        "outputs": [0],
        "bytes": 10_000,
        "derives": {"all": "functions-only"},
    }
    wrong = StatementSigner(config.tokens.private_key).sign(DELEGATION, claims, 60)
    value, last = await pull(south, lease, wrong, Output(task=0))
    assert value is None
    assert (last.reason, last.site) == ("export_not_allowed", "south")
    await north.read("DELETE", f"/leases/{lease}")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"all": "derived"}, {"all": "derived"}),
        # What a newer site says is not understood: it does not get out.
        ({"all": "secret-tier"}, {"all": "functions-only"}),
        ({"../all": "open"}, {}),
        (["all"], {}),
        (None, {}),
    ],
)
def test_what_a_peer_says_of_its_values(
    sites: LocalFederation, told: Any, expected: dict[str, str]
) -> None:
    config = sites._configs["north"]
    claims = {"iss": "north", "aud": "north", "derives": told}
    signer = StatementSigner(config.tokens.private_key)
    text = signer.sign(DELEGATION, claims, 60)
    peering = Peering(sites._configs["south"])
    assert peering.derives("north", text) == expected
    for peer, wrong in (
        ("south", text),
        ("north", text[:-4] + "AAAA"),
        ("north", signer.sign(DELEGATION, claims, -60)),
        ("north", signer.sign(PEER, claims, 60)),
        ("north", signer.sign(DELEGATION, claims | {"iss": "west"}, 60)),
        ("north", signer.sign(DELEGATION, claims | {"aud": "south"}, 60)),
    ):
        with pytest.raises(NotFound, match="does not hold"):
            peering.derives(peer, wrong)
    with pytest.raises(RequestRefused, match="cannot be one"):
        peering.derives("north", f"{text}\r\nHost: b")


async def test_a_grant_that_is_revoked_between_delegating_and_fetching(
    sites: LocalFederation,
) -> None:
    north, south = pair(sites, "cyd")
    config = sites._configs["north"]
    registry = Registry(config.site.state / REGISTRY)
    policy = Policy.from_config(config, registry)
    grant = policy.add("user:cyd", ["compute"], ["dataset:late"], by="test")
    async with asyncio.timeout(DEADLINE):
        while (await north.read("GET", "/datasets/late"))[0] != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    lease = await hold_sum(north, "late")
    delegation = await ask(north, lease)
    policy.revoke(grant.id)
    async with asyncio.timeout(DEADLINE):
        while (await north.read("GET", "/datasets/late"))[0] != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    value, last = await pull(south, lease, delegation, Output(task=0))
    assert value is None
    assert (last.reason, last.site) == ("not_permitted", "north")
    # Nor can another peer be let fetch it.
    body = json.dumps({"receiver": "south", "outputs": [0]})
    status, failure = await north.refused("POST", f"/leases/{lease}/delegations", data=body)
    assert (status, failure.reason) == (403, "not_permitted")
    registry.close()
    await north.read("DELETE", f"/leases/{lease}")
