"""What an oblivious store is compared with: a store that encrypts and authenticates its records, and hides nothing else.

One slot a record, all of one size, sealed with AES-256-GCM; which slot holds which key is known to the client only. So the
server learns neither keys nor values nor their lengths. It is as fast as such a store can be over these backends.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from oram import record
from oram.backends import Backend, RegionShape
from oram.errors import IntegrityError, MissingKeyError
from oram.keys import KEY_SIZE, OVERHEAD, Keyring

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
        slot = self._slot(key)
        sealed = self.backend.read(REGION, np.array([slot])).data[0].tobytes()
        pair = record.unpack(self._keyring.open(b"record %d" % slot, sealed))
        if pair is None or pair[0] != key:
            raise IntegrityError("stored data was changed, swapped, withheld or is stale")
        return pair[1]

    def put(self, key: bytes, value: bytes) -> None:
        """Replace the value of a key. Cost: one write. Leaks: which record it is, and that it was a put."""
        slot = self._slot(key)
        sealed = self._seal(slot, *record.check(key, value, self._size))
        self.backend.write(REGION, np.array([slot]), np.frombuffer(sealed, np.uint8).reshape(1, -1))

    def _slot(self, key: bytes) -> int:
        if key not in self._slots:
            raise MissingKeyError
        return self._slots[key]
