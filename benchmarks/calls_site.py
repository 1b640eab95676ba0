"""What `benchmarks.calls` calls: a site with two functions, and an echo over bare TLS.

Runs in a process of its own, so that no caller shares its interpreter; says on its output
how to reach both, and ends when its input does.
"""

from __future__ import annotations

import json
import pickle
import socket
import ssl
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import trustme
from pydantic import Field

from site_plugins import LocalFederation, publish

CHUNK = 2**20


@publish
def empty(number: Annotated[int, Field(ge=0)] = 0) -> int:
    """Do nothing."""
    return number


@publish
def echo(values: np.ndarray) -> np.ndarray:
    """Give back what came."""
    return values


def serve_site() -> None:
    sites = {"one": {"functions": {"modules": ["benchmarks.calls_site"]}}}
    with (
        LocalFederation(sites, n_workers=2, threads_per_worker=4, processes=True) as federation,
        tempfile.NamedTemporaryFile(suffix=".pickle") as security,
    ):
        client = federation.sites["one"].client
        pickle.dump(client.security, security)
        security.flush()
        tell(
            addresses=federation.addresses,
            token=federation.token,
            verify=federation.verify,
            scheduler=federation.run(lambda: client.scheduler_info()["address"]),
            security=security.name,
        )
        sys.stdin.read()


def serve_echo() -> None:
    """Give back whatever comes, over TLS: 8 bytes of length, then so many bytes."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        authority.cert_pem.write_to_path(str(Path(folder) / "ca.pem"))

        def accept() -> None:
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(connection, server_side=True) as stream:
                while head := stream.recv(8):
                    body = bytearray(int.from_bytes(head, "big"))
                    receive_into(stream, body)
                    stream.sendall(body)

        threading.Thread(target=accept, daemon=True).start()
        tell(port=server.getsockname()[1], ca=str(Path(folder) / "ca.pem"))
        sys.stdin.read()


def receive_into(stream: ssl.SSLSocket, body: bytearray) -> None:
    view = memoryview(body)
    while view:
        view = view[stream.recv_into(view, CHUNK) :]


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    {"site": serve_site, "echo": serve_echo}[sys.argv[1]]()
