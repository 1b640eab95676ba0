"""`FederatedClient` over real sites: connecting, computing, persisting, looking around."""

import asyncio
import contextlib
import dataclasses
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import dask.bag
import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient, FederatedFuture
from federated_dask.client import current, loop
from federated_dask.client.held import HeldValue
from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    NotFound,
    Reason,
    SiteUnavailable,
)
from site_plugins import LocalFederation
from tests.client.sites import CountingProxy, Inside, assert_same, local, wait_until

SITES = ["north", "ocean", "south"]


class TestConnecting:
    def test_to_a_federation(self, federation: LocalFederation) -> None:
        with FederatedClient(federation) as fed:
            assert list(fed.sites) == SITES
            assert {site.status for site in fed.sites.values()} == {"ok"}

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_to_several_addresses(self, federation: LocalFederation, kind: type) -> None:
        addresses = kind(f"{each}/" for each in federation.addresses.values())
        with FederatedClient(addresses, token=federation.token, verify=federation.verify) as fed:
            assert list(fed.sites) == SITES

    def test_to_names_and_addresses(self, federation: LocalFederation) -> None:
        chosen = {name: federation.addresses[name] for name in ("north", "south")}
        with FederatedClient(chosen, token=federation.token, verify=federation.verify) as fed:
            # The ocean is a peer, for which tokens by name are not used.
            assert fed.sites["ocean"].status == "token_missing"
            assert "ocean/sst" not in fed.datasets
            assert "south/e1" in fed.datasets

    def test_peers_of_one_address(self, federation: LocalFederation) -> None:
        tokens = {f"{federation.addresses[name]}/": federation.token[name] for name in SITES}
        address = federation.addresses["north"]
        with FederatedClient(address, token=tokens, verify=federation.verify) as fed:
            assert list(fed.sites) == SITES
            assert {site.status for site in fed.sites.values()} == {"ok"}
            assert float(fed.open_dataset("south/made").wind.max()) > 10

    def test_one_token_for_all(self, federation: LocalFederation) -> None:
        address, token = federation.addresses["north"], federation.token["north"]
        with FederatedClient(address, token=token, verify=federation.verify) as fed:
            assert fed.sites["north"].status == "ok"
            # These sites have issuers of their own.
            assert fed.sites["south"].status == "token_invalid"
            with pytest.raises(NotAuthenticated) as error:
                fed.open_dataset("south/made")
            assert error.value.site == "south"

    def test_tokens_by_name_go_to_no_peer(self, federation: LocalFederation) -> None:
        address = federation.addresses["north"]
        with FederatedClient(address, token=federation.token, verify=federation.verify) as fed:
            assert fed.sites["north"].status == "ok"
            assert fed.sites["south"].status == fed.sites["ocean"].status == "token_missing"

    def test_refresh_sees_what_is_new_and_what_is_gone(self) -> None:
        small = xr.Dataset({"x": ("time", np.arange(4.0))})
        with LocalFederation({"north": {"datasets": {"a": small}}}) as federation:
            scheduler = Inside(federation, "north")

            def rename(dask_scheduler: Any) -> None:
                datasets = dask_scheduler.plugins["federated-site"].offers.datasets
                datasets["b"] = dataclasses.replace(datasets.pop("a"), name="b")

            with FederatedClient(federation, timeout=20) as fed:
                assert list(fed.datasets) == ["north/a"]
                scheduler.ask(rename)
                assert fed.refresh() is fed
                wait_until(lambda: list(fed.refresh().datasets) == ["north/b"], lambda: repr(fed))


