"""Calls that no table may hold, said in other words: with operations of our own.

Some functions of Dask only forward a call, reach a function by its name, or write into
an argument.  What such a call comes to is written down here as another call, which the
rules of the protocol can see through.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask.array.core as dask_core
import dask.array.ma as dask_ma
import dask.array.random as dask_random
import dask.array.routines as dask_routines
import dask.array.slicing as dask_slicing
import dask.array.utils as dask_utils
import numpy as np
from dask._expr import ProhibitReuse
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef, Tuple, _identity_cast
from dask.utils import SerializableLock, apply
from scipy import sparse
from toolz.functoolz import curry
from toolz.functoolz import identity as toolz_identity

from federated_dask.protocol import wrappers

__all__ = ["CannotSubstitute", "equivalent", "is_wrapping", "substitute"]


LOCKS = (SerializableLock, type(threading.Lock()), type(threading.RLock()))


class CannotSubstitute(Exception):
    """A call cannot be said in other words; the message tells why."""


def substitute(
    function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
    """Replace a call where it has to be.

    Parameters
    ----------
    function : callable
        What is called.
    arguments : sequence
        Arguments by place, as they stand in a task.
    keywords : mapping of str to object
        Arguments by name.

    Returns
    -------
    function, arguments, keywords
        What to call instead; the same where nothing is to be replaced.

    Raises
    ------
    CannotSubstitute
        If the call is one to be replaced, but not with these arguments.

    Examples
    --------
    >>> function, arguments, _ = substitute(apply, (np.add, [1, 2]), {})
    >>> function.__name__, arguments
    ('add', (1, 2))
    """
    while True:
        inner, bound, named = _unbound(function)
        make = _made_for(inner)
        if make is None:
            return function, arguments, keywords
        replaced = make(*bound, *arguments, **{**named, **keywords})
        if replaced is None:
            return function, arguments, keywords
        function, arguments, keywords = replaced


Replacement = tuple[Any, Sequence[Any], Mapping[str, Any]] | None


def _unbound(function: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Take partial functions apart: function, what is bound by place and by name."""
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while isinstance(function, functools.partial | curry):
        arguments = (*function.args, *arguments)
        keywords = {**function.keywords, **keywords}
        function = function.func
    return function, arguments, keywords


def _made_for(function: Any) -> Callable[..., Replacement] | None:
    _, make = _REPLACED.get(id(function), (None, None))
    return make


def equivalent(function: Any) -> Any:
    """Give the operation that stands for a function wherever that is named; else the function.

    Examples
    --------
    >>> equivalent(np.empty) is np.zeros
    True
    """
    return _EQUIVALENT.get(id(function), (None, function))[1]


def is_wrapping(task: Task) -> bool:
    """Say whether a task does nothing but give back what the task inside of it makes."""
    inner = task.args[0] if len(task.args) == 1 and not task.kwargs else None
    return isinstance(inner, Task) and equivalent(task.func) is wrappers.identity


def _apply(function: Any, arguments: Any, keywords: Any = None, **more: Any) -> Replacement:
    named = _mapping(keywords) if keywords is not None else {}
    function = _plain(function)
    if function is slice and not named and isinstance(arguments, TaskRef | Alias):
        return wrappers.slice_of, (arguments,), {}
    return function, _sequence(arguments), {**named, **more}


def _enforced(*arguments: Any, **keywords: Any) -> Replacement:
    """Keep Dask's check of the dtype, but see through it what is called."""
    dtype = keywords.pop("enforce_dtype", None)
    function = _plain(keywords.pop("enforce_dtype_function", None))
    if _made_for(_unbound(function)[0]) is None:
        return None
    call = Task(None, function, *arguments, **keywords)
    checked = {"enforce_dtype": dtype, "enforce_dtype_function": wrappers.identity}
    return dask_core._enforce_dtype, (call,), checked


def _with_extra_keywords(
    function: Any, names: Any, *arguments: Any, **keywords: Any
) -> Replacement:
    try:
        extra = [_plain(name) for name in _sequence(names)]
    except CannotSubstitute:
        # Inside of a fused task the names have a name; the rules know this function, too.
        return None
    if not all(isinstance(name, str) for name in extra):
        return None
    forwarded = dict(zip(extra, arguments, strict=False))
    return _plain(function), arguments[len(extra) :], {**keywords, **forwarded}


def _where(*arguments: Any, **keywords: Any) -> Replacement:
    function = _plain(keywords.pop("elemwise_where_function"))
    *rest, where, into = arguments
    return wrappers.elementwise_where, (function, where, into, *rest), keywords


def _along_axis(
    array: Any, func1d: Any, func1d_axis: Any, func1d_args: Any, func1d_kwargs: Any
) -> Replacement:
    positional = (_plain(func1d), func1d_axis, array, *_sequence(func1d_args))
    return wrappers.along_axis, positional, _mapping(func1d_kwargs)


def _random(
    generator: Any, distribution: Any, seed: Any, size: Any, arguments: Any, keywords: Any
) -> Replacement:
    cls = _plain(generator)
    name = wrappers.SEEDED if cls is None or cls is np.random.RandomState else _name_of(cls)
    named = {key: value for key, value in _mapping(keywords).items() if value is not None}
    return wrappers.random_values, (name, distribution, seed, size, *_sequence(arguments)), named


def _choice(
    seed: Any, values: Any, size: Any, replace: Any, weights: Any, axis: Any, shuffle: Any
) -> Replacement:
    bits = _plain(seed)
    keywords = {"replace": replace, "p": weights, "axis": axis, "shuffle": shuffle}
    positional = (_name_of(type(bits)), "choice", _seed_of(bits), size, values)
    return wrappers.random_values, positional, keywords


