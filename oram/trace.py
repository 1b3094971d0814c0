"""A backend wrapper that records what the server sees."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np

from oram.backends import (
    Backend,
    Capability,
    RegionShape,
    SlotRead,
    Slots,
    SlotWrite,
    StateFile,
    XorBackend,
)
from oram.backends.base import check_groups, check_indices, check_state_keys, check_write
from oram.errors import BackendError
from oram.types import I64, U8

__all__ = ["Event", "Op", "TraceBackend", "TraceStateFile"]

Op: TypeAlias = Literal["allocate", "drop", "read", "write", "xor", "sync"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that the server saw.

    Events of one round trip have the same ``trip``: each write of a ``write_all``, the writes and then the read of an
    ``exchange``, each group of a ``read_xor`` and then its plain read, if any. Events are equal whatever the ciphertext.

    indices: the slots in the order asked for, -1 for none in a group; empty but for read, write and xor.
    slot_size: bytes; 0 for a sync and a drop.
    trip: counted from 0 at the last ``clear``.
    data: uint8, shape (n, slot_size), or (1, slot_size) for xor; a copy, where the trace keeps data.
    """

    op: Op
    region: str
    indices: tuple[int, ...]
    slot_size: int
    trip: int
    data: U8 | None = dataclasses.field(default=None, compare=False, repr=False)


