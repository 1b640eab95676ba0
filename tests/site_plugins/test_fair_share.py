"""Priorities on a real scheduler, on which nothing runs meanwhile."""

import asyncio
import time

import dask
import numpy as np
from dask import delayed
from distributed import Client, LocalCluster

from site_plugins.fair_share import OWNER_ANNOTATION
from site_plugins.scheduler_plugin import SitePlugin


async def priorities(client: Client, owner: str, count: int) -> list[tuple[float, ...]]:
    """Submit tasks of an owner; their priorities in Dask's order."""
    seed = f"{owner}-{time.monotonic_ns()}"
    with dask.annotate(**{OWNER_ANNOTATION: owner}):
        futures = client.compute(
            [delayed(np.sqrt)(number, dask_key_name=f"{seed}-{number}") for number in range(count)],
            optimize_graph=False,
        )
    scheduler = client.cluster.scheduler
    async with asyncio.timeout(60):
        while any(future.key not in scheduler.tasks for future in futures):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    KEPT.extend(futures)
    return sorted(scheduler.tasks[future.key].priority for future in futures)


KEPT: list[object] = []
"""Futures, so that nothing is let go of."""


async def test_who_comes_late_with_little_is_among_the_first() -> None:
    async with (
        LocalCluster(
            n_workers=0, processes=False, asynchronous=True, dashboard_address=None
        ) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        await client.register_plugin(SitePlugin("north"))
        ada = await priorities(client, "ada", 1000)
        bo = await priorities(client, "bo", 10)
        # Nobody has run any of them: half a second each is what Dask expects.
        assert [each[0] for each in ada] == [number // 2 for number in range(1000)]
        assert [each[0] for each in bo] == [number // 2 for number in range(10)]
        order = sorted([*((each, "ada") for each in ada), *((each, "bo") for each in bo)])
        last = max(place for place, (_, owner) in enumerate(order) if owner == "bo")
        assert last < 25
        # More of ada's comes behind what she has; more of bo's behind his.
        assert min(await priorities(client, "ada", 10))[0] == 500
        assert min(await priorities(client, "bo", 10))[0] == 5
        # Tasks of nobody, the institute's own, keep Dask's priority.
        own = client.submit(np.sqrt, 4.0, key="own")
        async with asyncio.timeout(60):
            while "own" not in cluster.scheduler.tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert cluster.scheduler.tasks["own"].priority[0] == 0
        own.release()
        KEPT.clear()
