"""What a Ring store shows: which buckets, from the leaves and a clock; which of their slots, by a draw."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oram.testing.simulators.base import TAG, Batch, Seen, Simulator
from oram.trace import Event

__all__ = ["RingSchedule", "RingSimulator", "Turn", "canonical", "parts"]

Number = int  # of a bucket at the server, level by level from level T


@dataclass(frozen=True)
class Turn:
    """What the leaves of a batch lead to.

    online: for each request the bucket at each level, None where it was read S times already. union: all buckets on the paths
    and to be evicted to. evicted, early: those written anew; all ascending.
    """

    online: list[list[Number | None]]
    union: list[Number]
    evicted: list[Number]
    early: list[Number]

    @property
    def rewritten(self) -> list[Number]:
        """All that are written anew."""
        return sorted(self.evicted + self.early)


@dataclass
class RingSchedule:
    """Algorithms 1 and 4 of Ren et al. (2015) without a single block: L, T, A and S from ``tree``.

    reads: how often each bucket was read since it was written. clock: accesses so far.
    """

    tree: Mapping[str, Any]
    reads: dict[Number, int] = field(default_factory=dict)
    clock: int = 0

    def __post_init__(self) -> None:
        self.L, self.T, self.A, self.S = (int(self.tree[name]) for name in ("L", "T", "A", "S"))

    def bucket(self, level: int, leaf: int) -> Number:
        """The bucket of a leaf's path at a level."""
        return (1 << level) + leaf // (1 << (self.L - level)) - (1 << self.T)

    def level(self, bucket: Number) -> int:
        """The level of a bucket."""
        return int(math.log2(bucket + (1 << self.T)))

    def path(self, leaf: int) -> list[Number]:
        """The buckets of a path, from level T."""
        return [self.bucket(level, leaf) for level in range(self.T, self.L + 1)]

    def evicted_leaves(self, m: int) -> list[int]:
        """Leaves of the evictions that fall due in the next m accesses: reverse lexicographic order, one every A accesses."""
        due = [t // self.A for t in range(self.clock + 1, self.clock + m + 1) if t % self.A == 0]
        return [sum((G >> i & 1) * 2 ** (self.L - 1 - i) for i in range(self.L)) for G in (n - 1 for n in due)]

    def turn(self, leaves: Sequence[int]) -> Turn:
        """What the next batch leads to. Changes nothing."""
        reads: dict[Number, int] = {}
        online: list[list[Number | None]] = []
        for leaf in leaves:
            row: list[Number | None] = []
            for bucket in self.path(leaf):
                already = reads.setdefault(bucket, self.reads.get(bucket, 0))
                row.append(bucket if already < self.S else None)
                reads[bucket] += already < self.S
            online.append(row)
        evicted = {bucket for leaf in self.evicted_leaves(len(leaves)) for bucket in self.path(leaf)}
        early = {bucket for bucket, times in reads.items() if times >= self.S} - evicted
        return Turn(online, sorted(reads.keys() | evicted), sorted(evicted), sorted(early))

    def advance(self, turn: Turn) -> None:
        """The batch was made."""
        for row in turn.online:
            for bucket in row:
                if bucket is not None:
                    self.reads[bucket] = self.reads.get(bucket, 0) + 1
        for bucket in turn.rewritten:
            self.reads[bucket] = 0
        self.clock += len(turn.online)


class RingSimulator(Simulator):
    """Ring ORAM: a random slot a level and request; Z random slots, and then all of them, of each bucket that is written anew."""

    seed = 32

    def __init__(self, info: Mapping[str, Any], **options: bool) -> None:
        super().__init__(info, **options)
        self._Z, self._n = int(info["Z"]), int(info["Z"]) + int(info["S"])
        self._B, L, T, A, S = (int(info[name]) for name in ("block_size", "L", "T", "A", "S"))
        self.schedule = RingSchedule(info)
        self._levels, self._tops, self._buckets = L - T + 1, 1 << T, (1 << (L + 1)) - (1 << T)
        self._server = info["metadata"] == "server"
        self._words = math.ceil(self._n / 64)
        self.slots, self.slot_size = self._buckets * self._n, self._B + TAG
        self.meta_size = 8 * (2 + 1 + self._words) + (4 + 2) * self._Z + TAG
        tail = 1 - sum(math.exp(-A) * A**k / math.factorial(k) for k in range(S))  # P[Poisson(A) >= S]
        moved = 1 + (2 * self._Z + S) / A * (1 + tail)
        self.max_batch = max(1, min(1024, int(2**26 / (2 * self._levels * moved * self.slot_size))))
        self._pool = self._Z * ((1 << T) - 1) + 2 * A + 256 + self.max_batch
        self._unread: dict[Number, list[int]] = {}  # slots of a bucket

    def regions(self) -> list[tuple[str, int]]:
        return [("slots.1", self.slot_size), *([("meta.1", self.meta_size)] if self._server else [])]

    @property
    def shown(self) -> list[Event]:
        return canonical(self.events, self.info)

    def batch(self, leaves: Sequence[int]) -> Batch:
        turn, coins = self.schedule.turn(leaves), random.Random(f"slots {self.schedule.clock}")
        unread: dict[Number, list[int]] = {}

        def left(bucket: Number) -> list[int]:
            return unread.setdefault(bucket, list(self._unread.get(bucket, range(self._n))))

        online = [
            tuple(-1 if b is None else b * self._n + left(b).pop(coins.randrange(len(left(b)))) for b in row)
            for row in turn.online
        ]
        fetched = [
            bucket * self._n + slot for bucket in turn.rewritten for slot in sorted(coins.sample(left(bucket), self._Z))
        ]
        size, reads = self.slot_size, list[Seen]()
        if self.xor:
            reads += [("xor", "slots.1", row, size) for row in online]
        else:
            fetched = [slot for row in online for slot in row if slot >= 0] + fetched
        if fetched:
            reads.append(("read", "slots.1", tuple(fetched), size))
        whole = tuple(bucket * self._n + slot for bucket in turn.rewritten for slot in range(self._n))
        writes: list[Seen] = [("write", "slots.1", whole, size)] if whole else []
        self._next = unread
        m = len(leaves)
        if not self._server:
            record = self._record(m, 2 * m * self._levels + len(turn.rewritten) * (8 + 6 * self._Z))
            return Batch((tuple(reads),), tuple(writes), record)
        metadata: tuple[str, tuple[int, ...], int] = "meta.1", tuple(turn.union), self.meta_size
        tops = sum(bucket < self._tops for bucket in turn.union)
        record = self._record(m, 4 * self._Z * len(turn.rewritten) + 8 * tops)
        return Batch(((("read", *metadata),), tuple(reads)), (*writes, ("write", *metadata)), record)

    def done(self, leaves: Sequence[int]) -> None:
        turn = self.schedule.turn(leaves)
        self.schedule.advance(turn)
        self._unread.update(self._next)
        for bucket in turn.rewritten:
            del self._unread[bucket]

    def _record(self, m: int, rest: int) -> int:
        return 3 * 4 + 3 * 8 + self.seed + m * (1 + 4 * 4 + self._B) + rest

    def record_size(self, m: int) -> int:
        most = (m + math.ceil(m / self.schedule.A)) * self._levels  # buckets
        if self._server:
            return self._record(m, 4 * self._Z * most + 8 * min(most, self._tops))
        return self._record(m, 2 * m * self._levels + most * (8 + 6 * self._Z))

    def state_size(self) -> int:
        rows = 8 * self._tops if self._server else self._buckets * (8 + 8 * self._words + 6 * self._Z)
        return 4 * int(self.info["blocks"]) + 8 + rows + self._pool * (4 + self._B)


# --- slots up to their names


def parts(events: Sequence[Event], info: Mapping[str, Any]) -> Iterator[tuple[Event, int | None]]:
    """Each event of a Ring trace; for a plain read of slots also how many of its last ones were fetched to write their buckets anew.

    None for all other events, and for a scan, which reads whole buckets in order. The write that follows tells; of a read that a crash ended, the
    same read after it.
    """
    Z, n = int(info["Z"]), int(info["Z"]) + int(info["S"])
    groups: dict[str, int] = {}
    found: list[tuple[Event, int | None]] = []
    latest: tuple[str, tuple[int, ...], int] | None = None
    resumed: tuple[str, tuple[int, ...], int] | None = None  # the first read after the store was opened again
    for event in reversed(events):
        tells = None
        if event.op == "allocate":
            resumed = latest
        elif event.op == "write" and event.region.startswith("slots."):
            groups[event.region] = len(event.indices) // n
        elif event.op == "read" and event.region.startswith("slots.") and not _scans(event, n):
            tells = groups.pop(event.region, 0) * Z
            if resumed is not None and resumed[:2] == (event.region, event.indices):
                tells = resumed[2]
            latest, resumed = (event.region, event.indices, tells), None
        found.append((event, tells))
    return reversed(found)


def _scans(event: Event, n: int) -> bool:
    first, count = event.indices[0], len(event.indices)
    return first % n == 0 == count % n and event.indices == tuple(range(first, first + count))


def canonical(events: Iterable[Event], info: Mapping[str, Any]) -> list[Event]:
    """A Ring trace with the slots of each bucket renamed in the order in which they are read, anew whenever the bucket is written; others unchanged.

    Two traces with the same canonical form differ by which slots were read alone, and not by how often, when, together with which others, or (among
    those fetched together from a bucket, whose order must be that of their places and say nothing) in which order.
    """
    events = list(events)
    if info["scheme"] != "ring":
        return events
    Z, n = int(info["Z"]), int(info["Z"]) + int(info["S"])
    names: dict[tuple[str, Number], dict[int, int]] = {}
    renamed = []

    def name(region: str, slot: int) -> int:
        known = names.setdefault((region, slot // n), {})
        return slot // n * n + known.setdefault(slot, len(known))

    for event, fetched in parts(events, info):
        slots = event.indices
        if event.op == "write" and event.region.startswith("slots."):
            for bucket in {slot // n for slot in slots}:
                names.pop((event.region, bucket), None)
        elif event.op == "xor":
            slots = tuple(slot if slot < 0 else name(event.region, slot) for slot in slots)
        elif fetched is not None:
            online = len(slots) - fetched
            shown = [name(event.region, slot) for slot in slots[:online]]
            for at in range(online, len(slots), Z):
                group = slots[at : at + Z]
                for slot in sorted(group):
                    name(event.region, slot)
                shown += [name(event.region, slot) for slot in group]
            slots = tuple(shown)
        renamed.append(replace(event, indices=slots))
    return renamed
