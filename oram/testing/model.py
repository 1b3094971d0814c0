"""What a store must be equal to, and the invariants of its insides.

``check`` compares a store with a dict by every road there is: length, membership, one access a key, one scan. ``walk`` opens every page
by itself and follows every chain, so that a store that answers rightly by luck is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from oram.backends import Backend, Slots
from oram.kernels.base import EMPTY, TOMB, PoolState
from oram.params import PathGeometry
from oram.schemes.base import Scheme
from oram.schemes.binned import BinnedORAM
from oram.schemes.cuckoo import CuckooORAM
from oram.schemes.path import PathORAM
from oram.schemes.ring import RingORAM
from oram.schemes.sharded import ShardedORAM
from oram.store import ObliviousStore
from oram.testing.remote import RemoteBackend
from oram.trace import TraceBackend
from oram.types import I64

__all__ = ["check", "path_slots", "stored", "walk"]

Stored: TypeAlias = Callable[[str, I64], Slots]


def stored(store: ObliviousStore, region: str, slots: I64) -> Slots:
    """What lies in these slots, as soon as the write-back that waits for the next read has come; read beneath any trace, where nobody counts it."""
    backend: Backend = store._engine.backend
    while isinstance(backend, TraceBackend | RemoteBackend):
        backend = backend.inner
    found = backend.read(region, slots)
    place = {int(slot): i for i, slot in enumerate(slots)}
    for write in store._engine._pending:
        for slot, row in zip(write.indices.tolist(), write.data, strict=True):
            if write.region == region and slot in place:
                found.data[place[slot]], found.present[place[slot]] = row, 1
    return found


def path_slots(geometry: PathGeometry, leaves: Iterable[int]) -> list[int]:
    """The slots that a batch with these paths reads, from the definition: the union, layer by layer, in ascending order."""
    leaves = list(leaves)
    return [
        geometry.offsets[layer] + prefix
        for layer in range(geometry.layers)
        for prefix in sorted({leaf >> (geometry.L - geometry.root_level(layer)) for leaf in leaves})
    ]


def check(store: ObliviousStore, model: Mapping[bytes, bytes], *, by_access: bool = False) -> None:
    """AssertionError unless the store holds exactly the model's records and its insides are sound.

    by_access: also get each key, which changes positions. Cost: two scans.
    """
    assert len(store) == len(model), f"{len(store)} records instead of {len(model)}"
    assert all(key in store for key in model), "a key is missing"
    assert dict(store.items()) == dict(model), "the records differ"
    live = walk(store)
    k = store._shape.blocks_per_value
    if store.info()["scheme"] != "linear":
        assert live == store.verify()
        assert live == k * len(model), f"{live} live blocks for {len(model)} records"
    if by_access:
        assert {key: store[key] for key in model} == dict(model), "the records differ by access"


def walk(store: ObliviousStore) -> int:
    """Open every page and follow every chain; the number of live blocks. AssertionError where an invariant does not hold. Cost: one scan."""
    engine = store._engine
    live = _walk_sharded(store) if isinstance(engine.scheme, ShardedORAM) else _walk_tree(store, engine.scheme)
    if engine.directory is not None:
        directory, k = engine.directory, store._shape.blocks_per_value
        used = np.flatnonzero(directory.tags.any(axis=1)).tolist()
        assert len(directory) == len(used), "the directory counts its records wrongly"
        assert sorted([*used, *directory.free(len(directory.tags))]) == list(range(len(directory.tags)))
        assert len({directory.tags[found].tobytes() for found in used}) == len(used), "two records have one tag"
        assert all(directory.find(directory.tags[found].tobytes()) == found for found in used), "the index is wrong"
        need = {found * k + part for found in used for part in range(k)}
        assert need <= live, "a record has no block"
    return len(live)


def _walk_sharded(store: ObliviousStore) -> set[int]:
    """Each tree as if it were alone, its slots being a stripe of the store's."""
    scheme = store._engine.scheme
    assert isinstance(scheme, ShardedORAM)
    home = {place: address for address, place in enumerate(scheme._place.tolist())}
    assert sorted(home) == list(range(scheme.shards * scheme.geometry.tree.N)), "two addresses at one place"
    live = {
        home[j * scheme.geometry.tree.N + local]
        for j, tree in enumerate(scheme.trees)
        for local in _walk_tree(store, tree, j)
    }
    real = {address for address in live if address < scheme.capacity}
    assert real == live or store.info()["scheme"] == "linear", "a block of an address that is none"
    return real


