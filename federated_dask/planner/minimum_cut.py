"""Which of several places each task should run at, so that the fewest bytes are moved.

Every value has a size and is brought at most once to each place where it is
needed.  With two places this is a minimum cut and solved exactly::

        v ──size──► a ══∞══► c1        v at S, some consumer at T:  v→a is cut, once,
                      ══∞══► c2        however many consumers are at T
        c1 ══∞══► b ──size──► v        the same for v at T and consumers at S

With more places it is solved by expansion moves (Boykov, Veksler and Zabih, "Fast
approximate energy minimization via graph cuts", IEEE TPAMI 23, 2001): for one
place after the other, the exact answer to "which tasks should change to this
place, all others staying where they are?", until no such move helps.  Each move
is a minimum cut; no move makes the total larger.

Values shipped once per destination, not once per consumer: Pixida (Kloudas et
al., VLDB 2015) calls these shared edges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

__all__ = ["Value", "assign", "moved_cost"]

MAX_ROUNDS = 8
FEW = 8
"""Consumers of a value above which their places are counted."""
CAPACITY_SUM = 2**30
"""scipy's capacities are 32-bit; costs are scaled so that their sum stays below this."""

KEEP, CHANGE = 0, 1
"""Nodes of the network for what is sure to keep its place, and for what is at the target."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value and who needs it.

    Parameters
    ----------
    producer : int or None
        Index of the item whose place makes it; None where the place is given.
    place : hashable or None
        Where it is made, if that is given.
    size : float
        Bytes.
    consumers : tuple of int
        Items that need it.
    needed_at : frozenset
        Places where it is needed in any case.
    """

    producer: int | None
    place: Hashable | None
    size: float
    consumers: tuple[int, ...]
    needed_at: frozenset[Hashable] = frozenset()


Cost = Callable[[Hashable, Hashable], float]
"""Cost per byte from one place to another."""


def moved_cost(values: Sequence[Value], places: Sequence[Hashable], cost: Cost) -> float:
    """Total cost of bringing every value wherever it is needed."""
    total = 0.0
    for value in values:
        start = value.place if value.producer is None else places[value.producer]
        for end in {*value.needed_at, *[places[item] for item in value.consumers]}:
            if end != start:
                total += value.size * cost(start, end)
    return total


def assign(
    values: Sequence[Value],
    places: Sequence[Hashable],
    allowed: Sequence[frozenset[Hashable]],
    cost: Cost,
) -> list[Hashable]:
    """Choose a place for every item.

    Parameters
    ----------
    values : sequence of Value
        What is made and needed.
    places : sequence
        Where every item is at first; must be allowed.
    allowed : sequence of frozenset
        Where every item may be.
    cost : callable
        Cost per byte between two places.

    Returns
    -------
    list
        A place for every item; exact where only two places take part.

    Examples
    --------
    A large value at "a", a small one at "b", and one item that needs both:

    >>> values = [
    ...     Value(None, "a", 100, (0,)),
    ...     Value(None, "b", 5, (0,)),
    ...     Value(0, None, 1, (), frozenset({"h"})),
    ... ]
    >>> assign(values, ["h"], [frozenset({"h", "a", "b"})], lambda start, end: 1.0)
    ['a']
    """
    state = _State(values, places)
    current = state.current
    items_at: dict[Hashable, list[int]] = {}
    for item, each in enumerate(allowed):
        for place in each:
            items_at.setdefault(place, []).append(item)
    # First the places that fewer items may be at: one that takes all (home) would draw to it
    # what reads at several sites, and no single move would bring that back to more than one.
    order = sorted(items_at, key=lambda place: (len(items_at[place]), str(place)))
    for _ in range(MAX_ROUNDS):
        improved = False
        for place in order:
            active = [item for item in items_at[place] if current[item] != place]
            near = state.near(place, active)
            if not near:
                continue
            before = moved_cost(near, current, cost)
            old = {
                item: current[item] for item in _expand(near, current, active, cost, place, before)
            }
            state.move(dict.fromkeys(old, place))
            if moved_cost(near, current, cost) < before * (1 - 1e-9) - 1e-9:
                improved = True
            else:
                state.move(old)
        if not improved:
            break
    return current


