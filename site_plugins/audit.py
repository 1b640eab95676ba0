"""The audit log: one JSON line for each thing that was asked, decided or let out.

::

    {"seq":41,…,"prev":"<hash of 40>","hash":"<of this line>"}
    {"seq":42,…,"prev":"<hash of 41>","hash":"<of this line>"}

Each line holds the hash of the one before, so that none can be changed, dropped
or moved unnoticed; a small file beside the log holds the last of them, so that
neither can the end be cut off.  Who keeps a hash elsewhere (`verify` prints it)
can tell whether everything was made up anew.  Several processes write to one
log, one at a time.  A line is with the operating system before the answer goes
out, and on the disk a moment later.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from federated_dask.errors import ConfigurationError

if TYPE_CHECKING:
    from site_plugins.tokens import Principal

__all__ = ["AUDIT_LOG", "Audit", "Problem", "entries", "verify"]

AUDIT_LOG = "audit.jsonl"
"""Name of the log in the state folder; that of the file with its last hash ends in .head."""

FIRST = "0" * 64
MISSING = "lines_missing"
"""Event of a line that follows lines which were cut off."""
LONGEST_TEXT = 512
LONGEST_LIST = 200
PIECE = 2**16
SYNC_SECONDS = 0.2
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")
LINE = re.compile(rb'(.*),"hash":"([0-9a-f]{64})"}', re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a log, and at which line."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


class Audit:
    """Writes the audit log of a site.

    Parameters
    ----------
    path : Path or None
        The log; made if it is not there, for its owner only.  None writes nothing.

    Raises
    ------
    ConfigurationError
        If it cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> audit = Audit(Path(folder.name) / "audit.jsonl")
    >>> audit.write("grant_added", None, grant="anyone may call on *")
    >>> audit.close()
    >>> [(entry["seq"], entry["event"]) for entry in entries(Path(folder.name) / "audit.jsonl")]
    [(1, 'grant_added')]
    >>> list(verify(Path(folder.name) / "audit.jsonl"))
    []
    >>> folder.cleanup()
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._end = -1
        self._last = (0, FIRST)
        self._unsynced = threading.Event()
        self._closed = False
        self._syncing: threading.Thread | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._head = os.open(_head_of(path), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            with self._locked():
                self._look()
        except OSError as error:
            raise ConfigurationError(
                f"The audit log {path} cannot be opened: {error.strerror}.",
                hint="[site] state names its folder.",
            ) from error

    def write(self, event: str, principal: Principal | None = None, /, **facts: Any) -> None:
        """Add a line; call it before the answer goes out.

        Parameters
        ----------
        event : str
            What happened.
        principal : Principal or None
            Who asked.
        **facts
            Plain data.  What cannot be told, such as a token, is left out.
        """
        if self.path is None:
            return
        entry: dict[str, Any] = {"event": event}
        if principal is not None:
            entry["who"] = {"issuer": principal.issuer, "subject": principal.subject}
            if principal.project:
                entry["who"]["project"] = principal.project
        entry.update((name, _plain(fact)) for name, fact in facts.items() if fact is not None)
        with self._lock, self._locked():
            self._look()
            self._append(entry)
        self._sync_soon()

    def head(self) -> tuple[int, str]:
        """Tell number and hash of the last line."""
        if self.path is None:
            return self._last
        with self._lock, self._locked():
            self._look()
            return self._last

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _append(self, entry: Mapping[str, Any]) -> None:
        number, previous = self._last[0] + 1, self._last[1]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        body = msgspec.json.encode({"seq": number, "time": now, **entry, "prev": previous})
        hash_ = hashlib.sha256(body).hexdigest()
        line = body[:-1] + b',"hash":"' + hash_.encode() + b'"}\n'
        # A short write leaves a torn line, which the next writer repairs.
        written = os.write(self._file, line)
        if written != len(line):
            self._end = -1
            raise OSError("the audit log takes no more")
        self._end += written
        self._last = number, hash_
        os.pwrite(self._head, f"{number:020} {hash_}\n".encode(), 0)

    def _look(self) -> None:
        """Find the last line, where another process wrote since; repair a torn one."""
        size = os.fstat(self._file).st_size
        if size == self._end:
            return
        data, start = b"", size
        while start and data.count(b"\n") < 2:
            step = min(PIECE, start)
            start -= step
            data = os.pread(self._file, step, start) + data
        whole, _, torn = data.rpartition(b"\n")
        last = whole.rpartition(b"\n")[2]
        match = LINE.fullmatch(last)
        if last and match is None:
            raise OSError(f"line {last[:20]!r} of the audit log is none")
        if match is None:
            self._last = (0, FIRST)
        else:
            number = msgspec.json.decode(match[1] + b"}", type=_Numbered).seq
            self._last = (number, match[2].decode())
        self._end = size - len(torn)
        if torn:
            # Written by a process that died meanwhile: it was never answered for.
            os.ftruncate(self._file, self._end)
        self._compare()
        if torn:
            self._append(
                {
                    "event": "torn_line_removed",
                    "bytes": len(torn),
                    "sha256": hashlib.sha256(torn).hexdigest(),
                }
            )

    def _compare(self) -> None:
        """Write down where lines are missing that were written: the chain would heal over it."""
        told = os.pread(self._head, 128, 0).split()
        if len(told) != 2 or not told[0].isdigit():
            return
        expected, hash_ = int(told[0]), told[1].decode("ascii", "replace")
        number, last = self._last
        if expected > number or (expected == number and hash_ != last):
            self._append({"event": MISSING, "expected": expected, "last": hash_})

    def _sync_soon(self) -> None:
        with self._lock:
            if self._syncing is None and not self._closed:
                self._syncing = threading.Thread(
                    target=self._keep_synced, name="federated-audit", daemon=True
                )
                self._syncing.start()
        self._unsynced.set()

    def _keep_synced(self) -> None:
        # One wait for the disk for all lines of a moment, and none of a request.
        pause = threading.Event()
        while not self._closed:
            self._unsynced.wait()
            self._unsynced.clear()
            if self._closed:
                return
            os.fsync(self._file)
            pause.wait(SYNC_SECONDS)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self.path is None or self._closed:
            return
        self._closed = True
        self._unsynced.set()
        if self._syncing is not None:
            self._syncing.join()
        os.fsync(self._file)
        os.fsync(self._head)
        os.close(self._file)
        os.close(self._head)


class _Numbered(msgspec.Struct):
    seq: int


def _plain(fact: Any) -> Any:
    match fact:
        case bool() | int() | float() | None:
            return fact
        case str():
            return TOKEN.sub("(a token)", fact[: 4 * LONGEST_TEXT])[:LONGEST_TEXT]
        case Mapping():
            items = list(fact.items())[:LONGEST_LIST]
            return {str(_plain(str(name))): _plain(item) for name, item in items}
        case list() | tuple() | set() | frozenset():
            ordered = sorted(fact, key=str) if isinstance(fact, set | frozenset) else fact
            return [_plain(item) for item in list(ordered)[:LONGEST_LIST]]
    # Values never stand in the log, nor what they print as.
    return f"({type(fact).__name__})"


def _head_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a log that are whole."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line)


def verify(path: Path, head: str | None = None) -> Iterator[Problem]:
    """Find what was done to a log.

    Parameters
    ----------
    path : Path
        The log.
    head : str, optional
        A hash that was printed before and kept elsewhere; it has to be in the log.

    Yields
    ------
    Problem
        The first that breaks the chain, and what else is missing.
    """
    number, previous = 0, FIRST
    seen = head is None
    if path.exists():
        with path.open("rb") as file:
            for position, line in enumerate(file, start=1):
                problem, hash_ = _checked(line, number + 1, previous)
                if problem is not None:
                    yield Problem(position, problem)
                    if not hash_:
                        return
                number, previous = number + 1, hash_
                seen = seen or hash_ == head
    try:
        last, hash_ = _head_of(path).read_text("ascii").split()
        if int(last) > number:
            yield Problem(number + 1, f"lines up to {int(last)} are missing")
        elif int(last) == number and hash_ != previous:
            yield Problem(number, "is another one than the last that was written")
    except FileNotFoundError:
        if number:
            yield Problem(number, "the file with the last hash is missing")
    except (OSError, ValueError):
        if number:
            yield Problem(number, "the file with the last hash cannot be read")
    if not seen:
        yield Problem(number, "the hash that you kept is not in the log")


def _checked(line: bytes, number: int, previous: str) -> tuple[str | None, str]:
    match = LINE.fullmatch(line.removesuffix(b"\n"))
    if not line.endswith(b"\n") or match is None:
        return "is torn, or no line of a log", ""
    body, hash_ = match[1] + b"}", match[2].decode()
    if hashlib.sha256(body).hexdigest() != hash_:
        return "was changed", ""
    try:
        entry = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return "is no JSON", ""
    if entry.get("prev") != previous or entry.get("seq") != number:
        return "does not follow the line before: lines were dropped, moved or added", ""
    if entry.get("event") == MISSING:
        return f"lines up to {entry.get('expected')} were missing when it was written", hash_
    return None, hash_
