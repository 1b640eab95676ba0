"""Admission of calls: what is called with what, checked before anything runs.

::

    CallSubmission ─► function ─► signature ─► arguments ─► Call
                          └───────────┴────────────┴─ errors of ours, with the argument's name

Everything about the arguments that can be told without running anything is told here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from federated_dask.errors import Reason, SiteUnavailable, VersionChanged
from federated_dask.protocol.call_messages import Argument, CallSubmission
from federated_dask.protocol.frames import Buffer
from site_plugins.calling import CallTask
from site_plugins.config import FunctionsSection
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.byte_budgets import Room
from site_plugins.endpoint.failures import JobFailed, refused_argument
from site_plugins.endpoint.jobs import JobRunner
from site_plugins.endpoint.passing import Passing
from site_plugins.endpoint.release import Release
from site_plugins.endpoint.running import Pull
from site_plugins.functions import CodeOrigin, PublishedFunction, signature_of
from site_plugins.once import ONCE
from site_plugins.signatures import ArgumentError, Signature
from site_plugins.tokens import Principal

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["Call", "CallAdmission"]

logger = logging.getLogger(__name__)

SMALL_BUFFERS = 64 * 1024
"""Bytes of sent data up to which they are a part of the task."""


@dataclasses.dataclass(kw_only=True)
class Call:
    """A call that passed admission."""

    name: str
    principal: Principal
    label: str
    function: PublishedFunction
    permission: tuple[str, str]
    """Action and resource that its principal must be granted as long as it runs."""
    task: CallTask
    sent: Sequence[Buffer]
    """Buffers that are put on a worker before the task runs."""
    held: Sequence[Key]
    """Held results among the arguments, wanted until the call has ended."""
    derived: frozenset[str]
    """Datasets from which the result derives."""
    quiet: frozenset[str]
    """Those and all others that messages could quote."""
    release: Release
    pulls: Sequence[Pull] = ()
    told: bool = False
    """Whether its outcome came by an event."""
    started: float | None = None
    """When it was handed to the cluster."""
    room: Room = dataclasses.field(default_factory=Room)
    """Memory of the endpoint that its submission takes, until the cluster has it."""
    inbox: asyncio.Queue[Any] = dataclasses.field(default_factory=asyncio.Queue)

    @property
    def elapsed(self) -> float:
        """Seconds that the cluster has had it."""
        return 0.0 if self.started is None else time.monotonic() - self.started

    @property
    def owner(self) -> str:
        """Under which its lease is kept."""
        return owner_of(self.principal)

    @property
    def is_code(self) -> bool:
        """Whether what it runs is the caller's own."""
        return isinstance(self.function.origin, CodeOrigin)


