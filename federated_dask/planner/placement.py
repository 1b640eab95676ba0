"""Every task to a site or home, and to the stage in which it runs.

Data decides: a task whose inputs all come from one site runs there.  A task
without data of a site runs wherever it is needed, at several places if need be.
Tasks in which places meet, and what follows from them, are placed together so
that the fewest bytes are moved (`minimum_cut`), each value counted once per
destination; so are tasks that make more bytes than they are given (`inflation`).
A first placement, task by task, is where that search begins.

A stage ends where a value changes place: what a task needs from elsewhere was
made in an earlier stage.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Container, Hashable, Mapping
from dataclasses import dataclass

from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.inflation import inflating
from federated_dask.planner.links import LinkCosts
from federated_dask.planner.minimum_cut import Value, assign
from federated_dask.planner.origins import Availability, Dataset, derivations, origins, resources_of
from federated_dask.planner.sizes import framed
from federated_dask.planner.sources import HOME, SiteFacts
from federated_dask.planner.stored_reads import all_brought_bytes

__all__ = ["CHEAPER", "Placement", "exchange", "place"]


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
    *,
    prefer: str | None = None,
    hold: bool = False,
    at: str | None = None,
    links: LinkCosts | None = None,
    kept: Container[int] = (),
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
    hold : bool, default False
        Requested results stay where they are made.
    at : str, optional
        A site where requested results are needed, in place of home.
    links : LinkCosts, optional
        What a byte costs on each link.
    kept : container of int
        Tasks whose results are at home from an earlier run.

    Returns
    -------
    Placement
    """
    return _Placer(graph, sizes, facts, prefer, hold, at, links or LinkCosts(), kept).run()


