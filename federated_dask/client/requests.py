"""One request to an endpoint and its reply, from the headers to the last byte.

A reply is handed out only when its status and media type are what was asked
for; everything else becomes an error here.  Bodies are counted as they pass.
Redirects are not followed, cookies not kept, compressed bodies not accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import aiohttp
import msgspec
from yarl import URL

from federated_dask.client.link_counter import LinkCounter, run_counter
from federated_dask.client.remote_errors import connection_lost, mapped_errors, named_failure
from federated_dask.client.sessions import session_of
from federated_dask.errors import NotAuthenticated, Reason, RequestRefused, SiteUnavailable
from federated_dask.protocol.frames import Buffer, Frame, FrameDecoder, decode_message
from federated_dask.protocol.limits import MEBI, Limits
from federated_dask.protocol.messages import FRAMES_MEDIA_TYPE, PROJECT_HEADER, Failure

__all__ = ["Parameters", "RenewedToken", "Reply", "open_reply"]

T = TypeVar("T")

JSON = "application/json"
LARGEST_JSON = 16 * MEBI
UPLOAD_CHUNK = 2**18
SMALL_UPLOAD = 2**14
"""Bytes up to which a body is not worth being sent in pieces."""
LONGEST_GAP = 0.25
"""Seconds between two pieces of a body after which the site is thought to have been busy."""
ATTEMPTS = 2
NOT_AN_ENDPOINT = "Check that the address is that of an endpoint, not of a page or proxy before it."


@runtime_checkable
class RenewedToken(Protocol):
    """A bearer token that can be renewed; equal and hashable by what it is for."""

    async def current(self) -> str:
        """Give a token that is valid now."""
        ...

    async def renewed(self, used: str) -> str | None:
        """Give another token than the one that was used, or None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a connection to a site is made of; its repr does not show the token."""

    name: str
    address: str
    token: str | RenewedToken | None = field(repr=False)
    trust: str | None = field(repr=False)
    """CA certificates as PEM text; None for those of the system."""
    timeout: float
    """Seconds of silence after which a request fails."""
    limits: Limits = field(repr=False)
    """Largest reply."""
    project: str | None = None
    """For which all is asked."""

    @property
    def session_key(self) -> Hashable:
        """Connections with an equal key may share sockets."""
        return (self.address, self.token, self.trust, self.timeout)

    def mapped_errors(self) -> contextlib.AbstractContextManager[None]:
        """Turn errors of the transport inside the block into errors of our tree."""
        return mapped_errors(self.name, self.address, self.timeout)


@contextlib.asynccontextmanager
async def open_reply(
    parameters: Parameters,
    user: object,
    counter: LinkCounter,
    method: str,
    path: str,
    accept: str | None,
    *,
    body: Sequence[Buffer] | None = None,
    authenticated: bool = True,
    repeatable: bool = True,
) -> AsyncIterator[Reply]:
    """Send a request and give its reply, the body still to be read.

    Parameters
    ----------
    parameters : Parameters
        Whom to ask, and how.
    user : object
        Who asks; see `federated_dask.client.sessions.close_sessions`.
    counter : LinkCounter
        Counts the bodies, beside the counter of a surrounding `count_links`.
    method, path : str
        HTTP method; path with query, percent-encoded.
    accept : str or None
        Media type of the reply; None where no body is expected.
    body : sequence of bytes-like, optional
        Pieces of frames.
    authenticated : bool, optional
        Send the token.
    repeatable : bool, optional
        Send it once more where the site may have got it, but did not answer.

    Raises
    ------
    FederatedError
        Whatever goes wrong, inside the block too.
    """
    counters = [counter]
    if (of_run := run_counter(parameters.name)) is not None:
        counters.append(of_run)
    token = parameters.token if authenticated else None
    text = await token.current() if isinstance(token, RenewedToken) else token

    async def ask(text: str | None) -> Reply:
        headers = {"Accept": accept or "*/*"}
        if text:
            headers["Authorization"] = f"Bearer {text}"
            if parameters.project is not None:
                headers[PROJECT_HEADER] = parameters.project
        response = await _send(parameters, user, counters, method, path, headers, body, repeatable)
        reply = Reply(response, parameters, counters)
        try:
            await reply.check(accept)
        except BaseException:
            # A cancellation too: nobody else would give the socket back.
            await reply.abandon()
            raise
        return reply

    with parameters.mapped_errors():
        try:
            reply = await ask(text)
        except NotAuthenticated as error:
            if error.reason is not Reason.TOKEN_EXPIRED or not isinstance(token, RenewedToken):
                raise
            # The site has done nothing yet, so the request may be sent once more.
            if (renewed := await token.renewed(str(text))) is None:
                raise
            reply = await ask(renewed)
        try:
            yield reply
        finally:
            await reply.abandon()


async def _send(
    parameters: Parameters,
    user: object,
    counters: Sequence[LinkCounter],
    method: str,
    path: str,
    headers: dict[str, str],
    body: Sequence[Buffer] | None,
    repeatable: bool,
) -> aiohttp.ClientResponse:
    # aiohttp's read timeout begins anew with every byte.  Until the headers are whole this
    # deadline holds, so that trickled headers and a site that takes no bytes end too.
    async with asyncio.timeout(parameters.timeout) as deadline:
        for attempt in range(ATTEMPTS):
            data = None
            if body is not None:
                headers["Content-Type"] = FRAMES_MEDIA_TYPE
                headers["Content-Length"] = str(sum(memoryview(piece).nbytes for piece in body))
                data = _payload(body, deadline, parameters.timeout, counters)
            session = session_of(user, parameters.session_key, parameters.trust, parameters.timeout)
            try:
                return await session.request(
                    method,
                    URL(parameters.address + path, encoded=True),
                    headers=headers,
                    data=data,
                    allow_redirects=False,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # Mostly the site had closed the idle socket that was used again.  A job whose
                # request broke is cancelled by its site, so it may be sent once more as well.
                never_connected = isinstance(error, aiohttp.ClientConnectorError)
                if never_connected or not repeatable or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")


def _payload(
    pieces: Sequence[Buffer],
    deadline: asyncio.Timeout,
    timeout: float,
    counters: Sequence[LinkCounter],
) -> bytes | AsyncIterator[memoryview]:
    size = sum(memoryview(piece).nbytes for piece in pieces)
    if size > SMALL_UPLOAD:
        return _upload(pieces, deadline, timeout, counters)
    # Goes out with the headers, in one packet.
    for counter in counters:
        counter.sent += size
    return b"".join(pieces)


async def _upload(
    pieces: Sequence[Buffer],
    deadline: asyncio.Timeout,
    timeout: float,
    counters: Sequence[LinkCounter],
) -> AsyncIterator[memoryview]:
    loop = asyncio.get_running_loop()
    for piece in pieces:
        view = memoryview(piece).cast("B")
        for begin in range(0, view.nbytes, UPLOAD_CHUNK):
            part = view[begin : begin + UPLOAD_CHUNK]
            yield part
            for counter in counters:
                counter.sent += part.nbytes
            # A site may answer before it has read all; then the deadline is over.
            with contextlib.suppress(RuntimeError):
                deadline.reschedule(loop.time() + timeout)


class Reply:
    """A reply of a site, its body still to be read once, in one of the forms below."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        parameters: Parameters,
        counters: Sequence[LinkCounter],
    ) -> None:
        self.response = response
        self.parameters = parameters
        self.counters = counters

    async def abandon(self) -> None:
        """End the reply: what was not read is not wanted, and the site should know."""
        unfinished = self.response.connection
        if unfinished is not None and unfinished.transport is not None:
            unfinished.transport.abort()
        self.response.release()
        await self.response.wait_for_close()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the body as it arrives; the site waits while nobody takes it."""
        last: float | None = None
        async for data in self.response.content.iter_any():
            now = time.monotonic()
            flows = last is not None and now - last < LONGEST_GAP
            for counter in self.counters:
                counter.received += len(data)
                if flows and last is not None:
                    counter.flowed += len(data)
                    counter.flow_seconds += now - last
            yield data
            # What is done with the data in between is no matter of the link.
            last = time.monotonic()

    async def frames(self, limits: Limits) -> AsyncGenerator[Frame, None]:
        """Give the body's frames, each as soon as it is whole."""
        decoder = FrameDecoder(limits)
        async for data in self.chunks():
            for frame in decoder.feed(data):
                yield frame
        try:
            decoder.close()
        except RequestRefused as error:
            raise connection_lost(self.parameters.name) from error

    async def frame(self, type_: type[T], limits: Limits) -> tuple[T, list[bytearray]]:
        """Read a body of one frame.

        Returns
        -------
        message : object
            Of the type asked for.
        buffers : list of bytearray
        """
        found: Frame | None = None
        async with contextlib.aclosing(self.frames(limits)) as frames:
            async for frame in frames:
                if found is not None:
                    raise RequestRefused("One frame was expected, and more came.")
                found = frame
        if found is None:
            raise connection_lost(self.parameters.name)
        return decode_message(found, type_), list(found.buffers)

    async def json(self, type_: type[T]) -> T:
        """Read a body of JSON, with one deadline for the whole of it."""
        text = await self._text()
        try:
            return msgspec.json.decode(text, type=type_)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RequestRefused(
                f"The reply does not parse: {str(error)[:200]}.", hint=NOT_AN_ENDPOINT
            ) from error

    async def read_end(self) -> None:
        """Read to the end of the body, where nothing more is expected.

        The socket can be used again then; it is no loss where that fails.
        """
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with asyncio.timeout(1), contextlib.aclosing(self.chunks()) as chunks:
                async for _ in chunks:
                    return

    async def _text(self) -> bytes:
        body = bytearray()
        async with asyncio.timeout(self.parameters.timeout):
            async with contextlib.aclosing(self.chunks()) as chunks:
                async for data in chunks:
                    body += data
                    if len(body) > LARGEST_JSON:
                        raise RequestRefused(
                            f"A reply is longer than {LARGEST_JSON} bytes.",
                            reason=Reason.LIMIT_EXCEEDED,
                        )
        return bytes(body)

    async def check(self, accept: str | None) -> None:
        """Raise what the reply stands for, unless it is what was asked for."""
        response = self.response
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise RequestRefused(
                "The reply is compressed in a way that was not asked for.", hint=NOT_AN_ENDPOINT
            )
        if response.status in (200, 204) and (accept is None or response.content_type == accept):
            return
        if response.status >= 400 and response.content_type == JSON:
            text = await self._text()
            with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                failure = msgspec.json.decode(text, type=Failure)
                raise named_failure(failure, self.parameters.name).to_error()
        what = f"{self.parameters.address} answered with status {response.status}"
        if response.status >= 500:
            gateway = response.status in (502, 503, 504)
            raise SiteUnavailable(
                f"{what} and no reason.",
                reason=Reason.UNREACHABLE if gateway else Reason.INTERNAL,
                hint="Try again later, or ask the site's operator.",
            )
        if 300 <= response.status < 400:
            raise SiteUnavailable(
                f"{what}, which sends elsewhere; that is never followed.",
                reason=Reason.UNREACHABLE,
                hint=NOT_AN_ENDPOINT,
            )
        raise RequestRefused(
            f"{what} and the media type {response.content_type[:80]!r}.", hint=NOT_AN_ENDPOINT
        )