def _choice_of_state(seed: Any, values: Any, size: Any, replace: Any, weights: Any) -> Replacement:
    positional = (wrappers.SEEDED, "choice", seed, size, values)
    return wrappers.random_values, positional, {"replace": replace, "p": weights}


def _name_of(cls: Any) -> str:
    name = getattr(cls, "__name__", "")
    if wrappers.BIT_GENERATORS.get(name) is not cls:
        raise CannotSubstitute(f"{name or cls!r} is not a random generator of numpy's own")
    return str(name)


def _seed_of(bits: Any) -> np.random.SeedSequence:
    """Give the seed of a bit generator that has drawn nothing yet."""
    seed = bits.seed_seq
    if type(seed) is not np.random.SeedSequence:
        raise CannotSubstitute("a random generator whose seed is not numpy's own")
    fresh = repr(type(bits)(seed).state)
    if fresh != repr(bits.state):
        raise CannotSubstitute("a random generator that was used before")
    return seed


def _masked(data: Any, mask: Any = False, masked_dtype: Any = None, **keywords: Any) -> Replacement:
    # `chunks` is for Dask, and numpy's mark for no mask is a numpy False.
    keywords.pop("chunks", None)
    keywords.pop("copy", None)
    if _plain(keywords.pop("hard_mask", False)):
        raise CannotSubstitute("a hard mask has no wire form")
    return wrappers.masked_array, (data, mask, masked_dtype), keywords


def _with_items(array: Any, values: Any, indices: Any) -> Replacement:
    return wrappers.with_items, (array, values, indices), {}


def _attribute(value: Any, name: Any, *default: Any) -> Replacement:
    name = _plain(name)
    if default or name not in wrappers.ATTRIBUTES:
        raise CannotSubstitute(f"the attribute {name!r} is not one that may be asked for")
    return wrappers.attribute, (value, name), {}


def _like(converter: Callable[..., Any]) -> Callable[..., Replacement]:
    """Leave out an array of numpy's own that says no more than that the result is to be one."""

    def make(array: Any, like: Any, **keywords: Any) -> Replacement:
        if not isinstance(_plain(like), np.ndarray):
            return None
        return converter, (array,), keywords

    return make


def _sparse(kind: str) -> Callable[..., Replacement]:
    def make(array: Any, **keywords: Any) -> Replacement:
        return (wrappers.sparse_array, (kind, array), {}) if not keywords else None

    return make


def _without_lock(getter: Any) -> Callable[..., Replacement]:
    """Leave out a lock of this process: a site reads its own data under its own locks."""

    def make(
        array: Any, index: Any, asarray: Any = True, lock: Any = None, **keywords: Any
    ) -> Replacement:
        if type(_plain(lock)) not in LOCKS:
            return None
        return getter, (array, index, asarray), keywords

    return make


def _sequence(value: Any) -> tuple[Any, ...]:
    if isinstance(value, DataNode):
        value = value.value
    if isinstance(value, List | Tuple) or (
        isinstance(value, Task) and value.func is _identity_cast
    ):
        value = value.args
    if not isinstance(value, tuple | list):
        raise CannotSubstitute("a call with arguments that are computed has no wire form")
    return tuple(value)


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, DataNode):
        value = value.value
    if isinstance(value, Dict):
        value = dict(zip(map(_plain, value.args[::2]), value.args[1::2], strict=True))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CannotSubstitute("a call with arguments that are computed has no wire form")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, TaskRef | Alias):
        raise CannotSubstitute("a call of what is computed has no wire form")
    return value.value if isinstance(value, DataNode) else value


def _replacements() -> dict[int, tuple[Any, Callable[..., Replacement]]]:
    """Functions by identity, each kept alive beside what replaces a call of it."""
    named: list[tuple[Any, str, Callable[..., Replacement]]] = [
        (dask_core, "_enforce_dtype", _enforced),
        (dask_core, "_pass_extra_kwargs", _with_extra_keywords),
        (dask_core, "_elemwise_handle_where", _where),
        (dask_routines, "_inner_apply_along_axis", _along_axis),
        (dask_random, "_apply_random_func", _random),
        (dask_random, "_apply_random", _random),
        (dask_random, "_choice_rng", _choice),
        (dask_random, "_choice_rs", _choice_of_state),
        (dask_ma, "_masked_array", _masked),
        (dask_slicing, "setitem", _with_items),
        (dask_utils, "asanyarray_safe", _like(np.asanyarray)),
        (dask_utils, "asarray_safe", _like(np.asarray)),
    ]
    # A version of Dask that lacks one of them does not make such tasks.
    found = [(vars(module)[name], make) for module, name, make in named if name in vars(module)]
    found += [(apply, _apply), (getattr, _attribute)]
    found += [(vars(sparse)[kind], _sparse(kind)) for kind in wrappers.SPARSE]
    found += [
        (getter, _without_lock(getter))
        for getter in (dask_core.getter, dask_core.getter_inline, dask_core.getter_nofancy)
    ]
    return {id(function): (function, make) for function, make in found}


_REPLACED = _replacements()
_SAME: list[tuple[Any, Any]] = [
    # What numpy would leave unwritten may be what others had in that memory.
    (np.empty, np.zeros),
    (np.empty_like, np.zeros_like),
    (np.ma.empty_like, np.ma.zeros_like),
    (toolz_identity, wrappers.identity),
    (ProhibitReuse._identity, wrappers.identity),
]
_EQUIVALENT = {id(function): (function, operation) for function, operation in _SAME}
