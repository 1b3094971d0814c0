"""A failover that takes acknowledged writes back: repaired from the journal before anything else is sent, or RollbackError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import oram
from oram.backends import MemoryBackend
from oram.engine import KEPT, Engine
from oram.errors import BackendReadOnlyError, BackendUnavailableError, IntegrityError, PoisonedError, RollbackError
from oram.store import ObliviousStore
from oram.testing.remote import ReplicatedBackend
from oram.testing.worlds import PAIRS, RECORDS, observe, same
from oram.trace import TraceBackend

KEY = bytes(32)
LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=2), "tree_top": 300},
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6), "tree_top": 0},
    "ring, metadata there": {"scheme": oram.RingParams(Z=3, A=1, S=1, metadata="server"), "tree_top": 0},
    "linear": {"scheme": "linear"},
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


class Life:
    """A store, and what it must hold."""

    def __init__(self, layout: str, state: Path, durability: str = "process") -> None:
        self.server, self.state, self.model = ReplicatedBackend(MemoryBackend()), state, dict[bytes, bytes]()
        self.trace = TraceBackend(self.server)
        self.durability = durability
        options = {"key": KEY, "capacity": 30, "block_size": 40, "durability": durability}
        self.store = oram.create(self.trace, state=state, **{**options, **LAYOUTS[layout]})
        for i in range(9):
            self.put(i)
        self.server.replicate()
        self.server.lagging = True

    def put(self, i: int, value: bytes = b"old") -> None:
        self.store[b"%d" % (i % 12)] = value
        self.model[b"%d" % (i % 12)] = value

    def work(self, first: int, n: int = 4) -> None:
        """Changes, each acknowledged, and reads that must be right."""
        for i in range(first, first + n):
            self.put(i, b"%d" % i)
            assert self.store.get(b"%d" % ((i + 5) % 12)) == self.model.get(b"%d" % ((i + 5) % 12))

    def check(self) -> None:
        """All of it, by accesses and by a scan; and once more after a clean end."""
        assert {key: self.store.get(key) for key in self.model} == self.model
        assert dict(self.store.items()) == self.model
        self.store.close()
        self.open()
        assert dict(self.store.items()) == self.model
        self.store.verify()
        self.store.close()

    def open(self) -> None:
        self.store = oram.open(self.trace, key=KEY, state=self.state, durability=self.durability)

    def abandon(self) -> None:
        """The end of the client's process."""
        self.store._engine.retire()
        self.store._site.release()


@pytest.fixture
def states(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(i) for i in count())


@each_layout
def test_repaired(layout: str, states: Iterator[Path]) -> None:
    """At every call of the next accesses, before it and after it took effect, without any number of the latest writes."""
    calls = 6 if layout == "ring, metadata there" else 4
    for late in (False, True):
        for at in range(calls):
            for lost in range(0, 10, 3 if at else 1):
                life = Life(layout, next(states))
                life.work(20)  # eight writes that the replica has not
                life.server.fail_over(lost, at=at, late=late)
                life.work(40, 3)
                life.check()


def test_repaired_where_everything_is_synced(states: Iterator[Path]) -> None:
    for lost in (1, 5):
        life = Life("path", next(states), "sync")
        life.work(20)
        life.server.fail_over(lost, late=lost == 5)
        life.work(40, 1)
        life.check()


@each_layout
def test_repaired_when_it_comes_twice(layout: str, states: Iterator[Path]) -> None:
    """The second one comes in the middle of the repair of the first."""
    for at in range(1, 8):
        life = Life(layout, next(states))
        life.work(20)
        life.server.fail_over(6, at=0)
        life.server.fail_over(5, at=at, late=bool(at % 2))
        life.work(40, 3)
        life.check()


@each_layout
def test_repaired_by_the_next_process(layout: str, states: Iterator[Path]) -> None:
    """The client dies, the server fails over, in this order and with any number lost, then the store is opened; and again in the middle of that."""
    for lost in range(10):
        for again in (None, *range(lost % 2, 7, 2)):
            life = Life(layout, next(states))
            life.work(20)
            life.abandon()
            life.server.fail_over(lost)
            if again is not None:
                life.server.fail_over(3, at=again + 1, late=bool(again % 2))
            life.open()
            life.work(40, 2)
            life.check()


@each_layout
def test_what_the_journal_has_not_kept_is_a_rollback(layout: str, states: Iterator[Path]) -> None:
    life = Life(layout, next(states))
    life.server.lagging = False
    life.work(20)
    stale = [list(undo) for undo in life.server._undo]
    life.server.replicate()  # so says the server
    life.work(30, 1)
    life.server._undo[:0] = stale
    life.server.fail_over(len(life.server._undo))
    life.trace.clear()
    with pytest.raises(RollbackError) as caught:
        life.store[b"secret"] = b"secret"
    assert "secret" not in str(caught.value)
    assert [event.op for event in life.trace.events if event.trip] == ["read"]  # the clock, and nothing was written
    with pytest.raises(PoisonedError):
        life.store.get(b"1")
    life.abandon()
    with pytest.raises(RollbackError):
        life.open()


def test_an_older_copy_of_the_client_state_is_still_refused(tmp_path: Path) -> None:
    import shutil

    life = Life("path", tmp_path / "state")
    life.work(20)
    life.store.close()
    shutil.copytree(tmp_path / "state", tmp_path / "older")
    life.open()
    life.work(30)
    life.store.close()
    life.state = tmp_path / "older"
    with pytest.raises(oram.errors.StaleStateError):
        life.open()


