import pytest
from hypothesis import given
from hypothesis import strategies as st

from site_plugins.entitlements import groups_of

NAMESPACE = "urn:geant:helmholtz.de"


@pytest.mark.parametrize(
    ("entitlement", "groups"),
    [
        (f"{NAMESPACE}:group:john#idp.de", ("john",)),
        (f"{NAMESPACE}:group:john", ("john",)),
        (f"{NAMESPACE}:group:johnny#idp.de", ("johnny",)),
        (f"{NAMESPACE}:group:a:b:c#idp.de", ("a", "a:b", "a:b:c")),
        (f"{NAMESPACE}:group:a:b:role=chief#idp.de", ("a", "a:b", "a:b:role=chief")),
        (f"{NAMESPACE}:group:climate%20lab#idp.de", ("climate%20lab",)),
        # What is not well-formed, or of another namespace, states nothing.
        (f"{NAMESPACE}x:group:john#idp.de", ()),
        (f"{NAMESPACE}:sub:group:john#idp.de", ()),
        ("urn:geant:group:john#idp.de", ()),
        (f"{NAMESPACE}:groups:john#idp.de", ()),
        (f"{NAMESPACE}:group#idp.de", ()),
        (f"{NAMESPACE}:group:#idp.de", ()),
        (f"{NAMESPACE}:group::john#idp.de", ()),
        (f"{NAMESPACE}:group:john:#idp.de", ()),
        (f"{NAMESPACE}:group:role=chief#idp.de", ()),
        (f"{NAMESPACE}:group:a:role=#idp.de", ()),
        (f"{NAMESPACE}:group:a:..:b#idp.de", ()),
        (f"{NAMESPACE}:group:.#idp.de", ()),
        (f"{NAMESPACE}:group:a/b#idp.de", ()),
        (f"{NAMESPACE}:group:a%2#idp.de", ()),
        (f"{NAMESPACE}:group:a b#idp.de", ()),
        (f"{NAMESPACE}:group:john#idp.de#other.de", ()),
        (f"{NAMESPACE}:group:jöhn#idp.de", ()),
        (f"{NAMESPACE}:group:john\n#idp.de", ()),
        (f" {NAMESPACE}:group:john#idp.de", ()),
        (f"{NAMESPACE.upper()}:group:john#idp.de", ()),
        (f"{NAMESPACE}:group:{':'.join('a' * 40)}#idp.de", ()),
        ("", ()),
        ("#", ()),
    ],
)
def test_groups_of_an_entitlement(entitlement: str, groups: tuple[str, ...]) -> None:
    assert groups_of(entitlement, [NAMESPACE]) == groups


def test_without_a_namespace_nothing_counts() -> None:
    assert groups_of(f"{NAMESPACE}:group:john#idp.de", []) == ()


def test_a_namespace_may_hold_the_word_group() -> None:
    assert groups_of("urn:x:group:group:a#y", ["urn:x:group"]) == ("a",)


segment = st.text("abcXYZ019._-", min_size=1, max_size=8).filter(lambda text: text.strip("."))


@given(names=st.lists(segment, min_size=1, max_size=4), other=segment)
def test_groups_are_whole_segments(names: list[str], other: str) -> None:
    groups = groups_of(f"{NAMESPACE}:group:{':'.join(names)}#idp.de", [NAMESPACE])
    assert groups == tuple(":".join(names[: depth + 1]) for depth in range(len(names)))
    longer = groups_of(f"{NAMESPACE}:group:{names[0]}{other}#idp.de", [NAMESPACE])
    assert names[0] not in longer


@given(text=st.text())
def test_no_text_brings_it_to_fall(text: str) -> None:
    for entitlement in (text, f"{NAMESPACE}:group:{text}"):
        for group in groups_of(entitlement, [NAMESPACE]):
            assert group.isascii()
            assert "/" not in group
            assert "#" not in group
