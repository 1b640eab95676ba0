"""Results that crossed a link once, kept at home for equal and overlapping queries.

They are found by what they are made of (`federated_dask.planner.digests`), dataset versions
included. Kept is what came over the wire, not the object that was made of it: that one is
the user's, who may write into it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.trees import Value
from federated_dask.protocol.values import decode_value

__all__ = ["KeptResult", "KeptResults"]


@dataclass(frozen=True, slots=True)
class KeptResult:
    """One result as it came."""

    tree: bytes
    buffers: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return len(self.tree) + sum(map(len, self.buffers))

    def value(self, table: OperationTable) -> Any:
        """Make the result, anew each time."""
        tree = msgspec.msgpack.decode(self.tree, type=Value)
        return decode_value(tree, [bytearray(buffer) for buffer in self.buffers], table)


class KeptResults:
    """Results by digest, bounded in bytes; what was not used for longest goes first.

    Parameters
    ----------
    nbytes : int
        Most that is kept; 0 keeps nothing.

    Examples
    --------
    >>> from federated_dask.protocol.values import encode_value
    >>> kept = KeptResults(100)
    >>> kept.keep(b"digest", encode_value({"total": 3}, []), [])
    >>> kept.get(b"digest").value(None)
    {'total': 3}
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._results: OrderedDict[bytes, KeptResult] = OrderedDict()
        self._total = 0
        # Plans are made in the threads of callers, results come in on the loop's.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._results)

    def get(self, digest: bytes) -> KeptResult | None:
        """Give a result, or None."""
        with self._lock:
            found = self._results.get(digest)
            if found is not None:
                self._results.move_to_end(digest)
            return found

    def keep(self, digest: bytes, tree: Value, buffers: Sequence[Buffer]) -> None:
        """Keep a result as it came, if there is room for it at all."""
        if sum(memoryview(buffer).nbytes for buffer in buffers) > self.nbytes:
            return
        result = KeptResult(msgspec.msgpack.encode(tree), tuple(map(bytes, buffers)))
        if result.nbytes > self.nbytes:
            return
        with self._lock:
            self._forget(digest)
            self._results[digest] = result
            self._total += result.nbytes
            while self._total > self.nbytes:
                self._forget(next(iter(self._results)))

    def _forget(self, digest: bytes) -> None:
        before = self._results.pop(digest, None)
        if before is not None:
            self._total -= before.nbytes
