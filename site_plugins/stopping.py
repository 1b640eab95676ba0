"""Stopping calls on a worker: those that were cancelled, and those that take too long.

A thread of Python cannot be ended from outside.  What can be done is to raise an exception
in it, which it meets between two steps of Python::

    caller gone ──► scheduler ──► worker: task cancelled ──► CallPlugin ── CallStopped ──► thread
    too long ─────────────────────────────────────────────────┘

It is raised again until the thread has left the function, so that a function that catches
it does not go on for ever; with pauses, so that one that tidies up can do so.  One that
waits in compiled code meets it when it comes back from there; until then its result is
given up already, and only the thread is taken.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin
from tornado.ioloop import PeriodicCallback

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.worker import Worker

__all__ = ["CALL_TOPIC", "CallPlugin", "CallStopped", "plugin_of"]

logger = logging.getLogger(__name__)

CALL_TOPIC = "federated-call"
"""Topic of the events by which workers tell how calls go on."""
CALL_PREFIX = "federated-"
LOOK_SECONDS = 0.25
TIDY_SECONDS = 2.0
"""How long a function has after each exception: its `finally` would be interrupted too."""


class CallStopped(BaseException):
    """Raised in the thread of a call that is to end; no `except Exception` catches it."""


class Running:
    """One running call."""

    def __init__(self, call: str, seconds: float) -> None:
        self.call = call
        self.thread = threading.get_ident()
        self.end = time.monotonic() + seconds
        self.overdue = False
        self.cancelled = False
        self.next_raise = -math.inf


class CallPlugin(WorkerPlugin):
    """Knows the calls that a worker runs, and stops them."""

    name = "federated-calls"

    def setup(self, worker: Worker) -> None:
        """Begin to look after the worker's calls; called by Dask."""
        self._worker = worker
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._pins: dict[Key, Any] = {}
        worker.periodic_callbacks[self.name] = PeriodicCallback(self._look, LOOK_SECONDS * 1000)
        worker.periodic_callbacks[self.name].start()

    def teardown(self, worker: Worker) -> None:
        """Stop all; called by Dask."""
        worker.periodic_callbacks.pop(self.name).stop()
        self._pins.clear()

    def enter(self, key: str, call: str, seconds: float) -> Running:
        """Say that this thread runs a call from now on."""
        running = Running(call, seconds)
        with self._lock:
            self._running[key] = running
        return running

    def leave(self, key: str) -> None:
        """Say that this thread runs it no more; nothing is raised in it from here on."""
        while True:
            try:
                with self._lock:
                    running = self._running.pop(key, None)
                    if running is not None:
                        # What was raised and not yet met is taken back.
                        _raise_in(running.thread, None)
                return
            except CallStopped:
                # Met on the way here.
                continue

    def pin(self, key: Key, kept: Any) -> None:
        """Keep something as long as the worker has the result of a task."""
        self._pins[key] = kept

    def transition(self, key: Key, start: str, finish: str, **kwargs: Any) -> None:
        """Stop what was cancelled; called by the worker."""
        if not isinstance(key, str) or not key.startswith(CALL_PREFIX):
            return
        if start == "memory" or finish in ("forgotten", "error"):
            self._pins.pop(key, None)
        if start in ("executing", "long-running") and finish == "released":
            running = self._running.get(key)
            if running is not None:
                running.cancelled = True
                self._stop(key)

    def _look(self) -> None:
        now = time.monotonic()
        for key, running in list(self._running.items()):
            if not running.overdue and now > running.end:
                running.overdue = True
                self._worker.log_event(CALL_TOPIC, {"call": running.call, "overdue": True})
            if running.overdue or running.cancelled:
                self._stop(key)

    def _stop(self, key: str) -> None:
        with self._lock:
            running = self._running.get(key)
            now = time.monotonic()
            if running is not None and now >= running.next_raise:
                running.next_raise = now + TIDY_SECONDS
                _raise_in(running.thread, CallStopped)


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    raised = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


def plugin_of(worker: Worker) -> CallPlugin:
    """Give the plugin of a worker; the scheduler's `SitePlugin` registers it."""
    plugin = worker.plugins.get(CallPlugin.name)
    if not isinstance(plugin, CallPlugin):
        raise RuntimeError("the worker has not been told of calls: is its scheduler a site's?")
    return plugin
