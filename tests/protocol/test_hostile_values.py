"""Trees that nobody honest sends, and values that cost more than they weigh."""

import contextlib
import datetime
import functools
import warnings
from typing import Any

import cftime
import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_dask.errors import FederatedError, NotPermitted, RequestRefused
from federated_dask.protocol import dtypes
from federated_dask.protocol import values as v
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.values import ValueDecoder, decode_value, encode_value
from tests.protocol.round_trips import (
    DECODER,
    TABLE,
    instance,
)

# Hostile trees

ONE = bytearray(8)
F8 = "<f8"
DEEP: Any = F8
for _ in range(500):
    DEEP = (dtypes.Field("a", DEEP),)


def array(dtype: Any = F8, shape: Any = (1,), stored: Any = None, buffer: int = 0) -> v.ArrayValue:
    return v.ArrayValue(dtype, shape, shape if stored is None else stored, False, buffer)


HUGE = array(shape=(10**13,), stored=(1,))
AGGREGATION = dict.fromkeys(
    (
        *("name", "preprocess", "reduction_type", "numpy", "chunk", "combine", "simple_combine"),
        *("finalize", "fill_value", "dtype_init", "dtype", "finalize_kwargs", "min_count"),
        *("new_dims_func", "preserves_dtype"),
    )
)


def aggregation(**fields: Any) -> v.InstanceValue:
    return v.InstanceValue("flox.Aggregation", {**AGGREGATION, **fields})


