"""Cuckoo ORAM in C."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import Slots
from oram.errors import StashOverflowError
from oram.kernels._native import ffi, lib
from oram.kernels.base import ABSENT, EMPTY, OLD, CuckooPlan, CuckooState, CuckooWrite, Keys, Requests
from oram.kernels.native.cipher import NoRoomError
from oram.kernels.native.hierarchy import SEED, NativeHierarchy
from oram.kernels.native.memory import C_TYPES, Lent, NativeRequests, writable
from oram.params import CuckooGeometry, Table
from oram.params.cuckoo import CHUNK_STASH, MAX_BLOCKS, STASH, LevelShape
from oram.types import I64, U32

LEFT = 4 * STASH  # blocks that all tables leave over together: the mean is below one
KEPT = 4096  # entries of a table whose memory for a placement is kept for the next one
#: What a batch takes, by the field that counts it: the arrays, and their items each.
ROOMS = {
    "read": {"from": ("i4", 1)},
    "fetch": {"slot": ("i8", 1), "epoch": ("i8", 1)},
    "probe": {"probe": ("i8", 2)},
    "write": {"to": ("u4", 1)},
    "distinct": {"written": ("i8", 1), "sealed_as": ("i8", 1)},
}
COUNTS = {"read": "reads", "fetch": "fetches", "probe": "probes", "write": "writes", "distinct": "distinct"}


class NativeCuckoo(NativeHierarchy[CuckooState, CuckooGeometry]):
    """Cuckoo ORAM in C."""

    builds = "builds", "oram_cuckoo_build[]"
    spare = LEFT
    most = MAX_BLOCKS
    fields = {"clock": "u8", "code": "u2", "log_addr": "u4", "log_code": "u2", "page_addr": "u4", "page_data": "u1"}
    c_pairs = lib.oram_cuckoo_pairs

    def __init__(self, geometry: CuckooGeometry, state: CuckooState, keys: Keys, hash_key: bytes) -> None:
        g = geometry
        self._large = set[int]()
        super().__init__(geometry, state, keys, hash_key, log_size=g.log_size, each=-(-g.N // (g.c << g.L)))
        self._region: Slots | None = None  # whose pointers are in _in_place
        self._reserve(1)
        self.forget(cold=False)

    # --- memory

    def _level(self, level: int) -> Any:
        places = super()._level(level)
        first = 1 + min(self._first_write(level, built) for built in (False, True))
        self._levels[level].steps = max(1, 3 * first // 4)  # what was read by then finds its place in the rest
        return places

    def _width(self, shape: LevelShape) -> int:
        return shape.width

    def _first_write(self, level: int, built: bool) -> int:
        """The first access of a rebuild that writes: by then it must be placed."""
        g = self._geometry
        work = g.work(Table(level, 1 << level), built)
        low, high = 0, g.duration(level) - 1
        while low < high:
            middle = (low + high) // 2
            parts = work.parts(middle)
            if parts and parts[-1].segment > 0:
                high = middle
            else:
                low = middle + 1
        return low

    def _share(self, levels: range) -> None:
        """Memory of the rebuilds of levels in a row, of which only one is ever under way."""
        g = self._geometry
        shapes = [g.levels[level] for level in levels]
        hands = [
            s.n if s.b == 1 else s.b * max(s.r, CHUNK_STASH) + CHUNK_STASH for s in shapes
        ]  # no segment holds more
        contents = [max(s.b * s.r + CHUNK_STASH, 2 * s.width) if s.b > 1 else 2 * s.m for s in shapes]
        own = g.c + LEFT
        arrays = [
            ("kind", "u1", max(s.n for s in shapes)), ("mine", "u4", own), ("mine_at", "u4", own), ("left", "u4", STASH),
            ("hand_addr", "u4", max(hands)), ("hand", "u1", max(hands) * g.B), ("content", "u4", max(contents)),
            ("fill", "u4", max(s.b for s in shapes)), ("stash", "u4", STASH),
        ]  # fmt: skip
        self._point(levels, arrays)
        if levels[-1] > 0:
            of_members = [("member", "u8", -(-g.N // 64)), ("rank", "u4", g.N // 512 + 1)]
            self._point(range(max(1, levels[0]), levels[-1] + 1), of_members)
        for level, hand, content in zip(levels, hands, contents, strict=True):
            self._builds[level].hands, self._builds[level].contents = hand, content
        if levels[0] == 0:
            self._lent[0].lend("list", np.zeros(g.c, np.uint32), "uint32_t[]")

    def _lend(self, level: int) -> None:
        """Memory for a placement."""
        lent, shape = self._lent[level], self._geometry.levels[level]
        if self._builds[level].both == ffi.NULL:
            if shape.n > KEPT:
                self._large.add(level)
            lent.lend("full", np.empty(2 * shape.m, np.uint8), "uint8_t[]")
            lent.lend("root", np.empty(2 * shape.m, np.uint32), "uint32_t[]")
            lent.lend("both", np.empty(shape.n, np.uint32), "uint32_t[]")

    def _take_back(self) -> None:
        """Memory of placements that are done, where it is much."""
        for level in list(self._large):
            build = self._builds[level]
            if build.placed or not build.active:
                self._lent[level].take_back("both", "root", "full")
                self._large.discard(level)

    def _begin_soon(self, m: int) -> None:
        """Memory for the rebuilds that begin with the next m accesses."""
        g, clock = self._geometry, self._clock
        for flush in range(-(-clock // g.c), (clock + m - 1) // g.c + 1):
            if flush > 0:
                self._lend(g.target(flush))

    def _reserve(self, m: int) -> None:
        self._capacity = -1  # C may not run before all memory is there, whatever interrupts us
        self._requests = NativeRequests(m, self._geometry.B, SEED)
        self._batch = ffi.new("oram_cuckoo_batch *")
        self._memory = Lent(self._batch)
        for field, dtype in {"count": "u4", "real": "i4", "home": "i4", "after": "u4"}.items():
            self._memory.lend(field, np.zeros(m, dtype), C_TYPES[dtype])
        last = 1 << m.bit_length()
        self._batch.last_mask = 2 * last - 1
        self._memory.lend("last", np.zeros(2 * last, np.int32), "int32_t[]")
        self._before = np.zeros(m, np.uint16)
        self._c_before = writable("uint16_t[]", self._before)
        for room in ROOMS:
            self._make_room(room, 64 * m + 64)
        self._planned = -1
        self._capacity = m

    def _make_room(self, room: str, size: int) -> None:
        setattr(self._batch, f"{room}_room", 0)
        for field, (dtype, each) in ROOMS[room].items():
            self._memory.lend(field, np.empty(size * each, dtype), C_TYPES[dtype])
        if room == "fetch":
            desk = np.empty(size * (4 + self._geometry.B), np.uint8)
            self._desk = writable("uint8_t[]", desk)
        if room == "distinct":
            written = np.empty(size * self._geometry.slot_size, np.uint8)
            self._written = writable("uint8_t[]", written)
            table = (
                1 if self._requests.capacity == 1 else 2 << size.bit_length()
            )  # alone, a request reads nothing that it writes
            self._batch.known_mask = 0
            self._memory.lend("known", np.empty(table, np.int32), "int32_t[]")
            self._batch.known_mask = table - 1
        setattr(self._batch, f"{room}_room", size)

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        requests, self._planned = self._grown(m), -1
        return requests

    # --- the index

    def _home(self, code: int) -> Table | None:
        """The table that has the live copy of a block that is there; None: a top buffer."""
        g, clock = self._geometry, self._clock
        if code == OLD:
            return g.bottom(clock, self._built)
        now = clock // g.c
        return g.home(now - (now - (code - 2)) % g.code_cycle, clock, self._built)

    def live(self, table: Table, addr: U32) -> npt.NDArray[np.bool_]:
        """Which of these addresses, found in a table, are there and not in a newer one."""
        codes = np.where(addr == EMPTY, ABSENT, self._state.code[np.where(addr == EMPTY, 0, addr)])
        here = [code for code in np.unique(codes).tolist() if code != ABSENT and self._home(code) == table]
        return np.isin(codes, here)

    def rows(self) -> dict[int, tuple[int, int]]:
        """Page and row of each block whose live copy is in a top buffer."""
        g, state, clock, found = self._geometry, self._state, self._clock, dict[int, tuple[int, int]]()
        now = clock // g.c
        for flush in range(max(0, now - g.duration(g.L) // g.c - 1), now + 1):
            if flush < now and g.home(flush, clock, self._built) is not None:
                continue
            page, code = g.page(flush), 2 + flush % g.code_cycle
            for row, addr in enumerate(state.page_addr[page, : clock % g.c if flush == now else g.c].tolist()):
                if addr != EMPTY and state.code[addr] == code:
                    found[addr] = page, row
        return found

    # --- after an opening

    def forget(self, *, cold: bool = True) -> None:
        """The state was loaded anew: forget what lies outside it."""
        self._cold, self._planned = cold, -1
        self._stash_of[:] = -1
        for build in self._builds:
            build.active = 0
        self._take_back()

    def resumed(self, slots: Slots) -> None:
        """Put what was read where it was."""
        g, clock, state = self._geometry, self._clock, self._state
        addr, blocks = self.open_slots(*self.resume(), slots)
        self.forget()
        at = 0
        for table in g.alive(clock, self._built):
            self._put(lib.oram_cuckoo_stash, addr, blocks, at, STASH, table.level, table.epoch, STASH)
            at += STASH
        for table, work, part in g.in_hand(clock, self._built):
            self._lend(table.level)
            self._run(
                lib.oram_cuckoo_begin, self._struct, table.level, table.epoch, writable("uint16_t[]", state.code.copy())
            )
            if part is not None:
                low = work.begin(part.segment) + part.first
                n = part.last - part.first
                self._put(lib.oram_cuckoo_again, addr, blocks, at, n, table.level, low, low + n)
                at += n
        self._take_back()
        self._cold = False

    # --- the steps

    def _plan(self, requests: Requests) -> None:
        self._check(requests)
        r, q = self._requests, self._batch
        self._warm()
        while True:
            try:
                self._keys.run(
                    lib.oram_cuckoo_plan, self._struct, r.m, r.c_ops, r.c_addresses, r.c_seed, q,
                )  # fmt: skip
                break
            except NoRoomError:
                for room, count in COUNTS.items():
                    if (size := getattr(q, count)) > getattr(q, f"{room}_room"):
                        self._make_room(room, size + size // 4)
        self._planned = r.m

    def plan(self, requests: Requests) -> CuckooPlan:
        """Which slots the batch reads."""
        self._plan(requests)
        q, memory = self._batch, self._memory
        slots, epochs = memory.array("slot")[: q.fetches].copy(), memory.array("epoch")[: q.fetches].copy()
        return CuckooPlan(slots, epochs, memory.array("probe")[: 2 * q.probes].reshape(-1, 2).copy())

    def access(self, requests: Requests, plan: CuckooPlan, slots: Slots) -> CuckooWrite:
        """Open, serve, work at the rebuilds and seal."""
        self._check(requests)
        r, q, size = self._requests, self._batch, self._geometry.slot_size
        if self._planned != r.m or plan.slots.size != q.fetches:
            raise ValueError("another plan")
        self._shaped(slots, q.fetches)
        data = np.empty((q.distinct, size), np.uint8)
        self._access(
            writable("uint8_t[]", slots.data), writable("uint8_t[]", slots.present), 0, writable("uint8_t[]", data)
        )
        return CuckooWrite(self._memory.array("written")[: q.distinct].copy(), data, self._before[: r.m].copy())

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """Plan and access over the region's own memory; what changes anything is one call."""
        if self._region is not region:
            self._shaped(region, self._geometry.slots)
            self._in_place = writable("uint8_t[]", region.data), writable("uint8_t[]", region.present)
            self._region = region
        self._plan(requests)
        self._access(*self._in_place, 1, self._written)

    def _access(self, sealed: Any, present: Any, in_place: int, written: Any) -> None:
        r = self._requests
        self._begin_soon(r.m)
        self._run(
            lib.oram_cuckoo_access, self._struct, self._keys.struct, self._batch, r.c_ops, r.c_addresses, sealed, present,
            in_place, self._desk, r.c_data, written, self._c_before, r.c_out, r.c_where, r.c_after,
        )  # fmt: skip
        self._planned = -1
        if self._large:
            self._take_back()

    # --- bulk

    def build(self, addr: U32) -> I64:
        """Place these blocks in a bottom of epoch 0."""
        g, table = self._geometry, Table(self._geometry.L, 0)
        shape = g.levels[g.L]
        cell = self._place(table, addr)
        source = np.full(shape.table, -1, np.int64)
        inside = np.flatnonzero(cell >= 0)
        source[cell[inside]] = inside
        rest = np.flatnonzero(cell < 0)
        if rest.size > STASH:
            raise StashOverflowError
        source[2 * shape.m : 2 * shape.m + rest.size] = rest
        self._state.code[addr] = OLD
        self._state.clock[1] = 1
        self.forget()
        return source

    def _place(self, table: Table, addr: U32) -> I64:
        """The cell of each of these addresses, -1 in the stash."""
        if addr.size > self._geometry.levels[table.level].n:
            raise ValueError("more addresses than entries")
        cell, lent = np.empty(addr.size, np.int64), self._lent[table.level]
        self._lend(table.level)
        lent.lend("list", np.ascontiguousarray(addr, np.uint32).copy(), "uint32_t[]")
        try:
            self._run(
                lib.oram_cuckoo_place, self._struct, table.level, table.epoch, addr.size, writable("int64_t[]", cell)
            )
        finally:
            lent.take_back("list")
            self._take_back()
        return cell


assert lib.ORAM_CUCKOO_CHUNK == CHUNK_STASH