class _Placer:
    def __init__(
        self,
        graph: PlanGraph,
        sizes: list[int],
        facts: Mapping[str, SiteFacts],
        prefer: str | None,
        hold: bool,
        at: str | None,
        links: LinkCosts,
        kept: Container[int],
    ) -> None:
        self.graph = graph
        self.kept = kept
        self.sizes = sizes
        self.facts = facts
        self.available = Availability(facts)
        self.prefer = prefer
        self.origins = origins(graph, facts, prefer)
        self.places: list[str | None] = []
        self.stages: list[int] = []
        self.reasons: dict[int, str] = {}
        self.brought: set[tuple[int, str]] = set()
        outputs = set(graph.outputs.values())
        self.needed: dict[int, str] = {}
        """Requested results that have to get to a certain place, by position."""
        if at is not None or not hold:
            self.needed = dict.fromkeys(outputs, at or HOME)
        self.weights = _weights(graph, sizes)
        self.reads = all_brought_bytes(graph)
        self.links = links

    def run(self) -> Placement:
        for position in range(len(self.graph.tasks)):
            place = self.choose(position)
            self.places.append(place)
            if place is not None:
                self.brought.update(
                    (dependency, place) for dependency in self.elsewhere(position, place)
                )
        if self.prefer is None:
            meeting = [p for p, where in enumerate(self.origins) if len(where) > 1]
            self.improve(sorted((*meeting, *self.inflating())))
        for position, place in enumerate(self.places):
            self.stages.append(self.stage(position, place))
            if self.origins[position] == {HOME}:
                self.explain_home(position)
        return Placement(self.places, self.stages, self.reasons)

    def inflating(self) -> list[int]:
        """List tasks of one site that it may be better to run where their results are needed."""
        movable = [
            len(where) == 1
            and HOME not in where
            and task.program is not None
            # What a site holds lies there, and the last step is Dask's at home.
            and task.held_at is None
            and not resources_of(task)
            for task, where in zip(self.graph.tasks, self.origins, strict=True)
        ]
        return inflating(
            self.graph, self.weights, self.origins, movable, self.needed, self.cost_of_reading
        )

    def improve(self, meeting: list[int]) -> None:
        """Move tasks to where the fewest bytes have to be brought."""
        if not meeting:
            return
        item = {position: number for number, position in enumerate(meeting)}
        # Tasks share these sets: each is looked into once.
        origins = {self.origins[position] for position in meeting}
        sites = set(self.needed.values()).union(*origins) - {HOME}
        allowed = [self.allowed(position, sites) for position in meeting]
        first = [self.places[position] or HOME for position in meeting]
        chosen = assign(self.values_around(item), first, allowed, functools.cache(self.cost))
        for position, place in zip(meeting, chosen, strict=True):
            self.places[position] = str(place)
            if place != HOME:
                self.reasons.pop(position, None)
            elif position not in self.reasons and not self.graph.tasks[position].finalise:
                self.reasons[position] = CHEAPER

    def allowed(self, position: int, sites: set[str]) -> frozenset[str]:
        """Places that can run a task."""
        task = self.graph.tasks[position]
        if len(sites) > MOST_PLACES:
            sites = self.nearest(position) | self.available.bound_to(task)
        # Home reads stored variables over the link; no site reads those of another.
        stored = {source.site for source in task.sources}
        # What asks for resources runs at home only if no site has them.
        home = () if self.available.bound_to(task) else (HOME,)
        return frozenset(
            {
                *home,
                *(
                    site
                    for site in sites
                    if stored <= {site} and self.available.can_run(task, site)
                ),
            }
        )

    def nearest(self, position: int) -> set[str]:
        """Name the sites that hold most of what a task needs, and where it is needed."""
        held: Counter[str] = Counter(source.site for source in self.graph.tasks[position].sources)
        for below in self.graph.tasks[position].dependencies:
            place = self.places[below]
            if place is not None:
                held[place] += int(self.weights[below])
        sites = {site for site, _ in held.most_common(MOST_PLACES)}
        own = self.origins[position]
        if len(own) <= MOST_PLACES:
            sites |= own
        if position in self.needed:
            sites.add(self.needed[position])
        return sites - {HOME}

    def values_around(self, item: Mapping[int, int]) -> list[Value]:
        """Describe the results that the meeting tasks make and need."""
        consumers: dict[int, list[int]] = {}
        needed_at: dict[int, set[str]] = {}
        for position, task in enumerate(self.graph.tasks):
            place = self.places[position]
            for below in task.dependencies:
                if position in item:
                    consumers.setdefault(below, []).append(item[position])
                elif place is not None:
                    needed_at.setdefault(below, set()).add(place)
        works = self.places_of_work()
        values = [self.value_read(p, number) for p, number in item.items() if self.reads[p]]
        values += [
            self.value_of_work(p, number, place)
            for p, number in item.items()
            if (place := works[p]) is not None
        ]
        for position in {*consumers, *item}:
            place = self.places[position]
            if place is None:
                continue
            ends = needed_at.get(position, set())
            if position in self.needed:
                ends.add(self.needed[position])
            # What is at home is taken from there, whoever makes it.
            kept = position in self.kept
            values.append(
                Value(
                    producer=None if kept else item.get(position),
                    place=HOME if kept else None if position in item else place,
                    size=self.weights[position],
                    consumers=tuple(dict.fromkeys(consumers.get(position, ()))),
                    needed_at=frozenset(ends),
                )
            )
        return values

    def value_read(self, position: int, number: int) -> Value:
        """Describe what a task itself reads of a stored variable: it lies at its site."""
        task = self.graph.tasks[position]
        return Value(
            producer=None,
            place=task.sources[0].site,
            size=self.cost_of_reading(position),
            consumers=(number,),
        )

    def value_of_work(self, position: int, number: int, place: str) -> Value:
        """Describe a task's work at the site of its data: given away for a gain only."""
        return Value(
            producer=None,
            place=place,
            size=self.weights[position] * WORK,
            consumers=(number,),
        )

    def places_of_work(self) -> list[str | None]:
        """Name, for every task, the site from which nearly all of its data comes, if any."""
        found: list[str | None] = []
        for task, where in zip(self.graph.tasks, self.origins, strict=True):
            if len(where) < 2:
                (place,) = where or (None,)
            else:
                shares: dict[str | None, float] = {}
                for below in task.dependencies:
                    share = shares.get(found[below], 0.0) + self.weights[below]
                    shares[found[below]] = share
                place = max(shares, key=lambda site: shares[site], default=None)
                if shares.get(place, 0.0) < MOSTLY * sum(shares.values()):
                    place = None
            found.append(None if place == HOME else place)
        return found

    def cost_of_reading(self, position: int) -> float:
        """Bytes that a task reads of stored variables, made dear where these may not leave."""
        size = self.reads[position]
        if not size:
            return 0.0
        sources = self.graph.tasks[position].sources
        limited = any(self.graph.stored[source].egress_limit is not None for source in sources)
        return framed(size) * (FORBIDDEN if limited else RAW)

    def cost(self, start: Hashable, end: Hashable) -> float:
        """Cost per byte of a link: two sites that do not exchange values use home as a relay."""
        key = str(start), str(end)
        direct = HOME in key or exchange(self.facts, *key)
        legs = [key] if direct else [(key[0], HOME), (HOME, key[1])]
        return (1.0 if HOME in key else STAGE) * sum(self.links.of(*leg) for leg in legs)

    def choose(self, position: int) -> str | None:
        where = self.origins[position]
        if not where:
            end = self.needed.get(position, HOME)
            able = end == HOME or self.available.can_run(self.graph.tasks[position], end)
            return None if able else HOME
        if len(where) == 1:
            return next(iter(where))
        if bound := self.available.bound_to(self.graph.tasks[position]):
            return min(sorted(bound), key=lambda site: self.bytes_brought(position, site))
        return self.choose_among(position)

    def choose_among(self, position: int) -> str:
        task = self.graph.tasks[position]
        places = {place for below in task.dependencies if (place := self.places[below]) is not None}
        places.update(source.site for source in task.sources)
        sites = places - {HOME}
        if len(sites) == 1:
            (site,) = sites
            # At home it would read what is stored at the site chunk by chunk.
            at_home = self.bytes_brought(position, HOME) + self.reads[position]
            cost = self.bytes_brought(position, site), at_home
            cheaper = cost[0] < cost[1] or site == self.prefer
            if self.available.can_run(task, site) and cheaper:
                return site
            self.reasons[position] = CHEAPER
        elif sites:
            *names, last = sorted(sites)
            self.reasons[position] = f"it needs data of {', '.join(names)} and {last} together"
        return HOME

    def explain_home(self, position: int) -> None:
        """Note why a task cannot run at the site of its data, or wherever it is needed."""
        task = self.graph.tasks[position]
        sites = {place for below in task.dependencies if (place := self.places[below])} - {HOME}
        sites |= {source.site for source in task.sources}
        if resources_of(task):
            names = " and ".join(name for name, _ in resources_of(task))
            self.reasons[position] = f"no site has as much {names} as it asks for"
            return
        if task.finalise or (task.program is None and not sites):
            return
        if task.program is None:
            self.reasons[position] = task.blocker or "it has no wire form"
            return
        obstacles = (self.available.obstacle(task, site) for site in sorted(sites or self.facts))
        if (obstacle := next(filter(None, obstacles), None)) is not None:
            self.reasons[position] = obstacle

    def elsewhere(self, position: int, place: str) -> list[int]:
        """List the inputs of a task that are made at another place than `place`."""
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


