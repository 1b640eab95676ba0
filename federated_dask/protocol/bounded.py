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

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
)
from federated_dask.protocol.call_arguments import (
    UNBOUNDED,
    Arguments,
    are_harmless,
    objects_refused,
)
from federated_dask.protocol.graph import CheckedBlock, CheckedGraph
from federated_dask.protocol.nodes import (
    Call,
    Integer,
    List,
    Node,
    Number,
    Operation,
    Template,
    Tuple,
    children,
    walk,
)

__all__ = ["check_written_sizes", "dtype_place", "most_bytes", "over"]

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

DTYPE_KEYWORDS = {
    names.ENFORCE: "enforce_dtype",
    names.PASS: "enforce_dtype",
    "federated_dask.protocol.wrappers.masked_array": "masked_dtype",
    "dask.array.chunk.astype": "astype_dtype",
}


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
    dtype = kwargs.get(DTYPE_KEYWORDS.get(name, "dtype"))
    if dtype is None and place is not None and place < len(args):
        dtype = args[place]
    if name in names.CALLS and _is_object(dtype):
        # Then Dask leaves the result as it is.
        dtype = None
    try:
        given = Arguments(args, kwargs, dtype)
        growing = given.objects and name.rpartition(".")[2] in GROWING_OBJECTS
        if growing and not all(map(are_harmless, given.objects)):
            raise objects_refused()
        if name in VIEWS and dtype is None and args and isinstance(args[0], np.ndarray):
            return 0
        rule = RULES.get(name) or (elementwise if name in ELEMENTWISE else by_default)
        return max(0, int(rule(given)))
    except UNTOLD:
        return UNBOUNDED


def _is_object(dtype: object) -> bool:
    return dtype is object or (isinstance(dtype, np.dtype) and dtype.kind == "O")


def dtype_place(function: Callable[..., Any]) -> int | None:
    """Tell at which place a data type may be given to an operation.

    Examples
    --------
    >>> dtype_place(np.full)
    2
    """
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    for parameter in ("dtype", "astype_dtype"):
        if parameter in parameters:
            return parameters.index(parameter)
    return None


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
    wanted = [list(_written(template)) for template in checked.graph.templates]
    for block in checked.blocks:
        for name, factors in wanted[block.template]:
            if _least_elements(factors, block) > limit:
                raise over(name, limit)


def _written(template: Template) -> Iterator[tuple[str, list[Number | int]]]:
    """Give operations that ask for a size, and the factors of it that are written there.

    A factor is a number, or the place of a hole for an integer.
    """
    holes = 0
    for step in template.steps:
        for node in walk(step):
            if isinstance(node, Integer):
                holes += 1
            elif isinstance(node, Call) and isinstance(node.function, Operation):
                size = SIZES.get(node.function.name)
                found = [] if size is None else list(_factors(node, holes, *size))
                if found:
                    yield node.function.name, found


def _factors(call: Call, holes: int, place: int, keyword: str) -> Iterator[Number | int]:
    parts: list[tuple[bool, Node]] = [(at == place, arg) for at, arg in enumerate(call.arguments)]
    parts += [(name == keyword, value) for name, value in call.keywords]
    for is_size, part in parts:
        is_plain = is_size and _is_plain(part)
        for node in walk(part):
            if isinstance(node, Integer):
                if is_plain:
                    yield holes
                holes += 1
            elif is_plain and isinstance(node, Number):
                yield node


def _is_plain(node: Node) -> bool:
    """Whether it is a size: a number, or a sequence of numbers."""
    if isinstance(node, List | Tuple):
        return all(isinstance(item, Integer | Number) for item in children(node))
    return isinstance(node, Integer | Number)


def _least_elements(factors: list[Number | int], block: CheckedBlock) -> float:
    """Largest product of the factors among the tasks of a block."""
    fixed = math.prod(abs(factor.value) for factor in factors if isinstance(factor, Number))
    holes = [factor for factor in factors if isinstance(factor, int)]
    if not holes:
        return float(min(fixed, UNBOUNDED))
    columns = np.abs(block.integers[:, holes].astype(np.float64))
    return float(columns.prod(axis=1).max()) * min(fixed, UNBOUNDED)


SIZES: dict[str, tuple[int, str]] = {
    "dask.array.chunk.linspace": (2, "num"),
    "dask.array.creation.linear_ramp_chunk": (2, "num"),
    "federated_dask.protocol.wrappers.random_values": (3, "size"),
    "numpy.bincount": (2, "minlength"),
    "numpy.eye": (0, "N"),
    "numpy.full": (0, "shape"),
    "numpy.full_like": (4, "shape"),
    "numpy.linspace": (2, "num"),
    "numpy.ones": (0, "shape"),
    "numpy.ones_like": (4, "shape"),
    "numpy.repeat": (1, "repeats"),
    "numpy.tile": (1, "reps"),
    "numpy.zeros": (0, "shape"),
    "numpy.zeros_like": (4, "shape"),
    **{
        f"{module}.fft.{name}": (1, "n" if name.endswith("t") else "s")
        for module in ("numpy", "scipy")
        for name in FFTS
    },
}
"""Operations that ask for a size, and the argument that holds it."""
