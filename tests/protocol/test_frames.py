import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol._zstd import compress
from federated_dask.protocol.compression import as_rows
from federated_dask.protocol.frames import (
    MAGIC,
    PREFIX,
    Frame,
    FrameDecoder,
    decode_message,
    encode_frame,
)
from federated_dask.protocol.graph import Graph
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import AnyJobEvent, Failure, JobSubmission, Progress

BUFFERS = st.lists(
    st.one_of(st.binary(max_size=200), st.integers(0, 5000).map(lambda size: b"\0" * size)),
    max_size=6,
)


def whole(message: msgspec.Struct, buffers: list[bytes]) -> bytes:
    return b"".join(bytes(piece) for piece in encode_frame(message, buffers))


def raw(header: bytes, size: int | None = None) -> bytes:
    return PREFIX.pack(MAGIC, len(header), len(header) if size is None else size) + header


def announced(*sizes: tuple[int, ...], message: object = None) -> bytes:
    return raw(msgspec.msgpack.encode([message, [(*pair, 1)[:3] for pair in sizes]]))


@contextmanager
def allocating_at_most(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


@given(frames=st.lists(st.tuples(st.text(max_size=300), BUFFERS), max_size=4), data=st.data())
def test_frames_come_back_however_the_stream_is_cut(
    frames: list[tuple[str, list[bytes]]], data: st.DataObject
) -> None:
    stream = b"".join(
        whole(Failure(reason="internal", message=text), buffers) for text, buffers in frames
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = FrameDecoder()
    received: list[Frame] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:stop])
    decoder.close()
    assert [
        (decode_message(f, Failure).message, [bytes(b) for b in f.buffers]) for f in received
    ] == [(text, buffers) for text, buffers in frames]


def test_byte_by_byte() -> None:
    buffers = [b"", b"x", b"\0" * 300, b""]
    decoder = FrameDecoder()
    frames = [
        f for byte in whole(Progress(done=1, total=2), buffers) for f in decoder.feed(bytes([byte]))
    ]
    assert [bytes(buffer) for buffer in frames[0].buffers] == buffers


def test_many_buffers_fed_in_small_pieces_take_linear_time() -> None:
    buffers = [b"x"] * 20_000
    stream = whole(Progress(done=1, total=2), buffers)
    decoder = FrameDecoder()
    frames = [
        f for start in range(0, len(stream), 7) for f in decoder.feed(stream[start : start + 7])
    ]
    assert len(frames[0].buffers) == 20_000


def test_what_shrinks_is_compressed_and_what_does_not_is_not() -> None:
    noise = np.random.default_rng(0).bytes(300_000)
    assert len(whole(Progress(done=1, total=2), [b"\0" * 300_000])) < 1000
    stream = whole(Progress(done=1, total=2), [noise])
    assert len(noise) < len(stream) < len(noise) + 200
    # Not copied either.
    assert any(piece is noise or getattr(piece, "obj", None) is noise for piece in
               encode_frame(Progress(done=1, total=2), [noise]))  # fmt: skip


def test_what_is_all_alike_shrinks_to_nothing() -> None:
    for value in (0, 64, 1.5):
        alike = as_rows(np.full(250_000, value))
        assert len(whole(Progress(done=1, total=2), [alike])) < 1000


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", "c8", "c16", "M8[s]", "U3", "V3", "f2", "?"])
@pytest.mark.parametrize("length", [8, 9, 1000, 100_003])
def test_elements_of_any_size_come_back(dtype: str, length: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 100, length).cumsum() % 1000
    plain = numbers.astype("i8" if dtype[0] in "MV" else dtype)
    array = np.frombuffer(plain.tobytes()[: length * np.dtype(dtype).itemsize], dtype)
    stream = whole(Progress(done=1, total=2), [as_rows(array)])
    [frame] = FrameDecoder().feed(stream)
    assert bytes(frame.buffers[0]) == array.tobytes()


