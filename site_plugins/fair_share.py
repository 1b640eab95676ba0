"""Fair share of the workers between those who compute: start-time fair queueing.

Work of each owner is laid out on its own line of virtual time, one second of
work after the other, from where the workers are now or where its earlier work
ends, whichever is later::

    ada   ├──── a million tasks ─────────────────────────────────►
    now                 │
    bo                  ├─ ten tasks ─┤     run next, beside ada's of the same time

A task's priority is the second of virtual time in which it lies; within a
second, and for tasks of one owner throughout, Dask's own order holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler

__all__ = ["OWNER_ANNOTATION", "FairShare", "lay_out"]

OWNER_ANNOTATION = "federated_owner"
"""Annotation with which the endpoint marks whose tasks they are."""

UNKNOWN_SECONDS = 0.5
"""Taken for the duration of tasks of a kind that never ran, as Dask does."""
SHORTEST_SECONDS = 1e-4
MOST_OWNERS = 10_000


class FairShare:
    """Lays work out on virtual time.

    Examples
    --------
    >>> share = FairShare()
    >>> ada = share.lay_out("ada", tasks=1000, seconds=1.0)
    >>> ada(0), ada(999)
    (0, 999)
    >>> share.reached(100)
    >>> bo = share.lay_out("bo", tasks=10, seconds=1.0)
    >>> bo(0), bo(9)
    (100, 109)
    >>> share.lay_out("ada", tasks=1, seconds=1.0)(0)
    1000
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[str, float] = {}

    def lay_out(self, owner: str, tasks: int, seconds: float) -> Callable[[float], int]:
        """Lay out tasks of an owner behind those it has.

        Parameters
        ----------
        owner : str
            Whose work it is.
        tasks : int
            How many there are.
        seconds : float
            Expected mean duration of one; below 0 where it is unknown.

        Returns
        -------
        callable
            From a task's number in Dask's order to its second of virtual time.
        """
        seconds = UNKNOWN_SECONDS if seconds < 0 else max(seconds, SHORTEST_SECONDS)
        start = max(self._now, self._ends.get(owner, 0.0))
        self._ends[owner] = start + tasks * seconds
        if len(self._ends) > MOST_OWNERS:
            # Who has no work left begins where the workers are, remembered or not.
            self._ends = {name: end for name, end in self._ends.items() if end > self._now}
        return lambda number: int(start + number * seconds)

    def reached(self, second: int) -> None:
        """Note that what runs next lies in a second of virtual time."""
        self._now = max(self._now, float(second))


def lay_out(scheduler: Scheduler, share: FairShare, owner: str, keys: Iterable[Key]) -> None:
    """Set the priorities of an owner's new tasks; before the scheduler moves any of them."""
    tasks = [
        (task, task.priority)
        for task in map(scheduler.tasks.__getitem__, keys)
        # Those that somebody else's job has brought keep their place.
        if task.state == "released"
        and task.priority is not None
        and (task.annotations or {}).get(OWNER_ANNOTATION) == owner
    ]
    if not tasks:
        return
    if (second_now := _reached(scheduler)) is not None:
        share.reached(second_now)
    kinds = {task.prefix.name: task.prefix.duration_average for task, _ in tasks[::-97]}
    known = [seconds for seconds in kinds.values() if seconds >= 0]
    mean = sum(known) / len(known) if known else -1.0
    lowest = min(priority[-1] for _, priority in tasks)
    second = share.lay_out(owner, len(tasks), mean)
    for task, priority in tasks:
        task.priority = (second(priority[-1] - lowest), *priority[1:])


def _reached(scheduler: Scheduler) -> int | None:
    """Tell the second of virtual time of what runs next, or None where nothing waits."""
    if scheduler.queued:
        waiting = [scheduler.queued.peek()]
    else:
        waiting = [task for worker in scheduler.workers.values() for task in worker.processing]
    seconds = [
        task.priority[0]
        for task in waiting
        if task.priority is not None and OWNER_ANNOTATION in (task.annotations or ())
    ]
    return int(min(seconds)) if seconds else None
