"""Old copies: of the slots beside newer client state, and of the client state beside newer slots."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import oram
from oram.backends import LMDBBackend
from oram.errors import IntegrityError, RollbackError, StaleStateError
from oram.testing.faults import Storage
from oram.testing.model import check

from .places import KEY, SCHEMES, filled


@dataclass
class Moment:
    """Copies of both parts of a closed store, and what it held."""

    slots: Path
    state: Path
    model: dict[bytes, bytes]


class History:
    """A store with its state apart, and copies of it at several times."""

    def __init__(self, path: Path, scheme: str) -> None:
        self.path, self.moments = path, []  # type: ignore[var-annotated]
        self.slots, self.state = path / "slots", path / "state"
        filled(f"lmdb:{self.slots}", scheme, state=self.state).close()

    def open(self) -> oram.ObliviousStore:
        return oram.open(f"lmdb:{self.slots}", key=KEY, state=self.state, durability="process")

    def keep(self) -> Moment:
        with self.open() as store:
            model = dict(store.items())
        at = self.path / f"moment {len(self.moments)}"
        shutil.copytree(self.slots, at / "slots")
        shutil.copytree(self.state, at / "state")
        moment = Moment(at / "slots", at / "state", model)
        self.moments.append(moment)
        return moment

    def place(self, slots: Moment, state: Moment) -> None:
        for source, target in ((slots.slots, self.slots), (state.state, self.state)):
            shutil.rmtree(target)
            shutil.copytree(source, target)

    def work(self, accesses: int) -> None:
        with self.open() as store:
            for i in range(accesses):
                store[b"k%d" % i] = b"new"


@pytest.fixture
def history(tmp_path: Path, scheme: str) -> History:
    return History(tmp_path, scheme)


pytestmark = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.mark.parametrize("accesses", [2, 10])
def test_old_slots(history: History, accesses: int) -> None:
    old = history.keep()
    history.work(accesses)
    new = history.keep()
    history.place(old, new)
    for _ in range(2):
        with pytest.raises(RollbackError):
            history.open()
    history.place(new, new)
    with history.open() as store:
        check(store, new.model, by_access=True)


@pytest.mark.parametrize("accesses", [1, 2, 10])
def test_old_state(history: History, accesses: int) -> None:
    """Nothing is harmed by the attempt: with the right client state all is there."""
    old = history.keep()
    history.work(accesses)
    new = history.keep()
    history.place(new, old)
    for _ in range(2):
        with pytest.raises(StaleStateError):
            history.open()
    shutil.rmtree(history.state)
    shutil.copytree(new.state, history.state)
    with history.open() as store:
        check(store, new.model, by_access=True)


def test_slots_that_miss_the_last_write_only(history: History) -> None:
    """As after a crash before the write: the access is done again, on the slots it was done on."""
    old = history.keep()
    with history.open() as store:
        store[b"k1"] = b"new"
    new = history.keep()
    # what a crash leaves has no later generation in it, but what the log says is the same
    history.place(old, new)
    with history.open() as store:
        check(store, new.model, by_access=True)


def test_old_state_from_before_a_rekey(history: History) -> None:
    old = history.keep()
    with history.open() as store:
        store.rekey(key=KEY)
        store[b"k1"] = b"new"
    new = history.keep()
    history.place(new, old)
    for _ in range(2):
        with pytest.raises(StaleStateError):
            history.open()
    shutil.rmtree(history.state)
    shutil.copytree(new.state, history.state)
    with history.open() as store:
        check(store, new.model, by_access=True)


def test_old_slots_from_before_a_rekey(history: History) -> None:
    old = history.keep()
    with history.open() as store:
        store.rekey(key=KEY)
    new = history.keep()
    history.place(old, new)
    with pytest.raises(RollbackError):
        history.open()


def test_slots_and_state_of_different_stores(history: History, tmp_path: Path, scheme: str) -> None:
    mine = history.keep()
    other = History(tmp_path / "other", scheme)
    theirs = other.keep()
    history.place(theirs, mine)
    with pytest.raises(IntegrityError):
        history.open()
    history.place(mine, theirs)
    with pytest.raises(IntegrityError):
        history.open()


def test_single_old_slots_under_a_new_clock(history: History) -> None:
    old = history.keep()
    history.work(20)
    new = history.keep()
    with LMDBBackend(old.slots, sync=False) as before:
        (region,) = (name for name in before.regions() if name.startswith("slots"))
        every = np.arange(before.regions()[region].slots)
        olds = before.read(region, every).data
    for slot in every[:: max(1, every.size // 40)].tolist():
        history.place(new, new)
        with LMDBBackend(history.slots, sync=False) as backend:
            if np.array_equal(backend.read(region, every[slot : slot + 1]).data[0], olds[slot]):
                continue
            backend.write(region, every[slot : slot + 1], olds[slot : slot + 1].copy())
        with history.open() as store, pytest.raises(IntegrityError):
            store.verify()


def test_old_state_where_writes_can_be_torn(scheme: str) -> None:
    """Its last write-back is not put over newer slots."""
    storage = Storage(apart=True, atomic=False)
    store = filled(storage.connect(), scheme)
    store[b"k1"] = b"with a write-back"
    old = list(storage.state.scan(b""))
    assert any(key[:1] == b"w" for key, _ in old)
    for i in range(5):
        store[b"k%d" % i] = b"new"
    model = dict(store.items())
    new = list(storage.state.scan(b""))

    def state(entries: list[tuple[bytes, bytes]]) -> None:
        storage.state.commit(entries, [key for key, _ in storage.state.scan(b"")])

    state(old)
    for _ in range(2):
        with pytest.raises(StaleStateError):
            oram.open(storage.connect(), key=KEY, durability="process")
    state(new)
    check(oram.open(storage.connect(), key=KEY, durability="process"), model, by_access=True)
