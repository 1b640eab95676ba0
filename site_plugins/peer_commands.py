"""The operator's commands about peers: `federated-dask site invite|join|peers|forget`."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from site_plugins.audit import Audit
    from site_plugins.config import SiteConfig
    from site_plugins.peers import PeerList
    from site_plugins.registry import Registry

__all__ = ["forget", "invite", "join", "peers"]

OPERATOR = "the operator"
CONFIG = click.argument("config", metavar="SITE.TOML", type=click.Path(path_type=Path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[SiteConfig, Registry, PeerList, Audit]]:
    from site_plugins.audit import AUDIT_LOG, Audit
    from site_plugins.config import load_config
    from site_plugins.peers import PeerList
    from site_plugins.registry import REGISTRY, Registry

    config = load_config(path)
    registry = Registry(config.site.state / REGISTRY)
    audit = Audit(config.site.state / AUDIT_LOG)
    try:
        yield config, registry, PeerList(config, registry), audit
    finally:
        audit.close()
        registry.close()


@click.command()
@CONFIG
@click.option("--name", required=True, help="Name of the site that is invited.")
@click.option("--lifetime", default="1h", show_default=True, help="How long the code holds.")
def invite(config: Path, name: str, lifetime: str) -> None:
    """Print a code by which another site becomes a peer, once.

    Hand it over on a way that nobody else reads.
    """
    from site_plugins.config import parse_duration
    from site_plugins.invitations import Invitations

    try:
        seconds = parse_duration(lifetime)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--lifetime") from error
    with _opened(config) as (site, registry, known, audit):
        _warn_of_address(site)
        code = Invitations(site, registry, known).create(name, seconds)
        audit.write("peer_invited", None, by=OPERATOR, peer=name)
    click.echo(f"The operator of {name!r} runs, within {lifetime}:\n", err=True)
    click.echo(f"federated-dask site join SITE.TOML {site.public_address()} {code}")


def _warn_of_address(site: SiteConfig) -> None:
    """Say so where nobody elsewhere can reach the address that the site tells."""
    parts = urlsplit(site.public_address())
    host = parts.hostname or ""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if is_loopback or parts.port == 0:
        click.echo(
            f"Warning: {site.public_address()} can be reached from this machine only. Set host or "
            "address in [endpoint] of site.toml.\n",
            err=True,
        )


@click.command(short_help="Become a peer of the site at URL by its CODE.")
@CONFIG
@click.argument("address", metavar="URL")
@click.argument("code")
def join(config: Path, address: str, code: str) -> None:
    """Become a peer of the site at URL by its CODE; both list each other then."""
    import asyncio

    from site_plugins.joining import join as join_site

    with _opened(config) as (site, _, known, audit):
        name = asyncio.run(join_site(site, known, address, code))
        audit.write("peer_joined", None, by=OPERATOR, peer=name, address=address)
    click.echo(f"{site.name!r} and {name!r} are peers.")


@click.command()
@CONFIG
def peers(config: Path) -> None:
    """List the peers of a site."""
    with _opened(config) as (_, _, known, _):
        for name, peer in sorted(known.current().items()):
            whence = "by invitation" if peer.learnt else "site.toml"
            exchanges = "" if peer.verifier is not None else "; no public key, nothing is exchanged"
            click.echo(f"{name}  {peer.address}  ({whence}{exchanges})")


@click.command()
@CONFIG
@click.argument("name")
def forget(config: Path, name: str) -> None:
    """Remove a peer that joined by invitation.

    It is refused from now on.
    """
    with _opened(config) as (_, _, known, audit):
        known.forget(name)
        audit.write("peer_forgotten", None, by=OPERATOR, peer=name)
    click.echo(f"{name!r} is no peer any more. Its operator may want to forget this site too.")
