"""Which of several media types a request accepts best (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["best_of"]

LONGEST = 4096
MOST_RANGES = 64


def best_of(accept: str, offered: Sequence[str]) -> str | None:
    """Choose a media type.

    Parameters
    ----------
    accept : str
        The header ``Accept``; empty means anything.
    offered : sequence of str
        Media types that there are, the best first.

    Returns
    -------
    str or None
        The one with the highest quality, the first of these; None where none is accepted.

    Examples
    --------
    >>> best_of("image/png;q=0.5, application/*", ["application/json", "image/png"])
    'application/json'
    >>> best_of("text/html", ["application/json"]) is None
    True
    """
    ranges = _ranges(accept or "*/*")
    best, highest = None, 0.0
    for media_type in offered:
        quality = _quality(media_type, ranges)
        if quality > highest:
            best, highest = media_type, quality
    return best


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    kind = media_type.partition("/")[0]
    # The most specific range counts, wherever it stands.
    for pattern in (media_type, f"{kind}/*", "*/*"):
        found = [quality for name, quality in ranges if name == pattern]
        if found:
            return max(found)
    return 0.0


def _ranges(accept: str) -> list[tuple[str, float]]:
    found = []
    for item in accept[:LONGEST].split(",")[:MOST_RANGES]:
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if name:
            # What is no number between 0 and 1 is nobody's wish.
            found.append((name, quality if 0.0 <= quality <= 1.0 else 0.0))
    return found
