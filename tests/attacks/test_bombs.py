"""Small messages that would become large: refused, and the endpoint's memory stays small."""

import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import msgspec
import numpy as np
import pytest

from federated_dask.protocol._zstd import compress
from federated_dask.protocol.graph import (
    Block,
    Call,
    Graph,
    Integer,
    List,
    Number,
    Operation,
    Packed,
    Reference,
    Same,
    Source,
    Steps,
    Template,
    Tuple,
)
from federated_dask.protocol.messages import Failure, JobSubmission, Output
from federated_dask.protocol.trees import ArrayValue, ListValue, TextArrayValue, TupleValue
from tests.attacks.conftest import RunningSite

MOST = 512 * 10**6
"""Bytes that the process of the endpoint may hold."""
MEBI = 2**20


def frame(header: bytes, buffers: bytes = b"", *, raw: int | None = None) -> bytes:
    return b"FDF1" + struct.pack("<II", len(header), raw or len(header)) + header + buffers


def squeezed(header: bytes, buffers: bytes = b"") -> bytes:
    small = compress(header, 1)
    return frame(small, buffers, raw=len(header))


def headed(message: bytes, sizes: Sequence[tuple[int, int]] = ()) -> bytes:
    return b"\x92" + message + msgspec.msgpack.encode([(*pair, 1) for pair in sizes])


def of_graph(graph: Graph, sizes: Sequence[tuple[int, int]] = (), outputs: int = 1) -> bytes:
    job = JobSubmission(graph=graph, outputs=(Output(task=0),) * outputs)
    return headed(msgspec.msgpack.encode(job), sizes)


def many(head: str, part: bytes, total: int) -> bytes:
    """A submission in which a part stands again and again, as raw msgpack."""
    count = total // len(part)
    array = b"\xdd" + struct.pack(">I", count) + part * count
    # Of an unknown dataset, so that it is refused at last.
    fields = {
        "sources": b"\x91\x93\xa1x\xa0\xa0",
        "values": b"\x90",
        "templates": b"\x90",
        "blocks": b"\x90",
    }
    fields[head] = array
    graph = b"\x84" + b"".join(msgspec.msgpack.encode(k) + v for k, v in fields.items())
    return headed(b"\x82" + b"\xa5graph" + graph + b"\xa7outputs\x90")


def task(node: object, count: int = 1, columns: tuple[object, ...] = ()) -> Graph:
    return Graph(values=(1,), templates=(Template((node,)),), blocks=(Block(0, count, columns),))


def call(name: str, *arguments: object) -> Call:
    return Call(Operation(name), arguments)


def chain(length: int) -> Graph:
    template = Template((call("numpy.concatenate", List((Reference(), Reference()))),))
    blocks = tuple(Block(0, 1, (Same(number), Same(number))) for number in range(length))
    return Graph(values=(1,), templates=(template,), blocks=blocks)


ABSENT = compress(b"\xff" * 8 * MEBI, 1)
ZSTD = compress(bytes(2**30), 1)

