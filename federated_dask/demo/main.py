"""``federated-dask demo``: start three sites, compute over all of them, check every number."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.utils import format_bytes
from rich.console import Console
from rich.table import Table

from federated_dask.client.federated_client import FederatedClient
from federated_dask.client.run_record import RunRecord
from federated_dask.demo.calls import CALLS, Call
from federated_dask.demo.data import DATASETS, open_local, prepare
from federated_dask.demo.picture import draw
from federated_dask.demo.queries import QUERIES, Inputs, Query
from federated_dask.demo.sites import Federation, running_sites
from federated_dask.planner.explanation import Explanation
from federated_dask.planner.sources import HOME

__all__ = ["run_demo"]

TOLERANCE = 1e-3
"""Kelvin. float32 holds 300 K to 3e-5 K, and sums over years in another order differ by more."""

SNIPPET = """\
import json
from federated_dask import FederatedClient

sites = json.load(open({path!r}))
with FederatedClient(sites["addresses"], token=sites["token"], verify=sites["verify"]) as fed:
    print(fed.datasets)
    a1b = fed.open_dataset("north/a1b").air_temperature
    e1 = fed.open_dataset("south/e1").air_temperature
    print((a1b.max("time") - e1.max("time")).mean().compute())
    print(fed.last_run)
