"""Plain JSON arguments: made of Python's objects, and held against a function's schema.

The site checks every argument itself, by the function's own types.  Checked here is
what its JSON schema says in keywords that are safe to evaluate, so that most mistakes
are found before anything is sent.  A schema comes from a site: patterns, which can be
made to run for ever, are left to the site, and the work is bounded.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

__all__ = ["broken_rule", "to_plain"]

MOST_STEPS = 20_000
"""Schemas looked at for one argument."""
DEEPEST = 50


def to_plain(value: Any) -> Any:
    """Make plain JSON data of a value.

    Raises
    ------
    TypeError
        If there is something in it that has no plain form.

    Examples
    --------
    >>> to_plain({"since": datetime.date(2070, 1, 1), "levels": np.arange(2)})
    {'since': '2070-01-01', 'levels': [0, 1]}
    """
    if isinstance(value, enum.Enum):
        # First of all: some are texts or numbers as well.
        return to_plain(value.value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no plain form")
        return float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, np.generic | np.ndarray):
        array = np.asarray(value)
        return array.astype(str).tolist() if array.dtype.kind == "M" else to_plain(array.tolist())
    if isinstance(value, Mapping):
        return {_name(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [to_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        # A model of pydantic, which the researcher may use without the site's library.
        return dump(mode="json")
    raise TypeError(f"a {type(value).__name__} has no plain form")


def _name(key: Any) -> str:
    plain = to_plain(key)
    if not isinstance(plain, str):
        raise TypeError("names in a mapping are texts")
    return plain


def broken_rule(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str | None:
    """Say which rule of a JSON schema a plain value breaks.

    Parameters
    ----------
    value : object
        Plain data.
    schema : mapping
        Its schema.
    root : mapping
        Where ``#/$defs/…`` is looked up, if not in `schema` itself.

    Returns
    -------
    str or None
        The rule in words, or None where it breaks none that is checked here.

    Examples
    --------
    >>> broken_rule(1850, {"type": "integer", "minimum": 1900}, {})
    'must be at least 1900, not 1850'
    >>> broken_rule([1, "2"], {"type": "array", "items": {"type": "integer"}}, {})
    "[1] must be of type integer, not '2'"
    """
    definitions = {**_mapping(root.get("$defs")), **_mapping(schema.get("$defs"))}
    return _Checker(definitions).check(value, schema, "", 0)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: (
        (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, float) and value.is_integer())
    ),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}

BOUNDS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("must be at least", lambda value, bound: value >= bound),
    "exclusiveMinimum": ("must be more than", lambda value, bound: value > bound),
    "maximum": ("must be at most", lambda value, bound: value <= bound),
    "exclusiveMaximum": ("must be less than", lambda value, bound: value < bound),
}

SIZES: Mapping[str, tuple[type[str] | type[list[Any]], str, Callable[[int, Any], bool]]] = {
    "minLength": (str, "must have at least {} characters", lambda size, bound: size >= bound),
    "maxLength": (str, "must have at most {} characters", lambda size, bound: size <= bound),
    "minItems": (list, "must have at least {} items", lambda size, bound: size >= bound),
    "maxItems": (list, "must have at most {} items", lambda size, bound: size <= bound),
}


class _Checker:
    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self.definitions = definitions
        self.steps = 0

    def check(self, value: Any, schema: Any, where: str, depth: int) -> str | None:
        self.steps += 1
        if not isinstance(schema, Mapping) or self.steps > MOST_STEPS or depth > DEEPEST:
            # What is not looked at here the site looks at.
            return None
        reference = schema.get("$ref")
        if isinstance(reference, str):
            name = reference.rpartition("/")[2]
            broken = self.check(value, self.definitions.get(name), where, depth + 1)
            if broken is not None:
                return broken
        for keyword in ("anyOf", "oneOf"):
            choices = schema.get(keyword)
            if isinstance(choices, list) and choices:
                broken = self.any_of(value, choices, where, depth)
                if broken is not None:
                    return broken
        for part in schema.get("allOf") or ():
            broken = self.check(value, part, where, depth + 1)
            if broken is not None:
                return broken
        rule = next(self.own_rules(value, schema), None)
        if rule is not None:
            return f"{where} {rule}".strip()
        return next(self.inner(value, schema, where, depth), None)

    def any_of(self, value: Any, choices: list[Any], where: str, depth: int) -> str | None:
        rules = []
        for choice in choices:
            broken = self.check(value, choice, where, depth + 1)
            if broken is None:
                return None
            rules.append(broken)
        # A wrong type says less than a wrong value of the right type.
        told = [rule for rule in rules if "must be of type" not in rule] or rules
        return " or ".join(dict.fromkeys(told))

    def own_rules(self, value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
        wanted = schema.get("type")
        names = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
        known = [name for name in names if name in TYPES]
        if known and not any(TYPES[name](value) for name in known):
            yield f"must be of type {' or '.join(known)}, not {_shown(value)}"
            return
        if "const" in schema and value != schema["const"]:
            yield f"must be {_shown(schema['const'])}, not {_shown(value)}"
        choices = schema.get("enum")
        if isinstance(choices, list) and value not in choices:
            yield f"must be one of {', '.join(map(_shown, choices))}, not {_shown(value)}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            for name, (words, fits) in BOUNDS.items():
                bound = schema.get(name)
                if isinstance(bound, int | float) and not fits(value, bound):
                    yield f"{words} {bound}, not {_shown(value)}"
        for name, (kind, words, fits) in SIZES.items():
            bound = schema.get(name)
            if isinstance(value, kind) and isinstance(bound, int) and not fits(len(value), bound):
                yield f"{words.format(bound)}, not {len(value)}"

    def inner(self, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
        if isinstance(value, list):
            first = schema.get("prefixItems")
            given = first if isinstance(first, list) else []
            rest = schema.get("items")
            for number, item in enumerate(value):
                each = given[number] if number < len(given) else rest
                if each is None:
                    break
                if (broken := self.check(item, each, f"{where}[{number}]", depth + 1)) is not None:
                    yield broken
        elif isinstance(value, dict):
            known = _mapping(schema.get("properties"))
            required = schema.get("required")
            for name in required if isinstance(required, list) else ():
                if name not in value:
                    yield f"{where} lacks {name!r}".strip()
            others = schema.get("additionalProperties")
            for name, item in value.items():
                if name in known:
                    each = known[name]
                elif others is False:
                    yield f"{where} has no {name!r}".strip()
                    continue
                else:
                    each = others
                broken = self.check(item, each, f"{where}.{name}", depth + 1)
                if broken is not None:
                    yield broken


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
