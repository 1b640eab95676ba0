"""What is read of a variable, as indexes."""

import numpy as np
import pytest

from federated_dask.client.indexes import expand, split_index


class TestIndexes:
    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            (..., (3, 4, 2)),
            (-1, (4, 2)),
            ((slice(None, None, -1), ..., 0), (3, 4)),
            (([0, -1], slice(1, 3)), (2, 2, 2)),
            ((np.array([True, False, True]),), (2, 4, 2)),
            ((slice(2, 0), []), (0, 0, 2)),
            ((np.uint8(2), np.int16(3), 1), ()),
        ],
    )
    def test_expand_selects_what_numpy_does(self, key, shape) -> None:
        array = np.arange(24).reshape(3, 4, 2)
        index, found = expand(key, array.shape)
        assert found == shape
        expected = array
        entries = key if isinstance(key, tuple) else (key,)
        if sum(isinstance(entry, list | np.ndarray) for entry in entries) < 2:
            expected = array[key if not isinstance(key, list) else (key,)] if shape else array[key]
            np.testing.assert_array_equal(array[index], expected)

    @pytest.mark.parametrize(
        "key", [3, -4, (0, 0, 0, 0), (..., ...), None, True, 1.5, "a", ([0.5],), ([3],), ([[0]],)]
    )
    def test_expand_refuses(self, key) -> None:
        with pytest.raises(IndexError):
            expand(key, (3, 4, 2))

    def test_nothing_to_split(self) -> None:
        assert split_index((slice(None), 0, np.arange(10))) is None