class TestShowing:
    def test_client(self, fed: FederatedClient) -> None:
        assert repr(fed) == "<FederatedClient: 3 sites, 10 datasets>"
        html = fed._repr_html_()
        assert "Institute of the North &lt;&amp;&gt;" in html
        assert "A1B scenario &lt;b&gt;" in html
        assert "<b>Sites</b>" in html

    def test_sites(self, fed: FederatedClient) -> None:
        lines = repr(fed.sites).splitlines()
        assert lines[1].split() == ["site", "title", "workers", "threads", "memory", "status"]
        assert [line.split()[0] for line in lines[2:]] == SITES
        assert repr(fed.sites["north"]).endswith(": ok>")
        with pytest.raises(NotFound, match="Known sites: north, ocean, south") as error:
            fed.sites["west"]
        assert error.value.reason is Reason.UNKNOWN_SITE

    def test_datasets(self, fed: FederatedClient) -> None:
        assert "north/a1b" in repr(fed.datasets)
        assert list(fed.datasets.search("SCENARIO climate")) == ["north/a1b"]
        assert list(fed.datasets.search("same grid")) == ["south/e1"]
        assert list(fed.datasets.search("made")) == ["north/made", "south/made"]
        assert list(fed.datasets.search("nothing like it")) == []
        assert fed.datasets["north/secret"].egress.tier == "derived"
        with pytest.raises(NotFound):
            fed.datasets["a1b"]

    def test_explanation(self, fed: FederatedClient) -> None:
        x, y = (fed.open_dataset(f"{site}/made", chunks={}).wind for site in ("north", "south"))
        explanation = fed.explain([x.std(), x.mean() + y.mean()])
        text, html = repr(explanation), explanation._repr_html_()
        for part in ("north", "south", "home", "downloading the inputs instead", "Not at its data"):
            assert part in text
            assert part in html
        assert "1 × add: it needs data of north and south together" in text
        assert "&" not in text

    def test_run(self, fed: FederatedClient) -> None:
        assert fed.last_run is None
        fed.open_dataset("north/made", chunks={}).wind.mean().compute()
        run = fed.last_run
        assert run is not None
        assert [(link.start, link.end) for link in run.links] == [
            ("home", "north"),
            ("north", "home"),
        ]
        assert "crossed in" in repr(run)
        assert "<td>north</td>" in run._repr_html_()
        assert run.sites["north"].tasks > 0
        assert run.sites["north"].read_bytes == run.download_bytes == 20 * 6 * 8 * 8
        assert run.seconds > 0

    def test_future(self, fed: FederatedClient) -> None:
        future = fed.compute(fed.open_dataset("north/made").wind.mean())
        future.result()
        assert repr(future) == "<FederatedFuture: finished>"


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
        with FederatedClient(federation) as fed:
            lazy = fed.open_dataset("north/made", chunks={}).wind.mean("time")
        expected = local("north/made").wind.mean("time")
        for scheduler in (None, "threads", "sync"):
            assert_same(lazy.compute(scheduler=scheduler), expected, 1e-12)

    def test_other_processes(self, federation: LocalFederation) -> None:
        with FederatedClient(federation) as fed:
            lazy = fed.open_dataset("north/made", chunks={"time": -1}).wind.sum("time")
        found = lazy.compute(scheduler="processes", num_workers=1)
        assert_same(found, local("north/made").wind.sum("time"), 1e-12)

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


class TestBeingCurrent:
    def test_with_restores_what_was(self, federation: LocalFederation) -> None:
        with dask.config.set({"scheduler": "sync", "array.rechunk.method": "p2p"}):
            with FederatedClient(federation) as fed:
                assert dask.config.get("scheduler") != "sync"
                assert current.get_current() is fed
            assert dask.config.get("scheduler") == "sync"
            assert dask.config.get("array.rechunk.method") == "p2p"
        assert current.get_current() is None

    def test_not_before_it_is_asked_for(self, federation: LocalFederation) -> None:
        fed = FederatedClient(federation)
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
            x = FederatedClient(other).open_dataset("west/a", chunks={}).x
            for attempt in (x.compute, lambda: fed.explain(x), x.persist):
                with pytest.raises(NotFound, match=r"no site 'west'.*north, ocean, south") as error:
                    attempt()
                assert error.value.reason is Reason.UNKNOWN_SITE
            assert x.sum().compute(scheduler="sync") == 6


