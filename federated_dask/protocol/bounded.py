"""How much memory a call may take, told from its arguments before it is made.

A few bytes can ask for any amount: ``np.ones((10**6, 10**6))``, a repetition, the sum of a row
and a column, one operand that is concatenated a thousand times, a view that repeats a number
a billion times and is then copied.  Every operation of the table therefore has a bound:

- by default, as much as its arguments take, written out (a view that repeats counts in full);
- what works element by element: as much as the arguments broadcast together;
- what can make more of its arguments than they are: by a rule of its own (`bound_rules.RULES`);
- what only looks at its argument in another way (`bound_rules.VIEWS`): nothing.

`check_written_sizes` finds in a message what asks for too much in so many words, before
anything is built.  `most_bytes` is asked by the site right before each call, when the
arguments are there.  A bound is about what a call gives; on the way to it numpy may need a
few times as much.

Objects of Python have no size that numpy knows of.  None are made (``dtype=object``), and
nothing is computed with them that could make more of them than they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.protocol import operation_names as names
from federated_dask.protocol.bound_rules import (
    ELEMENTWISE,
    FFTS,
    RULES,
    VIEWS,
    by_default,
    elementwise,
    sparse,
)
from federated_dask.protocol.call_arguments import (
    UNBOUNDED,
    Arguments,
    are_harmless,
    dtype_keyword,
    objects_refused,
)
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.graph import CheckedBlock, CheckedGraph
from federated_dask.protocol.nodes import (
    Call,
    DataType,
    Integer,
    List,
    Node,
    Number,
    Operation,
    Partial,
    Template,
    Tuple,
    children,
    walk,
)

__all__ = [
    "WrittenSize",
    "check_written_sizes",
    "grows_objects",
    "most_bytes",
    "over",
    "written_sizes",
]

UNTOLD = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What rules raise for arguments that they, and most likely the operation, do not understand."""

GROWING_OBJECTS = frozenset(
    """
    _average _bincount_agg _chunk_sum _matmul _prefixscan_combine _tensordot accumulate add average
    chunk_einsum cumprod cumsum divmod dot dotmany float_power fmod lcm ldexp left_shift lshift
    mean mean_agg mean_chunk mean_combine mod moment_agg moment_chunk moment_combine mul multiply
    nancumprod nancumsum nanmean nanprod nanstd nansum nanvar outer pow power prod remainder square
    std sum tensordot var matmul
    """.split()
)
"""Last parts of names of operations that make more and more of texts and of long integers."""


def most_bytes(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], place: int | None = None
) -> int:
    """Bound what a call gives.

    Parameters
    ----------
    name : str
        Name of the operation.
    args, kwargs
        Its arguments.
    place : int, optional
        Where its data type may stand; see `dtype_place`.

    Returns
    -------
    int
        Bytes; 2**63 where there is no telling.

    Raises
    ------
    NotPermitted
        If it would make objects of Python of its arguments, or too much of such.

    Examples
    --------
    >>> most_bytes("numpy.ones", ((1000, 1000),), {})
    8000000
    >>> most_bytes("numpy.add", (np.ones((1, 1000)), np.ones((2000, 1))), {})
    16000000
    """
    dtype = kwargs.get(dtype_keyword(name))
    if dtype is None and place is not None and place < len(args):
        dtype = args[place]
    if name in names.CALLS and _is_object(dtype):
        # Then Dask leaves the result as it is.
        dtype = None
    try:
        given = Arguments(args, kwargs, dtype)
        growing = given.objects and grows_objects(name)
        if growing and not all(map(are_harmless, given.objects)):
            raise objects_refused()
        if given.sparse_axes:
            return max(0, sparse(name, given))
        if name in VIEWS and dtype is None and args and isinstance(args[0], np.ndarray):
            return 0
        rule = RULES.get(name) or (elementwise if name in ELEMENTWISE else by_default)
        return max(0, int(rule(given)))
    except UNTOLD:
        return UNBOUNDED


def _is_object(dtype: object) -> bool:
    return dtype is object or (isinstance(dtype, np.dtype) and dtype.kind == "O")


def grows_objects(name: str) -> bool:
    """Say whether an operation makes more and more of texts and of long integers.

    Examples
    --------
    >>> grows_objects("numpy.sum"), grows_objects("numpy.max")
    (True, False)
    """
    return name.rpartition(".")[2] in GROWING_OBJECTS


def over(name: str, limit: int) -> FederatedError:
    """Error for a call that might take more than a task may.

    It tells no number: the data may have decided on it.
    """
    return RequestRefused(
        f"{name} might take more memory than the {limit} bytes that one task may at this site.",
        reason=Reason.LIMIT_EXCEEDED,
        hint="Use smaller chunks, or compute the expression in parts.",
    )


# What is written in a message


@dataclass(frozen=True, slots=True)
class WrittenSize:
    """A call of a template that asks for a size in so many words."""

    name: str
    """The operation."""
    fixed: int
    """Bytes that each of its tasks asks for, before they are multiplied by its integers."""
    holes: tuple[int, ...]
    """Places of the integers, among those of the template, that multiply them."""

    def least_bytes(self, integers: Sequence[int]) -> int:
        """Give what a task with these integers asks for at least."""
        return self.fixed * math.prod(abs(integers[hole]) for hole in self.holes)


