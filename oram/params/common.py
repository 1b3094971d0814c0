"""What the parameters of every scheme have in common."""

from __future__ import annotations

from dataclasses import dataclass

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


def refuse(problems: list[str]) -> None:
    """Raise ParameterError with all the problems, if there are any."""
    if problems:
        raise ParameterError("; ".join(problems))
