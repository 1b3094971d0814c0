"""Attacks on Ring and on write-backs that wait: some once worked, the others are those that should. Each has to fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import Backend
from oram.errors import BackendError, IntegrityError, RollbackError, StaleStateError, StoreClosedError
from oram.params import PathGeometry, PathParams, RingGeometry, RingParams, SchemeParams
from oram.store import ObliviousStore
from oram.testing.faults import Crash, Storage
from oram.testing.model import check
from oram.testing.randomness import Coins, pinned
from oram.trace import TraceBackend

KEY = bytes(32)
BLOCK = 56  # with Z=4 a row of metadata has this length too
RINGS = {
    f"{metadata}{'-xor' if xor else ''}": RingParams(Z=4, A=3, S=3, metadata=metadata, xor=xor)
    for metadata in ("client", "server")
    for xor in (False, True)
}
REMOTE: dict[str, Any] = {"apart": True, "remote": True}
every_ring = pytest.mark.parametrize("ring", RINGS)


def created(
    storage: Storage, scheme: SchemeParams, *, capacity: int = 16, keyed: bool = True, accesses: int = 30
) -> tuple[ObliviousStore, dict[bytes, bytes]]:
    """A store after some accesses, and what is in it; the last write-back may wait."""
    store = oram.create(
        storage.connect(), key=KEY, capacity=capacity, block_size=BLOCK, scheme=scheme, tree_top=0, keyed=keyed,
        durability="sync",
    )  # fmt: skip
    model: dict[bytes, bytes] = {}
    for i in range(accesses):
        if keyed:
            model[b"k%d" % (i % 8)] = store[b"k%d" % (i % 8)] = b"v%d" % i
        else:
            store.blocks.write(i % 8, b"v%d" % i)
    return store, model


def opened(storage: Storage, over: Callable[[Backend], Backend] = lambda inner: inner) -> ObliviousStore:
    return oram.open(storage.connect(over), key=KEY, durability="sync")


def traced(storage: Storage) -> tuple[TraceBackend, ObliviousStore]:
    traces: list[TraceBackend] = []

    def over(inner: Backend) -> Backend:
        traces.append(TraceBackend(inner))
        return traces[0]

    store = opened(storage, over)
    traces[0].clear()
    return traces[0], store


Content = dict[str, tuple[Any, Any]]


def slots_of(storage: Storage) -> Content:
    """A copy of all that the server has."""
    memory: Any = storage.slots
    return {
        region: (memory.buffer(region).data.copy(), memory.buffer(region).present.copy()) for region in memory.regions()
    }


def put_back(storage: Storage, content: Content, *, kinds: tuple[str, ...] = ("slots", "meta", "clock")) -> None:
    memory: Any = storage.slots
    for region, (data, present) in content.items():
        if region.split(".")[0] in kinds and region in memory.regions():
            memory.buffer(region).data[:], memory.buffer(region).present[:] = data, present


def put_state_back(storage: Storage, entries: list[tuple[bytes, bytes]]) -> None:
    storage.state.commit(entries, [key for key, _ in storage.state.scan(b"")])


# --- what was acknowledged


@pytest.mark.parametrize("scheme", [PathParams(), RingParams(Z=4), RingParams(Z=4, metadata="server")], ids=str)
def test_a_state_without_the_last_access_of_a_session_that_died(scheme: SchemeParams) -> None:
    """Its write-back had not left yet, so the server alone would not know; but the session left its mark when it began."""
    storage = Storage(**REMOTE)
    store, _ = created(storage, scheme)
    store.close()
    before = list(storage.state.scan(b""))
    store = opened(storage)
    store[b"k7"] = b"new"
    put_state_back(storage, before)
    with pytest.raises(StaleStateError):
        opened(storage)


@pytest.mark.parametrize("place", [{}, REMOTE], ids=["joint", "remote"])
@every_ring
def test_opening_again_and_again_loses_nothing(ring: str, place: dict[str, Any]) -> None:
    """Blocks that evictions had taken to the server were once found in the pool too, and went on as old copies."""
    storage, choice = Storage(**place), random.Random(1)
    store, model = created(storage, RINGS[ring], capacity=64, accesses=0)
    for i in range(250):
        key = b"k%d" % choice.randrange(40)
        if choice.random() < 0.3:
            assert store.pop(key, None) == model.pop(key, None)
        elif choice.random() < 0.5:
            assert store.get(key) == model.get(key)
        else:
            model[key] = store[key] = b"v%d" % i
        if i % 35 == 34:
            store = opened(storage)
            check(store, model)
    check(store, model, by_access=True)


BEFORE: dict[str, Callable[[ObliviousStore], object]] = {
    "nothing": lambda store: None,
    "scan": lambda store: store.verify(),
    "flush": lambda store: store.flush(),
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(
    "scheme", [*RINGS.values(), PathParams()], ids=[*RINGS, "path"]
)  # fmt: skip
def test_no_write_back_is_given_up_before_it_is_safe(scheme: SchemeParams, before: str) -> None:
    """Power fails in the accesses after one whose write-back waited; it must not be lost at the server with its journaled copy overwritten."""
    base = Storage(**REMOTE, lossy=True)
    created(base, scheme)[0].close()
    for at in range(40):
        storage = base.copy()
        store = oram.open(backend := storage.connect(), key=KEY, durability="sync")
        store[b"k1"] = b"new"
        BEFORE[before](store)
        backend.faults.arm(at)
        try:
            store[b"k2"] = b"new"
            store[b"k3"] = b"new"
        except Crash:
            pass
        again = opened(storage)
        assert again[b"k1"] == b"new"
        if not backend.faults.dead:
            return
    pytest.fail("the accesses never end")


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("scheme", [RINGS["client"], RINGS["server"], PathParams()], ids=["client", "server", "path"])
def test_growth_of_the_pool_with_a_write_back_that_waits(
    scheme: SchemeParams, lossy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint takes the journaled copy away."""
    for geometry in (RingGeometry, PathGeometry):
        monkeypatch.setattr(geometry, "pool_size", property(lambda g: 2))
    base = Storage(**REMOTE, lossy=lossy)
    created(base, scheme, keyed=False)[0].close()
    for at in range(40):
        storage = base.copy()
        store = oram.open(backend := storage.connect(), key=KEY, durability="sync")
        store.blocks.write(1, b"x")
        backend.faults.arm(at)
        with suppress(Crash):
            store.blocks.write_many(range(16), [b"w%d" % i for i in range(16)])
        again = opened(storage)
        assert again.blocks.read(1).rstrip(b"\0") in ((b"x", b"w1") if backend.faults.dead else (b"w1",))
        assert again.verify() == 16 if not backend.faults.dead else again.verify() >= 8
        if not backend.faults.dead:
            assert "checkpoint" in backend.faults.steps
            return
    pytest.fail("the batch never ends")


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("ring", ["client-xor", "server"])
def test_an_exchange_that_fails(ring: str, after: bool) -> None:
    """Its write may have come or not. The handle is out of use, and its close writes nothing that could be older."""
    base = Storage(**REMOTE)
    _, model = created(base, RINGS[ring])
    for at in range(6):
        storage = base.copy()
        store = oram.open(backend := storage.connect(), key=KEY, durability="sync")
        store[b"k1"] = model[b"k1"] = b"new"
        backend.faults.arm(at, lambda: BackendError("no answer"), after=after)
        try:
            store[b"k2"] = b"other"
        except BackendError:
            if at > 1:  # else nothing has begun but an intent
                with pytest.raises(StoreClosedError):
                    store.get(b"k1")
            store.close()
        again = opened(storage)
        assert again[b"k1"] == b"new"
        assert again[b"k2"] in (model[b"k2"], b"other")
        check(again, {**model, b"k2": again[b"k2"]})


