"""Attacks that once worked. Each is carried out again here, and has to fail."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oram
from oram import kernels
from oram.backends import LMDBBackend, MemoryBackend
from oram.errors import CapacityError, ForkedStoreError, HandleError, IntegrityError, StoreClosedError
from oram.testing import faults
from oram.testing.faults import Crash, Storage
from oram.trace import TraceBackend

KEY = bytes(32)
SMALL: dict[str, Any] = {"key": KEY, "capacity": 64, "block_size": 64, "scheme": "path"}


def copy(backend: MemoryBackend) -> MemoryBackend:
    """What the disk holds, somewhere else."""
    other = MemoryBackend()
    for region, shape in backend.regions().items():
        other.allocate(region, shape)
        mine, yours = other.buffer(region), backend.buffer(region)
        mine.data[:], mine.present[:] = yours.data, yours.present
    other.state_file().commit(list(backend.state_file().scan(b"")))
    return other


def salt_key(generation: int) -> bytes:
    return b"g" + struct.pack(">IQ", 1, generation)


# --- an adversary who writes the disk


@pytest.fixture
def opened_often() -> MemoryBackend:
    backend = MemoryBackend()
    oram.create(backend, **SMALL, tree_top=0, durability="process").close()
    for i in range(6):
        with oram.open(backend, key=KEY, durability="process") as store:
            store.put(b"key", b"%d" % i)
    return backend


@pytest.mark.parametrize("where", [1, (1 << 31) - 3])
def test_a_planted_salt_is_ignored(opened_often: MemoryBackend, where: int) -> None:
    """It may also be one whose commit raised and was durable all the same."""
    file = opened_often.state_file()
    salts = {int.from_bytes(key[5:], "big"): salt for key, salt in file.scan(b"g")}
    file.commit([(salt_key(max(salts) + 1 if where == 1 else where), salts[max(salts)])])
    for i in range(3):
        with oram.open(opened_often, key=KEY, durability="process") as store:
            assert store[b"key"] == (b"new%d" % (i - 1) if i else b"5")
            store.put(b"key", b"new%d" % i)


@pytest.mark.parametrize("what", ["another's", "swapped", "removed"])
def test_salts_are_bound_to_their_generations(opened_often: MemoryBackend, what: str) -> None:
    attacked = copy(opened_often)
    file = attacked.state_file()
    salts = {int.from_bytes(key[5:], "big"): salt for key, salt in file.scan(b"g")}
    changes = {
        "another's": [(salt_key(3), salts[2])],
        "swapped": [(salt_key(2), salts[3]), (salt_key(3), salts[2])],
        "removed": [],
    }[what]
    file.commit(changes, [salt_key(2)] if what == "removed" else [])
    with pytest.raises(IntegrityError):
        oram.open(attacked, key=KEY, durability="process")


def test_an_entry_of_a_commit_that_never_took_effect_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages may be on the disk: LMDB writes them before the page that makes them count."""
    last: dict[str, Any] = {}
    commit = faults.FaultStateFile.commit

    def spy(self: Any, puts: Any, deletes: Any = (), *, writes: Any = ()) -> None:
        last["puts"] = [(bytes(key), bytes(value)) for key, value in puts if bytes(key)[:1] == b"p"]
        last["writes"] = [(w.region, w.indices.copy(), w.data.copy()) for w in writes if w.region == "slots.1"]
        commit(self, puts, deletes, writes=writes)

    monkeypatch.setattr(faults.FaultStateFile, "commit", spy)
    storage = Storage()
    store = oram.create(storage.connect(), **{**SMALL, "capacity": 1024}, durability="sync")
    for i in range(40):
        store.put(b"k%d" % i, b"old")
    backend = storage.connect()
    store = oram.open(backend, key=KEY, durability="sync")
    backend.faults.arm(backend_steps := 3)
    with pytest.raises(Crash):
        while True:
            store.put(b"k7", b"never committed")
            backend.faults.arm(backend_steps)
    lost = dict(last)
    assert lost["puts"]
    with oram.open(storage.connect(), key=KEY, durability="sync") as again:
        for i in range(8, 20):
            again.put(b"k%d" % i, b"new")
    file = storage.slots.state_file()
    assert file is not None
    file.commit(lost["puts"])
    for region, indices, data in lost["writes"]:
        storage.slots.write(region, indices, data)
    with pytest.raises(IntegrityError):
        oram.open(storage.connect(), key=KEY, durability="sync").verify()


