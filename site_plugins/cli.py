"""The operator's commands: `federated-dask site …` and `federated-dask token …`.

Imports of what takes time are inside of the commands, so that ``--help`` answers
at once.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from federated_dask.errors import ConfigurationError, FederatedError
from site_plugins.peer_commands import forget, invite, join, peers

if TYPE_CHECKING:
    from rich.console import Console

    from site_plugins.config import SiteConfig
    from site_plugins.datasets import StoredDataset

__all__ = ["CONFIG", "Group", "site", "token"]

FIRST_TOKEN_LIFETIME = "30d"  # noqa: S105
EXPIRES_SOON = 14
"""Days before a certificate's end at which `check` speaks up."""

CONFIG = click.argument("config", metavar="SITE.TOML", type=click.Path(path_type=Path))


class _Failure(click.ClickException):
    exit_code = 2


class Group(click.Group):
    """A group whose commands show the errors of federated_dask as one message."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except FederatedError as error:
            hint = f"\n{error.hint}" if error.hint else ""
            raise _Failure(f"{error.message}{hint}") from error


@click.group(cls=Group)
def site() -> None:
    """Set up, check and run a site."""


@click.group(cls=Group)
def token() -> None:
    """Tokens, by which a site knows who asks."""


@site.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", help="Name of the site; that of DIR by default.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Host name or IP address by which others reach the site; several for the certificate.",
)
def init(folder: Path, name: str | None, hosts: tuple[str, ...]) -> None:
    """Write what a new site needs into DIR.

    A commented site.toml, certificates for this machine, the key that signs the
    site's tokens, and a first token for you.
    """
    from site_plugins.certificates import write_certificates, write_private_file
    from site_plugins.config import load_config, parse_duration
    from site_plugins.keys import new_issuer_key, public_key_of
    from site_plugins.tokens import create_token

    name = _site_name(folder, name)
    new = [folder / part for part in ("site.toml", "certificates", "keys/issuer.pem", "token.txt")]
    if there := [str(path) for path in new if path.exists()]:
        raise ConfigurationError(
            f"{', '.join(there)}: already there, and nothing is overwritten.",
            hint="Choose another DIR.",
        )
    try:
        for part in ("keys", "data"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_certificates(folder / "certificates", names=hosts)
        write_private_file(folder / "keys" / "issuer.pem", new_issuer_key())
        public_key = public_key_of(folder / "keys" / "issuer.pem")
        (folder / "keys" / "issuer_public.pem").write_bytes(public_key)
        user = getpass.getuser()
        text = TEMPLATE.format(name=name, user=user, **_reached_at(hosts))
        (folder / "site.toml").write_text(text, "utf-8")
        config = load_config(folder / "site.toml")
        first = create_token(config, user, parse_duration(FIRST_TOKEN_LIFETIME))
        write_private_file(folder / "token.txt", f"{first}\n".encode())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The site cannot be set up in {folder}: {error}") from error
    click.echo(
        f"Site {name!r} is set up in {folder}.\n\n"
        f"  1. Name its datasets in {folder / 'site.toml'}.\n"
        f"  2. federated-dask site check {folder / 'site.toml'}\n"
        f"  3. federated-dask site serve {folder / 'site.toml'}\n\n"
        f"Then, in Python:\n\n"
        f"  from federated_dask import FederatedClient\n"
        f'  token = open("{folder / "token.txt"}").read().strip()\n'
        f'  fed = FederatedClient("{config.public_address()}", token=token, '
        f'verify="{folder / "certificates" / "ca.pem"}")\n\n'
        f"The token is for {user!r} and lives {FIRST_TOKEN_LIFETIME}; "
        f"`federated-dask token create` makes others."
    )


def _reached_at(hosts: Sequence[str]) -> dict[str, str]:
    """Say where the site listens, and how others reach it."""
    if not hosts:
        return {"host": "127.0.0.1", "address": '# address = "https://data.example.org"'}
    first = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
    return {"host": "0.0.0.0", "address": f'address = "https://{first}:8786"'}  # noqa: S104


def _site_name(folder: Path, name: str | None) -> str:
    chosen = folder.absolute().name if name is None else name
    if re.fullmatch(r"[A-Za-z0-9_.\-]{1,128}", chosen) and chosen not in {".", ".."}:
        return chosen
    raise ConfigurationError(
        f"{chosen!r} cannot be the name of a site: only letters, digits, dot, dash and underscore.",
        hint="Give one by --name.",
    )


@site.command()
@CONFIG
def check(config: Path) -> None:
    """Say what is wrong with a site before it is served.

    Opens every dataset and imports every function.  The exit code is 1 if anything is wrong.
    """
    from rich.console import Console

    from site_plugins.config import load_config
    from site_plugins.datasets import StoredDataset

    # The command shows what is wrong; the log would say it once more, with tracebacks.
    logging.getLogger("site_plugins").setLevel(logging.CRITICAL)
    console = Console(highlight=False, soft_wrap=True)
    checked = load_config(config)
    wrong = _show(console, f"site {checked.name}", list(_problems_of_files(checked)), "keys fit")
    if not checked.datasets:
        console.print("No datasets yet: name them by [datasets.<name>] sections.", markup=False)
    for name, section in checked.datasets.items():
        wrong += _check_dataset(console, StoredDataset.from_config(name, section))
    wrong += _check_functions(console, checked)
    if wrong:
        console.print(f"[red]{wrong} {'problem' if wrong == 1 else 'problems'}[/]")
        raise SystemExit(1)
    console.print("[green]Nothing is wrong.[/]")


def _check_functions(console: Console, config: SiteConfig) -> int:
    """Show every function as its callers will see it."""
    from site_plugins.functions import functions_of, signature_of

    wrong = 0
    for found in functions_of(config.functions):
        if isinstance(found, ConfigurationError):
            wrong += _show(console, "functions", [f"{found.message} {found.hint or ''}"], "")
            continue
        described = found.description
        shown = f"{found.name}{signature_of(found.digest, found.origin)}"
        limits = described.limits
        facts = [
            f"version {described.version}",
            f"at most {limits.seconds or config.functions.seconds:g} s",
            f"{_bytes(limits.result_bytes or config.functions.result_bytes)} of result",
        ]
        if limits.concurrent_calls:
            facts.append(f"{limits.concurrent_calls} at a time")
        if described.idempotent:
            facts.append("may be run again")
        _show(console, "function", [], f"{shown}; {', '.join(facts)}")
    return wrong


def _check_dataset(console: Console, dataset: StoredDataset) -> int:
    from site_plugins.descriptions import check as problems_of
    from site_plugins.descriptions import describe

    with console.status(f"Opening {dataset.name}"):
        problems = problems_of(dataset)
        found = ""
        try:
            description, _ = describe(dataset, "site")
        except FederatedError:
            pass  # Why, is among the problems.
        else:
            dimensions = {
                dimension: size
                for variable in description.variables.values()
                for dimension, size in zip(variable.dimensions, variable.shape, strict=True)
            }
            shape = ", ".join(f"{dimension} {size}" for dimension, size in dimensions.items())
            limit = description.egress.limit
            budget = "" if limit is None else f", at most {_bytes(limit)} per project"
            found = f"{shape}; {_bytes(description.size)}; egress {dataset.egress}{budget}"
    return _show(console, f"dataset {dataset.name}", problems, found)


def _show(console: Console, what: str, problems: list[str], found: str) -> int:
    from rich.text import Text

    mark = Text("✗ ", "red") if problems else Text("✓ ", "green")
    console.print(mark + Text(what, "bold") + Text(f"  {found}" if found else ""))
    for problem in problems:
        console.print(Text(f"    {problem}"))
    return len(problems)


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _problems_of_files(config: SiteConfig) -> Iterator[str]:
    """Say what is wrong with the site's certificate and keys."""
    import ssl
    from datetime import UTC, datetime, timedelta

    from cryptography import x509

    from site_plugins.tokens import TokenVerifier

    certificate, key = config.endpoint.certificate, config.endpoint.private_key
    try:
        # Without this argument OpenSSL would ask on the terminal for a password.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        yield f"{certificate} and {key} are no certificate and its key: {error}"
    else:
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
        if ends < datetime.now(UTC):
            yield f"{certificate} expired on {ends:%Y-%m-%d}"
        elif ends < datetime.now(UTC) + timedelta(days=EXPIRES_SOON):
            yield f"{certificate} expires on {ends:%Y-%m-%d}"
    try:
        TokenVerifier.from_config(config)
    except ConfigurationError as error:
        yield error.message
    yield from _problems_of_issuers(config)
    for path in (key, config.tokens.private_key):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield f"{path} can be used by others than its owner: chmod 600 {path}"


