"""The functions that sites publish, for people to look at and to call."""

from __future__ import annotations

import difflib
import html
import inspect
import keyword
import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from federated_dask.client.remote_errors import clean_text
from federated_dask.client.results import misbehaved
from federated_dask.errors import FederatedError, NotFound, Reason, RequestRefused
from federated_dask.planner.explanation import text_table
from federated_dask.protocol.call_messages import FunctionDescription, ParameterDescription

__all__ = [
    "DescribedFunction",
    "Function",
    "Functions",
    "Submits",
    "attribute_name",
    "published",
    "signature_of",
]

logger = logging.getLogger(__name__)

WIDTH = 88


class Submits(Protocol):
    """What a function needs of a client."""

    def submit(self, function: str, /, *arguments: Any, **keywords: Any) -> Any:
        """Call a published function."""


class _Annotation:
    """A type as its site shows it; nothing here knows more of it than its text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature_of(description: FunctionDescription, site: str) -> inspect.Signature:
    """Make the signature that callers see.

    Raises
    ------
    SiteUnavailable
        If no Python function could have it.

    Examples
    --------
    >>> from federated_dask.protocol.call_messages import ParameterDescription as Parameter
    >>> start = Parameter(name="start", annotation="int", required=False, default=2070)
    >>> data = Parameter(name="data", kind="dataset", annotation="xr.Dataset")
    >>> signature_of(FunctionDescription(name="trend", parameters=(data, start)), "north")
    <Signature (data: xr.Dataset, start: int = 2070)>
    """
    parameters = []
    may_be_positional = True
    after_default = False
    for each in description.parameters:
        if not each.name.isidentifier() or keyword.iskeyword(each.name):
            raise misbehaved(site, f"Function {description.name!r} has a parameter without a name.")
        after_default = after_default or not each.required
        # Only by name may a parameter follow that has to be given.
        may_be_positional = may_be_positional and not (after_default and each.required)
        parameters.append(
            inspect.Parameter(
                each.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD
                if may_be_positional
                else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if each.required else each.default,
                annotation=_annotation(each.annotation),
            )
        )
    try:
        return inspect.Signature(
            parameters, return_annotation=_annotation(description.returns.annotation)
        )
    except ValueError as error:
        raise misbehaved(
            site, f"Function {description.name!r} has no signature: {error}."
        ) from error


def _annotation(text: str) -> Any:
    return _Annotation(clean_text(text, 200)) if text else inspect.Parameter.empty


def attribute_name(name: str) -> str:
    """Name under which a function is an attribute of its site.

    Examples
    --------
    >>> attribute_name("climate.trend-2")
    'climate_trend_2'
    """
    return name.replace("-", "_").replace(".", "_")


class DescribedFunction:
    """What is known of a function at a site: how it is called, and what it says of itself.

    Attributes
    ----------
    site : str
        The site that runs it.
    description : FunctionDescription
        What the site says of it.
    """

    def __init__(self, site: str, description: FunctionDescription) -> None:
        self.site = site
        self.description = description

    @property
    def name(self) -> str:
        """Qualified name, ``site/function``."""
        return f"{self.site}/{self.description.name}"

    @property
    def signature(self) -> inspect.Signature:
        """How it is called."""
        return signature_of(self.description, self.site)

    @property
    def parameters(self) -> Mapping[str, ParameterDescription]:
        """Its parameters by name."""
        return {each.name: each for each in self.description.parameters}

    def bind(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Give what was passed by the names of the parameters, defaults left out.

        Raises
        ------
        RequestRefused
            If it does not fit the signature; says which name does not.
        """
        signature = self.signature
        names = list(signature.parameters)
        for unknown in (name for name in keywords if name not in signature.parameters):
            alike = difflib.get_close_matches(unknown, names, 1)
            raise self.refusal(
                f"It has no parameter {unknown!r}.",
                f"Did you mean {alike[0]!r}?" if alike else f"It has {_listed(names)}.",
            )
        try:
            return dict(signature.bind(*arguments, **keywords).arguments)
        except TypeError as error:
            raise self.refusal(
                f"{clean_text(str(error))}.", f"It is called as {self.usage()}."
            ) from None

    def refusal(self, message: str, hint: str | None = None) -> RequestRefused:
        """Make the error for arguments that do not fit."""
        return RequestRefused(
            f"{self.description.name}: {message}",
            reason=Reason.INVALID_ARGUMENT,
            site=self.site,
            hint=hint,
        )

    def usage(self) -> str:
        """Show how it is called: its name and signature."""
        return f"{self.description.name}{self.signature}"

    def documentation(self) -> str:
        """Give its docstring."""
        about = self.description
        title = about.title or about.description.partition("\n")[0] or about.name
        blocks = [_text(title)]
        if about.description and about.description != title:
            text = about.description.removeprefix(title).strip()
            if text:
                blocks.append(_text(text))
        if about.parameters:
            blocks.append(_section("Parameters", [_parameter(each) for each in about.parameters]))
        returns = [_entry(_line(about.returns.annotation or "object"), about.returns.description)]
        blocks.append(_section("Returns", returns))
        blocks.append(_section("Notes", [self._notes()]))
        return "\n\n".join(blocks)

    def _notes(self) -> str:
        about = self.description
        notes = [f"Runs at site {self.site}; version {_line(about.version)}."]
        limits = about.limits
        if limits.seconds is not None:
            notes.append(f"A call may take {limits.seconds:g} s.")
        if limits.result_bytes is not None:
            notes.append(f"Its result may have {limits.result_bytes:,} bytes.")
        if limits.concurrent_calls is not None:
            notes.append(f"{limits.concurrent_calls} calls may run at the same time.")
        return textwrap.fill(" ".join(notes), WIDTH)


