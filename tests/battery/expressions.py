"""The battery: expressions over one array with the dimensions time, lat and lon.

Each takes an `xr.DataArray` of floats (``a``) and one of integers with many ties (``i``).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

Expression = Callable[[xr.DataArray, xr.DataArray], Any]

REDUCTIONS = ("sum", "mean", "min", "max", "var", "std", "count", "prod", "any", "all")


def _local(x: np.ndarray) -> np.ndarray:
    """A function of the researcher's own."""
    return x * 2 + 1


def _reduce(name: str, dim: Any, **options: Any) -> Expression:
    return lambda a, i: getattr(a, name)(dim, **options)


def _grouped(name: str, group: str, **options: Any) -> Expression:
    return lambda a, i: getattr(a.groupby(group), name)(**options)


def _last(a: xr.DataArray) -> tuple[tuple[int], tuple[int]]:
    return (a.ndim - 1,), (a.ndim - 1,)


def reductions() -> Iterator[tuple[str, Expression]]:
    """Reductions that one can split by site."""
    for name in REDUCTIONS:
        yield f"{name}-time", _reduce(name, "time")
        yield f"{name}-all", _reduce(name, None)
        if name not in ("count", "any", "all"):
            yield f"{name}-time-strict", _reduce(name, "time", skipna=False)
            yield f"{name}-integers", lambda a, i, name=name: getattr(i, name)("time")
    for name in ("argmin", "argmax"):
        yield f"{name}-time", lambda a, i, name=name: getattr(a.fillna(0), name)("time")
        yield f"{name}-ties", lambda a, i, name=name: getattr(i, name)("time")
        yield f"nan{name}", lambda a, i, name=name: getattr(da, f"nan{name}")(a.data, axis=-3)
    for name in ("nansum", "nanmean", "nanmin", "nanmax", "nanvar", "nanstd", "nanprod"):
        yield name, lambda a, i, name=name: getattr(da, name)(a.data, axis=(-3, -2))
    yield "moment", lambda a, i: da.moment(a.fillna(0).data, 3, axis=-3)
    yield "keepdims", lambda a, i: a.data.mean(axis=-3, keepdims=True)
    yield "ptp", lambda a, i: da.ptp(a.fillna(0).data, axis=-3)
    yield "split-every", lambda a, i: a.data.sum(axis=-3, split_every=2)
    yield "weighted-mean", lambda a, i: a.weighted(np.cos(np.deg2rad(a.lat))).mean(("lat", "lon"))
    yield "weighted-all", lambda a, i: a.weighted(np.cos(np.deg2rad(a.lat))).mean()
    yield "weighted-sum", lambda a, i: a.weighted(np.cos(a.lat)).sum("time")
    yield "weighted-std", lambda a, i: a.weighted(np.cos(a.lat)).std(("time", "lat"))
    yield "norm", lambda a, i: da.linalg.norm(a.fillna(0).data, axis=-3)


def groups() -> Iterator[tuple[str, Expression]]:
    for name in ("sum", "mean", "min", "max", "var", "std", "count", "first", "last"):
        yield f"month-{name}", _grouped(name, "time.month")
        if name not in ("first", "last"):
            yield (
                f"year-{name}-integers",
                lambda a, i, name=name: getattr(i.groupby("time.year"), name)(),
            )
    for method in ("map-reduce", "cohorts"):
        yield f"season-{method}", _grouped("mean", "time.season", method=method)
        yield f"season-max-{method}", _grouped("max", "time.season", method=method)
    yield (
        "season-blockwise",
        lambda a, i: a.chunk(time=-1).groupby("time.season").mean(method="blockwise"),
    )
    yield "month-argmax", lambda a, i: i.groupby("time.month").reduce(_first_max, dim="time")
    yield "resample-mean", lambda a, i: a.resample(time="YE").mean()
    yield "resample-quarter", lambda a, i: a.resample(time="QE").max()
    yield "resample-count", lambda a, i: a.resample(time="2MS").count()
    yield "bins", lambda a, i: a.groupby_bins("lat", [0, 1.5, 4]).mean()
    yield "group-median", lambda a, i: a.chunk(time=-1).groupby("time.season").median()
    yield "climatology", lambda a, i: a.groupby("time.month") - a.groupby("time.month").mean()
    yield "group-all-dims", lambda a, i: a.groupby("time.month").mean(...)


def _first_max(x: Any, axis: Any, **_: Any) -> Any:
    return x.max(axis=axis)


