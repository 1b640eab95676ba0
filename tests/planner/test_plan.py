"""Plans as a whole: what they compute is what Dask computes without them."""

import warnings
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

from tests.planner.conftest import LAYOUTS, Laid
from tests.planner.expressions import BATTERY


def as_arrays(result: Any) -> list[np.ndarray]:
    if isinstance(result, xr.Dataset):
        return [variable.to_numpy() for variable in result.values()]
    return [np.asarray(result)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BATTERY)
def test_the_result_is_that_of_plain_dask(layout: str, name: str) -> None:
    laid = LAYOUTS[layout]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expression = BATTERY[name](laid.floats, laid.integers)
        plain = BATTERY[name](laid.plain_floats, laid.plain_integers)
        (expected,) = dask.compute(plain, scheduler="sync")
    (computed,) = laid.federation.compute(expression)
    for ours, theirs in zip(as_arrays(computed), as_arrays(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)
        else:
            np.testing.assert_array_equal(ours, theirs)
