import copy
import pickle

import pytest

from federated_dask import errors
from federated_dask.errors import FederatedError, Reason, from_reason
from federated_dask.protocol.messages import Failure

CLASSES = FederatedError.__subclasses__()
BY_REASON = [(cls, reason) for cls in CLASSES for reason in cls.reasons]


def make(cls: type[FederatedError], reason: Reason) -> FederatedError:
    error = cls("It broke.", reason=reason, site="north", hint="Mend it.")
    error.add_note("as seen from the south")
    return error


def test_the_tree_is_flat_and_drawn_in_the_docstring() -> None:
    assert errors.__doc__ is not None
    drawn = {line.split()[1] for line in errors.__doc__.splitlines() if "──" in line}
    assert drawn == {cls.__name__ for cls in CLASSES}
    assert all(not cls.__subclasses__() for cls in CLASSES if cls.__module__ == errors.__name__
               and cls is not errors.TaskFailed)  # fmt: skip


def test_every_class_is_public() -> None:
    assert {cls.__name__ for cls in CLASSES} | {"FederatedError", "Reason"} <= set(errors.__all__)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_belongs_to_exactly_one_class(reason: Reason) -> None:
    assert len([cls for cls in CLASSES if reason in cls.reasons]) == 1


@pytest.mark.parametrize(("cls", "reason"), BY_REASON)
def test_a_reason_maps_to_http_and_back(cls: type[FederatedError], reason: Reason) -> None:
    error = make(cls, reason)
    assert 400 <= error.http_status < 600
    again = from_reason(reason.value, error.message, site=error.site, hint=error.hint)
    assert type(again) is cls
    assert (again.reason, again.http_status, str(again)) == (reason, error.http_status, str(error))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_first_reason_is_the_default(cls: type[FederatedError]) -> None:
    assert cls("It broke.").reason is next(iter(cls.reasons))


@pytest.mark.parametrize(("cls", "reason"), BY_REASON)
@pytest.mark.parametrize(
    "again",
    [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_errors_survive(again, cls: type[FederatedError], reason: Reason) -> None:  # type: ignore[no-untyped-def]
    error = make(cls, reason)
    twin = again(error)
    assert type(twin) is cls
    assert (twin.message, twin.reason, twin.site, twin.hint) == (
        "It broke.",
        reason,
        "north",
        "Mend it.",
    )
    assert twin.__notes__ == ["as seen from the south"]
    twin.add_note("another")
    assert error.__notes__ == ["as seen from the south"]


def test_without_notes_there_are_none_afterwards() -> None:
    assert not hasattr(pickle.loads(pickle.dumps(errors.NotFound("Gone."))), "__notes__")


@pytest.mark.parametrize(("cls", "reason"), BY_REASON)
def test_the_text_says_where_what_next_and_why(cls: type[FederatedError], reason: Reason) -> None:
    assert str(make(cls, reason)) == f"[north] It broke. Mend it. ({reason.value})"
    assert str(cls("It broke.", reason=reason)) == f"It broke. ({reason.value})"


@pytest.mark.parametrize("cls", CLASSES)
def test_a_reason_of_another_class_is_refused(cls: type[FederatedError]) -> None:
    for reason in set(Reason) - set(cls.reasons):
        with pytest.raises(ValueError, match="is not a reason of"):
            cls("It broke.", reason=reason)
    with pytest.raises(ValueError, match="nonsense"):
        cls("It broke.", reason="nonsense")


def test_the_base_class_cannot_be_raised() -> None:
    with pytest.raises(TypeError, match="base class"):
        FederatedError("It broke.")


@pytest.mark.parametrize(("cls", "reason"), BY_REASON)
def test_a_failure_carries_an_error(cls: type[FederatedError], reason: Reason) -> None:
    error = make(cls, reason)
    again = Failure.from_error(error).to_error()
    assert type(again) is cls
    assert str(again) == str(error)


def test_a_reason_of_a_newer_site_is_kept_in_the_message() -> None:
    error = Failure(reason="phase_of_the_moon", message="No.", site="north").to_error()
    assert type(error) is errors.SiteUnavailable
    assert error.reason is Reason.INTERNAL
    assert "phase_of_the_moon" in str(error)
    assert "Upgrade" in str(error)
    assert len(from_reason("x" * 10_000, "No.").message) < 200
