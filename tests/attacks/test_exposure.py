"""What a running site shows: ports, and what stands in replies and in the log."""

import asyncio
import ipaddress
import json
import random
import re
import resource
import socket
import string
from pathlib import Path

import aiohttp

from tests.attacks.conftest import CANARY, SECRET, RunningSite

LISTENING = "0A"


def sockets_of(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def listening(site: RunningSite) -> dict[tuple[str, int], int]:
    """Address and port of every listening socket of the site's processes, with the process."""
    owners = {}
    for process in [site.process, *site.process.children(recursive=True)]:
        owners.update(dict.fromkeys(sockets_of(process.pid), process.pid))
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in owners:
                raw, port = fields[1].split(":")
                words = [int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)]
                packed = b"".join(word.to_bytes(4, "little") for word in words)
                found[str(ipaddress.ip_address(packed)), int(port, 16)] = owners[fields[9]]
    return found


def test_only_the_endpoint_listens_on_a_public_interface(site: RunningSite) -> None:
    found = listening(site)
    public = {
        (address, port): pid
        for (address, port), pid in found.items()
        if not ipaddress.ip_address(address).is_loopback
    }
    assert public == {("0.0.0.0", site.port): site.process.pid}  # noqa: S104
    # Scheduler, nanny, worker and dashboards are there, on loopback.
    assert len(found) >= 4


def test_no_port_of_dask_answers_without_the_sites_own_certificate(site: RunningSite) -> None:
    """Whoever reaches a Dask port runs code: all but the dashboards speak TLS, and ask for it."""
    for address, port in listening(site):
        if port == site.port:
            continue
        with socket.create_connection((address, port), timeout=30) as connection:
            # The first bytes of Dask's own handshake, as a client without TLS sends them.
            connection.sendall(bytes(8) + b"GET / HTTP/1.0\r\n\r\n")
            connection.settimeout(30)
            try:
                reply = connection.recv(4096)
            except (ConnectionError, TimeoutError):
                reply = b""
        assert b"handshake" not in reply
        assert b"pickle" not in reply
        # A dashboard refuses it as bad HTTP, TLS by an alert, or nothing comes at all.
        assert reply[:1] in (b"", b"\x15", b"H"), (port, reply[:40])


def leaks(text: str, site: RunningSite, tokens: list[str]) -> list[str]:
    found = [part for part in (CANARY, str(site.folder), str(SECRET)) if part in text]
    # Not even the signed part, nor the signature, of any token.
    found += [part for token in tokens for part in token.split(".")[1:] if part in text]
    return found


def own_log(site: RunningSite) -> str:
    """What the site itself wrote; Dask's workers quote what a task raised to the operator."""
    records = re.split(r"^(?=\d{4}-\d\d-\d\d )", site.log.read_text(), flags=re.MULTILINE)
    return "".join(record for record in records if " site_plugins." in record.partition(":")[2])


TRICKS = [
    "..",
    "%2e%2e",
    "..%2f..%2fsite.toml",
    "%2e%2e%2fsite.toml",
    "..%5csite.toml",
    "open%00",
    "open%00.zarr",
    "open%0d%0aX-Injected:%201",
    "%ef%bc%8e%ef%bc%8e",
    "o%cc%81pen",
    "open%20",
    "open.",
    "OPEN",
    "open%2f.zarray",
    "%6fpen%2f..%2fderived",
    "~",
    "%24HOME",
    "http%3a%2f%2f127.0.0.1%2f",
    "a" * 5000,
    "%ff%fe",
    "%e2%80%ae",
]


async def ask(
    session: aiohttp.ClientSession, site: RunningSite, method: str, path: str, **options: object
) -> tuple[int, str]:
    import yarl

    url = yarl.URL(site.address + path, encoded=True)
    async with session.request(method, url, ssl=site.context, **options) as reply:  # type: ignore[arg-type]
        assert "X-Injected" not in reply.headers
        return reply.status, f"{reply.headers} {(await reply.read()).decode('latin-1')}"


async def test_names_are_refused_not_normalised_and_nothing_leaks(site: RunningSite) -> None:
    token = site.token()
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:
        status, document = await ask(session, site, "GET", "/openapi.json")
        assert status == 200
        paths = json.loads(document[document.index('{"openapi') :])["paths"]
        routes = [(method.upper(), path) for path, each in paths.items() for method in each]
        named = [(method, path) for method, path in routes if "{" in path]
        assert len(named) > 8
        accepted = []
        for method, path in named:
            for trick in TRICKS:
                filled = "".join(
                    trick if at % 2 else part
                    for at, part in enumerate(path.replace("}", "{").split("{"))
                )
                status, text = await ask(session, site, method, filled, json={})
                assert status < 500, (method, filled, text[:300])
                if status < 400:
                    accepted.append((method, filled, status))
                assert not leaks(text.replace(trick, ""), site, [token]), (filled, text[:300])
    assert not accepted


