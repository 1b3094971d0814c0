"""Linear ORAM in C."""

from __future__ import annotations

from typing import Any

import numpy as np

from oram.backends.base import Slots
from oram.kernels._native import lib
from oram.kernels.base import COUNTER_BITS, Keys, Requests, TamperedError
from oram.kernels.native.cipher import NativeKeys
from oram.kernels.native.memory import NativeRequests, pointer, writable
from oram.params import LinearGeometry
from oram.types import U8, U64


class NativeLinear:
    """Linear ORAM in C."""

    def __init__(self, geometry: LinearGeometry, base: U64, keys: Keys) -> None:
        assert isinstance(keys, NativeKeys)
        self._geometry, self._keys, self.base = geometry, keys, base
        self._c_base = pointer("uint64_t[]", base)
        self._c_plain = pointer("uint8_t[]", np.zeros(geometry.slots * geometry.plain, np.uint8))
        self._requests = NativeRequests(1, geometry.B)
        self._pages: tuple[Slots, Any, Any] | None = None  # those of the last access, and their pointers

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._requests.capacity:
            self._requests = NativeRequests(m, self._geometry.B)
        self._requests.m = m
        return self._requests

    def access(self, requests: Requests, pages: Slots) -> None:
        """Open, serve and seal every page."""
        assert requests is self._requests
        if self._pages is None or self._pages[0] is not pages:
            self._pages = pages, writable("uint8_t[]", pages.data), writable("uint8_t[]", pages.present)
        g, r = self._geometry, self._requests
        self._keys.run(
            lib.oram_linear_access, self._keys.struct, g.N, g.B, g.g, g.slots, self._c_base, r.m, r.c_ops, r.c_addresses,
            self._pages[1], self._pages[2], r.c_data, r.c_out, self._c_plain,
        )  # fmt: skip

    def open_pages(self, pages: Slots) -> U8:
        """All blocks in clear."""
        g, base = self._geometry, int(self.base[0])
        plain = np.zeros((g.slots * g.g, g.B), np.uint8)
        if base:
            if not pages.present.all():
                raise TamperedError
            self._keys.load(base >> COUNTER_BITS)
            context, counter = self._keys.struct.contexts[base >> COUNTER_BITS], base & ((1 << COUNTER_BITS) - 1)
            self._keys.run(
                lib.oram_open_many,
                self._keys.struct.cipher,
                context,
                counter,
                g.slots,
                g.plain,
                pointer("uint8_t[]", pages.data),
                pointer("uint8_t[]", plain),
            )
        return plain

    def build_pages(self, blocks: U8) -> U8:
        """Seal all blocks."""
        g, keys = self._geometry, self._keys
        sealed = np.empty((g.slots, g.slot_size), np.uint8)
        counter = keys.counter
        keys.struct.counter += g.slots  # before the first seal
        keys.run(
            lib.oram_seal_many,
            keys.struct.cipher,
            keys.struct.contexts[keys.current],
            counter,
            g.slots,
            g.plain,
            pointer("uint8_t[]", blocks),
            pointer("uint8_t[]", sealed),
        )
        self.base[0] = keys.current << COUNTER_BITS | counter
        return sealed
