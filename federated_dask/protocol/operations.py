"""The frozen table of operations: exact name to callable, and back.

The table is built once, from names that are data of this package.  A name that
arrives from the wire is looked up in it and nowhere else: nothing is imported,
evaluated or reached by attribute, and the object found is the object called.

Some names of libraries lead to functions of our own (`wrappers.STANDING_IN`), which
look at the arguments first.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any

import numpy as np

from federated_dask.errors import NotPermitted, Reason
from federated_dask.protocol import codecs, operation_names, wrappers
from federated_dask.protocol.call_arguments import dtype_place

__all__ = ["OperationTable", "operation_table"]


class OperationTable:
    """Names and callables of the operations that a graph may use.

    Parameters
    ----------
    operations : mapping of str to callable
        The entries.
    originals : mapping of str to callable, optional
        Under which name another callable goes where an entry stands in for it: graphs
        of Dask hold the original, a site calls the entry.

    Examples
    --------
    >>> table = operation_table()
    >>> import numpy as np
    >>> table.name_of(np.nansum)
    'numpy.nansum'
    >>> table.lookup("os.system")
    Traceback (most recent call last):
    federated_dask.errors.NotPermitted: 'os.system' is not an operation. (operation_not_allowed)
    """

    def __init__(
        self,
        operations: dict[str, Callable[..., Any]],
        originals: dict[str, Callable[..., Any]] | None = None,
    ) -> None:
        self._operations = MappingProxyType(dict(operations))
        self._originals = MappingProxyType(dict(originals or {}))
        # By identity: ufuncs and curried functions compare in ways of their own.
        # The table keeps every callable alive, so no id can be taken over.
        self._names: dict[int, str] = {}
        for name, function in self._operations.items():
            self._names.setdefault(id(function), name)
        for name, function in self._originals.items():
            self._names.setdefault(id(function), name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all operations, sorted."""
        return tuple(sorted(self._operations))

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the names: two tables with the same digest have the same names."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def most_positional(self, name: str) -> int:
        """Most positional arguments of a call: fewer than would reach an output argument.

        Examples
        --------
        >>> operation_table().most_positional("numpy.add")
        2
        """
        return _most_positional(name, self.lookup(name))

    def __contains__(self, name: object) -> bool:
        return name in self._operations

    def name_of(self, function: object) -> str | None:
        """Name of a callable, or None where it is no operation."""
        name = self._names.get(id(function))
        if name is None and isinstance(function, types.BuiltinMethodType):
            # A method of a ufunc is another object whenever it is reached.
            owner = self._names.get(id(function.__self__))
            method = f"{owner}.{function.__name__}"
            if isinstance(function.__self__, np.ufunc) and method in self._operations:
                name = method
        return name

    def lookup(self, name: str) -> Callable[..., Any]:
        """Return the callable of a name.

        Raises
        ------
        NotPermitted
            If the table has no such name: reason ``operation_not_allowed``.
        """
        try:
            return self._operations[name]
        except KeyError:
            raise NotPermitted(
                f"{name[:120]!r} is not an operation.", reason=Reason.OPERATION_NOT_ALLOWED
            ) from None

    def only(self, names: Iterable[str]) -> OperationTable:
        """Return a table that has nothing but `names`."""
        kept = frozenset(names)
        return OperationTable(
            {name: function for name, function in self._operations.items() if name in kept},
            {name: function for name, function in self._originals.items() if name in kept},
        )

    def to_fields(self, instance: object) -> tuple[str, dict[str, object]] | None:
        """Codec name and fields of an instance of a registered class, or None."""
        return codecs.to_fields(instance)

    def from_fields(self, codec: str, fields: dict[str, Any]) -> Any:
        """Make the instance that codec name and fields describe."""
        return codecs.from_fields(codec, fields)


@functools.lru_cache(maxsize=4096)
def _most_positional(name: str, function: Callable[..., Any]) -> int:
    if name in operation_names.POSITIONAL:
        return operation_names.POSITIONAL[name]
    if isinstance(function, np.ufunc):
        return function.nin
    if isinstance(getattr(function, "__self__", None), np.ufunc):
        return operation_names.UFUNC_METHODS[function.__name__]
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError:
        # Types of `builtins`, which write into nothing.
        return sys.maxsize
    writing = operation_names.WRITING | ({"copy"} if name in operation_names.COPYING else set())
    places = [parameters.index(parameter) for parameter in writing if parameter in parameters]
    return min(places, default=sys.maxsize)


@functools.cache
def operation_table() -> OperationTable:
    """Return the table of this process, built from the installed libraries.

    Names that an installed version lacks are left out, so that two partners
    with different versions can still work with what both have.
    """
    operations: dict[str, Callable[..., Any]] = {}
    originals: dict[str, Callable[..., Any]] = {}
    for module_name, names in operation_names.NAMES.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        for name in names.split():
            function = vars(module).get(name)
            if callable(function):
                full = f"{module_name}.{name}"
                operations[full] = wrappers.STANDING_IN.get(full, function)
                if full in wrappers.STANDING_IN:
                    originals[full] = function
    operations.update(_special())
    if (sparse := wrappers.pydata_sparse()) is not None:
        originals |= {"sparse.COO": sparse.COO, "sparse.COO.todense": sparse.COO.todense}
        operations |= {
            "sparse.COO": wrappers.coo_array,
            "sparse.COO.todense": wrappers.dense_array,
        }
    for function in operations.values():
        # Signatures of compiled functions are parsed: now, and not while a message is checked.
        dtype_place(function)
    return OperationTable(operations, originals)


def _special() -> dict[str, Callable[..., Any]]:
    """Operations that no module holds under their own name."""
    import dask.array.wrap as wrap
    from dask.utils import methodcaller

    special: dict[str, Callable[..., Any]] = {
        f"array.{method}": methodcaller(method) for method in operation_names.METHODS.split()
    }
    for name in operation_names.UFUNCS.split():
        function = vars(np).get(name)
        if isinstance(function, np.ufunc) and function.nin == 2 and function.nout == 1:
            for method in operation_names.UFUNC_METHODS:
                special[f"numpy.{name}.{method}"] = getattr(function, method)
    # The module attribute is a toolz curry; the graph holds what is inside.
    inner = vars(wrap).get("_broadcast_trick_inner")
    if inner is not None:
        special["dask.array.wrap._broadcast_trick_inner"] = getattr(inner, "func", inner)
    return special
