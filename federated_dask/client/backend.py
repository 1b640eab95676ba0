"""``xr.open_dataset("fed://site/dataset", engine="federated")``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import xarray as xr
from xarray.backends import BackendEntrypoint

from federated_dask.client import loop
from federated_dask.client.current import HasConnections, current_connection
from federated_dask.client.datasets import fetch_dataset
from federated_dask.errors import ConfigurationError

__all__ = ["FederatedBackend", "parse_address"]

SCHEME = "fed://"


class FederatedBackend(BackendEntrypoint):
    """Opens datasets of a federation's sites, over the current client or a given one."""

    description: ClassVar[str] = "Open datasets of a federation's sites (fed://site/dataset)"
    open_dataset_parameters: ClassVar[tuple[str, ...] | None] = (
        "filename_or_obj",
        "drop_variables",
        "client",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        client: HasConnections | None = None,
        **unsupported: Any,
    ) -> xr.Dataset:
        """Open a dataset lazily.

        Parameters
        ----------
        filename_or_obj : str
            ``fed://site/dataset``.
        drop_variables : str or iterable of str, optional
            Variables to leave out.
        client : FederatedClient, optional
            Who knows the way; the current client by default.
        **unsupported : object
            Other options of `xarray.open_dataset`, which are refused: the site
            decodes its data.

        Returns
        -------
        xarray.Dataset

        Raises
        ------
        ConfigurationError
            If the address cannot be used, an option has no meaning here, or
            there is no client.
        FederatedError
            If the site does not describe the dataset.
        """
        if unsupported:
            raise ConfigurationError(
                f"{', '.join(sorted(unsupported))}: not an option of engine='federated', "
                "because the site decodes its data before they travel.",
                hint="Ask the site's operator for the dataset with other open_options.",
            )
        site, name = parse_address(filename_or_obj)
        connection = current_connection(site) if client is None else client.connection_of(site)
        dropped = (drop_variables,) if isinstance(drop_variables, str) else drop_variables or ()
        # xarray makes the indexes itself, unless its caller wants none.
        return loop.sync(
            fetch_dataset(
                connection,
                name,
                drop_variables=frozenset(dropped),
                create_default_indexes=False,
            )
        )

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Say whether this is an address of the form ``fed://site/dataset``."""
        return isinstance(filename_or_obj, str) and filename_or_obj.startswith(SCHEME)


def parse_address(address: Any) -> tuple[str, str]:
    """Take the address of a dataset apart.

    Parameters
    ----------
    address : str
        ``fed://site/dataset``.

    Returns
    -------
    site, dataset : str

    Raises
    ------
    ConfigurationError
        If it has another form.

    Examples
    --------
    >>> parse_address("fed://north/a1b")
    ('north', 'a1b')
    """
    if isinstance(address, str) and address.startswith(SCHEME):
        site, _, dataset = address.removeprefix(SCHEME).partition("/")
        if site and dataset and "/" not in dataset:
            return site, dataset
    raise ConfigurationError(
        f"{address!r} is no address of a dataset.", hint="It looks like fed://north/a1b."
    )
