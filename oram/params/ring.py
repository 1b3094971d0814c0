"""Parameters of Ring ORAM, checked against the paper's conditions, and the geometry of its tree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, Literal, Self

from oram.params.common import (
    IN_MEMORY,
    MAX_SLOT,
    TAG_SIZE,
    SlotCost,
    Tree,
    cached_levels,
    check_shape,
    check_tree_top,
    refuse,
)

Metadata = Literal["client", "server"]

#: The paper's sets (Z, A, S); S minimises the bandwidth [section 5].
RING_SETS = ((4, 3, 6), (8, 8, 13), (16, 20, 29), (32, 46, 60))

#: Stash of the paper's table 3 for a failure probability of 2^-80, by (Z, A). Above it an alarm is raised, never an error.
RING_STASH_BOUND = {(4, 3): 32, (8, 8): 41, (16, 20): 65, (32, 46): 113}

MAX_Z = 128
MAX_BUCKET = 1024  # slots


def stash_exponent(Z: int, A: int) -> float:
    """Q of the paper's section 4.3; the stash has a bound exactly where it is positive."""
    return Z * math.log(2 * Z / A) + A / 2 - Z - math.log(4)


@cache
def largest_A(Z: int) -> int:
    """The largest A for which the paper proves the stash bounded; 0 where there is none."""
    return max((A for A in range(1, 2 * Z) if stash_exponent(Z, A) > 0), default=0)


@cache
def early_reshuffles(A: int, S: int) -> float:
    """Probability that a deep bucket is reshuffled early between two evictions through it: P[Poisson(A) >= S]."""
    return 1 - sum(math.exp(k * math.log(A) - A - math.lgamma(k + 1)) for k in range(S))


@cache
def best_S(Z: int, A: int) -> int:
    """The S that minimises the bandwidth, (2Z + S)(1 + P[Poisson(A) >= S]) [section 5]."""
    return min(range(A, 3 * A + 8), key=lambda S: (2 * Z + S) * (1 + early_reshuffles(A, S)))


@dataclass(frozen=True, slots=True)
class RingParams:
    """Ring ORAM (Ren et al. 2015).

    Z: blocks a bucket holds; None picks the cheapest of the paper's sets for block size and backend.
    A: accesses an eviction; None is the largest for which the stash is proved bounded.
    S: dummies a bucket is written with, at least; None minimises the bandwidth.
    metadata: where each bucket's metadata is. "client": with the client, one round trip an access. "server": sealed at the server, as
    in the paper, two round trips.
    xor: whether the slots of a path are fetched as their XOR; None does so where the backend can
    and says that it pays, asked anew at each opening (a Redis server by its link).
    """

    Z: int | None = None
    A: int | None = None
    S: int | None = None
    metadata: Metadata = "client"
    xor: bool | None = None
    name: ClassVar[str] = "ring"

    def problems(self) -> list[str]:
        """What is wrong with these values, in words; empty if nothing is."""
        found = []
        for letter in ("Z", "A", "S"):
            value: object = getattr(self, letter)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                found.append(f"{letter} must be a positive integer")
        where: object = self.metadata
        if where not in ("client", "server"):
            found.append('metadata must be "client" or "server"')
        how: object = self.xor
        if how is not None and not isinstance(how, bool):
            found.append("xor must be True, False or None")
        if found:
            return found
        if self.Z is None:
            return ["A and S need Z"] if (self.A, self.S) != (None, None) else []
        most = largest_A(self.Z) if self.Z <= MAX_Z else 0
        if self.Z > MAX_Z or not most:
            return [f"Z must be an integer from 3 to {MAX_Z}: below 3 no stash is bounded"]
        if self.A is not None and most < self.A:
            return [f"with Z={self.Z} the stash is bounded for A of at most {most}"]
        A = most if self.A is None else self.A
        if self.S is not None and not A <= self.S <= MAX_BUCKET - self.Z:
            found.append(f"S must be at least A={A} and at most {MAX_BUCKET - self.Z}")
        return found

    def sets(self) -> list[tuple[int, int, int]]:
        """The (Z, A, S) that these parameters leave open."""
        if self.Z is None:
            return list(RING_SETS)
        A = largest_A(self.Z) if self.A is None else self.A
        return [(self.Z, A, best_S(self.Z, A) if self.S is None else self.S)]


