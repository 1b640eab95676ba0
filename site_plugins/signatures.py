"""Signatures of published functions: what callers are told, and what they are held to.

::

    def trend(data: xr.DataArray, start: Annotated[int, Field(ge=1850)] = 1990) -> xr.DataArray
                 │ kind "dataarray"      │ kind "value": pydantic's schema            │
                 ▼                       ▼                                            ▼
    FunctionDescription(parameters=…, returns=…, json_schema=…)

Plain data is validated by pydantic from the annotations.  Arrays, xarray objects and
tables are the other kinds: callers refer to them or send them, and what arrives is held
to the class that is annotated.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import pathlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ImportString, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from federated_dask.errors import ConfigurationError
from federated_dask.protocol.call_messages import ParameterDescription, ResultDescription

__all__ = ["ArgumentError", "OpenSignature", "Parameter", "Signature"]

T = TypeVar("T")

DATASET_REFERENCE = {
    "type": "string",
    "description": "A dataset of the site: its name, or name/variable.",
}
NUMBERS = {"type": "array", "description": "Numbers, nested as the array is.", "items": {}}
LONGEST_RULE = 300


class ArgumentError(Exception):
    """An argument that does not fit, by name, and the rule that it breaks."""

    def __init__(self, argument: str, rule: str) -> None:
        super().__init__(argument, rule)
        self.argument = argument
        self.rule = rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Type:
    """What an annotation says."""

    kind: str = "value"
    classes: tuple[type, ...] = ()
    """For the kinds that are not plain: what arrives is one of these."""
    optional: bool = False
    shown: str = ""
    adapter: TypeAdapter[Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a published function."""

    name: str
    type: _Type
    required: bool
    keyword_only: bool
    positional_only: bool
    description: ParameterDescription

    @property
    def kind(self) -> str:
        """``value``, or the kind of object that it takes; ``any`` where nobody said."""
        return self.type.kind

    def validated(self, value: Any) -> Any:
        """Check plain data; give what the function is called with.

        Raises
        ------
        ArgumentError
            If it does not fit.
        """
        adapter = self.type.adapter
        if adapter is None:
            raise ArgumentError(self.name, f"must be {_article(self.type.shown)}, not plain data")
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise _first(self.name, error) from None

    def fitted(self, value: Any) -> Any:
        """Hold an object to the class that is annotated.

        A dataset of one variable passes for it, and arrays become what is asked for.

        Raises
        ------
        ArgumentError
            If it does not fit.
        """
        import dask.array as da
        import xarray as xr

        classes = self.type.classes
        if self.kind == "any":
            return value
        if value is None and self.type.optional:
            return None
        if not classes:
            return self.validated(value)
        if isinstance(value, classes):
            return value
        if isinstance(value, xr.Dataset) and self.kind != "dataframe":
            names = list(value.data_vars)
            if len(names) != 1:
                listed = ", ".join(map(str, names[:20]))
                raise ArgumentError(
                    self.name,
                    f"must be {_article(self.type.shown)}: name one variable of the dataset "
                    f"({listed})",
                )
            return self.fitted(value[names[0]])
        if isinstance(value, xr.DataArray) and self.kind == "ndarray":
            return self.fitted(value.data)
        if isinstance(value, da.Array) and np.ndarray in classes:
            return value.compute()
        if isinstance(value, np.ndarray | np.generic) and da.Array in classes:
            return da.from_array(np.asarray(value))
        if isinstance(value, list | tuple | int | float | np.generic) and self.kind == "ndarray":
            return _array(self.name, value)
        raise ArgumentError(
            self.name,
            f"must be {_article(self.type.shown)}, not {_article(type(value).__name__)}",
        )


