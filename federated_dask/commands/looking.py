"""``federated-dask ls`` and ``describe``: what a federation has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated_dask.commands.connecting import connect, connection_options, json_option
from federated_dask.errors import NotFound, Reason

if TYPE_CHECKING:
    from federated_dask.client.federated_client import FederatedClient

__all__ = ["describe", "ls"]


@click.command(short_help="List sites, datasets, functions or variables.")
@click.argument("what", required=False, metavar="[URL | SITE | SITE/DATASET]")
@connection_options
@json_option
def ls(
    what: str | None,
    addresses: tuple[str, ...],
    token_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """List sites, a site's datasets and functions, or a dataset's variables."""
    if what is not None and "://" in what:
        addresses, what = (*addresses, what), None
    with connect(addresses, token_file, ca) as fed:
        head: tuple[str, ...]
        if what is None:
            head, rows = ("site", "status", "datasets", "functions", "title"), _sites(fed)
        elif "/" in what:
            head, rows = ("variable", "dimensions", "dtype", "size"), _variables(fed, what)
        else:
            head, rows = ("name", "kind", "egress", "title"), _offers(fed, what)
    if as_json:
        _print_json([dict(zip(head, row, strict=True)) for row in rows])
        return
    table = (head, *rows)
    widths = [max(len(str(row[column])) for row in table) for column in range(len(head))]
    for row in table if rows else ():
        cells = (str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _sites(fed: FederatedClient) -> list[tuple[Any, ...]]:
    from federated_dask.client.remote_errors import clean_text

    return [
        (
            name,
            site.status,
            sum(each.startswith(f"{name}/") for each in fed.datasets),
            len(site.functions),
            clean_text(site.description.title, 100) if site.description is not None else "",
        )
        for name, site in fed.sites.items()
    ]


def _offers(fed: FederatedClient, site: str) -> list[tuple[Any, ...]]:
    from federated_dask.client.remote_errors import clean_text

    # Raises what is wrong with the name, or with the site.
    fed.connection_of(fed.sites[site].name)
    datasets = [
        (name, "dataset", summary.egress.tier, clean_text(summary.title, 100))
        for name, summary in fed.datasets.items()
        if name.startswith(f"{site}/")
    ]
    functions = [
        (name, "function", "", clean_text(each.description.title, 100))
        for name, each in fed.functions.at(site).items()
    ]
    return [*datasets, *functions]


def _variables(fed: FederatedClient, name: str) -> list[tuple[Any, ...]]:
    opened = fed.open_dataset(name)
    return [
        (
            str(each),
            " ".join(f"{d}:{n}" for d, n in variable.sizes.items()),
            str(variable.dtype),
            variable.nbytes,
        )
        for each, variable in opened.variables.items()
    ]


@click.command()
@click.argument("name", metavar="SITE | SITE/DATASET | SITE/FUNCTION")
@connection_options
@json_option
def describe(
    name: str,
    addresses: tuple[str, ...],
    token_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """Describe a site, a dataset or a function."""
    import msgspec

    with connect(addresses, token_file, ca) as fed:
        if "/" not in name:
            site = fed.sites[name]
            fed.connection_of(name)
            if as_json:
                _print_json(msgspec.to_builtins(site.description))
            else:
                click.echo(_site_text(site))
        elif name in fed.functions:
            function = fed.functions[name]
            if as_json:
                _print_json(msgspec.to_builtins(function.description))
            else:
                click.echo(f"{function.name}{function.signature}\n\n{function.documentation()}")
        else:
            _describe_dataset(fed, name, as_json)


def _site_text(site: Any) -> str:
    from federated_dask.client.remote_errors import clean_text

    about = site.description
    # A site tells its size to those who may describe it, and nothing to others.
    workers = [f"workers    {about.workers}, {about.threads} threads"] if about.workers else []
    lines = [
        f"{site.name}: {clean_text(about.title, 200)}" if about.title else site.name,
        f"address    {site.address}",
        *workers,
        f"peers      {', '.join(peer.name for peer in about.peers) or 'none'}",
        f"functions  {len(site.functions)}",
    ]
    return "\n".join(lines)


def _describe_dataset(fed: FederatedClient, name: str, as_json: bool) -> None:
    from federated_dask.client.remote_errors import clean_text

    try:
        opened = fed.open_dataset(name)
    except NotFound as error:
        if error.reason is Reason.UNKNOWN_DATASET:
            error.hint = f"`federated-dask ls {name.partition('/')[0]}` lists what there is."
        raise
    if as_json:
        described = opened.to_dict(data=False)
        described["site"], _, described["name"] = name.partition("/")
        _print_json(described)
    else:
        summary = fed.datasets[name]
        about = [summary.title, f"egress     {summary.egress.tier}"]
        if summary.license:
            about.append(f"licence    {summary.license}")
        lines = "\n".join(filter(None, about))
        click.echo(clean_text(f"{lines}\n\n{opened}", 100_000))


def _print_json(value: Any) -> None:
    import json

    from federated_dask.commands.writing import as_plain

    click.echo(json.dumps(as_plain(value), indent=2, ensure_ascii=False))
