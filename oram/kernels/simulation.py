"""What the simulations of metadata alone have in common: parameters, checks, results. Statistics over many accesses are made of them.

They hold which block is in which bucket, and nothing else: no payloads, keys, dummies, pages, cached levels, batches or server.
``reference/simulation.py`` is the specification of csrc/simulate.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from oram.errors import ParameterError
from oram.params.common import refuse
from oram.types import U16, U32, U64

__all__ = [
    "BINS", "Forest", "Pattern", "PathSimulation", "RingCounts", "RingSimulation", "Snapshot", "Trees", "check_cells", "check_requests",
]  # fmt: skip

BINS = 256  # sizes of a stash that are told apart
SPACE = 0xFFFFFFFFFFFFFFFF  # an entry of a bucket without a block
MAX_L = 28
MAX_Z = 1024


class Pattern(IntEnum):
    """Which addresses are asked for."""

    ROUND_ROBIN = 0  # 0, 1, ... N - 1, 0, ...: the worst case for a stash [Stefanov et al. 2013, section 6.3]
    UNIFORM = 1


@dataclass(frozen=True, slots=True)
class Trees:
    """A tree of N blocks, levels 0..L, Z blocks a bucket; of Ring also A accesses an eviction and S reads of a bucket. seed: of all randomness."""

    N: int
    Z: int
    L: int
    A: int = 1
    S: int = 1
    pattern: Pattern = Pattern.ROUND_ROBIN
    seed: int = 0

    def __post_init__(self) -> None:
        """ParameterError, all problems together."""
        found = []
        if not 1 <= self.L <= MAX_L:
            found.append(f"L must be from 1 to {MAX_L}")
        if not 1 <= self.Z <= MAX_Z:
            found.append(f"Z must be from 1 to {MAX_Z}")
        if not 1 <= self.N < 1 << 31:
            found.append("N must be from 1 to 2^31 - 1")
        if not 1 <= self.A < 1 << 31 or not 1 <= self.S < 1 << 16:
            found.append("A must be at least 1, and S from 1 to 65535")
        refuse(found)

    @property
    def buckets(self) -> int:
        """2^(L+1) - 1."""
        return (2 << self.L) - 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a simulation holds.

    position uint32 (N,): leaf of each block. tree uint64 (buckets, Z): address << 32 | leaf, SPACE where there is none. reads uint16 (buckets,).
    stash uint64 (held,), oldest first. random uint64 (4,).
    """

    position: U32
    tree: U64
    reads: U16
    stash: U64
    random: U64


@dataclass(frozen=True, slots=True)
class RingCounts:
    """Of some accesses. before, after uint64 (BINS,): evictions right before and right after which the stash held so many.

    early uint64 (L + 1,): reshuffles at each level that were no eviction.
    """

    before: U64
    after: U64
    early: U64


class Forest(Protocol):
    """A tree without payloads."""

    trees: Trees

    def set_positions(self, position: U32) -> None:
        """Initial leaves uint32 (N,) in place of those that were drawn. Before the first access."""
        ...

    def snapshot(self) -> Snapshot:
        """A copy of everything."""
        ...


class PathSimulation(Forest, Protocol):
    """Path ORAM, one request an access, each of which leaves its block in the tree."""

    def run(self, accesses: int, addrs: U32 | None = None, leaves: U32 | None = None, sizes: U32 | None = None) -> U64:
        """Some accesses. addrs, leaves uint32 (accesses,): whose block goes to which new leaf; None by pattern, and drawn.

        sizes uint32 (accesses,), filled: stash after each. Returns uint64 (BINS,): accesses after which the stash held so many, the last with all above.
        """
        ...


class RingSimulation(Forest, Protocol):
    """Ring ORAM, likewise."""

    def run(
        self, accesses: int, addrs: U32 | None = None, leaves: U32 | None = None, sizes: U32 | None = None
    ) -> RingCounts:
        """Some accesses, as of Path."""
        ...


def check_requests(trees: Trees, accesses: int, addrs: U32 | None, leaves: U32 | None, sizes: U32 | None) -> None:
    """ParameterError unless these are accesses to that tree, with room for their sizes."""
    found = [] if accesses >= 0 else ["the number of accesses must not be negative"]
    for name, array in (("addrs", addrs), ("leaves", leaves), ("sizes", sizes)):
        if array is not None and (array.dtype != np.uint32 or array.shape != (accesses,)):
            found.append(f"{name} must be uint32 ({accesses},)")
    refuse(found)
    for name, array, below in (("addrs", addrs, trees.N), ("leaves", leaves, 1 << trees.L)):
        if array is not None and array.size and int(array.max()) >= below:
            raise ParameterError(f"{name} must be below {below}")


def check_cells(n: int, m: int, builds: int) -> None:
    """ParameterError unless this is a number of keys, of cells, of which no one is drawn noticeably more often than another, and of builds."""
    if not (0 <= n < 1 << 31 and 1 <= m < 1 << 22 and builds >= 0):
        raise ParameterError("a cuckoo hash has less than 2^31 keys, and from 1 to 2^22 - 1 cells a table")
