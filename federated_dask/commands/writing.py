"""Results of functions, written to files or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federated_dask.errors import ConfigurationError

__all__ = ["SUFFIXES", "as_plain", "check_target", "write_result"]

SUFFIXES = (".nc", ".zarr", ".json", ".csv")


def check_target(path: Path) -> None:
    """Say before the work is done that its result could not be written.

    Raises
    ------
    ConfigurationError
        If the suffix means nothing here, or there is no such folder.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(
            f"{path.name!r} has no suffix that says how to write it.",
            hint=f"Known are {', '.join(SUFFIXES)}.",
        )
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"There is no folder {path.parent}.", hint="Make it first.")


def write_result(value: Any, path: Path) -> None:
    """Write a result as the suffix of `path` says.

    Raises
    ------
    ConfigurationError
        If a result of this kind cannot be written so.
    """
    import numpy as np
    import pandas as pd
    import xarray as xr

    if path.suffix == ".json":
        path.write_text(json.dumps(as_plain(value), ensure_ascii=False) + "\n")
        return
    if isinstance(value, np.ndarray):
        value = xr.DataArray(value, name="result")
    if path.suffix == ".csv" and isinstance(value, pd.DataFrame):
        value.to_csv(path)
        return
    if isinstance(value, xr.DataArray):
        value = value.to_dataset(name="result" if value.name is None else value.name)
    if not isinstance(value, xr.Dataset):
        raise ConfigurationError(
            f"A {type(value).__name__} cannot be written as {path.suffix}.",
            hint="Choose .json.",
        )
    if path.suffix == ".csv":
        value.to_dataframe().to_csv(path)
    elif path.suffix == ".nc":
        value.to_netcdf(path)
    else:
        value.to_zarr(path, mode="w", zarr_format=2)


def as_plain(value: Any) -> Any:
    """Make JSON data of a result: what is missing is null.

    Examples
    --------
    >>> as_plain({"slope": float("nan"), "years": (2070, 2071)})
    {'slope': None, 'years': [2070, 2071]}
    """
    import numpy as np
    import pandas as pd
    import xarray as xr

    if isinstance(value, xr.Dataset | xr.DataArray):
        return as_plain(value.to_dict())
    if isinstance(value, pd.DataFrame):
        return as_plain(value.reset_index().to_dict("list"))
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return as_plain(array.astype(str).tolist() if array.dtype.kind in "mM" else array.tolist())
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
