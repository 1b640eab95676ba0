"""Submissions that were damaged or made up: taken or refused, and nothing else happens."""

import subprocess
import sys
import textwrap

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_dask.errors import FederatedError
from federated_dask.protocol.frames import Frame, decode_message
from federated_dask.protocol.graph import (
    check_graph,
)
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import JobSubmission
from tests.protocol.graphs import (
    TABLE,
    check,
    submission,
)


def test_the_example_passes() -> None:
    check(submission()[0].graph)


def taken(message: bytes) -> None:
    """Take a message as an endpoint does; a `FederatedError` is a fine answer."""
    try:
        decoded = decode_message(Frame(msgspec.Raw(message), []), JobSubmission)
        check_graph(decoded.graph, TABLE, Limits(tasks=1000, nodes=1000))
    except FederatedError:
        pass


@settings(max_examples=500)
@given(data=st.data())
def test_damaged_submissions_are_taken_or_refused(data: st.DataObject) -> None:
    message = bytearray(msgspec.msgpack.encode(submission()[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    taken(bytes(message))


WORDS = ["ref", "int", "call", "op", "partial", "os.system", "numpy.sum", "list", "same", "steps"]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=400)
@given(data=st.data())
def test_submissions_with_other_parts_are_taken_or_refused(data: st.DataObject) -> None:
    message = msgspec.msgpack.decode(msgspec.msgpack.encode(submission()[0]))
    parent, key = None, None
    node = message
    while (
        isinstance(node, dict | list) and node and (parent is None or data.draw(st.integers(0, 5)))
    ):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, data.draw(st.sampled_from(keys))
        node = node[key]
    parent[key] = data.draw(JUNK)
    taken(msgspec.msgpack.encode(message))


AUDIT = """
    import sys
    from tests.protocol import graphs, test_hostile_values
    from tests.protocol.test_damaged_submissions import taken
    from federated_dask.protocol.values import decode_value
    from federated_dask.errors import FederatedError
    import msgspec, warnings, random
    warnings.simplefilter("ignore")

    message, buffers = graphs.submission()
    honest = msgspec.msgpack.encode(message)
    copies = [bytearray(buffer) for buffer in buffers]
    # Once before the watch begins: libraries load parts of themselves on first use.
    def run(message):
        taken(message)
        for value in graphs.submission()[0].graph.values:
            decode_value(value, copies, graphs.TABLE)
        for tree in test_hostile_values.HOSTILE.values():
            try:
                decode_value(tree, test_hostile_values.BUFFERS, graphs.TABLE)
            except FederatedError:
                pass
    run(honest)
    seen = []
    FORBIDDEN = "import exec compile open os. subprocess pickle ctypes socket shutil".split(" ")
    FORBIDDEN = tuple(FORBIDDEN)
    watching = False
    def hook(event, arguments):
        if watching and event.startswith(FORBIDDEN):
            seen.append((event, str(arguments)[:200]))
    sys.addaudithook(hook)
    watching = True
    randomness = random.Random(0)
    run(honest)
    for _ in range(3000):
        damaged = bytearray(honest)
        for _ in range(randomness.randint(1, 4)):
            damaged[randomness.randrange(len(damaged))] = randomness.randrange(256)
        taken(bytes(damaged))
    watching = False
    print(len(seen), seen[:5])
"""


def test_decoding_and_checking_imports_opens_and_runs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDIT)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("0 "), done.stdout + done.stderr