class TraceBackend(XorBackend):
    """Records every call to ``inner`` that an observer of the server would see.

    inner: does the work. It keeps its capabilities but for BUFFER, which would bypass the record.
    keep_data: whether to keep the ciphertexts too, for checks of nonces and lengths.

    Attributes:
        events: what happened to the slots, in order.
        state_commits: for each commit of the state file the (key, bytes of the value) it put, in order, and
            (key, -1) for what it deleted: the journal's disk is observed too.
        round_trips: calls that reached the server, among them commits that wrote slots.
        bytes_read, bytes_written: of slots, summed over the events.

    Reads and writes are recorded before they are made, so that those that fail half way are there too; a call that
    the backend refuses for its arguments is not. For one thread at a time.
    """

    def __init__(self, inner: Backend, *, keep_data: bool = False) -> None:
        self.inner = inner
        # An attribute of the object in the place of one of the class: it depends on what is inside.
        self.capabilities = inner.capabilities & ~Capability.BUFFER  # type: ignore[misc]
        self.keep_data = keep_data
        self._state: weakref.ref[TraceStateFile] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget everything recorded."""
        self.events: list[Event] = []
        self.state_commits: list[tuple[tuple[bytes, int], ...]] = []
        self.round_trips = 0
        self.bytes_read = 0
        self.bytes_written = 0

    def trips(self) -> list[tuple[Event, ...]]:
        """The events grouped by round trip; an empty group for a call without slots."""
        groups: list[list[Event]] = [[] for _ in range(self.round_trips)]
        for event in self.events:
            groups[event.trip].append(event)
        return [tuple(group) for group in groups]

    def allocate(self, region: str, shape: RegionShape) -> None:
        self.inner.allocate(region, shape)
        self._record("allocate", region, (), shape.slot_size, self._trip())

    def regions(self) -> Mapping[str, RegionShape]:
        return self.inner.regions()

    def drop(self, region: str) -> None:
        self.inner.drop(region)
        self._record("drop", region, (), 0, self._trip())

    def read(self, region: str, indices: I64) -> Slots:
        self._check_read(region, indices)
        at = self._record_read(SlotRead(region, indices), self._trip())
        return self._keep(at, self.inner.read(region, indices))

    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        self._check_groups(region, groups)
        self._check_read(region, indices)
        reads = SlotRead(region, indices, groups)
        at = self._record_read(reads, self._trip())
        return self._keep(at, cast(XorBackend, self.inner).read_xor(region, groups, indices))

    def fold_pays(self, slots: int, slot_size: int) -> bool:
        return cast(XorBackend, self.inner).fold_pays(slots, slot_size)

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        self._check_writes(writes)
        self._record_writes(writes, self._trip())
        self.inner.write_all(writes)

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        self._check_writes(writes)
        if reads.groups is not None:
            self._check_groups(reads.region, reads.groups)
        self._check_read(reads.region, reads.indices)
        trip = self._trip()
        self._record_writes(writes, trip)
        at = self._record_read(reads, trip)
        return self._keep(at, self.inner.exchange(writes, reads))

    @property
    def at_risk(self) -> int:
        return self.inner.at_risk

    def replicate(self) -> None:
        self.inner.replicate()

    def on_reconnect(self, check: Callable[[int], None]) -> None:
        self.inner.on_reconnect(check)

    @property
    def parts(self) -> int:
        return self.inner.parts

    def sync(self) -> None:
        self._record("sync", "", (), 0, self._trip())
        self.inner.sync()

    def close(self) -> None:
        self.inner.close()

    def acquire(self) -> None:
        self.inner.acquire()

    def release(self) -> None:
        self.inner.release()

    def state_file(self) -> TraceStateFile | None:
        inner = self.inner.state_file()
        if inner is None:
            return None
        state = self._state() if self._state is not None else None
        if state is None:
            state = TraceStateFile(self, inner)
            self._state = weakref.ref(state)
        return state

    def _trip(self) -> int:
        self.round_trips += 1
        return self.round_trips - 1

    def _shape(self, region: str) -> RegionShape:
        shape = self.inner.regions().get(region)
        if shape is None:
            raise BackendError(f"no region {region!r}")
        return shape

    def _check_read(self, region: str, indices: I64) -> None:
        check_indices(self._shape(region), indices)

    def _check_groups(self, region: str, groups: I64) -> None:
        if Capability.XOR not in self.capabilities:
            raise BackendError("the backend cannot XOR slots")
        check_groups(self._shape(region), groups)

    def _check_writes(self, writes: Sequence[SlotWrite]) -> None:
        for write in writes:
            check_write(self._shape(write.region), write)

    def _record(
        self, op: Op, region: str, indices: tuple[int, ...], size: int, trip: int, data: U8 | None = None
    ) -> None:
        self.events.append(Event(op, region, indices, size, trip, data))

    def _record_read(self, reads: SlotRead, trip: int) -> int:
        """Record a read, its groups first, and return where, so that ``_keep`` can add what it returned."""
        at, size = len(self.events), self._shape(reads.region).slot_size
        groups = [] if reads.groups is None else reads.groups.tolist()
        for group in groups:
            self._record("xor", reads.region, tuple(group), size, trip)
        if reads.groups is None or reads.indices.size:
            self._record("read", reads.region, tuple(reads.indices.tolist()), size, trip)
        self.bytes_read += (len(groups) + reads.indices.size) * size
        return at

    def _keep(self, at: int, slots: Slots) -> Slots:
        if self.keep_data:
            folded = () if slots.folded is None else slots.folded[:, np.newaxis]
            for i, data in enumerate((*folded, slots.data)):
                if at + i < len(self.events):
                    self.events[at + i] = dataclasses.replace(self.events[at + i], data=data.copy())
        return slots

    def _record_writes(self, writes: Sequence[SlotWrite], trip: int) -> None:
        for write in writes:
            size = self._shape(write.region).slot_size
            data = write.data.copy() if self.keep_data else None
            self._record("write", write.region, tuple(write.indices.tolist()), size, trip, data)
            self.bytes_written += write.data.size


class TraceStateFile(StateFile):
    """The state file of a traced backend: records the sizes of commits, and the slots written along with them."""

    def __init__(self, trace: TraceBackend, inner: StateFile) -> None:
        self.inner = inner
        self.shared = trace if inner.shared is trace.inner else None
        self._trace = trace

    def get(self, key: bytes) -> bytes | None:
        return self.inner.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.inner.scan(prefix)

    def commit(
        self,
        puts: Sequence[tuple[bytes, bytes | memoryview]],
        deletes: Sequence[bytes] = (),
        *,
        writes: Sequence[SlotWrite] = (),
    ) -> None:
        trace = self._trace
        check_state_keys(puts, deletes)
        trace._check_writes(writes)
        if writes and self.shared is None:
            raise BackendError("this state file shares its transactions with no backend")
        trace.state_commits.append(
            (
                *((bytes(key), -1) for key in deletes),
                *((bytes(key), memoryview(value).nbytes) for key, value in puts),
            )
        )
        if writes:
            trace._record_writes(writes, trace._trip())
        self.inner.commit(puts, deletes, writes=writes)

    def sync(self) -> None:
        self.inner.sync()

    def close(self) -> None:
        self.inner.close()
