"""Ring ORAM (Ren, Fletcher, Kwon, Stefanov, Shi, van Dijk, Devadas: USENIX Security 2015).

docs/schemes/ring.md goes through the paper line by line. The hot loop is the kernel's; this module is what surrounds it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import RegionShape, SlotRead, Slots, SlotWrite
from oram.kernels.base import (
    COUNTER_BITS,
    EMPTY,
    RING_SEED,
    KernelSet,
    Keys,
    PoolFullError,
    Requests,
    RingPlan,
    RingState,
    RingWrite,
)
from oram.params import RingGeometry
from oram.schemes.base import Access, Outcome, Reader
from oram.schemes.pool import PoolReplay, Requested, contents, fields, fill, overflow, place, relink, repeat
from oram.types import I64, U8, U32

_RECORD = struct.Struct(
    "<IIIQQQ"
)  # requests, buckets written anew, roots; clock after it; references of the first slot and metadata
ROWS = ("refs", "spent", "addr", "slot")  # arrays of the metadata, a row a bucket
SCAN_BYTES = 8 << 20  # of slots a round trip


@dataclass(frozen=True, slots=True)
class Record:
    """A journal record, as arrays."""

    clock: int
    first_slot: int
    first_meta: int
    seed: U8
    requests: Requested
    path: U32
    online: I64
    rewritten: I64
    addr: U32
    slot: npt.NDArray[np.uint16]
    roots: I64


class RingORAM:
    """An oblivious array over one tree of buckets with dummies.

    Cost: a batch of m reads one slot a level and request, and what falls due: an eviction (all buckets of a path) every A accesses, and buckets that
    were read S times. One round trip to read, two with metadata="server", and one to write, where there is something to write.
    Leaks: m, and m uniform leaves that are independent of the requests; which slots of a bucket are read is a uniform choice.
    Source: algorithms 1 to 4 of the paper.
    """

    shards = 1
    whole = True

    def __init__(
        self,
        geometry: RingGeometry,
        region: str,
        meta_region: str,
        kernels: KernelSet,
        keys: Keys,
        position: U32,
        pool_size: int | None = None,
        *,
        xor: bool = False,
    ) -> None:
        self.geometry, self.region, self.meta_region, self.xor = geometry, region, meta_region, xor
        self.capacity, self.block_size, self.max_batch = geometry.N, geometry.B, geometry.max_batch
        m = max(1024, self.max_batch)
        self.max_pages = (m + geometry.evictions(m)) * geometry.levels * (geometry.n + 1)
        self._server = geometry.metadata == "server"
        self._keys = keys
        self._kernel = kernels.ring(geometry, RingState.empty(geometry, position, pool_size), keys)

    @property
    def state(self) -> RingState:
        """The client's arrays."""
        return self._kernel.state

    def regions(self) -> dict[str, RegionShape]:
        """Slots, and metadata where it is the server's."""
        g = self.geometry
        regions = {self.region: RegionShape(g.slots, g.slot_size)}
        return {**regions, self.meta_region: RegionShape(g.buckets, g.meta_size)} if self._server else regions

    def requests(self, m: int) -> Requests:
        """Buffers for a batch of m."""
        return self._kernel.requests(m)

    # --- the access

    def access(self, requests: Requests) -> Access:
        """ReadPath for each request, with what EvictPath and EarlyReshuffle fetch after it; then all of their writes."""
        kernel, grown = self._kernel, False
        buckets = kernel.buckets(requests)
        if self._server:
            kernel.load((yield SlotRead(self.meta_region, buckets)))
        plan = kernel.plan(requests)
        slots = yield self._read(plan)
        first_slot = self._keys.current << COUNTER_BITS | self._keys.counter
        while True:
            try:
                written = kernel.access(requests, plan, slots)
                break
            except PoolFullError:  # far above the paper's bound; no block is ever dropped
                kernel.state, grown = kernel.state.grown(), True
                kernel.buckets(requests)
                plan = kernel.plan(requests)  # the same plan, in the kernel's new memory
        writes = [SlotWrite(self.region, self._slots_of(plan.rewritten), written.data)] if plan.rewritten.size else []
        first_meta, roots = 0, buckets[:0]
        if self._server:
            first_meta = self._keys.current << COUNTER_BITS | self._keys.counter
            roots = buckets[buckets < self.geometry.first]
            writes.append(SlotWrite(self.meta_region, buckets, kernel.store()))
        return Outcome(writes, self._record(requests, plan, written, first_slot, first_meta, roots), grown)

    def _read(self, plan: RingPlan) -> SlotRead:
        if self.xor:
            return SlotRead(self.region, plan.fetched.reshape(-1), plan.online)
        online = plan.online.reshape(-1)
        return SlotRead(self.region, np.concatenate([online[online >= 0], plan.fetched.reshape(-1)]))

    def _slots_of(self, buckets: I64) -> I64:
        n = self.geometry.n
        return (buckets[:, np.newaxis] * n + np.arange(n)).reshape(-1)

    def access_in_place(self, requests: Requests, buffer: Callable[[str], Slots]) -> None:
        """The same over the backend's own memory."""
        region, metadata = buffer(self.region), buffer(self.meta_region) if self._server else None
        while True:
            try:
                return self._kernel.access_in_place(requests, region, metadata)
            except PoolFullError:
                self._kernel.state = self._kernel.state.grown()

    # --- the journal

    def record_size(self, requests: Requests) -> int:
        """Bytes of a record where every bucket on the paths is written anew."""
        g, m = self.geometry, requests.m
        buckets = (m + g.evictions(m)) * g.levels
        rows = (
            4 * g.Z * buckets + 8 * min(buckets, g.first)
            if self._server
            else 2 * m * g.levels + buckets * (8 + 6 * g.Z)
        )
        return _RECORD.size + RING_SEED + m * (17 + g.B) + rows

    def _record(
        self, requests: Requests, plan: RingPlan, written: RingWrite, first_slot: int, first_meta: int, roots: I64
    ) -> bytes:
        m, n = requests.m, self.geometry.n
        parts: list[npt.NDArray[Any]] = [
            requests.seed,
            requests.where[:m],
            requests.addresses[:m],
            requests.draws[:m],
            plan.path,
            requests.pool[:m],
            requests.after[:m],
        ]
        if self._server:
            parts += [written.addr, roots]
        else:  # what changes in the rows; those of the server are in its metadata
            online = np.where(plan.online < 0, n, plan.online % n).astype("<u2")
            parts += [online, plan.rewritten, written.addr, written.slot]
        clock = int(self._kernel.state.clock[0])
        head = _RECORD.pack(m, plan.rewritten.size, roots.size, clock, first_slot, first_meta)
        return head + b"".join(part.tobytes() for part in parts)

    def _parse(self, record: bytes) -> Record:
        g = self.geometry
        m, rewritten, roots, clock, first_slot, first_meta = _RECORD.unpack_from(record)
        there = 0 if self._server else 1  # whether the rows are the client's
        layout = [
            ("u1", RING_SEED), ("u1", m), ("<u4", m), ("<u4", m), ("<u4", m), ("<u4", m), ("u1", m * g.B),
            ("<u2", there * m * g.levels), ("<i8", there * rewritten), ("<u4", rewritten * g.Z),
            ("<u2", there * rewritten * g.Z), ("<i8", roots),
        ]  # fmt: skip
        seed, where, addresses, draws, path, pool, after, online, buckets, addr, slot, tops = fields(
            record, _RECORD.size, layout
        )
        return Record(
            clock, first_slot, first_meta, seed, Requested(where, addresses, draws, pool, after.reshape(m, g.B)), path,
            online.astype(np.int64).reshape(-1, g.levels), buckets, addr.reshape(-1, g.Z), slot.reshape(-1, g.Z), tops,
        )  # fmt: skip

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Positions, clock, metadata or the references to it, and the pool's addresses and blocks."""
        state = self._kernel.state
        rows = [state.roots] if self._server else [getattr(state, name) for name in ROWS]
        return [state.position, state.clock, *rows, state.pool_addr, state.pool_data]

    def grow(self, rows: int) -> None:
        """Make the pool at least so long."""
        while self._kernel.state.pool_addr.size < rows:
            self._kernel.state = self._kernel.state.grown()

    def replay(self, records: Iterable[bytes]) -> None:
        """Each record says absolute things, so the last word stands."""
        pool = PoolReplay(self._kernel.state)
        for record in map(self._parse, records):
            state = pool.state
            if self._server:
                state.roots[record.roots] = np.arange(record.first_meta, record.first_meta + record.roots.size)
            else:
                self._replay_rows(state, record)
            state.clock[0] = record.clock
            pool.apply(self.geometry.leaves, record.requests, record.addr)
        self._relink(pool.state)

    def _relink(self, state: RingState) -> None:
        relink(state, self.geometry.L - self.geometry.T)
        self._kernel.state = state

    def _replay_rows(self, state: RingState, record: Record) -> None:
        g = self.geometry
        levels = np.arange(g.T, g.L + 1)
        buckets = (1 << levels) + (record.path.astype(np.int64)[:, np.newaxis] >> (g.L - levels)) - g.first
        read = record.online < g.n
        slot = record.online[read]
        bits = np.uint64(1) << (slot % 64).astype(np.uint64)
        np.bitwise_or.at(state.spent, (buckets[read], slot // 64), bits)
        rows = record.rewritten
        state.refs[rows] = record.first_slot + np.arange(rows.size) * g.n
        state.spent[rows], state.addr[rows], state.slot[rows] = 0, record.addr, record.slot

    def redo(self, record: bytes) -> Requests:
        """The same look-ups and dummies on the state before it, with the values it left behind."""
        old = self._parse(record)
        requests = repeat(self.requests(old.path.size), old.requests)
        requests.seed[:] = old.seed
        return requests

    # --- scan and bulk load

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        """All metadata where it is the server's, all slots in index order, and then the pool."""
        g, state = self.geometry, self._kernel.state
        rows = self._all_rows(read) if self._server else {name: getattr(state, name) for name in ROWS}
        step = max(1, SCAN_BYTES // (g.n * g.slot_size))
        for first in range(0, g.buckets, step):
            buckets = np.arange(first, min(first + step, g.buckets))
            slots, refs = self._slots_of(buckets), rows["refs"][buckets]
            written = refs[:, np.newaxis] != 0
            of_slot = np.where(written, refs[:, np.newaxis] + np.arange(g.n, dtype=np.uint64), np.uint64(0))
            sealed = read(SlotRead(self.region, slots))
            blocks = self._kernel.open_slots(slots, of_slot.reshape(-1), sealed).reshape(-1, g.n, g.B)
            addr, at = rows["addr"][buckets], rows["slot"][buckets].astype(np.int64)
            words = np.take_along_axis(rows["spent"][buckets], at // 64, 1)
            spent = words >> (at % 64).astype(np.uint64) & np.uint64(1)
            b, z = np.nonzero(written & (addr != EMPTY) & (spent == 0))
            yield addr[b, z].astype(np.int64), blocks[b, at[b, z]]
        yield contents(state)

    def _all_rows(self, read: Reader) -> dict[str, npt.NDArray[Any]]:
        """The server's metadata, level by level, so that each bucket's reference is at hand when it is its turn."""
        g, refs = self.geometry, self._kernel.state.roots
        found: list[dict[str, npt.NDArray[Any]]] = []
        step = max(1, SCAN_BYTES // g.meta_size)
        for level in range(g.T, g.L + 1):
            start, below = (1 << level) - g.first, []
            for first in range(0, 1 << level, step):
                buckets = np.arange(first, min(first + step, 1 << level)) + start
                metadata = read(SlotRead(self.meta_region, buckets))
                rows = self._kernel.open_rows(buckets, refs[first : first + step], metadata)
                below.append(rows["children"].reshape(-1))
                found.append(rows)
            refs = np.concatenate(below)
        return {name: np.concatenate([rows[name] for rows in found]) for name in ROWS}

    def build(self, addresses: I64, blocks: U8) -> Iterator[SlotWrite]:
        """Place every block as low as its path has room, then write every slot once, and all metadata."""
        g, state = self.geometry, self._kernel.state
        addr = addresses.astype(np.uint32)
        source = np.full((g.buckets, g.Z), -1, np.int64)
        for level, rows, bucket, rank in place(state.position[addr], g.L, g.T, g.Z):
            if level < 0:
                state = fill(state, rows, addr, blocks)
            else:
                source[bucket + (1 << level) - g.first, rank] = rows
        self._relink(state)
        base = self._keys.current << COUNTER_BITS | self._keys.counter
        rows_of = RingState.rows(g, g.buckets)
        step = max(1, SCAN_BYTES // (g.n * g.slot_size))
        for first in range(0, g.buckets, step):
            buckets = np.arange(first, min(first + step, g.buckets))
            coins = np.frombuffer(os.urandom(8 * buckets.size * g.n), np.uint64).reshape(-1, g.n)
            order = np.argsort(coins, axis=1)[:, : g.Z]  # a random slot for each block
            content = np.full((buckets.size, g.n), -1, np.int64)
            np.put_along_axis(content, order, source[buckets], 1)
            slots = self._slots_of(buckets)
            rows_of["refs"][buckets] = base + buckets * g.n
            rows_of["addr"][buckets] = np.where(
                source[buckets] < 0, EMPTY, addr[source[buckets]] if addr.size else EMPTY
            )
            rows_of["slot"][buckets] = order
            yield SlotWrite(self.region, slots, self._kernel.seal_slots(slots, content.reshape(-1), blocks))
        if self._server:
            yield from self._build_metadata(rows_of)
        else:
            for name in ROWS:
                getattr(self._kernel.state, name)[:] = rows_of[name]

    def _build_metadata(self, rows: dict[str, npt.NDArray[Any]]) -> Iterator[SlotWrite]:
        """Sealed in the order of the buckets, so that the references to them are known beforehand."""
        g = self.geometry
        base = self._keys.current << COUNTER_BITS | self._keys.counter
        inner = np.arange((1 << g.L) - g.first)
        rows["children"][inner] = base + (2 * (inner + g.first) - g.first)[:, np.newaxis] + np.arange(2)
        step = max(1, SCAN_BYTES // g.meta_size)
        for first in range(0, g.buckets, step):
            buckets = np.arange(first, min(first + step, g.buckets))
            part = {name: array[buckets] for name, array in rows.items()}
            yield SlotWrite(self.meta_region, buckets, self._kernel.seal_rows(buckets, part))
        self._kernel.state.roots[:] = base + np.arange(g.first)

    # --- the stash

    @property
    def turn(self) -> int:
        """A number that is another one after each access."""
        return int(self._kernel.state.clock[0])

    @property
    def stash_size(self) -> int:
        """What would overflow the cached levels: with T=0 the paper's stash exactly, else never more than it. Secret. Cost: O(pool), no access."""
        g = self.geometry
        return overflow(self._kernel.state, g.Z, g.T, g.L - g.T)
