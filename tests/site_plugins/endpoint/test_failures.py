"""What workers say of their failures is foreign text, and may be long."""

import pytest

from federated_dask.protocol.messages import Failure
from site_plugins.endpoint import failures
from site_plugins.endpoint.failures import (
    LONGEST_MESSAGE,
    LONGEST_SCRUBBED,
    failure_of_task,
    scrubbed,
)


def failed(message: str) -> Failure:
    return failure_of_task(ValueError(message), None, site="north", datasets=[])


@pytest.mark.parametrize("letters", ["a", "a.", "-a", "~/", "/a", "a:/"])
def test_a_long_text_is_looked_through_once(letters: str) -> None:
    # Were every letter looked at from every other one, this would not end today.
    text = letters * 1_000_000
    assert "secret" not in scrubbed(f"{text} https://secret/secret?secret", "north", [])


def test_addresses_are_found_wherever_they_begin() -> None:
    text = "at https://a/b, 'git+ssh://u@c/d' x=s3://e/f (-file:///g) +http://h"
    assert scrubbed(text, "north", []) == (
        "at (an address) '(an address)' x=(an address) ((an address) (an address)"
    )


def test_a_message_is_cut_before_it_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(text: str, *arguments: object) -> str:
        seen.append(len(text))
        return scrubbed(text, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(failures, "scrubbed", watched)
    assert failed("a" * 10_000_000).message == "a" * LONGEST_MESSAGE
    assert max(seen) <= LONGEST_SCRUBBED + 1


def test_the_cut_leaves_no_half_of_a_path() -> None:
    for length in range(LONGEST_SCRUBBED - 30, LONGEST_SCRUBBED):
        folders = f"/{'a' * (length - 2)}/"
        message = failed(f"{folders} at /data/secret/{'b' * 100}/file s3://secret/b").message
        assert "sec" not in message
