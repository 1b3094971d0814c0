"""What a hierarchy of tables has with and without an index: its region, its buffers, what it resumes, and its bulk load."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

import numpy as np

from oram.backends.base import RegionShape, SlotRead, Slots, SlotWrite
from oram.kernels.base import At, BinnedKernel, CuckooKernel, Op, Requests
from oram.params import CuckooGeometry, Table
from oram.types import I64, U8, U32

__all__ = ["RECORD", "SCAN_BYTES", "SEED", "Hierarchy"]

RECORD = struct.Struct("<IQ")  # requests, clock before them
SCAN_BYTES = 8 << 20  # of slots a round trip
SEED = 32  # bytes

K = TypeVar("K", bound=CuckooKernel | BinnedKernel)
G = TypeVar("G", bound=CuckooGeometry)


class Hierarchy(Generic[K, G]):
    """The part of a scheme that does not ask where its blocks are."""

    shards = 1

    def __init__(self, geometry: G, region: str, kernel: K) -> None:
        self.geometry, self.region = geometry, region
        self.capacity, self.block_size, self.max_batch = geometry.N, geometry.B, geometry.max_batch
        self.max_pages = geometry.max_writes(max(1024, self.max_batch))
        self._kernel: K = kernel

    def regions(self) -> dict[str, RegionShape]:
        """One region of slots."""
        return {self.region: RegionShape(self.geometry.slots, self.geometry.slot_size)}

    def requests(self, m: int) -> Requests:
        """Buffers for a batch of m."""
        return self._kernel.requests(m)

    # --- the access

    def _resume(self) -> Generator[SlotRead, Slots, None]:
        """The first access after an opening reads again what lies outside the state."""
        again, _ = self._kernel.resume()
        if again.size:
            self._kernel.resumed((yield SlotRead(self.region, again)))

    def access_in_place(self, requests: Requests, buffer: Callable[[str], Slots]) -> None:
        """The same as an access, over the backend's own memory."""
        region = buffer(self.region)
        again, _ = self._kernel.resume()
        if again.size:
            self._kernel.resumed(Slots(region.data[again], region.present[again]))
        self._kernel.access_in_place(requests, region)

    # --- the journal

    def grow(self, rows: int) -> None:
        """Nothing grows."""

    def _again(self, seed: U8, where: U8, addresses: U32, after: U8) -> Requests:
        """A batch that was made: the same look-ups and dummies, with the values it left behind."""
        requests = self.requests(where.size)
        m = requests.m
        requests.ops[:m] = np.select([where == At.REPEAT, where == At.NONE], [Op.DUMMY, Op.REMOVE], Op.WRITE)
        requests.addresses[:m], requests.draws[:m], requests.data[:m] = addresses, 0, after
        requests.seed[:] = seed
        return requests

    # --- bulk load

    def build(self, addresses: I64, blocks: U8) -> Iterator[SlotWrite]:
        """Place every block in the bottom, and write each of its slots once, in index order."""
        g = self.geometry
        addr = addresses.astype(np.uint32)
        source = self._kernel.build(addr)
        first, step = g.first_slot(Table(g.L, 0)), max(1, SCAN_BYTES // g.slot_size)
        for at in range(0, source.size, step):
            slots = np.arange(at, min(at + step, source.size)) + first
            yield SlotWrite(self.region, slots, self._kernel.seal_slots(slots, 0, source[slots - first], addr, blocks))

    # --- the stash

    @property
    def turn(self) -> int:
        """A number that is another one after each access."""
        return int(self._kernel.state.clock[0])

    @property
    def stash_size(self) -> int:
        """Entries in the stashes of all tables; after an opening, once there was an access. Secret."""
        return self._kernel.stash_size
