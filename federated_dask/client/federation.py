"""What a client knows of its federation: the sites, what they offer, and how to reach them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from federated_dask.client.catalogue import Datasets, Sites
from federated_dask.client.connection import SiteConnection
from federated_dask.client.facts import AnnouncedFacts, facts_of
from federated_dask.client.finding import SiteFinder
from federated_dask.client.functions import Functions, Submits, published
from federated_dask.errors import ConfigurationError

__all__ = ["Federation"]


class Federation:
    """The sites of a federation, as one client sees them.

    Parameters
    ----------
    finder : SiteFinder
        Finds and reaches the sites.
    client : Submits
        Calls the functions that they publish.

    Attributes
    ----------
    sites : Sites
        By name, those that could not be reached included.
    datasets : Datasets
        Of all sites, by qualified name.
    functions : Functions
        Of all sites, by qualified name.
    facts : AnnouncedFacts
        What the sites announced, as far as it bears on a plan.
    """

    def __init__(self, finder: SiteFinder, client: Submits) -> None:
        self._finder = finder
        self._client = client
        self.sites = Sites({})
        self.datasets = Datasets({})
        self.functions = Functions({})
        self.facts = AnnouncedFacts(self)

    @property
    def connections(self) -> Mapping[str, SiteConnection]:
        """Connections to the sites that were reached, by name."""
        return self._finder.connections

    async def connect(self) -> None:
        """Reach the sites and ask what they offer; also to ask again.

        Raises
        ------
        FederatedError
            If a site whose address was given cannot be reached.
        """
        try:
            given, peers = await self._finder.reach_all()
            await self._finder.require_membership()
        except BaseException:
            # Nobody gets to close a client that could not be made.
            await self.close()
            raise
        found = {site.name: (site, catalogue) for site, catalogue in (*peers, *given)}
        facts = {
            name: facts_of(site.description, site.operations)
            for name, (site, _) in found.items()
            if site.description is not None
        }
        # Another thread may be planning: no site is ever missing that is there.
        self.facts.update(facts)
        for name in self.facts.keys() - facts.keys():
            del self.facts[name]
        self.datasets = Datasets(
            {
                f"{name}/{summary.name}": summary
                for name, (_, catalogue) in found.items()
                for summary in catalogue.datasets
            }
        )
        self.functions = published(
            {name: site.published for name, (site, _) in found.items()}, self._client
        )
        self.sites = Sites(
            {
                name: dataclasses.replace(site, functions=self.functions.at(name))
                for name, (site, _) in found.items()
            }
        )

    def connection_of(self, site: str) -> SiteConnection:
        """Give the connection to a site.

        Raises
        ------
        NotFound
            If the federation has no such site.
        FederatedError
            Why the site could not be reached.
        """
        if site in self.connections:
            self.connections[site].require_open()
            return self.connections[site]
        error = self.sites[site].error
        raise (
            error
            if error is not None
            else ConfigurationError(
                "The client is not connected.", site=site, hint="Await it first."
            )
        )

    def qualified(self, name: str) -> str:
        """Give a dataset's qualified name, ``site/dataset``, without ``fed://``.

        Raises
        ------
        ConfigurationError
            If the name has another form.
        """
        bare = str(name or "").removeprefix("fed://")
        site, _, dataset = bare.partition("/")
        if site and dataset and "/" not in dataset:
            return bare
        whole, _, variable = bare.rpartition("/")
        alike = [each for each in self.datasets if bare and each.endswith(f"/{bare}")]
        if whole in self.datasets:
            hint = f"Open the dataset and take its variable: open_dataset({whole!r})[{variable!r}]."
        elif bare in self.sites:
            hint = f"That is a site; fed.sites[{bare!r}] and fed.datasets tell what it has."
        else:
            hint = f"Give its site as well: {' or '.join(map(repr, alike or ['north/a1b']))}."
        raise ConfigurationError(f"{name!r} is no name of a dataset.", hint=hint)

    def place_of(self, name: str) -> tuple[SiteConnection, str]:
        """Give the connection to a dataset's site, and the dataset's name there."""
        site, _, dataset = self.qualified(name).partition("/")
        return self.connection_of(site), dataset

    def reopen(self) -> None:
        """Let connections be used that were closed."""
        self._finder.shut(False)

    async def close(self) -> None:
        """Close the connections."""
        await self._finder.close()

    def __dask_tokenize__(self) -> tuple[str, ...]:
        # xarray names arrays by how they were opened, this included.
        addresses = (each.address for each in self.connections.values())
        return (type(self).__qualname__, *sorted(addresses))
