"""The door to redis-py and hiredis: a connection, and commands as bytes on it."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import Any

try:
    import hiredis
    import redis.backoff
    import redis.connection
    import redis.crc
    import redis.exceptions
except ImportError as error:
    missing: str | None = str(error)
    hiredis = redis = None  # type: ignore[assignment]
else:
    missing = None

__all__ = ["CLUSTER_SLOTS", "EXEC", "MULTI", "FloodError", "Wire", "joined", "missing", "pack", "redis"]

#: Up to here, copying a command to its neighbours costs less than sending it by itself.
_JOINED = 128 << 10

#: Bytes that are received at once; that answers may have besides the slots that were asked for; and that a link is to carry in a second, so
#: that a server which answers byte by byte does not hold a call for ever.
_PIECE, _SPARE, _RATE = 1 << 18, 1 << 20, 8 << 10

_MORE = object()  # the reader has no whole reply


def pack(*words: bytes | memoryview) -> bytes:
    """A command as it is sent."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub says a tuple of one
    return packed


def joined(commands: list[bytes]) -> list[bytes]:
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


MULTI, EXEC, CLUSTER_SLOTS = (
    (b"", b"", b"") if missing is not None else (pack(b"MULTI"), pack(b"EXEC"), pack(b"CLUSTER", b"SLOTS"))
)


class FloodError(Exception):
    """The answer is longer than what was asked for can be."""


class Wire:
    """One connection. redis-py makes it (addresses, TLS). What travels over it is read here, within bounds of length and time; nobody logs it."""

    def __init__(self, make: Callable[..., Any], timeout: float, **arguments: Any) -> None:
        # With a function of ours for it, redis-py says nothing on a new connection.
        self._made = make(
            socket_timeout=timeout, socket_connect_timeout=timeout, redis_connect_func=lambda _: None, **arguments
        )
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._reader: Any = None
        self._piece = memoryview(b"")

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._socket is not None

    def connect(self) -> None:
        """Make it anew. Raises what redis-py raises."""
        self.drop()
        self._made.connect()
        self._socket = self._made._get_socket()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        if not self._piece:
            self._piece = memoryview(bytearray(_PIECE))

    def drop(self) -> None:
        """Close it, if it is open. In a child of the process that made it, its copy only."""
        self._socket = self._reader = None
        self._made.disconnect()

    def trip(self, commands: list[bytes], expected: int = 0) -> list[Any]:
        """Send commands, and read a reply to each; an error reply is an exception among them. One round trip.

        expected: bytes of the slots that were asked for. Raises OSError (TimeoutError among them), ``hiredis.ProtocolError``, or FloodError;
        the connection is then of no use.
        """
        pieces = joined(commands)
        length = sum(map(len, pieces))
        end = time.monotonic() + self._timeout + (length + expected) / _RATE
        for piece in pieces:
            self._send(piece, end)
        gets, room = self._reader.gets, _SPARE + expected
        replies: list[Any] = []
        wanted = len(commands)
        while len(replies) < wanted:
            reply = gets()
            if reply is not _MORE:
                replies.append(reply)
                continue
            if room <= 0:
                raise FloodError
            room -= self._receive(end)
        return replies

    def hear(self) -> Any:
        """The next reply, asked for or not. TimeoutError where none comes."""
        while (reply := self._reader.gets()) is _MORE:
            self._receive(math.inf)
        return reply

    def _send(self, piece: bytes, end: float) -> None:
        view, there = memoryview(piece), self._open()
        while view:
            there.settimeout(self._left(end))
            view = view[there.send(view) :]

    def _receive(self, end: float) -> int:
        there = self._open()
        there.settimeout(self._left(end))
        size = there.recv_into(self._piece)
        if not size:
            raise ConnectionResetError
        self._reader.feed(self._piece, 0, size)
        return size

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError
        return self._socket

    def _left(self, end: float) -> float:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, self._timeout)
