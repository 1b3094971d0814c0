"""Failovers and crashes together, each at every step, before a server that keeps a ledger: it never has a gap, and slots are read only where it is whole.

The ledger is the server's own view, so that what it accepts is also all that a repair shows: the very bytes that were taken back, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest

import oram
from oram.backends import MemoryBackend, SlotRead, Slots, SlotWrite
from oram.engine import Engine
from oram.errors import IntegrityError, PoisonedError, RollbackError, StoreClosedError
from oram.journal import Intent, _key
from oram.kernels.base import Requests
from oram.params import PathGeometry
from oram.store import ObliviousStore
from oram.testing.faults import Storage, crash
from oram.testing.remote import ReplicatedBackend
from oram.trace import Event, TraceBackend
from oram.types import I64

T = TypeVar("T")
KEY = bytes(32)
LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=2), "tree_top": 0},
    "path, large stash": {"scheme": oram.PathParams(Z=1), "tree_top": 300},
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=False), "tree_top": 0},
    "ring, metadata there": {"scheme": oram.RingParams(Z=3, A=1, S=1, metadata="server"), "tree_top": 0},
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)

Entry = tuple[tuple[str, bytes, bytes], ...]


class Gap(AssertionError):
    """The ledger does not allow it."""


class Ledger(ReplicatedBackend):
    """What was written in which order, and how much of it the server has.

    Gap where a write comes before one that the server lacks, or where slots are read while it lacks any. The clock by itself, which is written
    when a store is opened, is no entry.
    """

    def __init__(self) -> None:
        super().__init__(MemoryBackend())
        self.history: list[Entry] = []
        self.has = 0
        self._before: list[int] = []  # for each call that can be taken back
        self._looks = False

    def replicate(self) -> None:
        super().replicate()
        self._before.clear()

    def _lose(self, lost: int) -> None:
        for _ in range(min(lost, len(self._before))):
            self.has = self._before.pop()
        super()._lose(lost)

    def _note(self, writes: Sequence[SlotWrite]) -> None:
        super()._note(writes)
        if not writes:
            return
        self._before.append(self.has)
        if len(writes) == 1 and writes[0].region.startswith(("clock", "header")):
            return
        entry = tuple((w.region, w.indices.tobytes(), w.data.tobytes()) for w in writes)
        at = self.history.index(entry) if entry in self.history else len(self.history)
        if at > self.has:
            raise Gap("a write comes before one that the server lacks")
        if at == len(self.history):
            self.history.append(entry)
        self.has = at + 1

    def _made(self, call: Callable[[], T], writes: Sequence[SlotWrite] = ()) -> T:
        looks = self._looks

        def checked() -> T:
            if looks and self.has < len(self.history):
                raise Gap("slots are read where the server lacks some")
            return call()

        return super()._made(checked, writes)

    def read(self, region: str, indices: I64) -> Slots:
        self._looks = not region.startswith(("clock", "header"))
        return super().read(region, indices)

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        self._looks = False
        super().write_all(writes)

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        self._looks = True
        return super().exchange(writes, reads)


class Life:
    """A store before a ledger, of which a replica has the first part."""

    def __init__(self, layout: str, durability: str = "process") -> None:
        self.server = Ledger()
        self.trace = TraceBackend(self.server)
        self.storage = Storage(slots=self.trace, apart=True)
        self.durability, self.model = durability, dict[bytes, bytes]()
        self.backend = self.storage.connect()
        options = {"key": KEY, "capacity": 20, "block_size": 40, "durability": durability, **LAYOUTS[layout]}
        self.store = oram.create(self.backend, **options)
        self.work(0, 9)
        self.server.replicate()
        self.server.lagging = True

    def work(self, first: int, n: int) -> None:
        for i in range(first, first + n):
            self.store[b"%d" % (i % 12)] = self.model[b"%d" % (i % 12)] = b"%d" % i

    def connect(self) -> None:
        self.backend = self.storage.connect()

    def open(self) -> None:
        self.store = oram.open(self.backend, key=KEY, durability=self.durability)

    def whole(self, *models: dict[bytes, bytes]) -> None:
        assert dict(self.store.items()) in models
        self.store.verify()


@each_layout
def test_a_crash_and_a_failover_at_every_step(layout: str) -> None:
    """The failover comes first, at any call of the operation, and the process dies at any step after it; or only then, in the recovery."""
    steps = 0
    for durability in ("process", "sync"):
        for lost, call in ((4, 0), (2, 1), (9, 2)):
            for after in (False, True):
                at = 0
                while True:
                    life = Life(layout, durability)
                    life.work(20, 5)
                    before, then = dict(life.model), {**life.model, b"5": b"new"}
                    life.server.fail_over(lost, at=call, late=bool(at % 2))
                    crash(life.backend.faults, at, lambda life=life: life.store.put(b"5", b"new"), after=after)  # type: ignore[misc]
                    fired = life.backend.faults.fired
                    life.connect()
                    if at % 3 == 0:
                        life.server.fail_over(lost, at=at // 3)
                    life.open()
                    life.whole(before, then) if fired else life.whole(then)
                    life.model = dict(life.store.items())
                    life.work(40, 2)
                    life.whole(life.model)
                    life.store.close()
                    at += 1
                    if not fired:
                        break
                steps += at
    assert steps > 100


@each_layout
def test_a_crash_at_every_step_of_the_recovery_after_a_failover(layout: str) -> None:
    """And of the one after that."""
    for lost in (1, 3, 6):
        at = 0
        while True:
            life = Life(layout)
            life.work(20, 5)
            crash(life.backend.faults, 2, lambda life=life: life.store.put(b"5", b"new"))  # type: ignore[misc]
            life.server.fail_over(lost)
            for again in (at, at // 2):
                life.connect()
                crash(life.backend.faults, again, life.open, after=bool(at % 2))
                fired = life.backend.faults.fired
            life.connect()
            life.open()
            life.whole(life.model, {**life.model, b"5": b"new"})
            life.store.close()
            if not fired:
                break
            at += 1


@each_layout
def test_flush_scan_and_close(layout: str) -> None:
    """Where no access is there to be finished."""
    acts: list[Callable[[ObliviousStore], object]] = [
        lambda store: store.flush(),
        lambda store: dict(store.items()),
        lambda store: store.close(),
        lambda store: store.verify(),
    ]
    for act in acts:
        for call in range(4):
            for late in (False, True):
                life = Life(layout)
                life.work(20, 5)
                life.server.lagging = False
                life.server.fail_over(4, at=call, late=late)
                act(life.store)
                with suppress(StoreClosedError):
                    life.store.close()
                life.connect()
                life.open()
                life.whole(life.model)


@pytest.mark.parametrize("act", ["flush", "scan", "close", "get"])
def test_a_rollback_puts_the_handle_out_of_use_wherever_it_is_found(act: str) -> None:
    """Not only in an access: else the next call would write over it."""
    life = Life("path")
    life.work(20, 5)
    journal = life.store._engine.journal
    place = journal.write_backs()[life.store._engine.sequence - 2]  # one of those that the server is about to lack
    life.storage.state.commit([], [_key(b"w", journal.incarnation, place)])
    life.server.fail_over(9)
    written = len(life.server.history)
    acts: dict[str, Callable[[], object]] = {
        "flush": life.store.flush,
        "scan": lambda: dict(life.store.items()),
        "close": life.store.close,
        "get": lambda: life.store.get(b"1"),
    }
    with pytest.raises(RollbackError):
        acts[act]()
    if act != "close":
        with pytest.raises(PoisonedError):
            life.store.flush()
        with pytest.raises(PoisonedError):
            life.store.put(b"1", b"2")
        life.store.close()
    assert len(life.server.history) == written
    assert life.server.has < written - 2


def test_a_clock_that_this_client_never_wrote_is_refused() -> None:
    """Whatever the server shows after a failover."""
    life = Life("path")
    life.work(20, 5)
    engine = life.store._engine
    tick = engine.tick(engine.sequence + 1)
    life.server.fail_over(0)
    life.server._memory.write(tick.region, tick.indices, tick.data)
    with pytest.raises(oram.errors.StaleStateError):
        life.store.get(b"1")


def test_the_pool_grows_while_the_replica_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full checkpoint keeps the write-backs that are not safe, and does not wait for them."""
    monkeypatch.setattr(PathGeometry, "pool_size", property(lambda g: 2))
    for _ in range(20):
        life = Life("path, large stash")
        life.work(20, 2)
        pool, first = life.store._engine.growth, len(life.trace.events)
        life.store.put_many({b"%d" % i: b"many" for i in range(12)})
        life.model = {b"%d" % i: b"many" for i in range(12)}
        grown = life.store._engine.growth > pool
        assert len(life.trace.events) > first
        life.server.fail_over(9)
        life.work(60, 1)
        life.whole(life.model)
        if grown:
            return
    pytest.fail("it never grows")


