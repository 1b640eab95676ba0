"""Every decoder of what comes from outside, as a function of bytes that raises nothing.

`ci/fuzz` runs each under atheris; `test_corpus` runs what was found before.  A refusal of
the tree of errors is a fine answer, everything else is a finding.
"""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from federated_dask.errors import FederatedError
from federated_dask.protocol.bounded import check_written_sizes
from federated_dask.protocol.call_messages import CallSubmission, Functions, Returned
from federated_dask.protocol.codecs import _by_name
from federated_dask.protocol.frames import Buffer, Frame, FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.graph import Graph, check_graph
from federated_dask.protocol.identity_messages import JoinRequest
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import (
    AnyJobEvent,
    Catalogue,
    DatasetDescription,
    JobSubmission,
    Output,
    SiteDescription,
)
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import Object, check_parts, put_together, take_apart
from federated_dask.protocol.trees import InstanceValue, Value
from federated_dask.protocol.values import decode_value, encode_value
from site_plugins.config import parse_toml
from site_plugins.endpoint.indexing import parse_index
from site_plugins.endpoint.negotiation import best_of
from site_plugins.endpoint.plain import object_from_json
from site_plugins.endpoint.tasks import build_graph
from site_plugins.entitlements import groups_of
from site_plugins.invitations import InvitationCode, join_request, shown_by
from site_plugins.keys import new_issuer_key, public_key_of
from site_plugins.signed_texts import peek
from site_plugins.statements import StatementSigner, StatementVerifier
from site_plugins.tokens import TokenVerifier
from tests.protocol.graphs import NODES, graph_of, submission
from tests.site_plugins.lone_sites import SiteAlone

__all__ = ["TARGETS", "seeds", "warm_up"]

TABLE = operation_table()
LIMITS = Limits(
    header_bytes=2**20, buffer_bytes=2**20, buffers=1000, tasks=2000, nodes=5000, depth=200
)
warnings.simplefilter("ignore")


def frames(data: bytes) -> None:
    """A stream of bytes, in pieces whose size its first byte says."""
    step = data[0] * 7 + 1 if data else 1
    decoder = FrameDecoder(LIMITS)
    for start in range(1, len(data), step):
        decoder.feed(data[start : start + step])
    decoder.close()


MESSAGES = [JobSubmission, AnyJobEvent, DatasetDescription, CallSubmission, Returned, Object]
TEXTS = [SiteDescription, Catalogue, Functions]


def messages(data: bytes) -> None:
    """A message of each kind, msgpack."""
    for kind in MESSAGES:
        with contextlib.suppress(FederatedError):
            decode_message(Frame(msgspec.Raw(data), []), kind)


def graph(data: bytes) -> None:
    """A graph, checked and built into tasks."""
    submission = decode_message(Frame(msgspec.Raw(data), []), JobSubmission)
    checked = check_graph(submission.graph, TABLE, LIMITS)
    check_written_sizes(checked, 2**30)
    if submission.graph.sources or submission.graph.held:
        return
    build_graph(
        checked,
        [output.task for output in submission.outputs],
        sources=[],
        buffers=[bytearray(64)] * 8,
        held=[],
        table=TABLE,
        limit=2**30,
    )


def _with_buffers(data: bytes) -> tuple[bytes, list[bytearray]]:
    size = int.from_bytes(data[:2], "little")
    rest = data[2 + size :]
    half = len(rest) // 2
    return data[2 : 2 + size], [bytearray(rest), bytearray(rest[:half]), bytearray(rest[half:])]


_value = msgspec.msgpack.Decoder(Value)
_fields = msgspec.msgpack.Decoder(dict[str, Value])
_object = msgspec.msgpack.Decoder(Object)
UNPARSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError)
"""What `decode_message` turns into refusals."""


def values(data: bytes) -> None:
    """A value tree and its buffers; what comes out can be sent again."""
    tree, buffers = _with_buffers(data)
    try:
        value = _value.decode(tree)
    except UNPARSED:
        return
    decoded = decode_value(value, buffers, TABLE)
    # What is larger than it came is a view that repeats itself, and is sent as such.
    with contextlib.suppress(TypeError):
        encode_value(decoded, [], TABLE)


def codecs(data: bytes) -> None:
    """The fields of an instance, of the codec that the first byte says."""
    if not data:
        return
    names = sorted(_by_name())
    tree, buffers = _with_buffers(data[1:])
    try:
        fields = _fields.decode(tree)
    except UNPARSED:
        return
    decode_value(InstanceValue(names[data[0] % len(names)], fields), buffers, TABLE)


def objects(data: bytes) -> None:
    """A described object, put together of arrays of its parts' shapes."""
    tree, buffers = _with_buffers(data)
    try:
        described = _object.decode(tree)
    except UNPARSED:
        return
    check_parts(described, 0)
    put_together(described, buffers, lambda parts: np.zeros(()), TABLE)


