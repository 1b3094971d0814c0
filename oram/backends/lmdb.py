"""Slots, and client state, in an LMDB environment on a local disk.

One environment holds one named database a region, one for the regions' shapes and one for client state, so that
slots and client state change in one transaction. Keys of a region are slot numbers, 8 bytes, big-endian: that is
slot order under LMDB's default comparison, whatever machine reads it, and measures as fast as MDB_INTEGERKEY.

Each commit rewrites the page of the main database, where the roots of the others are. What is small and changes with most
commits therefore lives there, where it costs no page of its own: regions of one slot, and state under keys of up to 8 bytes.

LMDB trusts the structure of its file. What it notices becomes IntegrityError, and changed slots fail to open
under their key; but a file made to crash LMDB can crash the process.
"""

from __future__ import annotations

import errno
import heapq
import mmap
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Self, TypeVar

import numpy as np

from oram.backends.base import (
    Backend,
    Capability,
    RegionShape,
    Slots,
    SlotWrite,
    StateFile,
    check_indices,
    check_region,
    check_state_keys,
    check_write,
)
from oram.errors import (
    BackendError,
    BackendFullError,
    ForkedStoreError,
    IntegrityError,
    ParameterError,
    StoreLockedError,
    StoreNotFoundError,
)
from oram.types import I64

try:
    import fcntl

    import lmdb
except ImportError as error:
    _missing: str | None = str(error)
else:
    _missing = None

__all__ = ["LMDBBackend", "LMDBStateFile"]

T = TypeVar("T")

_DATA = "data.mdb"
_LOCK = "oram.lock"
_SLATE = "oram.slate"
_REGIONS = b"regions"
_STATE = b"state"
_SHORT = 8  # bytes of a state key that lives in the main database
_SHAPE = struct.Struct("<QQ")

#: Named databases an environment can have open: regions, and the two above.
_MAX_DBS = 256

#: What the system says where there is no room: the disk, the quota, or the process's limit.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: Bytes of client state that one transaction of a scan copies.
_SCAN_BYTES = 1 << 20


