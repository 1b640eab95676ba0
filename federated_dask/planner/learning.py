"""Sizes that results had in earlier runs, where they were not as estimated.

What a result takes on a link depends on its content: counts and masks shrink, texts have
any length, how much a selection keeps nobody knows in advance.  A client remembers what
crossed, by *what was made of what*: template, dtype and estimate of the task, and the
stored variables from which it derives.  The next plan that has such a task counts with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeAlias

from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.sources import SourceReference

__all__ = ["LearntSizes", "Lineage", "lineages"]

Lineage: TypeAlias = frozenset[tuple[str, str, str]]
"""Stored variables: site, dataset, variable."""

MOST_LEARNT = 20_000
AS_ESTIMATED = 0.02
"""A size that differs by no more than this share needs no memory."""


class LearntSizes:
    """What results took on links, in bytes without their frames.

    Examples
    --------
    >>> learnt = LearntSizes()
    >>> len(learnt)
    0
    """

    def __init__(self) -> None:
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sizes)

    def applied(self, graph: PlanGraph, estimates: Sequence[int]) -> list[int]:
        """Give what results took before in place of what they are estimated to take.

        Parameters
        ----------
        graph : PlanGraph
            In topological order.
        estimates : sequence of int
            Estimated bytes of every task's result.

        Returns
        -------
        list of int
        """
        if not self._sizes:
            return list(estimates)
        keys = _Keys(graph, estimates)
        return [self._sizes.get(keys.of(p), size) for p, size in enumerate(estimates)]

    def learn(self, graph: PlanGraph, estimates: Sequence[int], actual: Mapping[int, int]) -> None:
        """Take note of what results really took.

        Parameters
        ----------
        graph : PlanGraph
            The graph of the plan that was run.
        estimates : sequence of int
            Bytes of every task's result as estimated without what was learnt.
        actual : mapping of int to int
            Bytes that results took, by position.
        """
        keys = _Keys(graph, estimates)
        found: dict[Hashable, list[int]] = {}
        for position, size in actual.items():
            if position >= len(estimates):
                continue
            found.setdefault(keys.of(position), [estimates[position]]).append(max(0, size))
        for key, (estimate, *sizes) in found.items():
            mean = sum(sizes) // len(sizes)
            if abs(mean - estimate) <= AS_ESTIMATED * estimate:
                self._sizes.pop(key, None)
                continue
            self._sizes[key] = mean
            self._sizes.move_to_end(key)
        while len(self._sizes) > MOST_LEARNT:
            self._sizes.popitem(last=False)


class _Keys:
    """Say what the tasks of one graph make of what."""

    def __init__(self, graph: PlanGraph, estimates: Sequence[int]) -> None:
        self.tasks = graph.tasks
        self.estimates = estimates
        self.lineages = lineages(graph)
        # Tasks of a layer share their template, which is not hashed again for each.
        self.templates: dict[int, int] = {}

    def of(self, position: int) -> Hashable:
        task = self.tasks[position]
        dtype = None if task.dtype is None else task.dtype.str
        same = (dtype, self.estimates[position], self.lineages[position])
        if task.program is None:
            return (task.label, *same)
        template = task.program.template
        known = self.templates.get(id(template))
        if known is None:
            known = self.templates[id(template)] = hash(template)
        return (known, *same)


def lineages(graph: PlanGraph) -> list[Lineage]:
    """Name, for every task, the stored variables from which its result derives."""
    found: list[Lineage] = []
    known: dict[SourceReference, Lineage] = {}
    for task in graph.tasks:
        own: Iterable[Lineage] = ()
        if task.sources:
            own = [known.setdefault(source, _of(source)) for source in task.sources]
        parts = [*own, *(found[below] for below in task.dependencies)]
        if not parts:
            found.append(NOWHERE)
        elif all(part is parts[0] or part == parts[0] for part in parts):
            found.append(parts[0])
        else:
            found.append(NOWHERE.union(*parts))
    return found


NOWHERE: Lineage = frozenset()


def _of(source: SourceReference) -> Lineage:
    return frozenset({(source.site, source.dataset, source.variable)})
