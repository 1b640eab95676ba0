"""Tiers, embargoes, licences and budgets at a running site."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from federated_dask import FederatedClient
from federated_dask.client.terms import DatasetBudget
from federated_dask.errors import FederatedError, NotFound, NotPermitted, Reason
from federated_dask.protocol.messages import PROJECT_HEADER, Failure, Finished, Output
from site_plugins import LocalFederation
from site_plugins.endpoint.release import OUTCOME_BYTES
from site_plugins.projects import ProjectStore
from tests.site_plugins import graphs
from tests.site_plugins.helpers import AIR, Caller, dataset, submission

BUDGET = 964
"""A tenth of 1200 values of 8 bytes and the latitudes."""
DERIVED = {"path": dataset(), "egress": "derived", "share": 0.1}
GRANTS = [
    {"to": "anyone", "may": ["compute", "call"], "on": ["dataset:a*", "dataset:f*", "dataset:l*"]},
    {"to": "user:named", "may": ["compute"], "on": ["dataset:aged"]},
    {"to": "group:staff", "may": ["compute", "export"], "on": ["dataset:all"]},
    {"to": "project:drought@north", "may": ["compute"], "on": ["dataset:shared"]},
    {"to": "project:flood@north", "may": ["compute"], "on": ["dataset:shared"]},
]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def site() -> Iterator[LocalFederation]:
    datasets = {
        "all": DERIVED,
        "shared": DERIVED,
        "aged": {"path": dataset(), "embargo": "2999-01-01"},
        "arrived": {"path": dataset(), "embargo": "2020-01-01"},
        "functions": {"path": dataset(), "egress": "functions-only"},
        "licensed": {"path": dataset(), "license": "CC-BY-4.0", "accept_license": True},
    }
    north = {"datasets": datasets, "grants": GRANTS}
    with LocalFederation({"north": north}, threads_per_worker=2) as running:
        yield running


def caller(site: LocalFederation, subject: str | None = None, *groups: str) -> Caller:
    subject = subject or f"user-{next(_numbers)}"
    return Caller(site, "north", site.new_token("north", subject, groups=groups))


def client(site: LocalFederation, subject: str | None = None, **options: Any) -> FederatedClient:
    subject = subject or f"user-{next(_numbers)}"
    token = {"north": site.new_token("north", subject)}
    return FederatedClient(site.addresses, token=token, verify=site.verify, **options)


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is called ``drought-…`` is a member of that project, and so on."""

    def of(self: ProjectStore, issuer: str, subject: str) -> tuple[str, ...]:
        return tuple(subject.partition("-")[0].split("+"))

    monkeypatch.setattr(ProjectStore, "of", of)


async def used(asking: Caller, name: str = "all", **options: Any) -> int:
    async with asking.request("GET", f"/datasets/{name}/budget", **options) as reply:
        assert reply.status == 200, await reply.read()
        return int((await reply.json())["used"])


# Budgets


async def test_a_job_is_charged_what_it_releases(site: LocalFederation) -> None:
    asking = caller(site)
    assert await used(asking) == 0
    graph = graphs.chunk_sums(await asking.version("all"), "all")
    results, last = await asking.run(graph, graph.tasks - 1)
    assert isinstance(last, Finished)
    spent = await used(asking)
    assert results[0].nbytes + OUTCOME_BYTES < spent < results[0].nbytes + 100
    described = await asking.json("/datasets/all")
    assert described["egress"] == {"tier": "derived", "limit": BUDGET - spent}
    # Nobody else's budget is touched.
    assert await used(caller(site)) == 0


async def test_what_is_set_aside_is_given_back(site: LocalFederation) -> None:
    asking = caller(site)
    graph = graphs.chunk_sums(await asking.version("all"), "all")
    _, last = await asking.run(graph, graph.tasks - 1, reserve={"all": 900})
    assert isinstance(last, Finished)
    assert await used(asking) < 300
    results, refused = await asking.run(graph, graph.tasks - 1, reserve={"all": 900})
    assert isinstance(refused, Failure)
    assert (refused.reason, results) == ("budget_exhausted", {})
    # Refused before it ran, it costs nothing.
    assert await used(asking) < 300


