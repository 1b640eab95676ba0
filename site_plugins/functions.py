"""Publishing functions: what a site offers to be called.

::

    @publish(title="Linear trend")          publish(client, trend)
    def trend(…): …                              │ cloudpickle
        │ module named in site.toml              ▼
        ▼                                   SitePlugin ──► state folder
    PublishedFunction(description, origin) ◄─────┘
        │ origin: how to get at the callable, in the endpoint and on workers
        ▼
    Signature: validation and the call

A function of a module is imported where it is needed; one that was published at run time
by the institute's own Dask users travels as a pickle, between the processes of the site
only, as all that Dask itself runs does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import msgspec

from federated_dask.errors import ConfigurationError
from federated_dask.protocol.call_messages import FunctionDescription, FunctionLimits
from site_plugins.signatures import OpenSignature, Signature

if TYPE_CHECKING:
    from site_plugins.config import FunctionsSection

__all__ = [
    "CodeOrigin",
    "ModuleOrigin",
    "Origin",
    "PickledOrigin",
    "PublishedFunction",
    "functions_of",
    "publish",
    "published_function",
    "signature_of",
]

F = TypeVar("F", bound=Callable[..., Any])

MARK = "__federated_publication__"
"""Attribute of a function that a module publishes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
    """What `publish` was told of a function."""

    name: str | None = None
    version: str = "1"
    title: str = ""
    tags: tuple[str, ...] = ()
    seconds: float | None = None
    result_bytes: int | None = None
    concurrent_calls: int | None = None
    idempotent: bool = False


@dataclasses.dataclass(frozen=True)
class ModuleOrigin:
    """A function of a module that all processes of the site can import."""

    module: str
    name: str
    path: tuple[str, ...] = ()
    """Folders in which it is looked for, before all others."""

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        function: Callable[..., Any] = getattr(_imported(self.module, self.path), self.name)
        return function


@dataclasses.dataclass(frozen=True)
class PickledOrigin:
    """A function that was published at run time."""

    pickle: bytes = dataclasses.field(repr=False)

    def load(self) -> Callable[..., Any]:
        """Unpickle the function; it comes from the institute's own cluster."""
        import cloudpickle

        function: Callable[..., Any] = cloudpickle.loads(self.pickle)
        return function


@dataclasses.dataclass(frozen=True)
class CodeOrigin:
    """A callable of a caller who has a grant for `code`: opaque but to the worker that runs it."""

    pickle: bytes = dataclasses.field(repr=False)
    names: tuple[str, ...]
    """Of the arguments that are passed; numbers for those by position."""

    def signature(self) -> OpenSignature:
        """Make a signature that unpickles the callable when it is called, not before."""
        return OpenSignature(self.names, self._load)

    def _load(self) -> Callable[..., Any]:
        import cloudpickle

        function: Callable[..., Any] = cloudpickle.loads(self.pickle)
        return function


