"""The commands ``federated-dask login`` and ``federated-dask logout``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["login", "logout"]

ADDRESS = click.argument("address", metavar="URL")


@click.command()
@ADDRESS
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="FEDERATED_DASK_CA",
    help="CA certificates of site and provider, where they are no public ones. "
    "[env: FEDERATED_DASK_CA]",
)
@click.option("--issuer", metavar="NAME", help="The provider, where the site has several.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Keep this token, as the site's operator handed it out; - for standard input.",
)
def login(address: str, ca: Path | None, issuer: str | None, token_file: Path | None) -> None:
    """Log in for the site at URL, in a browser of any machine.

    FederatedClient(URL) and the other commands find the token from then on, and renew it.
    """
    from federated_dask.client.login import log_in
    from federated_dask.client.login_store import StoredLogin, save_login
    from federated_dask.client.sessions import check_address, read_trust

    address = check_address(address)
    if token_file is not None:
        with click.open_file(str(token_file)) as file:
            token = file.read().strip()
        if not (token and token.isascii() and token.isprintable()):
            raise click.BadParameter("holds no token.", param_hint="--token-file")
        trust = None if ca is None else read_trust(ca)
        place = save_login(StoredLogin(address=address, access_token=token, trust=trust))
    else:
        verify: bool | Path = True if ca is None else ca
        _, place = log_in(address, show=_show, verify=verify, issuer=issuer)
    click.echo(f"Logged in at {address}. The login is kept in {_named(place)}.")


def _show(code: object) -> None:
    from federated_dask.client.openid_provider import DeviceCode

    assert isinstance(code, DeviceCode)  # noqa: S101
    click.echo(f"Open {code.address}\nand confirm the code {code.code}\n", err=True)


def _named(place: str) -> str:
    return "the keyring of this system" if place == "keyring" else place


@click.command()
@ADDRESS
def logout(address: str) -> None:
    """Forget the login for the site at URL."""
    from federated_dask.client.login_store import delete_login

    gone = delete_login(address)
    click.echo(f"Logged out at {address}." if gone else f"There was no login for {address}.")
