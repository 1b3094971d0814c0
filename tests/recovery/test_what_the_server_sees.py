"""After a crash the server sees the interrupted access again, slot for slot, and nothing that depends on what is asked next."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from oram.backends import Backend
from oram.journal import Journal
from oram.kernels import reference
from oram.kernels.base import Op, Requests
from oram.schemes.path import PathORAM
from oram.schemes.ring import RingORAM
from oram.store import ObliviousStore
from oram.testing.faults import Crash, Storage
from oram.testing.model import path_slots
from oram.trace import Event, TraceBackend

from .lives import PLACES, RINGS, keyed, open_store

OPERATIONS: dict[str, Callable[[ObliviousStore], object]] = {
    "get": lambda s: s[b"k3"],
    "miss": lambda s: s.get(b"nothing"),
    "put new": lambda s: s.put(b"new", b"value"),
    "overwrite": lambda s: s.put(b"k3", b"other"),
    "delete": lambda s: s.delete(b"k3"),
    "put_many": lambda s: s.put_many([(b"k3", b"1"), (b"new", b"2"), (b"k3", b"3")], size=5),
    "get_many": lambda s: s.get_many([b"k3", b"k2", b"nothing"]),
}
CHOICES: list[Callable[[ObliviousStore], object]] = [
    lambda s: None,
    lambda s: s.get(b"k3"),
    lambda s: s.put(b"else", b"x"),
    lambda s: s.delete_many([b"k1", b"k2"]),
]


@dataclass
class Logged:
    """What an access committed to before it read anything."""

    ops: list[int]
    addresses: list[int]
    draws: list[int]

    def paths(self, position: Any, leaves: int) -> tuple[list[int], dict[int, int]]:
        """The leaves of its paths, and the new leaf of each address, by the rules of the paper."""
        path, moved = [], {}
        for op, address, draw in zip(self.ops, self.addresses, self.draws, strict=True):
            if op == Op.DUMMY or address in moved:
                path.append(draw % leaves)
            else:
                path.append(int(position[address]))
                moved[address] = draw % leaves
        return path, moved


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Logged]:
    """Every intent that was made durable, in order."""
    intents: list[Logged] = []
    original = Journal.log_intent

    def spy(journal: Journal, sequence: int, requests: Requests, note_size: int) -> None:
        original(journal, sequence, requests, note_size)
        m = requests.m
        intents.append(Logged(*(part[:m].tolist() for part in (requests.ops, requests.addresses, requests.draws))))

    monkeypatch.setattr(Journal, "log_intent", spy)
    return intents


def traced(storage: Storage) -> tuple[TraceBackend, Backend]:
    traces: list[TraceBackend] = []

    def over(inner: Backend) -> Backend:
        traces.append(TraceBackend(inner))
        return traces[0]

    backend = storage.connect(over)
    return traces[0], backend


def of_tree(events: list[Event], op: str) -> list[tuple[int, ...]]:
    return [event.indices for event in events if event.op == op and event.region.startswith("slots.")]


def path_scheme(store: ObliviousStore) -> PathORAM:
    scheme = store._engine.scheme
    assert isinstance(scheme, PathORAM)
    return scheme


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", ["path", "cached", "stash"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_logged_read_again_and_nothing_else(place: str, scheme: str, name: str, logged: list[Logged]) -> None:
    act, base, waits = OPERATIONS[name], keyed(place, scheme), bool(PLACES[place].get("remote"))
    alive = False
    for at in range(100):
        crashed = base.storage.copy()
        trace, backend = traced(crashed)
        store = open_store(backend)
        # where a write can be torn, the last one is repeated at each opening
        latest = {slot for indices in of_tree(trace.events, "write") for slot in indices}
        geometry, before = path_scheme(store).geometry, path_scheme(store).state.position.copy()
        trace.clear()
        logged.clear()
        backend.faults.arm(at)  # type: ignore[attr-defined]
        try:
            act(store)
            alive = True
        except Crash:
            pass
        seen, steps = of_tree(trace.events, "read"), backend.faults.steps  # type: ignore[attr-defined]
        committed = "commit" in steps[:-1] or alive
        expected: tuple[int, ...] = ()
        moved: dict[int, int] = {}
        intents = list(logged)
        if intents:
            path, moved = intents[0].paths(before, geometry.leaves)
            expected = tuple(path_slots(geometry, path))
            assert len(intents) == 1
        assert seen in ([], [expected]), "a read that was not logged"
        views = []
        for choice in CHOICES:
            life = crashed.copy()
            trace, backend = traced(life)
            store = open_store(backend)
            view = list(trace.events)
            views.append([(event.op, event.region, event.indices) for event in view])
            reads = of_tree(view, "read")
            if not intents:
                assert reads == []
            elif not committed:
                assert reads == [expected]
            else:
                assert reads in ([], [expected])
            written = {slot for indices in of_tree(view, "write") for slot in indices}
            if committed or not intents:
                assert written in (set(), latest, set(expected))
            else:
                assert written == (latest if waits else latest | set(expected))
            # what was read under is never a position again, but by chance
            position = path_scheme(store).state.position.copy()
            wanted = before.copy()
            for address, leaf in moved.items():
                wanted[address] = leaf
            assert np.array_equal(position, wanted)
            trace.clear()
            logged.clear()
            choice(store)
            if waits and intents and not committed and logged:  # with the next read, and not before
                first = next(i for i, event in enumerate(trace.events) if event.op == "read")
                early = of_tree(trace.events[:first], "write")
                assert tuple(slot for indices in early for slot in indices) == expected
            for intent, indices in zip(logged, of_tree(trace.events, "read"), strict=True):
                assert indices == tuple(path_slots(geometry, intent.paths(position, geometry.leaves)[0]))
        assert all(view == views[0] for view in views), "what the server sees depends on the choice"
        if alive:
            break
    assert alive


@pytest.mark.parametrize("place", PLACES)
def test_recovery_that_crashes_reads_the_same_slots_again(place: str, logged: list[Logged]) -> None:
    base = keyed(place, "path")
    for at in range(1, 3 if place == "joint" else 5):
        crashed = base.storage.copy()
        store = open_store(backend := crashed.connect())
        logged.clear()
        backend.faults.arm(at)
        with pytest.raises(Crash):
            store[b"k3"] = b"new"
        draws = logged[0].draws
        seen = []
        for again in range(100):
            trace, life = traced(crashed)
            life.faults.arm(again)  # type: ignore[attr-defined]
            try:
                open_store(life)
                done = True
            except Crash:
                done = False
            seen += of_tree(trace.events, "read")
            if done:
                break
        assert len(set(seen)) <= 1
        assert all(intent.draws == draws for intent in logged)


# --- Ring: the very same slots of the buckets


def ring_reads(events: list[Event]) -> list[tuple[str, str, tuple[int, ...]]]:
    """What was read of slots and metadata, XORs too."""
    return [
        (event.op, event.region, event.indices)
        for event in events
        if event.op in ("read", "xor") and event.region.startswith(("slots.", "meta."))
    ]


def planned(
    storage: Storage, store: ObliviousStore, intents: list[tuple[bytes, bytes, bytes, bytes]]
) -> list[tuple[str, str, tuple[int, ...]]]:
    """What the intents say will be read of a store that has not changed since, by a kernel of its own."""
    scheme, reads = store._engine.scheme, []
    assert isinstance(scheme, RingORAM)
    keys = reference.keys("aes-256-gcm", store._engine.journal.keyring.page_key)
    for ops, addresses, draws, seed in intents:
        kernel = reference.ring(scheme.geometry, copy.deepcopy(scheme.state), keys)
        requests = kernel.requests(len(ops))
        requests.ops[:] = np.frombuffer(ops, np.uint8)
        requests.addresses[:], requests.draws[:] = np.frombuffer(addresses, "<u4"), np.frombuffer(draws, "<u4")
        requests.seed[:] = np.frombuffer(seed, np.uint8)
        buckets = kernel.buckets(requests)
        if scheme.geometry.metadata == "server":
            kernel.load(storage.slots.read(scheme.meta_region, buckets))
            reads.append(("read", scheme.meta_region, tuple(buckets.tolist())))
        plan = kernel.plan(requests)
        fetched = plan.fetched.reshape(-1).tolist()
        if scheme.xor:
            reads += [("xor", scheme.region, tuple(row)) for row in plan.online.tolist()]
        else:
            fetched = [slot for slot in plan.online.reshape(-1).tolist() if slot >= 0] + fetched
        if fetched:
            reads.append(("read", scheme.region, tuple(fetched)))
    return reads


@pytest.fixture
def intents(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Every intent that was made durable, in order: ops, addresses, draws and seed."""
    found: list[tuple[bytes, bytes, bytes, bytes]] = []
    original = Journal.log_intent

    def spy(journal: Journal, sequence: int, requests: Requests, note_size: int) -> None:
        original(journal, sequence, requests, note_size)
        m = requests.m
        parts = requests.ops[:m], requests.addresses[:m], requests.draws[:m]
        found.append((*(part.tobytes() for part in parts), requests.seed.tobytes()))  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "log_intent", spy)
    return found


