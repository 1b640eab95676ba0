"""Grants: who may do what with which datasets, functions and projects.

A grant names a recipient, actions and patterns of resources.  It is plain data
until `cedar_policies` turns it into policies of Cedar, which decides; what
operators and users write never becomes text of a policy language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ACTIONS",
    "Grant",
    "cedar_policies",
    "check_action",
    "check_pattern",
    "check_recipient",
    "covers",
]

ACTIONS = ("describe", "compute", "export", "call", "publish", "code", "admin")
"""What can be granted; each of them includes ``describe``."""

LONGEST_RECIPIENT = 1200
RECIPIENT = re.compile(r"anyone|(?:user|group|project):\S(?:.*\S)?")
PATTERN = re.compile(r"\*|(?:dataset|function|project|site):[A-Za-z0-9_.@*\-]{1,256}")


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What somebody may do."""

    id: str
    """``site.toml:1`` for the first of site.toml; else random."""
    to: str
    may: tuple[str, ...]
    on: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.to} may {', '.join(self.may)} on {', '.join(self.on)}"


def check_recipient(text: str) -> str:
    """Give a recipient back, or raise ValueError.

    Examples
    --------
    >>> check_recipient("group:climate")
    'group:climate'
    >>> check_recipient("climate")
    Traceback (most recent call last):
    ValueError: 'climate' is nobody: "anyone", "user:SUBJECT", "user:ISSUER SUBJECT", ...
    """
    fits = len(text) <= LONGEST_RECIPIENT and text.isprintable() and RECIPIENT.fullmatch(text)
    kind, _, name = text.partition(":")
    if not fits or (kind == "project" and not re.fullmatch(r"[\w.\-]+@[\w.\-]+", name, re.ASCII)):
        raise ValueError(
            f'{text[:64]!r} is nobody: "anyone", "user:SUBJECT", "user:ISSUER SUBJECT", '
            '"group:NAME" or "project:NAME@SITE"'
        )
    return text


def check_action(text: str) -> str:
    """Give an action back, or raise ValueError."""
    if text not in ACTIONS:
        raise ValueError(f"{text[:64]!r} is no action: {', '.join(ACTIONS)}")
    return text


def check_pattern(text: str) -> str:
    """Give a pattern of resources back, or raise ValueError.

    Examples
    --------
    >>> check_pattern("dataset:soil-*")
    'dataset:soil-*'
    """
    if not PATTERN.fullmatch(text):
        raise ValueError(
            f"{text[:64]!r} is no resource: dataset:NAME, function:NAME, project:NAME or "
            "site:NAME, with * for any characters, or * for everything"
        )
    return text


def covers(pattern: str, resource: str) -> bool:
    """Say whether a pattern is for a resource, or for all that another pattern is for.

    Examples
    --------
    >>> covers("dataset:*", "dataset:soil-*"), covers("dataset:soil", "dataset:soil-2")
    (True, False)
    """
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), resource) is not None


def cedar_policies(grant: Grant, own_issuer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write a grant as policies of Cedar, in its JSON form: (name, policy) for each pattern.

    The name of a policy begins with the grant's id and a blank.
    """
    actions = dict.fromkeys(("describe", *grant.may))
    for number, pattern in enumerate(grant.on):
        parts: list[Any] = []
        for position, literal in enumerate(pattern.split("*")):
            parts += [
                *(["Wildcard"] if position else []),
                *([{"Literal": literal}] if literal else []),
            ]
        conditions = [_when({"like": {"left": _attribute("name"), "pattern": parts}})]
        if "*" in pattern:
            # Before its time a dataset is for those to whom it was granted by its name.
            conditions.append(_when({"!": {"arg": _attribute("embargoed")}}))
        yield (
            f"{grant.id} {number}",
            {
                "effect": "permit",
                "principal": _principal(grant.to, own_issuer),
                "action": {
                    "op": "in",
                    "entities": [{"type": "Action", "id": action} for action in actions],
                },
                "resource": {"op": "All"},
                "conditions": conditions,
            },
        )


def _when(body: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "when", "body": body}


def _attribute(name: str) -> dict[str, Any]:
    return {".": {"left": {"Var": "resource"}, "attr": name}}


def _principal(recipient: str, own_issuer: str) -> dict[str, Any]:
    kind, _, name = recipient.partition(":")
    if kind == "anyone":
        return {"op": "All"}
    if kind == "user":
        issuer, _, subject = name.partition(" ")
        # Issuers are URLs or URNs; subjects of the own issuer may hold blanks.
        if not subject or ":" not in issuer:
            issuer, subject = own_issuer, name
        return {"op": "==", "entity": user_entity(issuer, subject)}
    return {"op": "in", "entity": {"type": kind.capitalize(), "id": name}}


def user_entity(issuer: str, subject: str) -> dict[str, str]:
    """Name a principal to Cedar; no printable text holds a line break, so none shares a name."""
    return {"type": "User", "id": f"{issuer}\n{subject}"}


def names_of(grants: Sequence[Grant], kind: str) -> frozenset[str]:
    """Names of all groups or projects to which something was granted."""
    start = f"{kind}:"
    return frozenset(g.to.removeprefix(start) for g in grants if g.to.startswith(start))
