"""What a store must be equal to, and the invariants of its insides.

``check`` compares a store with a dict by every road there is: length, membership, one access a key, one scan. ``walk`` opens every page
by itself and follows every chain, so that a store that answers rightly by luck is found out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from oram.kernels.base import EMPTY
from oram.params import PathGeometry
from oram.schemes.linear import LinearORAM
from oram.schemes.path import PathORAM
from oram.store import ObliviousStore
from oram.types import I64

__all__ = ["check", "path_slots", "walk"]


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
    if isinstance(store._engine.scheme, PathORAM):
        assert live == store.verify()
        assert live == k * len(model), f"{live} live blocks for {len(model)} records"
    if by_access:
        assert {key: store[key] for key in model} == dict(model), "the records differ by access"


def walk(store: ObliviousStore) -> int:
    """Open every page and follow every chain; the number of live blocks. AssertionError where an invariant does not hold. Cost: one scan."""
    engine = store._engine
    live = _walk_path(store, engine.scheme) if isinstance(engine.scheme, PathORAM) else _walk_linear(store)
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


def _walk_linear(store: ObliviousStore) -> set[int]:
    scheme = store._engine.scheme
    assert isinstance(scheme, LinearORAM)
    store.verify()
    return set(range(scheme.capacity))


def _walk_path(store: ObliviousStore, scheme: PathORAM) -> set[int]:
    g, state = scheme.geometry, scheme.state
    live: set[int] = set()

    def see(addr: int, leaf: int) -> None:
        assert 0 <= addr < g.N, "an address outside the store"
        assert addr not in live, "a block is there twice"
        assert leaf == int(state.position[addr]), "a block's leaf is not its position"
        live.add(addr)

    refs: I64 | npt.NDArray[np.uint64] = state.refs
    for layer in range(g.layers):
        slots = np.arange(1 << g.root_level(layer)) + g.offsets[layer]
        sealed = store._engine.backend.read(scheme.region, slots)
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
                    see(addr, leaf)
                    assert depth < g.height(layer), "a block below its page"
                    assert leaf >> (g.L - level) == index, "a block off its path"
        refs = np.concatenate(below)
    in_pool = 0
    for chain, head_of in enumerate(state.head.tolist()):
        q = head_of
        while q >= 0:
            addr, leaf = int(state.pool_addr[q]), int(state.pool_leaf[q])
            see(addr, leaf)
            assert leaf >> (g.L - g.T) == chain, "a block in a foreign chain"
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
