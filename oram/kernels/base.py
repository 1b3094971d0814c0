"""What a kernel set is: the hot loops behind small objects, over arrays that the caller owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from oram.backends.base import Slots
from oram.kernels.simulation import PathSimulation, RingSimulation, Trees
from oram.params import BinnedGeometry, CuckooGeometry, LinearGeometry, PathGeometry, RingGeometry, Table
from oram.types import I32, I64, U8, U16, U32, U64

EMPTY = 0xFFFFFFFF  # address of an empty slot
ABSENT, OLD = 0, 1  # codes of Cuckoo's index that are no flush
TOMB = 1 << 27  # in a sealed word of Cuckoo without an index: the address below it holds no block
AGE_SHIFT = 28  # of the level from which an entry comes, in such a word, between the passes of a rebuild
COUNTER_BITS = 32  # a reference is generation << COUNTER_BITS | counter; 0 = never written
MAX_GENERATION = (1 << 31) - 1
RING_SEED = 32  # bytes of randomness that a batch of Ring takes besides its draws
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
    writes store, out uint8 (c, B) the block as it was *before* each request. seed uint8 (32,), fresh randomness for the batch, or (0,)
    where the scheme needs no more than the draws. For the journal: where uint8 (c,) the ``At`` of the block of each first request
    to an address, pool uint32 (c,) its pool slot (EMPTY where it has none), after uint8 (c, B) its content now.
    """

    def __init__(self, capacity: int, block_size: int, seed: int = 0) -> None:
        self.capacity = capacity
        self.m = 0
        self.ops: U8 = np.zeros(capacity, np.uint8)
        self.addresses: U32 = np.zeros(capacity, np.uint32)
        self.draws: U32 = np.zeros(capacity, np.uint32)
        self.seed: U8 = np.zeros(seed, np.uint8)
        self.data: U8 = np.zeros((capacity, block_size), np.uint8)
        self.out: U8 = np.zeros((capacity, block_size), np.uint8)
        self.where: U8 = np.zeros(capacity, np.uint8)
        self.pool: U32 = np.full(capacity, EMPTY, np.uint32)
        self.after: U8 = np.zeros((capacity, block_size), np.uint8)
        self._coins = self.draws.data.cast("B"), self.seed.data  # assigning to them is cheaper than to arrays

    @property
    def coins(self) -> int:
        """Random bytes that the batch consumes: one draw a request, whatever it is, and the seed."""
        return 4 * self.m + self.seed.size

    def rows(self) -> list[tuple[int, int, int]]:
        """Op, address and draw of each request."""
        m = self.m
        return list(zip(self.ops[:m].tolist(), self.addresses[:m].tolist(), self.draws[:m].tolist(), strict=True))

    def toss(self, coins: bytes) -> None:
        """Draws and seed from so many random bytes."""
        draws, seed = self._coins
        draws[: 4 * self.m] = coins[: 4 * self.m]
        seed[:] = coins[4 * self.m :]


@dataclass(slots=True)
class PoolState:
    """Where blocks are, and those of the client: the content of the cached levels and the stash together, chained by subtree of level T.

    See docs/architecture.md.
    """

    position: U32  # (N,) leaf of each block
    head: I32  # (2^T,)
    pool_addr: U32  # (cap,)
    pool_leaf: U32  # (cap,)
    pool_next: I32  # (cap,)
    pool_data: U8  # (cap, B)
    free: int
    used: int

    @staticmethod
    def vacant(T: int, B: int, size: int) -> dict[str, Any]:
        """The fields of an empty pool of ``size`` blocks."""
        chain = np.arange(1, size + 1, dtype=np.int32)
        chain[-1] = -1
        return {
            "head": np.full(1 << T, -1, np.int32),
            "pool_addr": np.full(size, EMPTY, np.uint32),
            "pool_leaf": np.zeros(size, np.uint32),
            "pool_next": chain,
            "pool_data": np.zeros((size, B), np.uint8),
            "free": 0,
            "used": 0,
        }

    def grown(self) -> Self:
        """The same state with twice the pool; the new slots are the first to be used."""
        old, B = self.pool_data.shape
        new = PoolState.vacant(0, B, 2 * old)
        for name in ("pool_addr", "pool_leaf", "pool_next", "pool_data"):
            new[name][:old] = getattr(self, name)
        new["pool_next"][old:-1] = np.arange(old + 1, 2 * old)
        new["pool_next"][-1] = self.free
        return replace(self, **{**new, "head": self.head, "free": old, "used": self.used})