class TestAsynchronous:
    async def test_everything_is_awaited(self, federation: LocalFederation) -> None:
        plain = local("north/made")
        async with FederatedClient(federation, asynchronous=True) as fed:
            assert list(fed.sites) == SITES
            lazy = await fed.open_dataset("north/made", chunks={})
            assert_same(await fed.compute(lazy), plain)
            one, two = await asyncio.gather(*fed.compute([lazy.wind.max(), lazy.wind.min()]))
            assert (one, two) == (plain.wind.max(), plain.wind.min())
            assert await fed.compute([lazy.wind.max().data, 1], sync=True) == [plain.wind.max(), 1]
            persisted = await fed.persist(lazy.wind)
            assert_same(await fed.compute(persisted.sum(), sync=True), plain.wind.sum(), 1e-12)
            assert fed.explain(lazy).tasks["north"] > 0
            assert (await fed.refresh()) is fed
            # What Dask itself calls waits, as ever.
            assert_same(lazy.wind.mean().compute(), plain.wind.mean(), 1e-12)
            assert isinstance(lazy.wind.persist(), xr.DataArray)
        assert current.get_current() is None

    async def test_await_the_client(self, federation: LocalFederation) -> None:
        fed = await FederatedClient(federation, asynchronous=True)
        assert list(fed.sites) == SITES
        await fed.close()

    async def test_other_tasks_go_on_meanwhile(self, federation: LocalFederation) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        async with FederatedClient(federation, asynchronous=True) as fed:
            lazy = await fed.open_dataset("north/wide", chunks={})
            ticking = asyncio.create_task(tick())
            await fed.compute(lazy.x.std())
            ticking.cancel()
        assert ticks > 5

    async def test_cancelled_while_it_waits(self, federation: LocalFederation) -> None:
        async with FederatedClient(federation, asynchronous=True) as fed:
            lazy = await fed.open_dataset("north/wide", chunks={})
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await fed.compute((lazy.x * 3).std(), sync=True)
        await asyncio.to_thread(Inside(federation, "north").until_idle)

    async def test_errors(self, federation: LocalFederation) -> None:
        with pytest.raises(NotAuthenticated):
            async with FederatedClient(
                federation.addresses, token="x", verify=federation.verify, asynchronous=True
            ):
                pass
        fed = FederatedClient(federation, asynchronous=True)
        with pytest.raises(ConfigurationError, match="async with"), fed:
            pass

    async def test_synchronous_client_in_async_with(self, federation: LocalFederation) -> None:
        async with FederatedClient(federation) as fed:
            assert float(fed.open_dataset("north/made").wind.max().compute()) > 10
        assert current.get_current() is None


@pytest.fixture
def proxied(federation: LocalFederation) -> Iterator[dict[str, CountingProxy]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(CountingProxy(federation.addresses[name])) for name in SITES
        }


class TestWire:
    def client(
        self, federation: LocalFederation, proxied: dict[str, CountingProxy]
    ) -> FederatedClient:
        return FederatedClient(
            SimpleNamespace(
                addresses={name: proxy.address for name, proxy in proxied.items()},
                token=federation.token,
                verify=federation.verify,
            ),
            timeout=10,
        )

    @pytest.mark.parametrize("what", ["raw", "reduced", "two stages"])
    def test_last_run_counts_what_crossed(
        self, federation: LocalFederation, proxied: dict[str, CountingProxy], what: str
    ) -> None:
        with self.client(federation, proxied) as fed:
            x, y = (fed.open_dataset(f"{s}/wide", chunks={}).x for s in ("north", "south"))
            lazy = {
                "raw": x,
                "reduced": xr.concat([x, y], "model").std(("model", "time")),
                "two stages": ((x - (x.mean("time") + y.mean("time"))) ** 2).mean("time"),
            }[what]
            before = {name: (proxy.sent, proxy.received) for name, proxy in proxied.items()}
            lazy.compute()
            assert fed.last_run is not None
            counted = {(link.start, link.end): link.actual_bytes for link in fed.last_run.links}
        for name, proxy in proxied.items():
            sent, received = proxy.sent - before[name][0], proxy.received - before[name][1]
            for seen, own in (
                (sent, counted.get(("home", name), 0)),
                (received, counted.get((name, "home"), 0)),
            ):
                # Above what is counted: TLS records and handshake, HTTP headers and chunks.
                assert own <= seen <= own * 1.02 + 8_000
        assert counted["north", "home"] > 100_000

    def test_opening_is_one_round_trip(
        self, federation: LocalFederation, proxied: dict[str, CountingProxy]
    ) -> None:
        with self.client(federation, proxied) as fed:
            connection = fed.connection_of("north")
            sent = connection.counter.sent
            before = proxied["north"].sent
            fed.open_dataset("north/wide")
            # One GET: no body, one set of headers (and a new TLS handshake at most).
            assert connection.counter.sent == sent
            assert proxied["north"].sent - before < 3_000

    def test_no_token_goes_to_a_peer_by_name(self, federation: LocalFederation) -> None:
        with CountingProxy(federation.addresses["north"]) as proxy:
            fed = FederatedClient(
                {"north": proxy.address}, token=federation.token, verify=federation.verify
            )
            assert fed.sites["south"].status == "token_missing"
            fed.close()
