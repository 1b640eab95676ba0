"""The picture that the demo writes: the map and the series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import xarray as xr
from matplotlib.figure import Figure

__all__ = ["draw"]


def draw(results: Mapping[str, xr.Dataset], path: Path) -> None:
    """Draw the map of the difference, and both series, into a PNG file."""
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False}):
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        difference = results["difference_map"].difference
        largest = float(abs(difference).max())
        mesh = left.pcolormesh(
            difference.longitude - 360,
            difference.latitude,
            difference,
            cmap="RdBu_r",
            vmin=-largest,
            vmax=largest,
            shading="nearest",
        )
        figure.colorbar(mesh, ax=left, label="K")
        left.set(
            title="Air temperature, A1B − E1, last 30 years",
            xlabel="longitude [°E]",
            ylabel="latitude [°N]",
        )
        series = results["yearly_series"]
        for name, label, color in (("a1b", "A1B (north)", "C3"), ("e1", "E1 (south)", "C0")):
            right.plot(series.year, series[name], label=label, color=color)
        right.set(title="Area-weighted yearly mean", xlabel="year", ylabel="K")
        right.legend(frameon=False)
        figure.suptitle("Computed at two institutes; only partial results crossed")
        figure.savefig(path, dpi=110)
