"""People, and projects of which they are members."""

from typing import Any

from site_plugins.grants import Grant
from site_plugins.policy import Policy
from site_plugins.projects import ProjectStore
from site_plugins.registry import Registry
from site_plugins.tokens import Principal

DEADLINE = 60.0


def person(subject: str, issuer: str = "urn:federated-dask:site:north", **more: Any) -> Principal:
    return Principal(issuer=issuer, subject=subject, expires=9e9, **more)


ADA, BOB, EVE = person("ada"), person("bob", "https://idp.example"), person("eve")
BEN = person("ben", "urn:federated-dask:site:south")


def store(*may_create: str, grants: tuple[Grant, ...] = ()) -> ProjectStore:
    registry = Registry(None)
    policy = Policy("north", "urn:federated-dask:site:north", grants, registry)
    return ProjectStore(policy, registry, may_create or ("anyone",))


def with_bob(projects: ProjectStore, uses: int = 1) -> str:
    projects.create(ADA, "drought")
    code = projects.invite(ADA, "drought", uses, 60.0).code
    projects.join(BOB.issuer, BOB.subject, "drought", code)
    return code
