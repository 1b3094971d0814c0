"""What the server saw of a run, in numbers: which slots were touched, how often, and whether that is uniform."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from oram.params import CuckooGeometry, Table
from oram.trace import Event, TraceBackend
from oram.types import I64

__all__ = ["BINS", "Cost", "Moved", "View", "chi_square_p", "off_schedule"]

#: Bins of the slots, for histograms and for the test of uniformity.
BINS = 64

#: A p-value below this is called not uniform: a uniform run is called so by mistake once in ten thousand.
ALPHA = 1e-4


@dataclass(frozen=True, slots=True)
class View:
    """One slot for each access, as the server saw it.

    slots: of all that could be touched. touched: int64 (accesses,), in order. written: whether each access was seen to write only.
    """

    slots: int
    touched: I64
    written: tuple[bool, ...]

    @classmethod
    def of_records(cls, events: Sequence[Event], region: str, slots: int) -> View:
        """Of a store with one slot a record: each event is an access."""
        seen = [event for event in events if event.region == region]
        touched = np.array([event.indices[0] for event in seen], np.int64)
        return cls(slots, touched, tuple(event.op == "write" for event in seen))

    @classmethod
    def of_paths(cls, events: Sequence[Event], region: str, first: int, slots: int) -> View:
        """Of a tree: the page of the bottom layer on each path read. The pages above it follow from it.

        first, slots: the bottom layer is slots ``first`` .. ``first + slots - 1`` of the region.
        """
        seen = [event for event in events if event.region == region and event.op == "read"]
        touched = np.array([max(event.indices) - first for event in seen], np.int64)
        return cls(slots, touched, (False,) * len(seen))

    @classmethod
    def of_buckets(cls, events: Sequence[Event], region: str, first: int, slots: int) -> View:
        """Of a Ring tree: the slot read in the bucket of level L on each path; it names the path. first, slots: as for ``of_paths``, of level L."""
        touched = np.array([max(group) - first for group in _groups(events, region)], np.int64)
        return cls(slots, touched, (False,) * touched.size)

    @classmethod
    def of_choices(cls, events: Sequence[Event], region: str, n: int, seed: int) -> View:
        """Of a Ring tree with n slots a bucket: which of the slots not read since its last write each bucket was asked for.

        That is its rank among them, as a fraction of how many they are, evenly spread within its step by a seeded random number: so each one is
        uniform whatever came before, and all are independent, where the choice is as it should be. Every event since the load has to be there.
        """
        random, scale = np.random.default_rng(seed), 1 << 20
        spent: dict[int, set[int]] = {}
        ranks = []
        for event in events:
            if event.region == region and event.op == "write":
                for bucket in {slot // n for slot in event.indices}:
                    spent.pop(bucket, None)
            elif event.region == region and event.op == "xor":
                for bucket, slot in (divmod(index, n) for index in event.indices if index >= 0):
                    seen = spent.setdefault(bucket, set())
                    rank = slot - sum(other < slot for other in seen)
                    ranks.append(int((rank + random.random()) / (n - len(seen)) * scale))
                    seen.add(slot)
        return cls(scale, np.array(ranks, np.int64), (False,) * len(ranks))

    @classmethod
    def of_tables(cls, events: Sequence[Event], region: str, g: CuckooGeometry, clock: int) -> View:
        """Of a bulk-loaded Cuckoo hierarchy: the cell of the bottom's first table that each access reads. clock: accesses before the first one seen."""
        cells = [
            next(u for table, u, _ in probes if table.level == g.L) for probes in _probes(events, region, g, clock)
        ]
        return cls(g.levels[g.L].m, np.array(cells, np.int64), (False,) * len(cells))

    @classmethod
    def of_cells(cls, events: Sequence[Event], region: str, g: CuckooGeometry, clock: int, seed: int) -> View:
        """Of the same: both cells in every table, each as a fraction of its table, spread within its step as in ``of_choices``."""
        random, scale = np.random.default_rng(seed), 1 << 20
        found = [
            int((cell + random.random()) / g.levels[table.level].m * scale)
            for probes in _probes(events, region, g, clock)
            for table, *cells in probes
            for cell in cells
        ]
        return cls(scale, np.array(found, np.int64), (False,) * len(found))

    @property
    def accesses(self) -> int:
        """Accesses seen."""
        return self.touched.size

    def bins(self, n: int = BINS) -> I64:
        """Accesses by slot number, in n bins of equal width."""
        return np.bincount(self.touched * n // self.slots, minlength=n).astype(np.int64)

    def counts(self) -> tuple[I64, I64]:
        """Slots that were touched and how often, most often first."""
        slots, counts = np.unique(self.touched, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return slots[order], counts[order].astype(np.int64)

    def top(self, n: int = 10) -> list[tuple[int, int, float]]:
        """The n most touched slots: number, times, share of all accesses."""
        slots, counts = self.counts()
        return [
            (slot, count, count / self.accesses)
            for slot, count in zip(slots[:n].tolist(), counts[:n].tolist(), strict=True)
        ]

    @property
    def top_share(self) -> float:
        """Share of the accesses that went to the ten most touched slots."""
        return sum(share for _, _, share in self.top())

    @property
    def repeats(self) -> float:
        """Share of the accesses to a slot that an earlier access had touched."""
        return 1 - len(self.counts()[0]) / self.accesses

    @property
    def repeats_by_chance(self) -> float:
        """What ``repeats`` is on average where each access touches a slot at random."""
        n, m = self.accesses, self.slots
        return 1 - m * -math.expm1(n * math.log1p(-1 / m)) / n if m > 1 else 1 - 1 / n

    @property
    def p_value(self) -> float:
        """Of the chi-square test that all bins are equally likely."""
        # Bins of equal width may differ by one slot in what they hold.
        held = np.diff(-(-np.arange(BINS + 1) * self.slots // BINS))
        expected = self.accesses * held / self.slots
        return chi_square_p(float(((self.bins() - expected) ** 2 / expected).sum()), BINS - 1)

    @property
    def uniform(self) -> bool:
        """Whether the test finds nothing against it."""
        return self.p_value >= ALPHA


def _groups(events: Sequence[Event], region: str) -> list[tuple[int, ...]]:
    """The slots of each XOR."""
    return [event.indices for event in events if event.region == region and event.op == "xor"]


def _probes(
    events: Sequence[Event], region: str, g: CuckooGeometry, clock: int
) -> Iterator[list[tuple[Table, int, int]]]:
    """The tables that each access looks into, by its number, and the cells there: what is read first."""
    reads = [event.indices for event in events if event.region == region and event.op == "read"]
    for at, slots in enumerate(reads, clock):
        firsts = [(table, g.first_slot(table)) for table in g.alive(at, built=True)]
        yield [
            (table, (u - first) // 2, (v - first) // 2)
            for (table, first), u, v in zip(firsts, slots[::2], slots[1::2], strict=False)
        ]


def off_schedule(events: Sequence[Event], region: str, g: CuckooGeometry, clock: int) -> int:
    """Accesses of a bulk-loaded Cuckoo hierarchy that moved other slots than two of each table and what the clock says."""
    reads = [event.indices for event in events if event.region == region and event.op == "read"]
    wrote = [event.indices for event in events if event.region == region and event.op == "write"]
    odd, at_write = 0, 0
    for at, slots in enumerate(reads, clock):  # one read an access
        read, written = list[int](), list[int]()
        for table in g.running(at):
            work = g.work(table, built=True)
            for part in work.parts(at - table.epoch * g.c):
                kind = work.segments[part.segment].kind
                (read if kind in ("input", "middle") else written).extend(work.slots(part)[0].tolist())
        alive = g.alive(at, built=True)
        as_said = list(slots[2 * len(alive) :]) == read
        if written:
            waits = at_write == len(wrote) and at == clock + len(reads) - 1  # for the next access
            as_said &= waits or (at_write < len(wrote) and list(wrote[at_write]) == written)
            at_write += 1
        odd += not as_said
    return odd + max(0, len(wrote) - at_write)


@dataclass(frozen=True, slots=True)
class Moved:
    """What an access moved on average, in slots and their bytes. online: what had to be read before the answer was there."""

    round_trips: float
    online_slots: float
    online_bytes: float
    all_bytes: float
    largest: int  # bytes of the largest round trip

    @classmethod
    def of_slots(cls, trace: TraceBackend, accesses: int, region: str, ops: tuple[str, ...] = ("read",)) -> Moved:
        """Of a store where every slot of the region that these operations name is needed for an answer."""
        seen = [event for event in trace.events if event.region == region and event.op in ops]
        online = sum(len(event.indices) for event in seen)
        return cls._of(trace, accesses, online, sum(len(event.indices) * event.slot_size for event in seen))

    @classmethod
    def of_xor(cls, trace: TraceBackend, region: str, *, folded: bool) -> Moved:
        """Of a Ring store, an XOR for each access; with folded=False as if the same slots had come one by one."""
        groups = [sum(slot >= 0 for slot in group) for group in _groups(trace.events, region)]
        size = next(event.slot_size for event in trace.events if event.region == region)
        slots = len(groups) if folded else sum(groups)
        return cls._of(trace, len(groups), slots, slots * size, more=(slots - len(groups)) * size)

    @classmethod
    def of_probes(cls, trace: TraceBackend, accesses: int, region: str, probes: int) -> Moved:
        """Of a Cuckoo store that looked into so many cells; what else was read, rebuilds did."""
        size = next(event.slot_size for event in trace.events if event.region == region)
        return cls._of(trace, accesses, probes, probes * size)

    @classmethod
    def _of(cls, trace: TraceBackend, accesses: int, slots: int, size: int, more: int = 0) -> Moved:
        moved = trace.bytes_read + trace.bytes_written + more
        largest = max(
            sum((1 if event.op == "xor" else len(event.indices)) * event.slot_size for event in trip)
            for trip in trace.trips()
        )
        return cls(trace.round_trips / accesses, slots / accesses, size / accesses, moved / accesses, largest)


def chi_square_p(statistic: float, degrees: int) -> float:
    """Probability that a chi-square variable is at least this large, by the approximation of Wilson and Hilferty (1931).

    The cube root of chi-square / degrees is nearly normal with mean 1 - 2/(9 degrees) and variance 2/(9 degrees). For the 63 degrees
    used here its relative error is below 4 % down to probabilities of 1e-4.
    """
    spread = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


@dataclass(frozen=True, slots=True)
class Cost:
    """What an access of one run cost on average; times are those of the client, with tracing on."""

    per_second: float
    p50: float  # microseconds
    p99: float
    round_trips: float
    bytes_read: float
    bytes_written: float
    journal: float  # bytes of client state written

    @classmethod
    def of(cls, trace: TraceBackend, seconds: Sequence[float]) -> Cost:
        """seconds: duration of each access since the trace was cleared."""
        n = len(seconds)
        journal = sum(max(0, size) for commit in trace.state_commits for _, size in commit)
        p50, p99 = (float(np.percentile(seconds, q)) * 1e6 for q in (50, 99))
        return cls(
            n / sum(seconds),
            p50,
            p99,
            trace.round_trips / n,
            trace.bytes_read / n,
            trace.bytes_written / n,
            journal / n,
        )
