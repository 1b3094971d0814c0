"""The native Ring kernel does what the reference says, bit for bit, whichever way it is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.backends import Slots
from oram.kernels.base import (
    COUNTER_BITS,
    At,
    KernelSet,
    Op,
    PoolFullError,
    Requests,
    RingKernel,
    RingPlan,
    RingState,
    RingWrite,
)
from oram.params import RingGeometry
from oram.params.ring import Metadata
from oram.testing.oracles import check_pool
from oram.types import I64, U8

from .common import CIPHERS, NATIVE, REFERENCE, key_of, needs_native

#: How a kernel is called. All of it has the same effect.
WAYS = ["slots", "xor", "in place"]

pytestmark = needs_native


@st.composite
def geometries(draw: st.DrawFn) -> RingGeometry:
    """Also such as the paper proves nothing about: small S, so that buckets are exhausted in a batch, and large stashes."""
    Z, A, S = draw(
        st.sampled_from([(4, 3, 6), (3, 1, 1), (3, 2, 2), (1, 1, 1), (1, 2, 3), (2, 5, 1), (5, 4, 7), (2, 3, 70)])
        | st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 7))
    )
    L = draw(st.integers(1, 5))
    T = draw(st.sampled_from([0, 0, L, L - 1, min(1, L), min(2, L)]))
    B, where = draw(st.sampled_from([1, 3, 16, 33])), draw(st.sampled_from(get_args(Metadata)))
    return RingGeometry(draw(st.integers(1, 60)), B, Z, A, S, L, T, where)


@dataclass
class Batch:
    """What one access is asked. start: begin a generation before it."""

    rows: list[tuple[Op, int, int, int]]  # op, address, draw, seed of the data
    seed: int
    start: bool


def batches(n: int) -> st.SearchStrategy[list[Batch]]:
    ops = st.sampled_from([Op.WRITE, Op.WRITE, Op.READ, Op.REMOVE, Op.DUMMY])
    address = st.integers(0, n - 1) | st.integers(0, min(n, 4) - 1)  # so that duplicates are common
    row = st.tuples(ops, address, st.integers(0, 2**32 - 1), st.integers(0, 255))
    size = st.lists(row, min_size=1, max_size=3) | st.lists(row, min_size=1, max_size=14)
    return st.lists(st.builds(Batch, size, st.integers(0, 2**64 - 1), st.booleans()), min_size=1, max_size=20)


class Tree:
    """One Ring kernel with slots of its own."""

    def __init__(self, which: KernelSet, way: str, g: RingGeometry, cipher: str, pool: int) -> None:
        self.g, self.way, self.keys = g, way, which.keys(cipher, key_of)
        position = np.random.default_rng(7).integers(0, g.leaves, g.N).astype(np.uint32)
        self.kernel: RingKernel = which.ring(g, RingState.empty(g, position, pool), self.keys)
        self.slots = Slots(np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8))
        self.meta = Slots(np.zeros((g.buckets, g.meta_size), np.uint8), np.zeros(g.buckets, np.uint8))
        self.generation, self.growths, self.server = 0, 0, g.metadata == "server"
        self.start()

    def start(self) -> None:
        self.generation += 1 + self.generation  # not in steps of one
        self.keys.start(self.generation)

    def access(self, batch: Batch) -> tuple[Requests, I64, RingPlan | None, RingWrite | None]:
        """The batch, and on the way all that the kernel says of it."""
        if batch.start:
            self.start()
        g, kernel = self.g, self.kernel
        requests = kernel.requests(len(batch.rows))
        fill(requests, batch)
        if self.way == "in place":
            region, meta = self.slots, self.meta if self.server else None
            self.until_it_fits(lambda: kernel.access_in_place(requests, region, meta))
            return requests, np.zeros(0, np.int64), None, None
        buckets = kernel.buckets(requests)
        if self.server:
            kernel.load(rows_of(self.meta, buckets))
        plan = kernel.plan(requests)
        slots = self.read(plan)

        def again() -> RingWrite:
            nonlocal plan
            kernel.buckets(requests)
            plan = kernel.plan(requests)
            return kernel.access(requests, plan, Slots(slots.data.copy(), slots.present.copy(), slots.folded))

        written = self.until_it_fits(again)
        at = (plan.rewritten[:, np.newaxis] * g.n + np.arange(g.n)).reshape(-1)
        self.slots.data[at], self.slots.present[at] = written.data, 1
        if self.server:
            self.meta.data[buckets], self.meta.present[buckets] = kernel.store(), 1
        return requests, buckets, plan, written

    def read(self, plan: RingPlan) -> Slots:
        """What a server sends for a plan."""
        online, fetched = plan.online.reshape(-1), plan.fetched.reshape(-1)
        if self.way == "slots":
            return rows_of(self.slots, np.concatenate([online[online >= 0], fetched]))
        there = np.where((plan.online >= 0) & (self.slots.present[plan.online] == 1), plan.online, -1)
        data = np.where(there[..., np.newaxis] < 0, np.uint8(0), self.slots.data[there])
        read = rows_of(self.slots, fetched)
        return Slots(read.data, read.present, np.ascontiguousarray(np.bitwise_xor.reduce(data, axis=1)))

    def until_it_fits(self, act: Callable[[], Any]) -> Any:
        while True:
            try:
                return act()
            except PoolFullError:
                self.growths += 1
                self.kernel.state = self.kernel.state.grown()


def rows_of(slots: Slots, at: I64) -> Slots:
    data, present = slots.data[at], slots.present[at]
    data[present == 0] = 0
    return Slots(data, present)


def fill(requests: Requests, batch: Batch) -> None:
    requests.data[: requests.m] = 0xEE  # nobody may read what a request does not write
    requests.out[: requests.m] = 0xEE
    requests.seed[:] = np.random.default_rng(batch.seed).integers(0, 256, requests.seed.size)
    for r, (op, address, word, seed) in enumerate(batch.rows):
        requests.ops[r], requests.addresses[r], requests.draws[r] = op, address, word
        if op == Op.WRITE:
            requests.data[r] = np.arange(seed, seed + requests.data.shape[1]) % 251


def same_state(a: RingState, b: RingState, rows: int) -> None:
    """rows: how many of the metadata count."""
    for name in ("position", "clock", "roots", "head", "pool_addr", "pool_leaf", "pool_next", "pool_data"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    for name in ("refs", "spent", "addr", "slot", "children"):
        np.testing.assert_array_equal(getattr(a, name)[:rows], getattr(b, name)[:rows], name)
    assert (a.free, a.used) == (b.free, b.used)


def same_plan(a: RingPlan, b: RingPlan) -> None:
    for name in ("path", "online", "rewritten", "fetched"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


@dataclass
class Watcher:
    """What the server can count: no slot is read twice between two writes of its bucket."""

    g: RingGeometry
    read: defaultdict[int, set[int]]
    accesses: int = 0

    def see(self, plan: RingPlan) -> None:
        g, m = self.g, plan.path.size
        assert plan.online.shape == (m, g.levels)
        assert plan.fetched.shape == (plan.rewritten.size, g.Z)
        touched = set()
        for leaf, row in zip(plan.path.tolist(), plan.online.tolist(), strict=True):
            for level, slot in zip(range(g.T, g.L + 1), row, strict=True):
                bucket = (1 << level) + (leaf >> (g.L - level)) - g.first
                touched.add(bucket)
                if slot < 0:
                    assert len(self.read[bucket]) >= g.S, "a bucket is left out only where it may have no dummy left"
                    continue
                assert slot // g.n == bucket
                assert slot not in self.read[bucket], "a slot is read twice"
                assert len(self.read[bucket]) < g.S
                self.read[bucket].add(slot)
        due = range(self.accesses // g.A, (self.accesses + m) // g.A)
        self.accesses += m
        evicted = {
            (1 << level) + (int(f"{G % g.leaves:0{g.L}b}"[::-1], 2) >> (g.L - level)) - g.first
            for G in due
            for level in range(g.T, g.L + 1)
        }
        early = {bucket for bucket in touched if len(self.read[bucket]) >= g.S}
        assert plan.rewritten.tolist() == sorted(evicted | early), "the schedule is that of the paths alone"
        for bucket, slots in zip(plan.rewritten.tolist(), plan.fetched.tolist(), strict=True):
            assert slots == sorted(set(slots))
            assert all(slot // g.n == bucket for slot in slots)
            assert self.read[bucket].isdisjoint(slots), "a slot is read twice"
            del self.read[bucket]


def compare(g: RingGeometry, cipher: str, pool: int, work: list[Batch], way: str = "slots") -> list[int]:
    """Play the batches on the reference, called one way, and on the native kernel, called all ways. Slots left out, a batch."""
    assert NATIVE is not None
    reference = Tree(REFERENCE, way, g, cipher, pool)
    natives = [Tree(NATIVE, each, g, cipher, pool) for each in WAYS]
    watcher, model, left_out = Watcher(g, defaultdict(set)), dict[int, bytes](), []
    for batch in work:
        m = len(batch.rows)
        asked, buckets, plan, written = reference.access(batch)
        for native in natives:
            others, other_buckets, other_plan, other_written = native.access(batch)
            np.testing.assert_array_equal(asked.out[:m], others.out[:m], native.way)
            if other_plan is not None:
                assert other_written is not None
                watched = other_plan
                if plan is not None and written is not None:
                    np.testing.assert_array_equal(buckets, other_buckets)
                    same_plan(plan, other_plan)
                    for name in ("data", "addr", "slot"):
                        np.testing.assert_array_equal(getattr(written, name), getattr(other_written, name), name)
                    for name in ("where", "pool", "after"):
                        np.testing.assert_array_equal(getattr(asked, name)[:m], getattr(others, name)[:m], name)
            rows = g.buckets
            if g.metadata == "server":  # what is left of a batch is its own affair, where it was in place
                rows = 0 if plan is None or other_plan is None else buckets.size
            same_state(reference.kernel.state, native.kernel.state, rows)
            for name in ("slots", "meta"):
                np.testing.assert_array_equal(getattr(reference, name).data, getattr(native, name).data, native.way)
                np.testing.assert_array_equal(getattr(reference, name).present, getattr(native, name).present)
            assert (reference.keys.counter, reference.growths) == (native.keys.counter, native.growths)
        watcher.see(watched)
        left_out.append(int((watched.online < 0).sum()))
        for r, (op, address, _, _) in enumerate(batch.rows):
            expected = bytes(g.B) if op == Op.DUMMY else model.get(address, bytes(g.B))
            assert asked.out[r].tobytes() == expected
            if op == Op.WRITE:
                model[address] = asked.data[r].tobytes()
            elif op == Op.REMOVE:
                model.pop(address, None)
        state: Any = reference.kernel.state  # a pool and positions are all that it needs
        held = check_pool(state, {"L": g.L, "T": g.T})
        assert held.items() <= model.items()
        if plan is not None:
            where = dict(zip(asked.addresses[:m].tolist(), asked.where[:m].tolist(), strict=True))
            assert all((address in held) == (at == At.POOL) for address, at in where.items() if at != At.REPEAT)
    return left_out


@settings(max_examples=60)
@given(st.data())
def test_ring(data: st.DataObject) -> None:
    g = data.draw(geometries())
    cipher, pool = data.draw(CIPHERS), data.draw(st.sampled_from([2, 12, 300]))
    compare(g, cipher, pool, data.draw(batches(g.N)), data.draw(st.sampled_from(WAYS)))


def random_batch(random: np.random.Generator, N: int, m: int) -> Batch:
    draw = random.integers
    rows = [(Op(int(draw(4))), int(draw(N)), int(draw(1 << 32)), int(draw(256))) for _ in range(m)]
    return Batch(rows, int(draw(1 << 62)), start=bool(draw(2)))


@pytest.mark.parametrize("where", ["client", "server"])
@pytest.mark.parametrize(
    ("Z", "A", "S", "L", "T", "m"),
    [
        (4, 3, 6, 9, 0, 300),  # the top buckets are exhausted again and again
        (4, 3, 6, 9, 4, 60),
        (8, 8, 13, 6, 2, 30),
        (32, 46, 60, 3, 0, 100),  # two words a bucket
        (70, 110, 150, 2, 0, 250),  # four
        (4, 3, 6, 3, 0, 1),
    ],
)
def test_big_batches(Z: int, A: int, S: int, L: int, T: int, m: int, where: Any) -> None:
    g = RingGeometry(A << (L - 1), 8, Z, A, S, L, T, where)
    random = np.random.default_rng(3)
    left_out = compare(g, "aes-256-gcm", 100, [random_batch(random, g.N, m) for _ in range(3 if m > 1 else 60)])
    assert (sum(left_out) > 0) == (m > S), "how it was chosen"


def content(g: RingGeometry, seed: int) -> dict[str, Any]:
    """Metadata of all buckets, valid for the format if not for the scheme."""
    random = np.random.default_rng(seed)
    return {
        "children": random.integers(0, 1 << 63, (g.buckets, 2)).astype(np.uint64),
        "refs": random.integers(0, 1 << 63, g.buckets).astype(np.uint64),
        "spent": random.integers(0, 1 << 63, (g.buckets, g.words)).astype(np.uint64),
        "addr": random.integers(0, 1 << 32, (g.buckets, g.Z)).astype(np.uint32),
        "slot": random.integers(0, g.n, (g.buckets, g.Z)).astype(np.uint16),
    }


def both(act: Callable[[Tree], npt.NDArray[Any]], trees: list[Tree]) -> U8:
    results = [act(tree) for tree in trees]
    np.testing.assert_array_equal(results[0], results[1])
    return results[0]


@settings(max_examples=25)
@given(geometries(), CIPHERS, st.integers(0, 2**32))
def test_bulk(g: RingGeometry, cipher: str, seed: int) -> None:
    assert NATIVE is not None
    trees, random = [Tree(which, "slots", g, cipher, 8) for which in (REFERENCE, NATIVE)], np.random.default_rng(seed)
    generation = trees[0].generation << COUNTER_BITS
    # slots
    slots, blocks = random.permutation(g.slots), random.integers(0, 256, (20, g.B)).astype(np.uint8)
    source = random.integers(-20, 20, g.slots).clip(-1)
    sealed = both(lambda tree: tree.kernel.seal_slots(slots, source, blocks), trees)
    assert {tree.keys.counter for tree in trees} == {g.slots}
    refs = np.arange(g.slots).astype(np.uint64) + np.uint64(generation)
    refs[::3] = 0  # these come out as zeros, whatever lies there
    read = Slots(sealed, np.ones(g.slots, np.uint8))
    plain = both(lambda tree: tree.kernel.open_slots(slots, refs, read), trees)
    expected = np.where(source[:, np.newaxis] < 0, np.uint8(0), blocks[source])
    expected[::3] = 0
    np.testing.assert_array_equal(plain, expected)
    # metadata
    rows, buckets = content(g, seed), random.permutation(g.buckets)
    sealed = both(lambda tree: tree.kernel.seal_rows(buckets, rows), trees)
    assert {tree.keys.counter for tree in trees} == {g.slots + g.buckets}
    refs = np.arange(g.buckets).astype(np.uint64) + np.uint64(generation + g.slots)
    read = Slots(sealed, np.ones(g.buckets, np.uint8))
    for tree in trees:
        for name, array in tree.kernel.open_rows(buckets, refs, read).items():
            np.testing.assert_array_equal(array, rows[name], name)
        nothing = tree.kernel.open_rows(buckets, np.zeros_like(refs), read)
        assert not nothing["refs"].any(), "a bucket that was never written"


def test_the_same_plan_as_often_as_one_asks() -> None:
    """Making a plan changes nothing, so that recovery and a grown pool come to the same one."""
    for which in (REFERENCE, NATIVE):
        assert which is not None
        g = RingGeometry(20, 8, 3, 2, 2, 3, 0)
        tree = Tree(which, "slots", g, "aes-256-gcm", 40)
        random = np.random.default_rng(5)
        for _ in range(12):
            batch = random_batch(random, g.N, 6)
            requests = tree.kernel.requests(6)
            fill(requests, batch)
            tree.kernel.buckets(requests)
            plans = [tree.kernel.plan(requests)]
            tree.kernel.buckets(requests)
            plans += [tree.kernel.plan(requests), tree.kernel.plan(requests)]
            same_plan(plans[0], plans[1])
            same_plan(plans[0], plans[2])
            tree.access(batch)
