"""Slots that were changed, swapped, replaced by old or foreign ones, or withheld."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import MemoryBackend
from oram.errors import IntegrityError, PoisonedError, RollbackError
from oram.schemes.path import PathORAM
from oram.testing.faults import Storage
from oram.testing.model import check
from oram.testing.randomness import Coins, pinned
from oram.trace import Event, TraceBackend
from oram.types import U8

from .places import KEY, MODEL, SCHEMES, filled, region_of, rows

#: data, present, slot, the same slots earlier, those of another store with the same key
Harm = Callable[[U8, U8, int, U8, U8], None]


def _flip(at: int) -> Harm:
    def harm(data: U8, present: U8, slot: int, old: U8, foreign: U8) -> None:
        data[slot, at] ^= 1 << slot % 8

    return harm


def _swap(data: U8, present: U8, slot: int, old: U8, foreign: U8) -> None:
    other = (slot + 1) % len(data)
    data[[slot, other]] = data[[other, slot]]


def _copy(data: U8, present: U8, slot: int, old: U8, foreign: U8) -> None:
    data[slot] = data[(slot + 1) % len(data)]


def _old(data: U8, present: U8, slot: int, old: U8, foreign: U8) -> None:
    data[slot] = old[slot]


def _foreign(data: U8, present: U8, slot: int, old: U8, foreign: U8) -> None:
    data[slot] = foreign[slot]


def _withheld(data: U8, present: U8, slot: int, old: U8, foreign: U8) -> None:
    present[slot] = 0


def _zeroed(data: U8, present: U8, slot: int, old: U8, foreign: U8) -> None:
    data[slot] = 0


HARMS: dict[str, Harm] = {
    "first byte": _flip(0),
    "middle byte": _flip(40),
    "last byte": _flip(-1),
    "swapped": _swap,
    "copied": _copy,
    "old": _old,
    "foreign": _foreign,
    "withheld": _withheld,
    "zeroed": _zeroed,
}


@pytest.mark.parametrize("durability", ["process", "none"])
@pytest.mark.parametrize(("scheme", "kind"), [*[(scheme, "slots") for scheme in SCHEMES], ("ring-server", "meta")])
@pytest.mark.parametrize("name", HARMS)
def test_every_slot(name: str, scheme: str, kind: str, durability: str) -> None:
    """Of the many slots of a Ring tree every fifth; those that an access reads follow below, and in the tests of the kernels."""
    if scheme == "linear" and name == "old":
        pytest.skip("each access writes every slot, so the next test has it")
    backend, elsewhere = MemoryBackend(), MemoryBackend()
    store = filled(backend, scheme, durability=durability)
    filled(elsewhere, scheme)
    data, present = rows(backend, kind)
    old = data.copy()
    for key in MODEL:  # so that every path is written again
        store[key] = MODEL[key]
    for _ in range(5000):
        changed = (data != old).any(axis=1)
        if changed.all():
            break
        store.get(b"k1")
    assert changed.all()
    now, messages = data.copy(), set()
    for slot in range(list(HARMS).index(name) % 5, len(data), 5) if len(data) > 200 else range(len(data)):
        HARMS[name](data, present, slot, old, rows(elsewhere, kind)[0])
        with pytest.raises(IntegrityError) as caught:
            store.verify()
        messages.add(str(caught.value))
        assert type(caught.value) is IntegrityError
        with pytest.raises(PoisonedError):
            store.verify()
        data[:], present[:] = now, 1
        if durability == "none":
            store._engine._trouble = None  # reopening is not possible, but nothing was changed
            continue
        store.close()
        store = oram.open(backend, key=KEY, durability="process")
    assert len(messages) == 1, "the message depends on the slot"
    assert messages == {"stored data was changed, swapped, withheld or is stale"}
    check(store, MODEL, by_access=True)


USES: list[Callable[[oram.ObliviousStore], object]] = [
    lambda s: s[b"k1"],
    lambda s: s.get(b"no"),
    lambda s: s.put(b"k1", b"x"),
    lambda s: s.delete(b"k1"),
    lambda s: s.popitem(),
    lambda s: len(s),
    lambda s: b"k1" in s,
    lambda s: list(s),
    lambda s: s.get_many([b"k1"]),
    lambda s: s.put_many({b"k1": b"x"}),
    lambda s: s.delete_many([b"k1"]),
    lambda s: s.load({b"k1": b"x"}),
    lambda s: s.clear(),
    lambda s: s.rekey(key=KEY),
    lambda s: s.verify(),
    lambda s: s.flush(),
    lambda s: s.stats(),
    lambda s: s.backup("/nowhere"),
    lambda s: s.blocks.read(0),
    lambda s: s.blocks.write(0, b""),
]


@pytest.mark.parametrize("durability", ["process", "none"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_poisoned(scheme: str, durability: str) -> None:
    """The access that finds it is whole to the server, nothing is written, and nothing more is done."""
    backend = MemoryBackend()
    trace = TraceBackend(backend)
    store = filled(trace, scheme, durability=durability)
    data, _ = rows(backend)
    now = data.copy()
    store.get(b"no")
    written = data.copy()
    data ^= np.random.default_rng(1).integers(1, 256, data.shape, np.uint8)  # such that no XOR of slots is what it was
    damaged = data.copy()
    trace.clear()
    with pytest.raises(IntegrityError) as caught:
        store[b"k1"]
    assert not isinstance(caught.value, PoisonedError)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    seen = [event for event in trace.events if event.region == region_of(backend)]
    assert len({event.trip for event in seen}) == 1
    assert {event.op for event in seen} <= {"read", "xor"}
    (read, *_) = seen
    if isinstance(store._engine.scheme, PathORAM):
        assert len(read.indices) == store._engine.scheme.geometry.layers
    trace.clear()
    for use in USES:
        with pytest.raises(PoisonedError):
            use(store)
    assert trace.events == []
    assert trace.state_commits == []
    assert np.array_equal(data, damaged)
    store.close()
    if durability == "none":
        return
    for _ in range(2):
        with pytest.raises(IntegrityError):  # recovery begins with that very access
            oram.open(backend, key=KEY)
        assert np.array_equal(data, damaged)
    data[:] = written
    with oram.open(backend, key=KEY) as store:
        check(store, MODEL, by_access=True)
    assert now.shape == data.shape


@pytest.mark.parametrize("xor", [True, False], ids=["xor", "one by one"])
@pytest.mark.parametrize("metadata", ["client", "server"])
def test_every_slot_that_an_access_of_ring_reads(metadata: Any, xor: bool) -> None:
    """Noticed by the very access that reads it, whether there is a block or a dummy; and the server sees a whole access all the same."""
    storage = Storage()
    scheme = oram.RingParams(Z=4, A=3, S=3, metadata=metadata, xor=xor)
    filled(storage.connect(), "ring", scheme=scheme)
    kinds: set[bool] = set()
    messages: set[str] = set()

    def attempt(harm: tuple[str, int, str] | None, seed: int) -> list[Event]:
        """The next three accesses up to the harm, on a copy with the same coins: what the server sees of the last."""
        place = storage.copy()
        trace = TraceBackend(place.slots)
        store = oram.open(trace, key=KEY, durability="process")
        with pinned(Coins(seed)):
            if harm is not None:
                region, slot, how = harm
                assert isinstance(place.slots, MemoryBackend)
                slots = place.slots.buffer(region)
                if how == "flip":
                    slots.data[slot, slot % slots.data.shape[1]] ^= 1 << slot % 8
                elif how == "withheld":
                    slots.present[slot] = 0
                else:
                    slots.data[slot] = slots.data[slot - 1]
            trace.clear()
            if harm is None:
                store.get_many([b"k1", b"no", b"k2"])
                return [event for event in trace.events if event.op in ("read", "xor")]
            with pytest.raises(IntegrityError) as caught:
                store.get_many([b"k1", b"no", b"k2"])
            messages.add(str(caught.value))
            with pytest.raises(PoisonedError):
                store.get(b"k1")
            store.close()
        return trace.events

    for seed in range(2):
        whole = attempt(None, seed)
        groups = [event for event in whole if event.op == "xor"]
        assert bool(groups) == xor
        for event in whole:
            read = event.region.startswith("meta")
            for slot in event.indices:
                for how in ("flip", "withheld", "another"):
                    together = {*event.indices} if event.op == "xor" else set()
                    if slot < 0 or (how == "another" and slot - 1 in together) or not slot:
                        continue
                    seen = attempt((event.region, slot, how), seed)
                    kinds.add(read)
                    # metadata that do not open say not which slots to read: the access ends there, as it always does
                    assert seen == ([each for each in whole if each.region.startswith("meta")] if read else whole)
    assert kinds == ({True, False} if metadata == "server" else {False})
    assert messages == {"stored data was changed, swapped, withheld or is stale"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_clock(scheme: str) -> None:
    backend, elsewhere = MemoryBackend(), MemoryBackend()
    store = filled(backend, scheme)
    data, present = rows(backend, "clock")
    older = data.copy()
    store.get(b"no")
    store.close()
    filled(elsewhere, scheme)
    now, slots = data.copy(), rows(backend)[0].copy()

    def refused(error: type[IntegrityError]) -> None:
        with pytest.raises(error):
            oram.open(backend, key=KEY)
        data[:], present[:] = now, 1
        assert np.array_equal(rows(backend)[0], slots)

    for at in range(36):
        data[0, at] ^= 0x10
        refused(IntegrityError)
    data[:] = rows(elsewhere, "clock")[0]
    refused(IntegrityError)
    data[:] = 0
    refused(IntegrityError)
    data[:] = older
    refused(RollbackError)
    present[:] = 0
    refused(RollbackError)
    with oram.open(backend, key=KEY) as store:
        check(store, MODEL, by_access=True)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_incarnation_that_is_gone(scheme: str) -> None:
    """Slots from before a rekey, put back under the new name."""
    backend = MemoryBackend()
    store = filled(backend, scheme)
    before = rows(backend)[0].copy()
    store.rekey(key=KEY)
    rows(backend)[0][:] = before
    with pytest.raises(IntegrityError):
        store[b"k1"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_servers_header_is_no_authority(scheme: str) -> None:
    backend = MemoryBackend()
    filled(backend, scheme).close()
    header = backend.buffer("header")
    header.data[:] = 255
    with oram.open(backend, key=KEY) as store:
        check(store, MODEL)
    header.present[:] = 0
    with oram.open(backend, key=KEY) as store:
        check(store, MODEL)


@pytest.mark.parametrize(("index", "seed"), [("client", 0), ("client", 1), ("none", 0)])
def test_every_slot_that_an_access_of_cuckoo_reads(index: Any, seed: int) -> None:
    """The same for probes, real or not, for what rebuilds read, and for what the first access after an opening reads again.

    Without an index the access ends with the round trip in which something was changed: others would say whether the block was found before.
    """
    storage, messages, probes = Storage(), set[str](), set[str]()
    items = {b"k%d" % i: b"v%d" % i for i in range(30)}
    store = oram.create(
        storage.connect(), key=KEY, capacity=40, block_size=60, scheme=oram.CuckooParams(c=8, index=index), items=items,
        durability="process",
    )  # fmt: skip
    before: dict[int, U8] = {}
    for i in range(64 + 71 + seed):  # into rebuilds, over places that were used before
        if i == 100:
            memory = storage.slots
            assert isinstance(memory, MemoryBackend)
            before = dict(enumerate(memory.buffer("slots.1").data.copy()))
        store[b"k%d" % (i % 30)] = b"%d" % i
    store.close()

    def attempt(slot: int, how: str) -> list[Event]:
        """The next three requests with the same coins, on a copy: what the server sees."""
        place = storage.copy()
        trace = TraceBackend(place.slots)
        assert isinstance(place.slots, MemoryBackend)
        store = oram.open(trace, key=KEY, durability="process")
        slots = place.slots.buffer("slots.1")
        match how:
            case "flip":
                slots.data[slot, slot % slots.data.shape[1]] ^= 1 << slot % 8
            case "withheld":
                slots.present[slot] = 0
            case "another":
                slots.data[slot] = slots.data[slot - 1]
            case "old":
                slots.data[slot] = before[slot]
        trace.clear()
        with pinned(Coins(seed)):
            if not how:
                store.get_many([b"k1", b"no", b"k2"])
                return [event for event in trace.events if event.op == "read"]
            with pytest.raises(IntegrityError) as caught:
                store.get_many([b"k1", b"no", b"k2"])
            messages.add(str(caught.value))
            with pytest.raises(PoisonedError):
                store.get(b"k1")
        return trace.events

    whole = attempt(0, "")
    assert (len(whole) == 2) is (index == "client")  # what was in client memory, and the access, or its rounds
    now = storage.slots.buffer("slots.1").data if isinstance(storage.slots, MemoryBackend) else None
    assert now is not None
    for number, event in enumerate(whole):
        for i, slot in enumerate(event.indices):
            how = ("flip", "withheld", "another")[i % 3 if slot else 0]
            if before[slot].any() and (before[slot] != now[slot]).any():
                how = "old" if i % 2 else how
            elif (i + seed) % (4 - 2 * min(number, 1)):  # a half, and of stashes a quarter: there are 32 slots in each
                continue
            probes.add(how)
            first = next(
                j for j, each in enumerate(whole) if slot in each.indices
            )  # a probe may read again what was read again
            assert attempt(slot, how) == whole[: first + 1]
    assert probes == {"flip", "withheld", "another", "old"}
    assert messages == {"stored data was changed, swapped, withheld or is stale"}
