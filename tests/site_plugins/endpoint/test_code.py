"""Code that callers send: who may, where it runs, and what of it comes back."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from federated_dask.protocol.call_messages import (
    LARGEST_CODE,
    AnyCallEvent,
    Argument,
    CodeSubmission,
    DatasetArgument,
    PlainArgument,
    Returned,
    SentArgument,
)
from federated_dask.protocol.frames import FrameDecoder, encode_frame
from federated_dask.protocol.messages import Accepted, Failure
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import take_apart
from site_plugins import LocalFederation
from site_plugins.audit import AUDIT_LOG, entries
from site_plugins.policy import Policy
from site_plugins.registry import REGISTRY, Registry
from tests.site_plugins.calls import assembled, dataset
from tests.site_plugins.helpers import AIR, DEADLINE, Caller, as_message
from tests.site_plugins.helpers import dataset as stored

GRANTS = [
    {"to": "anyone", "may": ["compute", "call"], "on": ["dataset:*", "function:*"]},
    {"to": "user:ada", "may": ["code"], "on": ["site:north"]},
    {"to": "user:eve", "may": ["code"], "on": ["site:south"]},
    {"to": "user:bo", "may": ["describe", "compute", "export", "publish"], "on": ["*"]},
]


@pytest.fixture(scope="module")
def site() -> Iterator[LocalFederation]:
    """A site whose one worker is a process; scheduler and endpoint are in this one."""
    described: dict[str, Any] = {
        "datasets": {
            "a1b": stored(),
            "secret": {"path": stored(), "egress": "derived", "share": 0.3},
            "closed": {"path": stored(), "egress": "functions-only", "functions": ["mean", "code"]},
        },
        "grants": GRANTS,
        "functions": {
            "modules": ["tests.site_plugins.published"],
            "seconds": 20,
            "result_bytes": 1_000_000,
        },
    }
    with LocalFederation({"north": described}, threads_per_worker=2, processes=True) as running:
        yield running


def caller(site: LocalFederation, subject: str = "ada") -> Caller:
    return Caller(site, "north", site.new_token("north", subject))


def code(function: Any, *arguments: Any, **keywords: Any) -> bytes:
    """Encode a call of code; bytes stand for themselves."""
    buffers: list[Any] = []

    def argument(value: Any) -> Argument:
        if isinstance(value, DatasetArgument):
            return value
        if isinstance(value, np.ndarray):
            content, _ = take_apart(value, buffers, operation_table(), is_part=lambda array: False)
            return SentArgument(content=content)
        return PlainArgument(value=value)

    message = CodeSubmission(
        arguments=tuple(map(argument, arguments)),
        keywords={name: argument(value) for name, value in keywords.items()},
    )
    buffers.append(function if isinstance(function, bytes) else cloudpickle.dumps(function))
    return b"".join(bytes(piece) for piece in encode_frame(message, buffers))


async def last_of(asking: Caller, body: bytes) -> tuple[Any, Any]:
    """Last event of code that was admitted."""
    async with asking.request("POST", "/code", data=body) as response:
        assert response.status == 200, await response.read()
        decoder = FrameDecoder()
        async for data in response.content.iter_any():
            for frame in decoder.feed(data):
                last = as_message(frame, AnyCallEvent), frame
        decoder.close()
    return last


async def result(asking: Caller, body: bytes) -> Any:
    event, frame = await last_of(asking, body)
    assert isinstance(event, Returned), event
    return await assembled(asking, event, frame)


async def failed(asking: Caller, body: bytes) -> Failure:
    event, _ = await last_of(asking, body)
    assert isinstance(event, Failure), event
    return event


class Canary:
    """Where it is unpickled, it writes down the process; then it raises."""

    def __init__(self, path: Path, raises: str = "") -> None:
        self.path = path
        self.raises = raises

    def __reduce__(self) -> tuple[Any, ...]:
        source = (
            f"(open({str(self.path)!r}, 'a').write(str(__import__('os').getpid()) + '\\n'), "
            f"{self.raises or 'lambda: 7'})[1]"
        )
        return eval, (source,)


def sung(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


async def there(path: Path) -> None:
    async with asyncio.timeout(DEADLINE):
        while not path.exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)


async def status_becomes(asking: Caller, expected: int) -> None:
    """Wait for the status of what is no frame: 400 with the grant, 403 without."""
    async with asyncio.timeout(DEADLINE):
        while (await asking.read("POST", "/code", data=b""))[0] != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# The boundary


@pytest.mark.parametrize("subject", ["eve", "bo", "nobody"])
async def test_without_the_grant_nothing_runs_anywhere(
    site: LocalFederation, tmp_path: Path, subject: str
) -> None:
    canary = tmp_path / "canary"
    asking = caller(site, subject)
    status, failure = await asking.refused(
        "POST", "/code", data=code(cloudpickle.dumps(Canary(canary)))
    )
    assert (status, failure.reason) == (403, "not_permitted")
    # The body is not looked at before.
    status, failure = await asking.refused("POST", "/code", data=b"no frame")
    assert (status, failure.reason) == (403, "not_permitted")
    assert not sung(canary)
    status, failure = await Caller(site, "north", None).refused("POST", "/code", data=b"no frame")
    assert (status, failure.reason) == (401, "token_missing")


async def test_it_is_unpickled_on_a_worker_only_and_once(
    site: LocalFederation, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    asking = caller(site)
    assert await result(asking, code(cloudpickle.dumps(Canary(canary)))) == 7
    [process] = sung(canary)
    assert process != os.getpid()
    assert process == await result(asking, code(os.getpid))
    # A second time, although the bytes are the same: nothing of it is kept.
    assert await result(asking, code(cloudpickle.dumps(Canary(canary)))) == 7
    assert sung(canary) == [process, process]


async def test_what_cannot_be_unpickled_is_a_failure_of_the_function(
    site: LocalFederation, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    asking = caller(site)
    raising = Canary(canary, f"open({str(tmp_path / 'absent' / 'x')!r})")
    failure = await failed(asking, code(cloudpickle.dumps(raising)))
    assert (failure.reason, failure.exception) == ("function_failed", "builtins.FileNotFoundError")
    assert str(tmp_path) not in failure.message + failure.traceback
    [process] = sung(canary)
    assert process != os.getpid()
    for broken in (b"", b"\x80\x05", b"cno_such_module\nname\n."):
        failure = await failed(asking, code(broken))
        assert failure.reason == "function_failed"
    failure = await failed(asking, code(cloudpickle.dumps(3)))
    assert (failure.reason, failure.exception) == ("function_failed", "builtins.TypeError")


async def test_what_it_returns_crosses_as_plain_data_only(
    site: LocalFederation, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    asking = caller(site)

    def gift(path: str) -> Any:
        class Gift:
            def __reduce__(self):
                return eval, (f"open({path!r}, 'a').write('0')",)

        return Gift()

    failure = await failed(asking, code(gift, str(canary)))
    assert failure.reason == "function_failed"
    assert "cannot be sent" in failure.message

    def throw(path: str) -> None:
        from federated_dask.errors import Reason, RequestRefused

        class Thrown(RequestRefused):
            def __reduce__(self):
                return eval, (f"open({path!r}, 'a').write('0')",)

        raise Thrown("no", reason=Reason.MALFORMED)

    failure = await failed(asking, code(throw, str(canary)))
    assert failure.reason == "function_failed"
    assert "Thrown" in str(failure.exception)
    assert not canary.exists()


# Arguments and what may leave


async def test_arguments_are_passed_as_to_functions(site: LocalFederation) -> None:
    def see(data: Any, sent: Any, text: str, *, variable: Any, factor: float = 1.0) -> Any:
        assert hasattr(data.air.data, "dask")
        return {
            "mean": float(data.air.mean()) * factor,
            "sum": float(sent.sum()),
            "text": text,
            "name": str(variable.name),
        }

    asking = caller(site)
    body = code(
        see, dataset("a1b"), np.arange(4.0), "a1b", variable=dataset("a1b", "air"), factor=2
    )
    found = await result(asking, body)
    assert found == {
        "mean": pytest.approx(2 * float(AIR.mean())),
        "sum": 6.0,
        "text": "a1b",
        "name": "air",
    }
    lazy = await result(asking, code(lambda data: data.air.mean("time"), dataset("a1b")))
    np.testing.assert_allclose(lazy.values, AIR.mean(axis=0))


async def test_what_is_refused_before_anything_runs(site: LocalFederation) -> None:
    asking = caller(site)
    status, failure = await asking.refused("POST", "/code", data=code(len, dataset("absent")))
    assert (status, failure.reason, failure.argument) == (404, "unknown_dataset", "0")
    # Not even where a function of this name may read it.
    status, failure = await asking.refused("POST", "/code", data=code(len, dataset("closed")))
    assert (status, failure.reason) == (403, "export_not_allowed")
    status, failure = await asking.refused("POST", "/code", data=code(len, **{"0": 1}))
    assert (status, failure.reason, failure.argument) == (422, "invalid_argument", "0")
    large = bytes(LARGEST_CODE + 1)
    status, failure = await asking.refused("POST", "/code", data=code(large))
    assert (status, failure.reason) == (413, "limit_exceeded")
    empty = b"".join(bytes(piece) for piece in encode_frame(CodeSubmission()))
    status, failure = await asking.refused("POST", "/code", data=empty)
    assert (status, failure.reason) == (400, "malformed")


async def test_budgets_hold_for_what_code_makes_of_data(site: LocalFederation) -> None:
    asking = caller(site)
    event, _ = await last_of(asking, code(lambda data: float(data.air.mean()), dataset("secret")))
    assert isinstance(event, Returned), event
    assert [name for name, _ in event.derived] == ["secret"]
    budget = await asking.json("/datasets/secret/budget")
    assert 0 < budget["used"] < budget["total"]
    failure = await failed(asking, code(lambda data: data.air.values.tolist(), dataset("secret")))
    assert failure.reason in ("export_not_allowed", "budget_exhausted")

    def tell(data: Any) -> None:
        from federated_dask import errors
        from site_plugins.calling import report_progress

        report_progress(0.123, f"{float(data.air[0, 0, 0])}")
        text = f"value {float(data.air[0, 0, 0])}"
        raise type(text, (errors.RequestRefused,), {})(text, reason=errors.Reason.MALFORMED)

    async with asking.request("POST", "/code", data=code(tell, dataset("secret"))) as response:
        body = await response.read()
    events = [as_message(frame, AnyCallEvent) for frame in FrameDecoder().feed(body)]
    assert [type(each) for each in events] == [Accepted, Failure]
    assert events[1].reason == "function_failed"
    assert b"value" not in body


async def test_limits_and_exits(site: LocalFederation) -> None:
    asking = caller(site)
    failure = await failed(asking, code(lambda: np.zeros(2_000_000)))
    assert failure.reason == "limit_exceeded"

    def leave() -> None:
        raise SystemExit(3)

    failure = await failed(asking, code(leave))
    assert (failure.reason, failure.exception) == ("function_failed", "builtins.SystemExit")


# Its life


async def test_it_ends_with_its_caller(site: LocalFederation, tmp_path: Path) -> None:
    asking = caller(site)

    def wait(begun: str, ended: str) -> None:
        import time
        from pathlib import Path

        Path(begun).write_text("")
        try:
            while True:
                time.sleep(0.01)
        finally:
            Path(ended).write_text("")

    begun, ended = tmp_path / "begun", tmp_path / "ended"
    async with asking.request("POST", "/code", data=code(wait, str(begun), str(ended))):
        await there(begun)
    await there(ended)
    await asyncio.to_thread(asking.wait_until_idle)


async def test_it_runs_once_and_a_revoked_grant_ends_it(
    site: LocalFederation, tmp_path: Path
) -> None:
    config = site._configs["north"]
    with contextlib.closing(Registry(config.site.state / REGISTRY)) as registry:
        policy = Policy.from_config(config, registry)
        grant = policy.add("user:cy", ["code"], ["site:north"], by="test")
        asking = caller(site, "cy")
        begun, go = tmp_path / "begun", tmp_path / "go"

        def wait(begun: str, go: str) -> int:
            import time
            from pathlib import Path

            with open(begun, "a") as file:
                file.write("1\n")
            while not Path(go).exists():
                time.sleep(0.01)
            return 1

        # The endpoint looks for changes now and then.
        await status_becomes(asking, 400)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(failed(asking, code(wait, str(begun), str(go))))
            await there(begun)
            policy.revoke(grant.id)
            await status_becomes(asking, 403)
            # What it returns now does not leave.
            go.write_text("")
        failure = running.result()
    assert failure.reason == "not_permitted"
    assert sung(begun) == [1]


async def test_a_lost_worker_does_not_run_it_again(site: LocalFederation, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def die(begun: str) -> None:
        import os

        with open(begun, "a") as file:
            file.write("1\n")
        os._exit(1)

    asking = caller(site)
    failure = await failed(asking, code(die, str(begun)))
    assert failure.reason == "worker_lost"
    assert await result(asking, code(os.getpid)) != os.getpid()
    assert sung(begun) == [1]


async def test_the_log_has_the_digest_and_not_the_code(site: LocalFederation) -> None:
    import hashlib

    pickled = cloudpickle.dumps(lambda data: "a telling text")
    asking = caller(site)
    assert await result(asking, code(pickled, dataset("a1b"))) == "a telling text"
    path = site._configs["north"].site.state / AUDIT_LOG
    digest = hashlib.blake2b(pickled, digest_size=16).hexdigest()
    [admitted] = [each for each in entries(path) if each.get("digest") == digest]
    assert admitted["event"] == "code_admitted"
    assert admitted["who"]["subject"] == "ada"
    assert admitted["reads"] == ["a1b"]
    [ended] = [
        each
        for each in entries(path)
        if each["event"] == "call_ended" and each["call"] == admitted["call"]
    ]
    assert ended["outcome"] == "returned"
    assert "telling" not in path.read_text()
