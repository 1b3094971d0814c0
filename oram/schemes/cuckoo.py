"""Cuckoo ORAM: a hierarchy of cuckoo hash tables, one round trip an access, rebuilt a little with each.

docs/schemes/cuckoo.md has the design, and why it is secure. The hot loop is the kernel's; this module is what surrounds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.backends.base import SlotRead, SlotWrite
from oram.kernels.base import ABSENT, EMPTY, OLD, At, CuckooKernel, CuckooState, KernelSet, Keys, Requests
from oram.params import CuckooGeometry
from oram.schemes.base import Access, Outcome, Reader
from oram.schemes.hierarchy import RECORD, SCAN_BYTES, SEED, Hierarchy
from oram.types import I64, U8, U16, U32


class CuckooORAM(Hierarchy[CuckooKernel, CuckooGeometry]):
    """An oblivious array over a hierarchy of tables.

    Cost: an access reads two slots of each table, and does its share of the rebuilds under way; a batch of m is m accesses with one round
    trip to read and one to write. The first access after an opening has one more, for stashes and what the rebuilds had in hand.
    Leaks: m, and two uniform slots of each table for each request, independent of the requests.
    """

    whole = True

    def __init__(self, geometry: CuckooGeometry, region: str, kernels: KernelSet, keys: Keys, hash_key: bytes) -> None:
        super().__init__(geometry, region, kernels.cuckoo(geometry, CuckooState.empty(geometry), keys, hash_key))

    @property
    def state(self) -> CuckooState:
        """The client's arrays."""
        return self._kernel.state

    # --- the access

    def access(self, requests: Requests) -> Access:
        """Probe every table, serve, and do the rebuilds' next steps."""
        yield from self._resume()
        clock = self.turn
        plan = self._kernel.plan(requests)
        slots = yield SlotRead(self.region, plan.slots)
        written = self._kernel.access(requests, plan, slots)
        writes = [SlotWrite(self.region, written.slots, written.data)] if written.slots.size else []
        return Outcome(writes, self._record(requests, clock, written.before))

    # --- the journal

    def record_size(self, requests: Requests) -> int:
        """Bytes of a record: one block a request, whatever the rebuilds do."""
        return RECORD.size + SEED + requests.m * (7 + self.block_size)

    def _record(self, requests: Requests, clock: int, before: U16) -> bytes:
        m = requests.m
        parts: list[npt.NDArray[Any]] = [
            requests.seed,
            requests.where[:m],
            requests.addresses[:m],
            before,
            requests.after[:m],
        ]
        return RECORD.pack(m, clock) + b"".join(part.tobytes() for part in parts)

    def _parse(self, record: bytes) -> tuple[int, U8, U8, U32, U16, U8]:
        m, clock = RECORD.unpack_from(record)
        at, parts = RECORD.size, []
        for dtype, count in (("u1", SEED), ("u1", m), ("<u4", m), ("<u2", m), ("u1", m * self.block_size)):
            part = np.frombuffer(record, dtype, count, at)
            at += part.nbytes
            parts.append(part)
        seed, where, addresses, before, after = parts
        return clock, seed, where, addresses, before, after.reshape(m, self.block_size)

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The index, the clock, the log, and the top buffers."""
        state = self._kernel.state
        return [state.code, state.clock, state.log_addr, state.log_code, state.page_addr, state.page_data]

    def replay(self, records: Iterable[bytes]) -> None:
        """Each record says absolute things, so the last word stands."""
        g, state = self.geometry, self._kernel.state
        for record in records:
            clock, _, where, addresses, before, after = self._parse(record)
            for r, (kind, addr) in enumerate(zip(where.tolist(), addresses.tolist(), strict=True)):
                now = clock + r
                page, row, at = g.page(now // g.c), now % g.c, now % g.log_size
                state.log_addr[at], state.log_code[at] = (EMPTY, 0) if kind == At.REPEAT else (addr, before[r])
                state.page_addr[page, row] = addr if kind == At.POOL else EMPTY
                state.page_data[page, row] = after[r]
                if kind != At.REPEAT:
                    state.code[addr] = 2 + now // g.c % g.code_cycle if kind == At.POOL else ABSENT
            state.clock[0] = clock + where.size
        self._age()
        self._kernel.forget()

    def _age(self) -> None:
        """What the accesses since did entry by entry: mark what is in the bottom anyway."""
        g, state, clock = self.geometry, self._kernel.state, self.turn
        bottom, now = g.bottom(clock, bool(state.clock[1])), clock // g.c
        if bottom is not None:
            flush = now - (now - (state.code.astype(np.int64) - 2)) % g.code_cycle
            state.code[(state.code > OLD) & (flush < bottom.epoch)] = OLD

    def redo(self, record: bytes) -> Requests:
        """The same look-ups and dummies on the state before it, with the values it left behind."""
        _, seed, where, addresses, _, after = self._parse(record)
        return self._again(seed, where, addresses, after)

    # --- scan and bulk load

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        """Every slot of every table that is probed, the bottom first; then the top buffers."""
        g, state, clock = self.geometry, self._kernel.state, self.turn
        step = max(1, SCAN_BYTES // g.slot_size)
        for table in reversed(g.alive(clock, bool(state.clock[1]))):
            first, last = g.first_slot(table), g.first_slot(table) + g.levels[table.level].table
            for at in range(first, last, step):
                slots = np.arange(at, min(at + step, last))
                epochs = np.full(slots.size, table.epoch, np.int64)
                addr, blocks = self._kernel.open_slots(slots, epochs, read(SlotRead(self.region, slots)))
                live = self._kernel.live(table, addr)
                yield addr[live].astype(np.int64), blocks[live]
        rows = self._kernel.rows()
        pages, at_row = (
            np.array([p for p, _ in rows.values()], np.int64),
            np.array([r for _, r in rows.values()], np.int64),
        )
        yield np.array(list(rows), np.int64), state.page_data[pages, at_row]
