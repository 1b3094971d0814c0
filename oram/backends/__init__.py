"""Untrusted slots of ciphertext: the protocol, and where the slots can lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oram.backends.base import (
    Backend,
    BufferBackend,
    Capability,
    RegionShape,
    SlotRead,
    Slots,
    SlotWrite,
    StateFile,
    XorBackend,
)
from oram.backends.lmdb import LMDBBackend, LMDBStateFile
from oram.backends.memory import MemoryBackend, MemoryStateFile
from oram.backends.sharded import ShardedBackend
from oram.backends.url import open_each, open_shards, open_url

if TYPE_CHECKING:
    from oram.backends.redis import RedisBackend, RedisOptions

__all__ = [
    "Backend",
    "BufferBackend",
    "Capability",
    "LMDBBackend",
    "LMDBStateFile",
    "MemoryBackend",
    "MemoryStateFile",
    "RedisBackend",
    "RedisOptions",
    "RegionShape",
    "ShardedBackend",
    "SlotRead",
    "SlotWrite",
    "Slots",
    "StateFile",
    "XorBackend",
    "open_each",
    "open_shards",
    "open_url",
]


def __getattr__(name: str) -> Any:
    """What needs redis is imported when it is asked for: importing this package imports none of it."""
    if name in ("RedisBackend", "RedisOptions"):
        from oram.backends import redis

        return getattr(redis, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
