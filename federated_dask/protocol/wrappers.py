"""Operations of our own, in place of library functions that no table may hold.

Dask's functions for random numbers, for ``where=`` and ``out=``, and for masked arrays
call by name, write into what they are given, or keep hold of it.  These do the same
work from closed sets and on copies.  The planner puts them where the others stood.

Others would do harm with some arguments only: give memory that nobody wrote, or
compute for hours without letting any other thread run.  `STANDING_IN` holds what the
operation table calls under their names; it looks at the arguments first.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from federated_dask.protocol.limits import LARGEST_INTEGER_BITS

__all__ = [
    "STANDING_IN",
    "along_axis",
    "attribute",
    "coo_array",
    "dense_array",
    "elementwise_where",
    "identity",
    "masked_array",
    "pydata_sparse",
    "random_values",
    "slice_of",
    "sparse_array",
    "with_items",
]

SEEDED = "RandomState"
BIT_GENERATORS: dict[str, Callable[[Any], Any]] = {
    cls.__name__: cls
    for cls in (
        np.random.MT19937,
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.Philox,
        np.random.SFC64,
    )
}
_SHARED = """
    beta binomial chisquare choice dirichlet exponential f gamma geometric gumbel hypergeometric
    laplace logistic lognormal logseries multinomial multivariate_normal negative_binomial
    noncentral_chisquare noncentral_f normal pareto poisson power rayleigh standard_cauchy
    standard_exponential standard_gamma standard_normal standard_t triangular uniform vonmises wald
    weibull zipf
