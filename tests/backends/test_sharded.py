"""Several backends as one: the contract, who has which slots, and what a half-done call leaves behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from oram.backends import (
    Backend,
    Capability,
    LMDBBackend,
    MemoryBackend,
    RegionShape,
    ShardedBackend,
    SlotRead,
    SlotWrite,
)
from oram.backends.sharded import stripes
from oram.errors import BackendError, ForkedStoreError, ParameterError, RollbackError, StoreLockedError
from oram.testing.conformance import BackendConformance
from oram.testing.remote import RemoteBackend
from oram.trace import TraceBackend
from oram.types import I64, U8

SHAPE = RegionShape(10, 4)


class TestTwo(BackendConformance):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with ShardedBackend([MemoryBackend(), MemoryBackend()]) as backend:
            yield backend


class TestSevenAtTheSameTime(BackendConformance):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with ShardedBackend([RemoteBackend(MemoryBackend()) for _ in range(7)]) as backend:
            yield backend


class TestOnDisk(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        self.paths = [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
        with self.made() as backend:
            yield backend

    def made(self) -> Backend:
        return ShardedBackend([LMDBBackend(path, sync=False) for path in self.paths])

    def reopen(self, backend: Backend) -> Backend:
        backend.close()
        return self.made()


def _rows(*values: int) -> U8:
    return np.repeat(np.array(values, np.uint8)[:, np.newaxis], 4, axis=1)


def _slots(*indices: int) -> I64:
    return np.array(indices, np.int64)


def made(k: int, over: Callable[[Backend], Backend] = TraceBackend) -> tuple[ShardedBackend, list[TraceBackend]]:
    traces = [TraceBackend(MemoryBackend()) for _ in range(k)]
    return ShardedBackend([over(trace) if over is not TraceBackend else trace for trace in traces]), traces


@pytest.mark.parametrize(("slots", "k"), [(10, 3), (9, 3), (1, 4), (4, 4), (5, 4), (1 << 40, 256)])
def test_stripes_are_as_equal_as_can_be(slots: int, k: int) -> None:
    parts = stripes(slots, k)
    assert sum(parts) == slots
    assert max(parts) - min(parts) <= 1
    assert parts == sorted(parts, reverse=True)


def test_who_has_which_slots() -> None:
    backend, traces = made(3)
    backend.allocate("tree", SHAPE)
    backend.allocate("header", RegionShape(1, 4))
    assert [dict(trace.regions()) for trace in traces] == [
        {"tree": RegionShape(4, 4), "header": RegionShape(1, 4)},
        {"tree": RegionShape(3, 4)},
        {"tree": RegionShape(3, 4)},
    ]
    assert dict(backend.regions()) == {"tree": SHAPE, "header": RegionShape(1, 4)}
    for trace in traces:
        trace.clear()
    backend.write_all(
        [SlotWrite("tree", _slots(9, 0, 4, 3), _rows(9, 0, 4, 3)), SlotWrite("header", _slots(0), _rows(7))]
    )
    assert [[(e.region, e.indices) for e in trace.events] for trace in traces] == [
        [("tree", (0, 3)), ("header", (0,))],
        [("tree", (0,))],
        [("tree", (2,))],
    ]
    assert [trace.round_trips for trace in traces] == [1, 1, 1]
    assert backend.read("tree", _slots(3, 9, 1, 4)).data[:, 0].tolist() == [3, 9, 0, 4]


def test_an_exchange_is_one_round_trip_with_each() -> None:
    backend, traces = made(2)
    backend.allocate("tree", SHAPE)
    backend.write("tree", np.arange(10), _rows(*range(1, 11)))
    for trace in traces:
        trace.clear()
    groups = np.array([[0, 1, -1], [5, -1, 9], [4, 5, -1], [-1, -1, -1]])
    found = backend.exchange([SlotWrite("tree", _slots(1, 8), _rows(64, 65))], SlotRead("tree", _slots(8, 2), groups))
    assert found.data[:, 0].tolist() == [65, 3]
    assert found.folded is not None
    assert found.folded[:, 0].tolist() == [1 ^ 64, 6 ^ 10, 5 ^ 6, 0]
    assert [trace.round_trips for trace in traces] == [1, 1]
    assert [[e.op for e in trace.events] for trace in traces] == [["write", "xor", "xor", "read"]] * 2


def test_capabilities() -> None:
    memory = MemoryBackend().capabilities
    assert ShardedBackend([MemoryBackend(), MemoryBackend()]).capabilities == memory & ~(
        Capability.ATOMIC | Capability.BUFFER
    )
    mixed = ShardedBackend([MemoryBackend(), RemoteBackend(MemoryBackend())])
    assert Capability.REMOTE in mixed.capabilities


def test_without_xor_in_one_of_them(tmp_path: Path) -> None:
    with ShardedBackend([MemoryBackend(), LMDBBackend(tmp_path, sync=False)]) as backend:
        backend.allocate("tree", SHAPE)
        assert Capability.XOR not in backend.capabilities
        with pytest.raises(BackendError):
            backend.exchange((), SlotRead("tree", _slots(1), np.array([[1, 2]])))


def test_bad_lists() -> None:
    same = MemoryBackend()
    for wrong in ([], [same, same]):
        with pytest.raises(ParameterError):
            ShardedBackend(wrong)


def test_what_a_crash_left_of_an_allocation_is_done_now() -> None:
    """The first backend comes last, so that it says whether the others are complete."""
    for shape in (SHAPE, RegionShape(3, 4)):
        for missing in (1, 2):
            inner = [MemoryBackend() for _ in range(3)]
            parts = stripes(shape.slots, 3)
            for j in range(missing, 3):
                inner[j].allocate("tree", RegionShape(parts[j], 4))
            backend = ShardedBackend(inner)
            assert "tree" in backend.regions()
            backend.allocate("tree", shape)
            assert dict(backend.regions()) == {"tree": shape}
            assert not backend.read("tree", np.arange(shape.slots)).present.any()


def test_what_a_crash_left_of_a_drop_can_be_dropped() -> None:
    backend, traces = made(3)
    backend.allocate("tree", SHAPE)
    traces[0].drop("tree")
    assert "tree" in backend.regions()
    backend.drop("tree")
    assert [dict(trace.regions()) for trace in traces] == [{}] * 3


def test_a_region_that_one_of_them_lost() -> None:
    backend, traces = made(3)
    backend.allocate("tree", SHAPE)
    traces[1].drop("tree")
    with pytest.raises(RollbackError):
        ShardedBackend(traces).allocate("tree", SHAPE)


@pytest.mark.parametrize("other", [RegionShape(2, 4), RegionShape(4, 4), RegionShape(3, 5)])
def test_a_small_region_of_another_shape(other: RegionShape) -> None:
    backend, _ = made(3)
    backend.allocate("clock", RegionShape(3, 4))
    with pytest.raises(BackendError):
        backend.allocate("clock", other)
    assert dict(backend.regions()) == {"clock": RegionShape(3, 4)}


class Failing(RemoteBackend):
    """Fails when told to, and says what it was asked."""

    def __init__(self) -> None:
        super().__init__(MemoryBackend())
        self.error: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.done: list[str] = []

    def write_all(self, writes: object) -> None:
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        super().write_all(writes)  # type: ignore[arg-type]
        self.done.append("write")

    def acquire(self) -> None:
        if self.error is not None:
            raise self.error
        super().acquire()

    def release(self) -> None:
        self.done.append("release")
        super().release()


def three() -> tuple[ShardedBackend, list[Failing]]:
    inner = [Failing() for _ in range(3)]
    backend = ShardedBackend(inner)
    backend.allocate("tree", SHAPE)
    return backend, inner


def test_where_one_fails_the_others_are_done() -> None:
    backend, inner = three()
    inner[1].error = BackendError("the second")
    with pytest.raises(BackendError, match="the second"):
        backend.write("tree", np.arange(10), _rows(*range(10)))
    assert [each.done for each in inner] == [["write"], [], ["write"]]
    inner[1].error = None
    backend.write("tree", np.arange(10), _rows(*range(10)))
    assert backend.read("tree", np.arange(10)).data[:, 0].tolist() == list(range(10))


def test_all_of_them_or_none_are_taken() -> None:
    backend, inner = three()
    inner[2].error = StoreLockedError("somebody has it")
    with pytest.raises(StoreLockedError):
        backend.acquire()
    assert [each.done for each in inner] == [["release"], ["release"], []]
    inner[2].error = None
    backend.acquire()
    backend.release()
    backend.release()


def test_what_an_interrupt_leaves_running_comes_before_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, inner = three()
    inner[0].gate.clear()

    def interrupted(futures: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("oram.backends.sharded.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.write("tree", np.arange(10), _rows(*range(10)))
    threading.Timer(0.05, inner[0].gate.set).start()
    backend.release()
    assert [each.done for each in inner] == [["write", "release"]] * 3
    backend.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_fork_is_refused_and_can_close(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = three()
    monkeypatch.setattr("oram.backends.sharded.os.getpid", lambda: -1)
    with pytest.raises(ForkedStoreError):
        backend.read("tree", _slots(1))
    backend.release()
    backend.close()


def test_both_are_asked_at_the_same_time() -> None:
    """Each waits until the other has been asked too."""
    barrier = threading.Barrier(2)

    class Meeting(RemoteBackend):
        def exchange(self, writes: object, reads: SlotRead) -> object:  # type: ignore[override]
            barrier.wait(10)
            return super().exchange(writes, reads)  # type: ignore[arg-type]

    with ShardedBackend([Meeting(MemoryBackend()), Meeting(MemoryBackend())]) as backend:
        backend.allocate("tree", SHAPE)
        assert not backend.read("tree", np.arange(10)).present.any()
