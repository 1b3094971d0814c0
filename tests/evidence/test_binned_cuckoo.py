"""What is random in Cuckoo ORAM without an index, the pairs that are looked up; and what must not be, its rebuilds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

import oram
from oram.backends import MemoryBackend
from oram.params import CuckooParams, Table
from oram.schemes.binned import BinnedORAM
from oram.store import ObliviousStore
from oram.testing.statistics import Result, uniform_choice, uniform_ranks, used_first
from oram.trace import TraceBackend

from .test_cuckoo import CONTENTS, passes

__all__ = ["passes"]


def hierarchy(**options: Any) -> tuple[ObliviousStore, BinnedORAM, TraceBackend]:
    trace = TraceBackend(MemoryBackend())
    scheme = CuckooParams(c=8, index="none", **options)
    store = oram.create(
        trace, key=bytes(32), keyed=False, capacity=128, block_size=8, scheme=scheme, durability="process"
    )
    found = store._engine.scheme
    assert isinstance(found, BinnedORAM)
    return store, found, trace


def looked_into(accesses: int) -> Iterator[tuple[Table, tuple[int, int, int]]]:
    """For each table that an access looks into: the bin, and the cells in it."""
    store, scheme, trace = hierarchy()
    g, rng = scheme.geometry, random.Random(1)
    for _ in range(accesses):
        addr = rng.randrange(g.N) if rng.random() < 0.5 else rng.randrange(12)
        alive = g.alive(scheme.turn, built=False)
        trace.clear()
        store.blocks.write(addr, b"x") if rng.random() < 0.5 else store.blocks.read(addr)
        reads = [event.indices for event in trace.events if event.op == "read"]
        for table, (u, v, *_) in zip(alive, reads, strict=True) if alive else ():
            shape, first = g.levels[table.level], g.first_slot(table)
            number, at = divmod(u - first, shape.bin)
            assert (v - first) // shape.bin == number, "two cells of different bins"
            yield table, (number, at // 2, ((v - first) % shape.bin - 1) // 2)


def test_pairs_are_uniform(passes: None) -> None:
    """Bins and cells, at each level that has enough of them, whatever is asked; each with a false-positive rate of LEVEL."""
    pairs: dict[int, list[tuple[int, int, int]]] = {}
    seen: dict[tuple[Table, int], list[int]] = {}
    for table, triple in looked_into(4000):
        pairs.setdefault(table.level, []).append(triple)
        for side in (1, 2):
            seen.setdefault((table, side), []).append(triple[0] * 1000 + triple[side])
    shapes, results, judged = hierarchy()[1].geometry.levels, list[Result](), 0
    for level, found in pairs.items():
        shape = shapes[level]
        if len(found) >= 20 * shape.b * shape.m:
            judged += 1
            results.append(uniform_choice([k * shape.m + u for k, u, _ in found], shape.b * shape.m))
            results.append(uniform_choice([k * shape.m + v for k, _, v in found], shape.b * shape.m))
            results.append(uniform_choice([(v - u) % shape.m for _, u, v in found], shape.m))
    ranks = (
        ([cell // 1000 * shapes[t.level].m + cell % 1000 for cell in cells], shapes[t.level].b * shapes[t.level].m)
        for (t, _), cells in seen.items()
    )
    results.append(uniform_ranks(used_first(ranks), seed=2))
    assert judged >= 3
    assert any(shape.b > 1 for shape in shapes)
    assert [result for result in results if not result.passed] == []


def rebuilt(content: str, rebuild: Any) -> tuple[list[Any], list[Any]]:
    """What each access shows besides its probes, and the lengths of what it commits."""
    store, scheme, trace = hierarchy(rebuild=rebuild, eps=0.2)
    found, g = [], scheme.geometry
    for i in range(5 * g.c << (g.L - 1)):
        probes = 2 * bool(g.alive(i, built=False))
        trace.events.clear()
        CONTENTS[content](store, i)
        first = True
        for event in trace.events:
            read = event.op == "read" and event.region == "slots.1"
            assert not read or first or len(event.indices) == 2
            shown = event.indices[probes * read :] if not read or first else ()
            first &= not read
            found.append((event.op, event.region, shown, event.slot_size))
    assert any(shape.b > 1 for shape in g.levels) is (rebuild == "deamortized")
    return found, trace.state_commits


@pytest.mark.parametrize("rebuild", ["deamortized", "amortized"])
def test_rebuilds_look_the_same_whatever_is_in_the_tables(passes: None, rebuild: str) -> None:
    worlds = [rebuilt(content, rebuild) for content in CONTENTS]
    assert all(world == worlds[0] for world in worlds)
    assert sum(len(indices) for op, _, indices, _ in worlds[0][0] if op == "write") > 3000
