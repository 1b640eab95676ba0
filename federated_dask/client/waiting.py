"""Waiting for several futures: `as_completed`, `wait` and `progress`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import html
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Literal, NamedTuple

from dask.base import is_dask_collection
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from federated_dask.client.future import FederatedFuture
from federated_dask.errors import ConfigurationError, Reason, SiteUnavailable

__all__ = ["DoneAndNotDone", "as_completed", "checked_futures", "progress", "wait"]

LOOK_SECONDS = 0.1
"""How often bars are drawn anew."""
MOST_BARS = 30
"""Futures that have a bar of their own; more share one."""


class DoneAndNotDone(NamedTuple):
    """What `wait` gives."""

    done: set[FederatedFuture[Any]]
    not_done: set[FederatedFuture[Any]]


class as_completed:  # noqa: N801  # as in distributed
    """Futures in the order in which they end; as `distributed.as_completed`.

    Parameters
    ----------
    futures : iterable of FederatedFuture
        What to wait for; `add` adds others later.
    with_results : bool, default False
        Give pairs of a future and its result, and raise what a future raised.

    Raises
    ------
    ConfigurationError
        If what is to be waited for is no future.

    Examples
    --------
    Futures come from ``fed.map("north/trend", names)``; here they are made by hand:

    >>> from concurrent.futures import Future
    >>> slow, fast = Future(), Future()
    >>> futures = [FederatedFuture(slow), FederatedFuture(fast)]
    >>> completed = as_completed(futures, with_results=True)
    >>> fast.set_result("fast")
    >>> slow.set_result("slow")
    >>> [result for future, result in completed]
    ['fast', 'slow']

    In a coroutine: ``async for future in as_completed(futures)``.
    """

    def __init__(
        self, futures: Iterable[FederatedFuture[Any]] = (), *, with_results: bool = False
    ) -> None:
        self._changed = threading.Condition()
        self._ended: deque[FederatedFuture[Any]] = deque()
        self._running = 0
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._with_results = with_results
        self.update(futures)

    def add(self, future: FederatedFuture[Any]) -> None:
        """Wait for another future as well."""
        with self._changed:
            self._running += 1
        future._future.add_done_callback(lambda _: self._end(future))

    def update(self, futures: Iterable[FederatedFuture[Any]]) -> None:
        """Wait for other futures as well."""
        for future in checked_futures(futures):
            self.add(future)

    def count(self) -> int:
        """Count the futures that were not given yet."""
        with self._changed:
            return self._running + len(self._ended)

    def _end(self, future: FederatedFuture[Any]) -> None:
        with self._changed:
            self._running -= 1
            self._ended.append(future)
            waiting, self._waiting = self._waiting, []
            self._changed.notify()
        for loop, waiter in waiting:
            # Whose loop has ended waits no more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, waiter)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._changed:
            while not self._ended:
                if not self._running:
                    raise StopIteration
                self._changed.wait()
            future = self._ended.popleft()
        return (future, future.result()) if self._with_results else future

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._ended:
                    future = self._ended.popleft()
                    break
                if not self._running:
                    raise StopAsyncIteration
                waiter: asyncio.Future[None] = loop.create_future()
                self._waiting.append((loop, waiter))
            await waiter
        return (future, await future) if self._with_results else future


def checked_futures(futures: Any) -> list[FederatedFuture[Any]]:
    """List futures; refuse what is none."""
    several = [futures] if isinstance(futures, FederatedFuture) else futures
    if is_dask_collection(several):
        raise ConfigurationError(
            "A collection is nothing to wait for: persist() has waited, and compute() does.",
            hint="fed.compute(collection) gives a future.",
        )
    several = list(several)
    for each in several:
        if not isinstance(each, FederatedFuture):
            raise ConfigurationError(
                f"An object of type {type(each).__name__} is no future of a FederatedClient.",
                hint="fed.submit, fed.map and fed.compute give futures.",
            )
    return several


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def wait(
    futures: FederatedFuture[Any] | Iterable[FederatedFuture[Any]],
    timeout: float | None = None,
    return_when: Literal["ALL_COMPLETED", "FIRST_COMPLETED"] = "ALL_COMPLETED",
) -> DoneAndNotDone:
    """Wait until futures have ended, in whatever way; as `distributed.wait`.

    Parameters
    ----------
    futures : FederatedFuture or iterable of them
        What to wait for.
    timeout : float, optional
        Seconds to wait.
    return_when : {"ALL_COMPLETED", "FIRST_COMPLETED"}, default "ALL_COMPLETED"
        When to come back.

    Returns
    -------
    DoneAndNotDone
        Sets ``done`` and ``not_done``.

    Raises
    ------
    SiteUnavailable
        With reason ``timed_out`` if that does not happen in time.
    ConfigurationError
        If `return_when` is anything else, or what is to be waited for is no future.

    Examples
    --------
    >>> from concurrent.futures import Future
    >>> inner = Future()
    >>> futures = [FederatedFuture(inner), FederatedFuture(Future())]
    >>> inner.set_result(2.5)
    >>> done, not_done = wait(futures, timeout=1, return_when="FIRST_COMPLETED")
    >>> len(done), len(not_done)
    (1, 1)
    """
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED"):
        raise ConfigurationError("return_when is 'ALL_COMPLETED' or 'FIRST_COMPLETED'.")
    several = checked_futures(futures)
    inner = [future._future for future in several]
    enough = all if return_when == "ALL_COMPLETED" else any
    changed = threading.Condition()

    def look(_: object) -> None:
        with changed:
            changed.notify_all()

    for each in set(inner):
        each.add_done_callback(look)
    with changed:
        in_time = not inner or changed.wait_for(
            lambda: enough(each.done() for each in inner), timeout
        )
    ended = {future for future, each in zip(several, inner, strict=True) if each.done()}
    left = set(several) - ended
    if not in_time:
        raise SiteUnavailable(
            f"{len(left)} of {len(set(inner))} futures did not end within {timeout:g} seconds.",
            reason=Reason.TIMED_OUT,
            hint="Wait longer, or cancel() them.",
        )
    return DoneAndNotDone(ended, left)


def progress(
    *futures: FederatedFuture[Any] | Iterable[FederatedFuture[Any]], notebook: bool | None = None
) -> None:
    """Show how far calls are: bars in a terminal or notebook.

    Parameters
    ----------
    *futures : FederatedFuture or iterable of them
        What to look at.
    notebook : bool, optional
        Show HTML in a notebook, which goes on by itself, or bars in the terminal
        until all have ended; by default what fits where this runs.

    Raises
    ------
    ConfigurationError
        If what is to be looked at is no future.

    Examples
    --------
    >>> from concurrent.futures import Future
    >>> inner = Future()
    >>> inner.set_result(2.5)
    >>> progress([FederatedFuture(inner, label="north/trend")], notebook=False)
    """
    several: list[FederatedFuture[Any]] = []
    for each in futures:
        several += checked_futures(each)
    if Console().is_jupyter if notebook is None else notebook:
        _show_in_notebook(several)
    else:
        _show_in_terminal(several)


class _Line(NamedTuple):
    """What there is to show of one future, or of several."""

    label: str
    fraction: float
    message: str
    status: str


def _lines(futures: list[FederatedFuture[Any]]) -> list[_Line]:
    if len(futures) > MOST_BARS:
        done = sum(future.done() for future in futures)
        failed = sum(future.status in ("error", "cancelled") for future in futures)
        fraction = sum(1.0 if each.done() else each.progress.fraction for each in futures)
        message = f"{done} of {len(futures)}" + (f", {failed} failed" if failed else "")
        status = "pending" if done < len(futures) else "error" if failed else "finished"
        return [_Line("calls", fraction / len(futures), message, status)]
    found = []
    for future in futures:
        status, how_far = future.status, future.progress
        message = how_far.message if status in ("pending", "finished") else status
        found.append(_Line(future.label, how_far.fraction, message, status))
    return found


def _show_in_terminal(futures: list[FederatedFuture[Any]]) -> None:
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[message]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True, force_jupyter=False),
        refresh_per_second=1 / LOOK_SECONDS,
    )
    with bars:
        shown = [bars.add_task(line.label, total=1.0, message="") for line in _lines(futures)]
        while True:
            ended = all(future.done() for future in futures)
            for number, line in zip(shown, _lines(futures), strict=True):
                bars.update(number, completed=line.fraction, message=line.message)
                if line.status != "pending":
                    bars.stop_task(number)
            if ended:
                return
            running = [future._future for future in futures if not future.done()]
            concurrent.futures.wait(running, LOOK_SECONDS, "FIRST_COMPLETED")


def _show_in_notebook(futures: list[FederatedFuture[Any]]) -> None:
    from IPython.display import display

    shown = display(_Bars(futures), display_id=True)  # type: ignore[no-untyped-call]

    def follow() -> None:
        last = ""
        while shown is not None:
            ended = all(future.done() for future in futures)
            if (now := bars_as_html(futures)) != last:
                shown.update(_Bars(futures))
                last = now
            if ended:
                return
            time.sleep(LOOK_SECONDS)

    threading.Thread(target=follow, name="federated-dask-progress", daemon=True).start()


class _Bars:
    def __init__(self, futures: list[FederatedFuture[Any]]) -> None:
        self._futures = futures

    def __repr__(self) -> str:
        return "\n".join(f"{each.label} {each.fraction:.0%}" for each in _lines(self._futures))

    def _repr_html_(self) -> str:
        return bars_as_html(self._futures)


COLOURS = {"pending": "#3b82c4", "finished": "#3a9b5c", "error": "#c0392b", "cancelled": "#999"}


def bars_as_html(futures: list[FederatedFuture[Any]]) -> str:
    """Draw bars for a notebook."""
    rows = "".join(
        f"<tr><td><code>{html.escape(line.label)}</code></td><td><div "
        'style="width:16em;background:#8883;border-radius:4px"><div style="width:'
        f"{line.fraction:.0%};min-width:2px;height:1em;border-radius:4px;background:"
        f'{COLOURS[line.status]}"></div></div></td><td>{line.fraction:.0%}</td>'
        f"<td>{html.escape(line.message)}</td></tr>"
        for line in _lines(futures)
    )
    return f"<table>{rows}</table>"