def test_fields_of_numbers_shrink_more_than_their_bytes_in_a_row() -> None:
    x, y = np.meshgrid(np.linspace(0, 3, 300), np.linspace(0, 2, 200))
    noise = np.random.default_rng(0).normal(size=x.shape)
    field = (280 + 20 * np.sin(x) * np.cos(y) + noise / 10).astype("f4")
    shuffled = whole(Progress(done=1, total=2), [as_rows(field)])
    assert len(shuffled) < 0.7 * len(whole(Progress(done=1, total=2), [field.tobytes()]))
    days = np.datetime64("1860-01-01", "ns") + np.arange(10_000) * np.timedelta64(30, "D")
    assert len(whole(Progress(done=1, total=2), [as_rows(days)])) < 0.1 * days.nbytes


def test_noise_is_sent_as_it_is() -> None:
    noise = as_rows(np.random.default_rng(0).random(50_000))
    pieces = encode_frame(Progress(done=1, total=2), [noise])
    assert any(getattr(piece, "obj", None) is noise.obj for piece in pieces)


@pytest.mark.parametrize("dtype", ["f4", "V5", "M8[ns]"])
def test_views_of_any_type_are_sent_as_bytes(dtype: str) -> None:
    array = np.zeros(1000, dtype)
    [frame] = FrameDecoder().feed(whole(Progress(done=1, total=2), [array.view("u1").data]))
    assert len(frame.buffers[0]) == array.nbytes


def test_received_buffers_are_writable_and_own_their_memory() -> None:
    received = bytearray(whole(Progress(done=1, total=2), [b"abcd", b"\0" * 500]))
    [frame] = FrameDecoder().feed(received)
    received[:] = b"\xff" * len(received)
    assert bytes(frame.buffers[0]) == b"abcd"
    for buffer in frame.buffers:
        buffer[0] = 1


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "magic"),
        (b"\x80\x05\x95" + b"\0" * 20, "magic"),
        (raw(b"\xc1"), "header does not parse"),
        (raw(b""), "header does not parse"),
        (raw(b"\x92\xc0\xc0"), "header does not parse"),
        (raw(b"\x91" * 100_000 + b"\xc0"), "header does not parse"),
        (raw(b"\x92\xc0\xdd\xff\xff\xff\xff"), "header does not parse"),
        (raw(b"\xa2\xff\xfe"), "header does not parse"),
        (announced((5, 4)), "impossible size"),
        (announced((-1, 4)), "impossible size"),
        (announced((-2, -1)), "impossible size"),
        (announced((1, 4, 0)), "impossible size"),
        (announced((1, 4, -2)), "impossible size"),
        (announced((1, 5, 2)), "impossible size"),
        (announced((4, 4, 2)), "impossible size"),
        (announced((1, 64, 32)), "impossible size"),
        (announced((1, 2**40, 2**39)), "impossible size"),
        (PREFIX.pack(MAGIC, 10, 5), "at most"),
        (raw(b"not zstd", 100), "damaged"),
        (raw(compress(b"a" * 99), 100), "announced size"),
        (raw(compress(b"a" * 101), 100), "announced size"),
        (raw(compress(b"a" * 100) + b"b", 100), "announced size"),
        (raw(compress(b"a" * 50) + compress(b"a" * 50), 100), "announced size"),
        (raw(compress(b"a" * 100)[:-3], 100), "announced size"),
        (announced((3, 100)) + b"abc", "damaged|announced size"),
    ],
)  # fmt: skip
def test_malformed_streams_are_refused(stream: bytes, words: str) -> None:
    with pytest.raises(RequestRefused, match=words):
        FrameDecoder().feed(stream)


@pytest.mark.parametrize("cut", range(1, 60, 3))
def test_a_stream_that_ends_inside_a_frame_is_refused(cut: int) -> None:
    stream = whole(Progress(done=1, total=2), [b"abc", b"de" * 40])
    decoder = FrameDecoder()
    assert decoder.feed(stream[:cut]) == []
    with pytest.raises(RequestRefused, match="ended inside") as caught:
        decoder.close()
    assert caught.value.reason is Reason.MALFORMED


def test_an_empty_stream_may_end() -> None:
    FrameDecoder().close()


LIMITS = Limits(header_bytes=10_000, buffer_bytes=100_000, buffers=10)


