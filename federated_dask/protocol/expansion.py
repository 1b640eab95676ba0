"""How many objects a message becomes, before it becomes them.

Two bytes of msgpack can be an object of sixty in Python.  The parts of a message are counted
where it is long enough to hold too many; nothing is made of them meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federated_dask.errors import Reason, RequestRefused

if TYPE_CHECKING:
    from federated_dask.protocol.frames import Buffer

__all__ = ["check_expansion"]

# For each first byte: the bytes behind it, or how many of them say how long the part is.
_FIXED = [0] * 256
_LENGTH = [0] * 256
_ITEMS = [-1] * 256
for _byte in range(256):
    if 0x80 <= _byte <= 0x8F:
        _ITEMS[_byte] = 2 * (_byte & 0x0F)
    elif 0x90 <= _byte <= 0x9F:
        _ITEMS[_byte] = _byte & 0x0F
    elif 0xA0 <= _byte <= 0xBF:
        _FIXED[_byte] = _byte & 0x1F
for _byte, _size in {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}.items():  # fmt: skip
    _FIXED[_byte] = _size
for _byte, _size in {
    0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4,
}.items():  # fmt: skip
    _LENGTH[_byte] = _size
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_EXTENSION = frozenset({0xC7, 0xC8, 0xC9})


def check_expansion(message: Buffer, most: int) -> None:
    """Refuse a message of more than `most` parts: numbers, texts, lists, keys and items.

    What is no msgpack is left to the decoder.

    Parameters
    ----------
    message : bytes-like
        msgpack.
    most : int
        Parts.

    Raises
    ------
    RequestRefused
        ``limit_exceeded``.

    Examples
    --------
    >>> import msgspec
    >>> check_expansion(msgspec.msgpack.encode([1, [2, 3]]), 5)
    >>> check_expansion(msgspec.msgpack.encode([1, [2, 3]]), 4)
    Traceback (most recent call last):
    federated_dask.errors.RequestRefused: A message has more than 4 parts. Use ... (limit_exceeded)
    """
    data = memoryview(message).cast("B")
    if len(data) <= most:
        # Each part has one byte at least.
        return
    fixed, length, items, counted = _FIXED, _LENGTH, _ITEMS, _COUNTED
    end = len(data)
    at = parts = announced = 0
    while at < end:
        byte = data[at]
        at += 1 + fixed[byte]
        parts += 1
        if length[byte]:
            size = length[byte]
            at += size + int.from_bytes(data[at : at + size], "big") + (byte in _EXTENSION)
        elif byte in counted:
            size, times = counted[byte]
            announced += times * int.from_bytes(data[at : at + size], "big")
            at += size
        elif items[byte] > 0:
            announced += items[byte]
        if parts > most or announced > most:
            raise RequestRefused(
                f"A message has more than {most} parts.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Use larger chunks, or compute the expression in parts.",
            )
