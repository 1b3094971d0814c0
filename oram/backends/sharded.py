"""Several backends as one: each has a stripe of every region, and takes part in every call that a store makes of all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import TypeVar, cast

import numpy as np

from oram.backends.base import (
    Backend,
    Capability,
    RegionShape,
    SlotRead,
    Slots,
    SlotWrite,
    XorBackend,
    check_groups,
    check_indices,
    check_region,
    check_write,
)
from oram.errors import BackendError, ForkedStoreError, ParameterError, RollbackError
from oram.types import I64, U8

__all__ = ["ShardedBackend", "stripes"]

T = TypeVar("T")


def stripes(slots: int, k: int) -> list[int]:
    """The slots of a region that each of k backends has: as many each as can be, the first ones one more. They are contiguous, in order."""
    return [slots // k + (j < slots % k) for j in range(k)]


class ShardedBackend(XorBackend):
    """Backends, each on a server or under a name of its own, as one backend with room for all of them together.

    backends: one a shard, always in the same order. Slots ``j n`` to ``(j + 1) n - 1`` of a region of ``k n`` slots are slots 0 to ``n - 1`` of a
    region of the same name in backend j; a region of fewer than k slots has one in each of the first.
    parallel: whether calls to the backends run at the same time, each backend's in a thread of its own; None: where one of them is REMOTE.

    Its capabilities are those that all of them have, but for BUFFER, and for ATOMIC, as a write can reach some of them and not others; and REMOTE,
    if one of them is. It has no state file. ``close`` closes all of them.

    Errors are the backends' own. Where one fails the others are waited for, and the first one's error in their order is raised. After an interrupt the calls
    that were begun end by themselves, each backend's ahead of whatever it is asked next. It refuses work after a fork.

    Cost: a call that touches several backends takes as long as the slowest of them, one after the other where not parallel. Leaks: to each
    backend what it is asked; which of them are asked follows from the slots.
    """

    def __init__(self, backends: Sequence[Backend], *, parallel: bool | None = None) -> None:
        if not backends or len({id(backend) for backend in backends}) != len(backends):
            raise ParameterError("a sharded backend needs backends, each another one")
        self.backends = tuple(backends)
        shared = self.backends[0].capabilities
        for backend in self.backends[1:]:
            shared &= backend.capabilities
        if any(Capability.REMOTE in backend.capabilities for backend in self.backends):
            shared |= Capability.REMOTE  # where one round trip costs much, all of them together do
        # Of the object, because it depends on what is inside.
        self.capabilities = shared & ~(Capability.ATOMIC | Capability.BUFFER)  # type: ignore[misc]
        if parallel is None:
            parallel = Capability.REMOTE in shared
        self._threads = (
            [ThreadPoolExecutor(1, f"oram-shard-{j}") for j in range(len(backends))]
            if parallel and len(backends) > 1
            else []
        )
        self._own = threading.local()  # number: of the backend whose thread it is
        self._known: dict[str, _Striped] = {}
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"ShardedBackend({list(self.backends)!r})"

    # --- all of them

    def _all(self, calls: Sequence[Callable[[], T] | None]) -> list[T | None]:
        """Make each backend's call, if it has one; what they returned, in the order of the backends."""
        if os.getpid() != self._pid:
            raise ForkedStoreError("this backend was made before a fork; use it in one process only")
        if not self._threads:
            return [None if call is None else call() for call in calls]
        here = getattr(self._own, "number", None)
        if (
            here is not None
        ):  # one of these threads, in the middle of a call: on a new connection its backend is looked at
            if any(call is not None for j, call in enumerate(calls) if j != here):
                raise BackendError("a check on a new connection is for its own backend only")
            return [None if call is None else call() for call in calls]
        futures: list[Future[T] | None] = [
            None if call is None else self._threads[j].submit(self._in_thread, j, call) for j, call in enumerate(calls)
        ]
        wait([future for future in futures if future is not None])
        return [None if future is None else future.result() for future in futures]

    def _in_thread(self, j: int, call: Callable[[], T]) -> T:
        self._own.number = j
        return call()

    def _one(self, j: int, call: Callable[[], object]) -> None:
        """The same for one backend."""
        self._all([call if i == j else None for i in range(len(self.backends))])

    # --- regions

    def _there(self, region: str) -> list[RegionShape | None]:
        """What each backend has of a region."""
        return [backend.regions().get(region) for backend in self.backends]

    def allocate(self, region: str, shape: RegionShape) -> None:
        """As the base class says, in every backend that has slots of it. The first one comes last, so that what it has, all have; what a crash
        left undone is done now. RollbackError where another backend has lost its part.
        """
        check_region(region, shape)
        k, there = len(self.backends), self._there(region)
        parts = [RegionShape(slots, shape.slot_size) if slots else None for slots in stripes(shape.slots, k)]
        if there == parts:
            return
        differ = any(found not in (None, part) for found, part in zip(there, parts, strict=True))
        sizes = [0 if found is None else found.slots for found in there]
        if differ or (there[0] is not None and sizes == stripes(sum(sizes), k)):
            raise BackendError(
                f"region {region!r} is there in another shape, or these are not its backends in their order"
            )
        if there[0] is not None:
            raise RollbackError("a shard has lost its part of a region that the others have")
        calls = [
            None if part is None else partial(backend.allocate, region, part)
            for backend, part in zip(self.backends, parts, strict=True)
        ]
        self._all([None, *calls[1:]])
        self._all([calls[0], *[None] * (k - 1)])
        self._known.pop(region, None)

    def regions(self) -> Mapping[str, RegionShape]:
        shapes: dict[str, RegionShape] = {}
        for backend in self.backends:
            for name, part in backend.regions().items():
                before = shapes.get(name)
                shapes[name] = part if before is None else RegionShape(before.slots + part.slots, part.slot_size)
        return MappingProxyType(shapes)

    def drop(self, region: str) -> None:
        self._known.pop(region, None)
        self._one(0, partial(self.backends[0].drop, region))
        self._all([None, *(partial(backend.drop, region) for backend in self.backends[1:])])

    def _region(self, region: str) -> _Striped:
        known = self._known.get(region)
        if known is None:
            there = self._there(region)
            shape = next((part for part in there if part is not None), None)
            if shape is None:
                raise BackendError(f"no region {region!r}")
            sizes = [0 if part is None else part.slots for part in there]
            known = self._known[region] = _Striped(np.cumsum([0, *sizes]), RegionShape(sum(sizes), shape.slot_size))
        return known

    # --- slots

    def read(self, region: str, indices: I64) -> Slots:
        return self.exchange((), SlotRead(region, indices))

    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        return self.exchange((), SlotRead(region, indices, groups))

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        calls = [
            partial(backend.write_all, part) if part else None
            for backend, part in zip(self.backends, self._writes(writes), strict=True)
        ]
        self._all(calls if any(calls) else [partial(backend.write_all, ()) for backend in self.backends])

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        """As the base class says: each backend's part in one round trip, those of all at the same time where parallel."""
        own, known = self._writes(writes), self._region(reads.region)
        check_indices(known.shape, reads.indices)
        if reads.groups is not None:
            if Capability.XOR not in self.capabilities:
                raise BackendError("the backend cannot XOR slots")
            check_groups(known.shape, reads.groups)
        parts, folds = known.split(reads.indices), known.folds(reads.groups)
        calls: list[Callable[[], Slots | None] | None] = []
        for backend, mine, (_, indices), (_, groups) in zip(self.backends, own, parts, folds, strict=True):
            if indices.size or groups is not None:
                calls.append(partial(backend.exchange, mine, SlotRead(reads.region, indices, groups)))
            else:
                calls.append(partial(backend.write_all, mine) if mine else None)
        if not any(calls):  # of nothing too, all are asked alike
            there = np.diff(known.starts) > 0
            calls = [
                partial(backend.read, reads.region, indices) if has else None
                for backend, (_, indices), has in zip(self.backends, parts, there.tolist(), strict=True)
            ]
        found = self._all(calls)
        size = known.shape.slot_size
        data, present = np.zeros((reads.indices.size, size), np.uint8), np.zeros(reads.indices.size, np.uint8)
        folded = None if reads.groups is None else np.zeros((len(reads.groups), size), np.uint8)
        for slots, (at, indices), (rows, groups) in zip(found, parts, folds, strict=True):
            if slots is not None and indices.size:
                data[at], present[at] = slots.data, slots.present
            if slots is not None and groups is not None and folded is not None:
                folded[rows] ^= cast(U8, slots.folded)
        return Slots(data, present, folded)

    def _writes(self, writes: Sequence[SlotWrite]) -> list[list[SlotWrite]]:
        """Each backend's part of the writes, after checking them all."""
        for write in writes:
            check_write(self._region(write.region).shape, write)
        own: list[list[SlotWrite]] = [[] for _ in self.backends]
        for write in writes:
            for mine, (at, indices) in zip(own, self._region(write.region).split(write.indices), strict=True):
                if indices.size:
                    mine.append(SlotWrite(write.region, indices, write.data[at]))
        return own

    def fold_pays(self, slots: int, slot_size: int) -> bool:
        return all(cast(XorBackend, backend).fold_pays(slots, slot_size) for backend in self.backends)

    def sync(self) -> None:
        self._all([backend.sync for backend in self.backends])

    @property
    def parts(self) -> int:
        return len(self.backends)

    @property
    def at_risk(self) -> int:
        return max(backend.at_risk for backend in self.backends)

    def replicate(self) -> None:
        self._all([backend.replicate for backend in self.backends])

    def on_reconnect(self, check: Callable[[int], None]) -> None:
        for j, backend in enumerate(self.backends):
            backend.on_reconnect(lambda _, j=j: check(j))  # type: ignore[misc]

    # --- ownership

    def acquire(self) -> None:
        """Take all of them, or none. What it raises is what the first that cannot be taken raises."""
        for j, backend in enumerate(self.backends):
            try:
                self._one(j, backend.acquire)
            except BaseException:
                for i in range(j):
                    self._one(i, self.backends[i].release)
                raise

    def release(self) -> None:
        self._end("release")

    def close(self) -> None:
        self._end("close")
        if os.getpid() == self._pid:
            for thread in self._threads:
                thread.shutdown(wait=False)
        self._threads = []

    def _end(self, name: str) -> None:
        """Release or close all of them, also where one fails, and in a child of a fork, which has no threads."""
        calls: list[Callable[[], object]] = [getattr(backend, name) for backend in self.backends]
        if os.getpid() == self._pid and self._threads:
            self._all(calls)
            return
        with ExitStack() as stack:
            for call in reversed(calls):
                stack.callback(call)

    def state_file(self) -> None:
        self.backends[0].regions()  # which says whether it is closed


