"""Which client is Dask's scheduler, and what was before it."""

import dask
import dask.bag
import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.client import current
from federated_dask.errors import (
    NotFound,
    Reason,
)
from site_plugins import LocalFederation
from tests.client.sites import assert_same, local


class TestBeingCurrent:
    def test_with_restores_what_was(self, federation: LocalFederation) -> None:
        with dask.config.set({"scheduler": "sync", "array.rechunk.method": "p2p"}):
            with FederatedClient(federation) as fed:
                assert dask.config.get("scheduler") != "sync"
                assert current.get_current() is fed
            assert dask.config.get("scheduler") == "sync"
            assert dask.config.get("array.rechunk.method") == "p2p"
        assert current.get_current() is None

    def test_from_the_start(self, federation: LocalFederation) -> None:
        fed = FederatedClient(federation)
        try:
            assert current.get_current() is fed
            fed.open_dataset("north/made", chunks={}).wind.mean().compute()
            assert fed.last_run is not None
        finally:
            fed.close()
        assert dask.config.get("scheduler", None) is None

    def test_not_before_it_is_asked_for(self, federation: LocalFederation) -> None:
        fed = FederatedClient(federation, set_as_default=False)
        assert current.get_current() is None
        fed.open_dataset("north/made", chunks={}).wind.mean().compute()
        assert fed.last_run is None
        assert fed.as_current() is fed
        fed.open_dataset("north/made", chunks={}).wind.mean().compute()
        assert fed.last_run is not None
        fed.close()
        fed.close()
        assert dask.config.get("scheduler", None) is None

    def test_nested(self, federation: LocalFederation) -> None:
        with FederatedClient(federation) as outer:
            x = outer.open_dataset("north/made", chunks={}).wind.mean()
            with FederatedClient(federation) as inner:
                assert current.get_current() is inner
                x.compute()
                assert outer.last_run is None
                assert inner.last_run is not None
                with dask.config.set(scheduler="sync"):
                    pass
            assert current.get_current() is outer
            x.compute()
            assert outer.last_run is not None

    def test_closed_in_any_order(self, federation: LocalFederation) -> None:
        first, second = (FederatedClient(federation).as_current() for _ in range(2))
        first.close()
        assert current.get_current() is second
        second.open_dataset("north/made", chunks={}).wind.mean().compute()
        assert second.last_run is not None
        second.close()
        assert dask.config.get("scheduler", None) is None
        assert current.get_current() is None

    def test_taking_over_again(self, federation: LocalFederation) -> None:
        first, second = (FederatedClient(federation).as_current() for _ in range(2))
        first.as_current()
        assert current.get_current() is first
        first.close()
        assert current.get_current() is second
        second.close()
        assert dask.config.get("scheduler", None) is None

    def test_xarray_opens_by_the_current_client(self, fed: FederatedClient) -> None:
        lazy = xr.open_dataset("fed://north/made", engine="federated", chunks={})
        assert_same(lazy.wind.mean().compute(), local("north/made").wind.mean(), 1e-12)
        assert fed.last_run is not None

    def test_data_of_a_site_that_the_client_does_not_know(
        self, federation: LocalFederation, fed: FederatedClient
    ) -> None:
        small = xr.Dataset({"x": ("time", np.arange(4.0))}).chunk()
        with LocalFederation({"west": {"datasets": {"a": small}}}) as other:
            client = FederatedClient(other, set_as_default=False)
            x = client.open_dataset("west/a", chunks={}).x
            for attempt in (x.compute, lambda: fed.explain(x), x.persist):
                with pytest.raises(NotFound, match=r"no site 'west'.*north, ocean, south") as error:
                    attempt()
                assert error.value.reason is Reason.UNKNOWN_SITE
            assert x.sum().compute(scheduler="sync") == 6
