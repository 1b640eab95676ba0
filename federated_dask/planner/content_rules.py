"""What operations make of values: a few rules, by the names of the operations.

Each says what becomes of the two things that compression removes, gaps and bytes that all
elements have in common (see `expected`).  The rules know nothing of the values; where nothing
can be said, a result is expected to keep all its bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from federated_dask.planner.expected import (
    CONSTANT,
    EVEN,
    NAN,
    PER_BIT,
    Expected,
    joined,
    truth,
    unknown,
)
from federated_dask.planner.nodes import keyword, uses
from federated_dask.protocol import graph as wire

__all__ = ["Rule", "rule_of"]

CUT_OFF = 0.15
"""Bytes of numbers of which a few different ones are left."""
SOME = 100
"""Different values of positions, and of rounded numbers."""
RUN = 6.0
"""Bytes of a run of elements that are all alike."""
SQUARES = 0.45
"""Share of their bytes that is left of variances of few different values."""

BINNED = 0.28
"""Bytes of the number of a bin."""
ROOT = 1.6
"""How much more square roots take than what they are of."""
SIGN = 0.1
"""Bytes of a sign, which is mostly the same."""
PER_BIT_ROUNDED = 0.4
"""Bytes that one bit takes in decimal fractions, whose mantissas are long."""

Rule: TypeAlias = Callable[[list[Expected], float, np.dtype | None], Expected]
"""From inputs, elements of the result, and the dtype that is asked for, to what is expected."""


change = dataclasses.replace


def _nothing_known(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    size = max((each.size for each in inputs), default=8.0)
    return unknown(count, size if dtype is None else float(dtype.itemsize))


def _moved(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Values of the first array, at other places or a part of them."""
    first = inputs[0] if inputs else unknown(count, 8.0)
    mask = next((each for each in inputs[1:] if each.true is not None and each.count > 1), None)
    if mask is None or mask.true is None:
        return first
    # A mask selects; what is missing is rarely what is looked for.
    return change(first, count=first.count * mask.true, gaps=0.0, places=0.0, is_counted=True)


