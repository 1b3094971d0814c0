"""Cipher contexts by generation, and calls that supply those which C finds missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oram.errors import CipherUnavailableError
from oram.kernels._native import ffi, lib
from oram.kernels.base import COUNTER_BITS, PoolFullError, TamperedError
from oram.kernels.native.memory import pointer
from oram.params import TAG_SIZE
from oram.types import U8, U64


def aegis() -> Any:
    """The module of pyaegis with libaegis' functions."""
    try:
        from pyaegis import _aegis_ffi
    except ImportError as error:
        raise CipherUnavailableError(
            'the cipher aegis-256 needs the package pyaegis: pip install "oram[aegis]"'
        ) from error
    return _aegis_ffi


class NoRoomError(Exception):
    """The call needs more scratch memory. Nothing was changed; make it and repeat."""


class NativeKeys:
    """Cipher contexts by generation, in a table that C reads."""

    whole = True

    def __init__(self, cipher: str, key_of: Callable[[int], bytes]) -> None:
        self._key_of = key_of
        self._alive: dict[int, Any] = {}
        self._table: Any = None
        self.current = 0
        self.struct = ffi.new("oram_keys *")
        if cipher == "aes-256-gcm":
            self.struct.cipher = lib.oram_gcm()
            self._context = self._gcm
        elif cipher == "aegis-256":
            module = aegis()
            encrypt, decrypt = (
                module.ffi.addressof(module.lib, f"aegis256_{verb}_detached") for verb in ("encrypt", "decrypt")
            )
            self._encrypt = ffi.cast("oram_detached_encrypt_fn", int(module.ffi.cast("uintptr_t", encrypt)))
            self._decrypt = ffi.cast("oram_detached_decrypt_fn", int(module.ffi.cast("uintptr_t", decrypt)))
            self.struct.cipher = lib.oram_detached_cipher()
            self._context = self._detached
        else:
            raise CipherUnavailableError(f"unknown cipher {cipher!r}")
        self._grow(16)

    def _gcm(self, key: bytes) -> Any:
        context = lib.oram_gcm_new(key)
        if context == ffi.NULL:
            raise CipherUnavailableError("libcrypto offers no AES-256-GCM here")
        return ffi.gc(context, lib.oram_gcm_free)

    def _detached(self, key: bytes) -> Any:
        context = ffi.new("oram_detached *")
        context.encrypt, context.decrypt = self._encrypt, self._decrypt
        ffi.memmove(context.key, key, 32)
        return context

    def _grow(self, count: int) -> None:
        table = ffi.new("void *[]", count)
        for generation, context in self._alive.items():
            table[generation] = context
        self._grown = table, self._table  # what C reads is alive, whatever interrupts us
        self.struct.contexts = table
        self._table, self.struct.count = table, count

    def load(self, generation: int) -> None:
        """Make the context of a generation, once."""
        if generation not in self._alive:
            self._alive[generation] = self._context(self._key_of(generation))
        if generation >= self.struct.count:
            self._grow(2 * generation)
        self._table[generation] = self._alive[generation]

    @property
    def counter(self) -> int:
        """Next nonce of the current generation."""
        return int(self.struct.counter)

    def start(self, generation: int) -> None:
        """Seal under this generation from now on, from counter 0."""
        self.load(generation)
        self.current = generation
        self.struct.current, self.struct.counter = generation, 0

    def run(self, call: Callable[..., int], *args: Any) -> None:
        """Call into C, supplying the keys that it finds missing."""
        while (code := call(*args)) > 0:
            self.load(code)
        if code == lib.ORAM_TAMPERED:
            raise TamperedError
        if code == lib.ORAM_POOL_FULL:
            raise PoolFullError
        if code == lib.ORAM_NO_ROOM:
            raise NoRoomError
        if code:
            raise RuntimeError("the cipher failed, or the state is not sound")


def floor(cipher: str, region: U8) -> Callable[[U64], None]:
    """For benchmarks: a function that opens and seals the slots it is given, of a region (slots, slot_size), and does nothing else."""
    keys = NativeKeys(cipher, lambda _: bytes(32))
    keys.start(1)
    context, size = keys.struct.contexts[1], region.shape[1] - TAG_SIZE
    memory = pointer("uint8_t[]", region)
    plain = np.zeros(4096 * size, np.uint8)
    desk = pointer("uint8_t[]", plain)
    for first in range(0, len(region), 4096):  # the first seal; nonces do not matter here
        slots = np.arange(first, min(first + 4096, len(region)), dtype=np.uint64)
        keys.run(
            lib.oram_floor, keys.struct.cipher, context, 0, slots.size, pointer("uint64_t[]", slots), size, memory, desk
        )

    def run(slots: U64) -> None:
        keys.run(
            lib.oram_floor, keys.struct.cipher, context, 1, slots.size, pointer("uint64_t[]", slots), size, memory, desk
        )

    return run


assert COUNTER_BITS == lib.ORAM_COUNTER_BITS
