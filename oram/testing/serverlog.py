"""What a Redis or Valkey server itself logs (MONITOR), as events: the same checks then hold of the server's own account, and not only of ours.

Nothing of the backend's code takes part in the reading: keys are parsed here, and the regions' names come from the server.

A store's log is a sequence of round trips, and each has one of these forms; ``KEY`` stands for a slot, and all others are words that are always the same:

    [MGET KEY...]... MGET KEY... lease                                  slots are read
    [WAIT] [MGET KEY...]... MULTI [MSET KEY VALUE...]... [BITOP XOR fold KEY..., GETDEL fold]... EXEC, WATCH lease, GET lease
    [WAIT] MULTI, PEXPIRE lease, EXEC, WATCH lease, GET lease           the lease is renewed
    WAIT, GET lease                                                     the replicas are asked what they have

The first two become events. The others tell no more than what time it is, and whether there are replicas that lag: they are left out. Anything else is
refused with a ValueError: a command, a key, an argument or an order that has no place there.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import redis

from oram.backends import RedisBackend, RedisOptions
from oram.backends.redis.wire import pack
from oram.errors import BackendError
from oram.testing.servers import Server, Told
from oram.trace import Event, TraceBackend

__all__ = ["Log", "Reader", "audible", "from_server", "parse"]

#: Bounds of one command: bytes of values, and keys.
_CHUNK_BYTES, _CHUNK_KEYS = 8 << 20, 1 << 16

#: Milliseconds of a WAIT ahead of a transaction, and transactions between two of these; and between two for which everything else waits.
_PATIENCE, _ASK, _AT_RISK = b"50", 8, 64

#: A round trip, one letter a command; older servers log EXEC ahead of what it executes. r: an MGET that ends with the lease; B: a WAIT of both kinds.
_BODY = "(?:W+(?:XF)*|(?:XF)+)"
_READ, _TRANSACTION = re.compile("R*r"), re.compile(f"([YB]?)R*(?:M{_BODY}E|ME{_BODY})AG")
_RENEWAL, _AWAIT = re.compile("([YB]?)(?:MPE|MEP)AG"), re.compile("[ZB]G")

_SLOT = re.compile(rb"([0-9a-f]{8}):([0-9a-f]{1,16})")
_COUNT = re.compile(rb"[1-9]\d{0,9}")
_TOTAL = re.compile(rb"(?:^| )tot-net-in=(\d{1,18})(?: |\r?\n|$)")

#: Asks for a connection's own numbers.
_WHO = [b"CLIENT", b"INFO"]


def from_server(server: Server) -> Callable[[TraceBackend], AbstractContextManager[list[Event]]]:
    """For ``worlds.observe``: the events of a store as its server logs them. What the trace recorded is not looked at. Errors as those of ``Log.events``."""

    @contextmanager
    def look(trace: TraceBackend) -> Iterator[list[Event]]:
        backend = cast(RedisBackend, trace.inner)
        log, events = Log(backend.options), list[Event]()
        with server.lines() as lines, log.listening(backend):
            yield events
        for line in lines:
            log.hear(line)
        with redis.from_url(server.url().partition("?")[0]) as client:
            events += log.events(client.hgetall(b"{%s}:regions" % backend.options.name.encode()))

    return look


def audible(events: list[Event]) -> list[Event]:
    """The events of a trace or a simulator as a Redis server hears them.

    Of a group, the places that name no slot are not sent; nor is a read of no slot, nor a round trip in which there is nothing else.
    """
    heard = [replace(event, indices=tuple(i for i in event.indices if i >= 0)) for event in events]
    heard = [event for event in heard if event.indices or event.op not in ("xor", "read")]
    silent = sorted({event.trip for event in events} - {event.trip for event in heard})
    return [replace(event, trip=event.trip - bisect(silent, event.trip)) for event in heard]


def parse(commands: list[list[bytes]], name: str, regions: Mapping[bytes, bytes]) -> list[Event]:
    """The events of a store, by round trip. ValueError for a command that this library has no reason to send.

    commands: each a list of words, all those of the store's connection. regions: the store's hash of regions.
    """
    reader = Reader(name)
    for words in commands:
        reader.hear(words)
    return reader.events(regions)


@dataclass(frozen=True, slots=True)
class _Slots:
    """Slots that one command names beside one another. digits: of their numbers. sizes: of the values that were set."""

    region: bytes
    indices: tuple[int, ...]
    digits: frozenset[int]
    sizes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _Trip:
    """The slots of a round trip, by command. gets: an MGET each; sets: for an MSET those of each region in turn; folds: a BITOP each."""

    gets: list[_Slots]
    sets: list[list[_Slots]]
    folds: list[_Slots]


class Reader:
    """Reads what one connection says, command by command, and keeps slots and lengths only.

    options: of the store, which say how long its lease is and its patience with replicas; replicas: how many have to have a write. What is None is as the
    log says it first.
    """

    def __init__(self, name: str, options: RedisOptions | None = None, replicas: int | None = None) -> None:
        self._prefix = b"{%s}:" % name.encode()
        self._lease, self._fold = self._prefix + b"lease", self._prefix + b"fold"
        self._fixed: dict[str, bytes] = {}
        if options is not None:
            self._fixed = {
                "lease": b"%d" % int(1000 * options.lease),
                "wait": b"%d" % int(500 * options.timeout),
            }
        if replicas is not None:
            self._fixed["replicas"] = b"%d" % replicas
        self._letters, self._gets, self._sets, self._folds = "", list[_Slots](), list[list[_Slots]](), list[_Slots]()
        self._trips: list[_Trip] = []
        self._transactions, self._asked, self._awaited = 0, -_ASK, -_AT_RISK
        self._renewals: list[float] = []

    def hear(self, words: Sequence[bytes], at: float | None = None) -> None:
        """The next command; ``at`` this second, if that is known. ValueError."""
        self._letters += self._letter(words, at)
        if self._letters[-1] in "rG":
            self._end()

    def events(self, regions: Mapping[bytes, bytes]) -> list[Event]:
        """What was heard. regions: the store's hash of regions. ValueError."""
        if self._letters:
            raise ValueError("the log ends amid a round trip")
        known: dict[bytes, tuple[str, int, int]] = {}
        for region, record in regions.items():
            if region:  # else the last number given out
                number, slots, size = map(int, record.split(b" "))
                known[b"%08x" % number] = region.decode(), slots, size
        return [event for at, trip in enumerate(self._trips) for event in _events(trip, known, at)]

    def _letter(self, words: Sequence[bytes], at: float | None) -> str:
        """Its letter in a round trip; what it says of slots is kept."""
        lease, fold = self._lease, self._fold
        match list(words):
            case [b"MULTI"]:
                return "M"
            case [b"EXEC"]:
                return "E"
            case [b"WATCH", key] if key == lease:
                return "A"
            case [b"GET", key] if key == lease:
                return "G"
            case [b"GETDEL", key] if key == fold:
                return "F"
            case [b"MGET", first, *keys, last] if last == lease:
                self._gets.append(self._named([first, *keys]))
                return "r"
            case [b"MGET", first, *keys]:
                self._gets.append(self._named([first, *keys]))
                return "R"
            case [b"MSET", first, value, *more] if not len(more) % 2:
                self._sets.append(self._runs([first, *more[::2]], [len(value), *map(len, more[1::2])]))
                return "W"
            case [b"BITOP", b"XOR", key, first, *keys] if key == fold:
                self._folds.append(self._named([first, *keys]))
                return "X"
            case [b"PEXPIRE", key, milliseconds] if key == lease:
                self._same("lease", milliseconds)
                self._renewed(int(milliseconds), at)
                return "P"
            case [b"WAIT", count, milliseconds]:
                self._same("replicas", count)
                if milliseconds == _PATIENCE:
                    return "B" if self._fixed.get("wait") == _PATIENCE else "Y"
                self._same("wait", milliseconds)
                return "Z"
            case [name, *_]:
                raise ValueError(
                    f"an unexpected command, or one with unexpected words: {name[:20].decode(errors='replace')}"
                )
            case _:
                raise ValueError("no command")

    def _same(self, what: str, said: bytes) -> None:
        """A number that is the same each time."""
        if not _COUNT.fullmatch(said) or self._fixed.setdefault(what, said) != said:
            raise ValueError(f"an unexpected number: {what}")

    def _renewed(self, milliseconds: int, at: float | None) -> None:
        """Three times in a lease, no more: how often is not for the store to choose."""
        if at is not None:
            self._renewals.append(at)
            between = 1000 * (at - self._renewals[0])
            if len(self._renewals) > 2 + 3 * between / milliseconds:
                raise ValueError("the lease is renewed more often than every third of it")

    def _slot(self, key: bytes) -> tuple[bytes, bytes]:
        match = _SLOT.fullmatch(key, len(self._prefix)) if key.startswith(self._prefix) else None
        if match is None:
            raise ValueError("a key of somebody else's, or that is no slot")
        return match[1], match[2]

    def _named(self, keys: list[bytes]) -> _Slots:
        """Slots of one region."""
        (slots, *others) = self._runs(keys, [])
        if others:
            raise ValueError("slots of several regions in one command")
        return slots

    def _runs(self, keys: list[bytes], sizes: list[int]) -> list[_Slots]:
        runs: list[tuple[bytes, list[bytes], set[int]]] = []
        for at, key in enumerate(keys):
            number, index = self._slot(key)
            if not runs or runs[-1][0] != number:
                runs.append((number, [], set()))
            runs[-1][1].append(index)
            runs[-1][2].update(sizes[at : at + 1])
        return [
            _Slots(number, tuple(int(i, 16) for i in indices), frozenset(map(len, indices)), frozenset(lengths))
            for number, indices, lengths in runs
        ]

    def _end(self) -> None:
        """Of a round trip, which must have one of the forms."""
        letters, self._letters = self._letters, ""
        if _READ.fullmatch(letters):
            pass
        elif match := _TRANSACTION.fullmatch(letters) or _RENEWAL.fullmatch(letters):
            self.executes("first" if "ME" in letters else "last")
            if match[1]:
                self._asked = self._asks(self._asked, _ASK)
            self._transactions += 1
        elif _AWAIT.fullmatch(letters):
            self._awaited = self._asks(self._awaited, _AT_RISK)
        else:
            raise ValueError("commands in an unexpected order")
        if self._gets or self._sets or self._folds:
            self._trips.append(_Trip(self._gets, self._sets, self._folds))
            self._gets, self._sets, self._folds = [], [], []

    def executes(self, order: str) -> None:
        """Where this server's log has EXEC, "first" or "last" of what it executes. A store that wrote outside of its transactions would look like another."""
        if self._fixed.setdefault("order", order.encode()) != order.encode():
            raise ValueError("commands outside of their transaction")

    def _asks(self, before: int, least: int) -> int:
        """Replicas are asked now, after so many transactions; ``before`` was the last time."""
        if self._transactions - before < least:
            raise ValueError("the replicas are asked too often")
        return self._transactions


