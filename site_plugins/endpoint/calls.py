"""Calls of functions, from their admission to the last event.

::

    Call ─► events ──► Accepted, CallProgress …, Returned
              │  ▲                             └─ or Failure
              │  │ outcome, and what the worker tells meanwhile
              ▼  │
       one task on the cluster

The call lives as long as somebody reads its events.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import pickle
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import dask.base
import msgspec
import numpy as np
from distributed.client import Future
from distributed.scheduler import KilledWorker

from federated_dask.errors import (
    FederatedError,
    Reason,
    SiteUnavailable,
    TaskFailed,
)
from federated_dask.protocol.call_messages import (
    AnyCallEvent,
    CallProgress,
    Returned,
)
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.messages import Accepted, Failure, Heartbeat
from federated_dask.protocol.structures import Object
from site_plugins.calling import Outcome, overdue, run_call
from site_plugins.config import FunctionsSection
from site_plugins.endpoint.call_admission import Call, CallAdmission
from site_plugins.endpoint.failures import (
    JobFailed,
    failure_at_boundary,
    failure_of_call,
    refused_argument,
    scrubbed,
)
from site_plugins.endpoint.finishing import finished
from site_plugins.endpoint.jobs import JobRunner
from site_plugins.endpoint.running import Job, Run
from site_plugins.endpoint.streams import SMALL_BODY
from site_plugins.endpoint.tasks import BuiltGraph
from site_plugins.fair_share import OWNER_ANNOTATION
from site_plugins.once import worker_lost
from site_plugins.scheduler_plugin import LeasedOutput
from site_plugins.stopping import CALL_TOPIC

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["CallEvent", "CallRunner"]

logger = logging.getLogger(__name__)

CallEvent: TypeAlias = tuple[AnyCallEvent, Sequence[Buffer]]
"""An event and the buffers of its values."""

TOGETHER_SECONDS = 0.02
"""How long `Accepted` waits for the outcome of a call, to be sent along with it."""
MEMORY_TOPIC = "worker-restart-memory"
"""Topic of the events by which Dask's nannies tell that they end a worker for its memory."""
MEMORY_SECONDS = 3.0
"""How long such an event may come later than the loss of the worker."""
CONTENT = msgspec.msgpack.Decoder(Object)
MOST_LOSSES = 1_000


