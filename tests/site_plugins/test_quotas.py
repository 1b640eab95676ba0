"""Quotas of one principal, and everybody's fair share of the workers."""

import asyncio
import datetime
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from federated_dask import FederatedClient
from federated_dask.errors import NotPermitted, Reason
from federated_dask.protocol.graph import Graph, Integer, List, Number, Reference
from federated_dask.protocol.messages import Accepted, Failure, Finished, Output
from site_plugins import LocalFederation
from site_plugins.config import QuotasSection
from site_plugins.fair_share import FairShare
from site_plugins.quotas import Quotas
from site_plugins.registry import Registry
from tests.site_plugins import graphs
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import Caller, dataset, submission

NOON = datetime.datetime(2026, 12, 1, 12, tzinfo=datetime.UTC)


def refused(quotas: Quotas, what: str, *arguments: object, **keywords: object) -> NotPermitted:
    with pytest.raises(NotPermitted) as error:
        getattr(quotas, what)(*arguments, **keywords)
    assert error.value.reason is Reason.QUOTA_EXCEEDED
    return error.value


def test_what_counts_at_a_time() -> None:
    quotas = Quotas(Registry(None), QuotasSection(concurrent_jobs=2, running_tasks=10), "north")
    quotas.enter("ada", tasks=6)
    assert "running_tasks = 10" in refused(quotas, "enter", "ada", tasks=5).message
    quotas.enter("ada", tasks=4)
    assert "concurrent_jobs = 2" in refused(quotas, "enter", "ada", tasks=0).message
    quotas.enter("bo", tasks=10)
    quotas.leave("ada", tasks=6, cpu_seconds=1.5)
    quotas.enter("ada", tasks=6)
    assert quotas.usage("ada").jobs_today == 1


def test_what_counts_for_a_day_is_written_down(tmp_path: Path) -> None:
    now = NOON
    section = QuotasSection(cpu_seconds_per_day=10.0, egress_per_day=1000)
    path = tmp_path / "site.db"
    here, there = (Quotas(Registry(path), section, "north", now=lambda: now) for _ in range(2))
    here.enter("ada", tasks=1)
    here.leave("ada", tasks=1, cpu_seconds=9.0)
    refused(here, "require_seconds", "ada", 1.1)
    here.write()
    refused(here, "require_seconds", "ada", 1.1)
    here.require_seconds("ada", 0.9)
    there.enter("ada", tasks=1)
    there.require_seconds("ada", 0.9)
    refused(there, "require_seconds", "ada", 1.1)
    there.leave("ada", tasks=1, cpu_seconds=2.0)
    there.write()
    error = refused(here, "enter", "ada", tasks=1)
    assert "cpu_seconds_per_day = 10" in error.message
    assert error.hint is not None
    assert "2026-12-02T00:00:00Z" in error.hint
    here.spend("ada", 600)
    there.spend("ada", 300)
    refused(there, "spend", "ada", 400)
    refused(here, "spend", "ada", 400)
    now = NOON + datetime.timedelta(days=1)
    here.enter("ada", tasks=1)
    here.spend("ada", 1000)
    refused(here, "spend", "ada", 1)


def test_egress_is_exact_whatever_was_written_down_ahead() -> None:
    quotas = Quotas(Registry(None), QuotasSection(egress_per_day=64_000), "north")
    for _ in range(64):
        quotas.spend("ada", 1000)
    refused(quotas, "spend", "ada", 1)
    [line] = [each for each in quotas.usage("ada").lines if each.name == "egress_per_day"]
    assert (line.used, line.limit) == (64_000, 64_000)


def test_the_late_small_one_comes_soon() -> None:
    share = FairShare()
    large = share.lay_out("ada", 1_000_000, 0.1)
    share.reached(large(50_000))
    small = share.lay_out("bo", 10, 0.1)
    assert large(49_990) <= small(0) <= small(9) <= large(50_010)
    # What ada asks for next comes behind what she has.
    assert share.lay_out("ada", 1, 0.1)(0) >= large(999_999)
    # Order within a job is kept.
    assert [large(n) for n in range(100)] == sorted(large(n) for n in range(100))


@pytest.fixture(scope="module")
def site() -> Iterator[LocalFederation]:
    quotas = {
        "concurrent_jobs": 2,
        "result_bytes": 1000,
        "egress_per_day": 4000,
        "cpu_seconds_per_day": 100_000,
    }
    north = {"datasets": {"a1b": {"path": dataset()}}, "quotas": quotas}
    with LocalFederation({"north": north}, threads_per_worker=1) as running:
        yield running


def caller(site: LocalFederation, subject: str) -> Caller:
    return Caller(site, "north", site.new_token("north", subject))


async def test_a_site_refuses_what_is_over_a_quota(site: LocalFederation) -> None:
    ada = caller(site, "ada")
    version = await ada.version("a1b")
    graph = graphs.chunk_sums(version)
    _, last = await ada.run(graph, 0)
    assert isinstance(last, Failure)
    assert last.reason == "quota_exceeded"
    assert "result_bytes" in last.message
    for _ in range(15):
        _, last = await ada.run(graph, graph.tasks - 1)
        if not isinstance(last, Finished):
            break
        await asyncio.sleep(0)
    _, last = await ada.run(graph, 4, 5, 6)
    params = {"version": version, "index": "[[0, 4, null], [null, null, null], 0]"}
    statuses = [
        (await ada.read("GET", "/datasets/a1b/variables/air", params=params))[0] for _ in range(30)
    ]
    assert statuses[-1] == 429
    told = {line["name"]: line["used"] for line in (await ada.json("/usage"))["lines"]}
    assert told["egress_per_day"] <= 4000
    # Nobody else is bound by it.
    _, last = await caller(site, "bo").run(graph, graph.tasks - 1)
    assert isinstance(last, Finished)


