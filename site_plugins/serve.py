"""One whole site in one process: a Dask cluster, or the way to one, and the endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from distributed import Client, LocalCluster, Security

from federated_dask.errors import ConfigurationError
from site_plugins.audit import AUDIT_LOG, Audit
from site_plugins.config import ClusterSection, SiteConfig
from site_plugins.endpoint.app import create_app
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.jobs import JobSettings
from site_plugins.endpoint.peering import Peering
from site_plugins.endpoint.server import EndpointServer
from site_plugins.endpoint.web_calls import CallBook
from site_plugins.invitations import Invitations
from site_plugins.issuers import TokenVerifiers
from site_plugins.memberships import Memberships
from site_plugins.peers import PeerList
from site_plugins.policy import Policy
from site_plugins.projects import ProjectStore
from site_plugins.quotas import Quotas
from site_plugins.registry import REGISTRY, Registry
from site_plugins.scheduler_plugin import SitePlugin
from site_plugins.worker_clients import close_clients

__all__ = ["Site", "event_loop_factory", "run_site", "serve"]

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 5.0
SEND_SECONDS = 0.001
MOST_FILES = 65_536


class Site:
    """A running site.

    Attributes
    ----------
    name : str
        Its name.
    address : str
        URL of its endpoint.
    dashboard_link : str or None
        URL of its Dask dashboard.
    client : distributed.Client
        The endpoint's client of the site's scheduler.
    book : CallBook
        Calls that the endpoint remembers.
    """

    def __init__(
        self, config: SiteConfig, server: EndpointServer, client: Client, book: CallBook
    ) -> None:
        self.name = config.name
        self.address = config.public_address(server.port)
        self.client = client
        self.book = book
        self.dashboard_link = _dashboard_link(client)

    def __repr__(self) -> str:
        return f"<Site {self.name!r} at {self.address}>"


def _dashboard_link(client: Client) -> str | None:
    services = client.scheduler_info(n_workers=0)["services"]
    return str(client.dashboard_link) if "dashboard" in services else None


@asynccontextmanager
async def run_site(config: SiteConfig) -> AsyncIterator[Site]:
    """Run a site in the running event loop, until the block ends.

    Parameters
    ----------
    config : SiteConfig
        The site.

    Yields
    ------
    Site
        Its endpoint answers.

    Raises
    ------
    ConfigurationError
        If the scheduler cannot be reached, the certificate cannot be used, or
        the port is taken.
    """
    async with AsyncExitStack() as stack:
        records = _records(config, stack)
        gateway = await _cluster(config, stack)
        neighbours = _neighbours(config, records, stack)
        server, book = await _endpoint(config, records, gateway, neighbours, stack)
        site = Site(config, server, gateway.client, book)
        logger.info("Site %s answers at %s", site.name, site.address)
        if site.dashboard_link is not None:
            logger.info("The Dask dashboard of its cluster is at %s", site.dashboard_link)
        yield site


class _Records(NamedTuple):
    """What is kept on disk, and who may do what by it."""

    registry: Registry
    audit: Audit
    policy: Policy
    verifiers: TokenVerifiers


def _records(config: SiteConfig, stack: AsyncExitStack) -> _Records:
    registry = Registry(config.site.state / REGISTRY)
    stack.callback(registry.close)
    audit = Audit(config.site.state / AUDIT_LOG)
    stack.callback(audit.close)
    policy = Policy.from_config(config, registry)
    verifiers = TokenVerifiers.from_config(config, registry)
    stack.push_async_callback(verifiers.close)
    return _Records(registry, audit, policy, verifiers)


async def _cluster(config: SiteConfig, stack: AsyncExitStack) -> Gateway:
    """Start the cluster, or find it; make its scheduler this site's."""
    address, security = await _scheduler(config.cluster, stack)
    client = await _client(address, security, stack)
    plugin = SitePlugin.from_config(config)
    # Idempotent: a scheduler that is a site's already stays what it is.
    await client.register_plugin(plugin, name=plugin.name)
    gateway = Gateway(
        client, config.name, version_check_seconds=config.limits.version_check_seconds
    )
    stack.push_async_callback(gateway.close)
    if config.cluster.address is None:
        # Results that end with the cluster are not lost; Dask would warn of it.
        stack.push_async_callback(gateway.release_all)
    advertised = await gateway.state()
    if advertised.name != config.name:
        raise ConfigurationError(
            f"The scheduler at {address} is that of the site {advertised.name!r}, "
            f"not of {config.name!r}."
        )
    return gateway


class _Neighbours(NamedTuple):
    """The other sites, and who works together over several of them."""

    peers: PeerList
    peering: Peering
    projects: ProjectStore
    memberships: Memberships


def _neighbours(config: SiteConfig, records: _Records, stack: AsyncExitStack) -> _Neighbours:
    policy, verifiers = records.policy, records.verifiers
    peers = PeerList(config, records.registry)
    peering = Peering(config, peers)
    stack.push_async_callback(peering.close)
    projects = ProjectStore(policy, records.registry, config.projects.may_create)
    memberships = Memberships(
        policy,
        projects,
        peers,
        config.tokens.private_key,
        [config.token_issuer, *(section.url for section in config.issuers)],
    )
    stack.push_async_callback(memberships.close)
    policy.standing = lambda principal: (
        memberships.standing(principal) if verifiers.stands(principal) else None
    )
    return _Neighbours(peers, peering, projects, memberships)