def indices(data: bytes) -> None:
    """The JSON of an index."""
    parse_index(data.decode("utf-8", "replace"))


def arguments(data: bytes) -> None:
    """A JSON argument, of the kind that the first byte says."""
    if not data:
        return
    kinds = ("value", "dataset", "dataarray", "ndarray", "dataframe")
    try:
        given = msgspec.json.decode(data[1:])
    except UNPARSED:
        return
    object_from_json(given, kinds[data[0] % len(kinds)], "x", {"part": bytes(64)})


@cache
def _keys() -> tuple[Path, TokenVerifier, StatementVerifier, StatementSigner]:
    path = Path(tempfile.mkdtemp()) / "issuer.pem"
    path.write_bytes(new_issuer_key())
    public = public_key_of(path)
    verifier = TokenVerifier(public, issuer="i", audience="a", max_lifetime=3600.0)
    return path, verifier, StatementVerifier(public), StatementSigner(path)


def tokens(data: bytes) -> None:
    """A token, a statement, and an entitlement."""
    text = data.decode("latin-1")
    _, verifier, statements, _ = _keys()
    assert statements.verify("peer+jwt", text, 60.0) is None or text in _statements()
    peek(text)
    groups_of(text, ["urn:geant:example.org"])
    best_of(text, ["application/json", "image/png"])
    verifier.verify(text)


def invitations(data: bytes) -> None:
    """An invitation's code, and what a site that was invited sends."""
    with contextlib.suppress(FederatedError):
        InvitationCode.parse(data.decode("latin-1"))
    try:
        asked = msgspec.json.decode(data, type=JoinRequest)
    except UNPARSED:
        return
    shown_by(asked, bytes(32), "north")


def settings(data: bytes) -> None:
    """A `site.toml`; its paths are beside this file, so that some of them are there."""
    parse_toml(data, Path(__file__).parent)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        frames, messages, graph, values, codecs, objects, indices, arguments, tokens, invitations,
        settings,
    )
}  # fmt: skip


def run(name: str, data: bytes) -> None:
    """Run a target as its caller would: refusals are answers."""
    with contextlib.suppress(FederatedError):
        TARGETS[name](data)


# What fuzzing begins with

SETTINGS = b"""
[site]
name = "north"
address = "https://north.example:8786"
[endpoint]
port = 0
certificate = "targets.py"
private_key = "targets.py"
origins = ["https://page.example"]
[tokens]
private_key = "targets.py"
[cluster]
n_workers = 1
memory_limit = "1GiB"
[[issuers]]
name = "aai"
url = "https://idp.example"
audience = "north"
[[peers]]
name = "south"
address = "https://south.example"
[[grants]]
to = "group:climate"
may = ["compute"]
on = ["dataset:soil-*"]
[datasets.a1b]
path = "a1b.zarr"
[datasets.soil-1]
path = "soil.nc"
egress = "derived"
share = 0.1
embargo = 2030-01-01
[functions]
modules = ["published"]
[limits]
buffer_bytes = "16MiB"
[quotas]
concurrent_jobs = 3
"""


def _framed(tree: bytes, buffers: list[Buffer]) -> bytes:
    return len(tree).to_bytes(2, "little") + tree + b"".join(bytes(buffer) for buffer in buffers)


def _objects_of_values() -> Iterator[object]:
    import pandas as pd
    from scipy import sparse

    yield from (None, 1, 2**70, 1.5, "text", b"bytes", [1, (2, {"a": 3})], slice(1, None, 2), 1j)
    yield np.arange(6).reshape(2, 3).T
    yield np.zeros(3, [("a", "<f4"), ("b", "<M8[ns]")])
    yield np.broadcast_to(np.float32(1), (3, 4))
    yield np.ma.masked_invalid([1.0, np.nan])
    yield np.array(["a", None], dtype=object)
    yield np.array([1, "x"], dtype=object)
    yield np.float32(1)
    yield np.dtype("<M8[s]")
    yield np.sum
    yield pd.Index([1, 2])
    yield pd.RangeIndex(5)
    yield pd.DatetimeIndex(["2000-01-01", "2000-01-02"], freq="D")
    yield pd.IntervalIndex.from_breaks([0, 1, 2])
    yield sparse.csr_array(np.eye(3))
    yield np.random.SeedSequence(1)
    import cftime

    yield cftime.DatetimeNoLeap(2000, 2, 28)


def _seeds_of_frames() -> Iterator[bytes]:
    whole, buffers = submission()
    yield b"\x05" + b"".join(bytes(piece) for piece in encode_frame(whole, buffers))
    yield b"\xff" + b"".join(bytes(piece) for piece in encode_frame(whole, [bytes(10_000)]))


