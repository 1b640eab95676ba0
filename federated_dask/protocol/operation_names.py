"""Names of the operation table, as data: module, then the names taken from it.

A name gets in here when it is pure (arrays in, arrays out), reaches nothing by
name or path, and calls other callables only where its argument rule says so.
Adding a name is a security decision: read docs/design.md, "The wire", first.
"""

from __future__ import annotations

__all__ = [
    "ALONG_AXIS",
    "CALLED_BY",
    "CALLS",
    "COPYING",
    "ENFORCE",
    "FLOX_FUNCTIONS",
    "FLOX_KEYWORDS",
    "FLOX_TEXTS",
    "FORWARDED",
    "FORWARDING",
    "GIVEN",
    "IN_PLACE",
    "METHODS",
    "NAMES",
    "PASS",
    "POSITIONAL",
    "READS",
    "TEXTS",
    "UFUNC_METHODS",
    "WHERE",
    "WRITING",
]

UFUNCS = """
absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_count
bitwise_or bitwise_xor cbrt ceil conjugate copysign cos cosh deg2rad degrees divide divmod equal exp
exp2 expm1 fabs float_power floor floor_divide fmax fmin fmod frexp gcd greater greater_equal
heaviside hypot invert isfinite isinf isnan isnat lcm ldexp left_shift less less_equal log log10
log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor maximum minimum modf
multiply negative nextafter not_equal positive power rad2deg radians reciprocal remainder rint
right_shift sign signbit sin sinh spacing sqrt square subtract tan tanh trunc
"""

NUMPY = """
all angle any arange argmax argmin around array asanyarray asarray ascontiguousarray astype
atleast_1d atleast_2d atleast_3d average bincount broadcast_to clip concatenate count_nonzero
cumprod choose cumsum diag diagonal diff digitize dot expand_dims eye flip fix full full_like hstack
i0 imag interp isclose iscomplex isin isneginf isposinf isreal linspace max mean median min moveaxis
nan_to_num nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmedian nanmin nanprod
nanquantile nanstd nansum nanvar ones ones_like outer percentile prod quantile ravel
ravel_multi_index real repeat reshape roll rollaxis rot90 round searchsorted sinc sort squeeze stack
std sum swapaxes take tensordot tile transpose tril triu unwrap var vstack where zeros zeros_like
bool complex64 complex128 datetime64 float16 float32 float64 int8 int16 int32 int64 timedelta64
uint8 uint16 uint32 uint64 number integer floating generic
"""

