"""A federation on this machine: to sites what `distributed.LocalCluster` is to workers.

Sites are real: each has its own cluster, endpoint on a free port of 127.0.0.1,
TLS certificate and issuer of tokens, and knows the others as peers.  They run in
the event loop of one background thread; workers are threads, or processes.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import re
import tempfile
import threading
import weakref
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import xarray as xr
from distributed.utils import silence_logging_cmgr

from federated_dask.errors import ConfigurationError
from federated_dask.free_ports import free_ports
from site_plugins.certificates import new_authority, write_certificates, write_private_file
from site_plugins.config import SiteConfig, parse_config
from site_plugins.keys import new_issuer_key, public_key_of
from site_plugins.serve import Site, event_loop_factory, run_site
from site_plugins.tokens import create_token

__all__ = ["LocalFederation"]

T = TypeVar("T")

TOKEN_SECONDS = 24 * 3600.0
START_SECONDS = 120.0
STOP_SECONDS = 60.0
TABLES = {"title", "endpoint", "cluster", "limits", "quotas", "datasets", "functions"}
TABLES |= {"exchanges", "grants", "issuers", "projects"}
GRANTS = ({"to": "anyone", "may": ["describe", "compute", "call"], "on": ["*"]},)
"""Budgets of datasets bind all; `export` would lift them."""


class LocalFederation:
    """Sites on this machine, for tests, notebooks and trying things out.

    Parameters
    ----------
    sites : mapping of str to mapping
        Name of each site and what it has.  ``"datasets"`` maps names to datasets:
        a path or fsspec URL, an `xarray.Dataset` (written to a temporary folder),
        or a mapping with ``"path"`` (either of these) and whatever a
        ``[datasets.<name>]`` section of `site.toml` may hold, such as
        ``"egress": "derived"``.  ``"title"``, ``"endpoint"``, ``"cluster"``, ``"functions"``,
        ``"grants"``, ``"issuers"``, ``"limits"``, ``"projects"`` and ``"quotas"`` are as in
        `site.toml`; by default anyone may describe, compute and call everything, and make
        projects.
        ``"exchanges"`` names the sites with which it exchanges values directly; by
        default all.
    n_workers : int, default 1
        Workers per site.
    threads_per_worker : int, default 2
        Threads per worker.
    processes : bool, default False
        Whether workers are processes of their own.
    subject : str, default "local-user"
        For whom the tokens are.
    dashboard : bool, default False
        Whether each site shows Dask's dashboard, on loopback.

    Attributes
    ----------
    addresses : dict of str to str
        URL of each site's endpoint.
    token : dict of str to str
        A token for each site.
    verify : str
        Path of the certificate of the authority that the sites share.

    Raises
    ------
    ConfigurationError
        If there is no site, or what is given of one cannot be.

    Examples
    --------
    >>> import numpy as np
    >>> a1b = xr.Dataset({"air": ("time", np.arange(10.0))})
    >>> with LocalFederation({"north": {"datasets": {"a1b": a1b}}}) as federation:
    ...     sorted(federation.addresses)
    ['north']
    """

    def __init__(
        self,
        sites: Mapping[str, Mapping[str, Any]],
        *,
        n_workers: int = 1,
        threads_per_worker: int = 2,
        processes: bool = False,
        subject: str = "local-user",
        dashboard: bool = False,
    ) -> None:
        if not sites:
            raise ConfigurationError("A federation needs at least one site.")
        self._folder = tempfile.TemporaryDirectory(prefix="federated-dask-")
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._folder.cleanup)
        try:
            cluster = {
                "n_workers": n_workers,
                "threads_per_worker": threads_per_worker,
                "processes": processes,
                "dashboard_address": "127.0.0.1:0" if dashboard else None,
            }
            self._configs = _configs(sites, Path(self._folder.name), cluster)
            self.token = {
                name: create_token(config, subject, TOKEN_SECONDS)
                for name, config in self._configs.items()
            }
            self.verify = str(Path(self._folder.name) / "ca.pem")
            _quiet_dask.enter()
            self._stack.callback(_quiet_dask.leave)
            self._loop = _LoopThread("federated-dask-sites")
            self._stack.callback(self._loop.stop)
            self._sites = self._start()
        except BaseException:
            self._stack.close()
            raise
        self.addresses = {name: site.address for name, site in self._sites.items()}
        self._finalizer = weakref.finalize(self, self._stack.close)
        # Ours is to run before Dask's own clean-up at exit, which knows nothing of the thread.
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def _start(self) -> dict[str, Site]:
        sites, loop = AsyncExitStack(), self._loop
        # Without `self` in it, so that an instance nobody refers to any more is closed.
        self._stack.callback(lambda: loop.run(sites.aclose(), STOP_SECONDS))
        return loop.run(_start_all(self._configs, sites), START_SECONDS)

    @property
    def sites(self) -> dict[str, Site]:
        """The running sites, by name."""
        return dict(self._sites)

    @property
    def dashboard_links(self) -> dict[str, str | None]:
        """URL of each site's Dask dashboard."""
        return {name: site.dashboard_link for name, site in self._sites.items()}

    @property
    def status(self) -> str:
        """``running`` or ``closed``."""
        return "running" if self._finalizer.alive else "closed"

    def run(self, function: Any, /, *arguments: Any, **keywords: Any) -> Any:
        """Call a function in the event loop of the sites; wait for a coroutine's result.

        For tests that look inside of a site, for example at ``sites[name].client``.

        Parameters
        ----------
        function : callable
            What to call; what it gives is awaited where that is a coroutine.
        *arguments, **keywords : object
            Its arguments.

        Returns
        -------
        object
            What it returns.

        Raises
        ------
        TimeoutError
            If it takes longer than two minutes.
        """

        async def call() -> Any:
            result = function(*arguments, **keywords)
            return await result if asyncio.iscoroutine(result) else result

        return self._loop.run(call(), START_SECONDS)

    def new_token(
        self,
        site: str,
        subject: str,
        lifetime: float = TOKEN_SECONDS,
        groups: Iterable[str] = (),
    ) -> str:
        """Create another token of a site.

        Parameters
        ----------
        site : str
            Name of the site.
        subject : str
            For whom it is.
        lifetime : float, default 86400
            How long it counts, in seconds.
        groups : iterable of str, optional
            Groups of the subject.

        Returns
        -------
        str
        """
        return create_token(self._configs[site], subject, lifetime, groups)

    def close(self) -> None:
        """Stop all sites and remove what was written; does nothing the second time."""
        self._finalizer()
        atexit.unregister(self._finalizer)

    def __enter__(self) -> LocalFederation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        sites = ", ".join(f"{name!r}: {address!r}" for name, address in self.addresses.items())
        return f"<LocalFederation {self.status} {{{sites}}}>"


