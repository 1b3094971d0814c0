"""Slots in this process's own memory."""

from __future__ import annotations

import mmap
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from oram.backends.base import (
    BufferBackend,
    Capability,
    RegionShape,
    Slots,
    SlotWrite,
    StateFile,
    XorBackend,
    check_groups,
    check_indices,
    check_region,
    check_state_keys,
    check_write,
)
from oram.errors import BackendError, BackendFullError, StoreLockedError
from oram.types import I64, U8

__all__ = ["MemoryBackend", "MemoryStateFile"]

#: mmap names MAP_NORESERVE only from Python 3.13 on; the number is Linux's.
_MAP_NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def _zeros(size: int) -> U8:
    """``size`` zero bytes that cost address space only, until they are written. BackendFullError if even that fails."""
    try:
        if sys.platform != "win32":
            try:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
                return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=np.uint8)
            except (OSError, ValueError):  # no such mapping on this system
                pass
        return np.zeros(size, dtype=np.uint8)
    except (MemoryError, OverflowError, ValueError) as error:
        raise BackendFullError(f"no memory for a region of {size} bytes") from error


class MemoryBackend(BufferBackend, XorBackend):
    """Regions as anonymous memory of this process; gone with the object.

    The caller owns the object and may pass it to one store after another. A region takes memory only where slots were
    written, so that declaring one of any size is instant.

    Not for concurrent use by several threads, except ``acquire`` and ``release``; a store serialises its accesses.
    """

    capabilities: ClassVar[Capability] = Capability.BUFFER | Capability.ATOMIC | Capability.XOR

    def __init__(self) -> None:
        self._shapes: dict[str, RegionShape] = {}
        self._slots: dict[str, Slots] = {}
        self._ownership = threading.Lock()
        self._closed = False
        self._pairs: dict[bytes, bytes] = {}
        # Weak, because the state file refers to the backend, and gigabytes must not wait for the cycle collector.
        self._state: weakref.ref[MemoryStateFile] | None = None

    def allocate(self, region: str, shape: RegionShape) -> None:
        self._check_open()
        check_region(region, shape)
        declared = self._shapes.get(region)
        if declared is not None:
            if declared != shape:
                raise BackendError(f"region {region!r} is there with {declared.slots} x {declared.slot_size} bytes")
            return
        data = _zeros(shape.slots * shape.slot_size).reshape(shape.slots, shape.slot_size)
        self._slots[region] = Slots(data, _zeros(shape.slots))
        self._shapes[region] = shape

    def regions(self) -> Mapping[str, RegionShape]:
        self._check_open()
        return MappingProxyType(self._shapes)

    def drop(self, region: str) -> None:
        self._check_open()
        self._shapes.pop(region, None)
        self._slots.pop(region, None)

    def read(self, region: str, indices: I64) -> Slots:
        check_indices(self._shape(region), indices)
        slots = self._slots[region]
        present = slots.present.take(indices)
        data = slots.data.take(indices, axis=0)
        # A user of `buffer` may have cleared `present` only.
        if not present.all():
            data[present == 0] = 0
        return Slots(data, present)

    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        shape = self._shape(region)
        check_groups(shape, groups)
        read, slots = self.read(region, indices), self._slots[region]
        folded = np.zeros((groups.shape[0], shape.slot_size), dtype=np.uint8)
        # Slot by slot of the groups, so that only one slot a group is copied at a time.
        for column in groups.T:
            data = slots.data.take(column, axis=0, mode="clip")
            there = (slots.present.take(column, mode="clip") != 0) & (column >= 0)
            if not there.all():
                data[~there] = 0
            folded ^= data
        return replace(read, folded=folded)

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        self._check_writes(writes)
        self._apply(writes)

    def buffer(self, region: str) -> Slots:
        self._shape(region)
        return self._slots[region]

    def sync(self) -> None:
        self._check_open()

    def acquire(self) -> None:
        self._check_open()
        if not self._ownership.acquire(blocking=False):
            raise StoreLockedError("another store handle has this backend")

    def release(self) -> None:
        if self._ownership.locked():
            self._ownership.release()

    def close(self) -> None:
        """Refuse further work. The memory is freed with the object and the last array taken from ``buffer``."""
        self._closed = True

    def state_file(self) -> MemoryStateFile:
        self._check_open()
        state = self._state() if self._state is not None else None
        if state is None:
            state = MemoryStateFile(self)
            self._state = weakref.ref(state)
        return state

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the backend is closed")

    def _shape(self, region: str) -> RegionShape:
        self._check_open()
        try:
            return self._shapes[region]
        except KeyError:
            raise BackendError(f"no region {region!r}") from None

    def _check_writes(self, writes: Sequence[SlotWrite]) -> None:
        self._check_open()
        for write in writes:
            check_write(self._shape(write.region), write)

    def _apply(self, writes: Sequence[SlotWrite]) -> None:
        for write in writes:
            slots = self._slots[write.region]
            slots.data[write.indices] = write.data
            slots.present[write.indices] = 1


class MemoryStateFile(StateFile):
    """Client state as a dict, gone with the object.

    shared: the backend it belongs to. Without one it is a state file of its own, closed by ``close``.
    """

    def __init__(self, shared: MemoryBackend | None = None) -> None:
        self.shared = shared
        self._backend = shared
        self._pairs: dict[bytes, bytes] = {} if shared is None else shared._pairs
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._pairs.get(bytes(key))

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        return iter(sorted((key, value) for key, value in self._pairs.items() if key.startswith(prefix)))

    def commit(
        self,
        puts: Sequence[tuple[bytes, bytes | memoryview]],
        deletes: Sequence[bytes] = (),
        *,
        writes: Sequence[SlotWrite] = (),
    ) -> None:
        self._check_open()
        check_state_keys(puts, deletes)
        if self._backend is not None:
            self._backend._check_writes(writes)
        elif writes:
            raise BackendError("this state file shares its transactions with no backend")
        copies = {bytes(key): bytes(value) for key, value in puts}
        for key in deletes:
            self._pairs.pop(bytes(key), None)
        self._pairs.update(copies)
        if self._backend is not None:
            self._backend._apply(writes)

    def sync(self) -> None:
        self._check_open()

    def close(self) -> None:
        self._closed = self._backend is None

    def _check_open(self) -> None:
        if self._backend is not None:
            self._backend._check_open()
        elif self._closed:
            raise BackendError("the state file is closed")
