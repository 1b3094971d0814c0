"""Ring ORAM in C."""

from __future__ import annotations

from typing import Any

import numpy as np

from oram.backends.base import Slots
from oram.kernels._native import ffi, lib
from oram.kernels.base import RING_SEED, Keys, Requests, RingPlan, RingState, RingWrite
from oram.kernels.native.cipher import NativeKeys, NoRoomError
from oram.kernels.native.memory import NativeRequests, attach_pool, pointer, writable
from oram.params import RingGeometry
from oram.types import I64, U8, U64

_NOTHING = -1, -1, -1  # requests, buckets and rewritten buckets that the scratch memory is of
ROWS = {
    "refs": "uint64_t[]",
    "spent": "uint64_t[]",
    "addr": "uint32_t[]",
    "slot": "uint16_t[]",
    "children": "uint64_t[]",
}


class NativeRing:
    """Ring ORAM in C."""

    def __init__(self, geometry: RingGeometry, state: RingState, keys: Keys) -> None:
        assert isinstance(keys, NativeKeys)
        self._geometry, self._keys = geometry, keys
        g = geometry
        if min(g.Z, g.A, g.S) < 1 or g.n > lib.ORAM_MAX_BUCKET or not 0 <= g.T <= g.L <= 32:
            raise ValueError("no geometry that the kernel can work with")
        self._struct = ffi.new(
            "oram_ring *",
            {
                "Z": g.Z, "A": g.A, "S": g.S, "L": g.L, "T": g.T, "W": g.words, "B": g.B, "N": g.N,
                "windowed": g.metadata == "server",
            },
        )  # fmt: skip
        coins = lib.oram_coins_new()
        if coins == ffi.NULL:
            raise RuntimeError("libcrypto offers no AES-256-CTR here")
        self._struct.coins = self._coins = ffi.gc(coins, lib.oram_coins_free)
        self._row_type = RingState.row_type(g)
        self._c_count = ffi.new("uint32_t *")
        self._state = state
        self._attached: RingState | None = None
        self._reserve(1)

    def _attach(self, state: RingState) -> None:
        c = self._struct
        fixed = {"position": "uint32_t[]", "clock": "uint64_t[]", "roots": "uint64_t[]"}
        pointers = {name: writable(kind, getattr(state, name)) for name, kind in {**ROWS, **fixed}.items()}
        attach = attach_pool(c.pool, state)
        self._attached = (
            None  # a signal may come between any two lines; until the last one C's counters are not the state's
        )
        self._state = state
        c.position, c.clock, c.roots = pointers["position"], pointers["clock"], pointers["roots"]
        c.refs, c.spent, c.addr, c.slot = pointers["refs"], pointers["spent"], pointers["addr"], pointers["slot"]
        c.children = pointers["children"]
        attach()
        self._pointers = pointers, attach  # keeps their memory
        self._attached = state

    @property
    def state(self) -> RingState:
        """The arrays, with the pool's counters brought up to date."""
        if self._attached is self._state:
            self._state.free, self._state.used = self._struct.pool.free, self._struct.pool.used
        return self._state

    @state.setter
    def state(self, state: RingState) -> None:
        self._capacity = -1  # as in _reserve
        self._attach(state)
        self._make_scratch()  # the requests stay: a batch that found the pool full is still in them

    def _reserve(self, m: int) -> None:
        self._capacity = -1  # C may not run before all memory is there, whatever interrupts us
        self._requests = NativeRequests(m, self._geometry.B, RING_SEED)
        g, state = self._geometry, self.state
        if g.metadata == "server":
            for name, rows in RingState.rows(g, int(lib.oram_ring_most(self._struct, m))).items():
                setattr(state, name, rows)
        self._attach(state)
        self._make_scratch()

    def _make_scratch(self) -> None:
        g, m = self._geometry, self._requests.capacity
        most = int(lib.oram_ring_most(self._struct, m))
        self._planned = _NOTHING  # of what is in scratch
        self._path, self._online = np.zeros(m, np.uint32), np.zeros((m, g.levels), np.int64)
        self._number, self._rewritten = np.zeros(most, np.int64), np.zeros(most, np.int64)
        self._fetched = np.zeros((most, g.Z), np.int64)
        self._c_path, self._c_online = pointer("uint32_t[]", self._path), pointer("int64_t[]", self._online)
        self._c_number, self._c_rewritten = pointer("uint64_t[]", self._number), pointer("uint64_t[]", self._rewritten)
        self._c_fetched = pointer("uint64_t[]", self._fetched)
        self._scratch = np.zeros(lib.oram_ring_scratch(self._struct, m) // 8 + 1, np.uint64)
        self._c_scratch = pointer("uint8_t[]", self._scratch)
        self._make_desk(2 * g.levels)
        self._regions: tuple[Slots, Slots | None] | None = None  # whose pointers are in _in_place
        self._capacity = m

    def _make_desk(self, buckets: int) -> None:
        """Memory for the content of so many fetched buckets: only the plan says how many there are."""
        desk = np.zeros(buckets * self._geometry.Z * self._geometry.B, np.uint8)
        self._c_desk, self._desk_size = pointer("uint8_t[]", desk), buckets

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._capacity:
            self._reserve(max(m, 1, min(2 * self._capacity, self._geometry.max_batch)))
        self._requests.m, self._planned = m, _NOTHING
        return self._requests

    def _check(self, requests: Requests) -> None:
        if requests is not self._requests or not 0 <= requests.m <= self._capacity:
            raise ValueError("these requests are not the kernel's, or have outgrown it")

    def _check_metadata(self) -> None:
        if not self._struct.windowed or self._planned[0] != self._requests.m:
            raise ValueError("no buckets of these requests, or no metadata at the server")

    # --- the steps

    def _buckets(self) -> int:
        r = self._requests
        return int(
            lib.oram_ring_buckets(
                self._struct, r.m, r.c_ops, r.c_addresses, r.c_draws, self._c_path, self._c_number, self._c_scratch
            )
        )

    def _plan(self) -> int:
        r = self._requests
        count = int(
            lib.oram_ring_plan(
                self._struct, r.m, r.c_addresses, r.c_seed, self._c_online, self._c_rewritten,
                self._c_fetched, self._c_scratch,
            )
        )  # fmt: skip
        if count < 0:
            raise RuntimeError("the cipher failed, or the state is not sound")
        if count > self._desk_size:
            self._make_desk(count)
        return count

    def buckets(self, requests: Requests) -> I64:
        """The buckets whose metadata the batch needs."""
        self._check(requests)
        buckets = self._buckets()
        self._planned = requests.m, buckets, -1
        return self._number[:buckets].copy()

    def load(self, metadata: Slots) -> None:
        """Open their metadata."""
        self._check_metadata()
        self._shaped(metadata, self._planned[1], self._geometry.meta_size)
        self._keys.run(
            lib.oram_ring_load, self._struct, self._keys.struct, self._requests.m, pointer("uint8_t[]", metadata.data),
            pointer("uint8_t[]", metadata.present), 0, self._c_scratch,
        )  # fmt: skip

    def plan(self, requests: Requests) -> RingPlan:
        """Which slots the batch reads."""
        self._check(requests)
        m, buckets, _ = self._planned
        if m != requests.m:
            raise ValueError("`buckets` comes first")
        count = self._plan()
        self._planned = m, buckets, count
        return RingPlan(
            self._path[:m].copy(),
            self._online[:m].copy(),
            self._rewritten[:count].copy(),
            self._fetched[:count].copy(),
        )

    def _shaped(self, slots: Slots, n: int, size: int) -> None:
        if slots.data.shape != (n, size) or slots.present.shape != (n,):
            raise ValueError("another plan, or slots of another shape")

    def access(self, requests: Requests, plan: RingPlan, slots: Slots) -> RingWrite:
        """Open, serve, evict, reshuffle and seal."""
        self._check(requests)
        g, r, count = self._geometry, self._requests, plan.rewritten.size
        online = 0 if slots.folded is not None else int(np.count_nonzero(self._online[: r.m] >= 0))
        m, buckets, planned = self._planned
        if m != r.m or count != planned or plan.online.shape != (m, g.levels):
            raise ValueError("another plan")
        self._shaped(slots, online + count * g.Z, g.slot_size)
        if slots.folded is not None and slots.folded.shape != (r.m, g.slot_size):
            raise ValueError("another plan, or slots of another shape")
        data = np.empty((count * g.n, g.slot_size), np.uint8)
        addr, slot = np.empty((count, g.Z), np.uint32), np.empty((count, g.Z), np.uint16)
        folded = ffi.NULL if slots.folded is None else pointer("uint8_t[]", slots.folded)
        self._keys.run(
            lib.oram_ring_access, self._struct, self._keys.struct, r.m, r.c_ops, r.c_addresses, r.c_draws, self._c_path,
            self._c_online, count, self._c_fetched, writable("uint8_t[]", slots.data), writable("uint8_t[]", slots.present),
            0, folded, r.c_data, r.c_out, self._c_desk, writable("uint8_t[]", data), ffi.NULL, ffi.NULL,
            writable("uint32_t[]", addr), writable("uint16_t[]", slot), r.c_where, r.c_pool, r.c_after, self._c_scratch,
        )  # fmt: skip
        self._planned = m, buckets, -1  # of the state before
        return RingWrite(data, addr, slot)

    def access_in_place(self, requests: Requests, region: Slots, metadata: Slots | None) -> None:
        """All of it over the regions' own memory; what changes anything is one call."""
        self._check(requests)
        if self._regions is None or self._regions[0] is not region or self._regions[1] is not metadata:
            self._shaped(region, self._geometry.slots, self._geometry.slot_size)
            meta: tuple[Any, Any] = ffi.NULL, ffi.NULL
            if (metadata is not None) != bool(self._struct.windowed):
                raise ValueError("metadata is given exactly where it is the server's")
            if metadata is not None:
                self._shaped(metadata, self._geometry.buckets, self._geometry.meta_size)
                meta = writable("uint8_t[]", metadata.data), writable("uint8_t[]", metadata.present)
            r = self._requests
            self._in_place = (
                r.c_ops, r.c_addresses, r.c_draws, r.c_seed, self._c_path, self._c_number, self._c_online, self._c_rewritten,
                self._c_fetched, writable("uint8_t[]", region.data), writable("uint8_t[]", region.present), *meta, r.c_data, r.c_out,
            )  # fmt: skip
            self._regions = region, metadata
        self._planned = _NOTHING  # its scratch is used
        while True:
            try:
                return self._keys.run(
                    lib.oram_ring_in_place, self._struct, self._keys.struct, requests.m, *self._in_place, self._c_desk,
                    self._desk_size, self._c_count, self._c_scratch,
                )  # fmt: skip
            except NoRoomError:
                self._make_desk(int(self._c_count[0]))

    def store(self) -> U8:
        """Seal the metadata of the batch's buckets."""
        self._check_metadata()
        sealed = np.empty((self._planned[1], self._geometry.meta_size), np.uint8)
        self._keys.run(
            lib.oram_ring_store, self._struct, self._keys.struct, self._requests.m, writable("uint8_t[]", sealed),
            ffi.NULL, 0, self._c_scratch,
        )  # fmt: skip
        return sealed

    # --- bulk

    def _open(self, size: int, slots: I64, refs: U64, sealed: Slots) -> U8:
        self._shaped(sealed, slots.size, size + 16)
        if refs.shape != slots.shape:
            raise ValueError("a reference for each slot")
        plain = np.empty((slots.size, size), np.uint8)
        self._keys.run(
            lib.oram_open_slots, self._keys.struct, slots.size, size, pointer("uint64_t[]", slots), pointer("uint64_t[]", refs),
            pointer("uint8_t[]", sealed.data), pointer("uint8_t[]", sealed.present), writable("uint8_t[]", plain),
        )  # fmt: skip
        return plain

    def _seal(self, size: int, slots: I64, source: I64, rows: U8) -> U8:
        if source.shape != slots.shape or source.max(initial=-1) >= rows.size // size:
            raise ValueError("a row for each slot")
        sealed = np.empty((slots.size, size + 16), np.uint8)
        self._keys.run(
            lib.oram_seal_slots, self._keys.struct, slots.size, size, pointer("uint64_t[]", slots),
            pointer("int64_t[]", source), pointer("uint8_t[]", rows), writable("uint8_t[]", sealed),
        )  # fmt: skip
        return sealed

    def open_slots(self, slots: I64, refs: U64, sealed: Slots) -> U8:
        """Blocks in clear."""
        return self._open(self._geometry.B, slots, refs, sealed)

    def seal_slots(self, slots: I64, source: I64, blocks: U8) -> U8:
        """Seal given content."""
        return self._seal(self._geometry.B, slots, source, blocks)

    def open_rows(self, buckets: I64, refs: U64, sealed: Slots) -> dict[str, Any]:
        """Metadata in clear."""
        g = self._geometry
        plain = self._open(g.meta_plain, g.slots + buckets, refs, sealed).reshape(-1).view(self._row_type)
        return {name: np.ascontiguousarray(plain[name]) for name in self._row_type.names or ()}

    def seal_rows(self, buckets: I64, rows: dict[str, Any]) -> U8:
        """Seal metadata."""
        g = self._geometry
        plain = RingState.packed(g, rows)
        return self._seal(g.meta_plain, g.slots + buckets, np.arange(buckets.size), plain.view(np.uint8))
