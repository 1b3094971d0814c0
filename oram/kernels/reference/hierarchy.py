"""What a hierarchy has with and without an index: hash functions, and slots that are bound to the epoch of their table."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from oram.backends.base import Slots
from oram.errors import OramError
from oram.kernels.base import COUNTER_BITS, EMPTY, BinnedState, CuckooState, Keys, Requests, TamperedError
from oram.kernels.reference.cipher import ReferenceKeys
from oram.params import CuckooGeometry, Table
from oram.types import I64, U8, U32, U64

__all__ = ["SEED", "Hierarchy"]

SEED = 32  # bytes

S = TypeVar("S", bound=CuckooState | BinnedState)
G = TypeVar("G", bound=CuckooGeometry)


class Hierarchy(Generic[S, G]):
    """What both kernels of a hierarchy do alike. A slot seals a word, which has an address in it, and a block."""

    def __init__(self, geometry: G, state: S, keys: Keys, hash_key: bytes) -> None:
        assert isinstance(keys, ReferenceKeys)
        self._geometry: G = geometry
        self.state: S = state
        self._keys = keys
        self._prf = Cipher(AES(hash_key), ECB())  # noqa: S305 - a PRF on distinct inputs, no mode of encryption
        self._requests = Requests(1, geometry.B, SEED)

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._requests.capacity:
            self._requests = Requests(m, self._geometry.B, SEED)
        self._requests.m = m
        return self._requests

    @property
    def _clock(self) -> int:
        return int(self.state.clock[0])

    @property
    def _built(self) -> bool:
        return bool(self.state.clock[1])

    def _words(self, table: Table, addr: npt.NDArray[np.integer]) -> U64:
        """128 bits of a PRF for each address, uint64 (n, 2)."""
        blocks = np.zeros((addr.size, 4), "<u4")
        blocks[:, 0], blocks[:, 1] = addr, table.level
        blocks[:, 2], blocks[:, 3] = table.epoch & 0xFFFFFFFF, table.epoch >> 32
        return np.frombuffer(self._prf.encryptor().update(blocks.tobytes()), "<u8").reshape(-1, 2)

    def _number(self, slot: int, epoch: int) -> int:
        """What is bound to a sealed slot."""
        return epoch * self._geometry.slots + slot

    def _sealed(self, slot: int, epoch: int, counter: int, entry: tuple[int, bytes] | None) -> U8:
        word, content = entry or (EMPTY, bytes(self._geometry.B))
        ref = self._keys.current << COUNTER_BITS | counter
        sealed = self._keys.seal(self._number(slot, epoch), counter, word.to_bytes(4, "little") + content)
        return np.frombuffer(ref.to_bytes(8, "little") + sealed, np.uint8)

    def open_slots(self, slots: I64, epochs: I64, sealed: Slots) -> tuple[U32, U8]:
        """Words and blocks in clear."""
        words, blocks = np.empty(slots.size, np.uint32), np.empty((slots.size, self._geometry.B), np.uint8)
        bad = False
        for i, (slot, epoch) in enumerate(zip(slots.tolist(), epochs.tolist(), strict=True)):
            row = sealed.data[i].tobytes()
            try:
                plain = self._keys.open(self._number(slot, epoch), int.from_bytes(row[:8], "little"), row[8:])
            # The reference is the server's word: it may name a generation that never was.
            except (InvalidTag, OramError):
                bad = True
                continue
            words[i], blocks[i] = int.from_bytes(plain[:4], "little"), np.frombuffer(plain, np.uint8, offset=4)
        if bad or not sealed.present.all():
            raise TamperedError
        return words, blocks

    def seal_slots(self, slots: I64, epoch: int, source: I64, addr: U32, blocks: U8) -> U8:
        """Seal given content."""
        data = np.empty((slots.size, self._geometry.slot_size), np.uint8)
        first = self._keys.take(slots.size)
        for i, (slot, k) in enumerate(zip(slots.tolist(), source.tolist(), strict=True)):
            data[i] = self._sealed(slot, epoch, first + i, None if k < 0 else (int(addr[k]), blocks[k].tobytes()))
        return data
