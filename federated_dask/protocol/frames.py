"""Frames: one message and the raw buffers that belong to it, as bytes.

::

    ┌────────┬───────────────┬────────────┬────────────────────┬──────────┬─────
    │ "FDF1" │ stored header │ raw header │ header             │ buffer 0 │ …
    │ 4 B    │ u32, bytes    │ u32, bytes │ msgpack, zstd when │          │
    │        │               │            │ stored < raw       │          │
    └────────┴───────────────┴────────────┴────────────────────┴──────────┴─────

The header is ``[message, [[stored, raw, width], …]]``: the message and, for every
buffer, its bytes on the wire, its bytes after decompression (equal where it is not
compressed), and the bytes by which it is shuffled (see `compression`).  This
module does no I/O: `encode_frame` returns pieces to write, `FrameDecoder` is fed
whatever arrived and gives back whole frames.
Buffers of a decoded frame are writable and own their memory, so that arrays
made over them need no further copy.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast, overload

import msgspec
import numpy as np

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.compression import WIDEST, Buffer, compressed, decompressed
from federated_dask.protocol.expansion import check_expansion
from federated_dask.protocol.limits import Limits

__all__ = [
    "PREFIX_BYTES",
    "Buffer",
    "Frame",
    "FrameDecoder",
    "LaterBuffers",
    "StoredFrame",
    "decode_message",
    "encode_frame",
]

T = TypeVar("T")

MAGIC = b"FDF1"
PREFIX = struct.Struct("<4sII")
PREFIX_BYTES = PREFIX.size
UNDECODABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError)
"""What msgspec raises for bytes that are no message of the expected type."""

_encoder = msgspec.msgpack.Encoder()


class Frame(msgspec.Struct, frozen=True):
    """One received frame: the message still encoded, and its buffers."""

    message: msgspec.Raw
    buffers: Sequence[bytearray]
    stored_bytes: int = 0
    """What it took on the wire."""


class StoredFrame(msgspec.Struct, frozen=True):
    """One received frame as it came: a header and buffers that may still be compressed."""

    header: bytearray
    header_size: int
    buffers: list[bytearray]
    sizes: np.ndarray
    """Bytes of each buffer on the wire, decompressed, and by which it is shuffled.

    Shape (buffers, 3), int64.
    """

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once decompressed."""
        return self.header_size + int(self.sizes[:, 1].sum())

    def decompressed(self) -> Frame:
        """Decompress the frame; empties its `buffers` meanwhile, so that nothing is held twice."""
        frame = self.opened()
        assert isinstance(frame.buffers, LaterBuffers)  # noqa: S101
        return Frame(frame.message, frame.buffers.all(), frame.stored_bytes)

    def opened(self) -> Frame:
        """Decompress the header; the buffers follow when they are first looked at."""
        header = _parsed(decompressed(self.header, self.header_size))
        stored = PREFIX.size + len(self.header) + int(self.sizes[:, 0].sum())
        later = LaterBuffers(self.buffers, self.sizes[:, 1:].tolist())
        return Frame(header.message, later, stored)


