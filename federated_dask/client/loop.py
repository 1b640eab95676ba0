"""One background event loop per process, and the one way to block on it.

Everything of the client that waits for a site is written once, as coroutines.
Synchronous callers hand them to `sync`::

    any thread                        thread "federated-dask"
    sync(coroutine)  ──────────────►  task on the background loop
        blocks       ◄──────────────  result or exception
        Ctrl-C       ── cancel ────►  the coroutine cleans up, then
        KeyboardInterrupt again ◄───  the caller goes on

The loop starts on first use.  After a fork the child starts its own: threads do
not survive a fork, and two processes must not share one set of sockets.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from federated_dask.client.tracebacks import without_coroutines

__all__ = ["at_exit", "background_loop", "start", "sync"]

T = TypeVar("T")

CLEANUP_SECONDS = 5.0
"""How long an interrupted caller waits for its coroutine to clean up."""

WAIT_SECONDS = 0.5

LAST_REQUESTS_SECONDS = 1.0
"""How long the process's end waits for requests that are still under way."""


class _Background:
    """An event loop and the daemon thread that runs it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="federated-dask", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            # What was started last is often a request that lets go of something at a site.
            _, others = await asyncio.wait(others, timeout=LAST_REQUESTS_SECONDS)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for callback in _callbacks:
            await callback()
        await self.loop.shutdown_asyncgens()


# Reentrant: a finalizer that starts a coroutine may run while its thread holds the lock.
_lock = threading.RLock()
_background: _Background | None = None
_ended = False
_callbacks: list[Callable[[], Coroutine[Any, Any, None]]] = []


def background_loop() -> asyncio.AbstractEventLoop:
    """Give this process's background loop; start it where there is none yet.

    Raises
    ------
    RuntimeError
        If the process is ending.
    """
    return _get().loop


def _get() -> _Background:
    global _background
    with _lock:
        if _ended:
            raise RuntimeError("The process is ending; nothing can be asked of a site any more.")
        if _background is None or _background.pid != os.getpid():
            _background = _Background()
        return _background


def at_exit(callback: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Have a coroutine function run on the background loop before the process ends."""
    _callbacks.append(callback)


def start(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start a coroutine on the background loop.

    It sees the context variables of the caller.

    Returns
    -------
    concurrent.futures.Future
        Its result.  Cancelling it cancels the coroutine.

    Raises
    ------
    RuntimeError
        If the process is ending.
    """
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    except RuntimeError:
        coroutine.close()
        raise


def sync(coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Run a coroutine on the background loop and wait for its result.

    Parameters
    ----------
    coroutine : coroutine
        What to run.  It sees the context variables of the caller.
    timeout : float, optional
        Seconds after which it is cancelled; without it the coroutine's own
        deadlines hold.

    Returns
    -------
    object
        What the coroutine returns.

    Raises
    ------
    TimeoutError
        If it takes longer than `timeout`.
    RuntimeError
        If called from a coroutine of the background loop, which would wait for
        itself, or if the process is ending.
    KeyboardInterrupt
        On Ctrl-C, after the coroutine was cancelled and cleaned up.

    Examples
    --------
    >>> async def double(number):
    ...     return 2 * number
    >>> sync(double(21))
    42
    """
    try:
        background = _get()
    except RuntimeError:
        coroutine.close()
        raise
    if threading.current_thread() is background.thread:
        coroutine.close()
        raise RuntimeError(
            "This call waits for the network and was made from a coroutine of the same event "
            "loop, so it would wait for itself. Use the asynchronous form, or another thread."
        )
    cleaned_up = threading.Event()
    task: asyncio.Task[Any] | None = None
    abandoned = False

    async def run() -> T:
        nonlocal task
        task = asyncio.current_task()
        try:
            if abandoned:
                raise asyncio.CancelledError
            async with asyncio.timeout(timeout):
                return await coroutine
        finally:
            cleaned_up.set()

    def abandon() -> None:
        nonlocal abandoned
        abandoned = True
        if task is not None:
            task.cancel()
        else:
            coroutine.close()
            cleaned_up.set()

    future, error = None, None
    try:
        future = asyncio.run_coroutine_threadsafe(run(), background.loop)
        # An interrupt that comes just before a wait does not end it; so no wait is long.
        while not concurrent.futures.wait([future], WAIT_SECONDS).done:
            pass
        if (error := future.exception()) is not None:
            raise without_coroutines(error)
        return future.result()
    except (KeyboardInterrupt, SystemExit):
        # The interrupt may have come before there was a future, so that is not what is cancelled.
        background.loop.call_soon_threadsafe(abandon)
        cleaned_up.wait(CLEANUP_SECONDS)
        raise
    finally:
        # The exception's traceback holds this frame, and the frame would hold the exception.
        future = error = None


def _after_fork() -> None:
    # Another thread of the parent may have held the lock; nobody here would release it.
    global _lock, _background
    _lock = threading.RLock()
    _background = None


def _shutdown() -> None:
    global _background, _ended
    with _lock:
        background, _background, _ended = _background, None, True
    if background is None or background.pid != os.getpid():
        return
    future = asyncio.run_coroutine_threadsafe(background.stop(), background.loop)
    concurrent.futures.wait([future], CLEANUP_SECONDS)
    background.loop.call_soon_threadsafe(background.loop.stop)
    background.thread.join(CLEANUP_SECONDS)
    if not background.thread.is_alive():
        background.loop.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_shutdown)
