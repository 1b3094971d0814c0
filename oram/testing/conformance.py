"""The contracts of ``Backend`` and ``StateFile`` as pytest classes.

A backend's test module subclasses them and says how to make one. It can add tests and cannot switch any off: what a
backend need not do follows from its ``Capability`` flags, and from whether its state file shares its transactions.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from typing import ClassVar, cast

import numpy as np
import pytest

from oram.backends import (
    Backend,
    BufferBackend,
    Capability,
    RegionShape,
    SlotRead,
    SlotWrite,
    StateFile,
    XorBackend,
)
from oram.backends.base import MAX_REGION_NAME, MAX_STATE_KEY
from oram.errors import BackendError, StoreLockedError
from oram.trace import TraceBackend
from oram.types import I64, U8

__all__ = ["BackendConformance", "StateFileConformance"]

REGION = "tree"
SHAPE = RegionShape(slots=100, slot_size=48)


class _Conformance:
    """Base of a contract, whose tests stay as they are in every subclass."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        for contract in cls.__mro__[1:]:
            if not vars(contract).get("_is_contract", False):
                continue
            for name, test in vars(contract).items():
                if name.startswith("test_") and inspect.getattr_static(cls, name) is not test:
                    raise TypeError(f"{cls.__name__} must not redefine {name} of {contract.__name__}")
        for name in ("__test__", "pytestmark"):
            if hasattr(cls, name):
                raise TypeError(f"{cls.__name__} must not set {name}: it could switch tests off")


def _slots(*indices: int) -> I64:
    return np.array(indices, dtype=np.int64)


