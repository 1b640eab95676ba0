"""One error instead of a group: what runs together fails together, and one says it all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["first_error"]


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """Raise the first error of a group, with its cause, instead of the group.

    Examples
    --------
    >>> with first_error():
    ...     raise ExceptionGroup("two", [KeyError("a"), ValueError("b")])
    Traceback (most recent call last):
    ...
    KeyError: 'a'
    """
    try:
        yield
    except BaseExceptionGroup as group:
        # A cancellation or an interrupt may be in it too, and goes on as itself.
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        # What happened at the site stays with it.
        raise first from first.__cause__
