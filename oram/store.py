"""ObliviousStore: bytes keys and values over an oblivious array.

Every method states its **Cost** (accesses; an access is one round trip to read and one to write, over a remote backend one for both) and what
it **Leaks**: what the server learns beyond the number and time of accesses.
"""

from __future__ import annotations

import os
import threading
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    Sequence,
    ValuesView,
)
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, overload

import numpy as np

from oram import record
from oram.assembly import Shape, fresh, install, reopen
from oram.backends import Backend, Capability
from oram.directory import NO_TAG, Directory
from oram.engine import GENERATION_BLOCKS, Durability, Engine
from oram.errors import (
    AddressError,
    BlockSizeError,
    CapacityError,
    ForkedStoreError,
    HandleError,
    IntegrityError,
    KeyTypeError,
    MissingKeyError,
    OramError,
    ParameterError,
    StoreExistsError,
)
from oram.journal import HEADER, entries_of
from oram.kernels import CIPHERS
from oram.kernels.base import Op, Requests
from oram.keys import KEY_SIZE, Credential, Header
from oram.params import (
    DEFAULT_TREE_TOP,
    IN_MEMORY,
    ON_DISK,
    ON_WIRE,
    SCHEMES,
    LinearParams,
    PathParams,
    RingParams,
    SchemeParams,
    SlotCost,
    check_shape,
    check_shards,
    check_tree_top,
    linear_is_cheaper,
    refuse,
)
from oram.site import Site, Where, parts_of
from oram.types import I64, U8

T = TypeVar("T")
S = TypeVar("S")
Progress = Callable[[int], None]  # told how many items are done
Pairs = Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]
_REQUIRED: Any = object()
_INTEGERS = (int, np.integer)


def create(
    where: Where,
    *,
    key: bytes | None = None,
    passphrase: str | None = None,
    capacity: int,
    block_size: int,
    scheme: str | SchemeParams | None = None,
    blocks_per_value: int = 1,
    keyed: bool = True,
    cipher: str = "aes-256-gcm",
    tree_top: int = DEFAULT_TREE_TOP,
    durability: str | None = None,
    state: str | os.PathLike[str] | None = None,
    shards: int | None = None,
    items: Pairs | None = None,
    progress: Progress | None = None,
) -> ObliviousStore:
    """Make a new store and open it.

    where: ``"memory:"``, ``"lmdb:PATH"`` (a directory), a ``pathlib.Path`` (the same as ``lmdb:``), or a Backend; or a store on a Redis or Valkey server
        (``pip install oram[redis]``), ``"redis://HOST[:PORT][/DB]"``, ``"rediss://..."`` for TLS or ``"unix:///SOCKET"``, with ``?name=NAME`` and more
        options as for ``RedisOptions.from_url``. User and password come from ``ORAM_REDIS_USERNAME`` and ``ORAM_REDIS_PASSWORD``, never from the URL.
        Or a list of URLs, or of backends, one a shard, always in the same order.
    key: 32 bytes, as from ``generate_key``. Nothing can be read without it. Give this or ``passphrase``.
    passphrase: goes through Argon2id. Whoever has the header can try passphrases offline: prefer a key.
    capacity: records (blocks where ``keyed`` is False), 1 to 2^31. Fixed. Client memory and the time to create and to open grow with it.
    block_size: bytes of a block, 1 to 2^24. Fixed. Every access costs as much as the largest record.
    scheme: "path", "ring", "cuckoo", "linear", a params object, or None for the cheapest by measurement: Ring where the backend is remote, else
        Path, and Linear for a handful of blocks.
    blocks_per_value: blocks of a record, 1 to 1024. Key and value together may have ``blocks_per_value * block_size`` bytes less
        ``record.OVERHEAD`` = 7, a key at most 65535 of them.
    keyed: False makes an array of blocks without a directory: only ``store.blocks`` can be used.
    cipher: "aes-256-gcm", or "aegis-256" (an Internet-Draft, not a standard; needs ``pip install oram[aegis]``).
    tree_top: bytes of client memory, 16 MiB by default, for what never leaves the client: levels of a Path or Ring tree, or Cuckoo's top
        buffers. The client state on disk grows with it.
    durability: of this handle. "sync" survives power loss (default where the backend is durable). "process" survives the death of the process;
        a power loss rolls the client back, which costs data **and obliviousness**: positions that were seen are used again.
        "none" needs ``close``: a crash loses the whole store.
    state: directory for the client state; None keeps it beside the slots, where a rollback of both together cannot be noticed.
        A server keeps none: over one it has to be given. If it is lost, so are the records.
    shards: trees that the store is made of, each with a part of the records and of the slots; 1 by default, or one for each place in ``where``.
        Every batch of R sends each the same number of requests, B(R, k): it pays from a few hundred records a batch, and for single records
        it multiplies the work (docs/remote.md). Over the URL of a server they have the names ``NAME.0``, ``NAME.1``, ...; any other single place
        holds all of them.
    items: records to start with, a mapping or pairs, by bulk load: all of them in client memory.
    progress: called with the number of items done so far, every 1024 items and at the end. How often tells how many there are: keep it from the server.

    Raises ParameterError with all problems together, StoreExistsError, StoreLockedError, and what ``put_many`` raises for bad
    items; over a server BackendUnavailableError (at the first connection at once), BackendAccessError, BackendReadOnlyError and BackendFullError,
    and a BackendWarning for each of its settings that can lose slots. Cost: no access; time and client memory grow with the capacity; with items,
    every slot is written once, in index order. Leaks: all parameters above except key and items; whether there were items, and not how many.
    """
    credential = Credential.of(key, passphrase)
    count = _shards(where, shards)
    params, level = _check(
        capacity, block_size, scheme, blocks_per_value, keyed, cipher, durability, tree_top, items is not None,
        count,
    )  # fmt: skip
    cost = _cost(where)
    if params is None:
        params = RingParams() if cost is ON_WIRE else PathParams()
    shape = Shape.new(capacity, block_size, blocks_per_value, params, tree_top, cost, cipher, keyed, count)
    site = Site(where, state, sync=level not in (Durability.PROCESS, Durability.NONE), create=True, shards=count)
    try:
        level = _default(level, site)
        if site.file.get(HEADER) is not None or site.server_header() is not None:
            raise StoreExistsError("there is a store at this place already")
        header = Header(shape.public(), os.urandom(KEY_SIZE))
        engine = fresh(site, header, 1, level)
        if items is not None:
            _populate(engine, *_absorb(engine, shape, items, progress))
        install(site, engine, header.seal(credential), empty=items is None, old=None)
        return ObliviousStore(site, engine, header, level)
    except BaseException:
        site.release()
        raise