class LaterBuffers(Sequence[bytearray]):
    """Buffers that are decompressed when one of them is first looked at, all of them.

    Until then a message may be refused for what it says, at no cost for what it carries.
    """

    def __init__(self, stored: list[bytearray], sizes: list[tuple[int, int]]) -> None:
        self._stored = stored
        self._sizes = sizes
        self._ready: list[bytearray] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers once they are decompressed."""
        return sum(size for size, _ in self._sizes)

    def all(self) -> list[bytearray]:
        """Give all buffers; what they were made of is let go of meanwhile."""
        if self._ready is None:
            ready = []
            self._stored.reverse()
            for size, width in self._sizes:
                ready.append(decompressed(self._stored.pop(), size, width))
            self._ready = ready
        return self._ready

    @overload
    def __getitem__(self, position: int) -> bytearray: ...
    @overload
    def __getitem__(self, position: slice) -> list[bytearray]: ...
    def __getitem__(self, position: int | slice) -> bytearray | list[bytearray]:
        return self.all()[position]

    def __len__(self) -> int:
        return len(self._sizes)


class _Header(msgspec.Struct, frozen=True, array_like=True):
    message: msgspec.Raw
    buffers: list[tuple[int, int, int]]


_header_decoder = msgspec.msgpack.Decoder(_Header)


def encode_frame(message: msgspec.Struct, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """Encode a message and its buffers.

    Parameters
    ----------
    message : msgspec.Struct
        The message.
    buffers : sequence of bytes-like
        C-contiguous buffers, sent as they are or compressed where that pays, best if they
        say how large their elements are (`compression.as_rows`).

    Returns
    -------
    list of bytes-like
        Pieces to write one after the other; large buffers are not copied.

    Examples
    --------
    >>> from federated_dask.protocol.messages import Progress
    >>> decoder = FrameDecoder()
    >>> pieces = encode_frame(Progress(done=1, total=2), [b"abc"])
    >>> [frame] = decoder.feed(b"".join(pieces))
    >>> msgspec.msgpack.decode(frame.message, type=Progress).total, bytes(frame.buffers[0])
    (2, b'abc')
    """
    found = [compressed(buffer) for buffer in buffers]
    sizes = [
        (len(stored), memoryview(buffer).nbytes, width)
        for (stored, width), buffer in zip(found, buffers, strict=True)
    ]
    raw = _encoder.encode((message, sizes))
    header, _ = compressed(raw)
    prefix = PREFIX.pack(MAGIC, len(header), len(raw))
    return [prefix + header, *(stored for stored, _ in found)]


class FrameDecoder:
    """Cut a stream of bytes into frames.

    Parameters
    ----------
    limits : Limits, optional
        Caps on header and buffers; a frame over them is refused from its first
        bytes, before memory is set aside for it.

    Raises
    ------
    RequestRefused
        From `feed` and `close`: reason ``malformed`` or ``limit_exceeded``.

    Examples
    --------
    >>> FrameDecoder().feed(b"GET / HTTP/1.1")
    Traceback (most recent call last):
    federated_dask.errors.RequestRefused: A frame does not start with its magic bytes. (malformed)
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._pending = bytearray()
        self._header: bytearray | None = None
        self._header_size = 0
        self._sizes = np.empty((0, 3), np.int64)
        self._buffers: list[bytearray] = []
        self._current = bytearray()

    def feed(self, data: Buffer) -> list[Frame]:
        """Take bytes as they arrived; return the frames that are now whole."""
        return [frame.decompressed() for frame in self.feed_stored(data)]

    def feed_stored(self, data: Buffer) -> list[StoredFrame]:
        """Take bytes as they arrived; return the frames that are now whole, as they came.

        Until a frame is whole, no more of it is kept than what came.
        """
        return list(self._frames(memoryview(data).cast("B")))

    @property
    def pending(self) -> int:
        """Bytes of a header that is not whole yet."""
        return len(self._pending)

    @property
    def until_known(self) -> int | None:
        """Bytes that are missing until more is known of a frame; None once all sizes are known.

        Fed in such steps, the decoder says what a frame is going to take before it takes it:
        first `header_size`, then `buffer_bytes`.
        """
        if self._header is not None:
            return None
        if len(self._pending) < PREFIX.size:
            return PREFIX.size - len(self._pending)
        stored: int = PREFIX.unpack_from(self._pending)[1]
        return PREFIX.size + stored - len(self._pending)

    @property
    def header_size(self) -> int:
        """Bytes of the latest header, decompressed; 0 until they are known."""
        return self._header_size

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the latest frame's buffers, decompressed; 0 until they are known."""
        return int(self._sizes[:, 1].sum())

    def close(self) -> None:
        """Say that no more bytes will come."""
        if self._pending or self._header is not None:
            raise RequestRefused("The stream ended inside a frame.", reason=Reason.MALFORMED)

    def _frames(self, data: memoryview) -> Iterator[StoredFrame]:
        while True:
            if self._header is None:
                data = self._read_header(data)
                if self._header is None:
                    return
            data = self._read_buffers(data)
            if len(self._buffers) < len(self._sizes):
                return
            yield StoredFrame(self._header, self._header_size, self._buffers, self._sizes)
            self._header, self._buffers = None, []
            if not data:
                return

    def _read_header(self, data: memoryview) -> memoryview:
        data = self._top_up(data, PREFIX.size)
        if len(self._pending) < PREFIX.size:
            return data
        magic, stored, raw = PREFIX.unpack_from(self._pending)
        if magic != MAGIC:
            raise RequestRefused(
                "A frame does not start with its magic bytes.", reason=Reason.MALFORMED
            )
        if stored > raw or raw > self.limits.header_bytes:
            raise _over("header", raw, self.limits.header_bytes)
        self._header_size = raw
        data = self._top_up(data, PREFIX.size + stored)
        if len(self._pending) < PREFIX.size + stored:
            return data
        header = self._pending[PREFIX.size :]
        self._pending = bytearray()
        # Only the sizes are kept: what came stays compressed until its buffers are there.
        unfolded = decompressed(header, raw)
        check_expansion(unfolded, self.limits.parts)
        self._sizes = _sizes(_parsed(unfolded), self.limits)
        self._header = header
        return data

    def _top_up(self, data: memoryview, size: int) -> memoryview:
        missing = max(0, size - len(self._pending))
        self._pending += data[:missing]
        return data[missing:]

    def _read_buffers(self, data: memoryview) -> memoryview:
        for position in range(len(self._buffers), len(self._sizes)):
            stored = int(self._sizes[position, 0])
            missing = stored - len(self._current)
            self._current += data[:missing]
            data = data[missing:]
            if len(self._current) < stored:
                break
            self._buffers.append(self._current)
            self._current = bytearray()
        return data


