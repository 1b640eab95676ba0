"""The commands `federated-dask grant …`: who may do what at a site.

With ``--at URL`` they ask a site, with your token; with ``--site SITE.TOML`` they
change the state of a site on this machine, which runs or does not.  What reaches
into a site comes from the package of sites, by the entry-point group
``federated_dask.site_grants``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec

from federated_dask.commands.actions import ActionList
from federated_dask.protocol.grant_messages import (
    Action,
    Grant,
    GrantAnswer,
    GrantQuestion,
    Grants,
    NewGrant,
)

__all__ = ["grant"]

TOKEN_VARIABLE = "FEDERATED_DASK_TOKEN"  # noqa: S105


class _Store(Protocol):
    """Grants of a site, here or elsewhere."""

    def grants(self) -> Grants: ...
    def add(self, new: NewGrant) -> Grant: ...
    def revoke(self, id_: str) -> Grant: ...
    def explain(self, question: GrantQuestion) -> GrantAnswer: ...
    def close(self) -> None: ...


@click.group()
def grant() -> None:
    """Who may do what with the datasets and functions of a site."""


def _where(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--at", "address", metavar="URL", help="A site that you administer."),
        click.option(
            "--site",
            "config",
            metavar="SITE.TOML",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A site on this machine.",
        ),
        click.option(
            "--ca",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            envvar="FEDERATED_DASK_CA",
            help="CA certificates of the site at URL, where they are no public ones. "
            "[env: FEDERATED_DASK_CA]",
        ),
        click.option(
            "--token-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Your token for the site at URL; by default that of the variable "
            f"{TOKEN_VARIABLE}, or of `federated-dask login`.",
        ),
    ):
        function = option(function)
    return function


@contextlib.contextmanager
def _store(
    address: str | None, config: Path | None, ca: Path | None, token_file: Path | None
) -> Iterator[_Store]:
    if (address is None) == (config is None):
        raise click.UsageError("Give either --at URL or --site SITE.TOML.")
    store: _Store
    if address is not None:
        from federated_dask.client.administration import RemoteGrants

        token = os.environ.get(TOKEN_VARIABLE)
        if token_file is not None:
            token = token_file.read_text("utf-8").strip()
        store = RemoteGrants(address, token, ca)
    else:
        store = _local()(config)
    try:
        yield store
    finally:
        store.close()


def _local() -> Callable[[Any], _Store]:
    for entry in entry_points(group="federated_dask.site_grants"):
        found: Callable[[Any], _Store] = entry.load()
        return found
    raise click.ClickException("--site needs a site here: pip install 'federated-dask[site]'")


@grant.command(short_help="Let WHO do ACTION with RESOURCE, from now on.")
@click.argument("who")
@click.argument("actions", metavar="ACTION[,ACTION…]", type=ActionList())
@click.argument("resources", metavar="RESOURCE…", nargs=-1, required=True)
@_where
def add(who: str, actions: tuple[Action, ...], resources: tuple[str, ...], **where: Any) -> None:
    """Let WHO do ACTION with RESOURCE; holds at once, also while the site runs.

    \b
    WHO       anyone, user:SUBJECT, "user:ISSUER SUBJECT", group:NAME, project:NAME@SITE
    ACTION    describe, compute, export, call, publish, code, admin
    RESOURCE  dataset:soil-*, function:trend-*, project:NAME, site:NAME, or *
    """  # noqa: D301  # click wants the character itself
    try:
        new = msgspec.convert({"to": who, "may": actions, "on": list(resources)}, NewGrant)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"That cannot be granted: {error}.") from error
    with _store(**where) as store:
        click.echo(_line(store.add(new)))


@grant.command("list")
@_where
def list_(**where: Any) -> None:
    """Show the grants of a site, those of its site.toml included."""
    with _store(**where) as store:
        for each in store.grants().grants:
            click.echo(_line(each))


@grant.command()
@click.argument("id_", metavar="ID")
@_where
def revoke(id_: str, **where: Any) -> None:
    """Take the grant with that ID back; running jobs that need it end."""
    with _store(**where) as store:
        click.echo(f"Revoked {_line(store.revoke(id_))}")


@grant.command()
@click.argument("user", metavar="USER")
@click.argument("action")
@click.argument("resource")
@click.option("--issuer", default="", help="Issuer of USER's tokens; the site itself by default.")
@click.option("--group", "groups", multiple=True, help="A group of USER.")
@click.option("--project", "projects", multiple=True, help="A project of USER, NAME@SITE.")
@_where
def explain(
    user: str,
    action: str,
    resource: str,
    issuer: str,
    groups: tuple[str, ...],
    projects: tuple[str, ...],
    **where: Any,
) -> None:
    """Say which grants decide whether USER may do ACTION with RESOURCE.

    The exit code is 1 if it may not.
    """
    asked = {
        "subject": user,
        "issuer": issuer,
        "groups": groups,
        "projects": projects,
        "action": action,
        "resource": resource,
    }
    try:
        question = msgspec.convert(asked, GrantQuestion)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"That is no question: {error}.") from error
    with _store(**where) as store:
        answer = store.explain(question)
    if not answer.allowed:
        why = "no grant names it, and it is under an embargo" if answer.embargoed else "no grant"
        click.echo(f"{user} may not {action} {resource}: {why}.")
        raise SystemExit(1)
    click.echo(f"{user} may {action} {resource}:")
    for each in answer.grants:
        click.echo(f"  {_line(each)}")


def _line(each: Grant) -> str:
    return f"{each.id}  {each.to} may {','.join(each.may)} on {' '.join(each.on)}  (by {each.by})"
