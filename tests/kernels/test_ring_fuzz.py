"""The native Ring kernel on what it should never see: slots that were changed, and state that contradicts itself. ``make sanitize`` runs it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.backends import Slots
from oram.kernels.base import (
    KernelSet,
    Op,
    PathState,
    PoolFullError,
    Requests,
    RingKernel,
    RingPlan,
    RingState,
    RingWrite,
    TamperedError,
)
from oram.params import PathGeometry, RingGeometry
from oram.types import I64

from .common import NATIVE, REFERENCE, key_of, needs_native

pytestmark = needs_native


class Sparse:
    """A region of any size, where hardly anything was ever written."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[int, npt.NDArray[np.uint8]] = {}

    def read(self, at: I64) -> Slots:
        found = Slots(np.zeros((at.size, self.size), np.uint8), np.zeros(at.size, np.uint8))
        for i, slot in enumerate(at.reshape(-1).tolist()):
            if slot in self.rows:
                found.data[i], found.present[i] = self.rows[slot], 1
        return found

    def write(self, at: I64, data: npt.NDArray[np.uint8]) -> None:
        self.rows.update(zip(at.tolist(), data.copy(), strict=True))


def nothing(_: Any) -> None:
    pass


class Tree:
    """One Ring kernel with slots of its own."""

    def __init__(self, which: KernelSet | None, g: RingGeometry, *, xor: bool = False, pool: int = 60) -> None:
        assert which is not None
        self.which, self.g, self.xor = which, g, xor
        position = np.random.default_rng(7).integers(0, g.leaves, g.N).astype(np.uint32)
        self.slots, self.meta = Sparse(g.slot_size), Sparse(g.meta_size)
        self.forget(RingState.empty(g, position, pool), 1)

    def forget(self, state: RingState, generation: int) -> None:
        """A kernel that knows no key but the one it seals under."""
        self.keys = self.which.keys("aes-256-gcm", key_of)
        self.keys.start(generation)
        self.kernel: RingKernel = self.which.ring(self.g, state, self.keys)

    def request(self, rows: list[tuple[Op, int, int]]) -> Requests:
        requests = self.kernel.requests(len(rows))
        requests.seed[:] = rows[0][2] % 251
        for r, (op, address, draw) in enumerate(rows):
            requests.ops[r], requests.addresses[r], requests.draws[r] = op, address, draw
            requests.data[r] = draw % 251
        return requests

    def access(
        self,
        rows: list[tuple[Op, int, int]],
        harm: Callable[[Slots], None] = nothing,
        upset: Callable[[RingState], None] = nothing,
    ) -> tuple[Requests, RingPlan, RingWrite]:
        """harm: do that to what the server sends; upset: to the state, before a plan is made."""
        g, kernel, requests = self.g, self.kernel, self.request(rows)
        buckets = kernel.buckets(requests)
        if g.metadata == "server":
            kernel.load(self.meta.read(buckets))
        upset(kernel.state)
        plan = kernel.plan(requests)
        slots = self.fetch(plan)
        harm(slots)
        while True:
            try:
                written = kernel.access(requests, plan, slots)
                break
            except PoolFullError:
                kernel.state = kernel.state.grown()
                kernel.buckets(requests)
                plan = kernel.plan(requests)
        self.slots.write((plan.rewritten[:, np.newaxis] * g.n + np.arange(g.n)).reshape(-1), written.data)
        if g.metadata == "server":
            self.meta.write(buckets, kernel.store())
        return requests, plan, written

    def fetch(self, plan: RingPlan) -> Slots:
        if not self.xor:
            return self.slots.read(np.concatenate([plan.online[plan.online >= 0], plan.fetched.reshape(-1)]))
        fetched, online = self.slots.read(plan.fetched), self.slots.read(plan.online).data  # slot -1 was never written
        folded = np.bitwise_xor.reduce(online.reshape(*plan.online.shape, -1), axis=1)
        return Slots(fetched.data, fetched.present, np.ascontiguousarray(folded))

    def snapshot(self) -> dict[str, Any]:
        state = self.kernel.state
        names = ["position", "clock", "roots", "head", "pool_addr", "pool_leaf", "pool_next", "pool_data"]
        names += ["refs", "spent", "addr", "slot"] if self.g.metadata == "client" else []
        found: dict[str, Any] = {name: getattr(state, name).tolist() for name in names}
        return found | {"free": state.free, "used": state.used, "counter": self.keys.counter}


