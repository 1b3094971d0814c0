"""Cuckoo ORAM without an index, in C."""

from __future__ import annotations

import numpy as np

from oram.backends.base import Slots
from oram.errors import StashOverflowError
from oram.kernels._native import ffi, lib
from oram.kernels.base import AGE_SHIFT, EMPTY, TOMB, BinnedState, CuckooPlan, CuckooWrite, Keys, Requests
from oram.kernels.native.hierarchy import SEED, NativeHierarchy
from oram.kernels.native.memory import C_TYPES, Lent, NativeRequests, pointer, writable
from oram.params import BinnedGeometry, Table
from oram.params.binned import ADDRESS_BITS, LEFT, STASHED, BinnedWork, BinShape
from oram.params.cuckoo import STASH, LevelShape, Part
from oram.types import I64, U8, U32

#: Memory of a batch, by what its size counts: items each.
ROOMS = {
    "table": {"level": ("u4", 1), "epoch_of": ("i8", 1)},
    "fetch": {"slot": ("i8", 1), "epoch": ("i8", 1)},
    "read": {"read_from": ("i4", 1)},
    "write": {"to": ("u4", 1), "written": ("i8", 1), "sealed_as": ("i8", 1)},
}


class NativeBinned(NativeHierarchy[BinnedState, BinnedGeometry]):
    """Cuckoo ORAM without an index, in C."""

    builds = "bins", "oram_binned_build[]"
    spare = STASHED
    most = 1 << ADDRESS_BITS
    fields = {"clock": "u8", "page_addr": "u4", "page_data": "u1"}
    c_pairs = lib.oram_binned_pairs

    def __init__(self, geometry: BinnedGeometry, state: BinnedState, keys: Keys, hash_key: bytes) -> None:
        super().__init__(geometry, state, keys, hash_key)
        self._batch = ffi.new("oram_binned_batch *")
        self._memory = Lent(self._batch)
        self._begun = False
        self._reserve(1)
        self.forget(cold=False)

    # --- memory

    def _width(self, shape: LevelShape) -> int:
        assert isinstance(shape, BinShape)
        return shape.bin

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
        self._point(levels, arrays)
        for level, shape in zip(levels, shapes, strict=True):
            build = self._builds[level]
            build.hands, build.contents, build.index_mask = shape.hand, contents, mask

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

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        requests = self._grown(m)
        self._batch.m = self._batch.at = self._batch.count = 0
        self._begun = False
        return requests

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

    def resumed(self, slots: Slots) -> None:
        """Put what was read where it was."""
        g, clock = self._geometry, self._clock
        words, blocks = self.open_slots(*self.resume(), slots)
        self.forget()
        at = 0
        for table in g.alive(clock, self._built):
            size = g.levels[table.level].b * STASH
            self._put(lib.oram_cuckoo_stash, words, blocks, at, size, table.level, table.epoch, size)
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
            self._put(lib.oram_cuckoo_stash, words, blocks, at, n, table.level, table.epoch, n)
        elif kind == "emit":
            self._put(lib.oram_binned_left, words, blocks, at, n, table.level, n)
        else:
            low = work.begin(part.segment) + part.first
            self._put(lib.oram_binned_again, words, blocks, at, n, table.level, low, low + n)

    # --- a batch

    def begin(self, requests: Requests) -> None:
        """A new batch."""
        self._check(requests)
        self._warm()
        r, need = self._requests, (ffi.new("uint32_t *"), ffi.new("uint64_t *"), ffi.new("uint64_t *"))
        self._run(lib.oram_binned_count, self._struct, r.m, *need)
        self._make_room(*(int(each[0]) for each in need))
        self._content = np.empty((self._batch.write_room, self._geometry.slot_size), np.uint8)
        self._memory.lend("content", self._content, "uint8_t[]")
        self._run(lib.oram_binned_begin, self._struct, r.m, r.c_seed, self._batch)
        self._begun = True

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
        if not self._begun or q.count or q.at != self._requests.m:
            raise ValueError("the batch is not at its end")
        self._begun = False
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

    # --- bulk

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


assert (LEFT, ADDRESS_BITS) == (lib.ORAM_BINNED_LEFT, lib.ORAM_BINNED_BITS)
assert (TOMB, AGE_SHIFT) == (1 << ADDRESS_BITS, ADDRESS_BITS + 1)