def _repeated(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Repeat the first array: it takes what its own elements take, as runs."""
    first = inputs[0] if inputs else unknown(count, 8.0)
    each = RUN * first.count / max(1.0, count)
    return first if first.is_constant else change(first, each=min(first.each, each))


def _put_together(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return joined(inputs) or CONSTANT


def _computed(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Element by element: there is no more information in a result than in the inputs together."""
    data = [each for each in inputs if not each.is_constant]
    if not data:
        return inputs[0] if inputs else unknown(count, 8.0)
    size = max(each.size for each in data)
    rich = [each.each / each.size for each in data if each.is_rich]
    of_each = max(rich) * size if rich else min(size, sum(each.each for each in data))
    spreading = [each for each in inputs if each.missing]
    # Where something else than NaN was filled in, other inputs still differ.
    kept = spreading or (data if len(data) == len(inputs) or len(data) == 1 else [])
    choose = max if spreading else min
    return Expected(
        max(each.count for each in inputs),
        size,
        of_each,
        choose((each.gaps for each in kept), default=0.0),
        choose((each.places for each in kept), default=0.0),
        bool(spreading),
    )


def _divided(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Fractions of few different numbers have long mantissas, of which there are few.

    What was filled in above is zero mostly, and so is the fraction, or missing.
    """
    result = _computed(inputs, count, dtype)
    if inputs and inputs[0].gaps > result.gaps and not inputs[0].is_constant:
        result = change(result, gaps=inputs[0].gaps, places=inputs[0].places)
    return result if result.is_rich else change(result, size=8.0, each=min(8.0, 2 * result.each))


def _rooted(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Square roots of few different numbers have longer mantissas than those."""
    result = _moved(inputs, count, dtype)
    return result if result.is_rich else change(result, each=min(result.size, ROOT * result.each))


def _in_windows(call: wire.Call) -> Rule:
    """Make the rule for windows, of which the call says how large they are."""
    shape = keyword(call, "window_shape") or next(iter(call.arguments[1:]), None)
    sizes = [node.value for node in wire.walk(shape) if isinstance(node, wire.Number)]
    windows = float(max(1, math.prod(sizes)))
    return lambda inputs, count, dtype: change(_moved(inputs, count, dtype), windows=windows)


def _cut_off(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Numbers of which few different ones are left."""
    result = _computed(inputs, count, dtype)
    return change(result, each=min(result.each, CUT_OFF))


def _binned(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return change(_computed(inputs, count, dtype), each=BINNED)


def _sign(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return change(_computed(inputs, count, dtype), each=SIGN)


def _rounded(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    result = _computed(inputs[:1], count, dtype)
    return change(result, each=min(result.each, PER_BIT_ROUNDED * math.log2(SOME)))


def _cast(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Keep the information in a narrower type, or the share where there is much of it."""
    source = inputs[0] if inputs else unknown(count, 8.0)
    if dtype is None or dtype.hasobject or dtype.kind == "b":
        return source
    size = float(dtype.itemsize)
    if not source.is_rich:
        return change(source, size=size, each=min(source.each, size), true=None)
    if dtype.kind in "iu" and source.missing:
        return change(source, size=size, each=CUT_OFF, gaps=0.0, missing=False)
    return change(source, size=size, each=size * source.each / source.size)


def _compared(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Of a comparison nothing is known, but that what is missing fails it, and the usual passes."""
    found = _computed(inputs, count, dtype)
    if found.gaps > EVEN and not found.missing:
        return truth(found.count, found.gaps)
    return truth(found.count, min(EVEN, 1 - found.gaps) if found.missing else EVEN)


def _is_equal(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Measured values are hardly ever equal to anything."""
    found = _computed(inputs, count, dtype)
    return truth(found.count, 0.0 if found.is_rich else EVEN)


def _is_missing(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    first = inputs[0] if inputs else CONSTANT
    return truth(first.count, first.gaps if first.missing else 0.0, in_patches=True)


def _is_there(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return _not(inputs=[_is_missing(inputs, count, dtype)], count=count, dtype=dtype)


def _not(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    found = _computed(inputs, count, dtype)
    true = inputs[0].true if inputs else None
    return found if true is None else change(inputs[0], true=1 - true)


def _both(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    trues = [each.true for each in inputs if each.true is not None]
    if len(trues) < 2:
        return _computed(inputs, count, dtype)
    # Two masks of one thing lie at the same places.
    bits = max(each.each for each in inputs)
    size = max(each.count for each in inputs)
    return Expected(size, 1.0, bits, true=min(trues))


def _either(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    found = _both(inputs, count, dtype)
    return found if found.true is None else change(found, true=max(e.true or 0.0 for e in inputs))


def _chosen(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """``where``: what is chosen by a mask, mostly by what is missing."""
    if len(inputs) != 3:
        return _nothing_known(inputs, count, dtype)
    mask, one, other = inputs
    true = EVEN if mask.true is None else mask.true
    if one.is_constant and not other.is_constant:
        one, other, true = other, one, 1 - true
    size = max(mask.count, one.count, other.count)
    if not other.is_constant:
        each = true * one.each + (1 - true) * other.each
        gaps, places = min(one.gaps, other.gaps), min(one.places, other.places)
        missing = one.missing and other.missing
        return Expected(size, max(one.size, other.size), each, gaps, places, missing)
    if one.is_constant:
        # Two numbers: as many bits as the mask has.
        return Expected(size, one.size, mask.each)
    kept = one.gaps >= 1 - true
    gaps = one.gaps if kept else 1 - true
    # A mask with fewer dimensions says the same everywhere along the first one.
    places = one.places if kept else gaps if 1.5 * mask.count < one.count else 1.0
    return Expected(size, one.size, one.each, gaps, places, other.missing)


def _looked_up(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Values of the second array at the positions that the first has: no more than there are."""
    if len(inputs) < 2:
        return _nothing_known(inputs, count, dtype)
    index, values = inputs[0], inputs[1]
    each = values.each if index.is_rich else min(values.each, 2 * index.each)
    return change(values, count=index.count, each=each)


def _filled(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return change(_moved(inputs[:1], count, dtype), missing=False)


def _constant(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return change(NAN if any(each is NAN for each in inputs) else CONSTANT, count=count)


def _merged(result: Expected, count: float, *, ignores_missing: bool) -> Expected:
    """Gaps of a reduction, of which one value is enough to have none, or to miss for.

    At a place that has gaps at all, they are taken for independent of one another.
    """
    number = result.count / max(1.0, count)
    if number <= 1.0 or not result.gaps:
        return change(result, true=None)
    often = min(1.0, result.gaps / result.places) if result.places else 1.0
    spreads = result.missing and not ignores_missing
    often = 1 - (1 - often) ** number if spreads else often**number
    missing = result.missing and not ignores_missing
    return change(result, gaps=often * result.places, missing=missing, true=None)


def _counted(mask: Expected, number: float) -> Expected:
    """Count what is true: mostly all of it, if most of the mask is."""
    assert mask.true is not None  # noqa: S101
    bytes_of_count = PER_BIT * (1 + math.log2(number) / 2) if mask.each else 0.0
    full = mask.true if mask.true > EVEN else 0.0
    each = min(8.0, bytes_of_count / (1 - full)) if full < 1 else 0.0
    return Expected(mask.count, 8.0, each, full, full)


def _added(ignores_missing: bool, is_divided: bool) -> Rule:
    """Make the rule for sums: some more bits than what they are sums of, as they spread."""

    def rule(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
        together = joined(inputs) or unknown(count, 8.0)
        number = max(1.0, together.count / max(1.0, count))
        size, each = together.size, together.each
        if together.true is not None:
            return _counted(together, number)
        if not together.is_rich:
            each = min(size, each + PER_BIT * math.log2(number) / 2)
        if is_divided and not together.is_rich:
            each = min(size, 2 * each)
        return _merged(
            change(together, size=size, each=each), count, ignores_missing=ignores_missing
        )

    return rule


def _moments(ignores_missing: bool, has_sums: bool) -> Rule:
    """Squares of fractions are many, whatever they are made of; partials have sums beside."""
    added = _added(ignores_missing, is_divided=False)

    def rule(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
        result = added(inputs, count, dtype)
        of_squares = max(result.each, SQUARES * result.size)
        return change(result, each=(result.each + of_squares) / 2 if has_sums else of_squares)

    return rule


def _extreme(ignores_missing: bool) -> Rule:
    """Make the rule for minima and the like: they were there before, the same ones mostly."""

    def rule(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
        together = joined(inputs) or unknown(count, 8.0)
        number = together.count / max(1.0, count)
        each = _rarer(together, number)
        # The same one is the extreme of several windows: of random values, of this many.
        each *= 2 / (together.windows + 1)
        return _merged(
            change(together, each=each, windows=1.0), count, ignores_missing=ignores_missing
        )

    return rule


def _rarer(values: Expected, number: float) -> float:
    """Bytes of the extreme of some values: of few different ones it is mostly the same."""
    return values.each if values.is_rich else values.each / (1 + math.log2(max(1.0, number)) / 2)


def _all_true(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return truth(count, _over(inputs, count, lambda true, number: true**number))


def _any_true(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return truth(count, _over(inputs, count, lambda true, number: 1 - (1 - true) ** number))


def _over(inputs: list[Expected], count: float, of: Callable[[float, float], float]) -> float:
    together = joined(inputs)
    if together is None or together.true is None:
        return EVEN
    return of(together.true, max(1.0, together.count / max(1.0, count)))


def _numbered(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Numbers in a row, from which indices are made: as many different ones as there are."""
    size = 8.0 if dtype is None else float(dtype.itemsize)
    return Expected(count, size, min(size, PER_BIT * math.log2(max(2.0, count))))


def _position(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    return Expected(count, 8.0, PER_BIT * math.log2(SOME))


def _value_and_position(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """Two arrays, of which the second has positions."""
    first = inputs[0] if inputs else unknown(count, 8.0)
    each = _rarer(first, 2 * first.count / max(1.0, count)) + PER_BIT * math.log2(SOME)
    return Expected(count, 8.0, each / 2)


def _distinct(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """As many different values as their information allows, of many such results too."""
    together = joined(inputs) or unknown(count, 8.0)
    number = 2.0 ** min(64.0, together.each / PER_BIT) if not together.is_rich else together.most
    found = min(together.count, number)
    return Expected(found, together.size, together.size, is_counted=True, most=number)


def _percentiles(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
    """As many values as percentages: these are the second array."""
    if len(inputs) < 2:
        return _nothing_known(inputs, count, dtype)
    return Expected(inputs[1].count, 8.0, 8.0, is_counted=True)


def _grouped(call: wire.Call) -> Rule:
    """Make the rule for the first step of flox: an array for each function that it is given."""
    functions = next(
        (
            value
            for node in wire.walk(call)
            if isinstance(node, wire.Partial)
            for name, value in node.keywords
            if name == "func"
        ),
        None,
    )
    names = functions.items if isinstance(functions, wire.Tuple) else (functions,)

    def rule(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
        parts = []
        # What to group by comes after the values.
        for name in names:
            text = name if isinstance(name, str) else "var"
            if "len" in text or "count" in text:
                parts.append(_added(True, False)([_is_there(inputs[:1], count, None)], count, None))
            elif "var" in text:
                parts += [_moments("nan" in text, True)(inputs[:1], count, None)] * 2
            elif "sum" in text or "prod" in text or "mean" in text:
                parts.append(_added("nan" in text, False)(inputs[:1], count, None))
            else:
                parts.append(_extreme("nan" in text)(inputs[:1], count, None))
        values = [part for part in parts if part.is_rich] or parts
        total = sum(part.each * (1 - part.gaps) for part in parts)
        gaps = values[0].gaps
        each = total / (1 - gaps) if gaps < 1 else 0.0
        return change(
            values[0],
            count=count,
            size=8.0 * len(values),
            each=each,
            true=None,
            first=values[0].each,
        )

    return rule


def _extracted(name: str) -> Rule:
    """Find the rule for what flox takes out of its arrays at last, by its name."""
    if "count" in name:
        # Counts of what is never missing are all alike.
        return lambda inputs, count, dtype: Expected(
            count, 8.0, CUT_OFF if inputs and inputs[0].each else 0.0
        )
    rule = _divided if "mean" in name else _moved

    def of_first(inputs: list[Expected], count: float, dtype: np.dtype | None) -> Expected:
        if inputs and inputs[0].first:
            inputs = [change(inputs[0], each=inputs[0].first, first=0.0), *inputs[1:]]
        return rule(inputs, count, dtype)

    return of_first


def _each_of(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, Rule] = {
    **_each_of(
        _moved,
        "getter getter_inline getter_nofancy getitem getitem_variadic _getitem transpose "
        "reshape "
        "flip flipud fliplr roll squeeze expand_dims repeat swapaxes moveaxis "
        "rollaxis ravel diagonal diag tril triu _trim trim take conjugate "
        "real imag array asarray ascontiguousarray atleast_1d atleast_2d atleast_3d rot90 sort "
        "reindex_intermediates _expand_dims "
        "_vindex_slice_and_transpose view copy negative neg abs absolute fabs",
    ),
    **_each_of(_rooted, "_sqrt sqrt"),
    **_each_of(_percentiles, "percentile_lookup"),
    **_each_of(_repeated, "broadcast_to"),
    **_each_of(
        _put_together,
        "concatenate concatenate_shaped concatenate_arrays concatenate_axes concatenate3 "
        "_concatenate2 stack vstack hstack dstack block _vindex_merge",
    ),
    **_each_of(_divided, "truediv true_divide divide"),
    **_each_of(_cut_off, "floor ceil trunc fix rint floordiv"),
    **_each_of(_binned, "digitize searchsorted"),
    **_each_of(_sign, "sign"),
    **_each_of(_rounded, "round around"),
    **_each_of(_cast, "astype"),
    **_each_of(_compared, "lt le gt ge less less_equal greater greater_equal isin _isin_kernel"),
    **_each_of(_is_equal, "eq equal isclose"),
    **_each_of(lambda i, c, d: _not([_is_equal(i, c, d)], c, d), "ne not_equal"),
    **_each_of(_is_missing, "isnan isnat isnull isna"),
    **_each_of(_is_there, "isfinite notnull notna"),
    **_each_of(_not, "invert logical_not"),
    **_each_of(_both, "and_ logical_and bitwise_and"),
    **_each_of(_either, "or_ logical_or bitwise_or"),
    **_each_of(_chosen, "where"),
    **_each_of(_filled, "nan_to_num"),
    **_each_of(_looked_up, "_numpy_vindex"),
    **_each_of(
        _constant,
        "full full_like zeros zeros_like ones ones_like empty_like _broadcast_trick_inner",
    ),
    **_each_of(_all_true, "all"),
    **_each_of(_any_true, "any"),
    **_each_of(_value_and_position, "arg_chunk"),
    **_each_of(_numbered, "arange"),
    **_each_of(_position, "argmin argmax nanargmin nanargmax arg_agg nanarg_agg argwhere nonzero"),
    **_each_of(_distinct, "unique _unique_internal"),
    **_each_of(_computed, "cumsum cumprod nancumsum nancumprod clip _enforce_dtype"),
    **_each_of(_computed, "add sub mul pow mod lshift rshift xor pos fmod"),
}
"""By the last part of an operation's name, which means the same in numpy and in Dask."""


_SUMS = frozenset(
    "sum prod mean_chunk mean_combine moment_combine nansum nanprod _simple_combine _aggregate "
    "_reduce_blockwise".split()
)
_QUOTIENTS = frozenset("mean mean_agg nanmean".split())
_OF_FLOX = frozenset("_simple_combine _aggregate _reduce_blockwise".split())
_MOMENTS = frozenset("moment_chunk moment_agg var std nanvar nanstd".split())
_EXTREMES = frozenset(
    "max min amax amin chunk_max chunk_min median quantile nanmax nanmin _nanmax_skip _nanmin_skip "
    "nanmedian nanquantile arg_combine topk topk_aggregate".split()
)


def rule_of(name: str, call: wire.Call) -> Rule:
    """Find the rule for an operation.

    Parameters
    ----------
    name : str
        The operation.
    call : Call
        Where it is called: its keywords say with what partials are made.

    Returns
    -------
    Rule
    """
    _, _, last = name.rpartition(".")
    if last == "chunk_reduce":
        return _grouped(call)
    if last == "sliding_window_view":
        return _in_windows(call)
    # Dask's partials are told what to sum with; what flox combines has no missing values left.
    ignores = any("nan" in used for used in (last, *uses(call))) or last in _OF_FLOX
    if last in _SUMS | _QUOTIENTS:
        return _added(ignores, last in _QUOTIENTS)
    if last in _MOMENTS:
        return _moments(ignores, has_sums=last == "moment_chunk")
    if last == "_extract_result":
        return _extracted(str(keyword(call, "key")))
    if last in _EXTREMES:
        return _extreme(ignores)
    rule = _RULES.get(last)
    if rule is None:
        rule = _computed if isinstance(getattr(np, last, None), np.ufunc) else _nothing_known
    return rule
