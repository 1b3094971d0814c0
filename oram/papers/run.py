"""One reproduction: its seed and size, the kernels that simulate, and threads that share the work."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from oram import kernels
from oram.kernels import KernelSet
from oram.kernels.simulation import RingCounts, Trees
from oram.types import U64

__all__ = ["Run", "Size"]

T = TypeVar("T")


class Size(StrEnum):
    """How much is simulated."""

    FULL = "full"  # minutes on two cores
    QUICK = "quick"  # seconds
    SMALL = "small"  # what the reference kernels do in a minute, where nothing else is at hand


def _silent(_done: int, _total: int) -> None:
    pass


@dataclass
class Run:
    """Runs simulations for the papers.

    seed: everything drawn follows from it and from what it is drawn for. kernel: that simulates; threads: that share the work, where it holds no lock.
    progress: called with how much is done and how much there is, in no unit.
    """

    seed: int = 1
    size: Size = Size.FULL
    kernel: KernelSet = field(default_factory=kernels.active)
    threads: int = field(default_factory=lambda: max(1, min(8, os.cpu_count() or 1)))
    progress: Callable[[int, int], None] = _silent

    def __post_init__(self) -> None:
        if self.kernel.name != "native":
            self.size, self.threads = Size.SMALL, 1
        self._lock, self._done, self._total = threading.Lock(), 0, 0
        self._stop = threading.Event()

    def choose(self, full: T, quick: T, small: T) -> T:
        """By the size of the run."""
        return {Size.FULL: full, Size.QUICK: quick, Size.SMALL: small}[self.size]

    def seed_of(self, *what: object) -> int:
        """64 bits for this use of randomness."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *what)).encode()).digest()[:8], "little")

    def together(self, jobs: Iterable[Callable[[], T]], cost: int) -> list[T]:
        """What the jobs return, in order. cost: calls of ``step`` that all of them make."""
        with self._lock:
            self._done, self._total = 0, cost
        pool = ThreadPoolExecutor(self.threads)
        try:
            return [each.result() for each in [pool.submit(job) for job in jobs]]
        finally:
            self._stop.set()  # an interrupt need not wait for what is under way
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()

    def step(self) -> None:
        """One more piece of the work is done. InterruptedError where nobody waits for it any more."""
        if self._stop.is_set():
            raise InterruptedError
        with self._lock:
            self._done += 1
            done, total = self._done, self._total
        self.progress(done, total)

    def path_blocks(self, trees: Trees, blocks: int, each: int) -> U64:
        """Counts of the stash uint64 (blocks, sizes) in blocks of so many accesses, after 6 N of warm-up: the first N load the tree."""
        simulation = self.kernel.path_simulation(trees)
        simulation.run(6 * trees.N)
        return np.array([self._stepped(simulation.run(each)) for _ in range(blocks)])

    def ring_blocks(self, trees: Trees, blocks: int, each: int) -> list[RingCounts]:
        """Likewise; the warm-up is more than two evictions of every leaf."""
        simulation = self.kernel.ring_simulation(trees)
        simulation.run(max(6 * trees.N, (5 * trees.A << trees.L) // 2))
        return [self._stepped(simulation.run(each)) for _ in range(blocks)]

    def cuckoo_blocks(self, n: int, m: int, blocks: int, each: int) -> U64:
        """Counts of what builds leave over uint64 (blocks, sizes)."""
        found = []
        for block in range(blocks):
            seed = self.seed_of("cuckoo", n, m, block)
            found.append(self._stepped(self.kernel.cuckoo_simulation(seed, n, m, each)))
        return np.array(found)

    def _stepped(self, found: T) -> T:
        self.step()
        return found

    def described(self) -> dict[str, Any]:
        """For the record."""
        return {"seed": self.seed, "size": str(self.size), "kernels": self.kernel.name}
