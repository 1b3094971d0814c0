"""Cuckoo ORAM: what it moves, counted; its speed and its latency beside Path's and Ring's; and what the client has to remember."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import oram
from bench.measure import Row
from bench.ring import warm
from oram.backends import MemoryBackend, SlotWrite
from oram.params import BinnedGeometry, CuckooParams, PathParams, RingParams, SchemeParams
from oram.params.cuckoo import IN_HAND
from oram.schemes.binned import BinnedORAM
from oram.schemes.cuckoo import CuckooORAM
from oram.trace import TraceBackend

KEY = bytes(32)
SCHEMES: tuple[SchemeParams, ...] = (PathParams(), RingParams(), CuckooParams())


def steady(store: oram.ObliviousStore) -> int:
    """Put a new store at the beginning of the second epoch of its bottom, with every table that is there sealed; the accesses of an epoch.

    What is moved depends on the clock alone, so the blocks need not be there.
    """
    scheme, backend = store._engine.scheme, store._engine.backend
    assert isinstance(scheme, CuckooORAM | BinnedORAM)
    g, kernel, state = scheme.geometry, scheme._kernel, scheme.state
    period = g.c << g.L
    state.clock[:] = 2 * period, 1
    nobody, nothing = np.zeros(0, np.uint32), np.zeros((0, g.B), np.uint8)
    for table in g.alive(2 * period, built=True):
        first, end = g.first_slot(table), g.first_slot(table) + g.levels[table.level].table
        for at in range(first, end, 1 << 14):
            slots = np.arange(at, min(at + (1 << 14), end))
            data = kernel.seal_slots(slots, table.epoch, np.full(slots.size, -1), nobody, nothing)
            backend.write_all([SlotWrite(scheme.region, slots, data)])
    kernel.forget()
    return period


def derived(g: Any) -> tuple[float, float]:
    """Slots an access reads in the tables that are there, and moves for rebuilds, by the constants of docs/schemes/cuckoo.md for eps = 0.1."""
    tables = 1 + g.L / 2 + g.L * (g.L + 1) / 16
    small = sum(shape.n < IN_HAND for shape in g.levels[:-1])
    if isinstance(g, BinnedGeometry):
        return 2 * tables, 2.2 * small + 3.9 * (g.L - small) + (12.8 if g.N >= IN_HAND else 6.6)
    return 2 * tables, 2.2 * small + 4.0 * (g.L - small) + (10.1 if g.N >= IN_HAND else 6.6)


def moved(quick: bool) -> Iterator[Row]:
    """Slots that each access of one epoch of the bottom moves, from the steady state, counted by the trace."""
    sizes = (1 << 12, 1 << 14) if quick else (1 << 16, 1 << 20)
    for params, N in [(params, N) for params in (CuckooParams(), CuckooParams(index="none")) for N in sizes]:
        trace = TraceBackend(MemoryBackend())
        store = oram.create(trace, key=KEY, capacity=N, block_size=8, keyed=False, scheme=params, durability="none")
        scheme = store._engine.scheme
        assert isinstance(scheme, CuckooORAM | BinnedORAM)
        g, period, where = scheme.geometry, steady(store), random.Random(1)
        store.blocks.read(0)  # the first access after an opening has more to read
        online, total = [], []
        for clock in range(2 * period + 1, 3 * period):
            trace.clear()
            store.blocks.read(where.randrange(N))
            slots = [event for event in trace.events if event.region == scheme.region]
            looked = 2 * len(g.alive(clock, built=True))
            assert sum(len(event.indices) for event in slots if event.op == "read") >= looked
            online.append(looked)
            total.append(sum(len(event.indices) for event in slots))
        probes, rebuilds = derived(g)
        mean, most = float(np.mean(total)), max(total)
        name = f"Cuckoo{', no index' if isinstance(g, BinnedGeometry) else ''}, N={N}, c={g.c}"
        for what, got, want in (
            ("online", float(np.mean(online)), probes),
            ("for rebuilds", mean - float(np.mean(online)), rebuilds),
            ("all", mean, probes + rebuilds),
        ):
            note = f"{got * g.slot_size:,.0f} bytes an access of 8-byte blocks" if what == "all" else ""
            yield Row(
                f"blocks moved, {what}, {name}", got, want, "slots/access", got / want, "derivation, 10 %",
                abs(got / want - 1) <= 0.1, note,
            )  # fmt: skip
        yield Row(f"most in one access, {name}", most, mean, "slots", most / mean, "<= 4 x mean", most <= 4 * mean)
        store.close()


def speed(quick: bool) -> Iterator[Row]:
    """Reads in memory over a whole epoch of Cuckoo's bottom, in batches of 64 and one by one, Path and Ring taking turns with it.

    N=2^20 with B=4096 would take 50 GB.
    """
    cases = ((1 << 12, 64), (1 << 12, 4096)) if quick else ((1 << 16, 64), (1 << 16, 4096), (1 << 20, 64))
    for N, B in cases:
        stores = [warm(scheme, N, B, "aes-256-gcm") for scheme in SCHEMES]
        turns, where = 16 if quick else 64, np.random.default_rng(1)
        singles = min(N // turns // 2, 1024)
        batches = (N // turns - singles) // 64
        many, single = [0.0] * 3, [list[float]() for _ in SCHEMES]
        for _ in range(turns):
            ids = where.integers(0, N, (batches, 64))
            alone = where.integers(0, N, singles).tolist()
            for i, store in enumerate(stores):
                start = time.perf_counter()
                for batch in ids:
                    store.blocks.read_many(batch)
                many[i] += time.perf_counter() - start
                read, times = store.blocks.read, single[i]
                for one in alone:
                    start = time.perf_counter()
                    read(one)
                    times.append(time.perf_counter() - start)
        rates = [turns * batches * 64 / seconds for seconds in many]
        for i, name in enumerate(("Path", "Ring")):
            yield Row(
                f"read_many(64), memory, N={N}, B={B}: Cuckoo beside {name}", rates[2], rates[i], "accesses/s",
                rates[2] / rates[i], "", None, "ratio: larger is faster",
            )  # fmt: skip
        quantiles = [np.quantile(times, [0.5, 0.99, 1]) * 1e6 for times in single]
        for i, name in enumerate(("Path", "Ring")):
            for at, what in enumerate(("p50", "p99", "max")):
                ours, theirs = float(quantiles[2][at]), float(quantiles[i][at])
                yield Row(
                    f"read, memory, N={N}, B={B}, {what}: Cuckoo beside {name}", ours, theirs, "us", ours / theirs, "", None
                )  # fmt: skip
        for store in stores:
            store.close()


def levels(quick: bool) -> Iterator[Row]:
    """Single reads in memory without an index beside those with one: the rate of a whole epoch of the bottom, and what the placement of a bin adds."""
    for N in (1 << 12,) if quick else (1 << 16, 1 << 20):
        times = []
        for params in (CuckooParams(), CuckooParams(index="none")):
            store = oram.create(
                "memory:", key=KEY, capacity=N, block_size=64, keyed=False, scheme=params, durability="none"
            )
            period, read, own = steady(store), store.blocks.read, list[float]()
            where = np.random.default_rng(1).integers(0, N, min(period, 1 << 18)).tolist()
            for one in where:  # the bottom is rebuilt in the first quarter
                start = time.perf_counter()
                read(one)
                own.append(time.perf_counter() - start)
            times.append(np.array(own) * 1e6)
            store.close()
        indexed, ours = times
        for what, got, want in (
            ("mean", ours.mean(), indexed.mean()),
            *((f"p{100 * q:g}", np.quantile(ours, q), np.quantile(indexed, q)) for q in (0.5, 0.99, 0.9999)),
            ("max", ours.max(), indexed.max()),
        ):
            yield Row(
                f"read, memory, N={N}, B=64, {what}: no index beside the index", float(got), float(want), "us",
                float(got / want), "", None,
            )  # fmt: skip


def memory(quick: bool) -> Iterator[Row]:
    """Bytes of client state a block, of the same three; and with what the kernel needs besides, at its most in an epoch of the bottom."""
    for N, B in ((1 << 12, 64),) if quick else ((1 << 16, 64), (1 << 16, 4096), (1 << 20, 64)):
        for top in (0, 16 << 20):
            state, besides = [], 0
            for scheme in SCHEMES:
                store = oram.create(
                    "memory:", key=KEY, capacity=N, block_size=B, keyed=False, scheme=scheme, tree_top=top, durability="none"
                )  # fmt: skip
                state.append(store.stats().state_bytes / N)
                if isinstance(store._engine.scheme, CuckooORAM):
                    kernel: Any = store._engine.scheme._kernel
                    for _ in range(steady(store) // 512 * (B == 64) or 1):  # the bottom is placed in the first quarter
                        store.blocks.read_many(np.zeros(64, np.int64))
                        besides = max(besides, kernel.memory())
                store.close()
            none = oram.create(
                "memory:", key=KEY, capacity=N, block_size=B, keyed=False, scheme=CuckooParams(index="none"), tree_top=top,
                durability="none",
            )  # fmt: skip
            bins: Any = none._engine.scheme
            kept, working = none.stats().state_bytes / N, bins._kernel.memory() / N
            none.close()
            where = f"N={N}, B={B}, tree_top={top >> 20} MiB"
            path, ring, ours = state
            note = (
                f"Ring {ring:.1f}; besides the state, while a rebuild is placed, the kernel has {besides / N:.1f} more"
            )
            least = min(path, ring)
            yield Row(
                f"client state a block, {where}: Cuckoo beside Path", ours, path, "bytes", ours / path, "the least",
                ours < least, note,
            )  # fmt: skip
            yield Row(
                f"client state a block without the index, {where}: beside the index", kept, ours, "bytes", kept / ours,
                "the least", kept < min(least, ours), f"the kernel has {working:.1f} besides, always",
            )  # fmt: skip
            whole = ours + besides / N
            yield Row(
                f"the same with the kernel's own memory, {where}: no index beside the index", kept + working, whole, "bytes",
                (kept + working) / whole, "", None,
            )  # fmt: skip
            yield Row(
                f"the same with the kernel's own memory, {where}", whole, path, "bytes", whole / path, "the least",
                whole < least,
            )  # fmt: skip


BARS = {"cuckoo": moved, "cuckoo-levels": levels, "cuckoo-speed": speed, "cuckoo-memory": memory}
