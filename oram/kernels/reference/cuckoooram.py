"""Cuckoo ORAM: the specification of the hierarchy over cuckoo hash tables. docs/schemes/cuckoo.md says what and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from oram.backends.base import Slots
from oram.errors import StashOverflowError
from oram.kernels.base import (
    ABSENT,
    EMPTY,
    OLD,
    At,
    CuckooPlan,
    CuckooState,
    CuckooWrite,
    Keys,
    Op,
    Requests,
    TamperedError,
)
from oram.kernels.reference.coins import Coins
from oram.kernels.reference.hierarchy import Hierarchy
from oram.params import CuckooGeometry, Table
from oram.params.cuckoo import CHUNK_STASH, STASH, Part, Segment, Work
from oram.types import I64, U8, U32

Block = tuple[int, bytes]  # address and content


def place(pairs: I64, m: int) -> I64:
    """Cell of each entry, int64 (n,): 2h in the first table, 2h+1 in the second, -1 in the stash. The stash is as small as it can be.

    pairs int64 (n, 2): its cell h in each table. A component of the graph of cells and entries holds as many entries as it has cells: the
    first entries, in order, that leave no component with more are placed. The cells that stay empty are spread evenly over the table.
    """
    n = len(pairs)
    ends = [(2 * u, 2 * v + 1) for u, v in pairs.tolist()]
    root = list(range(2 * m))
    full = [False] * (2 * m)  # the component has a cycle
    degree, edges = (
        [0] * (2 * m),
        [0] * (2 * m),
    )  # entries at a cell that are not placed yet, and the XOR of their numbers
    cell = np.full(n, -1, np.int64)
    open_ = [False] * n

    def find(v: int) -> int:
        while root[v] != v:
            root[v] = root[root[v]]
            v = root[v]
        return v

    for e, (u, v) in enumerate(ends):
        a, b = find(u), find(v)
        if full[a] and (a == b or full[b]):
            continue  # to the stash
        full[b] = a == b or full[a] or full[b]
        root[a] = b
        open_[e] = True
        for w in (u, v):
            degree[w] += 1
            edges[w] ^= e

    both: list[int] = [u ^ v for u, v in ends]

    def put(e: int, w: int) -> int:
        """Entry e in cell w; the cell at its other end."""
        cell[e], open_[e] = w, False
        other = both[e] ^ w
        for x in (w, other):
            degree[x] -= 1
            edges[x] ^= e
        return other

    stride = next(a for a in range(int(2 * m * 0.6180339887) | 1, 4 * m) if math.gcd(a, 2 * m) == 1)
    for k in range(
        2 * m
    ):  # trees, from their leaves, in an order that favours neither low nor high cells to stay empty
        w = k * stride % (2 * m)
        while degree[w] == 1:
            w = put(edges[w], w)
    for e in range(n):  # cycles
        if open_[e]:
            w = put(e, ends[e][0])
            while degree[w] == 1:
                w = put(edges[w], w)
    return cell


@dataclass(slots=True, eq=False)
class Build:
    """A rebuild under way."""

    table: Table
    work: Work
    source: dict[int, Table | None]  # of each member: the table that has its live copy; None: the client
    cell: dict[int, int]
    mine: dict[int, bytes]  # members that the client has itself
    hand: dict[int, bytes] = field(default_factory=dict)  # what the current segment has read
    reading: int = -1
    content: list[Block | None] = field(default_factory=list)  # of the segment being written
    writing: int = -1
    stash: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Probe:
    """An access to one table."""

    table: Table
    slots: tuple[int, int]
    real: bool


@dataclass(slots=True, eq=False)
class Step:
    """One access of a batch, as far as it is public, and whether its block is where."""

    clock: int
    probes: list[Probe]
    work: list[tuple[Table, list[Part]]]


class ReferenceCuckoo(Hierarchy[CuckooState, CuckooGeometry]):
    """The hierarchy. A batch is its requests one after the other, with all of their reads at once."""

    def __init__(self, geometry: CuckooGeometry, state: CuckooState, keys: Keys, hash_key: bytes) -> None:
        super().__init__(geometry, state, keys, hash_key)
        self._steps: list[Step] = []
        self.forget(cold=False)

    # --- hash functions

    def pairs(self, table: Table, addr: npt.NDArray[np.integer]) -> I64:
        """The cells of these addresses in both tables of an epoch, int64 (n, 2): 128 bits of a PRF, multiplied high."""
        words = self._words(table, addr)
        m = np.uint64(self._geometry.levels[table.level].m)
        high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
        return ((high * m + (low * m >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)

    # --- the index

    def _flush(self, code: int, clock: int) -> int:
        """The flush of a code that is one, at this clock."""
        now = clock // self._geometry.c
        return now - (now - (code - 2)) % self._geometry.code_cycle

    def _home(self, code: int, clock: int) -> Table | None:
        """The table that has the live copy of a block that is there; None: a top buffer."""
        if code == OLD:
            return self._geometry.bottom(clock, self._built)
        return self._geometry.home(self._flush(code, clock), clock, self._built)

    def live(self, table: Table, addr: U32) -> npt.NDArray[np.bool_]:
        """Which of these addresses, found in a table, are there and not in a newer one."""
        clock = self._clock
        codes = np.where(addr == EMPTY, ABSENT, self.state.code[np.where(addr == EMPTY, 0, addr)])
        here = [code for code in np.unique(codes).tolist() if code != ABSENT and self._home(code, clock) == table]
        return np.isin(codes, here)

    def rows(self) -> dict[int, tuple[int, int]]:
        """Page and row of each block whose live copy is in a top buffer."""
        codes = self.state.code
        return {
            a: at
            for a, at in self._row.items()
            if codes[a] != ABSENT and self._home(int(codes[a]), self._clock) is None
        }

    # --- after an opening

    def forget(self, *, cold: bool = True) -> None:
        """The state was loaded anew: forget what lies outside it."""
        g, state = self._geometry, self.state
        self._cold = cold
        self._stash: dict[Table, dict[int, bytes]] = {}
        self._builds: dict[Table, Build] = {}
        self._row: dict[int, tuple[int, int]] = {}  # newest row of an address in the top buffers
        clock = self._clock
        for flush in range(max(0, clock // g.c - g.duration(g.L) // g.c - 1), clock // g.c + 1):
            page = g.page(flush)
            if flush == clock // g.c or g.home(flush, clock, self._built) is None:
                rows = range(clock % g.c if flush == clock // g.c else g.c)
                self._row.update((int(state.page_addr[page, row]), (page, row)) for row in rows)
        self._row.pop(EMPTY, None)

    def resume(self) -> tuple[I64, I64]:
        """Stashes of all tables, and what the rebuilds had read of their current segment."""
        if not self._cold:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._geometry.again(self._clock, self._built)

    def resumed(self, slots: Slots) -> None:
        """Put what was read where it was."""
        g, clock = self._geometry, self._clock
        numbers, epochs = self.resume()
        addr, blocks = self.open_slots(numbers, epochs, slots)
        found, at = list(zip(addr.tolist(), map(bytes, blocks), strict=True)), 0
        for table in g.alive(clock, self._built):
            self._stash[table] = {a: block for a, block in found[at : at + STASH] if a != EMPTY}
            at += STASH
        for table, _, part in g.in_hand(clock, self._built):
            build = self._begin(table)
            if part is not None:
                self._take(build, part, found[at : at + part.last])
                at += part.last
            self._builds[table] = build
        self._cold = False

    # --- the plan

    def plan(self, requests: Requests) -> CuckooPlan:
        """Which slots the batch reads."""
        assert not self.resume()[0].size, "`resume` comes first"
        self._cold = False
        g, coins, built = self._geometry, Coins(requests.seed.tobytes()), self._built
        self._steps = []
        codes: dict[int, int] = {}
        known: set[int] = set()
        slots: list[int] = []
        epochs: list[int] = []
        works = {table: build.work for table, build in self._builds.items()}
        m = requests.m
        for r, (op, addr) in enumerate(zip(requests.ops[:m].tolist(), requests.addresses[:m].tolist(), strict=True)):
            clock = self._clock + r
            code = ABSENT if op == Op.DUMMY else codes.get(addr, int(self.state.code[addr]))
            home = None if code == ABSENT else self._home(code, clock)
            step = Step(clock, [], [])
            for table in g.alive(clock, built):
                cells = g.levels[table.level].m
                u, v = coins.below(cells), coins.below(cells)  # drawn for a real probe too
                if table == home:
                    u, v = self.pairs(table, np.array([addr]))[0].tolist()
                first = g.first_slot(table)
                probe = Probe(table, (first + 2 * u, first + 2 * v + 1), table == home)
                step.probes.append(probe)
                for slot in probe.slots:
                    if slot not in known:
                        slots.append(slot)
                        epochs.append(table.epoch)
            wrote: list[int] = []
            for table in g.running(clock):
                work = works.setdefault(table, works.get(table) or g.work(table, built))
                parts = work.parts(clock - table.epoch * g.c)
                step.work.append((table, parts))
                for part in parts:
                    here, under = work.slots(part)
                    if work.segments[part.segment].kind in ("input", "middle"):
                        fresh = [i for i, slot in enumerate(here.tolist()) if slot not in known]
                        slots += here[fresh].tolist()
                        epochs += under[fresh].tolist()
                    else:
                        wrote += here.tolist()
            known.update(wrote)
            if op != Op.DUMMY:  # what the code will be
                gone = op == Op.REMOVE or (op == Op.READ and code == ABSENT)
                codes[addr] = ABSENT if gone else 2 + clock // g.c % g.code_cycle
            self._steps.append(step)
        pairs = [probe.slots for step in self._steps for probe in step.probes]
        return CuckooPlan(
            np.array(slots, np.int64), np.array(epochs, np.int64), np.array(pairs, np.int64).reshape(-1, 2)
        )

    # --- the access

    def access(self, requests: Requests, plan: CuckooPlan, slots: Slots) -> CuckooWrite:
        """One request after the other: serve it, append to the top buffer, work at the rebuilds."""
        g, state = self._geometry, self.state
        addr_of, block_of = self.open_slots(plan.slots, plan.epochs, slots)
        opened: Iterator[Block] = iter(list(zip(addr_of.tolist(), map(bytes, block_of), strict=True)))
        writes: dict[int, tuple[int, Block | None]] = {}  # slot -> epoch and content

        def fetch(slot: int) -> Block:
            if slot in writes:
                return writes[slot][1] or (EMPTY, b"")
            return next(opened)

        before = np.zeros(requests.m, np.uint16)
        for r, step in enumerate(self._steps):
            op, addr, clock = int(requests.ops[r]), int(requests.addresses[r]), step.clock
            code = ABSENT if op == Op.DUMMY else int(state.code[addr])
            before[r] = code
            for table, _ in step.work:
                if table not in self._builds:
                    self._builds[table] = self._begin(table)
            block = self._find(addr, code, step, fetch)
            requests.out[r] = 0 if block is None else np.frombuffer(block, np.uint8)
            if op == Op.WRITE:
                block = requests.data[r].tobytes()
            elif op == Op.REMOVE:
                block = None
            self._append(op, addr, block, clock)
            requests.where[r] = At.REPEAT if op == Op.DUMMY else At.NONE if block is None else At.POOL
            requests.after[r] = 0 if block is None else np.frombuffer(block, np.uint8)
            wrote: list[tuple[int, int, Block | None]] = []
            for table, parts in step.work:
                build = self._builds[table]
                for part in parts:
                    here = build.work.slots(part)[0].tolist()
                    if build.work.segments[part.segment].kind in ("input", "middle"):
                        self._take(build, part, [fetch(slot) for slot in here])
                    else:
                        content = self._give(build, part)
                        wrote += [(slot, table.epoch, block) for slot, block in zip(here, content, strict=True)]
            writes.update((slot, (epoch, block)) for slot, epoch, block in wrote)
            state.clock[0] = clock + 1
            self._age(clock)
            for table in [t for t in self._builds if g.done(t) == clock + 1]:
                for old in g.inputs(table, self._built):
                    self._stash.pop(old, None)
                self._stash[table] = self._builds.pop(table).stash
        return CuckooWrite(*self._seal(writes), before)

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """Plan and access over the region's own memory."""
        plan = self.plan(requests)
        written = self.access(requests, plan, Slots(region.data[plan.slots], region.present[plan.slots]))
        region.data[written.slots], region.present[written.slots] = written.data, 1

    def _find(self, addr: int, code: int, step: Step, fetch: Callable[[int], Block]) -> bytes | None:
        """All probes of an access; the block that was asked for."""
        found: bytes | None = None
        for probe in step.probes:
            for slot in probe.slots:
                a, block = fetch(slot)
                if probe.real and a == addr:
                    found = block
            if probe.real and found is None:
                found = self._stash[probe.table].get(addr)
            if probe.real and found is None:
                raise TamperedError
        if found is None and code != ABSENT:
            page, row = self._row[addr]
            found = self.state.page_data[page, row].tobytes()
        return found

    def _append(self, op: int, addr: int, block: bytes | None, clock: int) -> None:
        """Every access adds one row to the top buffer, and one to the log."""
        g, state = self._geometry, self.state
        page, row = g.page(clock // g.c), clock % g.c
        at = clock % g.log_size
        state.log_addr[at], state.log_code[at] = (EMPTY, 0) if op == Op.DUMMY else (addr, state.code[addr])
        state.page_addr[page, row] = EMPTY if block is None or op == Op.DUMMY else addr
        state.page_data[page, row] = 0 if block is None else np.frombuffer(block, np.uint8)
        if op != Op.DUMMY:
            state.code[addr] = ABSENT if block is None else 2 + clock // g.c % g.code_cycle
            self._row[addr] = page, row

    def _age(self, clock: int) -> None:
        """A few entries of the index, in turn: what is in the bottom anyway is OLD, before its flush is counted over."""
        g, state = self._geometry, self.state
        bottom = g.bottom(clock + 1, self._built)
        if bottom is None:
            return
        each = -(-g.N // (g.c << g.L))
        for k in range(clock * each, (clock + 1) * each):
            code = int(state.code[k % g.N])
            if code > OLD and self._flush(code, clock + 1) < bottom.epoch:
                state.code[k % g.N] = OLD

    # --- rebuilds

    def _begin(self, table: Table) -> Build:
        """Who its members are, where their live copies lie and where they go: as of the flush at which it begins."""
        g, state, began, clock = self._geometry, self.state, table.epoch * self._geometry.c, self._clock
        codes = state.code.copy()
        for k in range(clock - 1, began - 1, -1):  # as they were then
            addr = int(state.log_addr[k % g.log_size])
            if addr != EMPTY:
                codes[addr] = state.log_code[k % g.log_size]
        now = clock // g.c
        flush = now - (now - (codes.astype(np.int64) - 2)) % g.code_cycle
        there = codes != ABSENT
        if table.level < g.L:
            there &= (codes != OLD) & (flush >= table.epoch - (1 << table.level)) & (flush < table.epoch)
        else:
            there &= (codes == OLD) | (flush < table.epoch)
        members = np.flatnonzero(there)
        old = g.bottom(began, self._built)
        home_of = {f: g.home(f, began, self._built) for f in np.unique(flush[members]).tolist()}
        homes = [
            old if o else home_of[f]
            for o, f in zip((codes[members] == OLD).tolist(), flush[members].tolist(), strict=True)
        ]
        addresses = members.tolist()
        source = dict(zip(addresses, homes, strict=True))
        cell = dict(zip(addresses, place(self.pairs(table, members), g.levels[table.level].m).tolist(), strict=True))
        page, mine = g.page(table.epoch - 1), {}
        for row, addr in enumerate(state.page_addr[page].tolist()):
            if addr in source and source[addr] is None:
                mine[addr] = state.page_data[page, row].tobytes()
        for addr, home in source.items():
            if home is not None and addr in self._stash[home]:
                mine[addr] = self._stash[home][addr]
        return Build(table, g.work(table, self._built), source, cell, mine)

    def _take(self, build: Build, part: Part, found: Sequence[Block]) -> None:
        """Slots read: the live copies of members stay in hand."""
        segment = build.work.segments[part.segment]
        if build.reading != part.segment:
            build.reading, build.hand = part.segment, {}
        if segment.kind == "middle":
            build.hand.update((addr, block) for addr, block in found if addr != EMPTY)
            return
        for (addr, block), slot in zip(found, build.work.slots(part)[0].tolist(), strict=True):
            if addr == EMPTY:
                continue
            home = build.source.get(addr)
            if (
                home is not None
                and 0 <= slot - self._geometry.first_slot(home) < 2 * self._geometry.levels[home.level].m
            ):
                build.hand[addr] = block

    def _give(self, build: Build, part: Part) -> list[Block | None]:
        """The content of slots to be written."""
        segment = build.work.segments[part.segment]
        if build.writing != part.segment:
            build.writing = part.segment
            build.content = self._emitted(build) if segment.kind == "emit" else self._output(build, segment)
        return build.content[part.first : part.last]

    def _emitted(self, build: Build) -> list[Block | None]:
        """A fixed number of slots for each bucket; what is too much, and what is for the stash, goes into those behind them."""
        shape = self._geometry.levels[build.table.level]
        rows: list[list[Block | None]] = [[] for _ in range(shape.b)]
        rest: list[Block | None] = []
        for addr, block in build.hand.items():
            cell = build.cell[addr]
            row = rest if cell < 0 else rows[cell // 2 // shape.width]
            (rest if row is not rest and len(row) == shape.r else row).append((addr, block))
        if len(rest) > CHUNK_STASH:
            raise StashOverflowError
        full: list[Block | None] = []
        for row in rows:
            full += [*row, *[None] * (shape.r - len(row))]
        return [*full, *rest, *[None] * (CHUNK_STASH - len(rest))]

    def _output(self, build: Build, segment: Segment) -> list[Block | None]:
        """A bucket's cells, or the stash."""
        shape = self._geometry.levels[build.table.level]
        entries = [*build.hand.items(), *build.mine.items()]
        if segment.kind == "stash":
            if shape.b == 1:
                entries = [(addr, block) for addr, block in entries if build.cell[addr] < 0]
            else:
                entries = [*build.hand.items(), *((a, block) for a, block in build.mine.items() if build.cell[a] < 0)]
            if len(entries) > STASH:
                raise StashOverflowError
            build.stash = dict(entries)
            return [*entries, *[None] * (STASH - len(entries))]
        first = 2 * segment.number * shape.width
        content: list[Block | None] = [None] * segment.size
        for addr, block in entries:
            at = build.cell[addr] - first
            if 0 <= at < len(content) and build.cell[addr] >= 0:
                content[at] = addr, block
        return content

    # --- sealing

    def _seal(self, writes: dict[int, tuple[int, Block | None]]) -> tuple[I64, U8]:
        data = np.empty((len(writes), self._geometry.slot_size), np.uint8)
        first = self._keys.take(len(writes))
        for i, (slot, (epoch, block)) in enumerate(writes.items()):
            data[i] = self._sealed(slot, epoch, first + i, block)
        return np.array(list(writes), np.int64), data

    # --- bulk load

    def build(self, addr: U32) -> I64:
        """Place these blocks in a bottom of epoch 0."""
        g, table = self._geometry, Table(self._geometry.L, 0)
        shape = g.levels[g.L]
        cell = place(self.pairs(table, addr), shape.m)
        source = np.full(shape.table, -1, np.int64)
        inside = np.flatnonzero(cell >= 0)
        source[cell[inside]] = inside
        rest = np.flatnonzero(cell < 0)
        if rest.size > STASH:
            raise StashOverflowError
        source[2 * shape.m : 2 * shape.m + rest.size] = rest
        self.state.code[addr] = OLD
        self.state.clock[1] = 1
        self.forget()
        return source

    @property
    def stash_size(self) -> int:
        """Blocks in the stashes of all tables. Secret."""
        return sum(map(len, self._stash.values()))
