"""Logging in at a site's OpenID provider by the device flow, and staying logged in.

::

    federated-dask login URL ──► site:      which providers, for whom are tokens?
                             ──► provider:  a code for the user
    user in a browser        ──► provider:  logs in, confirms the code
    federated-dask login     ──► provider:  token and refresh token ──► login_store
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.client.login_store import StoredLogin, load_login, locked, save_login
from federated_dask.client.openid_provider import (
    DeviceCode,
    OpenIDProvider,
    require_authlib,
    token_fields,
)
from federated_dask.client.sessions import check_address
from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    NotFound,
    Reason,
    SiteUnavailable,
)
from federated_dask.protocol.identity_messages import LoginIssuer, LoginOptions

__all__ = ["LoginToken", "connection_at", "log_in", "stored_token"]

EARLY_SECONDS = 20.0
"""A token that ends sooner than this is renewed before it is used."""
PAUSE_SECONDS = 30.0
"""How long to wait after a renewal that failed before trying again."""


class LoginToken:
    """A token that is renewed when it ends.

    It goes to other processes as the text of the token that is valid now, without
    the means to renew it.

    Parameters
    ----------
    login : StoredLogin
        From `load_login`.
    """

    def __init__(self, login: StoredLogin) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._pause_ends = 0.0

    @property
    def address(self) -> str:
        """Of the site for which it is."""
        return self._login.address

    @property
    def trust(self) -> str | None:
        """CA certificates with which the login was made, as PEM text; None for the system's."""
        return self._login.trust

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoginToken) and other.address == self.address

    def __hash__(self) -> int:
        return hash((type(self), self.address))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (str, (self._login.access_token,))

    async def current(self) -> str:
        """Give a token that is valid now, as far as that can be known here."""
        login = self._login
        if login.expires is not None and login.expires - time.time() < EARLY_SECONDS:
            return await self.renewed(login.access_token) or login.access_token
        return login.access_token

    async def renewed(self, used: str) -> str | None:
        """Give another token than `used`, or None where there is none to be had."""
        return await asyncio.to_thread(self._renew, used)

    def _renew(self, used: str) -> str | None:
        # Requests run at the same time; the refresh token may be good for one of them only.
        with self._lock:
            if self._login.access_token != used:
                return self._login.access_token
            if time.monotonic() < self._pause_ends:
                return None
            try:
                return self._renew_stored(used)
            except OSError:
                # Nothing can be written here: the token that there is lasts as long as it does.
                self._pause_ends = time.monotonic() + PAUSE_SECONDS
                return None

    def _renew_stored(self, used: str) -> str | None:
        with locked(self.address):
            # Another process may have been faster.
            stored = load_login(self.address)
            if stored is not None and stored.access_token != used:
                self._login = stored
                return stored.access_token
            renewed = _refreshed(self._login)
            if renewed is None:
                self._pause_ends = time.monotonic() + PAUSE_SECONDS
                return None
            self._login = renewed
            with contextlib.suppress(ConfigurationError):
                save_login(renewed)
        return renewed.access_token


def connection_at(address: str, token: str | None, verify: bool | Path | None) -> SiteConnection:
    """Connect to the site at an address, as given or as one is logged in there.

    Parameters
    ----------
    address : str
        Endpoint of the site.
    token : str or None
        None for that of the login.
    verify : bool or Path or None
        None for the certificate authorities of the login.
    """
    login = stored_token(check_address(address)) if token is None else None
    trust: bool | str | Path = True if verify is None else verify
    if verify is None and login is not None and login.trust is not None:
        trust = login.trust
    return SiteConnection(
        urlsplit(address).netloc, address, login if token is None else token, trust
    )


def stored_token(address: str) -> LoginToken | None:
    """Give the token of an earlier login at a site, or None where there was none."""
    login = load_login(address)
    return None if login is None else LoginToken(login)


def log_in(
    address: str,
    *,
    show: Callable[[DeviceCode], None],
    verify: bool | str | Path = True,
    issuer: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[StoredLogin, str]:
    """Log in for a site, and keep the login.

    Parameters
    ----------
    address : str
        The site's endpoint.
    show : callable
        Tells the user where to go.
    verify : bool, str or Path, optional
        True for the system's CAs, or a PEM file with the only ones to trust, for
        site and provider.
    issuer : str, optional
        Name of the provider, where the site has several.
    wait : callable, optional
        Waits for a number of seconds.

    Returns
    -------
    login : StoredLogin
    place : str
        Where it is kept: ``keyring`` or the path of a file.

    Raises
    ------
    ConfigurationError
        If authlib is not installed, or it is not clear at which provider.
    NotAuthenticated
        If the user or the provider refused.
    SiteUnavailable
        If site or provider do not answer.
    """
    require_authlib()
    site = SiteConnection(urlsplit(address).netloc or address, address, None, verify)
    chosen = _chosen(loop.sync(_options(site)), issuer)
    trust = site.parameters.trust
    with OpenIDProvider(chosen.url, chosen.client_id, trust) as provider:
        token = provider.device_flow(chosen, show, wait)
    login = StoredLogin(
        address=site.address,
        issuer=chosen.url,
        client_id=chosen.client_id,
        audience=chosen.audience,
        token_endpoint=provider.endpoint("token_endpoint"),
        trust=trust,
        **token_fields(token),
    )
    return login, save_login(login)


async def _options(site: SiteConnection) -> LoginOptions:
    try:
        return await site.login_options()
    finally:
        await site.close()


def _chosen(options: LoginOptions, name: str | None) -> LoginIssuer:
    names = ", ".join(issuer.name for issuer in options.issuers)
    found = [issuer for issuer in options.issuers if name in (None, issuer.name)]
    if not options.issuers:
        raise ConfigurationError(
            "The site has no OpenID provider.",
            site=options.site,
            hint="Ask its operator for a token, and keep it: "
            "`federated-dask login URL --token-file FILE`.",
        )
    if not found:
        raise NotFound(
            f"The site has no OpenID provider {name!r}.",
            reason=Reason.UNKNOWN_SITE,
            site=options.site,
            hint=f"It has {names}.",
        )
    if len(found) > 1:
        raise ConfigurationError(
            "The site has several OpenID providers.",
            site=options.site,
            hint=f"Choose one by --issuer: {names}.",
        )
    return found[0]


def _refreshed(login: StoredLogin) -> StoredLogin | None:
    if not (login.refresh_token and login.token_endpoint and login.issuer and login.client_id):
        return None
    try:
        require_authlib()
        with OpenIDProvider(login.issuer, login.client_id, login.trust) as provider:
            token = provider.refresh(login)
        return msgspec.structs.replace(
            login, **{"refresh_token": login.refresh_token, **token_fields(token)}
        )
    except (ConfigurationError, NotAuthenticated, SiteUnavailable):
        # The site says what is wrong with the token that there is.
        return None