def _over(what: str, size: int, cap: int) -> RequestRefused:
    return RequestRefused(
        f"The {what} of a message has {size} bytes; at most {cap} are accepted.",
        reason=Reason.LIMIT_EXCEEDED,
        hint="Reduce more before the data travels, or ask for smaller pieces.",
    )


def _parsed(header: Buffer) -> _Header:
    try:
        return _header_decoder.decode(header)
    except UNDECODABLE as error:
        raise RequestRefused("A frame's header does not parse.", reason=Reason.MALFORMED) from error


def _sizes(header: _Header, limits: Limits) -> np.ndarray:
    """Check the sizes of the buffers."""
    if len(header.buffers) > limits.buffers:
        raise RequestRefused(
            f"A frame has {len(header.buffers)} buffers; at most {limits.buffers} are accepted.",
            reason=Reason.LIMIT_EXCEEDED,
        )
    if not all(map(_is_possible, header.buffers)):
        raise RequestRefused("A buffer has an impossible size.", reason=Reason.MALFORMED)
    total = sum(raw for _, raw, _ in header.buffers)
    if total > limits.buffer_bytes:
        raise _over("buffers", total, limits.buffer_bytes)
    return np.array(header.buffers, dtype=np.int64).reshape(-1, 3)


def _is_possible(sizes: tuple[int, int, int]) -> bool:
    stored, raw, width = sizes
    # Only what is compressed is shuffled.
    widest = WIDEST if stored < raw else 1
    return 0 <= stored <= raw and 1 <= width <= widest and raw % width == 0


_making = threading.RLock()


@functools.cache
def _made_decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(type_)


def _decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    # A process ended while two threads decoded their first messages of one type; what msgspec
    # learns of a type is not to be seen before it is whole.
    with _making:
        return _made_decoder(type_)


def decode_message(frame: Frame, type_: type[T]) -> T:
    """Decode the message of a frame.

    Parameters
    ----------
    frame : Frame
        A frame as it came out of a `FrameDecoder`.
    type_ : type
        The message's type, or a union of types.

    Raises
    ------
    RequestRefused
        If the message is not of that type.
    """
    try:
        return cast(T, _decoder(cast(Any, type_)).decode(frame.message))
    except UNDECODABLE as error:
        raise RequestRefused(
            f"A message does not parse: {str(error)[:200]}.", reason=Reason.MALFORMED
        ) from error
