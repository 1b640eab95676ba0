"""The collector rests as long as anybody wants it to, and no longer."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from federated_dask.collector import without_collection

SECONDS = 30.0


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_within_itself() -> None:
    assert without_collection(lambda: without_collection(gc.isenabled)) is False
    assert without_collection(lambda: (without_collection(int), gc.isenabled())) == (0, False)
    assert gc.isenabled()


def test_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        without_collection(lambda: 1 / 0)
    assert gc.isenabled()


def test_off_before_and_after() -> None:
    gc.disable()
    assert without_collection(gc.isenabled) is False
    assert not gc.isenabled()


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_two_threads_that_overlap(first_ends_first: bool) -> None:
    ends = [threading.Event(), threading.Event()]
    began = [threading.Event(), threading.Event()]

    def busy(number: int) -> bool:
        began[number].set()
        assert ends[number].wait(SECONDS)
        return gc.isenabled()

    with ThreadPoolExecutor(2) as pool:
        running = []
        for number in range(2):
            running.append(pool.submit(without_collection, lambda number=number: busy(number)))
            assert began[number].wait(SECONDS)
        for number in (0, 1) if first_ends_first else (1, 0):
            assert not gc.isenabled()
            ends[number].set()
            assert running[number].result(SECONDS) is False
    assert gc.isenabled()


def test_one_may_wait_for_another_thread_that_wants_it_too() -> None:
    # As a client does whose sites run in its own process.
    with ThreadPoolExecutor(1) as pool:

        def waits() -> tuple[bool, bool]:
            inner = pool.submit(without_collection, gc.isenabled).result(SECONDS)
            return inner, gc.isenabled()

        assert without_collection(waits) == (False, False)
    assert gc.isenabled()
