"""The geometry of Cuckoo ORAM without an index: tables of bins, so that a rebuild can place a table bin by bin.

docs/schemes/cuckoo.md derives the constants. The schedule is that of the hierarchy with an index. Source: the bins of FutORAMa (Asharov,
Komargodski, Michelson: CCS 2023), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from oram.params import cuckoo
from oram.params.cuckoo import STASH, CuckooGeometry, LevelShape, Part, Segment, Table, Work
from oram.types import I64

LEFT = 128  # blocks that the chunks of one rebuild leave over together; more are with a probability below 2^-80
STASHED = 4 * STASH  # entries that all tables leave over together: the mean is below one
ADDRESS_BITS = 27  # of a sealed word; above them whether the address is empty, and four bits of age


@dataclass(frozen=True)
class BinShape(LevelShape):
    """A level's public numbers. m: cells of each of the two tables of a bin; b: bins, and chunks of the first pass."""

    spare: ClassVar[int] = LEFT

    @classmethod
    def binned(cls, n: int, entries: int, eps: int, *, single: bool) -> BinShape:
        """The shape for n entries, chosen among so many of all inputs; eps in thousandths."""
        b = 1 if single or n < cuckoo.IN_HAND else max(1, math.isqrt(entries) // cuckoo.SPREAD)
        load, mean = n / b, entries / (b * b)
        slack = 0 if b == 1 else math.ceil(7 * math.sqrt(load))  # the load of a bin is random
        m = -(-n * (1000 + eps) // (1000 * b)) + slack
        return cls(n, m, b, math.ceil(mean + 6 * math.sqrt(mean) + 6))

    @property
    def bin(self) -> int:
        """Slots of a bin: its cells, then its stash."""
        return 2 * self.m + STASH

    @property
    def hand(self) -> int:
        """Entries of a chunk or a bin that are in hand, each address once. More than that would not fit into what is written either."""
        return self.n if self.b == 1 else max(self.b * self.r + LEFT, self.m + self.m // 4 + STASH)

    @property
    def cells(self) -> int:
        """Cells of the first tables of all bins."""
        return self.b * self.m

    @property
    def table(self) -> int:
        """Slots of a table."""
        return self.b * self.bin

    @property
    def scanned(self) -> int:
        """Slots of a table that the rebuild which consumes it reads: all."""
        return self.table

    @property
    def second(self) -> int:
        """Slots that the second pass moves. What the chunks left over is still in client memory."""
        return (0 if self.b == 1 else self.b * self.b * self.r) + self.table

    def slots(self, cells: I64) -> I64:
        """Slots in a table, int64 (n, 2), of pairs of cells (n, 2): the first counted over all bins, the second in the bin of the first."""
        begin = cells[:, 0] // self.m * self.bin
        return np.stack([begin + 2 * (cells[:, 0] % self.m), begin + 2 * cells[:, 1] + 1], axis=1)


@dataclass(frozen=True)
class BinnedGeometry(CuckooGeometry):
    """A hierarchy without an index."""

    most: ClassVar[int] = 1 << ADDRESS_BITS

    @cached_property
    def levels(self) -> tuple[BinShape, ...]:
        """Shapes of levels 0..L. The bottom is chosen among the entries of the old one and of all levels."""
        single = self.rebuild == "amortized"
        sizes = [(self.c << i, self.c << i) for i in range(self.L)] + [(self.N, self.N + (self.c << self.L))]
        return tuple(BinShape.binned(n, entries, self.eps, single=single) for n, entries in sizes)

    def work(self, table: Table, built: bool) -> BinnedWork:
        """All of a rebuild's work."""
        return BinnedWork(self, table, built)

    def stash_slots(self, table: Table) -> I64:
        """The slots of its stashes, bin by bin."""
        shape = self.levels[table.level]
        first = self.first_slot(table) + 2 * shape.m + shape.bin * np.arange(shape.b)
        return (first[:, np.newaxis] + np.arange(STASH)).reshape(-1)

    def begun(self, clock: int, built: bool) -> list[tuple[Table, BinnedWork, list[Part]]]:
        """For each rebuild under way that has done something: what an opening has to read again of it."""
        found = []
        for table in self.running(clock):
            work, k = self.work(table, built), clock - table.epoch * self.c
            if k > 0:
                found.append((table, work, work.known(k)))
        return found

    def again(self, clock: int, built: bool) -> tuple[I64, I64]:
        """All that an opening has to read: the stashes of all tables, then what the rebuilds had in hand. Slots and epochs int64 (s,)."""
        slots, epochs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for table in self.alive(clock, built):
            slots.append(self.stash_slots(table))
            epochs.append(np.full(slots[-1].size, table.epoch, np.int64))
        for _, work, parts in self.begun(clock, built):
            for part in parts:
                read, under = work.slots(part)
                slots.append(read)
                epochs.append(under)
        return np.concatenate(slots), np.concatenate(epochs)

    def public(self) -> dict[str, Any]:
        """Its part of the header. What chunks leave over has room of its own here, and no slack."""
        public = {**super().public(), "index": "none"}
        del public["slack"]
        return public

    @classmethod
    def from_public(cls, N: int, B: int, public: dict[str, Any]) -> Self:
        """From an authenticated header."""
        return super().from_public(N, B, {**public, "slack": cuckoo.SLACK})


class BinnedWork(Work):
    """The work of one rebuild.

    First pass, for each of b chunks: read the chunk (the i-th part of every input), then append r slots for each bin, and LEFT more, for all that
    the chunks so far have left over. Second pass, for each bin: read what the chunks appended for it, write its cells and its stash.
    Where b is 1 there is nothing in between.
    """

    shape: BinShape

    def _add_second_pass(self) -> None:
        for k in range(self.shape.b):
            if self.shape.b > 1:
                self._add("middle", k, self.shape.b * self.shape.r)
            self._add("output", k, self.shape.bin)

    def _output(self, segment: Segment) -> int:
        return segment.number * self.shape.bin

    def _left(self, chunk: int) -> Part:
        """What the chunks up to this one have left over, where it was written."""
        begin = self.shape.b * self.shape.r
        return Part(2 * chunk + 1, begin, begin + LEFT)

    def known(self, k: int) -> list[Part]:
        """What of its slots the client has in hand before the k-th access, from 1 on.

        That is what the chunks left over, the stashes of bins that are written, and the current chunk or bin.
        """
        last, b = self.parts(k - 1)[-1], self.shape.b
        segment = self.segments[last.segment]
        read = segment.source < 0 or segment.kind == "middle"
        source = last.segment if read else segment.source
        whole = Part(source, 0, self.segments[source].size)
        if b == 1:
            return [Part(source, 0, last.last) if read else whole]
        ended = not read and last.last == segment.size
        chunk = b - 1 if last.segment >= 2 * b else segment.number - (not ended)
        found = [self._left(chunk)] if chunk >= 0 else []
        if last.segment >= 2 * b:
            cells, bins = 2 * self.shape.m, segment.number + ended
            found += [Part(2 * b + 2 * k + 1, cells, cells + STASH) for k in range(bins)]
        if not ended:
            found.append(Part(source, 0, last.last) if read else whole)
        return found