class CallAdmission:
    """Admits calls of functions.

    Parameters
    ----------
    jobs : JobRunner
        Gives the gateway, the policy, and what is known of held results.
    section : FunctionsSection
        The site's limits for functions that set none of their own.
    """

    def __init__(self, jobs: JobRunner, section: FunctionsSection) -> None:
        self.jobs = jobs
        self.gateway = jobs.gateway
        self.policy = jobs.access.policy
        self.section = section

    async def functions(self, principal: Principal) -> list[PublishedFunction]:
        """Give the functions that a principal may know of, by name."""
        state = await self.gateway.state()
        return [
            function
            for name, function in sorted(state.functions.items())
            if self.policy.allows(principal, "describe", f"function:{name}")
        ]

    async def function(self, name: str, principal: Principal) -> PublishedFunction:
        """Look up a function.

        Raises
        ------
        NotFound
            If there is none such, or the principal may not know of it.
        """
        self.policy.require(principal, "describe", f"function:{name}")
        return await self.gateway.function(name)

    async def admit(
        self, submission: CallSubmission, buffers: Sequence[bytearray], principal: Principal
    ) -> Call:
        """Check a submission.

        Parameters
        ----------
        submission : CallSubmission
            What is to be called, with what.
        buffers : sequence of bytearray
            Buffers of the data that is sent along.
        principal : Principal
            Who asks.

        Raises
        ------
        RequestRefused, NotPermitted, NotFound, VersionChanged, DatasetUnreadable
            Whatever is wrong with it; the `Failure` of the reply names the argument.
        """
        self.policy.require(principal, "call", f"function:{submission.function}")
        function = await self.gateway.function(submission.function)
        version = function.description.version
        if submission.version is not None and submission.version != version:
            raise _version_gone(function.name, submission.version, version, self.gateway.site)
        signature = await self._signature(function)
        try:
            bound = signature.bound(submission.arguments, submission.keywords)
        except ArgumentError as error:
            raise JobFailed(refused_argument(error, function.name, self.gateway.site)) from None
        passing = Passing(self.jobs, submission.delegations, function.name, principal)
        permission = ("call", f"function:{function.name}")
        return await self.admitted(
            function, signature, bound, passing, permission, buffers, submission.label
        )

    async def admitted(
        self,
        function: PublishedFunction,
        signature: Signature,
        bound: Mapping[str, Argument],
        passing: Passing,
        permission: tuple[str, str],
        buffers: Sequence[bytearray],
        label: str,
    ) -> Call:
        """Check the arguments of a call, and what may leave of it; make the call.

        Parameters
        ----------
        function : PublishedFunction
            What is called.
        signature : Signature
            Of the function.
        bound : mapping of str to Argument
            The arguments by their parameters' names.
        passing : Passing
            Checks them for the principal.
        permission : tuple of str
            Action and resource that the principal was granted.
        buffers : sequence of bytearray
            Buffers of the data that is sent along.
        label : str
            What the caller calls it.
        """
        principal = passing.principal
        try:
            arguments = {
                name: await passing.argument(signature.parameters[name], argument)
                for name, argument in bound.items()
            }
        except ArgumentError as error:
            raise JobFailed(refused_argument(error, function.name, self.gateway.site)) from None
        release = await self.jobs.access.release(principal, passing.derived, passing.closed)
        call = release.job = f"call-{secrets.token_hex(8)}"
        self.jobs.access.audit.write(
            "code_admitted" if isinstance(function.origin, CodeOrigin) else "call_admitted",
            principal,
            call=call,
            function=function.name,
            version=function.description.version,
            digest=function.digest,
            derives=sorted(passing.derived),
            reads=sorted(passing.read),
            grants=self.jobs.access.reasons(principal, passing.read),
            peers=sorted({pull.peer for pull in passing.pulls}),
        )
        release.tasks = 1
        self.jobs.access.quotas.require(owner_of(principal), tasks=1)
        limits = function.limits
        is_small = sum(map(len, buffers)) <= SMALL_BUFFERS
        begin = "federated-call-" if function.description.idempotent else ONCE
        return Call(
            name=call,
            principal=principal,
            label=label,
            function=function,
            permission=permission,
            task=CallTask(
                call=call,
                key=f"{begin}{function.name}-{secrets.token_hex(16)}",
                name=function.name,
                digest=function.digest,
                origin=function.origin,
                arguments=arguments,
                seconds=limits.seconds or self.section.seconds,
                result_bytes=limits.result_bytes or self.section.result_bytes,
                buffers=[bytes(buffer) for buffer in buffers] if is_small else (),
            ),
            sent=() if is_small else buffers,
            held=passing.keys,
            derived=frozenset(passing.derived),
            quiet=frozenset(passing.derived | passing.closed),
            release=release,
            pulls=passing.pulls,
        )

    async def _signature(self, function: PublishedFunction) -> Signature:
        try:
            return signature_of(function.digest, function.origin)
        except Exception as error:
            # Loading runs the module of the function's author.
            logger.exception("Function %s cannot be loaded", function.name)
            raise SiteUnavailable(
                f"The site cannot load its function {function.name!r}.",
                reason=Reason.INTERNAL,
                site=self.gateway.site,
                hint="Tell the site's operator, who finds the cause in the site's log.",
            ) from error


def _version_gone(name: str, wanted: str, there: str, site: str) -> VersionChanged:
    return VersionChanged(
        f"Function {name!r} is no longer version {wanted[:128]!r}; version {there!r} is published.",
        site=site,
        hint="Look at what changed, and call the version that is there.",
    )
