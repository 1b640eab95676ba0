"""Every error that federated_dask raises on purpose.

::

    FederatedError
    ├── ConfigurationError    what the user or operator wrote cannot be used
    ├── NotAuthenticated      the site does not know who asks
    ├── NotPermitted          the site knows who asks and does not allow it
    ├── NotFound              no such site, dataset, variable, function, call or held result
    ├── VersionChanged        the dataset is no longer the one that was opened
    ├── DatasetUnreadable     the site cannot open a dataset it advertises
    ├── RequestRefused        a message or argument that does not fit, or is over a limit
    ├── SiteUnavailable       no answer, no trust in the certificate, or too late
    └── TaskFailed            a task or a called function raised, was stopped, or lost its worker

Each error carries a closed `reason` code, the site where it happened and a
hint saying what to do next.  Every error survives pickling, and is mapped to
an HTTP status and back (`http_status`, `from_reason`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

__all__ = [
    "ConfigurationError",
    "DatasetUnreadable",
    "FederatedError",
    "NotAuthenticated",
    "NotFound",
    "NotPermitted",
    "Reason",
    "RequestRefused",
    "SiteUnavailable",
    "TaskFailed",
    "VersionChanged",
]


class Reason(StrEnum):
    """The closed set of reason codes, the same on the wire and in Python."""

    CONFIGURATION_INVALID = "configuration_invalid"
    TOKEN_MISSING = "token_missing"  # noqa: S105
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    TOKEN_INVALID = "token_invalid"  # noqa: S105
    EXPORT_NOT_ALLOWED = "export_not_allowed"
    OPERATION_NOT_ALLOWED = "operation_not_allowed"
    NOT_PERMITTED = "not_permitted"
    BUDGET_EXHAUSTED = "budget_exhausted"
    QUOTA_EXCEEDED = "quota_exceeded"
    LICENSE_NOT_ACCEPTED = "license_not_accepted"
    UNKNOWN_SITE = "unknown_site"
    UNKNOWN_DATASET = "unknown_dataset"
    UNKNOWN_VARIABLE = "unknown_variable"
    UNKNOWN_RESULT = "unknown_result"
    UNKNOWN_FUNCTION = "unknown_function"
    UNKNOWN_CALL = "unknown_call"
    UNKNOWN_PROJECT = "unknown_project"
    UNKNOWN_GRANT = "unknown_grant"
    UNKNOWN_ROUTE = "unknown_route"
    VERSION_CHANGED = "version_changed"
    DATASET_UNREADABLE = "dataset_unreadable"
    MALFORMED = "malformed"
    INVALID_ARGUMENT = "invalid_argument"
    LIMIT_EXCEEDED = "limit_exceeded"
    UNREACHABLE = "unreachable"
    CERTIFICATE_NOT_TRUSTED = "certificate_not_trusted"
    TIMED_OUT = "timed_out"
    CONNECTION_LOST = "connection_lost"
    INTERNAL = "internal"
    TASK_FAILED = "task_failed"
    WORKER_LOST = "worker_lost"
    FUNCTION_FAILED = "function_failed"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"


class FederatedError(Exception):
    """Base of the tree.

    Parameters
    ----------
    message : str
        What happened, in one sentence.
    reason : Reason, optional
        One of the reasons of this class; its first one by default.
    site : str, optional
        Name of the site where it happened.
    hint : str, optional
        What to do next.

    Raises
    ------
    TypeError
        If it is this class itself that is raised, and none of those below it.
    ValueError
        If `reason` does not belong to this class.

    Examples
    --------
    >>> error = NotFound(
    ...     "No dataset 'a1c'.",
    ...     reason=Reason.UNKNOWN_DATASET,
    ...     site="north",
    ...     hint="fed.datasets lists what is there.",
    ... )
    >>> print(error)
    [north] No dataset 'a1c'. fed.datasets lists what is there. (unknown_dataset)
    """

    reasons: ClassVar[dict[Reason, int]] = {}
    """The reasons of this class, each with its HTTP status."""

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | str | None = None,
        site: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        if not self.reasons:
            raise TypeError(f"{type(self).__name__} is a base class; raise one of its subclasses")
        self.message = message
        self.reason = next(iter(self.reasons)) if reason is None else Reason(reason)
        self.site = site
        self.hint = hint
        if self.reason not in self.reasons:
            raise ValueError(f"{self.reason} is not a reason of {type(self).__name__}")

    @property
    def http_status(self) -> int:
        """HTTP status with which an endpoint reports this error."""
        return self.reasons[self.reason]

    def __str__(self) -> str:
        where = f"[{self.site}] " if self.site else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint} ({self.reason})"

    def __reduce__(self) -> tuple[object, ...]:
        state = (type(self), self.message, self.reason, self.site, self.hint)
        return (_rebuild, state, {"__notes__": notes} if (notes := _notes(self)) else None)


def _rebuild(
    cls: type[FederatedError], message: str, reason: Reason, site: str | None, hint: str | None
) -> FederatedError:
    return cls(message, reason=reason, site=site, hint=hint)


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


class ConfigurationError(FederatedError):
    """What the user or the operator wrote cannot be used as it stands."""

    reasons: ClassVar[dict[Reason, int]] = {Reason.CONFIGURATION_INVALID: 500}


class NotAuthenticated(FederatedError):
    """The site does not know who asks."""

    reasons: ClassVar[dict[Reason, int]] = {
        Reason.TOKEN_INVALID: 401,
        Reason.TOKEN_MISSING: 401,
        Reason.TOKEN_EXPIRED: 401,
    }


class NotPermitted(FederatedError):
    """The site knows who asks and does not allow it."""

    reasons: ClassVar[dict[Reason, int]] = {
        Reason.EXPORT_NOT_ALLOWED: 403,
        Reason.OPERATION_NOT_ALLOWED: 403,
        Reason.NOT_PERMITTED: 403,
        Reason.BUDGET_EXHAUSTED: 403,
        Reason.QUOTA_EXCEEDED: 429,
        Reason.LICENSE_NOT_ACCEPTED: 403,
    }


class NotFound(FederatedError):
    """No such site, dataset, function, result … (or none that may be seen)."""

    reasons: ClassVar[dict[Reason, int]] = {
        Reason.UNKNOWN_DATASET: 404,
        Reason.UNKNOWN_SITE: 404,
        Reason.UNKNOWN_VARIABLE: 404,
        Reason.UNKNOWN_RESULT: 404,
        Reason.UNKNOWN_FUNCTION: 404,
        Reason.UNKNOWN_CALL: 404,
        Reason.UNKNOWN_PROJECT: 404,
        Reason.UNKNOWN_GRANT: 404,
        Reason.UNKNOWN_ROUTE: 404,
    }


class VersionChanged(FederatedError):
    """The dataset is no longer the one that was opened."""

    reasons: ClassVar[dict[Reason, int]] = {Reason.VERSION_CHANGED: 409}


class DatasetUnreadable(FederatedError):
    """The site cannot open a dataset that it advertises."""

    reasons: ClassVar[dict[Reason, int]] = {Reason.DATASET_UNREADABLE: 503}


class RequestRefused(FederatedError):
    """A message that does not parse, an argument that does not fit, or something over a limit."""

    reasons: ClassVar[dict[Reason, int]] = {
        Reason.MALFORMED: 400,
        Reason.INVALID_ARGUMENT: 422,
        Reason.LIMIT_EXCEEDED: 413,
    }


class SiteUnavailable(FederatedError):
    """No answer from the site, no trust in its certificate, or an answer too late."""

    reasons: ClassVar[dict[Reason, int]] = {
        Reason.UNREACHABLE: 502,
        Reason.CERTIFICATE_NOT_TRUSTED: 502,
        Reason.TIMED_OUT: 504,
        Reason.CONNECTION_LOST: 503,
        Reason.INTERNAL: 500,
    }


class TaskFailed(FederatedError):
    """A task or a called function raised at its site, was stopped, or lost its worker."""

    reasons: ClassVar[dict[Reason, int]] = {
        Reason.TASK_FAILED: 422,
        Reason.WORKER_LOST: 503,
        Reason.FUNCTION_FAILED: 422,
        Reason.OUT_OF_MEMORY: 422,
        Reason.CANCELLED: 409,
    }


_CLASSES: dict[Reason, type[FederatedError]] = {
    reason: cls for cls in FederatedError.__subclasses__() for reason in cls.reasons
}


def from_reason(
    reason: str, message: str, *, site: str | None = None, hint: str | None = None
) -> FederatedError:
    """Make the error that a reason code received from a site stands for.

    A code that this version does not know (a newer site) becomes
    `SiteUnavailable` with reason ``internal``, the code kept in the message.

    Examples
    --------
    >>> from_reason("version_changed", "The dataset changed.", site="north")
    VersionChanged('The dataset changed.')
    """
    try:
        known = Reason(reason)
    except ValueError:
        return SiteUnavailable(
            f"{message} (unknown reason {reason[:64]!r})",
            reason=Reason.INTERNAL,
            site=site,
            hint=hint or "Upgrade federated-dask: the site speaks of reasons unknown here.",
        )
    return _CLASSES[known](message, reason=known, site=site, hint=hint)
