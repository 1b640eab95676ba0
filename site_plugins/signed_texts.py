"""Reading compact signed texts (JWS) from strangers, and judging their times.

What such a text may look like is fixed before it is read: one algorithm, given by
the key; a header with nothing that could name another key; JSON without doubled
keys, NaN or infinities; one text for one content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any, Generic, TypeGuard, TypeVar

from joserfc import jws
from joserfc.errors import JoseError

from site_plugins.keys import Key

__all__ = [
    "LONGEST_TEXT",
    "LONGEST_TOKEN",
    "Verified",
    "decode_part",
    "expiry_of",
    "is_text",
    "is_time",
    "parse_json",
    "peek",
    "read_signed",
]

T = TypeVar("T")

LONGEST_TOKEN = 8 * 1024
MOST_VERIFIED = 4096
LONGEST_TEXT = 512
LATEST_TIME = 2.0**40
CLOCK_SKEW = 30.0
"""Seconds by which the issuer's clock may be ahead, where the site runs on several machines."""


def read_signed(text: str, kind: str, algorithm: str, key: Key) -> dict[str, Any] | None:
    """Give the claims of a text that `key` signed and whose header is as it has to be, else None.

    Parameters
    ----------
    text : str
        The compact serialisation.
    kind : str
        What ``typ`` must be.
    algorithm : str
        What ``alg`` must be; goes with the key.
    key : Key
        The public key.
    """
    if len(text) > LONGEST_TOKEN or not text.isascii():
        return None
    try:
        header, _, _ = (decode_part(part) for part in text.split("."))
        if parse_json(header) != {"alg": algorithm, "typ": kind}:
            return None
        claims = parse_json(jws.deserialize_compact(text, key, [algorithm]).payload)
    except (ValueError, RecursionError, JoseError):
        return None
    return claims if isinstance(claims, dict) else None


class Verified(Generic[T]):
    """What signed texts said that were verified before, kept by digest and key.

    Whatever depends on the time or on what may be revoked is for the caller to check each
    time; a text is found only with the very key that verified it.

    Examples
    --------
    >>> verified, key = Verified(), object()
    >>> verified.add("a.b.c", key, "ada")
    >>> verified.get("a.b.c", key), verified.get("a.b.c", object()), verified.get("a.b.d", key)
    ('ada', None, None)
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[object, T]] = {}

    def add(self, text: str, key: object, said: T) -> None:
        """Keep what a verified text says."""
        if len(self._kept) >= MOST_VERIFIED:
            self._kept.clear()
        self._kept[_digest(text)] = key, said

    def get(self, text: str, key: object) -> T | None:
        """Give what a text says that `key` verified before, else None."""
        # No token is kept: what is in memory may end up in a core file.
        found = self._kept.get(_digest(text))
        return found[1] if found is not None and found[0] is key else None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def peek(text: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Give header and claims of a text *that nobody has verified*, or None where it is none.

    Good for one thing only: to find out with which key to verify it.
    """
    if len(text) > LONGEST_TOKEN or not text.isascii():
        return None
    try:
        header, payload, _ = (decode_part(part) for part in text.split("."))
        parsed = parse_json(header), parse_json(payload)
    except (ValueError, RecursionError):
        return None
    return parsed if all(isinstance(part, dict) for part in parsed) else None


def expiry_of(claims: dict[str, Any], now: float, max_lifetime: float) -> float | None:
    """Give the end of a statement whose times make sense, else None."""
    issued, expires = claims.get("iat"), claims.get("exp")
    starts = claims.get("nbf", issued)
    if not (is_time(issued) and is_time(expires) and is_time(starts)):
        return None
    latest = now + CLOCK_SKEW
    if issued > latest or starts > latest or not 0 < expires - issued <= max_lifetime + 1:
        return None
    return float(expires)


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether it is a printable text of a length that names have."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable()


def is_time(value: object) -> TypeGuard[float]:
    """Tell whether it is a number of seconds since the epoch that makes sense."""
    # bool is an int; NaN fails every comparison.
    return type(value) in (int, float) and 0 <= value <= LATEST_TIME  # type: ignore[operator]


def decode_part(part: str) -> bytes:
    """Decode one part of a compact text; ValueError where it is not the one way to write it."""
    data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    # One token, one text: spare bits and padding would make other texts of it.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise ValueError("not the canonical base64url")
    return data


def parse_json(data: bytes) -> Any:
    """Parse JSON that means one thing only; ValueError or RecursionError where it does not."""
    return json.loads(
        data.decode(),
        object_pairs_hook=_without_duplicates,
        parse_constant=_refuse_constant,
        parse_float=_finite,
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError("NaN and infinities are not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is not finite")
    return number