# --- what the server learns from an access that it disturbs


def changes(content: Content, region: str, slot: int, old: Content, n: int) -> dict[str, tuple[Any, int]]:
    """What a server may put into a slot: its data, and whether it is there."""
    data, _ = content[region]
    other = slot + 1 if (slot + 1) % n else slot - n + 1
    flipped = data[slot].copy()
    flipped[-1] ^= 1
    found = {"changed": (flipped, 1), "withheld": (np.zeros_like(flipped), 0), "of a neighbour": (data[other], 1)}
    older = old[region][0][slot]
    return found if np.array_equal(older, data[slot]) else {**found, "older": (older, 1)}


@every_ring
def test_what_is_noticed_does_not_depend_on_where_the_block_is(ring: str) -> None:
    """A change is noticed exactly where the slot was read and its bucket was ever written, and these are known to the server."""
    storage = Storage(**REMOTE)
    created(storage, RINGS[ring])[0].close()
    old = slots_of(storage)
    with opened(storage) as store:
        for i in range(9):
            store[b"k%d" % (i % 8)] = b"again"
    n = store.info()["Z"] + store.info()["S"]
    requests: list[Callable[[ObliviousStore], object]] = [
        lambda s: s[b"k3"],
        lambda s: s[b"k6"],
        lambda s: s.get(b"none"),
    ]
    noticed = {True: 0, False: 0}
    for number, request in enumerate(requests):
        calm = storage.copy()
        with pinned(Coins(number)):
            trace, store = traced(calm)
            request(store)
        read = {
            (event.region, slot)
            for event in trace.events
            if event.op in ("read", "xor") and not event.region.startswith("clock")
            for slot in event.indices
            if slot >= 0
        }
        candidates = sorted(read) + [("slots.1", slot) for slot in range(0, 16 * n, 5) if ("slots.1", slot) not in read]
        attacked = storage.copy()
        whole, state = slots_of(attacked), list(attacked.state.scan(b""))
        for region, slot in candidates[:: 1 if number == 0 else 3]:
            if not whole[region][1][slot]:
                continue
            ways = changes(whole, region, slot, old, n if region == "slots.1" else len(whole[region][1]))
            for data, there in list(ways.values())[slot % 2 :: 2]:
                put_back(attacked, whole)
                put_state_back(attacked, state)
                memory: Any = attacked.slots
                with pinned(Coins(number)):
                    _, store = traced(attacked)
                    memory.buffer(region).data[slot], memory.buffer(region).present[slot] = data, there
                    if (region, slot) in read:
                        with pytest.raises(
                            IntegrityError, match=r"^stored data was changed, swapped, withheld or is stale$"
                        ):
                            request(store)
                    else:
                        request(store)
                noticed[(region, slot) in read] += 1
    assert min(noticed.values()) > 10


