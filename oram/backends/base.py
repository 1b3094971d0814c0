"""The seam to the untrusted server: equally sized slots of ciphertext in named regions.

A backend has no notion of blocks, trees or keys. What it can do beyond the plain protocol is said by its
:class:`Capability` flags and by nothing else.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

import numpy as np

from oram.errors import BackendError
from oram.types import I64, U8


class Capability(enum.Flag):
    """What a backend can do beyond the plain protocol."""

    NONE = 0
    DURABLE = enum.auto()  #: what was synced survives power loss
    ATOMIC = enum.auto()  #: one ``write_all`` lands whole or not at all, also in a crash
    REMOTE = enum.auto()  #: a round trip costs much more than its bytes
    XOR = enum.auto()  #: ``read_xor`` is there
    BUFFER = enum.auto()  #: ``buffer`` hands out the region's memory itself


@dataclass(frozen=True, slots=True)
class RegionShape:
    """``slots`` slots of ``slot_size`` bytes each."""

    slots: int
    slot_size: int


@dataclass(frozen=True, slots=True)
class Slots:
    """What a read returned.

    data: uint8, shape (n, slot_size), C-contiguous and writable; rows of absent slots are zero.
    present: uint8, shape (n,); 0 where the slot was never written.
    folded: uint8, shape (g, slot_size): the XOR of the slots of each group of the read, where it had groups.
    """

    data: U8
    present: U8
    folded: U8 | None = None


@dataclass(frozen=True, slots=True)
class SlotWrite:
    """``data[i]`` (uint8, shape (n, slot_size), C-contiguous) goes to slot ``indices[i]`` (int64, distinct)."""

    region: str
    indices: I64
    data: U8


@dataclass(frozen=True, slots=True)
class SlotRead:
    """Read slots ``indices`` (int64; a slot may be named twice) of ``region``.

    groups: int64, shape (g, n), only where the backend has XOR: fetch also the XOR of the slots of each row. -1 is no slot.
    """

    region: str
    indices: I64
    groups: I64 | None = None


class StateFile(abc.ABC):
    """A small trusted, durable map of bytes to bytes, for the client state; its durability is its engine's.

    One transaction at a time. ``sync`` at construction says whether ``commit`` survives power loss (True) or the
    death of the process only (False).
    """

    #: The backend that ``commit(..., writes=...)`` can write to in the same transaction, if any.
    shared: Backend | None = None

    @abc.abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, or None."""

    @abc.abstractmethod
    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with ``prefix``, in key order."""

    @abc.abstractmethod
    def commit(
        self,
        puts: Sequence[tuple[bytes, bytes | memoryview]],
        deletes: Sequence[bytes] = (),
        *,
        writes: Sequence[SlotWrite] = (),
    ) -> None:
        """Apply all of it in one transaction, durable on return; the deletes before the puts.

        Keys are 1 to 511 bytes long; a key that is not there may be deleted.
        writes: slot writes to the backend in ``shared``, in the very same transaction (empty where ``shared`` is None).
        Raises BackendFullError where there is no room; then nothing of it was applied.
        """

    def replace(self, key: bytes, value: bytes) -> None:
        """``commit([(key, value)])`` for a key that is replaced often and never together with others; it may be cheaper."""
        self.commit([(key, value)])

    @abc.abstractmethod
    def sync(self) -> None:
        """Make everything committed survive power loss."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file. Idempotent."""


