"""What a byte costs on each link: as given, else as fast as earlier runs found the link.

A cost is relative: 1 for an ordinary link, 2 for one on which a byte is worth avoiding
twice as much.  Costs that are not given follow from measured throughput, the fastest
measured link counting 1; a link that was not measured counts 1, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from federated_dask.errors import ConfigurationError

__all__ = ["LinkCosts"]

SMALLEST_MEASURED = 2**24
"""Bytes that must have crossed a link before its throughput says something."""
FAST = 50e6
"""Bytes per second from which on a link is no matter."""
ALIKE = 3.0
"""Links of which one is not this many times as fast as the other count alike."""
LARGEST_RATIO = 20.0
"""Times that a slow link may be as dear as a fast one, if nobody said so."""


class LinkCosts:
    """Costs per byte of links, by (from, to).

    Parameters
    ----------
    given : mapping of (str, str) to float, optional
        Costs that somebody chose; a pair given in one direction counts for both.

    Raises
    ------
    ConfigurationError
        If a pair is no pair of names, or a cost is no positive number.

    Examples
    --------
    >>> costs = LinkCosts({("north", "home"): 2.0})
    >>> costs.of("north", "home"), costs.of("home", "north"), costs.of("south", "home")
    (2.0, 2.0, 1.0)
    >>> costs.measure("south", "home", 10**8, seconds=1.0)
    >>> costs.measure("ocean", "home", 10**8, seconds=10.0)
    >>> costs.of("ocean", "home")
    5.0
    """

    def __init__(self, given: Mapping[tuple[str, str], float] | None = None) -> None:
        self._given: dict[tuple[str, str], float] = {}
        unchecked: Mapping[Any, Any] = given or {}
        for pair, cost in unchecked.items():
            is_pair = isinstance(pair, tuple) and len(pair) == 2
            if not is_pair or not all(isinstance(name, str) for name in pair):
                raise ConfigurationError(
                    f"{pair!r} in link_costs is no link.",
                    hint='Write links as ("north", "home"): two names of sites, or one and home.',
                )
            if not isinstance(cost, int | float) or not 0 < cost < math.inf:
                raise ConfigurationError(
                    f"The cost of {' → '.join(pair)} in link_costs is no positive number.",
                    hint="1 is an ordinary link; 2 makes a byte twice as dear.",
                )
            self._given[pair] = float(cost)
        self._crossed: dict[tuple[str, str], tuple[float, float]] = {}

    def of(self, start: str, end: str) -> float:
        """Cost per byte from one place to another."""
        for pair in ((start, end), (end, start)):
            if pair in self._given:
                return self._given[pair]
        speeds = self._speeds()
        own = speeds.get((start, end)) or speeds.get((end, start))
        if own is None:
            return 1.0
        ratio = max(speeds.values()) / own
        return 1.0 if ratio < ALIKE else min(LARGEST_RATIO, ratio)

    def measure(self, start: str, end: str, nbytes: int, seconds: float) -> None:
        """Take note of how long bytes took while they flowed; recent ones count most."""
        before = self._crossed.get((start, end), (0.0, 0.0))
        fading = 1.0 if before[0] < 100 * SMALLEST_MEASURED else 0.5
        self._crossed[start, end] = (before[0] * fading + nbytes, before[1] * fading + seconds)

    def _speeds(self) -> dict[tuple[str, str], float]:
        return {
            pair: min(FAST, nbytes / seconds)
            for pair, (nbytes, seconds) in list(self._crossed.items())
            if nbytes >= SMALLEST_MEASURED and seconds > 0
        }
