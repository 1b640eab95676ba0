"""Messages about published functions: what there is, calling one, and what comes of it.

A call is answered by the events of a job (`federated_dask.protocol.messages`), a few of
its own among them::

    CallSubmission ┐
    CodeSubmission ┴─► Accepted, CallProgress …, Heartbeat …, Returned
                                                             └─ or Failure
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from federated_dask.protocol.graph import Held
from federated_dask.protocol.messages import (
    PRINTABLE,
    Accepted,
    Failure,
    Heartbeat,
    JobEvent,
    Message,
    Name,
    Seconds,
    Size,
)
from federated_dask.protocol.structures import Object

__all__ = [
    "LARGEST_CODE",
    "AnyCallEvent",
    "Argument",
    "CallProgress",
    "CallStatus",
    "CallSubmission",
    "CodeSubmission",
    "DatasetArgument",
    "FunctionDescription",
    "FunctionLimits",
    "Functions",
    "HeldArgument",
    "ParameterDescription",
    "PlainArgument",
    "ResultDescription",
    "ResultSummary",
    "Returned",
    "SentArgument",
]

KINDS = "^(value|dataset|dataarray|ndarray|dataframe)$"

LARGEST_CODE = 2**20
"""Bytes of a callable of the caller's own."""

Kind: TypeAlias = Annotated[str, Meta(pattern=KINDS)]
"""What is passed: plain data (``value``), or one of the field's own objects."""


class ParameterDescription(Message, frozen=True, kw_only=True):
    """One parameter of a function."""

    name: str
    kind: Kind = "value"
    annotation: str = ""
    """The type, as Python shows it."""
    required: bool = True
    default: Any = None
    """Plain data, for a parameter that is not required."""
    description: str = ""
    json_schema: dict[str, Any] = {}  # noqa: RUF012  # msgspec copies it
    """Of its plain JSON form; for the other kinds, that of a reference."""


class ResultDescription(Message, frozen=True, kw_only=True):
    """What a function returns."""

    kind: Kind = "value"
    annotation: str = ""
    description: str = ""


class FunctionLimits(Message, frozen=True, kw_only=True):
    """What one call may take; None where the site sets no limit of its own."""

    seconds: Seconds | None = None
    result_bytes: Size | None = None
    concurrent_calls: Size | None = None


class FunctionDescription(Message, frozen=True, kw_only=True):
    """A published function, as callers see it."""

    name: Name
    version: str = "1"
    title: str = ""
    description: str = ""
    """The docstring's text, without the parameters."""
    tags: tuple[str, ...] = ()
    parameters: tuple[ParameterDescription, ...] = ()
    returns: ResultDescription = ResultDescription()
    limits: FunctionLimits = FunctionLimits()
    idempotent: bool = False
    """Whether a call may be run again, where its worker was lost."""
    json_schema: dict[str, Any] = {}  # noqa: RUF012  # msgspec copies it
    """JSON Schema of all arguments as one object, as pydantic makes it."""


class Functions(Message, frozen=True, kw_only=True):
    """The functions that a site publishes (``GET /functions``)."""

    site: Name
    functions: tuple[FunctionDescription, ...]


class PlainArgument(Message, frozen=True, kw_only=True, tag="plain"):
    """Plain JSON data."""

    value: Any = None


class DatasetArgument(Message, frozen=True, kw_only=True, tag="dataset"):
    """A dataset of the site, which opens it lazily."""

    name: Name
    variable: str | None = None
    """The one variable that is meant, where the parameter is a DataArray."""


class SentArgument(Message, frozen=True, kw_only=True, tag="sent"):
    """Data sent along: its buffers are in the frame, and it has no parts."""

    content: Object


class HeldArgument(Message, frozen=True, kw_only=True, tag="held"):
    """Data whose parts sites hold under leases: an earlier result, or a lazy expression."""

    content: Object
    held: tuple[Held, ...]
    """Its parts, in order."""


Argument: TypeAlias = PlainArgument | DatasetArgument | SentArgument | HeldArgument


class CallSubmission(Message, frozen=True, kw_only=True):
    """A call of a function (``POST /calls``)."""

    function: Name
    version: Annotated[str, Meta(max_length=128)] | None = None
    """The one that is meant; whichever is published by default."""
    arguments: tuple[Argument, ...] = ()
    keywords: dict[str, Argument] = {}  # noqa: RUF012  # msgspec copies it
    label: Annotated[str, Meta(max_length=200, pattern=PRINTABLE)] = ""
    delegations: dict[str, str] = {}  # noqa: RUF012  # msgspec copies it
    """With which the site may fetch parts from its peers; keys are those of `delegation_key`."""


class CodeSubmission(Message, frozen=True, kw_only=True):
    """A call of a callable of the caller's own (``POST /code``).

    The callable is the last buffer of the frame, as cloudpickle gives it: for the worker
    that runs it, and never looked into before.
    """

    arguments: tuple[Argument, ...] = ()
    keywords: dict[str, Argument] = {}  # noqa: RUF012  # msgspec copies it
    label: Annotated[str, Meta(max_length=200, pattern=PRINTABLE)] = ""
    delegations: dict[str, str] = {}  # noqa: RUF012  # msgspec copies it
    """As those of a `CallSubmission`."""


class CallProgress(JobEvent, frozen=True, kw_only=True, tag="call_progress"):
    """What the function reports of itself."""

    fraction: Annotated[float, Meta(ge=0, le=1)]
    message: str = ""


class Returned(JobEvent, frozen=True, kw_only=True, tag="returned"):
    """Last event of a call that did what it was asked."""

    content: Object
    """The result; what is small stands in it, what is large or lazy is in parts."""
    outputs: Size = 0
    """Number of its parts, held under the lease as outputs 0, 1 …"""
    lease: str | None = None
    lease_seconds: Seconds | None = None
    derived: tuple[tuple[str, int | None], ...] = ()
    """Datasets that it derives from, and how many bytes of each may still leave."""
    compute_seconds: float = 0.0


class ResultSummary(Message, frozen=True, kw_only=True):
    """What a call returned, in a few words."""

    kind: Kind
    size: Size
    """Bytes of its arrays."""
    parts: Size
    """Chunks that the site holds; 0 where all of it stands in the reply."""


class CallStatus(Message, frozen=True, kw_only=True):
    """How a call goes (``GET /calls/{call}``)."""

    call: str
    function: str
    status: Literal["running", "finished", "failed"]
    fraction: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """As the function reports."""
    message: str = ""
    seconds: Seconds = 0.0
    """Since it began, or that it took."""
    result: ResultSummary | None = None
    failure: Failure | None = None


AnyCallEvent: TypeAlias = Accepted | CallProgress | Heartbeat | Returned | Failure
