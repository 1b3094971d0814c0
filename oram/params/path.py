"""Parameters of Path ORAM, and the geometry of its tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

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

#: Stash that Path ORAM's table 3 gives for a failure probability of 2^-80, by Z. Above it an alarm is raised, never an error.
STASH_BOUND = {4: 89, 5: 63, 6: 53}


@dataclass(frozen=True, slots=True)
class PathParams:
    """Path ORAM (Stefanov et al. 2013).

    Z: slots a bucket. 4 is the paper's practical choice; 3 lets the stash grow with N.
    page_levels: tree levels sealed together as one slot; None picks the cheapest for block size and backend.
    """

    Z: int = 4
    page_levels: int | None = None
    name: ClassVar[str] = "path"

    def problems(self) -> list[str]:
        """What is wrong with these values, in words; empty if nothing is."""
        found = []
        if not isinstance(self.Z, int) or not 1 <= self.Z <= 64:
            found.append("Z must be an integer from 1 to 64")
        if self.page_levels is not None and (not isinstance(self.page_levels, int) or not 1 <= self.page_levels <= 8):
            found.append("page_levels must be an integer from 1 to 8")
        return found


@dataclass(frozen=True)
class PathGeometry(Tree):
    """A Path tree of ``N`` blocks of ``B`` bytes: levels 0..L, of which T..L lie at the server in pages of h levels."""

    N: int
    B: int
    Z: int
    L: int
    T: int
    h: int
    scheme: ClassVar[str] = PathParams.name

    @classmethod
    def of(
        cls, capacity: int, block_size: int, params: PathParams, tree_top: int, cost: SlotCost = IN_MEMORY
    ) -> PathGeometry:
        """The geometry for ``tree_top`` bytes of cached levels. ParameterError, all problems together."""
        found = check_shape(capacity, block_size) + params.problems() + check_tree_top(tree_top)
        refuse(found)
        Z = params.Z
        L = max(1, (capacity - 1).bit_length() - 1)  # ceil(log2 N) - 1 [Path ORAM, section 3]
        T = cached_levels(Z, block_size, L, tree_top)
        heights = [params.page_levels] if params.page_levels else range(1, 7)
        fitting = [cls._whole(capacity, block_size, Z, L, T, min(h, L + 1)) for h in heights]
        fitting = [g for g in fitting if g.slot_size < MAX_SLOT]
        refuse([] if fitting else ["a page must be smaller than 2 GiB: lower block_size, Z or page_levels"])
        return min(fitting, key=lambda g: g.layers * (cost.slot + cost.byte * g.slot_size)).checked()

    @classmethod
    def _whole(cls, N: int, B: int, Z: int, L: int, T: int, h: int) -> PathGeometry:
        """Pages of h levels, with as few levels more at the server as make whole pages of them."""
        return cls(N, B, Z, L, max(0, T - (T - L - 1) % h), h)

    @cached_property
    def h0(self) -> int:
        """Levels of the pages in layer 0: h, or what is left where T = 0."""
        return (self.L + 1 - self.T) % self.h or self.h

    @cached_property
    def layers(self) -> int:
        """Pages on a path."""
        return (self.L + 1 - self.T - self.h0) // self.h + 1

    def height(self, layer: int) -> int:
        """Levels of a page of this layer."""
        return self.h if layer else self.h0

    def root_level(self, layer: int) -> int:
        """Level of the root bucket of a page of this layer."""
        return self.T + self.h0 + (layer - 1) * self.h if layer else self.T

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First slot of each layer, and the number of slots at the end."""
        first = [0]
        for layer in range(self.layers):
            first.append(first[-1] + (1 << self.root_level(layer)))
        return tuple(first)

    @property
    def slots(self) -> int:
        """Pages at the server."""
        return self.offsets[-1]

    @property
    def buckets(self) -> int:
        """Buckets of a page."""
        return (1 << self.h) - 1

    @property
    def plain(self) -> int:
        """Bytes of a page in clear."""
        return (8 << self.h) + self.buckets * self.Z * (8 + self.B)

    @property
    def slot_size(self) -> int:
        """Bytes of a sealed page."""
        return self.plain + TAG_SIZE

    @cached_property
    def max_batch(self) -> int:
        """Requests a batch: as many as keep its working memory to about 64 MiB."""
        return max(1, min(1024, (64 << 20) // (2 * self.layers * self.slot_size)))

    @property
    def pool_size(self) -> int:
        """Blocks the pool holds before it must grow: public, and far above what the bound of the paper asks."""
        return self.cached_slots + 256 + self.max_batch

    @property
    def stash_bound(self) -> int:
        """The stash above which something is wrong: the table's, and for other Z that of the nearest Z in it."""
        return STASH_BOUND[min(max(self.Z, 4), 6)]

    def public(self) -> dict[str, int]:
        """Its part of the header."""
        return {"Z": self.Z, "L": self.L, "T": self.T, "h": self.h}

    @classmethod
    def from_public(cls, N: int, B: int, public: dict[str, Any]) -> Self:
        """From an authenticated header."""
        return cls(N, B, public["Z"], public["L"], public["T"], public["h"])
