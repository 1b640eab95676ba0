"""Calls what `backend` publishes; prints what it measured as JSON."""

import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import client
import numpy as np
import xarray as xr

calls, seconds, callers, sizes = json.loads(sys.argv[1])


def timed(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def rate(count):
    end = time.perf_counter() + seconds

    def work():
        done = 0
        while time.perf_counter() < end:
            client.empty(1)
            done += 1
        return done

    with ThreadPoolExecutor(count) as pool:
        counts = [pool.submit(work) for _ in range(count)]
    return sum(each.result() for each in counts) / seconds


assert client.empty(3) == 3
trips = [timed(client.empty, 1) for _ in range(calls)]
rates = {count: rate(count) for count in callers}
echoes = {}
for size, repeats in sizes:
    values = xr.DataArray(np.random.default_rng(0).random(size))
    assert np.array_equal(client.echo(values).values, values.values)
    echoes[size] = statistics.median(timed(client.echo, values) for _ in range(repeats))
print(json.dumps({"trips": trips, "rates": rates, "echoes": echoes}))