async def test_a_tiling_attacker_gets_no_more_than_the_budget(site: LocalFederation) -> None:
    asking = caller(site)
    version = await asking.version("all")
    received = np.full(AIR.shape, np.nan)
    reason = None
    for time, lat, lon in np.ndindex(*AIR.shape):
        params = {"version": version, "index": f"[{time}, {lat}, {lon}]"}
        path = "/datasets/all/variables/air"
        async with asking.request("GET", path, params=params) as reply:
            body = await reply.read()
            if reply.status != 200:
                assert reply.status == 403
                reason = body
                break
        received[time, lat, lon] = AIR[time, lat, lon]
    assert reason is not None
    assert b"budget_exhausted" in reason
    assert 8 * np.isfinite(received).sum() <= BUDGET
    assert await used(asking) <= BUDGET


async def test_many_at_once_get_no_more_than_the_budget(site: LocalFederation) -> None:
    asking = caller(site)
    version = await asking.version("all")
    path = "/datasets/all/variables/air"

    async def read(number: int) -> int:
        params = {"version": version, "index": f"[{number % 40}, {number % 6}, [null, null, null]]"}
        async with asking.request("GET", path, params=params) as reply:
            body = await reply.read()
            assert reply.status in (200, 403), body
            return 40 if reply.status == 200 else 0

    received = await asyncio.gather(*(read(number) for number in range(60)))
    assert 0 < sum(received) <= BUDGET
    assert sum(received) <= await used(asking) <= BUDGET


@pytest.mark.usefixtures("members")
async def test_colluders_of_one_project_share_its_budget(site: LocalFederation) -> None:
    ada, bo = caller(site, "drought-ada"), caller(site, "drought-bo")
    version = await ada.version("shared")
    received = 0
    for number, asking in zip(range(100), itertools.cycle((ada, bo))):
        params = {"version": version, "index": f"[{number % 40}, 0, [null, null, null]]"}
        status, _ = await asking.read("GET", "/datasets/shared/variables/air", params=params)
        received += 40 if status == 200 else 0
    assert 0 < received <= BUDGET
    assert await used(ada, "shared") == await used(bo, "shared") <= BUDGET


@pytest.mark.usefixtures("members")
async def test_the_project_is_named_where_there_are_several(site: LocalFederation) -> None:
    asking = caller(site, "drought+flood-cyd")
    path = "/datasets/shared/budget"
    status, failure = await asking.refused("GET", path)
    assert (status, failure.reason) == (403, "not_permitted")
    assert "FederatedClient(…, project=" in str(failure.hint)
    headers = {PROJECT_HEADER: "flood@north"}
    async with asking.request("GET", path, headers=headers) as reply:
        assert (await reply.json())["project"] == "flood@north"
    # A project of which one is no member is none, nor is one without a grant.
    other = caller(site, "flood-dee")
    async with other.request("GET", path, headers={PROJECT_HEADER: "drought@north"}) as reply:
        assert (await reply.json())["project"] == "flood@north"


async def test_who_may_export_has_no_budget(site: LocalFederation) -> None:
    asking = caller(site, None, "staff")
    graph = graphs.chunk_sums(await asking.version("all"), "all")
    results, last = await asking.run(graph, 0)
    assert isinstance(last, Finished)
    assert results[0].nbytes > BUDGET
    assert await asking.json("/datasets/all/budget") == {
        "dataset": "all",
        "tier": "derived",
        "project": None,
        "total": None,
        "used": 0,
    }


async def test_a_job_that_only_fails_is_paid_for(site: LocalFederation) -> None:
    asking = caller(site)
    graph = graphs.chunk_sums(await asking.version("all"), "all")
    _, last = await asking.run(graph, Output(task=0, release=False, hold=True))
    assert isinstance(last, Finished)
    assert await used(asking) == OUTCOME_BYTES
    await asking.read("DELETE", f"/leases/{last.lease}")


async def test_what_is_refused_is_paid_for_and_tells_no_size(site: LocalFederation) -> None:
    asking = caller(site)
    graph = graphs.chunk_sums(await asking.version("all"), "all")
    _, last = await asking.run(graph, Output(task=0, release=False, hold=True))
    assert isinstance(last, Finished)
    before = await used(asking)
    for count in (1, 2):
        status, failure = await asking.refused("GET", f"/leases/{last.lease}/0")
        assert (status, failure.reason) == (403, "budget_exhausted")
        # It is a chunk of 2400 bytes, and what frames it.
        assert "2,4" not in failure.message
        assert await used(asking) == before + count * OUTCOME_BYTES
    await asking.read("DELETE", f"/leases/{last.lease}")


