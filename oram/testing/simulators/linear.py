"""What a Linear store shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oram.testing.simulators.base import TAG, Batch, Simulator

__all__ = ["LinearSimulator"]


class LinearSimulator(Simulator):
    """Linear ORAM: everything, whatever the leaves are."""

    def __init__(self, info: Mapping[str, Any], **options: bool) -> None:
        super().__init__(info, **options)
        N, self._B = int(info["blocks"]), int(info["block_size"])
        together = max(1, min(N, 4096 // self._B))
        self.slots = -(-N // together)
        self.slot_size = together * self._B + TAG
        self.max_batch = 1024

    def touched(self, leaves: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002 - which is what it says
        """The slots that a batch reads and writes, in order."""
        return tuple(range(self.slots))

    def batch(self, leaves: Sequence[int]) -> Batch:
        slots, size = self.touched(leaves), self.slot_size
        record = self.record_size(len(leaves))
        return Batch(((("read", "slots.1", slots, size),),), (("write", "slots.1", slots, size),), record)

    def record_size(self, m: int) -> int:
        return 12 + m * (1 + 4 + self._B)

    def state_size(self) -> int:
        return 8