@dataclass(slots=True)
class PathState(PoolState):
    """The client's part of a Path tree, as flat arrays."""

    refs: U64  # (2^T,)

    @classmethod
    def empty(cls, geometry: PathGeometry, position: U32, pool_size: int | None = None) -> PathState:
        """An empty tree whose blocks will go to the leaves in ``position``."""
        pool = cls.vacant(geometry.T, geometry.B, geometry.pool_size if pool_size is None else pool_size)
        return cls(**pool, position=position, refs=np.zeros(1 << geometry.T, np.uint64))


@dataclass(slots=True)
class RingState(PoolState):
    """The client's part of a Ring tree, as flat arrays.

    clock: accesses so far. A row of metadata for each bucket, all its arrays counting alike: refs, the reference of slot 0 of the bucket (slot i has
    the i-th after it; 0 = never written, and the row holds no blocks); spent, a bit for each slot that was read since it was written; addr
    (EMPTY = none) and slot, the blocks it was written with. A block is still there exactly where its slot is not spent.

    metadata="client": rows by bucket. "server": rows are those of the running batch, in the order of its buckets, with children, the
    references of the metadata of the two buckets below; and roots, those of the buckets of level T, is what the client keeps.
    """

    clock: U64  # (1,)
    refs: U64  # (rows,)
    spent: U64  # (rows, words)
    addr: U32  # (rows, Z)
    slot: U16  # (rows, Z)
    children: U64  # (rows, 2), or empty
    roots: U64  # (2^T,), or empty

    @classmethod
    def empty(cls, geometry: RingGeometry, position: U32, pool_size: int | None = None) -> RingState:
        """An empty tree whose blocks will go to the leaves in ``position``."""
        g = geometry
        rows, roots = (g.buckets, 0) if g.metadata == "client" else (0, 1 << g.T)
        return cls(
            **cls.vacant(g.T, g.B, g.pool_size if pool_size is None else pool_size),
            position=position,
            clock=np.zeros(1, np.uint64),
            roots=np.zeros(roots, np.uint64),
            **cls.rows(g, rows),
        )

    @staticmethod
    def row_type(g: RingGeometry) -> np.dtype[Any]:
        """A row of metadata as it is sealed."""
        return np.dtype(
            [
                ("children", "<u8", (2,)),
                ("refs", "<u8"),
                ("spent", "<u8", (g.words,)),
                ("addr", "<u4", (g.Z,)),
                ("slot", "<u2", (g.Z,)),
            ]
        )

    @staticmethod
    def packed(g: RingGeometry, rows: dict[str, Any]) -> npt.NDArray[Any]:
        """Rows of metadata as they are sealed."""
        plain = np.zeros(len(rows["refs"]), RingState.row_type(g))
        for name in plain.dtype.names or ():
            plain[name] = rows[name]
        return plain

    @staticmethod
    def rows(g: RingGeometry, rows: int) -> dict[str, Any]:
        """Metadata of so many buckets that were never written."""
        return {
            "refs": np.zeros(rows, np.uint64),
            "spent": np.zeros((rows, g.words), np.uint64),
            "addr": np.zeros((rows, g.Z), np.uint32),
            "slot": np.zeros((rows, g.Z), np.uint16),
            "children": np.zeros((0 if g.metadata == "client" else rows, 2), np.uint64),
        }


