"""What the researcher gives to connect with, checked before anything is asked of a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from federated_dask.errors import ConfigurationError
from federated_dask.planner.sources import HOME

__all__ = ["Addressed", "check_name", "check_token", "named_addresses"]


@runtime_checkable
class Addressed(Protocol):
    """Anything that says how to reach sites, such as ``site_plugins.LocalFederation``."""

    @property
    def addresses(self) -> Mapping[str, str]:
        """Site names to addresses."""

    @property
    def token(self) -> str | Mapping[str, str]:
        """One token for all sites, or one for each."""

    @property
    def verify(self) -> bool | str | Path:
        """Whom to trust."""


def named_addresses(
    address: str | Sequence[str] | Mapping[str, str],
) -> list[tuple[str | None, str]]:
    """Write out whatever names endpoints as (name of the site or None, address) each.

    Examples
    --------
    >>> named_addresses({"north": "https://north.example:8786/"})
    [('north', 'https://north.example:8786')]
    """
    if isinstance(address, Mapping):
        found: list[tuple[Any, Any]] = list(address.items())
    elif isinstance(address, list | tuple | set | frozenset):
        found = [(None, each) for each in address]
    else:
        found = [(None, address)]
    for name, each in found:
        if not isinstance(each, str) or not isinstance(name, str | None):
            raise ConfigurationError(
                f"{each!r} is no address of a site.",
                hint="Give https://host:port, a list of such, or a dict of site names to them.",
            )
    if not found:
        raise ConfigurationError(
            "There is no address to connect to.", hint="Give the address of at least one site."
        )
    return [(name, each.rstrip("/")) for name, each in found]


def check_token(token: object) -> None:
    """Raise `ConfigurationError` unless it is a token, a mapping of tokens, or None."""
    texts = token.items() if isinstance(token, Mapping) else [("", token)]
    if token is not None and not all(isinstance(part, str) for pair in texts for part in pair):
        # What was given may be a secret, so it is not shown.
        raise ConfigurationError(
            f"The token is no text but of type {type(token).__name__}.",
            hint="Give one token as text, or a dict of site names or addresses to tokens.",
        )


def check_name(expected: str, found: str, address: str) -> None:
    """Raise `ConfigurationError` unless an endpoint is that of the site that was expected."""
    if found != expected:
        raise ConfigurationError(
            f"The endpoint at {address} is the site {found!r}, not {expected!r}.",
            site=expected,
            hint="Check the addresses.",
        )
    if found == HOME or not found:
        raise ConfigurationError(
            f"The endpoint at {address} calls itself {found!r}, which is no name of a site.",
            hint="Tell its operator.",
        )