def _seeds_of_messages() -> Iterator[bytes]:
    yield msgspec.msgpack.encode(submission()[0])
    for node in NODES:
        one = JobSubmission(graph=graph_of(node), outputs=(Output(task=0),))
        yield msgspec.msgpack.encode(one)
    yield msgspec.msgpack.encode(Graph(templates=(), blocks=()))


def _encoded_values() -> Iterator[tuple[Value, list[Buffer]]]:
    for obj in _objects_of_values():
        buffers: list[Buffer] = []
        yield encode_value(obj, buffers, TABLE), buffers


def _seeds_of_values() -> Iterator[bytes]:
    for tree, buffers in _encoded_values():
        yield _framed(msgspec.msgpack.encode(tree), buffers)


def _seeds_of_codecs() -> Iterator[bytes]:
    for tree, buffers in _encoded_values():
        if isinstance(tree, InstanceValue):
            codec = sorted(_by_name()).index(tree.codec)
            yield bytes([codec]) + _framed(msgspec.msgpack.encode(tree.fields), buffers)


def _seeds_of_objects() -> Iterator[bytes]:
    import pandas as pd
    import xarray as xr

    array = xr.DataArray([1.0, 2.0], dims="x", coords={"x": [1, 2]}, attrs={"a": 1})
    for obj in (1, array, array.to_dataset(name="y"), pd.DataFrame({"a": [1]})):
        buffers: list[Buffer] = []
        described, _ = take_apart(obj, buffers, TABLE)
        yield _framed(msgspec.msgpack.encode(described), buffers)


def _seeds_of_indices() -> Iterator[bytes]:
    yield b'[3, [0, 10, null], {"take": [4, 2]}]'
    yield b"[[null, null, -1], -5]"


def _seeds_of_arguments() -> Iterator[bytes]:
    array_form: dict[str, Any] = {"dtype": "<f8", "shape": [2], "data": [1, None]}
    variable = {**array_form, "dims": ["x"], "attrs": {}}
    yield b"\x00" + json.dumps(array_form).encode()
    yield b"\x01" + json.dumps({"data_vars": {"a": variable}, "coords": {}}).encode()
    yield b"\x02" + json.dumps({**variable, "coords": {}, "name": "a"}).encode()
    yield b"\x03" + json.dumps([[1, 2], [3, "NaN"]]).encode()
    yield b'\x03{"dtype": "<f8", "shape": [1], "base64": "AAAAAAAAAAA="}'
    yield b'\x03{"dtype": "<M8[ns]", "shape": [1], "data": ["2000-01-01"]}'
    yield b'\x03{"dtype": "<f8", "shape": [8], "part": "part"}'
    yield b'\x04{"columns": {"a": [1, 2]}, "index": [0, 1]}'


@cache
def _statements() -> tuple[str, ...]:
    *_, signer = _keys()
    return (signer.sign("peer+jwt", {"iss": "i", "aud": "a"}, 60.0),)


def _seeds_of_tokens() -> Iterator[bytes]:
    yield from (text.encode() for text in _statements())
    yield b"urn:geant:example.org:group:a:b:role=r#auth"
    yield b"image/png;q=0.5, application/*"


@cache
def _seeds_of_invitations() -> tuple[bytes, ...]:
    folder = Path(tempfile.mkdtemp())
    south = SiteAlone(folder, "south")
    code = InvitationCode(secret="s" * 24, fingerprint=bytes(32))
    asked = join_request(south.config, code)
    assert shown_by(asked, bytes(32), "north")[0] == asked.address
    without = msgspec.structs.replace(asked, ca=None)
    return str(code).encode(), msgspec.json.encode(asked), msgspec.json.encode(without)


def _seeds_of_settings() -> Iterator[bytes]:
    yield SETTINGS


SEEDS: dict[str, Callable[[], Iterable[bytes]]] = {
    "frames": _seeds_of_frames,
    "messages": _seeds_of_messages,
    "graph": _seeds_of_messages,
    "values": _seeds_of_values,
    "codecs": _seeds_of_codecs,
    "objects": _seeds_of_objects,
    "indices": _seeds_of_indices,
    "arguments": _seeds_of_arguments,
    "tokens": _seeds_of_tokens,
    "invitations": _seeds_of_invitations,
    "settings": _seeds_of_settings,
}
assert SEEDS.keys() == TARGETS.keys()


def seeds(name: str) -> Iterable[bytes]:
    """Honest inputs of a target."""
    return SEEDS[name]()


def warm_up() -> None:
    """Run every target once: libraries load parts of themselves on first use."""
    for name in TARGETS:
        for seed in seeds(name):
            run(name, seed)
