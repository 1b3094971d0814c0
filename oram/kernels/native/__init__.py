"""The native kernels: csrc/ through cffi. Nothing outside this package imports cffi's output."""

from __future__ import annotations

from collections.abc import Callable

from oram.kernels.base import Keys, PathState, RingState
from oram.kernels.native.cipher import NativeKeys, floor
from oram.kernels.native.cuckoooram import NativeCuckoo
from oram.kernels.native.linearoram import NativeLinear
from oram.kernels.native.pathoram import NativePath
from oram.kernels.native.ringoram import NativeRing
from oram.kernels.native.tagindex import NativeIndex
from oram.params import LinearGeometry, PathGeometry, RingGeometry
from oram.types import U8, U64

__all__ = ["cuckoo", "floor", "index", "keys", "linear", "name", "path", "ring"]

name = "native"
cuckoo = NativeCuckoo


def keys(cipher: str, key_of: Callable[[int], bytes]) -> Keys:
    """Sealing keys by generation."""
    return NativeKeys(cipher, key_of)


def path(geometry: PathGeometry, state: PathState, keys: Keys) -> NativePath:
    """Path kernel over this state."""
    return NativePath(geometry, state, keys)


def ring(geometry: RingGeometry, state: RingState, keys: Keys) -> NativeRing:
    """Ring kernel over this state."""
    return NativeRing(geometry, state, keys)


def linear(geometry: LinearGeometry, base: U64, keys: Keys) -> NativeLinear:
    """Linear kernel over this state."""
    return NativeLinear(geometry, base, keys)


def index(tags: U8) -> NativeIndex:
    """Index of the tags that are there now."""
    return NativeIndex(tags)