@pytest.mark.parametrize("ring", ["client", "client-xor"])
@pytest.mark.parametrize("hit", [True, False])
def test_what_lies_where_nothing_was_written(ring: str, hit: bool) -> None:
    """Never opened where it comes by itself, and noticed in an XOR: whatever is asked."""
    storage = Storage(**REMOTE)
    created(storage, RINGS[ring], capacity=512, accesses=8)[0].close()
    _, store = traced(storage)
    memory: Any = storage.slots
    region = memory.buffer("slots.1")
    absent = region.present == 0
    region.data[absent] = np.random.default_rng(1).integers(0, 256, region.data[absent].shape, np.uint8)
    region.present[absent] = 1
    if ring == "client":
        assert store.get(b"k1" if hit else b"none") == (b"v1" if hit else None)
    else:
        with pytest.raises(IntegrityError):
            store.get(b"k1" if hit else b"none")


@pytest.mark.parametrize("place", [{"apart": True}, REMOTE], ids=["apart", "remote"])
@every_ring
def test_the_same_slots_again_whatever_was_asked_and_is_asked_next(ring: str, place: dict[str, Any]) -> None:
    """Also after crashes of the recovery, and although what is done again, is done by another generation."""
    base = Storage(**place)
    created(base, RINGS[ring])[0].close()
    alive = False
    for at in range(12):
        storage = base.copy()
        backends: list[Any] = []
        trace = TraceBackend(storage.slots)
        store = oram.open(storage.connect(lambda _, trace=trace: trace), key=KEY, durability="sync")  # type: ignore[misc]
        backends.append(store._engine.backend)
        store[b"k1"] = b"waits"
        trace.clear()
        backends[0].faults.arm(at)
        try:
            store.put_many([(b"k3", b"1"), (b"k5", b"2"), (b"k3", b"3")], size=4)
            alive = True
        except Crash:
            pass
        first = reads(trace)
        views = []
        for crash_at in (None, 1, 2, 3, 4, 5):
            life = storage.copy()
            if crash_at is not None:
                dying = life.connect()
                dying.faults.arm(crash_at)
                with suppress(Crash):
                    oram.open(dying, key=KEY, durability="sync")
            again = TraceBackend(life.slots)
            oram.open(life.connect(lambda _, again=again: again), key=KEY, durability="sync")  # type: ignore[misc]
            views.append(reads(again))
        assert all(view in ([], views[0]) for view in views)
        if views[0]:
            assert views[0][: len(first)] == first
        if alive:
            return
    pytest.fail("the batch never ends")


def reads(trace: TraceBackend) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        (e.op, e.region, e.indices)
        for e in trace.events
        if e.op in ("read", "xor") and e.region[:5] in ("slots", "meta.")
    ]


