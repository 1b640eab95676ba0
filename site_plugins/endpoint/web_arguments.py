"""The arguments of a call as JSON, made into what a `CallSubmission` carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.protocol.call_messages import (
    Argument,
    CallSubmission,
    DatasetArgument,
    FunctionDescription,
    HeldArgument,
    PlainArgument,
    Returned,
    SentArgument,
)
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.graph import Held
from federated_dask.protocol.messages import Failure
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import Parts, put_together, take_apart
from site_plugins.endpoint.failures import JobFailed
from site_plugins.endpoint.plain import object_from_json

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["EarlierResult", "submission_of"]

EarlierResult: TypeAlias = tuple[Returned, Sequence[bytearray]]
"""What a call returned, and the buffers of the values in it."""


def submission_of(
    description: FunctionDescription,
    given: Mapping[str, Any],
    *,
    site: str,
    version: str | None = None,
    parts: Mapping[str, Buffer] | None = None,
    results: Callable[[str], EarlierResult],
) -> tuple[CallSubmission, list[bytearray]]:
    """Make the submission of a call.

    Parameters
    ----------
    description : FunctionDescription
        What is called.
    given : mapping of str to JSON
        Arguments by name.
    site : str
        Name of the site, shown in errors.
    version : str, optional
        Version of the function that is meant.
    parts : mapping of str to bytes-like, optional
        Raw parts of the request.
    results : callable
        From the id of an earlier call of the same principal to what it returned.

    Raises
    ------
    JobFailed
        Whatever is wrong with an argument, which the failure names.
    """
    kinds = {parameter.name: parameter.kind for parameter in description.parameters}
    buffers: list[Buffer] = []
    keywords = {}
    for name, value in given.items():
        # What the function does not have is told by those who know its whole signature.
        kind = kinds.get(name, "value")
        try:
            keywords[name] = _argument(name, kind, value, buffers, parts or {}, results)
        except FederatedError as error:
            error.site = site
            failure = Failure.from_error(error)
            raise JobFailed(msgspec.structs.replace(failure, argument=name)) from None
    submission = CallSubmission(function=description.name, version=version, keywords=keywords)
    return submission, [bytearray(buffer) for buffer in buffers]


def _argument(
    name: str,
    kind: str,
    value: Any,
    buffers: list[Buffer],
    parts: Mapping[str, Buffer],
    results: Callable[[str], EarlierResult],
) -> Argument:
    if kind == "value" or value is None or isinstance(value, str):
        return PlainArgument(value=value)
    if isinstance(value, dict) and "dataset" in value:
        return _dataset(name, value)
    if isinstance(value, dict) and "result" in value:
        return _result(name, value, buffers, results)
    obj = object_from_json(value, kind, name, parts)
    content, _ = take_apart(obj, buffers, operation_table(), is_part=lambda _: False)
    return SentArgument(content=content)


def _dataset(name: str, value: dict[str, Any]) -> DatasetArgument:
    try:
        if value.keys() <= {"dataset", "variable"}:
            return msgspec.convert(
                {"type": "dataset", "name": value["dataset"], "variable": value.get("variable")},
                DatasetArgument,
            )
    except msgspec.ValidationError:
        pass
    raise _refused(name, 'is no reference to a dataset: {"dataset": name, "variable": name}')


def _result(
    name: str,
    value: dict[str, Any],
    buffers: list[Buffer],
    results: Callable[[str], EarlierResult],
) -> Argument:
    match value:
        case {"result": {"call": str(call), **others}, **more} if not others and not more:
            returned, found = results(call)
        case _:
            raise _refused(name, 'is no reference to a result: {"result": {"call": id}}')
    firsts: dict[str, int] = {}
    obj = put_together(
        returned.content, found, lambda each: _placeholder(each, firsts), operation_table()
    )
    content, arrays = take_apart(obj, buffers, operation_table())
    # Its parts are numbered anew, in the order in which they now stand.
    held = tuple(
        Held(lease=returned.lease or "", output=firsts[array.name] + number)
        for array in arrays
        for number in range(array.npartitions)
    )
    return HeldArgument(content=content, held=held) if held else SentArgument(content=content)


def _placeholder(parts: Parts, firsts: dict[str, int]) -> da.Array:
    import dask.array as da

    array = da.Array({}, f"part-{parts.first}", parts.chunks, decode_dtype(parts.dtype))
    firsts[array.name] = parts.first
    return array


def _refused(name: str, what: str) -> RequestRefused:
    return RequestRefused(
        f"Argument {name[:128]!r} {what}.",
        reason=Reason.INVALID_ARGUMENT,
        hint="GET /docs describes the forms of arguments.",
    )
