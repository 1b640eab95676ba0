"""Requests that `open_dataset` makes after connecting."""

from __future__ import annotations

import statistics
import time

import aiohttp

from benchmarks.result import Result
from federated_dask import FederatedClient
from federated_dask.demo.data import DATASETS
from site_plugins import LocalFederation

REPEATS = 20


def run() -> list[Result]:
    dataset = DATASETS[0]
    site = {
        "datasets": {
            dataset.name: {
                "path": dataset.original,
                "open_options": {"decode_timedelta": False},
            }
        }
    }
    requests = 0
    original = aiohttp.ClientSession._request

    async def counted(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal requests
        requests += 1
        return await original(self, *args, **kwargs)

    with LocalFederation({dataset.site: site}) as federation, FederatedClient(federation) as fed:
        started = time.perf_counter()
        fed.open_dataset(dataset.qualified_name)
        first = time.perf_counter() - started
        aiohttp.ClientSession._request = counted  # type: ignore[method-assign]
        seconds = []
        try:
            for _ in range(REPEATS):
                started = time.perf_counter()
                fed.open_dataset(dataset.qualified_name)
                seconds.append(time.perf_counter() - started)
        finally:
            aiohttp.ClientSession._request = original  # type: ignore[method-assign]
    return [
        Result("round trips per open_dataset", requests / REPEATS, "", 1.0),
        Result("first open", first * 1000, " ms"),
        Result("later opens, median", statistics.median(seconds) * 1000, " ms"),
    ]