# Controls: each of these is rejected by the ledger, or by the check that is named.


def _after_the_pending_write(engine: Engine) -> None:
    """Repairs once the interrupted call was made, whose clock hides what is missing."""
    backend, repair = engine.backend, engine._repair

    def later(part: int) -> None:
        delivered = engine._delivered

        def now() -> None:
            delivered()
            vars(engine).pop("_delivered", None)
            repair(part)

        engine._delivered = now  # type: ignore[method-assign]

    backend.on_reconnect(later)


def _newest_first(engine: Engine) -> None:
    def repair(part: int) -> None:
        for _, place in sorted(engine.journal.write_backs().items(), reverse=True):
            engine.backend.write_all(engine.journal.write_back(place))

    engine.backend.on_reconnect(repair)


def _sealed_anew(engine: Engine) -> None:
    """The same slots under other bytes: which of them are blocks of which access, nobody can tell, but the server sees another history."""

    def repair(part: int) -> None:
        for _, place in sorted(engine.journal.write_backs().items()):
            writes = engine.journal.write_back(place)
            engine.backend.write_all([SlotWrite(w.region, w.indices, w.data ^ np.uint8(1)) for w in writes])

    engine.backend.on_reconnect(repair)


@each_layout
@pytest.mark.parametrize("careless", [_after_the_pending_write, _newest_first, _sealed_anew])
def test_the_ledger_rejects(layout: str, careless: Callable[[Engine], None]) -> None:
    for lost in (2, 4):
        life = Life(layout)
        life.work(20, 5)
        careless(life.store._engine)
        life.server.fail_over(lost)
        with pytest.raises(Gap):
            life.work(40, 1)


