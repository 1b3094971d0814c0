"""Crashes, full disks and torn writes at every step of the protocol of an access.

A test keeps what survives (a backend, and maybe a state file apart from it) and puts a fresh ``FaultBackend`` over it for each life of the
process. A first run without faults counts the steps; then the same run is repeated with a fault at each of them in turn::

    crashed = storage.copy()
    backend = crashed.connect()
    store = oram.open(backend, key=key)
    crash(backend.faults, 3, lambda: store.put(b"key", b"value"))  # at the fourth step of the put
    store = oram.open(crashed.connect(), key=key)

After a ``Crash`` the wrapper is dead: whatever the store still tries, say in an ``except`` clause, changes nothing, as after a real crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from oram.backends import (
    Backend,
    BufferBackend,
    Capability,
    MemoryBackend,
    RegionShape,
    SlotRead,
    Slots,
    SlotWrite,
    StateFile,
    XorBackend,
)
from oram.backends.memory import MemoryStateFile
from oram.backends.sharded import stripes
from oram.errors import OramError, StoreLockedError
from oram.trace import TraceBackend
from oram.types import I64

__all__ = ["Crash", "FaultBackend", "FaultStateFile", "Faults", "Storage"]

T = TypeVar("T")

#: Region, slots, and what was in them, oldest first.
Unsynced: TypeAlias = list[tuple[str, I64, Slots]]

#: What a commit of the state file is about, by the start of its keys; the first that is there names the step.
_COMMITS = ((b"header", "install"), (b"i", "intent"), (b"p", "commit"), (b"g", "generation"))


class Crash(BaseException):
    """The process died here. Not an Exception, so that nothing handles it by accident."""


class Faults:
    """Counts steps and fails one of them.

    steps: the names of the steps made since ``arm`` or construction, the failed one among them.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.dead = False
        self._at: int | None = None
        self._error: Callable[[], BaseException] = Crash
        self._after = self._sticky = False
        self._on_crash: list[Callable[[], None]] = []

    def arm(
        self,
        at: int | None,
        error: Callable[[], BaseException] = Crash,
        *,
        after: bool = False,
        sticky: bool = False,
    ) -> None:
        """Forget the steps so far; fail step ``at`` from now, counted from 0 (None: none).

        error: makes what is raised. after: the step is done first. sticky: every later step that would change something fails too, until
        ``arm`` is called again, as on a full disk.
        """
        self.steps.clear()
        self._at, self._error, self._after, self._sticky = at, error, after, sticky

    @property
    def fired(self) -> bool:
        """Whether the step to fail was reached."""
        return self._at is not None and len(self.steps) > self._at

    def on_crash(self, undo: Callable[[], None]) -> None:
        """What the crash does to storage, such as losing what was not synced."""
        self._on_crash.append(undo)

    def spare(self) -> None:
        """The crash is that of the process only: nothing is lost."""
        self._on_crash.clear()

    def step(self, name: str, do: Callable[[], T], *, changes: bool) -> T:
        """One step of the protocol."""
        if self.dead:
            raise Crash("the process is dead")
        n = len(self.steps)
        self.steps.append(name)
        hit = n == self._at or (self._sticky and changes and self._at is not None and n > self._at)
        if not hit:
            return do()
        if self._after:
            do()
        error = self._error()
        if isinstance(error, Crash):
            self.dead = True
            for undo in self._on_crash:
                undo()
        raise error


