"""Cuckoo ORAM in C."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import Slots
from oram.errors import StashOverflowError
from oram.kernels._native import ffi, lib
from oram.kernels.base import ABSENT, EMPTY, OLD, CuckooPlan, CuckooState, CuckooWrite, Keys, Requests
from oram.kernels.native.cipher import NativeKeys, NoRoomError
from oram.kernels.native.memory import NativeRequests, pointer, writable
from oram.params import CuckooGeometry, Table
from oram.params.cuckoo import CHUNK_STASH, STASH, Part, Work
from oram.types import I64, U8, U32

SEED = 32  # bytes
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
C_TYPES = {"i4": "int32_t[]", "u4": "uint32_t[]", "i8": "uint64_t[]", "u1": "uint8_t[]", "u8": "uint64_t[]"}


class Lent:
    """Fields of a C struct that point into numpy's memory, which lives as long as this."""

    def __init__(self, struct: Any) -> None:
        self._struct, self._arrays = struct, dict[str, tuple[npt.NDArray[Any], Any]]()

    def lend(self, field: str, array: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
        """Let a field point to an array."""
        self.point(field, array, writable(kind, array))
        return array

    def point(self, field: str, array: npt.NDArray[Any], at: Any) -> None:
        """The same where the pointer is made."""
        setattr(self._struct, field, at)  # first: what C reads is alive, whatever interrupts us
        self._arrays[field] = array, at

    def take_back(self, *fields: str) -> None:
        """Let them point to nothing."""
        for field in fields:
            setattr(self._struct, field, ffi.NULL)
            self._arrays.pop(field, None)

    def array(self, field: str) -> npt.NDArray[Any]:
        """What a field points to."""
        return self._arrays[field][0]

    def nbytes(self) -> int:
        """Bytes that are lent."""
        return sum(array.nbytes for array, _ in self._arrays.values())


class NativeCuckoo:
    """Cuckoo ORAM in C."""

    def __init__(self, geometry: CuckooGeometry, state: CuckooState, keys: Keys, hash_key: bytes) -> None:
        assert isinstance(keys, NativeKeys)
        self._geometry, self._keys = geometry, keys
        g = geometry
        if not 1 <= g.L < lib.ORAM_CUCKOO_LEVELS or g.c < 8 or not 1 <= g.N <= g.c << g.L:
            raise ValueError("no geometry that the kernel can work with")
        if len(hash_key) != 32:
            raise ValueError("the key of the hash functions has 32 bytes")
        prf, coins = lib.oram_prf_new(hash_key), lib.oram_coins_new()
        if ffi.NULL in (prf, coins):
            raise RuntimeError("libcrypto offers no AES-256 here")
        self._prf, self._coins = ffi.gc(prf, lib.oram_prf_free), ffi.gc(coins, lib.oram_coins_free)
        self._levels, self._builds = ffi.new("oram_cuckoo_level[]", g.L + 1), ffi.new("oram_cuckoo_build[]", g.L + 1)
        self._struct = ffi.new(
            "oram_cuckoo *",
            {
                "N": g.N, "B": g.B, "c": g.c, "L": g.L, "log_size": g.log_size, "slots": g.slots,
                "each": -(-g.N // (g.c << g.L)), "levels": self._levels, "builds": self._builds, "prf": self._prf,
                "coins": self._coins, "stash": LEFT,
            },
        )  # fmt: skip
        self._places = [self._level(level) for level in range(g.L + 1)]
        self._stashes = Lent(self._struct)
        self._stash_of: npt.NDArray[np.int32] = self._stashes.lend("stash_of", np.full(LEFT, -1, np.int32), "int32_t[]")
        self._stashes.lend("stash_addr", np.zeros(LEFT, np.uint32), "uint32_t[]")
        self._stashes.lend("stash_data", np.zeros((LEFT, g.B), np.uint8), "uint8_t[]")
        self._lent = [Lent(self._builds[level]) for level in range(g.L + 1)]
        for first in range(0, g.L + 1, 3):
            self._share(range(first, min(first + 3, g.L + 1)))
        self.state = state
        self._nothing = Slots(np.zeros((0, g.slot_size), np.uint8), np.zeros(0, np.uint8))
        self._region: Slots | None = None  # whose pointers are in _in_place
        self._reserve(1)
        self.forget(cold=False)

    # --- memory

    def _level(self, level: int) -> Any:
        """Its constants."""
        g, c = self._geometry, self._levels[level]
        shape, c.duration = g.levels[level], g.duration(level)
        c.n, c.m, c.b, c.r, c.width = shape.n, shape.m, shape.b, shape.r, shape.width
        c.first, _ = g.passes(level)
        c.middle, c.stride = g.first_middle(level), stride(shape.m)
        first = 1 + min(self._first_write(level, built) for built in (False, True))
        c.steps = max(1, 3 * first // 4)  # what was read by then finds its place in the rest
        copies = range(g.L + 1) if level < g.L else range(2)
        places = ffi.new("uint64_t[]", [g.place(level, copy) if copy > level or level == g.L else 0 for copy in copies])
        c.place = places
        return places

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
        hands = [max(s.b * s.r + CHUNK_STASH, 2 * s.width, s.b * CHUNK_STASH) if s.b > 1 else s.n for s in shapes]
        contents = [max(s.b * s.r + CHUNK_STASH, 2 * s.width) if s.b > 1 else 2 * s.m for s in shapes]
        own = g.c + LEFT
        arrays = [
            ("kind", "u1", max(s.n for s in shapes)), ("mine", "u4", own), ("mine_at", "u4", own), ("left", "u4", STASH),
            ("hand_addr", "u4", max(hands)), ("hand", "u1", max(hands) * g.B), ("content", "u4", max(contents)),
            ("fill", "u4", max(s.b for s in shapes)), ("stash", "u4", STASH),
        ]  # fmt: skip
        if levels[-1] > 0:
            arrays += [("member", "u8", -(-g.N // 64)), ("rank", "u4", g.N // 512 + 1)]
        for field, dtype, size in arrays:
            array = np.zeros(size, dtype)
            at = writable(C_TYPES[dtype], array)
            for level in levels:
                if level > 0 or field not in ("member", "rank"):
                    self._lent[level].point(field, array, at)
        for level, hand, content in zip(levels, hands, contents, strict=True):
            self._builds[level].hands, self._builds[level].contents = hand, content
        if levels[0] == 0:
            self._lent[0].lend("list", np.zeros(g.c, np.uint32), "uint32_t[]")

    def _lend(self, level: int) -> None:
        """Memory for a placement."""
        lent, shape = self._lent[level], self._geometry.levels[level]
        if self._builds[level].both == ffi.NULL:
            lent.lend("full", np.empty(2 * shape.m, np.uint8), "uint8_t[]")
            lent.lend("root", np.empty(2 * shape.m, np.uint32), "uint32_t[]")
            lent.lend("both", np.empty(shape.n, np.uint32), "uint32_t[]")
            if shape.n > KEPT:
                self._large.add(level)

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

    @property
    def state(self) -> CuckooState:
        """The arrays."""
        return self._state

    @state.setter
    def state(self, state: CuckooState) -> None:
        lent = Lent(self._struct)
        kinds = {"clock": "uint64_t[]", "code": "uint16_t[]", "log_addr": "uint32_t[]", "log_code": "uint16_t[]"}
        for field, kind in {**kinds, "page_addr": "uint32_t[]", "page_data": "uint8_t[]"}.items():
            lent.lend(field, getattr(state, field), kind)
        self._state, self._pointers = state, lent
        self._large: set[int] = set()

    @property
    def _clock(self) -> int:
        return int(self._state.clock[0])

    @property
    def _built(self) -> bool:
        return bool(self._state.clock[1])

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

    def memory(self) -> int:
        """Bytes outside the state: for measurements."""
        arrays = {id(a): a.nbytes for lent in [*self._lent, self._stashes] for a, _ in lent._arrays.values()}
        return sum(arrays.values())

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._capacity:
            self._reserve(max(m, 1, min(2 * self._capacity, self._geometry.max_batch)))
        self._requests.m, self._planned = m, -1
        return self._requests

    def _check(self, requests: Requests) -> None:
        if requests is not self._requests or not 0 <= requests.m <= self._capacity:
            raise ValueError("these requests are not the kernel's, or have outgrown it")

    # --- hash functions and the index

    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        """The cells of these addresses in both tables of an epoch."""
        given, pairs = np.ascontiguousarray(addr, np.uint32), np.empty((addr.size, 2), np.int64)
        self._keys.run(
            lib.oram_cuckoo_pairs, self._struct, table.level, table.epoch, given.size, pointer("uint32_t[]", given),
            writable("int64_t[]", pairs),
        )  # fmt: skip
        return pairs

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

    def _in_hand(self) -> Iterator[tuple[Table, Work, Part | None]]:
        """For each rebuild under way: what of its segments has to be read again."""
        g, clock = self._geometry, self._clock
        for table in g.running(clock):
            work = g.work(table, self._built)
            last = work.position(clock - table.epoch * g.c)
            if last is None:
                continue
            segment = work.segments[last.segment]
            if segment.source < 0 or segment.kind == "middle":
                yield table, work, Part(last.segment, 0, last.last)
            elif last.last < segment.size or work.shape.b == 1:
                yield table, work, Part(segment.source, 0, work.segments[segment.source].size)
            else:
                yield table, work, None

    def resume(self) -> tuple[I64, I64]:
        """Stashes of all tables, and what the rebuilds had read of their current segment."""
        if not self._cold:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        g, slots, epochs = self._geometry, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for table in g.alive(self._clock, self._built):
            slots.append(g.first_slot(table) + 2 * g.levels[table.level].m + np.arange(STASH))
            epochs.append(np.full(STASH, table.epoch, np.int64))
        for _, work, part in self._in_hand():
            if part is not None:
                again, under = work.slots(part)
                slots.append(again)
                epochs.append(under)
        return np.concatenate(slots), np.concatenate(epochs)

    def resumed(self, slots: Slots) -> None:
        """Put what was read where it was."""
        g, clock, state = self._geometry, self._clock, self._state
        addr, blocks = self.open_slots(*self.resume(), slots)
        self.forget()
        at = 0
        for table in g.alive(clock, self._built):
            self._put(lib.oram_cuckoo_stash, addr, blocks, at, STASH, table.level, table.epoch, STASH)
            at += STASH
        for table, work, part in list(self._in_hand()):
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

    def _put(self, call: Any, addr: U32, blocks: U8, at: int, n: int, *args: int) -> None:
        self._run(
            call,
            self._struct,
            *args,
            pointer("uint32_t[]", addr[at : at + n]),
            pointer("uint8_t[]", blocks[at : at + n]),
        )

    def _run(self, call: Any, *args: Any) -> None:
        def checked(*given: Any) -> int:
            code = int(call(*given))
            if code == lib.ORAM_STASH_FULL:
                raise StashOverflowError
            return code

        self._keys.run(checked, *args)

    # --- the steps

    def _plan(self, requests: Requests) -> None:
        self._check(requests)
        r, q = self._requests, self._batch
        if self._cold:
            if self.resume()[0].size:
                raise ValueError("`resume` comes first")
            self.resumed(self._nothing)
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

    def _shaped(self, slots: Slots, n: int) -> None:
        if slots.data.shape != (n, self._geometry.slot_size) or slots.present.shape != (n,):
            raise ValueError("another plan, or slots of another shape")

    # --- bulk

    def open_slots(self, slots: I64, epochs: I64, sealed: Slots) -> tuple[U32, U8]:
        """Addresses and blocks in clear."""
        self._shaped(sealed, slots.size)
        if epochs.shape != slots.shape:
            raise ValueError("an epoch for each slot")
        rows = np.empty((slots.size, 4 + self._geometry.B), np.uint8)
        self._keys.run(
            lib.oram_cuckoo_open, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots),
            pointer("uint64_t[]", epochs), pointer("uint8_t[]", sealed.data), pointer("uint8_t[]", sealed.present),
            writable("uint8_t[]", rows),
        )  # fmt: skip
        addr = np.ascontiguousarray(rows[:, :4]).view("<u4").reshape(-1).astype(np.uint32)
        return addr, np.ascontiguousarray(rows[:, 4:])

    def seal_slots(self, slots: I64, epoch: int, source: I64, addr: U32, blocks: U8) -> U8:
        """Seal given content."""
        n = len(blocks)
        if source.shape != slots.shape or addr.shape != (n,) or source.max(initial=-1) >= n:
            raise ValueError("a row for each slot")
        sealed = np.empty((slots.size, self._geometry.slot_size), np.uint8)
        self._keys.run(
            lib.oram_cuckoo_seal, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots), epoch,
            pointer("int64_t[]", source), pointer("uint32_t[]", addr), pointer("uint8_t[]", blocks), writable("uint8_t[]", sealed),
        )  # fmt: skip
        return sealed

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

    @property
    def stash_size(self) -> int:
        """Blocks in the stashes of all tables. Secret."""
        g = self._geometry
        copies = {table: (table.epoch >> g.L) & 1 for table in g.alive(self._clock, self._built)}
        places = [
            table.level * 16 + (copy if table.level == g.L else g.target(table.epoch + (1 << table.level)))
            for table, copy in copies.items()
        ]
        return int(np.isin(self._stash_of, places).sum())


def stride(m: int) -> int:
    """How far apart the cells are that come one after the other where trees are placed: a number without a factor of 2m in common."""
    return next(a for a in range(int(2 * m * 0.6180339887) | 1, 4 * m) if math.gcd(a, 2 * m) == 1)


assert (STASH, CHUNK_STASH) == (lib.ORAM_CUCKOO_STASH, lib.ORAM_CUCKOO_CHUNK)