NAMES: dict[str, str] = {
    "operator": """
        abs add and_ eq floordiv ge getitem gt inv invert le lshift lt mod mul ne neg or_ pos pow
        rshift sub truediv xor matmul
    """,
    "builtins": "bool complex float int list max min object sum tuple dict slice",
    "numpy": UFUNCS + NUMPY,
    "numpy.linalg": "cholesky eigh eigvalsh inv lstsq matrix_rank norm qr solve svd",
    "numpy.fft": """
        fft fft2 fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2
        rfftn
    """,
    "numpy.ma": """
        filled fix_invalid getdata getmaskarray masked_equal masked_greater masked_greater_equal
        masked_inside masked_invalid masked_less masked_less_equal masked_not_equal masked_outside
        masked_values masked_where ones_like where zeros_like
    """,
    "scipy.fft": """
        fft fft2 fftn hfft ifft ifft2 ifftn ihfft irfft irfft2 irfftn rfft rfft2 rfftn
    """,
    "scipy.linalg": "lu",
    "federated_dask.protocol.wrappers": """
        along_axis attribute elementwise_where identity masked_array random_values slice_of
        sparse_array with_items
    """,
    "numpy.lib.stride_tricks": "sliding_window_view",
    "dask.array._shuffle": "_getitem concatenate_arrays",
    "dask.array.chunk": """
        all any arange argmax argmin argtopk argtopk_aggregate argtopk_preprocess astype coarsen
        getitem linspace max mean min nanargmax nanargmin nanmax nanmean nanmin nanprod nanstd
        nansum nanvar prod slice_with_int_dask_array slice_with_int_dask_array_aggregate std sum
        topk topk_aggregate trim var view
    """,
    "dask.array.core": """
        _concatenate2 _enforce_dtype _numpy_vindex _pass_extra_kwargs _vindex_merge
        _vindex_slice_and_transpose concatenate3 concatenate_axes concatenate_shaped dotmany
        finalize getter getter_inline getter_nofancy _get_chunk_shape
    """,
    "dask.array.einsumfuncs": "chunk_einsum",
    "dask.array.creation": "linear_ramp_chunk",
    "dask.array.fft": "_fftfreq_block",
    "dask.array.linalg": """
        _cholesky_lower _conj_transpose _cumsum_part _reverse _solve_triangular_lower _wrapped_qr
    """,
    "dask.array.ma": "_chunk_count _set_fill_value",
    "dask.array.overlap": "_trim",
    "dask.array.percentile": "merge_percentiles percentile_lookup",
    "dask.array.reductions": """
        _arg_combine _cumsum_merge _custom_nanquantile _nanargmax _nanargmin _cumprod_merge
        _nanmax_skip _nanmin_skip _prefixscan_combine _prefixscan_first _sqrt arg_agg arg_chunk
        arg_combine chunk_max chunk_min mean_agg mean_chunk mean_combine moment_agg moment_chunk
        moment_combine nanarg_agg nannumel numel safe_sqrt
    """,
    "dask.array.reshape": "_reshape_blockwise",
    "dask.array.routines": """
        _asarray_isnull _average _bincount_agg _block_hist _block_histogramdd_multiarg
        _block_histogramdd_rect _chunk_sum _gradient_kernel _isin_kernel _isnonzero_vec _linspace
        _matmul _searchsorted_block _select _tensordot _unique_internal _unravel_index_kernel
        variadic_choose
    """,
    "dask.array.slicing": "getitem_variadic",
    "dask.array.utils": "solve_triangular_safe",
    "xarray.compat.dask_array_ops": "_dtype_push _fill_with_last_one",
    "xarray.core.nputils": "nanlast nanfirst",
    "flox.aggregations": """
        _mean_finalize _pick_second _std_finalize _var_combine _var_finalize argreduce_preprocess
        blockwise_or_numpy_var quantile_new_dims_func returns_empty_tuple var_chunk
    """,
    "flox.core": "_reduce_blockwise chunk_argreduce chunk_reduce",
    "flox.xrutils": "nanfirst nanlast",
    "flox.dask": """
        _aggregate _expand_dims _extract_result _extract_unknown_groups _grouped_combine
        _simple_combine reindex_intermediates
    """,
}
"""Module to the names taken from it; a name that a library version lacks is left out."""

UFUNC_METHODS = {"accumulate": 3, "outer": 2}
"""Methods of ufuncs that are operations, and how many arguments they take before ``out``."""

METHODS = "reshape"
"""Methods of arrays that `dask.utils.methodcaller` may call."""

READS = frozenset(
    {
        "dask.array.chunk.getitem",
        "dask.array.core.getter",
        "dask.array.core.getter_inline",
        "dask.array.core.getter_nofancy",
        "operator.getitem",
    }
)
"""The only operations that take a stored variable, and only as their first argument."""

FLOX_FUNCTIONS = frozenset(
    """
    all any argmax argmin count first last len max mean median min mode nanall nanany nanargmax
    nanargmin nancount nanfirst nanlast nanlen nanmax nanmean nanmedian nanmin nanmode nanprod
    nanquantile nanstd nansum nansum_of_squares nanvar prod quantile std sum sum_of_squares var
    nonzero
    """.split()
)
FLOX_KEYWORDS = frozenset({"ddof", "method", "q", "skipna"})
"""What flox passes on to the function that finalizes."""
FLOX_ENGINES = frozenset({"flox", "numpy", "numbagg"})

FLOX_TEXTS = (
    FLOX_FUNCTIONS
    | FLOX_ENGINES
    | FLOX_KEYWORDS
    | {"groups", "intermediates", "__flox_len__", "user", "final", "numpy", "intermediate"}
)

TEXTS: dict[str, frozenset[str]] = dict.fromkeys(
    (
        "flox.core.chunk_reduce",
        "flox.core.chunk_argreduce",
        "flox.core._reduce_blockwise",
        "flox.dask._aggregate",
        "flox.dask._grouped_combine",
        "flox.dask._simple_combine",
    ),
    FLOX_TEXTS,
)
"""Operations that reach functions by name: the only texts that may stand in their arguments."""

