"""What is seen of an access: that of a sound store is what its simulator says, and everything else is not."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import pytest

import oram
from oram.audit import sights
from oram.audit.sides import SCHEMES, oblivious, plain
from oram.audit.workload import RECORDS, WORKLOADS
from oram.backends import MemoryBackend
from oram.cli.view import View
from oram.params import CuckooParams, SchemeParams, cuckoo
from oram.testing.simulators.cuckoo import STASH, CuckooSimulator
from oram.testing.statistics import used_first
from oram.trace import Event, TraceBackend

#: Those of the page, and the hierarchy without an index.
BINNED = CuckooParams(c=8, index="none")
SEEN: dict[str, str | SchemeParams] = {**SCHEMES, "cuckoo": CuckooParams(c=8), "cuckoo without an index": BINNED}


def run(
    scheme: str, accesses: int, seed: int = 1, capacity: int = 64
) -> Iterator[tuple[sights.Sight, list[Event], sights.Sights]]:
    """A small store whose accesses are seen from the first one on, with their traces."""
    trace = TraceBackend(MemoryBackend())
    store = oram.create(
        trace, key=bytes(32), capacity=capacity, block_size=48, scheme=SEEN[scheme], tree_top=0, durability="process"
    )
    trace.clear()
    seen, source = sights.of(store.info()), random.Random(seed)
    for i in range(accesses):
        key = b"%d" % source.randrange(40)
        if source.random() < 0.5:
            store.put(key, b"%d" % i)
        else:
            store.get(key)
        events = list(trace.events)
        sight = seen.see(events, trace.state_commits)
        trace.clear()
        yield sight, events, seen


@pytest.mark.parametrize("scheme", SEEN)
def test_a_sound_store_is_as_its_simulator_says(scheme: str) -> None:
    for sight, _, seen in run(scheme, 300):
        assert sight.as_said
        assert sight.committed
        assert len(sight.shown) == 1
        assert 0 <= sight.shown[0] < seen.places
        assert all(0 <= cell < sum(row.cells for row in seen.rows) for cell in sight.touched)


@pytest.mark.parametrize("scheme", SEEN)
@pytest.mark.parametrize(
    "fault", ["a read is missing", "a write is missing", "a slot more", "another trip", "a length"]
)
def test_anything_else_is_noticed(scheme: str, fault: str) -> None:
    trace = TraceBackend(MemoryBackend())
    store = oram.create(
        trace, key=bytes(32), capacity=64, block_size=48, scheme=SEEN[scheme], tree_top=0, durability="process"
    )
    trace.clear()
    seen = sights.of(store.info())
    for i in range(60):  # until there is something to look up in a hierarchy, and to write
        if i:
            seen.see(trace.events, trace.state_commits)
        trace.clear()
        store[b"%d" % i] = b"x"
    events, commits = list(trace.events), list(trace.state_commits)
    slots = next(i for i, event in enumerate(events) if event.op in ("read", "xor") and event.region == "slots.1")
    match fault:
        case "a read is missing":
            del events[slots]
        case "a write is missing":
            del events[-1]
        case "a slot more":
            events[slots] = dataclasses.replace(events[slots], indices=(*events[slots].indices, 1))
        case "another trip":
            events[-1] = dataclasses.replace(events[-1], trip=events[-1].trip + 1)
        case _:
            *rest, (key, size) = commits[-1]
            commits[-1] = (*rest, (key, size + 1))
    sight = seen.see(events, commits)
    assert sight.as_said == (fault == "a length")
    assert sight.as_said or sight.committed or fault == "a read is missing"  # which may show another leaf
    assert not (sight.as_said and sight.committed)


def test_the_second_cell_lies_in_the_bin_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of several bins: what is read of the bottom is a pair, and a pair across bins is none."""
    monkeypatch.setattr(cuckoo, "IN_HAND", 60)
    monkeypatch.setattr(cuckoo, "SPREAD", 3)
    monkeypatch.setattr(CuckooSimulator, "in_hand", 60)
    monkeypatch.setattr(CuckooSimulator, "spread", 3)
    *_, (sight, events, seen) = run("cuckoo without an index", 150)
    assert isinstance(seen, sights.CuckooSights)
    bottom = seen._probed[-1]
    assert bottom.bins > 1
    assert sight.as_said
    assert {size for _, size in sight.cells} >= {bottom.m, bottom.bins * bottom.m}
    reads = [i for i, event in enumerate(events) if event.op == "read" and event.region == "slots.1"]
    at = reads[len(seen._probed) - 1]
    left, right, *others = events[at].indices
    elsewhere = right + (2 * bottom.m + STASH if right - bottom.first < 2 * bottom.m else -2 * bottom.m - STASH)
    events[at] = dataclasses.replace(events[at], indices=(left, elsewhere, *others))
    again = sights.Sight()
    seen.notice(events, again)
    assert not again.as_said


