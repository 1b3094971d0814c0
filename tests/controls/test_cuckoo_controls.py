"""Hierarchies that are broken on purpose, each as some published scheme was, and the check that has to reject it while it accepts the real one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest

import oram
from oram.backends import MemoryBackend, Slots
from oram.kernels.base import ABSENT, CuckooPlan, CuckooState, Op, Requests
from oram.kernels.reference import ReferenceKeys
from oram.kernels.reference.cuckoooram import Build, ReferenceCuckoo
from oram.params import CuckooGeometry, CuckooParams, Table
from oram.testing.statistics import excess_rate, graph_excess
from oram.testing.worlds import observe
from oram.trace import TraceBackend
from oram.types import I64

C, EPOCHS = 16, 1000


class Clear(ReferenceKeys):
    """Seals nothing: these tests look at pairs alone."""

    def seal(self, slot: int, counter: int, plain: bytes) -> bytes:
        return plain + bytes(16)

    def open(self, slot: int, ref: int, sealed: bytes) -> bytes:
        return sealed[:-16]


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


def excesses(kernel_of: Callable[..., ReferenceCuckoo], epochs: int = EPOCHS) -> list[int]:
    """The excess of the first C pairs looked up in each table of level 0, when these are exactly its entries, one after the other."""
    g = CuckooGeometry.of(8 * C, 1, CuckooParams(c=C), 1 << 20)
    keys = Clear("aes-256-gcm", lambda _: bytes(32))
    kernel = kernel_of(g, CuckooState.empty(g), keys, os.urandom(32))
    server = np.zeros((g.slots, g.slot_size), np.uint8)
    rng, found = random.Random(2), list[int]()
    pairs: dict[Table, list[tuple[int, int]]] = {}
    history: list[int] = []
    while len(found) < epochs:
        clock = int(kernel.state.clock[0])
        flush, at = divmod(
            clock - C // 4, C
        )  # level 0's table of an odd flush is ready a quarter of a flush after it began
        asked_again = flush > 0 and flush % 2 == 1
        if asked_again:
            addr = history[(flush - 1) * C + at]
        else:
            recent = set(history[-2 * C :])
            addr = next(a for a in iter(lambda: rng.randrange(g.N), None) if a not in recent)
        history.append(addr)
        requests = kernel.requests(1)
        requests.ops[0], requests.addresses[0], requests.data[0] = Op.WRITE, addr, 1
        requests.seed[:] = np.frombuffer(os.urandom(32), np.uint8)
        plan = kernel.plan(requests)
        alive = g.alive(clock, built=False)
        assert [p.table.level for p in kernel._steps[0].probes if p.real] == [0] or not asked_again
        for table, (u, v) in zip(alive, plan.pairs.tolist(), strict=True):
            if table.level == 0:
                first = g.first_slot(table)
                seen = pairs.setdefault(table, [])
                seen.append(((u - first) // 2, (v - first - 1) // 2))
                if len(seen) == C:
                    found.append(graph_excess(seen))
        slots = Slots(server[plan.slots], np.ones(plan.slots.size, np.uint8))
        written = kernel.access(requests, plan, slots)
        server[written.slots] = written.data
    return found


def judged(kernel_of: Callable[..., ReferenceCuckoo]) -> bool:
    m = CuckooGeometry.of(8 * C, 1, CuckooParams(c=C), 1 << 20).levels[0].m
    return excess_rate(excesses(kernel_of), m, C, seed=3).passed


def test_graph_excess() -> None:
    assert graph_excess([]) == graph_excess([(0, 0), (0, 0)]) == graph_excess([(0, 1), (1, 1), (1, 0), (0, 0)]) == 0
    assert graph_excess([(0, 0)] * 5) == 3
    assert graph_excess([(0, 1), (1, 1), (1, 0), (0, 0), (1, 1), (7, 7), (7, 7), (7, 7)]) == 2


def test_the_real_one_is_like_dummies() -> None:
    assert judged(ReferenceCuckoo)


BY_GRAPH: dict[str, type[ReferenceCuckoo]] = {
    "keys drawn again until the entries fit": Redrawn,
    "what is in a stash gets dummy probes at its level": Alibi,
}


@pytest.mark.parametrize("control", BY_GRAPH)
def test_the_graph_excess_rejects(control: str) -> None:
    assert not judged(BY_GRAPH[control])


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


class Staying(ReferenceCuckoo):
    """What is only read stays where it is, and is looked for there again."""

    def _append(self, op: int, addr: int, block: bytes | None, clock: int) -> None:
        code = int(self.state.code[addr])
        if op == Op.READ and code > 1 and self._home(code, clock) is not None:
            op = Op.DUMMY
        super()._append(op, addr, block if op != Op.DUMMY else None, clock)


def rejected(kernel: type[ReferenceCuckoo]) -> bool:
    """By the simulator, or because an address is looked for twice in an epoch."""

    def make() -> tuple[Any, TraceBackend]:
        trace = TraceBackend(MemoryBackend())
        options: dict[str, Any] = {
            "scheme": CuckooParams(c=8),
            "capacity": 40,
            "block_size": 40,
            "durability": "process",
        }
        return oram.create(trace, key=bytes(32), **options), trace

    def work(store: Any) -> None:
        for i in range(150):
            store.get(b"%d" % (i % 4)) if i % 3 else store.put(b"%d" % (i % 4), b"x")

    with (
        mock.patch.dict(os.environ, {"ORAM_KERNELS": "reference"}),
        mock.patch("oram.kernels.reference.cuckoo", kernel),
    ):
        try:
            view = observe(make, work, seed=1)
            return bool(view.simulated().events != view.events)
        except ValueError:
            return True


def test_the_simulator_accepts_the_real_one() -> None:
    assert not rejected(ReferenceCuckoo)


BY_SIMULATOR: dict[str, type[ReferenceCuckoo]] = {
    "one probe where there is no block": OneProbe,
    "a level with nothing alive is skipped": Skipping,
    "what is only read stays where it is": Staying,
}


@pytest.mark.parametrize("control", BY_SIMULATOR)
def test_the_simulator_rejects(control: str) -> None:
    assert rejected(BY_SIMULATOR[control])