def test_an_old_write_back_is_not_written_again() -> None:
    storage = Storage(apart=True, atomic=False)
    with oram.create(storage.connect(), **SMALL, tree_top=0, durability="sync") as store:
        store.put(b"key", b"1")
    storage._atomic = True  # the backend learnt transactions
    with oram.open(storage.connect(), key=KEY, durability="sync") as store:
        store.put(b"key", b"2")
    with oram.open(storage.connect(), key=KEY, durability="sync") as store:
        assert store[b"key"] == b"2"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1, "kdf": {}, "scheme": "\\u001b]0;x"}', "[]"])
def test_a_hostile_header_is_damage(text: str) -> None:
    backend = MemoryBackend()
    oram.create(backend, **SMALL).close()
    body = b"ORAM\x00\x01\r\n" + text.encode()
    backend.state_file().commit([(b"header", struct.pack("<I", len(body)) + body + bytes(60))])
    with pytest.raises(IntegrityError):
        oram.info(backend)


def test_an_incarnation_that_is_made_twice_begins_elsewhere() -> None:
    backend = MemoryBackend()
    with oram.create(backend, **SMALL, durability="process") as store:
        store.put(b"key", b"1")
    lives = []
    for _ in range(2):
        with oram.open(copy(backend), key=KEY, durability="process") as store:
            store.clear()
            lives.append(store._engine.scheme.arrays()[0].copy())
    assert not np.array_equal(lives[0], lives[1])


# --- what the server learns


@pytest.mark.parametrize("used", [2, 7])
def test_a_load_that_does_not_fit_costs_what_one_that_fits_does(used: int) -> None:
    views = []
    for fits in (True, False):
        trace = TraceBackend(MemoryBackend())
        items = [(b"%d" % i, b"") for i in range(used)]
        store = oram.create(trace, key=KEY, capacity=8, block_size=64, scheme="path", tree_top=0, items=items)
        trace.clear()
        if fits:
            store.load(items[:1] * (9 - used))
        else:
            with pytest.raises(CapacityError):
                store.load([(b"new%d" % i, b"") for i in range(9 - used)])
        assert len(store) == used
        views.append([(e.op, e.region, e.indices, e.slot_size) for e in trace.events])
    assert views[0] == views[1]


@pytest.mark.parametrize("compare", [
    lambda view: view >= {(b"1", b"a"), (b"none", b"")},
    lambda view: view.isdisjoint({(b"1", b"a")}),
    lambda view: view == {(b"1", b"a")},
    lambda view: {(b"9", b"")} & view,
    lambda view: view - {(b"1", b"a")},
])  # fmt: skip
def test_a_view_never_stops_early(compare: Callable[[Any], object]) -> None:
    trace = TraceBackend(MemoryBackend())
    store = oram.create(trace, **SMALL, tree_top=0, items=[(b"%d" % i, b"a") for i in range(9)])
    trace.clear()
    store.verify()
    whole = [(e.op, e.indices) for e in trace.events]
    trace.clear()
    compare(store.items())
    assert [(e.op, e.indices) for e in trace.events] == whole


# --- interrupts, and operations within operations


def test_a_visit_cannot_use_the_store() -> None:
    with oram.create("memory:", **SMALL, items=[(b"%d" % i, b"a") for i in range(9)]) as store:
        with pytest.raises(HandleError):
            store.scan(lambda key, _: store.delete(key))
        assert len(dict(store.items())) == 9


def test_a_signal_handler_cannot_use_the_store_it_interrupts(tmp_path: Path) -> None:
    store = oram.create(LMDBBackend(tmp_path, sync=False), **SMALL, durability="process")
    done: list[bytes] = []

    def handler(*_: object) -> None:
        try:
            store.put(b"handler", b"%d" % len(done))
            done.append(b"%d" % len(done))
        except HandleError:
            pass

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for i in range(600):
            store.put(b"%d" % (i % 20), b"%d" % i)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    expected = {b"%d" % (i % 20): b"%d" % i for i in range(600)}
    if done:
        expected[b"handler"] = done[-1]
    assert dict(store.items()) == expected


def test_interrupts_at_any_instant_leave_the_gate_open(tmp_path: Path) -> None:
    store = oram.create(LMDBBackend(tmp_path, sync=False), **SMALL, durability="process")
    store.put(b"key", b"1")

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    interrupted = 0
    try:
        while interrupted < 300:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005 * (interrupted % 17 + 1))
                while True:
                    b"key" in store  # noqa: B015 - takes the gate, and nothing else
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert store[b"key"] == b"1"
    thread_saw: list[bytes] = []
    thread = threading.Thread(target=lambda: thread_saw.append(store[b"key"]), daemon=True)
    thread.start()
    thread.join(20)
    assert thread_saw == [b"1"]
    store.close()