@dataclass(slots=True)
class CuckooState:
    """The client's part of a Cuckoo hierarchy that persists. All else is read again after an opening: see ``CuckooKernel.resume``.

    clock: accesses so far, and 1 where a bulk load made the bottom of epoch 0. code: for each block the flush in which it was last asked
    for, mod the geometry's code_cycle, + 2; OLD before the epoch of the bottom, ABSENT where there is none. log_addr (EMPTY where the
    request had no block) and log_code: the addresses of the last accesses, by their number mod the log's size, and their codes before.
    page_addr (EMPTY = none) and page_data: the top buffers, a row for each access.
    """

    clock: U64  # (2,)
    code: U16  # (N,)
    log_addr: U32  # (log_size,)
    log_code: U16  # (log_size,)
    page_addr: U32  # (pages, c)
    page_data: U8  # (pages, c, B)

    @classmethod
    def empty(cls, geometry: CuckooGeometry) -> CuckooState:
        """An empty hierarchy."""
        g = geometry
        return cls(
            clock=np.zeros(2, np.uint64),
            code=np.zeros(g.N, np.uint16),
            log_addr=np.full(g.log_size, EMPTY, np.uint32),
            log_code=np.zeros(g.log_size, np.uint16),
            page_addr=np.full((g.pages, g.c), EMPTY, np.uint32),
            page_data=np.zeros((g.pages, g.c, g.B), np.uint8),
        )


@dataclass(slots=True)
class BinnedState:
    """The client's part of a Cuckoo hierarchy without an index that persists: nothing for each block.

    clock as of CuckooState. page_addr (EMPTY = none, or the address, with TOMB where it holds no block) and page_data: the top buffers, a row for
    each access.
    """

    clock: U64  # (2,)
    page_addr: U32  # (pages, c)
    page_data: U8  # (pages, c, B)

    @classmethod
    def empty(cls, geometry: BinnedGeometry) -> BinnedState:
        """An empty hierarchy."""
        g = geometry
        return cls(
            clock=np.zeros(2, np.uint64),
            page_addr=np.full((g.pages, g.c), EMPTY, np.uint32),
            page_data=np.zeros((g.pages, g.c, g.B), np.uint8),
        )


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


@dataclass(slots=True)
class RingPlan:
    """What a batch reads. path uint32 (m,): leaf of each request.

    online int64 (m, levels): the slot that each request reads at each level, -1 where the bucket has been read enough (it is then among those
    rewritten, and all of it is fetched). rewritten int64 (r,): buckets evicted to or reshuffled early, in ascending order. fetched int64 (r, Z): the
    slots read of each of them, in ascending order: the blocks still there and random dummies.
    """

    path: U32
    online: I64
    rewritten: I64
    fetched: I64


@dataclass(slots=True)
class RingWrite:
    """What a batch writes. data uint8 (r * n, slot_size): all slots of the rewritten buckets; addr uint32 (r, Z) and slot uint16 (r, Z): their blocks."""

    data: U8
    addr: U32
    slot: U16