def _problems_of_issuers(config: SiteConfig) -> Iterator[str]:
    """Say of which OpenID providers the keys cannot be fetched."""
    import asyncio

    from site_plugins.issuer_keys import IssuerKeys, KeysUnavailable

    async def fetch(keys: IssuerKeys) -> bool:
        try:
            await keys.find(None, "RS256")
        except KeysUnavailable:
            return False
        finally:
            await keys.close()
        return True

    for section in config.issuers:
        try:
            if not asyncio.run(fetch(IssuerKeys(section))):
                yield f"the keys of issuer {section.name} at {section.url} cannot be fetched"
        except ConfigurationError as error:
            yield error.message


@site.command()
@CONFIG
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Written as JSON once the endpoint listens: name, address, dashboard_link, pid.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    help="How much is logged, on the error output.",
)
@click.option(
    "--until-stdin-closes", is_flag=True, help="Stop at the end of standard input as well."
)
def serve(config: Path, ready_file: Path | None, log_level: str, until_stdin_closes: bool) -> None:
    """Run a site: its Dask cluster and its endpoint, until Ctrl-C."""
    from site_plugins.config import load_config

    checked = load_config(config)
    from site_plugins.serve import serve as serve_site

    serve_site(
        checked,
        ready_file=ready_file,
        log_level=log_level,
        until_stdin_closes=until_stdin_closes,
    )


