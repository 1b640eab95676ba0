"""What went wrong with a site, as one specific error each.

Three kinds: the transport failed (`mapped_errors`), the site refused a request
(`named_failure` and `Failure.to_error`), or a task raised at the site
(`task_error`).  Text that comes from a site is bounded and stripped of control
characters before anybody prints it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import ssl
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from federated_dask.errors import (
    FederatedError,
    Reason,
    RequestRefused,
    SiteUnavailable,
    TaskFailed,
    from_reason,
)
from federated_dask.protocol.messages import Failure

__all__ = ["clean_text", "connection_lost", "mapped_errors", "named_failure", "task_error"]

LONGEST_MESSAGE = 4_000
LONGEST_TRACEBACK = 100_000


@contextlib.contextmanager
def mapped_errors(site: str, address: str, timeout: float) -> Iterator[None]:
    """Turn whatever the transport raises inside the block into errors of our tree.

    Parameters
    ----------
    site, address : str
        Whom the block talks to.
    timeout : float
        Seconds of silence after which it gives up, for the message.

    Raises
    ------
    FederatedError
        In place of any error of aiohttp, ssl or the operating system; errors of
        the tree get the site's name.
    """
    try:
        yield
    except FederatedError as error:
        error.site = error.site or site
        raise
    except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
        raise _transport_error(error, site, address, timeout) from error


def _transport_error(error: Exception, site: str, address: str, timeout: float) -> FederatedError:
    certificate = (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)
    malformed = (aiohttp.ClientResponseError, HttpProcessingError)
    if isinstance(error, certificate):
        return _certificate_error(error, site, address)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return SiteUnavailable(
            f"No encrypted connection to {address}: {clean_text(str(error))}.",
            reason=Reason.UNREACHABLE,
            site=site,
            hint="Check that the address and port are those of an endpoint.",
        )
    if isinstance(error, TimeoutError):
        return SiteUnavailable(
            f"{address} was silent for {timeout:g} s.",
            reason=Reason.TIMED_OUT,
            site=site,
            hint="Try again, or allow more time with timeout=….",
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return SiteUnavailable(
            f"{address} cannot be reached: {clean_text(str(error.os_error))}.",
            reason=Reason.UNREACHABLE,
            site=site,
            hint="Check the address and that the site is up.",
        )
    if isinstance(error, malformed):
        detail = clean_text(str(error))
        return RequestRefused(
            f"What answers at {address} does not speak HTTP as it should: {detail}.",
            reason=Reason.MALFORMED,
            site=site,
            hint="Check that the address and port are those of an endpoint.",
        )
    if address.startswith("http://"):
        return SiteUnavailable(
            f"{address} did not answer: {clean_text(str(error))}.",
            reason=Reason.CONNECTION_LOST,
            site=site,
            hint="An endpoint speaks TLS: its address starts with https://.",
        )
    if isinstance(error, aiohttp.ClientPayloadError):
        # Its text speaks of chunked transfer coding.
        return connection_lost(site)
    return connection_lost(site, clean_text(str(error)))


def connection_lost(site: str, detail: str = "") -> SiteUnavailable:
    """Make the error for a connection that ended before the reply did."""
    return SiteUnavailable(
        f"The connection broke before the reply was complete{f' ({detail})' if detail else ''}.",
        reason=Reason.CONNECTION_LOST,
        site=site,
        hint="The site may have been restarted: try again; if it happens again, ask its operator.",
    )


def _certificate_error(error: Exception, site: str, address: str) -> SiteUnavailable:
    cause = getattr(error, "certificate_error", error)
    detail = clean_text(getattr(cause, "verify_message", None) or str(cause)).rstrip(".")
    hint = (
        "Give the CA file of this site, which its operator has: verify='ca.pem' (--ca in a shell)."
    )
    if "ostname mismatch" in detail or "IP address mismatch" in detail:
        hint = "Use the host name for which the site's certificate was issued."
    return SiteUnavailable(
        f"The certificate of {address} is not trusted: {detail}.",
        reason=Reason.CERTIFICATE_NOT_TRUSTED,
        site=site,
        hint=hint,
    )


def named_failure(failure: Failure, site: str) -> Failure:
    """Give a received failure the name by which we know the site, and printable texts."""
    return msgspec.structs.replace(
        failure,
        site=site,
        message=clean_text(failure.message),
        hint=None if failure.hint is None else clean_text(failure.hint),
        traceback=None
        if failure.traceback is None
        else clean_text(failure.traceback, LONGEST_TRACEBACK, last=True),
    )


def task_error(failure: Failure) -> Exception:
    """Make the exception to raise for a failure.

    Parameters
    ----------
    failure : Failure
        As it came out of a job's events.

    Returns
    -------
    Exception
        Where a task raised a builtin exception or one of numpy, pandas, xarray
        or zarr: an exception of that type, its ``__cause__`` a `TaskFailed`
        with the site and the remote traceback.  Where it raised another one:
        the `TaskFailed`.  Where no task raised: the failure's own error.

    Examples
    --------
    >>> failure = Failure(
    ...     reason="task_failed",
    ...     message="negative depth",
    ...     site="north",
    ...     exception="builtins.ValueError",
    ...     traceback="Traceback …",
    ... )
    >>> error = task_error(failure)
    >>> error
    ValueError('negative depth')
    >>> print(error.__cause__)
    [north] ValueError: negative depth (task_failed)
    """
    if failure.exception is None:
        return failure.to_error()
    type_ = exception_types().get(failure.exception)
    name = clean_text(failure.exception, 200)
    cause = from_reason(
        failure.reason,
        f"{name.removeprefix('builtins.')}: {failure.message}",
        site=failure.site,
        hint=failure.hint,
    )
    if failure.traceback:
        cause.add_note(f"Traceback at site {failure.site}:\n{failure.traceback}")
    if type_ is None or not isinstance(cause, TaskFailed):
        return cause
    error = type_(failure.message)
    error.__cause__ = cause
    error.add_note(f"Raised by a task at site {failure.site}.")
    return error


BUILTIN = """
ArithmeticError AssertionError AttributeError BlockingIOError BrokenPipeError BufferError
BytesWarning ChildProcessError ConnectionAbortedError ConnectionError ConnectionRefusedError
ConnectionResetError DeprecationWarning EOFError Exception FileExistsError FileNotFoundError
FloatingPointError FutureWarning ImportError IndentationError IndexError InterruptedError
IsADirectoryError KeyError LookupError MemoryError ModuleNotFoundError NameError
NotADirectoryError NotImplementedError OSError OverflowError PendingDeprecationWarning
PermissionError ProcessLookupError RecursionError ReferenceError ResourceWarning RuntimeError
RuntimeWarning SyntaxError SystemError TimeoutError TypeError UnboundLocalError UserWarning
ValueError Warning ZeroDivisionError
"""
LIBRARIES: Mapping[str, str] = MappingProxyType(
    {
        "numpy.exceptions": "AxisError ComplexWarning DTypePromotionError RankWarning TooHardError "
        "VisibleDeprecationWarning",
        "numpy.linalg": "LinAlgError",
        "pandas.errors": "ClosedFileError DataError DtypeWarning DuplicateLabelError "
        "EmptyDataError IncompatibleFrequency IndexingError IntCastingNaNError InvalidComparison "
        "InvalidIndexError LossySetitemError MergeError NullFrequencyError OutOfBoundsDatetime "
        "OutOfBoundsTimedelta ParserError PerformanceWarning SpecificationError "
        "UndefinedVariableError UnsortedIndexError UnsupportedFunctionCall",
        "xarray": "AlignmentError CoordinateValidationError InvalidTreeError MergeError "
        "NotFoundInTreeError SerializationWarning TreeIsomorphismError",
        "zarr.errors": "ArrayIndexError ArrayNotFoundError BaseZarrError BoundsCheckError "
        "ContainsArrayAndGroupError ContainsArrayError ContainsGroupError GroupNotFoundError "
        "MetadataValidationError NegativeStepError NodeTypeValidationError "
        "VindexInvalidSelectionError",
    }
)
TSLIBS = "pandas._libs.tslibs"
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        # Libraries define some under other, private or older, names than they publish.
        "numpy.core._exceptions._ArrayMemoryError": "builtins.MemoryError",
        "numpy._core._exceptions._ArrayMemoryError": "builtins.MemoryError",
        "numpy._core._exceptions.UFuncTypeError": "builtins.TypeError",
        "numpy._core._exceptions._UFuncBinaryResolutionError": "builtins.TypeError",
        "numpy._core._exceptions._UFuncCastingError": "builtins.TypeError",
        "numpy._core._exceptions._UFuncInputCastingError": "builtins.TypeError",
        "numpy._core._exceptions._UFuncNoLoopError": "builtins.TypeError",
        "numpy._core._exceptions._UFuncOutputCastingError": "builtins.TypeError",
        "numpy.linalg.linalg.LinAlgError": "numpy.linalg.LinAlgError",
        "numpy.linalg._linalg.LinAlgError": "numpy.linalg.LinAlgError",
        f"{TSLIBS}.np_datetime.OutOfBoundsDatetime": "pandas.errors.OutOfBoundsDatetime",
        f"{TSLIBS}.np_datetime.OutOfBoundsTimedelta": "pandas.errors.OutOfBoundsTimedelta",
        f"{TSLIBS}.period.IncompatibleFrequency": "pandas.errors.IncompatibleFrequency",
        "xarray.core.alignment.AlignmentError": "xarray.AlignmentError",
        "xarray.structure.alignment.AlignmentError": "xarray.AlignmentError",
        "xarray.core.coordinates.CoordinateValidationError": "xarray.CoordinateValidationError",
        "xarray.core.merge.MergeError": "xarray.MergeError",
        "xarray.structure.merge.MergeError": "xarray.MergeError",
        "xarray.core.treenode.InvalidTreeError": "xarray.InvalidTreeError",
        "xarray.core.treenode.NotFoundInTreeError": "xarray.NotFoundInTreeError",
        "xarray.core.treenode.TreeIsomorphismError": "xarray.TreeIsomorphismError",
        "xarray.conventions.SerializationWarning": "xarray.SerializationWarning",
        "xarray.coding.variables.SerializationWarning": "xarray.SerializationWarning",
    }
)


@functools.cache
def exception_types() -> Mapping[str, type[Exception]]:
    """Give the frozen table of exception types that a failure may name.

    Built once from the exact names above; a name from the wire is only looked
    up in it.
    """
    types: dict[str, type[Exception]] = {}
    for module, names in {"builtins": BUILTIN, **LIBRARIES}.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            # zarr is not installed everywhere.
            continue
        for name in names.split():
            type_ = getattr(loaded, name, None)
            if isinstance(type_, type) and issubclass(type_, Exception):
                types[f"{module}.{name}"] = type_
    for name, published in ELSEWHERE.items():
        if published in types:
            types[name] = types[published]
    return MappingProxyType(types)


def clean_text(text: str, longest: int = LONGEST_MESSAGE, *, last: bool = False) -> str:
    """Bound a text that came from a site, and take what steers terminals out of it."""
    if len(text) > longest:
        text = f"…{text[-longest:]}" if last else f"{text[:longest]}…"
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
