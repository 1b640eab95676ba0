"""The commands `federated-dask audit …`: is the log whole, and what is in it."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from site_plugins.cli import CONFIG, Group

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["audit"]

POLL_SECONDS = 0.5


@click.group(cls=Group)
def audit() -> None:
    """Look into the audit log of a site."""


def _log(config: Path) -> Path:
    from site_plugins.audit import AUDIT_LOG
    from site_plugins.config import load_config

    return load_config(config).site.state / AUDIT_LOG


@audit.command()
@CONFIG
@click.option("--head", metavar="HASH", help="A hash that `verify` printed before.")
def verify(config: Path, head: str | None) -> None:
    """Say whether anything was changed, dropped, moved or cut off.

    The exit code is 1 if so.  Keep the hash that is printed somewhere else.
    """
    from site_plugins.audit import entries
    from site_plugins.audit import verify as problems_of

    path = _log(config)
    if problems := list(problems_of(path, head)):
        for problem in problems:
            click.echo(f"{path.name}, {problem}")
        raise SystemExit(1)
    last = next(iter(deque(entries(path), maxlen=1)), {})
    click.echo(f"{last.get('seq', 0)} lines, nothing is wrong. Last hash: {last.get('hash', '-')}")


@audit.command()
@CONFIG
@click.option(
    "-n", "count", type=click.IntRange(min=0), default=20, show_default=True, help="How many lines."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written, until Ctrl-C.")
def tail(config: Path, count: int, follow: bool) -> None:
    """Show the last lines."""
    from site_plugins.audit import entries

    path = _log(config)
    seen = 0
    for entry in deque(entries(path), maxlen=count or None) if count else ():
        seen = int(entry["seq"])
        click.echo(in_words(entry))
    while follow:
        time.sleep(POLL_SECONDS)
        for entry in entries(path):
            if int(entry["seq"]) > seen:
                seen = int(entry["seq"])
                click.echo(in_words(entry))


@audit.command()
@CONFIG
@click.option("--since", metavar="DURATION", default="30d", show_default=True, help="How far back.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(config: Path, since: str, as_json: bool) -> None:
    """Sum up who did what, by person and by dataset.

    Jobs, bytes that left, refusals.
    """
    from site_plugins.audit import entries
    from site_plugins.config import parse_duration

    try:
        first = datetime.now(UTC) - timedelta(seconds=parse_duration(since))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error
    summed = sum_up(
        entry for entry in entries(_log(config)) if datetime.fromisoformat(entry["time"]) >= first
    )
    if as_json:
        click.echo(json.dumps(summed, indent=2))
        return
    for title, rows in summed.items():
        click.echo(title)
        for name, counts in rows.items():
            told = ", ".join(f"{key} {value:,}" for key, value in counts.items())
            click.echo(f"  {name}: {told}")


def sum_up(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Sum entries up: by principal, and by dataset.

    Examples
    --------
    >>> who = {"issuer": "urn:north", "subject": "ada"}
    >>> summed = sum_up([{"event": "job_ended", "who": who, "bytes": 8, "released": {"soil": 8}}])
    >>> summed["principals"], summed["datasets"]
    ({'ada (urn:north)': {'job_ended': 1, 'bytes': 8}}, {'soil': {'bytes': 8}})
    """
    principals: dict[str, Counter[str]] = defaultdict(Counter)
    datasets: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        counts = principals[_name(entry)]
        counts[entry["event"]] += 1
        # What one job releases piece by piece is in its last line again.
        if entry["event"] != "released":
            counts["bytes"] += int(entry.get("bytes", 0))
        for name, size in (entry.get("released") or {}).items():
            datasets[name]["bytes"] += int(size)
        for name in entry.get("datasets") or {}:
            if entry["event"] in ("job_admitted", "read"):
                datasets[name][entry["event"]] += 1
                if entry["event"] == "read":
                    datasets[name]["bytes"] += int(entry.get("bytes", 0))
    return {
        "principals": {name: dict(counts) for name, counts in sorted(principals.items())},
        "datasets": {name: dict(counts) for name, counts in sorted(datasets.items())},
    }


def in_words(entry: dict[str, Any]) -> str:
    """Show one line of the log.

    Examples
    --------
    >>> in_words({"seq": 1, "time": "T", "event": "read", "bytes": 8, "prev": "", "hash": ""})
    '     1  T  read  -  bytes=8'
    """
    known = {"seq", "time", "event", "who", "prev", "hash"}
    facts = "  ".join(
        f"{name}={fact if isinstance(fact, str | int | float) else json.dumps(fact)}"
        for name, fact in entry.items()
        if name not in known
    )
    return f"{entry['seq']:6}  {entry['time']}  {entry['event']}  {_name(entry)}  {facts}".rstrip()


def _name(entry: dict[str, Any]) -> str:
    who = entry.get("who")
    if not who:
        return "-"
    project = f" for {who['project']}" if who.get("project") else ""
    return f"{who['subject']} ({who['issuer']}){project}"