def some_rows(random: np.random.Generator, N: int, m: int) -> list[tuple[Op, int, int]]:
    ops, draw = [Op.WRITE, Op.WRITE, Op.READ, Op.REMOVE, Op.DUMMY], random.integers
    return [(ops[int(draw(5))], int(draw(N)), int(draw(1 << 32))) for _ in range(m)]


def change(random: np.random.Generator) -> Callable[[Slots], None]:
    def harm(slots: Slots) -> None:
        if slots.folded is not None and random.integers(2):
            slots.folded[random.integers(len(slots.folded)), random.integers(slots.folded.shape[1])] ^= 64
        elif len(slots.data) and random.integers(2):
            slots.data[random.integers(len(slots.data)), random.integers(slots.data.shape[1])] ^= 1
        elif len(slots.data):
            slots.present[random.integers(len(slots.data))] ^= 1

    return harm


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(["client", "server"]), st.booleans())
def test_nothing_changes_where_a_slot_does_not_open(seed: int, where: Any, xor: bool) -> None:
    """Nor where keys are missing: those of all generations but one are, again and again."""
    random = np.random.default_rng(seed)
    g = RingGeometry(20, 5, 3, 2, int(random.integers(1, 4)), 3, int(random.integers(0, 3)), where)
    trees = [Tree(which, g, xor=xor) for which in (REFERENCE, NATIVE)]
    for generation in range(2, 9):
        rows = some_rows(random, g.N, int(random.integers(1, 6)))
        for tree in trees:
            tree.forget(tree.kernel.state, generation)
        before, slots, harm = trees[1].snapshot(), dict(trees[1].slots.rows), change(random)
        try:
            found = trees[1].access(rows, harm)  # a slot that was never written may be anything
        except TamperedError:
            assert trees[1].snapshot() == before
            assert trees[1].slots.rows.keys() == slots.keys()
            found = trees[1].access(rows)
        expected = trees[0].access(rows)
        m = len(rows)
        for name in ("out", "where", "pool", "after"):
            np.testing.assert_array_equal(getattr(expected[0], name)[:m], getattr(found[0], name)[:m], name)
        for name in ("data", "addr", "slot"):
            np.testing.assert_array_equal(getattr(expected[2], name), getattr(found[2], name), name)
        assert trees[0].snapshot() == trees[1].snapshot()


def upset(random: np.random.Generator, g: RingGeometry, what: str) -> Callable[[RingState], None]:
    def act(state: RingState) -> None:
        rows = len(state.refs)
        if what == "address":
            state.addr[:] = random.integers(0, 1 << 32 if random.integers(2) else g.N, (rows, g.Z))
        elif what == "slot":
            state.slot[:] = random.integers(0, 1 << 16, (rows, g.Z))
        elif what == "spent":
            state.spent[:] = random.integers(0, 1 << 63, (rows, g.words))
        elif what == "reference":
            state.refs[:] = random.integers(0, 1 << 34, rows)
        elif what == "blocks":
            state.addr[:], state.spent[:] = random.integers(0, g.N, (rows, g.Z)), 0
            state.slot[:] = random.integers(0, g.n, (rows, g.Z))

    return act


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["address", "slot", "spent", "reference", "blocks", "leaf", "no leaf", "clock"]),
    st.sampled_from(["client", "server"]),
    st.booleans(),
)
def test_state_that_contradicts_itself(seed: int, what: str, where: Any, xor: bool) -> None:
    """It is refused, or something is lost; all within the arrays."""
    random = np.random.default_rng(seed)
    g = RingGeometry(20, 5, 3, 2, 2, 4, int(random.integers(0, 5)), where)
    tree = Tree(NATIVE, g, xor=xor)
    for _ in range(4):
        tree.access(some_rows(random, g.N, 5))
    position, clock = tree.kernel.state.position, tree.kernel.state.clock
    if what == "leaf":
        position[:] = random.integers(0, g.leaves, g.N)
    elif what == "no leaf":
        position[:] = random.integers(g.leaves, 1 << 32, g.N)
    elif what == "clock":
        clock[0] = (1 << 64) - 1 - int(random.integers(8))
    try:
        for _ in range(4):
            tree.access(some_rows(random, g.N, 5), upset=upset(random, g, what))
    except (RuntimeError, TamperedError):
        return
    assert what != "no leaf"