class RingKernel(Protocol):
    """Ring ORAM on one tree."""

    state: RingState

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        ...

    def buckets(self, requests: Requests) -> I64:
        """The buckets whose metadata the batch needs, in ascending order: those on its paths, and those to be evicted to."""
        ...

    def load(self, metadata: Slots) -> None:
        """Open their metadata, where it is the server's. TamperedError, and nothing changed."""
        ...

    def plan(self, requests: Requests) -> RingPlan:
        """Which slots the batch reads, after ``buckets`` (and ``load``). Changes nothing."""
        ...

    def access(self, requests: Requests, plan: RingPlan, slots: Slots) -> RingWrite:
        """Open, serve, evict, reshuffle and seal.

        slots: the online slots in order, those with -1 left out, then the fetched ones; or the fetched ones, and in ``slots.folded`` the XOR of
        each request's online slots. TamperedError and PoolFullError before anything changed.
        """
        ...

    def access_in_place(self, requests: Requests, region: Slots, metadata: Slots | None) -> None:
        """All of it in one go over the regions' own memory; metadata where it is the server's."""
        ...

    def store(self) -> U8:
        """Seal the metadata of the batch's buckets, uint8 (buckets, meta_size), where it is the server's."""
        ...

    def open_slots(self, slots: I64, refs: U64, sealed: Slots) -> U8:
        """Blocks in clear, uint8 (n, B); zeros under reference 0. TamperedError if one does not open."""
        ...

    def seal_slots(self, slots: I64, source: I64, blocks: U8) -> U8:
        """Seal given content under the next nonces, uint8 (n, slot_size). source int64 (n,): row of blocks; -1 = dummy."""
        ...

    def open_rows(self, buckets: I64, refs: U64, sealed: Slots) -> dict[str, Any]:
        """Metadata in clear, as rows of a state. TamperedError if one does not open."""
        ...

    def seal_rows(self, buckets: I64, rows: dict[str, Any]) -> U8:
        """Seal metadata under the next nonces, uint8 (n, meta_size)."""
        ...


@dataclass(slots=True)
class CuckooPlan:
    """What a batch reads. slots int64 (s,): in the order of its accesses, without those that the batch itself writes before.

    epochs int64 (s,): under which each is sealed. pairs int64 (p, 2): the two slots of each probe, whether they are read or known,
    table by table for each request. Both are a function of the clock and of the pairs.
    """

    slots: I64
    epochs: I64
    pairs: I64


@dataclass(slots=True)
class CuckooWrite:
    """What a batch writes. slots int64 (s,), distinct; data uint8 (s, slot_size). before uint16 (m,): the code that each request's block had."""

    slots: I64
    data: U8
    before: U16


class CuckooKernel(Protocol):
    """Cuckoo ORAM on one hierarchy."""

    state: CuckooState

    @property
    def stash_size(self) -> int:
        """Blocks in the stashes of all tables. Secret."""
        ...

    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        """The cells of these addresses in both tables of an epoch, int64 (n, 2)."""
        ...

    def rows(self) -> dict[int, tuple[int, int]]:
        """Page and row of each block whose live copy is in a top buffer."""
        ...

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        ...

    def forget(self) -> None:
        """The state was loaded anew: forget what lies outside it."""
        ...

    def resume(self) -> tuple[I64, I64]:
        """What has to be read again before the next access: slots and epochs int64 (s,), a function of the clock. Empty but after ``forget``."""
        ...

    def resumed(self, slots: Slots) -> None:
        """What ``resume`` asked for: stashes, and what the rebuilds under way had in hand. TamperedError, and nothing changed."""
        ...

    def plan(self, requests: Requests) -> CuckooPlan:
        """Which slots the batch reads. Changes nothing."""
        ...

    def access(self, requests: Requests, plan: CuckooPlan, slots: Slots) -> CuckooWrite:
        """Open, serve, work at the rebuilds and seal. TamperedError before anything changed; StashOverflowError, and the kernel is of no use any more."""
        ...

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """Plan and access in one go over the region's own memory."""
        ...

    def open_slots(self, slots: I64, epochs: I64, sealed: Slots) -> tuple[U32, U8]:
        """Addresses uint32 (n,), EMPTY where there is none, and blocks uint8 (n, B), in clear. TamperedError if a slot does not open."""
        ...

    def live(self, table: Table, addr: U32) -> npt.NDArray[np.bool_]:
        """Which of these addresses, found in a table, are there and not in a newer one."""
        ...

    def build(self, addr: U32) -> I64:
        """Place these blocks in a bottom of epoch 0, and say that it is there. Row of ``addr`` in each of its slots int64 (slots,), -1 = none."""
        ...

    def seal_slots(self, slots: I64, epoch: int, source: I64, addr: U32, blocks: U8) -> U8:
        """Seal given content under the next nonces, uint8 (n, slot_size). source int64 (n,): row of addr and blocks; -1 = dummy."""
        ...


