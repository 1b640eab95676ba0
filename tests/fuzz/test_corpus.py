"""Honest inputs, all that fuzzing found, and damage to both: refused, quickly, without effects."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, run, seeds, warm_up
from tests.protocol.watching import watched

CORPUS = Path(__file__).parent / "corpus"
MOST_MEMORY = 64 * 2**20
"""Bytes for an input of a few thousand: what a decoder makes is in proportion to what came."""


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    warm_up()


def inputs(name: str) -> list[bytes]:
    found = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [*seeds(name), *(path.read_bytes() for path in found)]


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    randomness = random.Random(len(data))
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(randomness.randint(1, 5)):
            if not changed:
                break
            at = randomness.randrange(len(changed))
            match randomness.randrange(4):
                case 0:
                    changed[at] = randomness.randrange(256)
                case 1:
                    del changed[at : at + randomness.randint(1, 4)]
                case 2:
                    changed[at:at] = randomness.randbytes(randomness.randint(1, 4))
                case _:
                    changed[at:at] = changed[at : at + 20]
        yield bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_taken_or_refused(name: str) -> None:
    given = inputs(name)
    with watched():
        for data in given:
            run(name, data)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_taken_or_refused(name: str) -> None:
    given = inputs(name)
    each = max(1, 600 // len(given))
    tracemalloc.start()
    try:
        with watched():
            for data in given:
                for changed in damaged(data, each):
                    run(name, changed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY


def test_every_folder_of_the_corpus_is_of_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= {*TARGETS, "README.md"}
