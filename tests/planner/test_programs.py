import functools
import re
import textwrap
from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask._task_spec import DataNode, List, Set, Task, TaskRef, Tuple, _execute_subgraph
from dask.utils import apply
from toolz import compose, curry

from federated_dask.errors import NotPermitted
from federated_dask.planner.programs import (
    Foreign,
    Program,
    ProgramMaker,
    describe_callable,
    written_at,
)
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol import graph as wire
from tests.planner.federation import TABLE, Federation, evaluate

KEYS = {"a": 0, "b": 1, "stored": -1}
SOURCE = SourceReference("north", "d", "1", "v")


@pytest.fixture
def leaves() -> list[Any]:
    return [SOURCE]


@pytest.fixture
def maker(leaves: list[Any]) -> ProgramMaker:
    return ProgramMaker(TABLE, KEYS.__getitem__, leaves)


def value_of(program: Program, leaves: list[Any], *results: Any) -> Any:
    operands = [leaves[-1 - r] if r < 0 else results[r] for r in program.references]
    return evaluate(program.template, operands, program.integers)


A, B = np.arange(12.0).reshape(3, 4), np.full((3, 4), 2.0)


def named(case: tuple[Task, object]) -> str:
    # Without addresses: processes that share the tests have to call them alike.
    return re.sub(r" at 0x[0-9a-f]+", "", str(case[0]))[:60]


TASKS: list[tuple[Task, Any]] = [
    (Task("k", np.add, TaskRef("a"), TaskRef("b")), A + B),
    (Task("k", np.sum, TaskRef("a"), axis=1, keepdims=True), A.sum(axis=1, keepdims=True)),
    (Task("k", functools.partial(np.sum, axis=(0, 1)), TaskRef("a")), A.sum()),
    (Task("k", curry(np.sum)(axis=0), TaskRef("a")), A.sum(axis=0)),
    (Task("k", compose(np.sqrt, np.abs), TaskRef("a")), np.sqrt(A)),
    (Task("k", apply, np.sum, [TaskRef("a")], {"axis": 0}), A.sum(axis=0)),
    (Task("k", apply, np.add, List(TaskRef("a"), 3)), A + 3),
    (Task("k", np.concatenate, List(TaskRef("a"), TaskRef("b")), axis=1), np.hstack([A, B])),
    (Task("k", np.stack, Tuple(TaskRef("a"), TaskRef("b"))), np.stack([A, B])),
    (Task("k", da.chunk.getitem, TaskRef("a"), (slice(1, None, 2), 3)), A[1::2, 3]),
    (Task("k", da.chunk.getitem, TaskRef("a"), (..., None, 0)), A[..., None, 0]),
    (Task("k", da.chunk.getitem, TaskRef("a"), ([0, 2], slice(None))), A[[0, 2]]),
    (Task("k", da.chunk.getitem, TaskRef("a"), np.array([2, 0])), A[[2, 0]]),
    (
        Task("k", np.where, Task(None, np.greater, TaskRef("a"), 3), TaskRef("a"), -0.0),
        np.where(A > 3, A, -0.0),
    ),
    (
        Task("k", np.full, (2, 3), np.float32("nan"), dtype=np.dtype("f4")),
        np.full((2, 3), np.nan, "f4"),
    ),
    (Task("k", np.add, TaskRef("a"), 2**70), A + 2.0**70),
    (Task("k", np.isin, TaskRef("a"), list(range(100))), np.isin(A, range(100))),
]


@pytest.mark.parametrize(("task", "expected"), TASKS, ids=map(named, TASKS))
def test_a_program_does_what_its_task_does(
    maker: ProgramMaker, leaves: list[Any], task: Task, expected: Any
) -> None:
    computed = value_of(maker.make(task), leaves, A, B)
    np.testing.assert_array_equal(computed, expected)
    assert np.asarray(computed).dtype == np.asarray(expected).dtype


def test_fused_tasks_become_steps(maker: ProgramMaker, leaves: list[Any]) -> None:
    inner = {
        "x": Task("x", np.multiply, TaskRef("in"), 2),
        "y": Task("y", np.add, TaskRef("x"), TaskRef("x")),
        "out": Task("out", np.subtract, TaskRef("y"), TaskRef("in")),
    }
    task = Task("k", _execute_subgraph, inner, "out", ("in",), TaskRef("a"))
    program = maker.make(task)
    assert len(program.template.steps) == 3
    np.testing.assert_array_equal(value_of(program, leaves, A), 3 * A)


def test_names_inside_and_outside_do_not_mix(maker: ProgramMaker, leaves: list[Any]) -> None:
    innermost = {"a": Task("a", np.add, TaskRef("b"), 1)}
    middle = {
        "a": Task("a", np.multiply, TaskRef("b"), 10),
        "z": Task("z", _execute_subgraph, innermost, "a", ("b",), TaskRef("a")),
    }
    task = Task("k", _execute_subgraph, middle, "z", ("b",), TaskRef("a"))
    np.testing.assert_array_equal(value_of(maker.make(task), leaves, A), A * 10 + 1)