# --- forged and rolled back


@pytest.mark.parametrize("behind", [1, 2, 5])
@every_ring
def test_a_server_that_is_behind(ring: str, behind: int) -> None:
    """By the one write-back that waits: that is written. By more: refused, again and again."""
    storage = Storage(**REMOTE)
    store, model = created(storage, RINGS[ring])
    kept = []
    for i in range(6):
        store[b"k%d" % i] = model[b"k%d" % i] = b"new"
        kept.append(slots_of(storage))  # misses this write, and no other
    put_back(storage, kept[6 - behind])
    if behind == 1:
        check(opened(storage), model, by_access=True)
        return
    for _ in range(2):
        with pytest.raises(RollbackError):
            opened(storage)
    put_back(storage, kept[-1])
    check(opened(storage), model, by_access=True)


@pytest.mark.parametrize("kinds", [("slots",), ("meta",), ("slots", "meta"), ("slots", "meta", "clock")], ids="+".join)
@every_ring
def test_regions_are_rolled_back_under_an_open_handle(ring: str, kinds: tuple[str, ...]) -> None:
    storage = Storage(**REMOTE)
    store, model = created(storage, RINGS[ring])
    old = slots_of(storage)
    for i in range(9):
        store[b"k%d" % (i % 8)] = model[b"k%d" % (i % 8)] = b"new"
    store.flush()
    put_back(storage, old, kinds=kinds)
    if kinds == ("meta",) and RINGS[ring].metadata == "client":
        check(store, model, by_access=True)
        return
    with pytest.raises(IntegrityError):
        for _ in range(20):
            assert store[b"k1"] == b"new"
    store.close()


@pytest.mark.parametrize("what", ["older", "removed", "of another store"])
@every_ring
def test_another_write_back_in_the_place_of_the_last(ring: str, what: str) -> None:
    """Of a server that lacks it: the access is done again from its record, or all is refused."""
    storage, strange = Storage(**REMOTE), Storage(**REMOTE)
    store, model = created(storage, RINGS[ring])
    created(strange, RINGS[ring])
    (name, older), *_ = storage.state.scan(b"w")
    store[b"k1"] = model[b"k1"] = b"new"
    assert next(iter(storage.state.scan(b"w")))[1] != older
    if what == "removed":
        storage.state.commit([], [name])
    else:
        storage.state.commit([(name, older if what == "older" else next(iter(strange.state.scan(b"w")))[1])])
    if what == "of another store":
        with pytest.raises(IntegrityError):
            opened(storage)
        return
    check(opened(storage), model, by_access=True)


@pytest.mark.parametrize("ring", ["server", "server-xor"])
def test_rows_and_slots_do_not_pass_for_each_other(ring: str) -> None:
    """They have one length here, one key and one count of nonces."""
    storage = Storage(**REMOTE)
    store, _ = created(storage, RINGS[ring])
    store.rekey(key=KEY)
    memory: Any = storage.slots
    slots, rows = memory.buffer("slots.2"), memory.buffer("meta.2")
    assert slots.data.shape[1] == rows.data.shape[1]
    n = len(rows.data)
    slots.data[:n], rows.data[:] = rows.data.copy(), slots.data[:n].copy()
    with pytest.raises(IntegrityError):
        store.get(b"k1")


@every_ring
def test_slots_of_an_older_incarnation(ring: str) -> None:
    storage = Storage(**REMOTE)
    store, _ = created(storage, RINGS[ring])
    store.rekey(key=KEY)
    old = slots_of(storage)
    store.rekey(key=KEY)
    for kind in ("slots", "meta"):
        if f"{kind}.2" in old:
            memory: Any = storage.slots
            memory.buffer(f"{kind}.3").data[:] = old[f"{kind}.2"][0]
    with pytest.raises(IntegrityError):
        store.get(b"k1")


@every_ring
def test_old_client_state_beside_a_server_two_accesses_ahead(ring: str) -> None:
    storage = Storage(**REMOTE)
    store, model = created(storage, RINGS[ring])
    store.close()
    old = list(storage.state.scan(b""))
    store = opened(storage)
    store[b"k1"] = model[b"k1"] = b"1"
    store[b"k2"] = model[b"k2"] = b"2"
    new = list(storage.state.scan(b""))
    put_state_back(storage, old)
    with pytest.raises(StaleStateError):
        opened(storage)
    put_state_back(storage, new)
    check(opened(storage), model, by_access=True)
