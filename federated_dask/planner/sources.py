"""What the leaves of a graph stand for, and what the planner knows of the sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from federated_dask.protocol.messages import Content

__all__ = ["HOME", "HeldReference", "SiteFacts", "SourceReference", "StoredFacts"]

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
    datasets: tuple[tuple[str, int | None], ...] = ()
    """Datasets of this site from which it was derived, with the bytes left of its budget."""


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """What a plan needs to know of a stored variable."""

    shape: tuple[int, ...]
    dtype: np.dtype
    egress_limit: int | None
    """Bytes that were left of its dataset's budget; None for no limit."""
    content: Content | None = None
    """What its site tells of its values."""


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What a site announced about itself, as far as it bears on a plan.

    Parameters
    ----------
    name : str
        The site.
    operations : frozenset of str
        Names of the operations it has.
    peers : frozenset of str
        Sites with which it exchanges values.
    resources : mapping of str to float
        Most that one of its workers has of each resource.
    task_bytes : int, optional
        Bytes that one operation may make there; None where it is not known.
    """

    name: str
    operations: frozenset[str]
    peers: frozenset[str] = frozenset()
    resources: Mapping[str, float] = field(default_factory=dict, hash=False)
    task_bytes: int | None = None