"""
GENERATOR = {
    name: getattr(np.random.Generator, name)
    for name in f"{_SHARED} integers multivariate_hypergeometric random".split()
}
RANDOM_STATE = {
    name: getattr(np.random.RandomState, name)
    for name in f"{_SHARED} randint random_integers random_sample tomaxint".split()
}
ATTRIBUTES: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda array: array.dtype,
    "nbytes": lambda array: array.nbytes,
    "ndim": lambda array: array.ndim,
    "shape": lambda array: array.shape,
    "size": lambda array: array.size,
    "T": lambda array: array.T,
}
SPARSE = frozenset({"csc_array", "csc_matrix", "csr_array", "csr_matrix"})
MASKED_KEYWORDS = frozenset({"fill_value", "keep_mask", "ndmin", "shrink", "subok"})


def identity(value: Any) -> Any:
    """Give back what was given.

    Examples
    --------
    >>> identity(3)
    3
    """
    return value


def random_values(
    generator: str, distribution: str, seed: Any, size: Any, *arguments: Any, **keywords: Any
) -> Any:
    """Draw random values, the same ones for the same seed.

    Parameters
    ----------
    generator : str
        ``RandomState``, or the name of a bit generator of numpy.
    distribution : str
        Name of a method that draws values.
    seed : SeedSequence, int, or ndarray of unsigned int
        What the generator starts from.
    size : int or tuple of int
        Shape of the result.
    *arguments, **keywords : object
        Parameters of the distribution.

    Returns
    -------
    ndarray or scalar

    Raises
    ------
    ValueError
        If a name is not one of the closed sets, or the seed is something else.

    Examples
    --------
    >>> random_values("PCG64", "integers", 7, (3,), 0, 10).shape
    (3,)
    """
    _check_seed(seed)
    if keywords.get("out") is not None:
        raise ValueError("random values are not written into an argument")
    if generator == SEEDED:
        state: Any = np.random.RandomState(seed)
        methods = RANDOM_STATE
    elif generator in BIT_GENERATORS:
        state = np.random.Generator(BIT_GENERATORS[generator](seed))
        methods = GENERATOR
    else:
        raise ValueError(f"no random generator {generator!r}")
    if distribution not in methods:
        raise ValueError(f"no random distribution {distribution!r}")
    return methods[distribution](state, *arguments, size=size, **keywords)


def _check_seed(seed: Any) -> None:
    whole = isinstance(seed, np.ndarray) and seed.dtype.kind in "ui"
    if not whole and not isinstance(seed, np.random.SeedSequence | int | np.integer):
        raise ValueError("a seed is made of integers")


def elementwise_where(
    function: Callable[..., Any], where: Any, into: Any, *arguments: Any, **keywords: Any
) -> Any:
    """Apply a ufunc where `where` is true; elsewhere stands what `into` holds.

    Parameters
    ----------
    function : callable
        A ufunc.
    where : bool or ndarray of bool
        Where to compute.
    into : ndarray or None
        Values for the rest; copied, never written into. Zeros by default.
    *arguments, **keywords : object
        Arguments of `function`.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError
        If `into` is something else.

    Examples
    --------
    >>> elementwise_where(np.add, np.array([True, False]), np.zeros(2), np.ones(2), 1)
    array([2., 0.])
    """
    if into is None:
        # numpy would leave memory that nobody wrote there.
        with np.errstate(all="ignore"):
            like = function(*arguments, **keywords)
        several = like if isinstance(like, tuple) else (like,)
        shape = np.broadcast_shapes(np.shape(where), np.shape(several[0]))
        fresh = tuple(np.zeros(shape, each.dtype) for each in several)
        return function(*arguments, where=where, out=fresh, **keywords)
    if not isinstance(into, np.ndarray):
        raise TypeError("values for the rest are an array")
    return function(*arguments, where=where, out=into.copy(), **keywords)


def attribute(array: Any, name: str) -> Any:
    """Give a property of an array.

    Parameters
    ----------
    array : ndarray or numpy scalar
        The array.
    name : str
        One of `ATTRIBUTES`.

    Returns
    -------
    object

    Raises
    ------
    TypeError
        If `array` is no array.
    ValueError
        If the name is not one of the closed set.

    Examples
    --------
    >>> attribute(np.zeros((2, 3)), "shape")
    (2, 3)
    """
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError("only properties of arrays may be asked for")
    if name not in ATTRIBUTES:
        raise ValueError(f"no property {name!r} of an array")
    return ATTRIBUTES[name](array)


def slice_of(bounds: Sequence[Any]) -> slice:
    """Make a slice of a sequence of bounds.

    Examples
    --------
    >>> slice_of((1, 5))
    slice(1, 5, None)
    """
    return slice(*bounds)


def sparse_array(kind: str, array: Any) -> Any:
    """Make a sparse array of a dense one, or of another sparse one.

    Parameters
    ----------
    kind : str
        One of `SPARSE`.
    array : ndarray, or sparse array
        Never the parts of one: scipy's compiled code would trust the indices.

    Returns
    -------
    sparse array

    Raises
    ------
    TypeError
        If `array` is something else.
    ValueError
        If the kind is not one of the closed set.

    Examples
    --------
    >>> sparse_array("csr_array", np.eye(2)).nnz
    2
    """
    from scipy import sparse

    if kind not in SPARSE:
        raise ValueError(f"no sparse array {kind!r}")
    if not isinstance(array, np.ndarray) and not sparse.issparse(array):
        raise TypeError("a sparse array is made of an array")
    return vars(sparse)[kind](array)


@functools.cache
def pydata_sparse() -> Any:
    """Give the package `sparse`, or None where it is not installed."""
    try:
        found = importlib.import_module("sparse")
    except ImportError:
        return None
    # A folder of that name is a module, too.
    return found if hasattr(found, "COO") else None


def coo_array(array: Any) -> Any:
    """Make a sparse array in coordinates of a dense one; stands for the class `sparse.COO`.

    Parameters
    ----------
    array : ndarray
        Never the parts of a sparse array: compiled code would trust the coordinates.

    Returns
    -------
    sparse.COO

    Raises
    ------
    TypeError
        If `array` is something else.
    """
    if type(array) is not np.ndarray or array.dtype.kind not in "biufc":
        raise TypeError("a sparse array is made of an array of numbers")
    return pydata_sparse().COO.from_numpy(array)


def dense_array(array: Any) -> np.ndarray:
    """Write out a sparse array; stands for `sparse.COO.todense`.

    Parameters
    ----------
    array : sparse.COO

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError
        If `array` is something else.
    """
    if type(array) is not pydata_sparse().COO:
        raise TypeError("no sparse array")
    return np.asarray(array.todense())


def along_axis(
    function: Callable[..., Any], axis: int, array: Any, *arguments: Any, **keywords: Any
) -> Any:
    """Apply a function to one-dimensional slices of an array.

    Parameters
    ----------
    function : callable
        Called with each slice, then `arguments` and `keywords`.
    axis : int
        Along which the slices run.
    array : ndarray
        What is sliced.
    *arguments, **keywords : object
        Further arguments of `function`.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> along_axis(np.sum, 0, np.ones((2, 3)))
    array([2., 2., 2.])
    """
    return np.apply_along_axis(function, axis, array, *arguments, **keywords)


def masked_array(
    data: Any, mask: Any = False, masked_dtype: Any = None, **keywords: Any
) -> np.ma.MaskedArray:
    """Make a masked array of copies: numpy's own would share and change a mask given to it.

    Parameters
    ----------
    data : array-like
        The values.
    mask : array-like of bool, default False
        Where they are masked.
    masked_dtype : dtype, optional
        Data type of the result.
    **keywords : object
        ``fill_value``, ``keep_mask``, ``ndmin``, ``shrink``, ``subok``. No ``hard_mask``: what
        is behind one is not written by functions that fill fresh memory, as `numpy.roll` does.

    Returns
    -------
    MaskedArray

    Raises
    ------
    TypeError
        If there are other keywords.

    Examples
    --------
    >>> masked_array([1, 2], mask=[True, False])
    masked_array(data=[--, 2],
                 mask=[ True, False],
           fill_value=999999)
    """
    if not MASKED_KEYWORDS.issuperset(keywords):
        raise TypeError("unknown keywords of a masked array")
    return np.ma.MaskedArray(data, mask=mask, dtype=masked_dtype, copy=True, **keywords)


def with_items(array: Any, values: Any, indices: Sequence[Any]) -> Any:
    """Give a copy of an array in which the items at `indices` are `values`.

    Parameters
    ----------
    array : ndarray, numpy scalar or sparse array
        The array; stays as it is.
    values : ndarray
        What is put there.
    indices : sequence
        One index per axis; dask's own function would write into this list.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError
        If `array` is no array.

    Examples
    --------
    >>> with_items(np.zeros(3), np.array(5.0), [slice(1, None)])
    array([0., 5., 5.])
    """
    from dask.array.slicing import setitem
    from scipy import sparse

    if not isinstance(array, np.ndarray | np.generic) and not sparse.issparse(array):
        raise TypeError("items are put into a copy of an array only")
    return setitem(array, values, list(indices))


# What stands in for operations of libraries


def _vindex_merge(locations: Any, values: Any) -> Any:
    # As Dask's own, but in zeros: there may be locations that none of the values go to.
    values = list(values)
    places = list(map(list, locations))
    merged = np.zeros_like(values[0], shape=(sum(map(len, places)), *values[0].shape[1:]))
    for place, value in zip(places, values, strict=True):
        merged[place] = value
    return merged


def _concatenate3(arrays: Any) -> Any:
    from dask.array.core import concatenate3

    _check_tiling(arrays)
    return concatenate3(arrays)


def _concatenate_axes(arrays: Any, axes: Any) -> Any:
    from dask.array.core import deepfirst, transposelist
    from dask.utils import ndimlist

    if len(axes) != ndimlist(arrays):
        raise ValueError("Length of axes should equal depth of nested arrays")
    extra = max(0, deepfirst(arrays).ndim - (max(axes) + 1))
    return _concatenate3(transposelist(arrays, axes, extradims=extra))


def _concatenate_shaped(arrays: Any, shape: Any) -> Any:
    from dask.core import reshapelist

    return _concatenate3(reshapelist(shape, arrays))


def _finalize(results: Any) -> Any:
    from dask.array.core import finalize

    if results:
        _check_tiling(results)
    return finalize(results)


def _check_tiling(arrays: Any) -> None:
    """Refuse blocks that leave a part of their array open.

    Dask takes the number of blocks along each axis from the first ones, sets memory aside
    for all of them, and fills what there is.
    """
    if not isinstance(arrays, list | tuple) or not arrays:
        return
    expected = 1
    first: Any = arrays
    while isinstance(first, list | tuple) and first:
        expected *= len(first)
        first = first[0]
    if sum(1 for _ in _leaves(arrays)) != expected:
        raise ValueError("blocks do not make up an array")


def _leaves(arrays: Any) -> Iterator[Any]:
    stack = [arrays]
    while stack:
        part = stack.pop()
        if isinstance(part, list | tuple):
            stack.extend(part)
        else:
            yield part


def _linear_ramp_chunk(start: Any, stop: Any, num: Any, dim: Any, step: Any) -> Any:
    from dask.array.creation import linear_ramp_chunk

    if not isinstance(start, np.ndarray) or not start.shape[dim]:
        raise ValueError("a ramp starts somewhere")
    return linear_ramp_chunk(start, stop, num, dim, step)


def _unique_internal(ar: Any, indices: Any, counts: Any, return_inverse: Any = False) -> Any:
    from dask.array.routines import _unique_internal

    # Only arrays are sure to write what they are asked to write.
    if any(type(each) is not np.ndarray for each in (ar, indices, counts) if each is not None):
        raise TypeError("distinct values are those of an array")
    return _unique_internal(ar, indices, counts, return_inverse)


def _view(x: Any, dtype: Any, order: str = "C") -> Any:
    from dask.array.chunk import view

    if _has_padding(np.asarray(x).dtype):
        raise TypeError("between these numbers is memory that nobody wrote")
    return view(x, dtype, order)


def _has_padding(dtype: np.dtype) -> bool:
    if dtype.subdtype is not None:
        return _has_padding(dtype.subdtype[0])
    if dtype.names is None:
        return dtype.char in "gG"
    parts = [dtype[name] for name in dtype.names]
    return sum(part.itemsize for part in parts) != dtype.itemsize or any(map(_has_padding, parts))


# Python computes with integers and sequences of any length, all at once: meanwhile no other
# thread of the process runs, and the scheduler gives up on the worker.


def _pow(a: Any, b: Any, /) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        _check_bits(max(abs(a) - 1, 0).bit_length() * max(b, 0))
    return operator.pow(a, b)


def _lshift(a: Any, b: Any, /) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        _check_bits(a.bit_length() + b if a else 0)
    return operator.lshift(a, b)


def _mul(a: Any, b: Any, /) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        _check_bits(a.bit_length() + b.bit_length())
    elif (isinstance(a, SEQUENCES) and not isinstance(b, np.ndarray)) or (
        isinstance(b, SEQUENCES) and not isinstance(a, np.ndarray)
    ):
        raise TypeError("sequences are not repeated here")
    return operator.mul(a, b)


def _mod(a: Any, b: Any, /) -> Any:
    if isinstance(a, str | bytes | bytearray):
        raise TypeError("texts are not formatted here")
    return operator.mod(a, b)


SEQUENCES = (str, bytes, bytearray, list, tuple)


def _check_bits(bits: int) -> None:
    if bits > LARGEST_INTEGER_BITS:
        raise OverflowError(f"an integer of more than {LARGEST_INTEGER_BITS} bits")


STANDING_IN: dict[str, Callable[..., Any]] = {
    "dask.array.chunk.view": _view,
    "dask.array.core._vindex_merge": _vindex_merge,
    "dask.array.core.concatenate3": _concatenate3,
    "dask.array.core.concatenate_axes": _concatenate_axes,
    "dask.array.core.concatenate_shaped": _concatenate_shaped,
    "dask.array.core.finalize": _finalize,
    "dask.array.creation.linear_ramp_chunk": _linear_ramp_chunk,
    "dask.array.routines._unique_internal": _unique_internal,
    "operator.lshift": _lshift,
    "operator.mod": _mod,
    "operator.mul": _mul,
    "operator.pow": _pow,
}
"""Name in the operation table to what is called instead of the library's own."""
