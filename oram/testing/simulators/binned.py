"""What a Cuckoo store without an index shows: the slots of rebuilds from a clock, and two of each table by a draw, a round trip for each table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from oram.testing.simulators.base import Batch, Seen
from oram.testing.simulators.cuckoo import STASH, CuckooSimulator, Epoch, Stretch, pair

__all__ = ["BinnedSimulator", "bin_pair"]

LEFT = 128


def bin_pair(leaf: int, level: int, epoch: int, m: int, bins: int) -> tuple[int, int]:
    """The cells that a request with this draw looks up in a table of bins of m cells: the first over all bins, the second in the bin of the first."""
    return pair(leaf, level, epoch, m * bins)[0], pair(leaf, level, epoch, m)[1]


class BinnedSimulator(CuckooSimulator):
    """The schedule of the hierarchy with an index. A table is bins, each with its stash; each table has a round trip of its own."""

    def __init__(self, info: Mapping[str, Any], **options: bool) -> None:
        super().__init__(info, **options)
        E = 1 + Fraction(int(info["eps"]), 1000)
        self._cells: list[int] = []  # of each of the two tables of a bin
        for level, n in enumerate(self._n):
            b = self._chunks(level)[0]
            self._cells.append(math.ceil(n * E / b) + (math.ceil(7 * (n / b) ** 0.5) if b > 1 else 0))
        at = 0
        for level in range(self._L + 1):
            for copy in range(level + 1, self._L + 1) if level < self._L else (0, 1):
                self._place[level, copy] = at
                at += self._table(level)
        for level in range(self._L + 1):
            self._between[level] = at
            b, r = self._chunks(level)
            at += 0 if b == 1 else b * (b * r + LEFT)
        self.slots = at

    def _table(self, level: int) -> int:
        return self._chunks(level)[0] * (2 * self._cells[level] + STASH)

    def _chunks(self, level: int) -> tuple[int, int]:
        entries = self._n[level] + (self._c * 2**self._L if level == self._L else 0)
        b = max(1, math.isqrt(entries) // self.spread) if self._spread and self._n[level] >= self.in_hand else 1
        mean = entries / b**2
        return b, math.ceil(mean + 6 * mean**0.5 + 6)

    def _passes(self, epoch: Epoch) -> Iterator[list[Stretch]]:
        (b, r), base = self._chunks(epoch.level), self._between[epoch.level]
        each = 2 * self._cells[epoch.level] + STASH
        tables = [list(range(old.first, old.first + self._table(old.level))) for old in epoch.inputs]
        first, second, left = list[Stretch](), list[Stretch](), list[int]()
        for i in range(b):
            chunk = Stretch(True, [s for t in tables for s in t[len(t) * i // b : len(t) * (i + 1) // b]])
            chunk.before = left
            first.append(chunk)
            if b > 1:
                now = [base + b * b * r + i * LEFT + j for j in range(LEFT)]
                rows = Stretch(False, [base + (k * b + i) * r + j for k in range(b) for j in range(r)] + now, chunk)
                rows.before, rows.after = left, now
                first.append(rows)
                left = now
        for k in range(b):
            source = first[0]
            stashes = [
                epoch.first + j * each + 2 * self._cells[epoch.level] + i for j in range(k) for i in range(STASH)
            ]
            if b > 1:
                source = Stretch(True, list(range(base + k * b * r, base + (k + 1) * b * r)))
                source.before = left + stashes
                second.append(source)
            table = Stretch(False, list(range(epoch.first + k * each, epoch.first + (k + 1) * each)), source)
            table.before, table.after = source.before, source.before + table.slots[-STASH:]
            second.append(table)
        yield first
        yield second

    def _moved(self, level: int) -> tuple[int, int]:
        b, r = self._chunks(level)
        between = b * b * r if b > 1 else 0
        inputs = sum(map(self._table, range(level))) + (self._table(level) if level == self._L else 0)
        return inputs + between + (b * LEFT if b > 1 else 0), between + self._table(level)

    def sides(self, level: int) -> tuple[int, int]:
        return self._chunks(level)[0], self._cells[level]

    # --- what it shows

    def batch(self, leaves: Sequence[int]) -> Batch:
        trips: list[tuple[Seen, ...]] = []
        if self._cold and (again := self._again()):
            trips.append((("read", "slots.1", tuple(again), self.slot_size),))
        wrote, at = dict[int, None](), 0
        self._until(self._clock + len(leaves))
        while at < len(leaves):
            alive, end = self._alive(self._clock + at), at + 1
            while end < len(leaves) and self._alive(self._clock + end) == alive:
                end += 1
            rounds = [
                [slot for leaf in leaves[at:end] for slot in self._probe(epoch, leaf) if slot not in wrote]
                for epoch in alive
            ] or [[]]
            for clock in range(self._clock + at, self._clock + end):
                here: list[int] = []
                for epoch in self._running(clock):
                    for stretch, i in self._work(epoch, clock - epoch.begun):
                        if not stretch.read:
                            here.append(stretch.slots[i])
                        elif stretch.slots[i] not in wrote:
                            rounds[0].append(stretch.slots[i])
                wrote.update(dict.fromkeys(here))
            trips += [(("read", "slots.1", tuple(reads), self.slot_size),) for reads in rounds]
            at = end
        writes: tuple[Seen, ...] = (("write", "slots.1", tuple(wrote), self.slot_size),) if wrote else ()
        return Batch(tuple(trips), writes, self.record_size(len(leaves)))

    def _probe(self, epoch: Epoch, leaf: int) -> tuple[int, int]:
        m = self._cells[epoch.level]
        u, v = bin_pair(leaf, epoch.level, epoch.number, m, self._chunks(epoch.level)[0])
        begin = epoch.first + u // m * (2 * m + STASH)
        return begin + 2 * (u % m), begin + 2 * v + 1

    def _again(self) -> list[int]:
        """Stashes; what chunks left over; and what the rebuilds had in hand."""
        self._until(self._clock)
        found: list[int] = []
        for epoch in self._alive(self._clock):
            each = 2 * self._cells[epoch.level] + STASH
            for k in range(1, self._chunks(epoch.level)[0] + 1):
                found += range(epoch.first + k * each - STASH, epoch.first + k * each)
        for epoch in self._running(self._clock):
            done = [each for k in range(self._clock - epoch.begun) for each in self._work(epoch, k)]
            if not done:
                continue
            stretch, i = done[-1]
            if stretch.source is not None and i + 1 == len(stretch.slots):
                found += stretch.after
                continue
            found += stretch.before
            found += stretch.slots[: i + 1] if stretch.source is None else stretch.source.slots
        return found

    def record_size(self, m: int) -> int:
        return 4 + 8 + self.seed + m * (1 + 4 + self._B)

    def state_size(self) -> int:
        return 16 + (self._L + 1) * self._c * (4 + self._B)