def open(
    where: Where,
    *,
    key: bytes | None = None,
    passphrase: str | None = None,
    durability: str | None = None,
    state: str | os.PathLike[str] | None = None,
) -> ObliviousStore:
    """Open a store; scheme and parameters come from its header. If its last handle died in an access, that access is finished first.

    where: as for ``create``: the very same place, or list of them.
    key: the store's key; or its ``passphrase``.
    passphrase: as for ``create``. The Argon2id parameters come from the header, before anything is authenticated: up to 4 GiB and 1024 passes.
    durability: of this handle, whatever earlier handles had: as for ``create``.
    state: the directory that ``create`` was given, if it was: always over a server.

    Always written, to the client state: the salt of a new generation. After a crash also the interrupted access, again as an access: its intent,
    its slots and its commit. Where the client state lies apart over a backend that is REMOTE or not ATOMIC, the last write-back is written again. Regions of
    unfinished ``load``, ``clear`` or ``rekey`` are dropped, and the server's copy of the header is mended.

    Raises StoreNotFoundError, StateMissingError, WrongKeyError, StoreLockedError, BackupError, UncleanShutdownError, IntegrityError (RollbackError,
    StaleStateError); over a server also what ``create`` raises there, and StoreLockedError for up to ``lease`` seconds after a client died.
    Cost: one small read, two where the client state lies apart; after a crash also one access; time and client memory grow with the
    capacity. Leaks: that the store was opened; after a crash, a function of the journal.
    """
    credential = Credential.of(key, passphrase)
    level = _durability(durability)
    site = Site(where, state, sync=level not in (Durability.PROCESS, Durability.NONE), create=False)
    try:
        level = _default(level, site)
        engine, header = reopen(site, credential, level)
        return ObliviousStore(site, engine, header, level)
    except BaseException:
        site.release()
        raise


