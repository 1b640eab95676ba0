"""One site: what can be asked of it.

::

    SiteConnection ── parameters only, picklable ──► any process
         │ shares, per event loop
    aiohttp.ClientSession ── TLS, the given CA only ──► endpoint

Bodies are read as they arrive and go straight into a `FrameDecoder`; a caller
that is slow to take the frames slows the site down.  Nothing that a site sends
raises anything but an error of `federated_dask.errors`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np

from federated_dask.client.indexes import Index
from federated_dask.client.link_counter import LinkCounter, count_links
from federated_dask.client.reading import as_array, read_parts
from federated_dask.client.remote_errors import connection_lost, named_failure, task_error
from federated_dask.client.requests import JSON, Parameters, RenewedToken, Reply, open_reply
from federated_dask.client.sessions import check_address, close_sessions, read_trust
from federated_dask.errors import ConfigurationError, RequestRefused
from federated_dask.protocol.call_messages import (
    AnyCallEvent,
    CallSubmission,
    CodeSubmission,
    Functions,
    Returned,
)
from federated_dask.protocol.frames import Buffer, Frame, decode_message, encode_frame
from federated_dask.protocol.identity_messages import LoginOptions
from federated_dask.protocol.limits import MEBI, Limits
from federated_dask.protocol.messages import (
    FRAMES_MEDIA_TYPE,
    PROTOCOL_VERSION,
    AnyJobEvent,
    Budget,
    Catalogue,
    DatasetDescription,
    DelegationReply,
    DelegationRequest,
    Failure,
    Finished,
    JobSubmission,
    LeaseTerms,
    LicenseAcceptance,
    LicenseTerms,
    Operations,
    Result,
    SiteDescription,
)
from federated_dask.protocol.values import decode_value

__all__ = ["LinkCounter", "SiteConnection", "count_links", "task_error"]

T = TypeVar("T")

LONGEST_URL = 7_500
PROJECT = re.compile(r"[A-Za-z0-9_.\-]{1,128}@[A-Za-z0-9_.\-]{1,128}")


def _reply_limits() -> Limits:
    # What does not fit into this machine's memory is of no use here, and a small malicious
    # message can announce any size.
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Limits(header_bytes=32 * MEBI, buffer_bytes=memory // 2)


class SiteConnection:
    """How to reach one site.

    A connection is its parameters: it opens sockets when they are needed, on
    whichever event loop a request runs, and travels by pickle to Dask workers.
    The pickle holds the token; the repr does not.

    Parameters
    ----------
    name : str
        Name of the site.
    address : str
        Its endpoint, ``https://host:port``.
    token : str or RenewedToken, optional
        Bearer token, or what gives one that is valid.
    verify : bool or str or Path, optional
        True for the system's CAs, or a PEM file (or its text) with the only CAs
        to trust.
    timeout : float, optional
        Seconds of silence after which a request fails; a site that runs a job
        sends a sign of life every few seconds.
    limits : Limits, optional
        Largest reply to accept; by default buffers may take half of this
        machine's memory.
    project : str, optional
        Project for which all is asked, ``name@site``.

    Attributes
    ----------
    counter : LinkCounter
        Bytes of bodies that ever crossed this connection in this process.

    Raises
    ------
    ConfigurationError
        If a parameter cannot be used.

    Examples
    --------
    >>> SiteConnection("north", "https://north.example:8443", "secret")
    SiteConnection('north', 'https://north.example:8443')
    """

    def __init__(
        self,
        name: str,
        address: str,
        token: str | RenewedToken | None = None,
        verify: bool | str | Path = True,
        timeout: float = 60.0,
        *,
        limits: Limits | None = None,
        project: str | None = None,
    ) -> None:
        token = token.strip() if isinstance(token, str) else token
        if isinstance(token, str) and not (token.isascii() and token.isprintable() and token):
            raise ConfigurationError(
                "The token is empty or holds characters that no token has.",
                site=name,
                hint="Give the token's text, as the site's operator handed it out.",
            )
        if project is not None and not PROJECT.fullmatch(project):
            raise ConfigurationError(
                f"{project[:128]!r} is no project.", hint="A project is called name@site."
            )
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ConfigurationError(f"timeout is a number of seconds above 0, not {timeout!r}.")
        self.parameters = Parameters(
            name,
            check_address(address),
            token,
            read_trust(verify),
            float(timeout),
            _reply_limits() if limits is None else limits,
            project,
        )
        self.counter = LinkCounter()
        self.is_shut = False
        """Whether its client was closed: nothing new is asked for by it."""

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.parameters.name

    @property
    def address(self) -> str:
        """Its endpoint."""
        return self.parameters.address

    @property
    def timeout(self) -> float:
        """Seconds of silence after which a request fails."""
        return self.parameters.timeout

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.address!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.parameters,))

    async def close(self) -> None:
        """Close the sockets, unless an equal connection still uses them.

        The connection stays usable: the next request opens new ones.
        """
        await close_sessions(self, self.parameters.session_key)

    def require_open(self) -> None:
        """Raise `ConfigurationError` where the client was closed.

        What was persisted by it can be had all the same.
        """
        if self.is_shut:
            # Dask's own schedulers would go on, and download all that an expression reads.
            raise ConfigurationError(
                "The client by which this was opened is closed.",
                site=self.name,
                hint="Make a new FederatedClient and open it again, or compute before the "
                "`with` block ends.",
            )

    async def health(self) -> dict[str, str]:
        """Ask whether the site works; needs no token."""
        async with self._open("GET", "/health", JSON, authenticated=False) as reply:
            return await reply.json(dict[str, str])

    async def login_options(self) -> LoginOptions:
        """Ask at which OpenID providers users of the site log in; needs no token."""
        async with self._open("GET", "/login", JSON, authenticated=False) as reply:
            return await reply.json(LoginOptions)

    async def describe_site(self) -> SiteDescription:
        """Ask what the site says of itself.

        Raises
        ------
        RequestRefused
            Also if the site speaks another version of the protocol.
        """
        async with self._open("GET", "/site", JSON) as reply:
            description = await reply.json(SiteDescription)
        if description.protocol_version != PROTOCOL_VERSION:
            older = description.protocol_version < PROTOCOL_VERSION
            raise RequestRefused(
                f"The site speaks version {description.protocol_version} of the protocol, "
                f"this is version {PROTOCOL_VERSION}.",
                site=self.name,
                hint="Ask the site's operator to upgrade." if older else "Upgrade federated-dask.",
            )
        return description

    async def operations(self) -> frozenset[str]:
        """Ask which operations the site has."""
        async with self._open("GET", "/operations", JSON) as reply:
            return frozenset((await reply.json(Operations)).names)

    async def catalogue(self) -> Catalogue:
        """Ask which datasets the site advertises."""
        async with self._open("GET", "/datasets", JSON) as reply:
            return await reply.json(Catalogue)

    async def functions(self) -> Functions:
        """Ask which functions the site publishes."""
        async with self._open("GET", "/functions", JSON) as reply:
            return await reply.json(Functions)

    async def describe_dataset(self, name: str) -> tuple[DatasetDescription, list[bytearray]]:
        """Ask for all that is needed to open a dataset, in one round trip.

        Returns
        -------
        description : DatasetDescription
        buffers : list of bytearray
            What the values in the description refer to.
        """
        async with self._open("GET", f"/datasets/{_quoted(name)}", FRAMES_MEDIA_TYPE) as reply:
            return await reply.frame(DatasetDescription, self.parameters.limits)

    async def budget(self, name: str) -> Budget:
        """Ask what may still leave of a dataset."""
        async with self._open("GET", f"/datasets/{_quoted(name)}/budget", JSON) as reply:
            return await reply.json(Budget)

    async def license(self, name: str) -> LicenseTerms:
        """Ask for the licence of a dataset."""
        async with self._open("GET", f"/datasets/{_quoted(name)}/license", JSON) as reply:
            return await reply.json(LicenseTerms)

    async def accept_license(self, name: str, license: str) -> None:
        """Accept the licence of a dataset."""
        body = [msgspec.json.encode(LicenseAcceptance(license=license))]
        path = f"/datasets/{_quoted(name)}/license"
        async with self._open("POST", path, None, body=body):
            pass

    async def ask(
        self, method: str, path: str, type_: type[T], message: msgspec.Struct | None = None
    ) -> T:
        """Send a JSON message, or none, to a route; give the JSON message that it answers."""
        body = None if message is None else [msgspec.json.encode(message)]
        async with self._open(method, path, JSON, body=body) as reply:
            return await reply.json(type_)

    async def read(
        self,
        dataset: str,
        variable: str,
        version: str,
        index: Index,
        *,
        largest: int | None = None,
    ) -> np.ndarray:
        """Read a part of a stored variable.

        Parameters
        ----------
        dataset, variable, version : str
            What to read.  Another version at the site is an error.
        index : tuple of int, slice or 1-d ndarray
            One entry per axis, orthogonal: integers drop their axis, arrays of
            integers or booleans pick along it.  Where the positions are too many
            for one request, several are made.
        largest : int, optional
            Bytes that the part can have; a longer reply is refused before it is
            received.

        Returns
        -------
        ndarray
        """
        path = f"/datasets/{_quoted(dataset)}/variables/{_quoted(variable)}"
        limits = self.parameters.limits
        if largest is not None:
            bound = min(largest, limits.buffer_bytes)
            limits = msgspec.structs.replace(limits, buffer_bytes=bound)

        async def read(query: str) -> np.ndarray:
            async with self._open("GET", f"{path}?{query}", FRAMES_MEDIA_TYPE) as reply:
                result, buffers = await reply.frame(Result, limits)
                return as_array(decode_value(result.value, buffers))

        self.require_open()
        room = LONGEST_URL - len(self.address) - len(path)
        return await read_parts(version, index, read, longest_query=room, site=self.name)

    def submit(
        self, submission: JobSubmission, buffers: Sequence[Buffer] = ()
    ) -> AsyncGenerator[tuple[AnyJobEvent, Frame], None]:
        """Run a job and stream what the site has to say.

        Parameters
        ----------
        submission : JobSubmission
            The job.
        buffers : sequence of bytes-like
            What the values in its graph refer to.

        Yields
        ------
        event : Accepted, Progress, Heartbeat, Result, Failure or Finished
            `Finished` or `Failure` is the last; see `task_error` for the latter.
        frame : Frame
            Its frame, with the buffers that the value of a `Result` refers to.

        Raises
        ------
        FederatedError
            If the site refuses the job, or the connection ends before the job.

        Notes
        -----
        Iterate inside ``contextlib.aclosing``: leaving early then closes the
        request, and the site cancels the job.
        """
        return self._events("/jobs", submission, buffers, AnyJobEvent)

    def call(
        self,
        submission: CallSubmission,
        buffers: Sequence[Buffer] = (),
        *,
        idempotent: bool = False,
    ) -> AsyncGenerator[tuple[AnyCallEvent, Frame], None]:
        """Call a published function and stream what the site has to say; otherwise as `submit`.

        Parameters
        ----------
        submission : CallSubmission
            The call.
        buffers : sequence of bytes-like
            What the values in its arguments refer to.
        idempotent : bool, optional
            Whether it may run twice; else it is never sent a second time.

        Yields
        ------
        event : Accepted, CallProgress, Heartbeat, Returned or Failure
            `Returned` or `Failure` is the last.
        frame : Frame
            Its frame, with the buffers that the content of a `Returned` refers to.
        """
        return self._events("/calls", submission, buffers, AnyCallEvent, repeatable=idempotent)

    def run_code(
        self, submission: CodeSubmission, buffers: Sequence[Buffer]
    ) -> AsyncGenerator[tuple[AnyCallEvent, Frame], None]:
        """Run a callable at the site, its pickle the last of the buffers; otherwise as `call`."""
        return self._events("/code", submission, buffers, AnyCallEvent, repeatable=False)

    async def _events(
        self,
        path: str,
        submission: msgspec.Struct,
        buffers: Sequence[Buffer],
        types: Any,
        *,
        repeatable: bool = True,
    ) -> AsyncGenerator[tuple[Any, Frame], None]:
        body = encode_frame(submission, buffers)
        async with self._open(
            "POST", path, FRAMES_MEDIA_TYPE, body=body, repeatable=repeatable
        ) as reply:
            async with contextlib.aclosing(reply.frames(self.parameters.limits)) as frames:
                async for frame in frames:
                    event: Any = decode_message(frame, types)
                    if isinstance(event, Failure):
                        event = named_failure(event, self.name)
                    if isinstance(event, Finished | Returned | Failure):
                        try:
                            # At once: what the site does after that is not waited for.
                            yield event, frame
                        finally:
                            await reply.read_end()
                        return
                    yield event, frame
            raise connection_lost(self.name)

    async def fetch_held(self, lease: str, output: int) -> tuple[Result, list[bytearray]]:
        """Fetch a result that the site holds.

        Parameters
        ----------
        lease : str
            From the job's `Finished`.
        output : int
            Position in the job's outputs.

        Returns
        -------
        result : Result
        buffers : list of bytearray
        """
        path = f"/leases/{_quoted(lease)}/{output}"
        async with self._open("GET", path, FRAMES_MEDIA_TYPE) as reply:
            return await reply.frame(Result, self.parameters.limits)

    async def delegate(self, lease: str, receiver: str, outputs: Sequence[int]) -> str:
        """Let another site fetch held results from this one.

        Parameters
        ----------
        lease : str
            From the job's `Finished`.
        receiver : str
            Name of the other site, a peer of this one.
        outputs : sequence of int
            Positions in the job's outputs.

        Returns
        -------
        str
            The delegation, to be handed over with the other site's job.
        """
        request = DelegationRequest(receiver=receiver, outputs=tuple(outputs))
        body = [msgspec.json.encode(request)]
        path = f"/leases/{_quoted(lease)}/delegations"
        async with self._open("POST", path, JSON, body=body) as reply:
            return (await reply.json(DelegationReply)).delegation

    async def renew(self, lease: str) -> float:
        """Have the site hold a lease for longer; give the seconds that it lasts now."""
        async with self._open("POST", f"/leases/{_quoted(lease)}", JSON) as reply:
            return (await reply.json(LeaseTerms)).lease_seconds

    async def release(self, lease: str) -> None:
        """Let the site drop what it holds under a lease."""
        async with self._open("DELETE", f"/leases/{_quoted(lease)}", None):
            pass

    def _open(
        self,
        method: str,
        path: str,
        accept: str | None,
        *,
        body: Sequence[Buffer] | None = None,
        authenticated: bool = True,
        repeatable: bool = True,
    ) -> contextlib.AbstractAsyncContextManager[Reply]:
        return open_reply(
            self.parameters,
            self,
            self.counter,
            method,
            path,
            accept,
            body=body,
            authenticated=authenticated,
            repeatable=repeatable,
        )


def _rebuild(parameters: Parameters) -> SiteConnection:
    # The parameters were checked where they were made.
    connection = SiteConnection.__new__(SiteConnection)
    connection.parameters = parameters
    connection.counter = LinkCounter()
    connection.is_shut = False
    return connection


def _quoted(name: str) -> str:
    return quote(name, safe="")
