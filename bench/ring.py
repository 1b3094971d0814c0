"""Ring ORAM: what it moves, counted; its speed beside Path's; and what a slow link makes of both."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import oram
from bench.measure import Row, best
from oram.backends import MemoryBackend
from oram.params import RING_SETS, PathParams, RingParams, SchemeParams
from oram.params.ring import early_reshuffles
from oram.schemes.ring import RingORAM
from oram.testing.remote import RemoteBackend
from oram.trace import TraceBackend

KEY = bytes(32)
CIPHERS = ("aes-256-gcm", "aegis-256")


def steady(scheme: RingORAM, periods: int) -> None:
    """Put a new tree into the state after so many evictions of every leaf: each bucket with the reads since its last eviction.

    Only how often a bucket was read decides what is moved, so the blocks need not be there; waiting for a leaf's next eviction takes A * 2^L accesses.
    """
    g, random_ = scheme.geometry, np.random.default_rng(1)
    clock = periods * g.A * g.leaves + 7 * g.A // 2
    for level in range(g.T, g.L + 1):
        prefix = np.arange(1 << level)
        turn = np.zeros_like(
            prefix
        )  # an eviction through prefix p at level l is one whose number is p reversed, modulo 2^l
        for bit in range(level):
            turn |= (prefix >> bit & 1) << (level - 1 - bit)
        since = (clock // g.A - 1 - turn) % (1 << level)  # evictions ago
        reads = random_.binomial(since * g.A + clock % g.A, 1 / (1 << level)) % g.S
        rows = (1 << level) - g.first + prefix
        scheme.state.spent[rows, 0] = (np.uint64(1) << reads.astype(np.uint64)) - np.uint64(1)
    scheme.state.clock[0] = clock


def moved(quick: bool) -> Iterator[Row]:
    """Blocks and bytes an access moves at N=2^20 without a tree-top cache, counted by the trace, against the paper's formula [section 5]."""
    N, B, count = (1 << 14 if quick else 1 << 20), 64, 3000 if quick else 24_000
    for Z, A, S in RING_SETS:
        for xor in (False, True):
            trace = TraceBackend(MemoryBackend())
            store = oram.create(
                trace, key=KEY, capacity=N, block_size=B, keyed=False, scheme=RingParams(Z, A, S, xor=xor), tree_top=0
            )
            scheme = store._engine.scheme
            assert isinstance(scheme, RingORAM)
            g = scheme.geometry
            steady(scheme, 3)
            trace.clear()
            rest = count // (50 * A) * 50 * A  # whole eviction periods
            online = total = 0
            for _ in range(rest):
                store.blocks.read(random.randrange(N))
            for event in trace.events:
                slots = 1 if event.op == "xor" else len(event.indices)
                if event.region == "slots.1" and event.op in ("read", "write", "xor"):
                    total += slots
                if event.region == "slots.1" and event.op in ("read", "xor"):
                    online += slots if event.op == "xor" else min(slots, g.levels) * (not xor)
            each = 1 if xor else g.L + 1
            formula = each + (g.L + 1) * (2 * Z + S) / A * (1 + early_reshuffles(A, S))
            name = f"Ring {Z},{A},{S}, N={N}{', XOR' if xor else ''}"
            for what, got, want in (("all", total / rest, formula), ("online", online / rest, each)):
                note = (
                    f"{got * g.slot_size:,.0f} bytes an access of {B}-byte blocks; XOR counts 1"
                    if what == "all"
                    else ""
                )
                yield Row(
                    f"blocks moved, {what}, {name}", got, want, "slots/access", got / want, "formula, 2 %",
                    abs(got / want - 1) <= 0.02, note,
                )  # fmt: skip
            store.close()


def throughput(quick: bool) -> Iterator[Row]:
    """Reads in memory at B=4096 with the same tree-top budget, Path's beside Ring's; N=2^16. B=64 for comparison."""
    count = 20 if quick else 60
    for B, N in ((4096, 1 << (13 if quick else 16)), (64, 1 << 18)):
        for cipher in CIPHERS:
            path, ring = (warm(scheme, N, B, cipher) for scheme in (PathParams(), RingParams()))
            batches = [np.random.default_rng(i).integers(0, N, 64) for i in range(count)]
            singles = [random.randrange(N) for _ in range(16 * count)]
            chosen = "{Z},{A},{S}".format(**ring.info())
            for what, each, run in (
                (
                    "read_many(64)",
                    64 * count,
                    lambda store, ids=batches: [store.blocks.read_many(batch) for batch in ids],
                ),
                ("read", len(singles), lambda store, ids=singles: [store.blocks.read(i) for i in ids]),
            ):
                a, b = best(lambda run=run, ring=ring: run(ring), lambda run=run, path=path: run(path))
                bar = ">= 1.5 x Path" if B == 4096 and what != "read" else ""
                yield Row(
                    f"{what}, memory, N={N}, B={B}, {cipher}, Ring {chosen}", each / a, each / b, "accesses/s", b / a, bar,
                    b >= 1.5 * a if bar else None, "reference: Path",
                )  # fmt: skip
            path.close()
            ring.close()


def warm(scheme: SchemeParams, N: int, B: int, cipher: str) -> oram.ObliviousStore:
    """A store in memory with every block written, and each of its pages touched."""
    store = oram.create("memory:", key=KEY, capacity=N, block_size=B, keyed=False, scheme=scheme, cipher=cipher)
    zeros = np.zeros((64, B), np.uint8)
    for _ in range(3):
        for first in range(0, N, 64):
            store.blocks.write_many(np.arange(first, first + 64), zeros)
    return store


def remote(quick: bool) -> Iterator[Row]:
    """A backend with 10 ms of added round-trip time: round trips an access, and its time beside one round trip."""
    count, delay = 30 if quick else 150, 0.010
    schemes: tuple[Any, ...] = (PathParams(), RingParams(), RingParams(metadata="server"))
    for scheme in schemes:
        with tempfile.TemporaryDirectory() as place:
            backend = RemoteBackend(MemoryBackend(), delay=delay)
            store = oram.create(
                backend, key=KEY, capacity=1 << 14, block_size=4096, keyed=False, scheme=scheme, state=Path(place) / "state",
                durability="process", tree_top=1 << 20,
            )  # fmt: skip
            for i in range(3):
                store.blocks.write(i, b"warm")
            trips, times = backend.round_trips, []
            for _ in range(count):
                start = time.perf_counter()
                store.blocks.read(random.randrange(1 << 14))
                times.append(time.perf_counter() - start)
            trips = backend.round_trips - trips
            one, name = (
                1e3 * delay,
                scheme.name + (", metadata at the server" if getattr(scheme, "metadata", "") == "server" else ""),
            )
            bar = 1 if not name.endswith("server") else 2
            yield Row(
                f"round trips an access, {name}",
                trips / count,
                bar,
                "",
                trips / count / bar,
                f"= {bar}",
                trips == bar * count,
            )
            middle = float(np.median(times)) * 1e3
            yield Row(
                f"read at 10 ms, B=4096, {name}", middle, one, "ms", middle / one, "", None,
                f"p99 {float(np.quantile(times, 0.99)) * 1e3:.1f} ms",
            )  # fmt: skip
            store.close()


BARS = {"ring": moved, "ring-speed": throughput, "ring-remote": remote}
