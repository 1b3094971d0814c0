"""Crashes inside the rebuilds of Cuckoo ORAM: what is done again, and what the server sees of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import Backend
from oram.params import CuckooParams, cuckoo
from oram.schemes.binned import BinnedORAM
from oram.schemes.cuckoo import CuckooORAM
from oram.store import ObliviousStore
from oram.testing.faults import FaultBackend, Storage, crash
from oram.testing.model import check
from oram.trace import Event, TraceBackend

from .lives import KEY, PLACES, open_store

N = 60


@pytest.fixture(autouse=True)
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes for the bottom and the level above it."""
    monkeypatch.setattr(cuckoo, "IN_HAND", 30)
    monkeypatch.setattr(cuckoo, "SPREAD", 2)


def made(place: str, index: Any = "client") -> Storage:
    storage = Storage(**PLACES[place])
    items = {b"%d" % i: b"0" for i in range(0, N, 2)}
    oram.create(
        storage.connect(),
        key=KEY,
        capacity=N,
        block_size=24,
        scheme=CuckooParams(c=8, index=index),
        items=items,
        durability="sync",
    ).close()
    return storage


def of_store(store: ObliviousStore) -> CuckooORAM | BinnedORAM:
    scheme = store._engine.scheme
    assert isinstance(scheme, CuckooORAM | BinnedORAM)
    return scheme


@pytest.mark.parametrize(
    ("place", "index"), [*[(place, "client") for place in PLACES], *[(place, "none") for place in list(PLACES)[::2]]]
)
def test_a_crash_in_every_access_of_three_bottom_epochs(place: str, index: str) -> None:
    """One store that crashes again and again, at another step each time, and never forgets what it acknowledged."""
    storage, rng = made(place, index), np.random.default_rng(4)
    model = {b"%d" % i: b"0" for i in range(0, N, 2)}
    backend = storage.connect()
    store = open_store(backend)
    two_passes = 0
    for step in range(3 * 64 + 20):
        key, value = b"%d" % rng.integers(N), b"%d" % step
        if step % 3 == 0:
            store[key] = model[key] = value
            continue
        acted = crash(backend.faults, int(rng.integers(6)), partial(put, store, key, value))
        if acted:
            model[key] = value
        backend = storage.connect()
        store = open_store(backend)
        found = store.get(key)
        assert found in ((value,) if acted else (value, model.get(key)))
        if found is not None:
            model[key] = found
        scheme = of_store(store)
        two_passes += any(scheme.geometry.levels[t.level].b > 1 for t in scheme.geometry.running(scheme.turn))
        if step % 10 == 0:
            check(store, model)
    check(store, model)
    assert two_passes > 10


def put(store: ObliviousStore, key: bytes, value: bytes) -> bool:
    store[key] = value
    return True


def watched(storage: Storage) -> tuple[TraceBackend, FaultBackend]:
    traces: list[TraceBackend] = []

    def over(inner: Backend) -> Backend:
        traces.append(TraceBackend(inner))
        return traces[0]

    backend = storage.connect(over)
    return traces[0], backend


def of_slots(events: list[Event]) -> list[tuple[str, tuple[int, ...]]]:
    return [(event.op, event.indices) for event in events if event.region.startswith("slots.")]


CHOICES: list[Callable[[ObliviousStore], object]] = [
    lambda s: s.get(b"2"),
    lambda s: s.put(b"new", b"x"),
    lambda s: s.delete(b"2"),
    lambda s: s.get(b"nothing"),
]


@pytest.mark.parametrize("index", ["client", "none"])
def test_what_an_opening_reads_again_is_a_function_of_the_clock(index: str) -> None:
    """Two stores with different content and history, opened at each moment: the same slots, then the same work."""
    stores = [made("joint", index), made("joint", index)]
    reads: list[list[tuple[int, ...]]] = [[], []]
    for step in range(2 * 64):
        for which, storage in enumerate(stores):
            trace, backend = watched(storage)
            store = open_store(backend)
            trace.clear()
            if which:
                store.put(b"%d" % (step * 7 % N), b"%d" % step)
            else:
                CHOICES[step % 2 * 3](store)
            again, access, *rest = of_slots(trace.events)
            assert (again[0], access[0]) == ("read", "read")
            scheme = of_store(store)
            probes = 2 * len(scheme.geometry.alive(scheme.turn - 1, built=True))
            if index == "none":  # a round for each table, the first one with what the rebuilds read
                rounds, rest = rest[: probes // 2 - 1], rest[probes // 2 - 1 :]
                assert [(op, len(indices)) for op, indices in rounds] == [("read", 2)] * len(rounds)
                probes = 2
            reads[which] += [again[1], access[1][probes:], *[indices for _, indices in rest]]
            store.close()
    assert reads[0] == reads[1]


@pytest.mark.parametrize(
    ("place", "index"),
    [*[(place, "client") for place in PLACES], *[(place, "none") for place in ("joint", "apart", "remote")]],
)
def test_the_same_slots_again_whatever_is_asked_next(place: str, index: str) -> None:
    """Without an index, also where the crash came between two round trips of an access."""
    base = made(place, index)
    store = open_store(base.connect())
    for i in range(64 + 9):  # into the bottom's rebuild
        store[b"%d" % (i % (N - 1))] = b"%d" % i
    store.close()
    interrupted = 0
    for at in range(100):
        crashed = base.copy()
        trace, backend = watched(crashed)
        store = open_store(backend)
        trace.clear()
        alive = crash(backend.faults, at, partial(put, store, b"4", b"four"))
        before = [indices for op, indices in of_slots(trace.events) if op == "read"]
        views = []
        for choice in CHOICES:
            trace, backend = watched(crashed.copy())
            store = open_store(backend)
            views.append(of_slots(trace.events))
            choice(store)
        assert all(view == views[0] for view in views), "what the server sees depends on the choice"
        again = [indices for op, indices in views[0] if op == "read"]
        assert again in ([], before) or before in ([], again[: len(before)]), "other slots than before the crash"
        interrupted += bool(again and before)
        if alive:
            break
    assert alive
    assert interrupted
