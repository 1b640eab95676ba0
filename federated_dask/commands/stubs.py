"""``federated-dask stubs``: types of a site's functions, for editors."""

from __future__ import annotations

from pathlib import Path

import click

from federated_dask.commands.connecting import connect, connection_options

__all__ = ["stubs"]


@click.command()
@click.argument("address", metavar="URL")
@connection_options
def stubs(
    address: str, addresses: tuple[str, ...], token_file: Path | None, ca: Path | None
) -> None:
    """Write typed stubs of the functions of the site at URL.

    \b
    federated-dask stubs https://north.example:8786 > north.pyi
    """  # noqa: D301  # click wants the character itself
    from federated_dask.client.stubs import stubs_of

    with connect((address,), token_file, ca) as fed:
        given = address.rstrip("/")
        [site] = [name for name, each in fed.sites.items() if each.address.rstrip("/") == given]
        click.echo(stubs_of(site, fed.functions.at(site).values()), nl=False)
