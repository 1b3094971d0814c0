"""Cuckoo ORAM without an index: the specification of the hierarchy over tables of bins. docs/schemes/cuckoo.md says what and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from oram.backends.base import Slots
from oram.errors import StashOverflowError
from oram.kernels.base import (
    AGE_SHIFT,
    EMPTY,
    TOMB,
    At,
    BinnedState,
    CuckooPlan,
    CuckooWrite,
    Keys,
    Op,
    Requests,
)
from oram.kernels.reference.coins import Coins
from oram.kernels.reference.cuckoooram import place
from oram.kernels.reference.hierarchy import Hierarchy
from oram.params import BinnedGeometry, Table
from oram.params.binned import LEFT, STASHED, BinnedWork
from oram.params.cuckoo import STASH, Part
from oram.types import I64, U32

NEWEST = -1  # age of what comes from the top buffer; else it is the level of the input
Entry = tuple[int, bytes]  # address, with TOMB where it holds no block; and the block


@dataclass(slots=True, eq=False)
class Hand:
    """Entries in hand, the newest of each address, in the order in which their addresses came. most: how many. age: of each."""

    most: int
    entries: dict[int, Entry] = field(default_factory=dict)
    age: dict[int, int] = field(default_factory=dict)

    def meet(self, entry: Entry, age: int) -> None:
        """One more, unless a newer one is there."""
        addr = entry[0] & ~TOMB
        if age <= self.age.get(addr, age):
            self.entries[addr], self.age[addr] = entry, age
        if len(self.entries) > self.most:
            raise StashOverflowError


@dataclass(slots=True, eq=False)
class Build:
    """A rebuild under way."""

    table: Table
    work: BinnedWork
    ages: dict[int, int]  # of its inputs, by their epochs
    hand: Hand  # what the current segment has read
    left: list[tuple[Entry, int]] = field(default_factory=list)  # what the chunks have left over, and its age
    reading: int = -1
    content: list[Entry | None] = field(default_factory=list)  # of the segment being written
    writing: int = -1
    stash: dict[int, Entry] = field(default_factory=dict)  # of all its bins so far


@dataclass(slots=True, eq=False)
class Search:
    """One request of a piece. kept: flush and place of the newest row of its address in the top buffers."""

    addr: int
    seeks: bool
    kept: tuple[int, int, int] | None
    coins: list[tuple[int, int]]  # a fresh pair for each table, used or not
    found: Entry | None = None
    pair: tuple[int, int] = (0, 0)  # slots of the current round


@dataclass(slots=True, eq=False)
class Piece:
    """Accesses of a batch, one after the other, during which the same tables are probed."""

    first: int
    tables: list[Table]
    searches: list[Search]
    round: int = 0
    inputs: list[Entry] = field(default_factory=list)  # what the rebuilds have read, in order


class ReferenceBinned(Hierarchy[BinnedState, BinnedGeometry]):
    """The hierarchy. A batch is cut into pieces where the tables that are probed change; in each, a round for each table, the newest first."""

    def __init__(self, geometry: BinnedGeometry, state: BinnedState, keys: Keys, hash_key: bytes) -> None:
        super().__init__(geometry, state, keys, hash_key)
        self._piece: Piece | None = None
        self.forget(cold=False)

    # --- hash functions

    def pairs(self, table: Table, addr: npt.NDArray[np.integer]) -> I64:
        """The cells of these addresses, int64 (n, 2): the first counted over all bins, the second in the bin of the first.

        They are 128 bits of a PRF, multiplied high.
        """
        words = self._words(table, addr)
        shape = self._geometry.levels[table.level]
        m = np.array([shape.cells, shape.m], np.uint64)
        high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
        return ((high * m + (low * m >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)

    def _bins(self, table: Table, addresses: Iterable[int]) -> list[int]:
        cells = self.pairs(table, np.array(list(addresses), np.int64))
        return [u // self._geometry.levels[table.level].m for u in cells[:, 0].tolist()]

    # --- the top buffers

    def _kept(self, addr: int, clock: int) -> tuple[int, int, int] | None:
        """Flush, page and row of the newest row of an address. None where that is in a table by now: it is found there, before any older row counts."""
        at = self._row.get(addr)
        if at is None or (at[0] < clock // self._geometry.c and self._geometry.home(at[0], clock, self._built)):
            return None
        return at

    def rows(self) -> dict[int, tuple[int, int, int]]:
        """Flush, page and row of the newest row of each address in the top buffers. A table of a later flush may have a newer copy."""
        g, state, clock, found = self._geometry, self.state, self._clock, dict[int, tuple[int, int, int]]()
        for flush in range(max(0, clock // g.c - g.duration(g.L) // g.c - 1), clock // g.c + 1):
            page = g.page(flush)
            if flush == clock // g.c or g.home(flush, clock, self._built) is None:
                rows = range(clock % g.c if flush == clock // g.c else g.c)
                words = ((int(state.page_addr[page, row]), row) for row in rows)
                found.update((word & ~TOMB, (flush, page, row)) for word, row in words if word != EMPTY)
        return found

    def _entry(self, page: int, row: int) -> Entry | None:
        word = int(self.state.page_addr[page, row])
        return None if word == EMPTY else (word, self.state.page_data[page, row].tobytes())

    # --- after an opening

    def forget(self, *, cold: bool = True) -> None:
        """The state was loaded anew: forget what lies outside it."""
        self._cold, self._piece = cold, None
        self._stash: dict[Table, dict[int, Entry]] = {}
        self._builds: dict[Table, Build] = {}
        self._row = self.rows()

    def resume(self) -> tuple[I64, I64]:
        """Stashes of all tables, and what the rebuilds had in hand."""
        if not self._cold:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._geometry.again(self._clock, self._built)

    def resumed(self, slots: Slots) -> None:
        """Put what was read where it was."""
        g, clock = self._geometry, self._clock
        found, at = self._open(*self.resume(), slots), 0
        for table in g.alive(clock, self._built):
            size = g.levels[table.level].b * STASH
            self._stash[table] = {entry[0] & ~TOMB: entry for entry in found[at : at + size] if entry[0] != EMPTY}
            at += size
        for table, work, parts in g.begun(clock, self._built):
            build = self._begin(table)
            for part in parts:
                size = part.last - part.first
                kind = work.segments[part.segment].kind
                if kind == "output":
                    build.stash |= {entry[0] & ~TOMB: entry for entry in found[at : at + size] if entry[0] != EMPTY}
                elif kind == "emit":
                    build.left = [_aged(entry) for entry in found[at : at + size] if entry[0] != EMPTY]
                else:
                    self._take(build, part, found[at : at + size])
                at += size
            self._builds[table] = build
        self._cold = False

    # --- a batch: what it reads

    def begin(self, requests: Requests) -> None:
        """A new batch."""
        assert not self.resume()[0].size, "`resume` comes first"
        self._cold, self._piece, self._asked, self._at = False, None, requests, 0
        self._coins = Coins(requests.seed.tobytes())
        self._writes: dict[int, tuple[int, Entry | None]] = {}  # slot -> epoch and content

    def ask(self) -> CuckooPlan | None:
        """The slots of the next round; None where there is none."""
        if self._piece is None:
            if self._at == self._asked.m:
                return None
            self._piece = self._cut()
        piece, slots, epochs = self._piece, list[int](), list[int]()
        pairs: list[tuple[int, int]] = []
        for table in piece.tables[piece.round : piece.round + 1]:
            for search in piece.searches:
                search.pair = self._probe(search, table, piece.round)
                pairs.append(search.pair)
                fresh = [slot for slot in search.pair if slot not in self._writes]
                slots += fresh
                epochs += [table.epoch] * len(fresh)
        if piece.round == 0:
            self._read_for_rebuilds(piece, slots, epochs)
        return CuckooPlan(
            np.array(slots, np.int64), np.array(epochs, np.int64), np.array(pairs, np.int64).reshape(-1, 2)
        )

    def _cut(self) -> Piece:
        """The next accesses, as many as probe the same tables."""
        g, first, clock = self._geometry, self._at, self._clock
        tables, count = g.alive(clock, self._built), 1
        while first + count < self._asked.m and g.alive(clock + count, self._built) == tables:
            count += 1
        searches, seen = list[Search](), set[int]()
        for r in range(first, first + count):
            op, addr = int(self._asked.ops[r]), int(self._asked.addresses[r])
            coins = [(self._coins.below(s.cells), self._coins.below(s.m)) for s in (g.levels[t.level] for t in tables)]
            seeks = op != Op.DUMMY and addr not in seen
            searches.append(Search(addr, seeks, self._kept(addr, clock) if seeks else None, coins))
            if seeks:
                seen.add(addr)
        return Piece(first, tables, searches)

    def _probe(self, search: Search, table: Table, number: int) -> tuple[int, int]:
        """The two slots: of the address until it was found, also in a top buffer that is newer than the table; then fresh ones."""
        g, pair = self._geometry, search.coins[number]
        if self._real(search, table):
            u, v = self.pairs(table, np.array([search.addr]))[0].tolist()
            pair = u, v
        a, b = (g.first_slot(table) + g.levels[table.level].slots(np.array([pair])))[0].tolist()
        return a, b

    @staticmethod
    def _real(search: Search, table: Table) -> bool:
        newer = search.kept is not None and search.kept[0] >= table.epoch
        return search.seeks and search.found is None and not newer

    def _read_for_rebuilds(self, piece: Piece, slots: list[int], epochs: list[int]) -> None:
        """All that the rebuilds read during a piece, but what the batch itself writes before."""
        known = set(self._writes)
        for clock in range(self._clock, self._clock + len(piece.searches)):
            wrote: list[int] = []
            for _, work, parts in self._share(clock):
                for part in parts:
                    here, under = work.slots(part)
                    if work.segments[part.segment].kind in ("input", "middle"):
                        fresh = [i for i, slot in enumerate(here.tolist()) if slot not in known]
                        slots += here[fresh].tolist()
                        epochs += under[fresh].tolist()
                    else:
                        wrote += here.tolist()
            known.update(wrote)

    def _share(self, clock: int) -> list[tuple[Table, BinnedWork, list[Part]]]:
        """What an access does for each rebuild."""
        g, found = self._geometry, []
        for table in g.running(clock):
            work = self._builds[table].work if table in self._builds else g.work(table, self._built)
            found.append((table, work, work.parts(clock - table.epoch * g.c)))
        return found

    # --- a batch: what it finds

    def tell(self, slots: Slots, plan: CuckooPlan) -> None:
        """What the round has read. All of it opens, or the batch ends here."""
        piece = self._piece
        assert piece is not None
        opened = iter(self._open(plan.slots, plan.epochs, slots))
        for table in piece.tables[piece.round : piece.round + 1]:
            for search in piece.searches:
                real = self._real(search, table)
                for slot in search.pair:
                    entry = (self._writes[slot][1] or (EMPTY, b"")) if slot in self._writes else next(opened)
                    if real and entry[0] & ~TOMB == search.addr:
                        search.found = entry
                if real and search.found is None:
                    search.found = self._stash[table].get(search.addr)
        piece.inputs += opened
        piece.round += 1
        if piece.round >= len(piece.tables):
            self._work(piece)
            self._at, self._piece = self._at + len(piece.searches), None

    def _work(self, piece: Piece) -> None:
        """One request after the other: serve it, append to the top buffer, work at the rebuilds."""
        g, state, requests = self._geometry, self.state, self._asked
        read = iter(piece.inputs)

        def fetch(slot: int) -> Entry:
            return (self._writes[slot][1] or (EMPTY, bytes(g.B))) if slot in self._writes else next(read)

        for r, search in enumerate(piece.searches, piece.first):
            clock, op = self._clock, int(requests.ops[r])
            block = None if op == Op.DUMMY else self._serve(search, clock)
            requests.out[r] = 0 if block is None else np.frombuffer(block, np.uint8)
            if op == Op.WRITE:
                block = requests.data[r].tobytes()
            elif op == Op.REMOVE:
                block = None
            self._append(op, search.addr, block, clock)
            requests.where[r] = At.REPEAT if op == Op.DUMMY else At.NONE if block is None else At.POOL
            requests.after[r] = 0 if block is None else np.frombuffer(block, np.uint8)
            wrote: list[tuple[int, int, Entry | None]] = []
            for table, work, parts in self._share(clock):
                build = self._builds.setdefault(table, self._builds.get(table) or self._begin(table))
                for part in parts:
                    here = work.slots(part)[0].tolist()
                    if work.segments[part.segment].kind in ("input", "middle"):
                        self._take(build, part, [fetch(slot) for slot in here])
                    else:
                        content = self._give(build, part)
                        wrote += [(slot, table.epoch, entry) for slot, entry in zip(here, content, strict=True)]
            self._writes.update((slot, (epoch, entry)) for slot, epoch, entry in wrote)
            state.clock[0] = clock + 1
            for table in [t for t in self._builds if g.done(t) == clock + 1]:
                for old in g.inputs(table, self._built):
                    self._stash.pop(old, None)
                self._stash[table] = self._builds.pop(table).stash

    def _serve(self, search: Search, clock: int) -> bytes | None:
        """The newest copy: in a table, or else in a top buffer."""
        entry = search.found
        if entry is None:
            kept = self._kept(search.addr, clock)
            entry = None if kept is None else self._entry(*kept[1:])
        return None if entry is None or entry[0] & TOMB else entry[1]

    def _append(self, op: int, addr: int, block: bytes | None, clock: int) -> None:
        """Every access of an address leaves an entry of it, also where there is no block: its pairs were seen now."""
        g, state = self._geometry, self.state
        page, row = g.page(clock // g.c), clock % g.c
        state.page_addr[page, row] = EMPTY if op == Op.DUMMY else addr | TOMB if block is None else addr
        state.page_data[page, row] = 0 if block is None else np.frombuffer(block, np.uint8)
        if op != Op.DUMMY:
            self._row[addr] = clock // g.c, page, row

    def finish(self) -> CuckooWrite:
        """All that the batch writes, sealed."""
        g, writes = self._geometry, self._writes
        data = np.empty((len(writes), g.slot_size), np.uint8)
        first = self._keys.take(len(writes))
        for i, (slot, (epoch, entry)) in enumerate(writes.items()):
            data[i] = self._sealed(slot, epoch, first + i, entry)
        return CuckooWrite(np.array(list(writes), np.int64), data, np.zeros(0, np.uint16))

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """All rounds over the region's own memory."""
        self.begin(requests)
        while (plan := self.ask()) is not None:
            self.tell(Slots(region.data[plan.slots], region.present[plan.slots]), plan)
        written = self.finish()
        region.data[written.slots], region.present[written.slots] = written.data, 1

    # --- rebuilds

    def _begin(self, table: Table) -> Build:
        g = self._geometry
        ages = {old.epoch: old.level for old in g.inputs(table, self._built)}
        return Build(table, g.work(table, self._built), ages, Hand(g.levels[table.level].hand))

    def _take(self, build: Build, part: Part, found: list[Entry]) -> None:
        """Slots read: the newest copy of each address stays in hand."""
        if build.reading != part.segment:
            build.reading, build.hand = part.segment, Hand(build.work.shape.hand)
        middle = build.work.segments[part.segment].kind == "middle"
        for entry, epoch in zip(found, build.work.slots(part)[1].tolist(), strict=True):
            if entry[0] != EMPTY:
                build.hand.meet(*(_aged(entry) if middle else (entry, build.ages[epoch])))

    def _give(self, build: Build, part: Part) -> list[Entry | None]:
        """The content of slots to be written."""
        segment = build.work.segments[part.segment]
        if build.writing != part.segment:
            build.writing = part.segment
            build.content = self._emitted(build) if segment.kind == "emit" else self._bin(build, segment.number)
        return build.content[part.first : part.last]

    def _emitted(self, build: Build) -> list[Entry | None]:
        """A fixed number of slots for each bin, their age with the entries; then all that was left over so far."""
        shape, hand = build.work.shape, build.hand
        rows: list[list[Entry | None]] = [[] for _ in range(shape.b)]
        for k, addr in zip(self._bins(build.table, hand.entries), hand.entries, strict=True):
            if len(rows[k]) < shape.r:
                rows[k].append(_with_age(hand.entries[addr], hand.age[addr]))
            else:
                build.left.append((hand.entries[addr], hand.age[addr]))
        if len(build.left) > LEFT:
            raise StashOverflowError
        full: list[Entry | None] = []
        for row in rows:
            full += [*row, *[None] * (shape.r - len(row))]
        left = [_with_age(*each) for each in build.left]
        return [*full, *left, *[None] * (LEFT - len(left))]

    def _bin(self, build: Build, number: int) -> list[Entry | None]:
        """A bin: its cells, and its stash. What the chunks left over and the full top buffer join here; at the bottom, empty addresses go."""
        g, shape, table = self._geometry, build.work.shape, build.table
        hand, page = build.hand, g.page(table.epoch - 1)
        own = [(entry, NEWEST) for row in range(g.c) if (entry := self._entry(page, row)) is not None]
        joining = [*build.left, *own]
        bins = self._bins(table, (entry[0] & ~TOMB for entry, _ in joining))
        for (entry, age), k in zip(joining, bins, strict=True):
            if k == number:
                hand.meet(entry, age)
        entries = [entry for entry in hand.entries.values() if table.level < g.L or not entry[0] & TOMB]
        cells = self.pairs(table, np.array([entry[0] & ~TOMB for entry in entries], np.int64)) % shape.m
        content: list[Entry | None] = [None] * (2 * shape.m)
        stash: list[Entry | None] = []
        for entry, cell in zip(entries, place(cells, shape.m).tolist(), strict=True):
            if cell < 0:
                stash.append(entry)
                build.stash[entry[0] & ~TOMB] = entry
            else:
                content[cell] = entry
        if len(stash) > STASH or self.stash_size + sum(len(each.stash) for each in self._builds.values()) > STASHED:
            raise StashOverflowError
        return [*content, *stash, *[None] * (STASH - len(stash))]

    # --- sealing

    def _open(self, slots: I64, epochs: I64, sealed: Slots) -> list[Entry]:
        words, blocks = self.open_slots(slots, epochs, sealed)
        return list(zip(words.tolist(), map(bytes, blocks), strict=True))

    # --- bulk load

    def build(self, addr: U32) -> I64:
        """Place these blocks in a bottom of epoch 0."""
        g = self._geometry
        table, shape = Table(g.L, 0), g.levels[g.L]
        pairs = self.pairs(table, addr)
        source = np.full(shape.table, -1, np.int64)
        for k in range(shape.b):
            rows = np.flatnonzero(pairs[:, 0] // shape.m == k)
            if rows.size > shape.hand:
                raise StashOverflowError
            cell = place(pairs[rows] % shape.m, shape.m)
            inside, rest = cell >= 0, rows[cell < 0]
            if rest.size > STASH:
                raise StashOverflowError
            source[k * shape.bin + cell[inside]] = rows[inside]
            source[k * shape.bin + 2 * shape.m : k * shape.bin + 2 * shape.m + rest.size] = rest
        self.state.clock[1] = 1
        self.forget()
        return source

    @property
    def stash_size(self) -> int:
        """Blocks in the stashes of all tables. Secret."""
        return sum(map(len, self._stash.values()))


def _with_age(entry: Entry, age: int) -> Entry:
    return entry[0] | age << AGE_SHIFT, entry[1]


def _aged(entry: Entry) -> tuple[Entry, int]:
    return (entry[0] & ((1 << AGE_SHIFT) - 1), entry[1]), entry[0] >> AGE_SHIFT