def exchange(facts: Mapping[str, SiteFacts], start: str, end: str) -> bool:
    """Say whether two sites exchange values directly: each has to list the other."""
    return end in facts[start].peers and start in facts[end].peers


CHEAPER = "bringing its inputs home moves fewer bytes"
"""Why a task runs at home although it need not."""
MOST_PLACES = 12
"""Sites that are considered for one task: of a hundred that meet there, each holds little."""
WORK = 0.02
"""Share of a result's bytes that must be saved for a task to leave the site of its data."""
RAW = 1.15
"""How much dearer than results stored data is: how far it shrinks is known from a few parts."""
STAGE = 1.05
"""How much dearer what goes from site to site is: it takes a stage of its own."""
MOSTLY = 0.8
"""Share of a task's data that one site must hold for the work to belong there."""
FORBIDDEN = 1000.0
"""Factor by which moving what may not leave its site is dearer than anything else."""


def _weights(graph: PlanGraph, sizes: list[int]) -> list[float]:
    """Bytes of every result, made dear where what is like it may not leave its site."""
    alike: dict[tuple[str, frozenset[Dataset]], list[int]] = {}
    for position, datasets in enumerate(derivations(graph, limited=True)):
        if datasets:
            alike.setdefault((graph.tasks[position].label, datasets), []).append(position)
    totals: Counter[tuple[str, Dataset]] = Counter()
    for (label, datasets), positions in alike.items():
        size = sum(sizes[position] for position in positions)
        for dataset in datasets:
            totals[label, dataset] += size
    weights = [float(framed(size)) for size in sizes]
    for (label, datasets), positions in alike.items():
        factor = math.prod(
            FORBIDDEN
            for dataset in datasets
            if dataset.egress_limit is not None and totals[label, dataset] > dataset.egress_limit
        )
        for position in positions:
            weights[position] *= factor
    return weights
