"""Plain arguments: what becomes JSON, and what a schema says of it."""

import dataclasses
import datetime
import enum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pydantic
import pytest

from federated_dask.client.plain import broken_rule, to_plain


class Season(enum.Enum):
    WINTER = "DJF"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    lat: float
    lon: float


class Model(pydantic.BaseModel):
    since: datetime.date
    points: list[float] = []


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (np.int32(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (Season.WINTER, "DJF"),
        (Level.LOW, 1),
        (datetime.datetime(2070, 1, 1, 12), "2070-01-01T12:00:00"),
        (pd.Timestamp("2070-01-01"), "2070-01-01T00:00:00"),
        (np.datetime64("2070-01-01"), "2070-01-01"),
        (np.array(["2070-01-01"], "M8[D]"), ["2070-01-01"]),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        ((1, (2.5, "x")), [1, [2.5, "x"]]),
        (Point(1, 2), {"lat": 1, "lon": 2}),
        (Model(since=datetime.date(2070, 1, 1)), {"since": "2070-01-01", "points": []}),
        (PurePosixPath("a/b"), "a/b"),
        ({Season.WINTER: range(2)}, {"DJF": [0, 1]}),
    ],
)
def test_what_has_a_plain_form(value: object, plain: object) -> None:
    made = to_plain(value)
    assert made == plain
    assert type(made) is type(plain)


@pytest.mark.parametrize("value", [object(), float("nan"), [float("inf")], {1: 2}, b"x", len])
def test_what_has_none(value: object) -> None:
    with pytest.raises(TypeError):
        to_plain(value)


class Nested(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str
    inner: list["Nested"] = []


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "rule"),
    [
        (int, 3, 3.5, "must be of type integer, not 3.5"),
        (int, 3.0, "3", "must be of type integer, not '3'"),
        (int, 3, True, "must be of type integer, not True"),
        (float, 3, "x", "must be of type number, not 'x'"),
        (int | None, None, "x", "must be of type integer, not 'x' or must be of type null"),
        (Annotated[int, pydantic.Field(ge=1900)], 1900, 1850, "must be at least 1900, not 1850"),
        (Annotated[float, pydantic.Field(lt=1)], 0.5, 1, "must be less than 1, not 1"),
        (Annotated[int | None, pydantic.Field(ge=5)], 5, 4, "must be at least 5, not 4"),
        (Annotated[str, pydantic.Field(max_length=2)], "ab", "abc", "at most 2 characters, not 3"),
        (Annotated[list[int], pydantic.Field(min_length=1)], [1], [], "at least 1 items, not 0"),
        (Literal["a", "b"], "a", "c", "must be one of 'a', 'b', not 'c'"),
        (Season, "DJF", "JJA", "must be one of 'DJF', not 'JJA'"),
        (list[int], [1, 2], [1, "2"], "[1] must be of type integer, not '2'"),
        (tuple[int, str], [1, "a"], [1, 2], "[1] must be of type string, not 2"),
        (dict[str, float], {"a": 1}, {"a": "b"}, ".a must be of type number, not 'b'"),
        (Nested, {"name": "a", "inner": [{"name": "b"}]}, {}, "lacks 'name'"),
        (Nested, {"name": "a"}, {"name": "a", "x": 1}, "has no 'x'"),
        (Nested, {"name": "a"}, {"name": "a", "inner": [{}]}, ".inner[0] lacks 'name'"),
    ],
)
def test_rules_of_pydantic(annotation: Any, good: object, bad: object, rule: str) -> None:
    schema = pydantic.TypeAdapter(annotation).json_schema()
    assert broken_rule(good, schema, {}) is None
    assert rule in (broken_rule(bad, schema, {}) or "")


def test_definitions_may_stand_in_the_schema_of_all_arguments() -> None:
    root = {"$defs": {"Year": {"type": "integer", "minimum": 1900}}}
    assert broken_rule(1, {"$ref": "#/$defs/Year"}, root) == "must be at least 1900, not 1"


def test_a_hostile_schema_takes_no_time() -> None:
    bomb = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}}, "$ref": "#/$defs/a"}
    assert broken_rule(1, bomb, {}) is None
    for schema in ({"type": 3}, {"items": 4}, {"required": "x"}, {"minimum": "a"}, {"enum": {}}):
        assert broken_rule([1], schema, {}) is None
    # Patterns can be made to run for ever; the site looks at them.
    assert broken_rule("a" * 40, {"type": "string", "pattern": "(a+)+$b"}, {}) is None
