"""Oracles of Ring ORAM.

**The stash between two infinity-ORAMs** (Ren et al. 2015, section 4, which repairs lemmas 1 and 2 of Path ORAM). In a tree whose buckets have no limit, let
a request take its block out of its bucket, and an eviction move every block of its path, and all that wait, to the deepest bucket of the path that is legal.
With overflow(v) = max(0, load(v) + overflow of the children - Z), bottom-up, and with ``waiting`` the blocks requested since the last eviction:

    waiting + overflow(root)  <=  real stash  <=  waiting + overflow(root) with stale copies

after *every* access, where a stale copy is what a request leaves in the infinity-bucket its block was in, until the next eviction that passes this bucket.
(The paper keeps stale copies until their leaf is evicted; a shorter life makes the bound tighter, and the proof needs no more.)

Below: a real block lies at or above its infinity-place. True of a block in the stash; and when an eviction passes its real bucket, the deepest legal bucket of
that path is its new infinity-place, or an ancestor of the old one. So each subtree that holds the root has at least as many blocks of its own in it or in the
stash as the infinity-ORAM has in it, and room for Z a bucket; overflow(root) is the largest excess of one.

Above: let the real tree keep stale copies as blocks. Then nothing leaves a bucket except in an eviction that passes its infinity-bucket, and the lemma for Path
applies word for word (``oracles.path``): its stash is ``waiting`` plus the overflow exactly, whichever blocks eviction prefers. Let it prefer
blocks over stale copies: then the blocks go where they go without any stale copy, so the real stash is a part of that one.

**Batches and the tree top.** A batch takes out all that it was asked for, and evicts to the union of the paths that fall due, which holds the ancestors of its
members; nothing above needs more. With a tree top each subtree at level T is a tree of its own, and a block whose subtree is not evicted to goes on waiting.
An early reshuffle moves no block to another bucket, so it does not matter here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oram.kernels.base import EMPTY, Op, Requests
from oram.schemes.ring import RingORAM
from oram.store import ObliviousStore
from oram.testing.model import stored
from oram.testing.oracles.base import Contents, Opener, Request, check_pool, need, pool_of, rows
from oram.testing.simulators.ring import RingSchedule, parts
from oram.trace import Event, TraceBackend
from oram.types import I64, U32

__all__ = ["Ledger", "Pick", "RingBounds", "RingShadow", "RingWatch", "check_ring", "early_reshuffles"]

Number = int  # of a bucket at the server, level by level from level T


# --- the stash


@dataclass
class RingBounds:
    """The two infinity-ORAMs beside a real Ring tree. tree: as in ``store.info()``. position: initial leaf of each address."""

    tree: Mapping[str, Any]
    position: list[int]
    _inside: dict[Number, set[int]] = field(default_factory=dict)
    _stale: Counter[Number] = field(default_factory=Counter)
    _waiting: dict[int, set[int]] = field(default_factory=dict)  # by subtree of level T
    _low: dict[Number, int] = field(default_factory=dict)
    _high: dict[Number, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.Z = int(self.tree["Z"])
        self.schedule = RingSchedule(self.tree)
        self._place: dict[int, Number | None] = {}  # None: waiting

    def access(self, requests: Sequence[Request]) -> None:
        """One batch."""
        schedule, changed = self.schedule, set[Number]()
        first: dict[int, int] = {}
        for op, addr, draw in requests:
            if op != Op.DUMMY and addr not in first:
                first[addr] = draw % (1 << schedule.L)
        there = {addr for addr in first if addr in self._place}
        for addr in there:
            bucket = self._place.pop(addr)
            if bucket is None:
                self._waiting[self._chain(self.position[addr])].remove(addr)
            else:
                self._inside[bucket].remove(addr)
                self._stale[bucket] += 1
                changed |= self._above(self.position[addr], bucket)
        for op, addr, _ in requests:
            if op == Op.WRITE:
                there.add(addr)
            elif op == Op.REMOVE:
                there.discard(addr)
        self.position = [first.get(addr, leaf) for addr, leaf in enumerate(self.position)]
        for addr in there:
            self._wait(addr)
        self._evict(schedule.evicted_leaves(len(requests)), changed)
        schedule.clock += len(requests)

    def _chain(self, leaf: int) -> int:
        return leaf // (1 << (self.schedule.L - self.schedule.T))

    def _wait(self, addr: int) -> None:
        self._place[addr] = None
        self._waiting.setdefault(self._chain(self.position[addr]), set()).add(addr)

    def _above(self, leaf: int, bucket: Number) -> set[Number]:
        return {each for each in self.schedule.path(leaf) if each <= bucket}

    def _evict(self, leaves: Sequence[int], changed: set[Number]) -> None:
        accessed = {bucket for leaf in leaves for bucket in self.schedule.path(leaf)}
        moving: set[int] = set()
        for bucket in accessed:
            moving |= self._inside.pop(bucket, set())
            self._stale.pop(bucket, None)
            if bucket < 1 << self.schedule.T:
                moving |= self._waiting.pop(bucket, set())
        for addr in moving:
            bucket = max(each for each in self.schedule.path(self.position[addr]) if each in accessed)
            self._place[addr] = bucket
            self._inside.setdefault(bucket, set()).add(addr)
        for bucket in sorted(accessed | changed, reverse=True):
            load = len(self._inside.get(bucket, ()))
            self._low[bucket] = max(0, load + self._below(self._low, bucket) - self.Z)
            self._high[bucket] = max(0, load + self._stale[bucket] + self._below(self._high, bucket) - self.Z)

    def _below(self, overflow: Mapping[Number, int], bucket: Number) -> int:
        first = 1 << self.schedule.T
        return sum(overflow.get(2 * (bucket + first) + side - first, 0) for side in (0, 1))

    def pool(self) -> tuple[dict[int, int], dict[int, int]]:
        """The fewest and the most blocks that the client can hold, by subtree of level T."""
        return tuple(  # type: ignore[return-value]
            {s: len(self._waiting.get(s, ())) + overflow.get(s, 0) for s in range(1 << self.schedule.T)}
            for overflow in (self._low, self._high)
        )

    def most(self, bucket: Number) -> int:
        """The most blocks that this real bucket can hold."""
        load = len(self._inside.get(bucket, ())) + self._stale[bucket]
        return min(self.Z, load + self._below(self._high, bucket))


@dataclass
class RingShadow:
    """Ring ORAM with T = 0 and one request a batch, without payloads, slots and dummies: which block is in which bucket, by the kernels' own rules.

    position: leaf of each address. arrange: the blocks of a bucket in the order of their slots, which are random; None leaves them as they are.
    """

    tree: Mapping[str, Any]
    position: list[int]
    arrange: Callable[[Number, list[int]], list[int]] | None = None

    def __post_init__(self) -> None:
        self.Z, self.A, self.L = (int(self.tree[name]) for name in ("Z", "A", "L"))
        self.inside: list[list[int]] = [[] for _ in range((2 << self.L) - 1)]
        self.place = [-2] * len(self.position)  # bucket; -1 the stash, -2 nowhere yet
        self.stash: list[int] = []
        self.clock = 0
        self._due = [int(f"{G:0{self.L}b}"[::-1], 2) for G in range(1 << self.L)]

    def write(self, addr: int, leaf: int) -> bool:
        """A request that leaves its block in the tree, on a new leaf; whether an eviction followed."""
        place = self.place[addr]
        if place >= 0:
            self.inside[place].remove(addr)
        elif place == -1:
            self.stash.remove(addr)
        self.position[addr], self.place[addr] = leaf, -1
        self.stash.insert(0, addr)
        self.clock += 1
        if self.clock % self.A:
            return False
        self._evict(self._due[(self.clock // self.A - 1) % (1 << self.L)])
        return True

    def _evict(self, leaf: int) -> None:
        L, Z, position, inside = self.L, self.Z, self.position, self.inside
        server: list[list[int]] = [[] for _ in range(L + 1)]
        client: list[list[int]] = [[] for _ in range(L + 1)]
        path = [(1 << level) - 1 + (leaf >> (L - level)) for level in range(L + 1)]
        for bucket in path:
            blocks = inside[bucket]
            if self.arrange is not None:
                blocks = self.arrange(bucket, blocks)
            for addr in blocks:
                server[L - (position[addr] ^ leaf).bit_length()].append(addr)
        for addr in self.stash:
            client[L - (position[addr] ^ leaf).bit_length()].append(addr)
        mine: list[int] = []
        theirs: list[int] = []
        for level in range(L, -1, -1):
            mine, theirs = server[level] + mine, client[level] + theirs
            placed = (mine + theirs)[:Z]
            bucket = path[level]
            for addr in placed:
                self.place[addr] = bucket
            inside[bucket] = placed
            theirs = theirs[max(0, Z - len(mine)) :]
            mine = mine[Z:]
        need(not mine, "what came from the server finds room")
        self.stash = theirs[::-1]


# --- early reshuffles


def early_reshuffles(
    leaves: Sequence[int] | I64 | U32, tree: Mapping[str, Any], *, whole: bool = False
) -> tuple[list[int], list[int]]:
    """Early reshuffles at each level from T on, in a store's first accesses, of one request each; and the intervals between two evictions to a bucket.

    An interval in which a bucket is read k times before its last access has k // S of them; the read of the last access is
    followed by the eviction itself. whole: count only intervals that an eviction began and one ended, whose k are Bin(A 2^l - 1, 2^-l).
    """
    L, T, A, S = (int(tree[name]) for name in ("L", "T", "A", "S"))
    path = np.asarray(leaves, np.int64)
    t = np.arange(path.size)
    found, intervals = [], []
    for level in range(T, L + 1):
        bucket, period = path >> (L - level), 1 << level
        turn = np.zeros_like(bucket)  # G mod 2^level of the evictions to the bucket
        for i in range(level):
            turn |= (bucket >> i & 1) << (level - 1 - i)
        before = (t // A - turn + period - 1) // period  # how many of them came before this access
        last = ((t + 1) % A == 0) & ((t // A) % period == turn)
        ended = (path.size // A - turn + period - 1) // period
        counted = ~last & (((before >= 1) & (before < ended)) if whole else True)
        _, reads = np.unique((before * period + bucket)[counted], return_counts=True)
        found.append(int((reads // S).sum()))
        all_ended = (path.size // A - np.arange(period) + period - 1) // period
        intervals.append(int(np.maximum(0, all_ended - 1).sum()))
    return found, intervals


# --- which slots


@dataclass(frozen=True)
class Pick:
    """One slot that was read. left: slots of the bucket not read before since it was written; rank: of this one among them.

    online: by ReadPath; of those fetched together to write their bucket anew, one chosen by the tester. first: the first of its bucket since it was
    written. trip: of its event.
    """

    bucket: Number
    slot: int
    rank: int
    left: int
    online: bool
    first: bool
    trip: int


@dataclass
class Ledger:
    """Which slots of a Ring store were read since they were written, from its trace alone: events of whole accesses, in order, without a crash in one.

    twice: reads of a slot that had been read; there must be none. unordered: buckets whose slots were fetched in another order than that of their
    places, or not Z of them.
    """

    info: Mapping[str, Any]
    twice: int = 0
    unordered: int = 0
    spent: dict[Number, set[int]] = field(default_factory=dict)
    _tester: random.Random = field(default_factory=lambda: random.Random(0))

    def see(self, events: Sequence[Event]) -> list[Pick]:
        """Enter events, without scans. Returns the reads, one for each slot read online and for each bucket fetched."""
        Z, n = int(self.info["Z"]), int(self.info["Z"]) + int(self.info["S"])
        picks: list[Pick] = []
        for event, fetched in parts(events, self.info):
            if event.op == "write" and event.region.startswith("slots."):
                for slot in event.indices[::n]:
                    self.spent.pop(slot // n, None)
            elif event.op == "xor":
                picks += [self._take(slot, n, event.trip) for slot in event.indices if slot >= 0]
            elif fetched is not None:
                online = len(event.indices) - fetched
                picks += [self._take(slot, n, event.trip) for slot in event.indices[:online]]
                for at in range(online, len(event.indices), Z):
                    group = event.indices[at : at + Z]
                    self.unordered += list(group) != sorted(set(group)) or len({slot // n for slot in group}) != 1
                    chosen = self._tester.choice(group)
                    picks.append(self._take(chosen, n, event.trip, online=False))
                    for slot in group:
                        if slot != chosen:
                            self._take(slot, n, event.trip, online=False)
        return picks

    def _take(self, slot: int, n: int, trip: int, *, online: bool = True) -> Pick:
        bucket, at = divmod(slot, n)
        spent = self.spent.setdefault(bucket, set())
        self.twice += at in spent
        pick = Pick(bucket, at, at - sum(each < at for each in spent), n - len(spent), online, not spent, trip)
        spent.add(at)
        return pick


# --- a real store


@dataclass
class RingWatch:
    """Follows a new Ring store and compares after every access. No false alarms; nothing is drawn, read or changed.

    accesses: how many. mismatches: accesses after which a part of the pool was not between its bounds. unscheduled: accesses that wrote other buckets
    anew than those that the leaves say. strays: blocks that moved from server to client although nobody had asked for them. early: early reshuffles by
    level. largest: the largest pool seen. tight: accesses where the two bounds were equal.
    """

    store: ObliviousStore
    trace: TraceBackend
    accesses: int = 0
    mismatches: int = 0
    unscheduled: int = 0
    strays: int = 0
    largest: int = 0
    tight: int = 0
    early: Counter[int] = field(default_factory=Counter)
    leaves: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        engine = self.store._engine
        scheme = engine.scheme
        need(isinstance(scheme, RingORAM) and engine.sequence == 0, "a watch begins with a new Ring store")
        assert isinstance(scheme, RingORAM)
        self._scheme, self.tree = scheme, self.store.info()
        self.bounds = RingBounds(self.tree, scheme.state.position.tolist())
        self.schedule = RingSchedule(self.tree)
        inner = engine.access

        def access(requests: Requests, note: bytes = b"") -> None:
            before, seen = self._held(), len(self.trace.events)
            inner(requests, note)
            self._compare(before, rows(requests), self.trace.events[seen:])

        engine.access = access  # type: ignore[method-assign]

    def _held(self) -> set[int]:
        held: U32 = self._scheme.state.pool_addr
        return set(held[held != EMPTY].tolist())

    def _compare(self, before: set[int], batch: list[Request], events: list[Event]) -> None:
        self.accesses += 1
        self._follow(batch, events)
        self.bounds.access(batch)
        held = self._held()
        self.largest = max(self.largest, len(held))
        asked = {addr for op, addr, _ in batch if op != Op.DUMMY}
        self.strays += len(held - before - asked)
        low, high = self.bounds.pool()
        real = pool_of(self._scheme.state, self.tree)
        self.mismatches += any(not low[s] <= real.get(s, 0) <= high[s] for s in low)
        self.tight += low == high

    def _follow(self, batch: list[Request], events: Iterable[Event]) -> None:
        leaves, seen = [], set[int]()
        for op, addr, draw in batch:
            fresh = op == Op.DUMMY or addr in seen
            leaves.append(draw % (1 << self.schedule.L) if fresh else self.bounds.position[addr])
            seen |= set() if op == Op.DUMMY else {addr}
        self.leaves.append(leaves)
        turn = self.schedule.turn(leaves)
        self.schedule.advance(turn)
        self.early.update(map(self.schedule.level, turn.early))
        n = int(self.tree["Z"]) + int(self.tree["S"])
        written = [e.indices for e in events if e.op == "write" and e.region.startswith("slots.")]
        whole = [bucket * n + slot for bucket in turn.rewritten for slot in range(n)]
        self.unscheduled += [slot for slots in written for slot in slots] != whole


# --- what really lies in the slots


def check_ring(store: ObliviousStore, scheme: RingORAM) -> Contents:
    """``check`` for Ring."""
    tree, opener, contents = store.info(), Opener(store), Contents()
    L, T, Z, S = (int(tree[name]) for name in ("L", "T", "Z", "S"))
    n, first, position = Z + S, 1 << T, scheme.state.position
    buckets = (2 << L) - first
    for bucket, base, spent, listed in _metadata(store, scheme, opener, contents):
        level = (bucket + first).bit_length() - 1
        need(len(spent) < S and all(slot < n for slot in spent), "no bucket was read S times")
        contents.spent[bucket] = spent
        need(len(set(listed.values())) == len(listed), "each slot has one block at most")
        if base == 0:
            need(not listed, "a bucket that was never written holds nothing")
            continue
        sealed = stored(store, scheme.region, bucket * n + np.arange(n))
        for slot in range(n):
            number, raw = bucket * n + slot, sealed.data[slot].tobytes()
            plain = opener.open(number, base + slot, raw)
            contents.references[number] = base + slot, raw
            need(slot in listed.values() or not any(plain), "dummies are zeros")
            for addr in [addr for addr, at in listed.items() if at == slot and slot not in spent]:
                need(addr < position.size and addr not in contents.blocks, "each address at most once")
                place = int(position[addr]) >> (L - level)
                need(place + (1 << level) - first == bucket, "each block on the path of its position")
                contents.blocks[addr] = plain
                contents.full[level, place] = contents.full.get((level, place), 0) + 1
    need(len(contents.spent) == buckets, "a row of metadata for each bucket")
    contents.server = set(contents.blocks)
    for addr, block in check_pool(scheme.state, tree).items():
        need(addr not in contents.blocks, "each address at most once")
        contents.blocks[addr] = block
    return contents


def _metadata(
    store: ObliviousStore, scheme: RingORAM, opener: Opener, contents: Contents
) -> Iterable[tuple[Number, int, set[int], dict[int, int]]]:
    """For each bucket its number, the reference of its first slot, the slots read, and where the blocks were that it was written with."""
    tree, state = store.info(), scheme.state
    L, T, Z, S = (int(tree[name]) for name in ("L", "T", "Z", "S"))
    first, words = 1 << T, -(-(Z + S) // 64)
    refs: dict[Number, int] = dict(enumerate(state.roots.tolist()))
    for bucket in range((2 << L) - first):
        if tree["metadata"] == "client":
            base, spent = int(state.refs[bucket]), state.spent[bucket].astype("<u8")
            addr, slot = state.addr[bucket].tolist(), state.slot[bucket].tolist()
        else:
            number = ((2 << L) - first) * (Z + S) + bucket
            sealed = stored(store, scheme.meta_region, np.array([bucket])).data[0].tobytes()
            plain = opener.open(number, refs[bucket], sealed) if refs[bucket] else bytes(len(sealed) - 16)
            if refs[bucket]:
                contents.references[number] = refs[bucket], sealed
            left, right, base = np.frombuffer(plain, "<u8", 3).tolist()
            refs |= {2 * (bucket + first) - first: left, 2 * (bucket + first) + 1 - first: right}
            need(bucket + first < 1 << L or left == right == 0, "no references below the leaves")
            spent = np.frombuffer(plain, "<u8", words, 24)
            addr = np.frombuffer(plain, "<u4", Z, 24 + 8 * words).tolist()
            slot = np.frombuffer(plain, "<u2", Z, 24 + 8 * words + 4 * Z).tolist()
        bits = int.from_bytes(spent.tobytes(), "little")
        listed = {a: s for a, s in zip(addr, slot, strict=True) if base and a != EMPTY}
        need(len(listed) == sum(bool(base) and a != EMPTY for a in addr), "a bucket lists an address once")
        yield bucket, base, {i for i in range(64 * words) if bits >> i & 1}, listed