async def test_one_job_too_many(site: LocalFederation) -> None:
    cyd = caller(site, "cyd")
    running = [cyd.events(submission(graphs.slow_graph(7000 + n, 50), 50)) for n in range(2)]
    for events in running:
        event, _ = await anext(events)
        assert isinstance(event, Accepted)
    body = submission(graphs.slow_graph(7100, 1), 1)
    status, failure = await cyd.refused("POST", "/jobs", data=body)
    assert (status, failure.reason) == (429, "quota_exceeded")
    for events in running:
        await events.aclose()
    await asyncio.to_thread(cyd.wait_until_idle)
    async with asyncio.timeout(60):
        while (await cyd.json("/usage"))["lines"][0]["used"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    _, last = await cyd.run(graphs.slow_graph(7200, 1), 1)
    assert isinstance(last, Finished)


async def test_reads_wait_for_one_another(site: LocalFederation) -> None:
    ivy = caller(site, "ivy")
    version, path = await ivy.version("a1b"), "/datasets/a1b/variables/air"
    asked = [{"version": version, "index": f"[{number}, 0, 0]"} for number in range(12)]
    found = await asyncio.gather(*(ivy.read("GET", path, params=params) for params in asked))
    assert [body for status, body in found if status != 200] == []


def quick_tasks(first: int, count: int) -> Graph:
    """Many tasks of a hundredth of a second or so, and one that takes all of them."""
    inverse = template(
        call(
            "numpy.linalg.inv",
            call("operator.add", call("numpy.eye", Number(400)), Integer()),
        )
    )
    largest = template(call("numpy.max", Reference()))
    collect = template(call("builtins.sum", List(tuple(Reference() for _ in range(count)))))
    return Graph(
        templates=(inverse, largest, collect),
        blocks=(
            block(0, first + np.arange(count)),
            block(1, np.arange(count)),
            block(2, *range(count, 2 * count)),
        ),
    )


async def test_a_million_tasks_of_one_do_not_starve_ten_of_another(site: LocalFederation) -> None:
    dee, eve = caller(site, "dee"), caller(site, "eve")
    large = dee.events(submission(quick_tasks(10_000, 4000), 8000))
    event, _ = await anext(large)
    assert isinstance(event, Accepted)
    _, last = await eve.run(quick_tasks(90_000, 10), 20)
    assert isinstance(last, Finished), last
    done = dee.on_scheduler(_done)
    await large.aclose()
    # Without shares, all of the other's came first.
    assert done < 4000
    await asyncio.to_thread(dee.wait_until_idle)


def _done(dask_scheduler: object) -> int:
    tasks = dask_scheduler.tasks.values()  # type: ignore[attr-defined]
    return sum(task.state == "memory" for task in tasks)


def test_the_user_sees_what_is_used(site: LocalFederation) -> None:
    token = {"north": site.new_token("north", "fay")}
    with FederatedClient(site.addresses, token=token, verify=site.verify) as fed:
        before = fed.usage()["north"]
        assert before.jobs_today == 0
        fed.open_dataset("north/a1b", chunks={}).air.mean("time").compute()
        after = fed.usage("north")["north"]
        shown = fed.usage("north")
    assert after.jobs_today == 1
    assert "cpu_seconds_per_day" in repr(shown)
    assert " s " in repr(shown)
    assert "3.91 kiB" in shown._repr_html_()
    egress = {line.name: line.used for line in after.lines}["egress_per_day"]
    assert 240 <= egress < 400


async def test_a_job_that_uses_up_the_day_ends(site: LocalFederation) -> None:
    gil = caller(site, "gil")
    config = site._configs["north"]
    registry = Registry(config.site.state / "site.db")
    elsewhere = Quotas(registry, config.quotas, "north")
    owner = f"{config.token_issuer}\ngil"
    last = None
    async for event, _ in gil.events(submission(graphs.slow_graph(50_000, 1500), 1500)):
        last = event
        if isinstance(event, Accepted):
            elsewhere.enter(owner, tasks=1)
            elsewhere.leave(owner, tasks=1, cpu_seconds=99_999.9)
            elsewhere.write()
    registry.close()
    assert isinstance(last, Failure)
    assert last.reason == "quota_exceeded"
    await asyncio.to_thread(gil.wait_until_idle)


async def test_held_results_count_when_they_leave(site: LocalFederation) -> None:
    hal = caller(site, "hal")
    graph = graphs.chunk_sums(await hal.version("a1b"))
    _, last = await hal.run(graph, Output(task=graph.tasks - 1, release=False, hold=True))
    assert isinstance(last, Finished)
    used = (await hal.json("/usage"))["lines"][3]["used"]
    assert used == 0
    assert (await hal.read("GET", f"/leases/{last.lease}/0"))[0] == 200
    assert (await hal.json("/usage"))["lines"][3]["used"] > 200
    await hal.read("DELETE", f"/leases/{last.lease}")
