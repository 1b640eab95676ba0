"""The examples, against plain numpy; lazily, and through a site."""

from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr

from site_plugins import LocalFederation, examples
from site_plugins.config import FunctionsSection
from site_plugins.functions import PublishedFunction, functions_of
from tests.site_plugins.calls import call, dataset, result
from tests.site_plugins.helpers import Caller

GENERATOR = np.random.default_rng(3)
TIMES = xr.date_range("1990-01-01", periods=120, freq="MS")


@pytest.fixture(scope="module")
def air() -> xr.DataArray:
    """Ten years of months on a grid, chunked, with gaps."""
    values = GENERATOR.normal(size=(120, 6, 8))
    values += 0.5 * np.arange(120)[:, None, None] / 12
    values[5, 2, 3] = np.nan
    values[:, 0, 0] = np.nan
    return xr.DataArray(
        values,
        dims=("time", "lat", "lon"),
        coords={
            "time": TIMES,
            "lat": np.linspace(-50, 50, 6),
            "lon": np.arange(0.0, 360.0, 45.0),
        },
        name="air",
        attrs={"units": "K"},
    ).chunk(time=50, lat=3)


def is_lazy(obj: xr.Dataset | xr.DataArray) -> bool:
    return obj.chunks is not None and bool(obj.chunks)


def test_linear_trend(air: xr.DataArray) -> None:
    found = examples.linear_trend(air)
    assert is_lazy(found)
    years = air.time.dt.decimal_year.values
    for row, column in ((2, 3), (4, 4)):
        series = air.values[:, row, column]
        there = np.isfinite(series)
        slope, _ = np.polyfit(years[there], series[there], 1)
        assert found.slope.values[row, column] == pytest.approx(slope)
    assert np.isnan(found.slope.values[0, 0])
    assert found.slope.attrs["units"] == "K year-1"
    some = examples.linear_trend(air, 1992, 1994)
    chosen = slice(24, 60)
    slope, _ = np.polyfit(years[chosen], air.values[chosen, 4, 4], 1)
    assert some.slope.values[4, 4] == pytest.approx(slope)


def test_linear_trend_of_other_calendars(air: xr.DataArray) -> None:
    times = xr.date_range("1990-01-01", periods=120, freq="MS", calendar="360_day")
    found = examples.linear_trend(air.assign_coords(time=times))
    series = air.values[:, 4, 4]
    slope, _ = np.polyfit(np.arange(120) / 12, series, 1)
    assert found.slope.values[4, 4] == pytest.approx(slope, rel=1e-6)


def test_climatology_and_anomaly(air: xr.DataArray) -> None:
    found = examples.climatology(air, 1991, 1995)
    assert is_lazy(found)
    base = air.values[12:72].reshape(5, 12, 6, 8)
    expected = np.nanmean(base[:, :, 1:], axis=0)
    np.testing.assert_allclose(found.transpose("month", "lat", "lon").values[:, 1:], expected)
    away = examples.anomaly(air, 1991, 1995)
    assert is_lazy(away)
    assert (away.dims, away.name, away.attrs) == (air.dims, "air", air.attrs)
    expected = air.values[:, 1:] - np.tile(expected, (10, 1, 1))
    np.testing.assert_allclose(away.values[:, 1:], expected)


def test_eof(air: xr.DataArray) -> None:
    found = examples.eof(air, modes=4)
    assert is_lazy(found)
    values = air.values.copy()
    values[:, 0, 0] = 0
    values = np.nan_to_num(values - np.nanmean(values, axis=0, keepdims=True), nan=0.0)
    weight = np.sqrt(np.cos(np.deg2rad(air.lat.values)))[None, :, None]
    matrix = (values * weight).reshape(120, -1)
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(found.explained.values, s[:4] ** 2 / np.sum(s**2))
    for mode in range(4):
        series = found.series.values[mode]
        assert abs(np.dot(series, u[:, mode])) == pytest.approx(np.sqrt(120))
        pattern = np.tensordot(series, values, 1) / 120
        np.testing.assert_allclose(found.pattern.values[mode, 3:], pattern[3:], atol=1e-12)
    assert np.isnan(found.pattern.values[:, 0, 0]).all()


def test_series_at_points(air: xr.DataArray) -> None:
    points = [examples.Point(lat=-48, lon=-44), examples.Point(lat=11, lon=359)]
    found = examples.series_at(air, points)
    assert is_lazy(found)
    assert found.dims == ("time", "point")
    np.testing.assert_array_equal(found.values[:, 0], air.values[:, 0, 7])
    np.testing.assert_array_equal(found.values[:, 1], air.values[:, 3, 0])


def test_coarser_grid(air: xr.DataArray) -> None:
    found = examples.coarser_grid(air, lat_cells=4, lon_cells=2)
    assert is_lazy(found)
    assert found.shape == (120, 1, 4)
    weight = np.cos(np.deg2rad(air.lat.values))[None, :4, None] * np.isfinite(air.values[:, :4])
    total = np.nansum(np.nan_to_num(air.values[:, :4]) * weight, axis=1)
    expected = total.reshape(120, 4, 2).sum(2) / weight.sum(1).reshape(120, 4, 2).sum(2)
    np.testing.assert_allclose(found.values[:, 0], expected)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda air: examples.linear_trend(air.isel(time=0)), "no dimension 'time'"),
        (lambda air: examples.linear_trend(air, 1800, 1801), "no times between"),
        (lambda air: examples.coarser_grid(air.rename(lat="up")), "no latitude"),
        (lambda air: examples.coarser_grid(air, 10), "fewer cells"),
        (lambda air: examples.eof(air.isel(time=slice(2)), 3), "not so many"),
    ],
)
def test_what_does_not_fit(function: object, what: str, air: xr.DataArray) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=what):
        function(air)


def test_all_of_them_can_be_published() -> None:
    found = list(functions_of(FunctionsSection(modules=("site_plugins.examples",))))
    assert all(isinstance(each, PublishedFunction) for each in found)
    assert {each.name for each in found if isinstance(each, PublishedFunction)} == {
        name for name in examples.__all__ if name != "Point"
    }


@pytest.fixture(scope="module")
def federation(air: xr.DataArray) -> Iterator[LocalFederation]:
    sites = {
        "north": {
            "datasets": {"a1b": air.to_dataset()},
            "functions": {"modules": ["site_plugins.examples"]},
        }
    }
    with LocalFederation(sites) as running:
        yield running


async def test_they_work_through_a_site(federation: LocalFederation, air: xr.DataArray) -> None:
    north = Caller(federation, "north", federation.token["north"])
    found = await result(north, call("linear_trend", dataset("a1b"), start=1991))
    xr.testing.assert_allclose(found, examples.linear_trend(air, 1991).compute())
    found = await result(north, call("eof", dataset("a1b", "air"), modes=2))
    xr.testing.assert_allclose(found, examples.eof(air, 2).compute())
    found = await result(north, call("series_at", "a1b", points=[{"lat": 10, "lon": 10}]))
    assert found.shape == (120, 1)
    found = await result(north, call("anomaly", air.compute()))
    xr.testing.assert_allclose(found, examples.anomaly(air).compute())
