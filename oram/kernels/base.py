"""What a kernel set is: the hot loops behind small objects, over arrays that the caller owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from oram.backends.base import Slots
from oram.params import LinearGeometry, PathGeometry
from oram.types import I32, I64, U8, U32, U64

EMPTY = 0xFFFFFFFF  # address of an empty slot
COUNTER_BITS = 32  # a reference is generation << COUNTER_BITS | counter; 0 = never written
MAX_GENERATION = (1 << 31) - 1
CIPHERS = ("aes-256-gcm", "aegis-256")


class Op(IntEnum):
    """What a request does with its block. All cost the same and look the same."""

    READ = 0
    WRITE = 1
    REMOVE = 2  # the block is gone afterwards and reads as zeros
    DUMMY = 3  # a uniform path, no block


class At(IntEnum):
    """Where the block of a request is after the access."""

    REPEAT = 0  # not a first request: a dummy, or an address that came before in the batch
    NONE = 1  # the address holds no block
    SERVER = 2
    POOL = 3


class Requests:
    """The buffers of one batch; the caller fills the first ``m`` rows and reuses them.

    ops uint8 (c,), addresses uint32 (c,), draws uint32 (c,) fresh randomness, data uint8 (c, B) what
    writes store, out uint8 (c, B) the block as it was *before* each request. For the journal: where uint8 (c,)
    the ``At`` of the block of each first request to an address, pool uint32 (c,) its pool slot (EMPTY where it has none),
    after uint8 (c, B) its content now.
    """

    def __init__(self, capacity: int, block_size: int) -> None:
        self.capacity = capacity
        self.m = 0
        self.ops: U8 = np.zeros(capacity, np.uint8)
        self.addresses: U32 = np.zeros(capacity, np.uint32)
        self.draws: U32 = np.zeros(capacity, np.uint32)
        self.data: U8 = np.zeros((capacity, block_size), np.uint8)
        self.out: U8 = np.zeros((capacity, block_size), np.uint8)
        self.where: U8 = np.zeros(capacity, np.uint8)
        self.pool: U32 = np.full(capacity, EMPTY, np.uint32)
        self.after: U8 = np.zeros((capacity, block_size), np.uint8)


@dataclass(slots=True)
class PathState:
    """The client's part of a Path tree, as flat arrays. See docs/architecture.md for the pool."""

    position: U32  # (N,)
    refs: U64  # (2^T,)
    head: I32  # (2^T,)
    pool_addr: U32  # (cap,)
    pool_leaf: U32  # (cap,)
    pool_next: I32  # (cap,)
    pool_data: U8  # (cap, B)
    free: int = 0
    used: int = 0

    @classmethod
    def empty(cls, geometry: PathGeometry, position: U32, pool_size: int | None = None) -> PathState:
        """An empty tree whose blocks will go to the leaves in ``position``."""
        size = geometry.pool_size if pool_size is None else pool_size
        chain = np.arange(1, size + 1, dtype=np.int32)
        chain[-1] = -1
        return cls(
            position=position,
            refs=np.zeros(1 << geometry.T, np.uint64),
            head=np.full(1 << geometry.T, -1, np.int32),
            pool_addr=np.full(size, EMPTY, np.uint32),
            pool_leaf=np.zeros(size, np.uint32),
            pool_next=chain,
            pool_data=np.zeros((size, geometry.B), np.uint8),
        )

    def grown(self, geometry: PathGeometry) -> PathState:
        """The same state with twice the pool; the new slots are the first to be used."""
        old = self.pool_addr.size
        new = PathState.empty(geometry, self.position, 2 * old)
        new.refs, new.head, new.used = self.refs, self.head, self.used
        for name in ("pool_addr", "pool_leaf", "pool_next", "pool_data"):
            getattr(new, name)[:old] = getattr(self, name)
        new.pool_next[old:-1] = np.arange(old + 1, 2 * old)
        new.pool_next[-1] = self.free
        new.free = old
        return new


@dataclass(slots=True)
class PathPlan:
    """Which paths a batch reads. path uint32 (m,): leaf of each request; slots int64 (pages,), in layer order."""

    path: U32
    slots: I64


class TamperedError(Exception):
    """A page did not open. The engine turns it into IntegrityError; it says nothing about which."""


class PoolFullError(Exception):
    """The pool has no room for the batch. Nothing was changed; grow it and repeat."""


class Keys(Protocol):
    """Sealing keys by generation; new pages are sealed under the current one.

    whole: whether an access in place is one call that no signal can cut in two.
    """

    current: int
    whole: bool

    @property
    def counter(self) -> int:
        """Next nonce of the current generation."""
        ...

    def start(self, generation: int) -> None:
        """Seal under this generation from now on, from counter 0."""
        ...


class PathKernel(Protocol):
    """Path ORAM on one tree."""

    state: PathState

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        ...

    def plan(self, requests: Requests) -> PathPlan:
        """Which pages the batch reads. Changes nothing."""
        ...

    def access(self, requests: Requests, plan: PathPlan, pages: Slots) -> U32:
        """Open, serve, evict and seal; ``pages`` is replaced by what is to be written.

        Returns the address in every slot written, uint32 (pages, buckets * Z), EMPTY where none. TamperedError and
        PoolFullError before anything changed.
        """
        ...

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """Plan and access in one go over the region's own memory."""
        ...

    def open_pages(self, slots: I64, refs: U64, pages: Slots) -> U8:
        """Pages in clear, uint8 (n, plain). TamperedError if one does not open."""
        ...

    def build_pages(self, slots: I64, children: U64, source: I64, addr: U32, leaf: U32, blocks: U8) -> U8:
        """Seal given content, uint8 (n, slot_size). source int64 (n, buckets * Z): row of addr, leaf and blocks; -1 = empty."""
        ...


class LinearKernel(Protocol):
    """Linear ORAM. ``base`` uint64 (1,): reference of slot 0."""

    base: U64

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        ...

    def access(self, requests: Requests, pages: Slots) -> None:
        """Open, serve and seal every page, in ``pages`` itself. TamperedError before anything changed."""
        ...

    def open_pages(self, pages: Slots) -> U8:
        """All blocks in clear, uint8 (slots * g, B). TamperedError if a page does not open."""
        ...

    def build_pages(self, blocks: U8) -> U8:
        """Seal all blocks, uint8 (slots * g, B), as pages, uint8 (slots, slot_size)."""
        ...


class TagIndex(Protocol):
    """Tag -> address over ``tags`` uint8 (N, 16), an all-zero row being free."""

    def find(self, tag: bytes) -> int:
        """Address of the tag, -1 where there is none."""
        ...

    def insert(self, tag: bytes, address: int) -> None:
        """Enter a tag that is not there, at a free address."""
        ...

    def remove(self, address: int) -> None:
        """Free an address."""
        ...


class KernelSet(Protocol):
    """One implementation of all kernels."""

    name: str

    def keys(self, cipher: str, key_of: Callable[[int], bytes]) -> Keys:
        """Sealing keys; ``key_of`` gives the 32-byte key of a generation when it is first needed."""
        ...

    def path(self, geometry: PathGeometry, state: PathState, keys: Keys) -> PathKernel:
        """Path kernel over this state."""
        ...

    def linear(self, geometry: LinearGeometry, base: U64, keys: Keys) -> LinearKernel:
        """Linear kernel over this state."""
        ...

    def index(self, tags: U8) -> TagIndex:
        """Index of the tags that are there now."""
        ...