class FaultBackend(XorBackend):
    """A backend whose steps fail when told to.

    inner: keeps the slots, and survives. state: a state file apart from the slots, that survives too; None for the one of ``inner``, if any.
    atomic: if False, a ``write_all`` is one step a slot, so that a crash can tear it anywhere, or one for each ``part`` slots, where there are
    many. shards: a ``write_all`` is a step for each of so many stripes of the regions, or its parts one stripe after the other, as over a
    ``ShardedBackend``: a crash leaves some of them with it and others without. reverse: the steps of such a write come last one first.
    unsynced: what the writes since the last ``sync`` replaced, in this life and
    before; a crash loses them (``inner`` must have BUFFER), so that it is DURABLE. None: nothing is ever lost. remote: it says that it is REMOTE.
    The writes of an ``exchange`` are steps of their own, and land before its read: whatever a crash leaves of a round trip is there after one
    of its steps.
    """

    def __init__(
        self,
        inner: Backend,
        faults: Faults,
        *,
        state: StateFile | None = None,
        atomic: bool = True,
        reverse: bool = False,
        unsynced: Unsynced | None = None,
        remote: bool = False,
        part: int = 1,
        shards: int = 1,
    ) -> None:
        self.inner, self.faults = inner, faults
        gone = Capability.BUFFER | (Capability.NONE if atomic and shards == 1 else Capability.ATOMIC)
        more = Capability.NONE if unsynced is None else Capability.DURABLE
        more |= Capability.REMOTE if remote else Capability.NONE
        # Of the object, because it depends on what is inside.
        self.capabilities = inner.capabilities & ~gone | more  # type: ignore[misc]
        self._atomic, self._reverse, self._part, self._shards = atomic, reverse, part, shards
        self._undo = unsynced
        below = state if state is not None else inner.state_file()
        self._file = None if below is None else FaultStateFile(self, below)
        faults.on_crash(self._lose)

    def _lose(self) -> None:
        for region, indices, old in reversed(self._undo or []):
            memory = self._memory()
            if region in memory.regions():
                now = memory.buffer(region)
                now.data[indices], now.present[indices] = old.data, old.present
        self.synced()

    def _memory(self) -> BufferBackend:
        """The slots themselves, beneath any trace, which must not see what only the simulation does."""
        below = self.inner
        while isinstance(below, TraceBackend):
            below = below.inner
        assert isinstance(below, BufferBackend)
        return below

    def remember(self, writes: Sequence[SlotWrite]) -> None:
        """Note what these writes are about to replace."""
        if self._undo is not None:
            self._undo += [(w.region, w.indices.copy(), self._memory().read(w.region, w.indices)) for w in writes]

    def allocate(self, region: str, shape: RegionShape) -> None:
        if region in self.inner.regions():
            self.inner.allocate(region, shape)
        else:
            self.faults.step("allocate", lambda: self.inner.allocate(region, shape), changes=True)

    def regions(self) -> Mapping[str, RegionShape]:
        return self.inner.regions()

    def drop(self, region: str) -> None:
        if region in self.inner.regions():
            self.faults.step("drop", lambda: self.inner.drop(region), changes=True)

    def read(self, region: str, indices: I64) -> Slots:
        return self.faults.step("read", lambda: self.inner.read(region, indices), changes=False)

    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        return self.exchange((), SlotRead(region, indices, groups))

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        if writes:
            self.write_all(writes)
        return self.faults.step("read", lambda: self.inner.exchange((), reads), changes=False)

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        parts = [
            some
            for own in self._stripes(writes)
            for some in ([own] if self._atomic else [[part] for write in own for part in _parts(write, self._part)])
        ]
        for part in reversed(parts) if self._reverse else parts:
            self.faults.step("write", lambda part=part: self._write(part), changes=True)  # type: ignore[misc]

    def _stripes(self, writes: Sequence[SlotWrite]) -> list[list[SlotWrite]]:
        """What each shard gets of the writes; one that gets nothing has no step."""
        if self._shards == 1:
            return [list(writes)]
        own: list[list[SlotWrite]] = [[] for _ in range(self._shards)]
        for write in writes:
            ends = np.cumsum(stripes(self.inner.regions()[write.region].slots, self._shards))
            which = ends.searchsorted(write.indices, side="right")
            for j in sorted(set(which.tolist())):
                rows = np.flatnonzero(which == j)
                own[j].append(SlotWrite(write.region, write.indices[rows], write.data[rows]))
        return [each for each in own if each]

    def _write(self, writes: Sequence[SlotWrite]) -> None:
        self.remember(writes)
        self.inner.write_all(writes)

    @property
    def parts(self) -> int:
        return self.inner.parts

    def sync(self) -> None:
        self.faults.step("sync", self.inner.sync, changes=False)
        self.synced()

    def synced(self) -> None:
        """What was written until now survives."""
        if self._undo is not None:
            self._undo.clear()

    @property
    def at_risk(self) -> int:
        return self.inner.at_risk

    def replicate(self) -> None:
        self.inner.replicate()

    def on_reconnect(self, check: Callable[[int], None]) -> None:
        self.inner.on_reconnect(check)

    def close(self) -> None:
        """Only this wrapper's life ends."""

    def acquire(self) -> None:
        self.inner.acquire()

    def release(self) -> None:
        self.inner.release()

    def state_file(self) -> FaultStateFile | None:
        return self._file