POSITIONAL: dict[str, int] = {
    "flox.core.chunk_reduce": 2,
    "flox.core.chunk_argreduce": 2,
    "flox.core._reduce_blockwise": 2,
    "flox.dask._aggregate": 1,
    "flox.dask._grouped_combine": 1,
    "flox.dask._simple_combine": 1,
    "numpy.nan_to_num": 1,
}
"""Most positional arguments, where the signature does not say it: behind them is what steers."""

ENFORCE = "dask.array.core._enforce_dtype"
PASS = "dask.array.core._pass_extra_kwargs"  # noqa: S105

ALONG_AXIS = "federated_dask.protocol.wrappers.along_axis"
WHERE = "federated_dask.protocol.wrappers.elementwise_where"

FORWARDING: dict[str, int] = {ENFORCE: 0, PASS: 0, ALONG_AXIS: 2, WHERE: 3}
"""Operations that give their arguments to the one they call, less so many that are their own."""

GIVEN: dict[str, int] = {"dask.array.core.dotmany": 1}
"""How many arguments the other operations give to what they call, where it is not two."""

CALLS: dict[str, dict[str, int | None]] = {
    ENFORCE: {"enforce_dtype_function": None},
    PASS: {"func": 0, "enforce_dtype_function": None},
    ALONG_AXIS: {"function": 0},
    WHERE: {"function": 0},
    "dask.array.chunk.coarsen": {"reduction": 0},
    "dask.array.core.dotmany": {"leftfunc": 2, "rightfunc": 3},
    "dask.array.reductions._arg_combine": {"argfunc": 2},
    "dask.array.reductions._prefixscan_combine": {"func": 0, "binop": 1},
    "dask.array.reductions._prefixscan_first": {"func": 0},
    "dask.array.reductions.arg_agg": {"argfunc": 0},
    "dask.array.reductions.arg_chunk": {"func": 0, "argfunc": 1},
    "dask.array.reductions.arg_combine": {"argfunc": 0},
    "dask.array.reductions.mean_chunk": {"sum": 1, "numel": 2},
    "dask.array.reductions.mean_combine": {"sum": 1, "numel": 2},
    "dask.array.reductions.moment_agg": {"sum": 4},
    "dask.array.reductions.moment_chunk": {"sum": 2, "numel": 3},
    "dask.array.reductions.moment_combine": {"sum": 4},
    "dask.array.reductions.nanarg_agg": {"argfunc": 0},
    "dask.array.wrap._broadcast_trick_inner": {"func": 0},
    "flox.dask._aggregate": {"combine": 1},
}
"""Operations that call arguments: their names, with their places where they may stand by place."""

CALLED_BY: dict[str, frozenset[str]] = {
    "flox.dask._aggregate": frozenset({"flox.dask._grouped_combine", "flox.dask._simple_combine"}),
}
"""Operations with rules of their own that others may call."""

IN_PLACE: dict[str, frozenset[str]] = {
    "flox.dask._expand_dims": frozenset({"flox.core.chunk_reduce", "flox.core.chunk_argreduce"}),
}
"""Operations that change their argument, and those whose fresh results they may change."""

FORWARDED = frozenset({"_overlap_trim_info", "block_id", "block_info"})
"""Names under which `map_blocks` forwards an argument as a keyword."""

COPYING = frozenset(
    {
        "numpy.ma.fix_invalid",
        "numpy.ma.masked_equal",
        "numpy.ma.masked_greater",
        "numpy.ma.masked_greater_equal",
        "numpy.ma.masked_inside",
        "numpy.ma.masked_invalid",
        "numpy.ma.masked_less",
        "numpy.ma.masked_less_equal",
        "numpy.ma.masked_not_equal",
        "numpy.ma.masked_outside",
        "numpy.ma.masked_values",
        "numpy.ma.masked_where",
        "numpy.nan_to_num",
    }
)
"""Operations that write into their arguments unless they may copy them first."""

WRITING = frozenset({"out", "overwrite_a", "overwrite_b", "overwrite_input", "overwrite_x"})
"""Parameters that let an operation write into its arguments."""