class _State:
    """Where the items are, and what of the values a change to some place bears on.

    What a thousand places need is described anew for each of them, so no more of it is
    looked at than what can change: else there would be places times places to look at.
    """

    def __init__(self, values: Sequence[Value], places: Sequence[Hashable]) -> None:
        self.values = values
        self.current = list(places)
        self.made: list[list[int]] = [[] for _ in places]
        """By item, the values that it makes."""
        self.needed: list[list[int]] = [[] for _ in places]
        """By item, the values that it needs."""
        for number, value in enumerate(values):
            for item in value.consumers:
                self.needed[item].append(number)
            if value.producer is not None:
                self.made[value.producer].append(number)
        self.counts = {
            number: Counter(self.current[item] for item in value.consumers)
            for number, value in enumerate(values)
            if len(value.consumers) > FEW
        }
        """How many items need a value at each place, of values that many need."""
        self.moves = 0
        self.changed = [0] * len(values)
        """Number of moves after which something last changed for a value."""
        self.tried: dict[Hashable, int] = {}

    def move(self, items: Mapping[int, Hashable]) -> None:
        """Bring some items to other places."""
        if not items:
            return
        self.moves += 1
        for item, place in items.items():
            for number in self.needed[item]:
                self.changed[number] = self.moves
                if number in self.counts:
                    self.counts[number][self.current[item]] -= 1
                    self.counts[number][place] += 1
            for number in self.made[item]:
                self.changed[number] = self.moves
            self.current[item] = place

    def near(self, place: Hashable, active: Sequence[int]) -> list[Value]:
        """Describe the values that the active items make and need, as far as that can change.

        Nothing, where nothing has changed since they were asked to change to this place.
        """
        wanting: dict[int, list[int]] = {}
        for item in active:
            for number in self.needed[item]:
                wanting.setdefault(number, []).append(item)
        made = {number for item in active for number in self.made[item]}
        near = sorted({*wanting, *made})
        tried = self.tried.get(place, -1)
        self.tried[place] = self.moves
        if all(self.changed[number] <= tried for number in near):
            return []
        return [
            self.values[number]
            if number in made or number not in self.counts
            else self.part(number, place, wanting[number])
            for number in near
        ]

    def part(self, number: int, place: Hashable, active: Sequence[int]) -> Value:
        """Describe a value that stays where it is made, for the places of some consumers only."""
        value = self.values[number]
        moving = Counter(self.current[item] for item in active)
        counts = self.counts[number]
        return Value(
            producer=None,
            place=value.place if value.producer is None else self.current[value.producer],
            size=value.size,
            consumers=tuple(active),
            needed_at=frozenset(
                each
                for each in {place, *moving}
                if each in value.needed_at or counts[each] > moving[each]
            ),
        )


