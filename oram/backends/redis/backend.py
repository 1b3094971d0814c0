"""The backend itself: regions, slots, ownership, and what it tells the server."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

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
from oram.backends.redis.inbox import Form
from oram.backends.redis.keys import CHUNK_BYTES, Names, Region
from oram.backends.redis.link import Link, Turns
from oram.backends.redis.options import Credentials, RedisOptions
from oram.backends.redis.replies import (
    BrokenError,
    BusyError,
    array,
    damaged,
    failure,
    integer,
    overlay,
    pairs,
    refuse,
    rows,
    strange,
    strings,
    taken_by,
)
from oram.backends.redis.wire import EXEC, MULTI, missing, pack
from oram.errors import (
    BackendAccessError,
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendWarning,
    FencedError,
    ForkedStoreError,
    ParameterError,
    RollbackError,
    StoreLockedError,
)
from oram.types import I64

__all__ = ["RedisBackend"]

T = TypeVar("T")

#: Keys deleted by one command: below a millisecond of the server's time.
_SWEEP = 1000

#: Seconds after which the slots of dropped regions are left to the next opening, and after which an erasure is not gone on with.
_SWEEPING, _ERASING = 60.0, 600.0

#: Regions that a store may have, and dropped ones: a few for each of its incarnations, of which there are two at most.
_MAX_REGIONS = 1024

#: Bytes of a reply besides each slot in it.
_REPLY = 32

#: The longest value a server takes, unless told otherwise.
_MAX_VALUE = 512 << 20

#: To measure a link: bytes; and seconds of a round trip from which no link is as fast as a server folds.
_PAYLOAD, _FAR = 1 << 16, 1e-3

#: What folding takes a server, in seconds: for each group, and for each byte of a slot.
_FOLD, _FOLD_BYTE = 20e-6, 0.6e-9

#: Writes at risk from which the replicas are asked what they have, and milliseconds that this may take.
_ASK, _PATIENCE = 8, 50

#: Times that a transaction is made again because somebody touched the lease without taking it.
_ATTEMPTS = 5

_RECORD = re.compile(rb"(\d{1,10}) (\d{1,18}) (\d{1,9})")
_NO_INDICES = np.empty(0, np.int64)


class RedisBackend(XorBackend):
    """Regions in a Redis (from 6.2) or Valkey server, or cluster, that the network, or a Unix socket, leads to.

    where: a URL as ``RedisOptions.from_url`` takes, or the options. credentials: with a URL, what ``RedisOptions.credentials`` says.

    **What the capabilities mean here.** ATOMIC: a ``write_all`` is one transaction, and one record of the server's log. DURABLE: as far as the
    server is told to be. With ``appendonly yes`` and ``appendfsync always`` a write is on its disk before the answer. With anything less, a loss of power takes
    acknowledged writes back, and ``sync`` cannot help it; BackendWarning at construction tells, where the server may be asked. A failover can
    take writes back in any case: ``at_risk`` counts those that too few replicas are known to have, and a store writes them again (``on_reconnect``).

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
        if missing is not None:
            raise ParameterError(f"the Redis client is not installed here (pip install oram[redis]): {missing}")
        if isinstance(where, str):
            where = RedisOptions.from_url(where, credentials)
        elif credentials is not None:
            raise ParameterError("give credentials in the options")
        self.options = where
        self._names = Names(where.name)
        self._regions: dict[str, Region] = {}
        self._leaving: set[str] = set()  # of these, those that may be gone already
        self._lock = threading.RLock()
        self._closed, self._pid = False, os.getpid()
        self._token: bytes | None = None  # of our lease
        self._fence = 0  # how often the lease had been taken when we took it
        self._before = b""  # the token of whoever had taken it before us
        self._replicas = 0  # that must have a write before it is safe
        self._at_risk = 0  # transactions since the replicas were last known to have all of them
        self._verify: Callable[[int], None] | None = None  # to be called on each new connection
        self._verified = True  # it was
        self._over = 0.0  # when it has taken too long
        self._verifying = False  # it is being called just now
        self._breaks: list[BrokenError | BackendReadOnlyError] = []  # what came in between
        self._wrote = False  # this connection wrote, so that WAIT says something about it
        self._armed = False  # the server watches the lease for us, and we saw that it is as `_token` says
        self._fenced = False
        self._renew_at = 0.0
        self._keeper: threading.Event | None = None
        self._link = Link(where)
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
        if region not in self._regions or region in self._leaving:
            self._call(partial(self._declare, region, shape))
            self._leaving.discard(region)
        declared = self._region(region).shape
        if declared != shape:
            raise BackendError(f"region {region!r} is there with {declared.slots} x {declared.slot_size} bytes")

    def _declare(self, region: str, shape: RegionShape) -> None:
        (number,) = self._transact([pack(b"HINCRBY", self._names.regions, b"", b"1")])
        record = b"%d %d %d" % (integer(number), shape.slots, shape.slot_size)
        # not where it is: this may be the second attempt, or another client's region
        self._transact([pack(b"HSETNX", self._names.regions, region.encode(), record)])
        self._load()
        if region not in self._regions:
            raise strange()

    def regions(self) -> Mapping[str, RegionShape]:
        self._check()
        return MappingProxyType({region: known.shape for region, known in self._regions.items()})

    def drop(self, region: str) -> None:
        """As the base class says. The region is gone at once, also in a crash; then its slots are deleted, a thousand at a time."""
        self._check()
        with self._lock:
            known = self._regions.get(region)
            if known is None:
                return
            self._leaving.add(region)  # first: a new connection must not miss it
            try:
                self._call(partial(self._forget, region, known))
            except (BackendError, StoreLockedError) as error:
                if not isinstance(error, BackendUnavailableError):  # else it may be gone
                    self._leaving.discard(region)
                raise
            self._leaving.discard(region)
            self._sweep(known, time.monotonic() + _SWEEPING)

    def _forget(self, region: str, known: Region) -> None:
        forget = pack(b"HDEL", self._names.regions, region.encode())
        remember = pack(b"HSET", self._names.dropped, b"%d" % known.number, b"%d" % known.shape.slots)
        self._transact([forget, remember])
        self._regions.pop(region, None)

    def _sweep(self, known: Region, end: float) -> None:
        """Delete the slots of a dropped region, or as many as there is time for until ``end``: a later opening goes on. Its number is never given out again,
        so that this can be done over and over; and nobody waits for as many slots as a server may say that there are.
        """
        for keys in self._keys_of(known):
            if keys:
                self._call(partial(self._transact, [pack(b"UNLINK", *keys)]))
            if time.monotonic() >= end:
                return
        self._call(partial(self._transact, [pack(b"HDEL", self._names.dropped, b"%d" % known.number)]))

    def _keys_of(self, known: Region) -> Iterator[list[bytes]]:
        """All keys that a region can have, some at a time: by number, or of those that are there, whichever are fewer."""
        (size,) = self._call(partial(self._ask, [pack(b"DBSIZE")]))
        return self._found(known.prefix) if integer(size) < known.shape.slots else known.chunks(_SWEEP)

    def _found(self, prefix: bytes) -> Iterator[list[bytes]]:
        """The keys that begin so, some at a time. One that is there from the first until the last is among them, also where the store is moved meanwhile."""
        cursor, at = b"0", self._link.count
        # SCAN names no key, so that a node would scan what it still has of a store that is being moved, or was. Around it stands one that is never there
        # outside a transaction: a node that is giving the store away, or gave it, sends the question for it to the other one (ASK, MOVED).
        absent = pack(b"GET", self._names.fold)
        while True:
            command = pack(b"SCAN", cursor, b"MATCH", prefix + b"*", b"COUNT", b"%d" % _SWEEP)
            _, reply, _ = self._call(partial(self._ask, [absent, command, absent]))
            cursor, keys = array(reply, 2)
            yield strings(keys)
            if self._link.count != at:  # a cursor means nothing to another server
                cursor, at = b"0", self._link.count
            elif b"%d" % integer(cursor) == b"0":
                return

    def _load(self) -> None:
        """Read the regions' shapes. RollbackError where this client owns the store, the server has not what it had, and nobody else looks for it
        (``on_reconnect``).
        """
        (reply,) = self._ask([pack(b"HGETALL", self._names.regions)])
        found: dict[str, Region] = {}
        records = pairs(reply)
        if len(records) > _MAX_REGIONS:
            raise damaged()
        for name, record in records:
            if not name:
                continue
            match = _RECORD.fullmatch(record)
            try:
                number, slots, size = map(int, match.groups()) if match else (0, 0, 0)
                region, shape = name.decode(), RegionShape(slots, size)
                check_region(region, shape)
            except (UnicodeDecodeError, BackendError):
                raise damaged() from None
            found[region] = Region.of(self._names, number, shape)
        missed = {region for region, known in self._regions.items() if found.get(region) != known} - self._leaving
        if self._token is not None and missed and (self._verify is None or missed & found.keys()):
            raise RollbackError("the server came back without regions that the store had")
        self._regions = found

    # Slots

    def read(self, region: str, indices: I64) -> Slots:
        known = self._region(region)
        check_indices(known.shape, indices)
        head = self._call(partial(self._fetch, known, indices)) if indices.size else []
        return Slots(*rows(head, indices.size, known.shape.slot_size))

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
            gets, forms = known.gets(indices)
            expected = (indices.size + len(which)) * (size + _REPLY)
            head, done = self._call(partial(self._pipeline, gets, puts + folds, expected, forms))
        else:
            head = self._call(partial(self._fetch, known, indices)) if indices.size else []
        data, present = rows(head, indices.size, size)
        for write in writes:
            if write.region == reads.region and write.indices.size:
                overlay(write, indices, data, present)
        if groups is None:
            return Slots(data, present)
        folded = np.zeros((groups.shape[0], size), np.uint8)
        for group, value in zip(which, done[len(puts) + 1 :: 2], strict=True):
            if value is not None:  # else all of its slots are absent
                folded[group] = rows([[value]], 1, size)[0][0]
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
        command, best = pack(b"PING", payload), math.inf
        for _ in range(3):
            start = time.perf_counter()
            (reply,) = self._call(partial(self._link.trip, [command]))
            best = min(best, time.perf_counter() - start)
            if reply != payload:
                return None
        return best

    def _fetch(self, known: Region, indices: I64) -> list[Any]:
        """A read and nothing else. The owner looks at the lease in the same command: what it reads after it lost it would seem changed."""
        token = self._token
        gets, forms = known.gets(indices, None if token is None else (self._names.lease, token))
        replies = self._link.trip(gets, indices.size * (known.shape.slot_size + _REPLY), forms)
        if len(replies) == 1 and isinstance(replies[0], np.ndarray):
            return replies  # all of it, and the lease is ours
        refuse(replies)
        if token is not None and not isinstance(replies[-1], np.ndarray):
            last = array(replies[-1])
            if not last or last.pop() != token:
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
        room = CHUNK_BYTES
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
                    commands.append(pack(*pairs))
                    pairs, room = [b"MSET"], CHUNK_BYTES
                pairs += piece
                room -= len(keys) * size
        if len(pairs) > 1:
            commands.append(pack(*pairs))
        return commands

    def _folds(self, known: Region, groups: I64 | None) -> tuple[list[int], list[bytes]]:
        """Which groups have slots, and two commands for each of these: they leave nothing behind."""
        which: list[int] = []
        commands: list[bytes] = []
        for group, row in enumerate(() if groups is None else groups):
            keys = known.keys(row[row >= 0])
            if keys:
                which.append(group)
                commands += (pack(b"BITOP", b"XOR", self._names.fold, *keys), self._names.take_fold)
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

    def on_reconnect(self, check: Callable[[int], None]) -> None:
        self._verify = check

    # Ownership

    def acquire(self) -> None:
        self._check()
        with self._lock:
            if self._token is not None:
                raise StoreLockedError("another store handle has this backend")
            token = secrets.token_hex(16).encode()
            self._call(self._look_again)
            # Whoever had the store before, perhaps over this very connection, may have left writes that no replica has.
            self._at_risk = int(self._replicas > 0)
            self._fence = self._call(partial(self._take, token))
            self._token, self._fenced, self._armed = token, False, False
            try:
                self._call(self._arm)  # so that the first write takes no longer than any other
                if self._replicas:
                    self._call(self._await)  # a failover must not take the lease back, nor what an earlier handle wrote
                end = time.monotonic() + _SWEEPING
                for number, slots in self._call(self._leftovers):
                    self._sweep(Region.of(self._names, number, RegionShape(slots, 1)), end)
                    if time.monotonic() >= end:
                        break
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
        _, _, holder, fence, left = self._ask([*names.look, pack(b"PTTL", names.lease)])
        taken, last = taken_by(fence)
        if holder == token == last:  # an earlier attempt took it, and its answer was lost
            number = taken
        elif holder is not None:
            raise StoreLockedError(
                "another client has the store open; if it died, its lease expires in "
                f"{max(0, integer(left)) / 1000:.0f} s"
            )
        else:
            number, self._before = taken + 1, last
            (done,) = self._ask([MULTI, *names.take(number, token, self._lease_ms), EXEC])[3:]
            if done is None:
                raise StoreLockedError("another client has just opened the store")
            refuse(array(done, 2))
        self._load()
        self._renew_at = start + self.options.lease / 3
        return number

    @property
    def _lease_ms(self) -> bytes:
        return b"%d" % int(1000 * self.options.lease)

    def _leftovers(self) -> list[tuple[int, int]]:
        """Number and slots of the regions that somebody dropped and did not live to delete."""
        (reply,) = self._ask([pack(b"HGETALL", self._names.dropped)])
        found = pairs(reply)
        if len(found) > _MAX_REGIONS:
            raise damaged()
        return [(integer(number), integer(slots)) for number, slots in found]

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
            command = pack(b"DEL", self._names.lease)
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

    def erase(self) -> None:
        """Delete everything of this store, whatever its state: all keys that begin as its own do, a thousand at a time. **It is gone.** For the owner, or
        where nobody else knows the name.

        Other than ``drop`` it needs no lease and takes no memory, of which a server that is full may have none left: so it makes room. What an erasure that
        was interrupted had sent, and what comes late, does nothing once the next store of this name is there; but for a server that is full (docs/remote.md).
        Afterwards the backend is as for a new store, and nobody's: what goes away is not to be missed on a new connection.

        StoreLockedError where somebody takes the lease meanwhile. BackendError where it takes more than ten minutes: the next call goes on. Cost: two
        round trips for each thousand slots, and one for each thousand other keys of the database.
        """
        names, end = self._names, time.monotonic() + _ERASING
        self.release()
        # First, so that what is still on its way over an older connection fails; and outside of a transaction, which would look at the lease. Who takes
        # it next can stand losing it.
        self._call(partial(self._ask, [pack(b"UNLINK", names.lease)]))
        for keys in self._found(names.prefix):
            if time.monotonic() >= end:
                raise BackendError("the store is not erased yet: erase it again")
            slots = [key for key in keys if key not in names.small]
            if slots:
                self._unlink(slots)
        self._unlink(names.small)  # last, so that what is half erased is not taken for nothing
        self._regions = {}

    def _unlink(self, keys: Sequence[bytes]) -> None:
        """Delete keys while nobody has the lease. In a transaction, which fails where it comes so late that somebody took the lease since; but a server that
        is full queues none, and there it is the command alone.
        """
        command = pack(b"UNLINK", *keys)

        def alone() -> None:
            if not self._armed:
                self._arm()
            self._ask([command])

        try:
            self._call(partial(self._transact, [command]))
        except BackendFullError:
            self._call(alone)

    def _keep_lease(self) -> None:
        """Renew the lease if it is time. Called in the background."""
        with self._lock:
            if self._token is not None and not self._fenced and not self._closed:
                with contextlib.suppress(Exception):  # the next call will find out
                    self._call(lambda: None, retry=0, verify=False)  # not from this thread: it may be amid an access

    def _renew(self) -> None:
        start = time.monotonic()
        self._transact([pack(b"PEXPIRE", self._names.lease, self._lease_ms)])
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
            fence, last = taken_by(count)
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
            if self._ask([MULTI, *names.take(self._fence, self._token, self._lease_ms), EXEC])[-1] is not None:
                self._renew_at = start + self.options.lease / 3
        raise _restless()

    # Round trips

    def _pipeline(
        self, before: list[bytes], commands: list[bytes], expected: int = 0, forms: Sequence[Form | None] = ()
    ) -> tuple[list[Any], list[Any]]:
        """Commands in a transaction that takes place only while the lease is as this client knows it; ``before`` ahead of it. One round trip.
        expected: bytes of the slots that come back. forms: of those to ``before``.

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
            trip = [*ask, *before, MULTI, *commands, EXEC, names.watch, names.holder]
            replies = self._link.trip(trip, expected, [None, *forms] if ask else forms)
            if ask:
                self._heard(replies.pop(0))
            done, watched, holder = replies[-3:]
            self._armed = watched == b"OK" and holder == self._token
            refuse(replies[:-3])  # what the server did not even queue says why, and comes first
            refuse([done])
            if done is not None:
                refuse(array(done, len(commands)))
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
            raise BrokenError("the store's lease was touched")

    def _heard(self, reply: Any) -> None:
        """What a WAIT said: how many replicas have all that this connection had written before it, which began by renewing the lease.

        An error says nothing about that: one that stepped down refuses to be asked, and what comes behind it says where its successor is.
        """
        if not isinstance(reply, Exception) and self._wrote and integer(reply) >= self._replicas:
            self._at_risk = 0

    def _await(self) -> None:
        if self._token is not None and not self._wrote:
            self._renew()
        wait = self._names.wait(self._replicas, int(500 * self.options.timeout))
        reply, holder = self._link.trip([wait, self._names.holder])
        refuse([holder])  # that of a node which has the store no longer says where it is
        self._heard(reply)
        if self._at_risk:
            if isinstance(reply, Exception) and isinstance(found := failure(reply), BackendAccessError):
                raise found
            raise BackendReadOnlyError(f"fewer than {self._replicas} replicas have the latest writes")

    def _transact(self, commands: list[bytes]) -> list[Any]:
        return self._pipeline([], commands)[1]

    def _ask(self, commands: list[bytes]) -> list[Any]:
        """Commands in one round trip; none of the replies is an error."""
        replies = self._link.trip(commands)
        refuse(replies)
        return replies

    def _call(self, work: Callable[[], T], retry: float | None = None, *, verify: bool = True) -> T:
        """Run ``work``, which may run again over a new connection where this one breaks: see the head of this module.

        verify: whether now is the time for what ``on_reconnect`` asked for; else the next call does it. What that calls is part of the call that
        it interrupts: it does not connect again, nor wait, by itself.
        """
        self._check()  # before the lock, which somebody may have held at a fork
        with self._lock:
            if self._closed or self._fenced:
                self._check()
                raise FencedError("another client took the store over: close this handle")
            if self._verifying:
                return self._once(work)
            start, turns = time.monotonic(), None
            while True:
                try:
                    if turns is None and self._verified and self._link.up and start < self._renew_at:
                        return work()  # nothing else is due, as a rule
                    turns = turns or Turns(self._link, start, self.options.retry if retry is None else retry)
                    return self._attempt(work, turns.end, verify)
                except (BrokenError, BackendReadOnlyError) as error:
                    trouble = error
                turns = turns or Turns(self._link, start, self.options.retry if retry is None else retry)
                if not turns.another(trouble):
                    break
            if isinstance(trouble, BrokenError):
                raise self._unavailable(trouble)
            raise trouble

    def _unavailable(self, trouble: BrokenError) -> BackendUnavailableError:
        return BackendUnavailableError(f"no answer from {self.options.url}: {trouble.reason}")

    def _attempt(self, work: Callable[[], T], until: float, verify: bool) -> T:
        """Run ``work``, where necessary over a new connection; no further node is tried for that after ``until``."""
        if not self._link.up:
            self._connect(until)
        if self._token is not None and time.monotonic() >= self._renew_at:
            self._renew()
        if not self._verified and verify:
            self._look_over(until)
        return work()

    def _connect(self, until: float) -> None:
        self._armed = self._verified = self._wrote = False
        self._link.connect(until)
        try:
            self._inspect()
            self._load()
            # Not fewer than at first: that one is cut off does not mean that it will not take over.
            self._count(self._replicas)
            if self._token is not None:
                self._arm()
                # What was sent over an earlier connection may still be on its way, and would put old slots over newer ones. It is in a
                # transaction that looks at the lease, and that fails once the lease is touched.
                self._renew()
        except BaseException:
            self._link.drop()  # it must not be used before all of this went well
            raise
        self._link.found = True

    def _look_over(self, until: float) -> None:
        """Do what ``on_reconnect`` asked for on a new connection. If that breaks, too, or goes on after ``until``, the next one begins it anew, from
        where the server is by then.
        """
        self._over = until + self.options.timeout
        self._verified = self._verifying = True  # first: it calls this backend
        self._breaks.clear()
        try:
            if self._verify is not None:
                self._verify(0)
        except BaseException as error:
            self._verified = False
            if self._breaks and isinstance(error, BackendUnavailableError):
                raise self._breaks[0] from None
            raise
        finally:
            self._verifying = False

    def _once(self, work: Callable[[], T]) -> T:
        """Run ``work`` on this connection or not at all."""
        try:
            if not self._link.up:
                raise BrokenError("the connection broke")
            if time.monotonic() > self._over:
                raise BrokenError("timed out")
            return work()
        except (BrokenError, BackendReadOnlyError) as error:
            self._breaks.append(error)
            if not isinstance(error, BusyError):
                self._link.drop()
            reason = error if isinstance(error, BrokenError) else BrokenError("the server takes no writes")
        raise self._unavailable(reason)

    def _check(self) -> None:
        if self._closed:
            raise BackendError("the backend is closed")
        if os.getpid() != self._pid:
            raise ForkedStoreError("this backend was opened before a fork; open it in one process only")

    def _region(self, region: str) -> Region:
        self._check()
        try:
            return self._regions[region]
        except KeyError:
            raise BackendError(f"no region {region!r}") from None

    # What the server is told

    def _inspect(self) -> None:
        """Ask how the server is set up, as far as it says. BackendReadOnlyError from a replica."""
        asked = (b"maxmemory-policy", b"appendonly", b"appendfsync", b"min-replicas-to-write")
        commands = [pack(b"CONFIG", b"GET", setting) for setting in asked]
        *settings, info = self._link.trip([*commands, pack(b"INFO", b"replication")])
        self._settings = {}
        for reply in settings:
            if isinstance(reply, list):  # else it is an error: it does not say
                self._settings |= pairs(reply)
        if isinstance(info, bytes):
            self._settings |= {name: value for name, _, value in (line.partition(b":") for line in info.splitlines())}
        if self._settings.get(b"role") == b"slave":
            self._ask([self._names.holder])  # one of a cluster says where the primary is
            raise BackendReadOnlyError("the server is a replica, whose slots may be old: name its primary")

    def _see(self) -> None:
        """The first connection: how many replicas have to be waited for, and what there is to warn of."""
        self._count()
        self._warn()

    def _count(self, least: int = 0) -> None:
        """How many replicas have to have a write, where the options leave that open: one if the server has some, and says what they have; or ``least``."""
        wanted = self.options.replicas
        if wanted is None:
            wanted = max(least, int(self._settings.get(b"connected_slaves", b"0") != b"0"))
            if wanted and isinstance(self._link.trip([self._names.wait(0, 1)])[0], Exception):
                wanted = 0
        self._replicas = wanted

    def _look_again(self) -> None:
        self._inspect()
        self._count()

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
                "min-replicas-to-write is 0 and there are replicas: the server takes writes that none of them has"
            )
        if told(b"connected_slaves", b"0") != b"0" and not self._replicas:
            troubles.append(
                "there are replicas, which are not asked what they have (WAIT): a failover may take acknowledged writes back"
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


def _restless() -> BackendError:
    return BackendError("somebody keeps touching the store's lease")
