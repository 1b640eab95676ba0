"""Sees what a piece of code does to the world: imports, files, processes, sockets, evaluation."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

FORBIDDEN = (
    "import",
    "exec",
    "compile",
    "open",
    "os.",
    "subprocess",
    "pickle",
    "marshal",
    "ctypes",
    "socket",
    "shutil",
    "tempfile",
    "glob",
    "urllib",
    "http",
    "ftplib",
    "mmap",
    "sqlite3",
    "webbrowser",
)

_seen: dict[int, list[str]] = {}
"""What each watched thread did.  Hooks cannot be taken away again, so there is one for all."""
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    seen = _seen.get(threading.get_ident())
    if seen is not None and event.startswith(FORBIDDEN):
        seen.append(f"{event} {arguments!r:.200}")


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What this thread does inside of the block, and should not; checked at its end."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    me = threading.get_ident()
    seen = _seen[me] = []
    try:
        yield seen
    finally:
        del _seen[me]
    assert not seen, seen[:5]
