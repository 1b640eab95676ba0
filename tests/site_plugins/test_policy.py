"""What grants allow, and how soon a change of them holds."""

import datetime
from pathlib import Path

import pytest

from federated_dask.errors import ConfigurationError, NotFound, NotPermitted, Reason
from site_plugins import policy as policy_module
from site_plugins.config import parse_config
from site_plugins.grants import ACTIONS, Grant, check_pattern, check_recipient
from site_plugins.policy import Policy
from site_plugins.registry import Registry
from site_plugins.tokens import Principal

OWN = "urn:federated-dask:site:north"
OTHER = "https://login.example.org"


def who(
    subject: str = "ada",
    issuer: str = OWN,
    groups: tuple[str, ...] = (),
    projects: tuple[str, ...] = (),
) -> Principal:
    return Principal(
        issuer=issuer, subject=subject, groups=groups, projects=projects, expires=2.0**39
    )


def policy_of(*grants: tuple[str, str, str]) -> Policy:
    made = [
        Grant(id=f"site.toml:{number}", to=to, may=(may,), on=(on,))
        for number, (to, may, on) in enumerate(grants)
    ]
    return Policy("north", OWN, made)


def test_nothing_is_allowed_without_a_grant() -> None:
    policy = policy_of()
    for action in ACTIONS:
        for resource in ("dataset:a1b", "function:f", "project:p", "site:north", "*", ""):
            assert not policy.allows(who(), action, resource)


@pytest.mark.parametrize(
    ("to", "principal", "expected"),
    [
        ("anyone", who("eve", OTHER), True),
        ("user:ada", who(), True),
        ("user:ada", who(issuer=OTHER), False),
        ("user:ada", who("adam"), False),
        (f"user:{OTHER} ada", who(issuer=OTHER), True),
        (f"user:{OTHER} ada", who(), False),
        ("user:Ada Lovelace", who("Ada Lovelace"), True),
        ("group:climate", who(groups=("soil", "climate")), True),
        ("group:climate", who(groups=("climate-2", "Climate", "climate ")), False),
        ("group:climate", who(projects=("climate",)), False),
        ("group:climate", who("climate"), False),
        ("project:drought@north", who(projects=("drought@north",)), True),
        ("project:drought@north", who(projects=("drought@south",)), False),
        ("project:drought@north", who(groups=("drought@north",)), False),
        ('group:a\\"]) ; permit(principal, action, resource);', who(), False),
    ],
)
def test_recipients(to: str, principal: Principal, expected: bool) -> None:
    policy = policy_of((to, "compute", "dataset:a1b"))
    assert policy.allows(principal, "compute", "dataset:a1b") is expected
    assert policy.allows(principal, "describe", "dataset:a1b") is expected
    assert not policy.allows(principal, "export", "dataset:a1b")
    assert not policy.allows(principal, "compute", "dataset:a1bc")


def test_a_name_with_a_line_break_is_not_another_principal() -> None:
    policy = policy_of((f"user:{OTHER} ada", "compute", "*"))
    assert not policy.allows(who("b\nada", OTHER), "compute", "dataset:a1b")
    assert policy_of(("user:ada", "compute", "*")).allows(who(), "compute", "dataset:a1b")


@pytest.mark.parametrize(
    ("pattern", "resource", "expected"),
    [
        ("*", "site:north", True),
        ("dataset:*", "dataset:a1b", True),
        ("dataset:*", "function:a1b", False),
        ("dataset:soil-*", "dataset:soil-", True),
        ("dataset:soil-*", "dataset:soil", False),
        ("dataset:*-2*", "dataset:soil-2024", True),
        ("dataset:s.il", "dataset:soil", False),
        ("dataset:soil", "dataset:Soil", False),
    ],
)
def test_patterns(pattern: str, resource: str, expected: bool) -> None:
    policy = policy_of(("anyone", "call", pattern))
    assert policy.allows(who(), "call", resource) is expected


@pytest.mark.parametrize("text", ["", "soil", "dataset:", "dataset:a b", "role:x", "dataset:a/b"])
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="is no resource"):
        check_pattern(text)


@pytest.mark.parametrize(
    "text", ["", "ada", "user:", "group: ", "project:x", "user:a\nb", "Anyone"]
)
def test_what_is_no_recipient(text: str) -> None:
    with pytest.raises(ValueError, match="is nobody"):
        check_recipient(text)