@dataclass(frozen=True)
class RingGeometry(Tree):
    """A Ring tree of ``N`` blocks of ``B`` bytes: levels 0..L, of which T..L lie at the server, Z + S slots a bucket."""

    N: int
    B: int
    Z: int
    A: int
    S: int
    L: int
    T: int
    metadata: Metadata = "client"
    xor: bool | None = None
    scheme: ClassVar[str] = RingParams.name

    @classmethod
    def of(
        cls, capacity: int, block_size: int, params: RingParams, tree_top: int, cost: SlotCost = IN_MEMORY
    ) -> RingGeometry:
        """The geometry for ``tree_top`` bytes of cached levels. ParameterError, all problems together."""
        found = check_shape(capacity, block_size) + params.problems() + check_tree_top(tree_top)
        refuse(found)
        fitting = []
        for Z, A, S in params.sets():
            L = max(1, (-(-2 * capacity // A) - 1).bit_length())  # N <= A * 2^(L-1) [section 4.3]
            T = cached_levels(Z, block_size, L, tree_top)
            fitting.append(cls(capacity, block_size, Z, A, S, L, T, params.metadata, params.xor))
        fitting = [g for g in fitting if max(g.slot_size, g.meta_size) < MAX_SLOT]
        refuse([] if fitting else ["a slot must be smaller than 2 GiB: lower block_size"])
        return min(fitting, key=lambda g: g.levels * g.moved * (cost.slot + cost.byte * g.slot_size)).checked()

    @property
    def n(self) -> int:
        """Slots of a bucket."""
        return self.Z + self.S

    @property
    def levels(self) -> int:
        """Levels at the server."""
        return self.L + 1 - self.T

    @property
    def first(self) -> int:
        """Number of the first bucket of level T, counted from 1 at the root as in a heap: that bucket is number 0 at the server."""
        return 1 << self.T

    @property
    def buckets(self) -> int:
        """Buckets at the server."""
        return (2 << self.L) - self.first

    @property
    def slots(self) -> int:
        """Slots at the server: those of bucket b are b * n and those that follow."""
        return self.buckets * self.n

    @property
    def slot_size(self) -> int:
        """Bytes of a sealed slot."""
        return self.B + TAG_SIZE

    @property
    def words(self) -> int:
        """64-bit words with a bit for each slot of a bucket."""
        return -(-self.n // 64)

    @property
    def meta_plain(self) -> int:
        """Bytes of a bucket's metadata in clear: references of its children and of itself, slots read, addresses and their slots."""
        return 8 * (3 + self.words) + 6 * self.Z

    @property
    def meta_size(self) -> int:
        """Bytes of a bucket's sealed metadata."""
        return self.meta_plain + TAG_SIZE

    @property
    def moved(self) -> float:
        """Slots that an access moves for each level, on average [section 5]."""
        return 1 + (2 * self.Z + self.S) / self.A * (1 + early_reshuffles(self.A, self.S))

    @cached_property
    def max_batch(self) -> int:
        """Requests a batch: as many as keep its working memory to about 64 MiB."""
        return max(1, min(1024, int((64 << 20) / (2 * self.levels * self.moved * self.slot_size))))

    def evictions(self, m: int) -> int:
        """Evictions that can fall due in m accesses, at most."""
        return -(-m // self.A)

    @property
    def pool_size(self) -> int:
        """Blocks the pool holds before it must grow: public, and far above what the bound of the paper asks."""
        return self.cached_slots + 2 * self.A + 256 + self.max_batch

    @property
    def stash_bound(self) -> int:
        """The stash above which something is wrong: the table's, and for other parameters that of the next larger Z in it."""
        return next((bound for (Z, _), bound in RING_STASH_BOUND.items() if self.Z <= Z), 4 * self.Z)

    def public(self) -> dict[str, Any]:
        """Its part of the header; xor only where it was asked for."""
        tree = {name: getattr(self, name) for name in ("Z", "A", "S", "L", "T", "metadata")}
        return tree if self.xor is None else {**tree, "xor": self.xor}

    @classmethod
    def from_public(cls, N: int, B: int, public: dict[str, Any]) -> Self:
        """From an authenticated header."""
        tree = {name: public[name] for name in ("Z", "A", "S", "L", "T", "metadata")}
        return cls(N, B, **tree, xor=public.get("xor"))
