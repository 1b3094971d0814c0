"""Slots in LMDB: the contracts, and growing, filling up, damage, ownership and sudden death."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import stat
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import lmdb
import numpy as np
import pytest

from oram.backends import Backend, LMDBBackend, LMDBStateFile, RegionShape, SlotWrite, StateFile
from oram.errors import (
    BackendError,
    BackendFullError,
    IntegrityError,
    ParameterError,
    StoreLockedError,
    StoreNotFoundError,
)
from oram.testing.conformance import BackendConformance, StateFileConformance
from oram.types import I64, U8

PAGE = 4096
SHAPE = RegionShape(slots=1000, slot_size=4000)


class TestLMDBBackend(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        with LMDBBackend(tmp_path / "store", sync=False) as backend:
            yield backend

    def reopen(self, backend: Backend) -> Backend:
        backend.close()
        return LMDBBackend(cast(LMDBBackend, backend).path, sync=False, create=False)


class TestLMDBBackendThatGrows(BackendConformance):
    """From next to nothing, so that every test meets a full map somewhere."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        with LMDBBackend(tmp_path / "store", sync=False, map_size=8 * PAGE) as backend:
            yield backend

    def reopen(self, backend: Backend) -> Backend:
        backend.close()
        return LMDBBackend(cast(LMDBBackend, backend).path, sync=False, create=False, map_size=1)


class TestLMDBStateFile(StateFileConformance):
    @pytest.fixture
    def state(self, tmp_path: Path) -> Iterator[StateFile]:
        self.path = tmp_path / "client"
        state = LMDBStateFile.at(self.path, sync=False)
        yield state
        state.close()

    def reopen(self, state: StateFile) -> StateFile | None:
        state.close()
        return LMDBStateFile.at(self.path, sync=False, create=False)


class TestLMDBStateFileOfABackend(StateFileConformance):
    @pytest.fixture
    def state(self, tmp_path: Path) -> Iterator[StateFile]:
        self.path = tmp_path / "store"
        with LMDBBackend(self.path, sync=False) as backend:
            yield backend.state_file()

    def reopen(self, state: StateFile) -> StateFile | None:
        assert state.shared is not None
        state.shared.close()
        return LMDBBackend(self.path, sync=False, create=False).state_file()


def _rows(seed: int, count: int, size: int = SHAPE.slot_size) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)


def _indices(*indices: int) -> I64:
    return np.array(indices, dtype=np.int64)


def _fill(backend: Backend, count: int = 200, seed: int = 0) -> U8:
    data = _rows(seed, count)
    backend.allocate("tree", SHAPE)
    backend.write("tree", np.arange(count), data)
    return data


def _check(backend: Backend, data: U8) -> None:
    assert np.array_equal(backend.read("tree", np.arange(len(data))).data, data)


def _run(program: str, *arguments: str | Path, expect: int = 0) -> str:
    """Run a program in a Python of its own and return what it printed."""
    head = (
        "import os, resource, sys\nimport numpy as np\n"
        "from oram.backends import *\nfrom oram.errors import *\n"
        f"SHAPE = RegionShape({SHAPE.slots}, {SHAPE.slot_size})\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", head + program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


# Making and opening


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with LMDBBackend(path) as backend:
        assert backend.path == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for file in path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_nothing_is_made_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "none"
    for make in (LMDBBackend, LMDBStateFile.at):
        with pytest.raises(StoreNotFoundError):
            make(path, create=False)
        assert not path.exists()
        path.mkdir()
        with pytest.raises(StoreNotFoundError):
            make(path, create=False)
        assert list(path.iterdir()) == []
        path.rmdir()


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "file/under"):
        with pytest.raises(BackendError):
            LMDBBackend(tmp_path / path)