def test_tasks_of_one_shape_share_one_template(maker: ProgramMaker) -> None:
    programs = [
        maker.make(Task(i, da.chunk.getitem, TaskRef("a"), (slice(i, i + 2),))) for i in range(3)
    ]
    assert len({id(program.template) for program in programs}) == 1
    assert [program.integers for program in programs] == [(0, 2), (1, 3), (2, 4)]


def test_numbers_that_are_equal_and_not_the_same_give_other_templates(maker: ProgramMaker) -> None:
    values = (1, 1.0, True, np.float64(1), np.int64(1), -0.0, 0.0)
    templates = [maker.make(Task("k", np.add, TaskRef("a"), value)).template for value in values]
    assert len(set(templates)) == len(values)


def test_the_same_constant_is_one_leaf(maker: ProgramMaker, leaves: list[Any]) -> None:
    labels = np.arange(50)
    for _ in range(3):
        maker.make(Task("k", np.add, TaskRef("a"), labels))
    assert len(leaves) == 2


class Own:
    pass


def local(x: Any) -> Any:
    return x


FOREIGN: list[tuple[Task, str]] = [
    (Task("k", local, TaskRef("a")), r"test_programs\.local is not in the operation table"),
    (Task("k", lambda x: x, TaskRef("a")), "<lambda> is not in"),
    (Task("k", np.sum, TaskRef("a"), Own()), "Own has no wire form"),
    (Task("k", np.sum, TaskRef("a"), initial=Own()), "Own has no wire form"),
    (Task("k", functools.partial(np.sum, Own())), "Own has no wire form"),
    (Task("k", compose(local, np.sum), TaskRef("a")), "local is not in"),
    (Task("k", open, "/etc/passwd"), "open is not in"),
    (Task("k", getattr, TaskRef("a"), "tofile"), "getattr|tofile"),
    (Task("k", np.add, TaskRef("a"), Set(TaskRef("b"))), "no wire form"),
    # What a site's rules refuse, the planner does not send.
    (Task("k", np.add, TaskRef("a"), TaskRef("b"), TaskRef("a")), "3 positional arguments"),
    (Task("k", np.add, TaskRef("a"), TaskRef("b"), out=TaskRef("a")), "'out'"),
    (Task("k", np.nan_to_num, TaskRef("a"), copy=False), "write"),
    (Task("k", np.array, [np.sum]), "nothing calls it"),
    (Task("k", np.sum, TaskRef("stored")), "stored variable"),
    (Task("k", np.array, [TaskRef("stored")]), "stored variable"),
]


@pytest.mark.parametrize(("task", "words"), FOREIGN, ids=map(named, FOREIGN))
def test_what_cannot_be_sent_says_why(maker: ProgramMaker, task: Task, words: str) -> None:
    with pytest.raises(Foreign, match=words):
        maker.make(task)


def test_texts_of_flox_that_are_not_listed(maker: ProgramMaker) -> None:
    from flox.core import chunk_reduce

    task = Task("k", functools.partial(chunk_reduce, func="np"), TaskRef("a"), TaskRef("b"))
    with pytest.raises(Foreign, match="text 'np'"):
        maker.make(task)
    computed = Task("k", chunk_reduce, TaskRef("a"), TaskRef("b"), func=TaskRef("a"))
    with pytest.raises(Foreign, match="reaches functions by name"):
        maker.make(computed)


def test_a_read_may_name_a_stored_variable(maker: ProgramMaker) -> None:
    program = maker.make(Task("k", da.core.getter, TaskRef("stored"), (slice(0, 2),)))
    assert program.references == (-1,)


def test_data_nodes_are_constants(maker: ProgramMaker) -> None:
    program = maker.make(Task("k", np.add, TaskRef("a"), DataNode(None, 2.5)))
    assert wire.Float((2.5).hex()) in program.template.steps[0].arguments  # type: ignore[union-attr]


def test_callables_have_names_for_people() -> None:
    assert describe_callable(local) == f"{__name__}.local"
    assert "add" in describe_callable(np.add)
    assert "local" in describe_callable(functools.partial(local))


def _own(values: np.ndarray) -> np.ndarray:
    return values * 3


class _Callable:
    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values


@pytest.mark.parametrize(
    ("function", "line"), [(_own, "def _own(values"), (_Callable(), "def __call__(self")]
)
def test_a_function_of_ones_own_is_named_with_its_line(function: Any, line: str) -> None:
    written = written_at(function)
    assert written is not None
    assert written.startswith("test_programs.py, line ")
    assert line in written


def test_functions_of_libraries_have_no_line_of_ones_own() -> None:
    assert written_at(np.linalg.norm) is None
    assert written_at(da.percentile) is None
    assert written_at(textwrap.dedent) is None


def test_a_refusal_names_the_function_its_line_and_the_ways_out() -> None:
    federation = Federation()
    values = np.ones((40, 50))
    x = da.from_array(federation.variable("north", values, "v", 100), chunks=10)
    with pytest.raises(NotPermitted) as error:
        federation.plan(x.map_blocks(_own, dtype="f8").sum())
    assert "_own is not in the operation table (written in test_programs.py" in str(error.value)
    assert error.value.hint is not None
    for way in ("publish your function", "`code`", "open the dataset"):
        assert way in error.value.hint
