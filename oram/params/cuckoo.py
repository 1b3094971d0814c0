"""Parameters of Cuckoo ORAM, and the geometry of its levels: everything about it that is public.

docs/schemes/cuckoo.md derives the schedule and the constants. Time is counted in accesses (the *clock*) and in flushes of c accesses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from oram.params.common import IN_MEMORY, MAX_POOL, MAX_SLOT, TAG_SIZE, SlotCost, check_shape, refuse
from oram.types import I64

Rebuild = Literal["deamortized", "amortized"]
Index = Literal["client", "none"]

MAX_L = 14  # levels above the bottom: an index entry of two bytes tells flushes apart for more than three bottom epochs
MAX_BLOCKS = 1 << 29  # a rebuild within one access must find enough nonces
STASH = (
    32  # blocks of each table's stash at the server; more are left over with a probability below 2^-80 for eps >= 0.1
)
CHUNK_STASH = (
    16  # the same, for what one chunk of a pass leaves over; docs/schemes/cuckoo.md has the probability of more
)
IN_HAND = 4096  # entries of a level up to which one pass does
#: Room that a chunk has for a bucket, in standard deviations above the mean: more comes in a rebuild with a probability below 2^-80. Headers that do not say
#: have 6.
SLACK = 12
SPREAD = 16  # a chunk of a pass holds about SPREAD * sqrt(n) blocks


@dataclass(frozen=True, slots=True)
class CuckooParams:
    """Hierarchical ORAM over cuckoo hash tables: one round trip an access, or as many as there are tables without an index.

    c: blocks of the top buffer, a multiple of 8; None takes sqrt(N) of them, or fewer where ``tree_top`` bytes hold fewer.
    eps: each of a level's two tables has (1 + eps) n cells for n entries; rounded to thousandths.
    rebuild: "deamortized" spreads the rebuild of a level over the accesses that follow; "amortized" does it within one access, in
    client memory: fewer slots are moved, and some access pays for a whole level.
    index: "client" knows in which table each block is, for 3.5 bytes of client state a block. "none" is for the smallest client: it has no
    state for each block, and looks into one table after the other, the newest first, a round trip each.
    """

    c: int | None = None
    eps: float = 0.1
    rebuild: Rebuild = "deamortized"
    index: Index = "client"
    name: ClassVar[str] = "cuckoo"

    def problems(self) -> list[str]:
        """What is wrong with these values, in words; empty if nothing is."""
        found = []
        c: object = self.c
        if c is not None and (isinstance(c, bool) or not isinstance(c, int) or c < 8 or c % 8 or c > MAX_POOL):
            found.append(f"c must be a multiple of 8, at most {MAX_POOL}")
        eps: object = self.eps
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0.1 <= eps <= 3:
            found.append("eps must be a number from 0.1 to 3: below, the stash of a level has no useful bound")
        how: object = self.rebuild
        if how not in ("deamortized", "amortized"):
            found.append('rebuild must be "deamortized" or "amortized"')
        index: object = self.index
        if index not in ("client", "none"):
            found.append('index must be "client" or "none"')
        return found


class Table(NamedTuple):
    """One epoch of one level: the level, and the flush at which its rebuild began. Its hash functions are its own."""

    level: int
    epoch: int


class Segment(NamedTuple):
    """A stretch of a rebuild's work. kind: "input" and "middle" are read, "emit", "output" and "stash" are written."""

    kind: str
    number: int  # of the chunk or bucket
    size: int  # slots
    source: int  # for what is written: the segment that was read for it


class Part(NamedTuple):
    """A part of a segment that one access does."""

    segment: int
    first: int
    last: int


