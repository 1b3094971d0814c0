"""What a Redis or Valkey server itself logs (MONITOR), as events: the same checks then hold of the server's own account, and not only of ours.

Nothing of the backend's code takes part: keys are parsed here, and the regions' names come from the server.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import cast

import redis

from oram.backends import RedisBackend
from oram.testing.servers import Server
from oram.trace import Event, TraceBackend

__all__ = ["audible", "from_server", "parse"]

#: Commands that name no slot, by how they begin: transactions, the lease, and questions about settings.
_SMALL = {b"MULTI", b"EXEC", b"WATCH", b"UNWATCH", b"GET", b"GETDEL", b"PEXPIRE", b"PTTL", b"SET", b"INCR", b"DEL"}
_SMALL |= {
    b"HGETALL",
    b"HSET",
    b"HSETNX",
    b"HINCRBY",
    b"HDEL",
    b"CONFIG",
    b"INFO",
    b"PING",
    b"SELECT",
    b"WAIT",
    b"ECHO",
}


def from_server(server: Server) -> Callable[[TraceBackend], AbstractContextManager[list[Event]]]:
    """For ``worlds.observe``: the events of a store as its server logs them. What the trace recorded is not looked at."""

    @contextmanager
    def look(trace: TraceBackend) -> Iterator[list[Event]]:
        name = cast(RedisBackend, trace.inner).options.name
        events: list[Event] = []
        with server.monitor() as commands:
            yield events
        with redis.Redis(port=server.port) as client:
            regions: dict[bytes, bytes] = client.hgetall(b"{%s}:regions" % name.encode())
        regions.pop(b"")  # the last number given out
        events += parse(commands, name, regions)

    return look


def audible(events: list[Event]) -> list[Event]:
    """The events of a trace or a simulator as a Redis server hears them.

    Of a group, the places that name no slot are not sent; nor is a read of no slot, nor a round trip in which there is nothing else.
    """
    heard = [replace(event, indices=tuple(i for i in event.indices if i >= 0)) for event in events]
    heard = [event for event in heard if event.indices or event.op not in ("xor", "read")]
    silent = sorted({event.trip for event in events} - {event.trip for event in heard})
    return [replace(event, trip=event.trip - bisect(silent, event.trip)) for event in heard]


def parse(commands: list[list[bytes]], name: str, regions: dict[bytes, bytes]) -> list[Event]:
    """The events of a store, by round trip. ValueError for a command that this library has no reason to send.

    commands: each a list of words. regions: the store's hash of regions.
    """
    known: dict[bytes, tuple[str, int]] = {}
    for region, record in regions.items():
        number, _, size = record.split(b" ")
        known[b"%08x" % int(number)] = region.decode(), int(size)
    prefix = b"{%s}:" % name.encode()

    def slot(key: bytes) -> tuple[bytes, int]:
        if not key.startswith(prefix):
            raise ValueError("a key of somebody else's")
        number, index = key[len(prefix) :].split(b":")
        return number, int(index, 16)

    events: list[Event] = []
    writes: list[tuple[bytes, list[int], set[int]]] = []
    groups: list[tuple[bytes, tuple[int, ...]]] = []
    reads: list[tuple[bytes, int]] = []
    begun = False  # a round trip that touches slots
    trip = 0
    lease = prefix + b"lease"

    def end() -> None:
        nonlocal begun, trip
        for number, indices, sizes in writes:
            region, size = known[number]
            if sizes != {size}:
                raise ValueError("values of another length than the region's slots")
            events.append(Event("write", region, tuple(indices), size, trip))
        for number, group in groups:
            events.append(Event("xor", *(known[number][0], group, known[number][1]), trip))
        if reads:
            region, size = known[reads[0][0]]
            events.append(Event("read", region, tuple(index for _, index in reads), size, trip))
        trip += begun
        begun = False
        writes.clear()
        groups.clear()
        reads.clear()

    for command, *words in commands:
        match command.upper():
            case b"MGET":
                begun = True
                reads += [slot(key) for key in words if key != lease]
                if words[-1] == lease:
                    end()
            case b"MSET":
                begun = True
                for key, value in zip(words[::2], words[1::2], strict=True):
                    number, index = slot(key)
                    if not writes or writes[-1][0] != number:
                        writes.append((number, [], set()))
                    writes[-1][1].append(index)
                    writes[-1][2].add(len(value))
            case b"BITOP":
                begun = True
                slots = [slot(key) for key in words[2:]]
                groups.append((slots[0][0], tuple(index for _, index in slots)))
            case b"GET" if words == [lease]:
                end()
            case small if small not in _SMALL:
                raise ValueError(f"an unexpected command: {small.decode()}")
    return events
