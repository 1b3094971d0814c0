"""Small stores for unit tests."""

from __future__ import annotations

from typing import Any

import oram
from oram.backends import Backend, MemoryBackend
from oram.store import ObliviousStore
from oram.trace import Event, TraceBackend

KEY = bytes(range(32))


def small(backend: Backend | None = None, **options: Any) -> ObliviousStore:
    """A store of 8 records in memory, journaled."""
    chosen: dict[str, Any] = {"capacity": 8, "block_size": 48, "scheme": "path", "durability": "process", "key": KEY}
    return oram.create(MemoryBackend() if backend is None else backend, **{**chosen, **options})


def traced(**options: Any) -> tuple[ObliviousStore, TraceBackend]:
    trace = TraceBackend(MemoryBackend())
    store = small(trace, **options)
    trace.clear()
    return store, trace


def accesses(trace: TraceBackend) -> list[Event]:
    """The reads of the tree since the last ``clear``."""
    return [event for event in trace.events if event.op == "read" and event.region.startswith("slots")]