def check_written_sizes(checked: CheckedGraph, limit: int) -> None:
    """Refuse a graph in which a size over the limit is written.

    Parameters
    ----------
    checked : CheckedGraph
        From `check_graph`.
    limit : int
        Bytes that one task may take.

    Raises
    ------
    RequestRefused
        ``limit_exceeded``.
    """
    wanted = [written_sizes(template) for template in checked.graph.templates]
    for block in checked.blocks:
        for size in wanted[block.template]:
            if _largest(size, block) > limit:
                raise over(size.name, limit)


def _largest(size: WrittenSize, block: CheckedBlock) -> float:
    """Bytes that the largest of the tasks of a block asks for."""
    columns = np.abs(block.integers[:, size.holes].astype(np.float64))
    return float(columns.prod(axis=1).max()) * min(size.fixed, UNBOUNDED)


def written_sizes(template: Template) -> tuple[WrittenSize, ...]:
    """List the calls of a template that ask for a size, as far as that is written there.

    Examples
    --------
    >>> shape = Tuple((Integer(), Number(10)))
    >>> ones = Call(Operation("numpy.ones"), (shape,))
    >>> (size,) = written_sizes(Template((ones,)))
    >>> size.least_bytes([5])
    400
    """
    found = []
    holes = 0
    for step in template.steps:
        for node in walk(step):
            if isinstance(node, Integer):
                holes += 1
            elif isinstance(node, Call):
                size = _written_size(node, holes)
                if size is not None:
                    found.append(size)
    return tuple(found)


class _Given(NamedTuple):
    """An argument as it is written."""

    node: Node
    first: int
    """Place of its first integer hole among those of the template."""


def _written_size(call: Call, holes: int) -> WrittenSize | None:
    name, given, _ = _given(call, holes)
    if name not in SIZES:
        return None
    place, keyword, item = SIZES[name]
    size = given.get(keyword, given.get(place))
    if size is None:
        return None
    node, first = size
    parts = children(node) if isinstance(node, List | Tuple) else (node,)
    if not all(isinstance(part, Integer | Number) for part in parts):
        return None
    if len(parts) != 1 and name == "numpy.repeat":
        # What is repeated unevenly is as long as the sum of these numbers.
        return None
    fixed = math.prod(abs(part.value) for part in parts if isinstance(part, Number))
    multiplied = range(first, first + sum(isinstance(part, Integer) for part in parts))
    return WrittenSize(name, fixed * _item_bytes(given, place, item), tuple(multiplied))


def _item_bytes(given: Mapping[int | str, _Given], place: int, otherwise: int) -> int:
    """Bytes of an element, or fewer where its data type is not written."""
    if "dtype" in given:
        dtype = given["dtype"].node
        return max(1, decode_dtype(dtype.dtype).itemsize) if isinstance(dtype, DataType) else ANY
    if any(isinstance(at, int) and at > place for at in given):
        # One of them may be the data type.
        return ANY
    return otherwise


def _given(function: Node, holes: int) -> tuple[str, dict[int | str, _Given], int]:
    """Name the operation that a call reaches, with what it is given, by place and name."""
    if isinstance(function, Operation):
        return function.name, {}, holes
    if not isinstance(function, Call | Partial):
        return "", {}, holes
    name, given, holes = _given(function.function, holes)
    before = sum(isinstance(at, int) for at in given)
    parts: list[tuple[int | str, Node]] = [*enumerate(function.arguments, before)]
    for at, node in [*parts, *function.keywords]:
        given[at] = _Given(node, holes)
        holes += sum(isinstance(part, Integer) for part in walk(node))
    return name, given, holes


NUMBERS, ANY = 8, 1
"""Bytes of an element where no data type is given: those of a number, or who knows."""

SIZES: dict[str, tuple[int, str, int]] = {
    "dask.array.chunk.linspace": (2, "num", ANY),
    "dask.array.creation.linear_ramp_chunk": (2, "num", ANY),
    "federated_dask.protocol.wrappers.random_values": (3, "size", NUMBERS),
    "numpy.bincount": (2, "minlength", NUMBERS),
    "numpy.eye": (0, "N", ANY),
    "numpy.full": (0, "shape", ANY),
    "numpy.full_like": (4, "shape", ANY),
    "numpy.linspace": (2, "num", ANY),
    "numpy.ones": (0, "shape", NUMBERS),
    "numpy.ones_like": (4, "shape", ANY),
    "numpy.repeat": (1, "repeats", ANY),
    "numpy.tile": (1, "reps", ANY),
    "numpy.zeros": (0, "shape", NUMBERS),
    "numpy.zeros_like": (4, "shape", ANY),
    **{
        f"{module}.fft.{name}": (1, "n" if name.endswith("t") else "s", ANY)
        for module in ("numpy", "scipy")
        for name in FFTS
    },
}
"""Operations that ask for a size: the argument that holds it, and bytes of an element."""
