"""The simulations of metadata alone: C and Python agree number for number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.errors import ParameterError
from oram.kernels.reference.simulation import Xoshiro
from oram.kernels.simulation import BINS, Forest, Pattern, Snapshot, Trees
from oram.types import U32

from .common import NATIVE, REFERENCE, needs_native

TREES = st.builds(
    Trees,
    N=st.integers(1, 90),
    Z=st.integers(1, 5),
    L=st.integers(1, 6),
    A=st.integers(1, 9),
    S=st.integers(1, 9),
    pattern=st.sampled_from(Pattern),
    seed=st.integers(0, 2**64 - 1),
)


def same(one: Forest, other: Forest) -> bool:
    a, b = one.snapshot(), other.snapshot()
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Snapshot.__slots__)


def requests(trees: Trees, accesses: int, seed: int) -> tuple[U32, U32]:
    random = np.random.default_rng(seed)
    return (
        random.integers(0, trees.N, accesses).astype(np.uint32),
        random.integers(0, 1 << trees.L, accesses).astype(np.uint32),
    )


@needs_native
@settings(max_examples=60)
@given(trees=TREES, accesses=st.integers(0, 200), given_leaves=st.booleans())
def test_path(trees: Trees, accesses: int, given_leaves: bool) -> None:
    assert NATIVE is not None
    one, other = NATIVE.path_simulation(trees), REFERENCE.path_simulation(trees)
    addrs, leaves = requests(trees, accesses, 1) if given_leaves else (None, None)
    for _ in range(2):
        a, b = np.zeros(accesses, np.uint32), np.zeros(accesses, np.uint32)
        assert np.array_equal(one.run(accesses, addrs, leaves, a), other.run(accesses, addrs, leaves, b))
        assert np.array_equal(a, b)
    assert same(one, other)


@needs_native
@settings(max_examples=60)
@given(trees=TREES, accesses=st.integers(0, 200), given_leaves=st.booleans())
def test_ring(trees: Trees, accesses: int, given_leaves: bool) -> None:
    assert NATIVE is not None
    one, other = NATIVE.ring_simulation(trees), REFERENCE.ring_simulation(trees)
    addrs, leaves = requests(trees, accesses, 2) if given_leaves else (None, None)
    for _ in range(2):
        a, b = np.zeros(accesses, np.uint32), np.zeros(accesses, np.uint32)
        found, wanted = one.run(accesses, addrs, leaves, a), other.run(accesses, addrs, leaves, b)
        assert all(np.array_equal(getattr(found, name), getattr(wanted, name)) for name in ("before", "after", "early"))
        assert np.array_equal(a, b)
    assert same(one, other)


@needs_native
@settings(max_examples=40)
@given(seed=st.integers(0, 2**64 - 1), n=st.integers(0, 60), m=st.integers(1, 60), builds=st.integers(0, 8))
def test_cuckoo(seed: int, n: int, m: int, builds: int) -> None:
    assert NATIVE is not None
    found = NATIVE.cuckoo_simulation(seed, n, m, builds)
    assert np.array_equal(found, REFERENCE.cuckoo_simulation(seed, n, m, builds))
    assert int(found.sum()) == builds
    assert builds == 0 or int(np.flatnonzero(found)[0]) >= n - 2 * m


@needs_native
def test_a_stash_that_outgrows_its_room() -> None:
    """Z = 1 leaves hundreds of blocks over: more than there is room for at first, and more than sizes are told apart."""
    assert NATIVE is not None
    trees = Trees(1200, 1, 8, A=700, S=3)
    sizes = np.zeros(2400, np.uint32)
    one, other = NATIVE.path_simulation(trees), REFERENCE.path_simulation(trees)
    counts = one.run(2400, sizes=sizes)
    assert np.array_equal(counts, other.run(2400))
    assert same(one, other)
    assert sizes.max() > 2 * BINS
    assert counts[BINS - 1] == (sizes >= BINS - 1).sum()
    ring = NATIVE.ring_simulation(trees)
    found = ring.run(2400, sizes=sizes)
    assert (found.before[BINS - 1], found.after[BINS - 1]) == (3, 3)
    assert sizes.max() > 2 * BINS


def test_the_random_numbers() -> None:
    """Published vectors of splitmix64 for seed 0, and of xoshiro256** for the state 1, 2, 3, 4."""
    random = Xoshiro(0)
    assert random.state == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    random.state = [1, 2, 3, 4]
    assert [random.draw() for _ in range(4)] == [11520, 0, 1509978240, 1215971899390074240]


@pytest.mark.parametrize("kernel", ["reference", "native"])
def test_bad_input(kernel: str) -> None:
    """Nothing that is out of bounds reaches C."""
    chosen = REFERENCE if kernel == "reference" else NATIVE
    if chosen is None:
        pytest.skip("the native kernels are not built here")
    with pytest.raises(ParameterError, match=r"L must be .*; Z must be .*; N must be .*; A must be"):
        Trees(0, 0, 0, 0, 1 << 16)
    trees = Trees(10, 2, 3)
    for simulation in (chosen.path_simulation(trees), chosen.ring_simulation(trees)):
        before = simulation.snapshot()
        good = np.zeros(4, np.uint32)
        for addrs, leaves, sizes in (
            (good + np.uint32(10), good, None),
            (good, good + np.uint32(8), None),
            (good[:3], good, None),
            (good, good.astype(np.int64), None),
            (good, good, np.zeros(3, np.uint32)),
        ):
            with pytest.raises(ParameterError):
                simulation.run(4, addrs, leaves, sizes)  # type: ignore[arg-type]
        with pytest.raises(ParameterError):
            simulation.run(-1)
        with pytest.raises(ParameterError):
            simulation.set_positions(np.full(10, 8, np.uint32))
        with pytest.raises(ParameterError):
            simulation.set_positions(np.zeros(9, np.uint32))
        after = simulation.snapshot()
        assert all(np.array_equal(getattr(before, name), getattr(after, name)) for name in Snapshot.__slots__)
    for n, m, builds in ((-1, 5, 1), (5, 0, 1), (5, 1 << 30, 1), (5, 5, -1)):
        with pytest.raises(ParameterError):
            chosen.cuckoo_simulation(1, n, m, builds)