def _walk_tree(store: ObliviousStore, scheme: Scheme, shard: int = 0) -> set[int]:
    def read(region: str, slots: I64) -> Slots:
        return stored(store, region, slots + shard * scheme.regions()[region].slots)

    if isinstance(scheme, PathORAM):
        return _walk_path(read, scheme)
    if isinstance(scheme, RingORAM):
        return _walk_ring(read, scheme)
    if isinstance(scheme, CuckooORAM):
        return _walk_cuckoo(read, scheme)
    if isinstance(scheme, BinnedORAM):
        return _walk_binned(read, scheme)
    store.verify()
    return set(range(scheme.capacity))


def _walk_path(read: Stored, scheme: PathORAM) -> set[int]:
    g, state = scheme.geometry, scheme.state
    live = _walk_pool(state, state.position, g.L - g.T)
    refs: I64 | npt.NDArray[np.uint64] = state.refs
    for layer in range(g.layers):
        slots = np.arange(1 << g.root_level(layer)) + g.offsets[layer]
        sealed = read(scheme.region, slots)
        plain = scheme._kernel.open_pages(slots, refs.astype(np.uint64), sealed)
        below = []
        for i, page in enumerate(plain):
            head = page[: 8 << g.h].view(np.uint64)
            meta = page[8 << g.h : (8 << g.h) + 8 * g.buckets * g.Z].view(np.uint32).reshape(g.buckets, g.Z, 2)
            blocks = page[(8 << g.h) + 8 * g.buckets * g.Z :].reshape(g.buckets, g.Z, g.B)
            below.append(head[: 1 << g.height(layer)])
            assert not head[1 << g.height(layer) :].any()
            for bucket in range(g.buckets):
                depth = (bucket + 1).bit_length() - 1
                level = g.root_level(layer) + depth
                index = (i << depth) + bucket - ((1 << depth) - 1)
                for z in range(g.Z):
                    addr, leaf = meta[bucket, z].tolist()
                    if addr == EMPTY:
                        assert not blocks[bucket, z].any(), "an empty slot is not zeros"
                        continue
                    _see(live, addr, leaf, state.position)
                    assert depth < g.height(layer), "a block below its page"
                    assert leaf >> (g.L - level) == index, "a block off its path"
        refs = np.concatenate(below)
    return live


def _walk_ring(read: Stored, scheme: RingORAM) -> set[int]:
    g, state = scheme.geometry, scheme.state
    live = _walk_pool(state, state.position, g.L - g.T)
    rows = (
        scheme._all_rows(lambda wanted: read(wanted.region, wanted.indices))
        if g.metadata == "server"
        else {name: getattr(state, name) for name in ("refs", "spent", "addr", "slot")}
    )
    for bucket in range(g.buckets):
        level = (bucket + g.first).bit_length() - 1
        base, words = int(rows["refs"][bucket]), rows["spent"][bucket].astype("<u8").tobytes()
        spent = int.from_bytes(words, "little")
        assert spent.bit_count() < g.S, "a bucket was read S times and not written anew"
        assert not spent >> g.n, "a slot was read that is none"
        if not base:
            continue
        slots = bucket * g.n + np.arange(g.n)
        refs = np.uint64(base) + np.arange(g.n, dtype=np.uint64)
        blocks = scheme._kernel.open_slots(slots, refs, read(scheme.region, slots))
        listed = [
            (addr, slot)
            for addr, slot in zip(rows["addr"][bucket].tolist(), rows["slot"][bucket].tolist(), strict=True)
            if addr != EMPTY
        ]
        places = {slot for _, slot in listed}
        assert len(places) == len(listed), "two blocks in a slot"
        assert not any(blocks[slot].any() for slot in range(g.n) if slot not in places), "a dummy is not zeros"
        for addr, slot in listed:
            if not spent >> slot & 1:
                leaf = int(state.position[addr])
                _see(live, addr, leaf, state.position)
                assert (leaf >> (g.L - level)) + (1 << level) - g.first == bucket, "a block off its path"
    return live


