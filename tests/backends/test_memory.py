"""Slots in memory: the contracts, and what memory does beyond them."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from oram.backends import Backend, MemoryBackend, MemoryStateFile, RegionShape, StateFile
from oram.errors import BackendError, BackendFullError
from oram.testing.conformance import BackendConformance, StateFileConformance


class TestMemoryBackend(BackendConformance):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with MemoryBackend() as backend:
            yield backend


class TestMemoryStateFile(StateFileConformance):
    @pytest.fixture
    def state(self) -> Iterator[StateFile]:
        state = MemoryStateFile()
        yield state
        state.close()

    def reopen(self, state: StateFile) -> StateFile | None:
        return None


class TestMemoryStateFileOfABackend(StateFileConformance):
    @pytest.fixture
    def state(self) -> Iterator[StateFile]:
        with MemoryBackend() as backend:
            yield backend.state_file()

    def reopen(self, state: StateFile) -> StateFile | None:
        return None


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_region_takes_memory_only_where_it_was_written() -> None:
    shape = RegionShape(slots=1 << 20, slot_size=16 << 10)
    with MemoryBackend() as backend:
        before = _resident()
        backend.allocate("tree", shape)
        indices = np.arange(64, dtype=np.int64) * (shape.slots // 64)
        backend.write("tree", indices, np.ones((64, shape.slot_size), dtype=np.uint8))
        backend.read("tree", indices)
        assert _resident() - before < 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_dropping_a_region_frees_its_memory() -> None:
    size = 64 << 20
    with MemoryBackend() as backend:
        backend.allocate("tree", RegionShape(1, size))
        backend.write("tree", np.zeros(1, dtype=np.int64), np.ones((1, size), dtype=np.uint8))
        before = _resident()
        backend.drop("tree")
        assert before - _resident() > size // 2


def test_the_object_is_freed_without_the_cycle_collector() -> None:
    gc.disable()
    try:
        backend = MemoryBackend()
        backend.allocate("tree", RegionShape(10, 10))
        state = backend.state_file()
        state.commit([(b"key", b"value")])
        gone = weakref.ref(backend)
        del backend, state
        assert gone() is None
    finally:
        gc.enable()


def test_the_buffer_outlives_a_closed_backend() -> None:
    backend = MemoryBackend()
    backend.allocate("tree", RegionShape(10, 10))
    buffer = backend.buffer("tree")
    backend.close()
    del backend
    buffer.data[:] = 1
    assert buffer.data.sum() == 100


def test_more_than_the_address_space() -> None:
    with MemoryBackend() as backend:
        with pytest.raises(BackendFullError):
            backend.allocate("tree", RegionShape(1 << 40, 1 << 30))
        assert dict(backend.regions()) == {}


class TestTheContractItself:
    """A subclass cannot switch a test off, and a broken backend fails."""

    ATTEMPTS: ClassVar[dict[str, dict[str, object]]] = {
        "another function": {"test_round_trip": lambda self: None},
        "None": {"test_round_trip": None},
        "not collected": {"__test__": False},
        "skipped": {"pytestmark": pytest.mark.skip},
    }

    @pytest.mark.parametrize("contract", [BackendConformance, StateFileConformance])
    @pytest.mark.parametrize("attempt", ATTEMPTS)
    def test_a_subclass_cannot_switch_tests_off(self, contract: type, attempt: str) -> None:
        body = dict(self.ATTEMPTS[attempt])
        if contract is StateFileConformance and "test_round_trip" in body:
            body["test_sync"] = body.pop("test_round_trip")
        with pytest.raises(TypeError, match="must not"):
            type("TestBroken", (contract,), body)

    def test_neither_can_a_grandchild_or_a_mixin(self) -> None:
        class Mixin:
            def test_round_trip(self) -> None: ...

        with pytest.raises(TypeError, match="test_round_trip"):
            type("TestBroken", (Mixin, BackendConformance), {})
        with pytest.raises(TypeError, match="test_round_trip"):
            type("TestBroken", (TestMemoryBackend,), {"test_round_trip": None})

    def test_a_subclass_can_add_tests(self) -> None:
        type("TestMore", (TestMemoryBackend,), {"test_something_else": lambda self: None})

    def test_a_write_that_is_not_atomic_is_noticed(self) -> None:
        class Broken(MemoryBackend):
            def write_all(self, writes):  # type: ignore[no-untyped-def]
                for write in writes:
                    super().write_all((write,))

        with pytest.raises(AssertionError):
            TestMemoryBackend().test_a_refused_write_changes_nothing(Broken(), "int8")

    def test_an_exchange_that_reads_first_is_noticed(self) -> None:
        class Broken(MemoryBackend):
            def exchange(self, writes, reads):  # type: ignore[no-untyped-def]
                slots = self.read(reads.region, reads.indices)
                self.write_all(writes)
                return slots

        with pytest.raises(AssertionError):
            TestMemoryBackend().test_exchange_reads_what_it_wrote(Broken())

    def test_a_joint_commit_that_forgets_the_slots_is_noticed(self) -> None:
        class Broken(MemoryBackend):
            def _apply(self, writes):  # type: ignore[no-untyped-def]
                if not self.__dict__.setdefault("first", False):
                    self.__dict__["first"] = True
                    super()._apply(writes)

        with pytest.raises(AssertionError):
            TestMemoryBackend().test_a_joint_commit_does_both(Broken())


def test_closing_keeps_the_slots_until_then() -> None:
    """A store handle ends with ``release``; the backend goes on to the next."""
    backend = MemoryBackend()
    backend.allocate("tree", RegionShape(10, 10))
    for round in range(3):
        backend.acquire()
        backend.write("tree", np.array([round], dtype=np.int64), np.full((1, 10), round + 1, dtype=np.uint8))
        backend.state_file().commit([(b"round", bytes([round]))])
        backend.state_file().close()
        backend.release()
    assert backend.read("tree", np.arange(4)).data[:, 0].tolist() == [1, 2, 3, 0]
    assert backend.state_file().get(b"round") == b"\x02"
    backend.close()
    with pytest.raises(BackendError):
        backend.read("tree", np.arange(4))
