"""Leaves that are nearly alike have different digests, else one would get another's results."""

import itertools

import cftime
import numpy as np
import pandas as pd

from federated_dask.planner.digests import _of_leaf
from federated_dask.planner.sources import HeldReference, SourceReference
from tests.planner.federation import TABLE


def leaves():
    a = np.arange(6.0)
    nan2 = np.array([0x7FF8000000000001], "u8").view("f8")
    yield from [
        0,
        False,
        0.0,
        -0.0,
        0j,
        None,
        "",
        b"",
        (),
        [],
        {},
        "0",
        (0,),
        [0],
        (False,),
        (0.0,),
        2**63,
        -(2**63),
        2**70,
    ]
    yield from [
        np.float64(0),
        np.float32(0),
        np.int64(0),
        np.int32(0),
        np.bool_(False),
        np.float64(-0.0),
        np.datetime64(0, "s"),
        np.datetime64(0, "ns"),
        np.timedelta64(0, "s"),
        np.datetime64("NaT", "s"),
        np.str_(""),
        np.bytes_(b""),
    ]
    yield from [
        a,
        a.reshape(2, 3),
        a.reshape(3, 2),
        a.reshape(6, 1),
        a.astype("f4"),
        a.astype(">f8"),
        a.astype("i8"),
        a.view("i8"),
        a.view("M8[s]"),
        a.view("M8[ms]"),
        a.view("m8[s]"),
        a.view("V8"),
        a.view("c16"),
        a.reshape(1, 6),
        a[:5],
        -a,
    ]
    yield from [
        np.full(6, 1.0),
        np.broadcast_to(1.0, 6),
        np.broadcast_to(1.0, (6, 1)),
        np.broadcast_to(1.0, (2, 3)),
        np.zeros(0),
        np.zeros((0, 1)),
        np.zeros((1, 0)),
        np.zeros(0, "f4"),
        np.array([np.nan]),
        nan2,
        np.array([-0.0]),
        np.array([0.0]),
    ]
    yield from [
        np.ma.masked_array(a, mask=a > 2),
        np.ma.masked_array(a, mask=a > 3),
        np.ma.masked_array(a, mask=a > 2, fill_value=0),
        np.ma.masked_array(a),
        np.ma.masked,
    ]
    yield from [
        np.array(["a", "bc"], object),
        np.array(["ab", "c"], object),
        np.array(["ab", None], object),
        np.array(["ab", np.nan], object),
        np.array(["a", "bc"]),
        np.array(["a", "bc"], "U3"),
        np.array([b"a", b"bc"]),
        np.array([1, "a"], object),
        np.array([1.0, "a"], object),
        np.array([True, "a"], object),
        np.array([[1], ["a"]], object),
    ]
    yield from [
        np.zeros(2, [("a", "f4"), ("b", "f4")]),
        np.zeros(2, [("b", "f4"), ("a", "f4")]),
        np.zeros(2, [("a", "f8")]),
        np.zeros(2, np.dtype([("a", "i1"), ("b", "f4")], align=True)),
        np.zeros(2, [("a", "f4", (2,))]),
    ]
    yield from [
        pd.RangeIndex(3),
        pd.RangeIndex(0, 3, 1, name="x"),
        pd.Index([0, 1, 2]),
        pd.Index([0.0, 1, 2]),
        pd.Index(["a"]),
        pd.Index(["a"], dtype=object),
        pd.RangeIndex(0, 4, 2),
        pd.RangeIndex(0, 3, 2),
    ]
    d = pd.date_range("2000", periods=3)
    yield from [
        d,
        pd.DatetimeIndex(d.to_numpy()),
        d.as_unit("s"),
        d[:2],
        pd.date_range("2000", periods=3, freq="h"),
    ]
    yield from [
        slice(0, 1),
        slice(0, 1, 1),
        slice(None, 1),
        (0, 1),
        (0, 1, None),
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        {"a": (1, "b")},
        [1, [2, 3]],
        [[1, 2], 3],
        [1, 2, 3],
        (1, 2, 3),
    ]
    yield from [
        cftime.DatetimeNoLeap(2000, 1, 1),
        cftime.Datetime360Day(2000, 1, 1),
        cftime.DatetimeGregorian(2000, 1, 1),
        cftime.DatetimeProlepticGregorian(2000, 1, 1),
    ]
    yield from [
        np.random.SeedSequence(1),
        np.random.SeedSequence([1]),
        np.random.SeedSequence(1, spawn_key=(0,)),
        np.random.SeedSequence(2),
    ]
    yield from [np.add, np.subtract, np.dtype("f8"), np.dtype("f4"), np.dtype(">f8")]
    for parts in itertools.product(("s", "t"), ("d", "e"), ("v", "w"), ("x", "y")):
        yield SourceReference(*parts)
    yield SourceReference("sd", "", "v", "x")
    yield SourceReference("s", "dv", "", "x")
    for parts in itertools.product(("s", "t"), ("l", "m"), (0, 1)):
        yield HeldReference(*parts)


def test_no_two_leaves_are_taken_for_one_another():
    seen = {}
    for leaf in leaves():
        digest = _of_leaf(leaf, TABLE)
        assert digest not in seen, (leaf, seen[digest])
        seen[digest] = leaf
    assert len(seen) > 130
