import dataclasses
import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from federated_dask.errors import ConfigurationError, NotAuthenticated, Reason
from site_plugins import tokens
from site_plugins.signed_texts import MOST_VERIFIED, Verified, peek, read_signed
from site_plugins.tokens import Principal, TokenVerifier, create_token
from tests.site_plugins.forgeries import FORGED, Site, make_site, pem, public_pem


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenVerifier, str]:
    """A verifier and a token that it accepts."""
    site = make_site(tmp_path_factory.mktemp("signed") / "north")
    verifier, text = TokenVerifier.from_config(site.config), site.token()
    assert verifier.verify(text).subject == "ada"
    return verifier, text


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path / "north")


def test_there_are_many_forgeries() -> None:
    assert len(FORGED) >= 80


@pytest.mark.parametrize("kind", FORGED)
def test_no_forged_token_is_accepted(site: Site, kind: str) -> None:
    text = FORGED[kind](site)
    verifier = TokenVerifier.from_config(site.config)
    with pytest.raises(NotAuthenticated) as caught:
        verifier.verify(text)
    error = caught.value
    assert error.reason == Reason.TOKEN_INVALID
    assert error.site == "north"
    assert "federated-dask token create" in str(error)
    assert_no_part_of(text, error)


def assert_no_part_of(text: str, error: BaseException) -> None:
    """Neither the error nor anything it was raised from quotes the token."""
    shown = "".join(traceback.format_exception(error)) + repr(pickle.loads(pickle.dumps(error)))
    for part in text.split("."):
        assert len(part) < 12 or part not in shown
    assert error.__context__ is None


@given(position=st.integers(0, 400), letter=st.characters(codec="utf-8"))
def test_no_letter_of_a_token_can_be_changed(
    signed: tuple[TokenVerifier, str], position: int, letter: str
) -> None:
    verifier, text = signed
    position %= len(text)
    changed = text[:position] + letter + text[position + 1 :]
    if changed != text:
        with pytest.raises(NotAuthenticated):
            verifier.verify(changed)


@given(text=st.text())
def test_no_text_is_a_token(signed: tuple[TokenVerifier, str], text: str) -> None:
    with pytest.raises(NotAuthenticated):
        signed[0].verify(text)
    assert peek(text) is None


def test_the_forger_can_make_a_valid_token(site: Site) -> None:
    # Otherwise the tests above would prove nothing.
    principal = TokenVerifier.from_config(site.config).verify(site.token())
    assert (principal.subject, principal.groups) == ("ada", ("climate",))


def test_a_created_token_says_who_asks(site: Site) -> None:
    before = time.time()
    token = create_token(site.config, "ada", 60.0, ["climate", "ocean"])
    principal = TokenVerifier.from_config(site.config).verify(token)
    assert principal == Principal(
        issuer="urn:federated-dask:site:north",
        subject="ada",
        groups=("climate", "ocean"),
        expires=principal.expires,
    )
    assert before + 60 <= principal.expires <= time.time() + 60


def test_two_tokens_differ(site: Site) -> None:
    assert create_token(site.config, "ada", 60.0) != create_token(site.config, "ada", 60.0)


def test_a_token_of_the_longest_lifetime_is_accepted(site: Site) -> None:
    token = create_token(site.config, "ada", site.config.tokens.max_lifetime)
    assert TokenVerifier.from_config(site.config).verify(token).subject == "ada"


def test_an_expired_token_is_told_apart(site: Site) -> None:
    token = create_token(site.config, "ada", 60.0)
    late = TokenVerifier.from_config(site.config, clock=lambda: time.time() + 61)
    with pytest.raises(NotAuthenticated) as caught:
        late.verify(token)
    assert caught.value.reason == Reason.TOKEN_EXPIRED
    assert_no_part_of(token, caught.value)


def test_a_token_that_was_verified_before_expires_all_the_same(site: Site) -> None:
    late = 0.0
    token = create_token(site.config, "ada", 60.0)
    verifier = TokenVerifier.from_config(site.config, clock=lambda: time.time() + late)
    assert not verifier.knows(token)
    assert verifier.verify(token).subject == "ada"
    assert verifier.knows(token)
    assert verifier.verify(token).subject == "ada"
    late = 61.0
    with pytest.raises(NotAuthenticated) as caught:
        verifier.verify(token)
    assert caught.value.reason == Reason.TOKEN_EXPIRED


