"""The site on its Dask scheduler: what it advertises, which results are leased, what jobs cost.

The endpoint asks all of this over Dask's own RPC, so that endpoint processes may
come and go.  A lease is a client of the scheduler in name only: it desires keys,
which keeps their results, until it is released or its time is over::

    endpoint ── federated_hold(lease, …) ──► SitePlugin ── client_desires_keys ──► scheduler
                                                │ every second: leases past their end
                                                └────────── client_releases_keys ──► scheduler

Tasks of a job carry its name as an annotation; what workers report of them is
added up here until the endpoint asks for it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps
from distributed.protocol.serialize import ToPickle
from distributed.utils import format_dashboard_link
from tornado.ioloop import PeriodicCallback

from federated_dask.errors import ConfigurationError, Reason, RequestRefused
from federated_dask.protocol.messages import Peer
from site_plugins.config import SiteConfig
from site_plugins.datasets import StoredDataset
from site_plugins.fair_share import OWNER_ANNOTATION, FairShare, lay_out
from site_plugins.functions import PublishedFunction, functions_of
from site_plugins.offers import Offers, unwrapped
from site_plugins.once import keep_from_running_again, mark
from site_plugins.publications import Publications
from site_plugins.result_cache import ResultCache
from site_plugins.stopping import CALL_TOPIC, CallPlugin

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler, WorkerState

__all__ = [
    "JOB_ANNOTATION",
    "READ_TOPIC",
    "JobAccount",
    "LeasedOutput",
    "SitePlugin",
    "SiteState",
    "unwrapped",
]

logger = logging.getLogger(__name__)

JOB_ANNOTATION = "federated_job"
"""Annotation with which the endpoint marks the tasks of a job."""

READ_TOPIC = "federated-read"
"""Topic of the events by which workers tell how many bytes a task read."""

LIBRARIES = ("dask", "distributed", "numpy", "xarray", "pandas", "flox", "zarr", "federated-dask")
CHECK_SECONDS = 1.0
MOST_ACCOUNTS = 10_000
UNCONFIRMED_SECONDS = 60.0
"""How long a lease lasts that its owner never used nor renewed.

A client that goes away while the last event of its job or call is on the way never
learns of the lease, and nobody else would let go of it.
"""
HELD_PART = 0.25
"""Part of the workers' memory that one owner's leases may take, where the site says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteState:
    """What the plugin tells an endpoint about the site."""

    name: str
    title: str
    peers: tuple[Peer, ...]
    datasets: Mapping[str, StoredDataset]
    functions: Mapping[str, PublishedFunction]
    dashboard_link: str | None
    workers: int
    threads: int
    memory: int
    """Memory limit of all workers together, bytes."""
    versions: Mapping[str, str]
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Most that one worker has of each resource."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeasedOutput:
    """One held result: its key, and the datasets it derives from."""

    key: Key
    label: frozenset[str]


@dataclasses.dataclass(kw_only=True)
class JobAccount:
    """What is known of a job's tasks."""

    total: int = 0
    done: int = 0
    compute_seconds: float = 0.0
    read_bytes: int = 0


@dataclasses.dataclass(kw_only=True)
class _Lease:
    owner: str
    outputs: dict[int, LeasedOutput]
    seconds: float
    end: float
    last_end: float
    """Whatever it is used for, it does not last longer."""
    nbytes: int

    def renew(self, seconds: float | None = None) -> float:
        """Begin its time anew, or a shorter one; tell how long it lasts now."""
        now = time.monotonic()
        seconds = self.seconds if seconds is None else min(self.seconds, seconds)
        self.end = min(now + seconds, self.last_end)
        return max(0.0, self.end - now)