def _events(trip: _Trip, known: Mapping[bytes, tuple[str, int, int]], at: int) -> Iterator[Event]:
    """The events of a round trip, after a look at what depends on the shapes of its regions."""

    def shape(slots: _Slots) -> tuple[str, int]:
        if slots.region not in known:
            raise ValueError("slots of no region")
        region, count, size = known[slots.region]
        if slots.digits != {len(f"{count - 1:x}")} or max(slots.indices) >= count:
            raise ValueError("a slot that its region has not")
        if not slots.sizes <= {size}:
            raise ValueError("values of another length than the region's slots")
        return region, size

    writes: list[_Slots] = []
    for run in (run for runs in trip.sets for run in runs):
        if writes and writes[-1].region == run.region:
            last = writes.pop()
            run = replace(run, indices=last.indices + run.indices, digits=last.digits | run.digits, sizes=last.sizes | run.sizes)  # fmt: skip  # noqa: PLW2901
        writes.append(run)
    for slots in writes:
        region, size = shape(slots)
        yield Event("write", region, slots.indices, size, at)
    for runs, (first, *_) in pairwise(trip.sets):
        full = sum(len(run.indices) * shape(run)[1] for run in runs)
        size = shape(first)[1]
        if full + min(len(first.indices), _step(size)) * size <= _CHUNK_BYTES:
            raise ValueError("an MSET ends before it is full")
    for slots in trip.folds:
        region, size = shape(slots)
        yield Event("xor", region, slots.indices, size, at)
    if trip.gets:
        region, size = shape(trip.gets[0])
        if {shape(slots)[0] for slots in trip.gets} != {region}:
            raise ValueError("a read of several regions")
        step = _step(size)
        if any(len(slots.indices) != step for slots in trip.gets[:-1]) or len(trip.gets[-1].indices) > step:
            raise ValueError("an MGET ends before it is full")
        yield Event("read", region, tuple(index for slots in trip.gets for index in slots.indices), size, at)


