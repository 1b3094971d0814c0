"""A backend that stands for one across a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from oram.backends import (
    Backend,
    BufferBackend,
    Capability,
    RegionShape,
    SlotRead,
    Slots,
    SlotWrite,
    XorBackend,
)
from oram.errors import BackendReadOnlyError
from oram.types import I64

__all__ = ["RemoteBackend", "ReplicatedBackend"]


T = TypeVar("T")


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

    def close(self) -> None:
        self.inner.close()

    def acquire(self) -> None:
        self.inner.acquire()

    def release(self) -> None:
        self.inner.release()

    def state_file(self) -> None:
        return None


class ReplicatedBackend(RemoteBackend):
    """A remote server with a replica that lags behind, and takes its place when told to.

    inner: a MemoryBackend, or another with BUFFER. lagging: the replica gets nothing; else each ``replicate`` gives it all.

    Calls are connected again by themselves: one that a failover interrupts is made again on the new server, after the check that
    ``on_reconnect`` asked for. calls: how many there were.
    """

    def __init__(self, inner: BufferBackend, delay: float = 0.0) -> None:
        super().__init__(inner, delay)
        self._memory = inner
        self.lagging, self.calls = False, 0
        # What each call replaced that the replica has not heard of: slots, or nothing where it declared the region.
        self._undo: list[list[tuple[str, I64, Slots] | str]] = []
        self._check: Callable[[int], None] | None = None
        self._checked = True  # the check of the latest connection went well
        self._plan: dict[int, tuple[bool, int]] = {}

    @property
    def at_risk(self) -> int:
        return len(self._undo)

    def replicate(self) -> None:
        if self.lagging and self._undo:
            raise BackendReadOnlyError("fewer than 1 replicas have the latest writes")
        self._undo.clear()

    def on_reconnect(self, check: Callable[[int], None]) -> None:
        self._check = check

    def fail_over(self, lost: int, *, at: int = 0, late: bool = False) -> None:
        """At the call that comes after ``at`` further ones, the replica takes over, without the latest ``lost`` of the calls that wrote.

        late: after that call took effect, and before its answer.
        """
        self._plan[self.calls + at] = late, lost

    def _lose(self, lost: int) -> None:
        for _ in range(min(lost, len(self._undo))):
            for change in reversed(self._undo.pop()):
                if isinstance(change, str):
                    self._memory.drop(change)
                    continue
                region, indices, old = change
                if region not in self._memory.regions():
                    continue  # dropped since, and by nothing that needs it again
                now = self._memory.buffer(region)
                now.data[indices], now.present[indices] = old.data, old.present
        self._checked = False
        self._look()

    def _look(self) -> None:
        """Make the check that is due, again where it failed."""
        if self._checked or self._check is None:
            return
        self._checked = True  # first: it calls this backend
        try:
            self._check(0)
        except BaseException:
            self._checked = False
            raise

    def _made(self, call: Callable[[], T], writes: Sequence[SlotWrite] = ()) -> T:
        late, lost = self._plan.pop(self.calls, (False, -1))
        self.calls += 1
        self._look()
        if lost >= 0 and late:
            self._note(writes)
            call()
        if lost >= 0:
            self._lose(lost)
        self._note(writes)
        return call()

    def _note(self, writes: Sequence[SlotWrite]) -> None:
        if writes:
            self._undo.append([(w.region, w.indices.copy(), self._memory.read(w.region, w.indices)) for w in writes])

    def allocate(self, region: str, shape: RegionShape) -> None:
        if region in self._memory.regions():  # its client knows, and asks nobody
            self.inner.allocate(region, shape)
            return

        def declare() -> None:
            super(ReplicatedBackend, self).allocate(region, shape)
            self._undo.append([region])

        self._made(declare)

    def read(self, region: str, indices: I64) -> Slots:
        return self._made(lambda: super(ReplicatedBackend, self).read(region, indices))

    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        return self._made(lambda: super(ReplicatedBackend, self).read_xor(region, groups, indices))

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        self._made(lambda: super(ReplicatedBackend, self).write_all(writes), writes)

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        return self._made(lambda: super(ReplicatedBackend, self).exchange(writes, reads), writes)
