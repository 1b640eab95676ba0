"""Three sites as separate processes, made and ended by the demo."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from federated_dask.demo.data import DemoDataset
from federated_dask.errors import Reason, SiteUnavailable
from federated_dask.free_ports import free_ports

__all__ = ["Federation", "Server", "running_sites"]

START_SECONDS = 90.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.1
MODULE = ("-m", "federated_dask")


@dataclass(frozen=True)
class Server:
    """One running site."""

    name: str
    address: str
    dashboard_link: str | None
    process_id: int


@dataclass(frozen=True)
class Federation:
    """How to reach the sites: what `FederatedClient` takes."""

    addresses: Mapping[str, str]
    token: Mapping[str, str]
    verify: str
    servers: tuple[Server, ...]

    def save(self, path: Path) -> None:
        """Write addresses, tokens and CA file where a snippet can read them.

        The tokens in it open the sites of this demo, and only those.
        """
        content = {
            "addresses": dict(self.addresses),
            "token": dict(self.token),
            "verify": self.verify,
        }
        path.write_text(json.dumps(content, indent=2))


@contextlib.contextmanager
def running_sites(
    folder: Path,
    datasets: Sequence[tuple[DemoDataset, Path]],
    say: Callable[[str], None],
    *,
    interpreters: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Federation]:
    """Set up one site per dataset, start them, and end them again.

    Parameters
    ----------
    folder : Path
        Where configurations, certificates and logs go.
    datasets : sequence of (DemoDataset, Path)
        What each site serves, and from where.
    say : callable
        Told what is being waited for.
    interpreters : mapping of str to str, optional
        Python interpreters that run sites, by site, where it is not this one.
    """
    ports = free_ports(len(datasets))
    addresses = {
        dataset.site: f"https://127.0.0.1:{port}"
        for (dataset, _), port in zip(datasets, ports, strict=True)
    }
    for (dataset, path), port in zip(datasets, ports, strict=True):
        say(f"Writing configuration, certificates and token of {dataset.site}")
        _configure(folder / dataset.site, dataset, path, port, addresses)
    bundle = folder / "ca.pem"
    bundle.write_text(
        "".join((folder / name / "certificates" / "ca.pem").read_text() for name in addresses)
    )
    tokens = {name: (folder / name / "token.txt").read_text().strip() for name in addresses}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in addresses:
            processes[name] = _start(folder / name, interpreters.get(name, sys.executable))
        say(f"Waiting for {', '.join(addresses)} to come up")
        servers = tuple(_wait(name, folder / name, process) for name, process in processes.items())
        yield Federation(addresses, tokens, str(bundle.resolve()), servers)
    finally:
        _stop(processes.values())


def _configure(
    folder: Path,
    dataset: DemoDataset,
    path: Path,
    port: int,
    addresses: Mapping[str, str],
) -> None:
    """Let `site init` write a site's files, then put in what this demo serves."""
    made = subprocess.run(
        [sys.executable, *MODULE, "site", "init", str(folder), "--name", dataset.site],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise _failed(dataset.site, "could not be set up", made.stderr)
    text = (folder / "site.toml").read_text()
    text = text.replace("port = 8786", f"port = {port}")
    text = text.replace("[cluster]", "[cluster]\nn_workers = 2\nthreads_per_worker = 1")
    text = text.replace("[functions]", '[functions]\nmodules = ["site_plugins.examples"]')
    text += f"""
[datasets.{dataset.name}]
path = {json.dumps(str(path.resolve()))}
open_options = {{ decode_timedelta = false }}
title = {json.dumps(dataset.title)}
license = "UK Open Government Licence"
"""
    for name, address in addresses.items():
        if name != dataset.site:
            home = folder.parent / name
            text += f"""
[[peers]]
name = {json.dumps(name)}
address = {json.dumps(address)}
ca = {json.dumps(str(home / "certificates" / "ca.pem"))}
public_key = {json.dumps(str(home / "keys" / "issuer_public.pem"))}
"""
    (folder / "site.toml").write_text(text)


def _start(folder: Path, interpreter: str) -> subprocess.Popen[bytes]:
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    with (folder / "site.log").open("wb") as log:
        # A session of its own: Ctrl-C is for the demo, which ends the sites in
        # order; should it die instead, their standard input ends and so do they.
        return subprocess.Popen(
            [
                *(interpreter, *MODULE, "site", "serve", str(folder / "site.toml")),
                *("--ready-file", str(ready), "--until-stdin-closes"),
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(name: str, folder: Path, process: subprocess.Popen[bytes]) -> Server:
    ready = folder / "ready.json"
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise _failed(name, "did not come up", (folder / "site.log").read_text())
        time.sleep(POLL_SECONDS)
    about = json.loads(ready.read_text())
    return Server(name, about["address"], about.get("dashboard_link"), int(about["pid"]))


def _failed(name: str, what: str, log: str) -> SiteUnavailable:
    lines = [line for line in log.strip().splitlines() if line.strip()]
    return SiteUnavailable(
        f"The site {what}: {' / '.join(lines[-3:]) or 'it said nothing'}",
        reason=Reason.UNREACHABLE,
        site=name,
        hint="Run the demo again; if it happens again, report these lines.",
    )


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    running = list(processes)
    for process in running:
        if process.stdin is not None:
            process.stdin.close()
    deadline = time.monotonic() + STOP_SECONDS
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
