"""What went wrong at a worker, told without the site's paths."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import traceback
from collections.abc import Iterable
from types import TracebackType

from distributed.scheduler import KilledWorker

from federated_dask.errors import FederatedError, Reason, SiteUnavailable, TaskFailed
from federated_dask.protocol.messages import Failure
from site_plugins.calling import Raised
from site_plugins.datasets import StoredDataset
from site_plugins.fingerprints import local_path
from site_plugins.signatures import ArgumentError

__all__ = [
    "JobFailed",
    "failure_at_boundary",
    "failure_of_call",
    "failure_of_task",
    "internal_failure",
    "refused_argument",
    "scrubbed",
]

logger = logging.getLogger(__name__)

LONGEST_MESSAGE = 4_000
LONGEST_SCRUBBED = 4 * LONGEST_MESSAGE
"""Characters of a message that are looked through, as what is taken out leaves room."""
MOST_FRAMES = 60
URL = re.compile(r"(?<![\w+.-])[\w+.-]+://[^\s'\"<>]+")
"""Begins where a word does, as a look at every letter of a long one takes its length squared."""
FOLDERS = re.compile(r"(?<![\w:/.])~?/(?:[^\s/'\":,;<>()\[\]]+/)+")


def failure_of_task(
    error: BaseException,
    trace: TracebackType | None,
    *,
    site: str,
    datasets: Iterable[StoredDataset],
    withheld: Iterable[str] = (),
) -> Failure:
    """Describe the exception of a task for the wire.

    Parameters
    ----------
    error : BaseException
        What the task raised, or what Dask says of it.
    trace : traceback, optional
        Where.
    site : str
        Name of the site.
    datasets : iterable of StoredDataset
        What the site advertises; their paths are replaced by ``site/dataset``.
    withheld : iterable of str, optional
        Datasets of which nothing may leave and that the task derives from: a
        message may quote values, so only the exception's name is told.
    """
    if isinstance(error, FederatedError):
        error.site = site
        return Failure.from_error(error)
    if isinstance(error, KilledWorker):
        return Failure(
            reason=Reason.WORKER_LOST,
            message="The workers that ran a task died, most likely for lack of memory.",
            site=site,
            hint="Use smaller chunks, or ask the site's operator for more memory per worker.",
        )
    if isinstance(error, asyncio.CancelledError):
        return Failure(
            reason=Reason.WORKER_LOST,
            message="The site's scheduler let go of the job.",
            site=site,
            hint="Run it again.",
        )
    cls = type(error)
    name = f"{cls.__module__}.{cls.__qualname__}"
    withheld = sorted(withheld)
    if withheld:
        return Failure(
            reason=Reason.TASK_FAILED,
            message=f"A task raised {name}; its message may hold data of "
            f"{', '.join(withheld)} and stays at the site.",
            site=site,
            exception=name,
        )
    datasets = list(datasets)
    return Failure(
        reason=Reason.TASK_FAILED,
        message=scrubbed(_cut(_text(error)), site, datasets)[:LONGEST_MESSAGE],
        site=site,
        exception=name,
        traceback="".join(_frames(trace, site, datasets)),
    )


def failure_of_call(
    raised: Raised,
    *,
    site: str,
    function: str,
    datasets: Iterable[StoredDataset],
    withheld: Iterable[str] = (),
) -> Failure:
    """Describe what a function raised for the wire; arguments as those of `failure_of_task`."""
    if raised.is_memory:
        return Failure(
            reason=Reason.OUT_OF_MEMORY,
            message=f"Function {function!r} needed more memory than a worker of the site has.",
            site=site,
            hint="Ask for less: fewer years, a smaller region, coarser data.",
            exception=raised.exception,
        )
    withheld = sorted(withheld)
    if withheld:
        return Failure(
            reason=Reason.FUNCTION_FAILED,
            message=f"Function {function!r} raised {raised.exception}; its message may hold data "
            f"of {', '.join(withheld)} and stays at the site.",
            site=site,
            exception=raised.exception,
        )
    datasets = list(datasets)
    return Failure(
        reason=Reason.FUNCTION_FAILED,
        message=scrubbed(raised.message, site, datasets)[:LONGEST_MESSAGE] or raised.exception,
        site=site,
        exception=raised.exception,
        traceback=scrubbed(raised.traceback, site, datasets),
    )


def refused_argument(error: ArgumentError, function: str, site: str) -> Failure:
    """Describe an argument that does not fit for the wire.

    Examples
    --------
    >>> refused_argument(ArgumentError("start", "is missing"), "trend", "north").message
    "Argument 'start' of 'trend': is missing."
    """
    subject = f"Argument {error.argument!r} of {function!r}: " if error.argument else ""
    return Failure(
        reason=Reason.INVALID_ARGUMENT,
        message=f"{subject or f'Function {function!r} '}{error.rule}.",
        site=site,
        hint=f"`fed.functions[{f'{site}/{function}'!r}]` in Python, or `federated-dask call "
        f"{site}/{function} --help` in a shell, shows what it takes.",
        argument=error.argument or None,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        # Not every class survives the way from a worker whole; numpy's AxisError does not.
        return f"{type(error).__name__}{error.args!r}"


def _cut(text: str) -> str:
    # With the slash, half of a folder's name is seen to be one and is not told.
    return text if len(text) <= LONGEST_SCRUBBED else f"{text[:LONGEST_SCRUBBED]}/"


def scrubbed(text: str, site: str, datasets: Iterable[StoredDataset]) -> str:
    """Take paths and URLs out of a text.

    Examples
    --------
    >>> stored = StoredDataset(name="a1b", path="/data/cmip/a1b.zarr")
    >>> scrubbed("/data/cmip/a1b.zarr/air/0.0 and /etc/hosts", "north", [stored])
    'north/a1b/air/0.0 and hosts'
    """
    replacements = {}
    for dataset in datasets:
        local = local_path(dataset.path)
        for path in {dataset.path, local, local and os.path.realpath(local)}:
            if path:
                replacements[path] = f"{site}/{dataset.name}"
    # The longest first, so that no path is cut where another one begins it.
    for path in sorted(replacements, key=len, reverse=True):
        text = text.replace(path, replacements[path])
    return FOLDERS.sub("", URL.sub("(an address)", text))


def _frames(trace: TracebackType | None, site: str, datasets: list[StoredDataset]) -> Iterable[str]:
    if trace is None:
        return
    yield "Traceback (at the site, most recent call last):\n"
    for frame in traceback.extract_tb(trace)[-MOST_FRAMES:]:
        name = frame.filename.replace("\\", "/")
        _, found, inside = name.rpartition("/site-packages/")
        yield f'  File "{inside if found else os.path.basename(name)}", '
        yield f"line {frame.lineno}, in {frame.name}\n"
        if frame.line:
            yield f"    {scrubbed(frame.line, site, datasets)}\n"


class JobFailed(TaskFailed):
    """The failure of a task or call on its way to the client, with all that is told of it."""

    def __init__(self, failure: Failure) -> None:
        error = failure.to_error()
        self.reasons = type(error).reasons  # type: ignore[misc]
        super().__init__(error.message, reason=error.reason, site=error.site, hint=error.hint)
        self.failure = failure


def internal_failure(site: str) -> Failure:
    """Say that something went wrong at the site which is not the client's to know."""
    return Failure.from_error(
        SiteUnavailable(
            "Something went wrong inside of the site.",
            reason=Reason.INTERNAL,
            site=site,
            hint="Tell the site's operator when it happened, who finds it in the site's log.",
        )
    )


def failure_at_boundary(error: Exception, site: str, what: str) -> Failure:
    """Say what ended a job or call; of an error that is none of ours, only that there was one.

    Parameters
    ----------
    error : Exception
        What ended it.
    site : str
        Name of the site.
    what : str
        What failed, for the site's log.
    """
    if isinstance(error, JobFailed):
        return error.failure
    if isinstance(error, FederatedError):
        error.site = error.site or site
        return Failure.from_error(error)
    logger.error("%s failed", what, exc_info=error)
    return internal_failure(site)