def _walk_cuckoo(read: Stored, scheme: CuckooORAM) -> set[int]:
    """Every table that is probed: an entry is in one of its two cells or in the stash, once, and is live exactly where the index says."""
    g, state, clock, live = scheme.geometry, scheme.state, scheme.turn, set[int]()
    in_stashes = 0
    for table in g.alive(clock, bool(state.clock[1])):
        m, slots = g.levels[table.level].m, g.first_slot(table) + np.arange(g.levels[table.level].table)
        epochs = np.full(slots.size, table.epoch, np.int64)
        addr, blocks = scheme._kernel.open_slots(slots, epochs, read(scheme.region, slots))
        assert not blocks[addr == EMPTY].any(), "a dummy is not zeros"
        at = np.flatnonzero(addr != EMPTY)
        assert (addr[at] < g.N).all(), "an address outside the store"
        assert np.unique(addr[at]).size == at.size <= g.levels[table.level].n, (
            "an entry is there twice, or too many are"
        )
        cells = 2 * scheme._kernel.pairs(table, addr[at]) + np.arange(2)
        inside = at < 2 * m
        assert ((at[:, np.newaxis] == cells).any(axis=1) | ~inside).all(), "an entry in a cell that is not its own"
        in_stashes += int((~inside).sum())
        here = addr[scheme._kernel.live(table, addr)].tolist()
        assert live.isdisjoint(here), "a block is live twice"
        live.update(here)
    rows = scheme._kernel.rows()
    assert live.isdisjoint(rows), "a block is live twice"
    for address, (page, row) in rows.items():
        assert int(state.page_addr[page, row]) == address, "a row of a top buffer with another address"
    assert in_stashes <= g.stash_bound, "the stashes hold more than they should"
    return live | {*rows}


def _walk_binned(read: Stored, scheme: BinnedORAM) -> set[int]:
    """Every table that is probed, newest first: an entry is in one of its two cells or in the stash of its bin, once. The newest copy of a block counts."""
    g, state, clock = scheme.geometry, scheme.state, scheme.turn
    seen, live, in_stashes = set[int](), set[int](), 0
    flushes: dict[int, dict[int, int]] = {}
    for address, (flush, page, row) in scheme._kernel.rows().items():
        word = int(state.page_addr[page, row])
        assert word & ~TOMB == address, "a row of a top buffer with another address"
        assert not word & TOMB or not state.page_data[page, row].any(), "an empty block is not zeros"
        flushes.setdefault(flush, {})[address] = word

    def meet(words: list[int]) -> None:
        live.update(word & ~TOMB for word in words if word & ~TOMB not in seen and not word & TOMB)
        seen.update(word & ~TOMB for word in words)

    for table in g.alive(clock, bool(state.clock[1])):
        for flush in sorted((flush for flush in flushes if flush >= table.epoch), reverse=True):
            meet(list(flushes.pop(flush).values()))
        shape = g.levels[table.level]
        slots = g.first_slot(table) + np.arange(shape.table)
        words, blocks = scheme._kernel.open_slots(
            slots, np.full(slots.size, table.epoch, np.int64), read(scheme.region, slots)
        )
        at = np.flatnonzero(words != EMPTY)
        addr, empty = words[at] & ~np.uint32(TOMB), (words & TOMB) != 0
        assert not blocks[empty].any(), "a dummy or an empty block is not zeros"
        assert table.level < g.L or not empty[at].any(), "an empty block in the bottom"
        assert (addr < g.N).all(), "an address outside the store"
        assert np.unique(addr).size == at.size <= shape.n, "an entry is there twice, or too many are"
        pairs = scheme._kernel.pairs(table, addr)
        assert (at // shape.bin == pairs[:, 0] // shape.m).all(), "an entry in a foreign bin"
        inside = at % shape.bin < 2 * shape.m
        own = (at[:, np.newaxis] == shape.slots(pairs)).any(axis=1)
        assert (own | ~inside).all(), "an entry in a cell that is not its own"
        in_stashes += int((~inside).sum())
        meet(words[at].tolist())
    for flush in sorted(flushes, reverse=True):
        meet(list(flushes[flush].values()))
    assert in_stashes <= g.stash_bound, "the stashes hold more than they should"
    return live


def _see(live: set[int], addr: int, leaf: int, position: npt.NDArray[np.uint32]) -> None:
    assert 0 <= addr < position.size, "an address outside the store"
    assert addr not in live, "a block is there twice"
    assert leaf == int(position[addr]), "a block's leaf is not its position"
    live.add(addr)


def _walk_pool(state: PoolState, position: npt.NDArray[np.uint32], shift: int) -> set[int]:
    """Addresses in the pool."""
    live: set[int] = set()
    in_pool = 0
    for chain, head_of in enumerate(state.head.tolist()):
        q = head_of
        while q >= 0:
            addr, leaf = int(state.pool_addr[q]), int(state.pool_leaf[q])
            _see(live, addr, leaf, position)
            assert leaf >> shift == chain, "a block in a foreign chain"
            in_pool += 1
            q = int(state.pool_next[q])
    assert in_pool == state.used == int((state.pool_addr != EMPTY).sum()), "the pool counts its blocks wrongly"
    free, q = 0, state.free
    while q >= 0:
        assert int(state.pool_addr[q]) == EMPTY, "a used slot among the free ones"
        free, q = free + 1, int(state.pool_next[q])
        assert free <= state.pool_addr.size
    assert free + in_pool == state.pool_addr.size, "the pool lost a slot"
    return live
