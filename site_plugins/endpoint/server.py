"""uvicorn with TLS for the endpoint: one port, deadlines, and a bounded stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from federated_dask.errors import ConfigurationError

__all__ = ["EndpointServer"]

logger = logging.getLogger(__name__)

HEADER_SECONDS = 20.0
IDLE_SECONDS = 75
BACKLOG = 1024
GATHERED_BYTES = 16 * 1024
"""What one TLS record holds."""


class _Gathering:
    """A transport that writes what is small once per turn of the event loop.

    uvicorn writes the head, each piece and the end of a response one by one; each would be
    a TLS record, encrypted, sent and read by itself.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        size = memoryview(data).nbytes
        if size > GATHERED_BYTES:
            self.flush()
            self._transport.write(data)
            return
        if not self._pieces:
            self._loop.call_soon(self.flush)
        self._pieces.append(bytes(data))
        self._size += size
        if self._size > GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        pieces, self._pieces, self._size = self._pieces, [], 0
        if pieces and not self._transport.is_closing():
            self._transport.write(b"".join(pieces))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _DeadlineProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose request headers have to be complete within a deadline.

    uvicorn itself waits forever for a first request, and for the rest of one
    that has begun.
    """

    header_seconds = HEADER_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Gathering(transport, self.loop)))
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        # What arrives while no request is under way begins one.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if self._deadline is None and (cycle is None or cycle.response_complete):
            self._start_deadline()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._stop_deadline()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self._too_late)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs the site."""
        yield


class EndpointServer:
    """Serves an application over TLS in the running event loop.

    Parameters
    ----------
    app : ASGI application
        What is served.
    host : str
        Address to listen at.
    port : int
        Port; 0 takes a free one.
    certificate, private_key : path
        PEM files.
    header_seconds : float, optional
        Deadline for the headers of a request, and for the first one of a connection.
    stop_seconds : float, optional
        How long requests may go on once the server is to stop.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        certificate: Path,
        private_key: Path,
        header_seconds: float = HEADER_SECONDS,
        stop_seconds: float = 5.0,
    ) -> None:
        self.app = app
        self.host = host
        self.port = port
        self.certificate = certificate
        self.private_key = private_key
        self.header_seconds = header_seconds
        self.stop_seconds = stop_seconds
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; `port` is the real one after this.

        Raises
        ------
        ConfigurationError
            If the port is taken, or the certificate and key cannot be used.
        """
        context = self._context()
        listening = self._socket()
        self.port = listening.getsockname()[1]
        protocol = type(
            "DeadlineProtocol", (_DeadlineProtocol,), {"header_seconds": self.header_seconds}
        )
        config = uvicorn.Config(
            self.app,
            http=protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ssl_context_factory=lambda *_: context,
            timeout_keep_alive=IDLE_SECONDS,
            # uvicorn counts whole seconds; ours is the one that ends the wait.
            timeout_graceful_shutdown=max(1, round(self.stop_seconds)),
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if self._serving.done():
                listening.close()
                await self._serving
                raise ConfigurationError(f"The endpoint could not start at {self.host}.")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stop; requests that go on for longer than `stop_seconds` are cut off."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        try:
            async with asyncio.timeout(self.stop_seconds + 2.0):
                await asyncio.shield(self._serving)
        except TimeoutError:
            logger.warning("The endpoint did not stop in time; its connections are cut off")
            self._serving.cancel()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(
            self._serving, *self._server.server_state.tasks, return_exceptions=True
        )
        # Connections tell of their end in the loop's next turn.
        await asyncio.sleep(0)

    def _socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self.host, self.port))
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            raise ConfigurationError(
                f"The endpoint cannot listen at {self.host} port {self.port}: {error.strerror}.",
                hint="Choose another host or port in [endpoint]; port 0 takes a free one.",
            ) from error
        listening.setblocking(False)
        return listening

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.private_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"The endpoint's certificate {self.certificate} and private key "
                f"{self.private_key} cannot be used: {error}.",
                hint="`federated-dask site init DIR` makes a pair for this machine.",
            ) from error
        return context