def elementwise() -> Iterator[tuple[str, Expression]]:
    for name in ("sqrt", "exp", "isfinite", "sign", "floor", "cos", "square", "isnan"):
        yield f"np-{name}", lambda a, i, name=name: getattr(np, name)(abs(a))
    yield "arithmetic", lambda a, i: (a + 1) * 2 - a / 3 + a % 2 - a // 2
    yield "comparison", lambda a, i: (a > 0.5) & (i < 3) | ~(a <= 0.1)
    yield "power", lambda a, i: a**2 - 2**i
    yield "shifts", lambda a, i: (i << 1) ^ (i >> 1)
    yield "divmod", lambda a, i: np.fmod(a, 0.3)
    yield "where", lambda a, i: a.where(a > 0.5)
    yield "where-other", lambda a, i: xr.where(a > 0.5, a, -a)
    yield "fillna", lambda a, i: a.fillna(0)
    yield "fillna-array", lambda a, i: a.fillna(i)
    yield "isnull", lambda a, i: a.isnull().sum("time")
    yield "clip", lambda a, i: a.clip(0.2, 0.8)
    yield "round", lambda a, i: a.round(2)
    yield "astype", lambda a, i: a.astype("f4")
    yield "isin", lambda a, i: i.isin([1, 2])
    yield "nan-to-num", lambda a, i: da.nan_to_num(a.data)
    yield "digitize", lambda a, i: da.digitize(a.fillna(0).data, np.array([0.1, 0.5]))
    yield "isclose", lambda a, i: da.isclose(a.data, 0.5)
    yield "cos-weights", lambda a, i: a * np.cos(np.deg2rad(a.lat))
    yield "zeros-like", lambda a, i: xr.zeros_like(a) + a
    yield "full-like", lambda a, i: xr.full_like(a, 3.0) * a
    yield "astype-mean", lambda a, i: (a.astype("f4") - 1).mean("time")


def shapes() -> Iterator[tuple[str, Expression]]:
    yield "isel", lambda a, i: a.isel(time=3)
    yield "isel-negative", lambda a, i: a.isel(time=-1, lat=-2)
    yield "isel-slice", lambda a, i: a.isel(time=slice(2, 20, 3))
    yield "isel-reversed", lambda a, i: a.isel(time=slice(None, None, -1))
    yield "isel-list", lambda a, i: a.isel(time=[3, 1, 20, 3])
    yield "isel-mask", lambda a, i: a.isel(time=np.arange(a.sizes["time"]) % 3 == 0)
    yield (
        "isel-pointwise",
        lambda a, i: a.isel(
            time=xr.DataArray([1, 13], dims="p"), lat=xr.DataArray([0, 2], dims="p")
        ),
    )
    yield "sel", lambda a, i: a.sel(time="2000")
    yield "sel-nearest", lambda a, i: a.sel(lat=2.3, method="nearest")
    yield "sel-then-mean", lambda a, i: a.sel(time=slice("2000-03", "2001-06")).mean("time")
    yield "drop-where", lambda a, i: a.where(a.lat > 1, drop=True)
    yield "boolean-mask", lambda a, i: a.data[a.data > 0.5].sum()
    yield "transpose", lambda a, i: a.transpose(..., "lat", "time")
    yield "expand", lambda a, i: a.expand_dims("new")
    yield "stack", lambda a, i: a.stack(z=("lat", "lon")).mean("z")
    yield "unstack", lambda a, i: a.stack(z=("lat", "lon")).unstack("z")
    yield "flip", lambda a, i: da.flip(a.data, -1)
    yield "repeat", lambda a, i: da.repeat(a.data, 2, axis=-1)
    yield "tile", lambda a, i: da.tile(a.data, 2)
    yield "ravel", lambda a, i: a.data.ravel()
    yield "rechunk", lambda a, i: a.chunk(time=7).std("time")
    yield "roll", lambda a, i: a.roll(time=3)
    yield "shift", lambda a, i: a.shift(time=2)
    yield "pad", lambda a, i: a.pad(time=2)
    yield "pad-edge", lambda a, i: a.pad(time=2, mode="edge")
    yield "pad-reflect", lambda a, i: a.pad(lat=1, mode="reflect")
    yield "take", lambda a, i: da.take(a.data, [1, 2], axis=-3)
    yield "diff", lambda a, i: a.diff("time")
    yield "broadcast", lambda a, i: xr.broadcast(a, i.isel(lat=0, drop=True))[0]
    yield "reindex", lambda a, i: a.reindex(lat=[0.0, 2.0, 9.0])
    yield "argwhere", lambda a, i: da.argwhere(a.data > 0.5)
    yield "nonzero", lambda a, i: da.nonzero(i.data > 2)[0]


