"""The directory: from a key's tag to the record that holds it. Client state; the server never sees it.

Persisted by address (``tags``, 16 bytes a record, zero = free), so that a change touches one row; the index over it is rebuilt on opening.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from oram.kernels.base import EMPTY, KernelSet
from oram.types import U8, U32

_CHANGE = struct.Struct("<I16s")
NO_TAG = bytes(16)


class Directory:
    """Tags of ``capacity`` records."""

    NOTE = _CHANGE.size  #: bytes of a journaled change

    def __init__(self, kernels: KernelSet, tags: U8) -> None:
        self._kernels, self.tags = kernels, tags
        self.reload()

    def reload(self) -> None:
        """Rebuild index and free list from the tags."""
        self._index = self._kernels.index(self.tags)
        free = np.flatnonzero(~self.tags.any(axis=1))[::-1]
        self._free: U32 = np.zeros(len(self.tags), np.uint32)  # a stack
        self._free[: free.size] = free
        self._n = free.size

    def __len__(self) -> int:
        """Records in use. Cost: no access."""
        return len(self.tags) - self._n

    def find(self, tag: bytes) -> int:
        """The record of a tag, -1 where there is none. Cost: no access."""
        return self._index.find(tag)

    def free(self, n: int) -> list[int]:
        """Up to n free records, without taking them."""
        offered: list[int] = self._free[max(0, self._n - n) : self._n][::-1].tolist()
        return offered

    def any(self) -> int:
        """Some record in use, -1 where there is none."""
        used = self.tags.any(axis=1)
        return int(used.argmax()) if len(self) else -1

    def insert(self, tag: bytes, record: int) -> None:
        """Take the free record that ``free`` offered first."""
        self._n -= 1
        assert self._free[self._n] == record
        self._index.insert(tag, record)

    def remove(self, record: int) -> None:
        """Give a record back."""
        self._index.remove(record)
        self._free[self._n] = record
        self._n += 1

    @staticmethod
    def note(changes: Sequence[tuple[int, bytes] | None]) -> bytes:
        """Changes as journaled: (record, new tag or NO_TAG) each, None = no change; same length either way."""
        return b"".join(_CHANGE.pack(EMPTY, NO_TAG) if change is None else _CHANGE.pack(*change) for change in changes)

    @staticmethod
    def no_notes(n: int) -> bytes:
        """A note of n changes that changes nothing."""
        return Directory.note([None] * n)

    def apply(self, note: bytes) -> None:
        """What a note says, done here and now, in its order; ``free`` offered the records it takes."""
        for record, tag in _CHANGE.iter_unpack(note):
            if record != EMPTY:
                if tag == NO_TAG:
                    self.remove(record)
                else:
                    self.insert(tag, record)

    def replay(self, notes: Sequence[bytes]) -> None:
        """Apply journaled notes in order, then rebuild the index."""
        for note in notes:
            for record, tag in _CHANGE.iter_unpack(note):
                if record != EMPTY:
                    self.tags[record] = np.frombuffer(tag, np.uint8)
        self.reload()