async def test_errors_tell_no_paths_values_or_tokens(site: RunningSite) -> None:
    tokens = [site.token("ada"), site.token("bob")]
    # Wrong in one character only, and made up: neither may be repeated.
    broken = [tokens[0][:-2] + "xx", "canary-token." + "x" * 40 + ".signed-by-nobody"]
    asked = [
        ("GET", "/datasets/broken"),
        ("GET", "/datasets/missing"),
        ("GET", "/datasets/open/variables/air?version=x&index=[0]"),
        ("GET", "/datasets/open/variables/air?version=x&index=[[[[["),
        ("GET", f"/datasets/{CANARY[:6]}"),
        ("POST", "/jobs"),
        ("GET", "/leases/unknown/0"),
        ("DELETE", "/leases/unknown"),
    ]
    async with aiohttp.ClientSession() as session:
        for token in [*tokens, *broken]:
            for method, path in asked:
                headers = {"Authorization": f"Bearer {token}"}
                status, text = await ask(
                    session, site, method, path, headers=headers, data=b"FDF1 canary-body"
                )
                assert 400 <= status < 600
                assert not leaks(text, site, [*tokens, *broken]), (path, text[:500])
                assert "canary-body" not in text
    # The log may tell the operator where a dataset lies, but neither values nor tokens.
    log = own_log(site)
    assert str(SECRET) not in log
    for token in [*tokens, *broken]:
        for part in token.split(".")[1:]:
            if len(part) > 8:
                assert part not in log
    assert "canary-body" not in log


async def test_a_task_that_fails_over_derived_data_tells_no_value(site: RunningSite) -> None:
    from federated_dask.protocol.frames import FrameDecoder, decode_message, encode_frame
    from federated_dask.protocol.graph import (
        Block,
        Call,
        Graph,
        Number,
        Operation,
        Reference,
        Same,
        Source,
        Template,
        Tuple,
    )
    from federated_dask.protocol.messages import AnyJobEvent, Failure, JobSubmission, Output

    headers = {"Authorization": f"Bearer {site.token()}"}
    read = Call(Operation("dask.array.core.getter"), (Reference(), Tuple(())))
    largest = Call(Operation("builtins.int"), (Call(Operation("numpy.max"), (read,)),))
    # The value becomes an index that is out of bounds, which numpy's message would quote.
    fail = Call(
        Operation("operator.getitem"), (Call(Operation("numpy.arange"), (Number(3),)), largest)
    )
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.get(f"{site.address}/datasets/derived", ssl=site.context) as reply:
            version = (await reply.json())["version"]
        graph = Graph(
            sources=(Source("derived", version, "air"),),
            templates=(Template((fail,)),),
            blocks=(Block(0, 1, (Same(0),)),),
        )
        pieces = encode_frame(JobSubmission(graph=graph, outputs=(Output(task=0),)))
        async with session.post(
            f"{site.address}/jobs", data=b"".join(map(bytes, pieces)), ssl=site.context
        ) as reply:
            body = await reply.read()
    decoder = FrameDecoder()
    last = [decode_message(frame, AnyJobEvent) for frame in decoder.feed(body)][-1]
    assert isinstance(last, Failure)
    assert last.exception == "builtins.IndexError"
    assert str(int(SECRET)) not in str(last)
    assert str(int(SECRET)) not in own_log(site)


async def test_slow_connections_keep_nobody_from_the_site(site: RunningSite) -> None:
    """A thousand connections that begin and go no further; an honest client is served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 4096)), hard))
    connections = min(1000, most - 400)
    writers: list[asyncio.StreamWriter] = []
    randomness = random.Random(0)
    try:
        for number in range(connections):
            # Some never say anything, some begin TLS, some begin a request and stop.
            kind = number % 4
            reader, writer = await asyncio.open_connection(
                "127.0.0.1",
                site.port,
                ssl=site.context if kind >= 2 and number < 200 else None,
                server_hostname="127.0.0.1" if kind >= 2 and number < 200 else None,
            )
            del reader
            writers.append(writer)
            if kind == 1:
                writer.write(b"\x16\x03\x01\x02\x00\x01")
            elif kind >= 2 and number < 200:
                head = "".join(randomness.choices(string.ascii_letters, k=20))
                writer.write(f"POST /jobs HTTP/1.1\r\nHost: x\r\nX-{head}: ".encode())
        async with aiohttp.ClientSession() as session, asyncio.timeout(120):
            for _ in range(5):
                status, _ = await ask(session, site, "GET", "/health")
                assert status == 200
            headers = {"Authorization": f"Bearer {site.token()}"}
            status, _ = await ask(session, site, "GET", "/datasets/open", headers=headers)
            assert status == 200
    finally:
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)