class LMDBBackend(Backend):
    """Regions in an LMDB environment in the directory ``path``.

    path: made with mode 0700 where it is missing and ``create`` is true.
    sync: whether a write survives power loss (True), or the death of the process only (False). With False, a power
        loss after a ``sync`` may also cost what was synced before it, if the file system reorders writes.
    create: whether to make the environment where there is none; else that is StoreNotFoundError.
    map_size: bytes of address space to start with. It doubles by itself.
    max_map_size: bytes that it never grows beyond; BackendFullError instead. None: no limit.

    One object has the directory from its construction to ``close``: StoreLockedError for any other, in any process.
    Safe to use from several threads. IntegrityError where the file is damaged, from any call.
    """

    capabilities: ClassVar[Capability] = Capability.DURABLE | Capability.ATOMIC

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sync: bool = True,
        create: bool = True,
        map_size: int = 1 << 30,
        max_map_size: int | None = None,
    ) -> None:
        self._shapes: dict[str, RegionShape] = {}
        self._dbs: dict[str, lmdb._Database | None] = {}  # None: the main one
        self._ownership = threading.Lock()
        # Weak, because the state file refers to the backend, and the file must not wait for the cycle collector.
        self._state: weakref.ref[LMDBStateFile] | None = None
        self._environment = _Environment(path, sync=sync, create=create, map_size=map_size, max_map_size=max_map_size)
        try:
            self._state_db = self._environment.open_db(_STATE)
            self._shapes_db = self._environment.open_db(_REGIONS)
            self._load()
        except BaseException:
            self._environment.close()
            raise

    @property
    def path(self) -> Path:
        """The directory of the environment."""
        return self._environment.path

    def allocate(self, region: str, shape: RegionShape) -> None:
        self._environment.check()
        check_region(region, shape)
        declared = self._shapes.get(region)
        if declared is not None:
            if declared != shape:
                raise BackendError(f"region {region!r} is there with {declared.slots} x {declared.slot_size} bytes")
            return
        record = _SHAPE.pack(shape.slots, shape.slot_size)

        def work(txn: lmdb.Transaction[memoryview]) -> lmdb._Database | None:
            txn.put(region.encode(), record, db=self._shapes_db)
            return None if shape.slots == 1 else self._environment.env.open_db(_db_name(region), txn=txn)

        self._dbs[region] = self._environment.run(work, write=True)
        self._shapes[region] = shape

    def regions(self) -> Mapping[str, RegionShape]:
        self._environment.check()
        return MappingProxyType(self._shapes)

    def drop(self, region: str) -> None:
        self._environment.check()
        if region not in self._dbs:
            return
        single = self._dbs[region] is None

        def work(txn: lmdb.Transaction[memoryview]) -> None:
            txn.delete(region.encode(), db=self._shapes_db)
            if single:
                txn.delete(_slot_name(region))
                return
            # A handle of this transaction, because dropping closes it, and a retry needs one again.
            txn.drop(self._environment.env.open_db(_db_name(region), txn=txn, create=False))

        try:
            self._environment.run(work, write=True)
        finally:
            # LMDB closes a dropped database's handle even where the transaction fails afterwards.
            if not self._environment.dead:
                self._load()

    def read(self, region: str, indices: I64) -> Slots:
        shape = self._shape(region)
        check_indices(shape, indices)
        db = self._dbs[region]
        size = shape.slot_size
        data = np.empty((indices.size, size), dtype=np.uint8)
        present = np.ones(indices.size, dtype=np.uint8)
        if not indices.size:
            return Slots(data, present)

        def work(txn: lmdb.Transaction[memoryview]) -> None:
            get = txn.get
            rows = data.data.cast("B")
            for i, key in enumerate(self._keys(region, indices)):
                value = get(key, None, db)
                if value is None:
                    present[i] = 0
                    data[i] = 0
                elif len(value) == size:
                    rows[i * size : (i + 1) * size] = value
                else:
                    raise _damaged()

        self._environment.run(work, write=False)
        return Slots(data, present)

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        self._check_writes(writes)
        self._environment.run(lambda txn: self._put(txn, writes), write=True)

    def sync(self) -> None:
        self._environment.sync()

    def acquire(self) -> None:
        self._environment.check()
        if not self._ownership.acquire(blocking=False):
            raise StoreLockedError("another store handle has this backend")

    def release(self) -> None:
        if self._ownership.locked():
            self._ownership.release()

    def close(self) -> None:
        self._environment.close()

    def state_file(self) -> LMDBStateFile:
        self._environment.check()
        state = self._state() if self._state is not None else None
        if state is None:
            state = LMDBStateFile(self._environment, self._state_db, self)
            self._state = weakref.ref(state)
        return state

    def _load(self) -> None:
        """Read the regions' shapes and open their databases."""
        self._shapes.clear()
        self._dbs.clear()
        records = self._environment.run(
            lambda txn: [(bytes(key), bytes(value)) for key, value in txn.cursor(self._shapes_db)], write=False
        )
        for name, record in records:
            try:
                region = name.decode()
                shape = RegionShape(*_SHAPE.unpack(record))
                check_region(region, shape)
            except (UnicodeDecodeError, struct.error, BackendError) as error:
                raise _damaged() from error
            single = shape.slots == 1
            self._dbs[region] = None if single else self._environment.open_db(_db_name(region), create=False)
            self._shapes[region] = shape

    def _shape(self, region: str) -> RegionShape:
        self._environment.check()
        try:
            return self._shapes[region]
        except KeyError:
            raise BackendError(f"no region {region!r}") from None

    def _keys(self, region: str, indices: I64) -> list[bytes]:
        return [_slot_name(region)] * indices.size if self._dbs[region] is None else _keys(indices)

    def _check_writes(self, writes: Sequence[SlotWrite]) -> None:
        self._environment.check()
        for write in writes:
            check_write(self._shape(write.region), write)

    def _put(self, txn: lmdb.Transaction[memoryview], writes: Sequence[SlotWrite]) -> None:
        for write in writes:
            if not write.indices.size:
                continue
            keys, db = self._keys(write.region, write.indices), self._dbs[write.region]
            if db is None:
                txn.put(keys[0], write.data[0].data)
                continue
            cursor = txn.cursor(db)
            # Slots in order behind all others fill LMDB's pages, instead of leaving each half empty.
            behind = not cursor.last() or bytes(cursor.key()) < keys[0]
            append = behind and bool((write.indices[1:] > write.indices[:-1]).all())
            cursor.putmulti(zip(keys, write.data, strict=True), append=append)


