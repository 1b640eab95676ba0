"""Python's garbage collector, out of the way."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["without_collection"]

T = TypeVar("T")


class _Rest:
    """The collector is off from the first that begins to the last that ends.

    Counted rather than one at a time: who plans may wait for a site that runs in another
    thread of this process and builds a graph there, in the middle of the plan.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._running:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            if not self._running and self._was_enabled:
                gc.enable()


_rest = _Rest()


def without_collection(function: Callable[[], T]) -> T:
    """Call a function that makes many objects and no garbage.

    Python's collector would look at all of them again and again. Measured, for each
    task: planning the mean of 10,000 chunks takes 110 µs with it and 57 without, and
    building a large graph at a site 30 and 7.

    Examples
    --------
    >>> without_collection(gc.isenabled), gc.isenabled()
    (False, True)
    """
    with _rest:
        return function()
