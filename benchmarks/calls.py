"""Calling functions: against the same cluster's own Client, a bare TLS socket, and DASF."""

from __future__ import annotations

import contextlib
import json
import pickle
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from distributed import Client

import benchmarks.dasf
from benchmarks.calls_site import echo, empty, receive_into
from benchmarks.result import Result
from federated_dask import FederatedClient

CALLS = 300
SECONDS = 4.0
CALLERS = (1, 8)
SIZES = {10_000: 15, 1_000_000: 7, 10_000_000: 5}
"""Float64 values, and how often they are sent and returned."""
DASF_SIZES = {10_000: 3, 1_000_000: 2, 10_000_000: 1}


@dataclass
class Measured:
    """What was measured of one system; seconds."""

    trips: list[float] = field(default_factory=list)
    rates: dict[int, float] = field(default_factory=dict)
    echoes: dict[int, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.trips)

    @property
    def slowest(self) -> float:
        return statistics.quantiles(self.trips, n=100)[98]


def run(dasf: bool = False) -> list[Result]:
    with serving("site") as site, serving("echo") as raw:
        # Written by our own process a moment ago.
        security = pickle.loads(Path(site.security).read_bytes())  # noqa: S301
        with (
            Client(site.scheduler, security=security, set_as_default=False) as client,
            FederatedClient(site.addresses, token=site.token, verify=site.verify) as fed,
            raw_socket(raw) as stream,
        ):
            theirs, ours, bare = Measured(), Measured(), Measured()
            measure_trips(client, fed, theirs, ours)
            measure_rates(client, fed, theirs, ours)
            measure_echoes(client, fed, stream, theirs, ours, bare)
    results = report(theirs, ours, bare)
    return [*results, *report_dasf(ours)] if dasf else results


def report_dasf(ours: Measured) -> list[Result]:
    found = benchmarks.dasf.measure(CALLS // 3, SECONDS, CALLERS, DASF_SIZES)
    median = statistics.median(found["trips"])
    results = [
        Result("empty call, median: DASF", median * 1e3, " ms"),
        Result("empty call, median: federated by DASF", ours.median / median, "", 0.25),
    ]
    rates = {int(callers): number for callers, number in found["rates"].items()}
    for callers in CALLERS:
        results.append(Result(f"calls/s, {callers} callers: DASF", rates[callers]))
    results.append(
        Result(
            "calls/s: DASF's best by federated best",
            max(rates.values()) / max(ours.rates.values()),
            "",
            0.1,
        )
    )
    for size, taken in ((int(size), taken) for size, taken in found["echoes"].items()):
        results.append(Result(f"{size:.0e} float64 there and back: DASF", taken * 1e3, " ms"))
        if size == max(DASF_SIZES):
            ratio = ours.echoes[size] / taken
            results.append(Result(f"{size:.0e} float64: federated by DASF", ratio, "", 0.05))
    return results


def measure_trips(client: Client, fed: FederatedClient, theirs: Measured, ours: Measured) -> None:
    def native() -> int:
        return client.submit(empty, 1, pure=False).result()

    def federated() -> int:
        return fed.submit("one/empty", 1).result()

    for call in (native, federated):
        for _ in range(30):
            call()
    for _ in range(CALLS):
        # Alternating, so that the machine's moods hit both.
        theirs.trips.append(seconds(native))
        ours.trips.append(seconds(federated))


def measure_rates(client: Client, fed: FederatedClient, theirs: Measured, ours: Measured) -> None:
    for callers in CALLERS:
        theirs.rates[callers] = rate(lambda: client.submit(empty, 1, pure=False).result(), callers)
        ours.rates[callers] = rate(lambda: fed.submit("one/empty", 1).result(), callers)


def rate(call: Callable[[], Any], callers: int) -> float:
    """Calls per second that so many threads get done."""
    end = time.perf_counter() + SECONDS

    def work() -> int:
        count = 0
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    with ThreadPoolExecutor(callers) as pool:
        counts = [pool.submit(work) for _ in range(callers)]
    return sum(count.result() for count in counts) / SECONDS


def measure_echoes(
    client: Client,
    fed: FederatedClient,
    stream: ssl.SSLSocket,
    theirs: Measured,
    ours: Measured,
    bare: Measured,
) -> None:
    for size, repeats in SIZES.items():
        values = np.random.default_rng(0).random(size)
        found: dict[str, list[float]] = {"theirs": [], "ours": [], "bare": []}
        for _ in range(repeats):
            found["bare"].append(seconds(partial(raw_echo, stream, values)))
            found["theirs"].append(seconds(partial(native_echo, client, values)))
            found["ours"].append(seconds(partial(federated_echo, fed, values)))
        # The first of each warms up.
        theirs.echoes[size] = statistics.median(found["theirs"][1:])
        ours.echoes[size] = statistics.median(found["ours"][1:])
        bare.echoes[size] = statistics.median(found["bare"][1:])


def native_echo(client: Client, values: np.ndarray) -> np.ndarray:
    """Send and return data the way Dask advises for data of this size."""
    if values.nbytes < 2**20:
        return client.submit(echo, values, pure=False).result()
    sent = client.scatter(values, hash=False)
    return client.submit(echo, sent, pure=False).result()


def federated_echo(fed: FederatedClient, values: np.ndarray) -> np.ndarray:
    return fed.submit("one/echo", values).result()


def raw_echo(stream: ssl.SSLSocket, values: np.ndarray) -> np.ndarray:
    """Send all, then receive all: as a call does, whose function begins when all is there."""
    stream.sendall(values.nbytes.to_bytes(8, "big"))
    stream.sendall(memoryview(values).cast("B"))
    body = bytearray(values.nbytes)
    receive_into(stream, body)
    return np.frombuffer(body)


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def report(theirs: Measured, ours: Measured, bare: Measured) -> list[Result]:
    results = [
        Result("empty call, median: native submit", theirs.median * 1e3, " ms"),
        Result("empty call, median: federated", ours.median * 1e3, " ms"),
        Result("empty call, median: ratio", ours.median / theirs.median, "", 1.5),
        Result("empty call, p99: native submit", theirs.slowest * 1e3, " ms"),
        Result("empty call, p99: federated", ours.slowest * 1e3, " ms"),
    ]
    for callers in CALLERS:
        results += [
            Result(f"calls/s, {callers} callers: native submit", theirs.rates[callers]),
            Result(f"calls/s, {callers} callers: federated", ours.rates[callers]),
        ]
    for size in SIZES:
        name = f"{size:.0e} float64 there and back"
        results += [
            Result(f"{name}: bare TLS socket", bare.echoes[size] * 1e3, " ms"),
            Result(f"{name}: native submit", theirs.echoes[size] * 1e3, " ms"),
            Result(f"{name}: federated", ours.echoes[size] * 1e3, " ms"),
        ]
    largest = max(SIZES)
    slower = ours.echoes[largest] / bare.echoes[largest]
    results.append(Result(f"{largest:.0e} float64: times the bare socket's", slower, "", 2.0))
    return results


@contextlib.contextmanager
def serving(what: str) -> Iterator[SimpleNamespace]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.calls_site", what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield SimpleNamespace(**json.loads(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@contextlib.contextmanager
def raw_socket(raw: SimpleNamespace) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=raw.ca)
    with socket.create_connection(("127.0.0.1", raw.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(connection, server_hostname="127.0.0.1") as stream:
            yield stream
