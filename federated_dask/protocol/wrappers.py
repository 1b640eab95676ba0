"""Operations of our own, in place of library functions that no table may hold.

Dask's functions for random numbers, for ``where=`` and ``out=``, and for masked arrays
call by name, write into what they are given, or keep hold of it.  These do the same
work from closed sets and on copies.  The planner puts them where the others stood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "along_axis",
    "attribute",
    "elementwise_where",
    "identity",
    "masked_array",
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
MASKED_KEYWORDS = frozenset({"fill_value", "hard_mask", "keep_mask", "ndmin", "shrink", "subok"})


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
        ``fill_value``, ``hard_mask``, ``keep_mask``, ``ndmin``, ``shrink``, ``subok``.

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
