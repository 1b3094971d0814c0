"""Path ORAM (Stefanov, van Dijk, Shi, Fletcher, Ren, Yu, Devadas: CCS 2013).

docs/schemes/path.md goes through the paper line by line. The hot loop is the kernel's; this module is what surrounds it: randomness in,
reads and writes out, records for the journal, scans and bulk loading.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import RegionShape, SlotRead, Slots, SlotWrite
from oram.kernels.base import COUNTER_BITS, EMPTY, KernelSet, Keys, PathState, PoolFullError, Requests
from oram.params import PathGeometry
from oram.schemes.base import Access, Outcome, Reader
from oram.schemes.pool import PoolReplay, Requested, contents, fields, fill, overflow, place, relink, repeat
from oram.types import I64, U8, U32, U64

_RECORD = struct.Struct("<IIQ")  # requests, pages, reference of the first page
SCAN_BYTES = 8 << 20  # of pages a round trip


class PathORAM:
    """An oblivious array over one tree.

    Cost: a batch of m is one round trip to read and one to write (path lengths times m pages, or fewer where paths share pages).
    Leaks: m, and m uniform leaves that are independent of the requests. Source: figure 1 of the paper.
    """

    shards = 1
    whole = True

    def __init__(
        self,
        geometry: PathGeometry,
        region: str,
        kernels: KernelSet,
        keys: Keys,
        position: U32,
        pool_size: int | None = None,
    ) -> None:
        self.geometry, self.region = geometry, region
        self.capacity, self.block_size, self.max_batch = geometry.N, geometry.B, geometry.max_batch
        self.max_pages = max(1024, self.max_batch) * geometry.layers
        self._keys = keys
        self._kernel = kernels.path(geometry, PathState.empty(geometry, position, pool_size), keys)

    @property
    def state(self) -> PathState:
        """The client's arrays."""
        return self._kernel.state

    def regions(self) -> dict[str, RegionShape]:
        """One region of pages."""
        return {self.region: RegionShape(self.geometry.slots, self.geometry.slot_size)}

    def requests(self, m: int) -> Requests:
        """Buffers for a batch of m."""
        return self._kernel.requests(m)

    # --- the access

    def access(self, requests: Requests) -> Access:
        """Read the union of the paths, serve, evict, write it back."""
        plan = self._kernel.plan(requests)
        pages = yield SlotRead(self.region, plan.slots)
        first_page = self._keys.current << COUNTER_BITS | self._keys.counter
        grown = False
        while True:
            try:
                placed = self._kernel.access(requests, plan, pages)
                break
            except PoolFullError:  # far above the paper's bound; no block is ever dropped
                self._kernel.state = self._kernel.state.grown()
                plan, grown = self._kernel.plan(requests), True  # the same plan, in the kernel's new memory
        return Outcome(
            [SlotWrite(self.region, plan.slots, pages.data)],
            self._record(requests, plan.slots, first_page, placed),
            grown,
        )

    def access_in_place(self, requests: Requests, buffer: Callable[[str], Slots]) -> None:
        """The same over the backend's own memory."""
        while True:
            try:
                return self._kernel.access_in_place(requests, buffer(self.region))
            except PoolFullError:
                self._kernel.state = self._kernel.state.grown()

    # --- the journal

    def record_size(self, requests: Requests) -> int:
        """Bytes of a record where no two paths share a page."""
        g, m = self.geometry, requests.m
        return _RECORD.size + m * (13 + g.B + g.layers * (8 + 4 * g.buckets * g.Z))

    def _record(self, requests: Requests, slots: I64, first_page: int, placed: U32) -> bytes:
        m = requests.m
        parts: list[npt.NDArray[Any]] = [
            requests.where[:m],
            requests.addresses[:m],
            requests.draws[:m],
            requests.pool[:m],
            requests.after[:m],
            slots,
            placed,
        ]
        return _RECORD.pack(m, slots.size, first_page) + b"".join(part.tobytes() for part in parts)

    def _parse(self, record: bytes) -> tuple[int, Requested, I64, U32]:
        m, pages, first_page = _RECORD.unpack_from(record)
        layout = [
            ("u1", m),
            ("<u4", m),
            ("<u4", m),
            ("<u4", m),
            ("u1", m * self.block_size),
            ("<i8", pages),
            ("<u4", -1),
        ]
        where, addresses, draws, pool, blocks, slots, placed = fields(record, _RECORD.size, layout)
        return first_page, Requested(where, addresses, draws, pool, blocks.reshape(m, self.block_size)), slots, placed

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Positions, references, and the pool's addresses and blocks; its leaves and chains follow from them."""
        state = self._kernel.state
        return [state.position, state.refs, state.pool_addr, state.pool_data]

    def grow(self, rows: int) -> None:
        """Make the pool at least so long."""
        while self._kernel.state.pool_addr.size < rows:
            self._kernel.state = self._kernel.state.grown()

    def replay(self, records: Iterable[bytes]) -> None:
        """Each record says absolute things, so the last word stands."""
        g, pool = self.geometry, PoolReplay(self._kernel.state)
        for first_page, requests, slots, placed in map(self._parse, records):
            pool.apply(g.leaves, requests, placed)
            top = slots[slots < g.offsets[1]]
            pool.state.refs[top] = np.arange(first_page, first_page + top.size, dtype=np.uint64)
        self._relink(pool.state)

    def _relink(self, state: PathState) -> None:
        relink(state, self.geometry.L - self.geometry.T)
        self._kernel.state = state

    def redo(self, record: bytes) -> Requests:
        """The same look-ups on the state before it, with the values it left behind."""
        _, requests, _, _ = self._parse(record)
        return repeat(self.requests(requests.where.size), requests)

    # --- scan and bulk load

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        """Pages in index order, so that each page's reference is at hand when it is its turn; then the pool."""
        g, state = self.geometry, self._kernel.state
        page = np.dtype(
            [
                ("refs", "<u8", (1 << g.h,)),
                ("meta", "<u4", (g.buckets * g.Z, 2)),
                ("blocks", "u1", (g.buckets * g.Z, g.B)),
            ]
        )
        refs, step = state.refs, max(1, SCAN_BYTES // g.slot_size)
        for layer in range(g.layers):
            below = []
            for first in range(0, refs.size, step):
                slots = np.arange(first, min(first + step, refs.size)) + g.offsets[layer]
                pages = (
                    self._kernel.open_pages(slots, refs[first : first + step], read(SlotRead(self.region, slots)))
                    .reshape(-1)
                    .view(page)
                )
                below.append(pages["refs"][:, : 1 << g.height(layer)].reshape(-1))
                live = pages["meta"][..., 0] != EMPTY
                yield pages["meta"][live][:, 0].astype(np.int64), pages["blocks"][live]
            refs = np.concatenate(below).astype(np.uint64)
        yield contents(state)

    def build(self, addresses: I64, blocks: U8) -> Iterator[SlotWrite]:
        """Place every block as low as its path has room, then write every page once."""
        g, state = self.geometry, self._kernel.state
        addr = addresses.astype(np.uint32)
        leaf = state.position[addr]
        source, rest = self._place(leaf)
        self._relink(fill(state, rest, addr, blocks))
        # a page is sealed in the order of its number, so that the references to it are known beforehand
        base = self._keys.current << COUNTER_BITS | self._keys.counter
        step = max(1, SCAN_BYTES // g.slot_size)
        for layer in range(g.layers):
            for first in range(g.offsets[layer], g.offsets[layer + 1], step):
                slots = np.arange(first, min(first + step, g.offsets[layer + 1]))
                children: U64 = np.zeros((slots.size, 1 << g.h), np.uint64)
                if layer + 1 < g.layers:
                    fan = 1 << g.height(layer)
                    child = (slots - g.offsets[layer])[:, None] * fan + np.arange(fan) + g.offsets[layer + 1]
                    children[:, :fan] = child.astype(np.uint64) + np.uint64(base)
                sealed = self._kernel.build_pages(slots, children, source[slots], addr, leaf, blocks)
                yield SlotWrite(self.region, slots, sealed)
        self._kernel.state.refs[:] = np.arange(1 << g.T, dtype=np.uint64) + np.uint64(base)

    def _place(self, leaf: U32) -> tuple[I64, I64]:
        """Greedy bottom-up placement: row of each slot of each page, int64 (slots, buckets * Z), -1 = empty; and the rows left over."""
        g = self.geometry
        source = np.full((g.slots, g.buckets * g.Z), -1, np.int64)
        roots = [g.root_level(layer) for layer in range(g.layers)]
        for level, rows, bucket, rank in place(leaf, g.L, g.T, g.Z):
            if level < 0:
                return source, rows
            layer = bisect_right(roots, level) - 1
            depth = level - roots[layer]
            page = (bucket >> depth) + g.offsets[layer]
            within = (1 << depth) - 1 + (bucket & ((1 << depth) - 1))
            source[page, within * g.Z + rank] = rows
        raise AssertionError

    # --- the stash

    @property
    def turn(self) -> int:
        """A number that is another one after each access."""
        return self._keys.current << COUNTER_BITS | self._keys.counter

    @property
    def stash_size(self) -> int:
        """What would overflow the cached levels: with T=0 the paper's stash exactly, else never more than it. Secret. Cost: O(pool), no access."""
        g = self.geometry
        return overflow(self._kernel.state, g.Z, g.T, g.L - g.T)
