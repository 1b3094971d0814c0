"""Oracles: exact statements about where every block must be, checked against what really lies there. No false alarms.

``path`` and ``ring`` say what each scheme's oracle is and why it is right; ``check`` opens a whole store with libraries that are not the kernels'.
"""

from __future__ import annotations

from oram.schemes.linear import LinearORAM
from oram.schemes.path import PathORAM
from oram.schemes.ring import RingORAM
from oram.store import ObliviousStore
from oram.testing.oracles.base import Contents, NonceSet, ViolationError, check_pool
from oram.testing.oracles.linear import check_linear
from oram.testing.oracles.path import InfinityORAM, Watch, check_path
from oram.testing.oracles.ring import Ledger, Pick, RingBounds, RingShadow, RingWatch, check_ring, early_reshuffles

__all__ = [
    "Contents",
    "InfinityORAM",
    "Ledger",
    "NonceSet",
    "Pick",
    "RingBounds",
    "RingShadow",
    "RingWatch",
    "ViolationError",
    "Watch",
    "check",
    "check_pool",
    "early_reshuffles",
]


def check(store: ObliviousStore) -> Contents:
    """Open everything, beneath any trace, and check every invariant; ViolationError, or the AEAD's own error for a slot that does not open.

    Each address at most once; each block on the path of its position; nothing beside the buckets that exist; slots without a block are zeros; the pool's
    chains and free slots are consistent. Of Ring besides: no bucket read S times. Cost: every slot read, with no access and no trace of it.
    """
    scheme = store._engine.scheme
    if isinstance(scheme, PathORAM):
        return check_path(store, scheme)
    if isinstance(scheme, RingORAM):
        return check_ring(store, scheme)
    assert isinstance(scheme, LinearORAM)
    return check_linear(store, scheme)
