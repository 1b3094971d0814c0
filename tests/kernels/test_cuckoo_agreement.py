"""The native Cuckoo kernel does what the reference says, bit for bit, whichever way it is called, across openings and inside rebuilds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.backends import Slots
from oram.errors import StashOverflowError
from oram.kernels.base import EMPTY, CuckooKernel, CuckooPlan, CuckooState, CuckooWrite, KernelSet, Op, Requests
from oram.kernels.reference.cuckoooram import place
from oram.params import CuckooGeometry, Table, cuckoo
from oram.params.cuckoo import Rebuild

from .common import CIPHERS, NATIVE, REFERENCE, key_of, needs_native

pytestmark = needs_native

HASH_KEY = bytes(range(32))
STATE = ("clock", "code", "log_addr", "log_code", "page_addr", "page_data")


@contextmanager
def passes(in_hand: int = 60, spread: int = 3) -> Iterator[None]:
    """Two passes for levels that are small enough for a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuckoo, "IN_HAND", in_hand)
        patch.setattr(cuckoo, "SPREAD", spread)
        yield


def geometry(N: int, c: int = 8, B: int = 9, eps: int = 100, rebuild: Rebuild = "deamortized") -> CuckooGeometry:
    """eps in thousandths; below 0 there are fewer cells than entries, and stashes that are in use."""
    return CuckooGeometry(N, B, c, max(1, (-(-N // c) - 1).bit_length()), eps, rebuild)


@dataclass
class Batch:
    """What one access is asked. start: begin a generation before it; opening: forget all but the state before it."""

    rows: list[tuple[Op, int, int]]  # op, address, seed of the data
    seed: int
    start: bool = False
    opening: bool = False


class Hierarchy:
    """One Cuckoo kernel with slots of its own."""

    def __init__(
        self, which: KernelSet, g: CuckooGeometry, cipher: str = "aes-256-gcm", *, in_place: bool = False
    ) -> None:
        self.g, self.in_place, self.keys = g, in_place, which.keys(cipher, key_of)
        self.kernel: CuckooKernel = which.cuckoo(g, CuckooState.empty(g), self.keys, HASH_KEY)
        self.slots = Slots(np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8))
        self.generation = 0
        self.start()

    def start(self) -> None:
        self.generation += 3  # not in steps of one
        self.keys.start(self.generation)

    def read(self, at: Any) -> Slots:
        return Slots(self.slots.data[at], self.slots.present[at])

    def fill(self, batch: Batch) -> Requests:
        requests = self.kernel.requests(len(batch.rows))
        requests.data[: requests.m] = 0xEE  # nobody may read what a request does not write
        requests.out[: requests.m] = 0xEE
        requests.seed[:] = np.random.default_rng(batch.seed).integers(0, 256, requests.seed.size)
        for r, (op, address, seed) in enumerate(batch.rows):
            requests.ops[r], requests.addresses[r] = op, address
            if op == Op.WRITE:
                requests.data[r] = np.arange(seed, seed + self.g.B) % 251
        return requests

    def access(self, batch: Batch) -> tuple[Requests, list[Any], CuckooWrite | None]:
        """The batch, and on the way all that the kernel says of it."""
        if batch.start:
            self.start()
        if batch.opening:
            self.kernel.forget()
        again = self.kernel.resume()
        if again[0].size:
            self.kernel.resumed(self.read(again[0]))
        requests = self.fill(batch)
        plan: CuckooPlan = self.kernel.plan(requests)
        said = [*again, plan.slots, plan.epochs, plan.pairs]
        if self.in_place:
            self.kernel.access_in_place(requests, self.slots)
            return requests, said, None
        written = self.kernel.access(requests, plan, self.read(plan.slots))
        self.slots.data[written.slots], self.slots.present[written.slots] = written.data, 1
        return requests, said, written


def same(one: Hierarchy, other: Hierarchy) -> None:
    for name in STATE:
        np.testing.assert_array_equal(getattr(one.kernel.state, name), getattr(other.kernel.state, name), name)
    np.testing.assert_array_equal(one.slots.data, other.slots.data)
    np.testing.assert_array_equal(one.slots.present, other.slots.present)
    assert one.keys.counter == other.keys.counter
    assert one.kernel.stash_size == other.kernel.stash_size
    assert one.kernel.rows() == other.kernel.rows()


def compare(g: CuckooGeometry, cipher: str, work: list[Batch]) -> int:
    """Play the batches on the reference and on the native kernel, called both ways. The most blocks that were left over."""
    assert NATIVE is not None
    reference = Hierarchy(REFERENCE, g, cipher)
    natives = [Hierarchy(NATIVE, g, cipher, in_place=in_place) for in_place in (False, True)]
    model, most = dict[int, bytes](), 0
    for batch in work:
        m = len(batch.rows)
        try:
            asked, said, written = reference.access(batch)
        except StashOverflowError:
            for native in natives:
                with pytest.raises(StashOverflowError):
                    native.access(batch)
            return most
        assert written is not None
        for native in natives:
            others, also_said, also_written = native.access(batch)
            for a, b in zip(said, also_said, strict=True):
                np.testing.assert_array_equal(a, b)
            for name in ("out", "where", "after"):
                np.testing.assert_array_equal(getattr(asked, name)[:m], getattr(others, name)[:m], name)
            if also_written is not None:
                for name in ("slots", "data", "before"):
                    np.testing.assert_array_equal(getattr(written, name), getattr(also_written, name), name)
            same(reference, native)
        most = max(most, reference.kernel.stash_size)
        for r, (op, address, _) in enumerate(batch.rows):
            expected = bytes(g.B) if op == Op.DUMMY else model.get(address, bytes(g.B))
            assert asked.out[r].tobytes() == expected
            if op == Op.WRITE:
                model[address] = asked.data[r].tobytes()
            elif op == Op.REMOVE:
                model.pop(address, None)
    return most


def some(random: np.random.Generator, N: int, m: int, *, openings: bool = True) -> Batch:
    draw, near = random.integers, int(random.integers(2))  # so that duplicates are common
    ops = [Op.WRITE, Op.WRITE, Op.READ, Op.REMOVE, Op.DUMMY]
    rows = [
        (ops[int(draw(5))], int(draw(min(N, 5) if near else N)), int(draw(256))) for _ in range(int(draw(1, m + 1)))
    ]
    return Batch(rows, int(draw(1 << 62)), start=not draw(20), opening=openings and not draw(15))


REBUILDS = st.sampled_from(["deamortized", "deamortized", "amortized"])


@settings(max_examples=40)
@given(
    st.integers(1, 130), st.sampled_from([8, 16, 24]), st.sampled_from([1, 9, 33]), st.sampled_from([100, 100, 500, -300, -500]),
    REBUILDS, CIPHERS, st.sampled_from([1, 1, 3, 40]), st.integers(0, 2**32), st.booleans(),
)  # fmt: skip
def test_cuckoo(N: int, c: int, B: int, eps: int, rebuild: Any, cipher: str, m: int, seed: int, two: bool) -> None:
    random = np.random.default_rng(seed)
    with passes(*((10, 2) if two else ())):
        g = geometry(N, c, B, eps, rebuild)
        compare(g, cipher, [some(random, N, m) for _ in range(int(random.integers(10, 150)))])


@pytest.mark.parametrize(
    ("N", "c", "eps", "steps", "m"),
    [
        (64, 8, 100, 600, 1),  # nine times the time in which the bottom is rebuilt
        (200, 8, 200, 400, 3),
        (500, 16, 200, 100, 30),
        (100, 8, 300, 25, 300),  # several rebuilds of a level within one batch
        (250, 8, 400, 700, 1),
    ],
)
@pytest.mark.parametrize("two", [False, True], ids=["one pass", "two passes"])
def test_many_rebuilds(N: int, c: int, eps: int, steps: int, m: int, two: bool) -> None:
    random = np.random.default_rng(N + steps)
    with passes(*((30, 2) if two else (4096, 16))):
        g = geometry(N, c, 9, eps)
        assert (max(shape.b for shape in g.levels) > 1) == two
        compare(g, "aes-256-gcm", [some(random, N, m) for _ in range(steps)])


def test_every_row_is_new() -> None:
    """All blocks are there, so that tables are as full as they get."""
    with passes(60, 4):
        g = geometry(250, 8, 9, 300)
        work = [Batch([(Op.WRITE, 7 * i % g.N, i)], i) for i in range(2 * (g.c << g.L))]
        compare(g, "aegis-256", work)


@pytest.mark.parametrize("two", [False, True])
def test_stashes(two: bool) -> None:
    """With fewer cells than entries there is something in them; with far fewer they overflow, and both kernels say so."""
    random, most = np.random.default_rng(4), []
    with passes(*((10, 2) if two else ())):
        for eps in (-300, -450, -600, -800):
            g = geometry(60, 8, 9, eps)
            most.append(compare(g, "aes-256-gcm", [some(random, g.N, 2) for _ in range(250)]))
    assert max(most) > 10


def test_overflow() -> None:
    assert NATIVE is not None
    g = geometry(60, 8, 9, -850)
    for which in (REFERENCE, NATIVE):
        tree = Hierarchy(which, g)
        before = tree.slots.present.copy(), tree.slots.data.copy()
        with pytest.raises(StashOverflowError):
            for i in range(4 * g.N):
                before = tree.slots.present.copy(), tree.slots.data.copy()
                tree.access(Batch([(Op.WRITE, i % g.N, i)], i))
        np.testing.assert_array_equal(tree.slots.present, before[0])
        np.testing.assert_array_equal(tree.slots.data, before[1])
        with pytest.raises(StashOverflowError):
            which.cuckoo(g, CuckooState.empty(g), tree.keys, HASH_KEY).build(np.arange(g.N).astype(np.uint32))


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(0, 2**32), st.sampled_from([-800, -300, 0, 100, 1000]))
def test_placement(N: int, seed: int, eps: int) -> None:
    assert NATIVE is not None
    random, g = np.random.default_rng(seed), geometry(N, 8, 1, eps)
    kernel: Any = Hierarchy(NATIVE, g).kernel
    for level in range(g.L + 1):
        table = Table(level, int(random.integers(1 << 40)))
        addr = random.permutation(g.N)[: g.levels[level].n].astype(np.uint32)
        pairs = kernel.pairs(table, addr)
        np.testing.assert_array_equal(pairs, Hierarchy(REFERENCE, g).kernel.pairs(table, addr))
        if level > 0:
            np.testing.assert_array_equal(kernel._place(table, addr), place(pairs, g.levels[level].m))


@settings(max_examples=25)
@given(st.integers(1, 200), CIPHERS, st.integers(0, 2**32))
def test_bulk(N: int, cipher: str, seed: int) -> None:
    assert NATIVE is not None
    random, g = np.random.default_rng(seed), geometry(N, 8, 5)
    n = int(random.integers(0, N + 1))
    addr = random.permutation(N)[:n].astype(np.uint32)
    blocks = random.integers(0, 256, (n, g.B)).astype(np.uint8)
    found = []
    for which in (REFERENCE, NATIVE):
        tree = Hierarchy(which, g, cipher)
        table, source = Table(g.L, 0), tree.kernel.build(addr)
        slots = np.arange(source.size) + g.first_slot(table)
        sealed = tree.kernel.seal_slots(slots, 0, source, addr, blocks)
        tree.slots.data[slots], tree.slots.present[slots] = sealed, 1
        opened = tree.kernel.open_slots(slots, np.zeros(slots.size, np.int64), tree.read(slots))
        found.append((tree, source, *opened, tree.kernel.live(table, opened[0])))
    (one, *rest), (other, *others) = found
    for a, b in zip(rest, others, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.count_nonzero(others[1] != EMPTY) == n
    same(one, other)
    for _ in range(60):
        batch = some(random, N, 3)
        (asked, said, _), (also, also_said, _) = (tree.access(batch) for tree in (one, other))
        np.testing.assert_array_equal(asked.out[: asked.m], also.out[: asked.m])
        for a, b in zip(said, also_said, strict=True):
            np.testing.assert_array_equal(a, b)
        same(one, other)


@pytest.mark.parametrize("two", [False, True])
def test_codes_that_are_counted_over(two: bool) -> None:
    """More flushes than two bytes tell apart, from a clock on at which all is empty."""
    assert NATIVE is not None
    with passes(*((10, 2) if two else ())):
        g = geometry(60, 8, 5, 300)
        trees = [Hierarchy(REFERENCE, g), Hierarchy(NATIVE, g), Hierarchy(NATIVE, g, in_place=True)]
        begin = (g.code_cycle // (1 << g.L) - 2) << g.L
        for tree in trees:
            tree.kernel.state.clock[:] = begin * g.c, 1
            for table in g.alive(begin * g.c, built=True):
                slots = np.arange(g.levels[table.level].table) + g.first_slot(table)
                nothing = np.zeros(0, np.uint32), np.zeros((0, g.B), np.uint8)
                tree.slots.data[slots] = tree.kernel.seal_slots(slots, table.epoch, np.full(slots.size, -1), *nothing)
                tree.slots.present[slots] = 1
        random, flushes = np.random.default_rng(7), set()
        for _ in range(5 * g.c << g.L):
            batch = some(random, g.N, 2)
            (asked, said, _), *others = (tree.access(batch) for tree in trees)
            flushes.add(int(trees[0].kernel.state.clock[0]) // g.c // g.code_cycle)
            for tree, (also, also_said, _) in zip(trees[1:], others, strict=True):
                np.testing.assert_array_equal(asked.out[: asked.m], also.out[: asked.m])
                for a, b in zip(said, also_said, strict=True):
                    np.testing.assert_array_equal(a, b)
                same(trees[0], tree)
        assert len(flushes) == 2
