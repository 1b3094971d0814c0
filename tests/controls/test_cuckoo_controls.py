"""Hierarchies that are broken on purpose, each as some published scheme was or might be, and the check that has to reject it while it accepts the real one."""

from __future__ import annotations

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
from oram.backends import MemoryBackend, SlotRead, Slots
from oram.errors import ParameterError
from oram.kernels.base import ABSENT, CuckooPlan, CuckooState, Op, Requests
from oram.kernels.reference import ReferenceKeys
from oram.kernels.reference.coins import Coins
from oram.kernels.reference.cuckoooram import Build, ReferenceCuckoo
from oram.params import CuckooGeometry, CuckooParams, Table
from oram.schemes.base import Access
from oram.schemes.cuckoo import CuckooORAM
from oram.testing.statistics import (
    Result,
    excess_rate,
    graph_excess,
    same_block_equal,
    uniform_choice,
    uniform_ranks,
    used_first,
)
from oram.testing.worlds import View, observe
from oram.trace import TraceBackend
from oram.types import I64, U16

C, EPOCHS = 16, 1000
REAL: Any = ReferenceCuckoo
REAL_SCHEME: Any = CuckooORAM
GEOMETRY = CuckooGeometry.of(8 * C, 1, CuckooParams(c=C), 1 << 20)
Kernel = Callable[..., Any]
Looks = list[tuple[int, int, dict[Table, tuple[int, int]]]]  # clock, address, and the pair of each table


class Clear(ReferenceKeys):
    """Seals nothing: these tests look at pairs alone."""

    def seal(self, slot: int, counter: int, plain: bytes) -> bytes:
        return plain + bytes(16)

    def open(self, slot: int, ref: int, sealed: bytes) -> bytes:
        return sealed[:-16]


# --- what a kernel looks up, with nothing chosen in advance


def look(kernel_of: Kernel, ask: Callable[[int, list[int]], int], accesses: int) -> Iterator[tuple[int, int, Any]]:
    """Drive a kernel alone: ``ask`` says the address from the clock and those asked for so far."""
    g, native = GEOMETRY, not issubclass(kernel_of, ReferenceCuckoo)  # type: ignore[arg-type]
    keys = (kernels.load("native").keys if native else Clear)("aes-256-gcm", lambda _: bytes(32))
    keys.start(1)
    coins = random.Random(str(getattr(kernel_of, "__name__", "native")))  # the same in each run
    kernel = kernel_of(g, CuckooState.empty(g), keys, coins.randbytes(32))
    server, present = np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8)
    history = list[int]()
    for clock in range(accesses):
        addr = ask(clock, history)
        history.append(addr)
        requests = kernel.requests(1)
        requests.ops[0], requests.addresses[0], requests.data[0] = Op.WRITE, addr, 1
        requests.seed[:] = np.frombuffer(coins.randbytes(32), np.uint8)
        plan = kernel.plan(requests)
        cells = {}
        for table, (u, v) in zip(g.alive(clock, built=False), plan.pairs.tolist(), strict=True):
            first = g.first_slot(table)
            cells[table] = (u - first) // 2, (v - first - 1) // 2
        written = kernel.access(requests, plan, Slots(server[plan.slots], present[plan.slots]))
        server[written.slots], present[written.slots] = written.data, 1
        yield clock, addr, cells