def test_a_slot_of_a_bucket_read_twice_is_noticed() -> None:
    *_, (_, events, seen) = run("ring", 20)
    again = seen.see(events[:1], ())  # the same slots, and nothing is written between
    assert not again.as_said


def test_ring_ranks_are_those_of_the_demo() -> None:
    found, whole, n = list[sights.Rank](), list[Event](), 0
    for sight, events, seen in run("ring", 200):
        found += sight.ranks
        whole += events
        n = int(seen.info["Z"]) + int(seen.info["S"])  # type: ignore[attr-defined]
    theirs = (
        View.of_choices(whole, "slots.1", n, seed=1).touched / (1 << 20)
    ).tolist()  # in the same step, wherever the coin put them
    assert all(rank - 1e-4 <= at * size <= rank + 1 for (rank, size), at in zip(found, theirs, strict=True))


def test_ranks_of_cells_are_those_of_the_statistic() -> None:
    cells, ranks = dict[tuple[int, int, int], list[int]](), dict[tuple[int, int, int], list[int]]()
    sizes = dict[tuple[int, int, int], int]()
    trace_of = run("cuckoo", 200)
    for sight, _, seen in trace_of:
        assert isinstance(seen, sights.CuckooSights)
        for i, ((cell, m), (rank, _)) in enumerate(zip(sight.cells, sight.ranks, strict=True)):
            table = seen._probed[i // 2]
            side = (table.level, table.epoch, i % 2)
            cells.setdefault(side, []).append(cell)
            ranks.setdefault(side, []).append(rank)
            sizes[side] = m
    assert cells
    for side, each in cells.items():
        assert used_first([(each, sizes[side])]) == [(rank, sizes[side]) for rank in ranks[side]]


@pytest.mark.parametrize("scheme", SEEN)
def test_a_store_that_is_opened_again_is_as_its_simulator_says(scheme: str) -> None:
    """Also what it is asked for then; and what it was asked for before is no longer known to be right if anything else showed at its opening."""
    name = "cuckoo" if scheme not in SCHEMES else scheme
    params = SEEN[scheme]
    side = oblivious(name, None, None if isinstance(params, str) else params)
    requests = WORKLOADS["zipf"].requests(3)
    for turn in range(4):
        for request in (next(requests) for _ in range(15 + turn)):
            side.ask(request)
        side.reopen()
    exact = [finding for finding in side.findings if finding.level == 0.0]
    assert [(finding.seen, finding.alarm) for finding in exact] == [(70, None)] * 2
    assert side.accesses == 66
    assert not side.sights.reopened((), ()).as_said


def test_ranks_of_choices_are_those_of_both_orders() -> None:
    """Of a bucket of ten slots with 1 and 4 read, slot 7 is the sixth; of the even ones first, the seventh."""
    info = next(run("ring", 1))[2].info  # type: ignore[attr-defined]
    seen = sights.RingSights(info)
    found = sights.Sight()
    seen.notice([Event("xor", "slots.1", (slot,), 1, 0) for slot in (1, 4, 7)], found)
    assert found.choices[2] == sights.Choice(0, 5, 6, 8)
    assert found.ranks[2] == (5, 8)
    again = sights.Sight()
    seen.notice([Event("read", "slots.1", (0, 2, 3, 5), 1, 0)], again)
    assert sorted(size for _, size in again.fetched) == [4, 5, 6, 7]
    assert not again.ranks


def test_the_plain_store_shows_its_slots() -> None:
    side = plain()
    requests = WORKLOADS["misses"].requests(1)
    for request in (next(requests) for _ in range(100)):
        side.ask(request)
        assert side.recent[-1] == (request.record if request.record < RECORDS else -1)  # a miss asks for nothing at all


def test_all_of_an_oblivious_store_is_in_use_when_it_is_first_seen() -> None:
    side = oblivious("cuckoo", None)
    assert side.accesses == 0
    assert isinstance(side.sights, sights.CuckooSights)
    side.ask(next(WORKLOADS["scan"].requests(1)))
    assert max(table.level for table in side.sights._probed) == side.sights.info["L"]
