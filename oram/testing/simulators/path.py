"""What a Path store shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oram.testing.simulators.base import TAG, Batch, Simulator

__all__ = ["PathSimulator", "page_levels"]


class PathSimulator(Simulator):
    """Path ORAM: the union of the pages on the paths, layer by layer, read and then written."""

    def __init__(self, info: Mapping[str, Any], **options: bool) -> None:
        super().__init__(info, **options)
        self._Z, self._L, self._T, self._h = (int(info[name]) for name in ("Z", "L", "T", "h"))
        self._roots = page_levels(info)
        self._cells = self._Z * ((1 << self._h) - 1)  # block slots of a page
        B = int(info["block_size"])
        self._B = B
        self.slots = sum((1 << level) for level in self._roots)
        self.slot_size = 8 * (1 << self._h) + self._cells * (8 + B) + TAG
        self.max_batch = max(1, min(1024, 2**26 // (2 * len(self._roots) * self.slot_size)))

    def touched(self, leaves: Sequence[int]) -> tuple[int, ...]:
        """The slots that a batch reads and writes, in order."""
        slots: list[int] = []
        first = 0
        for level in self._roots:
            slots += sorted({first + (leaf >> (self._L - level)) for leaf in leaves})
            first += 1 << level
        return tuple(slots)

    def batch(self, leaves: Sequence[int]) -> Batch:
        slots = self.touched(leaves)
        record = self._record(len(leaves), len(slots))
        size = self.slot_size
        return Batch(((("read", "slots.1", slots, size),),), (("write", "slots.1", slots, size),), record)

    def _record(self, m: int, touched: int) -> int:
        return 16 + m * (1 + 4 + 4 + 4 + self._B) + touched * (8 + 4 * self._cells)

    def record_size(self, m: int) -> int:
        return self._record(m, m * len(self._roots))

    def state_size(self) -> int:
        pool = self._Z * ((1 << self._T) - 1) + 256 + self.max_batch
        return 4 * int(self.info["blocks"]) + 8 * (1 << self._T) + pool * (4 + self._B)


def page_levels(info: Mapping[str, Any]) -> list[int]:
    """Levels at which pages have their roots, from the top: every h levels counted from the leaves, and level T."""
    L, T, h = (int(info[name]) for name in ("L", "T", "h"))
    return sorted({T, *range(L + 1 - h, T, -h)})
