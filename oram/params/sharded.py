"""Shards: how many requests each gets, and the geometry of a store that is made of several trees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from oram.params.cuckoo import CuckooGeometry
from oram.params.linear import LinearGeometry
from oram.params.path import PathGeometry
from oram.params.ring import RingGeometry

#: A batch goes to the shards as it is, but with this probability.
OVERFLOW_BITS = 80

#: Each shard has a server or a name of its own, and a part in every access.
MAX_SHARDS = 256


def overflows(R: int, k: int, B: int) -> bool:
    """Whether some shard of k can get more than B of R distinct addresses with a probability above 2^-80. B of at least R / k.

    An address is in a given shard with probability 1/k, and R addresses are drawn without replacement. So a shard's number of them is a sum of
    independent indicators of mean R / k (Vatutin and Mikhailov 1982), and above its mean no such sum has a heavier tail than the
    binomial one (Hoeffding 1956, theorem 4): k P[Bin(R, 1/k) > B] is a bound. Integers, so that nothing is rounded down: terms of
    C(R, i) (k - 1)^(R - i) out of k^R, and a geometric series for what is left when they are small.
    """
    if k == 1 or B >= R:
        return B < R
    i = B + 1
    term: int = math.comb(R, i) * (k - 1) ** (R - i)
    least: int = k**R >> OVERFLOW_BITS
    total = 0
    while True:
        total += k * term
        if total > least:
            return True
        down = (i + 1) * (k - 1)  # the next term is this one times (R - i) / down, and the ratio falls
        if i == R:
            return False
        if term * k << 128 < least:
            return total + k * term * (R - i) // (down - (R - i)) + 1 > least
        term = term * (R - i) // down
        i += 1


@cache
def shard_batch(R: int, k: int) -> int:
    """B(R, k): the requests that each of k shards gets in a batch of R. The smallest number that does not overflow but with 2^-80.

    Source: Snoopy (Dauterman, Fang, Demertzis, Crooks, Popa: SOSP 2021), section 4.1, whose closed bound is a little larger.
    """
    low, high = -(-R // k), R
    while low < high:
        middle = (low + high) // 2
        if overflows(R, k, middle):
            low = middle + 1
        else:
            high = middle
    return high


@dataclass(frozen=True)
class ShardedGeometry:
    """``N`` blocks over k equal trees, each of ``tree.N`` blocks: N / k, rounded up."""

    N: int
    shards: int
    tree: PathGeometry | RingGeometry | CuckooGeometry | LinearGeometry

    @property
    def B(self) -> int:
        """Bytes of a block."""
        return self.tree.B

    @property
    def scheme(self) -> str:
        """Of the trees."""
        return self.tree.scheme

    @property
    def places(self) -> int:
        """Addresses of all trees together: N, and fewer than k more."""
        return self.shards * self.tree.N

    def batch(self, m: int) -> int:
        """The requests that each shard gets in a batch of m: B(m, k), and never more than it has blocks."""
        return min(shard_batch(m, self.shards), self.tree.N) if m else 0

    @cached_property
    def max_batch(self) -> int:
        """Requests a batch: as many as keep each shard's within what its tree takes."""
        most, k = self.tree.max_batch, self.shards
        if most >= self.tree.N:
            return k * most
        low, high = most, k * most
        while low < high:
            middle = (low + high + 1) // 2
            if overflows(middle, k, most):
                high = middle - 1
            else:
                low = middle
        return low

    @property
    def stash_bound(self) -> int:
        """The stashes above which something is wrong: the bounds of all trees together."""
        return self.shards * self.tree.stash_bound

    def public(self) -> dict[str, Any]:
        """Its part of the header."""
        return {**self.tree.public(), "shards": self.shards}


def check_shards(shards: object, blocks: int) -> list[str]:
    """Problems with a number of shards for so many blocks."""
    if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MAX_SHARDS:
        return [f"shards must be an integer from 1 to {MAX_SHARDS}"]
    return [] if shards <= blocks else ["there must be at least as many blocks as shards"]
