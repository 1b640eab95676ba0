"""Arguments of a call: checked at the endpoint, before anything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from federated_dask.errors import FederatedError, NotPermitted, Reason
from federated_dask.protocol.call_messages import (
    Argument,
    DatasetArgument,
    HeldArgument,
    PlainArgument,
    SentArgument,
)
from federated_dask.protocol.messages import Failure
from federated_dask.protocol.structures import (
    ArrayObject,
    DataArrayObject,
    DatasetObject,
    Object,
    PlainObject,
    TableObject,
    check_parts,
)
from federated_dask.protocol.trees import (
    ArrayValue,
    MaskedValue,
    ObjectArrayValue,
    TextArrayValue,
)
from site_plugins.calling import Data, HeldData, PlainData, SentData, StoredData
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.failures import JobFailed
from site_plugins.endpoint.jobs import JobRunner
from site_plugins.endpoint.running import Pull
from site_plugins.signatures import ArgumentError, Parameter
from site_plugins.tokens import Principal

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["Passing"]

FITS: dict[type, tuple[str, ...]] = {
    PlainObject: ("value", "ndarray"),
    ArrayObject: ("ndarray",),
    DatasetObject: ("dataset", "dataarray"),
    DataArrayObject: ("dataarray", "ndarray"),
    TableObject: ("dataframe",),
}
"""For which kinds of parameters an object may stand."""
NAMED: dict[type, str] = {
    PlainObject: "a value",
    ArrayObject: "an array",
    DatasetObject: "a Dataset",
    DataArrayObject: "a DataArray",
    TableObject: "a DataFrame",
}
ARRAYS = (ArrayValue, MaskedValue, ObjectArrayValue, TextArrayValue)
SMALL_PLAIN = 1_000
"""Items of plain data up to which they are validated in the event loop."""


class Passing:
    """Checks the arguments of one call, and gathers what it needs for them.

    Parameters
    ----------
    jobs : JobRunner
        Knows datasets and held results.
    delegations : mapping of str to str
        Of the submission.
    function : str or None
        Name of what is called; None for code of the caller's own, to which datasets
        are given as to the caller.
    principal : Principal
        Who asks.
    """

    def __init__(
        self,
        jobs: JobRunner,
        delegations: Mapping[str, str],
        function: str | None,
        principal: Principal,
    ) -> None:
        self.jobs = jobs
        self.gateway = jobs.gateway
        self.delegations = dict(delegations)
        self.function = function
        self.principal = principal
        self.derived: set[str] = set()
        """Datasets that the arguments derive from."""
        self.read: set[str] = set()
        """Datasets that are opened for the function."""
        self.closed: set[str] = set()
        """Those of them from which nothing but what the function gives may leave."""
        self.keys: list[Key] = []
        self.pulls: list[Pull] = []

    async def argument(self, parameter: Parameter, argument: Argument) -> Data:
        """Check one argument.

        Raises
        ------
        ArgumentError
            If it does not fit its parameter.
        JobFailed
            If what it refers to cannot be used; the failure names the argument.
        """
        try:
            return await self._argument(parameter, argument)
        except JobFailed:
            raise
        except FederatedError as error:
            error.site = error.site or self.gateway.site
            failure = Failure.from_error(error)
            raise JobFailed(msgspec.structs.replace(failure, argument=parameter.name)) from None

    async def _argument(self, parameter: Parameter, argument: Argument) -> Data:
        match argument:
            case PlainArgument():
                return await self._plain(parameter, argument)
            case DatasetArgument():
                return await self._dataset(parameter, argument)
            case SentArgument():
                _check_kind(parameter, argument.content)
                check_parts(argument.content, 0)
                return SentData(argument.content)
            case HeldArgument():
                return await self._held(parameter, argument)

    async def _plain(self, parameter: Parameter, argument: PlainArgument) -> Data:
        value = argument.value
        if parameter.kind not in ("value", "any") and isinstance(value, str):
            return await self._dataset(parameter, self._reference(parameter, value))
        if parameter.kind == "any" or _is_small(value):
            parameter.fitted(value)
        else:
            await asyncio.to_thread(parameter.fitted, value)
        return PlainData(value)

    def _reference(self, parameter: Parameter, text: str) -> DatasetArgument:
        """Read ``name``, ``site/name`` or either with ``/variable`` behind."""
        first, _, rest = text.partition("/")
        if first == self.gateway.site and rest:
            first, _, rest = rest.partition("/")
        try:
            return msgspec.convert(
                {"type": "dataset", "name": first, "variable": rest or None}, DatasetArgument
            )
        except msgspec.ValidationError:
            raise ArgumentError(
                parameter.name, "is no name of a dataset: letters, digits, dot, dash, underscore"
            ) from None

    async def _dataset(self, parameter: Parameter, argument: DatasetArgument) -> Data:
        if parameter.kind == "value":
            raise ArgumentError(parameter.name, "takes plain data, not a dataset")
        if parameter.kind == "dataframe":
            raise ArgumentError(parameter.name, "takes a DataFrame, not a dataset")
        access = self.jobs.access
        if self.function is None:
            stored = await access.source(self.principal, argument.name)
        else:
            stored = await access.dataset(self.principal, "compute", argument.name)
            access.require_license(self.principal, stored)
            if stored.egress == "functions-only" and self.function not in stored.functions:
                raise NotPermitted(
                    f"Function {self.function!r} may not read dataset {stored.name!r}.",
                    reason=Reason.NOT_PERMITTED,
                    hint="The site's operator names the functions that may, in site.toml.",
                )
        description, _ = await self.gateway.description(stored)
        names = [name for name, each in description.variables.items() if not each.coordinate]
        variable = argument.variable
        if variable is not None and variable not in description.variables:
            listed = ", ".join(names[:20])
            raise ArgumentError(
                parameter.name, f"names a variable that is not there; there are {listed}"
            )
        if variable is None and parameter.kind not in ("dataset", "any"):
            if len(names) != 1:
                listed = ", ".join(names[:20])
                raise ArgumentError(
                    parameter.name,
                    f"must be one variable: name one of the dataset's ({listed})",
                )
            [variable] = names
        self.read.add(stored.name)
        if stored.egress == "functions-only":
            # What such a function gives of such a dataset is what its owner lets everybody have.
            self.closed.add(stored.name)
        else:
            self.derived.add(stored.name)
        return StoredData(stored, description.version, variable)

    async def _held(self, parameter: Parameter, argument: HeldArgument) -> Data:
        _check_kind(parameter, argument.content)
        check_parts(argument.content, len(argument.held))
        held, pulls = await self.jobs.admission.operands_held(
            argument.held, self.delegations, owner_of(self.principal)
        )
        self.pulls += pulls
        keys = tuple(each.key for each in held)
        self.keys += keys
        self.derived.update(*(each.label for each in held))
        return HeldData(argument.content, keys)


def _check_kind(parameter: Parameter, content: Object) -> None:
    if parameter.kind == "any":
        return
    fits, named = FITS[type(content)], NAMED[type(content)]
    if isinstance(content, PlainObject) and isinstance(content.value, ARRAYS):
        fits, named = FITS[ArrayObject], NAMED[ArrayObject]
    if parameter.kind not in fits:
        raise ArgumentError(
            parameter.name, f"takes {parameter.description.annotation}, not {named}"
        )


def _is_small(value: object) -> bool:
    """Whether plain data is validated soon."""
    count = 0
    stack = [value]
    while stack and count <= SMALL_PLAIN:
        part = stack.pop()
        count += 1
        if isinstance(part, dict):
            count += len(part)
            stack.extend(part.values() if len(part) <= SMALL_PLAIN else ())
        elif isinstance(part, list | tuple):
            count += len(part)
            stack.extend(part if len(part) <= SMALL_PLAIN else ())
        elif isinstance(part, str | bytes):
            count += len(part) // 64
    return count <= SMALL_PLAIN
