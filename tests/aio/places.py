"""Small stores for tests of the asyncio facade, and a backend that stands still where it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import oram
import oram.aio
from oram.backends import Backend, MemoryBackend
from oram.testing.faults import FaultBackend, Faults
from oram.trace import TraceBackend

T = TypeVar("T")
KEY = bytes(range(32))
SMALL: dict[str, Any] = {"capacity": 8, "block_size": 48, "scheme": "path", "durability": "process", "key": KEY}
START = {b"a": b"1", b"b": b"", b"": b"empty key", b"\0": b"\0\0"}


def run(main: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own, in which nothing may be left to complain about."""
    complaints: list[dict[str, Any]] = []

    async def heard() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        return await asyncio.wait_for(main, 60)

    result = asyncio.run(heard())
    assert complaints == []
    return result


def small(backend: Backend | None = None, **options: Any) -> oram.aio.Opening:
    """A store of 8 records in memory, journaled."""
    return oram.aio.create(MemoryBackend() if backend is None else backend, **{**SMALL, **options})


class Held(Faults):
    """Stands still before step ``at``, counted from ``hold``, until ``go``."""

    def __init__(self) -> None:
        super().__init__()
        self._there, self._go, self._stop = threading.Event(), threading.Event(), -1

    def hold(self, at: int = 0) -> None:
        self.arm(None)
        self._there.clear()
        self._go.clear()
        self._stop = at

    def go(self) -> None:
        self._go.set()

    async def there(self) -> None:
        """Until it stands still."""
        await asyncio.to_thread(self._there.wait, 30)

    def step(self, name: str, do: Callable[[], T], *, changes: bool) -> T:
        if len(self.steps) == self._stop:
            self._stop = -1
            self._there.set()
            assert self._go.wait(30)
        return super().step(name, do, changes=changes)


def held(*, remote: bool = False) -> tuple[FaultBackend, Held, TraceBackend]:
    """A backend, what holds it, and what the server sees."""
    faults, trace = Held(), TraceBackend(MemoryBackend())
    return FaultBackend(trace, faults, remote=remote), faults, trace


def seen(trace: TraceBackend) -> tuple[list[Any], list[list[tuple[bytes, int]]]]:
    """What the server and the client state's disk saw, up to what is random in names."""
    return list(trace.events), [[(key[:1], size) for key, size in commit] for commit in trace.state_commits]
