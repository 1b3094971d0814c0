"""A store of several shards: crashes where only some of them got the write, and shards that are put back, swapped or lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import Backend, MemoryBackend, ShardedBackend
from oram.backends.memory import MemoryStateFile
from oram.errors import IntegrityError, OramError, RollbackError, StaleStateError
from oram.testing.faults import Faults, Storage, crash
from oram.testing.remote import ReplicatedBackend
from oram.trace import TraceBackend

from .lives import KEY, SCHEMES, SHARDED, blocks, content, keyed, open_store
from .test_crash import BLOCKS, KEYED, WHOLE, crash_everywhere

pytestmark = pytest.mark.one_kernel

PAIRS = [
    ("shard by shard", "cached"),
    ("last shard first", "stash"),
    ("last shard first", "linear"),
    ("remote shards", "ring-server"),
    ("remote shards, last first", "ring"),
    ("remote shards", "cuckoo"),
    ("torn shards", "path"),
    ("shards in one", "ring"),  # ATOMIC: recovery does the access again
]


def test_all_of_these_places_are_tried() -> None:
    assert {place for place, _ in PAIRS} == set(SHARDED)


@pytest.mark.parametrize(("place", "scheme"), PAIRS)
def test_access(place: str, scheme: str) -> None:
    crash_everywhere(keyed(place, scheme), KEYED["put_many"])


@pytest.mark.parametrize(("place", "scheme"), PAIRS[1::3])
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


@pytest.mark.parametrize("scheme", ["path", "ring-server", "cuckoo", "linear"])
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
        for _ in range(2):  # the first attempt has declared regions there
            with pytest.raises(RollbackError):
                site.open()


def test_shards_that_changed_places() -> None:
    site, model = filled()
    a, b, c = site.backends
    for wrong in ([b, a, c], [a, c, b], [c, b, a]):
        with pytest.raises(OramError):
            site.open(wrong)
    with site.open() as store:
        assert content(store) == model


@pytest.mark.parametrize("scheme", ["path", "ring", "ring-server", "cuckoo", "linear"])
def test_slots_of_one_shard_do_not_pass_for_those_of_another(scheme: str) -> None:
    """They are sealed under the same key, and for the same slot numbers: the references tell."""
    site, _ = filled(scheme, 2)
    store = site.open()
    a, b = site.backends
    for region, shape in a.regions().items():
        if region.startswith(("slots", "meta")):
            every = np.arange(shape.slots)
            mine, theirs = a.read(region, every), b.read(region, every)
            for there, slots in ((a, theirs), (b, mine)):
                rows = np.flatnonzero(slots.present)
                there.write(region, rows, slots.data[rows])
    with pytest.raises(IntegrityError):
        for i in range(12):
            store.get(b"%d" % i)


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


# --- failovers, of one shard or of several


class Servers:
    """A store over servers that each have a replica which lags, and what it must hold."""

    def __init__(self, layout: str, state: Path, *, parallel: bool) -> None:
        self.servers, self.state = [ReplicatedBackend(MemoryBackend()) for _ in range(2)], state
        self.backend, self.model = ShardedBackend(self.servers, parallel=parallel), dict[bytes, bytes]()
        scheme = SCHEMES[layout][0]
        self.store = oram.create(
            self.backend, key=KEY, capacity=30, block_size=40, scheme=scheme, tree_top=0, state=state,
            durability="process",
        )  # fmt: skip
        self.work(0, 6)
        self.backend.replicate()
        for server in self.servers:
            server.lagging = True
        self.work(20, 4)

    def work(self, first: int, n: int) -> None:
        for i in range(first, first + n):
            some = {b"%d" % (j % 12): b"%d" % i for j in (i, i + 5)}
            self.store.put_many(some)
            self.model |= some
            assert self.store.get(b"%d" % ((i + 3) % 12)) == self.model.get(b"%d" % ((i + 3) % 12))

    def check(self) -> None:
        assert content(self.store) == self.model
        self.store.close()
        with self.open() as store:
            assert content(store) == self.model

    def open(self) -> oram.ObliviousStore:
        self.store = oram.open(self.backend, key=KEY, state=self.state, durability="process")
        return self.store

    def abandon(self) -> None:
        self.store._engine.retire()
        self.store._site.release()


@pytest.mark.parametrize("parallel", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("layout", ["path", "ring-server"])
def test_a_failover_of_one_shard_is_repaired(layout: str, parallel: bool, tmp_path: Path) -> None:
    """At every call of the next access, before it and after it took effect: that shard is given what it lacks, and the other one nothing."""
    for number, (late, at, lost) in enumerate(
        (late, at, lost) for late in (0, 1) for at in (0, 1, 2) for lost in (0, 1, 5)
    ):
        life = Servers(layout, tmp_path / str(number), parallel=parallel)
        life.servers[number % 2].fail_over(lost, at=at, late=bool(late))
        life.work(40, 3)
        life.check()


@pytest.mark.parametrize("parallel", [True, False], ids=["at once", "one by one"])
def test_failovers_of_both_shards(parallel: bool, tmp_path: Path) -> None:
    """Of different numbers of writes, at the same time and one in the middle of the other's repair."""
    for number, (first, second) in enumerate([(1, 6), (6, 1), (4, 4), (7, 0)]):
        life = Servers("path", tmp_path / str(number), parallel=parallel)
        for at in (0, 2):
            life.servers[0].fail_over(first, at=at)
            life.servers[1].fail_over(second, at=at, late=bool(number % 2))
        life.work(40, 3)
        life.check()