Origin: TypeAlias = ModuleOrigin | PickledOrigin | CodeOrigin


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedFunction:
    """A function as the site keeps it; small and picklable."""

    description: FunctionDescription
    origin: Origin
    digest: str
    """Of all that decides on what a call does."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.description.name

    @property
    def limits(self) -> FunctionLimits:
        """What one call may take."""
        return self.description.limits


def signature_of(digest: str, origin: Origin) -> Signature:
    """Give the signature of a function; a published one is loaded once per process."""
    if isinstance(origin, CodeOrigin):
        # Whoever sends the same bytes gets an object of its own.
        return origin.signature()
    return _published_signature(digest, origin)


@functools.lru_cache(maxsize=1024)
def _published_signature(digest: str, origin: ModuleOrigin | PickledOrigin) -> Signature:
    return Signature(origin.load())


@overload
def publish(function: F, /) -> F: ...


@overload
def publish(
    *,
    name: str | None = None,
    version: str = "1",
    title: str = "",
    tags: Iterable[str] = (),
    seconds: float | None = None,
    result_bytes: int | None = None,
    concurrent_calls: int | None = None,
    idempotent: bool = False,
) -> Callable[[F], F]: ...


@overload
def publish(client: Any, function: Callable[..., Any], /, **options: Any) -> Any: ...


def publish(*arguments: Any, **options: Any) -> Any:
    """Publish a function: every partner whom the site's grants allow to can call it.

    As a decorator it marks a function of a module that ``[functions] modules`` of
    `site.toml` names.  With a `distributed.Client` of the site's cluster as the first
    argument it publishes at once, and until `unpublish`::

        publish(client, function, title="Linear trend")

    Parameters
    ----------
    client : distributed.Client, optional
        Of the site's cluster.
    function : callable, optional
        What is published; as a decorator, the function below it.
    name : str, optional
        Under which it is called; by default its own.
    version : str, default "1"
        Told to callers, who may insist on one.
    title : str, optional
        One line for lists; by default the first line of its docstring.
    tags : iterable of str, optional
        For searching.
    seconds : float, optional
        Longest time that a call may run, in seconds; by default that of ``[functions]``.
    result_bytes : int, optional
        Largest result, in bytes; by default that of ``[functions]``.
    concurrent_calls : int, optional
        Calls that run at a time; others wait for their turn.  No limit by default.
    idempotent : bool, default False
        Whether a call may be run again where its worker was lost.

    Returns
    -------
    callable or str
        As a decorator, the function itself (``@publish(…)`` first gives the decorator);
        with a client its name, awaitable where the client is asynchronous.

    Raises
    ------
    ConfigurationError
        With a client, if callers could not call it, or the name is taken by `site.toml`.
    TypeError
        If there is no such option, or `tags` is a text.
    ValueError
        If a limit is not more than 0.

    Examples
    --------
    >>> @publish(title="Sum of two numbers", tags=["arithmetic"])
    ... def add(a: float, b: float = 0.0) -> float:
    ...     return a + b
    >>> add(1, 2)
    3
    """
    if arguments and not callable(arguments[0]) and hasattr(arguments[0], "scheduler"):
        from site_plugins.publishing import publish_function

        client, function = arguments
        return publish_function(client, function, _publication(options))
    publication = _publication(options)

    def mark(function: F) -> F:
        setattr(function, MARK, publication)
        return function

    if not arguments:
        return mark
    [function] = arguments
    return mark(function)


def _publication(options: dict[str, Any]) -> Publication:
    tags = options.pop("tags", ())
    if isinstance(tags, str):
        raise TypeError("tags are a list of texts")
    publication = Publication(**options, tags=tuple(tags))
    for limit in ("seconds", "result_bytes", "concurrent_calls"):
        value = getattr(publication, limit)
        if value is not None and not value > 0:
            raise ValueError(f"{limit} must be more than 0")
    return publication


def published_function(
    function: Callable[..., Any],
    origin: ModuleOrigin | PickledOrigin,
    publication: Publication | None = None,
) -> PublishedFunction:
    """Describe a function for publishing.

    Raises
    ------
    ConfigurationError
        If callers could not call it.
    """
    told = publication or getattr(function, MARK, None) or Publication()
    signature = Signature(function)
    name = str(told.name or getattr(function, "__name__", ""))
    title = told.title or signature.description.partition("\n")[0].strip()
    description = FunctionDescription(
        name=name,
        version=told.version,
        title=title,
        description=signature.description,
        tags=told.tags,
        parameters=tuple(each.description for each in signature.parameters.values()),
        returns=signature.returns,
        limits=FunctionLimits(
            seconds=told.seconds,
            result_bytes=told.result_bytes,
            concurrent_calls=told.concurrent_calls,
        ),
        idempotent=told.idempotent,
        json_schema=signature.json_schema,
    )
    try:
        told_bytes = msgspec.json.encode(description)
        # Names are checked when messages are decoded.
        msgspec.json.decode(told_bytes, type=FunctionDescription)
    except (msgspec.MsgspecError, TypeError) as error:
        raise ConfigurationError(f"Function {name!r} cannot be published: {error}.") from error
    digest = hashlib.blake2b(told_bytes + repr(origin).encode(), digest_size=16)
    if isinstance(origin, PickledOrigin):
        digest.update(origin.pickle)
    return PublishedFunction(description=description, origin=origin, digest=digest.hexdigest())


def _imported(module: str, path: Sequence[str]) -> Any:
    for folder in reversed(path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return importlib.import_module(module)


def functions_of(section: FunctionsSection) -> Iterator[PublishedFunction | ConfigurationError]:
    """Give the functions that the modules of a `site.toml` publish, and what is wrong with them."""
    path = tuple(map(str, section.path))
    names: dict[str, str] = {}
    for module in section.modules:
        try:
            found = _imported(module, path)
        except Exception as error:
            # A module runs whatever its author wrote.
            yield ConfigurationError(
                f"Module {module!r} cannot be imported: {type(error).__name__}: {error}.",
                hint="[functions] path lists the folders where modules are looked for.",
            )
            continue
        marked = {
            name: value for name, value in vars(found).items() if callable(value) and _marked(value)
        }
        if not marked:
            yield ConfigurationError(
                f"Module {module!r} publishes nothing.",
                hint="Mark its functions: `from site_plugins import publish`, `@publish(…)`.",
            )
        for attribute, function in marked.items():
            try:
                published = published_function(function, ModuleOrigin(module, attribute, path))
            except ConfigurationError as error:
                yield error
                continue
            if published.name in names:
                yield ConfigurationError(
                    f"Function {published.name!r} is published by {names[published.name]!r} "
                    f"and by {module!r}.",
                    hint="Give one of them another name: @publish(name=…).",
                )
                continue
            names[published.name] = module
            yield published


def _marked(value: Any) -> bool:
    return isinstance(getattr(value, MARK, None), Publication)