def _rows(seed: int, count: int, size: int = SHAPE.slot_size) -> U8:
    """``count`` random rows, none of them all zeros."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)
    rows[:, 0] |= 1
    return rows


def _need(backend: Backend, capability: Capability) -> None:
    if capability not in backend.capabilities:
        pytest.skip(f"the backend has no {capability.name}")


class BackendConformance(_Conformance):
    """What every backend does. Override the fixture ``backend``, and ``reopen`` where the backend is DURABLE."""

    _is_contract: ClassVar[bool] = True

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        """An empty backend; closed afterwards."""
        raise NotImplementedError("override the fixture `backend`")

    def reopen(self, backend: Backend) -> Backend:
        """Close ``backend`` and open the same storage again. The result is closed by the test."""
        raise NotImplementedError("override `reopen`")

    # Regions

    def test_a_new_backend_has_no_regions(self, backend: Backend) -> None:
        assert dict(backend.regions()) == {}

    def test_allocate_declares_a_region(self, backend: Backend) -> None:
        other = RegionShape(slots=1, slot_size=1)
        backend.allocate(REGION, SHAPE)
        backend.allocate("clock.0123456789abcdef", other)
        assert dict(backend.regions()) == {REGION: SHAPE, "clock.0123456789abcdef": other}

    def test_allocate_again_keeps_the_slots(self, backend: Backend) -> None:
        data = self._filled(backend)
        backend.allocate(REGION, RegionShape(SHAPE.slots, SHAPE.slot_size))
        self._check(backend, data)

    @pytest.mark.parametrize("shape", [RegionShape(101, 48), RegionShape(99, 48), RegionShape(100, 47)])
    def test_allocate_refuses_another_shape(self, backend: Backend, shape: RegionShape) -> None:
        data = self._filled(backend)
        with pytest.raises(BackendError):
            backend.allocate(REGION, shape)
        assert dict(backend.regions()) == {REGION: SHAPE}
        self._check(backend, data)

    @pytest.mark.parametrize(
        ("region", "shape"),
        [
            ("", SHAPE),
            ("x" * (MAX_REGION_NAME + 1), SHAPE),
            ("ä" * (MAX_REGION_NAME // 2 + 1), SHAPE),
            (REGION, RegionShape(0, 48)),
            (REGION, RegionShape(-1, 48)),
            (REGION, RegionShape(100, 0)),
            (REGION, RegionShape(-100, -48)),
        ],
    )
    def test_allocate_refuses_what_is_no_region(self, backend: Backend, region: str, shape: RegionShape) -> None:
        with pytest.raises(BackendError):
            backend.allocate(region, shape)
        assert dict(backend.regions()) == {}

    def test_the_longest_name(self, backend: Backend) -> None:
        name = "x" * MAX_REGION_NAME
        backend.allocate(name, SHAPE)
        backend.write(name, _slots(1), _rows(1, 1))
        assert backend.read(name, _slots(1)).data.tobytes() == _rows(1, 1).tobytes()

    def test_a_huge_region_is_there_at_once(self, backend: Backend) -> None:
        huge = RegionShape(slots=1 << 24, slot_size=16 << 10)
        start = time.perf_counter()
        backend.allocate("huge", huge)
        assert time.perf_counter() - start < 2  # writing 256 GiB takes minutes
        ends = _slots(0, huge.slots // 2, huge.slots - 1)
        assert not backend.read("huge", ends).present.any()
        data = _rows(2, 3, huge.slot_size)
        backend.write("huge", ends, data)
        read = backend.read("huge", np.concatenate((ends, ends - ends // 4 + 1)) % huge.slots)
        assert np.array_equal(read.data[:3], data)
        assert read.present.tolist() == [1, 1, 1, 0, 0, 0]
        backend.drop("huge")

    def test_regions_are_independent(self, backend: Backend) -> None:
        self._filled(backend)
        backend.allocate("other", SHAPE)
        assert not backend.read("other", _slots(0, 1, 2)).present.any()
        backend.write("other", _slots(0), _rows(3, 1))
        self._check(backend, _rows(0, SHAPE.slots))
        backend.drop("other")
        self._check(backend, _rows(0, SHAPE.slots))

    def test_drop_forgets_the_slots(self, backend: Backend) -> None:
        self._filled(backend)
        backend.drop(REGION)
        assert dict(backend.regions()) == {}
        with pytest.raises(BackendError):
            backend.read(REGION, _slots(0))
        with pytest.raises(BackendError):
            backend.write(REGION, _slots(0), _rows(1, 1))
        backend.allocate(REGION, RegionShape(SHAPE.slots, 7))
        assert not backend.read(REGION, np.arange(SHAPE.slots)).present.any()

    def test_drop_of_no_region_is_nothing(self, backend: Backend) -> None:
        self._filled(backend)
        backend.drop("other")
        self._check(backend, _rows(0, SHAPE.slots))

    def test_regions_come_and_go(self, backend: Backend) -> None:
        for i in range(300):
            name = f"tree.{i}"
            backend.allocate(name, SHAPE)
            backend.write(name, _slots(i % 100), _rows(i, 1))
            assert backend.read(name, _slots(i % 100)).data.tobytes() == _rows(i, 1).tobytes()
            if i >= 2:
                backend.drop(f"tree.{i - 2}")
        assert set(backend.regions()) == {"tree.298", "tree.299"}

    # Reading and writing

    def test_slots_never_written_are_absent(self, backend: Backend) -> None:
        backend.allocate(REGION, SHAPE)
        slots = backend.read(REGION, np.arange(SHAPE.slots))
        assert not slots.present.any()
        assert not slots.data.any()

    def test_a_slot_of_zeros_is_present(self, backend: Backend) -> None:
        backend.allocate(REGION, SHAPE)
        backend.write(REGION, _slots(5), np.zeros((1, SHAPE.slot_size), dtype=np.uint8))
        assert backend.read(REGION, _slots(4, 5, 6)).present.tolist() == [0, 1, 0]

    def test_what_a_read_returns(self, backend: Backend) -> None:
        self._filled(backend)
        for count in (0, 1, 3):
            slots = backend.read(REGION, np.arange(count))
            assert slots.data.dtype == np.uint8
            assert slots.data.shape == (count, SHAPE.slot_size)
            assert slots.data.flags.c_contiguous
            assert slots.data.flags.writeable
            assert slots.present.dtype == np.uint8
            assert slots.present.shape == (count,)

    def test_round_trip(self, backend: Backend) -> None:
        backend.allocate(REGION, SHAPE)
        written = _slots(7, 0, 99, 42)
        backend.write(REGION, written, _rows(1, 4))
        slots = backend.read(REGION, _slots(42, 1, 0, 99, 98, 7))
        assert slots.present.tolist() == [1, 0, 1, 1, 0, 1]
        assert np.array_equal(slots.data[[5, 2, 3, 0]], _rows(1, 4))
        assert not slots.data[[1, 4]].any()

    def test_the_last_write_counts(self, backend: Backend) -> None:
        self._filled(backend)
        backend.write(REGION, _slots(3), _rows(1, 1))
        backend.write(REGION, _slots(3), _rows(2, 1))
        expected = _rows(0, SHAPE.slots)
        expected[3] = _rows(2, 1)
        self._check(backend, expected)

    def test_a_read_is_a_copy(self, backend: Backend) -> None:
        data = self._filled(backend)
        slots = backend.read(REGION, np.arange(SHAPE.slots))
        slots.data[:] = 0
        slots.present[:] = 0
        self._check(backend, data)

    def test_a_write_is_a_copy(self, backend: Backend) -> None:
        backend.allocate(REGION, SHAPE)
        data, indices = _rows(0, SHAPE.slots), np.arange(SHAPE.slots)
        backend.write(REGION, indices, data)
        data[:] = 0
        indices[:] = 0
        self._check(backend, _rows(0, SHAPE.slots))

    def test_arguments_may_be_read_only(self, backend: Backend) -> None:
        backend.allocate(REGION, SHAPE)
        indices, data = np.arange(SHAPE.slots), _rows(0, SHAPE.slots)
        indices.flags.writeable = data.flags.writeable = False
        backend.write(REGION, indices, data)
        assert np.array_equal(backend.read(REGION, indices).data, data)

    def test_indices_need_not_be_contiguous(self, backend: Backend) -> None:
        backend.allocate(REGION, SHAPE)
        backend.write(REGION, np.arange(SHAPE.slots)[::-2], _rows(1, SHAPE.slots // 2))
        slots = backend.read(REGION, np.arange(SHAPE.slots)[::-2])
        assert np.array_equal(slots.data, _rows(1, SHAPE.slots // 2))

    def test_a_read_may_name_a_slot_twice(self, backend: Backend) -> None:
        data = self._filled(backend)
        slots = backend.read(REGION, _slots(5, 6, 5, 5, 99))
        assert np.array_equal(slots.data, data[[5, 6, 5, 5, 99]])

    def test_a_big_batch(self, backend: Backend) -> None:
        shape = RegionShape(slots=20_000, slot_size=300)
        backend.allocate(REGION, shape)
        order = np.random.default_rng(1).permutation(shape.slots)
        data = _rows(1, shape.slots, shape.slot_size)
        backend.write(REGION, order, data)
        picked = np.random.default_rng(2).integers(0, shape.slots, 20_000)
        slots = backend.read(REGION, order[picked])
        assert slots.present.all()
        assert np.array_equal(slots.data, data[picked])

    @pytest.mark.parametrize("size", [1, 8, 2047, 4096, 70_001])
    def test_slot_sizes(self, backend: Backend, size: int) -> None:
        backend.allocate(REGION, RegionShape(9, size))
        backend.write(REGION, _slots(8, 1), _rows(1, 2, size))
        assert np.array_equal(backend.read(REGION, _slots(8, 1)).data, _rows(1, 2, size))

    def test_one_call_writes_several_regions_in_order(self, backend: Backend) -> None:
        backend.allocate(REGION, SHAPE)
        backend.allocate("clock", RegionShape(1, 16))
        backend.write_all(
            (
                SlotWrite(REGION, _slots(1, 2), _rows(1, 2)),
                SlotWrite("clock", _slots(0), _rows(2, 1, 16)),
                SlotWrite(REGION, _slots(2, 3), _rows(3, 2)),
            )
        )
        slots = backend.read(REGION, _slots(1, 2, 3))
        assert np.array_equal(slots.data, np.concatenate((_rows(1, 2)[:1], _rows(3, 2))))
        assert np.array_equal(backend.read("clock", _slots(0)).data, _rows(2, 1, 16))

    def test_writing_nothing(self, backend: Backend) -> None:
        data = self._filled(backend)
        backend.write_all(())
        backend.write(REGION, _slots(), np.empty((0, SHAPE.slot_size), dtype=np.uint8))
        self._check(backend, data)

    def test_exchange_reads_what_it_wrote(self, backend: Backend) -> None:
        data = self._filled(backend)
        writes = (SlotWrite(REGION, _slots(4, 5), _rows(1, 2)),)
        slots = backend.exchange(writes, SlotRead(REGION, _slots(3, 4, 5)))
        data[4:6] = _rows(1, 2)
        assert np.array_equal(slots.data, data[3:6])
        assert slots.present.all()
        self._check(backend, data)

    def test_it_behaves_like_a_dict(self, backend: Backend) -> None:
        random = np.random.default_rng(7)
        shapes = {name: RegionShape(int(random.integers(1, 60)), size) for name, size in (("a", 5), ("b", 3000))}
        model: dict[tuple[str, int], bytes] = {}
        for name, shape in shapes.items():
            backend.allocate(name, shape)
        for step in range(200):
            name = "ab"[random.integers(2)]
            shape = shapes[name]
            if step % 50 == 49:
                backend.drop(name)
                backend.allocate(name, shape)
                model = {key: value for key, value in model.items() if key[0] != name}
            indices = random.permutation(shape.slots)[: random.integers(shape.slots + 1)]
            data = _rows(step, indices.size, shape.slot_size)
            asked = random.integers(0, shape.slots, 10)
            slots = backend.exchange((SlotWrite(name, indices, data),), SlotRead(name, asked))
            model.update({(name, i): row.tobytes() for i, row in zip(indices.tolist(), data, strict=True)})
            for i, row, present in zip(asked.tolist(), slots.data, slots.present, strict=True):
                expected = model.get((name, i))
                assert bool(present) == (expected is not None)
                assert row.tobytes() == (expected or bytes(shape.slot_size))

    # Refusals

    BAD_INDICES: ClassVar[dict[str, Callable[[], I64]]] = {
        "below": lambda: _slots(1, -1),
        "above": lambda: _slots(1, SHAPE.slots),
        "far above": lambda: _slots(1, 2**62),
        "int32": lambda: cast(I64, np.array([1, 2], dtype=np.int32)),
        "uint64": lambda: cast(I64, np.array([1, 2], dtype=np.uint64)),
        "float": lambda: cast(I64, np.array([1.0, 2.0])),
        "2-d": lambda: np.array([[1, 2]], dtype=np.int64),
        "0-d": lambda: np.array(1, dtype=np.int64),
    }

    BAD_WRITES: ClassVar[dict[str, Callable[[], SlotWrite]]] = {
        "no region": lambda: SlotWrite("other", _slots(1, 2), _rows(1, 2)),
        "slot named twice": lambda: SlotWrite(REGION, _slots(1, 2, 1), _rows(1, 3)),
        "too few rows": lambda: SlotWrite(REGION, _slots(1, 2), _rows(1, 1)),
        "too many rows": lambda: SlotWrite(REGION, _slots(1, 2), _rows(1, 3)),
        "short rows": lambda: SlotWrite(REGION, _slots(1, 2), _rows(1, 2, SHAPE.slot_size - 1)),
        "long rows": lambda: SlotWrite(REGION, _slots(1, 2), _rows(1, 2, SHAPE.slot_size + 1)),
        "one row for all": lambda: SlotWrite(REGION, _slots(1, 2), _rows(1, 1)[0]),
        "int8": lambda: SlotWrite(REGION, _slots(1, 2), cast(U8, _rows(1, 2).view(np.int8))),
        "uint16": lambda: SlotWrite(REGION, _slots(1, 2), cast(U8, _rows(1, 2).astype(np.uint16))),
        "gaps": lambda: SlotWrite(REGION, _slots(1, 2), _rows(1, 4)[::2]),
        "fortran": lambda: SlotWrite(REGION, _slots(1, 2), np.asfortranarray(_rows(1, 2))),
    }

    @pytest.mark.parametrize("bad", BAD_INDICES)
    def test_reads_refuse_bad_indices(self, backend: Backend, bad: str) -> None:
        data = self._filled(backend)
        with pytest.raises(BackendError):
            backend.read(REGION, self.BAD_INDICES[bad]())
        self._check(backend, data)

    def test_reads_refuse_unknown_regions(self, backend: Backend) -> None:
        with pytest.raises(BackendError):
            backend.read(REGION, _slots())

    @pytest.mark.parametrize("bad", [*BAD_WRITES, *BAD_INDICES])
    def test_a_refused_write_changes_nothing(self, backend: Backend, bad: str) -> None:
        data = self._filled(backend)
        if bad in self.BAD_WRITES:
            write = self.BAD_WRITES[bad]()
        else:
            indices = self.BAD_INDICES[bad]()
            write = SlotWrite(REGION, indices, _rows(1, indices.size))
        good = SlotWrite(REGION, _slots(0, 50), _rows(2, 2))
        for writes in ((write,), (good, write), (write, good)):
            with pytest.raises(BackendError):
                backend.write_all(writes)
            self._check(backend, data)
            with pytest.raises(BackendError):
                backend.exchange(writes, SlotRead(REGION, _slots(0)))
            self._check(backend, data)

    def test_everything_is_refused_after_close(self, backend: Backend) -> None:
        self._filled(backend)
        state = backend.state_file()
        backend.close()
        backend.close()
        write = SlotWrite(REGION, _slots(0), _rows(1, 1))
        calls: list[Callable[[], object]] = [
            lambda: backend.allocate("other", SHAPE),
            backend.regions,
            lambda: backend.drop(REGION),
            lambda: backend.read(REGION, _slots(0)),
            lambda: backend.write(REGION, _slots(0), _rows(1, 1)),
            lambda: backend.write_all(()),
            lambda: backend.exchange((write,), SlotRead(REGION, _slots(0))),
            backend.sync,
            backend.acquire,
            backend.state_file,
        ]
        if Capability.BUFFER in backend.capabilities:
            calls.append(lambda: cast(BufferBackend, backend).buffer(REGION))
        if Capability.XOR in backend.capabilities:
            calls.append(lambda: cast(XorBackend, backend).read_xor(REGION, _slots(0)[np.newaxis], _slots()))
        if state is not None and state.shared is not None:
            calls.extend(
                (
                    lambda: state.get(b"key"),
                    lambda: list(state.scan(b"")),
                    lambda: state.commit([(b"key", b"")]),
                    state.sync,
                )
            )
        for call in calls:
            with pytest.raises(BackendError):
                call()
        backend.release()

    def test_leaving_the_context_closes(self, backend: Backend) -> None:
        with backend as entered:
            assert entered is backend
        with pytest.raises(BackendError):
            backend.regions()

    # Ownership

    def test_one_handle_at_a_time(self, backend: Backend) -> None:
        backend.release()
        for _ in range(2):
            backend.acquire()
            with pytest.raises(StoreLockedError):
                backend.acquire()
            backend.release()
            backend.release()

    def test_ownership_changes_no_slots(self, backend: Backend) -> None:
        data = self._filled(backend)
        backend.acquire()
        self._check(backend, data)
        backend.write(REGION, _slots(1), _rows(1, 1))
        backend.release()
        data[1] = _rows(1, 1)
        self._check(backend, data)

    # Capabilities

    def test_durable_slots_survive_reopening(self, backend: Backend) -> None:
        _need(backend, Capability.DURABLE)
        data = self._filled(backend)
        backend.allocate("empty", RegionShape(1 << 40, 4096))
        backend.allocate("dropped", SHAPE)
        backend.drop("dropped")
        state = backend.state_file()
        if state is not None:
            state.commit([(b"key", b"value")])
        backend.acquire()
        backend.sync()
        with self.reopen(backend) as again:
            again.acquire()
            assert dict(again.regions()) == {REGION: SHAPE, "empty": RegionShape(1 << 40, 4096)}
            self._check(again, data)
            state = again.state_file()
            if state is not None:
                assert state.get(b"key") == b"value"
            again.write(REGION, _slots(0), _rows(1, 1))
            with self.reopen(again) as third:
                data[0] = _rows(1, 1)
                self._check(third, data)

    def test_the_buffer_is_the_memory(self, backend: Backend) -> None:
        _need(backend, Capability.BUFFER)
        backend = cast(BufferBackend, backend)
        data = self._filled(backend, 50)
        buffer = backend.buffer(REGION)
        assert buffer.data.shape == (SHAPE.slots, SHAPE.slot_size)
        assert buffer.present.shape == (SHAPE.slots,)
        for array in (buffer.data, buffer.present):
            assert array.dtype == np.uint8
            assert array.flags.c_contiguous
            assert array.flags.writeable
        assert np.array_equal(buffer.data[:50], data)
        assert buffer.present.tolist() == [1] * 50 + [0] * 50
        buffer.data[70] = _rows(1, 1)
        buffer.present[70] = 1
        slots = backend.read(REGION, _slots(70, 71))
        assert slots.present.tolist() == [1, 0]
        assert np.array_equal(slots.data[:1], _rows(1, 1))
        backend.write(REGION, _slots(71), _rows(2, 1))
        assert np.array_equal(buffer.data[71:72], _rows(2, 1))
        assert buffer.present[71] == 1
        again = backend.buffer(REGION)
        assert np.shares_memory(again.data, buffer.data)
        assert np.shares_memory(again.present, buffer.present)

    def test_a_slot_marked_absent_in_the_buffer_reads_as_zeros(self, backend: Backend) -> None:
        _need(backend, Capability.BUFFER)
        backend = cast(BufferBackend, backend)
        data = self._filled(backend)
        backend.buffer(REGION).present[5] = 0
        slots = backend.read(REGION, _slots(4, 5))
        assert slots.present.tolist() == [1, 0]
        assert np.array_equal(slots.data[0], data[4])
        assert not slots.data[1].any()

    def test_the_buffer_of_no_region(self, backend: Backend) -> None:
        _need(backend, Capability.BUFFER)
        with pytest.raises(BackendError):
            cast(BufferBackend, backend).buffer(REGION)

    @pytest.mark.parametrize(("count", "width", "plain"), [(0, 3, 1), (1, 0, 2), (1, 1, 0), (4, 20, 7), (30, 7, 0)])
    def test_xor(self, backend: Backend, count: int, width: int, plain: int) -> None:
        _need(backend, Capability.XOR)
        data = np.zeros((SHAPE.slots, SHAPE.slot_size), dtype=np.uint8)
        data[:60] = self._filled(backend, 60)
        random = np.random.default_rng(count)
        groups, indices = random.integers(-1, SHAPE.slots, (count, width)), random.integers(0, SHAPE.slots, plain)
        expected = np.bitwise_xor.reduce(np.where((groups < 0)[..., np.newaxis], 0, data[groups]), axis=1)
        xor = cast(XorBackend, backend)
        for result in (xor.read_xor(REGION, groups, indices), xor.exchange((), SlotRead(REGION, indices, groups))):
            assert result.folded is not None
            assert result.folded.dtype == np.uint8
            assert result.folded.shape == (count, SHAPE.slot_size)
            assert np.array_equal(result.folded, expected)
            assert np.array_equal(result.data, data[indices])
            assert np.array_equal(result.present, indices < 60)

    def test_xor_sees_the_writes_of_its_exchange(self, backend: Backend) -> None:
        _need(backend, Capability.XOR)
        self._filled(backend)
        rows = _rows(9, 2)
        groups = np.array([[3, 5], [3, -1]])
        result = backend.exchange((SlotWrite(REGION, _slots(3, 5), rows),), SlotRead(REGION, _slots(5), groups))
        assert result.folded is not None
        assert np.array_equal(result.folded, [rows[0] ^ rows[1], rows[0]])
        assert np.array_equal(result.data, rows[1:])

    def test_whether_folding_pays_is_said_without_touching_slots(self, backend: Backend) -> None:
        _need(backend, Capability.XOR)
        watched = TraceBackend(backend)
        assert watched.fold_pays(20, SHAPE.slot_size) in (True, False)
        assert watched.events == []

    def test_an_exchange_without_xor_refuses_groups(self, backend: Backend) -> None:
        if Capability.XOR in backend.capabilities:
            pytest.skip("this backend can XOR")
        self._filled(backend)
        with pytest.raises(BackendError):
            backend.exchange((), SlotRead(REGION, _slots(1), _slots(1, 2)[np.newaxis]))

    @pytest.mark.parametrize("bad", [*BAD_INDICES, "1-d"])
    def test_xor_refuses_bad_groups(self, backend: Backend, bad: str) -> None:
        _need(backend, Capability.XOR)
        self._filled(backend)
        groups = _slots(1, 2) if bad == "1-d" else self.BAD_INDICES[bad]()[np.newaxis]
        if bad != "1-d" and groups.ndim == 2 and groups.dtype == np.int64 and (groups == -1).any():
            groups = groups - 1  # -1 is no slot
        with pytest.raises(BackendError):
            cast(XorBackend, backend).read_xor(REGION, groups, _slots())
        with pytest.raises(BackendError):
            cast(XorBackend, backend).read_xor("other", _slots(1)[np.newaxis], _slots())

    # Client state

    def test_the_state_file_is_one(self, backend: Backend) -> None:
        state = self._state(backend)
        assert backend.state_file() is state
        state.commit([(b"key", b"value")])
        state.close()
        again = backend.state_file()
        assert again is not None
        assert again.get(b"key") == b"value"

    def test_the_state_file_outlives_its_reference(self, backend: Backend) -> None:
        self._state(backend).commit([(b"key", b"value")])
        assert self._state(backend).get(b"key") == b"value"

    def test_state_and_slots_do_not_mix(self, backend: Backend) -> None:
        data = self._filled(backend)
        state = self._state(backend)
        state.commit([(bytes([i]), b"value") for i in range(256)])
        self._check(backend, data)
        backend.drop(REGION)
        assert len(list(state.scan(b""))) == 256
        assert dict(backend.regions()) == {}

    def test_a_joint_commit_does_both(self, backend: Backend) -> None:
        data = self._filled(backend)
        state = self._joint(backend)
        state.commit([(b"old", b"1")])
        state.commit(
            [(b"new", memoryview(b"2"))],
            [b"old"],
            writes=(
                SlotWrite(REGION, _slots(9, 1), _rows(1, 2)),
                SlotWrite(REGION, _slots(), np.empty((0, SHAPE.slot_size), dtype=np.uint8)),
            ),
        )
        data[[9, 1]] = _rows(1, 2)
        self._check(backend, data)
        assert list(state.scan(b"")) == [(b"new", b"2")]

    @pytest.mark.parametrize("bad", BAD_WRITES)
    def test_a_refused_joint_commit_does_nothing(self, backend: Backend, bad: str) -> None:
        data = self._filled(backend)
        state = self._joint(backend)
        state.commit([(b"old", b"1")])
        good = SlotWrite(REGION, _slots(0), _rows(2, 1))
        with pytest.raises(BackendError):
            state.commit([(b"new", b"2")], [b"old"], writes=(good, self.BAD_WRITES[bad]()))
        with pytest.raises(BackendError):
            state.commit([(b"new", b"2"), (b"", b"3")], [b"old"], writes=(good,))
        self._check(backend, data)
        assert list(state.scan(b"")) == [(b"old", b"1")]

    # What the tests are made of

    def _filled(self, backend: Backend, count: int = SHAPE.slots) -> U8:
        """Allocate REGION and fill its first slots. Returns what was written."""
        backend.allocate(REGION, SHAPE)
        data = _rows(0, count)
        backend.write(REGION, np.arange(count), data)
        return data

    def _check(self, backend: Backend, data: U8) -> None:
        slots = backend.read(REGION, np.arange(SHAPE.slots))
        assert slots.present.all()
        assert np.array_equal(slots.data, data)

    def _state(self, backend: Backend) -> StateFile:
        state = backend.state_file()
        if state is None:
            pytest.skip("client state lives elsewhere")
        return state

    def _joint(self, backend: Backend) -> StateFile:
        state = self._state(backend)
        if state.shared is None:
            pytest.skip("slots and client state share no transactions")
        assert state.shared is backend
        return state


class StateFileConformance(_Conformance):
    """What every state file does. Override the fixture ``state``, and ``reopen``."""

    _is_contract: ClassVar[bool] = True

    @pytest.fixture
    def state(self) -> Iterator[StateFile]:
        """An empty state file; closed afterwards."""
        raise NotImplementedError("override the fixture `state`")

    def reopen(self, state: StateFile) -> StateFile | None:
        """Close ``state`` and open the same file again, or None where it is gone with its object."""
        raise NotImplementedError("override `reopen`")

    def test_a_new_one_is_empty(self, state: StateFile) -> None:
        assert state.get(b"key") is None
        assert list(state.scan(b"")) == []

    def test_get_and_commit(self, state: StateFile) -> None:
        state.commit([(b"a", b"1"), (b"b", memoryview(b"_2_")[1:2]), (b"c", b"")])
        assert state.get(b"a") == b"1"
        assert state.get(b"b") == b"2"
        assert state.get(b"c") == b""
        assert state.get(b"d") is None
        assert type(state.get(b"b")) is bytes
        state.commit([(b"a", b"longer")], [b"b", b"never there"])
        assert list(state.scan(b"")) == [(b"a", b"longer"), (b"c", b"")]

    def test_a_commit_of_nothing(self, state: StateFile) -> None:
        state.commit([(b"a", b"1")])
        state.commit([])
        state.commit((), ())
        assert list(state.scan(b"")) == [(b"a", b"1")]

    def test_deletes_come_before_puts(self, state: StateFile) -> None:
        state.commit([(b"a", b"1")])
        state.commit([(b"a", b"2"), (b"a", b"3")], [b"a"])
        assert state.get(b"a") == b"3"

    def test_replace(self, state: StateFile) -> None:
        """A replaced record is like a committed one, whichever way it was stored last."""
        for value in (b"1", b"", b"3" * 1000, b"4" * 100_000, b"5"):
            state.replace(b"key", value)
            assert state.get(b"key") == value
            assert list(state.scan(b"")) == list(state.scan(b"k")) == [(b"key", value)]
        state.commit([(b"key", b"committed"), (b"a", b"1"), (b"z", b"2")])
        assert list(state.scan(b"")) == [(b"a", b"1"), (b"key", b"committed"), (b"z", b"2")]
        state.replace(b"key", b"replaced")
        assert list(state.scan(b"")) == [(b"a", b"1"), (b"key", b"replaced"), (b"z", b"2")]
        state.replace(b"other", b"x")
        state.replace(b"key", b"again")
        assert state.get(b"key") == b"again"
        state.commit([], [b"key"])
        assert state.get(b"key") is None
        assert b"key" not in dict(state.scan(b""))

    def test_a_replaced_record_survives_reopening(self, state: StateFile) -> None:
        state.commit([(b"key", b"1")])
        state.replace(b"key", b"2")
        again = self.reopen(state)
        if again is None:
            pytest.skip("the file is gone with its object")
        try:
            assert again.get(b"key") == b"2"
        finally:
            again.close()

    def test_a_value_is_a_copy(self, state: StateFile) -> None:
        value = bytearray(b"before")
        state.commit([(b"a", memoryview(value))])
        value[:] = b"after!"
        assert state.get(b"a") == b"before"

    def test_scan_is_by_prefix_and_in_order(self, state: StateFile) -> None:
        keys = [b"a", b"a\x00", b"a\x00\x00", b"a\xff", b"a\xff\xff", b"b", b"ab", b"\x00", b"\xff", b"\xff\xff"]
        state.commit([(key, key * 2) for key in keys])
        for prefix in (b"", b"a", b"a\x00", b"a\xff", b"b", b"c", b"\xff", b"\xff\xff\xff", *keys):
            expected = [(key, key * 2) for key in sorted(keys) if key.startswith(prefix)]
            assert list(state.scan(prefix)) == expected

    def test_scan_of_much(self, state: StateFile) -> None:
        pairs = [(b"piece" + i.to_bytes(4, "big"), i.to_bytes(4, "big") * 4096) for i in range(300)]
        state.commit([*pairs[::-1], (b"piecf", b""), (b"piec", b"")])
        assert list(state.scan(b"piece")) == pairs

    def test_commits_during_a_scan_are_allowed(self, state: StateFile) -> None:
        keys = [b"a" + i.to_bytes(4, "big") for i in range(100)]
        state.commit([(key, bytes(50_000)) for key in keys])
        seen = []
        for key, _ in state.scan(b"a"):
            seen.append(key)
            state.commit([(key, b"seen"), (b"b" + key, bytes(50_000))])
        assert seen == keys
        assert [key for key, _ in state.scan(b"b")] == [b"b" + key for key in keys]

    def test_longest_keys_and_values(self, state: StateFile) -> None:
        key = b"\xff" * MAX_STATE_KEY
        value = np.random.default_rng(1).bytes(5_000_000)
        state.commit([(key, value), (key[:-1], b"1")])
        assert state.get(key) == value
        assert list(state.scan(b"\xff")) == [(key[:-1], b"1"), (key, value)]
        state.commit([], [key])
        assert state.get(key) is None

    @pytest.mark.parametrize("key", [b"", b"x" * (MAX_STATE_KEY + 1)])
    def test_a_refused_commit_does_nothing(self, state: StateFile, key: bytes) -> None:
        state.commit([(b"a", b"1")])
        with pytest.raises(BackendError):
            state.commit([(b"a", b"2"), (key, b"3")])
        with pytest.raises(BackendError):
            state.commit([(b"a", b"2")], [b"a", key])
        assert list(state.scan(b"")) == [(b"a", b"1")]

    def test_slot_writes_need_a_backend(self, state: StateFile) -> None:
        write = SlotWrite(REGION, _slots(0), _rows(1, 1))
        with pytest.raises(BackendError):  # no such region in the one that shares
            state.commit([(b"a", b"1")], writes=(write,))
        assert state.get(b"a") is None

    def test_it_behaves_like_a_dict(self, state: StateFile) -> None:
        random = np.random.default_rng(3)
        model: dict[bytes, bytes] = {}
        for _ in range(150):
            keys = [bytes([65 + int(random.integers(8))]) * int(random.integers(1, 5)) for _ in range(12)]
            puts = [(key, random.bytes(int(random.integers(0, 6000)))) for key in keys[: random.integers(9)]]
            deletes = keys[9:]
            state.commit(puts, deletes)
            for key in deletes:
                model.pop(key, None)
            model.update(puts)
            assert dict(state.scan(b"")) == model
            assert state.get(keys[0]) == model.get(keys[0])

    def test_sync(self, state: StateFile) -> None:
        state.commit([(b"a", b"1")])
        state.sync()
        assert state.get(b"a") == b"1"

    def test_close(self, state: StateFile) -> None:
        state.commit([(b"a", b"1")])
        state.close()
        state.close()
        if state.shared is not None:
            assert state.get(b"a") == b"1"  # it is the backend that closes
            state.shared.close()
        calls: list[Callable[[], object]] = [
            lambda: state.get(b"a"),
            lambda: list(state.scan(b"")),
            lambda: state.commit([(b"a", b"2")]),
            state.sync,
        ]
        for call in calls:
            with pytest.raises(BackendError):
                call()

    def test_it_survives_reopening(self, state: StateFile) -> None:
        pairs = [(b"a", b"1"), (b"b", bytes(10_000))]
        state.commit([*pairs, (b"c", b"")])
        state.commit([], [b"c"])
        state.sync()
        again = self.reopen(state)
        if again is None:
            pytest.skip("the file is gone with its object")
        assert list(again.scan(b"")) == pairs
        again.close()