"""


@dataclass
class Outcome:
    """One query: what it gave, whether that is right, and what it moved."""

    query: Query
    result: xr.Dataset
    max_abs_error: float
    ok: bool
    run: RunRecord


@dataclass
class CallOutcome:
    """One call of a published function: whether it gave what plain xarray gives."""

    call: Call
    max_abs_error: float
    ok: bool


def run_demo(directory: Path, *, keep: bool = False, report: Path | None = None) -> bool:
    """Run the demo.

    Parameters
    ----------
    directory : Path
        Where prepared data and the picture go.
    keep : bool
        Leave the sites up until Ctrl-C.
    report : Path, optional
        JSON file to write.

    Returns
    -------
    bool
        Whether every number agrees with the local computation.
    """
    console = Console(highlight=False)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="federated-dask-demo-") as temporary:
        with console.status("Preparing data") as status:
            datasets = [(each, prepare(each, directory / "data")) for each in DATASETS]
        console.print("[bold]Starting three sites[/], each with its own Dask cluster and endpoint")
        status = console.status("")
        status.start()
        try:
            with running_sites(Path(temporary), datasets, status.update) as federation:
                status.stop()
                outcomes, calls = _computed(console, federation)
                picture = directory / "demo.png"
                draw({each.query.name: each.result for each in outcomes}, picture)
                ok = all(each.ok for each in outcomes) and all(each.ok for each in calls)
                _conclude(console, outcomes, calls, picture)
                if report is not None:
                    report.write_text(
                        json.dumps(_report(outcomes, calls, federation, picture), indent=2)
                    )
                if keep:
                    _wait(console, federation, Path(temporary) / "federation.json")
        finally:
            status.stop()
    return ok


def _computed(console: Console, federation: Federation) -> tuple[list[Outcome], list[CallOutcome]]:
    for server in federation.servers:
        console.print(f"  {server.name:<6} {server.address}  (process {server.process_id})")
    local = Inputs.of(*(open_local(dataset) for dataset in DATASETS))
    with FederatedClient(federation) as fed:
        opened = [fed.open_dataset(each.qualified_name, chunks={}) for each in DATASETS]
        remote = Inputs.of(*opened)
        outcomes = [_run(console, fed, query, remote, local) for query in QUERIES]
        calls = [_call(console, fed, call, remote, local) for call in CALLS]
        return outcomes, calls


def _call(
    console: Console, fed: FederatedClient, call: Call, remote: Inputs, local: Inputs
) -> CallOutcome:
    console.print(f"\n[bold]A published function:[/] {call.title}")
    with console.status("The site runs it"):
        result = call.taken(call.begin(fed, remote).result())
    with console.status("Computing the same from local files"):
        expected = call.expected(local).transpose(*result.dims)
    # A value that is missing on one side only is a difference.
    ok = result.shape == expected.shape and np.allclose(
        result.values, expected.values, rtol=0, atol=call.tolerance, equal_nan=True
    )
    error = float(np.nanmax(np.abs(result.values - expected.values))) if ok else np.inf
    mark = "[green]✓[/] agrees with" if ok else "[red]✗ differs from[/]"
    console.print(f"  {mark} plain local xarray: largest difference {error:.2g}")
    return CallOutcome(call, error, ok)


def _run(
    console: Console, fed: FederatedClient, query: Query, remote: Inputs, local: Inputs
) -> Outcome:
    console.print(f"\n[bold]{query.title}[/]")
    with console.status("Planning, and computing at the sites"):
        expression = query.expression(remote)
        explanation = fed.explain(expression)
        result = expression.compute()
        assert fed.last_run is not None  # noqa: S101
        run = fed.last_run
    with console.status("Computing the same from local files"):
        expected = query.expression(local).compute(scheduler="threads")
    error = max(
        float(np.nanmax(np.abs(result[name] - expected[name]))) for name in expected.data_vars
    )
    ok = _same(result, expected)
    _show(console, explanation, run)
    mark = "[green]✓[/] agrees with" if ok else "[red]✗ differs from[/]"
    console.print(f"  {mark} plain local xarray: largest difference {error:.2g} K (float32)")
    return Outcome(query, result, error, ok, run)


def _same(result: xr.Dataset, expected: xr.Dataset) -> bool:
    try:
        xr.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)
    except AssertionError:
        return False
    return all(result[name].dtype == expected[name].dtype for name in expected.variables)


def _show(console: Console, explanation: Explanation, run: RunRecord) -> None:
    where = ", ".join(
        f"{place} {tasks} tasks" for place, tasks in explanation.tasks.items() if tasks
    )
    console.print(f"  ran at: {where}")
    for label, reason, count in explanation.reasons:
        console.print(f"  at home: {count} × {label}, because {reason}")
    table = Table("  from", "to", box=None, pad_edge=False, padding=(0, 2))
    table.add_column("predicted", justify="right")
    table.add_column("crossed", justify="right")
    for link in run.links:
        table.add_row(
            f"  {link.start}",
            link.end,
            format_bytes(link.predicted_bytes),
            format_bytes(link.actual_bytes),
        )
    console.print(table)
    console.print(
        f"  {format_bytes(run.crossed_bytes)} crossed; downloading the inputs would be "
        f"{format_bytes(run.download_bytes)}"
    )


def _conclude(
    console: Console, outcomes: Sequence[Outcome], calls: Sequence[CallOutcome], picture: Path
) -> None:
    crossed = sum(each.run.crossed_bytes for each in outcomes)
    download = sum(each.run.download_bytes for each in outcomes)
    right = [each.ok for each in outcomes] + [each.ok for each in calls]
    console.print(
        f"\n[bold]{sum(right)} of {len(right)} results agree with a plain local computation.[/] "
        f"{format_bytes(crossed)} crossed in all instead of {format_bytes(download)}."
    )
    console.print(f"Picture: {picture}")
    console.print("Data: iris-sample-data (Met Office), UK Open Government Licence")
    console.print(
        "To go on with the sites up: `federated-dask demo --keep` or `make demo ARGS=--keep`."
    )


def _report(
    outcomes: Sequence[Outcome],
    calls: Sequence[CallOutcome],
    federation: Federation,
    picture: Path,
) -> dict[str, Any]:
    predicted: Counter[tuple[str, str]] = Counter()
    actual: Counter[tuple[str, str]] = Counter()
    for each in outcomes:
        for link in each.run.links:
            predicted[link.start, link.end] += link.predicted_bytes
            actual[link.start, link.end] += link.actual_bytes
    return {
        "checks": [
            {"name": each.query.name, "max_abs_error": each.max_abs_error, "ok": each.ok}
            for each in outcomes
        ],
        "calls": [
            {"name": each.call.name, "max_abs_error": each.max_abs_error, "ok": each.ok}
            for each in calls
        ],
        "links": [
            {
                "from": start,
                "to": end,
                "predicted_bytes": predicted[start, end],
                "actual_bytes": actual[start, end],
            }
            for start, end in predicted
        ],
        "download_bytes": sum(each.run.download_bytes for each in outcomes),
        "sites": [
            {"name": server.name, "address": server.address, "pid": server.process_id}
            for server in federation.servers
        ],
        "picture": str(picture),
        "queries": [_query_report(each) for each in outcomes],
    }


def _query_report(outcome: Outcome) -> dict[str, Any]:
    run = outcome.run
    return {
        "name": outcome.query.name,
        "seconds": run.seconds,
        "result_bytes": int(outcome.result.nbytes),
        "crossed_bytes": run.crossed_bytes,
        "download_bytes": run.download_bytes,
        "tasks": {site: each.tasks for site, each in run.sites.items()},
        "links": [
            {
                "from": link.start,
                "to": link.end,
                "predicted_bytes": link.predicted_bytes,
                "actual_bytes": link.actual_bytes,
            }
            for link in run.links
            if HOME in (link.start, link.end)
        ],
    }


def _wait(console: Console, federation: Federation, path: Path) -> None:
    federation.save(path)
    console.print("\n[bold]The sites stay up.[/] Their Dask dashboards:")
    for server in federation.servers:
        console.print(f"  {server.name:<6} {server.dashboard_link or 'none'}")
    console.print("\nPaste this into Python:\n")
    print(SNIPPET.format(path=str(path)))
    console.print("Ctrl-C ends them.")
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        stop.wait()
    except KeyboardInterrupt:
        console.print("Stopping the sites")
    finally:
        signal.signal(signal.SIGTERM, previous)
