"""An OpenID provider: the device flow, and new tokens for a refresh token.

authlib does the protocol; it comes with the extra ``[login]``, and this module can be
imported without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from federated_dask.client.login_store import StoredLogin
from federated_dask.errors import ConfigurationError, NotAuthenticated, Reason, SiteUnavailable
from federated_dask.protocol.identity_messages import LoginIssuer

if TYPE_CHECKING:
    from authlib.integrations.requests_client import OAuth2Session

__all__ = ["DeviceCode", "OpenIDProvider", "require_authlib", "token_fields"]

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
REQUEST_SECONDS = 20.0
POLL_SECONDS = 5.0
LONGEST_WAIT = 1800.0


@dataclass(frozen=True, kw_only=True)
class DeviceCode:
    """What the user is told."""

    address: str
    """To open in a browser; the code is in it where the provider can do that."""
    code: str
    """To compare, or to type in."""


def require_authlib() -> None:
    """Raise `ConfigurationError` where authlib is not installed."""
    try:
        import authlib.integrations.requests_client  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"Logging in needs {error.name or 'authlib'}.",
            hint="Install it with the extra `login`: pip install '.[login]' in the clone.",
        ) from error


def token_fields(token: dict[str, Any]) -> dict[str, Any]:
    """Give what a token reply changes of a `StoredLogin`, checked."""
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


@dataclass
class OpenIDProvider:
    """Speaks to an OpenID provider; blocking."""

    issuer: str
    client_id: str
    trust: str | None
    _documents: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> OpenIDProvider:
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


def _unlike_a_provider() -> SiteUnavailable:
    return SiteUnavailable(
        "The OpenID provider did not answer as one does.",
        reason=Reason.INTERNAL,
        hint="Tell the operator of the site.",
    )
