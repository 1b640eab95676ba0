"""Sites that cannot be reached, break off, hang, or send nonsense."""

import asyncio
import socket
import ssl
import time

import msgspec
import numpy as np
import pytest
import trustme

from federated_dask.client.connection import SiteConnection
from federated_dask.errors import (
    Reason,
    RequestRefused,
    SiteUnavailable,
    from_reason,
)
from federated_dask.protocol.messages import (
    FRAMES_MEDIA_TYPE,
    Failure,
)
from tests.client.wire import MIB, Serve, events_of, head, refused, result, send


class TestTransportErrors:
    async def test_refused_port(self, ca: str) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            error = await refused(f"https://localhost:{port}", ca)
        assert error.reason == Reason.UNREACHABLE

    async def test_unknown_host(self, ca: str) -> None:
        error = await refused("https://no-such-host.invalid:1", ca)
        assert error.reason in (Reason.UNREACHABLE, Reason.TIMED_OUT)

    async def test_wrong_authority(self, address: str) -> None:
        other = trustme.CA().cert_pem.bytes().decode()
        error = await refused(address, other)
        assert error.reason == Reason.CERTIFICATE_NOT_TRUSTED
        assert "verify='ca.pem'" in str(error)

    async def test_the_systems_authorities_do_not_know_the_site(self, address: str) -> None:
        assert (await refused(address, True)).reason == Reason.CERTIFICATE_NOT_TRUSTED

    async def test_a_given_authority_is_the_only_one(self, ca: str) -> None:
        from federated_dask.client.sessions import tls_context

        context = tls_context(ca)
        assert len(context.get_ca_certs()) == 1
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.check_hostname
        assert context.verify_mode == ssl.CERT_REQUIRED

    async def test_host_name_mismatch(self, address: str, ca: str) -> None:
        error = await refused(address.replace("localhost", "127.0.0.1"), ca)
        assert error.reason == Reason.CERTIFICATE_NOT_TRUSTED
        assert "host name" in str(error)

    async def test_old_tls(self, misbehaving: Serve, authority, ca: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")

        async def handle(reader, writer) -> None:
            await reader.read(1)

        error = await refused(misbehaving(handle, tls=context), ca)
        assert error.reason == Reason.UNREACHABLE

    async def test_no_tls_at_all(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.drain()

        error = await refused(misbehaving(handle, tls=None), ca)
        assert error.reason in (Reason.UNREACHABLE, Reason.CONNECTION_LOST)

    async def test_hanging_handshake(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await asyncio.sleep(1000)

        error = await refused(misbehaving(handle, tls=None), ca, timeout=0.3)
        assert error.reason == Reason.TIMED_OUT

    async def test_hanging_before_the_headers(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await asyncio.sleep(1000)

        error = await refused(misbehaving(handle), ca, timeout=0.3)
        assert error.reason == Reason.TIMED_OUT

    async def test_trickled_headers(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

        began = time.monotonic()
        error = await refused(misbehaving(handle), ca, timeout=0.5)
        assert error.reason == Reason.TIMED_OUT
        assert time.monotonic() - began < 20

    async def test_a_site_that_takes_no_bytes(self, misbehaving: Serve, ca: str) -> None:
        reset = asyncio.Event()

        async def handle(reader, writer) -> None:
            await asyncio.sleep(1)
            writer.transport.abort()
            here.call_soon_threadsafe(reset.set)

        here = asyncio.get_running_loop()

        connection = SiteConnection("north", misbehaving(handle), "t", ca, timeout=0.5)
        noise = np.random.default_rng(0).bytes(64 * MIB)
        with pytest.raises(SiteUnavailable) as caught:
            await events_of(connection, [noise])
        assert caught.value.reason == Reason.TIMED_OUT
        await connection.close()
        # asyncio keeps a socket with unsent bytes for up to 30 s.
        await reset.wait()
        await asyncio.sleep(0.05)

    async def test_hanging_in_the_body(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            writer.write(head(FRAMES_MEDIA_TYPE, 1000) + b"FDF1")
            await writer.drain()
            await asyncio.sleep(1000)

        error = await refused(misbehaving(handle), ca, timeout=0.3)
        assert error.reason == Reason.TIMED_OUT

    @pytest.mark.parametrize("length", [1000, None])
    async def test_a_truncated_body(self, misbehaving: Serve, ca: str, length) -> None:
        await_end = send(head(FRAMES_MEDIA_TYPE, length) + b"".join(result(np.arange(9)))[:40])
        error = await refused(misbehaving(await_end), ca)
        assert error.reason == Reason.CONNECTION_LOST

    async def test_closing_at_once(self, misbehaving: Serve, ca: str) -> None:
        error = await refused(misbehaving(send(b"")), ca)
        assert error.reason == Reason.CONNECTION_LOST

    async def test_resetting_at_once(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await reader.read(10)
            writer.transport.abort()

        error = await refused(misbehaving(handle), ca)
        assert error.reason == Reason.CONNECTION_LOST


class TestMaliciousReplies:
    @pytest.mark.parametrize(
        "reply",
        [
            b"\x00\x01\x02 garbage\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\nContent-Type: ;;;=\r\nContent-Length: 1\r\n\r\nx",
            head("text/html", 5) + b"hello",
            head("application/json", 2) + b"{}",
            head(FRAMES_MEDIA_TYPE, 5) + b"hello",
            head(FRAMES_MEDIA_TYPE, 5, more="Content-Encoding: gzip\r\n") + b"hello",
            head(FRAMES_MEDIA_TYPE, more="Transfer-Encoding: chunked\r\n") + b"zz\r\nhello\r\n",
            head(FRAMES_MEDIA_TYPE, more="Set-Cookie: \x01=;;;\r\n") + b"\x00",
            head("application/json", 9, "404 Not Found") + b"not json!",
            head("application/json", 2, "403 Forbidden") + b"{}",
            head("application/json; charset=none", 2, "403 Forbidden") + b"\xff\xff",
            head("application/json", 200_000, "400 Bad") + b"[" * 200_000,
            b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"y" * 200_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200_000)),
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ],
    )
    async def test_nonsense(self, misbehaving: Serve, ca: str, reply: bytes) -> None:
        error = await refused(misbehaving(send(reply)), ca, alike=False)
        assert isinstance(error, RequestRefused | SiteUnavailable)

    @pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
    async def test_redirects_are_not_followed(
        self, misbehaving: Serve, ca: str, address: str, stub, status: str
    ) -> None:
        reply = head("text/html", 0, status, f"Location: {address}/datasets/a1b\r\n")
        error = await refused(misbehaving(send(reply)), ca)
        assert (type(error), error.reason) == (SiteUnavailable, Reason.UNREACHABLE)
        assert stub.requests == []

    async def test_a_page_with_status_500(self, misbehaving: Serve, ca: str) -> None:
        page = head("text/html", 5, "500 Internal") + b"oops!"
        error = await refused(misbehaving(send(page)), ca)
        assert (type(error), error.reason) == (SiteUnavailable, Reason.INTERNAL)

    async def test_a_gateway_without_a_site_behind_it(self, misbehaving: Serve, ca: str) -> None:
        page = head("text/html", 5, "502 Bad Gateway") + b"oops!"
        error = await refused(misbehaving(send(page)), ca)
        assert error.reason == Reason.UNREACHABLE

    async def test_endless_json(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head("application/json"))
            while not writer.is_closing():
                writer.write(b" " * MIB)
                await writer.drain()
                await asyncio.sleep(0)

        connection = SiteConnection("north", misbehaving(handle), "t", ca, timeout=10)
        with pytest.raises(RequestRefused) as caught:
            await connection.catalogue()
        assert caught.value.reason == Reason.LIMIT_EXCEEDED
        await connection.close()

    async def test_deep_json(self, misbehaving: Serve, ca: str) -> None:
        body = b'{"site": "a", "datasets": ' + b"[" * 100_000
        reply = head("application/json", len(body)) + body
        connection = SiteConnection("north", misbehaving(send(reply)), "t", ca, timeout=5)
        with pytest.raises(RequestRefused):
            await connection.catalogue()
        await connection.close()

    @pytest.mark.parametrize("reason", list(Reason))
    async def test_every_reason(self, misbehaving: Serve, ca: str, reason: Reason) -> None:
        expected = from_reason(reason, "It is so.", site="north", hint="Do this.")
        failure = Failure.from_error(expected)
        body = msgspec.json.encode(msgspec.structs.replace(failure, site="somebody else"))
        status = f"{expected.http_status} Whatever"
        reply = head("application/json", len(body), status) + body
        error = await refused(misbehaving(send(reply)), ca)
        assert type(error) is type(expected)
        assert str(error) == str(expected)

    async def test_a_reason_of_a_newer_site(self, misbehaving: Serve, ca: str) -> None:
        body = b'{"reason": "moon_phase", "message": "\\u001b[31mFull\\u0007"}'
        reply = head("application/json", len(body), "418 Teapot") + body
        error = await refused(misbehaving(send(reply)), ca)
        assert error.reason == Reason.INTERNAL
        assert "\x1b" not in str(error)

    async def test_another_version_of_the_protocol(self, misbehaving: Serve, ca: str) -> None:
        body = b'{"name": "north", "protocol_version": 99}'
        reply = head("application/json", len(body)) + body
        connection = SiteConnection("north", misbehaving(send(reply)), "t", ca, timeout=5)
        with pytest.raises(RequestRefused, match="Upgrade federated-dask"):
            await connection.describe_site()
        await connection.close()
