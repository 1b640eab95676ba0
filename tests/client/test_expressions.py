"""Expressions over one site and several: equal to plain xarray, and only partials cross."""

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.errors import NotPermitted, Reason
from site_plugins import LocalFederation
from tests.client.sites import Inside, assert_same, local

Function = Callable[..., Any]

OVERHEAD = 2500
"""Bytes of a job's message and events beside its results."""

REDUCTIONS: dict[str, Function] = {
    "sum": lambda x: x.sum("time"),
    "sum with gaps": lambda x: x.sum("time", skipna=False),
    "mean": lambda x: x.mean("time"),
    "mean with gaps": lambda x: x.mean("time", skipna=False),
    "mean of all": lambda x: x.mean(),
    "mean keeping attributes": lambda x: x.mean("time", keep_attrs=True),
    "min": lambda x: x.min("time"),
    "max": lambda x: x.max("time"),
    "max with gaps": lambda x: x.max("time", skipna=False),
    "max of two dimensions": lambda x: x.max(("time", "lon")),
    "prod": lambda x: (x * 0.1).prod("time"),
    "var": lambda x: x.var("time"),
    "std": lambda x: x.std("time", ddof=1),
    "std with gaps": lambda x: x.std("time", skipna=False),
    "count": lambda x: x.count("time"),
    "any": lambda x: (x > 14).any("time"),
    "all": lambda x: (x > 3).all("time"),
    "argmin": lambda x: x.fillna(5).argmin("time"),
    "argmax": lambda x: x.fillna(5).argmax("time"),
    "argmax, skipping gaps": lambda x: x.fillna(5).argmax("time", skipna=True),
    "time of the maximum": lambda x: x.fillna(5).idxmax("time"),
    "weighted mean": lambda x: x.weighted(np.cos(np.deg2rad(x.lat))).mean(("lat", "lon")),
    "weighted mean over time": lambda x: x.weighted(np.cos(np.deg2rad(x.lat))).mean(
        ("lat", "time")
    ),
    "monthly mean": lambda x: x.groupby("time.month").mean(),
    "monthly max": lambda x: x.groupby("time.month").max(),
    "monthly count": lambda x: x.groupby("time.month").count(),
    "first of month": lambda x: x.groupby("time.month").first(),
    "daily sum": lambda x: x.groupby("time.dayofweek").sum(),
    "daily std": lambda x: x.groupby("time.dayofweek").std(),
    "mean per zone": lambda x: x.groupby_bins("lat", [-60, 0, 60]).mean(),
    "anomaly": lambda x: (x.groupby("time.month") - x.groupby("time.month").mean()).std("time"),
    "five days": lambda x: x.resample(time="5D").mean(),
    "correlation": lambda x: xr.corr(x, x * 2 + 1, "time"),
    "dot": lambda x: xr.dot(x.fillna(0), x.fillna(1), dim="time"),
}

COMBINATIONS: dict[str, Function] = {
    "one site": lambda a, b: a,
    "along time": lambda a, b: xr.concat([a.assign_coords(lon=b.lon), b], "time"),
    "side by side": lambda a, b: xr.concat([a.assign_coords(time=b.time), b], "lon"),
    "along a new dimension": lambda a, b: xr.concat(
        [a.assign_coords(time=b.time, lon=b.lon), b], "model"
    ),
}


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_reductions_equal_plain_xarray(fed: FederatedClient, combination: str) -> None:
    combine = COMBINATIONS[combination]
    lazy = [fed.open_dataset(f"{site}/made", chunks={}).wind for site in ("north", "south")]
    plain = [local(f"{site}/made").wind for site in ("north", "south")]
    for name, reduction in REDUCTIONS.items():
        try:
            assert_same(reduction(combine(*lazy)).compute(), reduction(combine(*plain)), 1e-10)
        except AssertionError as error:
            raise AssertionError(f"{name}, {combination}: {error}") from error


@pytest.mark.parametrize("variable", ["height", "count", "wet"])
def test_reductions_keep_dtypes(fed: FederatedClient, variable: str) -> None:
    combine = COMBINATIONS["along a new dimension"]
    lazy = combine(
        *(fed.open_dataset(f"{s}/made", chunks={})[variable] for s in ("north", "south"))
    )
    # Dask's own results: numpy adds up in other dtypes here and there.
    plain = combine(*(local(f"{s}/made", {"time": 5})[variable] for s in ("north", "south")))
    dims = ("model", "time")
    for name in ("sum", "mean", "min", "max", "std", "count", "any", "all"):
        expected = getattr(plain, name)(dims).compute(scheduler="sync")
        assert_same(getattr(lazy, name)(dims).compute(), expected, 1e-5)