@pytest.mark.parametrize("sizes", [{"map_size": 0}, {"map_size": -1}, {"max_map_size": 0}])
def test_sizes_must_be_positive(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        LMDBBackend(tmp_path, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("sync", [True, False])
def test_sync(tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with LMDBBackend(tmp_path, sync=sync) as backend:
        flags = backend._environment.env.flags()
        assert (flags["sync"], flags["metasync"], flags["writemap"], flags["meminit"]) == (sync, sync, False, True)
        assert not flags["readahead"]
        data = _fill(backend)
        backend.sync()
        backend.state_file().sync()
        _check(backend, data)


def test_the_object_is_freed_without_the_cycle_collector(tmp_path: Path) -> None:
    gc.disable()
    try:
        backend = LMDBBackend(tmp_path, sync=False)
        data = _fill(backend)
        backend.state_file().commit([(b"key", b"value")])
        gone = weakref.ref(backend)
        del backend
        assert gone() is None
        with LMDBBackend(tmp_path, sync=False) as again:
            _check(again, data)
    finally:
        gc.enable()


def test_slots_in_order_fill_their_pages(tmp_path: Path) -> None:
    with LMDBBackend(tmp_path, sync=False) as backend:
        shape = RegionShape(20_000, 400)
        backend.allocate("tree", shape)
        for start in range(0, shape.slots, 1000):
            backend.write("tree", np.arange(start, start + 1000), _rows(start, 1000, 400))
        size = (tmp_path / "data.mdb").stat().st_size
        assert size < 1.2 * shape.slots * 420
        # And then not in order, over and before them.
        backend.write("tree", np.arange(500)[::-1], _rows(1, 500, 400))
        assert np.array_equal(backend.read("tree", np.arange(500)[::-1]).data, _rows(1, 500, 400))


# Ownership


def test_one_object_has_the_directory(tmp_path: Path) -> None:
    with LMDBBackend(tmp_path, sync=False) as backend:
        for make in (LMDBBackend, LMDBStateFile.at):
            for create in (True, False):
                with pytest.raises(StoreLockedError):
                    make(tmp_path, create=create)
        (tmp_path / "oram.lock").unlink()  # a lock file removed by hand: LMDB's own guard is left
        with pytest.raises(StoreLockedError):
            LMDBBackend(tmp_path)
        _fill(backend)
    LMDBBackend(tmp_path, sync=False).close()


def test_another_process_is_refused(tmp_path: Path) -> None:
    program = """
try:
    LMDBBackend(sys.argv[1])
except StoreLockedError:
    print("locked")
"""
    with LMDBBackend(tmp_path, sync=False):
        assert _run(program, tmp_path) == "locked\n"
    assert _run(program, tmp_path) == ""


def test_a_child_gets_an_error_and_cannot_unlock(tmp_path: Path) -> None:
    program = """
import fcntl
backend = LMDBBackend(sys.argv[1], sync=False)
backend.allocate("tree", SHAPE)
child = os.fork()
if not child:
    status = 1
    try:
        backend.read("tree", np.arange(3))
    except ForkedStoreError:
        status = 0
    backend.close()
    os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert not backend.read("tree", np.arange(3)).present.any()
lock = os.open(sys.argv[1] + "/oram.lock", os.O_RDWR)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    pass
else:
    raise AssertionError("the child unlocked its parent's store")
pause, go = os.pipe()
child = os.fork()
if not child:
    os.read(pause, 1)
    os._exit(0)
backend.close()
LMDBBackend(sys.argv[1], sync=False).close()  # although the child still has the lock's descriptor
os.write(go, b"x")
os.waitpid(child, 0)
"""
    _run(program, tmp_path)


# Growing and filling up


def test_the_map_doubles_until_all_fits(tmp_path: Path) -> None:
    with LMDBBackend(tmp_path, sync=False, map_size=8 * PAGE) as backend:
        state = backend.state_file()
        backend.allocate("tree", SHAPE)
        data = _rows(1, SHAPE.slots)
        for start in range(0, 200, 10):
            write = SlotWrite("tree", np.arange(start, start + 10), data[start : start + 10])
            state.commit([(b"done", bytes([start]))], writes=(write,))
        backend.write("tree", np.arange(200, 1000), data[200:])  # several doublings in one transaction
        _check(backend, data)
        assert state.get(b"done") == bytes([190])
        assert backend._environment.env.info()["map_size"] >= data.nbytes
    with LMDBBackend(tmp_path, sync=False, map_size=PAGE) as backend:
        _check(backend, data)


def test_full_at_the_limit(tmp_path: Path) -> None:
    with LMDBBackend(tmp_path, sync=False, map_size=8 * PAGE, max_map_size=200 * PAGE) as backend:
        data = _fill(backend, 100)
        state = backend.state_file()
        state.commit([(b"key", b"before")])
        everything = SlotWrite("tree", np.arange(300), _rows(1, 300))
        for _ in range(3):
            with pytest.raises(BackendFullError):
                backend.write_all((everything,))
            with pytest.raises(BackendFullError):
                state.commit([(b"key", b"after")], writes=(everything,))
            with pytest.raises(BackendFullError):
                state.commit([(b"key", bytes(200 * PAGE))])
        _check(backend, data)
        assert not backend.read("tree", np.arange(100, 300)).present.any()
        assert state.get(b"key") == b"before"
        backend.write("tree", _indices(0), _rows(2, 1))  # goes on while there is room
        assert (tmp_path / "data.mdb").stat().st_size <= 200 * PAGE
    with LMDBBackend(tmp_path, sync=False, max_map_size=1000 * PAGE) as backend:
        backend.write_all((everything,))  # room was made
        _check(backend, everything.data)


def test_regions_at_the_limit(tmp_path: Path) -> None:
    with LMDBBackend(tmp_path, sync=False, map_size=8 * PAGE, max_map_size=24 * PAGE) as backend:
        names: list[str] = []

        def fill() -> None:
            for i in range(100):
                backend.allocate(f"{i}", SHAPE)
                backend.write(f"{i}", _indices(0), _rows(i, 1))
                names.append(f"{i}")

        with pytest.raises(BackendFullError):
            fill()
        declared = dict(backend.regions())
        assert len(names) > 2
        for i, name in enumerate(names):
            assert np.array_equal(backend.read(name, _indices(0)).data, _rows(i, 1))
    with LMDBBackend(tmp_path, sync=False, create=False, max_map_size=48 * PAGE) as backend:
        assert dict(backend.regions()) == declared
        for name in names:
            backend.drop(name)


def test_too_many_regions(tmp_path: Path) -> None:
    with LMDBBackend(tmp_path, sync=False) as backend:
        made: list[str] = []

        def make_many() -> None:
            for i in range(1000):
                backend.allocate(f"{i}", SHAPE)
                made.append(f"{i}")

        with pytest.raises(BackendError):
            make_many()
        assert len(made) >= 200
        assert set(backend.regions()) == set(made)
        backend.drop(made[0])
        backend.allocate("x", SHAPE)
    with LMDBBackend(tmp_path, sync=False, create=False) as backend:
        assert set(backend.regions()) == {*made[1:], "x"}


FILL_UP = """
backend = LMDBBackend(sys.argv[1], sync=sys.argv[2] == "True", map_size=1 << 20)
backend.allocate("tree", SHAPE)
state = backend.state_file()
fitted = 0
try:
    for batch in range(1, 101):
        rows = np.full((10, SHAPE.slot_size), batch, np.uint8)
        write = SlotWrite("tree", np.arange(batch * 10 - 10, batch * 10), rows)
        state.commit([(b"done", bytes([batch]))], writes=(write,))
        fitted += 1
except BackendFullError:
    pass
assert 5 < fitted < 99, fitted
slots = backend.read("tree", np.arange(1000))
assert slots.present.sum() == fitted * 10, slots.present.sum()
assert (slots.data[: fitted * 10, 7] == np.repeat(np.arange(1, fitted + 1), 10)).all()
assert state.get(b"done") == bytes([fitted])
for _ in range(3):
    try:
        state.commit([(b"done", bytes(1 << 21))])
    except BackendFullError:
        pass
    else:
        raise AssertionError
assert state.get(b"done") == bytes([fitted])
backend.close()
print(fitted)
"""


def _check_filled(path: Path, fitted: int) -> None:
    with LMDBBackend(path, sync=False, create=False) as backend:
        slots = backend.read("tree", np.arange(1000))
        assert int(slots.present.sum()) == fitted * 10
        assert backend.state_file().get(b"done") == bytes([fitted])
        _fill(backend, 1000)


@pytest.mark.parametrize("sync", [True, False])
def test_full_at_the_file_size_limit(tmp_path: Path, sync: bool) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_003, 2_000_003))\n"
    _check_filled(tmp_path, int(_run(limit + FILL_UP, tmp_path, str(sync))))


def test_full_without_address_space(tmp_path: Path) -> None:
    program = """
import re
backend = LMDBBackend(sys.argv[1], sync=False, map_size=1 << 20)
backend.close()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), used + (40 << 20)))
backend = LMDBBackend(sys.argv[1], sync=False, map_size=1 << 20)
backend.allocate("tree", SHAPE)
data = np.ones((100, SHAPE.slot_size), np.uint8)
backend.write("tree", np.arange(100), data)
try:
    for i in range(100):
        backend.allocate(f"{i}", SHAPE)
        backend.write(f"{i}", np.arange(1000), np.ones((1000, SHAPE.slot_size), np.uint8))
except BackendFullError as error:
    print(error)
assert (backend.read("tree", np.arange(100)).data == data).all()
backend.write("tree", np.arange(1), data[:1])
"""
    if sys.platform != "linux":
        pytest.skip("/proc")
    assert "address space" in _run(program, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("sync", [True, False])
def test_full_disk(small_disk: Path, tmp_path: Path, sync: bool) -> None:
    fitted = int(_run(FILL_UP, small_disk / "store", str(sync)))
    # Make room, and go on.
    shutil.copytree(small_disk / "store", tmp_path / "elsewhere")
    _check_filled(tmp_path / "elsewhere", fitted)


def test_no_room_for_a_new_environment(small_disk: Path) -> None:
    (small_disk / "big").write_bytes(bytes((2 << 20) - 4096))
    with pytest.raises(BackendFullError):
        LMDBBackend(small_disk / "store")


def _system_error(code: int) -> lmdb.Error:
    error = lmdb.DiskError("mdb_txn_commit", code)
    error.code = code  # type: ignore[misc]  # py-lmdb's C code sets it, its constructor does not
    return error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM])
