"""Where logins are kept: in the keyring of the operating system, or else in a private file.

Per address of a site there is one small file, readable by its owner only.  It says
that the keyring holds the login, or holds it itself where there is no keyring.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from federated_dask.errors import ConfigurationError

__all__ = ["StoredLogin", "delete_login", "load_login", "locked", "save_login"]

SERVICE = "federated-dask"


class StoredLogin(msgspec.Struct, frozen=True, kw_only=True):
    """What a login left behind; its repr shows no token."""

    address: str
    """Of the site's endpoint."""
    access_token: str
    expires: float | None = None
    """Seconds since the epoch; None where that is not known."""
    refresh_token: str | None = None
    issuer: str | None = None
    token_endpoint: str | None = None
    client_id: str | None = None
    audience: str | None = None
    trust: str | None = None
    """CA certificates as PEM text; None for those of the system."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a login."""

    address: str
    in_keyring: bool
    login: StoredLogin | None = None


def load_login(address: str) -> StoredLogin | None:
    """Give the login for a site, or None where there is none that can be read.

    Parameters
    ----------
    address : str
        The site's endpoint, ``https://host:port``.
    """
    try:
        entry = msgspec.json.decode(_path(address).read_bytes(), type=_Entry)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if entry.address != _plain(address):
        return None
    if not entry.in_keyring:
        return entry.login
    text = _from_keyring(entry.address)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=StoredLogin)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def save_login(login: StoredLogin) -> str:
    """Keep a login, in place of an earlier one for the same site.

    Returns
    -------
    str
        Where: ``keyring`` or the path of the file.

    Raises
    ------
    ConfigurationError
        If neither can be written.
    """
    address = _plain(login.address)
    login = msgspec.structs.replace(login, address=address)
    in_keyring = _into_keyring(address, msgspec.json.encode(login).decode())
    entry = _Entry(address=address, in_keyring=in_keyring, login=None if in_keyring else login)
    path = _path(address)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _make_folder(path.parent)
        # Readable by nobody else from its first moment on, and whole when it is found.
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(entry))
        draft.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"The login cannot be kept: {error.strerror}.",
            hint="XDG_CONFIG_HOME names the folder for configuration.",
        ) from error
    return "keyring" if in_keyring else str(path)


def delete_login(address: str) -> bool:
    """Forget the login for a site; tell whether there was one."""
    address = _plain(address)
    there = _path(address).exists()
    if there:
        keyring = _keyring()
        if keyring is not None:
            with contextlib.suppress(keyring.errors.KeyringError):
                keyring.delete_password(SERVICE, address)
        _path(address).unlink(missing_ok=True)
    return there


@contextlib.contextmanager
def locked(address: str) -> Iterator[None]:
    """Keep other processes from renewing the same login meanwhile."""
    path = _path(address).with_suffix(".lock")
    _make_folder(path.parent)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _plain(address: str) -> str:
    return address.rstrip("/")


def _path(address: str) -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    name = hashlib.sha256(_plain(address).encode()).hexdigest()[:32]
    return Path(home) / SERVICE / "logins" / f"{name}.json"


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _into_keyring(address: str, text: str) -> bool:
    keyring = _keyring()
    if keyring is None:
        return False
    try:
        keyring.set_password(SERVICE, address, text)
    except keyring.errors.KeyringError:
        return False
    return True


def _from_keyring(address: str) -> str | None:
    keyring = _keyring()
    if keyring is None:
        return None
    try:
        found: str | None = keyring.get_password(SERVICE, address)
    except keyring.errors.KeyringError:
        return None
    return found


def _keyring() -> Any:
    """Give the module `keyring`, or None where it is not installed or has no place for secrets."""
    try:
        import keyring
        import keyring.errors
    except ImportError:
        return None
    # Below 1 are backends that fail, or that keep nothing.
    return keyring if keyring.get_keyring().priority >= 1 else None