def test_what_may_not_be_described_does_not_exist() -> None:
    policy = policy_of(("user:ada", "describe", "dataset:a1b"))
    with pytest.raises(NotPermitted) as refused:
        policy.require(who(), "compute", "dataset:a1b")
    assert refused.value.reason is Reason.NOT_PERMITTED
    for resource, reason in {
        "dataset:secret": Reason.UNKNOWN_DATASET,
        "function:secret": Reason.UNKNOWN_FUNCTION,
        "project:secret": Reason.UNKNOWN_PROJECT,
    }.items():
        with pytest.raises(NotFound) as hidden:
            policy.require(who(), "compute", resource)
        assert hidden.value.reason is reason
    with pytest.raises(NotFound):
        policy.require(who("eve"), "describe", "dataset:a1b")
    policy.require(who(), "describe", "dataset:a1b")


def test_an_embargo_is_for_all_but_those_who_were_named_the_dataset() -> None:
    today = datetime.date(2026, 12, 31)
    policy = Policy(
        "north",
        OWN,
        [
            Grant(id="1", to="anyone", may=("compute",), on=("dataset:*",)),
            Grant(id="2", to="user:ada", may=("compute",), on=("dataset:new",)),
        ],
        embargo_of={"new": datetime.date(2027, 1, 1)}.get,
        today=lambda: today,
    )
    assert policy.allows(who(), "compute", "dataset:new")
    assert not policy.allows(who("eve"), "compute", "dataset:new")
    assert not policy.allows(who("eve"), "describe", "dataset:new")
    assert policy.allows(who("eve"), "compute", "dataset:old")
    today = datetime.date(2027, 1, 1)
    assert policy.decide(who("eve"), "compute", "dataset:new").allowed


def test_grants_at_run_time_hold_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "LOOK_SECONDS", 0.0)
    path = tmp_path / "state" / "site.db"
    # Two connections to one file are what two endpoint processes have.
    here, there = (Policy("north", OWN, registry=Registry(path)) for _ in range(2))
    assert not there.allows(who(), "compute", "dataset:a1b")
    grant = here.add("user:ada", ["compute"], ["dataset:a1b"], by="test")
    assert here.allows(who(), "compute", "dataset:a1b")
    assert there.allows(who(), "compute", "dataset:a1b")
    assert there.decide(who(), "compute", "dataset:a1b").grants == (grant,)
    assert there.revoke("no such") is None
    assert there.revoke(grant.id) == grant
    assert not here.allows(who(), "compute", "dataset:a1b")
    assert here.grants() == ()


def test_the_state_is_for_its_owner_only(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state" / "site.db")
    Policy("north", OWN, registry=registry).add("anyone", ["call"], ["*"], by="test")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    registry.close()


def test_a_state_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        Registry(tmp_path / "state" / "site.db")


def test_grants_of_the_configuration(configured: dict[str, object], tmp_path: Path) -> None:
    grants = [{"to": "group:climate", "may": ["call"], "on": ["function:trend-*", "dataset:soil"]}]
    config = parse_config({**configured, "grants": grants}, tmp_path)
    assert config.site.state == tmp_path / "state"
    policy = Policy.from_config(config, Registry(None))
    climate = who(groups=("climate",))
    assert policy.allows(climate, "call", "function:trend-1")
    assert policy.allows(climate, "call", "dataset:soil")
    assert not policy.allows(who(), "call", "dataset:soil")
    assert policy.relevant(who(groups=("climate", "other"))) == (("climate",), ())


def test_what_is_wrong_with_grants_is_said_together(
    configured: dict[str, object], tmp_path: Path
) -> None:
    grants = [{"to": "climate", "may": ["fly"], "on": []}]
    with pytest.raises(ConfigurationError) as refused:
        parse_config({**configured, "grants": grants}, tmp_path)
    message = refused.value.message
    assert "grants[0].to: 'climate' is nobody" in message
    assert "grants[0].may[0]: 'fly' is no action" in message
    assert "grants[0].on" in message


@pytest.fixture
def configured(tmp_path: Path) -> dict[str, object]:
    for name in ("certificate.pem", "private_key.pem", "issuer.pem"):
        (tmp_path / name).write_text("")
    return {
        "site": {"name": "north"},
        "endpoint": {"certificate": "certificate.pem", "private_key": "private_key.pem"},
        "tokens": {"private_key": "issuer.pem"},
    }