async def _start_all(configs: Mapping[str, SiteConfig], stack: AsyncExitStack) -> dict[str, Site]:
    async def start(config: SiteConfig) -> Site:
        running = run_site(config)
        site = await running.__aenter__()
        started.append(running)
        return site

    async def stop() -> None:
        await asyncio.gather(*(running.__aexit__(None, None, None) for running in started))

    started: list[AbstractAsyncContextManager[Site]] = []
    stack.push_async_callback(stop)
    # All of them, so that none starts behind the back of a failure.
    sites = await asyncio.gather(*map(start, configs.values()), return_exceptions=True)
    found = {}
    for name, site in zip(configs, sites, strict=True):
        if isinstance(site, BaseException):
            raise site
        found[name] = site
    return found


def _configs(
    sites: Mapping[str, Mapping[str, Any]], folder: Path, cluster: Mapping[str, Any]
) -> dict[str, SiteConfig]:
    authority = new_authority()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    ports = free_ports(len(sites))
    addresses = {name: f"https://127.0.0.1:{port}" for name, port in zip(sites, ports, strict=True)}
    homes = {name: folder / f"site-{number}" for number, name in enumerate(sites)}
    for home in homes.values():
        home.mkdir()
        write_private_file(home / "issuer.pem", new_issuer_key())
        (home / "issuer_public.pem").write_bytes(public_key_of(home / "issuer.pem"))
    configs = {}
    for number, (name, given) in enumerate(sites.items()):
        # Whether the name can be one is for the configuration to say.
        home = homes[name]
        files = write_certificates(home, authority=authority)
        if unknown := sorted(given.keys() - TABLES):
            raise ConfigurationError(
                f"Site {name!r} has {', '.join(map(repr, unknown))}; known are "
                f"{', '.join(sorted(TABLES))}."
            )
        described = {
            "site": {
                "name": name,
                "title": given.get("title", ""),
                "state": str(home / "state"),
            },
            "endpoint": {
                "port": ports[number],
                "certificate": str(files.certificate),
                "private_key": str(files.private_key),
                "ca": str(folder / "ca.pem"),
                **given.get("endpoint", {}),
            },
            "cluster": {**cluster, **given.get("cluster", {})},
            "tokens": {"private_key": str(home / "issuer.pem")},
            "peers": [
                {
                    "name": other,
                    "address": address,
                    "ca": str(folder / "ca.pem"),
                    **(
                        {"public_key": str(homes[other] / "issuer_public.pem")}
                        if other in given.get("exchanges", sites)
                        else {}
                    ),
                }
                for other, address in addresses.items()
                if other != name
            ],
            "datasets": {
                key: _dataset(f"{name}/{key}", value, home / "data")
                for key, value in given.get("datasets", {}).items()
            },
            "grants": given.get("grants", GRANTS),
            "functions": given.get("functions", {}),
            "limits": given.get("limits", {}),
            "quotas": given.get("quotas", {}),
            "issuers": given.get("issuers", []),
            "projects": given.get("projects", {"may_create": ["anyone"]}),
        }
        configs[name] = parse_config(described, Path.cwd(), source=f"LocalFederation site {name!r}")
    return configs


