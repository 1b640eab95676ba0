"""Jobs: one site's share of a plan, from its admission to the last event.

::

    Job ─► events ──► Accepted, Progress …, Result …, Finished
             │  ▲                                └─ or Failure
         futures │ gathered a few at a time
             ▼  │
       distributed.Client

What a job computes lives as long as somebody reads its events; only outputs
that are to be held outlive it, under a lease.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from federated_dask.errors import (
    FederatedError,
    NotPermitted,
    Reason,
    SiteUnavailable,
)
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.messages import (
    Accepted,
    DelegationRequest,
    Failure,
    Finished,
    Heartbeat,
    JobEvent,
    Output,
    Progress,
)
from federated_dask.protocol.operations import OperationTable
from site_plugins.datasets import StoredVariable
from site_plugins.endpoint.access import Access
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.failures import failure_at_boundary, internal_failure
from site_plugins.endpoint.finishing import finished
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.job_admission import JobAdmission
from site_plugins.endpoint.operands import read_task
from site_plugins.endpoint.peering import Peering
from site_plugins.endpoint.running import (
    Job,
    JobSettings,
    Pieces,
    Run,
)
from site_plugins.endpoint.tasks import BuiltGraph
from site_plugins.scheduler_plugin import LeasedOutput
from site_plugins.tokens import Principal

__all__ = ["Job", "JobRunner", "JobSettings"]

logger = logging.getLogger(__name__)


MOST_OUTFLOWS = 10_000
"""Leases of which the outputs that have left are known."""

TURN_SECONDS = 0.02
"""How often a read looks whether it may begin."""


@dataclasses.dataclass
class _Holding:
    """The lease of a running job."""

    lease: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
    asked: asyncio.Future[float] | None = None
    """Of the scheduler, which answers how long it lasts."""


class JobRunner:
    """Runs jobs.

    Parameters
    ----------
    gateway : Gateway
        The way to the site's cluster.
    table : OperationTable
        The operations that the site has.
    access : Access
        Who gets at which dataset.
    settings : JobSettings, optional
        Caps and intervals.
    peering : Peering, optional
        The site's dealings with its peers.
    """

    def __init__(
        self,
        gateway: Gateway,
        table: OperationTable,
        access: Access,
        settings: JobSettings | None = None,
        peering: Peering | None = None,
    ) -> None:
        self.gateway = gateway
        self.table = table
        self.access = access
        self.settings = settings or JobSettings()
        self.peering = peering
        self.admission = JobAdmission(gateway, table, access, self.settings, peering)
        self._outflows: OrderedDict[str, set[int]] = OrderedDict()

    async def read(
        self, variable: StoredVariable, index: tuple[Any, ...], principal: Principal
    ) -> Pieces:
        """Read a part of a stored variable: one frame with the result."""
        # Whatever the route has looked at: a read is a read of what may be read.
        await self.access.source(principal, variable.dataset.name)
        key, task = read_task(variable, index)
        label = frozenset({variable.dataset.name})
        built = BuiltGraph(tasks={key: task}, keys=[key], labels=[label])
        what = f"{variable.dataset.name}/{variable.variable}"
        job = await self.admission.job(built, (Output(task=0),), principal, what)
        pieces = await self._single(job)
        self.access.audit.write(
            "read",
            principal,
            job=job.name,
            datasets={variable.dataset.name: variable.version},
            grants=self.access.reasons(principal, label),
            bytes=_bytes(pieces),
        )
        return pieces

    async def fetch(self, lease: str, output: int, principal: Principal) -> Pieces:
        """Give one held output: one frame with the result."""
        [held] = await self.admission.held([(lease, output)], owner_of(principal))
        built = BuiltGraph(tasks={}, keys=[held.key], labels=[held.label])
        job = await self.admission.job(built, (Output(task=0),), principal, "held result")
        left = self._outflow_of(lease, job)
        # Once more tells nothing new.
        job.release.again = output in left
        pieces = await self._single(job, output)
        left.add(output)
        self.access.audit.write(
            "held_result_released",
            principal,
            job=job.name,
            lease=lease[:8],
            output=output,
            derives=sorted(held.label),
            bytes=_bytes(pieces),
        )
        return pieces

    def _outflow_of(self, lease: str, job: Job) -> set[int]:
        """Tell the outputs of a lease that have left; without a budget nothing is remembered."""
        if not job.release.accounts:
            return set()
        outflow = self._outflows.setdefault(lease, set())
        self._outflows.move_to_end(lease)
        while len(self._outflows) > MOST_OUTFLOWS:
            self._outflows.popitem(last=False)
        return outflow

    async def delegate(self, lease: str, request: DelegationRequest, principal: Principal) -> str:
        """Let a peer fetch outputs of a lease of the principal's."""
        if self.peering is None:
            raise self.gateway.lost()
        owner = owner_of(principal)
        held = await self.admission.held([(lease, output) for output in request.outputs], owner)
        names = frozenset().union(*(each.label for each in held))
        release = await self.access.release(principal, names)
        groups, projects = self.access.policy.relevant(principal)
        # Of data with a budget the size tells too much.
        sizes = [self.settings.limits.buffer_bytes]
        if not release.accounts:
            found = await self.gateway.sizes([each.key for each in held])
            sizes = [2 * size for size in found.values()]
        self.access.audit.write(
            "delegated",
            principal,
            peer=request.receiver,
            lease=lease[:8],
            outputs=len(request.outputs),
            derives=sorted(names),
        )
        return self.peering.delegate(
            owner=owner,
            groups=groups,
            projects=projects,
            project=principal.project,
            derives={name: release.egress[name].tier for name in release.withheld(release.egress)},
            receiver=request.receiver,
            lease=lease,
            outputs=request.outputs,
            # What frames a value, and kinds of values that are larger on the wire.
            limit=max(sizes, default=0) + 2**20,
        )

    async def fetch_delegated(
        self, lease: str, output: int, delegation: str, statement: str
    ) -> Pieces:
        """Give one held output to the peer for which a delegation was made."""
        if self.peering is None:
            raise self.gateway.lost()
        allowed = self.peering.check(delegation, statement, lease, output)
        issuer, _, subject = allowed.owner.partition("\n")
        # As it was when it let the peer fetch; what it may do is decided now.
        principal = Principal(
            issuer=issuer,
            subject=subject,
            groups=allowed.groups,
            projects=allowed.projects,
            project=allowed.project,
            expires=0.0,
        )
        pieces = await self.fetch(lease, output, principal)
        if _bytes(pieces) > allowed.limit:
            raise NotPermitted(
                "The value is larger than the delegation allows.",
                reason=Reason.EXPORT_NOT_ALLOWED,
                site=self.gateway.site,
            )
        self.access.audit.write(
            "handed_to_peer", principal, peer=allowed.receiver, lease=lease[:8], output=output
        )
        return pieces

    async def _single(self, job: Job, position: int = 0) -> Pieces:
        run = Run(self.gateway, self.table, self.settings, job)
        try:
            async with asyncio.timeout(self.settings.read_seconds):
                # Many at once, as a scheduler at home asks for chunks, wait for one another.
                while self.access.quotas.is_full(job.owner):  # noqa: ASYNC110
                    await asyncio.sleep(TURN_SECONDS)
                # Refused or not, it tells something: it is paid for, and takes a job's place.
                await job.release.reserve({})
                async for _, pieces in run.results(position):
                    return pieces
            raise self.gateway.lost()
        except TimeoutError:
            raise SiteUnavailable(
                f"The result was not ready within {self.settings.read_seconds:g} seconds.",
                reason=Reason.TIMED_OUT,
                site=self.gateway.site,
                hint="Ask for a smaller part, or try again later.",
            ) from None
        finally:
            run.release()
            try:
                job.release.compute_seconds = (await self._closed(job))[0]
            finally:
                await job.release.close()

    async def events(self, job: Job) -> AsyncGenerator[Pieces, None]:
        """Run a job; give its events as frames.

        The job is cancelled when the generator is closed before its end.
        """
        events: asyncio.Queue[Pieces | None] = asyncio.Queue(maxsize=2)
        holding = _Holding()
        running = asyncio.create_task(self._run_to_end(job, events, holding))
        last_beat = last_look = time.monotonic()
        step = min(self.settings.heartbeat_seconds, self.settings.progress_seconds)
        seen = 0
        told = False
        try:
            while True:
                try:
                    pieces = await asyncio.wait_for(events.get(), step)
                except TimeoutError:
                    pieces = []
                if pieces is None:
                    # Who reads on has taken the last event.
                    told = True
                    return
                if (refusal := _stopped(job)) is not None:
                    yield encode_frame(Failure.from_error(refusal))
                    return
                now = time.monotonic()
                if not pieces and now - last_look >= self.settings.progress_seconds:
                    last_look = now
                    progress = await self._progress(job)
                    if progress is not None and progress.done != seen:
                        seen, pieces = progress.done, encode_frame(progress)
                if not pieces and now - last_beat >= self.settings.heartbeat_seconds:
                    pieces = encode_frame(Heartbeat())
                if pieces:
                    last_beat = now
                    yield pieces
        finally:
            running.cancel()
            await finished(self._leave(job, running, None if told else holding))

    async def _leave(self, job: Job, running: asyncio.Task[None], holding: _Holding | None) -> None:
        await asyncio.gather(running, return_exceptions=True)
        if holding is not None:
            await self._let_go(job, holding)

    async def _let_go(self, job: Job, holding: _Holding) -> None:
        """End the lease of a job whose client left before it was told of it."""
        if holding.asked is None:
            return
        try:
            # The scheduler may still be about to begin it.
            await holding.asked
            await self.gateway.release(holding.lease, job.owner)
        except FederatedError as error:
            logger.info("Lease of job %s is left to end by itself: %s", job.name, error.reason)

    async def _progress(self, job: Job) -> Progress | None:
        try:
            account = await self.gateway.account(job.name)
        except FederatedError:
            # The job itself will tell, if the scheduler is gone.
            return None
        job.release.compute_seconds = account.compute_seconds
        total = max(len(job.built.tasks), account.done)
        return Progress(done=account.done, total=total)

    async def _run_to_end(
        self, job: Job, events: asyncio.Queue[Pieces | None], holding: _Holding
    ) -> None:
        run = Run(self.gateway, self.table, self.settings, job)
        last: JobEvent | None = None
        try:
            last = await self._run(job, run, events, holding)
        except Exception as error:
            subject = job.owner.partition("\n")[2]
            last = failure_at_boundary(error, self.gateway.site, f"Job {job.name} of {subject}")
        finally:
            run.release()
            account, end = await finished(self._end(job, last))
        if isinstance(end, Finished):
            end = msgspec.structs.replace(end, compute_seconds=account[0], read_bytes=account[1])
        await events.put(encode_frame(end))
        await events.put(None)

    async def _end(self, job: Job, last: JobEvent | None) -> tuple[tuple[float, int], JobEvent]:
        """Tell what a job took, and how it ended."""
        account = 0.0, 0
        try:
            account = await self._closed(job)
            job.release.compute_seconds = max(job.release.compute_seconds, account[0])
        finally:
            last = await self._settled(job, last)
        return account, last

    async def _settled(self, job: Job, last: JobEvent | None) -> JobEvent:
        """Close a job's accounts and write down its end, before anybody is told of it."""
        try:
            await job.release.close()
            self._ended(job, last)
        except (OSError, sqlite3.Error):
            # What cannot be written down did not happen, as far as the client is told.
            logger.exception("The end of job %s cannot be written down", job.name)
            last = None
        return last or internal_failure(self.gateway.site)

    def _ended(self, job: Job, last: JobEvent | None) -> None:
        outcome = last.reason if isinstance(last, Failure) else "finished"
        self.access.audit.write(
            "job_ended",
            job.release.principal,
            job=job.name,
            outcome="cancelled" if last is None else outcome,
            released=dict(job.release.released),
            bytes=job.release.bytes,
            compute_seconds=round(job.release.compute_seconds, 3),
            lease=last.lease[:8] if isinstance(last, Finished) and last.lease else None,
        )

    async def _closed(self, job: Job) -> tuple[float, int]:
        if not job.built.tasks:
            return 0.0, 0
        try:
            account = await self.gateway.account(job.name, close=True)
        except FederatedError:
            return 0.0, 0
        return account.compute_seconds, account.read_bytes

    async def _run(
        self, job: Job, run: Run, events: asyncio.Queue[Pieces | None], holding: _Holding
    ) -> JobEvent:
        await job.release.reserve(job.reserve)
        pulled = await run.pull(self.peering)
        await run.submit()
        await events.put(encode_frame(Accepted(job=job.name, tasks=len(job.built.tasks))))
        async for _, pieces in run.results():
            await events.put(pieces)
        if self.settings.keeps_results:
            await self.gateway.keep(job.owner, list(dict.fromkeys(job.built.keys)))
        outputs = {
            position: LeasedOutput(key=job.built.keys[position], label=job.built.labels[position])
            for position, output in enumerate(job.outputs)
            if output.hold
        }
        if not outputs:
            return Finished(pulled_bytes=pulled)
        lease = holding.lease
        holding.asked = asyncio.ensure_future(self.gateway.hold(lease, job.owner, outputs))
        # Given up halfway, nobody would know whether there is a lease.
        seconds = await asyncio.shield(holding.asked)
        left = self._outflow_of(lease, job)
        left.update(position for position in outputs if job.outputs[position].release)
        return Finished(lease=lease, lease_seconds=seconds, pulled_bytes=pulled)


def _stopped(job: Job) -> NotPermitted | None:
    """Tell why a running job has to end, or None."""
    try:
        job.release.require()
        job.release.require_quotas()
    except NotPermitted as error:
        logger.info("Job %s is cancelled: %s", job.name, error.reason)
        return error
    return None


def _bytes(pieces: Pieces) -> int:
    return sum(memoryview(piece).nbytes for piece in pieces)
