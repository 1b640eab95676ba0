"""Calls run once: what the scheduler does with one whose worker is gone.

Dask runs a task again when its worker is lost, while it runs or while its result lies
there.  That is right for chunks of arrays and wrong for functions that may write, send
or charge.  So the scheduler is told beforehand that such a task has failed often enough
already, and whatever else takes it back to its start finds another task in its place::

    processing ── worker lost ──► erred (KilledWorker)
        │ worker retired                  ┌─ raises WorkerLost, wherever it runs
        ▼                                 │
    released ── run_spec := lost ──► waiting ──► processing …
        ▲
    memory ── worker lost
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from dask._task_spec import Task

from federated_dask.errors import Reason, TaskFailed

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler

__all__ = ["ONCE", "is_once", "keep_from_running_again", "mark", "worker_lost"]

ONCE = "federated-once-"
"""Beginning of the keys of calls that must not run twice."""


def is_once(key: Key) -> bool:
    """Whether a task must not run twice.

    Examples
    --------
    >>> is_once("federated-once-trend-1f"), is_once(("sum", 0))
    (True, False)
    """
    return isinstance(key, str) and key.startswith(ONCE)


def mark(scheduler: Scheduler, keys: Iterable[Key]) -> None:
    """See to it that tasks fail with their worker; called when they arrive."""
    for key in keys:
        if is_once(key) and (task := scheduler.tasks.get(key)) is not None:
            task.suspicious = scheduler.allowed_failures


def keep_from_running_again(scheduler: Scheduler, key: Key, start: str, finish: str) -> None:
    """Put another task in the place of one that has begun; called at every transition."""
    if finish != "released" or start not in ("processing", "memory") or not is_once(key):
        return
    task = scheduler.tasks.get(key)
    if task is not None and task.run_spec is not None:
        task.run_spec = Task(key, _lost)


def worker_lost() -> TaskFailed:
    """Make the error of a call whose worker is gone."""
    return TaskFailed(
        "The worker that ran the function was lost.",
        reason=Reason.WORKER_LOST,
        hint="Whether the function had done its work is not known; it is not run again by itself.",
    )


def _lost() -> NoReturn:
    raise worker_lost()
