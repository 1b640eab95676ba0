"""Grants in force at every route: who is told what, and who computes with what."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from federated_dask.protocol.graph import Graph, Held
from federated_dask.protocol.messages import Accepted, Failure, Finished, Output
from site_plugins import LocalFederation
from site_plugins.policy import Policy
from site_plugins.registry import REGISTRY, Registry
from site_plugins.revocations import Revocations
from tests.site_plugins import graphs
from tests.site_plugins.helpers import DEADLINE, Caller, dataset, submission
from tests.waiting import async_until

GRANTS = [
    {"to": "user:ada", "may": ["compute"], "on": ["dataset:a1b"]},
    {"to": "user:bo", "may": ["describe"], "on": ["dataset:a1b"]},
    {"to": "group:climate", "may": ["compute"], "on": ["dataset:soil-*"]},
    {"to": "user:fay", "may": ["describe"], "on": ["function:add"]},
    {"to": "user:root", "may": ["admin"], "on": ["*"]},
]


@pytest.fixture(scope="module")
def granted() -> Iterator[LocalFederation]:
    stored = {"a1b": {"path": dataset()}, "soil-1": {"path": dataset()}, "hidden": dataset()}
    functions = {"modules": ["tests.site_plugins.published"]}
    section = {"datasets": stored, "functions": functions, "grants": GRANTS}
    with LocalFederation({"north": section}) as running:
        yield running


def caller(granted: LocalFederation, subject: str, *groups: str) -> Caller:
    return Caller(granted, "north", granted.new_token("north", subject, groups=groups))


def graph_of(name: str, version: str) -> Graph:
    return graphs.chunk_sums(version, name, chunks=1)


def long(version: str) -> Graph:
    """A chunk's sum, and a task that needs a minute of others."""
    read, slow = graph_of("a1b", version), graphs.slow_graph(5000, 500)
    count = 500
    return Graph(
        sources=read.sources,
        templates=(*read.templates, *slow.templates),
        blocks=(
            graphs.block(0, 0, 0, 40),
            graphs.block(len(read.templates), 5000 + np.arange(count)),
            graphs.block(len(read.templates) + 1, *range(2, 2 + count)),
        ),
    )


@contextmanager
def changing(granted: LocalFederation) -> Iterator[Policy]:
    """Grants changed by another process than the one that serves."""
    config = granted._configs["north"]
    registry = Registry(config.site.state / REGISTRY)
    policy = Policy.from_config(config, registry)
    try:
        yield policy
    finally:
        for grant in policy.grants():
            policy.revoke(grant.id)
        registry.close()


async def until(asking: Caller, path: str, expected: int) -> None:
    async def answers() -> bool:
        return (await asking.read("GET", path))[0] == expected

    await async_until(answers, f"{path} answers {expected}", DEADLINE)


@pytest.mark.parametrize(
    ("subject", "groups", "visible"),
    [
        ("ada", (), ["a1b"]),
        ("bo", (), ["a1b"]),
        ("eve", (), []),
        ("eve", ("climate",), ["soil-1"]),
        ("root", (), ["a1b", "hidden", "soil-1"]),
    ],
)
async def test_the_catalogue_is_what_one_may_know(
    granted: LocalFederation, subject: str, groups: tuple[str, ...], visible: list[str]
) -> None:
    asking = caller(granted, subject, *groups)
    listed = await asking.json("/datasets")
    assert [each["name"] for each in listed["datasets"]] == visible
    for name in ("a1b", "hidden", "soil-1"):
        status, _ = await asking.read("GET", f"/datasets/{name}")
        assert status == (200 if name in visible else 404)


async def test_the_size_of_the_site_is_told_to_those_who_may_describe_it(
    granted: LocalFederation,
) -> None:
    assert (await caller(granted, "ada").json("/site"))["workers"] == 0
    told = await caller(granted, "root").json("/site")
    assert told["workers"] == 1


@pytest.mark.parametrize(("subject", "may"), [("ada", True), ("bo", False), ("eve", False)])
async def test_who_may_compute_with_nothing_computes_nothing(
    granted: LocalFederation, subject: str, may: bool
) -> None:
    asking, body = caller(granted, subject), submission(graphs.slow_graph(4000, 1), 1)
    if may:
        found = [event async for event, _ in asking.events(body)]
        assert isinstance(found[-1], Finished)
        return
    status, failure = await asking.refused("POST", "/jobs", data=body)
    assert (status, failure.reason) == (403, "not_permitted")


