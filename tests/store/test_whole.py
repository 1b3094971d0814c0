"""Load, clear, rekey, backup and restore."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import oram
from oram.backends import MemoryBackend
from oram.errors import (
    BackupError,
    CapacityError,
    OramError,
    ParameterError,
    StoreExistsError,
    StoreNotFoundError,
    WrongKeyError,
)
from oram.store import ObliviousStore
from oram.testing.model import check

from .places import KEY, SCHEMES, accesses, small, traced

START = {b"k%d" % i: b"v%d" % i for i in range(6)}
NEW_KEY = bytes(32)


@pytest.fixture(params=["process", "none"])
def durability(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def filled(backend: Any = None, **options: Any) -> ObliviousStore:
    store = small(backend, **options)
    for key, value in START.items():
        store[key] = value
    return store


def test_load(scheme: str, durability: str) -> None:
    backend = MemoryBackend()
    store = filled(backend, scheme=scheme, durability=durability)
    told: list[int] = []
    store.load([(b"k1", b"x"), (b"new", b"y"), (b"k1", b"z")], progress=told.append)
    model = {**START, b"k1": b"z", b"new": b"y"}
    check(store, model, by_access=True)
    assert told
    store.load({})
    store.load(pair for pair in [(b"k2", b"g")])
    model[b"k2"] = b"g"
    check(store, model, by_access=True)
    sequence = store.stats().accesses
    with pytest.raises(CapacityError):
        store.load({b"x%d" % i: b"" for i in range(3)})
    with pytest.raises(OramError):
        store.load([(b"fine", b""), (b"bad", "str")])  # type: ignore[list-item]
    check(store, model)
    store[b"k2"] = model[b"k2"] = b"on"
    assert store.stats().accesses > sequence
    store.close()
    with oram.open(backend, key=KEY, durability=durability) as store:
        check(store, model, by_access=True)


def test_clear(scheme: str, durability: str) -> None:
    backend = MemoryBackend()
    store = filled(backend, scheme=scheme, durability=durability)
    store.clear()
    check(store, {})
    assert store.get(b"k1") is None
    store[b"k1"] = b"again"
    store.clear()
    store[b"k1"] = b"and again"
    check(store, {b"k1": b"and again"}, by_access=True)
    store.close()
    with oram.open(backend, key=KEY, durability=durability) as store:
        check(store, {b"k1": b"and again"}, by_access=True)


def test_rekey(scheme: str, durability: str) -> None:
    backend = MemoryBackend()
    store = filled(backend, scheme=scheme, durability=durability)
    old_secret, old_info = store._header.secret, store.info()
    store.rekey(key=NEW_KEY)
    assert store._header.secret != old_secret
    assert store.info() == old_info
    check(store, START, by_access=True)
    store[b"k1"] = b"after"
    model = {**START, b"k1": b"after"}
    for bad in ({}, {"key": b"short"}, {"key": KEY, "passphrase": "x"}):
        with pytest.raises(ParameterError):
            store.rekey(**bad)
    check(store, model)
    store.close()
    with pytest.raises(WrongKeyError):
        oram.open(backend, key=KEY)
    with oram.open(backend, key=NEW_KEY, durability=durability) as store:
        check(store, model, by_access=True)


def test_rekey_and_load_read_and_write_every_slot_once(scheme: str) -> None:
    store, trace = traced(scheme=scheme)
    store.update(START)
    acts: list[Callable[[], object]] = [
        lambda: store.rekey(key=KEY),
        lambda: store.load({b"k1": b"x"}),
        lambda: store.load({}),
    ]
    for act in acts:
        trace.clear()
        act()
        (region,) = (region for region in trace.regions() if region.startswith("slots"))
        slots = list(range(trace.regions()[region].slots))
        assert [slot for event in accesses(trace) for slot in event.indices] == slots
        written = [e for e in trace.events if e.op == "write" and e.region.startswith("slots")]
        assert [slot for event in written for slot in event.indices] == slots


def test_new_positions_after_rekey() -> None:
    store = filled(capacity=200, scheme="path")
    before = store._engine.scheme.state.position.copy()  # type: ignore[attr-defined]
    store.rekey(key=KEY)
    after = store._engine.scheme.state.position  # type: ignore[attr-defined]
    assert (before == after).sum() < 50  # of 200, when 1 or 2 in 64 are by chance: p < 1e-40


def test_backup_and_restore(tmp_path: Path, scheme: str, durability: str) -> None:
    store = filled(scheme=scheme, durability=durability)
    store.backup(tmp_path / "backup")
    store[b"later"] = b"x"
    with pytest.raises(StoreExistsError):
        store.backup(tmp_path / "backup")
    store.rekey(key=NEW_KEY)
    backup = f"lmdb:{tmp_path / 'backup'}"
    with pytest.raises(BackupError):
        oram.open(backup, key=KEY)
    assert oram.info(backup)["store"] == store.info()["store"]
    for wrong in ({"key": NEW_KEY}, {"passphrase": "x"}):
        with pytest.raises(WrongKeyError):
            oram.restore(backup, MemoryBackend(), **wrong)
    target = MemoryBackend()
    for _ in range(2):  # a backup can be restored more than once
        target = MemoryBackend()
        with oram.restore(backup, target, key=KEY, durability=durability) as restored:
            check(restored, START, by_access=True)
            assert restored.info()["store"] != store.info()["store"]
            restored[b"more"] = b"1"
        with oram.open(target, key=KEY, durability=durability) as restored:
            check(restored, {**START, b"more": b"1"}, by_access=True)
    with pytest.raises(StoreExistsError):
        oram.restore(backup, target, key=KEY)
    with pytest.raises(BackupError):
        oram.open(backup, key=KEY)
    check(store, {**START, b"later": b"x"}, by_access=True)


def test_restore_with_the_state_apart(tmp_path: Path) -> None:
    backend, target = MemoryBackend(), MemoryBackend()
    store = filled(backend, state=tmp_path / "state")
    store.backup(tmp_path / "backup")
    with oram.restore(f"lmdb:{tmp_path / 'backup'}", target, key=KEY, state=tmp_path / "restored") as restored:
        check(restored, START)
    with oram.open(target, key=KEY, state=tmp_path / "restored") as restored:
        check(restored, START, by_access=True)


def test_backup_of_blocks(tmp_path: Path) -> None:
    store = small(keyed=False)
    store.blocks.write_many(range(8), [b"%d" % i for i in range(8)])
    store.backup(tmp_path / "backup")
    with oram.restore(f"lmdb:{tmp_path / 'backup'}", MemoryBackend(), key=KEY) as restored:
        assert [restored.blocks.read(i)[:1] for i in range(8)] == [b"%d" % i for i in range(8)]


def test_clear_of_blocks() -> None:
    store = small(keyed=False)
    store.blocks.write(3, b"x")
    store.clear()
    assert not any(store.blocks.read(3))
    store.blocks.write(3, b"y")
    store.rekey(key=NEW_KEY)
    assert store.blocks.read(3)[:1] == b"y"


def test_restore_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        oram.restore(f"lmdb:{tmp_path / 'nothing'}", MemoryBackend(), key=KEY)
    with pytest.raises(StoreNotFoundError):
        oram.restore(MemoryBackend(), MemoryBackend(), key=KEY)


def test_restore_of_a_store_that_is_no_backup() -> None:
    """A store can be copied this way too, while it is closed."""
    backend, target = MemoryBackend(), MemoryBackend()
    filled(backend).close()
    with oram.restore(backend, target, key=KEY) as copied:
        check(copied, START)
    with oram.open(backend, key=KEY) as store:
        check(store, START, by_access=True)