class SitePlugin(SchedulerPlugin):
    """Makes a Dask scheduler the scheduler of a site.

    Parameters
    ----------
    site : str
        Name of the site.
    title : str, optional
        Title of the site.
    datasets : iterable of StoredDataset, optional
        What the site advertises.
    functions : iterable of PublishedFunction, optional
        What the site can be asked to run.
    peers : iterable of Peer, optional
        The other sites of the federation.
    lease_seconds : float, default 3600
        Longest time that a lease lasts without being used, in seconds.
    longest_lease_seconds : float, default 86400
        Longest time that a lease lasts at all, in seconds.
    leases_per_owner : int, default 500
        How many leases one owner may have at a time.
    held_bytes_per_owner : int, optional
        How many bytes these may hold together; by default a quarter of the memory of
        all workers.
    cache_seconds : float, default 0
        How long results of finished jobs are kept, in seconds, see `ResultCache`; 0 for
        not at all.
    cache_bytes : int, optional
        Bytes of them that are kept for one owner; by default a twentieth of the memory of
        all workers.
    state : Path, optional
        Folder where the scheduler keeps what is published at run time; by default that is
        gone when the scheduler ends.

    Examples
    --------
    >>> import pickle
    >>> plugin = pickle.loads(pickle.dumps(SitePlugin("north", title="North")))
    >>> plugin.site, plugin.name
    ('north', 'federated-site')
    """

    name = "federated-site"
    idempotent = True

    def __init__(
        self,
        site: str,
        *,
        title: str = "",
        datasets: Iterable[StoredDataset] = (),
        functions: Iterable[PublishedFunction] = (),
        peers: Iterable[Peer] = (),
        lease_seconds: float = 3600.0,
        longest_lease_seconds: float = 86_400.0,
        leases_per_owner: int = 500,
        held_bytes_per_owner: int | None = None,
        cache_seconds: float = 0.0,
        cache_bytes: int | None = None,
        state: Path | None = None,
    ) -> None:
        self.site = site
        self.title = title
        self.offers = Offers(datasets, functions, Publications(state))
        self.peers = tuple(peers)
        self.lease_seconds = lease_seconds
        self.longest_lease_seconds = longest_lease_seconds
        self.leases_per_owner = leases_per_owner
        self.held_bytes_per_owner = held_bytes_per_owner
        self.cache = ResultCache(cache_seconds, cache_bytes)
        self._scheduler: Scheduler | None = None
        self._leases: dict[str, _Lease] = {}
        self._accounts: OrderedDict[str, JobAccount] = OrderedDict()
        self._share = FairShare()

    @classmethod
    def from_config(cls, config: SiteConfig) -> SitePlugin:
        """Take everything from a `site.toml`.

        Parameters
        ----------
        config : SiteConfig
            What stands in it.

        Returns
        -------
        SitePlugin
            Without functions that cannot be published; why not is logged.
        """
        return cls(
            config.name,
            title=config.site.title,
            datasets=[StoredDataset.from_config(*item) for item in config.datasets.items()],
            functions=_published(config),
            peers=[
                Peer(
                    name=peer.name,
                    address=peer.address,
                    exchanges=peer.public_key is not None,
                )
                for peer in config.peers
            ],
            lease_seconds=config.limits.lease_seconds,
            longest_lease_seconds=config.limits.longest_lease_seconds,
            leases_per_owner=config.limits.leases_per_owner,
            held_bytes_per_owner=config.limits.held_bytes_per_owner,
            cache_seconds=config.limits.cache_seconds,
            cache_bytes=config.limits.cache_bytes,
            state=config.site.state,
        )

    async def start(self, scheduler: Scheduler) -> None:
        """Add the RPC handlers; called by the scheduler."""
        self._scheduler = scheduler
        self.offers.restore()
        handlers: list[Callable[..., Any]] = [
            self.federated_site,
            self.offers.federated_publish,
            self.offers.federated_publish_function,
            self.offers.federated_unpublish,
            self.offers.federated_place,
            self.federated_hold,
            self.federated_held,
            self.federated_renew,
            self.federated_release,
            self.federated_release_all,
            self.federated_account,
        ]
        scheduler.handlers.update({handler.__name__: handler for handler in handlers})
        self.cache.start(scheduler)
        calls = CallPlugin()
        await scheduler.register_worker_plugin(None, dumps(calls), calls.name, idempotent=True)
        check = PeriodicCallback(self._release_expired, CHECK_SECONDS * 1000)
        # The scheduler stops all of its periodic callbacks when it closes.
        scheduler.periodic_callbacks[self.name] = check
        check.start()
        logger.info(
            "Site %s advertises %d datasets and %d functions",
            self.site,
            len(self.offers.datasets),
            len(self.offers.functions),
        )

    async def close(self) -> None:
        """Let go of all leases; called by the scheduler."""
        if self._scheduler is not None:
            self._scheduler.periodic_callbacks[self.name].stop()
            self.federated_release_all()
            self.cache.close()

    # What the site advertises

    def federated_site(self) -> Any:
        """Tell what the site is and has: a `SiteState`."""
        scheduler = self._known_scheduler()
        workers = scheduler.workers.values()
        return ToPickle(
            SiteState(
                name=self.site,
                title=self.title,
                peers=self.peers,
                datasets=dict(self.offers.datasets),
                functions=dict(self.offers.functions),
                dashboard_link=_dashboard_link(scheduler),
                workers=len(workers),
                threads=sum(worker.nthreads for worker in workers),
                memory=sum(worker.memory_limit or 0 for worker in workers),
                versions=_versions(),
                resources=_resources(workers),
            )
        )

    # Leases

    def federated_hold(
        self,
        lease: str,
        owner: str,
        outputs: dict[int, LeasedOutput],
    ) -> Any:
        """Keep results until the lease is released or was not used for a time.

        That time is short until the lease is first used or renewed.

        Parameters
        ----------
        lease : str
            Name of the new lease.
        owner : str
            Who alone may use it.
        outputs : dict of int to LeasedOutput
            Position of the output in its job, and what it is.

        Returns
        -------
        float or RequestRefused or None
            Seconds after which it ends, unless it is used or renewed before.
            Nothing is held where that would be more than the owner may hold (the
            error, returned: raised, Dask would log it with a traceback), or where
            the scheduler does not know a key (None).
        """
        scheduler = self._known_scheduler()
        outputs = unwrapped(outputs)
        keys = [output.key for output in outputs.values()]
        if lease in self._leases or any(key not in scheduler.tasks for key in keys):
            return None
        nbytes = sum(scheduler.tasks[key].get_nbytes() for key in set(keys))
        if (refusal := self._refusal(owner, nbytes)) is not None:
            return ToPickle(refusal)
        scheduler.client_desires_keys(keys, _holder(lease))
        now = time.monotonic()
        self._leases[lease] = _Lease(
            owner=owner,
            outputs=outputs,
            seconds=self.lease_seconds,
            end=now,
            last_end=now + self.longest_lease_seconds,
            nbytes=nbytes,
        )
        return self._leases[lease].renew(UNCONFIRMED_SECONDS)

    def _refusal(self, owner: str, nbytes: int) -> RequestRefused | None:
        """Tell why an owner may not hold so much more, or None."""
        own = [lease for lease in self._leases.values() if lease.owner == owner]
        hint = "Let go of persisted collections (`del`), or persist() less: reduced, or in parts."
        if len(own) >= self.leases_per_owner:
            return RequestRefused(
                f"You have {len(own)} sets of held results; this site holds "
                f"{self.leases_per_owner} for one person.",
                reason=Reason.LIMIT_EXCEEDED,
                hint=hint,
            )
        held = sum(lease.nbytes for lease in own) + nbytes
        if held > (limit := self._held_limit()):
            # How many there would be may tell what they are made of.
            return RequestRefused(
                f"Your held results would take more than the {limit:,} bytes that this site holds "
                "for one person.",
                reason=Reason.LIMIT_EXCEEDED,
                hint=hint,
            )
        return None

    def _held_limit(self) -> float:
        if self.held_bytes_per_owner is not None:
            return self.held_bytes_per_owner
        workers = self._known_scheduler().workers.values()
        memory = sum(worker.memory_limit or 0 for worker in workers)
        # Without a limit of memory, the workers' operator does not mind.
        return int(memory * HELD_PART) or math.inf

    def federated_held(self, lease: str, owner: str) -> Any:
        """Tell the outputs of a lease, or None where the owner has no such lease; renew it."""
        found = self._leases.get(lease)
        if found is None or found.owner != owner:
            return None
        found.renew()
        return ToPickle(found.outputs)

    def federated_renew(self, lease: str, owner: str) -> float | None:
        """Renew a lease; tell the seconds that it lasts now, or None where there is none such."""
        found = self._leases.get(lease)
        return None if found is None or found.owner != owner else found.renew()

    def federated_release(self, lease: str, owner: str) -> bool:
        """End a lease; tell whether the owner had it."""
        found = self._leases.get(lease)
        if found is None or found.owner != owner:
            return False
        self._release(lease)
        return True

    def federated_release_all(self) -> None:
        """End all leases, before the cluster stops."""
        for lease in list(self._leases):
            self._release(lease)

    def _release_expired(self) -> None:
        now = time.monotonic()
        for name in [name for name, lease in self._leases.items() if lease.end <= now]:
            logger.info("Lease %s was not used any more; its results are let go", name)
            self._release(name)

    def _release(self, name: str) -> None:
        scheduler = self._known_scheduler()
        lease = self._leases.pop(name)
        holder = _holder(name)
        if holder in scheduler.clients:
            scheduler.client_releases_keys([out.key for out in lease.outputs.values()], holder)
            # The scheduler makes such a client on the spot but never removes it.
            del scheduler.clients[holder]

    # Accounts of jobs

    def federated_account(self, job: str, close: bool = False) -> Any:
        """Tell what a job's tasks did so far: a `JobAccount`; forget it if it is to be closed."""
        account = self._accounts.pop(job, None) if close else self._accounts.get(job)
        return ToPickle(account or JobAccount())

    def update_graph(
        self,
        scheduler: Scheduler,
        *,
        tasks: list[Key],
        annotations: dict[str, dict[Key, Any]],
        **kwargs: Any,
    ) -> None:
        """Open an account for a job whose tasks arrive; called by the scheduler."""
        mark(scheduler, tasks)
        for owner in set(annotations.get(OWNER_ANNOTATION, {}).values()):
            lay_out(scheduler, self._share, owner, tasks)
        for job in set(annotations.get(JOB_ANNOTATION, {}).values()):
            self._accounts[job] = JobAccount(total=len(tasks))
            # Those of endpoints that went away without closing them.
            while len(self._accounts) > MOST_ACCOUNTS:
                self._accounts.popitem(last=False)

    def transition(
        self, key: Key, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any
    ) -> None:
        """Add up what a task took; called by the scheduler."""
        keep_from_running_again(self._known_scheduler(), key, start, finish)
        if start != "processing" or finish not in ("memory", "erred"):
            return
        account = self._account_of(key)
        if account is not None:
            account.done += 1
            account.compute_seconds += sum(
                step["stop"] - step["start"]
                for step in kwargs.get("startstops") or ()
                if step["action"] == "compute"
            )

    def log_event(self, topic: str, msg: Any) -> None:
        """Add up what a task read; called by the scheduler."""
        if topic == CALL_TOPIC:
            # They hold results of calls, and nobody reads them again.
            self._known_scheduler()._broker.truncate(topic)
        if topic == READ_TOPIC:
            account = self._account_of(msg["key"])
            if account is not None:
                account.read_bytes += msg["bytes"]

    def _account_of(self, key: Key) -> JobAccount | None:
        task = self._known_scheduler().tasks.get(key)
        job = (task.annotations or {}).get(JOB_ANNOTATION) if task is not None else None
        return None if job is None else self._accounts.get(job)

    def _known_scheduler(self) -> Scheduler:
        if self._scheduler is None:
            raise RuntimeError("the plugin was not started by a scheduler")
        return self._scheduler


def _published(config: SiteConfig) -> list[PublishedFunction]:
    found = []
    for each in functions_of(config.functions):
        if isinstance(each, ConfigurationError):
            # One that is wrong is no reason to serve none.
            logger.error("%s %s", each.message, each.hint or "")
        else:
            found.append(each)
    return found


def _holder(lease: str) -> str:
    return f"federated-lease-{lease}"


def _dashboard_link(scheduler: Scheduler) -> str | None:
    server = scheduler.services.get("dashboard")
    if server is None:
        return None
    protocol, rest = scheduler.address.split("://", 1)
    host = "localhost" if protocol == "inproc" else rest.rsplit(":", 1)[0]
    return str(format_dashboard_link(host, server.port))


def _resources(workers: Iterable[WorkerState]) -> dict[str, float]:
    """Most that one worker has of each resource: a task runs on one."""
    most: dict[str, float] = {}
    for worker in workers:
        for name, amount in worker.resources.items():
            most[name] = max(amount, most.get(name, 0.0))
    return most


@functools.cache
def _versions() -> Mapping[str, str]:
    # Looked up once: it takes milliseconds of the scheduler's, which is asked every other second.
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
