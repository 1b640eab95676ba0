"""Progress of a compute in the terminal or notebook."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["ProgressBars", "wants_bars"]

QUIET_SECONDS = 1.0
"""A compute that ends sooner shows nothing."""


def wants_bars() -> bool:
    """Say whether somebody is looking: a terminal or a notebook."""
    return sys.stderr.isatty() or Console().is_jupyter


class ProgressBars:
    """One bar per place, shown once a compute takes longer than a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, int]] = {}
        self._bars: Progress | None = None
        self._over = False

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            # Tasks at home may still end after their compute was given up.
            self._over = True
            if self._bars is not None:
                self._bars.stop()

    def update(self, place: str, done: int, total: int) -> None:
        """Show that `done` of `total` tasks at a place are done."""
        with self._lock:
            self._counts[place] = (done, total)
            if self._over:
                return
            if self._bars is None:
                if time.monotonic() - self._started < QUIET_SECONDS:
                    return
                self._bars = _make_bars()
                self._bars.start()
            known = {task.description: task.id for task in self._bars.tasks}
            for name, (finished, all_) in self._counts.items():
                if name not in known:
                    known[name] = self._bars.add_task(name, total=all_)
                self._bars.update(known[name], completed=finished, total=all_)


def _make_bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
