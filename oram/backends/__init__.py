"""Untrusted slots of ciphertext: the protocol, and where the slots can lie."""

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
from oram.backends.url import open_url

__all__ = [
    "Backend",
    "BufferBackend",
    "Capability",
    "LMDBBackend",
    "LMDBStateFile",
    "MemoryBackend",
    "MemoryStateFile",
    "RegionShape",
    "SlotRead",
    "SlotWrite",
    "Slots",
    "StateFile",
    "XorBackend",
    "open_url",
]