class BinnedKernel(Protocol):
    """Cuckoo ORAM on one hierarchy without an index. ``begin``, then ``tell`` for what each ``ask`` wants, then ``finish``."""

    state: BinnedState

    @property
    def stash_size(self) -> int:
        """Blocks in the stashes of all tables. Secret."""
        ...

    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        """The cells of these addresses in a table, int64 (n, 2): the first counted over all bins, the second in the bin of the first."""
        ...

    def rows(self) -> dict[int, tuple[int, int, int]]:
        """Flush, page and row of the newest row of each address in the top buffers. A table of a later flush may have a newer copy."""
        ...

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        ...

    def forget(self) -> None:
        """The state was loaded anew: forget what lies outside it, and a batch that has begun."""
        ...

    def resume(self) -> tuple[I64, I64]:
        """What has to be read again before the next access: slots and epochs int64 (s,), a function of the clock. Empty but after ``forget``."""
        ...

    def resumed(self, slots: Slots) -> None:
        """What ``resume`` asked for: stashes, and what the rebuilds under way had in hand. TamperedError, and nothing changed."""
        ...

    def begin(self, requests: Requests) -> None:
        """A new batch."""
        ...

    def ask(self) -> CuckooPlan | None:
        """The slots of the batch's next round trip, None where there is none. How many there are follows from the clock."""
        ...

    def tell(self, slots: Slots, plan: CuckooPlan) -> None:
        """What that round trip has read: TamperedError if not all of it opens. At the end of a piece its requests are served, and the rebuilds go on.

        TamperedError and StashOverflowError, and the kernel is of no use any more until ``forget``.
        """
        ...

    def finish(self) -> CuckooWrite:
        """All that the batch writes. ``before`` is empty."""
        ...

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """All of it over the region's own memory."""
        ...

    def open_slots(self, slots: I64, epochs: I64, sealed: Slots) -> tuple[U32, U8]:
        """Words uint32 (n,), as in ``page_addr``, and blocks uint8 (n, B), in clear. TamperedError if a slot does not open."""
        ...

    def build(self, addr: U32) -> I64:
        """Place these blocks in a bottom of epoch 0, and say that it is there. Row of ``addr`` in each of its slots int64 (slots,), -1 = none."""
        ...

    def seal_slots(self, slots: I64, epoch: int, source: I64, addr: U32, blocks: U8) -> U8:
        """Seal given content under the next nonces, uint8 (n, slot_size). source int64 (n,): row of addr and blocks; -1 = dummy."""
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

    def ring(self, geometry: RingGeometry, state: RingState, keys: Keys) -> RingKernel:
        """Ring kernel over this state."""
        ...

    def cuckoo(self, geometry: CuckooGeometry, state: CuckooState, keys: Keys, hash_key: bytes) -> CuckooKernel:
        """Cuckoo kernel over this state. hash_key: 32 bytes, from which the hash functions of every epoch come."""
        ...

    def binned(self, geometry: BinnedGeometry, state: BinnedState, keys: Keys, hash_key: bytes) -> BinnedKernel:
        """Cuckoo kernel without an index over this state. hash_key as above."""
        ...

    def linear(self, geometry: LinearGeometry, base: U64, keys: Keys) -> LinearKernel:
        """Linear kernel over this state."""
        ...

    def index(self, tags: U8) -> TagIndex:
        """Index of the tags that are there now."""
        ...

    def path_simulation(self, trees: Trees) -> PathSimulation:
        """Path ORAM on an empty tree, metadata alone."""
        ...

    def ring_simulation(self, trees: Trees) -> RingSimulation:
        """Ring ORAM, likewise."""
        ...

    def cuckoo_simulation(self, seed: int, n: int, m: int, builds: int) -> U64:
        """Keys that builds of a cuckoo hash leave over, uint64 (BINS,)."""
        ...