@pytest.mark.parametrize("ahead", ["accesses", "a session"])
def test_a_slate_ahead_of_the_rest_is_ignored(tmp_path: Path, ahead: str) -> None:
    """A power loss under "process" may keep the one and lose the other."""
    place = tmp_path / "store"
    with oram.create(f"lmdb:{place}", **SMALL, durability="process") as store:
        store.put(b"key", b"1")
        store.flush()
        old = (place / "data.mdb").read_bytes()
        for _ in range(3):
            store.put(b"key", b"2")
    if ahead == "a session":
        with oram.open(f"lmdb:{place}", key=KEY, durability="process") as store:
            store.put(b"key", b"3")
    (place / "data.mdb").write_bytes(old)
    with oram.open(f"lmdb:{place}", key=KEY, durability="process") as store:
        assert store[b"key"] == b"1"


def test_the_slate_of_a_store_that_is_gone_is_gone(tmp_path: Path) -> None:
    place = tmp_path / "store"
    with oram.create(f"lmdb:{place}", **SMALL, durability="process") as store:
        store.put(b"key", b"1")
    (place / "data.mdb").unlink()
    with oram.create(f"lmdb:{place}", **SMALL, durability="process") as store:
        store.put(b"key", b"2")
    with oram.open(f"lmdb:{place}", key=KEY) as store:
        assert store[b"key"] == b"2"


@pytest.mark.parametrize("operation", ["put", "delete", "put_many"])
def test_an_interrupt_right_after_the_kernels_call(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = oram.create("memory:", **SMALL)
    store.put(b"old", b"1")
    scheme = store._engine.scheme
    access = scheme.access_in_place

    def interrupted(*args: Any) -> None:
        access(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(scheme, "access_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        {
            "put": lambda: store.put(b"new", b"2"),
            "delete": lambda: store.delete(b"old"),
            "put_many": lambda: store.put_many({b"new": b"2", b"old": b"3"}),
        }[operation]()
    monkeypatch.setattr(scheme, "access_in_place", access)
    after = {"put": {b"old": b"1", b"new": b"2"}, "delete": {}, "put_many": {b"old": b"3", b"new": b"2"}}[operation]
    if kernels.active().name == "native":  # the call is whole, so the operation is finished
        assert dict(store.items()) == after
        store.rekey(key=KEY)
        assert dict(store.items()) == after
    else:
        with pytest.raises(StoreClosedError):
            store.get(b"old")


@pytest.mark.parametrize("when", ["before the mark", "after the mark", "after the checkpoint"])
def test_an_interrupt_around_the_mark_loses_no_orderly_close(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend()
    with oram.create(backend, **SMALL) as store:
        store.put(b"key", b"1")
    store = oram.open(backend, key=KEY)
    name = "checkpoint" if when == "after the checkpoint" else "mark"
    call = getattr(store._engine.journal, name)

    def interrupted(*args: Any, **options: Any) -> None:
        if not when.startswith("before"):
            call(*args, **options)
        raise KeyboardInterrupt

    if name == "checkpoint":
        store.put(b"key", b"2")
    with monkeypatch.context() as patch:
        patch.setattr(store._engine.journal, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.flush() if name == "checkpoint" else store.put(b"key", b"2")
    store.put(b"key", b"3")
    assert store._engine.journal.meta.dirty
    store.close()
    with oram.open(backend, key=KEY) as again:
        assert again[b"key"] == b"3"


# --- forks and failing ends


def test_a_child_of_a_fork_writes_nothing() -> None:
    backend = MemoryBackend()
    store = oram.create(backend, **SMALL)
    store.put(b"key", b"1")
    before = backend.buffer("clock.1").data.copy()
    pid = os.fork()
    if pid == 0:
        try:
            store.get(b"key")
        except ForkedStoreError:
            store.close()
            same = np.array_equal(backend.buffer("clock.1").data, before)
            os._exit(0 if same else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert store[b"key"] == b"1"


def test_a_close_that_fails_still_gives_the_handle_up(monkeypatch: pytest.MonkeyPatch) -> None:
    store = oram.create("memory:", **SMALL)
    store.put(b"key", b"1")
    monkeypatch.setattr(store._engine, "flush", lambda: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        store.close()
    with pytest.raises(StoreClosedError):
        store.get(b"key")