class _Network:
    """A flow network in the making; of every other node a cut says which of the two it joins."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.capacities: list[float] = []
        self.size = len((KEEP, CHANGE))

    def node(self) -> int:
        self.size += 1
        return self.size - 1

    def edge(self, start: int, end: int, capacity: float) -> None:
        if start != end and capacity > 0:
            self.starts.append(start)
            self.ends.append(end)
            self.capacities.append(capacity)

    def any_changed_while_kept(self, wanting: Sequence[int], size: float, start: int) -> None:
        """Cost if some of `wanting` are at the target while `start` keeps its place."""
        wanting = [node for node in wanting if node != KEEP]
        if start == CHANGE or not wanting:
            return
        if CHANGE in wanting:
            self.edge(start, CHANGE, size)
            return
        if len(wanting) == 1:
            self.edge(start, wanting[0], size)
            return
        relay = self.node()
        self.edge(start, relay, size)
        for node in wanting:
            self.edge(relay, node, np.inf)

    def any_kept_while_changed(self, wanting: Sequence[int], size: float, end: int) -> None:
        """Cost if some of `wanting` keep their place while `end` changes."""
        wanting = [node for node in wanting if node != CHANGE]
        if not wanting or size <= 0 or end == KEEP:
            return
        if KEEP in wanting:
            self.edge(KEEP, end, size)
            return
        if len(wanting) == 1:
            self.edge(wanting[0], end, size)
            return
        relay = self.node()
        for node in wanting:
            self.edge(node, relay, np.inf)
        self.edge(relay, end, size)

    def any_kept(self, wanting: Sequence[int], size: float) -> None:
        """Cost if some of `wanting` keep their place."""
        self.any_kept_while_changed(wanting, size, CHANGE)

    def any_kept_while_kept(self, wanting: Sequence[int], size: float, start: int) -> None:
        """Upper bound of the cost if some of `wanting` and `start` keep their places.

        Not expressible exactly in a cut; counted if any of `wanting` keeps its place,
        which can only make staying look dearer than it is. `assign` takes a move only
        if it lowers the true total.
        """
        if start == CHANGE:
            return
        if KEEP in wanting:
            # That one is sure to keep its place, so this is exact.
            self.edge(start, CHANGE, size)
            return
        self.any_kept(wanting, size)

    def kept(self, most: float) -> np.ndarray:
        """Say of every node whether a minimum cut leaves it on the side of `KEEP`.

        `most` is what some cut costs: what is dearer is never cut, and as dear as
        that is dear enough.  So a few huge values do not drown all others in the
        rounding.
        """
        capacities = np.array(self.capacities)
        capacities[capacities > most] = np.inf
        finite = np.isfinite(capacities)
        scale = CAPACITY_SUM / max(capacities[finite].sum(), 1.0)
        scaled = np.where(finite, np.maximum(1, np.rint(capacities * min(scale, 1024.0))), 0)
        # Above any finite cut, so never cut.
        scaled[~finite] = min(scaled[finite].sum() + 1, 2**31 - 1)
        shape = (self.size, self.size)
        graph = csr_array(
            (scaled.astype(np.int32), (self.starts, self.ends)), shape=shape, dtype=np.int32
        )
        residual = graph - maximum_flow(graph, KEEP, CHANGE).flow
        residual.data[residual.data < 0] = 0
        residual.eliminate_zeros()
        side = np.zeros(self.size, dtype=bool)
        side[breadth_first_order(residual, KEEP, return_predecessors=False)] = True
        return side


def _expand(
    values: Sequence[Value],
    current: Sequence[Hashable],
    active: Sequence[int],
    cost: Cost,
    target: Hashable,
    best: float,
) -> dict[int, Hashable]:
    """Find the best set of active items to change to `target`; `best` is what all cost now."""
    network = _Network()
    nodes: dict[int, int] = {item: network.node() for item in active}
    for value in values:
        for item in value.consumers:
            if item not in nodes:
                nodes[item] = _sure(current[item], target)
        if value.producer is not None and value.producer not in nodes:
            nodes[value.producer] = _sure(current[value.producer], target)
    for value in values:
        _add_value(network, value, current, nodes, cost, target)
    if not network.starts:
        return {}
    kept = network.kept(best * (1 + 1e-9))
    return {item: target for item in active if not kept[nodes[item]]}


def _sure(place: Hashable, target: Hashable) -> int:
    """Node of what stays where it is."""
    return CHANGE if place == target else KEEP


def _add_value(
    network: _Network,
    value: Value,
    current: Sequence[Hashable],
    nodes: Mapping[int, int],
    cost: Cost,
    target: Hashable,
) -> None:
    """Add what it costs to bring a value wherever it is needed, however the cut turns out."""
    if value.producer is None and len(value.consumers) == 1 and not value.needed_at:
        _add_value_for_one(network, value, current, nodes, cost, target)
        return
    if value.producer is None:
        start, producer = value.place, _sure(value.place, target)
    else:
        start, producer = current[value.producer], nodes[value.producer]
    consumers: dict[Hashable, list[int]] = {}
    for item in value.consumers:
        consumers.setdefault(current[item], []).append(nodes[item])
    for place in value.needed_at:
        consumers.setdefault(place, []).append(_sure(place, target))
    everybody = [node for wanting in consumers.values() for node in wanting]
    network.any_changed_while_kept(everybody, value.size * cost(start, target), producer)
    for place, wanting in consumers.items():
        if place == target:
            continue
        if place == start:
            # Brought back only if the producer changes and a consumer does not.
            network.any_kept_while_changed(wanting, value.size * cost(target, place), producer)
            continue
        # Brought wherever the producer is; dearer or cheaper from the target.
        before, after = value.size * cost(start, place), value.size * cost(target, place)
        network.any_kept(wanting, min(before, after))
        if after > before:
            network.any_kept_while_changed(wanting, after - before, producer)
        elif before > after:
            network.any_kept_while_kept(wanting, before - after, producer)


def _add_value_for_one(
    network: _Network,
    value: Value,
    current: Sequence[Hashable],
    nodes: Mapping[int, int],
    cost: Cost,
    target: Hashable,
) -> None:
    """Cost of a value for one item, as most values are: where that stays, and where it changes."""
    (item,) = value.consumers
    place = current[item]
    if value.place != place:
        network.edge(nodes[item], CHANGE, value.size * cost(value.place, place))
    if value.place != target:
        network.edge(KEEP, nodes[item], value.size * cost(value.place, target))