def _step(size: int) -> int:
    """Slots of one command."""
    return max(1, min(_CHUNK_KEYS, _CHUNK_BYTES // size))


class Log:
    """What a server says that it was told by one store, among whatever else happens on it. It may be heard while that goes on, by another thread.

    Which client the store is, the server says itself: the store's connection begins and ends with a random mark. All that this client says in between
    counts, whatever keys it names or does not. Of others one thing is looked at: none may name the store.

    A log does not show everything: not what a server refuses, nor what is said to its administration. So the bytes are counted too, where the server
    says how many a connection sent (``tot-net-in`` of CLIENT INFO): the log must account for each of them.
    """

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._marks = tuple(secrets.token_hex(16).encode() for _ in range(2))
        self._tag = b"{%s}" % options.name.encode()
        self._replicas: int | None = None
        self._reader = self._new()
        self._client: bytes | None = None
        self._ended = self._meddled = False
        #: The last command so far: the one ahead of the mark is none of the store's.
        self._pending: tuple[list[bytes], float] | None = None
        self._lead, self._order = list[list[bytes]](), ""
        self._first = True
        self._trouble = ""
        self._logged, self._sent = 0, list[int]()  # bytes: as the log shows them, and as the server counts them
        self._connections: list[int] = []

    @contextmanager
    def listening(self, backend: RedisBackend) -> Iterator[None]:
        """Where the store's part begins and ends. backend: the store's, on whose connection is asked for the bytes so far, and said a mark: ahead of it in a
        transaction, in which one sees where this server's log has EXEC.

        BackendAccessError where the user may not PING.
        """
        link, (first, last) = backend._link, (pack(b"PING", mark) for mark in self._marks)
        self._replicas = backend._replicas

        def begin() -> list[Any]:
            # one after the other: the bytes of the second are all there when it is executed, and no others
            return [*backend._transact([first]), *link.trip([pack(*_WHO)])]

        def end() -> list[Any]:
            return [*link.trip([pack(*_WHO)]), *link.trip([last])]

        _, info = backend._call(begin)
        self._note(link.count, info)
        yield
        info, _ = backend._call(end)
        self._note(link.count, info)

    def _note(self, connection: int, info: Any) -> None:
        self._connections.append(connection)
        found = _TOTAL.search(info) if isinstance(info, bytes) else None
        if found is not None:
            self._sent.append(int(found[1]))

    def hear(self, line: bytes) -> None:
        """The next line. Nothing of it is kept but slots, lengths, and what has no place; of other clients' nothing."""
        if self._ended or (self._client is None and self._marks[0] not in line):
            return
        told = Told.of(line)
        if self._marks[0] in line:
            self._begin(told.client)
        elif told.client != self._client:
            self._meddled = self._meddled or self._tag in line
        elif self._marks[1] in line:
            if self._pending is not None and self._pending[0] != _WHO:
                self._read(*self._pending)
            self._pending, self._ended = None, True
        elif self._lead:
            self._led(told.words)
        else:
            words = told.words
            self._logged += len(b"*%d\r\n" % len(words)) + sum(len(b"$%d\r\n\r\n" % len(w)) + len(w) for w in words)
            if self._first and words == _WHO:
                self._logged = 0
            else:
                if self._pending is not None:
                    self._read(*self._pending)
                self._pending = words, told.at
            self._first = False

    def _begin(self, client: bytes) -> None:
        self._reader, self._client, self._pending = self._new(), client, None
        self._first, self._logged, self._trouble, self._meddled = True, 0, "", False
        lease = self._tag + b":lease"
        self._lead, self._order = [[b"WATCH", lease], [b"GET", lease]], "first"

    def _led(self, words: list[bytes]) -> None:
        """What belongs to the transaction that the mark is in."""
        if words == [b"EXEC"] and len(self._lead) == 2:
            self._order = "last"
        elif words == self._lead.pop(0):
            self._reader.executes(self._order)
        else:
            self._trouble = self._trouble or "commands in an unexpected order"

    def _new(self) -> Reader:
        return Reader(self._options.name, self._options, self._replicas)

    def _read(self, words: list[bytes], at: float) -> None:
        if not self._trouble:
            try:
                self._reader.hear(words, at)
            except ValueError as error:
                self._trouble = str(error)

    def events(self, regions: Mapping[bytes, bytes]) -> list[Event]:
        """What the store said. regions: its hash of regions.

        ValueError where it said something else than a store has to say; or something that the log does not show, or if another client named it.
        BackendError where its connection broke, or where it cannot be told from others.
        """
        if not self._ended or len({*self._connections}) != 1:
            raise BackendError(
                "the store's connection broke, or leads to another node than that which shows what it is told"
            )
        unseen = self._sent[1] - self._sent[0] - self._logged if len(self._sent) == 2 else 0
        if unseen < 0:
            raise BackendError(
                "others use the same Unix socket, and the server's log does not tell who is who: name a host and a port"
            )
        if self._trouble:
            unsure = not self._sent and (self._client or b"").startswith(b"unix:")
            raise ValueError(self._trouble + ", unless others use the same Unix socket" * unsure)
        if unseen:
            raise ValueError(f"the server was told {unseen} bytes that its log does not show")
        if self._meddled:
            raise ValueError("another client named the store's keys: a leak, unless somebody else looked at them")
        return self._reader.events(regions)
