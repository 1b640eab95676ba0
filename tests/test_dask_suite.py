"""A part of dask's own array tests, each graph run at a site; `ci/dask-suite` runs all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "ci" / "dask_suite.py"
AT_LEAST = 98
CHOSEN = [
    "test_fft.py::test_fft2n_shapes",
    "test_linalg.py::test_svd_compressed_shapes",
    "test_masked.py::test_basic",
    "test_percentiles.py::test_percentile",
    "test_random.py::test_kwargs",
    "test_random.py::test_random_all",
    "test_rechunk.py::test_rechunk_2d",
    "test_reductions.py::test_moment",
    "test_reductions.py::test_weighted_reduction",
    "test_reshape.py::test_reshape_all_chunked_no_merge",
    "test_routines.py::test_bincount",
    "test_routines.py::test_coarsen",
    "test_routines.py::test_searchsorted",
    "test_routines.py::test_where",
    "test_slicing.py::test_slicing_consistent_names",
    "test_slicing.py::test_take",
    "test_ufunc.py::test_ufunc_where_",
    "test_ufunc.py::test_unary_ufunc",
    "test_wrap.py::test_full",
]


@pytest.mark.timeout(280)
def test_dasks_own_tests_pass_through_a_site(tmp_path):
    details = tmp_path / "details.json"
    chosen = tmp_path / "chosen"
    chosen.write_text("\n".join(CHOSEN))
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--chosen", str(chosen), "--json", str(details)],
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(details.read_text())
    assert found["percentage"] >= AT_LEAST, run.stdout
    assert not found["failed"], run.stdout
    # That nothing ran at home is worth something only where something ran at all.
    assert found["crossed"] >= 50
    assert found["tasks_sent"] >= 1_000
