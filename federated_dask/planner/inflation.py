"""Tasks of one site whose results are larger than what they are made of.

A site runs what it has the data for, unless the result is to leave it and is larger than
what it was made from: then that is what should leave.  Such tasks are few in most
expressions (padding, a cast to a wider type, a Fourier transform), so they are told
apart by looking at every task once, and only they take part in the minimum cut::

    ▢ 100 B ──► cast 200 B ──► + 1  200 B ──► home          100 B could leave instead

What a task is made of is measured by a flow: every value hands on at most its size, and
shares that among the tasks that need it, to each as much as it takes, the small ones
first.  A task that gets as much as its own size is *carried*: moving it cannot pay, for
what it gets would have to travel for it alone.  The others, down to where values are
smaller, may be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.origins import AT_HOME

__all__ = ["inflating"]

WORTHWHILE = 0.95
"""Share of its size that a task must get to count as carried: estimates are no better."""
NEAR = 1.25
"""A task that gets no more than this share of its size may be moved for the sake of others."""


def inflating(
    graph: PlanGraph,
    weights: Sequence[float],
    origins: Sequence[frozenset[str]],
    movable: Sequence[bool],
    leaving: Collection[int],
    read: Callable[[int], float],
) -> list[int]:
    """List the tasks that may move fewer bytes elsewhere than at the site of their data.

    Parameters
    ----------
    graph : PlanGraph
        In topological order.
    weights : sequence of float
        Cost of moving every task's result.
    origins : sequence of frozenset of str
        Places from which the data of every task comes.
    movable : sequence of bool
        Whether a task's data lies at one site and it may run elsewhere.
    leaving : collection of int
        Tasks whose results are needed at home in any case.
    read : callable
        From the position of a task to the cost of bringing what it reads from storage.

    Returns
    -------
    list of int
        Positions, in topological order; none where moving nothing is best already.
    """
    consumers = graph.dependents()
    leaving = set(leaving)
    for task, where in zip(graph.tasks, origins, strict=True):
        if where == AT_HOME:
            leaving.update(task.dependencies)
    gets = _flow(graph, weights, origins, movable, leaving, read, consumers)
    shares = [got / weight if weight else NEAR for got, weight in zip(gets, weights, strict=True)]
    meets = any(len(where) > 1 for where in origins)
    leaves = set(leaving)
    found = []
    is_any_short = False
    for position in range(len(graph.tasks) - 1, -1, -1):
        # Of a task that reads, what it reads would leave: as much to gain as there is short.
        enough = WORTHWHILE if graph.tasks[position].sources else NEAR
        if not movable[position] or shares[position] >= enough:
            continue
        # Only what leaves its site is worth a thought.
        if position in leaves or any(
            above in leaves or not movable[above] for above in consumers[position]
        ):
            found.append(position)
            leaves.add(position)
            is_any_short = is_any_short or shares[position] < WORTHWHILE
    return found[::-1] if is_any_short or meets else []


def _flow(
    graph: PlanGraph,
    weights: Sequence[float],
    origins: Sequence[frozenset[str]],
    movable: Sequence[bool],
    leaving: Collection[int],
    read: Callable[[int], float],
    consumers: Sequence[Sequence[int]],
) -> list[float]:
    """Tell what every task is given by those below it."""
    gets = [0.0] * len(graph.tasks)
    for position, task in enumerate(graph.tasks):
        weight = weights[position]
        if not origins[position]:
            # It can be made anywhere, so it carries nothing.
            continue
        if not movable[position]:
            gets[position] = weight
        elif task.sources:
            gets[position] += read(position)
        needs = [(weights[above], above) for above in consumers[position]]
        if not needs:
            continue
        if position in leaving:
            # Home has it in any case: what else is made of it costs nothing there.
            continue
        left = min(gets[position], weight)
        needs.sort()
        for taken, (need, above) in enumerate(needs):
            share = min(need, left / (len(needs) - taken))
            left -= share
            gets[above] += share
    return gets