BOMBS: dict[str, Callable[[], bytes]] = {
    "nested empty lists": lambda: squeezed(headed(b"\x91" * 10_000_000 + b"\x90")),
    "nested lists in a field that nobody knows": lambda: squeezed(
        headed(b"\x81\xa1x" + b"\x91" * 10_000_000 + b"\x90")
    ),
    "many empty lists": lambda: squeezed(many("values", b"\x92\xa4list\x90", 31 * MEBI)),
    "many short texts": lambda: squeezed(many("values", b"\xa2xy", 31 * MEBI)),
    "as many short texts as are counted": lambda: squeezed(
        many("values", b"\xa2xy", 3 * 1_990_000)
    ),
    "as many sources as are counted": lambda: squeezed(
        many("sources", b"\x93\xa0\xa0\xa0", 4 * 490_000)
    ),
    "many floats": lambda: squeezed(many("values", b"\xcb" + b"\x3f" * 8, 31 * MEBI)),
    "many sources": lambda: squeezed(many("sources", b"\x93\xa0\xa0\xa0", 31 * MEBI)),
    "many blocks": lambda: squeezed(many("blocks", b"\x93\x00\x01\x90", 31 * MEBI)),
    "many templates": lambda: squeezed(many("templates", b"\x92\xa4list\x90", 31 * MEBI)),
    "many steps": lambda: squeezed(
        many("templates", b"\x91\x9f" + b"\x92\xa3ref\xc0" * 0 + b"\xc2" * 15, 31 * MEBI)
    ),
    "zstd of a gibibyte": lambda: frame(ZSTD, raw=2**30),
    "zstd of more than it says": lambda: frame(ZSTD, raw=31 * MEBI),
    "zlib": lambda: frame(zlib.compress(bytes(2**26))),
    "a buffer of a gibibyte": lambda: squeezed(
        of_graph(task(Reference()), [(len(ZSTD), 2**30)]), ZSTD
    ),
    "a buffer of more than it says": lambda: squeezed(
        of_graph(task(Reference()), [(len(ZSTD), MEBI)]), ZSTD
    ),
    "many buffers": lambda: squeezed(of_graph(task(Reference()), [(0, 0)] * 5_000_000)),
    "many large buffers": lambda: squeezed(of_graph(task(Reference()), [(0, 2**29)] * 1000)),
    "buffers beside a graph that is refused": lambda: squeezed(
        of_graph(task(call("os.system")), [(len(HALF), 480 * MEBI)]), HALF
    ),
    "many values of one buffer": lambda: squeezed(
        of_graph(
            Graph(
                values=tuple(
                    TupleValue((number, TextArrayValue((MEBI,), 0, 1))) for number in range(100)
                ),
                templates=(Template((Reference(),)),),
                blocks=(Block(0, 1, (Same(0),)),),
            ),
            [(len(ABSENT), 8 * MEBI), (0, 0)],
        ),
        ABSENT,
    ),
    "many tasks": lambda: squeezed(of_graph(task(None, 2**40))),
    "rechunk of a million elements by ones": lambda: squeezed(
        of_graph(
            Graph(
                sources=(Source("open", "", "air"),),
                templates=(Template((call("operator.getitem", Reference(), Integer()),)),),
                blocks=(Block(0, 1_000_000, (Same(0), Steps(0, 1))),) * 10,
            )
        )
    ),
    "many tasks of many arguments": lambda: squeezed(
        of_graph(
            task(call("numpy.concatenate", List((Integer(),) * 1000)), 900_000, (Same(1),) * 1000)
        )
    ),
    "many tasks of a large template": lambda: squeezed(
        of_graph(task(call("builtins.bool", List((None,) * 90_000)), 900_000))
    ),
    "a column of another length": lambda: squeezed(
        of_graph(task(Integer(), 900_000, (Packed(8, b"x"),)))
    ),
    "concatenations of one another": lambda: squeezed(of_graph(chain(20_000))),
    "a large shape": lambda: squeezed(
        of_graph(task(call("numpy.ones", Tuple((Number(10**6), Number(10**6))))))
    ),
    "a shape that repeats itself": lambda: squeezed(
        of_graph(
            Graph(
                values=(ArrayValue("<f8", (2**62,), (2**62,), False, 0),),
                templates=(Template((Reference(),)),),
                blocks=(Block(0, 1, (Same(0),)),),
            )
        )
    ),
    "texts without bytes": lambda: squeezed(
        of_graph(
            Graph(
                values=(TextArrayValue((2**40,), 0, 0),),
                templates=(Template((Reference(),)),),
                blocks=(Block(0, 1, (Same(0),)),),
            )
        )
    ),
    "deep templates": lambda: squeezed(of_graph(task(nested(400)))),
    "deep values": lambda: squeezed(
        of_graph(
            Graph(
                values=(nested_value(400),),
                templates=(Template((Reference(),)),),
                blocks=(Block(0, 1, (Same(0),)),),
            )
        )
    ),
    "many outputs": lambda: squeezed(of_graph(task(None), outputs=1_200_000)),
    "a long text": lambda: squeezed(of_graph(task(call("builtins.bool", "x" * 30 * MEBI)))),
    "a dtype of a gibibyte": lambda: squeezed(
        of_graph(task(call("numpy.ones", Number(10**9), "U99999999")))
    ),
}
HALF = compress(bytes(480 * MEBI), 1)


def nested(depth: int) -> object:
    node: object = None
    for _ in range(depth):
        node = List((node,))
    return call("builtins.bool", node)


def nested_value(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = ListValue((value,))
    return value


@contextmanager
def memory_watched(site: RunningSite) -> Iterator[list[int]]:
    """Look at the endpoint's memory all the time."""
    seen = [site.memory]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            seen.append(site.memory)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


async def post(site: RunningSite, body: bytes) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {site.token()}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{site.address}/jobs", data=body, headers=headers, ssl=site.context) as reply,
    ):
        return reply.status, await reply.read()


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_refused_and_takes_no_memory(site: RunningSite, name: str) -> None:
    body = BOMBS[name]()
    with memory_watched(site) as seen:
        status, reply = await post(site, body)
    failure = msgspec.json.decode(reply, type=Failure)
    assert status in (400, 403, 404, 409, 413, 422), failure
    assert max(seen) < MOST, name


async def test_honest_jobs_are_served_afterwards(site: RunningSite) -> None:
    graph = Graph(
        templates=(Template((call("numpy.arange", Integer()),)),), blocks=(Block(0, 1, (Same(4),)),)
    )
    status, reply = await post(site, squeezed(of_graph(graph)))
    assert status == 200
    assert np.arange(4).tobytes() in reply
