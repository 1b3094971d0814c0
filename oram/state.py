"""The client state as pieces: a checkpoint that is always being rewritten, a few KB with each access.

The arrays, laid end to end, are cut into equal pieces, sealed one by one. ``cursor`` counts the pieces written since the last full
checkpoint; piece number (cursor mod pieces) is next. So the turn in which each piece was last written is known from the cursor alone, is bound to
the piece, and an older version of a piece does not open.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = 4096  # of LMDB, the usual state file
NODE = 2008  # bytes of a value that two entries of the journal share a page with
OVERFLOW = 16  # bytes of header that a value on pages of its own starts with


def piece_size(record_size: int, overhead: int) -> int:
    """Bytes of a piece that fill the page which it shares with a record of this size; ``overhead`` is what sealing adds.

    Every commit rewrites one entry, piece and record together, so an entry should be half a page or whole ones.
    """
    if record_size <= 1200:
        return NODE - overhead - record_size
    pages = -(-(record_size + overhead + OVERFLOW + 1500) // PAGE)
    return pages * PAGE - OVERFLOW - overhead - record_size


class Pieces:
    """A fixed sequence of arrays as pieces of ``length`` bytes, the last one shorter."""

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], length: int) -> None:
        self.length = length
        self._views = [array.reshape(-1).view(np.uint8).data for array in arrays]
        self._starts = [0]
        for view in self._views:
            self._starts.append(self._starts[-1] + len(view))
        self.size = self._starts[-1]
        self.count = -(-self.size // length)

    def _ranges(self, piece: int) -> Iterator[memoryview]:
        at, end = piece * self.length, min((piece + 1) * self.length, self.size)
        k = bisect_right(self._starts, at) - 1
        while at < end:
            if at < self._starts[k + 1]:
                stop = min(end, self._starts[k + 1])
                yield self._views[k][at - self._starts[k] : stop - self._starts[k]]
                at = stop
            k += 1

    def take(self, piece: int) -> bytes:
        """The bytes of a piece now."""
        return b"".join(self._ranges(piece))

    def put(self, piece: int, data: bytes) -> None:
        """Overwrite a piece. ValueError if the length is another one."""
        at = 0
        for view in self._ranges(piece):
            view[:] = data[at : at + len(view)]
            at += len(view)
        if at != len(data):
            raise ValueError("piece of another length")

    def turn(self, piece: int, cursor: int) -> int:
        """When a piece was last written: the count of pieces written up to and including it; 0 = by the full checkpoint."""
        return 0 if cursor <= piece else cursor - (cursor - 1 - piece) % self.count
