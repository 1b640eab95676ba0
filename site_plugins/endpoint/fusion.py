"""Several steps as one Dask task, and slices of slices as one slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from dask._task_spec import GraphNode, Task, TaskRef
from dask.array import chunk
from dask.array.core import getter, getter_inline, getter_nofancy
from dask.array.optimization import fuse_slice

from site_plugins.endpoint.guards import Guard, unguarded

if TYPE_CHECKING:
    from dask.typing import Key

__all__ = ["one_task", "run_steps"]


def one_task(steps: list[GraphNode]) -> GraphNode:
    """Make one Dask task of steps of which each uses earlier ones; the last one is the result."""
    steps = _fuse_slices(steps)
    if len(steps) == 1:
        return steps[0]
    needed: dict[Key, None] = {}
    inside: set[Key] = set()
    for step in steps:
        needed.update(dict.fromkeys(step.dependencies - inside))
        inside.add(step.key)
    return Task(
        steps[-1].key,
        run_steps,
        tuple(steps),
        tuple(needed),
        *map(TaskRef, needed),
        _data_producer=any(step.data_producer for step in steps),
    )


def run_steps(steps: tuple[GraphNode, ...], names: tuple[Key, ...], *inputs: object) -> Any:
    """Run the steps of a task one after the other, at a worker."""
    values = dict(zip(names, inputs, strict=True))
    last_use = {name: at for at, step in enumerate(steps) for name in step.dependencies}
    result: object = None
    for at, step in enumerate(steps):
        values[step.key] = result = step(values)
        for name in step.dependencies:
            if last_use[name] == at:
                del values[name]
    return result


GETTERS = (getter, getter_nofancy, getter_inline, chunk.getitem)


def _fuse_slices(steps: list[GraphNode]) -> list[GraphNode]:
    """Read ``x[a][b]`` as ``x[a∘b]``, by the rules of `dask.array.optimization`."""
    uses: dict[Key, int] = {}
    for step in steps:
        for key in step.dependencies:
            uses[key] = uses.get(key, 0) + 1
    kept: dict[Key, GraphNode] = {}
    for step in steps:
        inner = _getter_below(step, kept, uses)
        merged = None if inner is None else _merged(*inner)
        if merged is not None and inner is not None:
            del kept[inner[1].key]
        kept[step.key] = merged or step
    return list(kept.values())


def _getter_below(
    step: GraphNode, kept: Mapping[Key, GraphNode], uses: Mapping[Key, int]
) -> tuple[Task, Task] | None:
    """Give a getter and the getter that it alone reads from, if it is one."""
    if not _is_getter(step) or not isinstance(step.args[0], TaskRef):
        return None
    key = step.args[0].key
    inner = kept.get(key)
    # An index may refer to it once more, which the second condition sees.
    if inner is None or uses[key] != 1 or key not in step.dependencies or not _is_getter(inner):
        return None
    return step, inner


def _is_getter(step: GraphNode) -> TypeGuard[Task]:
    return (
        type(step) is Task
        and unguarded(step.func) in GETTERS
        and len(step.args) in (2, 4)
        and not step.kwargs
        and not isinstance(step.args[1], GraphNode | TaskRef)
    )


def _merged(outer: Task, inner: Task) -> Task | None:
    a_index, b_index = outer.args[1], inner.args[1]
    a_function, b_function = unguarded(outer.func), unguarded(inner.func)
    a_asarray, a_lock = outer.args[2:] or (a_function is not chunk.getitem, None)
    b_asarray, b_lock = inner.args[2:] or (b_function is not chunk.getitem, None)
    is_tuple = type(a_index) is tuple
    if (a_lock and a_lock is not b_lock) or is_tuple != (type(b_index) is tuple):
        return None
    indices = (*b_index, *a_index) if is_tuple else (b_index, a_index)
    if is_tuple and len(a_index) != len(b_index) and None in map(_none, indices):
        return None
    fancy = any(isinstance(index, list | np.ndarray) for index in indices)
    if b_function is getter_nofancy and fancy:
        return None
    try:
        index = fuse_slice(b_index, a_index)
    except (NotImplementedError, IndexError, TypeError, ValueError):
        return None
    get: Any = getter if b_function is getter_inline else b_function
    asarray = a_asarray or b_asarray
    options = () if get is chunk.getitem or (asarray and not b_lock) else (asarray, b_lock)
    if isinstance(inner.func, Guard):
        get = Guard(inner.func.name, get, inner.func.limit)
    return Task(outer.key, get, inner.args[0], index, *options, _data_producer=inner.data_producer)


def _none(item: object) -> object:
    # Arrays compare elementwise; only whether an item is None matters.
    return None if item is None else 0
