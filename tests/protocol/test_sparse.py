"""Sparse arrays of the package `sparse`: how they cross, and what may be made of them."""

from typing import Any

import numpy as np
import pytest

from federated_dask.errors import RequestRefused
from federated_dask.protocol.bounded import most_bytes
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import decode_value, encode_value

sparse = pytest.importorskip("sparse")


def crossed(array: Any) -> tuple[Any, int]:
    buffers: list = []
    tree = encode_value(array, buffers, operation_table())
    size = sum(memoryview(buffer).nbytes for buffer in buffers)
    return decode_value(tree, [bytearray(each) for each in buffers], operation_table()), size


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "u1", "c16", "?"])
@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 5), (0, 4), (10**6, 10**6)])
def test_crosses_with_what_is_stored_only(dtype: str, shape: tuple[int, ...]) -> None:
    nnz = 2 if all(shape) else 0
    coords = np.array([[0] * len(shape), [size - 1 for size in shape]]).T[:, :nnz]
    array = sparse.COO(coords, np.array([1, 1][:nnz], dtype), shape=shape)
    made, size = crossed(array)
    assert type(made) is sparse.COO
    assert size < 200
    assert (made.shape, made.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(made.coords, array.coords)
    np.testing.assert_array_equal(made.data, array.data)


def test_the_value_of_what_is_not_stored_crosses() -> None:
    made, _ = crossed(sparse.COO.from_numpy(np.array([1.5, 1.5, 2.0]), fill_value=1.5))
    assert made.fill_value == 1.5
    assert made.nnz == 1


GOOD: dict[str, Any] = {
    "coords": np.array([[0, 1], [2, 0]]),
    "data": np.array([1.0, 2.0]),
    "shape": (2, 3),
    "fill_value": np.float64(0),
}


@pytest.mark.parametrize(
    "forged",
    [
        {"coords": np.array([[0, 2], [2, 0]])},
        {"coords": np.array([[0, -1], [2, 0]])},
        {"coords": np.array([[1, 0], [0, 2]])},
        {"coords": np.array([[0, 0], [2, 2]])},
        {"coords": np.array([[0, 1]])},
        {"coords": np.array([[0.0, 1.0], [2.0, 0.0]])},
        {"coords": np.broadcast_to(np.int64(0), (2, 2))},
        {"data": np.broadcast_to(np.float64(1), (2,))},
        {"data": np.array(["a", "b"])},
        {"data": np.array([1.0, 2.0, 3.0])},
        {"shape": (2, -3)},
        {"shape": (2, 3.0)},
        {"shape": [2, 3]},
        {"shape": (2**40, 2**40)},
        {"shape": (), "coords": np.zeros((0, 2), int)},
        {"shape": (1,) * 1000, "coords": np.zeros((1000, 2), int)},
        {"fill_value": 0.0},
        {"fill_value": np.float32(0)},
    ],
    ids=lambda forged: " ".join(forged),
)
def test_forged_parts_are_refused(forged: dict[str, Any]) -> None:
    assert operation_table().from_fields("sparse.COO", dict(GOOD)).nnz == 2
    with pytest.raises(RequestRefused):
        operation_table().from_fields("sparse.COO", GOOD | forged)


HUGE = sparse.COO(np.array([[0], [0]]), np.array([1.0]), shape=(10**6, 10**6))
SMALL = sparse.random((40, 50), density=0.1)


def test_a_small_array_of_a_large_shape_is_not_written_out() -> None:
    for name in ("sparse.COO.todense", "numpy.sum", "numpy.add", "operator.mul"):
        assert most_bytes(name, (HUGE, 2), {}) >= 8 * 10**12
    assert most_bytes("operator.getitem", (HUGE, (None,) * 1000), {}) >= 2**63
    assert most_bytes("operator.getitem", (SMALL, [0] * 10**6), {}) >= 2**63
    row, column = sparse.random((1, 10**5)), sparse.random((10**5, 1))
    assert most_bytes("numpy.add", (row, column), {}) >= 8 * 10**10


def test_what_takes_no_more_may_be_done() -> None:
    dense = SMALL.todense()
    for name, args in {
        "sparse.COO.todense": (SMALL,),
        "numpy.sum": (SMALL,),
        "numpy.multiply": (SMALL, 2.0),
        "operator.getitem": (SMALL, (slice(0, 3), 2)),
    }.items():
        assert dense.nbytes <= most_bytes(name, args, {}) <= 20 * dense.nbytes


def test_the_class_stands_for_a_function_of_ours() -> None:
    table = operation_table()
    assert table.name_of(sparse.COO) == "sparse.COO"
    assert table.name_of(sparse.COO.todense) == "sparse.COO.todense"
    make = table.lookup("sparse.COO")
    np.testing.assert_array_equal(make(np.eye(3)).todense(), np.eye(3))
    for parts in ((np.array([[10**9]]), np.ones(1), (1,)), (SMALL,), ([1, 2],)):
        with pytest.raises(TypeError):
            make(*parts)
    with pytest.raises(TypeError):
        table.lookup("sparse.COO.todense")(np.eye(3))
