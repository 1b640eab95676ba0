"""What binds the use of datasets: budgets of bytes, licences, quotas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dask.utils import format_bytes

from federated_dask.client.federation import Federation
from federated_dask.planner.explanation import html_table, text_table
from federated_dask.protocol.grant_messages import Usage
from federated_dask.protocol.messages import LicenseTerms

__all__ = ["DatasetBudget", "SiteUsages", "accept_license", "dataset_budget", "usage"]


@dataclass(frozen=True, kw_only=True)
class DatasetBudget:
    """How much of a dataset may still leave its site, for you or for your project.

    Attributes
    ----------
    dataset : str
        Qualified name.
    tier : str
        ``open``, ``derived`` or ``functions-only``.
    project : str or None
        Project whose members share the budget; None for yours alone.
    total, left : int or None
        Bytes that may ever leave, and that still may; None for no limit.
    used : int
        Bytes that have left, or are set aside for what runs now.

    Examples
    --------
    >>> DatasetBudget(dataset="north/soil", tier="derived", total=10_000, used=2_500, left=7_500)
    <north/soil: 2.44 kiB of 9.77 kiB used, 7.32 kiB left>
    """

    dataset: str
    tier: str
    project: str | None = None
    total: int | None = None
    used: int = 0
    left: int | None = None

    def __repr__(self) -> str:
        if self.total is None or self.left is None:
            return f"<{self.dataset}: {self.tier}, no limit>"
        whose = f" by {self.project}" if self.project else ""
        return (
            f"<{self.dataset}: {format_bytes(self.used)} of {format_bytes(self.total)} used"
            f"{whose}, {format_bytes(self.left)} left>"
        )


async def dataset_budget(federation: Federation, name: str) -> DatasetBudget:
    """Ask how much of a dataset may still leave its site."""
    connection, dataset = federation.place_of(name)
    told = await connection.budget(dataset)
    return DatasetBudget(
        dataset=f"{connection.name}/{dataset}",
        tier=told.tier,
        project=told.project,
        total=told.total,
        used=told.used,
        left=None if told.total is None else max(0, told.total - told.used),
    )


class SiteUsages(Mapping[str, Usage]):
    """What one uses of sites, by site; shown as a table.

    Examples
    --------
    >>> from federated_dask.protocol.grant_messages import UsageLine
    >>> lines = (UsageLine(name="egress_per_day", used=2048.0, limit=2.0**30),)
    >>> SiteUsages({"north": Usage(site="north", jobs_today=3, lines=lines)})
    Used, by site
      site   what                used     limit  begins anew (UTC)
      north  jobs_today             3         -  -
      north  egress_per_day  2.00 kiB  1.00 GiB  -
    """

    HEAD = ("site", "what", "used", "limit", "begins anew (UTC)")

    def __init__(self, usages: Mapping[str, Usage]) -> None:
        self._usages = dict(usages)

    def __getitem__(self, site: str) -> Usage:
        return self._usages[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._usages)

    def __len__(self) -> int:
        return len(self._usages)

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for site, told in self._usages.items():
            rows.append((site, "jobs_today", f"{told.jobs_today:,}", "-", "-"))
            rows += [
                (
                    site,
                    line.name,
                    _amount(line.name, line.used),
                    _amount(line.name, line.limit),
                    line.resets or "-",
                )
                for line in told.lines
            ]
        return rows

    def __repr__(self) -> str:
        return "\n".join(["Used, by site", *text_table(self.HEAD, self._rows())])

    def _repr_html_(self) -> str:
        return html_table(self.HEAD, self._rows())


def _amount(name: str, value: float) -> str:
    if "bytes" in name or "egress" in name:
        return format_bytes(int(value))
    return f"{value:,.1f} s" if "seconds" in name else f"{value:,.0f}"


async def usage(federation: Federation, site: str | None) -> SiteUsages:
    """Ask one site, or all that can be reached, what one uses of it and may use."""
    names = [name for name, each in federation.sites.items() if each.error is None]
    chosen = names if site is None else [site]
    connections = [federation.connection_of(name) for name in chosen]
    found = await asyncio.gather(
        *(connection.ask("GET", "/usage", Usage) for connection in connections)
    )
    return SiteUsages(dict(zip(chosen, found, strict=True)))


async def accept_license(federation: Federation, name: str, license: str | None) -> LicenseTerms:
    """Accept the licence that was read, or the one that the dataset has now; give it."""
    connection, dataset = federation.place_of(name)
    terms = await connection.license(dataset)
    await connection.accept_license(dataset, terms.license if license is None else license)
    return await connection.license(dataset)
