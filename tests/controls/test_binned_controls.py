"""Hierarchies without an index that are broken on purpose, and the check that has to reject each while it accepts the real one."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest

import oram
from oram import kernels
from oram.backends import MemoryBackend, Slots
from oram.errors import IntegrityError, ParameterError
from oram.kernels.base import EMPTY, TOMB, BinnedState, CuckooPlan, Op, TamperedError
from oram.kernels.reference.binnedoram import Build, Entry, ReferenceBinned, Search
from oram.params import BinnedGeometry, CuckooParams, Table
from oram.schemes.base import Access, Outcome
from oram.schemes.binned import BinnedORAM
from oram.testing.model import check
from oram.testing.randomness import Coins, pinned
from oram.testing.statistics import Result, excess_rate, graph_excess, same_block_equal
from oram.testing.worlds import View, observe
from oram.trace import TraceBackend
from oram.types import I64

from .test_cuckoo_controls import Clear

REAL: Any = ReferenceBinned
REAL_SCHEME: Any = BinnedORAM
Kernel = Callable[..., Any]
Ask = Callable[[int, list[int]], int]


def hierarchy(N: int, c: int) -> BinnedGeometry:
    g = BinnedGeometry.of(N, 1, CuckooParams(c=c, index="none"), 1 << 20)
    assert isinstance(g, BinnedGeometry)
    return g


def bins(N: int, c: int, level: int, b: int, m: int) -> BinnedGeometry:
    """A hierarchy in which one level has b bins of m cells, with so few cells that often not all fits."""
    g = hierarchy(N, c)
    shapes = list(g.levels)
    n = shapes[level].n
    shapes[level] = dataclasses.replace(shapes[level], b=b, m=m, r=2 * n // (b * b))
    g.__dict__["levels"] = tuple(shapes)
    return g


PLAIN = hierarchy(32, 8)
ONE, BINS = bins(32, 8, 0, 1, 8), bins(32, 8, 0, 2, 4)
try:
    SOUND: Any = kernels.load("native").binned  # many times as fast; that both do the same is for tests/kernels
except ParameterError:
    SOUND = ReferenceBinned


def look(kernel_of: Kernel, g: BinnedGeometry, ask: Ask, accesses: int, op: Op = Op.WRITE) -> Iterator[tuple[int, Any]]:
    """Drive a kernel alone: the address of each access, and the cells that it looks up in each table."""
    native = not issubclass(kernel_of, ReferenceBinned)  # type: ignore[arg-type]
    keys = (kernels.load("native").keys if native else Clear)("aes-256-gcm", lambda _: bytes(32))
    keys.start(1)
    kernel = kernel_of(g, BinnedState.empty(g), keys, (rng := random.Random(11)).randbytes(32))
    server, present = np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8)
    history = list[int]()
    for clock in range(accesses):
        addr = ask(clock, history)
        history.append(addr)
        requests, cells = kernel.requests(1), {}
        requests.ops[0], requests.addresses[0], requests.data[0] = op, addr, 1
        requests.seed[:] = np.frombuffer(rng.randbytes(32), np.uint8)
        kernel.begin(requests)
        tables = iter(g.alive(clock, built=False))
        while (plan := kernel.ask()) is not None:
            for (a, b), table in zip(plan.pairs.tolist(), tables, strict=False):
                shape, first = g.levels[table.level], g.first_slot(table)
                number, at = divmod(a - first, shape.bin)
                cells[table] = number * shape.m + at // 2, number * shape.m + ((b - first) % shape.bin - 1) // 2
            kernel.tell(Slots(server[plan.slots], present[plan.slots]), plan)
        written = kernel.finish()
        server[written.slots], present[written.slots] = written.data, 1
        yield addr, cells


def entries_again(g: BinnedGeometry) -> Ask:
    """Level 0's table of an odd flush is ready a quarter of a flush after it began; then exactly its entries, one after the other."""

    def ask(clock: int, history: list[int]) -> int:
        flush, at = divmod(clock - g.c // 4, g.c)
        if flush > 0 and flush % 2 == 1:
            return history[(flush - 1) * g.c + at]
        rng, recent = random.Random(clock), set(history[-2 * g.c :])
        return next(a for a in iter(lambda: rng.randrange(g.N), None) if a not in recent)

    return ask


@cache
def by_excess(kernel_of: Kernel, g: BinnedGeometry = ONE, epochs: int = 500) -> Result:
    """The excess of the pairs looked up in each table of level 0, when these are exactly its entries."""
    shape, found, pairs = g.levels[0], list[int](), dict[Table, list[tuple[int, int]]]()
    for _, cells in look(kernel_of, g, entries_again(g), 1 << 30):
        for table, cell in cells.items():
            if table.level == 0:
                seen = pairs.setdefault(table, [])
                seen.append(cell)
                if len(seen) == shape.n:
                    found.append(graph_excess(seen))
        if len(found) == epochs:
            return excess_rate(found, shape.m, shape.n, seed=3, bins=shape.b)
    raise AssertionError


def by_excess_of_bins(kernel_of: Kernel) -> Result:
    """The same where it has two bins."""
    return by_excess(kernel_of, BINS, 370)


@cache
def by_same_block(kernel_of: Kernel, op: Op = Op.WRITE) -> Result:
    """Whether two look-ups of an address see the same pair at level 0, in the same epoch or in the next: eight addresses, again and again."""
    last, pairs, m = dict[int, list[int]](), list[tuple[list[int], list[int]]](), PLAIN.levels[0].m
    for addr, cells in look(kernel_of, PLAIN, lambda clock, _: random.Random(clock).randrange(8), 3000, op):
        for table, (u, v) in cells.items():
            if table.level == 0:
                now = [u * m + v]
                if addr in last:
                    pairs.append((last[addr], now))
                last[addr] = now
    return same_block_equal(pairs, m**2)


def by_same_miss(kernel_of: Kernel) -> Result:
    """The same where none of them holds a block."""
    return by_same_block(kernel_of, Op.READ)


class Redrawn(ReferenceBinned):
    """The keys of a table are drawn again until its entries fit."""

    def __init__(self, *given: Any) -> None:
        self.tries: dict[Table, int] = {}
        super().__init__(*given)

    def pairs(self, table: Table, addr: Any) -> I64:
        return super().pairs(Table(table.level, table.epoch + (self.tries.get(table, 0) << 32)), addr)

    def _bin(self, build: Build, number: int) -> list[Entry | None]:
        content = super()._bin(build, number)
        while build.stash:
            build.stash.clear()
            self.tries[build.table] = self.tries.get(build.table, 0) + 1
            content = super()._bin(build, number)
        return content


class Alibi(ReferenceBinned):
    """What is in the stash of a table is found without a probe: it gets a dummy's there."""

    def _real(self, search: Search, table: Table) -> bool:  # type: ignore[override]
        return ReferenceBinned._real(search, table) and search.addr not in self._stash[table]

    def _serve(self, search: Search, clock: int) -> bytes | None:
        for stash in self._stash.values():
            if search.found is None and search.seeks and search.addr in stash and search.kept is None:
                search.found = stash[search.addr]
        return super()._serve(search, clock)


class SameKey(ReferenceBinned):
    """The hash functions of a level are those of its last epoch."""

    def pairs(self, table: Table, addr: Any) -> I64:
        return super().pairs(Table(table.level, 0), addr)


class NoTrace(ReferenceBinned):
    """A miss leaves nothing behind."""

    def _append(self, op: int, addr: int, block: bytes | None, clock: int) -> None:
        super()._append(Op.DUMMY if block is None and op == Op.READ else op, addr, block, clock)


class GoingOn(ReferenceBinned):
    """Older tables are probed for the address, too, whether it was found or not."""

    @staticmethod
    def _real(search: Search, table: Table) -> bool:
        return search.seeks

    def tell(self, slots: Slots, plan: CuckooPlan) -> None:
        assert self._piece is not None
        before = [search.found for search in self._piece.searches]
        searches = self._piece.searches
        super().tell(slots, plan)
        for search, found in zip(searches, before, strict=True):
            search.found = found or search.found


# --- what the simulator rejects


class OneProbe(ReferenceBinned):
    """The second cell is read only where the first does not have it; of dummies only one."""

    def _probe(self, search: Search, table: Table, number: int) -> tuple[int, int]:
        a, b = super()._probe(search, table, number)
        return (a, b) if self._real(search, table) else (a, a)


class Aborting(ReferenceBinned):
    """Once it is found, no more tables are looked into."""

    def tell(self, slots: Slots, plan: CuckooPlan) -> None:
        piece = self._piece
        assert piece is not None
        last = piece.tables[piece.round : piece.round + 1]
        found = [search for search in piece.searches if search.seeks and last]
        if found and all(
            slot_has(self, search, slots, plan) or (search.kept and search.kept[0] >= last[0].epoch) for search in found
        ):
            del piece.tables[piece.round + 1 :]
        super().tell(slots, plan)


def slot_has(kernel: ReferenceBinned, search: Search, slots: Slots, plan: CuckooPlan) -> bool:
    words, _ = kernel.open_slots(plan.slots, plan.epochs, slots)
    return any(
        slot in search.pair and word & ~TOMB == search.addr
        for slot, word in zip(plan.slots.tolist(), words.tolist(), strict=True)
    )


def view(kernel: Any, scheme: Any) -> View:
    """On the reference kernels, which ``revealing`` asks for."""

    def make() -> tuple[Any, TraceBackend]:
        trace = TraceBackend(MemoryBackend())
        options: dict[str, Any] = {"scheme": CuckooParams(c=8, index="none"), "capacity": 40, "block_size": 40}
        return oram.create(trace, key=bytes(32), durability="process", keyed=False, **options), trace

    def work(store: Any) -> None:
        for i in range(150):
            store.blocks.read(i % 5 + 30 * (i % 2)) if i % 3 else store.blocks.write(i % 4, b"x")

    with mock.patch("oram.kernels.reference.binned", kernel), mock.patch("oram.assembly.BinnedORAM", scheme):
        return observe(make, work, seed=1)


@cache
def by_simulator(kernel: Any, scheme: Any = BinnedORAM) -> bool:
    """Whether all that the server sees is what the simulator says, and no address is looked for twice in an epoch."""
    try:
        found = view(kernel, scheme)
        simulated = found.simulated(keyed=False)
        return bool(simulated.events == found.events and simulated.commits == found.commits)
    except ValueError:
        return False


def by_records(scheme: Any) -> bool:
    """The same, for schemes on the real kernel."""
    return by_simulator(REAL, scheme)


class Searched(BinnedORAM):
    """Each record says in which round the block was found."""

    def _record(self, requests: Any, clock: int) -> bytes:
        return super()._record(requests, clock) + bytes(int(requests.out[0, 0]) % 7)


# --- what a model rejects


class Resurrecting(ReferenceBinned):
    """Empty addresses are dropped at every rebuild, not only at the bottom's."""

    def _bin(self, build: Build, number: int) -> list[Entry | None]:
        entries = build.hand.entries
        for addr in [addr for addr, entry in entries.items() if entry[0] & TOMB]:
            del entries[addr]
        page = self._geometry.page(build.table.epoch - 1)
        words = self.state.page_addr[page]
        kept = words.copy()
        words[(words != EMPTY) & (words & TOMB != 0)] = EMPTY
        content = super()._bin(build, number)
        words[:] = kept
        return content


def by_model(kernel: Any) -> bool:
    """Whether what was removed stays away."""
    with (
        mock.patch("oram.kernels.reference.binned", kernel),
        mock.patch.dict(os.environ, {"ORAM_KERNELS": "reference"}),
    ):
        items = {b"%d" % i: b"x" for i in range(32)}
        scheme = CuckooParams(c=8, index="none")
        store = oram.create(
            "memory:", key=bytes(32), capacity=64, block_size=40, scheme=scheme, items=items, durability="process"
        )
        blocks = store.blocks
        addresses = [i for i in range(64) if blocks.read(i).strip(b"\0")]
        for i in addresses[:8]:
            del store[next(key for key in list(items) if key in store)]
            items = {key: value for key, value in items.items() if key in store}
            blocks.read(i)
        for _ in range(30):
            store.get(b"missing")
        try:
            check(store, items)
            live = sum(bool(blocks.read(i).strip(b"\0")) for i in range(64))
        except (AssertionError, IntegrityError):
            return False
        return live == len(items)


# --- what an access shows after a slot that does not open


class Continuing(BinnedORAM):
    """After a slot that does not open there are still as many rounds, of dummies."""

    def access(self, requests: Any) -> Access:
        access, failed = super().access(requests), None
        read = next(access)
        while True:
            slots = yield read
            if failed is not None:
                raise failed
            try:
                read = access.send(slots)
            except StopIteration as stop:
                outcome: Outcome = stop.value
                return outcome
            except TamperedError as error:
                piece = self._kernel._piece  # type: ignore[attr-defined]
                table = piece.tables[piece.round + 1]
                cells = np.array([piece.searches[0].coins[piece.round + 1]])
                pair = self.geometry.first_slot(table) + self.geometry.levels[table.level].slots(cells)
                failed = error
                read = dataclasses.replace(read, indices=pair[0])


def same_again(scheme: Any, addr: int) -> bool:
    """A round of an access does not open; it is done again after an opening. Whether it then reads in each round what it had read in that round."""
    with (
        mock.patch("oram.assembly.BinnedORAM", scheme),
        mock.patch.dict(os.environ, {"ORAM_KERNELS": "reference"}),
        pinned(Coins(5)),
    ):
        trace = TraceBackend(MemoryBackend())
        options: dict[str, Any] = {"scheme": CuckooParams(c=8, index="none"), "capacity": 64, "block_size": 8}
        store = oram.create(trace, key=bytes(32), keyed=False, durability="process", **options)
        for i in range(64 + 8 + 4):
            store.blocks.write(i % 60, b"x")
        assert isinstance(trace.inner, MemoryBackend)
        slots = trace.inner.buffer("slots.1")
        whole = slots.data.copy()
        trace.clear()
        slots.data[:, 30] ^= 1
        with pytest.raises(IntegrityError):
            store.blocks.write(addr, b"y")
        store.close()
        slots.data[:] = whole
        before = [event.indices for event in trace.events if event.op == "read" and event.region == "slots.1"]
        trace.clear()
        oram.open(trace, key=bytes(32), durability="process").close()
    _, *again = [event.indices for event in trace.events if event.op == "read" and event.region == "slots.1"]
    assert len(again) > len(before) > 0
    return again[: len(before)] == before


def by_failure(scheme: Any) -> bool:
    """Whether that says nothing about where the block is."""
    newest, old = 5, 20  # written eleven accesses ago, and fifty-six
    return same_again(scheme, newest) == same_again(scheme, old)


# --- all of them

CONTROLS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "keys drawn again until the entries of a bin fit": (by_excess, Redrawn),
    "what is in the stash of a bin gets dummy probes there": (by_excess_of_bins, Alibi),
    "an epoch has the keys of the one before": (by_same_block, SameKey),
    "a miss leaves nothing behind": (by_same_miss, NoTrace),
    "older tables are probed for what was found": (by_same_block, GoingOn),
    "a miss leaves nothing behind: simulator": (by_simulator, NoTrace),
    "older tables are probed for what was found: simulator": (by_simulator, GoingOn),
    "dummies have one probe": (by_simulator, OneProbe),
    "no more rounds once it is found": (by_simulator, Aborting),
    "records say something of the search": (by_records, Searched),
    "empty addresses are dropped above the bottom": (by_model, Resurrecting),
    "rounds go on after a slot that does not open": (by_failure, Continuing),
}
SOUNDS: dict[Any, Any] = {by_simulator: REAL, by_model: REAL, by_records: REAL_SCHEME, by_failure: REAL_SCHEME}


def accepted(check_: Callable[[Any], Any], of: Any) -> bool:
    result = check_(of)
    return result.passed if isinstance(result, Result) else bool(result)


@pytest.mark.one_kernel
@pytest.mark.parametrize("name", CONTROLS)
def test_the_check_rejects(name: str) -> None:
    """Controls are reference kernels, whatever kernels are active; statistics accept the native one, where it is built."""
    check_, control = CONTROLS[name]
    assert accepted(check_, SOUNDS.get(check_, SOUND))
    assert not accepted(check_, control)
