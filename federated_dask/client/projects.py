"""Projects at a site: making them, inviting to them, joining and leaving them."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from federated_dask.client import loop
from federated_dask.client.remote_site import RemoteSite
from federated_dask.client.sessions import check_address
from federated_dask.errors import ConfigurationError
from federated_dask.protocol.grant_messages import Grant, NewGrant
from federated_dask.protocol.project_messages import (
    Invited,
    MemberRef,
    NewInvitation,
    NewProject,
    Project,
    ProjectCode,
    Projects,
)

__all__ = ["RemoteProjects", "link_of", "parse_link"]

PATH = "/projects/"


def link_of(address: str, invited: Invited) -> str:
    """Write an invitation as a link.

    The code stands behind ``#``: browsers and proxies do not send or log that part.

    Examples
    --------
    >>> link_of("https://north.example", Invited(project="drought@north", code="x", expires=0.0))
    'https://north.example/projects/drought@north#x'
    """
    return f"{address}{PATH}{invited.project}#{invited.code}"


def parse_link(link: str) -> tuple[str, ProjectCode]:
    """Read a link: the address of the project's site, and what to show to join.

    Raises
    ------
    ConfigurationError
        If it is no such link.

    Examples
    --------
    >>> parse_link("https://north.example/projects/drought@north#x")[0]
    'https://north.example'
    """
    before, _, code = link.strip().partition("#")
    address, _, project = before.rpartition(PATH)
    try:
        found = msgspec.convert({"project": project, "code": code}, ProjectCode)
    except msgspec.ValidationError:
        found = None
    if found is None or not code or not address:
        # The link holds a secret, so it is not shown.
        raise ConfigurationError(
            "This is no link to a project.", hint="`federated-dask project invite` prints one."
        )
    return check_address(address), found


class RemoteProjects(RemoteSite):
    """Projects of the site at an address."""

    def projects(self) -> Projects:
        """List those of which one is a member."""
        return self._ask("GET", "/projects", Projects)

    def create(self, name: str) -> Project:
        """Make a project."""
        return self._ask("POST", "/projects", Project, NewProject(name=name))

    def members(self, name: str) -> Project:
        """Give a project with its members."""
        return self._ask("GET", _path(name), Project)

    def invite(self, name: str, *, uses: int = 1, lifetime: float = 7 * 86_400.0) -> str:
        """Give a link by which others join."""
        wanted = NewInvitation(uses=uses, lifetime=lifetime)
        path = f"{_path(name)}/invitations"
        return link_of(self._site.address, self._ask("POST", path, Invited, wanted))

    def join(self, code: ProjectCode) -> Project:
        """Join a project of this site, or of a peer of it."""
        return self._ask("POST", "/projects/join", Project, code)

    def leave(self, name: str) -> Project:
        """Leave a project."""
        return self._ask("DELETE", f"{_path(name)}/membership", Project)

    def remove(self, name: str, issuer: str, subject: str) -> Project:
        """Remove a member."""
        who = MemberRef(issuer=issuer, subject=subject)
        return self._ask("POST", f"{_path(name)}/removals", Project, who)

    def share(self, project: str, actions: tuple[str, ...], resources: tuple[str, ...]) -> Grant:
        """Let a project's members use datasets and functions of this site."""
        if "@" not in project:
            project = f"{project}@{loop.sync(self._site.health()).get('site', '')}"
        new = NewGrant(to=f"project:{project}", may=actions, on=resources)  # type: ignore[arg-type]
        return self._ask("POST", "/grants", Grant, new)


def _path(name: str) -> str:
    # At the project's own site its name may be given with the site's or without.
    return PATH + quote(name.partition("@")[0], safe="")