HOSTILE: dict[str, Any] = {
    "short buffer": array(shape=(2,)),
    "long buffer": array("<f4"),
    "missing buffer": array(buffer=1),
    "negative buffer": array(buffer=-1),
    "huge buffer number": array(buffer=2**62),
    "negative length": array(shape=(-1,)),
    "two negatives": array(shape=(-1, -1)),
    "product wraps": array(shape=(2**32, 2**32 + 1)),
    "huge shape": array(shape=(2**63,)),
    "many dimensions": array(shape=(1,) * 70),
    "shape does not fit": array(shape=(3,), stored=(1, 1)),
    "negative repeat": array(shape=(-3,), stored=(1,)),
    "repeats of repeats": array(shape=(2**62, 2**62), stored=(1, 1)),
    "no bytes but many": array("|S0", (10**12,), buffer=1),
    "void without bytes": array("|V0", (10**12,), buffer=1),
    "no fields": array((), (10**12,), buffer=1),
    "object dtype": array("|O"),
    "object field": array((dtypes.Field("a", "|O"),)),
    "unknown dtype": array("<i7"),
    "dtype as text": array("float64"),
    "dtype deep": array(DEEP),
    "dtype huge field": array((dtypes.Field("a", F8, (2**40,)),)),
    "dtype negative field": array((dtypes.Field("a", F8, (-1,)),)),
    "dtype twice a name": array((dtypes.Field("a", "<f4"), dtypes.Field("a", "<f4"))),
    "scalar size": v.ScalarValue(F8, b"1234"),
    "scalar object": v.ScalarValue("|O", bytes(8)),
    "mask is no array": v.MaskedValue(array(), True, 0.0),
    "mask of other shape": v.MaskedValue(array(), array("|b1", (8,)), 0.0),
    "mask that repeats": v.MaskedValue(HUGE, array(shape=(10**13,), stored=(1,)), 0.0),
    "masked text": v.MaskedValue("x", "y", 0.0),
    "texts negative data": v.TextArrayValue((1,), 0, -1),
    "texts beyond": v.TextArrayValue((1,), 2, 1),
    "texts unknown length": v.TextArrayValue((1,), 3, 1),
    "texts no unicode": v.TextArrayValue((1,), 4, 5),
    "texts too few": v.TextArrayValue((1,), 0, 0),
    "cftime calendar": v.CFTimeValue((1,), "maya", False, 0),
    "cftime no calendar": v.CFTimeValue((1,), "", False, 0),
    "cftime count": v.CFTimeValue((2,), "noleap", True, 0),
    "cftime far": v.CFTimeValue((1,), "standard", False, 2),
    "objects count": v.ObjectArrayValue((3,), (1,)),
    "key that is a list": v.DictValue(((v.ListValue(()), 1),)),
    "integer no digits": v.LargeIntegerValue("zz"),
    "integer too long": v.LargeIntegerValue("f" * 10_000),
    "timedelta": v.TimeDeltaValue(10**12, 0, 0),
    "operation unknown": v.OperationValue("os.system"),
    "operation dotted": v.OperationValue("numpy.linalg.linalg.os"),
    "partial of a number": v.PartialValue(3, (), {}),
    "partial of a partial of text": v.PartialValue(v.PartialValue("eval", (), {}), (), {}),
    "partial unknown": v.PartialValue(v.OperationValue("builtins.eval"), (), {}),
    "codec unknown": instance("builtins.object"),
    "codec fields": instance("pandas.RangeIndex"),
    "range step": instance("pandas.RangeIndex", start=0, stop=1, step=0, name=None),
    "range text": instance("pandas.RangeIndex", start="0", stop=[], step=1, name=None),
    "index huge": instance("pandas.Index", values=HUGE, dtype="", name=None),
    "index huge text": instance("pandas.Index", values=HUGE, dtype="str", name=None),
    "index dtype": instance("pandas.Index", values=array(), dtype="category", name=None),
    "index 2-d": instance("pandas.Index", values=array(shape=(1, 1)), dtype="", name=None),
    "index name": instance("pandas.Index", values=array(), dtype="", name=v.ListValue(())),
    "dates huge": instance("pandas.DatetimeIndex", values=HUGE, freq=None, name=None),
    "dates freq": instance("pandas.DatetimeIndex", values=array("<M8[ns]"), freq="os", name=None),
    "dates freq type": instance("pandas.DatetimeIndex", values=array("<M8[ns]"), freq=1, name=None),
    "intervals huge": instance(
        "pandas.IntervalIndex", left=HUGE, right=HUGE, closed="left", name=None
    ),
    "intervals closed": instance(
        "pandas.IntervalIndex", left=array(), right=array(), closed="x", name=None
    ),
    "seed pool": instance(
        "numpy.random.SeedSequence", entropy=1, spawn_key=v.TupleValue(()), pool_size=2**40
    ),
    "seed endless": instance(
        "numpy.random.SeedSequence",
        entropy=instance("pandas.RangeIndex", start=0, stop=2**62, step=1, name=None),
        spawn_key=v.TupleValue(()),
        pool_size=4,
    ),
    "reindex type": instance("flox.ReindexStrategy", blockwise=True, array_type="os"),
    "sentinel": instance("flox.ReprObject", value="__import__('os')"),
    "aggregation fields": instance("flox.Aggregation", name="sum"),
    "aggregation function": aggregation(chunk=v.TupleValue(("__import__",))),
    "aggregation nested function": aggregation(combine=v.TupleValue((v.TupleValue(("np",)),))),
    "aggregation text for a tuple": aggregation(numpy="np"),
    "aggregation finalize": aggregation(finalize="eval"),
    "aggregation preprocess": aggregation(preprocess=3),
    "aggregation keywords": aggregation(finalize_kwargs=v.DictValue((("out", 1),))),
}

