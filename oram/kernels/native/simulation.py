"""Metadata alone, in C."""

from __future__ import annotations

import numpy as np

from oram.kernels._native import ffi, lib
from oram.kernels.native.memory import pointer, writable
from oram.kernels.simulation import BINS, RingCounts, Snapshot, Trees, check_cells, check_requests
from oram.types import U32, U64

__all__ = ["NativePathSimulation", "NativeRingSimulation", "cuckoo_simulation"]

_ROOM = 64  # blocks of a stash to begin with
_WORD = (1 << 64) - 1


class _Forest:
    """A tree, its arrays, and the C struct over them."""

    def __init__(self, trees: Trees) -> None:
        self.trees = trees
        self._random, self._position = np.zeros(4, np.uint64), np.zeros(trees.N, np.uint32)
        self._tree = np.zeros((trees.buckets, trees.Z), np.uint64)
        self._reads = np.zeros(trees.buckets, np.uint16)
        self._stash = np.zeros(_ROOM, np.uint64)
        self._c = ffi.new("oram_forest *")
        self._c.Z, self._c.L, self._c.N, self._c.A, self._c.S = trees.Z, trees.L, trees.N, trees.A, trees.S
        self._c.pattern = int(trees.pattern)
        self._attach()
        lib.oram_seed(self._c.random, trees.seed & _WORD)
        lib.oram_simulate_start(self._c)

    def _attach(self) -> None:
        """Point the struct at the arrays, with scratch memory for a stash of this room."""
        levels, room = self.trees.L + 1, self._stash.size
        hand = room + levels * self.trees.Z + 1
        self._kept = (
            writable("uint64_t[]", self._random), writable("uint32_t[]", self._position), writable("uint64_t[]", self._tree),
            writable("uint16_t[]", self._reads), writable("uint64_t[]", self._stash), ffi.new("uint64_t[]", hand),
            ffi.new("int32_t[]", hand + 4 * levels),
        )  # fmt: skip
        c = self._c
        c.random, c.position, c.tree, c.reads, c.stash, c.hand, c.next = self._kept
        c.room = room

    def _grow(self) -> None:
        self._stash = np.concatenate([self._stash, np.zeros_like(self._stash)])
        self._attach()

    def set_positions(self, position: U32) -> None:
        """Initial leaves uint32 (N,) in place of those that were drawn. Before the first access."""
        check_requests(self.trees, self.trees.N, None, position, None)
        self._position[:] = position

    def snapshot(self) -> Snapshot:
        """A copy of everything."""
        held = self._stash[: self._c.held].copy()
        return Snapshot(self._position.copy(), self._tree.copy(), self._reads.copy(), held, self._random.copy())


def _from(array: U32 | None, done: int) -> object:
    """The rest of an array, for C."""
    return ffi.NULL if array is None else pointer("uint32_t[]", array) + done


def _into(array: U32 | None, done: int) -> object:
    return ffi.NULL if array is None else writable("uint32_t[]", array) + done


class NativePathSimulation(_Forest):
    """Path ORAM."""

    def run(self, accesses: int, addrs: U32 | None = None, leaves: U32 | None = None, sizes: U32 | None = None) -> U64:
        """Some accesses; see ``PathSimulation``."""
        check_requests(self.trees, accesses, addrs, leaves, sizes)
        counts, done = np.zeros(BINS, np.uint64), 0
        into = writable("uint64_t[]", counts)
        while done < accesses:
            done += lib.oram_simulate_path(
                self._c, accesses - done, _from(addrs, done), _from(leaves, done), into, BINS, _into(sizes, done)
            )
            if done < accesses:
                self._grow()
        return counts


class NativeRingSimulation(_Forest):
    """Ring ORAM."""

    def run(
        self, accesses: int, addrs: U32 | None = None, leaves: U32 | None = None, sizes: U32 | None = None
    ) -> RingCounts:
        """Some accesses; see ``RingSimulation``."""
        check_requests(self.trees, accesses, addrs, leaves, sizes)
        found = RingCounts(np.zeros(BINS, np.uint64), np.zeros(BINS, np.uint64), np.zeros(self.trees.L + 1, np.uint64))
        before, after = writable("uint64_t[]", found.before), writable("uint64_t[]", found.after)
        early, done = writable("uint64_t[]", found.early), 0
        while done < accesses:
            done += lib.oram_simulate_ring(
                self._c, accesses - done, _from(addrs, done), _from(leaves, done), before, after, BINS, early, _into(sizes, done)
            )  # fmt: skip
            if done < accesses:
                self._grow()
        return found


def cuckoo_simulation(seed: int, n: int, m: int, builds: int) -> U64:
    """Builds of a cuckoo hash; see ``reference.simulation.cuckoo_simulation``."""
    check_cells(n, m, builds)
    random, counts = np.zeros(4, np.uint64), np.zeros(BINS, np.uint64)
    parent, full = ffi.new("uint32_t[]", 2 * m), ffi.new("uint8_t[]", 2 * m)
    words = writable("uint64_t[]", random)
    lib.oram_seed(words, seed & _WORD)
    lib.oram_simulate_cuckoo(words, n, m, builds, writable("uint64_t[]", counts), BINS, parent, full)
    return counts
