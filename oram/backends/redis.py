"""Slots in a Redis or Valkey server, one string key a slot.

redis-py makes the connection (TLS, authentication, Unix sockets), and hiredis packs commands and parses replies. The command layer of redis-py
is left out: it would cost more than the rest of an access.

All keys of a store begin with ``{name}:``, so that one node of a cluster has all of them, and one ACL pattern covers them:

    {name}:lease    who has the store: a random token, which expires
    {name}:fence    how often the lease was taken, and the token of the last time
    {name}:regions  hash: region -> number, slots and slot size; under the empty name, the last number given out
    {name}:dropped  hash: number -> slots, of dropped regions whose slots are still being deleted
    {name}:fold     the result of a BITOP, inside one transaction only
    {name}:NUMBER:INDEX  a slot, both in hexadecimal and of a fixed width in each region

Every write is a transaction that the server refuses where the lease changed since this client last looked at it (WATCH). The next look is part of the same
round trip, so that the fence costs none.

What the server sees of a failure: where a connection breaks in the middle of a call, the very same commands, with the same bytes, on a new one. They
name slots by number and set them to values, so that it makes no difference whether the first ones took effect. What of them is still on its way when
the new connection is there cannot take effect any more: the owner first touches the lease.

In a cluster each node knows which one has the store, and says so (MOVED): that is followed, as a new connection. CLUSTER SLOTS is only asked so as to know
whom to ask when that node is dead. A node that is named gets what the first one got, in the same order, password included.
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
    import redis.crc
    import redis.exceptions
except ImportError as error:
    _missing: str | None = str(error)
else:
    _missing = None

__all__ = ["RedisBackend", "RedisOptions"]

T = TypeVar("T")
Credentials: TypeAlias = Callable[[], tuple[str, str]]
Address: TypeAlias = tuple[str, int]

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

#: Replicas that may be asked for; writes at risk from which they are asked what they have, and milliseconds that this may take.
_REPLICAS, _ASK, _PATIENCE = 16, 8, 50

#: Times that a transaction is made again because somebody touched the lease without taking it.
_ATTEMPTS = 5

#: Nodes of a cluster that are remembered, and those that are asked before there is a pause.
_NODES, _ROUND = 32, 8

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,255}")
_FENCE = re.compile(rb"(\d{1,18}) ([0-9a-f]{32})")
_RECORD = re.compile(rb"(\d{1,10}) (\d{1,19}) (\d{1,19})")
_CODE = re.compile(r"[A-Z]{2,20}")
_NO_DATABASE = re.compile(r"^(ERR )?(SELECT is not allowed|DB index is out of range)")
_NO_INDICES = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where a store lies on a Redis server, and how patient to be.

    host, port: of the server, or of any node of a cluster; or socket: the path of its Unix socket.
    nodes: (host, port) of further nodes of the cluster, to be asked where that one is dead. Any of them knows which one has the store.
    db: number of the database. name: of the store in it: letters, digits, ``_``, ``.``, ``-``.
    tls: whether to encrypt the connection. The server's certificate is always checked, against ``ca`` (a PEM file; None: the system's).
    cert, key: PEM files of the client's own certificate.
    credentials: called at each connection, returns (user name, password), with "" for the user ``default``. None: from the
        environment, ``ORAM_REDIS_USERNAME`` and ``ORAM_REDIS_PASSWORD``, if there.
    timeout: seconds to wait for a connection or for the next bytes of a reply.
    retry: seconds during which a call goes on connecting again. The constructor tries once.
    lease: seconds after which the store of a client that died can be taken. It is renewed three times in these.
    replicas: how many replicas must have a write before the client lets its copy go; 0 gives up what a failover takes back. None: one, where the
        server says at the first connection that it has some.

    Raises ParameterError with all problems together.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    nodes: tuple[Address, ...] = ()
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
    replicas: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.socket is None and not all(host and 1 <= port <= 65535 for host, port in self.addresses):
            problems.append("a server needs a host, and a port from 1 to 65535")
        if len(self.nodes) >= _NODES:
            problems.append(f"name at most {_NODES} nodes")
        if self.socket is not None and self.nodes:
            problems.append("nodes of a cluster are named by their hosts, not by a Unix socket")
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
        if self.replicas is not None and not 0 <= self.replicas <= _REPLICAS:
            problems.append(f"replicas must be 0 to {_REPLICAS}")
        if problems:
            raise ParameterError("; ".join(problems))

    @classmethod
    def from_url(cls, url: str, credentials: Credentials | None = None) -> Self:
        """``redis://HOST[:PORT][/DB]``, ``rediss://`` for TLS, ``unix:///PATH``; then ``?`` and any of name, db, ca, cert, key, timeout, retry, lease,
        replicas.

        Several nodes of a cluster are separated by commas: ``redis://HOST:PORT,HOST:PORT``.
        ParameterError for anything else, a user name or password among it. Messages do not repeat the URL.
        """
        head, slashes, tail = url.partition("//")
        authority = re.split(r"[/?#]", tail, maxsplit=1)[0]
        if "@" in authority:
            raise ParameterError(f"a URL must not contain a user or password: set {USERNAME} and {PASSWORD}")
        kinds: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(("name", "ca", "cert", "key"), str),
            **dict.fromkeys(("timeout", "retry", "lease"), float),
            **dict.fromkeys(("db", "replicas"), int),
        }
        try:
            parts = urllib.parse.urlsplit(head + slashes + tail[len(authority) :])
            values: dict[str, Any] = {"tls": parts.scheme == "rediss"}
            if parts.scheme == "unix":
                if authority or not parts.path:
                    raise ValueError
                values["socket"] = urllib.parse.unquote(parts.path)
            elif parts.scheme in ("redis", "rediss"):
                if not re.fullmatch(r"(/\d{0,9})?", parts.path):
                    raise ValueError
                (host, port), *nodes = map(_named, authority.split(","))
                values |= {"host": host, "port": port, "nodes": tuple(nodes), "db": int(parts.path[1:] or 0)}
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
        where = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses)
        return f"redis{'s' * self.tls}://{where}/{self.db}?name={self.name}"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Of all nodes that are named; none of them counts where there is a Unix socket."""
        return ((self.host, self.port), *self.nodes)


