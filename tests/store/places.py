"""Small stores for unit tests."""

from __future__ import annotations

from typing import Any

import oram
from oram.backends import Backend, MemoryBackend
from oram.params import CuckooParams, RingParams
from oram.store import ObliviousStore
from oram.trace import Event, TraceBackend

KEY = bytes(range(32))


#: Names of schemes for ``small``, with Ring in both of its forms.
SCHEMES: dict[str, Any] = {
    "path": "path",
    "linear": "linear",
    "ring": RingParams(Z=4, A=3, S=4),
    "ring, metadata there": RingParams(Z=3, A=1, S=2, metadata="server", xor=False),
}


def small(backend: Backend | None = None, **options: Any) -> ObliviousStore:
    """A store of 8 records in memory, journaled."""
    chosen: dict[str, Any] = {"capacity": 8, "block_size": 48, "scheme": "path", "durability": "process", "key": KEY}
    if isinstance(options.get("scheme"), str):
        named = {**SCHEMES, "cuckoo, no index": CuckooParams(index="none")}
        options["scheme"] = named.get(options["scheme"], options["scheme"])
    return oram.create(MemoryBackend() if backend is None else backend, **{**chosen, **options})


def traced(**options: Any) -> tuple[ObliviousStore, TraceBackend]:
    trace = TraceBackend(MemoryBackend())
    store = small(trace, **options)
    trace.clear()
    return store, trace


def accesses(trace: TraceBackend) -> list[Event]:
    """The reads of the tree since the last ``clear``, one for each round trip: of Ring the first XOR stands for all of a batch."""
    reads = {event.trip: event for event in reversed(trace.events) if event.op in ("read", "xor")}
    return [event for _, event in sorted(reads.items()) if event.region.startswith("slots")]
