"""How much each operation may make of its arguments, where it is not just as much as they are.

Every rule gives a bound on the bytes of a call's result; see `federated_dask.protocol.bounded`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from federated_dask.protocol import operation_names as names
from federated_dask.protocol.call_arguments import UNBOUNDED, Arguments, item_bytes
from federated_dask.protocol.index_sizes import indexed_elements

__all__ = [
    "ELEMENTWISE",
    "FFTS",
    "RULES",
    "VIEWS",
    "Rule",
    "by_default",
    "elementwise",
    "sparse",
]

Rule: TypeAlias = Callable[[Arguments], int]
PYTHON_OBJECT = 64
"""Bytes that a number takes as an object of Python in a list, more or less."""


def by_default(given: Arguments) -> int:
    """Bound by all that is given, written out."""
    most = given.nbytes
    if given.longest_text:
        # Texts of different lengths become as long as the longest one.
        most = max(most, given.elements * given.longest_text)
    if given.dtype is not None:
        most = max(most, given.elements * given.largest_item)
    return most


def elementwise(given: Arguments) -> int:
    """Bound by what the arguments are once they are broadcast together."""
    shapes = [shape for shape in given.shapes if shape]
    try:
        shape = np.broadcast_shapes(*shapes) if len(shapes) > 1 else (shapes or [()])[0]
    except ValueError:
        if not given.has_lists:
            # The operation refuses them, too.
            return by_default(given)
        # Lists were taken for rows, and may be something else.
        shape = tuple(map(math.prod, shapes))
    item = max(given.largest_item, given.text_bytes)
    if len(given.dtypes) > 1:
        try:
            item = max(item, np.result_type(*given.dtypes).itemsize)
        except TypeError:
            # Dates and numbers, say; the result is one of them.
            item = max(item, 16)
    return max(math.prod(shape) * item, given.nbytes)


def sparse(name: str, given: Arguments) -> int:
    """Bound what is given sparse arrays in coordinates: as if all elements were stored.

    Each then has its value and a coordinate for every axis of the result, which are no more
    than those of the arguments and one for each thing that is named.
    """
    axes = max([given.sparse_axes, *map(len, given.shapes)]) + given.parts
    if name in SLICING:
        index = given.args[1] if len(given.args) > 1 else None
        parts = index if type(index) is tuple else (index,)
        if not all(isinstance(part, int | slice) or part is Ellipsis for part in parts):
            return UNBOUNDED
    elif name in RULES and name not in names.FORWARDING:
        return UNBOUNDED
    elements = given.elements
    if name in ELEMENTWISE:
        shapes = [shape for shape in given.shapes if shape]
        elements = max(elements, math.prod(np.broadcast_shapes(*shapes)))
    return elements * (max(16, given.largest_item) + 8 * axes)


def _stored(given: Arguments) -> int:
    """Bound what makes a sparse array of a dense one."""
    return given.nbytes + 8 * given.elements * max(map(len, given.shapes))


def divided(given: Arguments) -> int:
    """Bound what gives floats of integers."""
    return elementwise(given) * (8 // min(8, given.largest_item))


def _count(shape: Any) -> int:
    if isinstance(shape, int | np.integer):
        return max(0, int(shape))
    return math.prod(max(0, int(size)) for size in shape)


def _length(argument: Any) -> int:
    return int(np.size(argument))


def _shaped(place: int, name: str = "shape", fill: int | None = None) -> Rule:
    def rule(given: Arguments) -> int:
        item = 8 if given.dtype is None else item_bytes(given.dtype)
        if fill is not None:
            filling = given.get(fill, "fill_value")
            text = 4 * len(filling) if isinstance(filling, str | bytes) else 16
            item = max(item, 0 if given.dtype is not None else getattr(filling, "itemsize", text))
        return _count(given.get(place, name, ())) * item

    return rule


def _like(given: Arguments) -> int:
    shape = given.kwargs.get("shape")
    if shape is None:
        return max(by_default(given), math.prod(given.shapes[0]) * given.largest_item)
    return _count(shape) * given.largest_item


def _eye(given: Arguments) -> int:
    rows = int(given.get(0, "N"))
    columns = given.get(1, "M")
    return rows * int(rows if columns is None else columns) * given.largest_item * 8


def _arange(given: Arguments) -> int:
    args = [given.get(place, name) for place, name in enumerate(("start", "stop", "step"))]
    start, stop, step = (args[0], args[1], args[2])
    if stop is None:
        start, stop = 0, start
    steps = (stop - start) / (1 if step is None else step)
    return (max(0, math.ceil(float(steps))) + 1) * max(8, given.largest_item)


def _linspace(given: Arguments) -> int:
    num = int(given.get(2, "num", 50))
    return (num + 1) * max(_length(given.get(0, "start")), _length(given.get(1, "stop"))) * 16


def _linspace_of_bins(given: Arguments) -> int:
    return (int(given.args[0][0]) + 1) * 16


def _ramp(given: Arguments) -> int:
    return (int(given.get(2, "num")) + 1) * _length(given.args[0]) * given.largest_item


def _repeat(given: Arguments) -> int:
    array, repeats = given.get(0, "a"), given.get(1, "repeats")
    axis = given.get(2, "axis")
    if np.ndim(repeats) == 0:
        return given.nbytes * max(1, int(repeats))
    total = int(np.sum(repeats))
    length = np.size(array) if axis is None else np.shape(array)[axis]
    return given.nbytes + given.nbytes * total // max(1, length)


def _tile(given: Arguments) -> int:
    return given.nbytes * max(1, _count(given.get(1, "reps")))


def _diag(given: Arguments) -> int:
    shape = given.shapes[0]
    if len(shape) != 1:
        return given.nbytes
    side = shape[0] + abs(int(given.get(1, "k", 0)))
    return side * side * given.largest_item


def _outer(given: Arguments) -> int:
    return _length(given.args[0]) * _length(given.args[1]) * max(8, given.largest_item)


def _product(given: Arguments) -> int:
    """Bound matrix products: what is left of both, times each other."""
    left, right = given.shapes[0], given.shapes[1]
    if not left or not right:
        return elementwise(given)
    rows = math.prod(left[:-1])
    columns = right[-1] if len(right) > 1 else 1
    batch = math.prod(right[:-2])
    return rows * columns * max(1, batch) * max(8, given.largest_item)


def _matmul(given: Arguments) -> int:
    left, right = given.shapes[0], given.shapes[1]
    if len(left) < 2 or len(right) < 2:
        return _product(given)
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    return math.prod(batch) * left[-2] * right[-1] * max(8, given.largest_item)


def _dots(given: Arguments) -> int:
    return max(
        (
            _product(Arguments(pair, {}))
            if not given.kwargs and len(given.args) < 3
            else _length(pair[0]) * _length(pair[1]) * 8 // max(1, max(np.shape(pair[0]) or (1,)))
        )
        for pair in zip(given.args[0], given.args[1], strict=False)
    )


def _tensordot(given: Arguments) -> int:
    left, right = given.shapes[0], given.shapes[1]
    axes = given.get(2, "axes", 2)
    if isinstance(axes, int | np.integer):
        kept = math.prod(left[: len(left) - axes]) * math.prod(right[axes:])
    else:
        first, second = (np.atleast_1d(each).tolist() for each in axes)
        summed = {axis % len(left) for axis in first}, {axis % len(right) for axis in second}
        kept = math.prod(size for axis, size in enumerate(left) if axis not in summed[0])
        kept *= math.prod(size for axis, size in enumerate(right) if axis not in summed[1])
    return kept * max(8, given.largest_item)


def _einsum(given: Arguments) -> int:
    inputs, _, output = str(given.kwargs["subscripts"]).partition("->")
    sizes: dict[str, int] = {}
    rest = 1
    for labels, operand in zip(inputs.split(","), given.args, strict=True):
        shape = np.shape(operand)
        before, dots, after = labels.strip().partition("...")
        named = len(before) + len(after)
        for label, size in zip(before, shape, strict=False):
            sizes[label] = max(size, sizes.get(label, 1))
        for label, size in zip(after, shape[len(shape) - len(after) :], strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
        if dots:
            rest = max(rest, math.prod(shape[len(before) : len(shape) - named + len(before)]))
    wanted = output.strip() if "->" in str(given.kwargs["subscripts"]) else "".join(sizes)
    size = math.prod(sizes[label] for label in wanted.replace(".", ""))
    return size * rest * max(8, given.largest_item)


def _bincount(given: Arguments) -> int:
    numbers = np.asarray(given.get(0, "x"))
    largest = int(numbers.max()) + 1 if numbers.size else 0
    return max(largest, int(given.get(2, "minlength", 0) or 0)) * 8 + given.nbytes


def _bins(bins: Any) -> int:
    if isinstance(bins, str):
        # How many there are would be for the data to say.
        return UNBOUNDED
    return int(bins) if np.ndim(bins) == 0 else _length(bins)


def _histogram(given: Arguments) -> int:
    return _bins(given.args[1][0]) * 16 + given.nbytes


def _histogramdd(given: Arguments) -> int:
    if "bins" in given.kwargs:
        bins, samples = given.kwargs["bins"], len(given.args)
    elif given.shapes and len(given.args) == 4 and np.ndim(given.args[0]) == 2:
        bins, samples = given.args[1], np.shape(given.args[0])[1]
    else:
        bins, samples = given.args[-3], len(given.args) - 3
    # Edges of different lengths are no array.
    each = list(bins) if isinstance(bins, list | tuple | np.ndarray) else [bins] * samples
    return math.prod(_bins(one) + 2 for one in each) * 8 + given.nbytes


def _quantile(given: Arguments) -> int:
    return given.nbytes + _length(given.get(1, "q")) * _kept(given) * 16


def _kept(given: Arguments) -> int:
    shape = given.shapes[0]
    axis = given.get(2, "axis")
    if axis is None:
        return 1
    axes = {number % len(shape) for number in np.atleast_1d(axis).tolist()}
    return math.prod(size for number, size in enumerate(shape) if number not in axes)


def _fft(given: Arguments) -> int:
    shape = given.shapes[0]
    sizes = given.get(1, "n", given.kwargs.get("s"))
    size = math.prod(shape) * 2
    if sizes is not None:
        # Each axis may become as long as it is asked to, and the transform back twice as long.
        size = math.prod(shape) * math.prod(2 * max(1, int(n)) for n in np.atleast_1d(sizes))
        axes = given.get(2, "axis", given.kwargs.get("axes"))
        asked = np.atleast_1d(sizes).tolist()
        if axes is None:
            axes = list(range(-len(asked), 0))
        for axis in np.atleast_1d(axes).tolist()[: len(asked)]:
            size //= max(1, shape[axis])
    return size * 16


def _square(given: Arguments) -> int:
    """Bound decompositions that may give whole square matrices."""
    *batch, rows, columns = given.shapes[0]
    full = given.kwargs.get("full_matrices", given.get(1, "full_matrices", True))
    whole = full is not False and full not in ("reduced", "r")
    sides = rows * rows + columns * columns if whole else 0
    return given.nbytes * 2 + sides * math.prod(batch) * max(8, given.largest_item)


def _permuted(given: Arguments) -> int:
    rows = given.shapes[0][-2]
    return given.nbytes * 3 + math.prod(given.shapes[0][:-2]) * rows * rows * 8


def _random(given: Arguments) -> int:
    size = given.get(3, "size")
    parameters = [*given.args[4:]]
    parameters += [value for name, value in given.kwargs.items() if name not in OF_RANDOM]
    lengths = [_length(parameter) for parameter in parameters] or [1]
    count = max(lengths) if size is None else _count(size)
    if given.get(1, "distribution") in SEVERAL_AT_ONCE:
        count = max(1, count) * sum(lengths)
    elif given.get(1, "distribution") == "choice":
        population = given.get(4, "a")
        count = max(1, count) * _inner(population) + (
            int(population) if np.ndim(population) == 0 else _length(population)
        )
    else:
        count = max(count, math.prod(np.broadcast_shapes(*map(np.shape, parameters))))
    return count * 8


def _inner(population: Any) -> int:
    return _length(population) // max(1, len(population)) if np.ndim(population) > 1 else 1


def _take(given: Arguments) -> int:
    array, indices, axis = given.get(0, "a"), given.get(1, "indices"), given.get(2, "axis")
    shape = np.shape(array)
    rest = 1 if axis is None else math.prod(shape) // max(1, shape[axis])
    return _length(indices) * rest * given.largest_item


def _take_chunk(given: Arguments) -> int:
    x, idx, axis = given.get(0, "x"), given.get(1, "idx"), given.get(4, "axis")
    return int(_length(idx) * (x.size // max(1, x.shape[axis])) * x.itemsize)


def _take_aggregate(given: Arguments) -> int:
    idx, x, axis = given.get(0, "idx"), given.get(1, "chunk_outputs"), given.get(3, "axis")
    return int(_length(idx) * (x.size // max(1, x.shape[axis])) * x.itemsize)


def _getitem(place: int = 1, *, inner: bool = False, variadic: bool = False) -> Rule:
    def rule(given: Arguments) -> int:
        array = given.args[0]
        index = given.args[1:] if variadic else given.args[place]
        if inner:
            index = index[1]
        if not isinstance(array, np.ndarray):
            return 0
        return indexed_elements(array.shape, index) * array.itemsize

    return rule


def _vindex(given: Arguments) -> int:
    indexer, array = given.args
    return int(indexed_elements(array.shape, indexer) * array.itemsize)


def _vindex_slice(given: Arguments) -> int:
    block, points = given.args[:2]
    index = tuple(part if isinstance(part, slice) else list(part) for part in points)
    return int(indexed_elements(block.shape, index) * block.itemsize)


def _windows(given: Arguments) -> int:
    window = given.get(1, "window_shape")
    return given.nbytes * max(1, _count(window))


def _tiles(given: Arguments) -> int:
    """Bound what is put together of blocks: Dask takes its size from the first ones alone."""
    lengths = []
    first: Any = given.args[0]
    depth = 0
    while isinstance(first, list | tuple) and first:
        leaves = [_first_leaf(part) for part in first]
        lengths.append(sum(np.shape(leaf)[depth] for leaf in leaves if np.ndim(leaf) > depth))
        first, depth = first[0], depth + 1
    rest = math.prod(np.shape(first)[depth:])
    return int(max(given.nbytes, math.prod(lengths) * rest * given.largest_item))


def _first_leaf(part: Any) -> Any:
    while isinstance(part, list | tuple) and part:
        part = part[0]
    return part


def _tiles_by(given: Arguments) -> int:
    # Sorted into place first; no block is then larger along an axis than all are long.
    shapes = [np.shape(leaf) for leaf in _leaves(given.args[0])]
    depth = max(map(len, shapes), default=0)
    longest = [sum(shape[axis] for shape in shapes if len(shape) > axis) for axis in range(depth)]
    count = len(shapes)
    if all(shape == shapes[0] for shape in shapes):
        return given.nbytes
    most = [max(shape[axis] for shape in shapes if len(shape) > axis) for axis in range(depth)]
    return int(
        max(given.nbytes, min(math.prod(longest), count * math.prod(most)) * given.largest_item)
    )


def _leaves(arrays: Any) -> list[Any]:
    stack, found = [arrays], []
    while stack:
        part = stack.pop()
        if isinstance(part, list | tuple):
            stack.extend(part)
        else:
            found.append(part)
    return found


def _grouped(given: Arguments) -> int:
    """Bound a reduction by groups: what is left of the array, once for every group."""
    array, by = given.get(0, "array"), given.get(1, "by")
    if type(array) is tuple:
        array = array[0]
    expected = given.kwargs.get("expected_groups")
    groups = _length(by) if expected is None else len(expected)
    axis = given.kwargs.get("axis")
    reduced = len(axis) if isinstance(axis, list | tuple) else np.ndim(by)
    kept = math.prod(array.shape[: array.ndim - reduced])
    functions = given.kwargs.get("func", ())
    several = len(functions) if isinstance(functions, list | tuple) else 1
    return int(max(given.nbytes, kept * groups * 8 * max(1, several)))


def _groups_put_in(given: Arguments) -> int:
    """Bound what puts found groups at the places of the expected ones."""
    expected = given.kwargs.get("expected_groups", given.kwargs.get("unique_groups"))
    if expected is None:
        return given.nbytes
    return given.nbytes * 2 + 8 * len(expected) * max(1, given.nbytes // 64)


def _along(given: Arguments) -> int:
    """Bound a function of slices by what it gives for the first one."""
    function, axis, array, *arguments = given.args
    array = np.asarray(array)
    count = array.size // max(1, array.shape[axis])
    if not count:
        return given.nbytes
    first = np.moveaxis(array, axis, -1)[(0,) * (array.ndim - 1)]
    found = function(first, *arguments, **given.kwargs)
    return int(max(given.nbytes, count * np.asarray(found).nbytes))


def _listed(given: Arguments) -> int:
    return sum(len(part) for part in given.args if hasattr(part, "__len__")) * PYTHON_OBJECT


def _nothing(given: Arguments) -> int:
    return 0


OF_RANDOM = frozenset({"dtype", "endpoint", "method", "replace", "shuffle", "size"})
"""Arguments of random distributions that are not their parameters."""

SEVERAL_AT_ONCE = frozenset(
    {"dirichlet", "multinomial", "multivariate_hypergeometric", "multivariate_normal"}
)

VIEWS = frozenset(
    f"numpy.{name}"
    for name in """
    asanyarray asarray atleast_1d atleast_2d atleast_3d broadcast_to diagonal expand_dims flip imag
    moveaxis real rollaxis rot90 squeeze swapaxes transpose
    """.split()
) | {"federated_dask.protocol.wrappers.attribute", "federated_dask.protocol.wrappers.identity"}
"""Operations that look at their first argument in another way, if it is an array."""

FFTS = "fft fft2 fftn hfft ifft ifft2 ifftn ihfft irfft irfft2 irfftn rfft rfft2 rfftn".split()

ELEMENTWISE = (
    frozenset(f"numpy.{name}" for name in names.UFUNCS.split())
    | frozenset(
        f"operator.{name}"
        for name in """
        abs add and_ eq floordiv ge gt inv invert le lshift lt mod mul ne neg or_ pos pow rshift sub
        xor
        """.split()
    )
    | frozenset(f"numpy.{name}" for name in "choose clip isclose ravel_multi_index where".split())
    | frozenset(f"numpy.ma.{name}" for name in "masked_where where".split())
    | {
        names.WHERE,
        "dask.array.routines._select",
        "dask.array.routines.variadic_choose",
        "federated_dask.protocol.wrappers.masked_array",
    }
)
"""Operations whose arguments are broadcast together."""

SLICING = frozenset(
    f"dask.array.{name}" for name in ("chunk.getitem", "core.getter", "core.getter_nofancy")
) | {"dask.array.core.getter_inline", "operator.getitem"}
"""Operations that read by slices; sparse arrays by nothing else."""

RULES: dict[str, Rule] = {
    **{f"{module}.fft.{name}": _fft for module in ("numpy", "scipy") for name in FFTS},
    **dict.fromkeys((f"numpy.{name}.outer" for name in names.UFUNCS.split()), _outer),
    "builtins.list": _listed,
    "builtins.tuple": _listed,
    "builtins.dict": _listed,
    "dask.array._shuffle._getitem": _getitem(inner=True),
    "dask.array.chunk.arange": _arange,
    "dask.array.chunk.getitem": _getitem(),
    "dask.array.chunk.linspace": _linspace,
    "dask.array.chunk.slice_with_int_dask_array": _take_chunk,
    "dask.array.chunk.slice_with_int_dask_array_aggregate": _take_aggregate,
    "dask.array.core._get_chunk_shape": _nothing,
    "dask.array.core._numpy_vindex": _vindex,
    "dask.array.core._vindex_slice_and_transpose": _vindex_slice,
    "dask.array.core.concatenate3": _tiles,
    "dask.array.core.concatenate_axes": _tiles_by,
    "dask.array.core.concatenate_shaped": _tiles_by,
    "dask.array.core.dotmany": _dots,
    "dask.array.core.finalize": _tiles,
    "dask.array.core.getter": _getitem(),
    "dask.array.core.getter_inline": _getitem(),
    "dask.array.core.getter_nofancy": _getitem(),
    "dask.array.creation.linear_ramp_chunk": _ramp,
    "dask.array.einsumfuncs.chunk_einsum": _einsum,
    "dask.array.reductions._custom_nanquantile": _quantile,
    "dask.array.routines._block_hist": _histogram,
    "dask.array.routines._block_histogramdd_multiarg": _histogramdd,
    "dask.array.routines._block_histogramdd_rect": _histogramdd,
    "dask.array.routines._linspace": _linspace_of_bins,
    "dask.array.routines._matmul": _matmul,
    "dask.array.routines._tensordot": _tensordot,
    "dask.array.slicing.getitem_variadic": _getitem(variadic=True),
    "dask.array.wrap._broadcast_trick_inner": _nothing,
    "federated_dask.protocol.wrappers.along_axis": _along,
    "federated_dask.protocol.wrappers.random_values": _random,
    "flox.core._reduce_blockwise": _grouped,
    "flox.core.chunk_argreduce": _grouped,
    "flox.core.chunk_reduce": _grouped,
    "flox.dask._aggregate": _groups_put_in,
    "flox.dask.reindex_intermediates": _groups_put_in,
    "numpy.arange": _arange,
    "numpy.bincount": _bincount,
    "numpy.diag": _diag,
    "numpy.divide": divided,
    "numpy.dot": _product,
    "numpy.eye": _eye,
    "numpy.full": _shaped(0, fill=1),
    "numpy.full_like": _like,
    "numpy.lib.stride_tricks.sliding_window_view": _windows,
    "numpy.linalg.qr": _square,
    "numpy.linalg.svd": _square,
    "numpy.linspace": _linspace,
    "numpy.nanquantile": _quantile,
    "numpy.ones": _shaped(0),
    "numpy.ones_like": _like,
    "numpy.outer": _outer,
    "numpy.percentile": _quantile,
    "numpy.quantile": _quantile,
    "numpy.repeat": _repeat,
    "numpy.take": _take,
    "numpy.tensordot": _tensordot,
    "numpy.tile": _tile,
    "numpy.zeros": _shaped(0),
    "numpy.zeros_like": _like,
    "operator.getitem": _getitem(),
    "operator.matmul": _matmul,
    "operator.truediv": divided,
    "scipy.linalg.lu": _permuted,
    "sparse.COO": _stored,
}
"""Operations that can make more of their arguments than these are."""