def _dataset(name: str, given: Any, folder: Path) -> dict[str, Any]:
    section = (
        dict(given) if isinstance(given, Mapping) and not _is_dataset(given) else {"path": given}
    )
    stored: Any = section.get("path")
    if _is_dataset(stored):
        folder.mkdir(exist_ok=True)
        path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name.partition('/')[2])}.zarr"
        stored.drop_encoding().to_zarr(path, zarr_format=2, consolidated=True)
        section["path"] = str(path)
    elif isinstance(stored, Path | str):
        section["path"] = str(stored)
    else:
        raise ConfigurationError(
            f"Dataset {name} is a {type(stored).__name__}.",
            hint="Give a path, an xarray.Dataset, or a dict with one of these as 'path'.",
        )
    return section


def _is_dataset(given: object) -> bool:
    return isinstance(given, xr.Dataset)


class _QuietDask:
    """Keeps Dask's log to warnings while there is any federation in this process.

    A `LocalCluster` would do so itself, but of several that end together each puts
    back the level that it found, so that some end aloud.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._stack = contextlib.ExitStack()

    def enter(self) -> None:
        """Begin."""
        with self._lock:
            self._count += 1
            if self._count == 1:
                for root in ("distributed", "bokeh"):
                    self._stack.enter_context(silence_logging_cmgr(logging.WARNING, root))

    def leave(self) -> None:
        """End; the last one puts the levels back."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._stack.close()


_quiet_dask = _QuietDask()


class _LoopThread:
    """A background thread with an event loop."""

    def __init__(self, name: str) -> None:
        self._runner = asyncio.Runner(loop_factory=event_loop_factory())
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self._loop = self._started.result(START_SECONDS)

    def _main(self) -> None:
        with self._runner as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        self._stopped = asyncio.Event()
        self._started.set_result(asyncio.get_running_loop())
        await self._stopped.wait()

    def run(self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        """Run a coroutine in the loop and wait for it."""
        waiting = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return waiting.result(seconds)
        except BaseException:
            waiting.cancel()
            raise

    def stop(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(STOP_SECONDS)
