"""Slots that a real store moves, counted by a trace of its backend."""

from __future__ import annotations

from collections.abc import Iterator

import oram
from oram.backends import MemoryBackend
from oram.params import SchemeParams
from oram.store import ObliviousStore
from oram.trace import TraceBackend

__all__ = ["moved", "traced"]


def traced(scheme: SchemeParams, N: int) -> tuple[ObliviousStore, TraceBackend]:
    """A new store of N blocks without cached levels, and what its server sees."""
    trace = TraceBackend(MemoryBackend())
    store = oram.create(
        trace, key=bytes(32), capacity=N, block_size=8, keyed=False, scheme=scheme, durability="none",
        tree_top=1 << 24 if scheme.name == "cuckoo" else 0,
    )  # fmt: skip
    return store, trace


def moved(store: ObliviousStore, trace: TraceBackend, accesses: int) -> Iterator[int]:
    """Slots that each of so many reads moves, both ways; those of the clock are none of the tree's."""
    for i in range(accesses):
        trace.clear()
        store.blocks.read(i % store.capacity)
        yield sum(
            sum(index >= 0 for index in event.indices)
            for event in trace.events
            if event.op in ("read", "write", "xor") and event.region.startswith("slots.")
        )
