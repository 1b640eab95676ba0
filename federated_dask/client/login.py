"""Logging in at a site's OpenID provider by the device flow, and staying logged in.

::

    federated-dask login URL ──► site:      which providers, for whom are tokens?
                             ──► provider:  a code for the user
    user in a browser        ──► provider:  logs in, confirms the code
    federated-dask login     ──► provider:  token and refresh token ──► login_store

authlib does the protocol; it comes with the extra ``[login]``, and this module can be
imported without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.client.login_store import StoredLogin, load_login, locked, save_login
from federated_dask.client.sessions import check_address
from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    NotFound,
    Reason,
    SiteUnavailable,
)
from federated_dask.protocol.identity_messages import LoginIssuer, LoginOptions

if TYPE_CHECKING:
    from authlib.integrations.requests_client import OAuth2Session

__all__ = ["DeviceCode", "LoginToken", "connection_at", "log_in", "stored_token"]

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
REQUEST_SECONDS = 20.0
POLL_SECONDS = 5.0
LONGEST_WAIT = 1800.0
EARLY_SECONDS = 20.0
"""A token that ends sooner than this is renewed before it is used."""
PAUSE_SECONDS = 30.0
"""How long to wait after a renewal that failed before trying again."""


@dataclass(frozen=True, kw_only=True)
class DeviceCode:
    """What the user is told."""

    address: str
    """To open in a browser; the code is in it where the provider can do that."""
    code: str
    """To compare, or to type in."""


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
    _require_authlib()
    site = SiteConnection(urlsplit(address).netloc or address, address, None, verify)
    chosen = _chosen(loop.sync(_options(site)), issuer)
    trust = site.parameters.trust
    with _Provider(chosen.url, chosen.client_id, trust) as provider:
        token = provider.device_flow(chosen, show, wait)
    login = StoredLogin(
        address=site.address,
        issuer=chosen.url,
        client_id=chosen.client_id,
        audience=chosen.audience,
        token_endpoint=provider.endpoint("token_endpoint"),
        trust=trust,
        **_fields(token),
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
        _require_authlib()
        with _Provider(login.issuer, login.client_id, login.trust) as provider:
            token = provider.refresh(login)
        return msgspec.structs.replace(
            login, **{"refresh_token": login.refresh_token, **_fields(token)}
        )
    except (ConfigurationError, NotAuthenticated, SiteUnavailable):
        # The site says what is wrong with the token that there is.
        return None


def _fields(token: dict[str, Any]) -> dict[str, Any]:
    access, refresh, lifetime = (
        token.get(key) for key in ("access_token", "refresh_token", "expires_in")
    )
    if not isinstance(access, str) or not (access.isascii() and access.isprintable()):
        raise _unlike_a_provider()
    fields: dict[str, Any] = {"access_token": access, "expires": None}
    if isinstance(lifetime, int | float) and 0 <= lifetime < 1e9:
        fields["expires"] = time.time() + lifetime
    if isinstance(refresh, str) and refresh:
        fields["refresh_token"] = refresh
    return fields


def _require_authlib() -> None:
    try:
        import authlib.integrations.requests_client  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"Logging in needs {error.name or 'authlib'}.",
            hint="pip install 'federated-dask[login]'",
        ) from error


def _unlike_a_provider() -> SiteUnavailable:
    return SiteUnavailable(
        "The OpenID provider did not answer as one does.",
        reason=Reason.INTERNAL,
        hint="Tell the operator of the site.",
    )


@dataclass
class _Provider:
    """Speaks to an OpenID provider; blocking."""

    issuer: str
    client_id: str
    trust: str | None
    _documents: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> _Provider:
        import tempfile

        from authlib.integrations.requests_client import OAuth2Session

        self._trust_file = tempfile.NamedTemporaryFile("w", suffix=".pem")
        self._trust_file.write(self.trust or "")
        self._trust_file.flush()
        self._session: OAuth2Session = OAuth2Session(
            self.client_id,
            token_endpoint_auth_method="none",  # noqa: S106
        )
        # Neither proxies and certificates of the environment, nor tokens of a .netrc.
        self._session.trust_env = False
        self._session.max_redirects = 0
        self._session.verify = self._trust_file.name if self.trust else True
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()
        self._trust_file.close()

    def endpoint(self, name: str) -> str:
        """Give an address of the provider's discovery document."""
        address = self._documents.get(name)
        if not isinstance(address, str) or urlsplit(address).scheme != "https":
            raise ConfigurationError(
                f"The OpenID provider has no {name.replace('_', ' ')}.",
                hint="Ask the site's operator for a token.",
            )
        return address

    def device_flow(
        self,
        chosen: LoginIssuer,
        show: Callable[[DeviceCode], None],
        wait: Callable[[float], None],
    ) -> dict[str, Any]:
        """Have the user log in, and give the token."""
        self._discover()
        # Providers know the one or the other word for whom a token is for.
        audience = {"resource": chosen.audience, "audience": chosen.audience}
        begun = self._call(
            "post",
            self.endpoint("device_authorization_endpoint"),
            data={"client_id": self.client_id, "scope": " ".join(chosen.scopes), **audience},
        )
        if "error" in begun:
            raise _refusal(begun)
        shown = [begun.get("verification_uri_complete"), begun.get("verification_uri")]
        address = next((each for each in shown if isinstance(each, str)), "")
        code, device = begun.get("user_code"), begun.get("device_code")
        if urlsplit(address).scheme != "https" or not (
            isinstance(code, str) and isinstance(device, str)
        ):
            raise _unlike_a_provider()
        if not (f"{address}{code}".isascii() and f"{address}{code}".isprintable()):
            raise _unlike_a_provider()
        show(DeviceCode(address=address, code=code))
        return self._poll(
            device,
            audience,
            _seconds(begun.get("interval"), POLL_SECONDS),
            _seconds(begun.get("expires_in"), LONGEST_WAIT),
            wait,
        )

    def _poll(
        self,
        device: str,
        audience: dict[str, str],
        interval: float,
        lifetime: float,
        wait: Callable[[float], None],
    ) -> dict[str, Any]:
        ends = time.monotonic() + min(lifetime, LONGEST_WAIT)
        while time.monotonic() < ends:
            wait(interval)
            answer = self._token(grant_type=DEVICE, device_code=device, **audience)
            if "error" not in answer:
                return answer
            if answer["error"] == "slow_down":
                interval += POLL_SECONDS
            elif answer["error"] != "authorization_pending":
                raise _refusal(answer)
        raise NotAuthenticated(
            "Nobody confirmed the code in time.", reason=Reason.TOKEN_MISSING, hint="Log in again."
        )

    def refresh(self, login: StoredLogin) -> dict[str, Any]:
        """Exchange a refresh token for new tokens."""
        self._documents["token_endpoint"] = login.token_endpoint
        answer = self._token(
            grant_type="refresh_token",
            refresh_token=str(login.refresh_token),
            **({"resource": login.audience} if login.audience else {}),
        )
        if "error" in answer:
            raise _refusal(answer)
        return answer

    def _token(self, **arguments: str) -> dict[str, Any]:
        from authlib.integrations.base_client import OAuthError

        with self._errors():
            try:
                return dict(
                    self._session.fetch_token(
                        self.endpoint("token_endpoint"),
                        timeout=REQUEST_SECONDS,
                        **arguments,
                    )
                )
            except OAuthError as error:
                return {"error": error.error, "error_description": error.description}

    def _discover(self) -> None:
        address = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
        self._documents = self._call("get", address)
        if self._documents.get("issuer") != self.issuer:
            raise _unlike_a_provider()

    def _call(self, method: str, address: str, **options: Any) -> dict[str, Any]:
        with self._errors():
            reply = self._session.request(
                method, address, withhold_token=True, timeout=REQUEST_SECONDS, **options
            )
            answer = reply.json()
        if not isinstance(answer, dict) or (reply.status_code >= 400 and "error" not in answer):
            raise _unlike_a_provider()
        return answer

    def _errors(self) -> _ProviderErrors:
        return _ProviderErrors(self.issuer)


class _ProviderErrors:
    """Turn errors of the transport into errors of our tree."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import requests

        if isinstance(error, requests.exceptions.SSLError):
            raise SiteUnavailable(
                f"The certificate of the OpenID provider {self._issuer} is not trusted.",
                reason=Reason.CERTIFICATE_NOT_TRUSTED,
                hint="Give its CA certificates by --ca, in one file with those of the site.",
            ) from error
        if isinstance(error, requests.exceptions.JSONDecodeError):
            raise _unlike_a_provider() from error
        if isinstance(error, requests.exceptions.RequestException):
            raise SiteUnavailable(
                f"The OpenID provider {self._issuer} does not answer ({type(error).__name__}).",
                reason=Reason.UNREACHABLE,
                hint="Try again later.",
            ) from error


def _seconds(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e6 else default


def _refusal(answer: dict[str, Any]) -> NotAuthenticated:
    # What the provider wrote is shown in part, and never with characters that steer a terminal.
    words = "".join(letter for letter in str(answer["error"])[:64] if letter.isprintable())
    return NotAuthenticated(
        f"The OpenID provider refused ({words}).",
        reason=Reason.TOKEN_INVALID,
        hint="Log in again, or ask the site's operator.",
    )
