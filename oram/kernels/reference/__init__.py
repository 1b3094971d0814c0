"""The reference kernels: the specification of the native ones, and the fallback where no compiler is at hand.

Given the same requests, draws and keys they leave the same bytes behind, in client arrays and in slots.
"""

from __future__ import annotations

from collections.abc import Callable

from oram.kernels.base import CuckooState, Keys, PathState, RingState
from oram.kernels.reference.cipher import ReferenceKeys
from oram.kernels.reference.cuckoooram import ReferenceCuckoo
from oram.kernels.reference.linearoram import ReferenceLinear
from oram.kernels.reference.pathoram import ReferencePath
from oram.kernels.reference.ringoram import ReferenceRing
from oram.kernels.reference.tagindex import ReferenceIndex
from oram.params import CuckooGeometry, LinearGeometry, PathGeometry, RingGeometry
from oram.types import U8, U64

__all__ = [
    "ReferenceCuckoo",
    "ReferenceIndex",
    "ReferenceKeys",
    "ReferenceLinear",
    "ReferencePath",
    "ReferenceRing",
    "cuckoo",
    "index",
    "keys",
    "linear",
    "name",
    "path",
    "ring",
]

name = "reference"


def keys(cipher: str, key_of: Callable[[int], bytes]) -> Keys:
    """Sealing keys by generation."""
    return ReferenceKeys(cipher, key_of)


def path(geometry: PathGeometry, state: PathState, keys: Keys) -> ReferencePath:
    """Path kernel over this state."""
    return ReferencePath(geometry, state, keys)


def ring(geometry: RingGeometry, state: RingState, keys: Keys) -> ReferenceRing:
    """Ring kernel over this state."""
    return ReferenceRing(geometry, state, keys)


def cuckoo(geometry: CuckooGeometry, state: CuckooState, keys: Keys, hash_key: bytes) -> ReferenceCuckoo:
    """Cuckoo kernel over this state."""
    return ReferenceCuckoo(geometry, state, keys, hash_key)


def linear(geometry: LinearGeometry, base: U64, keys: Keys) -> ReferenceLinear:
    """Linear kernel over this state."""
    return ReferenceLinear(geometry, base, keys)


def index(tags: U8) -> ReferenceIndex:
    """Index of the tags that are there now."""
    return ReferenceIndex(tags)