def test_whoever_may_export_is_bound_by_no_budget() -> None:
    grants = [{"to": "anyone", "may": ["describe", "compute", "export"], "on": ["*"]}]
    data = {"path": dataset(), "egress": "derived", "share": 0.01}
    with (
        LocalFederation({"north": {"datasets": {"all": data}, "grants": grants}}) as federation,
        FederatedClient(federation) as fed,
    ):
        assert fed.budget("north/all").left is None
        x = fed.open_dataset("north/all", chunks={}).air
        np.testing.assert_allclose(x.mean("time").compute(), AIR.mean(0))
        np.testing.assert_allclose(x.compute(), AIR)


def test_the_user_sees_the_budget(site: LocalFederation) -> None:
    with client(site) as fed:
        budget = fed.budget("north/all")
        assert isinstance(budget, DatasetBudget)
        assert (budget.total, budget.used, budget.left) == (BUDGET, 0, BUDGET)
        x = fed.open_dataset("north/all", chunks={}).air
        explained = fed.explain(x.mean())
        assert explained.budgets == {"north/all": (8, BUDGET)}
        assert "left of it when opened" in repr(explained)
        assert "left of it when opened" in explained._repr_html_()
        np.testing.assert_allclose(x.mean().compute(), AIR.mean())
        after = fed.budget("north/all")
        assert 0 < after.used < 100
        assert fed.explain(x.mean()).budgets == {}, "what is at home already costs nothing"
        again = fed.open_dataset("north/all", chunks={}).air
        assert fed.explain(again.min()).budgets == {"north/all": (8, after.left)}


# Tiers, embargoes, licences


async def test_only_functions_read_what_is_for_functions(site: LocalFederation) -> None:
    asking = caller(site, None, "staff")
    version = await asking.version("functions")
    described = await asking.json("/datasets/functions")
    assert described["egress"] == {"tier": "functions-only", "limit": 0}
    graph = graphs.chunk_sums(version, "functions")
    for output in (Output(task=0), Output(task=0, release=False, hold=True)):
        _, failure = await asking.refused("POST", "/jobs", data=submission(graph, output))
        assert failure.reason == "export_not_allowed"
    params = {"version": version, "index": "[0, 0, 0]"}
    status, failure = await asking.refused(
        "GET", "/datasets/functions/variables/air", params=params
    )
    assert (status, failure.reason) == (403, "export_not_allowed")


async def test_an_embargo_hides_a_dataset_until_its_day(site: LocalFederation) -> None:
    names = [each["name"] for each in (await caller(site).json("/datasets"))["datasets"]]
    assert "aged" not in names
    assert "arrived" in names
    status, failure = await caller(site).refused("GET", "/datasets/aged")
    assert (status, failure.reason) == (404, "unknown_dataset")
    named = caller(site, "named")
    version = await named.version("aged")
    _, last = await named.run(graphs.chunk_sums(version, "aged"), 0)
    assert isinstance(last, Finished)


def test_a_licence_is_shown_before_first_use(site: LocalFederation) -> None:
    with client(site) as fed:
        x = fed.open_dataset("north/licensed", chunks={}).air
        for attempt in (x.mean().compute, lambda: x[0].compute(scheduler="sync")):
            with pytest.raises(NotPermitted, match=r"CC-BY-4\.0") as refused:
                attempt()
            assert refused.value.reason is Reason.LICENSE_NOT_ACCEPTED
            assert refused.value.hint is not None
            assert 'fed.accept_license("north/licensed")' in refused.value.hint
        with pytest.raises(FederatedError) as another:
            fed.accept_license("north/licensed", "MIT")
        assert another.value.reason is Reason.INVALID_ARGUMENT
        accepted = fed.accept_license("north/licensed")
        assert (accepted.license, accepted.accepted) == ("CC-BY-4.0", True)
        np.testing.assert_allclose(x.mean().compute(), AIR.mean())
    with client(site) as other, pytest.raises(NotPermitted):
        other.open_dataset("north/licensed", chunks={}).air.mean().compute()


def test_terms_of_what_is_hidden(site: LocalFederation) -> None:
    with client(site) as fed:
        for attempt in (fed.budget, fed.accept_license):
            with pytest.raises(NotFound) as refused:
                attempt("north/shared")
            assert refused.value.reason is Reason.UNKNOWN_DATASET
