"""The directory's index in C."""

from __future__ import annotations

import numpy as np

from oram.kernels._native import lib
from oram.kernels.native.memory import pointer
from oram.types import U8


class NativeIndex:
    """Open addressing in C: 4 bytes a cell, at most half full."""

    def __init__(self, tags: U8) -> None:
        self._rows = memoryview(tags.reshape(-1).data)
        self._table = np.zeros(1 << (2 * max(1, len(tags)) - 1).bit_length(), np.uint32)
        self._args = pointer("uint8_t[]", tags), pointer("uint32_t[]", self._table), self._table.size
        lib.oram_index_build(self._args[0], len(tags), self._args[1], self._args[2])

    def find(self, tag: bytes) -> int:
        """Address of the tag, -1 where there is none."""
        return int(lib.oram_index_find(*self._args, tag))

    def insert(self, tag: bytes, address: int) -> None:
        """Enter a tag that is not there, at a free address."""
        self._rows[16 * address : 16 * address + 16] = tag
        lib.oram_index_insert(*self._args, address)

    def remove(self, address: int) -> None:
        """Free an address."""
        lib.oram_index_remove(*self._args, address)
        self._rows[16 * address : 16 * address + 16] = bytes(16)
