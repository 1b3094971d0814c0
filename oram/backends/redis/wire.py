"""The door to redis-py and hiredis: a connection, and commands as bytes on it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from oram.backends.redis.inbox import FloodError, Form, GarbledError, Inbox

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

__all__ = ["CLUSTER_SLOTS", "EXEC", "MULTI", "FloodError", "GarbledError", "Wire", "joined", "missing", "pack", "redis"]

#: Up to here, copying a command to its neighbours costs less than sending it by itself.
_JOINED = 128 << 10

#: Bytes that answers may have besides the slots that were asked for; and that a link is to carry in a second, so that a server which answers byte by
#: byte does not hold a call for ever.
_SPARE, _RATE = 1 << 20, 8 << 10


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


class Wire:
    """One connection. redis-py makes it (addresses, TLS). What travels over it is read here, within bounds of length and time; nobody logs it."""

    def __init__(self, make: Callable[..., Any], timeout: float, **arguments: Any) -> None:
        # With a function of ours for it, redis-py says nothing on a new connection.
        self._made = make(
            socket_timeout=timeout, socket_connect_timeout=timeout, redis_connect_func=lambda _: None, **arguments
        )
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._inbox: Inbox | None = None

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._socket is not None

    def connect(self) -> None:
        """Make it anew. Raises what redis-py raises."""
        self.drop()
        self._made.connect()
        there: socket.socket = self._made._get_socket()
        there.settimeout(self._timeout)
        self._socket, self._inbox = there, Inbox(there, hiredis.Reader())

    def drop(self) -> None:
        """Close it, if it is open. In a child of the process that made it, its copy only."""
        self._socket = self._inbox = None
        self._made.disconnect()

    def trip(self, commands: list[bytes], expected: int = 0, forms: Sequence[Form | None] = ()) -> list[Any]:
        """Send commands, and read a reply to each; an error reply is an exception among them. One round trip.

        expected: bytes of the slots that were asked for. forms: what the first replies are like, if all of their slots are there; then each of these
        is an array. Raises OSError (TimeoutError among them), GarbledError, ``hiredis.ProtocolError``, or FloodError; the connection is then of
        no use.
        """
        there, inbox = self._socket, self._inbox
        if there is None or inbox is None:
            raise ConnectionResetError
        if len(commands) == 1:
            pieces, length = commands, len(commands[0])
        else:
            pieces = joined(commands)
            length = sum(map(len, pieces))
        end = time.monotonic() + self._timeout + (length + expected) / _RATE
        if length <= _JOINED:  # which it has the connection's own timeout for
            for piece in pieces:
                there.sendall(piece)
        else:
            self._send(there, pieces, end)
        return inbox.take(len(commands), _SPARE + expected, forms, end)

    def _send(self, there: socket.socket, pieces: list[bytes], end: float) -> None:
        """Large commands: each part of them has its own time, and all of them ``end``."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                there.settimeout(min(left, self._timeout))
                view = view[there.send(view) :]
        there.settimeout(self._timeout)

    def hear(self) -> Any:
        """The next reply, asked for or not. TimeoutError where none comes."""
        if self._inbox is None:
            raise ConnectionResetError
        return self._inbox.hear()
