"""Caps on what a receiver accepts, checked on the message before anything is built."""

from __future__ import annotations

import msgspec

__all__ = ["LARGEST_INTEGER_BITS", "Limits"]

MEBI = 2**20
LARGEST_INTEGER_BITS = 4096
"""Of Python's integers, sent or made: what is done with one takes longer than its length."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Largest message that a receiver accepts.

    Parameters
    ----------
    header_bytes : int
        Header of one frame after decompression, bytes. Decoded it takes up to 15
        times as much memory.
    buffer_bytes : int
        All buffers of one frame after decompression, bytes.
        The endpoint of a site holds this much of all frames together that it has not yet
        made tasks of.
    parts : int
        Numbers, texts, lists, items … of one header; each takes some 60 bytes once decoded.
    buffers : int
        Number of buffers of one frame.
    tasks : int
        Tasks of one graph.
    nodes : int
        Argument nodes of all templates of one graph. With the cap on tasks it bounds what
        is made of them, too: `NODES_PER_TASK` nodes for each.
    depth : int
        Longest chain of tasks in one graph.
    outputs : int
        Outputs of one job.
    task_bytes : int
        Bytes that the result of one operation may take, told from its arguments before it is
        called. A site takes half of a worker's memory where its operator gives no number.

    Examples
    --------
    >>> Limits().tasks
    1000000
    """

    header_bytes: int = 32 * MEBI
    buffer_bytes: int = 512 * MEBI
    parts: int = 2_000_000
    buffers: int = 100_000
    tasks: int = 1_000_000
    nodes: int = 100_000
    depth: int = 10_000
    outputs: int = 1_000_000
    task_bytes: int = 2048 * MEBI
