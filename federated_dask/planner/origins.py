"""Where a task's data comes from: the sites it derives from, before anything is placed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from dask.utils import format_bytes

from federated_dask.planner.graph import PlanGraph, PlanTask
from federated_dask.planner.nodes import last_call, operation_name, uses
from federated_dask.planner.sources import HOME, HeldReference, SiteFacts
from federated_dask.protocol import graph as wire
from federated_dask.protocol.bound_rules import ELEMENTWISE
from federated_dask.protocol.bounded import WrittenSize, written_sizes

__all__ = ["AT_HOME", "Availability", "Dataset", "derivations", "origins", "resources_of"]

AT_HOME = frozenset({HOME})

T = TypeVar("T")


class Availability:
    """Say which sites can run a task: they have all of its operations, and take its size."""

    def __init__(self, facts: Mapping[str, SiteFacts]) -> None:
        self._facts = facts
        # By the identity of templates, which tasks of a layer share: hashing one takes longer
        # than all else here. The graph that is planned keeps them.
        self._lacking: dict[tuple[int, str], tuple[str, ...]] = {}
        self._used: dict[int, frozenset[str]] = {}
        self._everywhere: dict[int, bool] = {}
        self._sizes: dict[int, tuple[WrittenSize, ...]] = {}
        limits = [site.task_bytes for site in facts.values() if site.task_bytes is not None]
        self._smallest = min(limits, default=None)

    def obstacle(self, task: PlanTask, site: str) -> str | None:
        """Say, in words, why a site cannot run a task with a program; None where it can."""
        if lacking := self.lacking(task, site):
            return f"{site} does not have {', '.join(lacking)}"
        most = self._facts[site].task_bytes
        name = self.oversized(task, most)
        if name is None or most is None:
            return None
        return f"{name} would make more than the {format_bytes(most)} that a task may at {site}"

    def lacking(self, task: PlanTask, site: str) -> tuple[str, ...]:
        """List operations and resources of a task with a program that a site does not have."""
        assert task.program is not None  # noqa: S101
        key = (id(task.program.template), site)
        if key not in self._lacking:
            template = task.program.template
            has = self._facts[site].resources
            short = {
                f"the resource {name}"
                for name, need in template.resources
                if has.get(name, 0) < need
            }
            used = self._operations(template)
            self._lacking[key] = tuple(sorted((used - self._facts[site].operations) | short))
        return self._lacking[key]

    def _operations(self, template: wire.Template) -> frozenset[str]:
        if id(template) not in self._used:
            used = frozenset[str]().union(*(uses(step) for step in template.steps))
            self._used[id(template)] = used
        return self._used[id(template)]

    def oversized(self, task: PlanTask, limit: int | None) -> str | None:
        """Name the operation of a task that is known to make more than a limit of bytes."""
        program = task.program
        if limit is None or program is None:
            return None
        written = self._sizes.get(id(program.template))
        if written is None:
            written = self._sizes[id(program.template)] = written_sizes(program.template)
        for size in written:
            if size.least_bytes(program.integers) > limit:
                return size.name
        if task.shape is None or task.dtype is None:
            return None
        if math.prod(task.shape) * task.dtype.itemsize > limit:
            # Of such results the shape that is stated is the one that is made; others are views.
            call = last_call(program)
            name = None if call is None else operation_name(call.function)
            return name if name in ELEMENTWISE else None
        return None

    def everywhere(self, task: PlanTask) -> bool:
        """Say whether every site can run a task with a program."""
        assert task.program is not None  # noqa: S101
        template = id(task.program.template)
        if template not in self._everywhere:
            lacks = (self.lacking(task, site) for site in self._facts)
            self._everywhere[template] = not any(lacks)
        return self._everywhere[template] and self.oversized(task, self._smallest) is None

    def bound_to(self, task: PlanTask) -> frozenset[str]:
        """Sites of which one must run a task, for the resources that it asks for; else none."""
        if not resources_of(task):
            return frozenset()
        stored = {source.site for source in task.sources}
        return frozenset(
            site for site in self._facts if stored <= {site} and self.can_run(task, site)
        )

    def can_run(self, task: PlanTask, site: str) -> bool:
        """Say whether a site can run a task."""
        return task.program is not None and self.obstacle(task, site) is None


def origins(
    graph: PlanGraph, facts: Mapping[str, SiteFacts], prefer: str | None = None
) -> list[frozenset[str]]:
    """Name, for every task, the places from which its inputs come.

    Parameters
    ----------
    graph : PlanGraph
        In topological order.
    facts : mapping of str to SiteFacts
        The sites.
    prefer : str, optional
        A site that counts as the origin of what has none.

    Returns
    -------
    list of frozenset of str
        Empty: a task without data of a site, which may run anywhere.  One site:
        all it needs is there, and it can run there.  ``home``: it can only run
        at home.  More than one: places meet.
    """
    available = Availability(facts)
    result: list[frozenset[str]] = []
    for task in graph.tasks:
        if task.program is None:
            result.append(AT_HOME)
            continue
        own = {source.site for source in task.sources}
        if task.held_at is not None:
            own.add(task.held_at)
        places = _united(own, [result[dependency] for dependency in task.dependencies])
        if resources_of(task):
            # It runs where the resources are, wherever its data is.
            bound = available.bound_to(task)
            if not bound:
                places = AT_HOME
            else:
                places = places & bound if len(places) == 1 and places <= bound else places | bound
        elif not places and prefer is not None:
            places = frozenset({prefer})
        elif not places and not available.everywhere(task):
            # Else it would be made at whichever site needs it.
            places = AT_HOME
        if len(places) == 1 and places != AT_HOME:
            (site,) = places
            if not available.can_run(task, site):
                places = AT_HOME
        result.append(places)
    return result


def resources_of(task: PlanTask) -> wire.Resources:
    """Resources that a task asks for."""
    return () if task.program is None else task.program.template.resources


class Dataset(NamedTuple):
    """A dataset of which something may leave its site, or not."""

    site: str
    name: str
    egress_limit: int | None
    """Bytes that were left of its budget when it was opened; None for no limit."""


def derivations(graph: PlanGraph, *, limited: bool = False) -> list[frozenset[Dataset]]:
    """Name, for every task, the datasets from which its result derives.

    Parameters
    ----------
    graph : PlanGraph
        In topological order.
    limited : bool, default False
        Leave out the datasets of which anything may leave.

    Returns
    -------
    list of frozenset of Dataset
        Tasks that derive from the same share a set as a rule.
    """
    result: list[frozenset[Dataset]] = []
    for task in graph.tasks:
        own = {
            Dataset(source.site, source.dataset, graph.stored[source].egress_limit)
            for source in task.sources
        }
        if task.held_at is not None and task.program is not None:
            leaf = graph.leaves[-1 - task.program.references[0]]
            if isinstance(leaf, HeldReference):
                own.update(Dataset(leaf.site, *each) for each in leaf.datasets)
        if limited:
            own = {each for each in own if each.egress_limit is not None}
        result.append(_united(own, [result[dependency] for dependency in task.dependencies]))
    return result


def _united(own: set[T], below: Sequence[frozenset[T]]) -> frozenset[T]:
    """Unite sets. Where one of them holds all others, as for most tasks, that one is shared.

    With a set of its own for each of the tasks in which a thousand sites meet, plans would
    take as long as there are tasks times sites.
    """
    largest: frozenset[T] = max(below, key=len, default=frozenset())
    if own <= largest and all(other is largest or other <= largest for other in below):
        return largest
    return frozenset(own).union(*below)
