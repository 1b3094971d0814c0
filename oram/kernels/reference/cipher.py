"""Sealing keys by generation, through the package cryptography and pyaegis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oram.errors import CipherUnavailableError
from oram.kernels.base import COUNTER_BITS
from oram.params import TAG_SIZE

COUNTER_MASK = (1 << COUNTER_BITS) - 1


class AEAD(Protocol):
    """The part of an AEAD that sealing needs."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes: ...


class Aegis256:
    """AEGIS-256 with a 128-bit tag, by pyaegis."""

    def __init__(self, key: bytes) -> None:
        try:
            from pyaegis import Aegis256 as Cipher
        except ImportError as error:
            raise CipherUnavailableError(
                'the cipher aegis-256 needs the package pyaegis: pip install "oram[aegis]"'
            ) from error
        self._cipher, self._key = Cipher(TAG_SIZE), key

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        return bytes(self._cipher.encrypt(self._key, nonce, data, associated_data))

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        try:
            return bytes(self._cipher.decrypt(self._key, nonce, data, associated_data))
        except Exception as error:  # its own exception class differs between releases
            raise InvalidTag from error


class ReferenceKeys:
    """AEAD objects by generation."""

    whole = False

    def __init__(self, cipher: str, key_of: Callable[[int], bytes]) -> None:
        if cipher not in ("aes-256-gcm", "aegis-256"):
            raise CipherUnavailableError(f"unknown cipher {cipher!r}")
        self._make: Callable[[bytes], AEAD] = AESGCM if cipher == "aes-256-gcm" else Aegis256
        self._nonce_size = 12 if cipher == "aes-256-gcm" else 32
        self._key_of = key_of
        self._alive: dict[int, AEAD] = {}
        self.current = 0
        self.counter = 0
        self._make(bytes(32))  # a cipher that is not installed is found out here

    def _aead(self, generation: int) -> AEAD:
        if generation not in self._alive:
            self._alive[generation] = self._make(self._key_of(generation))
        return self._alive[generation]

    def start(self, generation: int) -> None:
        """Seal under this generation from now on, from counter 0."""
        self._aead(generation)
        self.current, self.counter = generation, 0

    def take(self, n: int) -> int:
        """The next n nonces, spent before the first seal: whatever happens then, none is used twice."""
        first = self.counter
        if first + n > 1 << COUNTER_BITS:
            raise RuntimeError("no nonces are left in this generation")
        self.counter += n
        return first

    def seal(self, slot: int, counter: int, plain: bytes) -> bytes:
        """Seal under the current generation."""
        return self._aead(self.current).encrypt(
            counter.to_bytes(self._nonce_size, "little"), plain, slot.to_bytes(8, "little")
        )

    def reseal(self, slot: int, ref: int, plain: bytes) -> bytes:
        """What was once sealed: the same bytes again, to be cancelled in an XOR."""
        nonce = (ref & COUNTER_MASK).to_bytes(self._nonce_size, "little")
        return self._aead(ref >> COUNTER_BITS).encrypt(nonce, plain, slot.to_bytes(8, "little"))

    def open(self, slot: int, ref: int, sealed: bytes) -> bytes:
        """Open under a reference; InvalidTag."""
        nonce = (ref & COUNTER_MASK).to_bytes(self._nonce_size, "little")
        return self._aead(ref >> COUNTER_BITS).decrypt(nonce, sealed, slot.to_bytes(8, "little"))
