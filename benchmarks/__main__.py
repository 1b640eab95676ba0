"""Run the benchmarks that are named, or all of them."""

from __future__ import annotations

import importlib
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.result import Result

NAMES = ("bytes_crossing", "one_site", "open_dataset")


def main(names: list[str]) -> int:
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"No benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.")
        return 2
    console = Console()
    missed = 0
    for name in names or NAMES:
        started = time.perf_counter()
        results: list[Result] = importlib.import_module(f"benchmarks.{name}").run()
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