def test_a_leaf_that_is_none() -> None:
    """Buckets and pages are computed from it: those in the tree, and then nothing is done to them."""
    assert NATIVE is not None
    tree = Tree(NATIVE, RingGeometry(20, 5, 3, 2, 2, 4, 1))
    tree.access([(Op.WRITE, 3, 5)])
    tree.kernel.state.position[3] = 0xFFFFFFF0
    before = tree.snapshot()
    with pytest.raises(RuntimeError, match="not sound"):
        tree.access([(Op.READ, 3, 9)])
    assert tree.snapshot() == before
    g, keys = PathGeometry(20, 5, 4, 3, 1, 1), NATIVE.keys("aes-256-gcm", key_of)
    keys.start(1)
    path = NATIVE.path(g, PathState.empty(g, np.full(20, 1 << 31, np.uint32), 40), keys)
    requests = path.requests(1)
    plan = path.plan(requests)
    assert plan.slots.max() < g.slots
    pages = Slots(np.zeros((plan.slots.size, g.slot_size), np.uint8), np.zeros(plan.slots.size, np.uint8))
    with pytest.raises(RuntimeError, match="not sound"):
        path.access(requests, plan, pages)


def test_a_block_off_its_path() -> None:
    """With T > 0 no bucket on the path evicted to need be above its leaf."""
    g = RingGeometry(8, 5, 3, 1, 2, 4, 4)
    tree = Tree(NATIVE, g)
    tree.kernel.state.position[:] = 0  # where eviction 0 goes
    tree.access([(Op.WRITE, 3, 0)])
    assert 3 in tree.kernel.state.addr[0]
    tree.kernel.state.clock[0], tree.kernel.state.position[3] = 0, 9
    before = tree.snapshot()
    with pytest.raises(RuntimeError, match="not sound"):
        tree.access([(Op.DUMMY, 0, 0)])
    assert tree.snapshot() == before


@pytest.mark.parametrize("xor", [False, True])
def test_the_largest_tree(xor: bool) -> None:
    """2^31 blocks and A=1 have 32 levels below the root, as many as a leaf has bits."""
    g = RingGeometry(30, 3, 4, 1, 1, 32, 0, "server")
    trees, random = [Tree(which, g, xor=xor) for which in (REFERENCE, NATIVE)], np.random.default_rng(1)
    for tree in trees:
        tree.kernel.state.position[:3] = 0, (1 << 32) - 1, 1 << 31
    for _ in range(4):
        rows = some_rows(random, g.N, 3)
        (asked, plan, written), (others, other_plan, other) = (tree.access(rows) for tree in trees)
        np.testing.assert_array_equal(plan.online, other_plan.online)
        np.testing.assert_array_equal(asked.out[:3], others.out[:3])
        np.testing.assert_array_equal(written.data, other.data)
        assert trees[0].snapshot() == trees[1].snapshot()


def test_a_plan_is_of_one_batch() -> None:
    """Its scratch memory is of as many buckets as it has, so no other may be used with it."""
    g = RingGeometry(20, 5, 3, 2, 2, 4, 0, "server")
    tree = Tree(NATIVE, g)
    _, plan, _ = tree.access([(Op.WRITE, 3, 5)])
    kernel, slots = tree.kernel, tree.fetch(plan)
    requests = tree.request([(Op.READ, 3, 5)])
    with pytest.raises(ValueError, match="buckets"):
        kernel.store()
    with pytest.raises(ValueError, match="buckets"):
        kernel.plan(requests)
    kernel.load(tree.meta.read(kernel.buckets(requests)))
    plan = kernel.plan(requests)
    slots = tree.fetch(plan)
    kernel.access(requests, plan, slots)
    with pytest.raises(ValueError, match="another plan"):
        kernel.access(requests, plan, slots)
    region = Slots(np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8))
    with pytest.raises(ValueError, match="metadata"):
        kernel.access_in_place(requests, region, None)
    for Z, A, S in [(4, 0, 6), (4, 3, 1021), (0, 1, 4)]:
        with pytest.raises(ValueError, match="geometry"):
            Tree(NATIVE, RingGeometry(20, 5, Z, A, S, 4, 0))
