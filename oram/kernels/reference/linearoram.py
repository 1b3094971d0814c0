"""Linear ORAM: the specification of csrc/linear.c."""

from __future__ import annotations

import numpy as np
from cryptography.exceptions import InvalidTag

from oram.backends.base import Slots
from oram.kernels.base import COUNTER_BITS, Keys, Op, Requests, TamperedError
from oram.kernels.reference.cipher import ReferenceKeys
from oram.params import LinearGeometry
from oram.types import U8, U64


class ReferenceLinear:
    """Linear ORAM: every slot, every time."""

    def __init__(self, geometry: LinearGeometry, base: U64, keys: Keys) -> None:
        assert isinstance(keys, ReferenceKeys)
        self._geometry, self._keys, self.base = geometry, keys, base
        self._requests = Requests(1, geometry.B)

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._requests.capacity:
            self._requests = Requests(m, self._geometry.B)
        self._requests.m = m
        return self._requests

    def access(self, requests: Requests, pages: Slots) -> None:
        """Open, serve and seal every page."""
        blocks = self.open_pages(pages)
        for r in range(requests.m):
            op, addr = int(requests.ops[r]), int(requests.addresses[r])
            if op == Op.DUMMY:
                requests.out[r] = 0
                continue
            requests.out[r] = blocks[addr]
            if op == Op.WRITE:
                blocks[addr] = requests.data[r]
            elif op == Op.REMOVE:
                blocks[addr] = 0
        pages.data[:] = self.build_pages(blocks)
        pages.present[:] = 1

    def open_pages(self, pages: Slots) -> U8:
        """All blocks in clear."""
        g, base, bad = self._geometry, int(self.base[0]), False
        plain = np.zeros((g.slots, g.plain), np.uint8)
        for i in range(g.slots if base else 0):
            try:
                plain[i] = np.frombuffer(self._keys.open(i, base + i, pages.data[i].tobytes()), np.uint8)
                bad |= not pages.present[i]
            except InvalidTag:
                bad = True
        if bad:
            raise TamperedError
        return plain.reshape(-1, g.B)

    def build_pages(self, blocks: U8) -> U8:
        """Seal all blocks."""
        g, keys = self._geometry, self._keys
        plain = blocks.reshape(g.slots, g.plain)
        first = keys.take(g.slots)
        sealed = np.array(
            [np.frombuffer(keys.seal(i, first + i, plain[i].tobytes()), np.uint8) for i in range(g.slots)]
        )
        self.base[0] = keys.current << COUNTER_BITS | first
        return sealed