class Function(DescribedFunction):
    """A function that a site publishes.

    Calling it is ``fed.submit`` with its name: it gives a `FederatedFuture`.
    """

    def __init__(self, client: Submits, site: str, description: FunctionDescription) -> None:
        super().__init__(site, description)
        self._client = client

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it; give a `FederatedFuture`."""
        return self._client.submit(self.name, *arguments, **keywords)

    def as_python(self) -> Callable[..., Any]:
        """Make an ordinary function of it, for ``help`` and editors to show."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            return self(*arguments, **keywords)

        call.__name__ = call.__qualname__ = attribute_name(self.description.name)
        call.__module__ = self.site
        call.__doc__ = self.documentation()
        call.__signature__ = self.signature  # type: ignore[attr-defined]
        return call

    def __repr__(self) -> str:
        return f"<Function {self.name}{self.signature}>"

    def _repr_html_(self) -> str:
        return (
            f"<div><code><b>{html.escape(self.name)}</b>{html.escape(str(self.signature))}</code>"
            f"<pre>{html.escape(self.documentation())}</pre></div>"
        )


class Functions(Mapping[str, Function]):
    """Functions by qualified name, ``site/function``."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = dict(sorted(functions.items()))

    def __getitem__(self, name: str) -> Function:
        try:
            return self._functions[name]
        except KeyError:
            alike = difflib.get_close_matches(name, self._functions, 1) or [
                each for each in self._functions if each.endswith(f"/{name}")
            ]
            hint = f"Did you mean {alike[0]!r}?" if alike else "fed.functions lists what there is."
            raise NotFound(
                f"There is no function {name!r} in this federation.",
                reason=Reason.UNKNOWN_FUNCTION,
                hint=hint,
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def search(self, text: str) -> Functions:
        """Functions with every word of `text` in their name, title, tags or description."""
        words = text.lower().split()
        return Functions(
            {
                name: function
                for name, function in self._functions.items()
                if all(word in _searchable(function) for word in words)
            }
        )

    def at(self, site: str) -> Functions:
        """Functions of one site."""
        found = {name: each for name, each in self._functions.items() if each.site == site}
        return Functions(found)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._functions)

    def __repr__(self) -> str:
        rows = [(name, _line(each.description.title)) for name, each in self._functions.items()]
        return "\n".join(["Functions", *text_table(("function", "title"), rows)])

    def _repr_html_(self) -> str:
        lines = "".join(
            f"<details><summary><code>{html.escape(name)}{html.escape(str(each.signature))}</code> "
            f"{html.escape(each.description.title)}"
            f"<small> {html.escape(', '.join(each.description.tags))}</small></summary>"
            f"<pre>{html.escape(each.documentation())}</pre></details>"
            for name, each in self._functions.items()
        )
        return f"<div><b>Functions</b>{lines}</div>"


def published(
    descriptions: Mapping[str, Iterable[FunctionDescription]], client: Submits
) -> Functions:
    """Make the functions of all sites out of what the sites say of them.

    Where a site describes several versions of a function, the first is the one
    that is called by default.
    """
    found: dict[str, Function] = {}
    for site, each_of_site in descriptions.items():
        for description in each_of_site:
            function = Function(client, site, description)
            try:
                function.signature  # noqa: B018
            except FederatedError as error:
                # One that nobody could call must not take the others along.
                logger.warning("%s", error)
                continue
            found.setdefault(function.name, function)
    return Functions(found)


def _searchable(function: Function) -> str:
    about = function.description
    return " ".join((function.name, about.title, about.description, *about.tags)).lower()


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _line(text: str) -> str:
    return clean_text(text.replace("\n", " "), 200)


def _text(text: str) -> str:
    return clean_text(text).strip()


def _section(title: str, entries: list[str]) -> str:
    return "\n".join([title, "-" * len(title), *entries])


def _entry(head: str, text: str) -> str:
    return f"{head}\n{textwrap.indent(_text(text), '    ')}" if text.strip() else head


def _parameter(each: ParameterDescription) -> str:
    head = f"{each.name} : {_line(each.annotation or 'object')}"
    if not each.required:
        head += f", default {_line(repr(each.default))}"
    return _entry(head, each.description)
