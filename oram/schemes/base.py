"""What a scheme is: an oblivious array of blocks, as a program of reads and one write.

A scheme names no backend, cipher, clock, file or log. ``access`` is a generator: it yields each read it needs and is sent the
slots; what it returns is the write-back and the journal record. The engine drives it (see engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from oram.backends.base import RegionShape, SlotRead, Slots, SlotWrite
from oram.kernels.base import Requests
from oram.types import I64, U8


@dataclass(slots=True)
class Outcome:
    """The end of an access. writes: the write-back. record: what changed in the client state, of public length."""

    writes: list[SlotWrite]
    record: bytes
    grown: bool = False  # the persisted arrays have new sizes


Access: TypeAlias = Generator[SlotRead, Slots, Outcome]
Reader: TypeAlias = Callable[[SlotRead], Slots]


class Scheme(Protocol):
    """An oblivious array of ``capacity`` blocks of ``block_size`` bytes."""

    capacity: int
    block_size: int
    max_batch: int
    max_pages: int  # that one access seals at most
    shards: int  # equal parts of its regions, all of which every access reads and writes: each has a clock of its own

    whole: bool  # an access in place is one call of the kernel

    def regions(self) -> dict[str, RegionShape]:
        """The regions it needs at the server."""
        ...

    def requests(self, m: int) -> Requests:
        """Buffers for a batch of m; the caller fills ops, addresses, draws and data."""
        ...

    def access(self, requests: Requests) -> Access:
        """One batch: m fresh, independent, uniform look-ups, whatever was asked."""
        ...

    def access_in_place(self, requests: Requests, buffer: Callable[[str], Slots]) -> None:
        """The same over the backend's own memory, in one kernel call and with no record."""
        ...

    def record_size(self, requests: Requests) -> int:
        """Bytes of the journal record this batch can have at most: a function of its public size."""
        ...

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The client state to persist, in a fixed order; only the last one or two may grow."""
        ...

    def grow(self, rows: int) -> None:
        """Make the arrays that grow at least so long, where it has any."""
        ...

    def replay(self, records: Iterable[bytes]) -> None:
        """Bring freshly loaded arrays up to date with the records since the oldest part of them, in order."""
        ...

    def redo(self, record: bytes) -> Requests:
        """The batch of a record as requests that repeat its effect on its old state (same look-ups)."""
        ...

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        """Every slot once, in index order, moving nothing: chunks of (addresses, blocks (n, block_size)) of live blocks.

        The reads of a scan do not depend on what is found; the caller has to run it to its end.
        """
        ...

    def build(self, addresses: I64, blocks: U8) -> Iterator[SlotWrite]:
        """Fill an empty store with these blocks (distinct addresses), writing every slot once, in index order."""
        ...

    @property
    def turn(self) -> int:
        """A number that is another one after each access."""
        ...

    @property
    def stash_size(self) -> int:
        """Blocks of client memory beyond the public part. Secret."""
        ...
