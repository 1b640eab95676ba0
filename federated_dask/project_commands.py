"""The commands `federated-dask project …`: groups that users make themselves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated_dask.commands.actions import ActionList

if TYPE_CHECKING:
    from federated_dask.client.projects import RemoteProjects
    from federated_dask.protocol.grant_messages import Action
    from federated_dask.protocol.project_messages import Project

__all__ = ["project"]

TOKEN = "FEDERATED_DASK_TOKEN"  # noqa: S105  # the name of the variable
ACTIONS: dict[str, Action] = {"dataset": "compute", "function": "call"}


@click.group(short_help="Groups of people of any institutes.")
def project() -> None:
    """Projects: groups of people of any institutes, made and led by their members."""


def _options(required: bool = True) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in (
            click.option(
                "--at", "address", metavar="URL", required=required, help="The site that is asked."
            ),
            click.option(
                "--ca",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                envvar="FEDERATED_DASK_CA",
                help="CA certificates of the site, where they are no public ones. "
                "[env: FEDERATED_DASK_CA]",
            ),
            click.option(
                "--token-file",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help=f"Your token; by default that of the variable {TOKEN}, or of "
                "`federated-dask login`.",
            ),
        ):
            function = option(function)
        return function

    return add


@contextlib.contextmanager
def _site(address: str, ca: Path | None, token_file: Path | None) -> Iterator[RemoteProjects]:
    from federated_dask.client.projects import RemoteProjects

    token = os.environ.get(TOKEN) if token_file is None else token_file.read_text("utf-8").strip()
    site = RemoteProjects(address, token or None, ca)
    try:
        yield site
    finally:
        site.close()


@project.command()
@click.argument("name")
@_options()
def create(name: str, **where: Any) -> None:
    """Make the project NAME at a site; you lead it."""
    with _site(**where) as site:
        click.echo(f"Project {site.create(name).name} is made.")


@project.command("list")
@_options()
def list_(**where: Any) -> None:
    """List your projects at a site."""
    with _site(**where) as site:
        for each in site.projects().projects:
            click.echo(f"{each.name}  {len(each.members)} members")


@project.command()
@click.argument("name")
@click.option("--uses", default=1, show_default=True, help="How many may join by the link.")
@click.option("--days", default=7.0, show_default=True, help="How long the link holds.")
@_options()
def invite(name: str, uses: int, days: float, **where: Any) -> None:
    """Print a link by which others join the project NAME."""
    with _site(**where) as site:
        link = site.invite(name, uses=uses, lifetime=days * 86_400)
    click.echo("Whoever has this link may join:\n", err=True)
    click.echo(link)


@project.command()
@click.argument("link")
@_options(required=False)
def join(link: str, address: str | None, **where: Any) -> None:
    """Join the project that LINK leads to.

    With --at by way of another site, a peer of the project's, as its user.
    """
    from federated_dask.client.projects import parse_link

    home, code = parse_link(link)
    with _site(home if address is None else address, **where) as site:
        click.echo(f"You are a member of {site.join(code).name}.")


@project.command(short_help="Let the members of a project use RESOURCE.")
@click.argument("name")
@click.argument("resources", metavar="RESOURCE…", nargs=-1, required=True)
@click.option("--may", type=ActionList(), help="What they may do, such as compute,export.")
@_options()
def share(
    name: str, resources: tuple[str, ...], may: tuple[Action, ...] | None, **where: Any
) -> None:
    """Let the members of project NAME use RESOURCE of a site that you administer.

    NAME is that of a project of the same site, or NAME@SITE.  RESOURCE is
    dataset:NAME or function:NAME; by default members may compute with datasets and
    call functions.
    """
    kinds = dict.fromkeys(resource.partition(":")[0] for resource in resources)
    if may is None and not kinds.keys() <= ACTIONS.keys():
        raise click.UsageError("A RESOURCE is dataset:NAME or function:NAME; else give --may.")
    actions = tuple(ACTIONS[kind] for kind in kinds) if may is None else may
    with _site(**where) as site:
        grant = site.share(name, actions, resources)
    click.echo(f"{grant.id}  {grant.to} may {','.join(grant.may)} on {' '.join(grant.on)}")


@project.command()
@click.argument("name")
@_options()
def members(name: str, **where: Any) -> None:
    """List the members of the project NAME."""
    with _site(**where) as site:
        _show(site.members(name))


@project.command()
@click.argument("name")
@_options()
def leave(name: str, **where: Any) -> None:
    """Leave the project NAME; with its last member it ends."""
    with _site(**where) as site:
        click.echo(f"You left {site.leave(name).name}.")


@project.command(short_help="Remove a member of the project NAME.")
@click.argument("name")
@click.argument("subject")
@click.option("--issuer", help="Of the member; needed where several are called SUBJECT.")
@_options()
def remove(name: str, subject: str, issuer: str | None, **where: Any) -> None:
    """Remove the member SUBJECT of the project NAME; all sites know within a minute."""
    with _site(**where) as site:
        if issuer is None:
            issuers = [
                each.issuer for each in site.members(name).members if each.subject == subject
            ]
            if len(issuers) != 1:
                shown = ", ".join(issuers) or "nobody"
                raise click.UsageError(f"Called {subject!r}: {shown}. Give --issuer.")
            [issuer] = issuers
        _show(site.remove(name, issuer, subject))


def _show(found: Project) -> None:
    for each in found.members:
        click.echo(f"{each.subject}  ({each.issuer}){'  leads' if each.owner else ''}")