class CallRunner:
    """Runs calls of functions.

    Parameters
    ----------
    jobs : JobRunner
        Gives the gateway, the policy, and what is known of held results.
    section : FunctionsSection, optional
        The site's limits for functions that set none of their own.
    """

    def __init__(self, jobs: JobRunner, section: FunctionsSection | None = None) -> None:
        self.jobs = jobs
        self.gateway = jobs.gateway
        self.policy = jobs.access.policy
        self.settings = jobs.settings
        self.admission = CallAdmission(jobs, section or FunctionsSection())
        self._running: dict[str, Call] = {}
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._losses: dict[str, asyncio.Event] = {}
        self._listening = False

    async def events(self, call: Call) -> AsyncGenerator[CallEvent, None]:
        """Run a call; give its events, each with its buffers.

        The call is cancelled when the generator is closed before its end.
        """
        self._listen()
        self._running[call.name] = call
        lease = secrets.token_hex(16)
        holding: asyncio.Future[float] | None = None
        ended = told = False
        run = Run(self.gateway, self.jobs.table, self.settings, _job_of(call))
        future: Future[Any] | None = None
        outcome: Outcome | None = None
        waiting: asyncio.Task[None] | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                last: CallEvent
                try:
                    # Who waits for a turn takes the place of a job, too.
                    await call.release.reserve({})
                    # Delegations and leases may end meanwhile, and what was sent along waits
                    # on the workers rather than here.
                    await run.pull(self.jobs.peering)
                    further = await self._brought(call, run)
                    async for beat in self._turn(call, stack):
                        yield beat, ()
                    self._require(call)
                    future = self._submit(call, further)
                    await call.room.aclose()
                    call.started = time.monotonic()
                    waiting = asyncio.create_task(self._wait(call, future))
                    async for event in self._meanwhile(call):
                        if isinstance(event, Outcome):
                            outcome = event
                            break
                        yield event, ()
                    assert outcome is not None  # noqa: S101
                    returned, content = await self._returned(call, outcome)
                    if outcome.parts:
                        outputs = {
                            number: LeasedOutput(key=key, label=call.derived)
                            for number, key in enumerate(outcome.parts)
                        }
                        holding = asyncio.ensure_future(
                            self.gateway.hold(lease, call.owner, outputs)
                        )
                        # Given up halfway, nobody would know whether there is a lease.
                        seconds = await asyncio.shield(holding)
                        returned = msgspec.structs.replace(
                            returned, lease=lease, lease_seconds=seconds
                        )
                    last = returned, content
                except Exception as error:
                    what = f"Call {call.name} of {call.function.name}"
                    last = failure_at_boundary(error, self.gateway.site, what), ()
            self._ended(call, last[0], lease if holding else None)
            ended = True
            yield last
            told = True
        finally:
            self._running.pop(call.name, None)
            if not ended:
                self._ended(call, None, None)
            if outcome is None:
                # Nobody tells what it took: it is charged for as long as it was there.
                call.release.compute_seconds = call.elapsed
            # The client may leave just now, too.
            try:
                await finished(self._leave(call, run, future, waiting))
            finally:
                if holding is not None and not told:
                    await finished(self._let_go(call, lease, holding))

    async def _leave(
        self,
        call: Call,
        run: Run,
        future: Future[Any] | None,
        waiting: asyncio.Task[None] | None,
    ) -> None:
        """Give back what a call took."""
        # First: a future that is let go of looks like a worker that was lost.
        if waiting is not None and not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if future is not None:
            future.release()
        run.release()
        await call.release.close()

    def _ended(self, call: Call, last: AnyCallEvent | None, lease: str | None) -> None:
        """Write the end of a call into the audit log, before anybody is told of it."""
        outcome = last.reason if isinstance(last, Failure) else "returned"
        self.jobs.access.audit.write(
            "call_ended",
            call.principal,
            call=call.name,
            outcome="cancelled" if last is None else outcome,
            released=dict(call.release.released),
            bytes=call.release.bytes,
            lease=lease and lease[:8],
        )

    async def _turn(
        self, call: Call, stack: contextlib.AsyncExitStack
    ) -> AsyncIterator[AnyCallEvent]:
        """Wait until there is room for another call of the function."""
        most = call.function.limits.concurrent_calls
        if not most:
            return
        turns = self._turns.setdefault(call.function.digest, asyncio.Semaphore(most))
        acquiring = asyncio.ensure_future(turns.acquire())
        try:
            while not acquiring.done():
                await asyncio.wait([acquiring], timeout=self.settings.heartbeat_seconds)
                if not acquiring.done():
                    yield Heartbeat()
        except BaseException:
            if not acquiring.cancel() and not acquiring.cancelled():
                turns.release()
            raise
        stack.callback(turns.release)

    async def _brought(self, call: Call, run: Run) -> list[Future[Any]]:
        """Put what was sent along on a worker, and keep what is held; give what the task takes."""
        further = []
        if call.sent:
            # By the way that is for data: the scheduler would carry all of it in the task.
            sent: Key = f"federated-sent-{secrets.token_hex(16)}"
            buffers = [np.frombuffer(buffer, np.uint8) for buffer in call.sent]
            scattered = await self._scattered({sent: buffers})
            call.sent = ()
            del buffers
            await call.room.buffers.aclose()
            run.pulled.update(scattered)
            further = list(scattered.values())
        for key in call.held:
            if key not in run.pulled:
                run.futures[key] = self.gateway.claim(key)
        return further

    def _submit(self, call: Call, further: list[Future[Any]]) -> Future[Any]:
        client, task = self.gateway.client, call.task
        with dask.base.annotate(**{OWNER_ANNOTATION: call.owner}):
            future = client.submit(run_call, task, *further, key=task.key, pure=False)
        # The cluster has them.
        call.task = dataclasses.replace(task, arguments={}, buffers=())
        return future

    async def _scattered(self, values: dict[Key, Any]) -> dict[Key, Future[Any]]:
        """Put values on a worker; on another one where the first is lost meanwhile."""
        for pause in (0.2, 1.0, 5.0, None):
            try:
                async with asyncio.timeout(self.settings.read_seconds):
                    scattered: dict[Key, Future[Any]] = await self.gateway.client.scatter(
                        values, direct=True
                    )
                    return scattered
            except (OSError, TimeoutError):
                if pause is not None:
                    # The scheduler is about to notice, or a nanny to start a new one.
                    await asyncio.sleep(pause)
        raise SiteUnavailable(
            "No worker of the site takes the data.",
            reason=Reason.UNREACHABLE,
            site=self.gateway.site,
            hint="Try again later.",
        )

    async def _wait(self, call: Call, future: Future[Any]) -> None:
        """Put the outcome of a call into its inbox."""
        try:
            state = future._state
            if state is not None:
                await state.wait()
            if call.told and future.status == "finished":
                return
            outcome = await future
        except FederatedError as error:
            outcome = Outcome(error=error)
        except KilledWorker as error:
            outcome = Outcome(error=await self._loss(error.last_worker.address))
        except asyncio.CancelledError:
            if future.cancelled():
                outcome = Outcome(error=worker_lost())
            else:
                raise
        except BaseException:
            # Whatever Dask raises where a task cannot be carried to a worker or back.
            logger.exception("Call %s of %s failed", call.name, call.function.name)
            outcome = Outcome(
                error=SiteUnavailable(
                    "Something went wrong inside of the site.",
                    reason=Reason.INTERNAL,
                    hint="Tell the site's operator when it happened.",
                )
            )
        call.inbox.put_nowait(outcome)

    async def _loss(self, worker: str) -> FederatedError:
        """Say why a worker is gone, as far as its nanny says so in time."""
        told = self._losses.setdefault(worker, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MEMORY_SECONDS):
                await told.wait()
            return TaskFailed(
                "The function needed more memory than a worker of the site has.",
                reason=Reason.OUT_OF_MEMORY,
                hint="Ask for less: fewer years, a smaller region, coarser data.",
            )
        return worker_lost()

    async def _meanwhile(self, call: Call) -> AsyncIterator[AnyCallEvent | Outcome]:
        """Give what happens until the outcome, which comes last; and signs of life."""
        last_look = last_beat = time.monotonic()
        # What is over soon is told of in one piece.
        step = TOGETHER_SECONDS
        accepted = False
        while True:
            event: AnyCallEvent | Outcome | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step):
                    event = await call.inbox.get()
            if not accepted:
                accepted = True
                step = min(self.settings.heartbeat_seconds, self.settings.progress_seconds)
                yield Accepted(job=call.name, tasks=1)
            now = time.monotonic()
            if now - last_look >= self.settings.progress_seconds:
                last_look = now
                self._require(call)
                call.release.compute_seconds = call.elapsed
                call.release.require_quotas()
            if event is None and now - last_beat >= self.settings.heartbeat_seconds:
                event = Heartbeat()
            if event is not None:
                last_beat = now
                yield event

    def _require(self, call: Call) -> None:
        """Raise `NotPermitted` where the grants of a running call were revoked."""
        call.release.require()
        self.policy.require(call.principal, *call.permission)

    async def _returned(self, call: Call, outcome: Outcome) -> tuple[Returned, Sequence[Buffer]]:
        site = self.gateway.site
        call.release.compute_seconds = outcome.seconds
        if outcome.refused is not None:
            raise JobFailed(refused_argument(outcome.refused, call.function.name, site))
        if outcome.error is not None:
            if outcome.error.reason is Reason.LIMIT_EXCEEDED and call.release.withheld(call.quiet):
                # The size of a result may depend on values.
                outcome.error.message = "The call used up one of the function's limits."
            raise outcome.error
        # Neither a result nor what an exception says leaves after the grant is gone.
        self._require(call)
        if outcome.raised is not None:
            withheld = call.release.withheld(call.quiet)
            if withheld and call.is_code:
                # A class can be given any name.
                outcome.raised = dataclasses.replace(outcome.raised, exception="builtins.Exception")
            raise JobFailed(
                failure_of_call(
                    outcome.raised,
                    site=site,
                    function=call.function.name,
                    datasets=self.gateway.known_datasets(),
                    withheld=withheld,
                )
            )
        size = sum(map(len, outcome.buffers)) + len(outcome.content)
        await call.release.charge(call.derived, size)
        if len(outcome.content) <= SMALL_BODY:
            content = CONTENT.decode(outcome.content)
        else:
            content = await asyncio.to_thread(CONTENT.decode, outcome.content)
        derived = tuple((name, call.release.left(name)) for name in sorted(call.derived))
        returned = Returned(
            content=content,
            outputs=len(outcome.parts),
            derived=derived,
            compute_seconds=outcome.seconds,
        )
        return returned, outcome.buffers

    async def _let_go(self, call: Call, lease: str, holding: asyncio.Future[float]) -> None:
        """End the lease of a call whose client left before it was told of it."""
        try:
            # The scheduler may still be about to begin it.
            await holding
            await self.gateway.release(lease, call.owner)
        except FederatedError as error:
            logger.info("Lease of call %s is left to end by itself: %s", call.name, error.reason)

    def _listen(self) -> None:
        """Hear what workers tell of calls."""
        if not self._listening:
            self._listening = True
            self.gateway.client.subscribe_topic(CALL_TOPIC, self._on_call_event)
            self.gateway.client.subscribe_topic(MEMORY_TOPIC, self._on_memory_event)

    def _on_call_event(self, event: tuple[float, Mapping[str, Any]]) -> None:
        told = event[1]
        call = self._running.get(told["call"])
        if call is None:
            return
        if "outcome" in told:
            call.told = True
            # From a worker, as every result that Dask's client takes.
            call.inbox.put_nowait(pickle.loads(told["outcome"]))  # noqa: S301
            return
        if told.get("overdue"):
            call.inbox.put_nowait(Outcome(error=overdue(call.task.name, call.task.seconds)))
            return
        withheld = call.release.withheld(call.quiet)
        if withheld and call.is_code:
            # A fraction has fifty bits.
            return
        message = "" if withheld else told["message"]
        message = scrubbed(message, self.gateway.site, self.gateway.known_datasets())
        call.inbox.put_nowait(CallProgress(fraction=told["fraction"], message=message))

    def _on_memory_event(self, event: tuple[float, Mapping[str, Any]]) -> None:
        while len(self._losses) > MOST_LOSSES:
            del self._losses[next(iter(self._losses))]
        self._losses.setdefault(str(event[1]["worker"]), asyncio.Event()).set()


def _job_of(call: Call) -> Job:
    """Give the part of a call that fetches values from peers as a job would."""
    return Job(
        name=call.name,
        owner=call.owner,
        label=call.label,
        built=BuiltGraph(tasks={}, keys=[], labels=[]),
        outputs=(),
        release=call.release,
        pulls=call.pulls,
    )
