"""Operations that look at their arguments before they take memory; what tasks really call.

One task may call many operations.  What they gave and the task still holds on to counts
together, so that a thousand results of a permitted size are not permitted either.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from distributed.utils import thread_state  # type: ignore[attr-defined]

from federated_dask.protocol.bounded import most_bytes, over
from federated_dask.protocol.call_arguments import dtype_place
from federated_dask.protocol.operations import OperationTable

__all__ = ["Guard", "guarded", "unguarded"]

WATCHED = 16 * 1024
"""Bytes of a result from which it is counted; fewer would cost more than they are worth."""


class Guard:
    """An operation that is called only where a task can take no more than a limit by it.

    Parameters
    ----------
    name : str
        Its name in the operation table.
    function : callable
        What the table holds under that name.
    limit : int
        Bytes.

    Examples
    --------
    >>> import numpy as np
    >>> ones = Guard("numpy.ones", np.ones, 1000)
    >>> ones(2)
    array([1., 1.])
    >>> ones((10**6, 10**6))
    Traceback (most recent call last):
    federated_dask.errors.RequestRefused: numpy.ones might take more memory than the 1000 bytes ...
    """

    __slots__ = ("function", "limit", "name", "place")

    def __init__(self, name: str, function: Callable[..., Any], limit: int) -> None:
        self.name = name
        self.function = function
        self.limit = limit
        self.place = dtype_place(function)

    @property
    def __name__(self) -> str:
        """Name of the function, which Dask looks at (that of `argmin`, for one)."""
        return str(getattr(self.function, "__name__", self.name.rpartition(".")[2]))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the operation, or refuse to."""
        meter = _meter()
        if meter.live + most_bytes(self.name, args, kwargs, self.place) > self.limit:
            raise over(self.name, self.limit)
        result = self.function(*args, **kwargs)
        if isinstance(result, np.ndarray):
            meter.watch(result)
        elif hasattr(result, "nnz") and hasattr(result, "coords"):
            # A sparse array of the package `sparse`.
            meter.watch(result.data)
            meter.watch(result.coords)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return (Guard, (self.name, self.function, self.limit))

    def __repr__(self) -> str:
        return f"<Guard of {self.name}>"


class _Meter:
    """What a task holds of the results of its operations."""

    def __init__(self, key: object) -> None:
        self.key = key
        self.live = 0
        self._watched: dict[int, weakref.ref[np.ndarray]] = {}

    def watch(self, result: np.ndarray) -> None:
        """Count an array for as long as it is there; views count as what they look at."""
        while isinstance(result.base, np.ndarray):
            result = result.base
        name, size = id(result), result.nbytes
        if size < WATCHED or name in self._watched:
            return

        def gone(_: object) -> None:
            self.live -= size
            self._watched.pop(name, None)

        self._watched[name] = weakref.ref(result, gone)
        self.live += size


_here = threading.local()


def _meter() -> _Meter:
    """Give the meter of the task that runs in this thread."""
    key = getattr(thread_state, "key", None)
    meter: _Meter | None = getattr(_here, "meter", None)
    if meter is None or meter.key != key:
        meter = _here.meter = _Meter(key)
    return meter


def guarded(table: OperationTable, name: str, limit: int | None) -> Callable[..., Any]:
    """Give the operation of a name, with its guard where there is a limit.

    Types stay what they are: they also stand for data types.
    """
    function = table.lookup(name)
    if limit is None or (isinstance(function, type) and name not in MAKING):
        return function
    return _guard(name, function, limit)


MAKING = frozenset({"builtins.dict", "builtins.list", "builtins.tuple"})
"""Types that make as many objects of Python as their argument has elements."""


@functools.lru_cache(maxsize=4096)
def _guard(name: str, function: Callable[..., Any], limit: int) -> Guard:
    # The same object for all tasks: pickled with them, it is written once.
    return Guard(name, function, limit)


def unguarded(function: object) -> object:
    """Give what a guard guards, and anything else as it is."""
    return function.function if isinstance(function, Guard) else function
