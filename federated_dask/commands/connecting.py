"""How the commands reach a federation: options and environment variables."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from federated_dask.errors import ConfigurationError

if TYPE_CHECKING:
    from federated_dask.client.federated_client import FederatedClient

__all__ = ["connect", "connection_options", "json_option"]

F = TypeVar("F", bound=Callable[..., Any])

TOKEN = "FEDERATED_DASK_TOKEN"  # noqa: S105  # the name of the variable

at = click.option(
    "--at",
    "addresses",
    multiple=True,
    metavar="URL",
    envvar="FEDERATED_DASK_ADDRESS",
    help="Endpoint of a site; its peers are found. May be given several times. "
    "[env: FEDERATED_DASK_ADDRESS]",
)
token_file = click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the token. [env: FEDERATED_DASK_TOKEN holds the token itself; "
    "without either, the login of `federated-dask login`]",
)
ca = click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="FEDERATED_DASK_CA",
    help="PEM file of the only authorities to trust. [env: FEDERATED_DASK_CA]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def connection_options(command: F) -> F:
    """Give a command the options with which `connect` is called."""
    return at(token_file(ca(command)))


def connect(
    addresses: tuple[str, ...], token_file: Path | None, ca: Path | None
) -> FederatedClient:
    """Connect as the options say.

    Raises
    ------
    ConfigurationError
        If no address is given.
    """
    from federated_dask.client.federated_client import FederatedClient

    if not addresses:
        raise ConfigurationError(
            "There is no address to connect to.",
            hint="Give one: --at https://north.example:8786, or set FEDERATED_DASK_ADDRESS.",
        )
    token = token_file.read_text().strip() if token_file is not None else os.environ.get(TOKEN)
    return FederatedClient(
        list(addresses), token=token or None, verify=True if ca is None else ca, progress=False
    )
