"""Metadata alone: which block is in which bucket, and nothing else. The specification of csrc/simulate.c, number for number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from oram.kernels.base import EMPTY
from oram.kernels.simulation import (
    BINS,
    SPACE,
    Pattern,
    RingCounts,
    Snapshot,
    Trees,
    check_cells,
    check_requests,
)  # fmt: skip
from oram.types import U32, U64

__all__ = ["ReferencePathSimulation", "ReferenceRingSimulation", "Xoshiro", "cuckoo_simulation", "left_over"]

_WORD = (1 << 64) - 1


class Xoshiro:
    """xoshiro256** (Blackman and Vigna 2018), its state made from a seed by splitmix64. Statistics need nothing stronger."""

    def __init__(self, seed: int) -> None:
        self.state, seed = [], seed & _WORD
        for _ in range(4):
            seed = x = (seed + 0x9E3779B97F4A7C15) & _WORD
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _WORD
            x = (x ^ x >> 27) * 0x94D049BB133111EB & _WORD
            self.state.append(x ^ x >> 31)

    def draw(self) -> int:
        """64 bits."""
        s = self.state
        found, t = self._turned(s[1] * 5 & _WORD, 7) * 9 & _WORD, s[1] << 17 & _WORD
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = self._turned(s[3], 45)
        return found

    def below(self, n: int) -> int:
        """A number below n, from the upper half of a draw: off from uniform by n / 2^32 at most."""
        return (self.draw() >> 32) * n >> 32

    @staticmethod
    def _turned(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & _WORD


class _Forest:
    """A tree of addresses."""

    def __init__(self, trees: Trees) -> None:
        self.trees = trees
        self.random = Xoshiro(trees.seed)
        self.position = [self.random.below(1 << trees.L) for _ in range(trees.N)]
        self.tree: list[list[int]] = [[] for _ in range(trees.buckets)]  # addresses by bucket, numbered as in a heap
        self.reads = [0] * trees.buckets  # of each bucket since it was written
        self.stash: list[int] = []  # oldest first
        self.clock = 0

    def set_positions(self, position: U32) -> None:
        """Initial leaves uint32 (N,) in place of those that were drawn. Before the first access."""
        check_requests(self.trees, self.trees.N, None, position, None)
        self.position = position.tolist()

    def snapshot(self) -> Snapshot:
        """A copy of everything."""

        def entries(addrs: list[int]) -> list[int]:
            return [addr << 32 | self.position[addr] for addr in addrs]

        rows = [entries(bucket) + [SPACE] * (self.trees.Z - len(bucket)) for bucket in self.tree]
        return Snapshot(
            np.array(self.position, np.uint32),
            np.array(rows, np.uint64),
            np.array(self.reads, np.uint16),
            np.array(entries(self.stash), np.uint64),
            np.array(self.random.state, np.uint64),
        )

    def path(self, leaf: int) -> list[int]:
        """The buckets on the path to a leaf, from the root."""
        return [(1 << level) - 1 + (leaf >> (self.trees.L - level)) for level in range(self.trees.L + 1)]

    def common(self, a: int, b: int) -> int:
        """Level of the deepest bucket that two leaves have in common."""
        return self.trees.L - (a ^ b).bit_length()

    def requests(self, accesses: int, addrs: U32 | None, leaves: U32 | None) -> Iterator[tuple[int, int]]:
        """Address and new leaf of each access."""
        for i in range(accesses):
            if addrs is not None:
                addr = int(addrs[i])
            elif self.trees.pattern == Pattern.UNIFORM:
                addr = self.random.below(self.trees.N)
            else:
                addr = self.clock % self.trees.N
            yield addr, self.random.below(1 << self.trees.L) if leaves is None else int(leaves[i])

    def evict(self, leaf: int, but: int = EMPTY) -> None:
        """Empty the path of a leaf and the stash, but for the block of one address in the tree, and place all as deep as they may go.

        What came from the tree goes first, as in the kernels (docs/schemes/path.md#records-of-constant-size).
        """
        path, levels = self.path(leaf), range(self.trees.L + 1)
        mine: list[list[int]] = [[] for _ in levels]  # by the deepest bucket that is legal
        client: list[list[int]] = [[] for _ in levels]
        for bucket in path:
            for addr in self.tree[bucket]:
                if addr != but:
                    mine[self.common(self.position[addr], leaf)].append(addr)
        for addr in reversed(self.stash):
            client[self.common(self.position[addr], leaf)].append(addr)
        from_tree: list[int] = []
        from_client: list[int] = []
        for level in reversed(levels):
            from_tree, from_client = mine[level] + from_tree, client[level] + from_client
            self.tree[path[level]] = (from_tree + from_client)[: self.trees.Z]
            from_client = from_client[max(0, self.trees.Z - len(from_tree)) :]
            from_tree = from_tree[self.trees.Z :]
        self.stash = from_tree + from_client  # none is left over of what came from the tree


class ReferencePathSimulation(_Forest):
    """Path ORAM (Stefanov et al. 2013, figure 1), one request an access, each of which leaves its block in the tree."""

    def run(self, accesses: int, addrs: U32 | None = None, leaves: U32 | None = None, sizes: U32 | None = None) -> U64:
        """Some accesses; see ``PathSimulation``."""
        check_requests(self.trees, accesses, addrs, leaves, sizes)
        counts = np.zeros(BINS, np.uint64)
        for i, (addr, leaf) in enumerate(self.requests(accesses, addrs, leaves)):
            read, self.position[addr] = self.position[addr], leaf
            if addr in self.stash:
                self.stash.remove(addr)
            self.stash.append(addr)
            self.evict(read, addr)
            self.clock += 1
            counts[min(len(self.stash), BINS - 1)] += np.uint64(1)
            if sizes is not None:
                sizes[i] = len(self.stash)
        return counts


class ReferenceRingSimulation(_Forest):
    """Ring ORAM (Ren et al. 2015, algorithms 1 to 4), likewise; a reshuffle moves no block to another bucket (docs/decisions/0014)."""

    def run(
        self, accesses: int, addrs: U32 | None = None, leaves: U32 | None = None, sizes: U32 | None = None
    ) -> RingCounts:
        """Some accesses; see ``RingSimulation``."""
        check_requests(self.trees, accesses, addrs, leaves, sizes)
        A, S = self.trees.A, self.trees.S
        before, after = np.zeros(BINS, np.uint64), np.zeros(BINS, np.uint64)
        early = np.zeros(self.trees.L + 1, np.uint64)
        for i, (addr, leaf) in enumerate(self.requests(accesses, addrs, leaves)):
            read, self.position[addr] = self.position[addr], leaf
            self._take(read, addr)
            self.stash.append(addr)
            self.clock += 1
            if self.clock % A == 0:
                target = self.due(self.clock // A - 1)
                before[min(len(self.stash), BINS - 1)] += np.uint64(1)
                self.evict(target)
                after[min(len(self.stash), BINS - 1)] += np.uint64(1)
                for bucket in self.path(target):
                    self.reads[bucket] = 0
            for level, bucket in enumerate(self.path(read)):
                if self.reads[bucket] >= S:
                    self.reads[bucket] = 0
                    early[level] += np.uint64(1)
            if sizes is not None:
                sizes[i] = len(self.stash)
        return RingCounts(before, after, early)

    def _take(self, leaf: int, addr: int) -> None:
        """ReadPath: the block leaves its bucket or the stash, and every bucket of the path was read once more."""
        for bucket in self.path(leaf):
            self.reads[bucket] += 1
            if addr in self.tree[bucket]:
                self.tree[bucket].remove(addr)
        if addr in self.stash:
            self.stash.remove(addr)

    def due(self, number: int) -> int:
        """The leaf of an eviction by its number: the bits of it in reverse."""
        L = self.trees.L
        return int(f"{number % (1 << L):0{L}b}"[::-1], 2)


def cuckoo_simulation(seed: int, n: int, m: int, builds: int) -> U64:
    """So many times n keys with two random cells each, one in either of two tables of m.

    uint64 (BINS,): how many builds left over so many keys, however they are placed: in each component of the graph whose vertices are cells and whose edges
    are keys, all but as many as it has vertices.
    """
    check_cells(n, m, builds)
    random, counts = Xoshiro(seed), np.zeros(BINS, np.uint64)
    for _ in range(builds):
        draws = (random.draw() for _ in range(n))
        left = left_over((((x >> 32) * m >> 32, (x & 0xFFFFFFFF) * m >> 32) for x in draws), m)
        counts[min(left, BINS - 1)] += np.uint64(1)
    return counts


def left_over(pairs: Iterable[tuple[int, int]], m: int) -> int:
    """How many keys find no cell, however they are placed. pairs: of each key its cell in either of two tables of m."""
    parent, full, left = list(range(2 * m)), [False] * (2 * m), 0  # full: a component with as many keys as cells

    def root(cell: int) -> int:
        while parent[cell] != cell:
            parent[cell] = cell = parent[parent[cell]]
        return cell

    for one, two in pairs:
        a, b = root(one), root(m + two)
        if full[a] and full[b]:
            left += 1
            continue
        full[b] = a == b or full[a] or full[b]
        parent[a] = b
    return left
