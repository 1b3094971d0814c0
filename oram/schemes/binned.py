"""Cuckoo ORAM without an index: nothing for each block at the client, and a round trip for each table.

docs/schemes/cuckoo.md has the design, and why it is secure. The hot loop is the kernel's; this module is what surrounds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import SlotRead, SlotWrite
from oram.kernels.base import EMPTY, TOMB, At, BinnedKernel, BinnedState, KernelSet, Keys, Requests
from oram.params import BinnedGeometry, Table
from oram.schemes.base import Access, Outcome, Reader
from oram.schemes.hierarchy import RECORD, SCAN_BYTES, SEED, Hierarchy
from oram.types import I64, U8, U32


class BinnedORAM(Hierarchy[BinnedKernel, BinnedGeometry]):
    """An oblivious array over a hierarchy of tables, without an index.

    Cost: an access reads two slots of each table, the newest first, a round trip each, and does its share of the rebuilds under way. A batch of m
    is m accesses, and needs the round trips of one for each stretch of it in which the tables are the same. The first access after an opening has one more.
    Leaks: m, and two uniform slots of each table for each request, independent of the requests.
    """

    whole = False  # a round is a call

    def __init__(self, geometry: BinnedGeometry, region: str, kernels: KernelSet, keys: Keys, hash_key: bytes) -> None:
        super().__init__(geometry, region, kernels.binned(geometry, BinnedState.empty(geometry), keys, hash_key))

    @property
    def state(self) -> BinnedState:
        """The client's arrays."""
        return self._kernel.state

    # --- the access

    def access(self, requests: Requests) -> Access:
        """Probe one table after the other, serve, and do the rebuilds' next steps."""
        yield from self._resume()
        clock = self.turn
        self._kernel.begin(requests)
        while (plan := self._kernel.ask()) is not None:
            # A round that does not open ends the access: what comes next would say whether the block was found
            self._kernel.tell((yield SlotRead(self.region, plan.slots)), plan)
        written = self._kernel.finish()
        writes = [SlotWrite(self.region, written.slots, written.data)] if written.slots.size else []
        return Outcome(writes, self._record(requests, clock))

    # --- the journal

    def record_size(self, requests: Requests) -> int:
        """Bytes of a record: one block a request, whatever the rebuilds do."""
        return RECORD.size + SEED + requests.m * (5 + self.block_size)

    def _record(self, requests: Requests, clock: int) -> bytes:
        m = requests.m
        parts: list[npt.NDArray[Any]] = [
            requests.seed,
            requests.where[:m],
            requests.addresses[:m],
            requests.after[:m],
        ]
        return RECORD.pack(m, clock) + b"".join(part.tobytes() for part in parts)

    def _parse(self, record: bytes) -> tuple[int, U8, U8, U32, U8]:
        m, clock = RECORD.unpack_from(record)
        at, parts = RECORD.size, []
        for dtype, count in (("u1", SEED), ("u1", m), ("<u4", m), ("u1", m * self.block_size)):
            part = np.frombuffer(record, dtype, count, at)
            at += part.nbytes
            parts.append(part)
        seed, where, addresses, after = parts
        return clock, seed, where, addresses, after.reshape(m, self.block_size)

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The clock and the top buffers."""
        state = self._kernel.state
        return [state.clock, state.page_addr, state.page_data]

    def replay(self, records: Iterable[bytes]) -> None:
        """Each record says absolute things, so the last word stands."""
        g, state = self.geometry, self._kernel.state
        for record in records:
            clock, _, where, addresses, after = self._parse(record)
            for r, (kind, addr) in enumerate(zip(where.tolist(), addresses.tolist(), strict=True)):
                page, row = g.page((clock + r) // g.c), (clock + r) % g.c
                word = EMPTY if kind == At.REPEAT else addr | TOMB if kind == At.NONE else addr
                state.page_addr[page, row], state.page_data[page, row] = word, after[r]
            state.clock[0] = clock + where.size
        self._kernel.forget()

    def redo(self, record: bytes) -> Requests:
        """The same look-ups and dummies on the state before it, with the values it left behind."""
        _, seed, where, addresses, after = self._parse(record)
        return self._again(seed, where, addresses, after)

    # --- scan and bulk load

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        """Every slot of every table that is probed, the newest first, and the top buffers where they come; a bit for each block tells what was seen."""
        g, clock = self.geometry, self.turn
        step = max(1, SCAN_BYTES // g.slot_size)
        seen = np.zeros(-(-g.N // 8), np.uint8)
        rows = sorted(
            ((flush, addr, page, row) for addr, (flush, page, row) in self._kernel.rows().items()), reverse=True
        )
        for table in [*g.alive(clock, bool(self.state.clock[1])), Table(g.L, -1)]:
            while rows and rows[0][0] >= table.epoch:
                newer = [rows.pop(0) for _ in range(sum(at[0] == rows[0][0] for at in rows))]
                words = np.array([self.state.page_addr[page, row] for _, _, page, row in newer], np.uint32)
                yield self._unseen(
                    seen, words, np.stack([self.state.page_data[page, row] for _, _, page, row in newer])
                )
            if table.epoch < 0:
                yield np.zeros(0, np.int64), np.zeros((0, g.B), np.uint8)
                return
            first, last = g.first_slot(table), g.first_slot(table) + g.levels[table.level].table
            for at in range(first, last, step):
                slots = np.arange(at, min(at + step, last))
                epochs = np.full(slots.size, table.epoch, np.int64)
                words, blocks = self._kernel.open_slots(slots, epochs, read(SlotRead(self.region, slots)))
                yield self._unseen(seen, words, blocks)

    @staticmethod
    def _unseen(seen: U8, words: U32, blocks: U8) -> tuple[I64, U8]:
        """The blocks among these entries of which no newer copy came before, not even an empty one; marks them. Addresses are distinct."""
        at = np.flatnonzero(words != EMPTY)
        addr = (words[at] & ~np.uint32(TOMB)).astype(np.int64)
        new = seen[addr >> 3] >> (addr & 7) & 1 == 0
        np.bitwise_or.at(seen, addr >> 3, (1 << (addr & 7)).astype(np.uint8))
        live = new & (words[at] & TOMB == 0)
        return addr[live], blocks[at[live]]
