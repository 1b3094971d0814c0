"""The definition of security, as code: everything that an observer sees, from public parameters and the leaves looked up alone.

A simulator knows no key, no value, no address, no operation and no hit or miss. If its events equal a store's real trace, event
by event, and its commits the real ones, length by length, then nothing but the leaves can tell two workloads apart; and those are uniform
and independent of the workload (``randomness.script``). It shares no arithmetic with the code it judges.

Source: the argument of Stefanov et al. (CCS 2013), section 3.6; docs/architecture.md for pages, pieces and the clock.
"""

# ruff: noqa: ARG002 - what a scheme does not need of its arguments is part of what it says

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from oram.trace import Event, Op

__all__ = ["Commit", "LinearSimulator", "PathSimulator", "Simulator", "page_levels", "simulator"]

Commit = tuple[tuple[bytes, int], ...]  # what one transaction put: keys and lengths of values
TAG = 16  # bytes that a cipher adds
SEALED = 12 + TAG  # bytes that sealing adds to client state: generation, counter, tag
CHANGE = 20  # bytes of a directory change: record and tag
CLOCK_SIZE = 64
HEADER_SIZE = 4096


class Simulator:
    """What a store shows from now on, as ``events`` and ``commits``.

    info: ``store.info()`` of a new store. logged: durability is not "none". joint: client state and slots share transactions. synced:
    durability is "sync". atomic: the backend's writes are all or nothing. The trace has been cleared just before.
    """

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
    ) -> None:
        self.info, self.logged, self.joint, self.synced, self.atomic = info, logged, joint, synced, atomic
        self.events: list[Event] = []
        self.commits: list[Commit] = []
        self.round_trips = 0
        self._cursor, self._dirty, self._generation = 0, False, 1

    # --- what a scheme adds

    def touched(self, leaves: Sequence[int]) -> tuple[int, ...]:
        """The slots that a batch reads and writes, in order."""
        raise NotImplementedError

    def record_size(self, m: int, touched: int) -> int:
        """Bytes of the scheme's record of a batch of m that touched so many slots."""
        raise NotImplementedError

    def most(self, m: int) -> int:
        """Slots that a batch of m can touch at most."""
        raise NotImplementedError

    def state_size(self) -> int:
        """Bytes of the scheme's client state."""
        raise NotImplementedError

    # --- what the server sees

    def _see(self, op: Op, region: str, indices: tuple[int, ...], size: int) -> None:
        self.events.append(Event(op, region, indices, size, self.round_trips))

    def access(self, leaves: Sequence[int], records: int = 0) -> None:
        """One batch. leaves: what its requests look up. records: how many keyed records it is made of, 0 at the block level."""
        slots = self.interrupted(leaves)
        self.round_trips += 1
        if self.logged:
            self._commit(len(leaves), slots, CHANGE * records)
        self._see("write", "slots.1", slots, self.slot_size)
        if self.logged:
            self._see("write", "clock.1", (0,), CLOCK_SIZE)
        self.round_trips += 1
        if self.logged and self.synced and not self.joint:
            self._see("sync", "", (), 0)
            self.round_trips += 1

    def interrupted(self, leaves: Sequence[int]) -> tuple[int, ...]:
        """A batch that a crash ended in its read: what there is of it before. Returns the slots.

        After ``reopen`` the very same batch has to follow, whatever the application asks.
        """
        slots = self.touched(leaves)
        if self.logged:
            self.commits.append(((b"i" + _be(1, "I"), SEALED + 16 + 9 * len(leaves)),))
        elif not self._dirty:
            self._dirty = True
            self.commits.append((self._meta(),))
        self._see("read", "slots.1", slots, self.slot_size)
        return slots

    def reopen(self) -> None:
        """A clean or unclean end, and ``oram.open``: regions declared again, the clock read, a salt made durable."""
        if not self.joint:
            self._see("read", "header", (0,), HEADER_SIZE)
            self.round_trips += 1
        for region, size in (("slots.1", self.slot_size), ("clock.1", CLOCK_SIZE), ("header", HEADER_SIZE)):
            self._see("allocate", region, (), size)
            self.round_trips += 1
        self._see("read", "clock.1", (0,), CLOCK_SIZE)
        self.round_trips += 1
        self._generation += 1
        self.commits.append(((b"g" + _be(1, "I") + _be(self._generation, "Q"), 32), self._meta()))

    # --- what the disk of the client state sees

    def _meta(self) -> tuple[bytes, int]:
        return b"meta", 4 + SEALED + struct.calcsize("<QQQQ16sI32s???")

    def _commit(self, m: int, slots: tuple[int, ...], note: int) -> None:
        unit = int(self.info["blocks_per_value"])
        usual = self.record_size(unit, self.most(unit)) + CHANGE * bool(self.info["keyed"])
        head = SEALED + 36
        whole = -(-(usual + head + 16 + 1500) // 4096)  # pages
        piece = (2008 if usual <= 1200 else 4096 * whole - 16) - head - usual
        total = self.state_size() + (TAG * (int(self.info["blocks"]) // unit) if self.info["keyed"] else 0)
        count = -(-total // piece)
        puts: list[tuple[bytes, int]] = []
        for _ in range(min(count, -(-(self.record_size(m, self.most(m)) + note) // (2 * usual)))):
            i = self._cursor % count
            self._cursor += 1
            key = b"p" + _be(1, "I") + _be(i, "Q")
            puts.append((key, head + min(piece, total - i * piece)))
        puts[-1] = (puts[-1][0], puts[-1][1] + self.record_size(m, len(slots)) + note)
        if not self.joint and not self.atomic:
            size = sum(18 + len(name) + n * (8 + each) for name, n, each in self._writes(slots))
            puts.append((b"w" + _be(1, "I"), SEALED + 8 + size))
        self.commits.append((*puts, self._meta()))

    def _writes(self, slots: tuple[int, ...]) -> list[tuple[str, int, int]]:
        return [("slots.1", len(slots), self.slot_size), ("clock.1", 1, CLOCK_SIZE)]


class PathSimulator(Simulator):
    """Path ORAM: the union of the pages on the paths, layer by layer, read and then written."""

    def __init__(self, info: Mapping[str, Any], **options: bool) -> None:
        super().__init__(info, **options)
        self._Z, self._L, self._T, self._h = (int(info[name]) for name in ("Z", "L", "T", "h"))
        self._roots = page_levels(info)
        self._cells = self._Z * ((1 << self._h) - 1)  # block slots of a page
        B = int(info["block_size"])
        self._B = B
        self.slots = sum((1 << level) for level in self._roots)
        self.slot_size = 8 * (1 << self._h) + self._cells * (8 + B) + TAG
        self.max_batch = max(1, min(1024, 2**26 // (2 * len(self._roots) * self.slot_size)))

    def touched(self, leaves: Sequence[int]) -> tuple[int, ...]:
        slots: list[int] = []
        first = 0
        for level in self._roots:
            slots += sorted({first + (leaf >> (self._L - level)) for leaf in leaves})
            first += 1 << level
        return tuple(slots)

    def record_size(self, m: int, touched: int) -> int:
        return 16 + m * (1 + 4 + 4 + 4 + self._B) + touched * (8 + 4 * self._cells)

    def most(self, m: int) -> int:
        return m * len(self._roots)

    def state_size(self) -> int:
        pool = self._Z * ((1 << self._T) - 1) + 256 + self.max_batch
        return 4 * int(self.info["blocks"]) + 8 * (1 << self._T) + pool * (4 + self._B)


class LinearSimulator(Simulator):
    """Linear ORAM: everything, whatever the leaves are."""

    def __init__(self, info: Mapping[str, Any], **options: bool) -> None:
        super().__init__(info, **options)
        N, self._B = int(info["blocks"]), int(info["block_size"])
        together = max(1, min(N, 4096 // self._B))
        self.slots = -(-N // together)
        self.slot_size = together * self._B + TAG
        self.max_batch = 1024

    def touched(self, leaves: Sequence[int]) -> tuple[int, ...]:
        return tuple(range(self.slots))

    def record_size(self, m: int, touched: int) -> int:
        return 12 + m * (1 + 4 + self._B)

    def most(self, m: int) -> int:
        return self.slots

    def state_size(self) -> int:
        return 8


def simulator(info: Mapping[str, Any], **options: bool) -> Simulator:
    """The simulator of the scheme in ``info``; options as for ``Simulator``."""
    return PathSimulator(info, **options) if info["scheme"] == "path" else LinearSimulator(info, **options)


def page_levels(info: Mapping[str, Any]) -> list[int]:
    """Levels at which pages have their roots, from the top: every h levels counted from the leaves, and level T."""
    L, T, h = (int(info[name]) for name in ("L", "T", "h"))
    return sorted({T, *range(L + 1 - h, T, -h)})


def _be(value: int, kind: str) -> bytes:
    return struct.pack(">" + kind, value)