class LMDBStateFile(StateFile):
    """Client state in an LMDB environment: that of an ``LMDBBackend`` (its ``state_file``), or its own (``at``)."""

    def __init__(self, environment: _Environment, db: lmdb._Database, shared: LMDBBackend | None) -> None:
        self.shared = shared
        self._backend = shared
        self._environment = environment
        self._db = db

    @classmethod
    def at(cls, path: str | os.PathLike[str], *, sync: bool = True, create: bool = True) -> Self:
        """The client state in a directory ``path`` of its own; the arguments are those of ``LMDBBackend``.

        Raises StoreNotFoundError, StoreLockedError and IntegrityError as ``LMDBBackend`` does.
        """
        environment = _Environment(path, sync=sync, create=create, map_size=1 << 26, max_map_size=None)
        try:
            return cls(environment, environment.open_db(_STATE), None)
        except BaseException:
            environment.close()
            raise

    def replace(self, key: bytes, value: bytes) -> None:
        check_state_keys(((key, value),), ())
        if len(key) + len(value) > _Slate.SIZE // 2:
            self.commit([(key, value)])
        else:
            self._environment.put_slate(key, value)

    def get(self, key: bytes) -> bytes | None:
        check_state_keys((), (key,))
        self._environment.check()
        if key and key == self._environment.slate.key:
            return self._environment.slate.value

        def work(txn: lmdb.Transaction[memoryview]) -> bytes | None:
            value = txn.get(_state_name(key)) if len(key) <= _SHORT else txn.get(key, None, self._db)
            return None if value is None else bytes(value)

        return self._environment.run(work, write=False)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As the base class says. Commits during a scan are seen by the part of it that is still to come."""
        self._environment.check()
        slate = self._environment.slate
        pairs = heapq.merge(self._short(prefix), self._scan(prefix))
        if not slate.key or not slate.key.startswith(prefix):
            return pairs
        mine = slate.key, slate.value
        return heapq.merge([mine], (pair for pair in pairs if pair[0] != mine[0]))

    def _short(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """The pairs with short keys: there are few."""

        def work(txn: lmdb.Transaction[memoryview]) -> list[tuple[bytes, bytes]]:
            cursor, start, pairs = txn.cursor(), _state_name(prefix), []
            found = cursor.set_range(start)
            while found and (key := bytes(cursor.key())).startswith(start):
                pairs.append((key[len(_state_name(b"")) :], bytes(cursor.value())))
                found = cursor.next()
            return pairs

        return self._environment.run(work, write=False) if len(prefix) <= _SHORT else []

    def _scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        last: bytes | None = None
        # A transaction for each chunk, because one that stayed open while the caller thinks could not be moved when
        # the map grows, and would keep old pages from being used again.
        while chunk := self._environment.run(partial(self._chunk, prefix, last), write=False):
            yield from chunk
            last = chunk[-1][0]

    def _chunk(self, prefix: bytes, last: bytes | None, txn: lmdb.Transaction[memoryview]) -> list[tuple[bytes, bytes]]:
        """The next pairs behind the key ``last``."""
        cursor = txn.cursor(self._db)
        start = prefix if last is None else last
        found = cursor.set_range(start) if start else cursor.first()
        if found and last is not None and cursor.key() == last:
            found = cursor.next()
        chunk: list[tuple[bytes, bytes]] = []
        size = 0
        while found and size < _SCAN_BYTES:
            key, value = bytes(cursor.key()), bytes(cursor.value())
            if not key.startswith(prefix):
                break
            chunk.append((key, value))
            size += len(key) + len(value)
            found = cursor.next()
        return chunk

    def commit(
        self,
        puts: Sequence[tuple[bytes, bytes | memoryview]],
        deletes: Sequence[bytes] = (),
        *,
        writes: Sequence[SlotWrite] = (),
    ) -> None:
        self._environment.check()
        check_state_keys(puts, deletes)
        backend = self._backend
        if backend is not None:
            backend._check_writes(writes)
        elif writes:
            raise BackendError("this state file shares its transactions with no backend")

        def work(txn: lmdb.Transaction[memoryview]) -> None:
            for key in deletes:
                if len(key) <= _SHORT:
                    txn.delete(_state_name(key))
                else:
                    txn.delete(key, b"", self._db)
            cursor = txn.cursor(self._db)
            last = bytes(cursor.key()) if cursor.last() else b""
            for key, value in puts:
                if len(key) <= _SHORT:
                    txn.put(_state_name(key), value)
                else:
                    # keys behind all others fill LMDB's pages, instead of leaving each half empty
                    cursor.put(key, value, append=key > last)
                    last = max(last, key)
            if backend is not None:
                backend._put(txn, writes)

        self._environment.run(work, write=True)
        slate = self._environment.slate.key  # what it holds counts before what LMDB holds, so it has to go
        if slate and (slate in deletes or any(key == slate for key, _ in puts)):
            self._environment.put_slate(b"", b"")

    def sync(self) -> None:
        self._environment.sync()

    def close(self) -> None:
        if self._backend is None:
            self._environment.close()


class _Slate:
    """One small record in a file of its own, replaced as a whole by one write in place and one flush: LMDB needs two.

    The file has two places of ``SIZE`` bytes, used in turn, so that a write which a crash cuts short leaves the record before it.
    A place is a head (number of the write, lengths of key and value), key, value, and CRC-32 of all that.
    """

    SIZE = 1 << 15
    HEAD = struct.Struct("<QII")

    def __init__(self, path: Path, *, sync: bool) -> None:
        self._path, self._sync = path, sync
        self._file: int | None = None
        self.key, self.value, self._count = b"", b"", 0
        if path.exists():
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._own(file)
            for place in (0, 1):
                self._load(os.pread(file, self.SIZE, place * self.SIZE))

    def _own(self, file: int) -> None:
        self._file, self._let_go = file, weakref.finalize(self, os.close, file)

    def _load(self, data: bytes) -> None:
        if len(data) < self.HEAD.size:
            return
        count, key, value = self.HEAD.unpack_from(data)
        end = self.HEAD.size + key + value
        whole = end + 4 <= len(data) and zlib.crc32(data[:end]) == int.from_bytes(data[end : end + 4], "little")
        if whole and self._count < count < 1 << 63:
            self._count = count
            self.key, self.value = data[self.HEAD.size : end - value], data[end - value : end]

    def _make(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, 2 * self.SIZE)  # so that no later write needs room
            os.fsync(file)
            _sync_directory(self._path.parent)
        except BaseException:
            os.close(file)
            raise
        self._own(file)
        return file

    def put(self, key: bytes, value: bytes) -> None:
        """Replace the record. OSError."""
        file = self._make() if self._file is None else self._file
        count = self._count + 1
        data = self.HEAD.pack(count, len(key), len(value)) + key + value
        data += zlib.crc32(data).to_bytes(4, "little")
        if os.pwrite(file, data, count % 2 * self.SIZE) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._sync:
            os.fdatasync(file)
        self.key, self.value, self._count = key, value, count

    def flush(self) -> None:
        """Make the record survive power loss."""
        if self._file is not None:
            os.fdatasync(self._file)

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._let_go()
        self._file = None


class _Environment:
    """An LMDB environment that locks its directory, grows by itself and speaks in this package's errors."""

    def __init__(
        self, path: str | os.PathLike[str], *, sync: bool, create: bool, map_size: int, max_map_size: int | None
    ) -> None:
        if _missing is not None:
            raise ParameterError(f"LMDB is not installed here (pip install lmdb): {_missing}")
        if map_size < 1 or (max_map_size is not None and max_map_size < 1):
            raise ParameterError("map_size and max_map_size must be positive")
        self.path = Path(path).absolute()
        self.dead = False
        self._sync = sync
        self._settled = (
            False  # whether nothing can lie unsynced in the file: an earlier process may have left something
        )
        self._pid = os.getpid()
        self._why_dead = "the backend is closed"
        self._limit = None if max_map_size is None else _whole_pages(max_map_size)
        # Held through each transaction, because moving the map under an open one would be a crash.
        self._lock = threading.Lock()
        try:
            self._open(create, map_size if self._limit is None else min(map_size, self._limit))
        except OSError as error:
            if error.errno in _FULL:
                raise BackendFullError(f"no room at {self.path}: {error.strerror}") from error
            raise BackendError(f"cannot use {self.path}: {error.strerror}") from error

    def _open(self, create: bool, map_size: int) -> None:
        data = self.path / _DATA
        fresh = not data.exists()
        if fresh and not create:
            raise StoreNotFoundError(f"no LMDB environment at {self.path}")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._unlock = weakref.finalize(self, _unlock, _lock(self.path / _LOCK), self._pid)
        try:
            # An empty file is what a crash while creating leaves, but also all that is left of a truncated one.
            fresh = not data.exists() or (create and not data.stat().st_size)
            if not fresh:
                _check_length(data)
            if fresh:
                (self.path / _SLATE).unlink(missing_ok=True)  # of an environment that is gone
            self.slate = _Slate(self.path / _SLATE, sync=self._sync)
            self.env = lmdb.Environment(
                str(self.path),
                map_size=_whole_pages(map_size),
                max_dbs=_MAX_DBS,
                mode=0o600,
                sync=self._sync,
                metasync=self._sync,
                readahead=False,  # slots are read at random
                writemap=False,  # a stray pointer must not reach the file
                meminit=True,  # what lay in this process's memory must not reach the file
                max_spare_txns=2,
            )
        except BaseException as error:
            self._unlock()
            if isinstance(error, lmdb.Error):
                # py-lmdb has no class of its own for this one.
                if "already open in this process" in str(error):
                    raise StoreLockedError("another handle in this process has the store open") from error
                raise self._failure(error) from error
            raise
        if fresh:
            _sync_directory(self.path)
            _sync_directory(self.path.parent)

    def check(self) -> None:
        """Raise BackendError after ``close`` or a failed write, ForkedStoreError in a child process."""
        if self.dead:
            raise BackendError(self._why_dead)
        if os.getpid() != self._pid:
            raise ForkedStoreError("the LMDB environment was opened before the fork")

    def run(self, work: Callable[[lmdb.Transaction[memoryview]], T], *, write: bool) -> T:
        """Do ``work`` in one transaction; it is done again from the start whenever the map had to grow."""
        with self._lock:
            while True:
                self.check()
                try:
                    with self.env.begin(write=write, buffers=True) as txn:
                        return work(txn)
                except lmdb.MapFullError as error:
                    self._grow(error)
                except lmdb.MapResizedError:
                    self._set_map_size(0)
                except lmdb.Error as error:
                    raise self._failure(error) from error

    def open_db(self, name: bytes, *, create: bool = True) -> lmdb._Database:
        """Open a named database. IntegrityError where there is none and ``create`` is false."""

        def work(txn: lmdb.Transaction[memoryview]) -> lmdb._Database:
            try:
                return self.env.open_db(name, txn=txn, create=create)
            except lmdb.NotFoundError as error:
                raise _damaged() from error

        # A handle opened in a read transaction is lost with it, as py-lmdb keeps that for the next one.
        return self.run(work, write=True)

    def sync(self) -> None:
        with self._lock:
            self.check()
            if self._settled:
                return  # each commit has done it
            try:
                self.slate.flush()
                self.env.sync(True)
            except OSError as error:
                raise self._slate_failure(error) from error
            except lmdb.Error as error:
                raise self._failure(error) from error
            self._settled = self._sync

    def put_slate(self, key: bytes, value: bytes) -> None:
        """Replace the record that is not in LMDB."""
        with self._lock:
            self.check()
            try:
                self.slate.put(key, value)
            except OSError as error:
                raise self._slate_failure(error) from error

    def _slate_failure(self, error: OSError) -> Exception:
        if error.errno in _FULL:
            return BackendFullError(f"no room at {self.path}")
        self._die("reading or writing the disk failed; reopen the store")
        return BackendError(self._why_dead)

    def close(self) -> None:
        with self._lock:
            if self._unlock.alive and os.getpid() == self._pid:
                self.env.close()
                self.slate.close()
            self.dead = True
            self._why_dead = "the backend is closed"
            self._unlock()

    def _grow(self, cause: lmdb.Error) -> None:
        """Double the map. BackendFullError at the limit, or where there is no address space."""
        self.check()
        size = self.env.info()["map_size"]
        wanted = 2 * size if self._limit is None else min(2 * size, self._limit)
        if wanted <= size:
            raise BackendFullError(f"the environment is full at its limit of {size} bytes") from cause
        # LMDB lets go of the old map before it tries the new one, and is unusable if that fails: so try before.
        try:
            mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
        except (OSError, OverflowError, ValueError) as error:
            raise BackendFullError(f"no address space for {wanted} bytes") from error
        self._set_map_size(wanted)

    def _set_map_size(self, size: int) -> None:
        try:
            self.env.set_mapsize(size)
        except lmdb.Error as error:
            self._die("the environment lost its map")
            raise BackendFullError("no address space for the environment; reopen it") from error

    def _failure(self, error: lmdb.Error) -> Exception:
        """What to raise for an error of LMDB in a transaction, which was rolled back."""
        if error.code == errno.EIO:
            # A disk that fills up in the middle of a write looks like this to LMDB.
            if self._is_full():
                return BackendFullError(f"no room at {self.path}")
            # What the kernel could not write it may have dropped; a later fsync would succeed over the gap.
            self._die("reading or writing the disk failed; reopen the store")
            return BackendError(self._why_dead)
        return _translated(error, self.path)

    def _die(self, why: str) -> None:
        self.dead = True
        self._why_dead = why

    def _is_full(self) -> bool:
        """Whether the data file cannot get any longer."""
        file = os.open(self.path / _DATA, os.O_WRONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            try:
                os.posix_fallocate(file, size, 1 << 16)
            except OSError as error:
                return error.errno in _FULL
            finally:
                os.ftruncate(file, size)
            return False
        finally:
            os.close(file)


def _damaged() -> IntegrityError:
    return IntegrityError("the LMDB file is damaged")


def _translated(error: lmdb.Error, path: Path) -> Exception:
    """The error of this package for one of LMDB's, about the directory ``path``."""
    damage = (
        lmdb.CorruptedError,
        lmdb.InvalidError,
        lmdb.PageNotFoundError,
        lmdb.VersionMismatchError,
        lmdb.PanicError,
        lmdb.PageFullError,  # these two cannot happen while the file is sound
        lmdb.CursorFullError,
    )
    if isinstance(error, damage):
        return _damaged()
    if error.code in _FULL:
        return BackendFullError(f"no room at {path}")
    if isinstance(error, lmdb.MemoryError) or error.code == errno.ENOMEM:
        return BackendFullError("no memory for the transaction")
    return BackendError(f"LMDB failed at {path}: {error}")


def _db_name(region: str) -> bytes:
    return b"region " + region.encode()


def _slot_name(region: str) -> bytes:
    return b"slot " + region.encode()


def _state_name(key: bytes) -> bytes:
    return b"state " + key


def _keys(indices: I64) -> list[bytes]:
    """The keys of slots: int64, shape (n,), to n times 8 bytes."""
    packed = indices.astype(">u8").tobytes()
    return [packed[i : i + 8] for i in range(0, len(packed), 8)]


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _lock(path: Path) -> int:
    """Lock a file for this open of it, making it if need be. Returns its descriptor; StoreLockedError if taken."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise StoreLockedError("another handle, in this or another process, has the store open") from None
    except BaseException:
        os.close(file)
        raise
    return file


def _unlock(file: int, pid: int) -> None:
    # Unlocked by name, because children forked meanwhile have the descriptor too; and by its owner only.
    if os.getpid() == pid:
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _sync_directory(path: Path) -> None:
    """Make the names in a directory survive power loss."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# The file of LMDB 0.9 on a 64-bit little-endian machine: what is needed of its MDB_page, MDB_meta and MDB_node.
_PAGE = struct.Struct("<QHHHH")  # page number, -, flags, end of the node pointers, -
_META = struct.Struct("<II QQ IHHQQQQQ IHHQQQQQ QQ")
_NODE = struct.Struct("<HHHH")  # low and high half of size or page, flags or page, size of the key
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _BIG = 1, 2, 1
_NO_PAGE = 2**64 - 1


def _check_length(path: Path) -> None:
    """Raise IntegrityError if a data file was cut off, which would be SIGBUS when LMDB reads what is missing.

    LMDB never writes a page that one and the same transaction took and gave back, so that a sound file may be
    shorter than its number of pages says: but then all that is missing is in its list of free pages.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        metas = []
        page_size = 0
        for _ in range(2):
            head = os.pread(file, _PAGE.size + _META.size, page_size)
            if not head:
                raise _damaged()  # LMDB would make a new environment of nothing
            if len(head) < _PAGE.size + _META.size:
                return  # LMDB notices, here and below
            meta = _META.unpack_from(head, _PAGE.size)
            if meta[:2] != (_MAGIC, _VERSION):
                return
            metas.append(meta)
            page_size = meta[4]
        *_, last_page, _ = newest = max(metas, key=lambda meta: meta[-1])
        missing = range(os.fstat(file).st_size // page_size, last_page + 1)
        if missing and not _free_pages(file, page_size, newest[11]).issuperset(missing):
            raise _damaged()
    except (struct.error, ZeroDivisionError, OverflowError, OSError) as error:
        raise _damaged() from error
    finally:
        os.close(file)


def _free_pages(file: int, page_size: int, root: int) -> set[int]:
    """The pages that are in use by nothing: a tree of lists of page numbers."""
    free: set[int] = set()
    seen: set[int] = set()
    todo = [] if root == _NO_PAGE else [root]
    while todo:
        number = todo.pop()
        page = os.pread(file, page_size, number * page_size)
        _, _, flags, end, _ = _PAGE.unpack_from(page)
        if number in seen or not flags & (_BRANCH | _LEAF):
            raise _damaged()
        seen.add(number)
        for (at,) in struct.iter_unpack("<H", page[_PAGE.size : end]):
            low, high, node_flags, key_size = _NODE.unpack_from(page, at)
            size = low | high << 16
            if flags & _BRANCH:
                todo.append(size | node_flags << 32)
                continue
            value = at + _NODE.size + key_size
            if node_flags & _BIG:
                (number,) = struct.unpack_from("<Q", page, value)
                numbers = os.pread(file, size, number * page_size + _PAGE.size)
            else:
                numbers = page[value : value + size]
            if len(numbers) != size or size < 8:
                raise _damaged()
            free.update(number for (number,) in struct.iter_unpack("<Q", numbers[8:]))  # the first is their count
    return free
