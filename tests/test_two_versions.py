"""A federation whose sites have libraries more than half a year apart."""

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.demo.data import DATASETS, open_local, prepare
from federated_dask.demo.queries import QUERIES, Inputs
from federated_dask.demo.sites import running_sites

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OLDER = (
    "dask[array]==2026.1.*",
    "distributed==2026.1.*",
    "xarray==2025.12.*",
    "numpy==2.3.*",
    "zarr==3.1.*",
)
PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def older() -> str:
    """Interpreter of an environment with the older libraries, kept from run to run."""
    needs = ((PROJECT / "pyproject.toml").read_text(), sys.version, *OLDER)
    digest = hashlib.sha256("\n".join(needs).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "federated-dask-tests" / f"older-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, f"{PROJECT}[site]", *OLDER], check=False)
        if done.returncode:
            pytest.skip("the older libraries cannot be installed here")
        (folder / "complete").touch()
    return str(python)


@pytest.fixture(scope="module")
def fed(older: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederatedClient]:
    folder = tmp_path_factory.mktemp("two-versions")
    datasets = [(dataset, prepare(dataset, folder / "data")) for dataset in DATASETS]
    with pytest.MonkeyPatch.context() as patch:
        # The code under test is that of this tree; what was installed gives the commands.
        patch.setenv("PYTHONPATH", str(PROJECT))
        with (
            running_sites(folder, datasets, lambda _: None, interpreters={"north": older}) as sites,
            FederatedClient(sites) as client,
        ):
            yield client


def opened(fed: FederatedClient) -> Inputs:
    return Inputs.of(*(fed.open_dataset(dataset.qualified_name) for dataset in DATASETS))


def test_the_sites_differ(fed: FederatedClient) -> None:
    versions = {name: fed.sites[name].description.versions for name in ("north", "south")}
    for library in ("dask", "distributed", "xarray", "numpy"):
        assert versions["north"][library] != versions["south"][library]
    assert fed.sites["north"].operations < fed.sites["south"].operations


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_the_queries_of_the_demo(fed: FederatedClient, query: object) -> None:
    computed = query.expression(opened(fed)).compute()
    expected = query.expression(Inputs.of(*(open_local(dataset) for dataset in DATASETS)))
    xr.testing.assert_allclose(computed, expected.compute(), rtol=1e-5)


def test_what_the_older_site_lacks_runs_elsewhere(fed: FederatedClient) -> None:
    lacking = fed.sites["south"].operations - fed.sites["north"].operations
    assert "dask.array.reductions._custom_nanquantile" in lacking
    data = opened(fed).a1b.chunk(latitude=10, time=-1)
    median = data.quantile([0.25, 0.5], "time", skipna=True)
    explained = repr(fed.explain(median))
    assert "Not at its data" in explained
    assert "_custom_nanquantile" in explained
    expected = open_local(DATASETS[0]).air_temperature.compute().quantile([0.25, 0.5], "time")
    np.testing.assert_allclose(median.compute(), expected, rtol=1e-5)
