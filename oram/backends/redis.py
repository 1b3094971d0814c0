"""Slots in a Redis or Valkey server, one string key a slot.

redis-py makes the connection (TLS, authentication, Unix sockets), and hiredis packs commands and parses replies. The command layer of redis-py
is left out: it would cost more than the rest of an access.

All keys of a store begin with ``{name}:``, so that they share a slot of a cluster and one ACL pattern covers them:

    {name}:lease    who has the store: a random token, which expires
    {name}:fence    how often the lease was taken
    {name}:regions  hash: region -> number, slots and slot size; under the empty name, the last number given out
    {name}:dropped  hash: number -> slots, of dropped regions whose slots are still being deleted
    {name}:fold     the result of a BITOP, inside one transaction only
    {name}:NUMBER:INDEX  a slot, both in hexadecimal and of a fixed width in each region

Every write is a transaction that the server refuses where the lease changed since this client last looked at it (WATCH). The next look is part of the same
round trip, so that the fence costs none.

What the server sees of a failure: where a connection breaks in the middle of a call, the very same commands, with the same bytes, on a new one. They
name slots by number and set them to values, so that it makes no difference whether the first ones took effect. What of them is still on its way when
the new connection is there cannot take effect any more: the owner first touches the lease.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import socket
import ssl
import threading
import time
import urllib.parse
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np

from oram.backends.base import (
    Capability,
    RegionShape,
    SlotRead,
    Slots,
    SlotWrite,
    XorBackend,
    check_groups,
    check_indices,
    check_region,
    check_write,
)
from oram.errors import (
    BackendAccessError,
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendWarning,
    FencedError,
    ForkedStoreError,
    HandleError,
    IntegrityError,
    OramError,
    ParameterError,
    RollbackError,
    StoreLockedError,
)
from oram.types import I64, U8

try:
    import hiredis
    import redis.backoff
    import redis.connection
    import redis.exceptions
except ImportError as error:
    _missing: str | None = str(error)
else:
    _missing = None

__all__ = ["RedisBackend", "RedisOptions"]

T = TypeVar("T")
Credentials: TypeAlias = Callable[[], tuple[str, str]]

#: Environment variables for the user's name and password.
USERNAME, PASSWORD = "ORAM_REDIS_USERNAME", "ORAM_REDIS_PASSWORD"

#: Bounds of one command, so that neither side holds a large batch twice; a batch is still one transaction.
_CHUNK_BYTES, _CHUNK_KEYS = 8 << 20, 1 << 16

#: Up to here, copying a command to its neighbours costs less than sending it by itself.
_JOINED = 128 << 10

#: Keys deleted by one command: below a millisecond of the server's time.
_SWEEP = 1000

#: The longest value a server takes, unless told otherwise.
_MAX_VALUE = 512 << 20

#: To measure a link: bytes; and seconds of a round trip from which no link is as fast as a server folds.
_PAYLOAD, _FAR = 1 << 16, 1e-3

#: What folding takes a server, in seconds: for each group, and for each byte of a slot.
_FOLD, _FOLD_BYTE = 20e-6, 0.6e-9

#: Times that a transaction is made again because somebody touched the lease without taking it.
_ATTEMPTS = 5

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_RECORD = re.compile(rb"(\d{1,10}) (\d{1,19}) (\d{1,19})")
_CODE = re.compile(r"[A-Z]{2,20}")
_NO_INDICES = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where a store lies on a Redis server, and how patient to be.

    host, port: of the server; or socket: the path of its Unix socket.
    db: number of the database. name: of the store in it: letters, digits, ``_``, ``.``, ``-``.
    tls: whether to encrypt the connection. The server's certificate is always checked, against ``ca`` (a PEM file; None: the system's).
    cert, key: PEM files of the client's own certificate.
    credentials: called at each connection, returns (user name, password), with "" for the user ``default``. None: from the
        environment, ``ORAM_REDIS_USERNAME`` and ``ORAM_REDIS_PASSWORD``, if there.
    timeout: seconds to wait for a connection or for the next bytes of a reply.
    retry: seconds during which a call goes on connecting again. The constructor tries once.
    lease: seconds after which the store of a client that died can be taken. It is renewed three times in these.

    Raises ParameterError with all problems together.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    socket: str | None = None
    db: int = 0
    name: str = "oram"
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    credentials: Credentials | None = field(default=None, repr=False, compare=False)
    timeout: float = 10.0
    retry: float = 30.0
    lease: float = 30.0

    def __post_init__(self) -> None:
        problems = []
        if self.socket is None and (not self.host or not 1 <= self.port <= 65535):
            problems.append("a server needs a host, and a port from 1 to 65535")
        if self.socket is not None and self.tls:
            problems.append("a Unix socket has no TLS")
        if not self.tls and (self.ca or self.cert or self.key):
            problems.append("certificates need rediss://")
        if not 0 <= self.db < 1 << 31:
            problems.append("db must be a number of a database")
        if not _NAME.fullmatch(self.name):
            problems.append("name must be 1 to 64 letters, digits, or any of _.-")
        if not (0 < self.timeout <= 3600 and 0 <= self.retry <= 86400 and 1 <= self.lease <= 86400):
            problems.append("timeout must be up to 3600 s, retry up to 86400 s, lease 1 to 86400 s")
        if problems:
            raise ParameterError("; ".join(problems))

    @classmethod
    def from_url(cls, url: str, credentials: Credentials | None = None) -> Self:
        """``redis://HOST[:PORT][/DB]``, ``rediss://`` for TLS, ``unix:///PATH``; then ``?`` and any of name, db, ca, cert, key, timeout, retry, lease.

        ParameterError for anything else, a user name or password among it. Messages do not repeat the URL.
        """
        parts = urllib.parse.urlsplit(url)
        if "@" in parts.netloc:
            raise ParameterError(f"a URL must not contain a user or password: set {USERNAME} and {PASSWORD}")
        kinds: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(("name", "ca", "cert", "key"), str),
            **dict.fromkeys(("timeout", "retry", "lease"), float),
            "db": int,
        }
        values: dict[str, Any] = {"tls": parts.scheme == "rediss"}
        try:
            if parts.scheme == "unix":
                if parts.netloc or not parts.path:
                    raise ValueError
                values["socket"] = urllib.parse.unquote(parts.path)
            elif parts.scheme in ("redis", "rediss"):
                if not parts.hostname or not re.fullmatch(r"(/\d{0,9})?", parts.path):
                    raise ValueError
                values |= {"host": parts.hostname, "port": parts.port or 6379, "db": int(parts.path[1:] or 0)}
            else:
                raise ValueError
            query = urllib.parse.parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            if parts.fragment or any(len(given) > 1 for given in query.values()):
                raise ValueError
            values |= {option: kinds[option](given[0]) for option, given in query.items()}
        except (ValueError, KeyError):
            bad = True
        else:
            bad = False
        if bad:  # not inside the handler, whose exception repeats a part of the URL
            raise ParameterError(
                "not a server's URL: redis://HOST:PORT/DB?name=NAME, rediss:// or unix:///PATH?db=DB&name=NAME, "
                f"with any of {', '.join(sorted(kinds))}"
            )
        return cls(**values, credentials=credentials)

    @property
    def url(self) -> str:
        """Where it is, for people."""
        if self.socket is not None:
            return f"unix://{self.socket}?db={self.db}&name={self.name}"
        return f"redis{'s' * self.tls}://{self.host}:{self.port}/{self.db}?name={self.name}"


class RedisBackend(XorBackend):
    """Regions in a Redis (from 6.2) or Valkey server that the network, or a Unix socket, leads to.

    where: a URL as ``RedisOptions.from_url`` takes, or the options. credentials: with a URL, what ``RedisOptions.credentials`` says.

    **What the capabilities mean here.** ATOMIC: a ``write_all`` is one transaction, and one record of the server's log. DURABLE: as far as the
    server is told to be. With ``appendonly yes`` and ``appendfsync always`` a write is on its disk before the answer. With anything less, a loss of power takes
    acknowledged writes back, and ``sync`` cannot help it; BackendWarning at construction tells, where the server may be asked. A failover to a replica can
    lose writes in any case. What was lost is noticed by the store (RollbackError, IntegrityError), not repaired.

    **Ownership** is a lease that is renewed by use, and in the background while the store is idle. It expires ``lease`` seconds after its client
    died; then another can take it. A client that lost it to another gets FencedError, and has written nothing since. One whose lease ran out
    while nobody took it (a suspended machine, a long outage) takes it again. Without ``acquire`` slots can be
    read and, while nobody has the lease, written and folded; but a write that was sent again may then take effect twice, the second time late.

    **Failures.** Calls go on connecting again for ``retry`` seconds, then raise BackendUnavailableError; what they were about to write may have been
    written. BackendAccessError for a wrong password or missing permission, BackendFullError where the server has no memory left, BackendReadOnlyError from
    a replica, or where the server refuses writes, RollbackError if it came back without the regions or the lease that it had, IntegrityError for keys
    that are no slots.

    Safe to use from several threads, and refused after a fork. There is no client state on a server: give stores ``state=PATH``.

    Cost: one round trip a call, none for ``sync``. ``allocate`` takes two, ``drop`` one for each thousand slots. A renewal
    takes one, three times in a lease. Leaks: which slots, as any backend; when the client is there, by renewals that only time decides.
    """

    capabilities: ClassVar[Capability] = Capability.REMOTE | Capability.ATOMIC | Capability.XOR | Capability.DURABLE

    def __init__(self, where: str | RedisOptions, *, credentials: Credentials | None = None) -> None:
        if _missing is not None:
            raise ParameterError(f"the Redis client is not installed here (pip install oram[redis]): {_missing}")
        if isinstance(where, str):
            where = RedisOptions.from_url(where, credentials)
        elif credentials is not None:
            raise ParameterError("give credentials in the options")
        self.options = where
        self._names = _Names(where.name)
        self._regions: dict[str, _Region] = {}
        self._lock = threading.RLock()
        self._closed, self._pid = False, os.getpid()
        self._token: bytes | None = None  # of our lease
        self._fence = 0  # how often the lease had been taken when we took it
        self._armed = False  # the server watches the lease for us, and we saw that it is as `_token` says
        self._fenced = False
        self._renew_at = 0.0
        self._keeper: threading.Event | None = None
        self._link = _Link(where)
        try:
            self._call(self._warn, retry=0)
        except BaseException:
            self._closed = True
            self._link.drop()
            raise

    def __repr__(self) -> str:
        return f"RedisBackend({self.options.url!r})"

    # Regions

    def allocate(self, region: str, shape: RegionShape) -> None:
        self._check()
        check_region(region, shape)
        if shape.slot_size > _MAX_VALUE:
            raise BackendError(f"a slot has at most {_MAX_VALUE} bytes on this backend")
        if region not in self._regions:
            self._call(partial(self._declare, region, shape))
        declared = self._regions[region].shape
        if declared != shape:
            raise BackendError(f"region {region!r} is there with {declared.slots} x {declared.slot_size} bytes")

    def _declare(self, region: str, shape: RegionShape) -> None:
        (number,) = self._transact([_pack(b"HINCRBY", self._names.regions, b"", b"1")])
        record = b"%d %d %d" % (_integer(number), shape.slots, shape.slot_size)
        # not where it is: this may be the second attempt, or another client's region
        self._transact([_pack(b"HSETNX", self._names.regions, region.encode(), record)])
        self._load()

    def regions(self) -> Mapping[str, RegionShape]:
        self._check()
        return MappingProxyType({region: known.shape for region, known in self._regions.items()})

    def drop(self, region: str) -> None:
        """As the base class says. The region is gone at once, also in a crash; then its slots are deleted, a thousand at a time."""
        self._check()
        with self._lock:
            known = self._regions.pop(region, None)  # first: a new connection must not miss it
            if known is None:
                return
            forget = _pack(b"HDEL", self._names.regions, region.encode())
            remember = _pack(b"HSET", self._names.dropped, b"%d" % known.number, b"%d" % known.shape.slots)
            try:
                self._call(partial(self._transact, [forget, remember]))
            except (BackendError, StoreLockedError) as error:
                if not isinstance(error, BackendUnavailableError):  # else it may be gone, and the next connection tells
                    self._regions[region] = known
                raise
            self._sweep(known)

    def _sweep(self, known: _Region) -> None:
        """Delete the slots of a dropped region. Its number is never given out again, so that this can be done over and over."""
        (size,) = self._call(partial(self._ask, [_pack(b"DBSIZE")]))
        # whichever is less: all keys that are there, or all slots that could be
        chunks = self._found(known) if _integer(size) < known.shape.slots else known.chunks(_SWEEP)
        for keys in chunks:
            if keys:
                self._call(partial(self._transact, [_pack(b"UNLINK", *keys)]))
        self._call(partial(self._transact, [_pack(b"HDEL", self._names.dropped, b"%d" % known.number)]))

    def _found(self, known: _Region) -> Iterator[list[bytes]]:
        cursor = b"0"
        while True:
            command = _pack(b"SCAN", cursor, b"MATCH", known.prefix + b"*", b"COUNT", b"%d" % _SWEEP)
            (reply,) = self._call(partial(self._ask, [command]))
            cursor, keys = _array(reply, 2)
            yield _strings(keys)
            if b"%d" % _integer(cursor) == b"0":
                return

    def _load(self) -> None:
        """Read the regions' shapes. RollbackError where this client owns the store and the server has not what it had."""
        (reply,) = self._ask([_pack(b"HGETALL", self._names.regions)])
        found: dict[str, _Region] = {}
        for name, record in _pairs(reply):
            if not name:
                continue
            match = _RECORD.fullmatch(record)
            try:
                number, slots, size = map(int, match.groups()) if match else (0, 0, 0)
                region, shape = name.decode(), RegionShape(slots, size)
                check_region(region, shape)
            except (UnicodeDecodeError, BackendError):
                raise _damaged() from None
            found[region] = _Region.of(self._names, number, shape)
        if self._token is not None and any(found.get(region) != known for region, known in self._regions.items()):
            raise RollbackError("the server came back without regions that the store had")
        self._regions = found

    # Slots

    def read(self, region: str, indices: I64) -> Slots:
        known = self._region(region)
        check_indices(known.shape, indices)
        head = self._call(partial(self._fetch, known, indices)) if indices.size else []
        return Slots(*_rows(head, indices.size, known.shape.slot_size))

    def read_xor(self, region: str, groups: I64, indices: I64) -> Slots:
        return self.exchange((), SlotRead(region, indices, groups))

    def write_all(self, writes: Sequence[SlotWrite]) -> None:
        puts = self._puts(writes)
        if puts:
            self._call(partial(self._transact, puts))

    def exchange(self, writes: Sequence[SlotWrite], reads: SlotRead) -> Slots:
        """As the base class says, in one round trip.

        The plain read goes ahead of the transaction, so that its slots come down while those of the writes go up. It sees the past, and this
        client's own copies of what it writes take their places. The groups are folded in the transaction, behind the writes.
        """
        known, indices, groups = self._region(reads.region), reads.indices, reads.groups
        check_indices(known.shape, indices)
        if groups is not None:
            check_groups(known.shape, groups)
        size = known.shape.slot_size
        puts = self._puts(writes)
        which, folds = self._folds(known, groups)
        done: list[Any] = []
        if puts or folds:
            gets = known.gets(indices)
            head, done = self._call(partial(self._pipeline, gets, puts + folds))
        else:
            head = self._call(partial(self._fetch, known, indices)) if indices.size else []
        data, present = _rows(head, indices.size, size)
        for write in writes:
            if write.region == reads.region and write.indices.size:
                _overlay(write, indices, data, present)
        if groups is None:
            return Slots(data, present)
        folded = np.zeros((groups.shape[0], size), np.uint8)
        for group, value in zip(which, done[len(puts) + 1 :: 2], strict=True):
            if value is not None:  # else all of its slots are absent
                folded[group] = _rows([[value]], 1, size)[0][0]
        return Slots(data, present, folded)

    def fold_pays(self, slots: int, slot_size: int) -> bool:
        """As the base class says, from the round trip and the rate of the link as they are now: six ``PING``, three of them with 64 KiB.

        Folding takes the server about 20 us and 0.6 ns a byte (docs/remote.md). Where it may not be asked, folding is taken to pay.
        """
        around = {payload: self._ping(payload) for payload in (b"", bytes(_PAYLOAD))}
        bare, laden = around.values()
        if bare is None or laden is None or bare > _FAR:
            return True
        a_byte = max(0.0, laden - bare) / (2 * _PAYLOAD)
        return (slots - 1) * slot_size * a_byte > _FOLD + slots * slot_size * _FOLD_BYTE

    def _ping(self, payload: bytes) -> float | None:
        """Seconds that a payload takes to the server and back, the best of three; None where it refuses."""
        command, best = _pack(b"PING", payload), math.inf
        for _ in range(3):
            start = time.perf_counter()
            (reply,) = self._call(partial(self._link.trip, [command]))
            best = min(best, time.perf_counter() - start)
            if reply != payload:
                return None
        return best

    def _fetch(self, known: _Region, indices: I64) -> list[Any]:
        """A read and nothing else. The owner looks at the lease in the same command: what it reads after it lost it would seem changed."""
        if self._token is None:
            return self._ask(known.gets(indices))
        replies = self._ask(known.gets(indices, self._names.lease))
        last = _array(replies[-1])
        if not last or last.pop() != self._token:
            self._armed = False
            self._arm()  # or it raises: then the slots are another's
        return replies

    def _puts(self, writes: Sequence[SlotWrite]) -> list[bytes]:
        """The commands of the writes, after checking them all. One MSET as a rule; in one the last value of a key counts, so that their order holds."""
        self._check()
        for write in writes:
            check_write(self._region(write.region).shape, write)
        commands: list[bytes] = []
        pairs: list[bytes | memoryview] = [b"MSET"]
        room = _CHUNK_BYTES
        for write in writes:
            if not write.indices.size:
                continue
            known = self._regions[write.region]
            size, step = known.shape.slot_size, known.step
            rows = write.data.data.cast("B")
            for first in range(0, write.indices.size, step):
                keys = known.keys(write.indices[first : first + step])
                piece: list[bytes | memoryview] = [b""] * (2 * len(keys))
                piece[::2] = keys
                piece[1::2] = [rows[at : at + size] for at in range(first * size, (first + len(keys)) * size, size)]
                if len(pairs) > 1 and room < len(keys) * size:
                    commands.append(_pack(*pairs))
                    pairs, room = [b"MSET"], _CHUNK_BYTES
                pairs += piece
                room -= len(keys) * size
        if len(pairs) > 1:
            commands.append(_pack(*pairs))
        return commands

    def _folds(self, known: _Region, groups: I64 | None) -> tuple[list[int], list[bytes]]:
        """Which groups have slots, and two commands for each of these: they leave nothing behind."""
        which: list[int] = []
        commands: list[bytes] = []
        for group, row in enumerate(() if groups is None else groups):
            keys = known.keys(row[row >= 0])
            if keys:
                which.append(group)
                commands += (_pack(b"BITOP", b"XOR", self._names.fold, *keys), self._names.take_fold)
        return which, commands

    def sync(self) -> None:
        """Nothing: what is durable was so before its answer. See DURABLE above."""
        self._check()

    # Ownership

    def acquire(self) -> None:
        self._check()
        with self._lock:
            if self._token is not None:
                raise StoreLockedError("another store handle has this backend")
            token = secrets.token_hex(16).encode()
            self._fence = self._call(partial(self._take, token))
            self._token, self._fenced, self._armed = token, False, False
            try:
                self._call(self._arm)  # so that the first write takes no longer than any other
                for number, slots in self._call(self._leftovers):
                    self._sweep(_Region.of(self._names, number, RegionShape(slots, 1)))
            except BaseException:
                self.release()
                raise
            self._keeper = threading.Event()
            # Weak, so that the connection of a forgotten backend closes, and its lease expires.
            arguments = (weakref.ref(self), self._keeper, self.options.lease / 6)
            threading.Thread(target=_keep, args=arguments, name="oram-lease", daemon=True).start()

    def _take(self, token: bytes) -> int:
        """Take the lease where nobody has it; returns the number of this taking."""
        names = self._names
        start = time.monotonic()
        _, _, holder, fence, left = self._ask([*names.look, _pack(b"PTTL", names.lease)])
        if holder == token:  # an earlier attempt took it, and its answer was lost
            number = _integer(fence)
        elif holder is not None:
            raise StoreLockedError(
                "another client has the store open; if it died, its lease expires in "
                f"{max(0, _integer(left)) / 1000:.0f} s"
            )
        else:
            (done,) = self._ask([_MULTI, _pack(b"INCR", names.fence), names.claim(token, self._lease_ms), _EXEC])[3:]
            if done is None:
                raise StoreLockedError("another client has just opened the store")
            _refuse(_array(done, 2))
            number = _integer(done[0])
        self._load()
        self._renew_at = start + self.options.lease / 3
        return number

    @property
    def _lease_ms(self) -> bytes:
        return b"%d" % int(1000 * self.options.lease)

    def _leftovers(self) -> list[tuple[int, int]]:
        """Number and slots of the regions that somebody dropped and did not live to delete."""
        (reply,) = self._ask([_pack(b"HGETALL", self._names.dropped)])
        return [(_integer(number), _integer(slots)) for number, slots in _pairs(reply)]

    def release(self) -> None:
        """As the base class says. Where the server cannot be reached, the lease expires by itself."""
        if os.getpid() != self._pid:
            self._token = None
        if self._token is None:
            return
        if self._keeper is not None:
            self._keeper.set()
            self._keeper = None
        with self._lock:
            command = _pack(b"DEL", self._names.lease)
            try:
                with contextlib.suppress(Exception):  # whatever it is: also the caller's for the password
                    self._call(partial(self._transact, [command]), retry=min(1.0, self.options.retry))
            finally:
                self._token, self._fenced, self._armed = None, False, False

    def close(self) -> None:
        """Give up the lease and the connection."""
        if self._closed:
            return
        self.release()
        self._closed = True
        if os.getpid() == self._pid:
            with self._lock:
                self._link.drop()
        else:
            self._link.drop()  # this process's copy of the socket only, and whoever had the lock is not in this process

    def state_file(self) -> None:
        self._check()

    def _keep_lease(self) -> None:
        """Renew the lease if it is time. Called in the background."""
        with self._lock:
            if self._token is not None and not self._fenced and not self._closed:
                with contextlib.suppress(Exception):  # the next call will find out
                    self._call(lambda: None, retry=0)

    def _renew(self) -> None:
        start = time.monotonic()
        self._transact([_pack(b"PEXPIRE", self._names.lease, self._lease_ms)])
        self._renew_at = start + self.options.lease / 3

    def _arm(self) -> None:
        """Have the server watch the lease, and look whose it is.

        StoreLockedError where it is another's, FencedError where it was another's since it was ours. Where it expired and nobody took it since, it is
        ours again: the fence tells.
        """
        names = self._names
        for _ in range(_ATTEMPTS):
            _, _, holder, count = self._ask(names.look)
            if self._token is None:
                if holder is not None:
                    raise StoreLockedError("another client has the store open")
                self._armed = True
                return
            fence = 0 if count is None else _integer(count)
            if fence < self._fence:
                raise RollbackError("the server came back without the lease that this client has")
            if fence > self._fence or holder not in (None, self._token):
                self._fenced = True
                raise FencedError("another client took the store over, as the lease of this one had expired")
            if holder is not None:
                self._armed = True
                return
            start = time.monotonic()
            if self._ask([_MULTI, names.claim(self._token, self._lease_ms), _EXEC])[2] is not None:
                self._renew_at = start + self.options.lease / 3
        raise _restless()

    # Round trips

    def _pipeline(self, before: list[bytes], commands: list[bytes]) -> tuple[list[Any], list[Any]]:
        """Commands in a transaction that takes place only while the lease is as this client knows it; ``before`` ahead of it. One round trip.

        Returns both lots of replies, none of them an error.
        """
        names = self._names
        for _ in range(_ATTEMPTS):
            if not self._armed:
                self._arm()
            self._armed = False
            replies = self._link.trip([*before, _MULTI, *commands, _EXEC, names.watch, names.holder])
            done, watched, holder = replies[-3:]
            self._armed = watched == b"OK" and holder == self._token
            _refuse(replies[:-3])  # what the server did not even queue says why, and comes first
            _refuse([done])
            if done is not None:
                _refuse(_array(done, len(commands)))
                return replies[: len(before)], done
        raise _restless()

    def _transact(self, commands: list[bytes]) -> list[Any]:
        return self._pipeline([], commands)[1]

    def _ask(self, commands: list[bytes]) -> list[Any]:
        """Commands in one round trip; none of the replies is an error."""
        replies = self._link.trip(commands)
        _refuse(replies)
        return replies

    def _call(self, work: Callable[[], T], retry: float | None = None) -> T:
        """Run ``work``, which may run again over a new connection where this one breaks: see the head of this module."""
        self._check()  # before the lock, which somebody may have held at a fork
        with self._lock:
            if self._closed or self._fenced:
                self._check()
                raise FencedError("another client took the store over: close this handle")
            try:
                return self._attempt(work)
            except _BrokenError as error:
                reason = error.reason
            patience = self.options.retry if retry is None else retry
            end, failures = time.monotonic() + patience, 0
            backoff = redis.backoff.ExponentialWithJitterBackoff(cap=2.0, base=0.02)
            while (left := end - time.monotonic()) > 0:
                failures += 1
                time.sleep(min(backoff.compute(failures), left))
                try:
                    return self._attempt(work)
                except _BrokenError as error:
                    reason = error.reason
            raise BackendUnavailableError(f"no answer from {self.options.url}: {reason}")

    def _attempt(self, work: Callable[[], T]) -> T:
        if not self._link.up:
            self._armed = False
            self._link.connect()
            try:
                self._inspect()
                self._load()
                if self._token is not None:
                    self._arm()
                    # What was sent over an earlier connection may still be on its way, and would put old slots over newer ones. It is in a
                    # transaction that looks at the lease, and that fails once the lease is touched.
                    self._renew()
            except BaseException:
                self._link.drop()  # it must not be used before all of this went well
                raise
        if self._token is not None and time.monotonic() >= self._renew_at:
            self._renew()
        return work()

    def _check(self) -> None:
        if self._closed:
            raise BackendError("the backend is closed")
        if os.getpid() != self._pid:
            raise ForkedStoreError("this backend was opened before a fork; open it in one process only")

    def _region(self, region: str) -> _Region:
        self._check()
        try:
            return self._regions[region]
        except KeyError:
            raise BackendError(f"no region {region!r}") from None

    # What the server is told

    def _inspect(self) -> None:
        """Ask how the server is set up, as far as it says. BackendReadOnlyError from a replica."""
        asked = (b"maxmemory-policy", b"appendonly", b"appendfsync", b"min-replicas-to-write")
        commands = [_pack(b"CONFIG", b"GET", setting) for setting in asked]
        *settings, info = self._link.trip([*commands, _pack(b"INFO", b"replication")])
        self._settings: dict[bytes, bytes] = {}
        for reply in settings:
            if isinstance(reply, list):  # else it is an error: it does not say
                self._settings |= _pairs(reply)
        if isinstance(info, bytes):
            self._settings |= {name: value for name, _, value in (line.partition(b":") for line in info.splitlines())}
        if self._settings.get(b"role") == b"slave":
            raise BackendReadOnlyError("the server is a replica, whose slots may be old: name its primary")

    def _warn(self) -> None:
        """A BackendWarning for each setting that can lose slots."""
        told = self._settings.get
        troubles = []
        if told(b"maxmemory-policy", b"noeviction") != b"noeviction":
            troubles.append("maxmemory-policy is not noeviction: the server may evict slots, and with them the store")
        if told(b"appendonly", b"yes") != b"yes":
            troubles.append("appendonly is off: when the server stops, the store is lost or older than its client")
        elif told(b"appendfsync", b"always") != b"always":
            # Not WAITAOF instead. With everysec, Valkey 9.1 answers it without having flushed anything, whenever the
            # last flush is less than a second ago.
            troubles.append(
                "appendfsync is not always: a loss of power takes the last writes back, and with them the store"
            )
        if told(b"connected_slaves", b"0") != b"0" and told(b"min-replicas-to-write") == b"0":
            troubles.append(
                "min-replicas-to-write is 0 and there are replicas: a failover may take acknowledged writes back"
            )
        for trouble in troubles:
            warnings.warn(trouble, BackendWarning, stacklevel=5)