class Backend(abc.ABC):
    """Untrusted slots of ciphertext. Round trips are counted by calls: one call, one round trip.

    Argument errors (unknown region, index out of range, wrong shape or dtype) are ``BackendError`` before
    anything changes.
    """

    capabilities: ClassVar[Capability] = Capability.NONE

    @abc.abstractmethod
    def allocate(self, region: str, shape: RegionShape) -> None:
        """Declare a region. Instant for any number of slots; storage grows with use.

        Idempotent for an equal shape; BackendError for another one.
        """

    @abc.abstractmethod
    def regions(self) -> Mapping[str, RegionShape]:
        """The declared regions."""

    @abc.abstractmethod
    def drop(self, region: str) -> None:
        """Forget a region and its slots; no error where there is none."""

    @abc.abstractmethod
    def read(self, region: str, indices: I64) -> Slots:
        """Read slots in one round trip, however many."""

    @abc.abstractmethod
    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        """Write slots, of any regions, in one round trip and in this order; all or nothing where ATOMIC."""

    def write(self, region: str, indices: I64, data: U8) -> None:
        """Write slots of one region in one round trip."""
        self.write_all((SlotWrite(region, indices, data),))

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        """A write-back and the next read in one round trip; the read sees the writes. Where the writes are none, it is a read."""
        if writes:
            self.write_all(writes)
        if reads.groups is None:
            return self.read(reads.region, reads.indices)
        if not isinstance(self, XorBackend):
            raise BackendError("the backend cannot XOR slots")
        return self.read_xor(reads.region, reads.groups, reads.indices)

    @abc.abstractmethod
    def sync(self) -> None:
        """Make everything written survive power loss, where DURABLE."""

    @property
    def at_risk(self) -> int:
        """How many of the latest calls that wrote a failover of the server can still take back; 0 where there is none."""
        return 0

    def replicate(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until nothing is at risk any more. BackendError if that does not come about; what was written stays written."""

    def on_reconnect(self, check: Callable[[int], None]) -> None:  # noqa: B027 - most never connect again
        """Call ``check``, and no other any more, on each new connection, before anything of the interrupted call is sent again.

        For backends that connect again by themselves: the server may have come back with less than it had. ``check`` is given the number of the part
        whose connection it is, 0 where there is one only, and uses this very backend, of several parts that one's slots only, from the thread that
        made the call; what it raises is raised from the call, and it is called again before the next one. The interrupted call is then made again
        as a whole, an ``exchange`` with its writes.
        """

    @property
    def parts(self) -> int:
        """Backends that it is made of, each with a stripe of every region, which fail one by one: a store has as many shards, or this is 1."""
        return 1

    @abc.abstractmethod
    def close(self) -> None:
        """Release the backend. Idempotent; every other call after it is BackendError."""

    @abc.abstractmethod
    def acquire(self) -> None:
        """Take exclusive ownership for one store handle.

        StoreLockedError if another handle, in this or another process, has it.
        """

    @abc.abstractmethod
    def release(self) -> None:
        """Give up what ``acquire`` took. Idempotent, also after ``close``."""

    @abc.abstractmethod
    def state_file(self) -> StateFile | None:
        """A file for the client state beside the slots, or None where client state has to live elsewhere.

        The same object each time. It lives as long as the backend: its ``close`` releases nothing.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class BufferBackend(Backend):
    """A backend with BUFFER: its slots are memory of this process."""

    @abc.abstractmethod
    def buffer(self, region: str) -> Slots:
        """The region's memory itself: ``data`` (slots, slot_size) and ``present`` (slots,), both writable in place."""


class XorBackend(Backend):
    """A backend with XOR."""

    @abc.abstractmethod
    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        """XOR the slots of each group at the server, and read the slots of ``indices``, in one round trip.

        groups: int64, shape (g, n); -1 is no slot, and an absent slot counts as zeros. Returns the slots of ``indices``, with ``folded``.
        """

    def fold_pays(self, slots: int, slot_size: int) -> bool:  # noqa: ARG002
        """Whether the XOR of so many slots is had sooner than the slots themselves. It may take a moment to find out; no slot is touched."""
        return True


#: Longest key of a state file: what LMDB takes.
MAX_STATE_KEY = 511

#: Longest name of a region in UTF-8: room for a prefix within a key of LMDB.
MAX_REGION_NAME = 255


def check_region(region: str, shape: RegionShape) -> None:
    """Raise BackendError unless a region of this name and shape can be declared."""
    if not 1 <= len(region.encode()) <= MAX_REGION_NAME:
        raise BackendError(f"a region's name must be 1 to {MAX_REGION_NAME} bytes long")
    if shape.slots < 1 or shape.slot_size < 1:
        raise BackendError("a region needs at least one slot of at least one byte")


def check_state_keys(puts: Sequence[tuple[bytes, bytes | memoryview]], deletes: Sequence[bytes]) -> None:
    """Raise BackendError unless a state file can hold all these keys."""
    if not all(1 <= len(key) <= MAX_STATE_KEY for key in (*(key for key, _ in puts), *deletes)):
        raise BackendError(f"a key of the client state must be 1 to {MAX_STATE_KEY} bytes long")


#: Indices of which a list is looked through sooner than an array.
_FEW = 64


def check_indices(shape: RegionShape, indices: I64) -> None:
    """Raise BackendError unless ``indices`` is a 1-d int64 array within the region."""
    if indices.dtype != np.int64 or indices.ndim != 1:
        raise BackendError("slot indices must be a one-dimensional int64 array")
    if indices.size > _FEW:
        wrong = int(indices.view(np.uint64).max()) >= shape.slots  # a negative index is a huge one here
    else:
        some = indices.tolist()
        wrong = bool(some) and (min(some) < 0 or max(some) >= shape.slots)
    if wrong:
        raise BackendError(f"slot index outside a region of {shape.slots} slots")


def check_groups(shape: RegionShape, groups: I64) -> None:
    """Raise BackendError unless ``groups`` is a 2-d int64 array within the region, but for -1."""
    if groups.ndim != 2:
        raise BackendError("groups must be a two-dimensional int64 array")
    flat = groups.reshape(-1)
    check_indices(shape, flat[flat != -1] if groups.dtype == np.int64 else flat)


def check_write(shape: RegionShape, write: SlotWrite) -> None:
    """Raise BackendError unless ``write`` fits a region of this shape and names no slot twice."""
    check_indices(shape, write.indices)
    data = write.data
    if data.dtype != np.uint8 or data.shape != (write.indices.size, shape.slot_size) or not data.flags.c_contiguous:
        raise BackendError(f"slot data must be a C-contiguous uint8 array of shape (n, {shape.slot_size})")
    if write.indices.size > 1 and len(set(write.indices.tolist())) != write.indices.size:
        raise BackendError("a write names a slot twice")
