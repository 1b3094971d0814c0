"""The native kernel of Cuckoo without an index on what it should never see: slots that were changed, and state that contradicts itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.backends import Slots
from oram.errors import StashOverflowError
from oram.kernels.base import AGE_SHIFT, TOMB, BinnedState, Op, TamperedError
from oram.params import BinnedGeometry

from .common import NATIVE, REFERENCE, key_of, needs_native
from .test_binned_agreement import Bins, compare, geometry, same
from .test_cuckoo_agreement import HASH_KEY, Batch, passes, some

pytestmark = needs_native


@settings(max_examples=6)
@given(st.integers(0, 2**32), st.booleans())
def test_a_slot_that_does_not_open_ends_the_batch(seed: int, two: bool) -> None:
    """In whichever round. After an opening the very same slots are read as far as that, and all goes on as if nothing had been."""
    assert NATIVE is not None
    random = np.random.default_rng(seed)
    with passes(*((10, 2) if two else ())):
        g = geometry(60, 8, 5, 200)
    trees, failed = [Bins(REFERENCE, g), Bins(NATIVE, g)], 0
    for _ in range(50):
        batch = some(random, g.N, 4)
        before = [
            {name: getattr(t.kernel.state, name).copy() for name in ("clock", "page_addr", "page_data")} for t in trees
        ]
        at, kind, read = int(random.integers(1, 40)), int(random.integers(3)), list[list[Any]]()
        for tree, old in zip(trees, before, strict=True):
            again = tree.kernel.resume()
            if again[0].size:
                tree.kernel.resumed(tree.read(again[0]))
            tree.kernel.begin(tree.fill(batch))
            seen, left = list[Any](), at
            while (plan := tree.kernel.ask()) is not None:
                seen.append(plan.slots.tolist())
                slots = tree.read(plan.slots)
                if left < len(plan.slots):
                    changed(slots, left, kind)
                    with pytest.raises(TamperedError):
                        tree.kernel.tell(slots, plan)
                    failed += 1
                    break
                left -= len(plan.slots)
                tree.kernel.tell(slots, plan)
            read.append(seen)
            for name, array in old.items():  # the state as the journal has it
                getattr(tree.kernel.state, name)[:] = array
            tree.kernel.forget()
        assert read[0] == read[1]
        said = [tree.access(batch)[1] for tree in trees]
        for a, b in zip(*said, strict=True):
            np.testing.assert_array_equal(a, b)
        rounds = [each.tolist() for each in said[0][2:-2:3]]
        assert rounds[: len(read[0])] == read[0]
        same(*trees)
    assert failed > 10


def changed(slots: Slots, at: int, kind: int) -> None:
    if kind == 0:
        slots.present[at] = 0
    else:
        slots.data[at, 3 if kind == 1 else 20] ^= 1


def upset(random: np.random.Generator, g: BinnedGeometry, what: str) -> Callable[[BinnedState], None]:
    draw = random.integers

    def act(state: BinnedState) -> None:
        match what:
            case "rows":
                state.page_addr[:] = draw(0, 1 << 32, state.page_addr.shape)
            case "rows of blocks":
                state.page_addr[:] = draw(0, g.N, state.page_addr.shape) | TOMB * draw(0, 2, state.page_addr.shape)
            case "clock":
                state.clock[0] += int(draw(1, 9))
            case "any clock":
                state.clock[0] = int(draw(1 << 62)) * int(draw(1, 4)) + int(draw(64))
            case "last clock":
                state.clock[0] = (1 << 64) - 1 - int(draw(40))
            case _:
                state.clock[1] = 1 - state.clock[1]

    return act


UPSETS = ["rows", "rows of blocks", "clock", "any clock", "last clock", "built"]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(UPSETS), st.booleans(), st.booleans(), st.booleans())
def test_state_that_contradicts_itself(seed: int, what: str, two: bool, opening: bool, late: bool) -> None:
    """It is refused, or something is lost; all within the arrays. late: in the middle of a batch."""
    random = np.random.default_rng(seed)
    with passes(*((10, 2) if two else ())):
        g = geometry(int(random.integers(1, 90)), 8, 5, 200)
    tree = Bins(NATIVE, g)  # type: ignore[arg-type]
    kernel: Any = tree.kernel
    for _ in range(int(random.integers(1, 90))):
        tree.access(some(random, g.N, 3, openings=False))
    act = upset(random, g, what)
    try:
        for _ in range(12):
            batch = some(random, g.N, 4, openings=False)
            if not late:
                act(kernel.state)
                if opening:
                    kernel.forget()
                again = kernel.resume()
                tree.slots.present[:] = 1
                if again[0].size:
                    sealed_at_random(random, tree, again)
                tree.access(batch)
                continue
            kernel.begin(tree.fill(batch))
            when = int(random.integers(6))
            while (plan := kernel.ask()) is not None:
                if when == 0:
                    act(kernel.state)
                when -= 1
                kernel.tell(tree.read(plan.slots), plan)
            written = kernel.finish()
            tree.slots.data[written.slots], tree.slots.present[written.slots] = written.data, 1
    except (RuntimeError, TamperedError, StashOverflowError):
        return


def sealed_at_random(random: np.random.Generator, tree: Bins, again: Any) -> None:
    """As if all of it were sealed, so that its content counts."""
    n, g = again[0].size, tree.g
    blocks = random.integers(0, 256, (n, g.B)).astype(np.uint8)
    most = g.N if random.integers(2) else 1 << 32
    words = random.integers(0, most, n).astype(np.uint32)
    if most == g.N:
        words |= (random.integers(0, 2, n) * TOMB | random.integers(0, 7, n) << AGE_SHIFT).astype(np.uint32)
    for i, (slot, epoch) in enumerate(zip(again[0].tolist(), again[1].tolist(), strict=True)):
        tree.slots.data[slot] = tree.kernel.seal_slots(np.array([slot]), epoch, np.array([i]), words, blocks)[0]


def test_a_round_is_of_one_batch() -> None:
    assert NATIVE is not None
    g = geometry(30, 8, 5, 200)
    tree = Bins(NATIVE, g)
    for i in range(30):
        tree.access(Batch([(Op.WRITE, i, i)], i))
    kernel, requests = tree.kernel, tree.fill(Batch([(Op.READ, 3, 0)], 1))
    kernel.begin(requests)
    plan = kernel.ask()
    assert plan is not None
    slots = tree.read(plan.slots)
    with pytest.raises(ValueError, match="shape"):
        kernel.tell(Slots(slots.data[1:], slots.present[1:]), plan)
    with pytest.raises(ValueError, match="end"):
        kernel.finish()
    kernel.tell(slots, plan)
    with pytest.raises(ValueError, match="not the kernel's"):
        kernel.begin(
            REFERENCE.binned(g, BinnedState.empty(g), REFERENCE.keys("aes-256-gcm", key_of), HASH_KEY).requests(1)
        )
    kernel.forget()
    with pytest.raises(ValueError, match="another plan"):
        kernel.tell(slots, plan)
    with pytest.raises(ValueError, match="resume"):
        kernel.begin(kernel.requests(1))
    for bad in (BinnedGeometry(30, 5, 8, 0), BinnedGeometry(30, 5, 8, 15), BinnedGeometry(300, 5, 8, 2)):
        with pytest.raises(ValueError, match="geometry"):
            Bins(NATIVE, bad)


def test_growing_batches() -> None:
    """Each is larger than the one before, so that all memory is made anew in the middle of rebuilds."""
    g = geometry(60, 8, 5, 200)
    random = np.random.default_rng(5)
    compare(g, "aes-256-gcm", [Batch(some(random, g.N, 1).rows * m, m) for m in range(1, 60)])
