import builtins
import traceback

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from federated_dask.client.remote_errors import exception_types, named_failure, task_error
from federated_dask.errors import FederatedError, NotPermitted, Reason, TaskFailed
from federated_dask.protocol.messages import Failure


def failed(exception: str, reason: str = "task_failed") -> Exception:
    return task_error(
        Failure(
            reason=reason,
            message="It broke.",
            site="north",
            exception=exception,
            traceback="Traceback (at the site):\n  in f\n",
        )
    )


@pytest.mark.parametrize(
    "type_",
    [
        ValueError,
        KeyError,
        ZeroDivisionError,
        MemoryError,
        FileNotFoundError,
        RuntimeWarning,
        np.linalg.LinAlgError,
        np.exceptions.AxisError,
        pd.errors.OutOfBoundsDatetime,
        xr.MergeError,
        xr.AlignmentError,
        xr.CoordinateValidationError,
    ],
)
def test_the_original_type_with_the_remote_traceback(type_: type[Exception]) -> None:
    error = failed(f"{type_.__module__}.{type_.__qualname__}")
    assert type(error) is type_
    cause = error.__cause__
    assert isinstance(cause, TaskFailed)
    assert cause.site == "north"
    shown = "".join(traceback.format_exception(error))
    assert "Traceback (at the site)" in shown
    assert "It broke." in shown


def test_numpys_private_types_become_their_public_bases() -> None:
    with pytest.raises(TypeError) as caught:
        np.add(np.array(["a"]), np.array([1]))
    private = caught.type
    assert private is not TypeError
    assert type(failed(f"{private.__module__}.{private.__qualname__}")) is TypeError
    assert type(failed("numpy._core._exceptions._ArrayMemoryError")) is MemoryError


@pytest.mark.parametrize(
    "name",
    [
        "institute.errors.GridError",
        "builtins.SystemExit",
        "builtins.KeyboardInterrupt",
        "builtins.GeneratorExit",
        "builtins.StopIteration",
        "builtins.eval",
        "builtins.UnicodeDecodeError",
        "os.system",
        "ValueError.__init__",
        "",
        "x" * 10_000,
    ],
)
def test_every_other_type_is_a_failed_task(name: str) -> None:
    error = failed(name)
    assert type(error) is TaskFailed
    assert len(str(error)) < 1000
    assert any("Traceback (at the site)" in note for note in error.__notes__)


def test_every_type_of_the_table_can_be_made() -> None:
    for name, type_ in exception_types().items():
        assert issubclass(type_, Exception)
        assert type(failed(name)) is type_


def test_the_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        exception_types()["builtins.open"] = builtins.open  # type: ignore[index]


def test_refusals_are_no_task_errors() -> None:
    error = task_error(Failure(reason="export_not_allowed", message="No.", site="north"))
    assert type(error) is NotPermitted
    # A site cannot dress a refusal up as something else.
    assert type(failed("builtins.ValueError", "export_not_allowed")) is NotPermitted


def test_a_lost_worker() -> None:
    error = task_error(Failure(reason="worker_lost", message="It died.", site="north"))
    assert isinstance(error, TaskFailed)
    assert error.reason == Reason.WORKER_LOST


def test_texts_of_a_site_are_bounded_and_printable() -> None:
    failure = Failure(
        reason="task_failed", message="a\x1b[31m" * 10_000, hint="\x07\n", traceback="b\x00" * 10**6
    )
    named = named_failure(failure, "north")
    assert named.site == "north"
    assert named.message.startswith("a�[31m")
    assert len(named.message) < 10_000
    assert named.hint == "�\n"
    assert len(named.traceback or "") < 200_000
    assert "\x00" not in (named.traceback or "")
    assert isinstance(task_error(named), FederatedError)
