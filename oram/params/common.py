"""What the parameters of every scheme have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from oram.errors import ParameterError

TAG_SIZE = 16  # bytes of authentication tag behind each sealed slot
DEFAULT_TREE_TOP = 16 << 20  # bytes of client memory for the levels that never leave the client
MAX_CAPACITY = 1 << 31  # blocks: addresses and leaves are 32 bits, all ones is reserved
MAX_BLOCK_SIZE = 1 << 24  # bytes
MAX_SLOT = 1 << 31  # bytes: libcrypto's lengths are C's int
MAX_POOL = 1 << 29  # blocks: chains are 32-bit integers, and the pool can grow


@dataclass(frozen=True, slots=True)
class SlotCost:
    """What reading and writing back a slot costs, for choosing the page height: microseconds a slot, and a byte of it.

    Measured, see bench/pages.py. Small pages pay per slot, tall ones move buckets that are not on the path.
    """

    slot: float
    byte: float


IN_MEMORY = SlotCost(0.5, 0.0006)  # two calls of the cipher and the cache misses; sealing and opening
ON_DISK = SlotCost(60, 0.002)  # two extents of an LMDB commit; their bytes
ON_WIRE = SlotCost(3, 0.016)  # a server's two commands; two passes over a link of a gigabit a second


def check_shape(capacity: int, block_size: int) -> list[str]:
    """Problems with a capacity in blocks and a block size in bytes."""
    found = []
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= MAX_CAPACITY:
        found.append(f"capacity must be an integer from 1 to {MAX_CAPACITY}")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or not 1 <= block_size <= MAX_BLOCK_SIZE:
        found.append(f"block_size must be an integer from 1 to {MAX_BLOCK_SIZE} bytes")
    return found


def check_tree_top(tree_top: object) -> list[str]:
    """Problems with a size of the cached levels in bytes."""
    good = isinstance(tree_top, int) and not isinstance(tree_top, bool) and tree_top >= 0
    return [] if good else ["tree_top must be a number of bytes, 0 or more"]


def cached_levels(Z: int, B: int, L: int, tree_top: int) -> int:
    """How many levels of a tree fit into ``tree_top`` bytes; the leaves are never cached."""
    T = 0
    while T < L and tree_top >= Z * B * ((2 << T) - 1):
        T += 1
    return T


class Tree:
    """What the geometries of trees have in common."""

    Z: int  # blocks a bucket
    L: int  # level of the leaves
    T: int  # first level at the server

    @property
    def leaves(self) -> int:
        """2^L."""
        return 1 << self.L

    @property
    def cached_slots(self) -> int:
        """Block slots of the cached levels: the part of the pool that is not stash."""
        return self.Z * ((1 << self.T) - 1)

    @property
    def pool_size(self) -> int:
        """Blocks the pool holds before it must grow: public, and far above what the bound of the paper asks."""
        raise NotImplementedError

    def checked(self) -> Self:
        """Itself. ParameterError if its pool would be too large."""
        refuse([] if self.pool_size <= MAX_POOL else [f"tree_top is too large: it may hold {MAX_POOL} blocks"])
        return self


def refuse(problems: list[str]) -> None:
    """Raise ParameterError with all the problems, if there are any."""
    if problems:
        raise ParameterError("; ".join(problems))