def test_what_counts_as_full(tmp_path: Path, code: int) -> None:
    with LMDBBackend(tmp_path, sync=False) as backend:
        _fill(backend)

        def fail(txn: object) -> None:
            raise _system_error(code)

        with pytest.raises(BackendFullError):
            backend._environment.run(fail, write=True)
        backend.write("tree", _indices(0), _rows(1, 1))


def test_nothing_more_after_an_io_error(tmp_path: Path) -> None:
    with LMDBBackend(tmp_path, sync=False) as backend:
        data = _fill(backend)

        def fail(txn: object) -> None:
            raise _system_error(errno.EIO)

        with pytest.raises(BackendError, match="reopen"):
            backend._environment.run(fail, write=True)
        with pytest.raises(BackendError, match="reopen"):
            backend.read("tree", _indices(0))
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            backend.read("tree", _indices(0))
    with LMDBBackend(tmp_path, sync=False, create=False) as backend:
        _check(backend, data)


# Damage


def _store(path: Path) -> U8:
    with LMDBBackend(path, sync=False) as backend:
        data = _fill(backend, 200)
        backend.state_file().commit([(b"key", b"value" * 1000)])
    return data


@pytest.mark.parametrize("keep", [0, 1, 100, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE, 50 * PAGE, -PAGE, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    _store(tmp_path)
    size = (tmp_path / "data.mdb").stat().st_size
    os.truncate(tmp_path / "data.mdb", keep % size)
    with pytest.raises(IntegrityError, match="damaged"):
        LMDBBackend(tmp_path, create=False)
    with pytest.raises(IntegrityError, match="damaged"):
        LMDBStateFile.at(tmp_path, create=False)


def test_a_crash_while_creating_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").touch()
    _store(tmp_path)


@pytest.mark.parametrize("rounds", range(3))
def test_a_sound_file_may_be_short(tmp_path: Path, rounds: int) -> None:
    """Pages that one transaction takes and gives back are counted and never written."""
    state = LMDBStateFile.at(tmp_path, sync=False)
    kept = [(b"long key %02d" % i, bytes(3000)) for i in range(20)]
    state.commit(kept)
    env = state._environment.env
    for _ in range(rounds + 1):
        for count, value in ((1, bytes(1_000_000)), (300, bytes(1000))):
            with env.begin(write=True, db=state._db) as txn:
                for i in range(count):
                    txn.put(b"x%d" % i, value)
                for i in range(count):
                    txn.delete(b"x%d" % i)
    pages = env.info()["last_pgno"] + 1
    state.close()
    size = (tmp_path / "data.mdb").stat().st_size
    assert size < pages * PAGE  # or else this tests nothing
    state = LMDBStateFile.at(tmp_path, sync=False, create=False)
    assert list(state.scan(b"")) == kept
    state.commit([(b"another %03d" % i, bytes(1000)) for i in range(1000)])
    assert len(list(state.scan(b""))) == 1020
    state.close()
    # Cut where there is something.
    os.truncate(tmp_path / "data.mdb", min(size, (tmp_path / "data.mdb").stat().st_size) // 2)
    with pytest.raises(IntegrityError, match="damaged"):
        LMDBStateFile.at(tmp_path, create=False)


@pytest.mark.parametrize("offset", [16, 17, 16 + 24, 16 + 24 + 1])
def test_flipped_bits_in_the_meta_pages(tmp_path: Path, offset: int) -> None:
    _store(tmp_path)
    with (tmp_path / "data.mdb").open("r+b") as file:
        for page in range(2):
            file.seek(page * PAGE + offset)
            byte = file.read(1)[0]
            file.seek(page * PAGE + offset)
            file.write(bytes([byte ^ 0x40]))
    with pytest.raises(IntegrityError, match="damaged"):
        LMDBBackend(tmp_path, create=False)


FLIP = """
import random
source = open(sys.argv[1] + "/data.mdb", "rb").read()
os.makedirs(sys.argv[2])
numbers = random.Random(1)
for _ in range(int(sys.argv[3])):
    damaged = bytearray(source)
    # Half of them where LMDB keeps its own words: at the beginning of a page.
    at = numbers.randrange(len(source)) if numbers.random() < 0.5 else numbers.randrange(len(source) // 4096) * 4096
    damaged[at + numbers.randrange(min(40, len(source) - at))] ^= 1 << numbers.randrange(8)
    with open(sys.argv[2] + "/data.mdb", "wb") as file:
        file.write(damaged)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 3
        try:
            with LMDBBackend(sys.argv[2], sync=False, create=False) as backend:
                if "tree" in backend.regions():
                    backend.read("tree", np.arange(200))
                    backend.write("tree", np.arange(150, 250), np.zeros((100, SHAPE.slot_size), np.uint8))
                list(backend.state_file().scan(b""))
                backend.state_file().commit([(b"key", b"value" * 2000)])
                code = 0
        except IntegrityError:
            code = 1
        except BackendError:
            code = 2
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_flipped_bits_anywhere(tmp_path: Path) -> None:
    """A flip changes nothing but slots and values (whose seals break), or is an error of this package.

    Or it is an assertion of LMDB's, which ends the process; that must be rare.
    """
    _store(tmp_path / "sound")
    outcomes = [int(line) for line in _run(FLIP, str(tmp_path / "sound"), str(tmp_path / "flipped"), "150").split()]
    assert len(outcomes) == 150
    assert 1 in outcomes
    assert 3 not in outcomes
    assert sum(outcome < 0 for outcome in outcomes) <= 5


def test_a_slot_of_the_wrong_length(tmp_path: Path) -> None:
    data = _store(tmp_path)
    env = lmdb.open(str(tmp_path), max_dbs=10)
    db = env.open_db(b"region tree", create=False)
    for value in (b"", data[3].tobytes()[:-1], data[3].tobytes() + b"\0"):
        with env.begin(write=True, db=db) as txn:
            assert txn.get((4).to_bytes(8, "big")) == data[4].tobytes()
            txn.put((3).to_bytes(8, "big"), value)
        env.close()
        with LMDBBackend(tmp_path, create=False) as backend:
            assert np.array_equal(backend.read("tree", _indices(2, 4)).data, data[[2, 4]])
            with pytest.raises(IntegrityError, match="damaged"):
                backend.read("tree", _indices(2, 3, 4))
        env = lmdb.open(str(tmp_path), max_dbs=10)
        db = env.open_db(b"region tree", create=False)
    env.close()


@pytest.mark.parametrize("record", [b"", b"short", bytes(16), b"\xff" * 17])
def test_a_region_of_no_shape(tmp_path: Path, record: bytes) -> None:
    _store(tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=10) as env, env.begin(write=True, db=env.open_db(b"regions")) as txn:
        txn.put(b"tree", record)
    with pytest.raises(IntegrityError, match="damaged"):
        LMDBBackend(tmp_path, create=False)


def test_a_region_without_its_database(tmp_path: Path) -> None:
    _store(tmp_path)
    with lmdb.open(str(tmp_path), max_dbs=10) as env, env.begin(write=True, db=env.open_db(b"regions")) as txn:
        txn.put(b"gone", txn.get(b"tree", b""))
    with pytest.raises(IntegrityError, match="damaged"):
        LMDBBackend(tmp_path, create=False)


# Copies


# Sudden death


@pytest.mark.parametrize("sync", [True, False])
def test_kill_loses_no_committed_transaction(tmp_path: Path, sync: bool) -> None:
    program = """
backend = LMDBBackend(sys.argv[1], sync=sys.argv[2] == "True", map_size=1 << 16)
backend.allocate("tree", SHAPE)
state = backend.state_file()
for number in range(1, 1 << 30):
    rows = np.full((5, SHAPE.slot_size), number & 255, np.uint8)
    slots = (number * 7 + np.arange(5)) % SHAPE.slots
    state.commit([(b"number", number.to_bytes(4, "big"))], writes=(SlotWrite("tree", slots, rows),))
    os.write(1, number.to_bytes(4, "big"))
"""
    head = (
        f"import os, sys\nimport numpy as np\nfrom oram.backends import *\nSHAPE = RegionShape({SHAPE.slots}, 4000)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    for wanted in (1, 20, 150):
        with subprocess.Popen(
            [sys.executable, "-c", head + program, tmp_path, str(sync)], env=environment, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            said = writer.stdout.read(4 * wanted)
            writer.send_signal(signal.SIGKILL)
            said += writer.stdout.read()
        assert writer.returncode == -signal.SIGKILL
        acknowledged = len(said) // 4
        with LMDBBackend(tmp_path, sync=False, create=False) as backend:
            value = backend.state_file().get(b"number")
            assert value is not None
            number = int.from_bytes(value, "big")
            assert acknowledged <= number <= acknowledged + 1
            for earlier in range(max(1, number - 100), number + 1):
                slots = backend.read("tree", (earlier * 7 + np.arange(5)) % SHAPE.slots)
                assert slots.present.all()
                assert (slots.data == earlier & 255).all()
            # The next one starts over.
            backend.drop("tree")
            backend.state_file().commit([], [b"number"])


def _slate(tmp_path: Path) -> LMDBStateFile:
    return LMDBStateFile.at(tmp_path, sync=False)


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 20, 40])
def test_a_replacement_that_a_crash_cuts_short_leaves_the_record_before(tmp_path: Path, cut: int) -> None:
    state = _slate(tmp_path)
    for i in range(5):
        state.replace(b"key", b"value %d" % i * 5)
    before = (tmp_path / "oram.slate").read_bytes()
    state.replace(b"key", b"the last one, which is longer than the others")
    state.close()
    after = (tmp_path / "oram.slate").read_bytes()
    (changed,) = (place for place in (0, 1 << 15) if before[place:][: 1 << 15] != after[place:][: 1 << 15])
    torn = bytearray(before)
    torn[changed : changed + cut] = after[changed : changed + cut]
    (tmp_path / "oram.slate").write_bytes(torn)
    state = _slate(tmp_path)
    assert state.get(b"key") == b"value 4" * 5
    state.replace(b"key", b"new")
    state.close()
    state = _slate(tmp_path)
    assert state.get(b"key") == b"new"
    state.close()


def test_a_damaged_slate_holds_nothing(tmp_path: Path) -> None:
    state = _slate(tmp_path)
    state.replace(b"key", b"1")
    state.replace(b"key", b"2")
    state.close()
    for data in (b"", b"short", os.urandom(1 << 16), b"\xff" * (1 << 16)):
        (tmp_path / "oram.slate").write_bytes(data)
        state = _slate(tmp_path)
        assert state.get(b"key") is None
        state.close()


def test_a_full_disk_when_the_slate_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = _slate(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(BackendFullError):
            state.replace(b"key", b"1")
    state.replace(b"key", b"2")
    assert state.get(b"key") == b"2"
    state.close()
