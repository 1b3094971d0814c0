"""Ring ORAM: the specification of csrc/ring.c."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag

from oram.backends.base import Slots
from oram.kernels.base import (
    COUNTER_BITS,
    EMPTY,
    RING_SEED,
    At,
    Keys,
    Op,
    PoolFullError,
    Requests,
    RingPlan,
    RingState,
    RingWrite,
    TamperedError,
)
from oram.kernels.reference.cipher import ReferenceKeys
from oram.kernels.reference.coins import Coins
from oram.params import RingGeometry
from oram.types import I64, U8, U64


@dataclass(slots=True, eq=False)
class Bucket:
    """A bucket that the batch touches or evicts to."""

    number: int
    level: int
    row: int  # of its metadata
    parent: Bucket | None
    evict: bool = False
    spent: int = 0  # a bit for each slot read, with those of this batch
    blocks: dict[int, int] = field(
        default_factory=dict
    )  # slot -> address, of the blocks that were there before the batch
    fetched: list[int] = field(default_factory=list)  # slots
    mine: list[Entry] = field(default_factory=list)  # what was in it when it was fetched

    @property
    def here(self) -> dict[int, int]:
        """The blocks that are still there."""
        return {slot: addr for slot, addr in self.blocks.items() if not self.spent >> slot & 1}


@dataclass(slots=True, eq=False)
class Entry:
    """A block that may go into a bucket; ``pool`` where it is the client's."""

    addr: int
    block: bytes
    pool: int = -1


