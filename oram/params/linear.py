"""Parameters of Linear ORAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from oram.params.common import TAG_SIZE, check_shape, refuse


@dataclass(frozen=True, slots=True)
class LinearParams:
    """Linear ORAM: every access touches every slot. The obviously correct baseline."""

    name: ClassVar[str] = "linear"

    def problems(self) -> list[str]:
        """Nothing to get wrong."""
        return []


@dataclass(frozen=True)
class LinearGeometry:
    """``N`` blocks of ``B`` bytes in pages of g blocks."""

    N: int
    B: int
    scheme: ClassVar[str] = LinearParams.name
    stash_bound: ClassVar[int] = 0

    @classmethod
    def of(cls, capacity: int, block_size: int) -> LinearGeometry:
        """ParameterError, all problems together."""
        refuse(check_shape(capacity, block_size))
        return cls(capacity, block_size)

    @property
    def g(self) -> int:
        """Blocks a page: about 4 KB together, so that the cipher's cost is per byte."""
        return max(1, min(self.N, 4096 // self.B))

    @property
    def slots(self) -> int:
        """Pages at the server."""
        return -(-self.N // self.g)

    @property
    def plain(self) -> int:
        """Bytes of a page in clear."""
        return self.g * self.B

    @property
    def slot_size(self) -> int:
        """Bytes of a sealed page."""
        return self.plain + TAG_SIZE

    @property
    def max_batch(self) -> int:
        """Requests a batch."""
        return 1024

    def public(self) -> dict[str, int]:
        """Its part of the header."""
        return {}

    @classmethod
    def from_public(cls, N: int, B: int, public: dict[str, Any]) -> Self:  # noqa: ARG003
        """From an authenticated header."""
        return cls(N, B)


def linear_is_cheaper(capacity: int, block_size: int) -> bool:
    """Whether Linear beats Path with default parameters, by measurement: see bench/linear.py."""
    return capacity * (block_size + 8) <= 4096 or capacity <= 2
