"""Where numpy's memory meets C: what is lent is alive whatever interrupts, and nothing of another width or shape gets there. ``make sanitize`` runs it too."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import Slots
from oram.kernels.base import BinnedState, CuckooState, Op
from oram.params import BinnedGeometry, CuckooGeometry

from .common import NATIVE, key_of, needs_native

pytestmark = needs_native


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("field", ["both", "root", "full", "known"])
def test_an_interrupt_leaves_no_pointer_to_freed_memory(field: str, line: int) -> None:
    """Ctrl-C at each line of what lets a field of a C struct point to another array. With durability none the store in memory goes on after it."""
    from oram.kernels.native.memory import Lent

    code, first = Lent.point.__code__, next(at for *_, at in Lent.point.__code__.co_lines() if at is not None)
    lines = sorted({at for *_, at in code.co_lines() if at is not None} - {first})
    if line >= len(lines):
        pytest.skip("it has fewer lines")
    interrupted = 0

    def tracer(frame: FrameType, event: str, arg: Any) -> Any:
        def local(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "line" and frame.f_lineno == lines[line] and frame.f_locals["field"] == field:
                signal.raise_signal(signal.SIGINT)
            return local

        return local if frame.f_code is code else None

    options: dict[str, Any] = {"capacity": 3000, "block_size": 32, "scheme": "cuckoo", "durability": "none"}
    with oram.create("memory:", key=oram.generate_key(), **options) as store:
        kernel: Any = store._engine.scheme._kernel  # type: ignore[attr-defined]
        before = sys.gettrace()
        for i in range(200):
            try:
                sys.settrace(tracer)
                if i % 50 == 49:  # more room for a batch
                    store.get_many([b"k%d" % j for j in range(i)])
                store[b"k%d" % (i % 50)] = b"v"
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                sys.settrace(before)
            for lent, struct in [*zip(kernel._lent, kernel._builds, strict=True), (kernel._memory, kernel._batch)]:
                for name in ("both", "root", "full", "known"):
                    if hasattr(struct, name) and (at := kernel_address(getattr(struct, name))):
                        assert any(array.ctypes.data == at for array in lent.arrays()), name
    assert interrupted


def kernel_address(pointer: Any) -> int:
    from oram.kernels._native import ffi

    return int(ffi.cast("uintptr_t", pointer))


G, BINS = CuckooGeometry(60, 64, 8, 3), BinnedGeometry(60, 64, 8, 3)


def kernel(kind: str = "cuckoo") -> Any:
    assert NATIVE is not None
    keys = NATIVE.keys("aes-256-gcm", key_of)
    keys.start(1)
    if kind == "cuckoo":
        return NATIVE.cuckoo(G, CuckooState.empty(G), keys, bytes(32))
    return NATIVE.binned(BINS, BinnedState.empty(BINS), keys, bytes(32))


SLOTS = np.arange(50) % G.slots
SEALED = Slots(np.zeros((50, G.slot_size), np.uint8), np.ones(50, np.uint8))
ADDR, BLOCKS = np.zeros(10, np.uint32), np.zeros((10, 64), np.uint8)
WRONG: dict[str, Callable[[Any], object]] = {
    "narrow blocks": lambda k: k.seal_slots(SLOTS, 1, SLOTS % 10, ADDR, np.zeros((10, 4), np.uint8)),
    "narrow slots": lambda k: k.seal_slots(SLOTS.astype(np.int32), 1, SLOTS % 10, ADDR, BLOCKS),
    "narrow sources": lambda k: k.seal_slots(SLOTS, 1, (SLOTS % 10).astype(np.int32), ADDR, BLOCKS),
    "narrow addresses": lambda k: k.seal_slots(SLOTS, 1, SLOTS % 10, ADDR.astype(np.uint16), BLOCKS),
    "narrow slots to open": lambda k: k.open_slots(SLOTS.astype(np.int32), SLOTS, SEALED),
    "narrow epochs": lambda k: k.open_slots(SLOTS, SLOTS.astype(np.int32), SEALED),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("kind", ["cuckoo", "binned"])
def test_arrays_of_another_width_are_refused(kind: str, what: str) -> None:
    with pytest.raises(ValueError, match=r"items of|a row for each slot"):
        WRONG[what](kernel(kind))


def test_the_state_of_another_geometry_is_refused() -> None:
    one, bins = kernel(), kernel("binned")
    for other in (CuckooGeometry(60, 1, 8, 3), CuckooGeometry(59, 64, 8, 3), CuckooGeometry(60, 64, 16, 2)):
        with pytest.raises(ValueError, match="another geometry"):
            one.state = CuckooState.empty(other)
    with pytest.raises(ValueError, match="another geometry"):
        bins.state = BinnedState.empty(BinnedGeometry(60, 1, 8, 3))
    narrow = CuckooState.empty(G)
    narrow.code = narrow.code.astype(np.uint8)
    with pytest.raises(ValueError, match="items of"):
        one.state = narrow


@pytest.mark.parametrize("then", [(Op.READ, 5000), (Op.WRITE, 60)])
@pytest.mark.parametrize("first", [(Op.READ, 3), (Op.DUMMY, 5000)])
def test_requests_that_were_changed_after_their_plan(first: tuple[int, int], then: tuple[int, int]) -> None:
    one = kernel()
    requests = one.requests(1)
    requests.ops[0], requests.addresses[0] = first
    plan = one.plan(requests)
    requests.ops[0], requests.addresses[0] = then
    slots = Slots(np.zeros((plan.slots.size, G.slot_size), np.uint8), np.ones(plan.slots.size, np.uint8))
    before = one.state.clock[0], one.state.code.tolist()
    with pytest.raises(RuntimeError, match="not sound"):
        one.access(requests, plan, slots)
    assert (one.state.clock[0], one.state.code.tolist()) == before


def test_a_batch_is_finished_once() -> None:
    bins = kernel("binned")
    region = Slots(np.zeros((BINS.slots, BINS.slot_size), np.uint8), np.zeros(BINS.slots, np.uint8))
    for i in range(30):
        requests = bins.requests(1)
        requests.ops[0], requests.addresses[0] = Op.WRITE, i
        bins.begin(requests)
        while (plan := bins.ask()) is not None:
            bins.tell(Slots(region.data[plan.slots], region.present[plan.slots]), plan)
        written = bins.finish()
        kept = written.data.copy()
        with pytest.raises(ValueError, match="end"):
            bins.finish()
        assert (written.data == kept).all()
        region.data[written.slots], region.present[written.slots] = written.data, 1
