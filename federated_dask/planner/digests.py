"""What tasks make, as digests: where two tasks have the same one, they make the same.

As sites mint their keys: a digest is that of what a task does, with what its inputs have,
down to the versions of datasets and the bytes of constants. The names that Dask gives tasks
would not do: whoever makes an array may choose its name.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.sources import HeldReference, SourceReference
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.values import encode_value

__all__ = ["task_digests"]


def task_digests(graph: PlanGraph, table: OperationTable) -> list[bytes | None]:
    """Give the digest of what every task makes.

    Parameters
    ----------
    graph : PlanGraph
        In topological order.
    table : OperationTable
        Resolves callables inside constants.

    Returns
    -------
    list of (bytes or None)
        None for what has no wire form, and whatever needs it: nobody knows what a function of
        the researcher's gives next time.
    """
    digests: list[bytes | None] = []
    leaves: dict[int, bytes] = {}
    # Tasks of a layer share their template, which is not encoded again for each.
    templates: dict[int, bytes] = {}
    for task in graph.tasks:
        program = task.program
        if program is None:
            digests.append(None)
            continue
        template = templates.get(id(program.template))
        if template is None:
            template = _digest(b"template", msgspec.msgpack.encode(program.template))
            templates[id(program.template)] = template
        parts = [template, np.array(program.integers, dtype=np.int64).tobytes()]
        for reference in program.references:
            if reference >= 0:
                below = digests[reference]
                if below is None:
                    break
            else:
                known = leaves.get(reference)
                if known is None:
                    known = leaves[reference] = _of_leaf(graph.leaves[-1 - reference], table)
                below = known
            parts.append(below)
        else:
            digests.append(_digest(*parts))
            continue
        digests.append(None)
    return digests


def _of_leaf(leaf: Any, table: OperationTable) -> bytes:
    if isinstance(leaf, SourceReference):
        stored = (leaf.site, leaf.dataset, leaf.version, leaf.variable)
        return _digest(b"stored", msgspec.msgpack.encode(stored))
    if isinstance(leaf, HeldReference):
        return _digest(b"held", msgspec.msgpack.encode((leaf.site, leaf.lease, leaf.output)))
    buffers: list[Buffer] = []
    tree = msgspec.msgpack.encode(encode_value(leaf, buffers, table))
    return _digest(b"value", tree, *buffers)


def _digest(*parts: Buffer) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