@dataclass(frozen=True)
class LevelShape:
    """A level's public numbers, in blocks or slots."""

    spare: ClassVar[int] = CHUNK_STASH  #: slots of what a chunk leaves over
    n: int  # entries
    m: int  # cells of each of the two tables
    b: int  # chunks of the first pass, and buckets of the second; 1: there is one pass
    r: int  # slots that each chunk appends for each bucket

    @classmethod
    def of(cls, n: int, eps: int, *, single: bool, slack: int) -> LevelShape:
        """The shape for n entries; eps in thousandths, slack in standard deviations of what a chunk has for a bucket."""
        m = -(-n * (1000 + eps) // 1000)
        b = 1 if single or n < IN_HAND else max(1, math.isqrt(n) // SPREAD)
        mean = n / (b * b)
        return cls(n, m, b, math.ceil(mean + slack * math.sqrt(mean) + 6))

    @property
    def table(self) -> int:
        """Slots of a table with its stash."""
        return 2 * self.m + STASH

    @property
    def middle(self) -> int:
        """Slots of what lies between the passes."""
        return 0 if self.b == 1 else self.b * (self.b * self.r + self.spare)

    @property
    def scanned(self) -> int:
        """Slots of a table that the rebuild which consumes it reads."""
        return 2 * self.m

    @property
    def second(self) -> int:
        """Slots that the second pass moves."""
        return self.middle + self.table

    @property
    def width(self) -> int:
        """Cells of each table that one bucket has."""
        return -(-self.m // self.b)


@dataclass(frozen=True)
class CuckooGeometry:
    """``N`` blocks of ``B`` bytes: a top buffer of c blocks, levels 0..L-1 of 2^i c entries, and the bottom, level L, of N.

    eps in thousandths.
    """

    N: int
    B: int
    c: int
    L: int
    eps: int = 100
    rebuild: Rebuild = "deamortized"
    slack: int = SLACK
    scheme: ClassVar[str] = CuckooParams.name
    stash_bound: ClassVar[int] = STASH  #: of all levels together; the mean is below one block
    most: ClassVar[int] = MAX_BLOCKS

    @classmethod
    def of(
        cls,
        capacity: int,
        block_size: int,
        params: CuckooParams,
        tree_top: int,
        cost: SlotCost = IN_MEMORY,  # noqa: ARG003
    ) -> CuckooGeometry:
        """The geometry for ``tree_top`` bytes of top buffers. ParameterError, all problems together."""
        found = check_shape(capacity, block_size) + params.problems()
        if isinstance(tree_top, bool) or not isinstance(tree_top, int) or tree_top < 0:
            found.append("tree_top must be a number of bytes, 0 or more")
        refuse(found)
        if capacity > cls.most:
            refuse([f"capacity must be at most {cls.most} with this scheme"])
        if params.c is None:
            most = min(math.isqrt(capacity), tree_top // (8 * block_size))
            L = cls._levels(capacity, max(8, most, capacity >> MAX_L))
            c = -(-capacity // (8 << L)) * 8  # so that the bottom is rebuilt every N accesses, or hardly more
        else:
            c, L = params.c, cls._levels(capacity, params.c)
            refuse([] if L <= MAX_L else [f"c must be at least {-(-capacity // (8 << MAX_L)) * 8} for this capacity"])
        g = cls(capacity, block_size, c, L, round(1000 * params.eps), params.rebuild)
        refuse([] if g.slot_size < MAX_SLOT else ["a slot must be smaller than 2 GiB: lower block_size"])
        refuse([] if g.pages * g.c <= MAX_POOL else [f"the top buffers may hold {MAX_POOL} blocks: lower c"])
        return g

    @staticmethod
    def _levels(N: int, c: int) -> int:
        return max(1, (-(-N // c) - 1).bit_length())

    # --- sizes

    @property
    def slot_size(self) -> int:
        """Bytes of a sealed slot: reference, address, block, tag."""
        return 12 + self.B + TAG_SIZE

    @property
    def pages(self) -> int:
        """Top buffers in client memory: one for each level that it will be rebuilt into, as it is kept until that is done."""
        return self.L + 1

    @cached_property
    def levels(self) -> tuple[LevelShape, ...]:
        """Shapes of levels 0..L."""
        single = self.rebuild == "amortized"
        sizes = [self.c << i for i in range(self.L)] + [self.N]
        return tuple(LevelShape.of(n, self.eps, single=single, slack=self.slack) for n in sizes)

    def duration(self, level: int) -> int:
        """Accesses over which a level's rebuild is spread: a quarter of the time until its entries are needed."""
        return (self.c << level) // 4 if self.rebuild == "deamortized" else 1

    @property
    def log_size(self) -> int:
        """Accesses that the client remembers: those of the longest rebuild."""
        return self.duration(self.L)

    @property
    def code_cycle(self) -> int:
        """Flushes after which an index entry would mean another one."""
        return (1 << 16) - 2

    @cached_property
    def _layout(self) -> tuple[dict[tuple[int, int], int], dict[int, int], int]:
        tables, middle, at = {}, {}, 0
        for level, shape in enumerate(self.levels):
            for copy in range(level + 1, self.L + 1) if level < self.L else range(2):
                tables[level, copy] = at
                at += shape.table
        for level, shape in enumerate(self.levels):
            middle[level] = at
            at += shape.middle
        return tables, middle, at

    @property
    def slots(self) -> int:
        """Slots at the server."""
        return self._layout[2]

    def place(self, level: int, copy: int) -> int:
        """First slot of a level's tables, by the level that will consume them; of the bottom's, in turn."""
        return self._layout[0][level, copy]

    def first_middle(self, level: int) -> int:
        """First slot of what lies between the passes of a level."""
        return self._layout[1][level]

    def first_slot(self, table: Table) -> int:
        """Where a table lies: a level has a place for each level above it that may consume it, so that none is in the way of another."""
        copy = (table.epoch >> self.L) & 1
        if table.level < self.L:
            copy = self.target(table.epoch + (1 << table.level))
        return self._layout[0][table.level, copy]

    # --- the schedule

    def target(self, flush: int) -> int:
        """The level that is rebuilt from this flush on."""
        return min((flush & -flush).bit_length() - 1, self.L)

    def page(self, flush: int) -> int:
        """The top buffer that is filled during this flush."""
        return self.target(flush + 1)

    def done(self, table: Table) -> int:
        """The clock from which on a table is probed."""
        return table.epoch * self.c + self.duration(table.level)

    def bottom(self, clock: int, built: bool) -> Table | None:
        """The bottom table that is probed."""
        epoch = clock // self.c >> self.L << self.L
        if epoch and self.done(Table(self.L, epoch)) > clock:  # that of a bulk load is there from the beginning
            epoch -= 1 << self.L
        return Table(self.L, epoch) if epoch > 0 or (epoch == 0 and built) else None

    def home(self, flush: int, clock: int, built: bool) -> Table | None:
        """Where what was asked for in this flush is now, unless it was asked for again; None: in a top buffer."""
        if self.done(Table(self.L, ((flush >> self.L) + 1) << self.L)) <= clock:
            return self.bottom(clock, built)
        for level in range(self.L - 1, -1, -1):
            table = Table(level, ((flush >> level) + 1) << level)
            if not flush >> level & 1 and self.done(table) <= clock:
                return table
        return None

    def alive(self, clock: int, built: bool) -> list[Table]:
        """The tables that an access probes: the newest first."""
        found, flush, bottom = [], clock // self.c - 1, self.bottom(clock, built)
        start = 0 if bottom is None else bottom.epoch
        while flush >= start:
            table = self.home(flush, clock, built)
            if table is None:
                flush -= 1
            else:
                found.append(table)
                flush = table.epoch - (1 << table.level) - 1
        return found if bottom is None else [*found, bottom]

    def running(self, clock: int) -> list[Table]:
        """The tables that an access does some work for."""
        now, found = clock // self.c, []
        for level in range(self.L):
            a = now >> level
            found.append(Table(level, (a - 1 + (a & 1)) << level))
        found.append(Table(self.L, now >> self.L << self.L))
        return [table for table in found if table.epoch > 0 and clock < self.done(table)]

    def inputs(self, table: Table, built: bool) -> list[Table]:
        """The tables that a rebuild reads."""
        found = [Table(level, table.epoch - (1 << level)) for level in range(min(table.level, self.L))]
        old = self.bottom(table.epoch * self.c, built) if table.level == self.L else None
        return found if old is None else [*found, old]

    # --- the work of a rebuild

    def work(self, table: Table, built: bool) -> Work:
        """All of it."""
        return Work(self, table, built)

    def in_hand(self, clock: int, built: bool) -> list[tuple[Table, Work, Part | None]]:
        """For each rebuild under way: what of its segments an opening has to read again."""
        found: list[tuple[Table, Work, Part | None]] = []
        for table in self.running(clock):
            work = self.work(table, built)
            last = work.position(clock - table.epoch * self.c)
            if last is None:
                continue
            segment = work.segments[last.segment]
            if segment.source < 0 or segment.kind == "middle":
                found.append((table, work, Part(last.segment, 0, last.last)))
            elif last.last < segment.size or work.shape.b == 1:
                found.append((table, work, Part(segment.source, 0, work.segments[segment.source].size)))
            else:
                found.append((table, work, None))
        return found

    def again(self, clock: int, built: bool) -> tuple[I64, I64]:
        """All that an opening has to read: the stashes of all tables, then what the rebuilds had in hand. Slots and epochs int64 (s,)."""
        slots, epochs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for table in self.alive(clock, built):
            slots.append(self.first_slot(table) + 2 * self.levels[table.level].m + np.arange(STASH))
            epochs.append(np.full(STASH, table.epoch, np.int64))
        for _, work, part in self.in_hand(clock, built):
            if part is not None:
                read, under = work.slots(part)
                slots.append(read)
                epochs.append(under)
        return np.concatenate(slots), np.concatenate(epochs)

    def moved(self, level: int, *, built: bool = True) -> int:
        """Slots that a level's rebuild moves."""
        shape = self.levels[level]
        read = sum(self.levels[i].scanned for i in range(min(level, self.L)))
        read += shape.scanned if level == self.L and built else 0
        return read + shape.middle + shape.second

    def max_writes(self, m: int) -> int:
        """Slots that m accesses write at most."""
        total = 0
        for level, shape in enumerate(self.levels):
            all_of_it, period = shape.middle + shape.table, self.c << min(level + 1, self.L)
            most = all_of_it * (m // period + 2)
            if (
                self.rebuild == "deamortized"
            ):  # in each pass a share of its slots, rounded up; no pass is shorter than one access
                first, second = self.passes(level)
                most = min(most, m * max(-(-shape.middle // max(first, 1)), -(-all_of_it // second)) + m)
            total += most
        return total

    def passes(self, level: int) -> tuple[int, int]:
        """Accesses of the first pass of a rebuild, and of the second: in proportion to what they move."""
        shape, all_of_it = self.levels[level], self.duration(level)
        second = shape.second
        first = self.moved(level) - second
        share = min(all_of_it - 1, max(1 if first else 0, round(all_of_it * first / (first + second))))
        return share, all_of_it - share

    @cached_property
    def max_batch(self) -> int:
        """Requests a batch: as many as keep its working memory to about 64 MiB."""
        each = sum(self.moved(level) / (self.c << level) for level in range(self.L + 1)) + 4 * self.L
        return max(1, min(1024, int((64 << 20) / (2 * each * self.slot_size))))

    def public(self) -> dict[str, Any]:
        """Its part of the header."""
        return {"c": self.c, "L": self.L, "eps": self.eps, "rebuild": self.rebuild, "slack": self.slack}

    @classmethod
    def from_public(cls, N: int, B: int, public: dict[str, Any]) -> Self:
        """From an authenticated header."""
        return cls(N, B, public["c"], public["L"], public["eps"], public["rebuild"], public.get("slack", 6))


class Work:
    """The work of one rebuild: a function of its table, as public as that.

    First pass, for each of b chunks: read the chunk (the i-th part of every input), then append r slots for each bucket, and CHUNK_STASH more.
    Second pass, for each bucket: read what the chunks appended for it, write its cells. At last the stash. Where b is 1 there is nothing
    in between: all inputs are read, all cells written.
    """

    def __init__(self, geometry: CuckooGeometry, table: Table, built: bool) -> None:
        g = geometry
        self._g, self.shape = g, g.levels[table.level]
        b, r = self.shape.b, self.shape.r
        self._first, self._middle, self._epoch = g.first_slot(table), g._layout[1][table.level], table.epoch
        self._inputs = [(g.first_slot(old), g.levels[old.level].scanned, old.epoch) for old in g.inputs(table, built)]
        first: list[Segment] = []
        for i in range(b):
            size = sum(size * (i + 1) // b - size * i // b for _, size, _ in self._inputs)
            first.append(Segment("input", i, size, -1))
            if b > 1:
                first.append(Segment("emit", i, b * r + self.shape.spare, len(first) - 1))
        self.segments = first.copy()
        self._add_second_pass()
        ends = np.cumsum([0, *(segment.size for segment in self.segments)])
        self._ends, self._cut, self._passes = ends, int(ends[len(first)]), g.passes(table.level)

    def _add_second_pass(self) -> None:
        b, r, m, width = self.shape.b, self.shape.r, self.shape.m, self.shape.width
        for k in range(b):
            if b > 1:
                self._add("middle", k, b * r)
            self._add("output", k, 2 * (min((k + 1) * width, m) - min(k * width, m)))
        if b > 1:
            self._add("middle", b, b * CHUNK_STASH)
        self._add("stash", 0, STASH)

    def _add(self, kind: str, number: int, size: int) -> None:
        self.segments.append(Segment(kind, number, size, 0 if self.shape.b == 1 else len(self.segments) - 1))

    def parts(self, k: int) -> list[Part]:
        """What the k-th access of the rebuild does: an equal share of its pass."""
        (first, second), cut, end = self._passes, self._cut, int(self._ends[-1])
        if k < first:
            low, high = cut * k // first, cut * (k + 1) // first
        else:
            low, high = (cut + (end - cut) * (k - first + i) // second for i in range(2))
            low = 0 if k == 0 else low  # there is no first pass, or no access of its own for it
        found, at = [], int(np.searchsorted(self._ends, low, "right")) - 1
        while low < high:
            begin, last = int(self._ends[at]), min(high, int(self._ends[at + 1]))
            if last > low:
                found.append(Part(at, low - begin, last - begin))
            low, at = last, at + 1
        return found

    def begin(self, segment: int) -> int:
        """Slots of the work before a segment."""
        return int(self._ends[segment])

    def position(self, k: int) -> Part | None:
        """The last part that was done before the k-th access."""
        return self.parts(k - 1)[-1] if k else None

    def slots(self, part: Part) -> tuple[I64, I64]:
        """The slots of a part, int64 (n,), and the epochs under which they are sealed."""
        b, r = self.shape.b, self.shape.r
        segment, at = self.segments[part.segment], np.arange(part.first, part.last)
        epochs = np.full(at.size, self._epoch, np.int64)
        if segment.kind == "input":
            found, below = at.copy(), 0
            for first, size, epoch in self._inputs:
                low, high = size * segment.number // b, size * (segment.number + 1) // b
                here = (at >= below) & (at < below + high - low)
                found[here] += first + low - below
                epochs[here] = epoch
                below += high - low
            return found, epochs
        if segment.kind == "emit":
            stash = self._middle + b * b * r + segment.number * self.shape.spare + at - b * r
            return np.where(at < b * r, self._middle + (at // r * b + segment.number) * r + at % r, stash), epochs
        if segment.kind == "middle":
            return self._middle + segment.number * b * r + at, epochs
        return self._first + self._output(segment) + at, epochs

    def _output(self, segment: Segment) -> int:
        """Slots of the table before a segment."""
        return 2 * self.shape.m if segment.kind == "stash" else 2 * min(segment.number * self.shape.width, self.shape.m)
