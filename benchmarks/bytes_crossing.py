"""Demo query (4): bytes that cross, against sites × size of the result."""

from __future__ import annotations

from benchmarks.result import Result
from federated_dask import FederatedClient
from federated_dask.demo.data import DATASETS
from federated_dask.demo.queries import Inputs, mixed_mean
from site_plugins import LocalFederation

TARGET = 1.2


def run() -> list[Result]:
    sites = {
        each.site: {
            "datasets": {
                each.name: {"path": each.original, "open_options": {"decode_timedelta": False}}
            }
        }
        for each in DATASETS
    }
    with LocalFederation(sites) as federation, FederatedClient(federation, cache_bytes=0) as fed:
        a1b, e1, sst = (each.qualified_name for each in DATASETS)
        opened = (
            fed.open_dataset(a1b, chunks={"time": 24}),
            fed.open_dataset(e1, chunks={"time": 24}),
            fed.open_dataset(sst),
        )
        result = mixed_mean(Inputs.of(*opened)).compute()
        run = fed.last_run
    assert run is not None
    size = result["mean"].nbytes
    down = sum(link.actual_bytes for link in run.links if link.end == "home")
    return [
        Result("result", size, " B"),
        Result("crossed, both ways", run.crossed_bytes, " B"),
        Result("crossed, to home only", down, " B"),
        Result("downloading the inputs", run.download_bytes, " B"),
        Result("crossed ÷ (2 sites × result)", run.crossed_bytes / (2 * size), "", TARGET),
    ]
