"""Uniform numbers from a seed: the specification of csrc/coins.c."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

CHUNK = 512  # bytes of keystream at a time


class Coins:
    """The keystream of AES-256-CTR under the seed, 64 bits a number."""

    def __init__(self, seed: bytes) -> None:
        self._stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """A number below n, no further from uniform than n / 2^64."""
        if not self._words:
            chunk = self._stream.update(bytes(CHUNK))
            self._words = [int.from_bytes(chunk[i : i + 8], "little") for i in range(CHUNK - 8, -8, -8)]
        return self._words.pop() * n >> 64