def _named(node: str) -> Address:
    """Host and port of a node in a URL; ValueError."""
    parts = urllib.parse.urlsplit(f"//{node}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, 6379 if parts.port is None else parts.port


class RedisBackend(XorBackend):
    """Regions in a Redis (from 6.2) or Valkey server, or cluster, that the network, or a Unix socket, leads to.

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
    a replica, or where the server refuses writes (in a cluster after ``retry`` seconds, as it mends that by itself), RollbackError if it came back without the
    regions or the lease that it had, IntegrityError for keys that are no slots.

    **A cluster.** Any of its nodes leads to the one that has the store, all of which lies there. Where that changes, or where the node is dead until a replica
    takes its place, the call goes on, within ``retry`` seconds; so it does while the store is being moved. All nodes get the same
    credentials; the name that a certificate is checked against is the one that the cluster gave to the node.

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
        self._before = b""  # the token of whoever had taken it before us
        self._replicas = 0  # that must have a write before it is safe
        self._at_risk = 0  # transactions since the replicas were last known to have all of them
        self._verify: Callable[[], None] | None = None  # to be called on each new connection
        self._verified = True  # it was
        self._wrote = False  # this connection wrote, so that WAIT says something about it
        self._armed = False  # the server watches the lease for us, and we saw that it is as `_token` says
        self._fenced = False
        self._renew_at = 0.0
        self._keeper: threading.Event | None = None
        self._link = _Link(where)
        self._settings: dict[bytes, bytes] = {}
        try:
            self._call(self._see, retry=0)
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
        cursor, at = b"0", self._link.count
        while True:
            command = _pack(b"SCAN", cursor, b"MATCH", known.prefix + b"*", b"COUNT", b"%d" % _SWEEP)
            # SCAN names no key, so that a node that has the store no longer would scan what is left there: the key ahead of it is refused.
            _, reply = self._call(partial(self._ask, [self._names.holder, command]))
            cursor, keys = _array(reply, 2)
            yield _strings(keys)
            if self._link.count != at:  # a cursor means nothing to another server
                cursor, at = b"0", self._link.count
            elif b"%d" % _integer(cursor) == b"0":
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
            self._doubt()
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

    @property
    def at_risk(self) -> int:
        """As the base class says: transactions that too few replicas are known to have. They are asked every eighth time, with no round trip of its own."""
        return self._at_risk

    def replicate(self) -> None:
        """As the base class says, for half of ``timeout``. BackendReadOnlyError where too few replicas have the latest writes by then."""
        self._check()
        if self._at_risk:
            self._call(self._await)

    def on_reconnect(self, check: Callable[[], None]) -> None:
        self._verify = check

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
                if self._replicas:
                    self._call(self._await)  # a failover must not take the lease back
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
        taken, last = _taken(fence)
        if holder == token == last:  # an earlier attempt took it, and its answer was lost
            number = taken
        elif holder is not None:
            raise StoreLockedError(
                "another client has the store open; if it died, its lease expires in "
                f"{max(0, _integer(left)) / 1000:.0f} s"
            )
        else:
            number, self._before = taken + 1, last
            (done,) = self._ask([_MULTI, *names.take(number, token, self._lease_ms), _EXEC])[3:]
            if done is None:
                raise StoreLockedError("another client has just opened the store")
            _refuse(_array(done, 2))
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
                    self._call(lambda: None, retry=0, verify=False)  # not from this thread: it may be amid an access

    def _renew(self) -> None:
        start = time.monotonic()
        self._transact([_pack(b"PEXPIRE", self._names.lease, self._lease_ms)])
        self._renew_at = start + self.options.lease / 3

    def _arm(self) -> None:
        """Have the server watch the lease, and look whose it is.

        StoreLockedError where it is another's, FencedError where it was another's since it was ours. Where it expired and nobody took it since, it is
        ours again: the fence tells. So where a failover took back that we took it, and nothing more, if somebody verifies what else is missing
        (``on_reconnect``): RollbackError otherwise.
        """
        names = self._names
        for _ in range(_ATTEMPTS):
            _, _, holder, count = self._ask(names.look)
            if self._token is None:
                if holder is not None:
                    raise StoreLockedError("another client has the store open")
                self._armed = True
                return
            fence, last = _taken(count)
            lost = fence == self._fence - 1 and self._verify is not None
            if fence < self._fence and not lost:
                raise RollbackError("the server came back without the lease that this client has")
            # whoever had it before us may seem to have it still, and finds it gone; anybody else came after the failover
            if fence > self._fence or last != (self._before if lost else self._token) or holder not in (None, last):
                self._fenced = True
                raise FencedError("another client took the store over, as the lease of this one had expired")
            if not lost and holder is not None:
                self._armed = True
                return
            start = time.monotonic()
            if self._ask([_MULTI, *names.take(self._fence, self._token, self._lease_ms), _EXEC])[-1] is not None:
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
            # Ahead of the writes, so that it asks for those before them, which are on their way to the replicas already. Not on a connection
            # that has written nothing, where WAIT says nothing, and not of a server that may have lost writes.
            due = self._replicas and self._at_risk and self._at_risk % _ASK == 0 and self._wrote and self._verified
            ask = [names.wait(self._replicas, _PATIENCE)] if due else []
            replies = self._link.trip([*ask, *before, _MULTI, *commands, _EXEC, names.watch, names.holder])
            if ask:
                self._heard(replies.pop(0))
            done, watched, holder = replies[-3:]
            self._armed = watched == b"OK" and holder == self._token
            _refuse(replies[:-3])  # what the server did not even queue says why, and comes first
            _refuse([done])
            if done is not None:
                _refuse(_array(done, len(commands)))
                self._at_risk += bool(self._replicas)
                self._wrote = True
                return replies[: len(before)], done
            self._doubt()
        raise _restless()

    def _doubt(self) -> None:
        """Somebody touched the lease: another client, its end, or a server that was a replica for a while and lost writes, on this same connection.

        Where somebody verifies what a new connection leads to, only a new one will do.
        """
        self._armed = False
        if self._token is not None and self._verify is not None:
            self._link.drop()
            raise _BrokenError("the store's lease was touched")

    def _heard(self, reply: Any) -> None:
        """What a WAIT said: how many replicas have all that this connection had written before it, which began by renewing the lease."""
        _refuse([reply])
        if self._wrote and _integer(reply) >= self._replicas:
            self._at_risk = 0

    def _await(self) -> None:
        (reply,) = self._ask([self._names.wait(self._replicas, int(500 * self.options.timeout))])
        self._heard(reply)
        if self._at_risk:
            raise BackendReadOnlyError(f"fewer than {self._replicas} replicas have the latest writes")

    def _transact(self, commands: list[bytes]) -> list[Any]:
        return self._pipeline([], commands)[1]

    def _ask(self, commands: list[bytes]) -> list[Any]:
        """Commands in one round trip; none of the replies is an error."""
        replies = self._link.trip(commands)
        _refuse(replies)
        return replies

    def _call(self, work: Callable[[], T], retry: float | None = None, *, verify: bool = True) -> T:
        """Run ``work``, which may run again over a new connection where this one breaks: see the head of this module.

        verify: whether now is the time for what ``on_reconnect`` asked for; else the next call does it.
        """
        self._check()  # before the lock, which somebody may have held at a fork
        with self._lock:
            if self._closed or self._fenced:
                self._check()
                raise FencedError("another client took the store over: close this handle")
            link, patience = self._link, self.options.retry if retry is None else retry
            link.tried.clear()
            trouble: _BrokenError | BackendReadOnlyError
            try:
                return self._attempt(work, time.monotonic() + patience, verify)
            except (_BrokenError, BackendReadOnlyError) as error:
                trouble = error
            end, failures = time.monotonic() + patience, 0
            backoff = redis.backoff.ExponentialWithJitterBackoff(cap=2.0, base=0.02)
            while True:
                if not link.follow(trouble):
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    failures += 1
                    time.sleep(min(backoff.compute(failures), left))
                    link.tried.clear()
                try:
                    return self._attempt(work, end, verify)
                except (_BrokenError, BackendReadOnlyError) as error:
                    trouble = error
            if isinstance(trouble, _BrokenError):
                raise BackendUnavailableError(f"no answer from {self.options.url}: {trouble.reason}")
            raise trouble

    def _attempt(self, work: Callable[[], T], until: float, verify: bool) -> T:
        """Run ``work``, where necessary over a new connection; no further node is tried for that after ``until``."""
        if not self._link.up:
            self._armed = self._verified = self._wrote = False
            self._link.connect(until)
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
            self._link.found = True
        if self._token is not None and time.monotonic() >= self._renew_at:
            self._renew()
        if verify and not self._verified:
            self._verified = True  # first: it calls this backend
            try:
                if self._verify is not None:
                    self._verify()
            except BaseException:
                self._verified = False
                raise
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
        self._settings = {}
        for reply in settings:
            if isinstance(reply, list):  # else it is an error: it does not say
                self._settings |= _pairs(reply)
        if isinstance(info, bytes):
            self._settings |= {name: value for name, _, value in (line.partition(b":") for line in info.splitlines())}
        if self._settings.get(b"role") == b"slave":
            self._ask([self._names.holder])  # one of a cluster says where the primary is
            raise BackendReadOnlyError("the server is a replica, whose slots may be old: name its primary")

    def _see(self) -> None:
        """The first connection: how many replicas have to be waited for, and what there is to warn of."""
        wanted = self.options.replicas
        if wanted is None:
            wanted = int(self._settings.get(b"connected_slaves", b"0") != b"0")
            if wanted and isinstance(self._link.trip([self._names.wait(0, 1)])[0], Exception):
                wanted = 0  # it may not be asked
        self._replicas = wanted
        self._warn()

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
        if told(b"connected_slaves", b"0") != b"0" and not self._replicas:
            troubles.append(
                "there are replicas, which are not asked (WAIT): what a failover takes back is not repaired"
            )
        for trouble in troubles:
            warnings.warn(trouble, BackendWarning, stacklevel=6)


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

    def take(self, number: int, token: bytes, milliseconds: bytes) -> list[bytes]:
        """The lease, for the number-th time."""
        fence = _pack(b"SET", self.fence, b"%d %s" % (number, token))
        return [fence, _pack(b"SET", self.lease, token, b"PX", milliseconds)]

    def wait(self, replicas: int, milliseconds: int) -> bytes:
        return _pack(b"WAIT", b"%d" % replicas, b"%d" % milliseconds)


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
    """The connection broke: whether the server did what it was asked is not known. Or, of the kinds below, it did nothing and may do it later."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _BusyError(_BrokenError):
    """The server cannot do it just now. The connection is good."""


class _DownError(_BrokenError):
    """The node is cut off from its cluster, or the cluster is not whole."""


class _MovedError(_BrokenError):
    """Another node has the store. An empty host is that of the one that says so."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__("the node that the cluster names does not answer")
        self.host, self.port = host, port


class _Link:
    """One connection to the server, or to the node of a cluster that has the store; or none."""

    def __init__(self, options: RedisOptions) -> None:
        self._options, self._login = options, _Login.of(options.credentials)
        self._seeds: tuple[Address, ...] = options.addresses if options.socket is None else (("", 0),)
        self._order = list(dict.fromkeys(self._seeds))  # whom to ask, the likeliest first
        self._at = self._order[0]
        self._slot: int = redis.crc.key_slot(b"{%s}" % options.name.encode())
        self._wire = self._new(self._at)
        self._busy = False
        self.cluster = False  #: whether the server is one of a cluster, as far as is known
        self.count = 0  #: connections so far
        self.found = False  #: whether one of them led to the store
        self.tried: set[Address] = set()  #: nodes that are not to be asked again before the next pause

    def _new(self, address: Address) -> Any:
        """A connection that is still to be made. The name in a certificate has to be ``address``'s."""
        options = self._options
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
            return kinds.UnixDomainSocketConnection(path=options.socket, **arguments)
        host, port = address
        if not options.tls:
            return kinds.Connection(host=host, port=port, **arguments)
        return kinds.SSLConnection(
            host=host,
            port=port,
            ssl_ca_certs=options.ca,
            ssl_certfile=options.cert,
            ssl_keyfile=options.key,
            ssl_cert_reqs="required",
            ssl_check_hostname=True,
            ssl_min_version=ssl.TLSVersion.TLSv1_2,
            **arguments,
        )

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return bool(self._wire.is_connected)

    def connect(self, until: float) -> None:
        """Connect to the first node that answers. No further one is tried after ``until``, but next time, unless the store is still to be found."""
        trouble: _BrokenError | None = None
        self._login.ask()
        try:
            for address in [address for address in self._order if address not in self.tried]:
                if trouble is not None and self.found and time.monotonic() >= until:
                    break
                self.tried.add(address)
                try:
                    self._open(address)
                    self._learn()
                except _BrokenError as error:
                    trouble = trouble or error
                    self._order = [*(other for other in self._order if other != address), address]
                except BaseException:
                    self.drop()
                    raise
                else:
                    self.count += 1
                    return
        finally:
            self._login.forget()
        raise trouble or _BrokenError("no node answers")

    def _open(self, address: Address) -> None:
        """Connect, authenticate, select the database."""
        if address != self._at:
            self._wire, self._at = self._new(address), address
        try:
            self._wire.connect()
        except Exception as error:  # of any kind: a hostile server can make redis-py stumble
            if isinstance(error, redis.exceptions.ResponseError) and _NO_DATABASE.search(str(error)):
                trouble: Exception = ParameterError(
                    f"the server has no database {self._options.db} (one of a cluster has only 0, as a rule)"
                )
            else:
                trouble = _trouble(error)
        else:
            return
        self.drop()
        # Not inside the handler: a server can repeat the password in the text of its error.
        raise trouble

    def _learn(self) -> None:
        """Ask a node of a cluster for the others. It need not say: MOVED leads to the right one, and these are for the time when that one is dead."""
        (reply,) = self.trip([_CLUSTER_SLOTS])
        if isinstance(reply, list) and self._options.socket is None:
            self.cluster = True
            nodes = _nodes(reply, self._slot, self._at[0])
            self._first(self._at, *nodes)
        elif len(self._seeds) > 1 and isinstance(reply, Exception) and "cluster support disabled" in str(reply):
            raise BackendError("several servers are named, and one of them is no part of a cluster")

    def follow(self, trouble: _BrokenError | BackendReadOnlyError) -> bool:
        """Whether to call again at once, at another node: one that is named now, or else the next one, which may know better. Each once between two pauses.

        Raises what it is no use repeating.
        """
        if isinstance(trouble, _BusyError):
            return False
        if isinstance(trouble, BackendReadOnlyError) and not self.cluster:
            raise trouble
        self.drop()
        if isinstance(trouble, _MovedError):
            if self._options.socket is not None:
                raise BackendError("another node of the cluster has the store: name a host, not a Unix socket")
            self.cluster = True
            address = _address(trouble.host, trouble.port, self._at[0])
            if address is not None:
                self._first(address, *self._order)
        elif not isinstance(trouble, _DownError):
            return False
        return len(self.tried) < _ROUND and not self.tried.issuperset(self._order)

    def _first(self, *addresses: Address) -> None:
        self._order = list(dict.fromkeys((*addresses[:_NODES], *self._seeds)))

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


def _failure(error: Exception) -> OramError | _BrokenError:
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
    if code == "MOVED":
        return _MovedError(getattr(error, "host", "?"), getattr(error, "port", 0))
    if code in ("ASK", "TRYAGAIN"):
        return _BusyError(f"the store is being moved to another node of its cluster ({code})")
    if code == "CLUSTERDOWN":
        return _DownError("the cluster is down, or the node is cut off from it")
    if code == "UNBLOCKED":  # and it closes the connection
        return _BrokenError("it became a replica")
    if code == "LOADING":
        return _BusyError("it is loading its data")
    return BackendError(f"the server refused a command ({code})")


def _address(host: str, port: int, here: str) -> Address | None:
    """Where a node is that another one named, or None if it did not say. ``here``: the host that said it, which an empty name stands for."""
    host = host or here
    return (host, port) if _HOST.fullmatch(host) and 1 <= port <= 65535 else None


def _nodes(reply: list[Any], slot: int, here: str) -> list[Address]:
    """The nodes in an answer to CLUSTER SLOTS, those that have ``slot`` first. What makes no sense is left out: no more than help is lost with it."""
    ours: list[Any] = []
    others: list[Any] = []
    for row in reply:
        match row:
            case [int(first), int(last), *nodes]:
                (ours if first <= slot <= last else others).extend(nodes)
    found: dict[Address, None] = {}
    for node in ours + others:
        match node:
            case [bytes() | None as host, int(port), *_]:
                address = _address((host or b"").decode("latin-1"), port, here)
                if address is not None:
                    found[address] = None
    return list(found)


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


def _taken(fence: Any) -> tuple[int, bytes]:
    """How often the lease was taken, and the token of the last time."""
    if fence is None:
        return 0, b""
    match = _FENCE.fullmatch(fence) if isinstance(fence, bytes) else None
    if match is None:
        raise _damaged()
    return int(match[1]), match[2]


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


_MULTI, _EXEC, _CLUSTER_SLOTS = (
    (b"", b"", b"") if _missing is not None else (_pack(b"MULTI"), _pack(b"EXEC"), _pack(b"CLUSTER", b"SLOTS"))
)
