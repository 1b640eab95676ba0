"""What binds the use of datasets: budgets of bytes, licences, quotas."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes

from federated_dask.client.catalogue import Sites
from federated_dask.client.connection import SiteConnection
from federated_dask.protocol.grant_messages import Usage
from federated_dask.protocol.messages import LicenseTerms

__all__ = ["DatasetBudget", "Terms"]


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


class Terms:
    """The part of `FederatedClient` that is about terms of use."""

    @property
    def sites(self) -> Sites:
        """Sites of the federation."""
        raise NotImplementedError

    def connection_of(self, site: str) -> SiteConnection:
        """Give the connection to a site."""
        raise NotImplementedError

    def _qualified(self, name: str) -> str:
        raise NotImplementedError

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        raise NotImplementedError

    def budget(self, name: str) -> Any:
        """Ask how much of a dataset may still leave its site.

        Parameters
        ----------
        name : str
            Qualified name, ``site/dataset``.

        Returns
        -------
        DatasetBudget
            An awaitable of it, in asynchronous mode.

        Raises
        ------
        NotFound
            If there is no such site or dataset.
        """

        async def budget() -> DatasetBudget:
            connection, dataset = self._place_of(name)
            told = await connection.budget(dataset)
            return DatasetBudget(
                dataset=f"{connection.name}/{dataset}",
                tier=told.tier,
                project=told.project,
                total=told.total,
                used=told.used,
                left=None if told.total is None else max(0, told.total - told.used),
            )

        return self._run(budget())

    def usage(self, site: str | None = None) -> Any:
        """Ask what you use of the sites, and may use.

        Parameters
        ----------
        site : str, optional
            One site; by default all that can be reached.

        Returns
        -------
        dict of str to Usage
            By site.  An awaitable of it, in asynchronous mode.
        """

        async def usage() -> dict[str, Usage]:
            names = [name for name, each in self.sites.items() if each.error is None]
            chosen = names if site is None else [site]
            connections = [self.connection_of(name) for name in chosen]
            found = await asyncio.gather(
                *(connection.ask("GET", "/usage", Usage) for connection in connections)
            )
            return dict(zip(chosen, found, strict=True))

        return self._run(usage())

    def accept_license(self, name: str, license: str | None = None) -> Any:
        """Accept the licence of a dataset; its site writes down that you did.

        Parameters
        ----------
        name : str
            Qualified name, ``site/dataset``.
        license : str, optional
            The licence that you read; by default the one that the dataset has
            now, which is returned.

        Returns
        -------
        LicenseTerms
            What you accepted.  An awaitable of it, in asynchronous mode.

        Raises
        ------
        RequestRefused
            If the dataset is under another licence than `license`.
        """

        async def accept() -> LicenseTerms:
            connection, dataset = self._place_of(name)
            terms = await connection.license(dataset)
            await connection.accept_license(dataset, terms.license if license is None else license)
            return await connection.license(dataset)

        return self._run(accept())

    def _place_of(self, name: str) -> tuple[SiteConnection, str]:
        site, _, dataset = self._qualified(name).partition("/")
        return self.connection_of(site), dataset
