"""Typed stubs of a site's functions, for editors and type checkers.

What a site says of a function is text from elsewhere, and stubs are Python: names are
checked to be names, documentation becomes a literal, and types are made from JSON
schemas and from the few names below, never taken over as text.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterable, Mapping
from typing import Any

from federated_dask.client.functions import Function, attribute_name
from federated_dask.protocol.call_messages import ParameterDescription

__all__ = ["stubs_of"]

HEAD = '''"""Functions of site {site}, as `federated-dask stubs` wrote them.

    if TYPE_CHECKING:
        from {module} import {name}
    {module}: "{name}" = fed.sites["{site}"]
"""

import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from federated_dask import FederatedFuture
from federated_dask.client.catalogue import Site

class {name}(Site):
'''
DATA = {
    "dataset": "str | xr.Dataset",
    "dataarray": "str | xr.DataArray",
    "ndarray": "np.ndarray | xr.DataArray | list[Any]",
    "dataframe": "pd.DataFrame",
}
RETURNED = {
    "dataset": "xr.Dataset",
    "dataarray": "xr.DataArray",
    "ndarray": "np.ndarray",
    "dataframe": "pd.DataFrame",
}
NAMES = {
    "None": "None",
    "bool": "bool",
    "int": "int",
    "float": "float",
    "str": "str",
    "bytes": "bytes",
    "Any": "Any",
    "list": "list",
    "tuple": "tuple",
    "dict": "dict",
    "date": "datetime.date",
    "datetime": "datetime.datetime",
    "timedelta": "datetime.timedelta",
}
"""Names that may stand in what a function is said to return, by their last part."""
FORMATS = {
    "date": "datetime.date | str",
    "date-time": "datetime.datetime | str",
    "time": "datetime.time | str",
    "duration": "datetime.timedelta | str",
}
PLAIN = {
    "null": "None",
    "boolean": "bool",
    "integer": "int",
    "number": "float",
    "string": "str",
    "object": "dict[str, Any]",
}
DEEPEST = 8


def stubs_of(site: str, functions: Iterable[Function]) -> str:
    """Write stubs of a site's functions: a class that ``fed.sites[site]`` may be taken for.

    Parameters
    ----------
    site : str
        Name of the site.
    functions : iterable of Function
        What it publishes.

    Returns
    -------
    str
        Text of a ``.pyi`` file.
    """
    name = "".join(part.capitalize() for part in attribute_name(site).split("_"))
    name = name if name.isidentifier() else f"Site{name}"
    module = attribute_name(site)
    methods = [_method(function) for function in functions]
    body = "\n".join(method for method in methods if method) or "    ...\n"
    return HEAD.format(site=site, name=name, module=module) + body


def _method(function: Function) -> str:
    about = function.description
    name = attribute_name(about.name)
    if not _is_name(name):
        return ""
    parameters = ["self"]
    by_name_only = False
    for each, shown in zip(about.parameters, function.signature.parameters.values(), strict=True):
        if shown.kind is shown.KEYWORD_ONLY and not by_name_only:
            by_name_only = True
            parameters.append("*")
        default = "" if each.required else " = ..."
        parameters.append(f"{each.name}: {_parameter_type(each, about.json_schema)}{default}")
    returned = RETURNED.get(about.returns.kind) or _returned_type(about.returns.annotation)
    # A literal, whatever stands in it.
    text = repr(function.documentation())
    return (
        f"    def {name}({', '.join(parameters)}) -> FederatedFuture[{returned}]:\n        {text}\n"
    )


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def _parameter_type(parameter: ParameterDescription, root: Mapping[str, Any]) -> str:
    if parameter.kind != "value":
        optional = "" if parameter.required else " | None"
        return f"{DATA[parameter.kind]} | FederatedFuture[Any]{optional}"
    definitions = {**_mapping(root.get("$defs")), **_mapping(parameter.json_schema.get("$defs"))}
    made = _schema_type(parameter.json_schema, definitions, 0)
    return made if made == "Any" else f"{made} | FederatedFuture[Any]"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _schema_type(schema: Any, definitions: Mapping[str, Any], depth: int) -> str:
    """Write the Python type of what a JSON schema describes; Any where that is not clear."""
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return "Any"
    if isinstance(reference := schema.get("$ref"), str):
        return _schema_type(definitions.get(reference.rpartition("/")[2]), definitions, depth + 1)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list) and choices and all(isinstance(c, str | int) for c in choices):
        return f"Literal[{', '.join(map(repr, choices))}]"
    for word in ("anyOf", "oneOf"):
        if isinstance(parts := schema.get(word), list) and parts:
            return _union(_schema_type(part, definitions, depth + 1) for part in parts)
    kind = schema.get("type")
    if isinstance(kind, list):
        return _union(_schema_type({"type": each}, definitions, depth + 1) for each in kind)
    if kind == "array":
        return f"list[{_schema_type(schema.get('items'), definitions, depth + 1)}]"
    if kind == "string":
        return FORMATS.get(str(schema.get("format")), "str")
    return PLAIN.get(str(kind), "Any")


def _union(types: Iterable[str]) -> str:
    found = list(dict.fromkeys(types))
    return "Any" if "Any" in found else " | ".join(found)


def _returned_type(annotation: str) -> str:
    try:
        parsed = ast.parse(annotation, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "Any"
    return _written(parsed, 0) or "Any"


def _written(node: ast.expr, depth: int) -> str | None:
    if depth > DEEPEST:
        return None
    match node:
        case ast.Constant(value=None):
            return "None"
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return NAMES.get(name)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            sides = _written(left, depth + 1), _written(right, depth + 1)
            return None if None in sides else f"{sides[0]} | {sides[1]}"
        case ast.Subscript(value=ast.Name(id="list" | "tuple" | "dict" as name), slice=inner):
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            written = [
                "..."
                if isinstance(each, ast.Constant) and each.value is ...
                else _written(each, depth + 1) or "Any"
                for each in items
            ]
            return f"{name}[{', '.join(written)}]"
    return None