def _keep(backend: weakref.ref[RedisBackend], stop: threading.Event, interval: float) -> None:
    """Renew the lease of an idle backend."""
    while not stop.wait(interval):
        there = backend()
        if there is None:
            return
        there._keep_lease()
        del there


class _Names:
    """The keys of a store that are no slots, and the commands that are always the same."""

    def __init__(self, name: str) -> None:
        self.prefix = b"{%s}:" % name.encode()
        self.lease, self.fence, self.regions, self.dropped, self.fold = (
            self.prefix + kind for kind in (b"lease", b"fence", b"regions", b"dropped", b"fold")
        )
        self.watch = _pack(b"WATCH", self.lease)
        # A watch that was touched fails the next transaction, also one behind a further WATCH.
        self.look = [_pack(b"UNWATCH"), self.watch, _pack(b"GET", self.lease), _pack(b"GET", self.fence)]
        self.holder = _pack(b"GET", self.lease)
        self.take_fold = _pack(b"GETDEL", self.fold)

    def claim(self, token: bytes, milliseconds: bytes) -> bytes:
        return _pack(b"SET", self.lease, token, b"NX", b"PX", milliseconds)


@dataclass(frozen=True, slots=True)
class _Region:
    """A region, and how its slots are called."""

    number: int
    shape: RegionShape
    prefix: bytes
    form: bytes  #: the key of a slot, but for its index
    step: int  #: slots of one command

    @classmethod
    def of(cls, names: _Names, number: int, shape: RegionShape) -> Self:
        prefix = names.prefix + b"%08x:" % number
        form = prefix + b"%%0%dx" % len(f"{shape.slots - 1:x}")
        return cls(number, shape, prefix, form, max(1, min(_CHUNK_KEYS, _CHUNK_BYTES // shape.slot_size)))

    def keys(self, indices: I64) -> list[bytes]:
        """The keys of these slots."""
        form = self.form
        return [form % index for index in indices.tolist()]

    def chunks(self, step: int) -> Iterator[list[bytes]]:
        """All keys, ``step`` at a time."""
        for first in range(0, self.shape.slots, step):
            yield self.keys(np.arange(first, min(first + step, self.shape.slots)))

    def gets(self, indices: I64, *more: bytes) -> list[bytes]:
        """The commands that read these slots, the last of them the keys ``more`` too."""
        keys, step = [*self.keys(indices), *more], self.step + len(more)
        return [_pack(b"MGET", *keys[first : first + step]) for first in range(0, len(keys), step)]


class _BrokenError(Exception):
    """The connection broke: whether the server did what it was asked is not known."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Link:
    """One connection to the server, or none."""

    def __init__(self, options: RedisOptions) -> None:
        self._login = _Login.of(options.credentials)
        arguments: dict[str, Any] = {
            "db": options.db,
            "socket_timeout": options.timeout,
            "socket_connect_timeout": options.timeout,
            "socket_read_size": 1 << 18,
            "credential_provider": self._login if self._login.wanted else None,
            "protocol": 2,
            "driver_info": None,
        }
        kinds: Any = redis.connection
        if options.socket is not None:
            self._wire = kinds.UnixDomainSocketConnection(path=options.socket, **arguments)
        elif options.tls:
            self._wire = kinds.SSLConnection(
                host=options.host,
                port=options.port,
                ssl_ca_certs=options.ca,
                ssl_certfile=options.cert,
                ssl_keyfile=options.key,
                ssl_cert_reqs="required",
                ssl_check_hostname=True,
                ssl_min_version=ssl.TLSVersion.TLSv1_2,
                **arguments,
            )
        else:
            self._wire = kinds.Connection(host=options.host, port=options.port, **arguments)
        self._busy = False

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return bool(self._wire.is_connected)

    def connect(self) -> None:
        """Connect, authenticate, select the database."""
        self._login.ask()
        try:
            self._wire.connect()
        except Exception as error:  # of any kind: a hostile server can make redis-py stumble
            trouble = _trouble(error)
        except BaseException:
            self.drop()
            raise
        else:
            return
        finally:
            self._login.forget()
        self.drop()
        # Not inside the handler: a server can repeat the password in the text of its error.
        raise trouble

    def trip(self, commands: list[bytes]) -> list[Any]:
        """Send packed commands, and read a reply to each; an error reply is an exception among them."""
        wire = self._wire
        if self._busy:
            raise HandleError("this backend is in use by one of its own calls")
        try:
            self._busy = True
            wire.send_packed_command(_joined(commands), check_health=False)
            # The parser itself: the connection's own method costs as much again, for each of the short replies of a transaction.
            take = self._wire._get_parser().read_response
            return [take(True) for _ in commands]
        except Exception as error:
            trouble = _trouble(error)
        except BaseException:
            self.drop()  # the replies that are still to come belong to nothing
            raise
        finally:
            self._busy = False
        self.drop()
        raise trouble

    def drop(self) -> None:
        """Close the connection, if any. In a child of the process that made it, its copy only."""
        self._wire.disconnect()


class _Login:
    """What redis-py asks for user and password; it has them while a connection is made, and no longer."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._answer: tuple[str, ...] = ()

    @classmethod
    def of(cls, credentials: Credentials | None) -> Self:
        if credentials is None and (USERNAME in os.environ or PASSWORD in os.environ):
            return cls(lambda: (os.environ.get(USERNAME, ""), os.environ.get(PASSWORD, "")))
        return cls(credentials)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to say."""
        return self._credentials is not None

    def ask(self) -> None:
        """Get them now; the caller's own errors pass."""
        if self._credentials is not None:
            user, password = self._credentials()
            self._answer = (user, password) if user else (password,)

    def forget(self) -> None:
        self._answer = ()

    def get_credentials(self) -> tuple[str, ...]:
        """The name is redis-py's."""
        return self._answer


def _trouble(error: Exception) -> Exception:
    """What to raise for an error of the connection."""
    kinds = redis.exceptions
    if isinstance(error, kinds.AuthenticationError | kinds.AuthenticationWrongNumberOfArgsError):
        return BackendAccessError("the server refused the user or the password, or wants some")
    if isinstance(error, kinds.ConnectionError | kinds.TimeoutError | OSError):
        return _BrokenError(_reason(error))
    if isinstance(error, kinds.ResponseError):
        return _failure(error)
    return BackendError("what answers there is no Redis server")


def _reason(error: Exception) -> str:
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return "it is loading its data"
    cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate does not hold ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return "there is no TLS with it"
    if isinstance(cause, socket.gaierror):
        return "its name does not resolve"
    if isinstance(error, redis.exceptions.TimeoutError):
        return "timed out"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return "the connection broke"


def _failure(error: Exception) -> OramError:
    """What to raise for an error reply. Of its text only the code is repeated: a server can echo there what it was sent."""
    code = getattr(error, "status_code", None) or str(error).split(" ", 1)[0]
    code = code if _CODE.fullmatch(code) else "ERR"
    if code == "OOM":
        return BackendFullError("the server has no memory left for the store (maxmemory)")
    if code in ("READONLY", "NOREPLICAS", "MISCONF", "MASTERDOWN"):
        return BackendReadOnlyError(f"the server takes no writes ({code})")
    if code in ("NOPERM", "NOAUTH", "WRONGPASS"):
        return BackendAccessError(f"the server does not permit this to the user ({code})")
    if code == "WRONGTYPE":
        return _damaged()
    if code in ("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN"):
        return BackendError(f"the server is a part of a cluster, which this backend does not know ({code})")
    return BackendError(f"the server refused a command ({code})")


def _damaged() -> IntegrityError:
    return IntegrityError("a key of the store holds what no store wrote there")


def _restless() -> BackendError:
    return BackendError("somebody keeps touching the store's lease")


def _refuse(replies: Iterable[Any]) -> None:
    """Raise for the first error among replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise _failure(reply) from None


def _integer(reply: Any) -> int:
    try:
        return int(reply)
    except (TypeError, ValueError):
        raise _damaged() from None


def _array(reply: Any, length: int | None = None) -> list[Any]:
    if not isinstance(reply, list) or (length is not None and len(reply) != length):
        raise _strange()
    return reply


def _strings(reply: Any) -> list[bytes]:
    if not all(isinstance(word, bytes) for word in _array(reply)):
        raise _strange()
    return _array(reply)


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:
    words = _strings(reply)
    if len(words) % 2:
        raise _strange()
    return list(zip(words[::2], words[1::2], strict=True))


def _strange() -> BackendError:
    return BackendError("the server answered something else than it was asked")


def _pack(*words: bytes | memoryview) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says a tuple of one
    return packed


def _joined(commands: list[bytes]) -> list[bytes]:
    """The same bytes in few pieces: each costs a system call, and a packet. Large ones are not copied."""
    pieces: list[bytes] = []
    small: list[bytes] = []
    for command in commands:
        if len(command) <= _JOINED:
            small.append(command)
        else:
            pieces += (b"".join(small), command)
            small.clear()
    pieces.append(b"".join(small))
    return [piece for piece in pieces if piece]


def _rows(replies: list[Any], count: int, size: int) -> tuple[U8, U8]:
    """The values of MGETs as an array (count, size), and which are there. IntegrityError where one is not ``size`` bytes long."""
    present = np.empty(count, np.uint8)
    present.fill(1)
    values = _array(replies[0]) if len(replies) == 1 else [value for reply in replies for value in _array(reply)]
    if len(values) != count:
        raise _strange()
    if not count:
        return np.zeros((0, size), np.uint8), present
    if None in values:
        present[:] = [value is not None for value in values]
        absent = bytes(size)
        values = [absent if value is None else value for value in values]
    try:
        if set(map(len, values)) != {size}:
            raise _damaged()
        data = bytearray().join(values)
    except TypeError:  # no strings at all
        raise _damaged() from None
    return np.frombuffer(data, np.uint8).reshape(count, size), present


def _overlay(write: SlotWrite, indices: I64, data: U8, present: U8) -> None:
    """What a read after ``write`` would have got, in what one before it did."""
    order = write.indices.argsort()
    ordered = write.indices[order]
    at = ordered.searchsorted(indices)
    hit = ordered.take(at, mode="clip") == indices
    if hit.any():
        data[hit], present[hit] = write.data[order[at[hit]]], 1


_MULTI, _EXEC = (b"", b"") if _missing is not None else (_pack(b"MULTI"), _pack(b"EXEC"))
