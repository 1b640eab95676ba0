import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from federated_dask.client import loop


async def where() -> tuple[str, asyncio.AbstractEventLoop]:
    return threading.current_thread().name, asyncio.get_running_loop()


def test_one_loop_for_all_threads() -> None:
    found = [loop.sync(where())]
    threads = [threading.Thread(target=lambda: found.append(loop.sync(where()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {("federated-dask", loop.background_loop())}
    assert len(found) == 9


def test_exceptions_reach_the_caller() -> None:
    async def fail() -> None:
        raise ZeroDivisionError("over there")

    with pytest.raises(ZeroDivisionError, match="over there"):
        loop.sync(fail())


def test_context_variables_reach_the_coroutine() -> None:
    variable = contextvars.ContextVar("variable", default="outside")

    async def read() -> str:
        return variable.get()

    variable.set("inside")
    assert loop.sync(read()) == "inside"


def test_timeout_cancels() -> None:
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        loop.sync(forever(), timeout=0.05)
    assert ended.is_set()


def test_from_its_own_loop() -> None:
    async def outer() -> None:
        loop.sync(where())

    with pytest.raises(RuntimeError, match="would wait for itself"):
        loop.sync(outer())


async def test_from_another_running_loop() -> None:
    name, other = loop.sync(where())
    assert name == "federated-dask"
    assert other is not asyncio.get_running_loop()


def test_cancelling_what_was_started() -> None:
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    future = loop.start(forever())
    loop.sync(asyncio.sleep(0))
    assert future.cancel()
    assert ended.wait(5)


def test_interrupt_cancels_cleans_up_and_goes_on() -> None:
    cleaned = []
    began = threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(True)

    def interrupt() -> None:
        began.wait(5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        loop.sync(work())
    assert cleaned == [True]
    thread.join()
    assert loop.sync(where())[0] == "federated-dask"


def test_a_forked_child_has_its_own_loop() -> None:
    program = """
import os
from federated_dask.client import loop
async def pid(): return os.getpid()
assert loop.sync(pid()) == os.getpid()
with loop._lock:
    child = os.fork()
if child == 0:
    os._exit(0 if loop.sync(pid()) == os.getpid() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert loop.sync(pid()) == os.getpid()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_process_ends_quietly_with_work_under_way() -> None:
    program = """
import asyncio
from federated_dask.client import loop
async def last(): await asyncio.sleep(0.1); print("let go")
async def forever():
    try: await asyncio.sleep(1000)
    finally: print("cancelled")
async def closing(): print("closed")
loop.at_exit(closing)
loop.start(forever()); loop.start(last())
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["let", "go", "cancelled", "closed"]
    assert done.stderr == ""
    assert time.monotonic() - began < 30


def test_after_the_end_nothing_starts() -> None:
    program = """
import atexit
def late():
    try: loop.start(pid())
    except RuntimeError as error: print(error)
atexit.register(late)
from federated_dask.client import loop
async def pid(): return 1
loop.sync(pid())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert "process is ending" in done.stdout
    assert done.stderr == ""
