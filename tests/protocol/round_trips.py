"""Values on their way there and back."""

import math
from typing import Any

import msgspec
import numpy as np

from federated_dask.protocol import values as v
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.trees import Value
from federated_dask.protocol.values import decode_value, encode_value

TABLE = operation_table()
DECODER = msgspec.msgpack.Decoder(Value)


def sent(obj: object) -> tuple[Value, list[bytearray]]:
    """What arrives: the tree through msgpack, the buffers as bytes of their own."""
    buffers: list[Buffer] = []
    tree = encode_value(obj, buffers, TABLE)
    return DECODER.decode(msgspec.msgpack.encode(tree)), [bytearray(buffer) for buffer in buffers]


def round_trip(obj: object) -> Any:
    return decode_value(*sent(obj), TABLE)


def written(array: np.ndarray) -> bytes:
    """Bytes of an array without those that lie between long doubles."""
    if array.dtype.char not in "gG":
        return array.tobytes()
    return np.frombuffer(array.tobytes(), "u1").reshape(-1, 16)[:, :10].tobytes()


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if theirs.dtype.hasobject:
            for one, other in zip(ours.flat, theirs.flat, strict=True):
                assert_same(one, other)
        else:
            assert written(ours) == written(theirs)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, dict):
        assert_same(list(ours.items()), list(theirs.items()))
    elif isinstance(theirs, np.generic):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(theirs, complex):
        assert_same((ours.real, ours.imag), (theirs.real, theirs.imag))
    elif isinstance(theirs, float):
        assert math.copysign(1, ours) == math.copysign(1, theirs)
        assert ours == theirs or (ours != ours and theirs != theirs)
    else:
        assert ours == theirs


def instance(codec: str, **fields: Any) -> v.InstanceValue:
    return v.InstanceValue(codec, fields)
