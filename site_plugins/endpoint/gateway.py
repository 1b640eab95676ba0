"""All that the endpoint asks of the site's Dask cluster.

Answers that many requests share are kept for a short time and asked for once,
however many requests wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

from distributed.client import Client, Future
from distributed.comm.core import CommClosedError
from distributed.protocol.serialize import ToPickle

from federated_dask.errors import (
    FederatedError,
    NotFound,
    Reason,
    SiteUnavailable,
    VersionChanged,
)
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.messages import DatasetDescription
from site_plugins.datasets import StoredDataset
from site_plugins.descriptions import describe
from site_plugins.functions import PublishedFunction
from site_plugins.policy import unknown
from site_plugins.scheduler_plugin import JobAccount, LeasedOutput, SiteState, unwrapped

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["Gateway"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_KEPT = 1024
SIZE_TRIES = 100
SIZE_PAUSE = 0.05
"""Seconds between two questions for the sizes of results."""


class Gateway:
    """The endpoint's way to the scheduler and the workers.

    Parameters
    ----------
    client : distributed.Client
        Asynchronous, of the same event loop.
    site : str
        Name of the site, shown in errors.
    version_check_seconds : float, optional
        How long an answer about datasets is taken for true.
    wait_seconds : float, optional
        Longest wait for an answer of the scheduler or of a worker.
    """

    def __init__(
        self,
        client: Client,
        site: str,
        *,
        version_check_seconds: float = 2.0,
        wait_seconds: float = 60.0,
    ) -> None:
        self.client = client
        self.site = site
        self.version_check_seconds = version_check_seconds
        self.wait_seconds = wait_seconds
        self._kept: dict[Hashable, tuple[float, asyncio.Future[Any]]] = {}
        self._last: SiteState | None = None

    async def state(self) -> SiteState:
        """Tell what the site is and has."""
        state: SiteState = await self._shared(
            "state", self.version_check_seconds, lambda: self._ask("federated_site")
        )
        self._last = state
        return state

    async def dataset(self, name: str) -> StoredDataset:
        """Look up a dataset.

        Raises
        ------
        NotFound
            If the site does not advertise it.
        """
        found = (await self.state()).datasets.get(name)
        if found is None:
            raise unknown(f"dataset:{name}", self.site)
        return found

    async def function(self, name: str) -> PublishedFunction:
        """Look up a function.

        Raises
        ------
        NotFound
            If the site does not publish it.
        """
        found = (await self.state()).functions.get(name)
        if found is None:
            raise unknown(f"function:{name}", self.site)
        return found

    async def version(self, dataset: StoredDataset) -> str:
        """Tell the version that a dataset has now.

        Raises
        ------
        DatasetUnreadable
            If it cannot be found.
        """
        return await self._shared(
            ("version", dataset.name, dataset.opening, dataset.version_override),
            self.version_check_seconds,
            lambda: self.on_worker(dataset.fingerprint),
        )

    async def require_version(self, dataset: StoredDataset, version: str) -> None:
        """Raise `VersionChanged` unless a dataset still has a version."""
        if await self.version(dataset) != version:
            raise VersionChanged(
                f"Dataset {dataset.name!r} is no longer version {version[:128]}.",
                site=self.site,
                hint="Open it again; what was opened before cannot be computed any more.",
            )

    async def description(self, dataset: StoredDataset) -> tuple[DatasetDescription, list[Buffer]]:
        """Describe a dataset as it is now.

        Raises
        ------
        DatasetUnreadable
            If it does not open.
        """
        version = await self.version(dataset)
        # The title and the egress tier of a dataset may change while it stays what it is.
        key = ("description", repr(dataset), dataset.opening, version)
        return await self._shared(
            key, 3600.0, lambda: self.on_worker(_describe, dataset, self.site)
        )

    async def on_worker(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function of the site on a worker.

        Raises
        ------
        FederatedError
            What the function raised, or `SiteUnavailable`.
        """
        name = getattr(function, "__name__", "task")
        with self._reported():
            async with asyncio.timeout(self.wait_seconds):
                future = self.client.submit(
                    function, *arguments, key=f"federated-{name}-{uuid.uuid4().hex}", priority=10
                )
                try:
                    return await future  # type: ignore[no-any-return]
                finally:
                    future.release()

    async def hold(
        self,
        lease: str,
        owner: str,
        outputs: dict[int, LeasedOutput],
    ) -> float:
        """Keep results under a new lease; tell the seconds that it lasts if nobody uses it.

        Raises
        ------
        RequestRefused
            If that is more than the owner may hold.
        """
        reply = await self._ask(
            "federated_hold",
            lease=lease,
            owner=owner,
            outputs=ToPickle(outputs),
        )
        if isinstance(reply, FederatedError):
            reply.site = self.site
            raise reply
        if reply is None:
            raise self.lost()
        return float(reply)

    async def keep(self, owner: str, keys: list[Key]) -> None:
        """Have results of a finished job kept for a while."""
        await self._ask("federated_keep", owner=owner, keys=ToPickle(keys))

    async def held(self, lease: str, owner: str) -> dict[int, LeasedOutput]:
        """Tell the outputs of a lease.

        Raises
        ------
        NotFound
            If the owner has no such lease (any more).
        """
        found: dict[int, LeasedOutput] | None = await self._ask(
            "federated_held", lease=lease, owner=owner
        )
        if found is None:
            raise self._no_lease()
        return found

    async def renew(self, lease: str, owner: str) -> float:
        """Renew a lease; tell the seconds that it lasts.  `NotFound` where there is none such."""
        seconds: float | None = await self._ask("federated_renew", lease=lease, owner=owner)
        if seconds is None:
            raise self._no_lease()
        return seconds

    async def release(self, lease: str, owner: str) -> None:
        """End a lease; `NotFound` where the owner has none such."""
        if not await self._ask("federated_release", lease=lease, owner=owner):
            raise self._no_lease()

    async def release_all(self) -> None:
        """End all leases of the site."""
        await self._ask("federated_release_all")

    async def account(self, job: str, *, close: bool = False) -> JobAccount:
        """Tell what a job's tasks did so far."""
        account: JobAccount = await self._ask("federated_account", job=job, close=close)
        return account

    async def sizes(self, keys: list[Key]) -> dict[Key, int]:
        """Bytes of results in the workers' memory."""
        sizes: dict[Key, int]
        for _ in range(SIZE_TRIES):
            try:
                sizes = await self._ask("nbytes", keys=keys, summary=False)
            except KeyError:
                # Let go for an equal request that ended just now; for ours it is made anew.
                await asyncio.sleep(SIZE_PAUSE)
            else:
                return sizes
        raise self.lost()

    def claim(self, key: Key) -> Future[Any]:
        """Make a future of a result that the scheduler has, and want it until released."""
        future: Future[Any] = Future(key, self.client)
        self.client._send_to_scheduler(
            {"op": "client-desires-keys", "keys": [key], "client": self.client.id}
        )
        return future

    def known_datasets(self) -> list[StoredDataset]:
        """Datasets that the site advertised when it was asked last."""
        return [] if self._last is None else list(self._last.datasets.values())

    def embargo_of(self, name: str) -> date | None:
        """Tell the embargo of a dataset, as it was advertised when the site was asked last."""
        dataset = None if self._last is None else self._last.datasets.get(name)
        return None if dataset is None else dataset.embargo

    def lost(self) -> FederatedError:
        """Error for results that the scheduler does not have any more."""
        return NotFound(
            "A held result is not there any more.",
            reason=Reason.UNKNOWN_RESULT,
            site=self.site,
            hint="persist() the expression again.",
        )

    def _no_lease(self) -> FederatedError:
        return NotFound(
            "No such lease, or it has ended.",
            reason=Reason.UNKNOWN_RESULT,
            site=self.site,
            hint="persist() the expression again.",
        )

    async def _ask(self, operation: str, **arguments: Any) -> Any:
        with self._reported():
            async with asyncio.timeout(self.wait_seconds):
                return unwrapped(await getattr(self.client.scheduler, operation)(**arguments))

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turn what Dask raises into errors of ours, and give those of ours the site's name."""
        try:
            yield
        except FederatedError as error:
            error.site = self.site
            raise
        except TimeoutError as error:
            raise SiteUnavailable(
                f"The site's cluster did not answer within {self.wait_seconds:g} seconds.",
                reason=Reason.TIMED_OUT,
                site=self.site,
                hint="Try again later; `GET /health` tells whether the site is up.",
            ) from error
        except (CommClosedError, OSError) as error:
            raise SiteUnavailable(
                "The site's scheduler cannot be reached.",
                reason=Reason.UNREACHABLE,
                site=self.site,
                hint="Try again later; `GET /health` tells whether the site is up.",
            ) from error

    async def _shared(self, key: Hashable, seconds: float, ask: Callable[[], Awaitable[T]]) -> T:
        now = time.monotonic()
        end, answer = self._kept.get(key, (0.0, None))
        if answer is None or (answer.done() and (end <= now or answer.exception() is not None)):
            answer = asyncio.ensure_future(ask())
            # Errors are for those who wait; nobody may, when all have gone away.
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._kept.pop(key, None)
            self._kept[key] = (now + seconds, answer)
            while len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        # One request that goes away must not take the answer from the others.
        return await asyncio.shield(answer)

    async def close(self) -> None:
        """Stop asking."""
        pending = [answer for _, answer in self._kept.values() if not answer.done()]
        for answer in pending:
            answer.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _describe(dataset: StoredDataset, site: str) -> tuple[DatasetDescription, list[Buffer]]:
    description, buffers = describe(dataset, site)
    # Views of arrays do not survive the way from a worker.
    return description, [bytes(buffer) for buffer in buffers]
