"""What every scheme shows beside its slots: intents, commits, the clock, and when a write-back comes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oram.trace import Event, Op

__all__ = ["Batch", "Commit", "Seen", "Simulator"]

Commit = tuple[tuple[bytes, int], ...]  # what one transaction put: keys and lengths of values
Seen = tuple[Op, str, tuple[int, ...], int]  # op, region, slots, bytes of one
TAG = 16  # bytes that a cipher adds
SEALED = 12 + TAG  # bytes that sealing adds to client state: generation, counter, tag
CHANGE = 20  # bytes of a directory change: record and tag
CLOCK_SIZE = 64
HEADER_SIZE = 4096


@dataclass(frozen=True)
class Batch:
    """What a scheme shows of a batch: its reads by round trip, its write-back, and the bytes of its record."""

    reads: tuple[tuple[Seen, ...], ...]
    writes: tuple[Seen, ...]
    record: int


class Simulator:
    """What a store shows from now on, as ``events`` and ``commits``.

    info: ``store.info()`` of a new store. logged: durability is not "none". joint: client state and slots share transactions. synced:
    durability is "sync". atomic: the backend's writes are all or nothing. remote: it is REMOTE, so that a write-back comes with the next read. durable: it
    is DURABLE. xor: it can XOR slots. The trace has been cleared just before.
    """

    seed = 0  # bytes of randomness that a batch takes besides its draws, at the end
    slots: int
    slot_size: int
    max_batch: int

    def __init__(
        self,
        info: Mapping[str, Any],
        *,
        logged: bool = True,
        joint: bool = True,
        synced: bool = False,
        atomic: bool = True,
        remote: bool = False,
        durable: bool = False,
        xor: bool = True,
    ) -> None:
        self.info, self.logged, self.joint, self.synced = info, logged, joint, synced
        self.xor = bool(info.get("xor", xor))
        self.events: list[Event] = []
        self.commits: list[Commit] = []
        self.round_trips = 0
        self._ticks: tuple[str, tuple[int, ...], int] = "clock.1", tuple(range(int(info.get("shards", 1)))), CLOCK_SIZE
        self._deferred = remote and not joint
        self._torn = self._deferred or (not joint and not atomic)  # write-backs are journaled
        self._durable = durable
        self._pending: tuple[Seen, ...] = ()
        self._kept: tuple[Seen, ...] = ()  # the last write-back that was journaled
        self._exposed = False  # a write-back was delivered, and may not have been made durable
        self._cursor, self._dirty, self._generation = 0, False, 1

    def asked(self, leaves: Sequence[int]) -> int:
        """The requests of the batch that looks up these leaves."""
        return len(leaves)

    def coins(self, m: int) -> int:
        """Random bytes that a batch of m consumes."""
        return 4 * m + self.seed

    def randomness(self, m: int) -> int:
        """Of these, what an intent holds beside the draws of its requests."""
        return self.coins(m) - 4 * m

    # --- what a scheme adds

    def batch(self, leaves: Sequence[int]) -> Batch:
        """A batch that looks up these leaves. The same one each time, until ``done``."""
        raise NotImplementedError

    def done(self, leaves: Sequence[int]) -> None:
        """It was made."""

    def record_size(self, m: int) -> int:
        """Bytes of the scheme's record of a batch of m, at most."""
        raise NotImplementedError

    def state_size(self) -> int:
        """Bytes of the scheme's client state."""
        raise NotImplementedError

    def regions(self) -> list[tuple[str, int]]:
        """The scheme's regions, and the bytes of their slots."""
        return [("slots.1", self.slot_size)]

    # --- what the server sees

    @property
    def shown(self) -> list[Event]:
        """The events, the slots of a Ring bucket up to their names."""
        return self.events

    def _see(self, op: Op, region: str, indices: tuple[int, ...], size: int) -> None:
        self.events.append(Event(op, region, indices, size, self.round_trips))

    def _trip(self, *seen: Seen) -> None:
        for each in seen:
            self._see(*each)
        self.round_trips += 1

    def access(self, leaves: Sequence[int], records: int = 0, *, lost: bool = False) -> None:
        """One batch. leaves: what its requests look up. records: how many keyed records it is made of, 0 at the block level.

        lost: its write-back, which was all or nothing, did not land; after ``reopen`` the very same batch has to follow.
        """
        batch = self.interrupted(leaves)
        self.round_trips += 1
        if self._exposed and self.logged:  # the journaled copy of what was delivered is about to go
            self._sync()
        clock: tuple[Seen, ...] = (("write", *self._ticks),) if self.logged else ()
        writes = (*batch.writes, *clock)
        if self.logged:
            self._commit(self.asked(leaves), batch.record, CHANGE * records, writes)
        if self._deferred:
            self._pending = writes
        else:
            self._trip(*writes)
            if self.logged and self.synced and not self.joint:
                self._sync()
        if not lost:
            self.done(leaves)

    def interrupted(self, leaves: Sequence[int], reads: int | None = None) -> Batch:
        """A batch that a crash ended in its read: what there is of it before. reads: how many round trips it came to, None for all.

        The last of them is not counted yet in ``round_trips``. After ``reopen`` the very same batch has to follow, whatever the application asks.
        """
        batch = self.batch(leaves)
        if self.logged:
            m = self.asked(leaves)
            self.commits.append(((b"i" + _be(1, "I"), SEALED + 16 + 9 * m + self.randomness(m)),))
        elif not self._dirty:
            self._dirty = True
            self.commits.append((self._meta(),))
        for i, trip in enumerate(batch.reads[:reads]):
            self.round_trips += i > 0
            for each in (*self._pending, *trip):
                self._see(*each)
            self._delivered()
        return batch

    def deliver(self) -> None:
        """A flush, a scan or a close: what was still to be written comes now."""
        if self._pending:
            self._trip(*self._pending)
            self._delivered()

    def _delivered(self) -> None:
        self._exposed |= bool(self._pending) and self.synced and self._durable
        self._pending = ()

    def _sync(self) -> None:
        self._trip(("sync", "", (), 0))
        self._exposed = False

    def reopen(self, *, crashed: bool = False) -> None:
        """A clean end, or an unclean one, and ``oram.open``: regions declared again, the clock read, a salt made durable."""
        if crashed:
            self._pending = ()
        self.deliver()
        if not self.joint:
            self._trip(("read", "header", (0,), HEADER_SIZE))
        for region, size in (*self.regions(), ("clock.1", CLOCK_SIZE), ("header", HEADER_SIZE)):
            self._trip(("allocate", region, (), size))
        self._trip(("read", *self._ticks))
        if self._kept:  # whether it had landed or not
            self._trip(*self._kept)
        if self.logged and self.synced and not self.joint:
            self._sync()
        self._generation += 1
        self.commits.append(((b"g" + _be(1, "I") + _be(self._generation, "Q"), 32), self._meta()))
        if self._deferred:
            self._trip(("write", *self._ticks))

    # --- what the disk of the client state sees

    def _meta(self) -> tuple[bytes, int]:
        return b"meta", 4 + SEALED + struct.calcsize("<QQQQ16sI32s???")

    def _commit(self, m: int, record: int, note: int, writes: tuple[Seen, ...]) -> None:
        unit = int(self.info["blocks_per_value"])
        usual = self.record_size(unit) + CHANGE * bool(self.info["keyed"])
        head = SEALED + 36
        whole = -(-(usual + head + 16 + 1500) // 4096)  # pages
        piece = (2008 if usual <= 1200 else 4096 * whole - 16) - head - usual
        total = self.state_size() + (TAG * (int(self.info["blocks"]) // unit) if self.info["keyed"] else 0)
        count = -(-total // piece)
        puts: list[tuple[bytes, int]] = []
        for _ in range(min(count, -(-(self.record_size(m) + note) // (2 * usual)))):
            i = self._cursor % count
            self._cursor += 1
            key = b"p" + _be(1, "I") + _be(i, "Q")
            puts.append((key, head + min(piece, total - i * piece)))
        puts[-1] = (puts[-1][0], puts[-1][1] + record + note)
        if self._torn:
            size = sum(18 + len(region) + len(slots) * (8 + each) for _, region, slots, each in writes)
            puts.append((b"w" + _be(1, "I") + _be(0, "Q"), SEALED + 8 + size))
            self._kept = writes
        self.commits.append((*puts, self._meta()))


def _be(value: int, kind: str) -> bytes:
    return struct.pack(">" + kind, value)