def entries_again(clock: int, history: list[int]) -> int:
    """Level 0's table of an odd flush is ready a quarter of a flush after it began; then exactly its entries, one after the other."""
    flush, at = divmod(clock - C // 4, C)
    if flush > 0 and flush % 2 == 1:
        return history[(flush - 1) * C + at]
    rng, recent = random.Random(clock), set(history[-2 * C :])
    return next(a for a in iter(lambda: rng.randrange(GEOMETRY.N), None) if a not in recent)


@cache
def by_excess(kernel_of: Kernel) -> Result:
    """The excess of the first C pairs looked up in each table of level 0, when these are exactly its entries."""
    found, pairs = list[int](), dict[Table, list[tuple[int, int]]]()
    for _, _, cells in look(kernel_of, entries_again, 1 << 30):
        for table, cell in cells.items():
            if table.level == 0:
                seen = pairs.setdefault(table, [])
                seen.append(cell)
                if len(seen) == C:
                    found.append(graph_excess(seen))
        if len(found) == EPOCHS:
            return excess_rate(found, GEOMETRY.levels[0].m, C, seed=3)
    raise AssertionError


HOT = 8000  # accesses


@cache
def hot(kernel_of: Kernel) -> Looks:
    """Eight addresses at random, again and again."""
    return list(look(kernel_of, lambda clock, _: random.Random(clock).randrange(8), HOT))


def by_same_block(kernel_of: Kernel) -> Result:
    """Whether two look-ups of an address, one after the other, see the same pair at level 0, in the same epoch or in the next."""
    last, pairs = dict[int, list[int]](), list[tuple[list[int], list[int]]]()
    for _, addr, cells in hot(kernel_of):
        for table, (u, v) in cells.items():
            if table.level == 0:
                now = [u * GEOMETRY.levels[0].m + v]
                if addr in last:
                    pairs.append((last[addr], now))
                last[addr] = now
    return same_block_equal(pairs, GEOMETRY.levels[0].m ** 2)


def by_collisions(kernel_of: Kernel) -> Result:
    """How often a cell is looked up again in an epoch of a table, of all levels."""
    seen = dict[tuple[Table, int], list[int]]()
    for _, _, cells in hot(kernel_of):
        for table, pair in cells.items():
            for side, cell in enumerate(pair):
                seen.setdefault((table, side), []).append(cell)
    return uniform_ranks(used_first((each, GEOMETRY.levels[t.level].m) for (t, _), each in seen.items()), seed=4)


def by_uniformity(kernel_of: Kernel) -> Result:
    """Which cells of level 0's first table are looked up."""
    m = GEOMETRY.levels[0].m
    return uniform_choice([u for _, _, cells in hot(kernel_of) for t, (u, _) in cells.items() if t.level == 0], m)


class Redrawn(ReferenceCuckoo):
    """Pinkas and Reinman: the keys of a level are drawn again until its entries fit."""

    def __init__(self, *given: Any) -> None:
        self.tries: dict[Table, int] = {}
        super().__init__(*given)

    def pairs(self, table: Table, addr: Any) -> I64:
        return super().pairs(Table(table.level, table.epoch + (self.tries.get(table, 0) << 32)), addr)

    def _begin(self, table: Table) -> Build:
        build = super()._begin(table)
        while -1 in build.cell.values():
            self.tries[table] = self.tries.get(table, 0) + 1
            build = super()._begin(table)
        return build


class Alibi(ReferenceCuckoo):
    """Falk, Noble and Ostrovsky's limerick: what is in the stash gets dummy probes at its own level."""

    def pairs(self, table: Table, addr: Any) -> I64:
        if len(addr) == 1 and int(addr[0]) in self._stash.get(table, {}):
            return np.random.default_rng(int.from_bytes(os.urandom(8), "little")).integers(
                0, self._geometry.levels[table.level].m, (1, 2)
            )
        return super().pairs(table, addr)


class SameKey(ReferenceCuckoo):
    """The hash functions of a level are those of its last epoch."""

    def pairs(self, table: Table, addr: Any) -> I64:
        return super().pairs(Table(table.level, 0), addr)


class Staying(ReferenceCuckoo):
    """What is asked for stays where it is, and is looked for there again."""

    def _append(self, op: int, addr: int, block: bytes | None, clock: int) -> None:
        code = int(self.state.code[addr])
        if code > 1 and self._home(code, clock) is not None:
            op = Op.DUMMY
        super()._append(op, addr, block if op != Op.DUMMY else None, clock)


class Avoiding(ReferenceCuckoo):
    """Dummies are cells that were not read yet: why read one twice?"""

    def __init__(self, *given: Any) -> None:
        self.used: dict[Table, tuple[set[int], set[int]]] = {}
        super().__init__(*given)

    def plan(self, requests: Requests) -> CuckooPlan:
        tables = iter(self._geometry.alive(self._clock, self._built))
        turn = list[set[int]]()

        class Fresh(Coins):
            def below(coins, n: int) -> int:
                if not turn:
                    turn.extend(self.used.setdefault(next(tables), (set(), set())))
                used = turn.pop(0)
                cell = super().below(n)
                while cell in used and len(used) < n:
                    cell = super().below(n)
                used.add(cell)
                return cell

        with mock.patch("oram.kernels.reference.cuckoooram.Coins", Fresh):
            return super().plan(requests)


class Low(ReferenceCuckoo):
    """Dummies come from bits alone, as many as do not lead out of the table."""

    def plan(self, requests: Requests) -> CuckooPlan:
        class Weak(Coins):
            def below(self, n: int) -> int:
                return super().below(1 << (n.bit_length() - 1))

        with mock.patch("oram.kernels.reference.cuckoooram.Coins", Weak):
            return super().plan(requests)


def test_graph_excess() -> None:
    assert graph_excess([]) == graph_excess([(0, 0), (0, 0)]) == graph_excess([(0, 1), (1, 1), (1, 0), (0, 0)]) == 0
    assert graph_excess([(0, 0)] * 5) == 3
    assert graph_excess([(0, 1), (1, 1), (1, 0), (0, 0), (1, 1), (7, 7), (7, 7), (7, 7)]) == 2


def test_used_first() -> None:
    assert used_first([([3, 3, 1, 4, 1, 0], 5), ([2], 5)]) == [(3, 5), (0, 5), (2, 5), (4, 5), (1, 5), (3, 5), (2, 5)]


BY_GRAPH: dict[str, type[ReferenceCuckoo]] = {
    "keys drawn again until the entries fit": Redrawn,
    "what is in a stash gets dummy probes at its level": Alibi,
}
BY_SAME_BLOCK: dict[str, type[ReferenceCuckoo]] = {
    "an epoch has the hash functions of the one before": SameKey,
    "what is asked for stays where it is, seen": Staying,
}
BY_COLLISIONS: dict[str, type[ReferenceCuckoo]] = {
    "dummies avoid cells that were read": Avoiding,
}
BY_UNIFORMITY: dict[str, type[ReferenceCuckoo]] = {
    "dummies below a power of two": Low,
}
BY_CHECK: dict[str, tuple[Callable[[Kernel], Result], type[ReferenceCuckoo]]] = {
    name: (check, kernel)
    for check, group in (
        (by_excess, BY_GRAPH),
        (by_same_block, BY_SAME_BLOCK),
        (by_collisions, BY_COLLISIONS),
        (by_uniformity, BY_UNIFORMITY),
    )
    for name, kernel in group.items()
}


@pytest.mark.one_kernel
@pytest.mark.parametrize("control", BY_CHECK)
def test_what_is_looked_up_gives_it_away(control: str) -> None:
    """These run the reference kernel by itself, whatever kernels are active; the next test is their native counterpart."""
    check, kernel = BY_CHECK[control]
    assert check(ReferenceCuckoo).passed
    assert not check(kernel).passed


@pytest.mark.one_kernel
@pytest.mark.parametrize("check", [by_excess, by_same_block, by_collisions, by_uniformity], ids=lambda c: c.__name__)
def test_the_native_kernel_is_accepted_too(check: Callable[[Kernel], Result]) -> None:
    try:
        native = kernels.load("native")
    except ParameterError:
        pytest.skip("the native kernels are not built")
    assert check(native.cuckoo).passed


# --- what the simulator rejects


class OneProbe(ReferenceCuckoo):
    """The client knows where the block is, so why read both."""

    def plan(self, requests: Requests) -> CuckooPlan:
        plan, keep = super().plan(requests), list[int]()
        for step in self._steps[: requests.m == 1]:
            for i, probe in enumerate(step.probes):
                keep += [2 * i] if not probe.real else [2 * i, 2 * i + 1]
                probe.slots = probe.slots if probe.real else probe.slots[:1]  # type: ignore[assignment]
            keep += range(2 * len(step.probes), plan.slots.size)
            plan.slots, plan.epochs = plan.slots[keep], plan.epochs[keep]
        return plan


class Skipping(ReferenceCuckoo):
    """A level in which nothing is alive any more is not probed."""

    def plan(self, requests: Requests) -> CuckooPlan:
        clock, state = self._clock, self.state
        homes = [self._home(code, clock) for code in state.code[state.code != ABSENT].tolist()]
        alive = CuckooGeometry.alive

        def filtered(g: CuckooGeometry, at: int, built: bool) -> list[Table]:
            return [table for table in alive(g, at, built) if table in homes]

        with mock.patch.object(CuckooGeometry, "alive", filtered):
            return super().plan(requests)


class StayingIfRead(ReferenceCuckoo):
    """What is only read stays where it is, and is looked for there again."""

    def _append(self, op: int, addr: int, block: bytes | None, clock: int) -> None:
        code = int(self.state.code[addr])
        if op == Op.READ and code > 1 and self._home(code, clock) is not None:
            op = Op.DUMMY
        super()._append(op, addr, block if op != Op.DUMMY else None, clock)


class Indexed(CuckooORAM):
    """The index is at the server, and the entry of the block is looked up there first."""

    def access(self, requests: Requests) -> Access:
        yield SlotRead(self.region, np.unique(requests.addresses[: requests.m]).astype(np.int64))
        return (yield from super().access(requests))


class StashInTheRecord(CuckooORAM):
    """Each record has the stashes, as they are."""

    def more(self) -> int:
        return self.stash_size * (4 + self.block_size)

    def record_size(self, requests: Requests) -> int:
        return super().record_size(requests) + self.more()

    def _record(self, requests: Requests, clock: int, before: U16) -> bytes:
        return super()._record(requests, clock, before) + bytes(self.more())


class IndexInTheRecord(StashInTheRecord):
    """A rebuild that ends writes down where its members are now."""

    def more(self) -> int:
        g, clock = self.geometry, self.turn
        done = [table for table in g.alive(clock, built=False) if g.done(table) == clock]
        members = np.arange(g.N, dtype=np.uint32)
        return sum(5 * int(self._kernel.live(table, members).sum()) for table in done)


def view(kernel: type[ReferenceCuckoo], scheme: type[CuckooORAM], work: Callable[[Any], None]) -> View:
    """On the reference kernels, which ``revealing`` asks for."""

    def make() -> tuple[Any, TraceBackend]:
        trace = TraceBackend(MemoryBackend())
        options: dict[str, Any] = {
            "scheme": CuckooParams(c=8),
            "capacity": 40,
            "block_size": 40,
            "durability": "process",
        }
        return oram.create(trace, key=bytes(32), **options), trace

    with mock.patch("oram.kernels.reference.cuckoo", kernel), mock.patch("oram.assembly.CuckooORAM", scheme):
        return observe(make, work, seed=1)


def gets_and_puts(store: Any) -> None:
    for i in range(150):
        store.get(b"%d" % (i % 4)) if i % 3 else store.put(b"%d" % (i % 4), b"x")


def puts(store: Any) -> None:
    for i in range(600):  # so many that something is left over now and then
        store.put(b"%d" % (i % 40), b"x")


@cache
def by_simulator(kernel: Any, scheme: Any = CuckooORAM) -> bool:
    """Whether all that the server sees is what the simulator says, and no address is looked for twice in an epoch."""
    try:
        found = view(kernel, scheme, gets_and_puts)
        return bool(found.simulated().events == found.events)
    except ValueError:
        return False


@cache
def by_lengths(scheme: Any) -> bool:
    """Whether what is committed has the lengths that the simulator says."""
    found = view(ReferenceCuckoo, scheme, puts)
    assert found.simulated().events == found.events
    return bool(found.simulated().commits == found.commits)


BY_SIMULATOR: dict[str, Any] = {
    "one probe where there is no block": OneProbe,
    "a level with nothing alive is skipped": Skipping,
    "what is only read stays where it is": StayingIfRead,
}
OF_SCHEMES: dict[str, Any] = {
    "the index is at the server": Indexed,
}
BY_LENGTHS: dict[str, Any] = {
    "records have the stashes as they are": StashInTheRecord,
    "a rebuild that ends writes its members' index": IndexInTheRecord,
}


@pytest.mark.one_kernel
@pytest.mark.parametrize("control", BY_SIMULATOR)
def test_the_simulator_rejects(control: str) -> None:
    assert by_simulator(REAL)
    assert not by_simulator(BY_SIMULATOR[control])


@pytest.mark.one_kernel
@pytest.mark.parametrize("control", OF_SCHEMES)
def test_the_simulator_rejects_schemes(control: str) -> None:
    assert by_simulator(REAL)
    assert not by_simulator(REAL, OF_SCHEMES[control])


@pytest.mark.one_kernel
@pytest.mark.parametrize("control", BY_LENGTHS)
def test_lengths_of_commits_reject(control: str) -> None:
    assert by_lengths(REAL_SCHEME)
    assert not by_lengths(BY_LENGTHS[control])
