"""What the server sees of an access, counted: slots, bytes, round trips; and that no kind of request differs from another in it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

import oram
from oram import kernels
from oram.backends import Backend, MemoryBackend, RegionShape
from oram.benchmark.workload import key_of
from oram.errors import ParameterError
from oram.params import SCHEMES
from oram.testing.remote import RemoteBackend
from oram.testing.worlds import Work, observe, same
from oram.trace import Event, TraceBackend

__all__ = ["KINDS", "LAYERS", "blowup", "kinds", "layers", "seal_4096", "stash"]

_KEY = bytes(32)

#: Kinds of request that must not differ, by what they do to a store that holds the records 0..n-1.
KINDS: dict[str, Callable[[Any, int, int], object]] = {
    "get, a hit": lambda store, i, n: store.get(key_of(i % n)),
    "get, a miss": lambda store, i, _: store.get(key_of(10**7 + i)),
    "put": lambda store, i, n: store.put(key_of(i % n), b"v%d" % i),
    "delete, a miss": lambda store, i, _: store.pop(key_of(10**7 + i), None),
    "delete, then put": lambda store, i, _: store.pop(key_of(0), None) if i % 2 else store.put(key_of(0), b"x"),
}


def _filled(
    scheme: str, N: int, B: int, scratch: Callable[[], Any], **options: Any
) -> tuple[oram.ObliviousStore, TraceBackend]:
    """Half full, behind a trace, as over a network: the write-back rides with the next read."""
    trace = TraceBackend(RemoteBackend(MemoryBackend()))
    items = [(key_of(i), b"v") for i in range(N // 2)]
    store = oram.create(
        trace, key=_KEY, capacity=N, block_size=B, scheme=scheme, items=items, state=scratch(), durability="process", **options
    )  # fmt: skip
    return store, trace


def _counted(events: Sequence[Event], accesses: int) -> dict[str, float]:
    """Bytes and round trips of an access; a slot that a group of XORs leaves out is none."""
    down = up = 0
    for event in events:
        slots = 1 if event.op == "xor" else sum(slot >= 0 for slot in event.indices)
        down += slots * event.slot_size if event.op in ("read", "xor") else 0
        up += slots * event.slot_size if event.op == "write" else 0
    trips = {event.trip for event in events}
    return {"bytes_down": down / accesses, "bytes_up": up / accesses, "round_trips": len(trips) / accesses}


def blowup(scheme: str, N: int, B: int, scratch: Callable[[], Any]) -> dict[str, Any]:
    """Bytes and round trips of an access, on average, without a tree-top cache; and set-up time, server space and client state.

    Of whole periods: Ring evicts once in A accesses, and is counted after 2 N of them, because a young tree has fewer early reshuffles; Cuckoo's bottom is
    rebuilt once in N, and is counted once before.
    """
    begin = time.perf_counter()
    store, trace = _filled(scheme, N, B, scratch, tree_top=0)
    created = time.perf_counter() - begin
    with store:
        stored = sum(
            shape.slots * shape.slot_size
            for name, shape in trace.regions().items()
            if name.startswith(("slots", "meta"))
        )
        for first in range(0, 2 * N if scheme == "ring" else 64, 64):
            trace.clear()
            store.get_many([key_of((first + i) % (N // 2)) for i in range(64)])
        store.get(key_of(0))  # what the last batch has still to write
        trace.clear()
        single = {"linear": 64, "ring": 8 * int(store.info().get("A", 0))}.get(scheme, 192)
        for i in range(single):
            store.get(key_of(i % (N // 2)))
        counted, accesses = _counted(trace.events, single), single
        if scheme == "cuckoo":
            sums, accesses = dict.fromkeys(counted, 0.0), -(-N // 64) * 64
            for turn in range(2):
                for first in range(0, accesses, 64):
                    trace.clear()
                    store.get_many([key_of((first + i) % (N // 2)) for i in range(64)])
                    if turn:
                        sums = {what: sums[what] + value for what, value in _counted(trace.events, accesses).items()}
            counted = {**sums, "round_trips": counted["round_trips"]}
        return {
            "scheme": scheme, "N": N, "block_size": B, "accesses": accesses, **counted,
            "blowup": (counted["bytes_down"] + counted["bytes_up"]) / B,
            "server_blowup": stored / (N * B),
            "client_bytes": store.stats().state_bytes,
            "create_seconds": created,
        }  # fmt: skip


def kinds(scheme: str, N: int, B: int, scratch: Callable[[], Any], rounds: int) -> Iterator[dict[str, Any]]:
    """For each kind of request what the server sees, exactly, and its time.

    Seen is the whole of a small store's life, ``_SEEN`` puts that fill half of it and as many requests of one kind, under randomness that looks up the
    same leaves for each kind (``testing.worlds``): identical says whether the server saw the very same. The time, with the half-width of its 95 %
    confidence interval, is that of a store of N blocks, the kinds taking turns.
    """

    def make() -> tuple[oram.ObliviousStore, TraceBackend]:
        trace = TraceBackend(RemoteBackend(MemoryBackend()))
        options: dict[str, Any] = {
            "capacity": 2 * _SEEN,
            "block_size": B,
            "scheme": scheme,
            "tree_top": 0,
            "durability": "process",
        }
        return oram.create(trace, key=_KEY, state=scratch(), **options), trace

    def life(kind: str) -> Work:
        def work(store: oram.ObliviousStore) -> None:
            for i in range(_SEEN):
                store.put(key_of(i), b"v")
            for i in range(_SEEN):
                KINDS[kind](store, i, _SEEN)

        return work

    views = {kind: observe(make, life(kind), 1) for kind in KINDS}
    first = views["get, a hit"]
    times = _times(scheme, N, B, scratch, rounds)
    for kind, view in views.items():
        middle = sorted(times[kind])[rounds // 10 : rounds - rounds // 10]  # a noisy machine
        yield {
            "scheme": scheme, "kind": kind, "block_size": B, "seen_N": 2 * _SEEN, "seen_accesses": 2 * _SEEN, **_counted(view.events, 2 * _SEEN),
            "identical": same(first, view), "N": N, "rounds": rounds,
            "microseconds": statistics.fmean(middle), "microseconds_ci95": 1.96 * statistics.stdev(middle) / len(middle) ** 0.5,
        }  # fmt: skip


_SEEN = 32


def _times(scheme: str, N: int, B: int, scratch: Callable[[], Any], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each request, by kind."""
    store, trace = _filled(scheme, N, B, scratch)
    with store:
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        order, names = np.random.default_rng(1), list(KINDS)
        for kind in names:
            KINDS[kind](store, 0, N // 2)  # the first access has no write-back to carry
        for i in range(rounds):
            for k in order.permutation(len(names)).tolist():
                trace.clear()
                begin = time.perf_counter()
                KINDS[names[k]](store, i, N // 2)
                times[names[k]].append(1e6 * (time.perf_counter() - begin))
    return times


#: Accesses, at least, after which a stash is as large as a share that is told says.
_FEWEST = 10


def stash(scheme: str, N: int, accesses: int, seed: int) -> dict[str, Any]:
    """The share of looks at which the stash holds more than R blocks, R = 0, 1, ..., as far down as ``_FEWEST`` of them tell; without a tree-top cache.

    Round robin, which fills it most. A look is after each access of Path, and of Ring after each eviction, one in A accesses, as in the papers.
    """
    # slots of one block, so that a page is a bucket of the papers
    params: Any = oram.PathParams(Z=4, page_levels=1) if scheme == "path" else SCHEMES[scheme]()
    store = oram.create(
        MemoryBackend(), key=_KEY, capacity=N, block_size=16, scheme=params, tree_top=0, keyed=False, durability="none"
    )
    with store:
        block, A = bytes(16), int(store.info().get("A", 1))
        for first in range(0, N, 64):
            store.blocks.write_many(range(first, min(first + 64, N)), [block] * min(64, N - first))
        counts = np.zeros(256, np.int64)
        for i in range(-N % A + accesses // A * A):  # so that looks are where evictions are
            store.blocks.read(i % N)
            if (N + i + 1) % A == 0:
                counts[min(store.stats().stash, 255)] += 1
    looks = int(counts.sum())
    above = counts[::-1].cumsum()[::-1] - counts
    tail = [int(count) / looks for count in above if count >= _FEWEST]
    return {"scheme": scheme, "N": N, "accesses": accesses, "looks": looks, "seed": seed, "tail": tail}


def seal_4096(cipher: str) -> float:
    """Microseconds in which this machine seals, or opens, 4096 bytes in C. ParameterError without the native kernels, CipherUnavailableError."""
    if kernels.active().name != "native":
        raise ParameterError("the native kernels are not active here")
    from oram.kernels.native import floor

    run, slots = floor(cipher, np.zeros((64, 4096 + 16), np.uint8)), np.arange(64, dtype=np.uint64)
    best = math.inf
    for _ in range(60):
        begin = time.perf_counter()
        run(slots)
        best = min(best, time.perf_counter() - begin)
    return best / 128 * 1e6


#: What each layer adds, in their order; the differences between neighbours are what it costs.
LAYERS = {
    "plain": "LMDB by itself, not synced: a put is a record",
    "encrypted": "and the record sealed: hides contents, not which record",
    "moved": "a path read and written in place of a record: what hiding which one costs before anything else",
    "sealed": "and each slot of it opened and sealed, all but the references of its children: encryption of contents",
    "fresh": "and these references, which let no old slot open: freshness, by itself",
    "none": "and Path ORAM's own work, with durability none: position map, stash, eviction, keys",
    "process": "and a journal (process): an acknowledged write survives the process, and recovery leaks nothing",
    "sync": "and synced (sync): it survives a loss of power",
}


def layers(N: int, B: int, cipher: str, scratch: Callable[[], Any], rounds: int) -> list[dict[str, Any]]:
    """What each layer of safety costs: microseconds of a put, on disk, with more and more of ``LAYERS``; the rows take turns.

    Path ORAM, and three rows that move its paths and do nothing else. Without the native kernels those that seal paths are not there.
    """
    from oram.benchmark.place import Place
    from oram.benchmark.subject import BASELINES, Case

    place = Place("lmdb", 0.0, scratch())
    case = Case(N, N // 2, B, cipher, place)
    items = [(key_of(i), b"v") for i in range(N // 2)]
    works: dict[str, Callable[[int], object]] = {}
    with ExitStack() as stack:
        for name, baseline in (("plain", "plain-lmdb"), ("encrypted", "encrypted")):
            session = BASELINES[baseline].open(case)
            stack.callback(session.close)
            session.load(items)
            works[name] = lambda i, session=session: session.put_many([items[i % len(items)]])  # type: ignore[misc]
        for name in ("none", "process", "sync"):
            store = oram.create(
                f"lmdb:{scratch() / name}", key=_KEY, capacity=N, block_size=B, scheme="path", tree_top=0, cipher=cipher,
                items=items, durability=name,
            )  # fmt: skip
            stack.callback(store.close)
            works[name] = lambda i, store=store: store.put(*items[i % len(items)])  # type: ignore[misc]
        g: Any = store._shape.geometry
        sealed: dict[str, int] = {"moved": 0}  # bytes that are opened and sealed of each slot
        if kernels.active().name == "native":
            sealed |= {"sealed": g.slot_size - (8 << g.h), "fresh": g.slot_size}
        for name, size in sealed.items():
            backend, _ = place.backend()
            stack.callback(backend.close)
            works[name] = _paths(backend, g, cipher, size)
        times: dict[str, list[float]] = {name: [] for name in LAYERS if name in works}
        order, names = np.random.default_rng(1), list(times)
        for i in range(rounds):
            for k in order.permutation(len(names)).tolist():  # what ran before leaves its traces in caches
                begin = time.perf_counter()
                works[names[k]](i)
                times[names[k]].append(1e6 * (time.perf_counter() - begin))
    return [
        {
            "layer": name, "says": LAYERS[name], "N": N, "block_size": B, "cipher": cipher, "rounds": rounds,
            **dict(zip(("lower_quartile", "microseconds", "upper_quartile"), statistics.quantiles(spent, n=4), strict=True)),
        }
        for name, spent in times.items()
    ]  # fmt: skip


def _paths(backend: Backend, g: Any, cipher: str, size: int) -> Callable[[int], None]:
    """Reads and writes paths of a Path store's tree, and opens and seals so many bytes of each slot, if any."""
    backend.allocate("slots", RegionShape(g.slots, g.slot_size))
    for first in range(0, g.slots, 1024):
        slots = np.arange(first, min(first + 1024, g.slots))
        backend.write("slots", slots, np.zeros((len(slots), g.slot_size), np.uint8))
    levels = list(zip(g.offsets, map(g.root_level, range(g.layers)), strict=False))
    leaves = np.random.default_rng(1).integers(0, 1 << g.L, 1024).tolist()
    paths = [np.array([start + (leaf >> (g.L - level)) for start, level in levels]) for leaf in leaves]
    every = np.arange(g.layers, dtype=np.uint64)
    work: Callable[[Any], None] | None = None
    if size:
        from oram.kernels.native import floor

        work = floor(cipher, np.zeros((g.layers, size), np.uint8))

    def access(i: int) -> None:
        slots = paths[i % len(paths)]
        found = backend.read("slots", slots).data
        if work is not None:
            work(every)
        backend.write("slots", slots, found)

    return access
