"""Linear ORAM: every access reads and writes every slot. Obviously oblivious, and the best choice for a handful of blocks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import RegionShape, SlotRead, Slots, SlotWrite
from oram.kernels.base import KernelSet, Keys, Requests
from oram.params import LinearGeometry
from oram.schemes.base import Access, Outcome, Reader
from oram.types import I64, U8, U64

_RECORD = struct.Struct("<IQ")  # requests, reference of slot 0


class LinearORAM:
    """An oblivious array that is read and written whole.

    Cost: a batch of any size is one round trip to read all slots and one to write them. Leaks: the size of the batch.
    """

    stash_size = 0
    shards = 1
    whole = True

    def __init__(self, geometry: LinearGeometry, region: str, kernels: KernelSet, keys: Keys) -> None:
        self.geometry, self.region = geometry, region
        self.capacity, self.block_size, self.max_batch = geometry.N, geometry.B, geometry.max_batch
        self.max_pages = geometry.slots
        self._base: U64 = np.zeros(1, np.uint64)
        self._kernel = kernels.linear(geometry, self._base, keys)
        self._all = np.arange(geometry.slots)

    def regions(self) -> dict[str, RegionShape]:
        """One region of pages."""
        return {self.region: RegionShape(self.geometry.slots, self.geometry.slot_size)}

    def requests(self, m: int) -> Requests:
        """Buffers for a batch of m."""
        return self._kernel.requests(m)

    def access(self, requests: Requests) -> Access:
        """Read all, serve, write all."""
        pages = yield SlotRead(self.region, self._all)
        self._kernel.access(requests, pages)
        return Outcome([SlotWrite(self.region, self._all, pages.data)], self._record(requests))

    def access_in_place(self, requests: Requests, buffer: Callable[[str], Slots]) -> None:
        """The same over the backend's own memory."""
        self._kernel.access(requests, buffer(self.region))

    def record_size(self, requests: Requests) -> int:
        """Bytes of a record."""
        return _RECORD.size + requests.m * (5 + self.block_size)

    def _record(self, requests: Requests) -> bytes:
        m = requests.m
        parts: list[npt.NDArray[Any]] = [requests.ops[:m], requests.addresses[:m], requests.data[:m]]
        return _RECORD.pack(m, int(self._base[0])) + b"".join(part.tobytes() for part in parts)

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The one reference."""
        return [self._base]

    def grow(self, rows: int) -> None:
        """Nothing grows."""

    def replay(self, records: Iterable[bytes]) -> None:
        """The last record's reference stands."""
        for record in records:
            self._base[0] = _RECORD.unpack_from(record)[1]

    def redo(self, record: bytes) -> Requests:
        """The same requests again."""
        m, _ = _RECORD.unpack_from(record)
        requests = self.requests(m)
        at = _RECORD.size
        requests.ops[:m] = np.frombuffer(record, "u1", m, at)
        requests.addresses[:m] = np.frombuffer(record, "<u4", m, at + m)
        requests.data[:m] = np.frombuffer(record, "u1", m * self.block_size, at + 5 * m).reshape(m, self.block_size)
        return requests

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        """All pages in one read. Blocks never written come out as zeros."""
        pages = read(SlotRead(self.region, self._all))
        yield np.arange(self.capacity), self._kernel.open_pages(pages)[: self.capacity]

    def build(self, addresses: I64, blocks: U8) -> Iterator[SlotWrite]:
        """Seal all pages."""
        g = self.geometry
        content = np.zeros((g.slots * g.g, g.B), np.uint8)
        content[addresses] = blocks
        yield SlotWrite(self.region, self._all, self._kernel.build_pages(content))

    @property
    def turn(self) -> int:
        """A number that is another one after each access."""
        return int(self._base[0])
