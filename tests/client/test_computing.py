"""Computing and persisting over real sites."""

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import dask
import dask.array as da
import dask.bag
import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient, FederatedFuture
from federated_dask.client import loop
from federated_dask.client.held import HeldValue
from federated_dask.errors import (
    ConfigurationError,
    NotFound,
    Reason,
    SiteUnavailable,
)
from site_plugins import LocalFederation
from tests.client.sites import SITES, Inside, assert_same, local


class TestComputing:
    def test_compute_and_load(self, fed: FederatedClient) -> None:
        lazy = fed.open_dataset("north/made", chunks={})
        assert_same(lazy.compute(), local("north/made"))
        wind = lazy.wind
        assert wind.chunks is not None
        assert wind.load() is wind
        assert wind.chunks is None

    def test_several_at_once(self, fed: FederatedClient) -> None:
        x, y = (fed.open_dataset(f"{s}/made", chunks={}).wind for s in ("north", "south"))
        plain = [local(f"{s}/made").wind for s in ("north", "south")]
        first, (second, third), text = dask.compute(
            x.mean("time"), [y.max("time"), {"k": x.sum().data}], "text"
        )
        assert_same(first, plain[0].mean("time"), 1e-12)
        assert_same(second, plain[1].max("time"))
        np.testing.assert_allclose(third["k"], plain[0].sum())
        assert text == "text"

    def test_in_the_background(self, fed: FederatedClient) -> None:
        dataset = fed.open_dataset("north/made", chunks={})
        future = fed.compute(dataset)
        assert isinstance(future, FederatedFuture)
        done = threading.Event()
        future.add_done_callback(lambda each: done.set())
        assert_same(future.result(120), local("north/made"))
        assert done.wait(5)
        assert future.done()
        assert future.status == "finished"
        assert future.exception() is None

    def test_shapes_of_what_is_given(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/made", chunks={}).wind
        expected = float(local("north/made").wind.mean())
        [future] = fed.compute([x.mean()])
        assert float(future.result()) == pytest.approx(expected)
        pair = fed.compute((x.mean().data, 5), sync=True)
        assert pair == (pytest.approx(expected), 5)
        assert isinstance(pair, tuple)
        assert isinstance(fed.compute(x.data.mean(), sync=True), np.floating)

    def test_what_is_no_collection_is_its_own_result(self, fed: FederatedClient) -> None:
        assert fed.compute(5, sync=True) == 5
        assert fed.compute([], sync=True) == []
        assert fed.persist("text") == "text"
        with pytest.raises(ConfigurationError, match="nothing to compute"):
            fed.explain(5)

    @pytest.mark.parametrize("how", ["get", "compute", "sync", "persist", "client"])
    def test_time_limits(self, federation: LocalFederation, how: str) -> None:
        limit = 1e-4
        options = {"compute_timeout": limit} if how == "client" else {}
        with FederatedClient(federation, **options) as fed:
            x = fed.open_dataset("north/made", chunks={}).wind.mean()
            compute: dict[str, Callable[[], Any]] = {
                "get": lambda: x.compute(timeout=limit),
                "compute": lambda: fed.compute(x, timeout=limit).result(),
                "sync": lambda: fed.compute(x, timeout=limit, sync=True),
                "persist": lambda: fed.persist(x, timeout=limit),
                "client": x.compute,
            }
            with pytest.raises(SiteUnavailable, match="did not end within 0") as error:
                compute[how]()
            assert error.value.reason is Reason.TIMED_OUT
            assert "timeout=" in str(error.value)
        Inside(federation, "north").until_idle()

    def test_waiting_is_not_computing(self, fed: FederatedClient) -> None:
        with LocalFederation({"slow": {"datasets": {}}}):
            future = fed.compute(fed.open_dataset("north/wide", chunks={}).x.std())
            with pytest.raises(SiteUnavailable) as error:
                future.result(0)
            assert error.value.reason is Reason.TIMED_OUT
            assert float(future.result(120)) > 0

    def test_cancelling(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/wide", chunks={}).x
        first, second = fed.compute([x.std(), x.mean()])
        first.cancel()
        assert first.status == "cancelled"
        with pytest.raises(CancelledError):
            first.result()
        assert float(second.result(120)) == pytest.approx(float(local("north/wide").x.mean()))
        both = fed.compute([(x + 1).std(), (x + 1).mean()])
        for future in both:
            future.cancel()
        assert {future.status for future in both} == {"cancelled"}
        Inside(fed.federation, "north").until_idle()

    def test_kinds_of_schedulers_outside(self, federation: LocalFederation) -> None:
        fed = FederatedClient(federation, set_as_default=False)
        lazy = fed.open_dataset("north/made", chunks={}).wind.mean("time")
        expected = local("north/made").wind.mean("time")
        for scheduler in (None, "threads", "sync"):
            assert_same(lazy.compute(scheduler=scheduler), expected, 1e-12)
        fed.close()

    def test_a_closed_client_downloads_nothing(self, federation: LocalFederation) -> None:
        with FederatedClient(federation) as fed:
            lazy = fed.open_dataset("north/made", chunks={}).wind.mean("time")
        uses: tuple[Callable[[], Any], ...] = (
            lazy.compute,
            lambda: lazy.compute(scheduler="threads"),
            lambda: fed.open_dataset("north/made"),
            lambda: fed.compute(lazy, sync=True),
        )
        for use in uses:
            with pytest.raises(ConfigurationError, match="is closed") as error:
                use()
            assert error.value.site == "north"
            assert "new FederatedClient" in str(error.value.hint)
        with fed:
            assert_same(lazy.compute(), local("north/made").wind.mean("time"), 1e-12)
            assert fed.last_run is not None

    def test_other_processes(self, federation: LocalFederation) -> None:
        fed = FederatedClient(federation, set_as_default=False)
        lazy = fed.open_dataset("north/made", chunks={"time": -1}).wind.sum("time")
        found = lazy.compute(scheduler="processes", num_workers=1)
        assert_same(found, local("north/made").wind.sum("time"), 1e-12)
        fed.close()

    def test_what_has_no_site_data_runs_here(
        self, fed: FederatedClient, federation: LocalFederation
    ) -> None:
        for site in SITES:
            Inside(federation, site).until_idle()
        before = [Inside(federation, site).transitions() for site in SITES]
        assert da.arange(10, chunks=3).sum().compute() == 45
        assert dask.delayed(sum)([1, 2, 3]).compute() == 6
        assert dask.bag.range(10, npartitions=2).map(lambda x: x + 1).sum().compute() == 55
        assert fed.compute(da.ones(10, chunks=5).sum(), sync=True) == 10
        assert dask.compute(dask.delayed(lambda: threading.current_thread().name)())[0]
        plain = local("south/made", {"time": 5}).wind.mean("time")
        assert_same(plain.compute(), plain.compute(scheduler="sync"))
        persisted = fed.persist(da.ones(10, chunks=5) + 1)
        assert persisted.sum().compute() == 20
        assert fed.last_run is None
        assert [Inside(federation, site).transitions() for site in SITES] == before

    def test_dataframes(self, fed: FederatedClient) -> None:
        pytest.importorskip("dask.dataframe")
        column = fed.open_dataset("north/made", chunks={}).wind[:, 0, 0].reset_coords(drop=True)
        frame = column.to_dataset().to_dask_dataframe()
        assert float(frame.wind.sum().compute()) == pytest.approx(
            float(local("north/made").wind[:, 0, 0].sum())
        )

    def test_delayed_of_site_data(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/made", chunks={}).wind.mean("time")
        total = dask.delayed(lambda array: float(array.sum()))(x).compute()
        assert total == pytest.approx(float(local("north/made").wind.mean("time").sum()))

    def test_explain_runs_nothing(self, fed: FederatedClient, federation: LocalFederation) -> None:
        x, y = (
            fed.open_dataset(f"{s}/made", chunks={}, drop_variables="constant")
            for s in ("north", "south")
        )
        for site in SITES:
            Inside(federation, site).until_idle()
        before = [Inside(federation, site).transitions() for site in SITES]
        explanation = fed.explain([x, x.wind.mean("time") + y.wind.mean("time").data])
        assert explanation.tasks["north"] > 0
        assert explanation.read_bytes["south"] == y.wind.nbytes
        assert [Inside(federation, site).transitions() for site in SITES] == before
        assert fed.last_run is None

    def test_from_several_threads(self, fed: FederatedClient) -> None:
        names = ["north/made", "south/made"]
        lazy = [fed.open_dataset(name, chunks={}).wind for name in names]
        plain = [local(name).wind for name in names]

        def work(i: int) -> None:
            assert_same(
                (lazy[i % 2] + i).mean("time").compute(), (plain[i % 2] + i).mean("time"), 1e-12
            )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(24)))

    def test_inside_a_running_event_loop(self, federation: LocalFederation) -> None:
        async def cell() -> xr.DataArray:
            with FederatedClient(federation) as fed:
                return fed.open_dataset("north/made", chunks={}).wind.mean("time").compute()

        assert_same(asyncio.run(cell()), local("north/made").wind.mean("time"), 1e-12)

    def test_not_from_the_background_loop(self, fed: FederatedClient) -> None:
        async def callback() -> Any:
            return fed.open_dataset("north/made")

        with pytest.raises(RuntimeError, match="would wait for itself"):
            loop.sync(callback())


class TestPersisting:
    def test_stays_at_the_site(self, fed: FederatedClient, federation: LocalFederation) -> None:
        north = Inside(federation, "north")
        north.until_idle()
        x = fed.open_dataset("north/made", chunks={}).wind
        persisted = (x * 2).persist()
        assert isinstance(persisted.data, da.Array)
        assert len(north.leases()) == 1
        assert fed.last_run is not None
        assert fed.last_run.crossed_bytes < x.nbytes / 2
        plain = local("north/made").wind * 2

        again = (persisted - persisted.mean()).persist()
        del persisted
        gc.collect()
        north.until(lambda: len(north.leases()) == 1, "the first lease is released")
        assert_same(again.std("time").compute(), (plain - plain.mean()).std("time"), 1e-10)
        assert fed.last_run.sites["north"].read_bytes == 0

        for scheduler in (None, "threads", "sync"):
            assert_same(again.compute(scheduler=scheduler), plain - plain.mean(), 1e-10, 1e-12)
        del again
        gc.collect()
        north.until_idle()

    def test_with_other_sites_and_numbers_of_ones_own(self, fed: FederatedClient) -> None:
        x, y = (fed.open_dataset(f"{s}/made", chunks={}).wind for s in ("north", "south"))
        plain = [local(f"{s}/made").wind for s in ("north", "south")]
        both = fed.persist([x.mean("time"), y.mean("time")])
        assert isinstance(both, list)
        own = np.arange(8.0)
        found = (both[0] * own + both[1].assign_coords(lon=x.lon)).compute()
        expected = plain[0].mean("time") * own + plain[1].mean("time").assign_coords(lon=x.lon)
        assert_same(found, expected, 1e-12)

    def test_dataset(self, fed: FederatedClient) -> None:
        lazy, plain = fed.open_dataset("north/made", chunks={}), local("north/made")
        persisted = lazy.persist()
        assert isinstance(persisted, xr.Dataset)
        assert_same(persisted.compute(), plain)
        held = [
            each
            for node in dict(persisted.wind.data.dask).values()
            for each in getattr(node, "args", ())
            if isinstance(each, HeldValue)
        ]
        assert len(held) == 4
        assert "north" in repr(held[0])
        assert_same(fed.compute(persisted.wind.max(), sync=True), plain.wind.max())

    def test_a_result_that_repeats_itself_comes_again(self, fed: FederatedClient) -> None:
        # Compressed it is small, which is what the client learns of it.
        row = fed.open_dataset("north/wide", chunks={}).x.isel(time=0, y=0).expand_dims(t=100_000)
        persisted = row.persist()
        for _ in range(2):
            assert persisted.compute().shape == row.shape

    def test_where_sites_meet(self, fed: FederatedClient) -> None:
        x, y = (fed.open_dataset(f"{s}/made", chunks={}).wind for s in ("north", "south"))
        mixed, own = dask.persist(x.mean("time").data + y.mean("time").data, da.ones(3, chunks=1))
        plain = [local(f"{s}/made").wind.mean("time").values for s in ("north", "south")]
        np.testing.assert_allclose(mixed.compute(scheduler="sync"), plain[0] + plain[1])
        assert own.sum().compute() == 3

    def test_after_the_client_was_closed(self, federation: LocalFederation) -> None:
        with FederatedClient(federation) as fed:
            persisted = fed.open_dataset("north/made", chunks={}).wind.mean("time").persist()
        assert_same(persisted.compute(), local("north/made").wind.mean("time"), 1e-12)

    def test_a_lease_that_ended(self, fed: FederatedClient, federation: LocalFederation) -> None:
        persisted = fed.open_dataset("north/made", chunks={}).wind.persist()
        north = Inside(federation, "north")
        north.ask(
            lambda dask_scheduler: dask_scheduler.plugins["federated-site"].federated_release_all()
        )
        for attempt in (persisted.compute, lambda: persisted.compute(scheduler="sync")):
            with pytest.raises(NotFound, match=r"persist\(\) the expression again") as error:
                attempt()
            assert error.value.reason is Reason.UNKNOWN_RESULT
            assert error.value.site == "north"
