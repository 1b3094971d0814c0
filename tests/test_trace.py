"""The trace: it records what the server sees, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from oram.backends import (
    Backend,
    Capability,
    LMDBBackend,
    LMDBStateFile,
    MemoryBackend,
    RegionShape,
    SlotRead,
    Slots,
    SlotWrite,
    StateFile,
)
from oram.errors import BackendError, StoreLockedError
from oram.testing.conformance import BackendConformance, StateFileConformance
from oram.trace import Event, TraceBackend
from oram.types import I64, U8

SHAPE = RegionShape(slots=10, slot_size=4)


class TestTracedMemory(BackendConformance):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with TraceBackend(MemoryBackend()) as backend:
            yield backend


class TestTracedMemoryKeepingData(BackendConformance):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with TraceBackend(MemoryBackend(), keep_data=True) as backend:
            yield backend


class TestTracedLMDB(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        with TraceBackend(LMDBBackend(tmp_path, sync=False)) as backend:
            yield backend

    def reopen(self, backend: Backend) -> Backend:
        path = cast(LMDBBackend, cast(TraceBackend, backend).inner).path
        backend.close()
        return TraceBackend(LMDBBackend(path, sync=False, create=False))


class TestTracedState(StateFileConformance):
    @pytest.fixture
    def state(self) -> Iterator[StateFile]:
        with TraceBackend(MemoryBackend()) as backend:
            state = backend.state_file()
            assert state is not None
            yield state

    def reopen(self, state: StateFile) -> StateFile | None:
        return None


def _slots(*indices: int) -> I64:
    return np.array(indices, dtype=np.int64)


def _data(count: int, fill: int = 1) -> U8:
    return np.full((count, SHAPE.slot_size), fill, dtype=np.uint8)


@pytest.fixture
def trace() -> TraceBackend:
    trace = TraceBackend(MemoryBackend(), keep_data=True)
    trace.allocate("tree", SHAPE)
    trace.allocate("clock", RegionShape(1, 2))
    trace.clear()
    return trace


def test_every_operation(trace: TraceBackend) -> None:
    trace.read("tree", _slots(3, 1, 3))
    trace.write("tree", _slots(5), _data(1))
    trace.write_all(
        (SlotWrite("tree", _slots(2, 1), _data(2)), SlotWrite("clock", _slots(0), np.ones((1, 2), dtype=np.uint8)))
    )
    trace.exchange((SlotWrite("tree", _slots(9), _data(1)),), SlotRead("tree", _slots(9, 8)))
    trace.read_xor("tree", np.array([[1, 2], [5, -1]], dtype=np.int64), _slots(4))
    trace.sync()
    trace.write_all(())
    trace.read("tree", _slots())
    trace.drop("clock")
    trace.allocate("new", SHAPE)
    assert trace.events == [
        Event("read", "tree", (3, 1, 3), 4, 0),
        Event("write", "tree", (5,), 4, 1),
        Event("write", "tree", (2, 1), 4, 2),
        Event("write", "clock", (0,), 2, 2),
        Event("write", "tree", (9,), 4, 3),
        Event("read", "tree", (9, 8), 4, 3),
        Event("xor", "tree", (1, 2), 4, 4),
        Event("xor", "tree", (5, -1), 4, 4),
        Event("read", "tree", (4,), 4, 4),
        Event("sync", "", (), 0, 5),
        Event("read", "tree", (), 4, 7),
        Event("drop", "clock", (), 0, 8),
        Event("allocate", "new", (), 4, 9),
    ]
    assert trace.round_trips == 10
    assert trace.bytes_read == (3 + 2) * 4 + (2 + 1) * 4
    assert trace.bytes_written == (1 + 2 + 1) * 4 + 2
    trips = trace.trips()
    assert [len(trip) for trip in trips] == [1, 1, 2, 2, 3, 1, 0, 1, 1, 1]
    assert [event for trip in trips for event in trip] == trace.events


def test_clear(trace: TraceBackend) -> None:
    trace.read("tree", _slots(3))
    state = trace.state_file()
    assert state is not None
    state.commit([(b"a", b"1")])
    trace.clear()
    assert (trace.events, trace.state_commits) == ([], [])
    assert (trace.round_trips, trace.bytes_read, trace.bytes_written) == (0, 0, 0)
    trace.read("tree", _slots(3))
    assert trace.events == [Event("read", "tree", (3,), 4, 0)]


def test_data_is_kept_as_it_was_and_makes_no_difference_to_equality(trace: TraceBackend) -> None:
    data = _data(2, 7)
    trace.write("tree", _slots(1, 2), data)
    data[:] = 0
    slots = trace.read("tree", _slots(2, 3))
    slots.data[:] = 0
    xored = trace.read_xor("tree", np.array([[1, 2, 1], [3, 3, 3]], dtype=np.int64), _slots(1)).folded
    assert xored is not None
    xored[:] = 0
    kept = [event.data for event in trace.events]
    assert [None if rows is None else rows.tolist() for rows in kept] == [
        [[7] * 4, [7] * 4],
        [[7] * 4, [0] * 4],
        [[7] * 4],
        [[0] * 4],
        [[7] * 4],
    ]
    assert trace.events[0] == Event("write", "tree", (1, 2), 4, 0)
    assert trace.events[0] != Event("write", "tree", (2, 1), 4, 0)
    assert "data" not in repr(trace.events[0])


def test_data_is_not_kept_unless_asked_for() -> None:
    trace = TraceBackend(MemoryBackend())
    trace.allocate("tree", SHAPE)
    trace.exchange((SlotWrite("tree", _slots(1), _data(1)),), SlotRead("tree", _slots(1)))
    trace.read_xor("tree", _slots(1)[np.newaxis], _slots())
    assert all(event.data is None for event in trace.events)


def test_nothing_bypasses_the_record() -> None:
    trace = TraceBackend(MemoryBackend())
    assert trace.capabilities == Capability.ATOMIC | Capability.XOR
    assert not hasattr(trace, "buffer")
    assert TraceBackend.capabilities == Capability.NONE  # the object's, not the class's


def test_xor_where_there_is_none(tmp_path: Path) -> None:
    with TraceBackend(LMDBBackend(tmp_path, sync=False)) as trace:
        assert trace.capabilities == LMDBBackend.capabilities
        trace.allocate("tree", SHAPE)
        trace.clear()
        with pytest.raises(BackendError):
            trace.read_xor("tree", _slots(1)[np.newaxis], _slots())
        assert trace.events == []


def test_refused_calls_are_not_recorded(trace: TraceBackend) -> None:
    state = trace.state_file()
    assert state is not None
    bad = SlotWrite("tree", _slots(10), _data(1))
    calls: list[Callable[[], object]] = [
        lambda: trace.read("other", _slots(1)),
        lambda: trace.read("tree", _slots(10)),
        lambda: trace.write_all((SlotWrite("tree", _slots(1), _data(1)), bad)),
        lambda: trace.exchange((bad,), SlotRead("tree", _slots(1))),
        lambda: trace.exchange((), SlotRead("tree", _slots(10))),
        lambda: trace.read_xor("tree", _slots(10)[np.newaxis], _slots()),
        lambda: trace.allocate("tree", RegionShape(1, 1)),
        lambda: state.commit([(b"a", b"1")], writes=(bad,)),
        lambda: state.commit([(b"", b"1")], writes=(SlotWrite("tree", _slots(1), _data(1)),)),
    ]
    for call in calls:
        with pytest.raises(BackendError):
            call()
    assert (trace.events, trace.state_commits, trace.round_trips) == ([], [], 0)


def test_calls_that_fail_half_way_are_recorded(trace: TraceBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Slots:
        raise BackendError("the line went dead")

    monkeypatch.setattr(trace.inner, "read", fail)
    monkeypatch.setattr(trace.inner, "write_all", fail)
    with pytest.raises(BackendError, match="dead"):
        trace.read("tree", _slots(1))
    with pytest.raises(BackendError, match="dead"):
        trace.write("tree", _slots(2), _data(1))
    assert trace.events == [Event("read", "tree", (1,), 4, 0), Event("write", "tree", (2,), 4, 1)]


def test_joint_commits_are_recorded_as_writes(trace: TraceBackend) -> None:
    state = trace.state_file()
    assert state is not None
    assert state is trace.state_file()
    assert state.shared is trace
    state.commit([(b"intent", b"12345")])
    state.commit(
        [(b"commit", np.arange(3, dtype=np.int64).data), (b"a", b"")],
        [b"intent"],
        writes=(SlotWrite("tree", _slots(4, 2), _data(2)), SlotWrite("clock", _slots(0), np.ones((1, 2), np.uint8))),
    )
    assert trace.state_commits == [((b"intent", 5),), ((b"intent", -1), (b"commit", 24), (b"a", 0))]
    assert trace.events == [Event("write", "tree", (4, 2), 4, 0), Event("write", "clock", (0,), 2, 0)]
    assert (trace.round_trips, trace.bytes_written) == (1, 10)
    assert trace.inner.read("tree", _slots(4)).present.tolist() == [1]


def test_a_state_file_of_its_own_stays_so(tmp_path: Path) -> None:
    class Apart(MemoryBackend):
        def state_file(self) -> LMDBStateFile:  # type: ignore[override]
            return state

    state = LMDBStateFile.at(tmp_path, sync=False)
    trace = TraceBackend(Apart())
    traced = trace.state_file()
    assert traced is not None
    assert traced.shared is None
    traced.commit([(b"a", b"1")])
    assert trace.state_commits == [((b"a", 1),)]
    traced.close()


def test_ownership_is_that_of_the_inner_backend(trace: TraceBackend) -> None:
    trace.acquire()
    with pytest.raises(StoreLockedError):
        trace.inner.acquire()
    trace.release()
    trace.inner.acquire()