RING_PLACES = ["joint", "apart", "torn-in-parts", "remote", "remote-torn-in-parts"]


@pytest.mark.parametrize("scheme", RINGS)
@pytest.mark.parametrize(
    ("place", "name"),
    [*[(place, "put new") for place in RING_PLACES], ("joint", "miss"), ("apart", "put_many"), ("remote", "put_many")],
)
def test_ring_reads_the_very_same_slots_again(
    place: str, scheme: str, name: str, intents: list[tuple[bytes, bytes, bytes, bytes]]
) -> None:
    """Before anything else, and whatever is asked then; also where the write-back of the access before is still to come."""
    act, base = OPERATIONS[name], keyed(place, scheme)
    again = 0
    for at in range(100):
        crashed = base.storage.copy()
        trace, backend = traced(crashed)
        store = open_store(backend)
        store[b"k5"] = b"acknowledged"
        waiting = crashed.copy()  # with a write-back that waits, where it does
        deliver = open_store(waiting.connect())
        intents.clear()
        trace.clear()
        backend.faults.arm(at)  # type: ignore[attr-defined]
        try:
            act(store)
            alive = True
        except Crash:
            alive = False
        steps = backend.faults.steps  # type: ignore[attr-defined]
        committed = "commit" in steps[:-1] or alive
        expected = planned(waiting, deliver, intents)
        assert len(intents) <= 1
        seen = ring_reads(trace.events)
        assert seen == expected[: len(seen)], "a read that was not logged"
        if alive:
            assert seen == expected
        views = []
        for choice in CHOICES:
            life = crashed.copy()
            trace, backend = traced(life)
            store = open_store(backend)
            views.append([(event.op, event.region, event.indices) for event in trace.events])
            reads = ring_reads(trace.events)
            if not committed:
                assert reads == expected
                again += bool(reads)
            else:  # what did not land is done again where its writes are not in the journal
                assert reads in ([], expected)
            store.get(b"nothing")  # whatever waits is written
            rest = life.copy()
            calm = open_store(rest.connect())
            trace.clear()
            intents.clear()
            choice(store)
            assert ring_reads(trace.events) == planned(rest, calm, intents), (
                "the next ones are those of its own intents"
            )
        assert all(view == views[0] for view in views), "what the server sees depends on the choice"
        if alive:
            break
    assert alive
    assert again >= len(CHOICES), "no crash came between intent and commit"