@token.command()
@click.option(
    "--site",
    "config",
    metavar="SITE.TOML",
    required=True,
    type=click.Path(path_type=Path),
    help="The site that the token is for.",
)
@click.option("--subject", metavar="NAME", required=True, help="Whom the token is for.")
@click.option("--lifetime", required=True, help="How long it lives, such as 12h or 30d.")
@click.option("--group", "groups", multiple=True, help="A group of the subject.")
def create(config: Path, subject: str, lifetime: str, groups: tuple[str, ...]) -> None:
    """Print a new token for a site."""
    from site_plugins.config import load_config, parse_duration
    from site_plugins.tokens import create_token

    try:
        seconds = parse_duration(lifetime)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--lifetime") from error
    click.echo(create_token(load_config(config), subject, seconds, groups))


@token.command()
@click.option(
    "--site",
    "config",
    metavar="SITE.TOML",
    required=True,
    type=click.Path(path_type=Path),
    help="The site at which it is not to count any more.",
)
@click.option("--subject", metavar="NAME", help="All tokens that NAME has been given until now.")
@click.option("--id", "token_id", metavar="JTI", help="The token with this `jti`.")
@click.option("--token-file", type=click.File(), help="This token; - for standard input.")
@click.option("--issuer", metavar="URL", help="Whose tokens; those of the site by default.")
def revoke(
    config: Path,
    subject: str | None,
    token_id: str | None,
    token_file: IO[str] | None,
    issuer: str | None,
) -> None:
    """Revoke tokens; a running site refuses them at once."""
    from site_plugins.audit import AUDIT_LOG, Audit
    from site_plugins.config import load_config
    from site_plugins.registry import REGISTRY, Registry
    from site_plugins.revocations import Revocations
    from site_plugins.signed_texts import peek

    checked = load_config(config)
    if sum(given is not None for given in (subject, token_id, token_file)) != 1:
        raise click.UsageError("Give one of --subject, --id and --token-file.")
    issuer = checked.token_issuer if issuer is None else issuer
    if token_file is not None:
        seen = peek(token_file.read().strip())
        claims = {} if seen is None else seen[1]
        issuer, token_id = claims.get("iss"), claims.get("jti")
        if not (isinstance(issuer, str) and isinstance(token_id, str)):
            raise click.BadParameter("holds no token with a `jti`.", param_hint="--token-file")
    with (
        contextlib.closing(Registry(checked.site.state / REGISTRY)) as registry,
        contextlib.closing(Audit(checked.site.state / AUDIT_LOG)) as audit,
    ):
        revocations = Revocations(registry)
        if subject is not None:
            revocations.add(issuer, "subject", subject)
        else:
            revocations.add(issuer, "token", str(token_id))
        audit.write(
            "token_revoked",
            None,
            by="the operator",
            issuer=issuer,
            subject=subject,
            token_id=token_id,
        )
    click.echo("Revoked.")


for command in (invite, join, peers, forget):
    site.add_command(command)


