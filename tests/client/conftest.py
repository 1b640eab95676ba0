"""A small real endpoint over TLS, and one that misbehaves in any way wanted."""

import asyncio
import contextlib
import inspect
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import iris_sample_data
import msgspec
import numpy as np
import pytest
import trustme
from aiohttp import web

from federated_dask import FederatedClient
from federated_dask.client import loop, sessions
from federated_dask.client.connection import SiteConnection
from federated_dask.protocol.call_messages import (
    CallProgress,
    CallSubmission,
    FunctionDescription,
    Functions,
    PlainArgument,
    Returned,
    SentArgument,
)
from federated_dask.protocol.frames import FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.messages import (
    FRAMES_MEDIA_TYPE,
    Accepted,
    Catalogue,
    Failure,
    Finished,
    JobSubmission,
    Result,
    SiteDescription,
)
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import put_together, take_apart
from federated_dask.protocol.values import encode_value
from site_plugins import LocalFederation
from site_plugins.datasets import StoredDataset
from site_plugins.descriptions import describe
from tests.client.sites import start_federation

TOKEN = "good-token"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ServerThread:
    """An event loop of its own for what is served."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(120)

    def stop(self) -> None:
        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(500):
                # All that is left is the loop's own wake-up pipe.
                if len(self.loop._selector.get_map()) <= 1:
                    break
                await asyncio.sleep(0.01)

        self.run(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class StubSite:
    """Speaks the routes of an endpoint over datasets opened in this process."""

    def __init__(self, name: str, datasets: dict[str, StoredDataset]) -> None:
        self.name = name
        self.datasets = datasets
        self.requests: list[str] = []
        self.submissions: list[JobSubmission] = []
        self.uploaded = 0
        self.disconnected = threading.Event()
        self.sent_events = 0
        self.events: Callable[[], AsyncIterator[list]] = self._nothing
        self.versions: dict[str, str] = {}
        self.functions: tuple[FunctionDescription, ...] | None = ()
        """None for a site of before there were functions."""
        self.breaks_calls = False
        self.bodies: dict[str, Callable[..., Any]] = {}
        """What the functions do; what takes `report` can report progress."""
        self.calls: list[tuple[CallSubmission, dict[str, Any]]] = []
        self.held: dict[str, list[np.ndarray]] = {}

    async def _nothing(self) -> AsyncIterator[list]:
        yield encode_frame(Finished())

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware], client_max_size=2**30)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/site", self._site),
                web.get("/functions", self._functions),
                web.post("/calls", self._calls),
                web.get("/datasets", self._catalogue),
                web.get("/datasets/{name}", self._describe),
                web.get("/datasets/{name}/variables/{variable:.*}", self._read),
                web.post("/jobs", self._jobs),
                web.get("/leases/{lease}/{output}", self._held),
                web.delete("/leases/{lease}", self._release),
            ]
        )
        return app

    @web.middleware
    async def _middleware(self, request, handler):
        self.requests.append(f"{request.method} {request.path}")
        if request.path != "/health" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._failure("token_invalid", 401)
        return await handler(request)

    def _failure(self, reason: str, status: int, **fields: str) -> web.Response:
        failure = Failure(reason=reason, message="It is so.", **fields)
        return self._json(failure, status)

    def _json(self, message: object, status: int = 200) -> web.Response:
        body = msgspec.json.encode(message)
        return web.Response(body=body, status=status, content_type="application/json")

    def _frame(self, message, buffers=()) -> web.Response:
        body = b"".join(encode_frame(message, buffers))
        return web.Response(body=body, content_type=FRAMES_MEDIA_TYPE)

    async def _health(self, request):
        return self._json({"status": "ok", "site": self.name})

    async def _site(self, request):
        return self._json(SiteDescription(name=self.name))

    async def _catalogue(self, request):
        summaries = tuple(dataset.summary for dataset in self.datasets.values())
        return self._json(Catalogue(site=self.name, datasets=summaries))

    async def _describe(self, request):
        name = request.match_info["name"]
        if name not in self.datasets:
            return self._failure("unknown_dataset", 404)
        description, buffers = describe(self.datasets[name], self.name)
        if name in self.versions:
            description = msgspec.structs.replace(description, version=self.versions[name])
        return self._frame(description, buffers)

    async def _read(self, request):
        dataset = self.datasets[request.match_info["name"]]
        version = self.versions.get(dataset.name, dataset.fingerprint())
        if request.query["version"] != version:
            return self._failure("version_changed", 409)
        index = tuple(
            slice(*entry)
            if isinstance(entry, list)
            else np.array(entry["take"], int)
            if isinstance(entry, dict)
            else entry
            for entry in json.loads(request.query["index"])
        )
        with dataset.open() as opened:
            values = opened.variables[request.match_info["variable"]][index].values
        buffers: list = []
        return self._frame(Result(output=0, value=encode_value(values, buffers)), buffers)

    async def _jobs(self, request):
        decoder, frames = FrameDecoder(), []
        async for data in request.content.iter_any():
            self.uploaded += len(data)
            frames += decoder.feed(data)
        self.submissions.append(decode_message(frames[0], JobSubmission))
        response = web.StreamResponse(headers={"Content-Type": FRAMES_MEDIA_TYPE})
        await response.prepare(request)
        try:
            async for pieces in self.events():
                for piece in pieces:
                    await response.write(piece)
                self.sent_events += 1
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            self.disconnected.set()
            raise
        return response

    async def _functions(self, request):
        if self.functions is None:
            return self._failure("unknown_route", 404)
        return self._json(Functions(site=self.name, functions=self.functions))

    async def _calls(self, request):
        [frame] = FrameDecoder().feed(await request.read())
        submission = decode_message(frame, CallSubmission)
        arguments = {
            name: self._argument(each, frame.buffers) for name, each in submission.keywords.items()
        }
        self.calls.append((submission, arguments))
        if self.breaks_calls:
            request.transport.abort()
            raise ConnectionResetError
        response = web.StreamResponse(headers={"Content-Type": FRAMES_MEDIA_TYPE})
        await response.prepare(request)
        await response.write(b"".join(encode_frame(Accepted(job="1", tasks=1))))
        reports: asyncio.Queue[Any] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def report(fraction: float, message: str = "") -> None:
            event = CallProgress(fraction=fraction, message=message)
            here.call_soon_threadsafe(reports.put_nowait, event)

        def body() -> Any:
            function = self.bodies[submission.function]
            if "report" in inspect.signature(function).parameters:
                return function(report=report, **arguments)
            return function(**arguments)

        running = asyncio.ensure_future(asyncio.to_thread(body))
        running.add_done_callback(lambda _: here.call_soon(reports.put_nowait, None))
        try:
            while (event := await reports.get()) is not None:
                await response.write(b"".join(encode_frame(event)))
            buffers: list = []
            for piece in encode_frame(self._returned(running, buffers), buffers):
                await response.write(piece)
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            self.disconnected.set()
            raise
        return response

    def _argument(self, argument, buffers):
        match argument:
            case PlainArgument():
                return argument.value
            case SentArgument():
                return put_together(
                    argument.content, buffers, lambda parts: None, operation_table()
                )
        return argument

    def _returned(self, running, buffers):
        if (error := running.exception()) is not None:
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            return Failure(
                reason="function_failed", message=str(error), exception=name, traceback="at line 1"
            )
        content, arrays = take_apart(running.result(), buffers, operation_table())
        lease = f"result-{len(self.held)}"
        self.held[lease] = [
            array.blocks[index].compute(scheduler="sync")
            for array in arrays
            for index in np.ndindex(array.numblocks)
        ]
        held = {"lease": lease, "outputs": len(self.held[lease])} if arrays else {}
        return Returned(content=content, lease_seconds=60.0, **held)

    async def _held(self, request):
        if (held := self.held.get(request.match_info["lease"])) is not None:
            output = int(request.match_info["output"])
            buffers: list = []
            return self._frame(
                Result(output=output, value=encode_value(held[output], buffers)), buffers
            )
        if request.match_info["lease"] != "lease-1":
            return self._failure("unknown_result", 404)
        buffers: list = []
        value = encode_value(np.arange(4), buffers)
        return self._frame(Result(output=int(request.match_info["output"]), value=value), buffers)

    async def _release(self, request):
        return web.Response(status=204)


def close_sessions() -> None:
    """Close what the background loop opened, so that each test starts without sockets."""
    loop.sync(sessions._close_all())


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def server_thread() -> Iterator[ServerThread]:
    thread = ServerThread()
    yield thread
    thread.stop()


@pytest.fixture(scope="session")
def sample_data() -> Path:
    return Path(iris_sample_data.path)


@pytest.fixture
def stub(sample_data: Path) -> StubSite:
    """Site north with two real datasets; not served yet."""
    datasets = [
        StoredDataset(
            name="a1b",
            title="A1B",
            path=str(sample_data / "A1B_north_america.nc"),
            open_options={"decode_timedelta": False},
        ),
        StoredDataset(name="sst", path=str(sample_data / "ostia_monthly.nc")),
    ]
    return StubSite("north", {dataset.name: dataset for dataset in datasets})


@pytest.fixture
def address(
    stub: StubSite, server_thread: ServerThread, server_tls: ssl.SSLContext
) -> Iterator[str]:
    """Where the stub is served."""

    async def start() -> tuple[web.AppRunner, int]:
        runner = web.AppRunner(
            stub.application(), handler_cancellation=True, shutdown_timeout=0.1, access_log=None
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = server_thread.run(start())
    yield f"https://localhost:{port}"
    close_sessions()
    server_thread.run(runner.cleanup())


@pytest.fixture
async def connection(address: str, ca: str) -> AsyncIterator[SiteConnection]:
    """A connection to the stub, closed on every loop."""
    connection = SiteConnection("north", address, TOKEN, ca, timeout=10)
    yield connection
    await connection.close()


@pytest.fixture
def misbehaving(
    server_thread: ServerThread, server_tls: ssl.SSLContext
) -> Iterator[Callable[..., str]]:
    """Serve connections by a handler of raw bytes; give the address."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    def serve(handler: Handler, *, tls: ssl.SSLContext | None = server_tls) -> str:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(ConnectionError, asyncio.CancelledError, ssl.SSLError):
                await handler(reader, writer)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError, ssl.SSLError):
                await writer.wait_closed()

        async def start() -> asyncio.Server:
            return await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)

        server = server_thread.run(start())
        servers.append(server)
        return f"https://localhost:{server.sockets[0].getsockname()[1]}"

    yield serve

    async def close() -> None:
        for server in servers:
            server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)

    server_thread.run(close())


@pytest.fixture(scope="session")
def federation() -> Iterator[LocalFederation]:
    """Real sites; see `tests.client.sites`."""
    with start_federation() as running:
        yield running


@pytest.fixture
def fed(federation: LocalFederation) -> Iterator[FederatedClient]:
    """The current client, of real sites."""
    with FederatedClient(federation, timeout=20, progress=False) as client:
        client.federation = federation
        yield client
