"""Tracebacks as short as what they say.

What a site refuses has crossed a dozen coroutines before it is raised in the caller's
thread.  None of them says more than the message does, and sixty lines of them hide it.
"""

from __future__ import annotations

import logging
from typing import TypeVar

from federated_dask.errors import FederatedError

__all__ = ["without_coroutines"]

E = TypeVar("E", bound=BaseException)

logger = logging.getLogger(__name__)


def without_coroutines(error: E) -> E:
    """Take from an error the frames of the background loop, to be raised in the caller's thread.

    Only from errors that say by themselves what happened: those of our tree, and what a
    task raised at a site.  Where a function of the researcher's own raised at home, and
    where we made a mistake, the frames are what tells.  Logged at level debug, with them.

    Examples
    --------
    >>> from federated_dask.errors import NotFound
    >>> try:
    ...     raise NotFound("No dataset 'a1c'.", site="north")
    ... except NotFound as error:
    ...     without_coroutines(error).__traceback__ is None
    True
    """
    cause = error.__cause__
    if isinstance(error, FederatedError) or isinstance(cause, FederatedError):
        logger.debug("%s", type(error).__name__, exc_info=error)
        error.__traceback__ = None
        if isinstance(cause, FederatedError):
            cause.__traceback__ = None
        else:
            # The message holds what the transport said.
            error.__suppress_context__ = True
            error.__cause__ = None
    return error
