"""The simulations of metadata alone hold what real stores hold: with the same leaves their stash is that of the store, after every access.

So what ``oram reproduce`` measures is about these schemes. A simulation that evicts one level too high is rejected by the same comparison.
"""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import numpy as np
import pytest

import oram
from oram import kernels
from oram.backends import MemoryBackend
from oram.kernels.base import EMPTY, CuckooState, Requests
from oram.kernels.reference.simulation import ReferencePathSimulation, ReferenceRingSimulation, left_over
from oram.kernels.simulation import Trees
from oram.params import CuckooGeometry, Table
from oram.schemes.path import PathORAM
from oram.schemes.ring import RingORAM
from oram.store import ObliviousStore
from oram.testing.oracles import RingShadow, RingWatch
from oram.trace import TraceBackend
from oram.types import U32

KEY = bytes(32)


def asked(store: ObliviousStore, accesses: int, pattern: str) -> tuple[U32, U32, U32]:
    """Addresses and draws of single writes to a new store, and its pool after each."""
    engine, seen, held = store._engine, list[tuple[int, int]](), list[int]()
    scheme = engine.scheme
    assert isinstance(scheme, PathORAM | RingORAM)
    inner, source = engine.access, random.Random(1)

    def access(requests: Requests, note: bytes = b"") -> None:
        inner(requests, note)
        seen.append((int(requests.addresses[0]), int(requests.draws[0])))
        held.append(int((scheme.state.pool_addr != EMPTY).sum()))

    engine.access = access  # type: ignore[method-assign]
    for i in range(accesses):
        store.blocks.write(source.randrange(store.capacity) if pattern == "uniform" else i % store.capacity, b"x")
    addrs, draws = np.array(seen, np.uint32).T
    return np.ascontiguousarray(addrs), np.ascontiguousarray(draws), np.array(held, np.uint32)


class TooHigh:
    """The control: every block goes one level higher than it might."""

    trees: Trees

    def common(self, a: int, b: int) -> int:
        return max(0, self.trees.L - (a ^ b).bit_length() - 1)


class HighPath(TooHigh, ReferencePathSimulation):
    """Path ORAM that evicts too high."""


class HighRing(TooHigh, ReferenceRingSimulation):
    """Ring ORAM that evicts too high."""


@pytest.mark.parametrize("pattern", ["round robin", "uniform"])
@pytest.mark.parametrize(("Z", "N"), [(1, 64), (2, 64), (3, 100), (4, 128)])
def test_path(Z: int, N: int, pattern: str) -> None:
    store = oram.create(
        MemoryBackend(), key=KEY, capacity=N, block_size=8, keyed=False, durability="none", tree_top=0, scheme=oram.PathParams(Z=Z, page_levels=1)
    )  # fmt: skip
    scheme = store._engine.scheme
    assert isinstance(scheme, PathORAM)
    position, L = scheme.state.position.copy(), scheme.geometry.L
    addrs, draws, held = asked(store, 500, pattern)
    trees, leaves = Trees(N, Z, L), draws & np.uint32((1 << L) - 1)
    sizes = {}
    for make in (kernels.active().path_simulation, HighPath):
        simulation = make(trees)
        simulation.set_positions(position)
        sizes[make] = np.zeros(500, np.uint32)
        simulation.run(500, addrs, leaves, sizes[make])
    good, bad = sizes.values()
    assert np.array_equal(good, held)
    assert (good[N:] > 0).any() or Z > 2
    assert not np.array_equal(bad, held)


RING = [(4, 3, 6), (3, 1, 1), (8, 8, 13), (1, 4, 5), (2, 5, 7)]


@pytest.mark.parametrize(("Z", "A", "S"), RING)
def test_ring(Z: int, A: int, S: int) -> None:
    """Between the two bounds of the real store, so equal to it where these are equal; and as many early reshuffles at each level."""
    trace = TraceBackend(MemoryBackend())
    with mock.patch.object(oram.RingParams, "problems", return_value=[]):
        store = oram.create(
            trace, key=KEY, capacity=60, block_size=8, keyed=False, durability="none", tree_top=0, scheme=oram.RingParams(Z=Z, A=A, S=S)
        )  # fmt: skip
    scheme = store._engine.scheme
    assert isinstance(scheme, RingORAM)
    position, L = scheme.state.position.copy(), scheme.geometry.L
    watch, bounds = RingWatch(store, trace), list[tuple[int, int]]()
    compare = watch._compare

    def note(*given: Any) -> None:
        compare(*given)
        bounds.append(tuple(sum(each.values()) for each in watch.bounds.pool()))  # type: ignore[arg-type]

    watch._compare = note  # type: ignore[method-assign,assignment]
    addrs, draws, held = asked(store, 400, "round robin")
    assert (watch.accesses, watch.mismatches, watch.unscheduled) == (400, 0, 0)
    low, high = np.array(bounds).T
    trees, leaves = Trees(60, Z, L, A, S), draws & np.uint32((1 << L) - 1)
    simulation = kernels.active().ring_simulation(trees)
    simulation.set_positions(position)
    sizes = np.zeros(400, np.uint32)
    found = simulation.run(400, addrs, leaves, sizes)
    assert (low <= sizes).all()
    assert (sizes <= high).all()
    tight = low == high
    assert np.array_equal(sizes[tight], held[tight])
    assert tight.sum() > 300 or (Z, A) in ((1, 4), (2, 5))
    assert found.early.tolist() == [watch.early[level] for level in range(L + 1)]
    assert found.early.sum() > 0
    control = HighRing(trees)
    control.set_positions(position)
    control.run(400, addrs, leaves, sizes)
    assert (sizes < low).any() or (sizes > high).any()


@pytest.mark.parametrize(("Z", "A", "S"), RING)
def test_ring_block_by_block(Z: int, A: int, S: int) -> None:
    """Bucket by bucket what the shadow holds, which test_ring_oracles.py holds against the store."""
    trees = Trees(90, Z, 5, A, S, seed=4)
    simulation = kernels.active().ring_simulation(trees)
    shadow = RingShadow({"Z": Z, "A": A, "L": 5}, simulation.snapshot().position.tolist())
    source, sizes = random.Random(3), np.zeros(1, np.uint32)
    for i in range(400):
        addr, leaf = i % 90 if i < 200 else source.randrange(90), source.randrange(32)
        simulation.run(1, np.array([addr], np.uint32), np.array([leaf], np.uint32), sizes)
        shadow.write(addr, leaf)
        assert sizes[0] == len(shadow.stash)
        if i % 40 == 39:
            found = simulation.snapshot()
            assert [entry >> 32 for entry in found.stash.tolist()] == shadow.stash[::-1]
            assert [[e >> 32 for e in row if e >> 32 != EMPTY] for row in found.tree.tolist()] == shadow.inside


def test_cuckoo() -> None:
    """What a real table leaves over is what the simulation counts for the same cells."""
    g = CuckooGeometry.of(64, 8, oram.CuckooParams(), 1 << 20)
    keys = kernels.active().keys("aes-256-gcm", lambda _: KEY)
    keys.start(1)
    addr, left = np.arange(64, dtype=np.uint32), []
    for key in range(60):
        kernel = kernels.active().cuckoo(g, CuckooState.empty(g), keys, bytes([key]) * 32)
        rows, m = kernel.build(addr), g.levels[g.L].m
        assert sorted(rows[rows >= 0].tolist()) == addr.tolist()
        left.append(int((rows[2 * m :] >= 0).sum()))  # the slots of the stash
        assert left[-1] == left_over(kernel.pairs(Table(g.L, 0), addr).tolist(), m)
    assert sum(left) > 0
