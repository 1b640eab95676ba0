"""Groups from entitlements as AARC-G069 (and G002) writes them.

::

    urn:geant:helmholtz.de:group:climate:ocean:role=manager#login.helmholtz.de
    └────── namespace ────┘      └─ group and subgroups    └─ authority

An entitlement is cut into its segments and these are compared whole: a group
``john`` has nothing to do with ``johnny``.  Who is in a subgroup is in the groups
above it; a role holds only where it is stated.  What does not parse, or is of a
namespace that the site did not name, gives no group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["groups_of"]

SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;@-]|%[0-9A-Fa-f]{2})+")
ROLE = "role="
MOST_SEGMENTS = 32


def groups_of(entitlement: str, namespaces: Iterable[str]) -> tuple[str, ...]:
    """Give the groups that an entitlement states.

    Parameters
    ----------
    entitlement : str
        What a token holds.
    namespaces : iterable of str
        Those of which entitlements count, such as ``urn:geant:helmholtz.de``.

    Returns
    -------
    tuple of str
        The group and those above it, outermost first, then the group with the
        role; empty where the entitlement states none.

    Examples
    --------
    >>> groups_of("urn:geant:x.org:group:climate:ocean:role=chief#x.org", ["urn:geant:x.org"])
    ('climate', 'climate:ocean', 'climate:ocean:role=chief')
    >>> groups_of("urn:geant:x.organic:group:climate#x.org", ["urn:geant:x.org"])
    ()
    """
    text, _, authority = entitlement.partition("#")
    if authority and SEGMENT.fullmatch(authority) is None:
        return ()
    segments = text.split(":")
    for namespace in namespaces:
        front = [*namespace.split(":"), "group"]
        if len(segments) <= MOST_SEGMENTS and segments[: len(front)] == front:
            return _groups(segments[len(front) :])
    return ()


def _groups(segments: list[str]) -> tuple[str, ...]:
    role = None
    if segments and segments[-1].startswith(ROLE):
        *segments, last = segments
        role = last.removeprefix(ROLE)
    names = segments if role is None else [*segments, role]
    # A name made of dots only would mean another one where somebody reads it as a path.
    if not segments or not all(SEGMENT.fullmatch(name) and name.strip(".") for name in names):
        return ()
    groups = [":".join(segments[:depth]) for depth in range(1, len(segments) + 1)]
    return (*groups, *([f"{groups[-1]}:{ROLE}{role}"] if role is not None else []))
