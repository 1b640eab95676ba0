"""A large value needs little more memory than itself, where it leaves and where it arrives."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from federated_dask.protocol.frames import Buffer, FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.messages import Result
from federated_dask.protocol.values import decode_value, encode_value

ROOT = Path(__file__).parents[2]
GIGA = 10**9
MOST = 1.2 * GIGA

LEAVES = """
    import resource, sys
    import numpy as np
    from federated_dask.protocol.frames import encode_frame
    from federated_dask.protocol.messages import Result
    from federated_dask.protocol.values import encode_value

    array = {array}
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = peak()
    buffers = []
    value = encode_value(array, buffers)
    for piece in encode_frame(Result(output=0, value=value), buffers):
        view = memoryview(piece).cast("B")
        for start in range(0, len(view), 2**18):
            sys.stdout.buffer.write(view[start : start + 2**18])
    print(peak() - before, file=sys.stderr)
"""

ARRIVES = """
    import resource, sys
    from federated_dask.protocol.frames import FrameDecoder, decode_message
    from federated_dask.protocol.limits import Limits
    from federated_dask.protocol.messages import Result
    from federated_dask.protocol.values import decode_value

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    decoder = FrameDecoder(Limits(buffer_bytes=2**31))
    before = peak()
    frames = []
    while data := sys.stdin.buffer.read(2**18):
        frames += decoder.feed(data)
    [frame] = frames
    array = decode_value(decode_message(frame, Result).value, frame.buffers)
    print(peak() - before, array.nbytes, float(array.ravel()[-1]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "array",
    [
        "np.random.default_rng(0).random(125_000_000)",
        "np.random.default_rng(0).random((25_000, 5_000)).T",
        "np.arange(125_000_000.0)",
        "np.zeros(125_000_000)",
    ],
)
def test_a_gigabyte_needs_at_most_a_fifth_more(array: str) -> None:
    leaves, arrives = (textwrap.dedent(code).format(array=array) for code in (LEAVES, ARRIVES))
    with (
        subprocess.Popen(
            [sys.executable, "-c", leaves],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=False,
            cwd=ROOT,
        ) as one,
        subprocess.Popen(
            [sys.executable, "-c", arrives], stdin=one.stdout, stderr=subprocess.PIPE, cwd=ROOT
        ) as other,
    ):
        assert one.stdout is not None
        one.stdout.close()
        _, told = other.communicate(timeout=280)
        assert one.stderr is not None
        sent = int(one.stderr.read())
    received, size, _ = told.split()
    assert int(size) == GIGA
    # Beyond the array itself where it leaves; with the array where it arrives.
    assert sent <= MOST
    assert int(received) <= MOST


def test_arrays_leave_and_arrive_without_a_copy() -> None:
    array = np.random.default_rng(0).random((300, 1000))
    buffers: list[Buffer] = []
    value = encode_value(array, buffers)
    assert np.shares_memory(np.frombuffer(buffers[0], "f8"), array)
    pieces = encode_frame(Result(output=0, value=value), buffers)
    # Random numbers do not get smaller: what is sent is the array's own memory.
    assert np.shares_memory(np.frombuffer(pieces[1], "f8"), array)
    [frame] = FrameDecoder().feed(b"".join(bytes(piece) for piece in pieces))
    decoded = decode_value(decode_message(frame, Result).value, frame.buffers)
    assert np.shares_memory(decoded, np.frombuffer(frame.buffers[0], "f8"))
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize(
    "array",
    [
        np.broadcast_to(np.float64(3), (1000, 1000, 1000)),
        np.broadcast_to(np.arange(5.0)[:, None], (5, 10**8)),
        np.broadcast_to(np.zeros(1, [("a", "f4"), ("b", "M8[s]")]), (10**7,)),
    ],
    ids=["scalar", "column", "structure"],
)
def test_what_repeats_itself_stays_small(array: np.ndarray) -> None:
    buffers: list[Buffer] = []
    value = encode_value(array, buffers)
    assert sum(memoryview(buffer).nbytes for buffer in buffers) < 100
    decoded = decode_value(value, [bytearray(buffer) for buffer in buffers])
    assert decoded.shape == array.shape
    assert decoded.dtype == array.dtype
    assert 0 in decoded.strides
    assert decoded[-1].flat[0] == array[-1].flat[0]


@pytest.mark.parametrize(
    "array",
    [
        np.ma.masked_array(np.arange(6.0).reshape(2, 3), mask=[[1, 0, 0], [0, 1, 0]]),
        np.ma.masked_array(np.arange(4), mask=False, fill_value=-7),
        np.ma.masked_array(np.zeros(2, [("a", "f4"), ("b", "i2")]), mask=[(1, 0), (0, 1)]),
        np.ma.masked_array(np.array(["2000-01-01", "NaT"], "M8[ns]"), mask=[0, 1]),
        np.ma.masked_all(3, "U5"),
    ],
    ids=str,
)
def test_masked_arrays_of_all_kinds(array: np.ma.MaskedArray) -> None:
    buffers: list[Buffer] = []
    value = encode_value(array, buffers)
    decoded = decode_value(value, [bytearray(buffer) for buffer in buffers])
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(np.ma.getmaskarray(decoded), np.ma.getmaskarray(array))
    assert decoded.filled().tobytes() == array.filled().tobytes()