@pytest.mark.parametrize("layout", ["path", "ring-server"])
def test_a_failover_of_one_shard_is_repaired_by_the_next_process(layout: str, tmp_path: Path) -> None:
    for number, (lost, other, again) in enumerate([(0, 5, 1), (3, 0, None), (1, 7, 2), (7, 2, 4), (8, 8, None)]):
        life = Servers(layout, tmp_path / str(number), parallel=False)
        life.abandon()
        life.servers[0].fail_over(lost)
        life.servers[1].fail_over(other)
        if again is not None:
            life.servers[number % 2].fail_over(3, at=again + 1)
        life.open()
        life.work(40, 2)
        life.check()


@pytest.mark.parametrize("parallel", [True, False], ids=["at once", "one by one"])
def test_what_the_journal_has_not_kept_of_one_shard_is_a_rollback(parallel: bool, tmp_path: Path) -> None:
    life = Servers("path", tmp_path / "s", parallel=parallel)
    stale = [list(undo) for undo in life.servers[1]._undo]
    for server in life.servers:
        server.lagging = False
    life.backend.replicate()  # so say the servers
    life.work(30, 1)
    life.servers[1]._undo[:0] = stale
    life.servers[1].fail_over(len(life.servers[1]._undo))
    with pytest.raises(RollbackError):
        life.work(40, 1)


def test_only_the_shard_that_failed_over_is_asked_and_written(tmp_path: Path) -> None:
    traces = [TraceBackend(ReplicatedBackend(MemoryBackend())) for _ in range(2)]
    store = oram.create(
        ShardedBackend(traces), key=KEY, capacity=30, block_size=40, scheme="linear", state=tmp_path / "s",
        durability="process",
    )  # fmt: skip
    store[b"1"] = b"x"
    for trace in traces:
        trace.replicate()
    replicas = [trace.inner for trace in traces]
    replicas[1].lagging = True  # type: ignore[attr-defined]
    for i in range(4):
        store[b"2"] = b"%d" % i
    for trace in traces:
        trace.clear()
    replicas[1].fail_over(3)  # type: ignore[attr-defined]
    assert store[b"2"] == b"3"
    assert [[event.op for event in trace.events if event.region == "clock.1"] for trace in traces] == [
        ["write"],
        [
            "write",
            "read",
            *["write"] * 4,
        ],  # what it was asked; its clock, the three that it lost, and the one that was on its way
    ]


def test_a_backend_of_several_parts_is_for_as_many_shards(tmp_path: Path) -> None:
    for shards in (1, 3):
        with pytest.raises(oram.errors.ParameterError):
            oram.create(
                ShardedBackend([MemoryBackend(), MemoryBackend()]), key=KEY, capacity=30, block_size=40, shards=shards,
                state=tmp_path / "s",
            )  # fmt: skip