BUFFERS = [
    ONE,
    bytearray(),
    bytearray((2**62).to_bytes(8, "little")),
    bytearray((-3).to_bytes(8, "little", signed=True)),
    bytearray((2).to_bytes(8, "little")),
    bytearray(b"\xff\xfe"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_trees_are_refused(name: str) -> None:
    with pytest.raises((RequestRefused, NotPermitted)):
        decode_value(HOSTILE[name], BUFFERS, TABLE)


def test_deep_trees_are_refused_or_decoded() -> None:
    tree: Any = 1
    for _ in range(20_000):
        tree = v.ListValue((tree,))
    with pytest.raises(RequestRefused):
        decode_value(tree, [])


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_trees_give_a_value_or_a_refusal(data: st.DataObject) -> None:
    value = [
        np.arange(6.0).reshape(2, 3).T,
        np.array(["a", None], dtype=object),
        np.ma.MaskedArray([1, 2], mask=[0, 1]),
        cftime.DatetimeNoLeap(2000, 1, 1),
        {"a": (1, 2.5, slice(1)), "b": np.float32(2)},
        pd.RangeIndex(3),
        pd.date_range("2000", periods=2),
        functools.partial(np.sum, axis=0),
        np.zeros(2, [("a", "f4"), ("b", "S2")]),
    ]
    buffers: list[Buffer] = []
    message = bytearray(msgspec.msgpack.encode(encode_value(value, buffers, TABLE)))
    for _ in range(data.draw(st.integers(1, 5))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = DECODER.decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        with contextlib.suppress(FederatedError):
            decode_value(tree, [bytearray(buffer) for buffer in buffers], TABLE)


P = 2**61 - 1


@pytest.mark.parametrize(
    "keys",
    [
        (v.LargeIntegerValue(hex(1025 * P)),),
        (P,),
        (-P,),
        (v.TupleValue((1, v.TupleValue((P,)))),),
        (v.ScalarValue("<c16", bytes(16)),),
        (v.ComplexValue(1.0, 2.0),),
        (v.TimeDeltaValue(1, 2, 3),),
        tuple(v.TupleValue((number,)) for number in range(v.MOST_TUPLE_KEYS + 1)),
    ],
)
def test_keys_of_a_dict_cannot_be_made_to_collide(keys: Any) -> None:
    with pytest.raises(RequestRefused):
        decode_value(v.DictValue(tuple((key, None) for key in keys)), [], TABLE)


@pytest.mark.parametrize("key", [P, 3**60, 1j, (1, (P,)), np.int64(1), datetime.timedelta(1)])
def test_dicts_with_other_keys_have_no_wire_form(key: Any) -> None:
    with pytest.raises(TypeError, match="wire form"):
        encode_value({key: 1}, [])


@pytest.mark.parametrize(
    "value",
    [
        [1] * 11,
        [[1, 2]] * 4,
        {number: number for number in range(6)},
        np.array(["a"] * 11, object),
        np.array([1, "a"] * 6, object),
        [np.array(["a"] * 8, object), np.array(["a"] * 8, object)],
    ],
)
def test_what_is_encoded_one_by_one_is_bounded(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_value(value, [])
    monkeypatch.setattr(v, "LARGEST_ELEMENTWISE", 10)
    with pytest.raises(TypeError, match="10 Python objects"):
        encode_value(value, [])


def test_a_buffer_is_used_once() -> None:
    """Else some hundred bytes would stand for any number of arrays."""
    numbers = v.ArrayValue("<i8", (1,), (1,), False, 0)
    twice = v.TupleValue((numbers, numbers))
    with pytest.raises(RequestRefused) as refusal:
        decode_value(twice, [bytearray(8)])
    assert "used already" in str(refusal.value.__cause__)
    decoder = ValueDecoder([bytearray(8), bytearray()])
    decoder.decode(v.TextArrayValue((1,), 0, 1))
    with pytest.raises(RequestRefused):
        decoder.decode(numbers)


def test_values_of_one_message_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v, "LARGEST_ELEMENTWISE", 10)
    buffers = [bytearray(8 * 6), bytearray(), bytearray(8 * 6), bytearray()]
    decoder = ValueDecoder(buffers)
    decoder.decode(v.TextArrayValue((6,), 0, 1))
    with pytest.raises(RequestRefused) as refusal:
        decoder.decode(v.TextArrayValue((6,), 2, 3))
    assert "too large" in str(refusal.value.__cause__)


def test_texts_are_bounded_before_any_is_made() -> None:
    count = v.LARGEST_ELEMENTWISE + 1
    tree = v.TextArrayValue((count,), 0, 1)
    with pytest.raises(RequestRefused) as refusal:
        decode_value(tree, [bytearray(8 * count), bytearray()])
    assert "too large" in str(refusal.value.__cause__)
