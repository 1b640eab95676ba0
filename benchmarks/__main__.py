"""Run the benchmarks that are named, or all of them."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.result import Result

NAMES = (
    "bytes_crossing",
    "calls",
    "one_site",
    "open_dataset",
    "placement_optimum",
    "planner_time",
    "predicted_bytes",
    "wire_cost",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; or all")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="take every N-th expression of the battery, and graphs N times as small",
    )
    parser.add_argument(
        "--dasf", action="store_true", help="measure calls against DASF too, in an own environment"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(NAMES)
    if unknown or options.every < 1:
        parser.print_usage()
        print(f"No benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.")
        return 2
    # In full, whatever the width of a terminal: tables are copied from here.
    console = Console(width=140)
    missed = 0
    for name in options.names or NAMES:
        started = time.perf_counter()
        run = importlib.import_module(f"benchmarks.{name}").run
        wanted = {"every": options.every, "dasf": options.dasf}
        known = inspect.signature(run).parameters
        results: list[Result] = run(**{key: wanted[key] for key in wanted if key in known})
        table = Table(title=f"{name} ({time.perf_counter() - started:.0f} s)", title_justify="left")
        table.add_column("measured")
        table.add_column("value", justify="right")
        table.add_column("target", justify="right")
        table.add_column("")
        for result in results:
            met = "" if result.met is None else "[green]met[/]" if result.met else "[red]missed[/]"
            missed += result.met is False
            table.add_row(result.what, result.value_text, result.target_text, met)
        console.print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
