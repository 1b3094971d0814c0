"""The door to redis-py and hiredis: commands as bytes, and whether there is any of it."""

from __future__ import annotations

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

__all__ = ["CLUSTER_SLOTS", "EXEC", "MULTI", "joined", "missing", "pack", "redis"]

#: Up to here, copying a command to its neighbours costs less than sending it by itself.
_JOINED = 128 << 10


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
