"""Annotations: what callers are told, and what cannot be published."""

import datetime
import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pydantic import BaseModel, Field, FilePath, ImportString

from federated_dask.errors import ConfigurationError
from site_plugins.functions import ModuleOrigin, published_function
from site_plugins.signatures import ArgumentError, Signature
from tests.site_plugins import published


class Colour(enum.Enum):
    RED = "red"


class Point(BaseModel):
    lat: Annotated[float, Field(ge=-90)]
    day: datetime.date = datetime.date(2000, 1, 1)


@dataclass
class Holder:
    path: Path


def every(
    data: xr.DataArray,
    /,
    points: list[Point],
    start: Annotated[int, Field(ge=1850, description="of the series")] = 1990,
    colour: Colour = Colour.RED,
    *,
    method: Literal["a", "b"] = "a",
    mask: np.ndarray | None = None,
) -> xr.Dataset | None:
    """Do everything.

    At length.

    Parameters
    ----------
    data : DataArray
        What it is about.
    points : list of Point
        Where.
    mask : array, optional
        Which.

    Returns
    -------
    Dataset
        All of it.
    """
    return None


def test_what_callers_are_told() -> None:
    description = published_function(every, ModuleOrigin("m", "every")).description
    assert description.title == "Do everything."
    assert description.description == "Do everything.\n\nAt length."
    told = {each.name: each for each in description.parameters}
    assert [(each.kind, each.annotation, each.required) for each in told.values()] == [
        ("dataarray", "xarray.DataArray", True),
        ("value", "list[tests.site_plugins.test_signatures.Point]", True),
        ("value", "int", False),
        ("value", "Colour", False),
        ("value", "Literal['a', 'b']", False),
        ("ndarray", "numpy.ndarray | None", False),
    ]
    assert told["start"].default == 1990
    assert told["start"].json_schema["minimum"] == 1850
    assert told["colour"].default == "red"
    assert told["data"].description == "What it is about."
    assert (description.returns.kind, description.returns.description) == ("dataset", "All of it.")
    schema = description.json_schema
    assert schema["required"] == ["data", "points"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["points"]["items"] == {"$ref": "#/$defs/Point"}
    assert schema["properties"]["points"]["description"] == "Where."
    assert schema["$defs"]["Point"]["properties"]["lat"]["minimum"] == -90
    assert schema["properties"]["data"]["type"] == "string"


def test_the_signature_is_shown_as_python_shows_it() -> None:
    assert str(Signature(every)) == (
        "(data: xarray.DataArray, /, points: list[tests.site_plugins.test_signatures.Point], "
        "start: int = 1990, colour: Colour = 'red', *, method: Literal['a', 'b'] = 'a', "
        "mask: numpy.ndarray | None = None) -> xarray.Dataset | None"
    )


def bare(a, b: int) -> int: ...  # type: ignore[no-untyped-def]
def untold(a: int): ...  # type: ignore[no-untyped-def]
def many(*a: int) -> int: ...
def any_keyword(**a: int) -> int: ...
def callback(a: Callable[[int], int]) -> int: ...
def opaque(a: "threading.Lock") -> int: ...  # noqa: F821
def inner(a: list[xr.Dataset]) -> int: ...
def mixed(a: int | xr.Dataset) -> int: ...
def file(a: FilePath) -> int: ...
def path(a: list[Path]) -> int: ...
def nested_path(a: Holder) -> int: ...
def imported(a: ImportString[Any]) -> int: ...
def arbitrary(a: np.random.Generator) -> int: ...
def preset(a: xr.Dataset = xr.Dataset()) -> int: ...  # noqa: B008


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (bare, "parameter 'a' has no annotation"),
        (untold, "the result has no annotation"),
        (many, "any number of arguments"),
        (any_keyword, "any number of arguments"),
        (callback, "cannot cross"),
        (opaque, "cannot be resolved"),
        (inner, "arrays inside of other types"),
        (mixed, "mixes plain data with arrays"),
        (file, "lets callers look at the site"),
        (path, "lets callers look at the site"),
        (nested_path, "lets callers look at the site"),
        (imported, "lets callers look at the site"),
        (arbitrary, "cannot cross"),
        (preset, "default that is no plain data"),
        (len, "has no annotation"),
    ],
)
def test_what_cannot_be_published(function: Any, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        Signature(function)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    def wrong(a, b: list[xr.Dataset]):  # type: ignore[no-untyped-def]
        ...

    with pytest.raises(ConfigurationError) as caught:
        Signature(wrong)
    assert all(word in caught.value.message for word in ("'a'", "'b'", "the result"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (xr.DataArray([1.0]), "data"),
        (xr.Dataset({"x": ("a", [1.0])}), "one"),
        (xr.Dataset({"x": ("a", [1.0]), "y": ("a", [1.0])}), "x, y"),
        (np.ones(2), "ndarray"),
        (pd.DataFrame({"a": [1]}), "DataFrame"),
        (None, "NoneType"),
    ],
)
def test_objects_are_held_to_their_class(given: Any, expected: str) -> None:
    parameter = Signature(published.mean).parameters["data"]
    if expected in ("data", "one"):
        assert isinstance(parameter.fitted(given), xr.DataArray)
        return
    with pytest.raises(ArgumentError, match=expected):
        parameter.fitted(given)


def test_results_are_held_to_the_annotation() -> None:
    def number() -> int:
        return 1

    signature = Signature(number)
    assert signature.checked_result(np.int64(3)) == 3
    with pytest.raises(TypeError, match="the result is no int"):
        signature.checked_result("many")
    with pytest.raises(TypeError, match=r"an int instead of a xarray.DataArray"):
        Signature(published.mean).checked_result(3)
