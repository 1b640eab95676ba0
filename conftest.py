"""For the examples in docstrings: the federation that those of `FederatedClient` speak to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

MODULE = Path(__file__).parent / "federated_dask" / "client" / "federated_client.py"


@pytest.fixture(scope="module", autouse=True)
def names_in_examples(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]
) -> Iterator[None]:
    """Give the examples of that module what they use beside what they make: a client, `fed`."""
    if request.path != MODULE:
        yield
        return
    # Other tests are not to wait for these imports.
    from federated_dask import FederatedClient
    from site_plugins import LocalFederation

    time = pd.date_range("2070-01-01", periods=24, freq="MS")
    latitude = np.linspace(-75, 75, 6)
    values = np.add.outer(np.zeros(24), 290.0 - np.abs(latitude) / 18)
    air = xr.Dataset(
        {"air_temperature": (("time", "latitude"), values)},
        coords={"time": time, "latitude": latitude},
    )
    functions = {"modules": ["site_plugins.examples"]}
    described = {
        "north": {"datasets": {"a1b": air.chunk(time=12)}, "functions": functions},
        "south": {"datasets": {"e1": (air - 1).chunk(time=12)}},
    }
    with LocalFederation(described) as sites:
        # Not as Dask's scheduler, by which other examples would compute.
        fed = FederatedClient(sites, set_as_default=False)
        doctest_namespace["fed"] = fed
        yield
        del doctest_namespace["fed"]
        fed.close()
