"""The native kernels do what the reference says, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.backends import Slots
from oram.kernels.base import (
    COUNTER_BITS,
    EMPTY,
    KernelSet,
    Keys,
    LinearKernel,
    Op,
    PathKernel,
    PathPlan,
    PathState,
    PoolFullError,
    Requests,
)
from oram.params import LinearGeometry, PathGeometry, PathParams
from oram.testing.oracles import check_pool
from oram.types import U8, U32

from .common import CIPHERS, NATIVE, REFERENCE, key_of, needs_native

pytestmark = needs_native


@st.composite
def geometries(draw: st.DrawFn) -> PathGeometry:
    params = PathParams(Z=draw(st.integers(1, 5)), page_levels=draw(st.integers(1, 4)))
    block, top = draw(st.sampled_from([1, 3, 16, 33])), draw(st.sampled_from([0, 0, 40, 300, 5000]))
    return PathGeometry.of(draw(st.integers(1, 100)), block, params, top)


@dataclass
class Batch:
    """What one access is asked. start: begin a generation before it."""

    rows: list[tuple[Op, int, int, int]]  # op, address, draw, seed of the data
    start: bool


def batches(n: int) -> st.SearchStrategy[list[Batch]]:
    ops = st.sampled_from([Op.WRITE, Op.WRITE, Op.READ, Op.REMOVE, Op.DUMMY])
    address = st.integers(0, n - 1) | st.integers(0, min(n, 4) - 1)  # so that duplicates are common
    row = st.tuples(ops, address, st.integers(0, 2**32 - 1), st.integers(0, 255))
    return st.lists(st.builds(Batch, st.lists(row, min_size=1, max_size=12), st.booleans()), min_size=1, max_size=25)


def fill(requests: Requests, batch: Batch) -> None:
    requests.data[: requests.m] = 0xEE  # nobody may read what a request does not write
    for r, (op, address, word, seed) in enumerate(batch.rows):
        requests.ops[r], requests.addresses[r], requests.draws[r] = op, address, word
        if op == Op.WRITE:
            requests.data[r] = np.arange(seed, seed + requests.data.shape[1]) % 251


class Tree:
    """One Path kernel with slots of its own."""

    def __init__(self, which: KernelSet, g: PathGeometry, cipher: str, pool: int) -> None:
        self.g, self.keys = g, which.keys(cipher, key_of)
        position = np.random.default_rng(7).integers(0, g.leaves, g.N).astype(np.uint32)
        self.kernel: PathKernel = which.path(g, PathState.empty(g, position, pool), self.keys)
        self.slots = Slots(np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8))
        self.generation, self.growths = 0, 0
        self.start()

    def start(self) -> None:
        self.generation += 1 + self.generation  # not in steps of one
        self.keys.start(self.generation)

    def request(self, batch: Batch) -> Requests:
        requests = self.kernel.requests(len(batch.rows))
        fill(requests, batch)
        return requests

    def access(self, batch: Batch) -> tuple[PathPlan, U32, Requests]:
        if batch.start:
            self.start()
        requests = self.request(batch)
        while True:
            plan = self.kernel.plan(requests)
            pages = Slots(self.slots.data[plan.slots], self.slots.present[plan.slots])
            try:
                placed = self.kernel.access(requests, plan, pages)
                break
            except PoolFullError:
                self.grow()
        self.slots.data[plan.slots], self.slots.present[plan.slots] = pages.data, pages.present
        return plan, placed, requests

    def access_in_place(self, batch: Batch) -> Requests:
        if batch.start:
            self.start()
        requests = self.request(batch)
        while True:
            try:
                self.kernel.access_in_place(requests, self.slots)
                return requests
            except PoolFullError:
                self.grow()

    def grow(self) -> None:
        self.growths += 1
        self.kernel.state = self.kernel.state.grown()


def same_state(a: PathState, b: PathState) -> None:
    for name in ("position", "refs", "head", "pool_addr", "pool_leaf", "pool_next", "pool_data"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert (a.free, a.used) == (b.free, b.used)


@settings(max_examples=150)
@given(st.data())
def test_path(data: st.DataObject) -> None:
    assert NATIVE is not None
    g = data.draw(geometries())
    cipher, pool = data.draw(CIPHERS), data.draw(st.sampled_from([12, 40, 200]))
    reference, native, in_place = (Tree(which, g, cipher, pool) for which in (REFERENCE, NATIVE, NATIVE))
    model: dict[int, bytes] = {}
    for batch in data.draw(batches(g.N)):
        plan, placed, asked = reference.access(batch)
        native_plan, native_placed, native_asked = native.access(batch)
        in_place_asked = in_place.access_in_place(batch)
        m = len(batch.rows)
        np.testing.assert_array_equal(plan.path, native_plan.path)
        np.testing.assert_array_equal(plan.slots, native_plan.slots)
        np.testing.assert_array_equal(placed, native_placed)
        for name in ("out", "where", "after"):
            np.testing.assert_array_equal(getattr(asked, name)[:m], getattr(native_asked, name)[:m], name)
        np.testing.assert_array_equal(asked.out[:m], in_place_asked.out[:m])
        for other in (native, in_place):
            same_state(reference.kernel.state, other.kernel.state)
            np.testing.assert_array_equal(reference.slots.data, other.slots.data)
            np.testing.assert_array_equal(reference.slots.present, other.slots.present)
            assert (reference.keys.counter, reference.growths) == (other.keys.counter, other.growths)
        for r, (op, address, _, _) in enumerate(batch.rows):
            expected = bytes(g.B) if op == Op.DUMMY else model.get(address, bytes(g.B))
            assert asked.out[r].tobytes() == expected
            if op == Op.WRITE:
                model[address] = asked.data[r].tobytes()
            elif op == Op.REMOVE:
                model.pop(address, None)
        held = check_pool(reference.kernel.state, {"L": g.L, "T": g.T})
        assert held.items() <= model.items()


@settings(max_examples=40)
@given(st.data())
def test_linear(data: st.DataObject) -> None:
    assert NATIVE is not None
    g = LinearGeometry.of(data.draw(st.integers(1, 60)), data.draw(st.sampled_from([1, 100, 700, 5000])))
    cipher = data.draw(CIPHERS)
    sides: list[tuple[Keys, LinearKernel, Slots]] = []
    for which in (REFERENCE, NATIVE):
        keys = which.keys(cipher, key_of)
        keys.start(1)
        slots = Slots(np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8))
        sides.append((keys, which.linear(g, np.zeros(1, np.uint64), keys), slots))
    model: dict[int, bytes] = {}
    generation = 1
    for batch in data.draw(batches(g.N)):
        outs = []
        generation += batch.start
        for keys, kernel, slots in sides:
            if batch.start:
                keys.start(generation)
            requests = kernel.requests(len(batch.rows))
            fill(requests, batch)
            kernel.access(requests, slots)
            outs.append(requests.out[: requests.m].copy())
        np.testing.assert_array_equal(outs[0], outs[1])
        np.testing.assert_array_equal(sides[0][2].data, sides[1][2].data)
        assert sides[0][2].present.all()
        assert sides[1][2].present.all()
        assert int(sides[0][1].base[0]) == int(sides[1][1].base[0])
        assert sides[0][0].counter == sides[1][0].counter
        for r, (op, address, _, seed) in enumerate(batch.rows):
            assert outs[0][r].tobytes() == (bytes(g.B) if op == Op.DUMMY else model.get(address, bytes(g.B)))
            if op == Op.WRITE:
                model[address] = (np.arange(seed, seed + g.B) % 251).astype(np.uint8).tobytes()
            elif op == Op.REMOVE:
                model.pop(address, None)
    opened = [kernel.open_pages(slots) for _, kernel, slots in sides]
    np.testing.assert_array_equal(opened[0], opened[1])
    assert all(opened[0][address].tobytes() == block for address, block in model.items())
    built = [kernel.build_pages(opened[0]) for _, kernel, _ in sides]
    np.testing.assert_array_equal(built[0], built[1])
    assert int(sides[0][1].base[0]) == int(sides[1][1].base[0])


def content(g: PathGeometry, seed: int) -> dict[str, Any]:
    """Random content of all pages, valid for the format if not for the scheme."""
    random = np.random.default_rng(seed)
    cells, n = g.buckets * g.Z, 2 * g.N
    return {
        "slots": np.arange(g.slots),
        "children": random.integers(0, 1 << 63, (g.slots, 1 << g.h)).astype(np.uint64),
        "source": random.integers(-n, n, (g.slots, cells)).clip(-1),
        "addr": random.integers(0, g.N, n).astype(np.uint32),
        "leaf": random.integers(0, g.leaves, n).astype(np.uint32),
        "blocks": random.integers(0, 256, (n, g.B)).astype(np.uint8),
    }


@settings(max_examples=40)
@given(geometries(), CIPHERS, st.integers(0, 2**32))
def test_bulk(g: PathGeometry, cipher: str, seed: int) -> None:
    assert NATIVE is not None
    given_content = content(g, seed)
    trees = [Tree(which, g, cipher, 8) for which in (REFERENCE, NATIVE)]
    sealed: list[U8] = [tree.kernel.build_pages(**given_content) for tree in trees]
    np.testing.assert_array_equal(sealed[0], sealed[1])
    assert trees[0].keys.counter == trees[1].keys.counter == g.slots
    refs = np.arange(g.slots).astype(np.uint64) + np.uint64(trees[0].generation << COUNTER_BITS)
    refs[::3] = 0  # these come out as empty, whatever lies there
    pages = Slots(sealed[0], np.ones(g.slots, np.uint8))
    plain = [tree.kernel.open_pages(np.arange(g.slots), refs, pages) for tree in trees]
    np.testing.assert_array_equal(plain[0], plain[1])
    page = np.dtype(
        [("refs", "<u8", (1 << g.h,)), ("meta", "<u4", (g.buckets * g.Z, 2)), ("blocks", "u1", (g.buckets * g.Z, g.B))]
    )
    read = plain[0].reshape(-1).view(page)
    np.testing.assert_array_equal(read["meta"][::3, :, 0], EMPTY)
    source = given_content["source"]
    for slot in range(g.slots):
        if slot % 3:
            there = source[slot] >= 0
            np.testing.assert_array_equal(read["refs"][slot], given_content["children"][slot])
            np.testing.assert_array_equal(read["meta"][slot, there, 0], given_content["addr"][source[slot][there]])
            np.testing.assert_array_equal(read["meta"][slot, there, 1], given_content["leaf"][source[slot][there]])
            np.testing.assert_array_equal(read["blocks"][slot, there], given_content["blocks"][source[slot][there]])
            assert not read["blocks"][slot, ~there].any()


def test_a_big_batch_on_a_tall_tree() -> None:
    assert NATIVE is not None
    g = PathGeometry.of(1 << 12, 8, PathParams(page_levels=3), 200)
    reference, native = (Tree(which, g, "aes-256-gcm", 600) for which in (REFERENCE, NATIVE))
    random = np.random.default_rng(3)
    for _ in range(4):
        rows = [
            (
                Op(int(random.integers(4))),
                int(random.integers(g.N)),
                int(random.integers(1 << 32)),
                int(random.integers(256)),
            )
            for _ in range(300)
        ]
        batch = Batch(rows, start=False)
        reference.access(batch)
        native.access(batch)
        same_state(reference.kernel.state, native.kernel.state)
        np.testing.assert_array_equal(reference.slots.data, native.slots.data)