class Signature:
    """The signature of a published function.

    Parameters
    ----------
    function : callable
        An ordinary function, every parameter and the result annotated.

    Raises
    ------
    ConfigurationError
        With everything that is wrong with it.

    Examples
    --------
    >>> def trend(data: "xr.DataArray", start: int = 1990) -> float: ...
    >>> trend.__globals__["xr"] = __import__("xarray")
    >>> str(Signature(trend))
    '(data: xarray.DataArray, start: int = 1990) -> float'
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        docs = _documented(function)
        problems: list[str] = []
        parameters: list[Parameter] = []
        signature, hints = _hints(function)
        for parameter in signature.parameters.values():
            try:
                parameters.append(_parameter(parameter, hints, docs))
            except _Unfit as error:
                problems.append(f"parameter {parameter.name!r} {error}")
        try:
            if "return" not in hints:
                raise _Unfit("has no annotation")
            result = _type_of(hints["return"])
        except _Unfit as error:
            problems.append(f"the result {error}")
            result = _Type()
        if problems:
            name = getattr(function, "__name__", "?")
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise ConfigurationError(f"Function {name!r} cannot be published:\n{lines}")
        self.parameters = {parameter.name: parameter for parameter in parameters}
        self.result = result
        self.returns = ResultDescription(
            kind=result.kind, annotation=result.shown, description=docs.get("return", "")
        )
        self.description = docs.get("", "")
        self.json_schema = _schema_of(parameters)

    def __str__(self) -> str:
        shown, last = [], None
        for parameter in self.parameters.values():
            if parameter.keyword_only and not (last and last.keyword_only):
                shown.append("*")
            default = "" if parameter.required else f" = {parameter.description.default!r}"
            shown.append(f"{parameter.name}: {parameter.type.shown}{default}")
            last = parameter
            following = [p for p in self.parameters.values() if p.positional_only]
            if parameter.positional_only and following[-1] is parameter:
                shown.append("/")
        return f"({', '.join(shown)}) -> {self.result.shown}"

    def bound(self, arguments: Sequence[T], keywords: Mapping[str, T]) -> dict[str, T]:
        """Give arguments their parameters' names.

        Raises
        ------
        ArgumentError
            If one is missing, unknown, or given twice.
        """
        names = [p.name for p in self.parameters.values() if not p.keyword_only]
        if len(arguments) > len(names):
            raise ArgumentError(
                "", f"takes {len(names)} positional arguments; {len(arguments)} were given"
            )
        found = dict(zip(names, arguments, strict=False))
        for name, argument in keywords.items():
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise ArgumentError(name[:128], f"is not a parameter; known are: {known}")
            if name in found:
                raise ArgumentError(name, "was given twice")
            found[name] = argument
        for name, parameter in self.parameters.items():
            if parameter.required and name not in found:
                raise ArgumentError(name, "is missing")
        return found

    def call(self, values: Mapping[str, Any]) -> Any:
        """Call the function."""
        rest = dict(values)
        first = [
            rest.pop(parameter.name, parameter.description.default)
            for parameter in self.parameters.values()
            if parameter.positional_only
        ]
        return self.function(*first, **rest)

    def checked_result(self, result: Any) -> Any:
        """Hold a result to what is annotated; plain results become plain data.

        Raises
        ------
        TypeError
            If it is something else.
        """
        if self.result.classes:
            if isinstance(result, self.result.classes) or (result is None and self.result.optional):
                return result
            raise TypeError(
                f"the function returned {_article(type(result).__name__)} instead of "
                f"{_article(self.result.shown)}"
            )
        adapter = self.result.adapter
        if adapter is None:
            return result
        try:
            valid = adapter.validate_python(result)
            return adapter.dump_python(valid, mode="json")
        except ValidationError as error:
            rule = _first("", error).rule
            raise TypeError(f"the result is no {self.result.shown}: {rule}") from None
        except PydanticSerializationError:
            raise TypeError("the result is no plain data") from None


class OpenSignature(Signature):
    """What stands for the signature of a callable that is not there yet.

    Parameters
    ----------
    names : sequence of str
        Of the arguments: numbers for those by position, in order, identifiers for the others.
    load : callable
        Gives the callable; called when it is to be called.

    Examples
    --------
    >>> signature = OpenSignature(["0", "base"], lambda: int)
    >>> signature.call({"0": "ff", "base": 16})
    255
    """

    def __init__(self, names: Sequence[str], load: Callable[[], Callable[..., Any]]) -> None:
        self.function: Any = None
        self._load = load
        type_ = _Type(kind="any", shown="anything")
        self.parameters = {
            name: Parameter(
                name=name,
                type=type_,
                required=True,
                keyword_only=not name.isdigit(),
                positional_only=name.isdigit(),
                description=ParameterDescription(name=name, annotation=type_.shown),
            )
            for name in names
        }
        self.result = type_

    def call(self, values: Mapping[str, Any]) -> Any:
        """Load the callable and call it."""
        self.function = self._load()
        positional = [value for name, value in values.items() if name.isdigit()]
        keywords = {name: value for name, value in values.items() if not name.isdigit()}
        return self.function(*positional, **keywords)


class _Unfit(Exception):
    """Why a parameter or result cannot cross."""


def _parameter(
    parameter: inspect.Parameter, hints: Mapping[str, Any], docs: Mapping[str, str]
) -> Parameter:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise _Unfit("takes any number of arguments; name each of them")
    if parameter.name not in hints:
        raise _Unfit("has no annotation")
    annotated = hints[parameter.name]
    type_ = _type_of(annotated)
    required = parameter.default is parameter.empty
    default = None if required else _plain_default(type_, parameter.default)
    schema: dict[str, Any]
    if type_.adapter is None:
        is_reference = type_.kind not in ("ndarray", "dataframe")
        schema = dict(DATASET_REFERENCE if is_reference else NUMBERS)
    else:
        schema = type_.adapter.json_schema()
        if not required and _is_finite(default):
            schema["default"] = default
    if docs.get(parameter.name):
        schema["description"] = docs[parameter.name]
    return Parameter(
        name=parameter.name,
        type=type_,
        required=required,
        keyword_only=parameter.kind is parameter.KEYWORD_ONLY,
        positional_only=parameter.kind is parameter.POSITIONAL_ONLY,
        description=ParameterDescription(
            name=parameter.name,
            kind=type_.kind,
            annotation=type_.shown,
            required=required,
            default=default,
            description=docs.get(parameter.name, ""),
            json_schema=schema,
        ),
    )


def _hints(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    try:
        return inspect.signature(function), typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{function!r:.100} has no signature: {error}.") from error
    except NameError as error:
        name = getattr(function, "__name__", "?")
        raise ConfigurationError(
            f"An annotation of the function {name!r} cannot be resolved: {error}.",
            hint="Import the name at the top of its module, outside of `if TYPE_CHECKING`.",
        ) from error


def _type_of(annotation: Any) -> _Type:
    members = _members(annotation)
    optional = type(None) in members
    found = [_kind_of(member) for member in members if member is not type(None)]
    objects = [each for each in found if each is not None]
    if objects:
        if len(objects) < len(found):
            raise _Unfit("mixes plain data with arrays, which callers cannot tell apart")
        shown = " | ".join(dict.fromkeys(each[1] for each in objects))
        return _Type(
            kind=objects[0][0],
            classes=tuple(cls for each in objects for cls in each[2]),
            optional=optional,
            shown=shown + (" | None" if optional else ""),
        )
    for part in _parts(annotation):
        if _kind_of(part) is not None:
            raise _Unfit("holds arrays inside of other types; take or return them as such")
        if _reaches_out(part):
            raise _Unfit(f"is {_article(_shown(part))}, which lets callers look at the site")
    try:
        adapter = TypeAdapter(annotation)
        adapter.json_schema()
    except PydanticUserError as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise _Unfit(
            f"is annotated as {_shown(annotation)}, which cannot cross: {reason}"
        ) from None
    return _Type(optional=optional, shown=_shown(annotation), adapter=adapter)


def _kind_of(annotation: Any) -> tuple[str, str, tuple[type, ...]] | None:
    """Kind, name and classes of an annotation that is no plain data."""
    import dask.array as da
    import pandas as pd
    import xarray as xr

    cls = get_origin(annotation) or annotation
    if cls is Annotated:
        return _kind_of(get_args(annotation)[0])
    if not isinstance(cls, type):
        return None
    known: dict[type, tuple[str, str]] = {
        xr.Dataset: ("dataset", "xarray.Dataset"),
        xr.DataArray: ("dataarray", "xarray.DataArray"),
        np.ndarray: ("ndarray", "numpy.ndarray"),
        da.Array: ("ndarray", "dask.array.Array"),
        pd.DataFrame: ("dataframe", "pandas.DataFrame"),
    }
    return (*known[cls], (cls,)) if cls in known else None


def _members(annotation: Any) -> tuple[Any, ...]:
    origin = get_origin(annotation)
    return get_args(annotation) if origin in (Union, types.UnionType) else (annotation,)


def _parts(annotation: Any, seen: frozenset[Any] = frozenset()) -> Iterator[Any]:
    """Give an annotation and all that stands in it."""
    if isinstance(annotation, type) and annotation in seen:
        return
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part, seen)
    if isinstance(annotation, type):
        seen |= {annotation}
        if issubclass(annotation, BaseModel):
            for field in annotation.model_fields.values():
                yield from _parts(field.annotation, seen)
                yield from field.metadata
        elif dataclasses.is_dataclass(annotation):
            for hint in typing.get_type_hints(annotation, include_extras=True).values():
                yield from _parts(hint, seen)


def _reaches_out(part: Any) -> bool:
    """Whether validating it imports, or asks the file system."""
    # What stands in `Annotated` is an instance.
    if part is ImportString or type(part) is ImportString:
        return True
    return isinstance(part, type) and issubclass(part, pathlib.PurePath)


def _shown(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _shown(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(map(_shown, get_args(annotation)))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__qualname__
    return inspect.formatannotation(annotation).replace("typing.", "")


def _article(shown: str) -> str:
    return f"{'an' if shown[:1].lower() in 'aeiou' else 'a'} {shown}"


def _plain_default(type_: _Type, default: Any) -> Any:
    if type_.adapter is None:
        if default is None:
            return None
        raise _Unfit("has a default that is no plain data; only None can be one")
    try:
        return type_.adapter.dump_python(default, mode="json", warnings=False)
    except (PydanticSerializationError, ValueError) as error:
        raise _Unfit(f"has a default that is no plain data: {error}") from None


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _first(name: str, error: ValidationError) -> ArgumentError:
    """Give the first problem: the place and the rule, not what was given."""
    details = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in (name, *details["loc"]) if part != "")
    message = details["msg"].removeprefix("Value error, ")
    return ArgumentError(place[:LONGEST_RULE], (message[:1].lower() + message[1:])[:LONGEST_RULE])


def _array(name: str, value: Any) -> np.ndarray:
    # Before numpy looks, which makes texts as wide as the longest of them.
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, str | bytes):
            raise ArgumentError(name, "must be numbers")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ArgumentError(name, "must be numbers, nested evenly") from None
    if array.dtype.kind not in "biufc":
        raise ArgumentError(name, "must be numbers")
    return array


def _schema_of(parameters: Sequence[Parameter]) -> dict[str, Any]:
    """JSON Schema of all arguments as one object."""
    inputs: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        (p.name, "validation", p.type.adapter) for p in parameters if p.type.adapter is not None
    ]
    shared: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    if inputs:
        schemas, definitions = TypeAdapter.json_schemas(inputs)
        properties = {name: schema for (name, _), schema in schemas.items()}
        shared = definitions.get("$defs", {})
    described = {}
    for parameter in parameters:
        known = parameter.description.json_schema
        schema = dict(properties.get(parameter.name, known))
        for key in ("description", "default"):
            if key in known:
                schema[key] = known[key]
        described[parameter.name] = schema
    schema = {
        "type": "object",
        "properties": described,
        "required": [parameter.name for parameter in parameters if parameter.required],
        "additionalProperties": False,
    }
    return {**schema, "$defs": shared} if shared else schema


def _documented(function: Callable[..., Any]) -> dict[str, str]:
    """Text of a docstring under "", of parameters under their names, of the result."""
    from docstring_parser import DocstringStyle, ParseError, parse

    text = inspect.getdoc(function) or ""
    try:
        parsed = parse(text, style=DocstringStyle.NUMPYDOC)
    except ParseError:
        return {"": text}
    parts = (parsed.short_description, parsed.long_description)
    found = {"": "\n\n".join(part for part in parts if part)}
    for parameter in parsed.params:
        # "x, y : float" documents both.
        for name in parameter.arg_name.split(","):
            found[name.strip()] = parameter.description or ""
    if parsed.returns is not None:
        found["return"] = parsed.returns.description or ""
    return found
