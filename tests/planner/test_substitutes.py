import functools
import operator
import threading

import dask.array as da
import dask.array.core as core
import dask.array.random as da_random
import numpy as np
import pytest
from dask._task_spec import Task, TaskRef
from dask.utils import SerializableLock, apply

from federated_dask.planner.substitutes import (
    CannotSubstitute,
    equivalent,
    is_wrapping,
    substitute,
)
from federated_dask.protocol import wrappers


def run(function, arguments, keywords):
    return function(*arguments, **keywords)


def test_other_calls_stay_what_they_are():
    arguments, keywords = (1, 2), {"x": 3}
    found = substitute(np.add, arguments, keywords)
    assert found == (np.add, arguments, keywords)


def test_apply_is_undone():
    function, arguments, keywords = substitute(apply, (np.sum, [[1, 2]], {"axis": 0}), {})
    assert (function, arguments, keywords) == (np.sum, ([1, 2],), {"axis": 0})
    with pytest.raises(CannotSubstitute):
        substitute(apply, (np.sum, TaskRef("x")), {})


def test_what_is_bound_comes_first():
    function = functools.partial(apply, np.subtract)
    assert run(*substitute(function, ([5, 3],), {})) == 2


@pytest.mark.parametrize("make", [da.random.default_rng, da.random.RandomState])
def test_random_tasks_give_the_same_values(make):
    array = make(4).normal(2.0, 3.0, size=5, chunks=5)
    (task,) = dict(array.__dask_graph__()).values()
    function, arguments, keywords = substitute(task.func, task.args, task.kwargs)
    assert function is wrappers.random_values
    np.testing.assert_array_equal(run(function, arguments, keywords), task({}))


def test_a_generator_that_was_used_stays_home():
    bits = np.random.PCG64(1)
    arguments = (bits, 10, (3,), True, None, 0, True)
    function, new, keywords = substitute(da_random._choice_rng, arguments, {})
    expected = np.random.Generator(np.random.PCG64(1)).choice(10, 3)
    np.testing.assert_array_equal(run(function, new, keywords), expected)
    np.random.Generator(bits).random()
    with pytest.raises(CannotSubstitute):
        substitute(da_random._choice_rng, arguments, {})


def test_a_generator_of_somebody_else_stays_home():
    class Mine:
        pass

    with pytest.raises(CannotSubstitute):
        substitute(da_random._apply_random, (Mine, "normal", 1, (2,), (), {}), {})


def test_dasks_check_of_the_dtype_is_kept():
    keywords = {
        "enforce_dtype": np.dtype("i8"),
        "enforce_dtype_function": core._elemwise_handle_where,
        "elemwise_where_function": np.add,
    }
    function, (call,), rest = substitute(core._enforce_dtype, (1, 2, True, None), keywords)
    assert function is core._enforce_dtype
    assert isinstance(call, Task)
    assert rest == {"enforce_dtype": np.dtype("i8"), "enforce_dtype_function": wrappers.identity}


def test_extra_keywords_become_keywords():
    arguments = (np.sum, ("axis",), 0, np.ones((2, 3)))
    found = substitute(core._pass_extra_kwargs, arguments, {"keepdims": True})
    np.testing.assert_array_equal(run(*found), [[2.0, 2.0, 2.0]])


@pytest.mark.parametrize("lock", [SerializableLock(), threading.Lock()])
def test_locks_of_this_process_are_left_out(lock):
    arguments = ("x", (slice(None),), True, lock)
    assert substitute(core.getter, arguments, {})[1] == arguments[:3]


def test_locks_of_somebody_else_stay():
    class Fussy(SerializableLock):
        pass

    arguments = ("x", (slice(None),), True, Fussy())
    assert substitute(core.getter, arguments, {})[1] is arguments


def test_uninitialised_memory_is_never_asked_for():
    assert equivalent(np.empty) is np.zeros
    assert equivalent(np.empty_like) is np.zeros_like
    assert equivalent(operator.add) is operator.add


def test_a_task_inside_of_a_task_is_seen():
    inner = Task(None, np.add, 1, 2)
    assert is_wrapping(Task("k", wrappers.identity, inner))
    assert not is_wrapping(Task("k", wrappers.identity, TaskRef("x")))
    assert not is_wrapping(Task("k", np.negative, inner))