@pytest.mark.parametrize("by", ["file order", "one chunk", "thin chunks", "chunked in space"])
def test_chunks_make_no_difference(fed: FederatedClient, by: str) -> None:
    chunks: dict[str, Any] = {
        "file order": {},
        "one chunk": {"time": -1},
        "thin chunks": {"time": 7},
        "chunked in space": {"time": 60},
    }[by]
    a, e = (fed.open_dataset(n, chunks=chunks).air_temperature for n in ("north/a1b", "south/e1"))
    la, le = (local(n).air_temperature for n in ("north/a1b", "south/e1"))

    def query(a: xr.DataArray, e: xr.DataArray) -> xr.DataArray:
        return xr.concat([a, e], "scenario").mean(("scenario", "time")) - a[:3].max("time")

    if by == "chunked in space":
        a, e = a.chunk(latitude=10), e.chunk(latitude=10)

    assert_same(query(a, e).compute(), query(la, le), 0, 1e-3)


@pytest.mark.parametrize(
    ("name", "partials"),
    [("sum", 1), ("mean", 1.1), ("min", 1), ("max", 1), ("std", 2.1), ("count", 1.1), ("any", 1)],
)
def test_what_crosses_is_sites_times_partial(
    fed: FederatedClient, name: str, partials: float
) -> None:
    both = xr.concat(
        [fed.open_dataset(f"{site}/wide", chunks={}).x for site in ("north", "south")], "model"
    )
    lazy = getattr(both > 0 if name == "any" else both, name)(("model", "time"))
    explanation = fed.explain(lazy)
    result = lazy.compute()
    assert fed.last_run is not None
    home = [link for link in fed.last_run.links if link.end == "home"]
    assert sorted(link.start for link in home) == ["north", "south"]
    for link in home:
        assert link.actual_bytes < partials * result.nbytes + OVERHEAD
        assert link.actual_bytes < 1.2 * explanation.links[link.start, "home"] + OVERHEAD
    assert fed.last_run.crossed_bytes < fed.last_run.download_bytes / 20


def test_demo_query_crosses_little_more_than_its_results(fed: FederatedClient) -> None:
    a, e = (fed.open_dataset(n, chunks={"time": 60}) for n in ("north/a1b", "south/e1"))
    result = (
        xr.concat([a.air_temperature, e.air_temperature], "scenario")
        .mean(("scenario", "time"))
        .compute()
    )
    assert fed.last_run is not None
    assert fed.last_run.crossed_bytes <= 1.2 * 2 * result.nbytes


