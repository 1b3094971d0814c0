"""What a Cuckoo store shows: which slots, from a clock; which two of each table, by a draw."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from oram.testing.simulators.base import TAG, Batch, Seen, Simulator

__all__ = ["CuckooSimulator", "Epoch", "pair"]

STASH, CHUNK_STASH = 32, 16


def pair(leaf: int, level: int, epoch: int, m: int) -> tuple[int, int]:
    """The cells that a request with this draw looks up in a table, whatever it asks for."""
    source = random.Random(f"pair {leaf} {level} {epoch}")
    return source.getrandbits(64) * m // 2**64, source.getrandbits(64) * m // 2**64


@dataclass
class Stretch:
    """Slots that are read one after the other, or written after ``source`` was read.

    before and after: what an opening inside it, or right behind it, reads besides ``slots`` or ``source``.
    """

    read: bool
    slots: list[int]
    source: Stretch | None = None
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


@dataclass
class Epoch:
    """A table's life. begun: clock at which its rebuild begins; ready: when it is probed first; last: when it is consumed."""

    level: int
    number: int
    begun: int
    ready: int
    first: int = 0
    last: float = math.inf
    inputs: list[Epoch] = field(default_factory=list)
    passes: list[list[Stretch]] = field(default_factory=list)


class CuckooSimulator(Simulator):
    """Levels merge when flushes end in zeros; a rebuild moves the same slots in the same order, whatever is in them."""

    seed = 32
    in_hand, spread = (
        4096,
        16,
    )  # from which entries on a rebuild has two passes; blocks of a chunk, in square roots of them

    def __init__(self, info: Mapping[str, Any], **options: bool) -> None:
        super().__init__(info, **options)
        self._N, self._B, self._c, self._L = (int(info[name]) for name in ("blocks", "block_size", "c", "L"))
        self._spread, self._slack = info["rebuild"] == "deamortized", int(info.get("slack", 6))
        E = 1 + Fraction(int(info["eps"]), 1000)
        self._n = [self._c * 2**level for level in range(self._L)] + [self._N]
        self._m = [math.ceil(n * E) for n in self._n]
        self.slot_size, self.max_batch = 8 + 4 + self._B + TAG, 1024
        self._place: dict[tuple[int, int], int] = {}
        at = 0
        for level in range(self._L + 1):
            for copy in range(level + 1, self._L + 1) if level < self._L else (0, 1):
                self._place[level, copy] = at
                at += 2 * self._m[level] + STASH
        self._between = []
        for level in range(self._L + 1):
            self._between.append(at)
            b, r = self._chunks(level)
            at += 0 if b == 1 else b * (b * r + CHUNK_STASH)
        self.slots = at
        self._epochs: list[Epoch] = []
        self._newest: dict[int, Epoch] = {}
        self._flushes, self._clock, self._cold = 0, 0, False

    def _chunks(self, level: int) -> tuple[int, int]:
        n = self._n[level]
        b = math.isqrt(n) // self.spread if self._spread and n >= self.in_hand else 1
        mean = n / b**2
        return b, math.ceil(mean + self._slack * mean**0.5 + 6)

    # --- the schedule

    def _until(self, clock: int) -> None:
        """All epochs that have begun by then."""
        while (self._flushes + 1) * self._c <= clock:
            self._flushes += 1
            t = self._flushes
            zeros = 0
            while t % 2 ** (zeros + 1) == 0:
                zeros += 1
            level = min(zeros, self._L)
            length = 2**level * self._c // 4 if self._spread else 1
            epoch = Epoch(level, t, t * self._c, t * self._c + length)
            consumed = [*range(level), *([self._L] if level == self._L else [])]
            epoch.inputs = [self._newest.pop(below) for below in consumed if below in self._newest]
            for old in epoch.inputs:
                old.last = epoch.ready
            copy = t // 2**self._L % 2
            if level < self._L:
                after, copy = t + 2**level, 0
                while after % 2 ** (copy + 1) == 0:
                    copy += 1
            epoch.first = self._place[level, min(copy, self._L)]
            epoch.passes = list(self._passes(epoch))
            self._newest[level] = epoch
            self._epochs.append(epoch)

    def _passes(self, epoch: Epoch) -> Iterator[list[Stretch]]:
        m, (b, r), base = self._m[epoch.level], self._chunks(epoch.level), self._between[epoch.level]
        tables = [list(range(old.first, old.first + 2 * self._m[old.level])) for old in epoch.inputs]
        stash = list(range(epoch.first + 2 * m, epoch.first + 2 * m + STASH))
        if b == 1:
            everything = Stretch(True, [slot for table in tables for slot in table])
            cells = Stretch(False, list(range(epoch.first, epoch.first + 2 * m)), everything)
            yield [everything]
            yield [cells, Stretch(False, stash, everything)]
            return
        first, second = list[Stretch](), list[Stretch]()
        for i in range(b):
            chunk = Stretch(True, [s for t in tables for s in t[len(t) * i // b : len(t) * (i + 1) // b]])
            rows = [base + (k * b + i) * r + j for k in range(b) for j in range(r)]
            rest = [base + b * b * r + i * CHUNK_STASH + j for j in range(CHUNK_STASH)]
            first += [chunk, Stretch(False, rows + rest, chunk)]
        width = math.ceil(m / b)
        for k in range(b):
            bucket = Stretch(True, list(range(base + k * b * r, base + (k + 1) * b * r)))
            cells = Stretch(
                False, list(range(epoch.first, epoch.first + 2 * m))[2 * k * width : 2 * (k + 1) * width], bucket
            )
            second += [bucket, cells]
        rest_of_all = Stretch(True, list(range(base + b * b * r, base + b * b * r + b * CHUNK_STASH)))
        yield first
        yield [*second, rest_of_all, Stretch(False, stash, rest_of_all)]

    def _moved(self, level: int) -> tuple[int, int]:
        """Slots that the passes of a rebuild move, with an old bottom even where there is none yet."""
        b, r = self._chunks(level)
        middle = 0 if b == 1 else b * (b * r + CHUNK_STASH)
        inputs = sum(2 * self._m[i] for i in range(level)) + (2 * self._m[-1] if level == self._L else 0)
        return inputs + middle, middle + 2 * self._m[level] + STASH

    def _work(self, epoch: Epoch, k: int) -> list[tuple[Stretch, int]]:
        """What the k-th access of a rebuild moves: stretches and places in them."""
        first, last = self._moved(epoch.level)
        length = epoch.ready - epoch.begun
        share = min(length - 1, max(1 if first else 0, round(length * first / (first + last))))
        flat = [[(s, i) for s in stretches for i in range(len(s.slots))] for stretches in epoch.passes]
        one, two = flat
        if share == 0:
            return (one if k == 0 else []) + two[len(two) * k // length : len(two) * (k + 1) // length]
        if k < share:
            return one[len(one) * k // share : len(one) * (k + 1) // share]
        k, length = k - share, length - share
        return two[len(two) * k // length : len(two) * (k + 1) // length]

    def _alive(self, clock: int) -> list[Epoch]:
        """Newest first."""
        return sorted((e for e in self._epochs if e.ready <= clock < e.last), key=lambda e: -e.number)

    def _running(self, clock: int) -> list[Epoch]:
        return sorted((e for e in self._epochs if e.begun <= clock < e.ready), key=lambda e: e.level)

    def probed(self) -> list[Epoch]:
        """The tables that the next access looks into, newest first: what it reads first are two slots of each."""
        self._until(self._clock)
        return self._alive(self._clock)

    def sides(self, level: int) -> tuple[int, int]:
        """Of a table: its bins, and the cells of each of the two sides of one. A bin's cells, of the two sides in turn, have its stash behind them."""
        return 1, self._m[level]

    # --- what it shows

    def batch(self, leaves: Sequence[int]) -> Batch:
        trips: list[tuple[Seen, ...]] = []
        if self._cold and (again := self._again()):
            trips.append((("read", "slots.1", tuple(again), self.slot_size),))
        reads, wrote = list[int](), dict[int, None]()
        for clock, leaf in enumerate(leaves, self._clock):
            self._until(clock)
            for epoch in self._alive(clock):
                u, v = pair(leaf, epoch.level, epoch.number, self._m[epoch.level])
                reads += [slot for slot in (epoch.first + 2 * u, epoch.first + 2 * v + 1) if slot not in wrote]
            here: list[int] = []
            for epoch in self._running(clock):
                for stretch, i in self._work(epoch, clock - epoch.begun):
                    if not stretch.read:
                        here.append(stretch.slots[i])
                    elif stretch.slots[i] not in wrote:
                        reads.append(stretch.slots[i])
            wrote.update(dict.fromkeys(here))
        trips.append((("read", "slots.1", tuple(reads), self.slot_size),))
        writes: tuple[Seen, ...] = (("write", "slots.1", tuple(wrote), self.slot_size),) if wrote else ()
        return Batch(tuple(trips), writes, self.record_size(len(leaves)))

    def done(self, leaves: Sequence[int]) -> None:
        self._clock += len(leaves)
        self._cold = False
        for epoch in self._epochs:
            if epoch.last <= self._clock:
                epoch.inputs = []  # else each leads to all that were before it
        self._epochs = [epoch for epoch in self._epochs if epoch.last > self._clock]

    def reopen(self, *, crashed: bool = False) -> None:
        super().reopen(crashed=crashed)
        self._cold = True

    def _again(self) -> list[int]:
        """Stashes, and what the rebuilds had in hand."""
        self._until(self._clock)
        found: list[int] = []
        for epoch in self._alive(self._clock):
            stash = epoch.first + 2 * self._m[epoch.level]
            found += range(stash, stash + STASH)
        for epoch in self._running(self._clock):
            done = [each for k in range(self._clock - epoch.begun) for each in self._work(epoch, k)]
            if not done:
                continue
            stretch, i = done[-1]
            if stretch.read:
                found += stretch.slots[: i + 1]
            elif stretch.source is not None and (i + 1 < len(stretch.slots) or self._chunks(epoch.level)[0] == 1):
                found += stretch.source.slots
        return found

    def record_size(self, m: int) -> int:
        return 4 + 8 + self.seed + m * (1 + 4 + 2 + self._B)

    def state_size(self) -> int:
        log = 2**self._L * self._c // 4 if self._spread else 1
        return 2 * self._N + 16 + log * (4 + 2) + (self._L + 1) * self._c * (4 + self._B)
