"""A scheme that is made of equal others, each of which has its part of the addresses and of the slots: what outgrows one server.

A batch is told apart by address, duplicates aside, and every shard gets the same number of requests, padded with dummies. Which shard an address
belongs to is a secret permutation, so that it is chance, and the number can be far below that of the batch: B(R, k) of params/sharded.py.

Source: Snoopy (Dauterman, Fang, Demertzis, Crooks, Popa: SOSP 2021), section 4.1, for padded batches of distinct requests; ObliviStore (Stefanov,
Shi: IEEE S&P 2013) for an ORAM of partitions. There every access moves its block to another partition, because it shows which one it asks; here it asks all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import RegionShape, SlotRead, Slots, SlotWrite
from oram.errors import ShardOverflowError
from oram.kernels.base import Op, Requests
from oram.params import ShardedGeometry
from oram.schemes.base import Access, Outcome, Reader, Scheme
from oram.types import I64, U8, U32

_RECORD = struct.Struct("<II")  # requests, requests of each shard
_LENGTH = struct.Struct("<I")  # of a shard's record, ahead of it


def placement(places: int, random: bytes) -> U32:
    """A permutation of the addresses, uint32 (places,), from 8 random bytes for each: the order of as many random numbers."""
    return np.frombuffer(random, "<u8", places).argsort(kind="stable").astype(np.uint32)


@dataclass(frozen=True, slots=True)
class Deal:
    """How a batch goes to the shards. Distinct addresses are counted in the order of their places, so that a shard's are together.

    counts int64 (k,): how many each shard gets. local uint32, ops uint8: address in its shard, and what all requests to it come to. source int64: request with
    the content to write. rows, of int64: the requests that are no dummies; address: which distinct address each asks for; before: the
    request that wrote there last before it in the batch, -1 where none did.
    """

    counts: I64
    local: U32
    ops: U8
    source: I64
    rows: I64
    address: I64
    before: I64

    @classmethod
    def of(cls, requests: Requests, place: U32, tree: int, k: int) -> Deal:
        """The deal of a batch: the requests to one address in order, as one request that leaves behind what they do."""
        m = requests.m
        rows = np.flatnonzero(requests.ops[:m] != Op.DUMMY)
        at = place[requests.addresses[rows]].astype(np.int64)
        order = np.argsort(at, kind="stable")
        rows, at, n = rows[order], at[order], rows.size
        first = np.append(True, at[1:] != at[:-1])[:n]
        number = np.arange(n)
        start = np.maximum.accumulate(np.where(first, number, 0))
        changes = requests.ops[rows] != Op.READ
        last = np.maximum.accumulate(np.where(changes, number, -1))  # the last change up to each request
        earlier = np.append(-1, last)[:n]
        before = np.where(earlier >= start, rows[earlier], -1)
        begin = np.flatnonzero(first)
        end = np.append(begin[1:], n)[: begin.size] - 1
        change = last[end]
        changed = change >= begin
        source = rows[np.where(changed, change, end)]
        ops = np.where(changed, requests.ops[source], np.uint8(Op.READ)).astype(np.uint8)
        shard, local = np.divmod(at[begin], tree)
        return cls(
            np.bincount(shard, minlength=k), local.astype(np.uint32), ops, source, rows, np.cumsum(first) - 1, before
        )


class ShardedRequests(Requests):
    """A batch for all shards. seed holds all their randomness: a draw for each of their requests, then a seed for each of them, where they need one."""

    def __init__(self, capacity: int, block_size: int, check: Callable[[Requests], Deal]) -> None:
        super().__init__(capacity, block_size)
        self._check = check
        self.deal: Deal | None = None

    @property
    def coins(self) -> int:
        """Random bytes that the batch consumes: one draw for each request of each shard, whatever it is, and the seeds."""
        return self.seed.size

    def toss(self, coins: bytes) -> None:
        """The randomness, and the deal. ShardOverflowError before anything happened."""
        self.seed[:] = np.frombuffer(coins, np.uint8)
        self.deal = self._check(self)


class ShardedORAM:
    """An oblivious array over k equal ones.

    shards: the schemes, over regions of the same names. Each has the slots of a stripe of the regions that this scheme asks for: the stripe of shard j
    begins at slot j n, where n is the number of slots that one of them needs. place: which address of them an address is, as of ``placement``.

    Cost: a batch of m is one of B(m, k) for each shard, all in the round trips of one. Leaks: m, and what each shard leaks: uniform leaves that
    are independent of the requests, as many for each. ShardOverflowError, with a probability of 2^-80 at most, before anything happens.
    Source: Snoopy, section 4.1.
    """

    whole = False  # one shard after the other

    def __init__(self, geometry: ShardedGeometry, trees: Sequence[Scheme], place: U32) -> None:
        self.geometry, self.trees, self.shards = geometry, trees, len(trees)
        self.capacity, self.block_size, self.max_batch = geometry.N, geometry.B, geometry.max_batch
        self.max_pages = sum(tree.max_pages for tree in trees)
        self._place = place
        self._slots = {name: shape.slots for name, shape in trees[0].regions().items()}
        self._seed = trees[0].requests(1).seed.size
        self._requests = ShardedRequests(1, self.block_size, self._deal)
        self._stripes: dict[str, tuple[Slots, list[Slots]]] = {}

    def regions(self) -> dict[str, RegionShape]:
        """The regions of a tree, k times as long."""
        return {
            name: RegionShape(self.shards * shape.slots, shape.slot_size)
            for name, shape in self.trees[0].regions().items()
        }

    def requests(self, m: int) -> Requests:
        """Buffers for a batch of m."""
        if m > self._requests.capacity:
            size = max(m, min(2 * self._requests.capacity, self.max_batch))
            self._requests = ShardedRequests(size, self.block_size, self._deal)
        requests = self._requests
        requests.m, requests.deal = m, None
        need = self.shards * (4 * self.geometry.batch(m) + self._seed)
        if requests.seed.size != need:
            requests.seed = np.zeros(need, np.uint8)
        return requests

    # --- the access

    def _deal(self, requests: Requests) -> Deal:
        deal = Deal.of(requests, self._place, self.geometry.tree.N, self.shards)
        if int(deal.counts.max()) > self.geometry.batch(requests.m):
            raise ShardOverflowError(
                "too many of the addresses are in one shard, which happens once in 2^80 batches: nothing was done; ask for fewer at a time"
            )
        return deal

    def _hand_out(self, requests: Requests, deal: Deal) -> list[Requests]:
        """Each shard's requests: its part of the batch, then dummies; all of the same number."""
        m, k = self.geometry.batch(requests.m), self.shards
        draws = requests.seed[: 4 * k * m].view("<u4").reshape(k, m)
        seeds = requests.seed[4 * k * m :].reshape(k, self._seed)
        parts, at = [], 0
        for j, tree in enumerate(self.trees):
            part, c = tree.requests(m), int(deal.counts[j])
            mine = slice(at, at + c)
            part.ops[:c], part.ops[c:m] = deal.ops[mine], Op.DUMMY
            part.addresses[:c], part.addresses[c:m] = deal.local[mine], 0
            part.data[:c] = requests.data[deal.source[mine]]
            part.draws[:m], part.seed[:] = draws[j], seeds[j]
            parts.append(part)
            at += c
        return parts

    def _answer(self, requests: Requests, deal: Deal, parts: Sequence[Requests]) -> None:
        """What each request found: what its shard did, or what came before it in the batch."""
        found = np.concatenate([part.out[:c] for part, c in zip(parts, deal.counts.tolist(), strict=True)])
        out = requests.out
        out[: requests.m] = 0
        out[deal.rows] = found[deal.address]
        again = deal.before >= 0
        before = deal.before[again]
        removed = requests.ops[before] == Op.REMOVE
        out[deal.rows[again]] = np.where(removed[:, np.newaxis], np.uint8(0), requests.data[before])

    def access(self, requests: Requests) -> Access:
        """The accesses of all shards in step: what they read in a round trip is one read."""
        assert isinstance(requests, ShardedRequests)
        deal = requests.deal or self._deal(requests)
        parts = self._hand_out(requests, deal)
        outcomes = yield from self._in_step([tree.access(part) for tree, part in zip(self.trees, parts, strict=True)])
        self._answer(requests, deal, parts)
        grown = any(outcome.grown for outcome in outcomes)
        if grown:
            self._level()
        records = [outcome.record for outcome in outcomes]
        return Outcome(self._joined([outcome.writes for outcome in outcomes]), self._record(requests.m, records), grown)

    def _in_step(self, accesses: Sequence[Access]) -> Generator[SlotRead, Slots, list[Outcome]]:
        reads, outcomes = [next(access) for access in accesses], list[Outcome]()
        while not outcomes:
            slots = yield self._together(reads)
            again, row, group = [], 0, 0
            for access, read in zip(accesses, reads, strict=True):
                mine = slice(row, row := row + read.indices.size)
                groups = 0 if read.groups is None else len(read.groups)
                folded = None if slots.folded is None else slots.folded[group : (group := group + groups)]
                try:
                    again.append(access.send(Slots(slots.data[mine], slots.present[mine], folded)))
                except StopIteration as stop:
                    outcomes.append(stop.value)
            reads = again
        return outcomes

    def _together(self, reads: Sequence[SlotRead]) -> SlotRead:
        """The reads of all shards as one of their common region."""
        region = reads[0].region
        n = self._slots[region]
        indices = np.concatenate([read.indices + j * n for j, read in enumerate(reads)])
        groups = [read.groups for read in reads if read.groups is not None]
        if not groups:
            return SlotRead(region, indices)
        return SlotRead(
            region, indices, np.concatenate([np.where(each < 0, each, each + j * n) for j, each in enumerate(groups)])
        )

    def _joined(self, writes: Sequence[Sequence[SlotWrite]]) -> list[SlotWrite]:
        """The writes of all shards, one for each region."""
        joined = []
        for region, n in self._slots.items():
            own = [(j, write) for j, each in enumerate(writes) for write in each if write.region == region]
            if own:
                indices = np.concatenate([write.indices + j * n for j, write in own])
                joined.append(SlotWrite(region, indices, np.concatenate([write.data for _, write in own])))
        return joined

    def access_in_place(self, requests: Requests, buffer: Callable[[str], Slots]) -> None:
        """The same over the backend's own memory, one shard after the other: no longer one call that no signal can cut in two."""
        assert isinstance(requests, ShardedRequests)
        deal = requests.deal or self._deal(requests)
        parts = self._hand_out(requests, deal)
        for j, (tree, part) in enumerate(zip(self.trees, parts, strict=True)):
            tree.access_in_place(part, partial(self._stripe, buffer, j))
        self._answer(requests, deal, parts)
        self._level()

    def _stripe(self, buffer: Callable[[str], Slots], j: int, region: str) -> Slots:
        """A shard's part of a region's memory; the same object each time, as kernels keep pointers into it."""
        whole, known = buffer(region), self._stripes.get(region)
        if known is None or known[0] is not whole:
            n = self._slots[region]
            starts = range(0, n * self.shards, n)
            known = whole, [Slots(whole.data[at : at + n], whole.present[at : at + n]) for at in starts]
            self._stripes[region] = known
        return known[1][j]

    # --- the journal

    def record_size(self, requests: Requests) -> int:
        """Bytes of all shards' records."""
        tree = self.trees[0]
        each = tree.record_size(tree.requests(self.geometry.batch(requests.m)))
        return _RECORD.size + self.shards * (_LENGTH.size + each)

    def _record(self, m: int, records: Sequence[bytes]) -> bytes:
        parts = [part for record in records for part in (_LENGTH.pack(len(record)), record)]
        return _RECORD.pack(m, self.geometry.batch(m)) + b"".join(parts)

    def _parse(self, record: bytes) -> tuple[int, list[bytes]]:
        m, _ = _RECORD.unpack_from(record)
        at, parts = _RECORD.size, []
        for _ in self.trees:
            (length,) = _LENGTH.unpack_from(record, at)
            at += _LENGTH.size
            parts.append(record[at : at + length])
            at += length
        return m, parts

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Those of all shards, one shard after the other. What grows has the same length in all of them."""
        return [array for tree in self.trees for array in tree.arrays()]

    def grow(self, rows: int) -> None:
        """In every shard."""
        for tree in self.trees:
            tree.grow(rows)

    def _level(self) -> None:
        """Give all shards the rows that one of them needed: so one number says the size of all arrays."""
        self.grow(max(len(tree.arrays()[-1]) for tree in self.trees))

    def replay(self, records: Iterable[bytes]) -> None:
        """Each shard's part of each."""
        parts = [self._parse(record)[1] for record in records]
        for j, tree in enumerate(self.trees):
            tree.replay(part[j] for part in parts)
        self._level()

    def redo(self, record: bytes) -> Requests:
        """What the shards' requests come to, as one batch, with their randomness: it is dealt as the first time."""
        m, parts = self._parse(record)
        requests = self.requests(m)
        b, k, n = self.geometry.batch(m), self.shards, self.geometry.tree.N
        draws = requests.seed[: 4 * k * b].view("<u4").reshape(k, b)
        seeds = requests.seed[4 * k * b :].reshape(k, self._seed)
        home, at = self._home(), 0
        for j, (tree, part) in enumerate(zip(self.trees, parts, strict=True)):
            again = tree.redo(part)
            draws[j], seeds[j] = again.draws[:b], again.seed
            real = np.flatnonzero(again.ops[:b] != Op.DUMMY)
            rows = slice(at, at := at + real.size)
            requests.ops[rows], requests.data[rows] = again.ops[real], again.data[real]
            requests.addresses[rows] = home[j * n + again.addresses[real].astype(np.int64)]
        requests.ops[at:m], requests.addresses[at:m] = Op.DUMMY, 0
        return requests

    # --- scan and bulk load

    def _home(self) -> U32:
        """The address that is at each place."""
        home = np.empty(self.geometry.places, np.uint32)
        home[self._place] = np.arange(self.geometry.places, dtype=np.uint32)
        return home

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        """One shard after the other, each as by itself."""
        home, n = self._home(), self.geometry.tree.N
        for j, tree in enumerate(self.trees):
            for local, blocks in tree.scan(partial(self._read, read, j)):
                addresses = home[local + j * n].astype(np.int64)
                real = addresses < self.capacity
                yield (addresses, blocks) if real.all() else (addresses[real], blocks[real])

    def _read(self, read: Reader, j: int, wanted: SlotRead) -> Slots:
        return read(SlotRead(wanted.region, wanted.indices + j * self._slots[wanted.region]))

    def build(self, addresses: I64, blocks: U8) -> Iterator[SlotWrite]:
        """One shard after the other."""
        shard, local = np.divmod(self._place[addresses].astype(np.int64), self.geometry.tree.N)
        for j, tree in enumerate(self.trees):
            own = np.flatnonzero(shard == j)
            for write in tree.build(local[own], np.ascontiguousarray(blocks[own])):
                yield SlotWrite(write.region, write.indices + j * self._slots[write.region], write.data)
        self._level()

    # --- the stash

    @property
    def turn(self) -> int:
        """A number that is another one after each access."""
        return sum(tree.turn for tree in self.trees)

    @property
    def stash_size(self) -> int:
        """Blocks of client memory beyond the public part, in all shards together. Secret."""
        return sum(tree.stash_size for tree in self.trees)
