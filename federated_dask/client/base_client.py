"""A client but for computing: what it knows of the sites, their terms, its own life."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from federated_dask.client import loop, takeover, terms
from federated_dask.client.catalogue import Datasets, Sites
from federated_dask.client.computing import Computer
from federated_dask.client.connection import SiteConnection
from federated_dask.client.federation import Federation
from federated_dask.client.functions import Functions
from federated_dask.client.run_record import RunRecord
from federated_dask.errors import ConfigurationError
from federated_dask.planner.sources import SiteFacts

__all__ = ["BaseClient"]

T = TypeVar("T")


class BaseClient:
    """A client without what computes and calls: `FederatedClient` adds that."""

    asynchronous: bool
    _federation: Federation
    _computer: Computer
    _set_as_default: bool

    # Looking around

    @property
    def sites(self) -> Sites:
        """Sites of the federation by name, those that could not be reached included."""
        return self._federation.sites

    @property
    def datasets(self) -> Datasets:
        """Datasets of all sites by qualified name; ``fed.datasets.search("sea")`` searches."""
        return self._federation.datasets

    @property
    def functions(self) -> Functions:
        """Functions of all sites by qualified name; ``fed.functions.search("trend")`` searches."""
        return self._federation.functions

    @property
    def facts(self) -> Mapping[str, SiteFacts]:
        """What the sites announced, as far as it bears on a plan."""
        return self._federation.facts

    @property
    def last_run(self) -> RunRecord | None:
        """What the last compute really did and moved; None before the first."""
        return self._computer.last_run

    @property
    def compute_timeout(self) -> float | None:
        """Seconds that a compute may take that has no limit of its own; None for no limit."""
        return self._computer.timeout

    @compute_timeout.setter
    def compute_timeout(self, seconds: float | None) -> None:
        self._computer.timeout = seconds

    def connection_of(self, site: str) -> SiteConnection:
        """Give the connection to a site.

        Parameters
        ----------
        site : str
            Its name.

        Returns
        -------
        SiteConnection

        Raises
        ------
        NotFound
            If the federation has no such site.
        ConfigurationError
            If an asynchronous client has not been awaited.
        FederatedError
            Why the site could not be reached.
        """
        return self._federation.connection_of(site)

    def refresh(self) -> Any:
        """Ask all sites again what they offer."""
        return self._run(self._connect())

    # Terms of use

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
        return self._run(terms.dataset_budget(self._federation, name))

    def usage(self, site: str | None = None) -> Any:
        """Ask what you use of the sites, and may use.

        Parameters
        ----------
        site : str, optional
            One site; by default all that can be reached.

        Returns
        -------
        mapping of str to Usage
            By site; shown as a table.  An awaitable of it, in asynchronous mode.

        Raises
        ------
        NotFound
            If there is no such site.
        """
        return self._run(terms.usage(self._federation, site))

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
        return self._run(terms.accept_license(self._federation, name, license))

    # Life

    async def _connect(self) -> Self:
        await self._federation.connect()
        return self

    def as_current(self) -> Self:
        """Make this client Dask's scheduler, until it is closed or another takes over."""
        self._federation.reopen()
        takeover.enter(self, self._computer)
        return self

    def close(self) -> Any:
        """Close the connections and stop being Dask's scheduler.

        What was opened by the client cannot be computed any more, until it is entered again;
        what was persisted can.

        An awaitable in asynchronous mode.
        """
        takeover.leave(self)
        return self._run(self._federation.close())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        return coroutine if self.asynchronous else loop.sync(coroutine)

    def __enter__(self) -> Self:
        if self.asynchronous:
            raise ConfigurationError(
                "This client is asynchronous.", hint="Use `async with FederatedClient(...)`."
            )
        return self.as_current()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._connect_first().__await__()

    async def _connect_first(self) -> Self:
        await self._connect()
        return self.as_current() if self._set_as_default else self

    async def __aenter__(self) -> Self:
        if not self._federation.connections:
            await self._connect()
        return self.as_current()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        takeover.leave(self)
        await self._federation.close()

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return self._federation.__dask_tokenize__()

    def __repr__(self) -> str:
        sites = len(self._federation.connections)
        functions = f", {len(self.functions)} functions" if self.functions else ""
        return f"<{type(self).__name__}: {sites} sites, {len(self.datasets)} datasets{functions}>"

    def _repr_html_(self) -> str:
        return (
            f"<div><h3>{type(self).__name__}</h3>{self.sites._repr_html_()}"
            f"{self.datasets._repr_html_()}{self.functions._repr_html_()}</div>"
        )
