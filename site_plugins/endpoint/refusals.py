"""Refusals of the endpoint in the audit log."""

from __future__ import annotations

import time

from fastapi import Request

from federated_dask.errors import FederatedError
from site_plugins.audit import Audit

__all__ = ["Refusals"]

QUIET_SECONDS = 10.0
"""Shortest time between two lines about requests of nobody: their number is up to anybody."""


class Refusals:
    """Writes down what was refused, to whom, and why.

    Parameters
    ----------
    audit : Audit
        The log.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._unknown = 0
        self._told = -QUIET_SECONDS

    def write(self, request: Request, error: FederatedError) -> None:
        """Write down that a request was refused."""
        principal = getattr(request.state, "principal", None)
        if error.http_status >= 500:
            return
        if principal is None:
            self._unknown += 1
            now = time.monotonic()
            if now - self._told < QUIET_SECONDS:
                return
            self._told = now
            self._audit.write("not_authenticated", reason=error.reason.value, count=self._unknown)
            self._unknown = 0
            return
        route = request.scope.get("route")
        self._audit.write(
            "refused",
            principal,
            reason=error.reason.value,
            route=f"{request.method} {getattr(route, 'path', '')}",
            dataset=request.path_params.get("name"),
        )
