"""Admission of jobs: what a submission asks for, checked before anything runs.

::

    submission ─► check_graph ─► sources, held results ─► build_graph ─► Job
                       └────────────┴─── errors of ours ─────┘
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from federated_dask.collector import without_collection
from federated_dask.errors import NotFound, NotPermitted, Reason, RequestRefused
from federated_dask.protocol import graph as wire
from federated_dask.protocol.bounded import check_written_sizes
from federated_dask.protocol.frames import Frame, LaterBuffers, decode_message
from federated_dask.protocol.graph import check_graph
from federated_dask.protocol.messages import JobSubmission, Output, delegation_key
from federated_dask.protocol.operations import OperationTable
from site_plugins.datasets import StoredVariable
from site_plugins.endpoint.access import Access
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.peering import Peering
from site_plugins.endpoint.resources import require_resources, resources_asked
from site_plugins.endpoint.running import SMALL_GRAPH, Job, JobSettings, Pull
from site_plugins.endpoint.tasks import BuiltGraph, build_graph
from site_plugins.policy import unknown
from site_plugins.scheduler_plugin import LeasedOutput
from site_plugins.tokens import Principal

__all__ = ["JobAdmission"]

T = TypeVar("T")

SMALL_MESSAGE = 2**14
"""Bytes of a submission up to which it is decoded and checked in the event loop."""
SMALL_BUFFERS = 2**16
"""Bytes of values up to which they are decoded in the event loop."""
SMALL_NODES = 10_000
"""Argument nodes of all tasks up to which these are built in the event loop."""


class JobAdmission:
    """Admits jobs.

    Parameters
    ----------
    gateway : Gateway
        The way to the site's cluster.
    table : OperationTable
        The operations that the site has.
    access : Access
        Who gets at which dataset.
    settings : JobSettings
        Caps and intervals.
    peering : Peering, optional
        The site's dealings with its peers.
    """

    def __init__(
        self,
        gateway: Gateway,
        table: OperationTable,
        access: Access,
        settings: JobSettings,
        peering: Peering | None = None,
    ) -> None:
        self.gateway = gateway
        self.table = table
        self.access = access
        self.settings = settings
        self.peering = peering

    async def admit(self, frame: Frame, principal: Principal) -> Job:
        """Check a submission and build its tasks.

        Parameters
        ----------
        frame : Frame
            A `JobSubmission`, and the buffers of its graph's values.
        principal : Principal
            Who asks.

        Raises
        ------
        RequestRefused, NotPermitted, NotFound, VersionChanged, DatasetUnreadable
            Whatever is wrong with it.
        """
        limits = self.settings.limits
        # How few tasks there are does not say how much there is to do for them.
        size = memoryview(frame.message).nbytes
        is_small = size <= SMALL_MESSAGE and _buffer_bytes(frame) <= SMALL_BUFFERS
        submission = await _called(is_small, lambda: decode_message(frame, JobSubmission))
        graph = submission.graph
        if len(submission.outputs) > limits.outputs:
            raise RequestRefused(
                f"The job has {len(submission.outputs)} outputs; this site accepts "
                f"{limits.outputs}.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Use larger chunks, or compute the expression in parts.",
            )
        is_small = is_small and graph.tasks <= SMALL_GRAPH
        most = await self.task_bytes()

        def check() -> wire.CheckedGraph:
            checked = check_graph(graph, self.table, limits)
            check_written_sizes(checked, most)
            return checked

        checked = await _called(is_small, check)
        is_small = is_small and checked.nodes <= SMALL_NODES
        if asked := resources_asked(graph):
            state = await self.gateway.state()
            require_resources(asked, state.resources, self.gateway.site)
        sources = [
            await self._source(source.dataset, source.version, source.variable, principal)
            for source in graph.sources
        ]
        held, pulls = await self.operands_held(
            graph.held, submission.delegations, owner_of(principal)
        )
        if not sources and not held:
            await self._require_any(principal)

        def build() -> BuiltGraph:
            return build_graph(
                checked,
                [output.task for output in submission.outputs],
                sources=sources,
                buffers=frame.buffers,
                held=held,
                table=self.table,
                limit=most,
            )

        built = await _called(is_small, build if is_small else lambda: without_collection(build))
        job = await self.job(built, submission.outputs, principal, submission.label)
        job.release.tasks = len(built.tasks)
        self.access.quotas.require(job.owner, tasks=len(built.tasks))
        digest = await _called(is_small, lambda: hashlib.sha256(frame.message).hexdigest())
        versions = {source.dataset: source.version for source in graph.sources}
        self.access.audit.write(
            "job_admitted",
            principal,
            job=job.name,
            submission=digest,
            tasks=graph.tasks,
            datasets=versions,
            derives=sorted(frozenset().union(*built.labels)),
            grants=self.access.reasons(principal, versions),
            peers=sorted({pull.peer for pull in pulls}),
        )
        return dataclasses.replace(job, pulls=pulls, reserve=submission.reserve)

    async def _require_any(self, principal: Principal) -> None:
        """Raise `NotPermitted` where a principal may compute with nothing of the site."""
        # Where there are no datasets, what counts is a grant on whichever there will be.
        names = list((await self.gateway.state()).datasets) or ["any"]
        allows = self.access.policy.allows
        if not any(allows(principal, "compute", f"dataset:{name}") for name in names):
            raise unknown(f"site:{self.gateway.site}", self.gateway.site)

    async def task_bytes(self) -> int:
        """Bytes that the result of one operation may take."""
        if self.settings.task_bytes is not None:
            return self.settings.task_bytes
        state = await self.gateway.state()
        if not state.memory:
            # Workers without a limit, or none yet.
            return self.settings.limits.task_bytes
        return state.memory // max(1, state.workers) // 2

    async def operands_held(
        self, wanted: Sequence[wire.Held], delegations: Mapping[str, str], owner: str
    ) -> tuple[list[LeasedOutput], list[Pull]]:
        """Find what held results stand for: here, or to be fetched from a peer."""
        here = [item for item in wanted if item.peer is None]
        found = iter(await self.held([(item.lease, item.output) for item in here], owner))
        trusted = frozenset() if self.peering is None else self.peering.trusted
        held: list[LeasedOutput] = []
        pulls: dict[wire.Held, Pull] = {}
        for item in wanted:
            if item.peer is None:
                held.append(next(found))
                continue
            delegation = delegations.get(delegation_key(item.lease, item.output))
            if item.peer not in trusted or not delegation:
                raise NotFound(
                    f"Values of {item.peer[:128]!r} cannot be fetched from here.",
                    reason=Reason.UNKNOWN_RESULT,
                    site=self.gateway.site,
                    hint="Send the value along instead.",
                )
            if item not in pulls:
                # Fetched once, however often the graph names it.
                key = ("pulled", secrets.token_hex(16))
                pulls[item] = Pull(key, item.peer, item.lease, item.output, delegation)
            held.append(LeasedOutput(key=pulls[item].key, label=self._label(item.peer, delegation)))
        return held, list(pulls.values())

    def _label(self, peer: str, delegation: str) -> frozenset[str]:
        """Name what a peer's value derives from.

        Its site charged all of it to the budget when it let it go, and information
        that has left cannot leave again: what is made of it here may go anywhere.
        What a site keeps to its functions it lets no peer have; should one do so by
        mistake, it ends here.
        """
        assert self.peering is not None  # noqa: S101
        derives = self.peering.derives(peer, delegation)
        if kept := sorted(name for name, tier in derives.items() if tier == "functions-only"):
            raise NotPermitted(
                f"Values of {', '.join(kept)} of {peer!r} stay there: only functions read it.",
                reason=Reason.EXPORT_NOT_ALLOWED,
                site=self.gateway.site,
            )
        return frozenset(f"{peer}/{name}" for name in derives)

    async def job(
        self, built: BuiltGraph, outputs: tuple[Output, ...], principal: Principal, label: str
    ) -> Job:
        """Make a job, where what it makes may leave the site at all."""
        names = frozenset().union(*built.labels)
        release = await self.access.release(principal, names)
        release.job = f"job-{secrets.token_hex(8)}"
        return Job(
            name=release.job,
            owner=owner_of(principal),
            label=label,
            built=built,
            outputs=outputs,
            release=release,
        )

    async def _source(
        self, name: str, version: str, variable: str, principal: Principal
    ) -> StoredVariable:
        dataset = await self.access.source(principal, name)
        await self.gateway.require_version(dataset, version)
        return StoredVariable(dataset, version, variable)

    async def held(self, asked: Sequence[tuple[str, int]], owner: str) -> list[LeasedOutput]:
        """Find outputs of leases of an owner."""
        leases = {lease: await self.gateway.held(lease, owner) for lease, _ in dict(asked).items()}
        try:
            return [leases[lease][output] for lease, output in asked]
        except KeyError:
            raise self.gateway.lost() from None


async def _called(is_small: bool, function: Callable[[], T]) -> T:
    """Call a function, in a thread unless it is done soon: meanwhile nobody is answered."""
    return function() if is_small else await asyncio.to_thread(function)


def _buffer_bytes(frame: Frame) -> int:
    buffers = frame.buffers
    return buffers.nbytes if isinstance(buffers, LaterBuffers) else sum(map(len, buffers))