async def _endpoint(
    config: SiteConfig,
    records: _Records,
    gateway: Gateway,
    neighbours: _Neighbours,
    stack: AsyncExitStack,
) -> tuple[EndpointServer, CallBook]:
    settings = JobSettings(
        limits=config.limits.protocol(),
        heartbeat_seconds=config.limits.heartbeat_seconds,
        task_bytes=config.limits.task_bytes,
        keeps_results=config.limits.cache_seconds > 0,
    )
    quotas = Quotas(records.registry, config.quotas, config.name)
    stack.callback(quotas.write)
    app = create_app(
        gateway,
        records.verifiers,
        records.policy,
        records.registry,
        audit=records.audit,
        quotas=quotas,
        settings=settings,
        peering=neighbours.peering,
        functions=config.functions,
        origins=config.endpoint.origins,
        call_seconds=config.limits.lease_seconds,
        invitations=Invitations(config, records.registry, neighbours.peers),
        memberships=neighbours.memberships,
        projects=neighbours.projects,
    )
    book: CallBook = app.state.book
    stack.push_async_callback(book.close)
    server = EndpointServer(
        app,
        config.endpoint.host,
        config.endpoint.port,
        certificate=config.endpoint.certificate,
        private_key=config.endpoint.private_key,
        stop_seconds=STOP_SECONDS,
    )
    stack.push_async_callback(server.stop)
    await server.start()
    return server, book


async def _scheduler(section: ClusterSection, stack: AsyncExitStack) -> tuple[str, Security | None]:
    if section.address is not None:
        security = None
        if section.ca is not None:
            security = Security(
                tls_ca_file=str(section.ca),
                tls_client_cert=str(section.certificate),
                tls_client_key=str(section.private_key),
                require_encryption=True,
            )
        return section.address, security
    options: dict[str, Any] = {}
    if section.processes:
        # Whoever reaches a Dask port runs code; with throw-away credentials nobody else does.
        security = Security.temporary()
        options = {"protocol": "tls://", "host": "127.0.0.1"}
    else:
        security = None
        options = {"protocol": "inproc://"}
    logging.getLogger("bokeh.server.util").setLevel(logging.ERROR)
    cluster = LocalCluster(
        n_workers=section.n_workers,
        threads_per_worker=section.threads_per_worker,
        memory_limit=section.memory_limit,
        processes=section.processes,
        dashboard_address=section.dashboard_address,
        # Left to themselves, these listen at the machine's public address.
        worker_dashboard_address="127.0.0.1:0",
        # Several clusters in one process are kept quiet together; see `LocalFederation`.
        silence_logs=logging.WARNING if section.processes else False,
        scheduler_kwargs={"dashboard_address": section.dashboard_address or "127.0.0.1:0"},
        security=security,
        resources=dict(section.resources) or None,
        asynchronous=True,
        **options,
    )
    await stack.enter_async_context(cluster)
    stack.push_async_callback(lambda: close_clients(cluster.workers.values()))
    return cluster.scheduler_address, security


async def _client(address: str, security: Security | None, stack: AsyncExitStack) -> Client:
    client = Client(
        address,
        security=security,
        asynchronous=True,
        set_as_default=False,
        direct_to_workers=True,
        name="federated-endpoint",
        timeout=START_SECONDS,
    )
    try:
        await client
    except OSError as error:
        raise ConfigurationError(
            f"The scheduler at {address} cannot be reached: {error}.",
            hint="Start it, or correct [cluster] address.",
        ) from error
    stack.push_async_callback(client.close)
    # Dask's client sends at most once in 10 ms, which is half the time of a small call.
    if client.scheduler_comm is not None:
        client.scheduler_comm.interval = SEND_SECONDS
    return client


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Make loops of uvloop where it is installed, else None."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def serve(
    config: SiteConfig,
    *,
    ready_file: Path | None = None,
    log_level: str = "info",
    until_stdin_closes: bool = False,
) -> None:
    """Run a site until the process is told to end by SIGINT or SIGTERM.

    Parameters
    ----------
    config : SiteConfig
        The site.
    ready_file : Path, optional
        Written once the site answers: JSON with name, address, dashboard_link
        and pid.
    log_level : str, optional
        Level of the log on standard error.
    until_stdin_closes : bool, optional
        End also when standard input ends, so that the site does not outlive the
        process that started it.

    Raises
    ------
    ConfigurationError
        If the site cannot be run as configured.
    """
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    for noisy in ("distributed", "tornado", "uvicorn", "bokeh", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    _allow_many_connections()
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(_serve(config, ready_file, until_stdin_closes))


def _allow_many_connections() -> None:
    """Take as many open files as the system gives: many systems begin with 1024.

    Connections that say nothing are ended by their deadlines; until then they may not keep
    others from being accepted.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    except (OSError, ValueError) as error:
        logger.info("The limit on open files stays as it is: %s", error)


async def _serve(config: SiteConfig, ready_file: Path | None, until_stdin_closes: bool) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if until_stdin_closes:
        threading.Thread(target=_watch_stdin, args=(loop, ended), daemon=True).start()
    starting = asyncio.ensure_future(_run_until(config, ready_file, ended))
    try:
        await starting
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _run_until(config: SiteConfig, ready_file: Path | None, ended: asyncio.Event) -> None:
    async with run_site(config) as site:
        if ready_file is not None:
            _write_ready(ready_file, site)
        await ended.wait()
        logger.info("Site %s stops", site.name)


def _write_ready(path: Path, site: Site) -> None:
    told = {
        "name": site.name,
        "address": site.address,
        "dashboard_link": site.dashboard_link,
        "pid": os.getpid(),
    }
    # Renamed into place, so that who waits for the file finds it whole.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(told), "utf-8")
    draft.replace(path)


def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    with contextlib.suppress(RuntimeError):
        # The loop may have ended by itself meanwhile.
        loop.call_soon_threadsafe(ended.set)