class ReferenceRing:
    """Ring ORAM (Ren et al. 2015) on the union of the paths of a batch and of the evictions that fall due in it."""

    def __init__(self, geometry: RingGeometry, state: RingState, keys: Keys) -> None:
        assert isinstance(keys, ReferenceKeys)
        self._geometry, self._keys, self.state = geometry, keys, state
        self._requests = Requests(1, geometry.B, RING_SEED)
        self._row_type = RingState.row_type(geometry)

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._requests.capacity:
            self._requests = Requests(m, self._geometry.B, RING_SEED)
        self._requests.m = m
        return self._requests

    # --- which buckets

    def buckets(self, requests: Requests) -> I64:
        """The union of the paths and of the evictions that fall due, level by level."""
        g, state, seen = self._geometry, self.state, set()
        self._path: list[int] = []
        self._first: list[int] = []  # addresses of first requests, EMPTY for the others
        for op, addr, draw in requests.rows():
            if op == Op.DUMMY or addr in seen:
                self._path.append(draw % g.leaves)
                self._first.append(EMPTY)
            else:
                seen.add(addr)
                self._path.append(int(state.position[addr]))
                self._first.append(addr)
        begun = int(state.clock[0])
        due = range(begun // g.A, (begun + requests.m) // g.A)
        self._evicted = sorted({self.reverse_lexicographic(G) for G in due})
        self._union: dict[int, Bucket] = {}
        for level in range(g.T, g.L + 1):
            for prefix in sorted({leaf >> (g.L - level) for leaf in (*self._path, *self._evicted)}):
                number = (1 << level) + prefix - g.first
                parent = self._union.get((1 << level >> 1) + (prefix >> 1) - g.first) if level > g.T else None
                row = number if g.metadata == "client" else len(self._union)
                evict = any(leaf >> (g.L - level) == prefix for leaf in self._evicted)
                self._union[number] = Bucket(number, level, row, parent, evict)
        return np.array(list(self._union), np.int64)

    def reverse_lexicographic(self, G: int) -> int:
        """The leaf of eviction number G: the bits of G mod 2^L in reverse."""
        L = self._geometry.L
        return int(f"{G % (1 << L):0{L}b}"[::-1], 2)

    def _on_path(self, leaf: int) -> list[Bucket]:
        g = self._geometry
        levels = range(g.T, g.L + 1)
        return [self._union[(1 << level) + (leaf >> (g.L - level)) - g.first] for level in levels]

    # --- which slots

    def plan(self, requests: Requests) -> RingPlan:
        """ReadPath of each request, then which buckets are written anew and what is fetched of them. Random dummies by ``seed``."""
        g, state = self._geometry, self.state
        self._coins = Coins(requests.seed.tobytes())
        for bucket in self._union.values():
            row = bucket.row
            bucket.spent = int.from_bytes(state.spent[row].astype("<u8").tobytes(), "little")
            if state.refs[row]:
                listed = zip(state.addr[row].tolist(), state.slot[row].tolist(), strict=True)
                bucket.blocks = {slot: addr for addr, slot in listed if addr != EMPTY and not bucket.spent >> slot & 1}
        online = np.full((requests.m, g.levels), -1, np.int64)
        self._home: list[
            tuple[int, int] | None
        ] = []  # where a request's block is read: its level at the server and slot
        for r, (leaf, addr) in enumerate(zip(self._path, self._first, strict=True)):
            home = None
            for j, bucket in enumerate(self._on_path(leaf)):
                if bucket.spent.bit_count() >= g.S:
                    continue  # no dummy may be left; it is fetched whole
                here = bucket.here
                slot = next((slot for slot, a in here.items() if a == addr), None) if addr != EMPTY else None
                if slot is None:
                    slot = self._dummy(bucket.spent, here)
                else:
                    home = j, slot
                bucket.spent |= 1 << slot
                online[r, j] = bucket.number * g.n + slot
            self._home.append(home)
        touched = {id(bucket) for leaf in self._path for bucket in self._on_path(leaf)}
        self._rewritten = []
        for bucket in self._union.values():
            if bucket.evict or (id(bucket) in touched and bucket.spent.bit_count() >= g.S):
                self._rewritten.append(bucket)
                taken = bucket.spent
                chosen = dict(bucket.here)
                while len(chosen) < g.Z:
                    slot = self._dummy(taken, chosen)
                    chosen[slot] = EMPTY
                bucket.fetched = sorted(chosen)
        fetched = [[bucket.number * g.n + slot for slot in bucket.fetched] for bucket in self._rewritten]
        return RingPlan(
            np.array(self._path, np.uint32),
            online,
            np.array([bucket.number for bucket in self._rewritten], np.int64),
            np.array(fetched, np.int64).reshape(-1, g.Z),
        )

    def _dummy(self, spent: int, blocks: dict[int, int]) -> int:
        """A random one of the slots that are neither spent nor hold a block."""
        free = [slot for slot in range(self._geometry.n) if not spent >> slot & 1 and slot not in blocks]
        return free[self._coins.below(len(free))]

    # --- the access

    def access(self, requests: Requests, plan: RingPlan, slots: Slots) -> RingWrite:
        """Open, serve, evict, reshuffle and seal."""
        state = self.state
        found = self._open(plan, slots)
        wanted = {addr for addr in self._first if addr != EMPTY}
        if state.pool_addr.size - state.used < len(wanted):
            raise PoolFullError
        for bucket in self._union.values():
            words = bucket.spent.to_bytes(8 * self._geometry.words, "little")
            state.spent[bucket.row] = np.frombuffer(words, "<u8")
        held = self._serve(requests, found)
        for r in range(requests.m):
            requests.pool[r], requests.after[r] = EMPTY, 0
            addr = self._first[r]
            requests.where[r] = At.REPEAT if addr == EMPTY else At.NONE
            if addr in held:
                requests.where[r], requests.pool[r] = At.POOL, held[addr]
                requests.after[r] = state.pool_data[held[addr]]
        placed = self._evict()
        written = self._write(placed)
        there = set(written.addr.reshape(-1).tolist()) - {EMPTY}
        for r, addr in enumerate(self._first):
            if addr in held and addr in there:
                requests.where[r], requests.pool[r] = At.SERVER, EMPTY
        state.clock[0] += requests.m
        return written

    def _open(self, plan: RingPlan, slots: Slots) -> dict[int, bytes]:
        """Every slot read must open, real or dummy; the blocks asked for, by address. Fills ``mine`` of the rewritten buckets."""
        g, found, bad, at = self._geometry, {}, False, 0
        for r, leaf in enumerate(self._path):
            left = slots.folded[r].tobytes() if slots.folded is not None else b""
            real = None
            for j, bucket in enumerate(self._on_path(leaf)):
                slot = int(plan.online[r, j])
                if slot < 0:
                    continue
                ref = int(self.state.refs[bucket.row])
                ref += slot % g.n if ref else 0
                home = self._home[r]
                if slots.folded is not None:
                    if home is not None and home[0] == j:
                        real = slot, ref
                    elif ref:
                        left = bytes(a ^ b for a, b in zip(left, self._keys.reseal(slot, ref, bytes(g.B)), strict=True))
                    continue
                block = self._open_slot(slot, ref, slots.data[at].tobytes(), bool(slots.present[at]))
                at += 1
                bad |= block is None
                if home is not None and home[0] == j and block is not None:
                    found[self._first[r]] = block
            if slots.folded is not None:
                if real is None:
                    bad |= any(left)
                else:
                    block = self._open_slot(*real, left, True)
                    bad |= block is None
                    found[self._first[r]] = block or b""
        for bucket in self._rewritten:
            ref, here = int(self.state.refs[bucket.row]), bucket.here
            bucket.mine = []
            for slot in bucket.fetched:
                of_slot = ref + slot if ref else 0
                block = self._open_slot(
                    bucket.number * g.n + slot, of_slot, slots.data[at].tobytes(), bool(slots.present[at])
                )
                at += 1
                bad |= block is None
                if slot in here:
                    bucket.mine.append(Entry(here[slot], block or b""))
        if bad:
            raise TamperedError
        return found

    def _open_slot(self, slot: int, ref: int, sealed: bytes, present: bool) -> bytes | None:
        """A block; zeros under reference 0, None if it does not open."""
        if ref == 0:
            return bytes(self._geometry.B)
        try:
            return self._keys.open(slot, ref, sealed) if present else None
        except InvalidTag:
            return None

    def _serve(self, requests: Requests, found: dict[int, bytes]) -> dict[int, int]:
        """Serve the requests in order. The first one to an address remaps it, and brings its block into the pool. Pool slots by address."""
        g, state, held = self._geometry, self.state, {}
        wanted = {addr for addr in self._first if addr != EMPTY}
        for bucket in self._rewritten:
            for entry in bucket.mine:
                if entry.addr in wanted:
                    found[entry.addr] = entry.block
            bucket.mine = [entry for entry in bucket.mine if entry.addr not in wanted]
        for r, (op, addr, draw) in enumerate(requests.rows()):
            requests.out[r] = 0
            if op == Op.DUMMY:
                continue
            if self._first[r] != EMPTY:
                q = self._unlink(addr, self._path[r] >> (g.L - g.T))
                if q < 0 and addr in found:
                    q = self._take(addr)
                    state.pool_data[q] = np.frombuffer(found[addr], np.uint8)
                if q >= 0:
                    held[addr] = q
                state.position[addr] = draw % g.leaves
            if addr in held:
                requests.out[r] = state.pool_data[held[addr]]
            if op == Op.WRITE:
                if addr not in held:
                    held[addr] = self._take(addr)
                state.pool_data[held[addr]] = requests.data[r]
            elif op == Op.REMOVE and addr in held:
                self._give(held.pop(addr))
        for addr in self._first:
            if addr in held:
                self._link(held[addr], int(state.position[addr]))
        return held

    # --- the pool

    def _unlink(self, addr: int, chain: int) -> int:
        state, before = self.state, -1
        q = int(state.head[chain])
        while q >= 0 and state.pool_addr[q] != addr:
            before, q = q, int(state.pool_next[q])
        if q >= 0 and before < 0:
            state.head[chain] = state.pool_next[q]
        elif q >= 0:
            state.pool_next[before] = state.pool_next[q]
        return q

    def _take(self, addr: int) -> int:
        state = self.state
        q = state.free
        state.free, state.used = int(state.pool_next[q]), state.used + 1
        state.pool_addr[q] = addr
        return q

    def _give(self, q: int) -> None:
        state = self.state
        state.pool_addr[q], state.pool_next[q] = EMPTY, state.free
        state.free, state.used = q, state.used - 1

    def _link(self, q: int, leaf: int) -> None:
        state, chain = self.state, leaf >> (self._geometry.L - self._geometry.T)
        state.pool_leaf[q] = leaf
        state.pool_next[q], state.head[chain] = state.head[chain], q

    # --- EvictPath and EarlyReshuffle

    def _evict(self) -> dict[int, list[Entry]]:
        """What goes into each rewritten bucket.

        Evicted to: bottom-up, a bucket takes up to Z of its blocks, those that came from the server first, and hands the rest up. Those from the
        server always find room. Only reshuffled: what was in it.
        """
        g, state = self._geometry, self.state
        server: dict[int, list[Entry]] = {}
        client: dict[int, list[Entry]] = {}
        placed: dict[int, list[Entry]] = {}
        for bucket in self._rewritten:
            if bucket.evict:
                for entry in bucket.mine:
                    server.setdefault(self._deepest(int(state.position[entry.addr])).number, []).append(entry)
            else:
                placed[bucket.number] = bucket.mine
        for chain in dict.fromkeys(leaf >> (g.L - g.T) for leaf in self._evicted):
            q = int(state.head[chain])
            while q >= 0:
                entry = Entry(int(state.pool_addr[q]), state.pool_data[q].tobytes(), q)
                client.setdefault(self._deepest(int(state.pool_leaf[q])).number, []).append(entry)
                q = int(state.pool_next[q])
            state.head[chain] = -1
        stay: list[Entry] = []
        for bucket in reversed(self._rewritten):
            if not bucket.evict:
                continue
            mine, theirs = server.pop(bucket.number, []), client.pop(bucket.number, [])
            placed[bucket.number] = (mine + theirs)[: g.Z]
            theirs, mine = theirs[max(0, g.Z - len(mine)) :], mine[g.Z :]
            if bucket.parent is None:
                assert not mine
                stay += theirs
            else:
                server.setdefault(bucket.parent.number, []).extend(mine)
                client.setdefault(bucket.parent.number, []).extend(theirs)
        for entry in stay:
            self._link(entry.pool, int(state.pool_leaf[entry.pool]))
        return placed

    def _deepest(self, leaf: int) -> Bucket:
        """The deepest bucket to be evicted to that is on the path of ``leaf``: on one of the two nearest paths."""
        at = bisect_left(self._evicted, leaf)
        near = min(self._evicted[max(0, at - 1) : at + 1], key=lambda other: (other ^ leaf).bit_length())
        common = self._geometry.L - (near ^ leaf).bit_length()
        return self._on_path(near)[common - self._geometry.T]

    def _write(self, placed: dict[int, list[Entry]]) -> RingWrite:
        """WriteBucket: blocks at random slots, zeros in the others, all sealed anew."""
        g, state = self._geometry, self.state
        first = self._keys.take(len(self._rewritten) * g.n)
        data = np.empty((len(self._rewritten) * g.n, g.slot_size), np.uint8)
        addrs = np.full((len(self._rewritten), g.Z), EMPTY, np.uint32)
        slots = np.zeros((len(self._rewritten), g.Z), np.uint16)
        for i, bucket in enumerate(self._rewritten):
            order, blocks = list(range(g.n)), {}
            for z, entry in enumerate(placed[bucket.number]):
                k = z + self._coins.below(g.n - z)
                order[z], order[k] = order[k], order[z]
                blocks[order[z]] = entry.block
                addrs[i, z], slots[i, z] = entry.addr, order[z]
            for slot in range(g.n):
                sealed = self._keys.seal(
                    bucket.number * g.n + slot, first + i * g.n + slot, blocks.get(slot, bytes(g.B))
                )
                data[i * g.n + slot] = np.frombuffer(sealed, np.uint8)
            row = bucket.row
            state.refs[row], state.spent[row] = self._keys.current << COUNTER_BITS | first + i * g.n, 0
            state.addr[row], state.slot[row] = addrs[i], slots[i]
            for entry in placed[bucket.number]:
                if entry.pool >= 0:
                    self._give(entry.pool)
        return RingWrite(data, addrs, slots)

    def access_in_place(self, requests: Requests, region: Slots, metadata: Slots | None) -> None:
        """All of it over the regions' own memory."""
        g = self._geometry
        buckets = self.buckets(requests)
        if metadata is not None:
            self.load(Slots(metadata.data[buckets], metadata.present[buckets]))
        plan = self.plan(requests)
        online = plan.online.reshape(-1)
        read = np.concatenate([online[online >= 0], plan.fetched.reshape(-1)])
        write = self.access(requests, plan, Slots(region.data[read], region.present[read]))
        slots = (plan.rewritten[:, np.newaxis] * g.n + np.arange(g.n)).reshape(-1)
        region.data[slots], region.present[slots] = write.data, 1
        if metadata is not None:
            metadata.data[buckets], metadata.present[buckets] = self.store(), 1

    # --- metadata at the server

    def load(self, metadata: Slots) -> None:
        """Open the metadata of the union from the top, each bucket's under the reference in its parent's."""
        g, state = self._geometry, self.state
        rows = RingState.rows(g, len(self._union))
        numbers, refs, bad = list(self._union), np.zeros(len(self._union), np.uint64), False
        for row, (number, bucket) in enumerate(self._union.items()):
            if bucket.parent is None:
                refs[row] = state.roots[number]
            else:
                refs[row] = rows["children"][bucket.parent.row, (number + g.first) & 1]
            try:
                one = self.open_rows(
                    np.array(numbers[row : row + 1]),
                    refs[row : row + 1],
                    Slots(metadata.data[row : row + 1], metadata.present[row : row + 1]),
                )
            except TamperedError:
                bad = True
                continue
            for name, array in one.items():
                rows[name][row] = array[0]
        if bad:
            raise TamperedError
        for name, array in rows.items():
            setattr(state, name, array)

    def store(self) -> U8:
        """Seal the metadata of the union, each bucket's naming what its children are sealed under."""
        g, state = self._geometry, self.state
        base = self._keys.current << COUNTER_BITS | self._keys.counter
        for row, (number, bucket) in enumerate(self._union.items()):
            if bucket.parent is None:
                state.roots[number] = base + row
            else:
                state.children[bucket.parent.row, (number + g.first) & 1] = base + row
        return self.seal_rows(
            np.array(list(self._union)),
            {name: getattr(state, name) for name in ("refs", "spent", "addr", "slot", "children")},
        )

    # --- bulk

    def open_slots(self, slots: I64, refs: U64, sealed: Slots) -> U8:
        """Blocks in clear."""
        blocks = np.empty((slots.size, self._geometry.B), np.uint8)
        for i, (slot, ref) in enumerate(zip(slots.tolist(), refs.tolist(), strict=True)):
            block = self._open_slot(slot, ref, sealed.data[i].tobytes(), bool(sealed.present[i]))
            if block is None:
                raise TamperedError
            blocks[i] = np.frombuffer(block, np.uint8)
        return blocks

    def seal_slots(self, slots: I64, source: I64, blocks: U8) -> U8:
        """Seal given content."""
        g = self._geometry
        first = self._keys.take(slots.size)
        sealed = np.empty((slots.size, g.slot_size), np.uint8)
        for i, (slot, k) in enumerate(zip(slots.tolist(), source.tolist(), strict=True)):
            plain = bytes(g.B) if k < 0 else blocks[k].tobytes()
            sealed[i] = np.frombuffer(self._keys.seal(slot, first + i, plain), np.uint8)
        return sealed

    def open_rows(self, buckets: I64, refs: U64, sealed: Slots) -> dict[str, Any]:
        """Metadata in clear."""
        g = self._geometry
        plain = np.zeros(buckets.size, self._row_type)
        for i, (bucket, ref) in enumerate(zip(buckets.tolist(), refs.tolist(), strict=True)):
            if not ref:
                continue
            try:
                if not sealed.present[i]:
                    raise InvalidTag
                plain[i] = np.frombuffer(self._keys.open(g.slots + bucket, ref, sealed.data[i].tobytes()), plain.dtype)[
                    0
                ]
            except InvalidTag:
                raise TamperedError from None
        return {name: plain[name].astype(plain[name].dtype.newbyteorder("=")) for name in self._row_type.names or ()}

    def seal_rows(self, buckets: I64, rows: dict[str, Any]) -> U8:
        """Seal metadata."""
        g = self._geometry
        plain = RingState.packed(g, rows)
        first = self._keys.take(buckets.size)
        sealed = np.empty((buckets.size, g.meta_size), np.uint8)
        for i, bucket in enumerate(buckets.tolist()):
            sealed[i] = np.frombuffer(self._keys.seal(g.slots + bucket, first + i, plain[i].tobytes()), np.uint8)
        return sealed