def test_a_signature_is_verified_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(text: str, *arguments: Any) -> Any:
        read.append(text)
        return read_signed(text, *arguments)

    monkeypatch.setattr(tokens, "read_signed", watched)
    verifier = TokenVerifier.from_config(site.config)
    one, other = (create_token(site.config, subject, 60.0) for subject in ("ada", "bo"))
    for text in (one, other, one, other, one):
        verifier.verify(text)
    assert read == [one, other]
    forged = one[:-8] + "AAAAAAAA"
    for _ in range(2):
        with pytest.raises(NotAuthenticated):
            verifier.verify(forged)
    assert read == [one, other, forged, forged]


def test_what_is_kept_of_verified_tokens_is_bounded_and_no_token() -> None:
    verified: Verified[int] = Verified()
    key = object()
    for number in range(2 * MOST_VERIFIED):
        verified.add(f"secret.{number}", key, number)
    assert len(verified._kept) <= MOST_VERIFIED
    assert verified.get(f"secret.{2 * MOST_VERIFIED - 1}", key) == 2 * MOST_VERIFIED - 1
    assert "secret" not in str(verified._kept)


def test_an_expired_forgery_is_a_forgery(site: Site) -> None:
    other = dataclasses.replace(site, key=ed25519.Ed25519PrivateKey.generate())
    token = other.token(exp=time.time() - 1, iat=time.time() - 60)
    with pytest.raises(NotAuthenticated) as caught:
        TokenVerifier.from_config(site.config).verify(token)
    assert caught.value.reason == Reason.TOKEN_INVALID


@pytest.mark.parametrize("text", [None, ""])
def test_no_token(site: Site, text: str | None) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        TokenVerifier.from_config(site.config).verify(text)
    assert caught.value.reason == Reason.TOKEN_MISSING


def test_tokens_of_another_site_are_refused(tmp_path: Path) -> None:
    north, south = make_site(tmp_path / "north"), make_site(tmp_path / "south")
    with pytest.raises(NotAuthenticated):
        TokenVerifier.from_config(north.config).verify(create_token(south.config, "ada", 60.0))


def test_an_elliptic_key_signs_too_and_fixes_its_own_algorithm(tmp_path: Path) -> None:
    site = make_site(tmp_path / "north", ec.generate_private_key(ec.SECP256R1()))
    token = create_token(site.config, "ada", 60.0)
    verifier = TokenVerifier.from_config(site.config)
    assert verifier.verify(token).subject == "ada"
    claims = {**site.claims(), "iss": site.config.token_issuer}
    other = dataclasses.replace(site, key=ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(NotAuthenticated):
        verifier.verify(other.sign(claims))


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="RSA"),
    ],
)
def test_other_kinds_of_keys_are_refused(tmp_path: Path, key: Callable[[], Any]) -> None:
    folder = tmp_path / "north"
    made = key()
    site = make_site(folder, made)
    with pytest.raises(ConfigurationError, match=r"issuer.pem is not an Ed25519 or EC P-256"):
        TokenVerifier.from_config(site.config)
    with pytest.raises(ValueError, match="only Ed25519 and EC P-256"):
        TokenVerifier(public_pem(made), issuer="i", audience="a", max_lifetime=1.0)


def test_a_key_file_that_is_no_key(site: Site) -> None:
    site.config.tokens.private_key.write_text("hunter2")
    with pytest.raises(ConfigurationError) as caught:
        create_token(site.config, "ada", 60.0)
    assert "hunter2" not in str(caught.value)


def test_the_verifier_holds_no_private_key(site: Site) -> None:
    verifier = TokenVerifier.from_config(site.config)
    assert not verifier._key.is_private
    with pytest.raises(ValueError, match="PUBLIC KEY"):
        TokenVerifier(pem(site.key), issuer="i", audience="a", max_lifetime=1.0)


@pytest.mark.parametrize("lifetime", [0.0, -1.0, 3601.0, float("nan"), float("inf")])
def test_lifetimes_beyond_the_sites_are_refused(site: Site, lifetime: float) -> None:
    with pytest.raises(ConfigurationError, match="A token lives longer than 0"):
        create_token(site.config, "ada", lifetime)


@pytest.mark.parametrize(
    ("subject", "groups"),
    [("", ()), ("a\n", ()), ("ada", [""]), ("ada", ["x" * 513]), ("a", ["g"] * 65)],
)
def test_odd_subjects_and_groups_are_refused(site: Site, subject: str, groups: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="Subject and groups are printable"):
        create_token(site.config, subject, 60.0, groups)


def test_a_token_that_would_be_too_long(site: Site) -> None:
    with pytest.raises(ConfigurationError, match="longer than 8 KiB"):
        create_token(site.config, "ada", 60.0, [f"{number:0200}" for number in range(64)])