TEMPLATE = """\
# A site of federated_dask. Relative paths are relative to this file.
# After every change: federated-dask site check site.toml

[site]
name = "{name}"
# title = "Institute of Northern Studies"
# The URL under which others reach the endpoint, where it is not https://host:port.
{address}
# Folder of what the site remembers: grants, budgets, quotas, the audit log.
# state = "state"

[endpoint]
# "0.0.0.0" listens on all networks of this machine; 0 takes any free port.
host = "{host}"
port = 8786
# Made for this machine by `site init`. Clients trust them by certificates/ca.pem.
certificate = "certificates/certificate.pem"
private_key = "certificates/private_key.pem"
# Told to new peers; leave it out where your certificate is of a public authority.
ca = "certificates/ca.pem"
# Web pages elsewhere that may ask this site from a browser.
# origins = ["https://portal.example"]

[cluster]
# An embedded Dask cluster on this machine. Without numbers it fits the machine.
# n_workers = 4
# threads_per_worker = 2
# memory_limit = "4GiB"             # per worker
# processes = true
# dashboard_address = "127.0.0.1:0"
# Or an existing scheduler of any kind, instead of all of the above:
# address = "tls://scheduler.internal:8786"
# ca = "cluster/ca.pem"
# certificate = "cluster/certificate.pem"
# private_key = "cluster/private_key.pem"

[tokens]
# Signs the tokens of this site (Ed25519 or EC P-256). Keep it secret.
private_key = "keys/issuer.pem"
# issuer = "urn:federated-dask:site:{name}"
# audience = "urn:federated-dask:site:{name}"
max_lifetime = "90d"

# OpenID providers whose tokens are accepted too, one section each.
# [[issuers]]
# name = "helmholtz"                # their groups are called climate@helmholtz here
# url = "https://login.helmholtz.de/oauth2"        # the "iss" of their tokens, letter for letter
# audience = "https://data.example.org"            # what "aud" must hold
# client_id = "federated-dask"      # of the public client for `federated-dask login`
# groups_claims = ["groups"]
# namespaces = ["urn:geant:helmholtz.de"]          # whose AARC-G069 entitlements count
# token_type = "at+jwt"             # or "JWT", where the provider does not follow RFC 9068
# max_lifetime = "1d"

[projects]
# Who may make projects: "anyone" with a token, "group:…", "user:…".
# may_create = ["group:staff"]

# Other sites of the federation, one section each.
# [[peers]]
# name = "south"
# address = "https://south.example.org:8786"
# ca = "certificates/south.pem"     # where its authority is not a public one
# public_key = "keys/south.pem"     # its keys/issuer_public.pem, to exchange values directly

# Who may do what; nothing is allowed that no grant allows. `federated-dask grant` makes
# more of them while the site runs.
#   to   "anyone" with a valid token, "user:SUBJECT" of this site's tokens,
#        "user:ISSUER SUBJECT", "group:NAME", "project:NAME@SITE"
#   may  describe, compute, export, call, publish, code, admin
#   on   "dataset:NAME", "function:NAME", "project:NAME", "site:NAME"; * for any characters
[[grants]]
to = "user:{user}"
may = ["describe", "compute", "export", "call", "publish", "admin"]
on = ["*"]

# [[grants]]
# to = "group:climate"
# may = ["compute", "call"]
# on = ["dataset:soil-*", "function:trend-*"]

# What this site stores, one section each: anything that xarray opens here.
# [datasets.temperature]
# path = "data/temperature.zarr"    # or an fsspec URL such as "s3://bucket/temperature.zarr"
# engine = "zarr"                   # where xarray does not find it out by itself
# open_options = {{ decode_timedelta = false }}    # further arguments of xarray.open_dataset
# storage_options = {{ anon = true }}              # of the fsspec filesystem
# title = "Air temperature"
# description = "Monthly means, 1860 to 2099."
# keywords = ["atmosphere", "temperature"]
# license = "CC-BY-4.0"
# accept_license = true             # to be accepted by everybody before first use
# egress = "open"                   # or "derived": results may leave, as far as `share` goes;
#                                   # or "functions-only": only published functions read it
# functions = ["trend"]             # which functions these are
# share = 0.01                      # part of its bytes that may ever leave for one project
# embargo = 2027-01-01              # until then for those only to whom it was granted by name
# version = "2024-06"               # instead of a digest of the files' names, sizes and times

[functions]
# Python modules whose functions partners may call: those marked by `@site_plugins.publish`.
# modules = ["our_functions"]
# path = ["."]                      # folders where they are looked for
# seconds = "1h"                    # how long a call may run, where a function sets nothing else
# result_bytes = "4GiB"             # how large its result may be

[quotas]
# What one person may use; a day ends at midnight UTC.
# concurrent_jobs = 64
# running_tasks = 4000000
# result_bytes = "256GiB"           # of one job
# cpu_seconds_per_day = 2000000
# egress_per_day = "2TiB"

[limits]
# The largest message that the site accepts, and its intervals, with their defaults.
# buffer_bytes = "512MiB"
# tasks = 1000000
# version_check_seconds = 2.0       # how often to look whether a dataset changed
# lease_seconds = 3600              # how long results are held for a client that is silent
# longest_lease_seconds = "24h"     # how long they are held at the longest
# cache_seconds = 0                 # how long results of finished jobs are kept for equal ones
# leases_per_owner = 500            # how many sets of held results one person may have
# A further one, held_bytes_per_owner, is a quarter of the workers' memory where it is not given.
# heartbeat_seconds = 5             # how often a running job says that it is alive
"""
