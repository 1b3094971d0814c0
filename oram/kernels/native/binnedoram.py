"""Cuckoo ORAM without an index, in C."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import Slots
from oram.errors import StashOverflowError
from oram.kernels._native import ffi, lib
from oram.kernels.base import AGE_SHIFT, EMPTY, TOMB, BinnedState, CuckooPlan, CuckooWrite, Keys, Requests
from oram.kernels.native.cipher import NativeKeys
from oram.kernels.native.cuckoooram import C_TYPES, Lent, stride
from oram.kernels.native.memory import NativeRequests, pointer, writable
from oram.params import BinnedGeometry, Table
from oram.params.binned import ADDRESS_BITS, LEFT, STASHED, BinnedWork
from oram.params.cuckoo import STASH, Part
from oram.types import I64, U8, U32

SEED = 32  # bytes
#: Memory of a batch, by what its size counts: items each.
ROOMS = {
    "table": {"level": ("u4", 1), "epoch_of": ("i8", 1)},
    "fetch": {"slot": ("i8", 1), "epoch": ("i8", 1)},
    "read": {"read_from": ("i4", 1)},
    "write": {"to": ("u4", 1), "written": ("i8", 1), "sealed_as": ("i8", 1)},
}


class NativeBinned:
    """Cuckoo ORAM without an index, in C."""

    def __init__(self, geometry: BinnedGeometry, state: BinnedState, keys: Keys, hash_key: bytes) -> None:
        assert isinstance(keys, NativeKeys)
        self._geometry, self._keys = geometry, keys
        g = geometry
        if not 1 <= g.L < lib.ORAM_CUCKOO_LEVELS or g.c < 8 or not 1 <= g.N <= min(g.c << g.L, 1 << ADDRESS_BITS):
            raise ValueError("no geometry that the kernel can work with")
        if len(hash_key) != 32:
            raise ValueError("the key of the hash functions has 32 bytes")
        prf, coins = lib.oram_prf_new(hash_key), lib.oram_coins_new()
        if ffi.NULL in (prf, coins):
            raise RuntimeError("libcrypto offers no AES-256 here")
        self._prf, self._coins = ffi.gc(prf, lib.oram_prf_free), ffi.gc(coins, lib.oram_coins_free)
        self._levels, self._builds = ffi.new("oram_cuckoo_level[]", g.L + 1), ffi.new("oram_binned_build[]", g.L + 1)
        self._struct = ffi.new(
            "oram_cuckoo *",
            {
                "N": g.N, "B": g.B, "c": g.c, "L": g.L, "slots": g.slots, "levels": self._levels, "bins": self._builds,
                "prf": self._prf, "coins": self._coins, "stash": STASHED,
            },
        )  # fmt: skip
        self._places = [self._level(level) for level in range(g.L + 1)]
        self._stashes = Lent(self._struct)
        self._stash_of: npt.NDArray[np.int32] = self._stashes.lend(
            "stash_of", np.full(STASHED, -1, np.int32), "int32_t[]"
        )
        self._stashes.lend("stash_addr", np.zeros(STASHED, np.uint32), "uint32_t[]")
        self._stashes.lend("stash_data", np.zeros((STASHED, g.B), np.uint8), "uint8_t[]")
        self._lent = [Lent(self._builds[level]) for level in range(g.L + 1)]
        for first in range(0, g.L + 1, 3):
            self._share(range(first, min(first + 3, g.L + 1)))
        self.state = state
        self._batch = ffi.new("oram_binned_batch *")
        self._memory = Lent(self._batch)
        self._reserve(1)
        self.forget(cold=False)

    # --- memory

    def _level(self, level: int) -> Any:
        """Its constants."""
        g, c = self._geometry, self._levels[level]
        shape, c.duration = g.levels[level], g.duration(level)
        c.n, c.m, c.b, c.r, c.width = shape.n, shape.m, shape.b, shape.r, shape.bin
        c.first, _ = g.passes(level)
        c.middle, c.stride = g.first_middle(level), stride(shape.m)
        copies = range(g.L + 1) if level < g.L else range(2)
        places = ffi.new("uint64_t[]", [g.place(level, copy) if copy > level or level == g.L else 0 for copy in copies])
        c.place = places
        return places

    def _share(self, levels: range) -> None:
        """Memory of the rebuilds of levels in a row, of which only one is ever under way: for a chunk, or a bin."""
        g = self._geometry
        shapes = [g.levels[level] for level in levels]
        hands, m = max(s.hand for s in shapes), max(s.m for s in shapes)
        contents = max(s.bin if s.b == 1 else max(s.b * s.r + LEFT, s.bin) for s in shapes)
        mask = (1 << (2 * hands - 1).bit_length()) - 1
        left = 0 if max(s.b for s in shapes) == 1 else LEFT
        arrays = [
            ("hand_word", "u4", hands), ("hand_age", "u1", hands), ("hand", "u1", hands * g.B), ("u", "u4", hands),
            ("v", "u4", hands), ("index", "u4", mask + 1), ("left_word", "u4", left), ("left_age", "u1", left),
            ("left", "u1", left * g.B), ("content", "u4", contents), ("fill", "u4", max(s.b for s in shapes)),
            ("list", "u4", hands), ("both", "u4", hands), ("kind", "u1", hands), ("root", "u4", 2 * m), ("full", "u1", 2 * m),
        ]  # fmt: skip
        for field, dtype, size in arrays:
            array = np.zeros(size, dtype)
            at = writable(C_TYPES[dtype], array)
            for level in levels:
                self._lent[level].point(field, array, at)
        for level, shape in zip(levels, shapes, strict=True):
            build = self._builds[level]
            build.hands, build.contents, build.index_mask = shape.hand, contents, mask

    @property
    def state(self) -> BinnedState:
        """The arrays."""
        return self._state

    @state.setter
    def state(self, state: BinnedState) -> None:
        lent = Lent(self._struct)
        for field, kind in {"clock": "uint64_t[]", "page_addr": "uint32_t[]", "page_data": "uint8_t[]"}.items():
            lent.lend(field, getattr(state, field), kind)
        self._state, self._pointers = state, lent

    @property
    def _clock(self) -> int:
        return int(self._state.clock[0])

    @property
    def _built(self) -> bool:
        return bool(self._state.clock[1])

    def _reserve(self, m: int) -> None:
        self._capacity = -1  # C may not run before all memory is there, whatever interrupts us
        g, q = self._geometry, self._batch
        self._requests = NativeRequests(m, g.B, SEED)
        arrays = {
            "seeks": ("u1", m), "kept": ("i8", m), "found": ("u1", m), "found_word": ("u4", m), "found_data": ("u1", m * g.B),
            "from": ("i4", 2 * m), "probe": ("i8", 2 * m), "desk": ("u1", 2 * m * (4 + g.B)),
        }  # fmt: skip
        for field, (dtype, size) in arrays.items():
            self._memory.lend(field, np.zeros(size, dtype), C_TYPES[dtype])
        q.m = q.at = q.count = 0
        for room in ROOMS:
            setattr(q, f"{room}_room", 0)
        self._capacity = m

    def _make_room(self, tables: int, reads: int, writes: int) -> None:
        """Memory for a batch that needs so much."""
        g, q, m = self._geometry, self._batch, self._capacity
        for room, least in (("table", tables), ("fetch", 2 * m + reads), ("read", reads), ("write", writes)):
            if least <= getattr(q, f"{room}_room") > 0:
                continue
            setattr(q, f"{room}_room", 0)
            size = least + least // 4 + 1
            for field, (dtype, each) in ROOMS[room].items():
                self._memory.lend(field, np.zeros(size * each, dtype), C_TYPES[dtype])
            if room == "table":
                self._memory.lend("u", np.zeros(m * size, np.uint32), "uint32_t[]")
                self._memory.lend("v", np.zeros(m * size, np.uint32), "uint32_t[]")
            if room == "read":
                self._memory.lend("input", np.zeros(size * (4 + g.B), np.uint8), "uint8_t[]")
            if room == "write":
                cells = 2 << size.bit_length()
                q.known_mask = 0
                self._memory.lend("known", np.full(cells, -1, np.int32), "int32_t[]")
                q.known_mask = cells - 1
            setattr(q, f"{room}_room", size)

    def memory(self) -> int:
        """Bytes outside the state: for measurements."""
        arrays = {id(a): a.nbytes for lent in [*self._lent, self._stashes] for a, _ in lent._arrays.values()}
        return sum(arrays.values())

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._capacity:
            self._reserve(max(m, 1, min(2 * self._capacity, self._geometry.max_batch)))
        self._requests.m, self._batch.m = m, 0
        self._batch.at = self._batch.count = 0
        return self._requests

    # --- hash functions

    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        """The cells of these addresses in a table: the first counted over all bins, the second in the bin of the first."""
        given, pairs = np.ascontiguousarray(addr, np.uint32), np.empty((addr.size, 2), np.int64)
        self._run(
            lib.oram_binned_pairs, self._struct, table.level, table.epoch, given.size, pointer("uint32_t[]", given),
            writable("int64_t[]", pairs),
        )  # fmt: skip
        return pairs

    def rows(self) -> dict[int, tuple[int, int, int]]:
        """Flush, page and row of the newest row of each address in the top buffers."""
        g, clock, found = self._geometry, self._clock, dict[int, tuple[int, int, int]]()
        now = clock // g.c
        for flush in range(max(0, now - g.duration(g.L) // g.c - 1), now + 1):
            if flush < now and g.home(flush, clock, self._built) is not None:
                continue
            page = g.page(flush)
            for row, word in enumerate(self._state.page_addr[page, : clock % g.c if flush == now else g.c].tolist()):
                if word != EMPTY:
                    found[word & ~TOMB] = flush, page, row
        return found

    # --- after an opening

    def forget(self, *, cold: bool = True) -> None:
        """The state was loaded anew: forget what lies outside it."""
        self._cold, self._batch.m = cold, 0
        self._batch.at = self._batch.count = 0
        self._stash_of[:] = -1
        for build in self._builds:
            build.active = 0

    def resume(self) -> tuple[I64, I64]:
        """Stashes of all tables, and what the rebuilds had in hand."""
        if not self._cold:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._geometry.again(self._clock, self._built)

    def resumed(self, slots: Slots) -> None:
        """Put what was read where it was."""
        g, clock = self._geometry, self._clock
        words, blocks = self.open_slots(*self.resume(), slots)
        self.forget()
        at = 0
        for table in g.alive(clock, self._built):
            size = g.levels[table.level].b * STASH
            self._put(lib.oram_binned_stash, words, blocks, at, size, table.level, table.epoch, size)
            at += size
        for table, work, parts in g.begun(clock, self._built):
            self._run(lib.oram_binned_resume, self._struct, table.level, table.epoch)
            for part in parts:
                self._put_part(table, work, part, words, blocks, at)
                at += part.last - part.first
        self._cold = False

    def _put_part(self, table: Table, work: BinnedWork, part: Part, words: U32, blocks: U8, at: int) -> None:
        n, kind = part.last - part.first, work.segments[part.segment].kind
        if kind == "output":
            self._put(lib.oram_binned_stash, words, blocks, at, n, table.level, table.epoch, n)
        elif kind == "emit":
            self._put(lib.oram_binned_left, words, blocks, at, n, table.level, n)
        else:
            low = work.begin(part.segment) + part.first
            self._put(lib.oram_binned_again, words, blocks, at, n, table.level, low, low + n)

    def _put(self, call: Any, words: U32, blocks: U8, at: int, n: int, *args: int) -> None:
        self._run(
            call,
            self._struct,
            *args,
            pointer("uint32_t[]", words[at : at + n]),
            pointer("uint8_t[]", blocks[at : at + n]),
        )

    def _run(self, call: Any, *args: Any) -> None:
        def checked(*given: Any) -> int:
            code = int(call(*given))
            if code == lib.ORAM_STASH_FULL:
                raise StashOverflowError
            return code

        self._keys.run(checked, *args)

    # --- a batch

    def begin(self, requests: Requests) -> None:
        """A new batch."""
        if requests is not self._requests or not 0 <= requests.m <= self._capacity:
            raise ValueError("these requests are not the kernel's, or have outgrown it")
        if self._cold:
            if self.resume()[0].size:
                raise ValueError("`resume` comes first")
            self.resumed(Slots(np.zeros((0, self._geometry.slot_size), np.uint8), np.zeros(0, np.uint8)))
        r, need = self._requests, (ffi.new("uint32_t *"), ffi.new("uint64_t *"), ffi.new("uint64_t *"))
        self._run(lib.oram_binned_count, self._struct, r.m, *need)
        self._make_room(*(int(each[0]) for each in need))
        self._content = np.empty((self._batch.write_room, self._geometry.slot_size), np.uint8)
        self._memory.lend("content", self._content, "uint8_t[]")
        self._run(lib.oram_binned_begin, self._struct, r.m, r.c_seed, self._batch)

    def ask(self) -> CuckooPlan | None:
        """The slots of the next round; None where there is none."""
        r, q, memory = self._requests, self._batch, self._memory
        self._run(lib.oram_binned_ask, self._struct, r.c_ops, r.c_addresses, q)
        if q.count == 0:
            return None
        probes = q.count if q.round < q.tables else 0
        slots, epochs = memory.array("slot")[: q.fetches].copy(), memory.array("epoch")[: q.fetches].copy()
        return CuckooPlan(slots, epochs, memory.array("probe")[: 2 * probes].reshape(-1, 2).copy())

    def tell(self, slots: Slots, plan: CuckooPlan) -> None:
        """What the round has read."""
        r, q = self._requests, self._batch
        if q.count == 0 or plan.slots.size != q.fetches:
            raise ValueError("another plan")
        self._shaped(slots, q.fetches)
        self._run(
            lib.oram_binned_tell, self._struct, self._keys.struct, q, r.c_ops, r.c_addresses, pointer("uint8_t[]", slots.data),
            pointer("uint8_t[]", slots.present), r.c_data, r.c_out, r.c_where, r.c_after,
        )  # fmt: skip

    def finish(self) -> CuckooWrite:
        """All that the batch writes, sealed."""
        q = self._batch
        if q.count or q.at != self._requests.m:
            raise ValueError("the batch is not at its end")
        self._run(lib.oram_binned_finish, self._struct, self._keys.struct, q)
        slots = self._memory.array("written")[: q.distinct].copy()
        return CuckooWrite(slots, self._content[: q.distinct], np.zeros(0, np.uint16))

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """All rounds over the region's own memory."""
        self._shaped(region, self._geometry.slots)
        self.begin(requests)
        while (plan := self.ask()) is not None:
            self.tell(Slots(region.data[plan.slots], region.present[plan.slots]), plan)
        written = self.finish()
        region.data[written.slots], region.present[written.slots] = written.data, 1

    def _shaped(self, slots: Slots, n: int) -> None:
        if slots.data.shape != (n, self._geometry.slot_size) or slots.present.shape != (n,):
            raise ValueError("another plan, or slots of another shape")

    # --- bulk

    def open_slots(self, slots: I64, epochs: I64, sealed: Slots) -> tuple[U32, U8]:
        """Words and blocks in clear."""
        self._shaped(sealed, slots.size)
        if epochs.shape != slots.shape:
            raise ValueError("an epoch for each slot")
        rows = np.empty((slots.size, 4 + self._geometry.B), np.uint8)
        self._run(
            lib.oram_cuckoo_open, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots),
            pointer("uint64_t[]", epochs), pointer("uint8_t[]", sealed.data), pointer("uint8_t[]", sealed.present),
            writable("uint8_t[]", rows),
        )  # fmt: skip
        words = np.ascontiguousarray(rows[:, :4]).view("<u4").reshape(-1).astype(np.uint32)
        return words, np.ascontiguousarray(rows[:, 4:])

    def seal_slots(self, slots: I64, epoch: int, source: I64, addr: U32, blocks: U8) -> U8:
        """Seal given content."""
        n = len(blocks)
        if source.shape != slots.shape or addr.shape != (n,) or source.max(initial=-1) >= n:
            raise ValueError("a row for each slot")
        sealed = np.empty((slots.size, self._geometry.slot_size), np.uint8)
        self._run(
            lib.oram_cuckoo_seal, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots), epoch,
            pointer("int64_t[]", source), pointer("uint32_t[]", addr), pointer("uint8_t[]", blocks), writable("uint8_t[]", sealed),
        )  # fmt: skip
        return sealed

    def build(self, addr: U32) -> I64:
        """Place these blocks in a bottom of epoch 0."""
        g = self._geometry
        table, shape = Table(g.L, 0), g.levels[g.L]
        pairs = self.pairs(table, addr)
        bins = pairs[:, 0] // shape.m
        order = np.argsort(bins, kind="stable")
        ends = np.searchsorted(bins[order], np.arange(shape.b + 1))
        source = np.full(shape.table, -1, np.int64)
        for k in range(shape.b):
            rows = order[ends[k] : ends[k + 1]]
            cell = self._place(g.L, pairs[rows] % shape.m)
            inside, rest = cell >= 0, rows[cell < 0]
            if rest.size > STASH:
                raise StashOverflowError
            source[k * shape.bin + cell[inside]] = rows[inside]
            source[k * shape.bin + 2 * shape.m : k * shape.bin + 2 * shape.m + rest.size] = rest
        self._state.clock[1] = 1
        self.forget()
        return source

    def _place(self, level: int, pairs: I64) -> I64:
        """Cells of entries in a bin of a level, int64 (n,), -1 in the stash, by their pairs in it, int64 (n, 2)."""
        cell, given = np.empty(len(pairs), np.int64), np.ascontiguousarray(pairs, np.int64)
        self._run(
            lib.oram_binned_place, self._struct, level, len(given), pointer("int64_t[]", given), writable("int64_t[]", cell)
        )  # fmt: skip
        return cell

    @property
    def stash_size(self) -> int:
        """Entries in the stashes of all tables. Secret."""
        g = self._geometry
        tables = g.alive(self._clock, self._built)
        places = [
            t.level * 16 + ((t.epoch >> g.L) & 1 if t.level == g.L else g.target(t.epoch + (1 << t.level)))
            for t in tables
        ]
        return int(np.isin(self._stash_of, places).sum())


assert (LEFT, ADDRESS_BITS) == (lib.ORAM_BINNED_LEFT, lib.ORAM_BINNED_BITS)
assert (TOMB, AGE_SHIFT) == (1 << ADDRESS_BITS, ADDRESS_BITS + 1)
