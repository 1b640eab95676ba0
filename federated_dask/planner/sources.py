"""What the leaves of a graph stand for, and what the planner knows of the sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["HOME", "HeldReference", "SiteFacts", "SourceReference"]

HOME = "home"
"""The place that is no site: where the researcher's own process runs."""


@dataclass(frozen=True, slots=True)
class SourceReference:
    """A stored variable of one dataset version at one site."""

    site: str
    dataset: str
    version: str
    variable: str


@dataclass(frozen=True, slots=True)
class HeldReference:
    """A result that a site holds under a lease."""

    site: str
    lease: str
    output: int
    datasets: tuple[str, ...] = ()
    """Names of the datasets, of this site, from which it was derived."""


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What a site announced about itself, as far as it bears on a plan.

    Parameters
    ----------
    name : str
        The site.
    operations : frozenset of str
        Names of the operations it has.
    egress_limits : mapping of str to int
        Dataset to the bytes that one job may release of it; datasets that are
        not listed have no limit.
    """

    name: str
    operations: frozenset[str]
    egress_limits: Mapping[str, int] = field(default_factory=dict)
