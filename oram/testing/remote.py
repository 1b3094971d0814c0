"""A backend that stands for one across a network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import cast

from oram.backends import Backend, Capability, RegionShape, SlotRead, Slots, SlotWrite, XorBackend
from oram.types import I64

__all__ = ["RemoteBackend"]


class RemoteBackend(XorBackend):
    """``inner`` behind round trips: REMOTE, without BUFFER and without a place for the client state; else it can what ``inner`` can.

    delay: seconds that a round trip takes besides. round_trips: calls so far that have to wait for the server.
    """

    def __init__(self, inner: Backend, delay: float = 0.0) -> None:
        self.inner, self.delay = inner, delay
        self.round_trips = 0
        # Of the object, because it depends on what is inside.
        self.capabilities = inner.capabilities & ~Capability.BUFFER | Capability.REMOTE  # type: ignore[misc]

    def _trip(self) -> None:
        self.round_trips += 1
        if self.delay:
            time.sleep(self.delay)

    def allocate(self, region: str, shape: RegionShape) -> None:
        self._trip()
        self.inner.allocate(region, shape)

    def regions(self) -> Mapping[str, RegionShape]:
        return self.inner.regions()

    def drop(self, region: str) -> None:
        self._trip()
        self.inner.drop(region)

    def read(self, region: str, indices: I64) -> Slots:
        self._trip()
        return self.inner.read(region, indices)

    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        self._trip()
        return cast(XorBackend, self.inner).read_xor(region, groups, indices)

    def fold_pays(self, slots: int, slot_size: int) -> bool:
        return cast(XorBackend, self.inner).fold_pays(slots, slot_size)

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        self._trip()
        self.inner.write_all(writes)

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        self._trip()
        return self.inner.exchange(writes, reads)

    def sync(self) -> None:
        self._trip()
        self.inner.sync()

    def close(self) -> None:
        self.inner.close()

    def acquire(self) -> None:
        self.inner.acquire()

    def release(self) -> None:
        self.inner.release()

    def state_file(self) -> None:
        return None
