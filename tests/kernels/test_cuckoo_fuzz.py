"""The native Cuckoo kernel on what it should never see: slots that were changed, and state that contradicts itself. ``make sanitize`` runs it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oram.backends import Slots
from oram.errors import StashOverflowError
from oram.kernels.base import CuckooState, Op, TamperedError
from oram.params import CuckooGeometry

from .common import NATIVE, REFERENCE, key_of, needs_native
from .test_cuckoo_agreement import HASH_KEY, STATE, Batch, Hierarchy, compare, geometry, passes, same, some

pytestmark = needs_native


def snapshot(tree: Hierarchy) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(tree.kernel.state, name).tolist() for name in STATE}
    return found | {
        "counter": tree.keys.counter,
        "stash": tree.kernel.stash_size,
        "rows": tree.kernel.rows(),
        "data": tree.slots.data.tobytes(),
        "present": tree.slots.present.tobytes(),
    }


def forgotten(tree: Hierarchy) -> None:
    """No key is known but that of the next generation."""
    assert NATIVE is not None
    tree.generation += 2
    tree.keys = NATIVE.keys("aes-256-gcm", key_of)
    tree.keys.start(tree.generation)
    kernel: Any = tree.kernel
    kernel._keys = tree.keys


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_nothing_changes_where_a_slot_does_not_open(seed: int, in_place: bool, two: bool) -> None:
    """Nor where keys are missing: those of all generations but one are, again and again."""
    assert NATIVE is not None
    random = np.random.default_rng(seed)
    with passes(*((10, 2) if two else ())):
        g = geometry(60, 8, 5, 200)
        trees = [Hierarchy(REFERENCE, g), Hierarchy(NATIVE, g, in_place=in_place)]
        reference, native = trees
        for _ in range(80):
            batch = some(random, g.N, 4)
            if random.integers(3) == 0:
                forgotten(native)
                reference.start()
                reference.generation = native.generation
                reference.keys.start(native.generation)
                batch.start = False
            if not native.slots.present.any() or random.integers(2):
                for tree in trees:
                    tree.access(batch)
                same(*trees)
                continue
            batch.start = batch.opening = False
            requests = native.fill(batch)
            if native.kernel.resume()[0].size:
                continue
            plan = native.kernel.plan(requests)
            if not plan.slots.size:
                continue
            slot = int(plan.slots[random.integers(plan.slots.size)])
            row, there = native.slots.data[slot].copy(), int(native.slots.present[slot])
            before = None
            match int(random.integers(4)):
                case 0:
                    native.slots.present[slot] = 0
                case 1:
                    native.slots.data[slot, :8] = random.integers(0, 256, 8)  # a reference to anything
                case 2:
                    native.slots.data[slot, :8] = 0
                case _:
                    native.slots.data[slot, random.integers(8, g.slot_size)] ^= 1
            before = snapshot(native)
            with pytest.raises(TamperedError):
                native.access(batch)
            assert snapshot(native) == before
            native.slots.data[slot], native.slots.present[slot] = row, there
            for tree in trees:
                tree.access(batch)
            same(*trees)


def upset(random: np.random.Generator, g: CuckooGeometry, what: str) -> Callable[[CuckooState], None]:
    draw = random.integers

    def act(state: CuckooState) -> None:
        match what:
            case "code":
                state.code[:] = draw(0, 1 << 16, g.N)
            case "code of now":
                state.code[:] = 2 + (int(state.clock[0]) // g.c - draw(0, 4, g.N)) % g.code_cycle
            case "old":
                state.code[:] = draw(0, 2, g.N)
            case "log":
                state.log_addr[:], state.log_code[:] = draw(0, 1 << 32, g.log_size), draw(0, 1 << 16, g.log_size)
            case "log of blocks":
                state.log_addr[:], state.log_code[:] = draw(0, g.N, g.log_size), draw(0, 1 << 16, g.log_size)
            case "rows":
                state.page_addr[:] = draw(0, 1 << 32, state.page_addr.shape)
            case "rows of blocks":
                state.page_addr[:] = draw(0, g.N, state.page_addr.shape)
            case "clock":
                state.clock[0] += int(draw(1, 9))
            case "any clock":
                state.clock[0] = int(draw(1 << 62)) * int(draw(1, 4)) + int(draw(64))
            case "last clock":
                state.clock[0] = (1 << 64) - 1 - int(draw(40))
            case _:
                state.clock[1] = 1 - state.clock[1]

    return act


UPSETS = ["code", "code of now", "old", "log", "log of blocks", "rows", "rows of blocks", "clock", "any clock", "last clock", "built"]  # fmt: skip


@settings(max_examples=120)
@given(st.integers(0, 2**32), st.sampled_from(UPSETS), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_state_that_contradicts_itself(
    seed: int, what: str, in_place: bool, two: bool, opening: bool, late: bool
) -> None:
    """It is refused, or something is lost; all within the arrays. late: between the plan and the access."""
    random = np.random.default_rng(seed)
    with passes(*((10, 2) if two else ())):
        g = geometry(int(random.integers(1, 90)), 8, 5, 200)
        tree = Hierarchy(NATIVE, g, in_place=in_place)  # type: ignore[arg-type]
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
                    if again[0].size:  # as if all of it were sealed, so that its content counts
                        blocks = random.integers(0, 256, (again[0].size, g.B)).astype(np.uint8)
                        addr = random.integers(0, g.N if random.integers(2) else 1 << 32, again[0].size).astype(
                            np.uint32
                        )
                        for i, (slot, epoch) in enumerate(zip(again[0].tolist(), again[1].tolist(), strict=True)):
                            tree.slots.data[slot] = kernel.seal_slots(
                                np.array([slot]), epoch, np.array([i]), addr, blocks
                            )[0]
                    tree.access(batch)
                    continue
                requests = tree.fill(batch)
                plan = kernel.plan(requests)
                act(kernel.state)
                if in_place:
                    kernel._access(*slots_of(kernel, tree), 1, kernel._written)
                else:
                    kernel.access(requests, plan, tree.read(plan.slots))
        except (RuntimeError, TamperedError, StashOverflowError):
            return


def slots_of(kernel: Any, tree: Hierarchy) -> Any:
    from oram.kernels.native.memory import writable

    return writable("uint8_t[]", tree.slots.data), writable("uint8_t[]", tree.slots.present)


def test_a_plan_is_of_one_batch() -> None:
    assert NATIVE is not None
    g = geometry(30, 8, 5, 200)
    tree = Hierarchy(NATIVE, g)
    for i in range(30):
        tree.access(Batch([(Op.WRITE, i, i)], i))
    requests = tree.fill(Batch([(Op.READ, 3, 0)], 1))
    plan = tree.kernel.plan(requests)
    slots = tree.read(plan.slots)
    with pytest.raises(ValueError, match="shape"):
        tree.kernel.access(requests, plan, Slots(slots.data[1:], slots.present[1:]))
    tree.kernel.access(requests, plan, slots)
    with pytest.raises(ValueError, match="another plan"):
        tree.kernel.access(requests, plan, slots)
    with pytest.raises(ValueError, match="another plan"):
        tree.kernel.access(tree.kernel.requests(1), plan, slots)
    with pytest.raises(ValueError, match="not the kernel's"):
        tree.kernel.plan(
            REFERENCE.cuckoo(g, CuckooState.empty(g), REFERENCE.keys("aes-256-gcm", key_of), HASH_KEY).requests(1)
        )
    tree.kernel.forget()
    with pytest.raises(ValueError, match="resume"):
        tree.kernel.plan(tree.kernel.requests(1))
    for bad in (CuckooGeometry(30, 5, 8, 0), CuckooGeometry(30, 5, 8, 15), CuckooGeometry(300, 5, 8, 2)):
        with pytest.raises(ValueError, match="geometry"):
            Hierarchy(NATIVE, bad)


def test_growing_batches() -> None:
    """Each is larger than the one before, so that all memory is made anew in the middle of rebuilds."""
    g = geometry(60, 8, 5, 200)
    random = np.random.default_rng(5)
    compare(g, "aes-256-gcm", [Batch(some(random, g.N, 1).rows * m, m) for m in range(1, 60)])
