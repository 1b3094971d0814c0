"""Crashes while a store is made, rekeyed, backed up or restored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import oram
import oram.site
from oram.backends import Backend
from oram.errors import StoreExistsError, StoreNotFoundError, WrongKeyError
from oram.store import ObliviousStore
from oram.testing.faults import Crash, Storage, crash

from .lives import KEY, PLACES, RINGS, SCHEMES, content, keyed, open_store

NEW_KEY = bytes(reversed(KEY))
ITEMS = {b"k%d" % i: b"v%d" % i for i in range(14)}


def opens(storage: Storage, key: bytes) -> ObliviousStore | None:
    try:
        return open_store(storage.connect(), key)
    except WrongKeyError:
        return None


def each_step(act: Callable[[int], bool]) -> None:
    """Do ``act`` with a crash at step 0, 1, 2, ... until it says that none happened any more."""
    for at in range(200):
        if act(at):
            return
    pytest.fail("it never ends")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", ["cached", "stash", "linear", "ring-server"])
def test_rekey(place: str, scheme: str) -> None:
    base = keyed(place, scheme)
    outcomes = []

    def act(at: int) -> bool:
        storage = base.storage.copy()
        storage.tear_in_parts(40 if scheme in RINGS else 1)
        store = open_store(backend := storage.connect())
        crash(backend.faults, at, lambda: store.rekey(key=NEW_KEY))
        alive = not backend.faults.dead
        key = NEW_KEY if opens(storage.copy(), NEW_KEY) else KEY
        outcomes.append(key == NEW_KEY)
        for again in range(30):
            backend = storage.connect()
            crash(backend.faults, again, partial(open_store, backend, key))
            if not backend.faults.dead:
                break
        assert opens(storage, KEY if key == NEW_KEY else NEW_KEY) is None, "both keys open it"
        store = open_store(storage.connect(), key)
        assert content(store) == base.content
        assert len([region for region in storage.slots.regions() if region.startswith("slots")]) == 1
        store[b"more"] = b"x"
        del store[b"more"]
        assert content(open_store(storage.connect(), key)) == base.content
        return alive

    each_step(act)
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("items", [None, ITEMS], ids=["empty", "items"])
def test_create(place: str, scheme: str, items: dict[bytes, bytes] | None) -> None:
    params, top = SCHEMES[scheme]

    def make(backend: Backend) -> ObliviousStore:
        return oram.create(
            backend, key=KEY, capacity=16, block_size=40, scheme=params, tree_top=top, items=items, durability="sync"
        )

    def act(at: int) -> bool:
        storage = Storage(**PLACES[place], part=40 if scheme in RINGS else 1)
        backend = storage.connect()
        crash(backend.faults, at, lambda: make(backend))
        alive = not backend.faults.dead
        try:
            store = open_store(storage.connect())
        except StoreNotFoundError:
            assert not alive
            store = make(storage.connect())
        assert content(store) == (items or {})
        assert content(open_store(storage.connect())) == (items or {})
        return alive

    each_step(act)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", ["cached", "stash", "linear", "ring", "ring-server"])
def test_backup_and_restore(place: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = keyed(place, scheme)
    source = base.storage.copy()
    store = open_store(source.connect())
    lives: list[Backend] = []
    monkeypatch.setattr(oram.site, "open_url", lambda url, **_: lives.pop())

    def act(at: int) -> bool:
        target = Storage()
        lives.append(backend := target.connect())
        backend.faults.arm(at)
        try:
            store.backup(Path("elsewhere"))
        except Crash:
            assert backend.faults.dead
        alive = not backend.faults.dead
        assert content(store) == base.content, "a failed backup hurt the store"
        if not alive:
            lives.append(target.connect())
            with suppress(StoreExistsError):  # it was done
                store.backup(Path("elsewhere"))
        check_restore(target)
        return alive

    def check_restore(backup: Storage) -> None:
        with pytest.raises(oram.errors.BackupError):
            oram.open(backup.connect(), key=KEY)
        restored = oram.restore(backup.connect(), Storage().connect(), key=KEY, durability="sync")
        assert content(restored) == base.content

    each_step(act)
    store[b"still"] = b"works"


@pytest.mark.parametrize("place", PLACES)
def test_restore_crashes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = keyed("joint", "stash")
    backup = Storage()
    monkeypatch.setattr(oram.site, "open_url", lambda url, **_: backup.connect())
    open_store(base.storage.copy().connect()).backup(Path("elsewhere"))

    def act(at: int) -> bool:
        target, source = Storage(**PLACES[place]), backup.copy()
        backend = target.connect()
        crash(backend.faults, at, lambda: oram.restore(source.connect(), backend, key=KEY, durability="sync"))
        alive = not backend.faults.dead
        try:
            store = open_store(target.connect())
        except StoreNotFoundError:
            assert not alive
            store = oram.restore(source.connect(), target.connect(), key=KEY, durability="sync")
        assert content(store) == base.content
        return alive

    each_step(act)

    def at_the_source(at: int) -> bool:
        source = backup.copy()
        backend = source.connect()
        crash(backend.faults, at, lambda: oram.restore(backend, Storage().connect(), key=KEY, durability="sync"))
        alive = not backend.faults.dead
        store = oram.restore(source.connect(), Storage().connect(), key=KEY, durability="sync")
        assert content(store) == base.content
        return alive

    each_step(at_the_source)