def test_second_stage_does_not_bring_the_data_home(fed: FederatedClient) -> None:
    def query(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
        mean = xr.concat([a, b], "model").mean(("model", "time"))
        return ((a - mean) ** 2).mean("time")

    lazy = query(*(fed.open_dataset(f"{site}/wide", chunks={}).x for site in ("north", "south")))
    expected = query(*(local(f"{site}/wide").x for site in ("north", "south")))
    explanation = fed.explain(lazy)
    assert_same(lazy.compute(), expected, 1e-9)
    assert fed.last_run is not None
    partial = expected.nbytes
    # Two partials of means and the result come home, the mean of both goes to north.
    assert fed.last_run.crossed_bytes < 4.1 * partial + 3 * OVERHEAD
    assert fed.last_run.sites["north"].tasks > fed.last_run.sites["south"].tasks > 0
    assert explanation.tasks["home"] < 5
    leases = Inside(fed_federation(fed), "north").leases
    Inside(fed_federation(fed), "north").until(lambda: not leases(), "the lease is released")


def fed_federation(fed: FederatedClient) -> LocalFederation:
    return fed.federation  # type: ignore[attr-defined, no-any-return]


class TestForeignFunctions:
    """Functions that no site knows run at home, and only from there on."""

    @staticmethod
    def squared_sum(x: np.ndarray) -> np.ndarray:
        return np.sqrt((x**2).sum())

    def test_map_blocks(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/made", chunks={}).wind.data
        lazy = da.nansum(x.map_blocks(lambda block: block * 2), axis=0)
        [reason] = [each for each in fed.explain(lazy).reasons if "lambda" in each[1]]
        assert "<lambda> is not in the operation table (written in test_expressions.py" in reason[1]
        assert "map_blocks(lambda block: block * 2)" in reason[1]
        assert reason[2] == 4
        expected = 2 * np.nansum(local("north/made").wind.values, axis=0)
        np.testing.assert_allclose(lazy.compute(), expected)

    def test_apply_ufunc_after_a_reduction(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/wide", chunks={}).x

        def query(x: xr.DataArray) -> xr.DataArray:
            return xr.apply_ufunc(
                self.squared_sum,
                x.mean("y").chunk(z=-1),
                input_core_dims=[["z"]],
                vectorize=True,
                dask="parallelized",
                output_dtypes=[float],
            )

        explanation = fed.explain(query(x))
        assert_same(query(x).compute(), query(local("north/wide").x.chunk(time=8)).compute(), 1e-9)
        assert fed.last_run is not None
        # The mean is made at the site: 64 × 125 numbers cross, not 64 × 125 × 125.
        assert explanation.read_bytes["north"] == x.nbytes
        assert explanation.links["north", "home"] == pytest.approx(x.nbytes / 125, rel=0.02)
        assert fed.last_run.crossed_bytes < 1.2 * x.nbytes / 125 + OVERHEAD

    def test_downstream_of_home_goes_where_it_is_cheap(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/wide", chunks={}).x
        lazy = (x - x.mean("time").data.map_blocks(lambda block: block)).std("time")
        plain = local("north/wide").x
        assert_same(lazy.compute(), (plain - plain.mean("time").values).std("time"), 1e-9)
        assert fed.last_run is not None
        assert fed.last_run.crossed_bytes < x.nbytes / 10

    def test_on_data_that_may_not_leave(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/secret", chunks={}).x
        lazy = xr.apply_ufunc(self.squared_sum, x, dask="parallelized", output_dtypes=[float])
        inside = Inside(fed_federation(fed), "north")
        inside.until_idle()
        before = inside.transitions()
        for attempt in (lazy.compute, lambda: fed.explain(lazy), lazy.persist):
            with pytest.raises(
                NotPermitted, match="squared_sum is not in the operation table"
            ) as e:
                attempt()
            assert e.value.reason is Reason.EXPORT_NOT_ALLOWED
            assert e.value.site == "north"
            assert "north/secret" in str(e.value)
        assert inside.transitions() == before

    def test_on_what_may_leave_of_data_that_may_not(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/secret", chunks={}).x
        lazy = x.mean(("y", "z")).data.map_blocks(np.tanh)
        foreign = x.mean(("y", "z")).data.map_blocks(lambda block: np.tanh(block))
        expected = np.tanh(local("north/secret").x.mean(("y", "z")).values)
        np.testing.assert_allclose(lazy.compute(), expected)
        np.testing.assert_allclose(foreign.compute(), expected)


class TestEgress:
    def test_raw_data_stays(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/secret", chunks={}).x
        for attempt in (x.compute, lambda: x.compute(scheduler="threads"), x.persist().compute):
            with pytest.raises(NotPermitted, match="secret") as error:
                attempt()
            # The planner's, or the site's own.
            assert error.value.reason in (Reason.EXPORT_NOT_ALLOWED, Reason.BUDGET_EXHAUSTED)

    def test_with_data_of_another_site(self, fed: FederatedClient) -> None:
        secret = fed.open_dataset("north/secret", chunks={}).x
        other = fed.open_dataset("south/wide", chunks={}).x
        # What may leave goes to what may not.
        plain = [local(n).x for n in ("north/secret", "south/wide")]
        assert_same((secret * other).mean().compute(), (plain[0] * plain[1]).mean(), 1e-9, 1e-12)
        with pytest.raises(NotPermitted, match="secret"):
            (secret * other).compute()
        reduced = secret.mean(("y", "z")) * other.mean(("y", "z"))
        expected = plain[0].mean(("y", "z")) * plain[1].mean(("y", "z"))
        assert_same(reduced.compute(), expected, 1e-9, 1e-15)

    def test_persisted_pieces_stay_bound(self, fed: FederatedClient) -> None:
        x = (fed.open_dataset("north/secret", chunks={}).x * 2).persist()
        assert_same(
            x.mean(("y", "z")).compute(),
            (local("north/secret").x * 2).mean(("y", "z")),
            1e-9,
            1e-12,
        )
        for attempt in (x.compute, lambda: x.compute(scheduler="sync")):
            with pytest.raises(NotPermitted, match="secret"):
                attempt()


@pytest.mark.parametrize("shape", [(125,), (125, 125), (64, 125, 125)], ids=str)
@pytest.mark.parametrize("lazy", [False, True], ids=["numpy", "dask"])
def test_own_arrays_join_in(fed: FederatedClient, shape: tuple[int, ...], lazy: bool) -> None:
    own = np.random.default_rng(5).normal(size=shape)
    x = fed.open_dataset("north/wide", chunks={}).x
    expected = (local("north/wide").x * own).mean(("time", "y"))
    other = da.from_array(own, chunks=-1) if lazy else own
    assert_same((x * other).mean(("time", "y")).compute(), expected, 1e-9, 1e-12)
    assert fed.last_run is not None
    # Never more than the smaller of both, and its result.
    assert (
        fed.last_run.crossed_bytes
        < 1.1 * min(own.nbytes * (8 if own.ndim < 3 else 1), x.nbytes) + 3 * OVERHEAD
    )


def test_rechunked_across_sites(fed: FederatedClient) -> None:
    def query(a: xr.DataArray, b: xr.DataArray, chunks: Any) -> xr.DataArray:
        both = xr.concat([a.assign_coords(lon=b.lon), b], "time")
        return (both if chunks is None else both.chunk(chunks)).median("time")

    lazy = [fed.open_dataset(f"{s}/made", chunks={}).wind for s in ("north", "south")]
    plain = [local(f"{s}/made").wind for s in ("north", "south")]
    assert_same(query(*lazy, {"time": -1, "lat": 3}).compute(), query(*plain, None), 1e-12)


class TestUnusualArrays:
    def test_nothing_selected(self, fed: FederatedClient) -> None:
        lazy = fed.open_dataset("north/made", chunks={}).isel(time=slice(0, 0)).drop_vars("seen")
        plain = local("north/made").isel(time=slice(0, 0)).drop_vars("seen")
        assert_same(lazy.compute(), plain)
        assert_same(lazy.wind.sum("time").compute(), plain.wind.sum("time"))

    def test_no_dimensions(self, fed: FederatedClient) -> None:
        lazy, plain = fed.open_dataset("north/made", chunks={}), local("north/made")
        assert_same(lazy.constant.compute(), plain.constant)
        assert_same((lazy.constant + 1).compute(), plain.constant + 1)
        assert_same(lazy.wind[3, 4, 5].compute(), plain.wind[3, 4, 5])

    def test_texts_and_dates(self, fed: FederatedClient) -> None:
        lazy, plain = fed.open_dataset("north/made", chunks={}), local("north/made")
        assert_same(lazy.station[::-2].compute(), plain.station[::-2])
        assert_same(lazy.seen.max("time").compute(), plain.seen.max("time"))
        assert_same((lazy.seen - lazy.seen[0]).compute(), plain.seen - plain.seen[0])

    @pytest.mark.parametrize("scheduler", [None, "threads"])
    def test_dates_of_other_calendars(self, fed: FederatedClient, scheduler: str | None) -> None:
        lazy = fed.open_dataset("north/a1b", chunks={"time": 50})
        found = lazy.time_bnds[40:60].compute(scheduler=scheduler)
        assert_same(found, local("north/a1b").time_bnds[40:60])
        assert lazy.time.dt.calendar == "360_day"

    @pytest.mark.parametrize("name", ["north/a1b", "south/e1", "ocean/sst", "north/made"])
    def test_whole_dataset(self, fed: FederatedClient, name: str) -> None:
        assert_same(fed.open_dataset(name).load(), local(name), 0)

    def test_a_hundred_outputs_at_once(self, fed: FederatedClient) -> None:
        x = fed.open_dataset("north/made", chunks={}).wind
        found = dask.compute(*(x[i % 20].mean() + i for i in range(100)))
        plain = local("north/made").wind
        np.testing.assert_allclose(found, [plain[i % 20].mean() + i for i in range(100)])


@pytest.mark.parametrize("name", ["sum", "any", "max"])
def test_a_reduction_where_all_is_masked(fed: FederatedClient, name: str) -> None:
    counts = fed.open_dataset("north/made", chunks={})["count"].data
    masked = da.ma.masked_greater_equal(counts, 0)
    assert getattr(masked, name)().compute() is np.ma.masked


@pytest.mark.parametrize("name", ["argmin", "argmax"])
def test_positions_among_masked_values(fed: FederatedClient, name: str) -> None:
    counts = fed.open_dataset("north/made", chunks={})["count"].data
    plain = np.ma.masked_greater(local("north/made")["count"].values, 40)
    found = getattr(da.ma.masked_greater(counts, 40), name)().compute()
    assert plain.flat[int(found)] == getattr(plain, name.replace("arg", ""))()


def test_objects_of_python_are_made_at_home(fed: FederatedClient) -> None:
    wind = fed.open_dataset("north/made", chunks={}).wind[:4].fillna(0)
    expression = wind.astype(object).sum("time")
    expected = local("north/made").wind[:4].fillna(0).astype(object).sum("time").compute()
    assert "Objects of Python are not made" in repr(fed.explain(expression))
    np.testing.assert_array_equal(expression.compute(), expected)


def test_what_a_site_would_refuse_for_its_size_is_known_before(fed: FederatedClient) -> None:
    most = fed.facts["north"].task_bytes
    assert most
    wind = fed.open_dataset("north/made", chunks={}).wind.data
    repeated = wind.map_blocks(np.repeat, most + 1, dtype=wind.dtype, chunks=wind.chunks)
    assert "numpy.repeat would make more than the" in repr(fed.explain(repeated))