class _Striped:
    """Where the slots of a region are. starts: int64 (k + 1,), the first slot of each stripe and the number of slots."""

    def __init__(self, starts: I64, shape: RegionShape) -> None:
        self.starts, self.shape = starts, shape

    def split(self, indices: I64) -> list[tuple[slice | I64, I64]]:
        """For each backend which of the indices are its own, and what it calls them. A scheme asks stripe by stripe, so that they are slices."""
        which = self.starts[1:].searchsorted(indices, side="right")
        order: I64 | None = None
        if which.size > 1 and (which[1:] < which[:-1]).any():
            order = which.argsort(kind="stable")
            which = which[order]
        ends = which.searchsorted(np.arange(self.starts.size))
        found: list[tuple[slice | I64, I64]] = []
        for j, first in enumerate(self.starts[:-1].tolist()):
            at: slice | I64 = slice(int(ends[j]), int(ends[j + 1]))
            at = at if order is None else order[at]
            found.append((at, indices[at] - first))
        return found

    def folds(self, groups: I64 | None) -> list[tuple[I64, I64 | None]]:
        """For each backend the rows of the groups that have slots of it, and these as it calls them; None where it has none."""
        nothing = np.empty(0, np.int64)
        found: list[tuple[I64, I64 | None]] = []
        for first, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            if groups is None:
                found.append((nothing, None))
                continue
            mine = (groups >= first) & (groups < end)
            rows = np.flatnonzero(mine.any(axis=1))
            found.append((rows, np.where(mine[rows], groups[rows] - first, -1) if rows.size else None))
        return found
