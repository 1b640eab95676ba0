"""What the arguments of a call hold: bytes, shapes, the largest element, objects of Python."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from federated_dask.errors import FederatedError, NotPermitted, Reason
from federated_dask.protocol import operation_names as names

__all__ = [
    "UNBOUNDED",
    "Arguments",
    "are_harmless",
    "dtype_keyword",
    "dtype_place",
    "item_bytes",
    "objects_refused",
]

UNBOUNDED = 2**63
MOST_PARTS = 1_000_000
"""Parts of lists that are counted: lists that share their parts can have any number of them."""
INT64 = range(-(2**63), 2**64)
TEXT_BYTES = 4
"""Bytes of a character in an array of texts."""


DTYPE_KEYWORDS = {
    names.ENFORCE: "enforce_dtype",
    names.PASS: "enforce_dtype",
    "federated_dask.protocol.wrappers.masked_array": "masked_dtype",
    "dask.array.chunk.astype": "astype_dtype",
}


def dtype_keyword(name: str) -> str:
    """Name the argument in which an operation takes a data type.

    Examples
    --------
    >>> dtype_keyword("numpy.ones")
    'dtype'
    """
    return DTYPE_KEYWORDS.get(name, "dtype")


@functools.cache
def dtype_place(function: Callable[..., Any]) -> int | None:
    """Tell at which place a data type may be given to an operation.

    Examples
    --------
    >>> dtype_place(np.full)
    2
    """
    if isinstance(function, np.ufunc | type):
        return None
    if isinstance(getattr(function, "__self__", None), np.ufunc):
        return {"accumulate": 2}.get(function.__name__)
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    for parameter in ("dtype", "astype_dtype"):
        if parameter in parameters:
            return parameters.index(parameter)
    return None


class Arguments:
    """Arguments of one call, and how much there is of them.

    Parameters
    ----------
    args, kwargs
        As they are given to the operation.
    dtype : object, optional
        What was given for the data type of the result.

    Examples
    --------
    >>> given = Arguments((np.zeros((2, 3)), [1, 2]), {})
    >>> given.nbytes, given.elements, given.shapes
    (64, 8, [(2, 3), (2,)])
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], dtype: object = None
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.dtype = dtype
        self.shapes: list[tuple[int, ...]] = []
        """Of the arguments that are arrays, and of lists as if they were rows."""
        self.has_lists = False
        self.nbytes = 0
        """Written out: an array that repeats itself counts in full."""
        self.elements = 0
        self.largest_item = 1
        self.dtypes: set[np.dtype] = set()
        """Of the arrays."""
        self.longest_text = 0
        """Bytes of the longest element that is text."""
        self.text_bytes = 0
        """Bytes of one element of each of the texts together, as adding them gives."""
        self.objects: list[Any] = []
        """Arrays of objects, and integers that numpy would make such of."""
        self.sparse_axes = 0
        """Most axes of a sparse array in coordinates among them; 0 without such."""
        self.parts = 0
        """Numbers, texts, arrays and sequences in them, one by one."""
        for argument in args:
            self._measure(argument)
        for argument in kwargs.values():
            self._measure(argument)
        if dtype is not None:
            self.largest_item = max(self.largest_item, item_bytes(dtype))

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Give an argument by its place or name."""
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, default)

    def _measure(self, argument: object) -> None:
        before = self.elements
        kind = type(argument)
        if kind is np.ndarray:
            self._add_array(argument)
            self.shapes.append(argument.shape)  # type: ignore[attr-defined]
            return
        if kind is str:
            # An option, or what texts of an array are compared and joined with.
            self.nbytes += TEXT_BYTES * len(argument)  # type: ignore[arg-type]
            self.text_bytes += TEXT_BYTES * len(argument)  # type: ignore[arg-type]
            return
        self._add(argument)
        shape = getattr(argument, "shape", None)
        if type(shape) is tuple:
            self.shapes.append(shape)
        elif kind is list or kind is tuple:
            self.has_lists = True
            self.shapes.append((self.elements - before,))

    def _add(self, first: object) -> None:
        stack = [first]
        while stack:
            part = stack.pop()
            self.parts += 1
            if self.parts > MOST_PARTS:
                self.nbytes = self.elements = UNBOUNDED
                return
            kind = type(part)
            if kind is np.ndarray or isinstance(part, np.ndarray | np.generic):
                self._add_array(part)
            elif kind is int:
                if part not in INT64:
                    self.objects.append(part)
                self.nbytes += 8
                self.elements += 1
            elif part is None or kind in (float, bool, slice):
                self.nbytes += 8
                self.elements += 1
            elif kind in (list, tuple):
                stack.extend(part)  # type: ignore[arg-type]
            elif kind is dict:
                stack.extend(part.values())  # type: ignore[attr-defined]
            elif kind in (str, bytes, bytearray):
                size = TEXT_BYTES * len(part)  # type: ignore[arg-type]
                self.nbytes += size
                self.elements += 1
                self.longest_text = max(self.longest_text, size)
            elif isinstance(part, np.dtype):
                self.largest_item = max(self.largest_item, part.itemsize)
            else:
                self._add_instance(part, stack)

    def _add_array(self, array: Any) -> None:
        self.elements += array.size
        self.nbytes += array.size * array.itemsize
        self.largest_item = max(self.largest_item, array.itemsize)
        self.dtypes.add(array.dtype)
        kind = array.dtype.kind
        if kind in "SU":
            self.longest_text = max(self.longest_text, array.itemsize)
            self.text_bytes += array.itemsize
        elif kind == "O":
            self.objects.append(array)
        elif kind == "T":
            raise objects_refused()

    def _add_instance(self, part: Any, stack: list[Any]) -> None:
        arrays = getattr(part, "arrays", None)
        if type(arrays) is tuple:
            stack.extend(arrays)
        elif hasattr(part, "coords") and hasattr(part, "nnz"):
            # Operations may write it out.
            size = math.prod(part.shape)
            self.sparse_axes = max(self.sparse_axes, 1, part.ndim)
            self.nbytes += size * part.dtype.itemsize
            self.elements += size
            self.largest_item = max(self.largest_item, part.dtype.itemsize)
            self.dtypes.add(part.dtype)
        elif hasattr(part, "indptr"):
            # A sparse array: summed up, it is as long as its axes.
            self.nbytes += 2 * part.data.nbytes + 8 * sum(part.shape)
            self.elements += part.data.size
            self.largest_item = max(self.largest_item, part.dtype.itemsize)
        elif not callable(part) and hasattr(part, "__len__"):
            # An index of pandas may be a range of any length.
            self.nbytes += 8 * len(part)
            self.elements += len(part)
            if getattr(getattr(part, "dtype", None), "kind", "b") not in "biufcmM":
                self.objects.append(part)
        else:
            self.nbytes += 8
            self.elements += 1


def item_bytes(dtype: object) -> int:
    """Bytes of an element of what was given as a data type.

    Raises
    ------
    NotPermitted
        If elements would be objects of Python.
    TypeError
        If it is no data type.

    Examples
    --------
    >>> item_bytes("U5"), item_bytes(float)
    (20, 8)
    """
    if isinstance(dtype, str | np.dtype | type):
        try:
            known = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError, OverflowError, MemoryError, RecursionError):
            # The operation will say so.
            return 8
        if known.hasobject or known.kind == "T":
            raise objects_refused()
        return known.itemsize
    if callable(dtype) or dtype is None:
        return 8
    if isinstance(dtype, list | tuple) and all(
        part is None or isinstance(part, np.dtype | type) for part in dtype
    ):
        # One for each of several results.
        return max((item_bytes(part) for part in dtype if part is not None), default=8)
    # Numpy would read sequences as descriptions of structures, of any size.
    raise TypeError("no data type")


def are_harmless(part: Any) -> bool:
    """Whether all elements stay as small as they are, whatever is computed with them."""
    if not isinstance(part, np.ndarray):
        return False
    return all(
        element is None
        or type(element) in (float, bool)
        or type(element).__module__ in ("cftime", "cftime._cftime", "datetime")
        for element in part.flat
    )


def objects_refused() -> FederatedError:
    """Error for objects of Python of which there might be more and more."""
    return NotPermitted(
        "Objects of Python are not made or computed with at a site.",
        reason=Reason.OPERATION_NOT_ALLOWED,
        hint="Convert to a plain data type first.",
    )
