"""Several steps as one Dask task, and slices of slices as one slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

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


class _Getter(NamedTuple):
    """What a getter's task says, with what its function takes where nothing is said."""

    function: Any
    index: Any
    asarray: bool
    lock: Any

    @classmethod
    def of(cls, task: Task) -> _Getter:
        function = unguarded(task.func)
        asarray, lock = task.args[2:] or (function is not chunk.getitem, None)
        return cls(function, task.args[1], asarray, lock)

    @property
    def items(self) -> tuple[Any, ...]:
        """Its index, axis by axis where it is a tuple."""
        return self.index if self.is_tuple else (self.index,)

    @property
    def is_tuple(self) -> bool:
        return type(self.index) is tuple


def _merged(outer_task: Task, inner_task: Task) -> Task | None:
    outer, inner = _Getter.of(outer_task), _Getter.of(inner_task)
    if not _may_merge(outer, inner):
        return None
    try:
        index = fuse_slice(inner.index, outer.index)
    except (NotImplementedError, IndexError, TypeError, ValueError):
        return None
    get: Any = getter if inner.function is getter_inline else inner.function
    asarray = outer.asarray or inner.asarray
    is_as_usual = asarray and not inner.lock
    options = () if get is chunk.getitem or is_as_usual else (asarray, inner.lock)
    if isinstance(inner_task.func, Guard):
        get = Guard(inner_task.func.name, get, inner_task.func.limit)
    return Task(
        outer_task.key,
        get,
        inner_task.args[0],
        index,
        *options,
        _data_producer=inner_task.data_producer,
    )


def _may_merge(outer: _Getter, inner: _Getter) -> bool:
    if outer.lock and outer.lock is not inner.lock:
        # Read in one go, it would be under the inner one's lock only.
        return False
    if outer.is_tuple != inner.is_tuple:
        return False
    indices = (*inner.items, *outer.items)
    if len(outer.items) != len(inner.items) and any(index is None for index in indices):
        # Which axis of the one is which of the other is not to be told by counting.
        return False
    # What `getter_nofancy` reads from takes no lists of positions.
    is_fancy = any(isinstance(index, list | np.ndarray) for index in indices)
    return inner.function is not getter_nofancy or not is_fancy
