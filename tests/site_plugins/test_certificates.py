import os
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from site_plugins.certificates import (
    CertificateFiles,
    new_authority,
    write_certificates,
    write_private_file,
)


def handshake(files: CertificateFiles, ca: Path, name: str) -> str | None:
    """The negotiated TLS version of a handshake in memory, client and server on a socket pair."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(files.certificate, files.private_key)
    client_context = ssl.create_default_context(cafile=str(ca))
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            with server_context.wrap_socket(there, server_side=True) as server:
                server.recv(1)
        except (ssl.SSLError, OSError):
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client_context.wrap_socket(here, server_hostname=name) as client:
            return client.version()
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "north.example", "10.1.2.3"])
def test_clients_trust_the_site_by_every_name(tmp_path: Path, name: str) -> None:
    files = write_certificates(tmp_path / "c", names=["north.example", "10.1.2.3"])
    assert handshake(files, files.ca, name) == "TLSv1.3"


def test_other_names_are_not_trusted(tmp_path: Path) -> None:
    files = write_certificates(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="evil"):
        handshake(files, files.ca, "evil.example")


def test_another_authority_is_not_trusted(tmp_path: Path) -> None:
    files, others = write_certificates(tmp_path / "a"), write_certificates(tmp_path / "b")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, others.ca, "localhost")


def test_one_authority_for_several_sites(tmp_path: Path) -> None:
    authority = new_authority()
    north = write_certificates(tmp_path / "north", authority=authority)
    south = write_certificates(tmp_path / "south", authority=authority)
    assert north.ca.read_bytes() == south.ca.read_bytes()
    assert north.private_key.read_bytes() != south.private_key.read_bytes()
    assert handshake(south, north.ca, "localhost")


def test_modes_from_creation_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a mode was changed after creation")

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    before = os.umask(0)
    try:
        files = write_certificates(tmp_path / "certificates")
    finally:
        os.umask(before)
    assert stat.S_IMODE(files.private_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.certificate.stat().st_mode) == 0o644
    assert stat.S_IMODE(files.ca.stat().st_mode) == 0o644


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    files = write_certificates(tmp_path)
    before = files.private_key.read_bytes()
    with pytest.raises(FileExistsError):
        write_certificates(tmp_path)
    assert files.private_key.read_bytes() == before


def test_a_secret_is_not_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "public"
    (tmp_path / "key.pem").symlink_to(target)
    with pytest.raises(FileExistsError):
        write_private_file(tmp_path / "key.pem", b"secret")
    assert not target.exists()


def test_a_bad_name_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odepoint"):
        write_certificates(tmp_path / "c", names=["no name"])
    assert not (tmp_path / "c").exists()