@pytest.mark.parametrize("place", RING_PLACES)
@pytest.mark.parametrize("scheme", RINGS)
def test_recovery_of_ring_that_crashes_reads_the_same_slots_again(place: str, scheme: str) -> None:
    base, counts = keyed(place, scheme), []
    for at in (1, 2, 3):
        crashed = base.storage.copy()
        store = open_store(backend := crashed.connect())
        backend.faults.arm(at)
        with suppress(Crash):
            store[b"k3"] = b"new"
        seen: list[list[tuple[str, str, tuple[int, ...]]]] = []
        for again in range(100):
            trace, life = traced(crashed)
            life.faults.arm(again)  # type: ignore[attr-defined]
            try:
                open_store(life)
            except Crash:
                seen.append(ring_reads(trace.events))
            else:
                seen.append(ring_reads(trace.events))
                break
        longest = max(seen, key=len)
        assert all(reads == longest[: len(reads)] for reads in seen)
        counts.append(len(longest))
    assert max(counts) > 0


@pytest.mark.parametrize("place", PLACES)
def test_a_crash_in_linear_is_one_more_reading_of_everything(place: str) -> None:
    base = keyed(place, "linear")
    crashed = base.storage.copy()
    store = open_store(backend := crashed.connect())
    backend.faults.arm(1)
    with pytest.raises(Crash):
        store[b"k3"] = b"new"
    for _ in range(2):
        trace, life = traced(crashed.copy())
        open_store(life)
        everything = tuple(range(trace.regions()["slots.1"].slots))
        assert of_tree(trace.events, "read") == [everything]
