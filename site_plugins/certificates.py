"""Throw-away certificate authorities, server certificates, and files with secrets.

Good for a site on one machine, tests and the demo.  An institute puts its own
certificates into `site.toml` instead.  The authority's own key stays in memory:
once the process ends, nobody can issue another certificate under it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme

__all__ = ["CertificateFiles", "new_authority", "write_certificates", "write_private_file"]

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class CertificateFiles:
    """Where the certificates of one site were written."""

    ca: Path
    """What a client trusts."""
    certificate: Path
    """The site's certificate chain."""
    private_key: Path
    """Readable by its owner only."""


def new_authority(name: str = "federated_dask") -> trustme.CA:
    """Make a throw-away certificate authority.

    Parameters
    ----------
    name : str, optional
        Organisation that its certificate shows.
    """
    import trustme

    return trustme.CA(organization_name=name, organization_unit_name="throw-away authority")


def write_certificates(
    folder: str | Path, *, names: Iterable[str] = (), authority: trustme.CA | None = None
) -> CertificateFiles:
    """Issue a certificate for a site on this machine and write what it needs.

    Parameters
    ----------
    folder : str or Path
        Made if it is not there; gets ``ca.pem``, ``certificate.pem`` and
        ``private_key.pem``.
    names : iterable of str, optional
        Host names or IP addresses beside localhost, 127.0.0.1 and ::1.
    authority : trustme.CA, optional
        From `new_authority`; give the same one to let several sites share it.

    Returns
    -------
    CertificateFiles
        The paths.

    Raises
    ------
    FileExistsError
        If one of the files is there already.
    ValueError
        If a name is no host name or IP address.
    """
    authority = new_authority() if authority is None else authority
    folder = Path(folder)
    identities = dict.fromkeys((*LOCAL_NAMES, *names))
    issued = authority.issue_cert(*identities, organization_name="federated_dask")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    folder.mkdir(parents=True, exist_ok=True)
    files = CertificateFiles(
        ca=folder / "ca.pem",
        certificate=folder / "certificate.pem",
        private_key=folder / "private_key.pem",
    )
    write_private_file(files.private_key, issued.private_key_pem.bytes())
    _write_new(files.certificate, chain, 0o644)
    _write_new(files.ca, authority.cert_pem.bytes(), 0o644)
    return files


def write_private_file(path: str | Path, data: bytes) -> None:
    """Write a new file that only its owner can read, from its first moment on.

    Parameters
    ----------
    path : str or Path
        The file; its folder exists.
    data : bytes
        Its content.

    Raises
    ------
    FileExistsError
        If there is something already: its mode would stay what it is.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> write_private_file(folder / "key.pem", b"secret")
    >>> oct((folder / "key.pem").stat().st_mode & 0o777)
    '0o600'
    """
    _write_new(Path(path), data, 0o600)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    # O_EXCL does not follow a symbolic link either, so nobody can lay one out beforehand.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
