"""What an oblivious store is compared with: a store that encrypts and authenticates its records, and hides nothing else.

One slot a record, all of one size, sealed with AES-256-GCM; which slot holds which key is known to the client only. So the
server learns neither keys nor values nor their lengths. It is as fast as such a store can be over these backends, in batches too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from oram import record
from oram.backends import Backend, RegionShape
from oram.errors import IntegrityError, MissingKeyError
from oram.keys import KEY_SIZE, OVERHEAD, Keyring
from oram.types import U8

__all__ = ["REGION", "EncryptedStore"]

REGION = "records"
_CHUNK = 8192  # slots a write while loading


class EncryptedStore:
    """Records in the order in which they were loaded. The directory lives in memory, as long as the object."""

    def __init__(self, backend: Backend, record_size: int) -> None:
        self.backend = backend
        self._size = record_size
        self._slots: dict[bytes, int] = {}
        self._keyring = Keyring(os.urandom(KEY_SIZE), os.urandom(16), 1, "aes-256-gcm", {})
        self._keyring.start(*self._keyring.new_generation())

    def load(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Fill the empty store. Cost: one write a slot."""
        size = self._size + OVERHEAD
        self.backend.allocate(REGION, RegionShape(len(records), size))
        for first in range(0, len(records), _CHUNK):
            part = records[first : first + _CHUNK]
            sealed = b"".join(self._seal(first + i, key, value) for i, (key, value) in enumerate(part))
            indices = np.arange(first, first + len(part))
            self.backend.write(REGION, indices, np.frombuffer(sealed, np.uint8).reshape(len(part), size))
            self._slots.update((key, first + i) for i, (key, _) in enumerate(part))

    def _seal(self, slot: int, key: bytes, value: bytes) -> bytes:
        return self._keyring.seal(b"record %d" % slot, record.pack(key, value, self._size))

    def get(self, key: bytes) -> bytes:
        """The value of a key. Cost: one read. Leaks: which record it is, if not what is in it."""
        (value,) = self.get_many([key])
        if value is None:
            raise MissingKeyError
        return value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys, None where there is none. Cost: one read. Leaks: which records they are, and how many are there."""
        slots = [self._slots[key] for key in keys if key in self._slots]
        found = dict(zip(slots, self.backend.read(REGION, np.array(slots)).data, strict=True)) if slots else {}
        return [self._opened(self._slots[key], key, found) if key in self._slots else None for key in keys]

    def _opened(self, slot: int, key: bytes, found: Mapping[int, U8]) -> bytes:
        pair = record.unpack(self._keyring.open(b"record %d" % slot, found[slot].tobytes()))
        if pair is None or pair[0] != key:
            raise IntegrityError("stored data was changed, swapped, withheld or is stale")
        return pair[1]

    def put(self, key: bytes, value: bytes) -> None:
        """Replace the value of a key. Cost: one write. Leaks: which record it is, and that it was a put."""
        self.put_many([(key, value)])

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Replace the values of keys, of one that comes twice by its last. Cost: one write. Leaks: which records they are, and that they were put.

        MissingKeyError for a key that is not there; then nothing was written.
        """
        sealed = {self._slot(key): (key, value) for key, value in items}
        rows = b"".join(self._seal(slot, *record.check(*item, self._size)) for slot, item in sealed.items())
        if sealed:
            self.backend.write(REGION, np.array(list(sealed)), np.frombuffer(rows, np.uint8).reshape(len(sealed), -1))

    def _slot(self, key: bytes) -> int:
        if key not in self._slots:
            raise MissingKeyError
        return self._slots[key]
