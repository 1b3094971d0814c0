"""The native kernel of Cuckoo without an index does what the reference says, bit for bit, whichever way it is called, across openings and inside rebuilds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.backends import Slots
from oram.errors import StashOverflowError
from oram.kernels.base import EMPTY, BinnedKernel, BinnedState, CuckooWrite, KernelSet, Op, Requests
from oram.kernels.reference.cuckoooram import place
from oram.params import BinnedGeometry, Table
from oram.params.binned import BinShape
from oram.params.cuckoo import Rebuild

from .common import CIPHERS, NATIVE, REFERENCE, key_of, needs_native
from .test_cuckoo_agreement import HASH_KEY, REBUILDS, Batch, passes, some

pytestmark = needs_native

STATE = ("clock", "page_addr", "page_data")


def geometry(N: int, c: int = 8, B: int = 9, eps: int = 100, rebuild: Rebuild = "deamortized") -> BinnedGeometry:
    """eps in thousandths; below 0 there are fewer cells than entries, and stashes that are in use."""
    g = BinnedGeometry(N, B, c, max(1, (-(-N // c) - 1).bit_length()), eps, rebuild)
    assert g.levels  # fixed here, whatever is patched
    return g


class Bins:
    """One kernel with slots of its own."""

    def __init__(
        self, which: KernelSet, g: BinnedGeometry, cipher: str = "aes-256-gcm", *, in_place: bool = False
    ) -> None:
        self.g, self.in_place, self.keys = g, in_place, which.keys(cipher, key_of)
        self.kernel: BinnedKernel = which.binned(g, BinnedState.empty(g), self.keys, HASH_KEY)
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

    def access(self, batch: Batch) -> tuple[Requests, list[Any]]:
        """The batch, and all that the kernel says of it."""
        if batch.start:
            self.start()
        if batch.opening:
            self.kernel.forget()
        again = self.kernel.resume()
        if again[0].size:
            self.kernel.resumed(self.read(again[0]))
        requests, said = self.fill(batch), list[Any](again)
        if self.in_place:
            self.kernel.access_in_place(requests, self.slots)
            return requests, []
        self.kernel.begin(requests)
        while (plan := self.kernel.ask()) is not None:
            said += [plan.slots, plan.epochs, plan.pairs]
            self.kernel.tell(self.read(plan.slots), plan)
        written: CuckooWrite = self.kernel.finish()
        said += [written.slots, written.data]
        self.slots.data[written.slots], self.slots.present[written.slots] = written.data, 1
        return requests, said


def same(one: Bins, other: Bins) -> None:
    for name in STATE:
        np.testing.assert_array_equal(getattr(one.kernel.state, name), getattr(other.kernel.state, name), name)
    np.testing.assert_array_equal(one.slots.data, other.slots.data)
    np.testing.assert_array_equal(one.slots.present, other.slots.present)
    assert one.keys.counter == other.keys.counter
    assert one.kernel.stash_size == other.kernel.stash_size
    assert one.kernel.rows() == other.kernel.rows()


def compare(g: BinnedGeometry, cipher: str, work: list[Batch]) -> int:
    """Play the batches on the reference, against a model, and on the native kernel, called both ways. The most entries that were left over."""
    assert NATIVE is not None
    reference = Bins(REFERENCE, g, cipher)
    natives = [Bins(NATIVE, g, cipher, in_place=in_place) for in_place in (False, True)]
    model, most = dict[int, bytes](), 0
    for batch in work:
        m = len(batch.rows)
        try:
            asked, said = reference.access(batch)
        except StashOverflowError:
            for native in natives:
                with pytest.raises(StashOverflowError):
                    native.access(batch)
            return most
        for native in natives:
            others, also = native.access(batch)
            if also:
                assert len(said) == len(also)
                for a, b in zip(said, also, strict=True):
                    np.testing.assert_array_equal(a, b)
            for name in ("out", "where", "after"):
                np.testing.assert_array_equal(getattr(asked, name)[:m], getattr(others, name)[:m], name)
            same(reference, native)
        for r, (op, address, _) in enumerate(batch.rows):
            expected = b"" if op == Op.DUMMY else model.get(address, b"")
            assert asked.out[r].tobytes() == expected.ljust(g.B, b"\0")
            if op == Op.WRITE:
                model[address] = asked.data[r].tobytes()
            elif op == Op.REMOVE:
                model.pop(address, None)
        most = max(most, reference.kernel.stash_size)
    return most


@settings(max_examples=15)
@given(
    st.integers(1, 130), st.sampled_from([8, 16, 24]), st.sampled_from([1, 9, 33]), st.sampled_from([100, 100, 500, -300, -500]),
    REBUILDS, CIPHERS, st.sampled_from([1, 1, 3, 40]), st.integers(0, 2**32), st.booleans(),
)  # fmt: skip
def test_binned(N: int, c: int, B: int, eps: int, rebuild: Any, cipher: str, m: int, seed: int, two: bool) -> None:
    random = np.random.default_rng(seed)
    with passes(*((10, 2) if two else ())):
        g = geometry(N, c, B, eps, rebuild)
        compare(g, cipher, [some(random, N, m) for _ in range(int(random.integers(10, 150)))])


@pytest.mark.parametrize(
    ("N", "c", "eps", "steps", "m"),
    [
        (64, 8, 100, 300, 1),  # five times the time in which the bottom is rebuilt
        (200, 8, 100, 150, 3),
        (500, 16, 100, 40, 30),
        (100, 8, 100, 10, 300),  # several rebuilds of a level within one batch
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
        g = geometry(250, 8, 9, 100)
        work = [Batch([(Op.WRITE, 7 * i % g.N, i)], i) for i in range(3 * (g.c << g.L) // 2)]
        compare(g, "aegis-256", work)


@pytest.mark.parametrize("two", [False, True])
def test_stashes(two: bool) -> None:
    """With fewer cells than entries there is something in them; with far fewer they overflow, and both kernels say so."""
    random, most = np.random.default_rng(4), []
    with passes(*((10, 2) if two else ())):
        for eps in (-450, -800, -950):
            g = geometry(60, 8, 9, eps)
            most.append(compare(g, "aes-256-gcm", [some(random, g.N, 2) for _ in range(80)]))
    assert max(most) > 3


def test_what_chunks_leave_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hardly any slots for a bin, much is left over by each chunk; it joins its bin later, and a newer copy wins."""
    real = BinShape.binned

    def few(n: int, entries: int, eps: int, *, single: bool) -> BinShape:
        shape = real(n, entries, eps, single=single)
        return dataclasses.replace(shape, r=max(1, entries // (2 * shape.b**2)))

    monkeypatch.setattr(BinShape, "binned", few)
    random = np.random.default_rng(8)
    with passes(30, 3):
        g = geometry(100, 8, 9, 100)
        assert max(shape.b for shape in g.levels) > 1
        compare(g, "aes-256-gcm", [some(random, g.N, 2) for _ in range(300)])


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(0, 2**32), st.sampled_from([-800, -300, 0, 100, 1000]))
def test_placement(N: int, seed: int, eps: int) -> None:
    assert NATIVE is not None
    random = np.random.default_rng(seed)
    with passes(100, 3):
        g = geometry(N, 8, 1, eps)
    kernel: Any = Bins(NATIVE, g).kernel
    reference = Bins(REFERENCE, g).kernel
    for level, shape in enumerate(g.levels):
        table = Table(level, int(random.integers(1 << 40)))
        addr = random.permutation(g.N)[: g.levels[level].n].astype(np.uint32)
        pairs = kernel.pairs(table, addr)
        np.testing.assert_array_equal(pairs, reference.pairs(table, addr))
        for k in range(shape.b):
            own = pairs[pairs[:, 0] // shape.m == k] % shape.m
            if len(own) <= shape.hand:
                np.testing.assert_array_equal(kernel._place(level, own), place(own, shape.m))


@settings(max_examples=8)
@given(st.integers(1, 200), CIPHERS, st.integers(0, 2**32), st.booleans())
def test_bulk(N: int, cipher: str, seed: int, two: bool) -> None:
    assert NATIVE is not None
    random = np.random.default_rng(seed)
    with passes(*((10, 2) if two else ())):
        g = geometry(N, 8, 5)
    n = int(random.integers(0, N + 1))
    addr = random.permutation(N)[:n].astype(np.uint32)
    blocks = random.integers(0, 256, (n, g.B)).astype(np.uint8)
    found = []
    for which in (REFERENCE, NATIVE):
        tree = Bins(which, g, cipher)
        table, source = Table(g.L, 0), tree.kernel.build(addr)
        slots = np.arange(source.size) + g.first_slot(table)
        sealed = tree.kernel.seal_slots(slots, 0, source, addr, blocks)
        tree.slots.data[slots], tree.slots.present[slots] = sealed, 1
        found.append((tree, source, *tree.kernel.open_slots(slots, np.zeros(slots.size, np.int64), tree.read(slots))))
    (one, *rest), (other, *others) = found
    for a, b in zip(rest, others, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.count_nonzero(others[1] != EMPTY) == n
    same(one, other)
    for _ in range(60):
        batch = some(random, N, 3)
        (asked, said), (also, also_said) = (tree.access(batch) for tree in (one, other))
        np.testing.assert_array_equal(asked.out[: asked.m], also.out[: asked.m])
        for a, b in zip(said, also_said, strict=True):
            np.testing.assert_array_equal(a, b)
        same(one, other)
