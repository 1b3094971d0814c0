"""A store of several shards: crashes where only some of them got the write, and shards that are put back, swapped or lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import Backend, MemoryBackend, ShardedBackend
from oram.backends.memory import MemoryStateFile
from oram.errors import IntegrityError, OramError, RollbackError, StaleStateError
from oram.testing.faults import Faults, Storage, crash
from oram.trace import TraceBackend

from .lives import KEY, SCHEMES, SHARDED, blocks, content, keyed, open_store
from .test_crash import BLOCKS, KEYED, WHOLE, crash_everywhere

PAIRS = [
    ("shard by shard", "cached"),
    ("last shard first", "stash"),
    ("last shard first", "linear"),
    ("remote shards", "ring-server"),
    ("remote shards, last first", "ring"),
    ("torn shards", "path"),
    ("shards in one", "ring"),  # ATOMIC: recovery does the access again
]


def test_all_of_these_places_are_tried() -> None:
    assert {place for place, _ in PAIRS} == set(SHARDED)


@pytest.mark.parametrize(("place", "scheme"), PAIRS)
def test_access(place: str, scheme: str) -> None:
    crash_everywhere(keyed(place, scheme), KEYED["put_many"])


@pytest.mark.parametrize(("place", "scheme"), PAIRS[1::2])
def test_blocks(place: str, scheme: str) -> None:
    crash_everywhere(blocks(place, scheme), BLOCKS["write_many"])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_store(name: str) -> None:
    crash_everywhere(keyed("remote shards", "linear"), WHOLE[name])


@pytest.mark.parametrize("place", ["shards in one", "remote shards"])
def test_growth_of_one_pool_is_growth_of_all(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oram.params.PathGeometry, "pool_size", property(lambda g: 2))
    base = blocks.__wrapped__(place, "stash")
    store = open_store(base.storage.copy().connect())
    store.blocks.write_many(range(16), [b"w"] * 16)
    trees = store._engine.scheme.trees  # type: ignore[attr-defined]
    assert len({len(tree.arrays()[-1]) for tree in trees}) == 1
    assert len(trees[0].arrays()[-1]) > 2
    crash_everywhere(base, BLOCKS["write_many"])


# --- shards that are not where or what they were


class Site:
    """Backends in memory that outlive their stores, and a state file apart from them."""

    def __init__(self, k: int, scheme: str) -> None:
        self.backends: list[Backend] = [MemoryBackend() for _ in range(k)]
        self.state = MemoryStateFile()
        self.scheme, self.k = SCHEMES[scheme], k

    def over(self, backends: list[Backend] | None = None) -> Backend:
        site = self

        class Apart(ShardedBackend):
            def state_file(self) -> Any:
                return Kept(site.state)

        for backend in self.backends:
            backend.release()
        return Apart(self.backends if backends is None else backends)

    def create(self) -> oram.ObliviousStore:
        params, top = self.scheme
        return oram.create(
            self.over(), key=KEY, capacity=20, block_size=40, scheme=params, tree_top=self.k * top, shards=self.k,
            durability="sync",
        )  # fmt: skip

    def open(self, backends: list[Backend] | None = None) -> oram.ObliviousStore:
        return oram.open(self.over(backends), key=KEY, durability="sync")

    def copy(self, j: int) -> Backend:
        """The shard as it is now."""
        now, copy = self.backends[j], MemoryBackend()
        for region, shape in now.regions().items():
            copy.allocate(region, shape)
            slots = now.read(region, np.arange(shape.slots))
            there = np.flatnonzero(slots.present)
            copy.write(region, there, slots.data[there])
        return copy

    def saved(self) -> list[tuple[bytes, bytes]]:
        return list(self.state.scan(b""))

    def put_back(self, state: list[tuple[bytes, bytes]]) -> None:
        self.state.commit([], [key for key, _ in self.state.scan(b"")])
        self.state.commit(state)


class Kept(MemoryStateFile):
    def __init__(self, inner: MemoryStateFile) -> None:
        super().__init__()
        self._pairs = inner._pairs

    def close(self) -> None:
        pass


def filled(scheme: str = "path", k: int = 3) -> tuple[Site, dict[bytes, bytes]]:
    site, model = Site(k, scheme), {}
    with site.create() as store:
        for i in range(30):
            model[b"%d" % (i % 12)] = store[b"%d" % (i % 12)] = b"v%d" % i
    return site, model


@pytest.mark.parametrize("scheme", ["path", "ring-server", "linear"])
@pytest.mark.parametrize("j", [0, 1, 2])
def test_one_shard_rolled_back(scheme: str, j: int) -> None:
    """By two accesses and more it is refused; by one, the journaled write-back makes it whole again."""
    site, model = filled(scheme)
    now = list(site.backends)
    for behind in (1, 2, 7):
        site.backends = list(now)
        old = site.copy(j)
        with site.open() as store:
            for i in range(behind):
                model[b"1"] = store[b"1"] = b"%d" % i
        site.backends[j] = old
        if behind == 1:
            with site.open() as store:
                assert content(store) == model
            now = list(site.backends)
            continue
        for _ in range(2):
            with pytest.raises(RollbackError):
                site.open()
        site.backends = list(now)
        with site.open() as store:  # and with the right one nothing is lost
            assert content(store) == model


@pytest.mark.parametrize("j", [0, 1, 2])
def test_one_shard_rolled_back_while_the_store_is_open(j: int) -> None:
    site, _ = filled()
    store = site.open()
    old = site.copy(j)
    for i in range(6):
        store[b"%d" % i] = b"new"
    for region, shape in old.regions().items():
        slots = old.read(region, np.arange(shape.slots))
        there = np.flatnonzero(slots.present)
        site.backends[j].write(region, there, slots.data[there])
    with pytest.raises(IntegrityError):
        for i in range(12):
            store.get(b"%d" % i)


def test_one_shard_emptied() -> None:
    for j in range(3):
        site, _ = filled()
        site.backends[j] = MemoryBackend()
        with pytest.raises((RollbackError, OramError)) as raised:
            site.open()
        assert isinstance(raised.value, RollbackError | oram.errors.StoreNotFoundError)


def test_shards_that_changed_places() -> None:
    site, model = filled()
    a, b, c = site.backends
    for wrong in ([b, a, c], [a, c, b], [c, b, a]):
        with pytest.raises(OramError):
            site.open(wrong)
    with site.open() as store:
        assert content(store) == model


def test_a_shard_of_another_store() -> None:
    site, _ = filled()
    other, _ = filled()
    for j in range(3):
        mixed = list(site.backends)
        mixed[j] = other.backends[j]
        with pytest.raises(IntegrityError):
            site.open(mixed)


def test_an_old_client_state() -> None:
    site, _ = filled()
    old = site.saved()
    with site.open() as store:
        store[b"1"] = b"new"
    site.put_back(old)
    with pytest.raises(StaleStateError):
        site.open()


def test_a_mixture_without_its_write_back_is_refused() -> None:
    """Where a write was all or nothing, as far as the journal knows, shards of different ages are no crash."""
    site, _ = filled(k=2)
    old = site.copy(1)
    with site.open() as store:
        store[b"1"] = b"new"
    site.backends[1] = old
    site.state.commit([], [key for key, _ in site.saved() if key.startswith(b"w")])
    with pytest.raises(RollbackError):
        site.open()


@pytest.mark.parametrize("scheme", ["path", "ring"])
def test_every_subset_of_the_shards_got_the_write(scheme: str) -> None:
    """Whichever of them have it, the next life sends it to all."""
    for subset in range(8):
        site, model = filled(scheme)
        before = [site.copy(j) for j in range(3)]
        state = site.saved()
        with site.open() as store:
            store.put_many([(b"1", b"new"), (b"99", b"more")])
        model |= {b"1": b"new", b"99": b"more"}
        for j in range(3):
            if not subset >> j & 1:
                site.backends[j] = before[j]
        assert site.saved() != state
        with site.open() as store:
            assert content(store) == model
            assert store[b"99"] == b"more"
        with site.open() as store:
            assert content(store) == model


def traced(storage: Storage) -> tuple[oram.ObliviousStore, TraceBackend, Faults]:
    """A life of a store, and what its servers see of it."""
    traces: list[TraceBackend] = []

    def over(inner: Backend) -> Backend:
        traces.append(TraceBackend(inner))
        return traces[0]

    backend = storage.connect(over)
    return open_store(backend), traces[0], backend.faults


def reads(trace: TraceBackend) -> list[tuple[int, ...]]:
    return [event.indices for event in trace.events if event.op == "read" and event.region.startswith("slots")]


def test_recovery_reads_the_very_same_slots_of_every_shard() -> None:
    """Whatever is asked next, and as often as it dies."""
    crashed = keyed("remote shards", "cached").storage.copy()
    store, trace, faults = traced(crashed)
    store[b"k1"] = b"x"
    trace.clear()
    crash(faults, 6, lambda: store.put(b"k3", b"x"))
    # what was pending goes to one shard after the other, and then all are read
    assert faults.steps == ["intent", "sync", "write", "write", "write", "read", "commit"]
    (first,) = reads(trace)
    for key in (b"nothing", b"k5"):
        again, trace, faults = traced(crashed.copy())
        assert reads(trace) == [first]
        again.get(key)
    for at in range(4, 12):
        backend = crashed.connect()
        crash(backend.faults, at, lambda backend=backend: open_store(backend))  # type: ignore[misc]
    _, trace, _ = traced(crashed)
    assert reads(trace) in ([first], [])  # done, by one of these lives
