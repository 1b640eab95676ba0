"""A site asks nobody for anything that a message names: peers only, where their owner said."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from federated_dask.errors import FederatedError, NotFound, SiteUnavailable
from federated_dask.protocol.graph import Graph, Held, Reference
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.operations import operation_table
from site_plugins.certificates import new_authority, write_certificates, write_private_file
from site_plugins.config import SiteConfig, parse_config
from site_plugins.endpoint.peering import Peering
from site_plugins.keys import new_issuer_key, public_key_of
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import Caller, submission

LEASE = "0" * 32


class Trap:
    """Notes what reaches it."""

    def __init__(self) -> None:
        self.connections = 0
        self.received = b""
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while data := await reader.read(4096):
                self.received += data
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def trap(tls: ssl.SSLContext | None = None) -> AsyncIterator[Trap]:
    made = Trap()
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for writer in made.writers:
            writer.transport.abort()
        await asyncio.sleep(0)


def own_config(folder: Path, peer_address: str) -> SiteConfig:
    authority = new_authority()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    files = write_certificates(folder / "certificates", authority=authority)
    for name in ("own", "peer"):
        write_private_file(folder / f"{name}.pem", new_issuer_key())
    (folder / "peer_public.pem").write_bytes(public_key_of(folder / "peer.pem"))
    return parse_config(
        {
            "site": {"name": "north"},
            "endpoint": {
                "certificate": str(files.certificate),
                "private_key": str(files.private_key),
            },
            "tokens": {"private_key": str(folder / "own.pem")},
            "peers": [
                {
                    "name": "south",
                    "address": peer_address,
                    "ca": str(folder / "ca.pem"),
                    "public_key": str(folder / "peer_public.pem"),
                }
            ],
        },
        folder,
    )


async def pull(peering: Peering, peer: str = "south", lease: str = LEASE) -> Any:
    return await peering.pull(peer, lease, 0, "a.b.c", limits=Limits(), table=operation_table())


PEERS: list[Callable[[int], str]] = [
    lambda port: f"https://127.0.0.1:{port}",
    lambda port: f"127.0.0.1:{port}",
    lambda port: f"localhost:{port}/../",
    lambda port: f"http://[::1]:{port}/",
    lambda port: "http://169.254.169.254/latest/meta-data/",
    lambda port: f"south@127.0.0.1:{port}",
    lambda port: f"south/../127.0.0.1:{port}",
    lambda port: "",
    lambda port: "file:///etc/passwd",
]


@pytest.mark.parametrize("number", range(len(PEERS)))
async def test_no_message_names_an_address(north: Caller, number: int) -> None:
    async with trap() as caught:
        graph = Graph(
            held=(Held(LEASE, 0, PEERS[number](caught.port)),),
            templates=(template(call("numpy.sum", Reference())),),
            blocks=(block(0, 0),),
        )
        status, failure = await north.refused("POST", "/jobs", data=submission(graph, 0))
        assert status == 404
        assert failure.reason == "unknown_result"
        assert caught.connections == 0


@pytest.mark.parametrize(
    "lease", ["../../site", "x?y=", "x#", "x/0@127.0.0.1", "é", "", "x\r\nA: b"]
)
async def test_no_lease_leads_elsewhere(tmp_path: Path, lease: str) -> None:
    async with trap() as caught:
        peering = Peering(own_config(tmp_path, f"https://127.0.0.1:{caught.port}"))
        with pytest.raises(FederatedError):
            await pull(peering, lease=lease)
        await peering.close()
        assert caught.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_lead_nowhere(tmp_path: Path, status: int) -> None:
    async with trap() as caught:

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            target = f"https://127.0.0.1:{caught.port}/delegated/{LEASE}/0"
            writer.write(
                f"HTTP/1.1 {status} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            await writer.drain()
            writer.close()

        config = own_config(tmp_path, "https://127.0.0.1:1")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(config.endpoint.certificate, config.endpoint.private_key)
        server = await asyncio.start_server(redirect, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        peers = (config.peers[0].model_copy(update={"address": f"https://127.0.0.1:{port}"}),)
        peering = Peering(config.model_copy(update={"peers": peers}))
        try:
            with pytest.raises(SiteUnavailable):
                await pull(peering)
        finally:
            await peering.close()
            server.close()
            await asyncio.sleep(0.05)
        assert caught.connections == 0


async def test_a_name_that_resolves_to_somebody_else_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the certificate is asked for its name before anything is said."""
    other = trustme.CA().issue_cert("south.example", "127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    other.configure_cert(tls)
    async with trap(tls) as caught:
        asked = []

        async def resolve(self: Any, host: str, port: int = 0, family: Any = 0) -> Any:
            asked.append(host)
            return [
                {
                    "hostname": host,
                    "host": "127.0.0.1",
                    "port": caught.port,
                    "family": 2,
                    "proto": 0,
                    "flags": 0,
                }
            ]

        for resolver in ("ThreadedResolver", "AsyncResolver"):
            monkeypatch.setattr(getattr(aiohttp.resolver, resolver), "resolve", resolve)
        peering = Peering(own_config(tmp_path, f"https://south.example:{caught.port}"))
        with pytest.raises(SiteUnavailable):
            await pull(peering)
        await peering.close()
        assert asked == ["south.example"]
        assert b"HTTP" not in caught.received
        assert b"Bearer" not in caught.received


async def test_proxies_of_the_environment_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trap() as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with trap() as peer:
            address = f"https://127.0.0.1:{peer.port}"
        # Nobody listens there any more: the proxy would be the only way.
        peering = Peering(own_config(tmp_path, address))
        with pytest.raises(SiteUnavailable):
            await pull(peering)
        await peering.close()
        assert proxy.connections == 0


async def test_a_site_that_is_no_peer_is_not_asked(tmp_path: Path) -> None:
    peering = Peering(own_config(tmp_path, "https://127.0.0.1:1"))
    with pytest.raises(NotFound):
        await pull(peering, peer="https://127.0.0.1:1")
    await peering.close()


@pytest.mark.parametrize(
    "name",
    [
        "http://169.254.169.254/",
        "s3://bucket/key",
        "../a1b",
        "a1b/../secret",
        "/etc/passwd",
        "file:///etc/passwd",
        "simplecache::http://127.0.0.1/",
        "a1b\0",
        "",
    ],
)
async def test_a_dataset_is_a_name_of_the_catalogue(north: Caller, name: str) -> None:
    from federated_dask.protocol.graph import Source
    from tests.site_plugins import graphs

    graph = Graph(
        sources=(Source(name, "v", "air"),), templates=(graphs.READ,), blocks=(block(0, 0, 0, 1),)
    )
    status, failure = await north.refused("POST", "/jobs", data=submission(graph, 0))
    assert (status, failure.reason) == (404, "unknown_dataset")