def info(where: Where, *, state: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The public header of a store, without its key and therefore **not authenticated**.

    where, state: as for ``open``.

    Returns a dict: ``format`` (1), ``store`` (the id, hex), ``scheme``, of a Path tree ``Z``, ``L``, ``T`` and ``h``, of a Ring tree
    ``Z``, ``A``, ``S``, ``L``, ``T``, ``metadata`` and, if it was given, ``xor``, of several trees ``shards``, ``blocks``, ``block_size``,
    ``blocks_per_value``, ``cipher``, ``keyed``, and ``kdf`` (name, salt and cost of the key's derivation); see "Header" in docs/formats.md.

    Raises StoreNotFoundError, StateMissingError, StoreLockedError (also while a handle has it open), IntegrityError if it is no header;
    over a server also what ``create`` raises there. Cost: no access. Leaks: that it was looked at.
    """
    site = Site(where, state, sync=True, create=False)
    try:
        return Header.peek(site.header()).public
    finally:
        site.release()


def restore(
    source: str | os.PathLike[str] | Backend,
    where: Where,
    *,
    key: bytes | None = None,
    passphrase: str | None = None,
    state: str | os.PathLike[str] | None = None,
    durability: str | None = None,
) -> ObliviousStore:
    """Make a new store from a backup: new keys inside, new positions for every block. The credential stays the same.

    The positions in a backup may have been used since it was taken, and would link old accesses to new ones; so
    it is read once from end to end and never opened for access.

    source: what ``backup`` wrote, a path or ``"lmdb:PATH"``, never a server. It has to be writable: opening it draws a generation.
    where: as for ``create``; there must be no store. As many shards as the store had, if it had several.
    key: the key of the store that was backed up; or its ``passphrase``.
    passphrase: as for ``open``.
    state: as for ``create``: where the new store's client state goes.
    durability: of the handle that is returned, as for ``create``.

    Raises what ``open`` raises for the backup, but BackupError; StoreExistsError, and over a server what ``create`` raises there. Cost: every slot
    of the backup read, every slot of the new store written. Leaks: nothing beyond that. Client memory: all live blocks.
    """
    credential = Credential.of(key, passphrase)
    level = _durability(durability)
    old = Site(source, None, sync=True, create=False)
    try:
        engine, header = reopen(old, credential, Durability.SYNC, from_backup=True)
        addresses, blocks = _collect(engine)
        tags = None if engine.directory is None else engine.directory.tags.copy()
    finally:
        old.release()
    shape = Shape.of(header.public)
    _shards(where, shape.shards)
    site = Site(where, state, sync=level not in (Durability.PROCESS, Durability.NONE), create=True, shards=shape.shards)
    try:
        level = _default(level, site)
        if site.file.get(HEADER) is not None or site.server_header() is not None:
            raise StoreExistsError("there is a store at this place already")
        header = Header({**header.public, "store": os.urandom(16).hex()}, os.urandom(KEY_SIZE))
        engine = fresh(site, header, 1, level)
        _retag(engine, shape, addresses, blocks, tags)
        _populate(engine, addresses, blocks)
        install(site, engine, header.seal(credential), empty=False, old=None)
        return ObliviousStore(site, engine, header, level)
    except BaseException:
        site.release()
        raise


def _durability(durability: str | None) -> Durability | None:
    try:
        return None if durability is None else Durability(durability)
    except ValueError:
        raise ParameterError('durability must be "sync", "process" or "none"') from None


def _default(level: Durability | None, site: Site) -> Durability:
    if level is not None:
        return level
    return Durability.SYNC if Capability.DURABLE in site.backend.capabilities else Durability.NONE


def _check(
    capacity: int,
    block_size: int,
    scheme: object,
    per_value: int,
    keyed: bool,
    cipher: str,
    durability: str | None,
    tree_top: int,
    has_items: bool,
    shards: int,
) -> tuple[SchemeParams | None, Durability | None]:
    problems = check_shape(capacity, block_size) + check_tree_top(tree_top)
    if has_items and not keyed:
        problems.append("items need a keyed store")
    level = None
    try:
        level = _durability(durability)
    except ParameterError as error:
        problems.append(str(error))
    if isinstance(per_value, bool) or not isinstance(per_value, int) or not 1 <= per_value <= 1024:
        problems.append("blocks_per_value must be an integer from 1 to 1024")
    elif not problems and capacity * per_value > 1 << 31:
        problems.append("capacity times blocks_per_value must be at most 2^31")
    elif not problems and keyed and per_value * block_size <= record.OVERHEAD:
        problems.append(f"a record needs more than {record.OVERHEAD} bytes: raise block_size or blocks_per_value")
    if not problems:
        problems += check_shards(shards, capacity * per_value)
    if not keyed and per_value != 1:
        problems.append("blocks_per_value is for keyed stores")
    if cipher not in CIPHERS:
        problems.append(f"cipher must be one of {', '.join(CIPHERS)}")
    if isinstance(scheme, str):
        if scheme not in SCHEMES:
            problems.append(f"scheme must be one of {', '.join(SCHEMES)}")
        else:
            scheme = SCHEMES[scheme]()
    elif scheme is not None and not isinstance(scheme, SchemeParams):
        problems.append("scheme must be a name, a params object or None")
    elif scheme is not None:
        problems += scheme.problems()
    refuse(problems)
    if scheme is None:
        return LinearParams() if linear_is_cheaper(-(-capacity * per_value // shards), block_size) else None, level
    assert isinstance(scheme, SchemeParams)
    return scheme, level


def _shards(where: Where, shards: int | None) -> int:
    """How many there are to be. ParameterError where that is not what the places say."""
    places = parts_of(where)
    parts = places[0].parts if len(places) == 1 and isinstance(places[0], Backend) else len(places)
    if parts > 1 and shards not in (None, parts):
        raise ParameterError("as many places as shards: one URL or backend for each")
    return parts if shards is None else shards


def _cost(where: Where) -> SlotCost:
    """What a slot costs there."""
    where, *_ = parts_of(where) or [""]
    if isinstance(where, Backend):
        if Capability.REMOTE in where.capabilities:
            return ON_WIRE
        return ON_DISK if Capability.DURABLE in where.capabilities else IN_MEMORY
    kind, colon, _ = os.fspath(where).partition(":")
    if not colon or kind == "lmdb" or not isinstance(where, str):
        return ON_DISK
    return IN_MEMORY if kind == "memory" else ON_WIRE


# --- bulk


def _collect(engine: Engine) -> tuple[I64, U8]:
    """All live blocks, by one scan."""
    chunks = list(engine.scan())
    return np.concatenate([c[0] for c in chunks]), np.concatenate([c[1] for c in chunks])


def _absorb(engine: Engine, shape: Shape, items: Pairs, progress: Progress | None = None) -> tuple[I64, U8]:
    """Enter items into the directory of an engine; their blocks. Later items win over earlier ones with the same key."""
    directory, k, B = engine.directory, shape.blocks_per_value, shape.geometry.B
    assert directory is not None
    size, tag_of = k * B, engine.journal.keyring.tag
    blocks = np.zeros((1024, size), np.uint8)
    rows: dict[int, int] | None = {} if len(directory) else None  # record -> row, where they differ
    n = 0
    for given, content in _pairs(items):
        key, value = record.check(given, content, size)
        tag = tag_of(key)
        found = directory.find(tag)
        if found < 0:
            offered = directory.free(1)
            if not offered:
                raise CapacityError("more items than the store has capacity for")
            found = offered[0]
            directory.insert(tag, found)
        row = found if rows is None else rows.setdefault(found, n)
        if row >= n:
            n = row + 1
            if n > len(blocks):
                blocks = np.concatenate([blocks, np.zeros_like(blocks)])
        blocks[row] = np.frombuffer(record.pack(key, value, size), np.uint8)
        if progress is not None and n & 0x3FF == 0:
            progress(n)
    if progress is not None:
        progress(n)
    records = np.arange(n) if rows is None else np.fromiter(rows, np.int64, n)
    addresses = (records[:, None] * k + np.arange(k)).reshape(-1)
    return addresses, blocks[:n].reshape(n * k, B)


def _pairs(items: Pairs) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of a mapping or an iterable of pairs. KeyTypeError for anything that is no pair."""
    for pair in items.items() if isinstance(items, Mapping) else items:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise KeyTypeError("items must be pairs of a key and a value")
        yield pair[0], pair[1]


def _retag(engine: Engine, shape: Shape, addresses: I64, blocks: U8, tags: U8 | None) -> None:
    """Fill a new directory: the tag key changed with the secret, so that keys are read from their records again."""
    if tags is None or engine.directory is None:
        return
    k, tag_of = shape.blocks_per_value, engine.journal.keyring.tag
    order = np.argsort(addresses)
    ordered = addresses[order]
    for found in np.flatnonzero(tags.any(axis=1)).tolist():
        at = int(np.searchsorted(ordered, found * k))
        parts = order[at : at + k]
        if not np.array_equal(addresses[parts], np.arange(found * k, found * k + k)):
            raise IntegrityError("a record is incomplete: were blocks of this store written directly?")
        pair = record.unpack(blocks[parts].tobytes())
        if pair is None:
            raise IntegrityError("a record is incomplete: were blocks of this store written directly?")
        engine.directory.tags[found] = np.frombuffer(tag_of(pair[0]), np.uint8)
    engine.directory.reload()


def _populate(engine: Engine, addresses: I64, blocks: U8) -> None:
    """Write every slot of a fresh engine once."""
    if sum(form.slots * (form.slot_size // 16 + 4) for form in engine.scheme.regions().values()) > GENERATION_BLOCKS:
        raise ParameterError("this store is too large for a bulk load under one sealing key")
    for write in engine.scheme.build(addresses, blocks):
        engine.put(write)
    engine.backend.sync()


@dataclass(frozen=True, slots=True)
class Stats:
    """For the owner of the store. ``stash`` and ``records`` are secret: do not export them."""

    accesses: int  #: since creation
    records: int | None  #: in use
    stash: int  #: blocks of client memory beyond the public part
    stash_alarm: bool  #: the stash is above the paper's bound for a failure probability of 2^-80
    state_bytes: int  #: of the persisted client state


class Gate:
    """A lock that a thread cannot take twice: an access inside an access would find its buffers in use.

    A signal handler, a finalizer or a ``visit`` that uses the store it interrupts gets HandleError, before anything happens;
    a child of a fork gets ForkedStoreError, instead of waiting for a thread that it does not have.
    """

    def __init__(self) -> None:
        self._lock, self._pid = threading.RLock(), os.getpid()

    def __call__(self) -> threading.RLock:
        """The lock itself, for a ``with``: its own methods cannot be cut in two by a signal, as ones in Python could."""
        if os.getpid() != self._pid:
            raise ForkedStoreError("this store was opened before a fork; open it in one process only")
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise HandleError("this store is in the middle of an operation of the same thread")
        return self._lock


class ObliviousStore(MutableMapping[bytes, bytes]):
    """A mutable mapping from bytes to bytes whose server learns nothing from which records are touched.

    Made by ``oram.create`` and ``oram.open``; close it, or use it in a ``with``. Thread-safe: one access at a time. It refuses pickling, copying,
    use after a fork, and a second handle on the same store. Get, put, delete, hit and miss look the same to the server.

    After IntegrityError, or any error in the middle of an access (Ctrl-C too), it refuses further work: close it, then open the store again.
    Over a server every method can raise BackendUnavailableError, after ``retry`` seconds of connecting again, BackendFullError, BackendReadOnlyError,
    BackendAccessError, and FencedError where another client took the store over.
    From inside one of its own operations (``visit``, a signal handler, a finalizer) it is HandleError, before anything happens.
    """

    __hash__ = object.__hash__

    def __init__(self, site: Site, engine: Engine, header: Header, durability: Durability) -> None:
        self._site, self._engine, self._header = site, engine, header
        self._shape = Shape.of(header.public)
        self._record_size = self._shape.blocks_per_value * self._shape.geometry.B
        self._durability = durability
        self._gate = Gate()
        self._no_note = Directory.note([None])
        self._limit = max(1, engine.scheme.max_batch // self._shape.blocks_per_value)  # records a batch
        self.blocks = Blocks(self)

    # --- one record

    def _directory(self) -> Directory:
        if self._engine.directory is None:
            raise ParameterError("this store was created without keys: use store.blocks")
        return self._engine.directory

    def _one(self, op: Op, found: int, payload: bytes = b"", change: tuple[int, bytes] | None = None) -> bytes:
        """One record's access; a negative ``found`` is a dummy. Returns the record as it was."""
        k = self._shape.blocks_per_value
        requests = self._engine.scheme.requests(k)
        self._fill(requests, 0, op, found, payload)
        self._engine.access(requests, self._no_note if change is None else Directory.note([change]))
        return requests.out[:k].tobytes()

    def _fill(self, requests: Requests, i: int, op: Op, found: int, payload: bytes = b"") -> None:
        k = self._shape.blocks_per_value
        rows = slice(i * k, i * k + k)
        requests.ops[rows] = op if found >= 0 else Op.DUMMY
        requests.addresses[rows] = range(found * k, found * k + k) if found >= 0 else 0
        if op is Op.WRITE:
            requests.data[rows] = np.frombuffer(payload, np.uint8).reshape(k, -1)

    def _value(self, blob: bytes, key: bytes) -> bytes:
        pair = record.unpack(blob)
        if pair is None or pair[0] != key:
            raise IntegrityError("a record is malformed: were blocks of this store written directly?")
        return pair[1]

    def _look(self, key: object) -> tuple[bytes, bytes, int]:
        """Key, tag, record or -1. No access."""
        self._engine.check()
        name = record.check_key(key, self._record_size)
        tag = self._engine.journal.keyring.tag(name)
        return name, tag, self._directory().find(tag)

    def __getitem__(self, key: bytes) -> bytes:
        """The value of a key. MissingKeyError (a KeyError) after the access.

        Cost: one access of ``blocks_per_value`` blocks, hit or miss. Leaks: nothing beyond the access.
        """
        with self._gate():
            name, _, found = self._look(key)
            blob = self._one(Op.READ, found)
            if found < 0:
                raise MissingKeyError
            return self._value(blob, name)

    @overload
    def get(self, key: bytes) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: bytes | T) -> bytes | T: ...
    def get(self, key: bytes, default: Any = None) -> Any:
        """The value of a key, or ``default``. Cost: one access, hit or miss. Leaks: nothing beyond the access."""
        try:
            return self[key]
        except MissingKeyError:
            return default

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Store a value. Acknowledged when it returns: see ``durability``.

        Raises KeyTypeError, KeyTooLargeError, ValueTooLargeError before anything happens; CapacityError after the access.
        Cost: one access, new key or old. Leaks: nothing beyond the access.
        """
        with self._gate():
            name, value = record.check(key, value, self._record_size)
            _, tag, found = self._look(name)
            self._put(name, value, tag, found)

    def _put(self, name: bytes, value: bytes, tag: bytes, found: int) -> None:
        directory = self._directory()
        change = None
        if found < 0:
            offered = directory.free(1)
            if not offered:
                self._one(Op.READ, -1)
                raise CapacityError("the store is full")
            found, change = offered[0], (offered[0], tag)
        self._one(Op.WRITE, found, record.pack(name, value, self._record_size), change)

    def put(self, key: bytes, value: bytes) -> None:
        """The same as ``store[key] = value``."""
        self[key] = value

    def __delitem__(self, key: bytes) -> None:
        """Delete a key. MissingKeyError after the access. Cost: one access, hit or miss. Leaks: nothing beyond the access."""
        self._take(key)

    def delete(self, key: bytes) -> None:
        """The same as ``del store[key]``."""
        self._take(key)

    def _take(self, key: bytes) -> bytes:
        """Remove a key and return its value."""
        with self._gate():
            name, _, found = self._look(key)
            return self._remove(name, found)

    def _remove(self, name: bytes, found: int) -> bytes:
        blob = self._one(Op.REMOVE, found, change=None if found < 0 else (found, NO_TAG))
        if found < 0:
            raise MissingKeyError
        return self._value(blob, name)

    @overload
    def pop(self, key: bytes, /) -> bytes: ...
    @overload
    def pop(self, key: bytes, /, default: bytes | T) -> bytes | T: ...
    def pop(self, key: bytes, /, default: Any = _REQUIRED) -> Any:
        """Remove a key and return its value, or ``default``. Cost: one access, hit or miss. Leaks: nothing beyond the access."""
        try:
            return self._take(key)
        except MissingKeyError:
            if default is _REQUIRED:
                raise
            return default

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove some record and return it. MissingKeyError if there is none. Cost: one access. Leaks: nothing beyond the access."""
        with self._gate():
            self._engine.check()
            found = self._directory().any()
            blob = self._one(Op.REMOVE, found, change=None if found < 0 else (found, NO_TAG))
            if found < 0:
                raise MissingKeyError
            pair = record.unpack(blob)
            if pair is None:
                raise IntegrityError("a record is malformed: were blocks of this store written directly?")
            return pair

    def setdefault(self, key: bytes, default: bytes = b"") -> bytes:
        """The value of a key, which is stored first if it is missing. Cost: one access either way. Leaks: nothing beyond the access."""
        with self._gate():
            name, value = record.check(key, default, self._record_size)
            _, tag, found = self._look(name)
            if found >= 0:
                return self._value(self._one(Op.READ, found), name)
            self._put(name, value, tag, found)
            return value

    # --- many records

    def _batches(self, n: int, size: int | None) -> Iterator[tuple[int, int, int]]:
        """(first, last, padded length) of each batch for n records padded to ``size``."""
        total = n if size is None else size
        if isinstance(total, bool) or not isinstance(total, int) or total < n:
            raise ParameterError("size must be at least the number of records")
        for first in range(0, total, self._limit):
            yield first, min(first + self._limit, n), min(self._limit, total - first)

    def _many(
        self, rows: Sequence[tuple[Op, int, bytes, tuple[int, bytes] | None]], size: int | None
    ) -> Iterator[tuple[int, bytes]]:
        """Run records' requests in padded batches; (index, record as it was) of each real one, batch by batch."""
        k = self._shape.blocks_per_value
        for first, last, length in self._batches(len(rows), size):
            requests = self._engine.scheme.requests(length * k)
            real = rows[first:last]
            padding = length - len(real)
            ops = np.array([*(row[0] for row in real), *[Op.DUMMY] * padding], np.uint8)
            found = np.array([*(row[1] for row in real), *[-1] * padding], np.int64)
            requests.ops[: length * k] = np.where(found < 0, Op.DUMMY, ops).repeat(k)
            at = found[:, np.newaxis] * k + np.arange(k)
            at[found < 0] = 0
            requests.addresses[: length * k] = at.ravel()
            payload = b"".join(row[2] for row in real)  # of all of them, or of none
            if payload:
                requests.data[: len(real) * k] = np.frombuffer(payload, np.uint8).reshape(len(real) * k, -1)
            self._engine.access(requests, Directory.note([*(row[3] for row in real), *[None] * padding]))
            blobs, one = requests.out[: len(real) * k].tobytes(), self._record_size
            for i in range(len(real)):
                yield first + i, blobs[i * one : (i + 1) * one]

    def get_many(self, keys: Iterable[bytes], *, size: int | None = None) -> list[bytes | None]:
        """Values in the order of ``keys``, None where missing.

        size: pad the batch to this many records (with dummies), so that the server does not learn how many were asked for.

        Cost: one batch of len(keys) or ``size`` records, in a constant number of round trips up to ``max_batch``. Leaks: that number.
        """
        with self._gate():
            looked = [self._look(key) for key in keys]
            values: list[bytes | None] = [None] * len(looked)
            failure: IntegrityError | None = None
            for i, blob in self._many([(Op.READ, found, b"", None) for _, _, found in looked], size):
                try:
                    values[i] = self._value(blob, looked[i][0]) if looked[i][2] >= 0 else None
                except IntegrityError as error:  # after the last batch: where it was is nobody's business
                    failure = error
            if failure is not None:
                raise failure
            return values

    def put_many(self, items: Pairs, *, size: int | None = None) -> None:
        """Store many records; later ones win over earlier ones with the same key.

        items: a mapping, or pairs of key and value.
        size: as for ``get_many``.

        All keys and values are checked before anything happens. CapacityError after the accesses, with nothing stored.
        Up to ``max_batch`` records are one atomic batch; more are several. Cost: one batch of len(items) or ``size`` records. Leaks: that number.
        """
        with self._gate():
            checked = [record.check(key, value, self._record_size) for key, value in _pairs(items)]
            directory = self._directory()
            rows: list[tuple[Op, int, bytes, tuple[int, bytes] | None]] = []
            new: dict[bytes, int] = {}
            looked = [self._look(name) for name, _ in checked]
            wanted = {tag for _, tag, found in looked if found < 0}
            offered = iter(directory.free(len(wanted)))
            if len(directory) + len(wanted) > self._shape.records:
                for _ in self._many([(Op.DUMMY, -1, b"", None)] * len(looked), size):
                    pass
                raise CapacityError("the store is full")
            for (name, value), (_, tag, found) in zip(checked, looked, strict=True):
                change = None
                if found < 0 and tag not in new:
                    new[tag] = next(offered)
                    change = (new[tag], tag)
                at = found if found >= 0 else new[tag]
                rows.append((Op.WRITE, at, record.pack(name, value, self._record_size), change))
            for _ in self._many(rows, size):
                pass

    def delete_many(self, keys: Iterable[bytes], *, size: int | None = None) -> list[bool]:
        """Delete many keys; whether each was there, False for a repetition. Cost: one batch of len(keys) or ``size`` records. Leaks: that number.

        size: as for ``get_many``.
        """
        with self._gate():
            rows: list[tuple[Op, int, bytes, tuple[int, bytes] | None]] = []
            gone: set[int] = set()
            for _, _, found in [self._look(key) for key in keys]:
                hit = found >= 0 and found not in gone
                gone.add(found)
                rows.append((Op.REMOVE, found, b"", (found, NO_TAG)) if hit else (Op.DUMMY, -1, b"", None))
            for _ in self._many(rows, size):
                pass
            return [row[3] is not None for row in rows]

    def update(self, other: Any = (), /, **more: bytes) -> None:
        """The same as ``put_many``. Keyword arguments are refused: keys are bytes."""
        if more:
            raise KeyTypeError("keys must be bytes")
        if not isinstance(other, Mapping) and hasattr(other, "keys"):
            other = [(key, other[key]) for key in other.keys()]  # noqa: SIM118 - the mapping protocol, not a dict
        self.put_many(other)

    # --- without the server

    def __contains__(self, key: object) -> bool:
        """Whether a key is there. Cost: none, answered from client state. Leaks: nothing at all."""
        with self._gate():
            return self._look(key)[2] >= 0

    def __len__(self) -> int:
        """Records in use. Cost: none, answered from client state. Leaks: nothing at all."""
        with self._gate():
            self._engine.check()
            return len(self._directory())

    def __bool__(self) -> bool:
        """True: a handle is not its content. Cost: no access. Leaks: nothing."""
        return True

    def __eq__(self, other: object) -> bool:
        """Identity: comparing content would be a scan in disguise. Cost: no access. Leaks: nothing."""
        return self is other

    # --- all records

    def scan(self, visit: Callable[[bytes, bytes], None]) -> None:
        """Call ``visit(key, value)`` for every record, in no useful order, while one sequential scan of all slots goes on.

        visit: called between reads, so that slow code shows as time how many records a chunk has. It must not use the store: HandleError.

        The scan finishes even if ``visit`` raises; what it raised is raised then. ParameterError for a store without keys.
        Cost: every slot read once, in index order; no write. Leaks: that a scan took place. Client memory: of a Path or Ring store one chunk of 8 MB,
        and records of several blocks that are not complete yet; of a Linear store all of it.
        """
        with self._gate():
            self._engine.check()
            k, directory = self._shape.blocks_per_value, self._directory()
            parts: dict[int, list[bytes | None]] = {}
            failure: BaseException | None = None
            for addresses, blocks in self._engine.scan():
                if failure is not None:
                    continue
                try:
                    for i, address in enumerate(addresses.tolist()):
                        found, part = divmod(address, k)
                        if not directory.tags[found].any():
                            continue
                        have = parts.setdefault(found, [None] * k)
                        have[part] = blocks[i].tobytes()
                        if None not in have:
                            pair = record.unpack(b"".join(parts.pop(found)))  # type: ignore[arg-type]
                            if pair is not None:
                                visit(*pair)
                except BaseException as error:
                    failure = error
            if failure is not None:
                raise failure

    def _all(self) -> list[tuple[bytes, bytes]]:
        pairs: list[tuple[bytes, bytes]] = []
        self.scan(lambda key, value: pairs.append((key, value)))
        return pairs

    def __iter__(self) -> Iterator[bytes]:
        """All keys, by one whole scan before the first is returned. Cost and leaks as ``scan``. Client memory: all records.

        ``dict(store)`` and ``{**store}`` are this **and one access a record**, as Python asks for each key: use ``dict(store.items())``.
        """
        return iter([key for key, _ in self._all()])

    def keys(self) -> KeysView[bytes]:
        """A view of the keys. Cost: a scan for each iteration, comparison or set operation; none for ``in`` and ``len``. Leaks: as ``scan``."""
        return _Keys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of the records. Cost: a whole scan for each iteration (before the first record is returned, so that stopping early shows nothing),
        comparison or set operation; one access for ``in``. Leaks: as ``scan``, or as an access.
        """
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """A view of the values. Cost: a whole scan for each iteration and each ``in``. Leaks: as ``scan``."""
        return _Values(self)

    def clear(self) -> None:
        """Empty the store by making it anew. Slots come to be with their first access, as in a new store; old ciphertext is let go, and not wiped.

        Cost: no access; the client state is written anew. Leaks: that it was cleared.
        """
        with self._gate():
            self._renew(None, [], keep=False)

    def load(self, items: Pairs, *, progress: Progress | None = None) -> None:
        """Bulk load: read every slot, merge the items in memory, write every slot once, with fresh positions.

        items: a mapping or pairs; later ones win. All are checked before anything happens.
        progress: as for ``create``.

        Much cheaper than ``put_many`` where a good part of the store is loaded. All or nothing. CapacityError after a load that costs what one that
        fits does, with the content unchanged. Cost: one scan and one rewriting of all slots, whatever is loaded. Leaks: that it took place.
        Client memory: all records. Space at the server: twice the slots for a while, which an LMDB file keeps.
        """
        with self._gate():
            self._directory()
            checked = [record.check(key, value, self._record_size) for key, value in _pairs(items)]
            self._renew(None, checked, keep=True, progress=progress)

    def rekey(self, *, key: bytes | None = None, passphrase: str | None = None) -> None:
        """Change the key or passphrase, the store's secret and all positions: everything is read and written anew.

        key: the new key, 32 bytes; or a new ``passphrase``.
        passphrase: as for ``create``.

        What the old key opened before stays readable to whoever kept a copy of the old slots and that key. Cost and leaks as ``load``.
        """
        credential = Credential.of(key, passphrase)
        with self._gate():
            self._renew(credential, [], keep=True)

    def _overflows(self, items: Pairs) -> bool:
        """Whether these items bring more new keys than there is room for."""
        directory, tag_of = self._directory(), self._engine.journal.keyring.tag
        new = {tag for tag in (tag_of(key) for key, _ in _pairs(items)) if directory.find(tag) < 0}
        return len(directory) + len(new) > self._shape.records

    def _renew(
        self, credential: Credential | None, items: Pairs, *, keep: bool, progress: Progress | None = None
    ) -> None:
        """Build a new incarnation beside the old one and switch over in one transaction."""
        self._engine.check()
        old, site = self._engine, self._site
        header, blob = self._header, site.header()
        if credential is not None:
            header = Header(header.public, os.urandom(KEY_SIZE))
            blob = header.seal(credential)
            header = Header(Header.peek(blob).public, header.secret)
        incarnation = old.journal.incarnation + 1
        full = bool(items) and self._overflows(items)
        addresses, blocks = (
            _collect(old) if keep else (np.empty(0, np.int64), np.empty((0, self._shape.geometry.B), np.uint8))
        )
        try:
            new = fresh(site, header, incarnation, self._durability)
            new.sequence = old.sequence
            _retag(
                new, self._shape, addresses, blocks, old.directory.tags if keep and old.directory is not None else None
            )
            if items and not full:
                extra, more = _absorb(new, self._shape, items, progress)
                stays = ~np.isin(addresses, extra)
                addresses, blocks = np.concatenate([addresses[stays], extra]), np.concatenate([blocks[stays], more])
            if keep:
                _populate(new, addresses, blocks)
        except BaseException:
            old.watch()
            site.drop_all_but(old.journal.incarnation)
            site.file.commit([], entries_of(site.file, incarnation))
            raise
        try:
            install(site, new, blob, empty=False, old=old.journal.incarnation)
            old.retire()
            self._engine, self._header = new, header
        except BaseException as error:
            raise old.fail(error) from error.__cause__
        if full:  # found out before, raised after: it costs the same
            raise CapacityError("more items than the store has capacity for")

    # --- the handle

    @property
    def capacity(self) -> int:
        """Records it can hold (blocks where there is no directory). Cost: no access. Leaks: nothing."""
        return self._shape.records

    @property
    def max_batch(self) -> int:
        """Records that one batch, and so one atomic ``put_many``, can hold. Cost: no access. Leaks: nothing."""
        return self._limit

    @property
    def value_limit(self) -> int:
        """Bytes that key and value may have together. Cost: no access. Leaks: nothing."""
        return self._record_size - record.OVERHEAD

    def info(self) -> dict[str, Any]:
        """The public parameters: the dict of ``oram.info`` without ``kdf``, and authenticated. Cost: no access. Leaks: nothing."""
        return {name: value for name, value in self._header.public.items() if name != "kdf"}

    def stats(self) -> Stats:
        """Numbers for the owner; some are secret. Cost: no access, O(client state) time. Leaks: nothing, if you keep them to yourself."""
        with self._gate():
            self._engine.check()
            engine = self._engine
            stash = engine.scheme.stash_size
            records = None if engine.directory is None else len(engine.directory)
            return Stats(engine.sequence, records, stash, stash > self._shape.geometry.stash_bound, engine.pieces.size)

    def verify(self) -> int:
        """Open every slot under the reference it must have; return the number of live blocks. IntegrityError at the first that does not open.

        Cost: every slot read once, in index order. Leaks: that it took place.
        """
        with self._gate():
            return sum(len(addresses) for addresses, _ in self._engine.scan())

    def flush(self) -> None:
        """Make everything acknowledged so far survive power loss. With durability "none" only until the next access, which
        makes the checkpoint out of date again. Cost: no access; over a remote backend the last access's write. Leaks: that it took place.
        """
        with self._gate():
            self._engine.check()
            self._engine.flush()

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy slots and client state into a new LMDB directory, marked so that it can only be restored, never opened.

        path: the directory, with or without ``lmdb:``. It holds the client state too: keep it where you would keep the store.

        StoreExistsError if there is a store. Cost: every slot read once. Leaks: that it took place.
        """
        with self._gate():
            self._engine.check()
            self._engine.flush()
            self._site.copy_to(
                Path(os.fspath(path).removeprefix("lmdb:")),
                self._engine.regions,
                [self._engine.journal.mark_backup()],
            )

    def close(self) -> None:
        """Leave the store so that it can be opened again. Idempotent. In a child of a fork it only lets go: the parent has the store.

        Cost: no access; with durability "none" the client state is written, over a remote backend the last access's write. Leaks: that it was closed.
        """
        if self._engine.forked:
            self._engine.retire()
            return
        with self._gate():
            if self._closed:
                return
            self._closed = True
            try:
                self._engine.close()
            finally:
                self._site.release()

    _closed = False

    def __enter__(self) -> Self:
        """The store itself. Cost: no access. Leaks: nothing."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """The same as ``close``."""
        self.close()

    def __repr__(self) -> str:
        """Public parameters only. Cost: no access. Leaks: nothing."""
        return f"<ObliviousStore {self._shape.scheme}, {self.capacity} records of {self._record_size} bytes>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise HandleError("a store handle cannot be pickled or copied: open the store where it is used")


class _Scanned(AbstractSet[T]):
    """A view whose comparisons and set operations cost one whole scan, whatever they find: the inherited ones stop early."""

    def _all(self) -> set[T]:
        return set(iter(self))

    def __le__(self, other: AbstractSet[Any]) -> bool:
        return self._all() <= set(other)

    def __lt__(self, other: AbstractSet[Any]) -> bool:
        return self._all() < set(other)

    def __ge__(self, other: AbstractSet[Any]) -> bool:
        return self._all() >= set(other)

    def __gt__(self, other: AbstractSet[Any]) -> bool:
        return self._all() > set(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AbstractSet) and self._all() == set(other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Iterable[Any]) -> set[T]:
        return self._all() & set(other)

    def __or__(self, other: Iterable[S]) -> set[T | S]:
        return self._all() | set(other)

    def __sub__(self, other: Iterable[Any]) -> set[T]:
        return self._all() - set(other)

    def __rsub__(self, other: Iterable[S]) -> set[S]:
        return set(other) - self._all()

    def __xor__(self, other: Iterable[S]) -> set[T | S]:
        return self._all() ^ set(other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def isdisjoint(self, other: Iterable[Any]) -> bool:
        return self._all().isdisjoint(set(other))


class _Keys(_Scanned[bytes], KeysView[bytes]):  # type: ignore[misc]
    """Keys; an iteration is one scan, a membership test costs nothing."""


class _Items(_Scanned[tuple[bytes, bytes]], ItemsView[bytes, bytes]):  # type: ignore[misc]
    """Records; an iteration is one scan, a membership test one access."""

    _mapping: ObliviousStore

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._mapping._all())

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        value = self._mapping.get(item[0])
        return value is not None and bool(value == item[1])


class _Values(ValuesView[bytes]):
    """Values; an iteration or a membership test is one scan."""

    _mapping: ObliviousStore

    def __iter__(self) -> Iterator[bytes]:
        return iter([value for _, value in self._mapping._all()])

    def __contains__(self, value: object) -> bool:
        return any(value == each for _, each in self._mapping._all())


class Blocks:
    """The block level: ``capacity`` blocks of ``block_size`` bytes by address, zeros where never written."""

    def __init__(self, store: ObliviousStore) -> None:
        self._store = store
        self._gate = store._gate
        self.block_size: int = store._shape.geometry.B
        self._n: int = store._shape.geometry.N

    def __len__(self) -> int:
        """Blocks. Cost: no access. Leaks: nothing."""
        return self._n

    def _address(self, address: int) -> int:
        if isinstance(address, bool) or not isinstance(address, _INTEGERS) or not 0 <= address < self._n:
            raise AddressError(f"block addresses are integers from 0 to {self._n - 1}")
        return int(address)

    def _data(self, data: bytes) -> Any:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise KeyTypeError("block data must be bytes")
        if len(data) > self.block_size:
            raise BlockSizeError(f"a block has {self.block_size} bytes")
        return np.frombuffer(bytes(data).ljust(self.block_size, b"\0"), np.uint8)

    def read(self, address: int) -> bytes:
        """One block, ``block_size`` bytes. AddressError. Cost: one access. Leaks: nothing beyond the access."""
        address = self._address(address)
        with self._gate():
            engine = self._store._engine
            requests = engine.scheme.requests(1)
            requests.ops[0] = 0
            requests.addresses[0] = address
            engine.access(requests, self._note(1))
            block: bytes = requests.out[0].tobytes()
            return block

    def write(self, address: int, data: bytes) -> None:
        """Store one block; shorter data is padded with zeros. AddressError, BlockSizeError before anything happens. Cost: one access.
        Leaks: nothing beyond the access.
        """
        address, row = self._address(address), self._data(data)
        with self._gate():
            engine = self._store._engine
            requests = engine.scheme.requests(1)
            requests.ops[0] = Op.WRITE
            requests.addresses[0], requests.data[0] = address, row
            engine.access(requests, self._note(1))

    def _note(self, m: int) -> bytes:
        """As long as the note of as many records, so that blocks and records look the same in the journal too."""
        shape = self._store._shape
        return Directory.no_notes(-(-m // shape.blocks_per_value)) if shape.keyed else b""

    def _addresses(self, addresses: Sequence[int] | I64) -> I64:
        try:
            array = np.asarray(addresses)
        except ValueError:  # lists of different lengths
            array = np.empty((0, 0))
        if array.ndim != 1 or (
            array.size and (array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) >= self._n)
        ):
            raise AddressError(f"block addresses are integers from 0 to {self._n - 1}")
        return array.astype(np.int64)

    def read_many(self, addresses: Sequence[int] | I64) -> U8:
        """Blocks as uint8 (n, block_size), in the order of the addresses. AddressError. Cost: one batch of n. Leaks: n."""
        array = self._addresses(addresses)
        out = np.empty((array.size, self.block_size), np.uint8)
        with self._gate():
            for first in range(0, array.size, self._store._engine.scheme.max_batch):
                self._batch(Op.READ, array[first:], None, out[first:])
        return out

    def write_many(self, addresses: Sequence[int] | I64, data: U8 | Sequence[bytes]) -> None:
        """Store blocks: uint8 (n, block_size) or n bytes objects. AddressError, BlockSizeError before anything happens. Cost: one batch of n. Leaks: n."""
        array = self._addresses(addresses)
        if isinstance(data, np.ndarray):
            rows = data
            if rows.dtype != np.uint8 or rows.shape != (array.size, self.block_size):
                raise BlockSizeError(f"data must be uint8 of shape ({array.size}, {self.block_size})")
        else:
            if len(data) != array.size:
                raise BlockSizeError("as many blocks as addresses, please")
            rows = np.array([self._data(item) for item in data], np.uint8).reshape(array.size, self.block_size)
        with self._gate():
            for first in range(0, array.size, self._store._engine.scheme.max_batch):
                self._batch(Op.WRITE, array[first:], rows[first:], None)

    def _batch(self, op: Op, addresses: I64, rows: U8 | None, out: U8 | None) -> None:
        engine = self._store._engine
        m = min(len(addresses), engine.scheme.max_batch)
        requests = engine.scheme.requests(m)
        requests.ops[:m] = op
        requests.addresses[:m] = addresses[:m]
        if rows is not None:
            requests.data[:m] = rows[:m]
        engine.access(requests, self._note(m))
        if out is not None:
            out[:m] = requests.out[:m]


__all__ = ["Blocks", "ObliviousStore", "OramError", "Stats", "create", "info", "open", "restore"]