ROUTES = [
    ("GET", "/datasets/{}"),
    ("GET", "/datasets/{}/variables/air?version=1&index=[0,0,0]"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_what_is_hidden_looks_as_if_it_were_not(
    granted: LocalFederation, method: str, path: str
) -> None:
    asking = caller(granted, "ada")
    answers = []
    for name in ("hidden", "absent"):
        async with asking.request(method, path.format(name)) as reply:
            body = (await reply.read()).replace(name.encode(), b"NAME")
            headers = {
                k: v for k, v in reply.headers.items() if k not in ("date", "Content-Length")
            }
            headers.pop("Date", None)
            answers.append((reply.status, body, headers))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


async def test_jobs_over_hidden_data_are_refused_as_if_it_were_not(
    granted: LocalFederation,
) -> None:
    failures = []
    for name in ("hidden", "absent"):
        body = submission(graph_of(name, "1"), 0)
        status, failure = await caller(granted, "ada").refused("POST", "/jobs", data=body)
        failures.append((status, failure.reason, failure.message.replace(name, "NAME")))
    assert failures[0] == failures[1]
    assert failures[0][:2] == (404, "unknown_dataset")


async def test_describing_is_not_computing(granted: LocalFederation) -> None:
    bo = caller(granted, "bo")
    version = await bo.version()
    refusals = [
        await bo.refused("POST", "/jobs", data=submission(graph_of("a1b", version), 0)),
        await bo.refused("GET", f"/datasets/a1b/variables/air?version={version}&index=[0,0,0]"),
    ]
    assert [(status, failure.reason) for status, failure in refusals] == [
        (403, "not_permitted"),
        (403, "not_permitted"),
    ]


async def test_a_grant_at_run_time_opens_and_closes(granted: LocalFederation) -> None:
    cyd = caller(granted, "cyd")
    assert (await cyd.read("GET", "/datasets/a1b"))[0] == 404
    with changing(granted) as policy:
        grant = policy.add("user:cyd", ["compute"], ["dataset:a1b"], by="test")
        await until(cyd, "/datasets/a1b", 200)
        version = await cyd.version()
        _, finished = await cyd.run(graph_of("a1b", version), Output(task=0, hold=True))
        assert isinstance(finished, Finished)
        held = f"/leases/{finished.lease}/0"
        assert (await cyd.read("GET", held))[0] == 200
        policy.revoke(grant.id)
        await until(cyd, "/datasets/a1b", 404)
        status, failure = await cyd.refused("GET", held)
        assert (status, failure.reason) == (403, "not_permitted")
        # Nor can what is held be computed with.
        assert finished.lease is not None
        again = Graph(
            held=(Held(finished.lease, 0),),
            templates=(graphs.SUM,),
            blocks=(graphs.block(0, 0),),
        )
        status, failure = await cyd.refused("POST", "/jobs", data=submission(again, 0))
        assert (status, failure.reason) == (403, "not_permitted")
    assert (await cyd.read("DELETE", f"/leases/{finished.lease}"))[0] == 204


@pytest.mark.parametrize("data", [True, False])
async def test_a_running_job_is_cancelled_when_its_token_is_revoked(
    granted: LocalFederation, data: bool
) -> None:
    eli = caller(granted, "eli", "climate")
    with changing(granted) as policy:
        policy.add("user:eli", ["compute"], ["dataset:a1b"], by="test")
        await until(eli, "/datasets/a1b", 200)
        graph = long(await eli.version()) if data else graphs.slow_graph(5000, 500)
        last = None
        async for event, _ in eli.events(submission(graph, graph.tasks - 1)):
            last = event
            if isinstance(event, Accepted):
                registry = Registry(granted._configs["north"].site.state / REGISTRY)
                issuer = granted._configs["north"].token_issuer
                Revocations(registry).add(issuer, "subject", "eli")
                registry.close()
    assert isinstance(last, Failure)
    assert last.reason == "not_permitted"
    await asyncio.to_thread(eli.wait_until_idle)


async def test_a_running_job_is_cancelled_when_its_grant_is_revoked(
    granted: LocalFederation,
) -> None:
    dee = caller(granted, "dee")
    with changing(granted) as policy:
        grant = policy.add("user:dee", ["compute"], ["dataset:a1b"], by="test")
        await until(dee, "/datasets/a1b", 200)
        version = await dee.version()
        last = None
        async for event, _ in dee.events(submission(long(version), 0, 501)):
            last = event
            if isinstance(event, Accepted):
                policy.revoke(grant.id)
    assert isinstance(last, Failure)
    assert last.reason == "not_permitted"
    await asyncio.to_thread(dee.wait_until_idle)


async def test_who_may_not_call_sends_no_arguments(granted: LocalFederation) -> None:
    fay = caller(granted, "fay")
    # Were it looked at, it would be malformed.
    options = {"data": b"{", "headers": {"Content-Type": "application/json"}}
    status, failure = await fay.refused("POST", "/functions/add", **options)
    assert (status, failure.reason) == (403, "not_permitted")
    told = [await fay.refused("POST", f"/functions/{name}", **options) for name in ("mean", "xyz")]
    assert [status for status, _ in told] == [404, 404]
    assert told[0][1].message.replace("mean", "xyz") == told[1][1].message


@pytest.mark.parametrize(
    ("subject", "jobs", "calls"), [("ada", 400, 403), ("eve", 403, 403), ("fay", 403, 403)]
)
async def test_who_may_do_nothing_sends_no_body(
    granted: LocalFederation, subject: str, jobs: int, calls: int
) -> None:
    asking = caller(granted, subject)
    # Were it looked at, it would be malformed.
    answers = [await asking.refused("POST", path, data=b"{") for path in ("/jobs", "/calls")]
    assert [status for status, _ in answers] == [jobs, calls]
    reasons = {400: "malformed", 403: "not_permitted"}
    assert [failure.reason for _, failure in answers] == [reasons[jobs], reasons[calls]]