def neighbours() -> Iterator[tuple[str, Expression]]:
    for name in ("mean", "sum", "max", "std", "count", "median"):
        yield f"rolling-{name}", lambda a, i, name=name: getattr(a.rolling(time=3), name)()
    for name in ("mean", "min", "sum"):
        yield (
            f"coarsen-{name}",
            lambda a, i, name=name: getattr(a.coarsen(time=4, boundary="trim"), name)(),
        )
    yield "rolling-2d", lambda a, i: a.rolling(time=3, lat=2, center=True).mean()
    yield "rolling-construct", lambda a, i: a.rolling(time=3).construct("w").mean("w")
    yield "cumsum", lambda a, i: a.cumsum("time")
    yield "cumprod", lambda a, i: a.cumprod("time")
    yield "cumsum-blelloch", lambda a, i: da.cumsum(a.data, axis=-3, method="blelloch")
    yield "nancumsum", lambda a, i: da.nancumsum(a.data, axis=-3)
    yield "cumulative", lambda a, i: a.cumulative("time").sum()
    yield "differentiate", lambda a, i: a.differentiate("lat")
    yield "gradient", lambda a, i: da.gradient(a.data, axis=-2)
    yield "integrate", lambda a, i: a.integrate("lat")
    yield "integrate-time", lambda a, i: a.fillna(0).integrate("time", datetime_unit="D")
    yield "quantile", lambda a, i: a.chunk(time=-1).quantile([0.1, 0.5], "time")
    yield "median", lambda a, i: a.chunk(time=-1).median("time")


def products() -> Iterator[tuple[str, Expression]]:
    yield "dot", lambda a, i: xr.dot(a.fillna(0), a.fillna(1), dim="time")
    yield "dot-all", lambda a, i: xr.dot(a.fillna(0), i)
    yield "einsum", lambda a, i: da.einsum("...ijk,...ijk->...k", a.fillna(0).data, a.data)
    # Dask makes another shape than numpy of negative axes.
    yield "tensordot", lambda a, i: da.tensordot(a.fillna(0).data, i.data, axes=_last(a))
    yield "covariance", lambda a, i: xr.cov(a, i, "time")
    yield "correlation", lambda a, i: xr.corr(a, a**2, "time")
    yield "outer", lambda a, i: da.outer(a.data.ravel()[:7], i.data.ravel()[:5])
    yield "histogram", lambda a, i: da.histogram(a.fillna(0).data, bins=7, range=(0, 1))[0]
    yield (
        "histogram-weights",
        lambda a, i: da.histogram(a.fillna(0).data, bins=5, range=(0, 1), weights=i.data)[0],
    )
    yield "bincount", lambda a, i: da.bincount(i.data.ravel(), minlength=9)
    yield "average", lambda a, i: da.average(a.fillna(0).data, axis=-2, weights=np.arange(1, 5))
    yield "topk", lambda a, i: da.topk(a.fillna(0).data, 3, axis=-3)
    yield "unique", lambda a, i: da.unique(i.data)
    yield "percentile", lambda a, i: da.percentile(i.data.ravel(), [10, 50], internal_method="dask")
    yield "fft", lambda a, i: da.fft.fft(a.fillna(0).data.rechunk({-1: -1}), axis=-1)


def combinations() -> Iterator[tuple[str, Expression]]:
    yield "anomaly-of-mean", lambda a, i: a - a.mean("time")
    yield "anomaly-variance", lambda a, i: ((a - a.mean("time")) ** 2).mean()
    yield "normalised", lambda a, i: (a - a.min()) / (a.max() - a.min())
    yield "two-reductions", lambda a, i: a.mean("time") - a.std("time")
    yield "mean-of-means", lambda a, i: a.mean("lon").mean("lat").max("time")
    yield "dataset", lambda a, i: xr.Dataset({"a": a, "i": i}).mean("time")
    yield "own-numbers", lambda a, i: a * np.linspace(0, 1, a.sizes["lon"])
    yield "own-array", lambda a, i: (a + np.ones(a.shape)).mean("time")
    yield "own-dask-array", lambda a, i: (a + da.arange(a.sizes["lon"], chunks=2)).sum("time")
    yield "own-mask", lambda a, i: a.where(xr.DataArray([True, False] * 2, dims="lat"))
    yield "own-function", lambda a, i: a.data.map_blocks(_local, dtype="f8").sum()
    yield (
        "own-function-on-mean",
        lambda a, i: xr.apply_ufunc(
            _local, a.mean("time"), dask="parallelized", output_dtypes=["f8"]
        ),
    )
    yield (
        "own-function-on-all",
        lambda a, i: xr.apply_ufunc(_local, a, dask="parallelized", output_dtypes=["f8"]).max(
            "time"
        ),
    )
    yield "library-function", lambda a, i: a.data.map_blocks(np.cbrt, dtype="f8").max()
    yield "idxmax", lambda a, i: a.fillna(0).idxmax("time")
    yield "select-by-mean", lambda a, i: a.where(a.mean("time") > 0.5).sum("time")


BATTERY: dict[str, Expression] = {
    name: expression
    for part in (reductions, groups, elementwise, shapes, neighbours, products, combinations)
    for name, expression in part()
}
SPLITTABLE = [name for name, _ in reductions()]


def battery_cases(layouts: Iterable[str]) -> list[Any]:
    """Give one layout of each expression to every run, in turn; the others are for `-m slow`."""
    names = list(layouts)
    cases = []
    for number, name in enumerate(BATTERY):
        for turn, layout in enumerate(names):
            marks = () if turn == number % len(names) else pytest.mark.slow
            cases.append(pytest.param(name, layout, marks=marks, id=f"{name}-{layout}"))
    return cases
