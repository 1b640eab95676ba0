"""A plain HTTP client for sites, and data for them."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import xarray as xr

from federated_dask.protocol.frames import Frame, FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.grant_messages import Usage
from federated_dask.protocol.graph import Graph
from federated_dask.protocol.messages import (
    AnyJobEvent,
    Failure,
    Finished,
    JobSubmission,
    Output,
    Result,
)
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.trees import Value
from federated_dask.protocol.values import decode_value
from site_plugins import LocalFederation
from site_plugins.certificates import write_certificates, write_private_file
from site_plugins.keys import new_issuer_key
from tests.waiting import until

DEADLINE = 120.0

AIR = np.random.default_rng(0).normal(size=(40, 6, 5))


def dataset() -> xr.Dataset:
    return xr.Dataset({"air": (("time", "lat", "lon"), AIR)}, coords={"lat": np.arange(6.0)}).chunk(
        time=10
    )


def written_site(folder: Path, *lines: str) -> Path:
    """Write certificates, key and site.toml of a site "north", with further lines of TOML."""
    write_certificates(folder / "certificates")
    write_private_file(folder / "issuer.pem", new_issuer_key())
    path = folder / "site.toml"
    path.write_text(
        """
        site = {name = "north"}
        tokens = {private_key = "issuer.pem"}
        endpoint.certificate = "certificates/certificate.pem"
        endpoint.private_key = "certificates/private_key.pem"
        """
        + "\n".join(lines)
    )
    return path


def as_message(frame: Frame, type_: Any = AnyJobEvent) -> Any:
    return decode_message(frame, type_)


class Caller:
    """A client of one site that knows no more than HTTP and the messages."""

    def __init__(self, federation: LocalFederation, site: str, token: str | None) -> None:
        self.federation = federation
        self.site = site
        self.owner = ""
        """Name of its leases, where a test needs it."""
        self.base = federation.addresses[site]
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.ssl = ssl.create_default_context(cafile=federation.verify)

    @asynccontextmanager
    async def request(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**self.headers, **options.pop("headers", {})}
        async with (
            aiohttp.ClientSession() as session,
            asyncio.timeout(DEADLINE),
            session.request(
                method, self.base + path, headers=headers, ssl=self.ssl, **options
            ) as response,
        ):
            try:
                yield response
            finally:
                # Who leaves early leaves at once: a polite end of TLS would outlive the test.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()

    async def read(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        async with self.request(method, path, **options) as response:
            return response.status, await response.read()

    async def json(self, path: str) -> Any:
        status, body = await self.read("GET", path)
        assert status == 200, body
        return json.loads(body)

    async def refused(self, method: str, path: str, **options: Any) -> tuple[int, Failure]:
        """Status and failure of a request that has to be refused."""
        async with self.request(method, path, **options) as response:
            body = await response.read()
            assert response.status >= 400, body
            assert response.content_type == "application/json", body
            return response.status, failure_of(body)

    async def version(self, name: str = "a1b") -> str:
        return str((await self.json(f"/datasets/{name}"))["version"])

    async def events(self, body: bytes) -> AsyncIterator[tuple[Any, Frame]]:
        """Events of a job."""
        async with self.request("POST", "/jobs", data=body) as response:
            assert response.status == 200, await response.read()
            decoder = FrameDecoder()
            async for data in response.content.iter_any():
                for frame in decoder.feed(data):
                    yield as_message(frame), frame
            decoder.close()

    async def run(
        self, graph: Graph, *outputs: Output | int, buffers: Any = (), **fields: Any
    ) -> tuple[dict[int, Any], Finished | Failure]:
        """Run a job: results by output, and the last event."""
        results = {}
        last = None
        async for event, frame in self.events(
            submission(graph, *outputs, buffers=buffers, **fields)
        ):
            last = event
            if isinstance(event, Result):
                results[event.output] = value_of(event.value, frame)
        assert isinstance(last, Finished | Failure)
        return results, last

    async def running_jobs(self) -> float:
        """Tell how many of its jobs the endpoint has not done with."""
        usage = msgspec.convert(await self.json("/usage"), Usage)
        [used] = [line.used for line in usage.lines if line.name == "concurrent_jobs"]
        return used

    def on_scheduler(self, function: Callable[..., Any]) -> Any:
        """Result of a function of the scheduler."""
        client = self.federation.sites[self.site].client
        return self.federation.run(client.run_on_scheduler, function)

    def wait_until_idle(self) -> None:
        """Wait until the scheduler knows no task any more."""
        until(
            lambda: not self.on_scheduler(_tasks),
            lambda: f"the scheduler lets go of {self.on_scheduler(_tasks)}",
            DEADLINE,
        )


def _tasks(dask_scheduler: Any) -> list[str]:
    return sorted(map(str, dask_scheduler.tasks))


def failure_of(body: bytes) -> Failure:
    return msgspec.json.decode(body, type=Failure)


def value_of(value: Value, frame: Frame) -> Any:
    return decode_value(value, frame.buffers, operation_table())


def submission(graph: Graph, *outputs: Output | int, buffers: Any = (), **fields: Any) -> bytes:
    message = JobSubmission(
        graph=graph,
        **fields,
        outputs=tuple(
            output if isinstance(output, Output) else Output(task=output) for output in outputs
        ),
    )
    return b"".join(bytes(piece) for piece in encode_frame(message, buffers))