class FaultStateFile(StateFile):
    """The state file of a ``FaultBackend``. A commit is durable on return, with the slots that it writes."""

    def __init__(self, backend: FaultBackend, inner: StateFile) -> None:
        self.inner, self._backend = inner, backend
        self.shared = backend if inner.shared is backend.inner else None

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
        keys = [bytes(key) for key, _ in puts]
        name = next((name for start, name in _COMMITS if any(key.startswith(start) for key in keys)), "mark")
        if name == "commit" and deletes:
            name = "checkpoint"
        if not puts:
            name = "forget"
        self._backend.faults.step(name, lambda: self.inner.commit(puts, deletes, writes=writes), changes=True)

    def sync(self) -> None:
        self._backend.faults.step("sync", self.inner.sync, changes=False)

    def close(self) -> None:
        """Only this wrapper's life ends."""


class Storage:
    """What survives a crash: slots, and client state with them or apart; with a new connection for each life.

    apart: the client state has a file of its own, so that commit and write are two steps. lossy: a crash loses what the backend was not told
    to sync. slots: where they are, by default in memory. The others are those of ``FaultBackend``.
    """

    def __init__(
        self,
        *,
        apart: bool = False,
        atomic: bool = True,
        reverse: bool = False,
        lossy: bool = False,
        remote: bool = False,
        part: int = 1,
        shards: int = 1,
        slots: Backend | None = None,
    ) -> None:
        self.slots = MemoryBackend() if slots is None else slots
        state = MemoryStateFile() if apart else self.slots.state_file()
        assert state is not None
        self.state: StateFile = state
        self._apart, self._atomic, self._reverse, self._remote, self._part = apart, atomic, reverse, remote, part
        self._shards = shards
        self._unsynced: Unsynced | None = [] if lossy else None
        self.faults = Faults()

    def connect(self, over: Callable[[Backend], Backend] = lambda inner: inner) -> FaultBackend:
        """A new life: what was before it is gone, its lock included. over: what to put between the faults and the slots, say a trace."""
        self.slots.release()
        self.slots.on_reconnect(lambda _: None)
        self.faults = Faults()
        return FaultBackend(
            over(self.slots),
            self.faults,
            state=self.state if self._apart else None,
            atomic=self._atomic,
            reverse=self._reverse,
            unsynced=self._unsynced,
            remote=self._remote,
            part=self._part,
            shards=self._shards,
        )

    def tear_in_parts(self, part: int) -> None:
        """From the next life on."""
        self._part = part

    def copy(self) -> Storage:
        """The same content, elsewhere."""
        other = Storage(
            apart=self._apart,
            atomic=self._atomic,
            reverse=self._reverse,
            lossy=self._unsynced is not None,
            remote=self._remote,
            part=self._part,
            shards=self._shards,
        )
        assert isinstance(self.slots, BufferBackend)
        if self._unsynced is not None:
            other._unsynced = list(self._unsynced)
        for region, shape in self.slots.regions().items():
            other.slots.allocate(region, shape)
            there = np.flatnonzero(self.slots.buffer(region).present)
            other.slots.write(region, there, self.slots.read(region, there).data)
        other.state.commit(list(self.state.scan(b"")))
        return other


def _parts(write: SlotWrite, size: int) -> Iterator[SlotWrite]:
    for first in range(0, write.indices.size, size):
        some = slice(first, first + size)
        yield SlotWrite(write.region, write.indices[some], write.data[some])


def crash(faults: Faults, at: int | None, work: Callable[[], T], *, after: bool = False) -> T | None:
    """Do ``work`` with a crash at a step; its result, or None where it crashed. Other errors of the dying process are dropped."""
    faults.arm(at, after=after)
    try:
        return work()
    except Crash:
        return None
    except (OramError, StoreLockedError):
        if faults.dead:
            return None
        raise