def test_no_more_write_backs_are_kept_than_there_have_to_be(tmp_path: Path) -> None:
    life = Life("path", tmp_path / "state")

    def kept() -> int:
        return len(list(life.store._engine.journal.file.scan(b"w")))

    life.work(20, 10)
    assert kept() == life.server.at_risk + 1 == 21
    life.server.lagging = False
    for i in range(30):
        life.server.replicate()
        life.work(40 + i, 1)
    assert kept() == 21
    assert sorted(life.store._engine.journal.write_backs())[-3:] == [87, 88, 89]


def test_replicas_that_do_not_keep_up(tmp_path: Path) -> None:
    """A typed error before the access, of which nothing happens; and the store goes on when they do."""
    life = Life("path", tmp_path / "state")
    i = 0
    with pytest.raises(BackendReadOnlyError):
        for i in range(2 * KEPT):
            life.put(i, b"%d" % i)
    assert KEPT <= i <= KEPT + 1
    life.trace.clear()
    with pytest.raises(BackendReadOnlyError):
        life.store.get(b"1")
    assert life.trace.events == []
    life.server.lagging = False
    life.work(200)
    life.check()


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "linear"])
@pytest.mark.parametrize("lost", [1, 2, 5])
def test_without_a_log(layout: str, lost: int, states: Iterator[Path]) -> None:
    """Nothing is repaired. A failover that lost nothing is no trouble, any other a RollbackError at the next call, before anything is written."""
    for at in range(3):
        for late in (False, True):
            life = Life(layout, next(states), "none")
            life.work(20)
            life.server.fail_over(0, late=late)
            life.work(30, 2)
            life.server.fail_over(lost, at=at, late=late)
            try:
                life.work(40)
            except RollbackError:
                life.trace.clear()
                with pytest.raises(PoisonedError):
                    life.store.get(b"1")
                life.store.close()
                assert life.trace.events == []
            else:
                assert late  # the call that was interrupted is all that was lost, and was made again
                assert lost == 1
                life.server.lagging = False  # a clean end waits for the replica
                life.check()


@pytest.mark.parametrize("lost", [1, 2])
def test_a_load_that_a_failover_interrupts(tmp_path: Path, lost: int) -> None:
    """All or nothing: the old content stays. Where nothing is lost but what the interrupted call sends again, the load goes on."""
    life = Life("path", tmp_path / "state")
    life.server.lagging = False
    life.server.replicate()
    calls = life.server.calls
    life.store.load({b"new": b"1"})
    whole = life.server.calls - calls
    life.model[b"new"] = b"1"
    failed = 0
    for at in range(whole):
        life.server.fail_over(lost, at=at, late=True)
        try:
            life.store.load({b"new": b"%d" % at})
        except BackendUnavailableError:
            failed += 1
            life.abandon()
            life.open()
        else:
            life.model[b"new"] = b"%d" % at
        life.server._plan.clear()
        assert dict(life.store.items()) == life.model
        life.work(20, 1)
        life.server.replicate()
    assert bool(failed) == (lost == 2)
    life.check()


@pytest.mark.parametrize("layout", ["path", "ring"])
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not pair.bulk][:9], ids=lambda pair: str(pair.name))
def test_two_worlds(layout: str, pair: Any, states: Iterator[Path]) -> None:
    """What the server sees of a repair is the same whatever was asked."""

    def make() -> tuple[ObliviousStore, TraceBackend]:
        server = ReplicatedBackend(MemoryBackend())
        trace = TraceBackend(server)
        place = {"key": KEY, "capacity": RECORDS, "block_size": 48, "state": next(states), "durability": "process"}
        store = oram.create(trace, **{**place, **LAYOUTS[layout]})
        server.replicate()
        for at in (7, 20, 45):
            server.fail_over(5, at=at, late=at == 20)
        return store, trace

    left, right = observe(make, pair.left, 1), observe(make, pair.right, 1)
    assert same(left, right)
    clocks = [event for event in left.events if event.op == "read" and event.region == "clock.1"]
    assert len(clocks) == 3


def _nothing(engine: Engine, part: int) -> None:
    """Nobody looks."""


def _only_the_clock(engine: Engine, part: int) -> None:
    """Says that all is there."""
    engine.backend.write_all([engine.tick(engine._reached or 0)])


def _only_the_last(engine: Engine, part: int) -> None:
    """Writes the latest again, whose clock hides the gap before it."""
    engine._write_again(dict([max(engine.journal.write_backs().items())]))


@pytest.mark.parametrize(
    "layout", [layout for layout in LAYOUTS if layout != "linear"]
)  # which writes all of it anyway
@pytest.mark.parametrize("careless", [_nothing, _only_the_clock, _only_the_last])
def test_a_repair_that_leaves_a_gap_is_rejected(
    layout: str, careless: Callable[[Engine, int], None], states: Iterator[Path]
) -> None:
    """The controls of ``test_repaired``."""
    found = 0
    for lost in range(2, 9):
        life = Life(layout, next(states))
        life.work(20)
        with mock.patch.object(Engine, "_repair", careless):
            life.store._engine.watch()
            life.server.fail_over(lost)
            try:
                life.work(40, 3)
                life.check()
            except (IntegrityError, AssertionError):
                found += 1
    assert found == 7
