"""The newest frame, for any number of viewers: who is slow misses frames, and nobody has a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

__all__ = ["Newest"]


class Newest:
    """One frame at a time, and how many look at it. For one event loop.

    seats: viewers at a time.
    """

    def __init__(self, seats: int) -> None:
        self._frame, self._number = "", 0
        self._seats = seats
        self._changed = asyncio.Condition()
        self._watched = asyncio.Event()
        self._ended = False
        self.viewers = 0

    async def show(self, frame: str) -> None:
        """Replace the frame. Who has not taken the old one never will."""
        async with self._changed:
            self._frame, self._number = frame, self._number + 1
            self._changed.notify_all()

    async def end(self) -> None:
        """There are no more frames."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    def enter(self) -> bool:
        """Take a seat, if there is one. Who has it calls ``leave``, however that ends."""
        if self.viewers >= self._seats:
            return False
        self.viewers += 1
        self._watched.set()
        return True

    def leave(self) -> None:
        """Give the seat back."""
        self.viewers -= 1
        if not self.viewers:
            self._watched.clear()

    async def watched(self) -> None:
        """Wait until somebody has a seat."""
        await self._watched.wait()

    async def frames(self) -> AsyncGenerator[str, None]:
        """What one viewer sees: the present frame, and then the newest one whenever another is asked for, until the end."""
        seen = 0
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._ended or self._number > seen)  # noqa: B023 - called before seen changes
                if self._ended:
                    return
                seen, frame = self._number, self._frame
            yield frame