@pytest.mark.parametrize(
    "stream",
    [
        PREFIX.pack(MAGIC, 2**32 - 1, 2**32 - 1),
        PREFIX.pack(MAGIC, 100, 2**32 - 1),
        PREFIX.pack(MAGIC, 10_001, 10_001),
        announced((1, 2**63)),
        announced((2**63, 2**64 - 1)),
        announced((100_001, 100_001)),
        announced(*[(1, 50_000)] * 3),
        announced(*[(0, 0)] * 11),
    ],
)
def test_what_is_over_a_cap_is_refused_from_its_first_bytes(stream: bytes) -> None:
    with allocating_at_most(200_000), pytest.raises(RequestRefused) as caught:
        FrameDecoder(LIMITS).feed(stream)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    assert caught.value.http_status == 413


def test_a_gibibyte_of_zeros_does_not_unfold() -> None:
    bomb = compress(b"\0" * 2**30)
    assert len(bomb) < 200_000
    for header, buffers in ((b"", [(len(bomb), 100_000)]), (bomb, [])):
        stream = announced(*buffers) + bomb if buffers else raw(header, 300_000)
        limits = Limits(header_bytes=300_000, buffer_bytes=200_000)
        with allocating_at_most(3_000_000), pytest.raises(RequestRefused, match="announced size"):
            FrameDecoder(limits).feed(stream)


def test_a_buffer_is_decompressed_without_holding_it_twice() -> None:
    size = 32 * 2**20
    stream = whole(Progress(done=1, total=2), [as_rows(np.zeros(size // 8))])
    with allocating_at_most(int(1.4 * size)):
        [frame] = FrameDecoder().feed(stream)
    assert len(frame.buffers[0]) == size


@settings(max_examples=300)
@given(data=st.data())
def test_flipped_bits_give_a_frame_or_a_refusal(data: st.DataObject) -> None:
    """What is damaged on the way is TLS's to find; here nothing else may come of it."""
    buffers = [b"abc", b"\1\2" * 200, b""]
    stream = bytearray(whole(Failure(reason="internal", message="é" * 50), buffers))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(stream) - 1))
        stream[position] ^= 1 << data.draw(st.integers(0, 7))
    decoder = FrameDecoder(LIMITS)
    try:
        for frame in decoder.feed(stream):
            decode_message(frame, AnyJobEvent)  # type: ignore[arg-type]
        decoder.close()
    except RequestRefused:
        pass


@settings(max_examples=300)
@given(message=st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused(message: bytes) -> None:
    frame = Frame(msgspec.Raw(message), [])
    for type_ in (JobSubmission, AnyJobEvent):
        with pytest.raises(RequestRefused):
            decode_message(frame, type_)  # type: ignore[arg-type]


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(RequestRefused, match="does not parse"):
        decode_message(Frame(msgspec.Raw(b"\x81\xa5event\xa2\xff\xfe"), []), Failure)


def test_a_frame_stays_compressed_until_it_is_whole() -> None:
    size = 32 * 2**20
    message = Failure(reason="internal", message="a" * 2**20)
    stream = whole(message, [b"\0" * size, b"12345678"])
    decoder = FrameDecoder()
    with allocating_at_most(8 * 2**20):
        assert decoder.feed_stored(stream[:-4]) == []
        kept = len(decoder._header or b"") + sum(map(len, decoder._buffers))
        assert kept < len(stream)
    [stored] = decoder.feed_stored(stream[-4:])
    assert size + 8 + 2**20 <= stored.nbytes < size + 2**20 + 2000
    frame = stored.decompressed()
    assert [len(buffer) for buffer in frame.buffers] == [size, 8]
    assert decode_message(frame, Failure) == message


@pytest.mark.parametrize(
    "label", ["a\nb", "a\n", "\x1b[2J", "\x7f", "a\u202eb", "\x9b1m", "\u2028"]
)
def test_labels_are_printable(label: str) -> None:
    graph = Graph(templates=(), blocks=())
    for text, fits in (("Ångström · 北", True), (label, False)):
        submission = JobSubmission(graph=graph, outputs=(), label=text)
        [frame] = FrameDecoder().feed(whole(submission, []))
        if fits:
            assert decode_message(frame, JobSubmission) == submission
        else:
            with pytest.raises(RequestRefused):
                decode_message(frame, JobSubmission)
