"""Every task to a site or home, and to the stage in which it runs.

Data decides: a task whose inputs all come from one site runs there.  A task
without data of a site runs wherever it is needed, at several places if need be.
Where places meet, the task runs where fewer bytes have to be brought, each value
counted once per destination; a task to which two sites contribute runs at home.

A stage ends where a value changes place: what a task needs from elsewhere was
made in an earlier stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.origins import Availability, origins
from federated_dask.planner.sizes import read_bytes
from federated_dask.planner.sources import HOME, SiteFacts

__all__ = ["Placement", "place"]


@dataclass(frozen=True)
class Placement:
    """Where and when the tasks of a graph run."""

    places: list[str | None]
    """Site or ``home``; None for a task that runs wherever it is needed."""
    stages: list[int]
    reasons: dict[int, str]
    """Why a task runs at home although some of its data lies at a site, in words."""


def place(
    graph: PlanGraph,
    sizes: list[int],
    facts: Mapping[str, SiteFacts],
    prefer: str | None = None,
) -> Placement:
    """Place every task.

    Parameters
    ----------
    graph : PlanGraph
        In topological order, its mixed reductions split.
    sizes : list of int
        Estimated bytes of every task's result.
    facts : mapping of str to SiteFacts
        The sites.
    prefer : str, optional
        A site that runs whatever it can, whatever that moves.

    Returns
    -------
    Placement
    """
    return _Placer(graph, sizes, facts, prefer).run()


class _Placer:
    def __init__(
        self,
        graph: PlanGraph,
        sizes: list[int],
        facts: Mapping[str, SiteFacts],
        prefer: str | None,
    ) -> None:
        self.graph = graph
        self.sizes = sizes
        self.available = Availability(facts)
        self.prefer = prefer
        self.origins = origins(graph, facts, prefer)
        self.places: list[str | None] = []
        self.stages: list[int] = []
        self.reasons: dict[int, str] = {}
        self.brought: set[tuple[int, str]] = set()

    def run(self) -> Placement:
        for position in range(len(self.graph.tasks)):
            place = self.choose(position)
            self.places.append(place)
            self.stages.append(self.stage(position, place))
            if place is not None:
                self.brought.update(
                    (dependency, place) for dependency in self.elsewhere(position, place)
                )
        return Placement(self.places, self.stages, self.reasons)

    def choose(self, position: int) -> str | None:
        where = self.origins[position]
        if not where:
            return None
        if len(where) == 1:
            (place,) = where
            if place == HOME:
                self.explain_home(position)
            return place
        return self.choose_among(position)

    def choose_among(self, position: int) -> str:
        task = self.graph.tasks[position]
        places = {place for below in task.dependencies if (place := self.places[below]) is not None}
        places.update(source.site for source in task.sources)
        sites = places - {HOME}
        if len(sites) == 1:
            (site,) = sites
            # At home it would read what is stored at the site chunk by chunk.
            at_home = self.bytes_brought(position, HOME) + read_bytes(task, self.graph)
            cost = self.bytes_brought(position, site), at_home
            cheaper = cost[0] < cost[1] or site == self.prefer
            if self.available.can_run(task, site) and cheaper:
                return site
            self.reasons[position] = "bringing its inputs home moves fewer bytes"
        elif sites:
            self.reasons[position] = f"needs data of {' and '.join(sorted(sites))} together"
        return HOME

    def explain_home(self, position: int) -> None:
        """Note why a task that has data of a site cannot run there."""
        task = self.graph.tasks[position]
        sites = {place for below in task.dependencies if (place := self.places[below])} - {HOME}
        sites |= {source.site for source in task.sources}
        if task.finalise or not sites:
            return
        if task.program is None:
            self.reasons[position] = task.blocker or "it has no wire form"
            return
        site = min(sites)
        lacking = ", ".join(sorted(self.available.lacking(task, site)))
        if lacking:
            self.reasons[position] = f"{site} does not have {lacking}"

    def elsewhere(self, position: int, place: str) -> list[int]:
        """Inputs of a task that are made at another place than `place`."""
        return [
            below
            for below in self.graph.tasks[position].dependencies
            if self.places[below] not in (None, place)
        ]

    def bytes_brought(self, position: int, place: str) -> int:
        return sum(
            self.sizes[below]
            for below in self.elsewhere(position, place)
            if (below, place) not in self.brought
        )

    def stage(self, position: int, place: str | None) -> int:
        latest = 0
        for below in self.graph.tasks[position].dependencies:
            other = self.places[below]
            if other is not None:
                latest = max(latest, self.stages[below] + (other != place))
        return latest
