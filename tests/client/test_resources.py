"""`dask.annotate(resources=…)` through real sites."""

from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.errors import Reason, RequestRefused
from site_plugins import LocalFederation


def data() -> xr.Dataset:
    return xr.Dataset({"x": (("time", "y"), np.arange(48.0).reshape(12, 4))}).chunk(time=4)


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    sites: dict[str, Any] = {
        "plain": {"datasets": {"d": data()}},
        "gpu": {"datasets": {"e": data()}, "cluster": {"resources": {"GPU": 1}}},
    }
    with LocalFederation(sites) as made:
        yield made


def asking(x: xr.DataArray, **resources: float) -> xr.DataArray:
    with dask.annotate(resources=resources):
        return x * 2 + 1


def test_tasks_run_on_workers_that_have_what_they_ask_for(federation: LocalFederation) -> None:
    with FederatedClient(federation) as fed:
        assert fed.sites["gpu"].description.resources == {"GPU": 1}
        x = fed.open_dataset("plain/d", chunks={}).x
        y = fed.open_dataset("gpu/e", chunks={}).x
        expression = (asking(x + 1, GPU=1) + y).sum("time")
        expected = ((data().x + 1) * 2 + 1 + data().x).sum("time").compute(scheduler="sync")
        xr.testing.assert_allclose(expression.compute(), expected)
        assert fed.last_run is not None
        # What asks for a GPU was brought to the site that has one.
        sizes = {(link.start, link.end): link.actual_bytes for link in fed.last_run.links}
        assert sizes["plain", "gpu"] > 0 or sizes["home", "gpu"] > x.nbytes


def test_what_no_site_has_is_said_before_the_run(federation: LocalFederation) -> None:
    with FederatedClient(federation) as fed:
        x = fed.open_dataset("gpu/e", chunks={}).x
        text = repr(fed.explain(asking(x + 1, TPU=1)))
        assert "no site has as much TPU as it asks for" in text


def test_a_site_refuses_what_none_of_its_workers_has(
    federation: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FederatedClient(federation) as fed:
        x = fed.open_dataset("plain/d", chunks={}).x
        # As if the site had lost it since it was asked.
        announced = fed._federation.facts
        for site, facts in list(announced.items()):
            announced[site] = type(facts)(
                facts.name, facts.operations, facts.peers, {"GPU": 1.0} if site == "plain" else {}
            )
        with pytest.raises(RequestRefused, match="asks for GPU") as error:
            asking(x + 1, GPU=1).sum().compute()
        assert error.value.reason is Reason.LIMIT_EXCEEDED
        assert error.value.site == "plain"


def test_keys_with_and_without_resources_differ(federation: LocalFederation) -> None:
    with FederatedClient(federation) as fed:
        y = fed.open_dataset("gpu/e", chunks={}).x
        plain, asked = (y * 3).sum(), asking(y * 3, GPU=1).sum()
        xr.testing.assert_allclose(plain.compute() * 2 + 48, asked.compute())
