"""Calls of callables that a caller sends, for those who have a grant for `code`.

The callable crosses the endpoint as bytes that nothing here looks into; the worker that
runs the call unpickles them.  All else is as for published functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from federated_dask.errors import NotPermitted, Reason, RequestRefused
from federated_dask.protocol.call_messages import (
    LARGEST_CODE,
    CodeSubmission,
    FunctionDescription,
)
from site_plugins.endpoint.call_admission import Call, CallAdmission
from site_plugins.endpoint.failures import JobFailed, refused_argument
from site_plugins.endpoint.passing import Passing
from site_plugins.functions import CodeOrigin, PublishedFunction
from site_plugins.signatures import ArgumentError
from site_plugins.tokens import Principal

__all__ = ["admit_code", "require_code"]

NAME = "code"
"""What such a callable is called in messages and keys."""


def require_code(admission: CallAdmission, principal: Principal) -> tuple[str, str]:
    """Raise `NotPermitted` unless a principal may run code of its own.

    Returns
    -------
    tuple of str
        The permission: action and resource.
    """
    site = admission.gateway.site
    permission = ("code", f"site:{site}")
    if not admission.policy.allows(principal, *permission):
        raise NotPermitted(
            "You may not run code of your own at this site.",
            reason=Reason.NOT_PERMITTED,
            site=site,
            hint=f"Ask the site's operator for a grant: `federated-dask grant add WHO code "
            f"site:{site}`.",
        )
    return permission


async def admit_code(
    admission: CallAdmission,
    submission: CodeSubmission,
    buffers: Sequence[bytearray],
    principal: Principal,
) -> Call:
    """Check a submission of code.

    Parameters
    ----------
    admission : CallAdmission
        Admits the call.
    submission : CodeSubmission
        With what it is to be called.
    buffers : sequence of bytearray
        Buffers of the data that is sent along, and the callable last.
    principal : Principal
        Who asks.

    Raises
    ------
    RequestRefused, NotPermitted, NotFound, DatasetUnreadable
        Whatever is wrong with it; the `Failure` of the reply names the argument.
    """
    permission = require_code(admission, principal)
    if not buffers:
        raise RequestRefused("The callable is missing.", reason=Reason.MALFORMED)
    pickled = bytes(buffers[-1])
    if len(pickled) > LARGEST_CODE:
        raise RequestRefused(
            f"The callable has {len(pickled):,} bytes; at most {LARGEST_CODE:,} are taken.",
            reason=Reason.LIMIT_EXCEEDED,
            hint="Pass data as arguments instead of closing over it.",
        )
    unfit = next((name for name in submission.keywords if not name.isidentifier()), None)
    if unfit is not None:
        error = ArgumentError(unfit[:128], "is no name of a parameter")
        raise JobFailed(refused_argument(error, NAME, admission.gateway.site))
    bound = {str(number): each for number, each in enumerate(submission.arguments)}
    bound.update(submission.keywords)
    origin = CodeOrigin(pickled, tuple(bound))
    function = PublishedFunction(
        description=FunctionDescription(name=NAME),
        origin=origin,
        digest=hashlib.blake2b(pickled, digest_size=16).hexdigest(),
    )
    return await admission.admitted(
        function,
        origin.signature(),
        bound,
        Passing(admission.jobs, submission.delegations, None, principal),
        permission,
        buffers[:-1],
        submission.label,
    )
