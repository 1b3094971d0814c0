"""A record: one key and its value, padded to a fixed number of blocks.

used u8 = 1, key length u16, value length u32, key, value, zeros
"""

from __future__ import annotations

import struct

from oram.errors import IntegrityError, KeyTooLargeError, KeyTypeError, ValueTooLargeError

_HEAD = struct.Struct("<BHI")
OVERHEAD = _HEAD.size  # bytes of a record that hold neither key nor value
MAX_KEY = 0xFFFF


def check(key: object, value: object, size: int) -> tuple[bytes, bytes]:
    """Key and value as bytes, if they fit a record of ``size`` bytes; else a typed error that names neither."""
    key = check_key(key, size)
    if not isinstance(value, bytes):
        if not isinstance(value, bytearray | memoryview):
            raise KeyTypeError("values must be bytes")
        value = bytes(value)
    if OVERHEAD + len(key) + len(value) > size:
        raise ValueTooLargeError(f"key and value together may have {size - OVERHEAD} bytes in this store")
    return key, value


def check_key(key: object, size: int) -> bytes:
    """The key as bytes."""
    if not isinstance(key, bytes):
        if not isinstance(key, bytearray | memoryview):
            raise KeyTypeError("keys must be bytes")
        key = bytes(key)
    if OVERHEAD + len(key) > size or len(key) > MAX_KEY:
        raise KeyTooLargeError(f"a key may have {min(size - OVERHEAD, MAX_KEY)} bytes in this store")
    return key


def pack(key: bytes, value: bytes, size: int) -> bytes:
    """The record, ``size`` bytes."""
    return (_HEAD.pack(1, len(key), len(value)) + key + value).ljust(size, b"\0")


def unpack(record: bytes) -> tuple[bytes, bytes] | None:
    """Key and value, or None where there is no record. IntegrityError if it is none that ``pack`` made."""
    used, key, value = _HEAD.unpack_from(record)
    if not used:
        return None
    end = OVERHEAD + key + value
    if used != 1 or end > len(record):
        raise IntegrityError("a record is malformed: were blocks of this store written directly?")
    return record[OVERHEAD : OVERHEAD + key], record[OVERHEAD + key : end]
