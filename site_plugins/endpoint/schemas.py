"""What OpenAPI says of replies whose bodies FastAPI does not make."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from federated_dask.errors import Reason, from_reason
from federated_dask.protocol.call_messages import CallStatus, FunctionDescription, Functions
from federated_dask.protocol.grant_messages import (
    Grant,
    GrantAnswer,
    GrantQuestion,
    Grants,
    NewGrant,
    Usage,
)
from federated_dask.protocol.identity_messages import JoinRequest, LoginOptions, SiteIntroduction
from federated_dask.protocol.messages import (
    FRAMES_MEDIA_TYPE,
    Budget,
    Catalogue,
    DelegationReply,
    DelegationRequest,
    Failure,
    LeaseTerms,
    LicenseAcceptance,
    LicenseTerms,
    Operations,
    SiteDescription,
)
from federated_dask.protocol.project_messages import (
    Invited,
    MemberRef,
    MembershipAnswer,
    MembershipQuestion,
    NewInvitation,
    NewProject,
    Project,
    ProjectCode,
    Projects,
)

__all__ = ["CALLING", "READING", "components", "failures", "frames", "json_body", "json_of"]

SCHEMA = "#/components/schemas/"
ALSO = {
    # Reasons that come with the same status and need no mention of their own at each route.
    Reason.TOKEN_MISSING: (Reason.TOKEN_EXPIRED, Reason.TOKEN_INVALID),
    Reason.UNKNOWN_VARIABLE: (Reason.UNKNOWN_DATASET,),
    Reason.EXPORT_NOT_ALLOWED: (),
}
READING = (
    Reason.TOKEN_MISSING,
    Reason.EXPORT_NOT_ALLOWED,
    Reason.NOT_PERMITTED,
    Reason.BUDGET_EXHAUSTED,
    Reason.LICENSE_NOT_ACCEPTED,
    Reason.UNKNOWN_VARIABLE,
    Reason.VERSION_CHANGED,
    Reason.LIMIT_EXCEEDED,
    Reason.MALFORMED,
    Reason.DATASET_UNREADABLE,
)
"""Why a part of a variable is refused, whatever the form in which it is asked for."""
CALLING = (
    Reason.TOKEN_MISSING,
    Reason.NOT_PERMITTED,
    Reason.UNKNOWN_FUNCTION,
    Reason.VERSION_CHANGED,
    Reason.INVALID_ARGUMENT,
    Reason.LIMIT_EXCEEDED,
    Reason.MALFORMED,
    Reason.DATASET_UNREADABLE,
)
"""Why a call is refused before it begins, whatever the form of its arguments."""


@cache
def components() -> dict[str, Any]:
    """Schemas of the messages that cross as JSON."""
    _, schemas = msgspec.json.schema_components(
        [
            Budget,
            CallStatus,
            Catalogue,
            DelegationReply,
            DelegationRequest,
            Failure,
            FunctionDescription,
            Functions,
            Grant,
            GrantAnswer,
            GrantQuestion,
            Grants,
            Invited,
            JoinRequest,
            LeaseTerms,
            LicenseAcceptance,
            LicenseTerms,
            LoginOptions,
            MemberRef,
            MembershipAnswer,
            MembershipQuestion,
            NewGrant,
            NewInvitation,
            NewProject,
            Operations,
            Project,
            ProjectCode,
            Projects,
            SiteDescription,
            Usage,
            SiteIntroduction,
        ],
        ref_template=SCHEMA + "{name}",
    )
    return schemas


def json_of(type_: type | None, also: dict[int | str, Any] | None = None) -> dict[int | str, Any]:
    """Document a JSON reply, beside another media type."""
    schema = {"$ref": SCHEMA + type_.__name__} if type_ is not None else {"type": "object"}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    description = f"`{type_.__name__}`." if type_ is not None else "The description."
    for documented in (also or {}).values():
        content.update(documented["content"])
        description = documented["description"]
    return {200: {"description": description, "content": content}}


def json_body(type_: type) -> dict[str, Any]:
    """Document a JSON request."""
    schema = {"$ref": SCHEMA + type_.__name__}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def frames(description: str, status: int = 200) -> dict[int | str, Any]:
    """Document a reply made of frames."""
    schema = {"type": "string", "format": "binary"}
    return {
        status: {
            "description": description,
            "content": {FRAMES_MEDIA_TYPE: {"schema": schema}},
        }
    }


def failures(*reasons: Reason) -> dict[int | str, Any]:
    """Document the failures of a route: status to reasons.

    Examples
    --------
    >>> failures(Reason.VERSION_CHANGED)[409]["description"]
    '`version_changed`'
    """
    found: dict[int | str, list[Reason]] = {}
    for reason in reasons:
        for each in (reason, *ALSO.get(reason, ())):
            status = from_reason(each, "").http_status
            found.setdefault(status, []).append(each)
    return {
        status: {
            "description": ", ".join(f"`{reason}`" for reason in sorted(set(group))),
            "content": {"application/json": {"schema": {"$ref": f"{SCHEMA}Failure"}}},
        }
        for status, group in found.items()
    }