def slot_reads(events: list[Event]) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (event.region, event.indices)
        for event in events
        if event.op == "read" and not event.region.startswith(("clock", "header"))
    ]


def read_again(layout: str, lost: int) -> bool:
    """Whether an access that a crash and a failover interrupted, after its first read, begins with that very read again."""
    life = Life(layout)
    life.work(20, 5)
    life.trace.clear()
    crash(life.backend.faults, 2, lambda: life.store.get(b"3"), after=True)  # intent, write, read
    assert life.backend.faults.steps[-1] == "read"
    interrupted = slot_reads(life.trace.events)
    assert len(interrupted) == 1
    life.server.fail_over(lost)
    life.connect()
    life.trace.clear()
    with suppress(IntegrityError):
        life.open()
    return slot_reads(life.trace.events)[:1] == interrupted


@each_layout
def test_the_interrupted_access_reads_the_very_same_slots(layout: str) -> None:
    assert all(read_again(layout, lost) for lost in range(7))


def _draws_anew(intent: Intent, requests: Requests) -> None:
    _fill(intent, requests)
    requests.ops[: requests.m] = 0
    rng = np.random.default_rng()
    requests.addresses[: requests.m] = rng.integers(0, 20, requests.m)
    requests.draws[: requests.m] = rng.integers(0, 1 << 32, requests.m, dtype=np.uint32)


_fill = Intent.fill


@pytest.mark.parametrize("layout", ["path", "path, large stash", "ring"])
def test_a_client_that_draws_anew_is_rejected(layout: str) -> None:
    """The control of ``test_the_interrupted_access_reads_the_very_same_slots``. Passes by chance in less than 1 of 10^6: 20 tries, each at most 1 of 2."""
    with mock.patch.object(Intent, "fill", _draws_anew):
        assert not all(read_again(layout, 3) for _ in range(20))
