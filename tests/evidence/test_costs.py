"""Protocol costs, exactly: slots, bytes and round trips of every method, the same for hits and misses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import poisson

import oram
from oram.assembly import Shape
from oram.backends import MemoryBackend
from oram.errors import CapacityError, MissingKeyError
from oram.params import CuckooGeometry
from oram.store import Blocks, ObliviousStore
from oram.testing.randomness import Coins, leaves_of, listen, looked_up, pinned
from oram.testing.remote import RemoteBackend
from oram.testing.simulators import canonical, simulator
from oram.testing.worlds import observe
from oram.trace import TraceBackend

CAPACITY = 30
LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=1), "tree_top": 0},
    "pages and cached top": {"scheme": oram.PathParams(page_levels=2), "tree_top": 400},
    "two blocks a value": {"scheme": oram.PathParams(page_levels=2), "tree_top": 0, "blocks_per_value": 2},
    "linear": {"scheme": "linear"},
}
RING: dict[str, dict[str, Any]] = {
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6), "tree_top": 0},
    "ring, one by one": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=False), "tree_top": 400},
    "ring, metadata there": {"scheme": oram.RingParams(Z=3, A=1, S=1, metadata="server"), "tree_top": 0},
    "ring, two blocks a value": {"scheme": oram.RingParams(Z=4), "tree_top": 0, "blocks_per_value": 2},
}
CUCKOO: dict[str, dict[str, Any]] = {
    "cuckoo": {"scheme": oram.CuckooParams(c=8)},
    "cuckoo, amortized": {"scheme": oram.CuckooParams(c=8, eps=0.3, rebuild="amortized")},
    "cuckoo, two blocks a value": {"scheme": oram.CuckooParams(c=8), "blocks_per_value": 2},
}


@dataclass(frozen=True)
class Cost:
    """A call, and the records in each batch it makes, on a store that holds keys 0..19 of 30."""

    method: str
    call: Callable[[ObliviousStore], object]
    batches: tuple[int, ...]


HIT, MISS = b"3", b"missing"
MIX = [b"1", MISS, b"1", b"2"]
COSTS = [
    Cost("__getitem__", lambda s: s[HIT], (1,)),
    Cost("__getitem__", lambda s: s[MISS], (1,)),
    Cost("get", lambda s: s.get(HIT), (1,)),
    Cost("get", lambda s: s.get(MISS, b"other"), (1,)),
    Cost("__setitem__", lambda s: s.__setitem__(HIT, b"new"), (1,)),
    Cost("__setitem__", lambda s: s.__setitem__(MISS, b"new"), (1,)),
    Cost("put", lambda s: s.put(HIT, b"a longer value"), (1,)),
    Cost("put", lambda s: s.put(MISS, b""), (1,)),
    Cost("__delitem__", lambda s: s.__delitem__(HIT), (1,)),
    Cost("__delitem__", lambda s: s.__delitem__(MISS), (1,)),
    Cost("delete", lambda s: s.delete(HIT), (1,)),
    Cost("delete", lambda s: s.delete(MISS), (1,)),
    Cost("pop", lambda s: s.pop(HIT), (1,)),
    Cost("pop", lambda s: s.pop(MISS), (1,)),
    Cost("pop", lambda s: s.pop(MISS, None), (1,)),
    Cost("popitem", lambda s: s.popitem(), (1,)),
    Cost("setdefault", lambda s: s.setdefault(HIT, b"d"), (1,)),
    Cost("setdefault", lambda s: s.setdefault(MISS, b"d"), (1,)),
    Cost("get_many", lambda s: s.get_many(MIX), (4,)),
    Cost("get_many", lambda s: s.get_many([HIT] * 4), (4,)),
    Cost("get_many", lambda s: s.get_many([]), ()),
    Cost("get_many", lambda s: s.get_many([], size=7), (7,)),
    Cost("get_many", lambda s: s.get_many(MIX, size=7), (7,)),
    Cost("put_many", lambda s: s.put_many([(key, b"x") for key in MIX]), (4,)),
    Cost("put_many", lambda s: s.put_many({HIT: b"x"}, size=7), (7,)),
    Cost("put_many", lambda s: s.put_many([(b"new%d" % i, b"") for i in range(11)]), (11,)),  # one too many
    Cost("put_many", lambda s: s.put_many([(b"new%d" % i, b"") for i in range(11)], size=12), (12,)),
    Cost("update", lambda s: s.update({HIT: b"x", MISS: b"y"}), (2,)),
    Cost("delete_many", lambda s: s.delete_many(MIX), (4,)),
    Cost("delete_many", lambda s: s.delete_many([MISS], size=7), (7,)),
    Cost("__contains__", lambda s: (HIT in s, MISS in s), ()),
    Cost("__len__", len, ()),
    Cost("__bool__", bool, ()),
    Cost("__eq__", lambda s: s == {}, ()),
    Cost("__repr__", repr, ()),
    Cost("keys", lambda s: (HIT in s.keys(), len(s.keys())), ()),  # noqa: SIM118
    Cost("items", lambda s: len(s.items()), ()),
    Cost("items", lambda s: (HIT, b"v") in s.items(), (1,)),
    Cost("items", lambda s: (MISS, b"v") in s.items(), (1,)),
    Cost("values", lambda s: len(s.values()), ()),
    Cost("info", lambda s: s.info(), ()),
    Cost("stats", lambda s: s.stats(), ()),
    Cost("flush", lambda s: None, ()),
]
#: Not accesses: every slot read, or every slot written, whatever is there. Scans are below; the rest makes a store anew.
BULK = {"scan", "__iter__", "verify", "backup", "load", "rekey", "clear", "close"}
#: No call: properties, the protocol of ``with``, refusals.
NONE = {
    "__init__",
    "__enter__",
    "__exit__",
    "__reduce_ex__",
    "__class_getitem__",
    "__subclasshook__",
    "__reversed__",
    "__hash__",
}


def new(layout: str, durability: str, **options: Any) -> tuple[ObliviousStore, TraceBackend]:
    trace = TraceBackend(MemoryBackend())
    usual: dict[str, Any] = {"key": bytes(32), "capacity": CAPACITY, "block_size": 40, "durability": durability}
    store = oram.create(trace, **{**usual, **{**LAYOUTS, **RING}[layout], **options})
    if options.get("keyed", True):
        store.put_many([(b"%d" % i, b"v") for i in range(20)])
    else:
        store.blocks.write(0, b"first")
    return store, trace


def assert_batches(
    store: ObliviousStore, trace: TraceBackend, asked: list[Any], sizes: tuple[int, ...], logged: bool
) -> None:
    """The trace is that of batches of so many requests: what the simulator says, and its sums."""
    info = store.info()
    assert [len(batch) for batch in asked] == list(sizes)
    leaves = leaves_of(trace.events, info) if info["scheme"] == "path" else [(0,)] * len(sizes)
    expected = simulator(info, logged=logged)
    expected._dirty = True
    for batch in leaves:
        expected.access(batch)
    assert trace.events == expected.events
    assert trace.round_trips == 2 * len(sizes)
    clock = 64 * logged
    assert trace.bytes_written == trace.bytes_read + clock * len(sizes)
    pages = [len(event.indices) for event in trace.events if event.op == "read"]
    assert trace.bytes_read == sum(pages) * expected.slot_size
    for m, shown, touched in zip(sizes, leaves, pages, strict=True):
        if info["scheme"] == "linear":
            assert touched == expected.slots
        else:  # no more paths than requests, no more pages than paths have
            assert 1 <= len(shown) <= m
            assert touched <= m * -(-(info["L"] + 1 - info["T"]) // info["h"])
        if m == 1 and info["scheme"] == "path":
            assert touched == -(-(info["L"] + 1 - info["T"]) // info["h"])


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: f"{cost.method}-{COSTS.index(cost)}")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_store(layout: str, cost: Cost) -> None:
    for durability in ("process", "none"):
        store, trace = new(layout, durability)
        asked = listen(store._engine)
        trace.clear()
        with suppress(MissingKeyError, CapacityError):
            cost.call(store)
        unit = store.info()["blocks_per_value"]
        assert_batches(store, trace, asked, tuple(unit * records for records in cost.batches), durability == "process")


def test_every_method_has_a_cost() -> None:
    methods = {
        name for each in ObliviousStore.__mro__[:-1] for name, value in vars(each).items() if inspect.isfunction(value)
    }
    public = {name for name in methods if not name.startswith("_") or name.startswith("__")}
    assert {cost.method for cost in COSTS} <= public
    assert public - {cost.method for cost in COSTS} - BULK - NONE == set()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "two" not in name])
def test_blocks(layout: str) -> None:
    calls: list[tuple[Callable[[Blocks], object], tuple[int, ...]]] = [
        (lambda b: b.read(0), (1,)),
        (lambda b: b.read(7), (1,)),  # never written
        (lambda b: b.write(0, b"x"), (1,)),
        (lambda b: b.write(9, b""), (1,)),
        (lambda b: b.read_many([0, 0, 5, 9]), (4,)),
        (lambda b: b.read_many([]), ()),
        (lambda b: b.write_many([1, 2, 1], [b"x"] * 3), (3,)),
        (len, ()),
    ]
    for durability in ("process", "none"):
        for call, sizes in calls:
            store, trace = new(layout, durability, keyed=False)
            asked = listen(store._engine)
            trace.clear()
            call(store.blocks)
            assert_batches(store, trace, asked, sizes, durability == "process")


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: f"{cost.method}-{COSTS.index(cost)}")
@pytest.mark.parametrize("layout", RING)
def test_ring(layout: str, cost: Cost) -> None:
    """What a batch costs depends on what was read before, so the simulator follows from the store's first access on."""
    for durability in ("process", "none"):
        trace = TraceBackend(MemoryBackend())
        usual: dict[str, Any] = {"key": bytes(32), "capacity": CAPACITY, "block_size": 40, "durability": durability}
        store = oram.create(trace, **{**usual, **RING[layout]})
        trace.clear()
        leaves, info = looked_up(store._engine), store.info()
        store.put_many([(b"%d" % i, b"v") for i in range(20)])
        trips = trace.round_trips
        with suppress(MissingKeyError, CapacityError):
            cost.call(store)
        expected, unit = simulator(info, logged=durability == "process"), info["blocks_per_value"]
        assert [len(batch) for batch in leaves] == [unit * records for records in (20, *cost.batches)]
        for batch in leaves:
            expected.access(batch)
        assert canonical(trace.events, info) == expected.shown
        assert trace.round_trips - trips == (3 if info["metadata"] == "server" else 2) * len(cost.batches)


@pytest.mark.one_kernel
@pytest.mark.parametrize(
    ("Z", "A", "S", "L", "xor"),
    [(4, 3, 6, 11, False), (8, 8, 13, 8, False), (8, 8, 13, 8, True), (16, 20, 29, 6, False), (16, 20, 29, 6, True)],
)
def test_ring_moves_what_the_paper_says(Z: int, A: int, S: int, L: int, xor: bool) -> None:
    """Slots read and written an access, counted, against (L + 1) (1 + (2Z + S) / A (1 + P[Poisson(A) >= S])); with XOR 1 for the first 1.

    The formula takes the rate of early reshuffles of the deepest levels for all; the exact rate is in test_ring_oracles.py.
    """
    capacity, trace = A << (L - 1), TraceBackend(MemoryBackend())
    with pinned(Coins(1)):
        store = oram.create(
            trace, key=bytes(32), capacity=capacity, block_size=1, keyed=False, durability="none", tree_top=0,
            scheme=oram.RingParams(Z=Z, A=A, S=S, xor=xor),
        )  # fmt: skip
        assert store.info()["L"] == L
        for i in range(4 * capacity):
            if i == 2 * capacity:  # each bucket was evicted to
                trace.clear()
            trace.events.clear()
            store.blocks.write(i % capacity, b"x")
    again = (2 * Z + S) / A * (1 + float(poisson.sf(S - 1, A)))
    moved = (trace.bytes_read + trace.bytes_written) / (1 + 16) / (2 * capacity)
    assert moved == pytest.approx((1 if xor else L + 1) + (L + 1) * again, rel=0.02)


def test_a_remote_ring_takes_one_round_trip(tmp_path: Path) -> None:
    """An access, its write-back and all; two with the metadata at the server. With what is written last, one more for the close."""
    for metadata, trips in (("client", 1), ("server", 2)):
        remote = RemoteBackend(MemoryBackend())
        scheme = oram.RingParams(Z=4, metadata=metadata)  # type: ignore[arg-type]
        store = oram.create(
            remote,
            key=bytes(32),
            capacity=30,
            block_size=40,
            scheme=scheme,
            state=tmp_path / metadata,
            durability="process",
        )
        before = remote.round_trips
        for i in range(40):
            store[b"%d" % (i % 30)] = b"x"
        store.get_many([b"1", b"2", b"3"])
        assert remote.round_trips - before == 41 * trips
        store.close()
        assert remote.round_trips - before == 41 * trips + 1


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: f"{cost.method}-{COSTS.index(cost)}")
@pytest.mark.parametrize("layout", CUCKOO)
@pytest.mark.one_kernel
def test_cuckoo(layout: str, cost: Cost) -> None:
    """As for Ring; on the reference kernels, where the pairs can be chosen."""

    def make() -> tuple[ObliviousStore, TraceBackend]:
        trace = TraceBackend(MemoryBackend())
        usual: dict[str, Any] = {"key": bytes(32), "capacity": CAPACITY, "block_size": 40, "durability": "process"}
        return oram.create(trace, **{**usual, **CUCKOO[layout]}), trace

    def work(store: ObliviousStore) -> None:
        store.put_many([(b"%d" % i, b"v") for i in range(20)])
        with suppress(MissingKeyError, CapacityError):
            cost.call(store)

    view = observe(make, work, seed=1)
    unit = view.info["blocks_per_value"]
    assert [len(batch) for batch in view.asked] == [unit * records for records in (20, *cost.batches)]
    assert view.simulated().events == view.events
    assert view.events[-1].trip + 1 == 2 * len(view.asked)


@pytest.mark.parametrize("rebuild", ["deamortized", "amortized"])
def test_an_access_of_cuckoo(rebuild: Any) -> None:
    """Slots and round trips of each access, and the sums over an epoch of the bottom, to the slot, by the constants of docs/schemes/cuckoo.md.

    Nothing is written before the answer is there: what is online are reads, in one round trip.
    """
    trace = TraceBackend(MemoryBackend())
    scheme = oram.CuckooParams(c=8, rebuild=rebuild)
    store = oram.create(
        trace, key=bytes(32), capacity=64, block_size=40, scheme=scheme, durability="process", tree_top=0
    )
    g = Shape.of(store.info()).geometry
    assert isinstance(g, CuckooGeometry)
    n, L, period = [8, 16, 32, 64], 3, 64
    cells = [2 * math.ceil(1.1 * each) for each in n]
    read = written = 0
    for clock in range(3 * period):
        probes = 2 * len(g.alive(clock, built=False))
        trace.clear()
        if clock % 3:
            store.get(b"%d" % (clock % 7))
        else:
            store[b"%d" % (clock % 50)] = b"x"
        slots = [event for event in trace.events if event.region == "slots.1"]
        assert [(event.op, event.trip) for event in slots if event.indices] in (
            [("read", 0)][: probes > 0],
            [("read", 0), ("write", 1)],
            [("write", 1)],
        )
        assert trace.round_trips == 2
        if clock >= 2 * period:  # from here on the bottom has an old one
            read += sum(len(event.indices) for event in slots if event.op == "read") - probes
            written += sum(len(event.indices) for event in slots if event.op == "write")
    times = [2 ** (L - 1 - level) for level in range(L)] + [1]
    assert read == sum(times[level] * sum(cells[:level]) for level in range(L + 1)) + cells[L]
    assert written == sum(times[level] * (cells[level] + 32) for level in range(L + 1))


def test_a_remote_cuckoo_takes_one_round_trip(tmp_path: Path) -> None:
    """An access or a batch, its write-back and all; one more after an opening, for what was in client memory; and one for the close."""
    remote = RemoteBackend(MemoryBackend())
    store = oram.create(
        remote,
        key=bytes(32),
        capacity=30,
        block_size=40,
        scheme=oram.CuckooParams(c=8),
        state=tmp_path / "state",
        durability="process",
    )
    before = remote.round_trips
    for i in range(40):
        store[b"%d" % (i % 30)] = b"x"
    store.get_many([b"1", b"2", b"3"])
    assert remote.round_trips - before == 41
    store.close()
    assert remote.round_trips - before == 42
    store = oram.open(remote, key=bytes(32), state=tmp_path / "state")
    before = remote.round_trips
    for _ in range(5):
        store.get(b"1")
    assert remote.round_trips - before == 6
    store.close()


@pytest.mark.parametrize("layout", [*LAYOUTS, *RING])
@pytest.mark.parametrize("records", [0, 20])
def test_scans(layout: str, records: int) -> None:
    """Every slot once, in order, whatever is there and however soon the caller has enough."""

    def stop(key: bytes, value: bytes) -> None:
        raise KeyError(key)

    calls: list[Callable[[ObliviousStore], object]] = [
        lambda s: list(s.items()),
        lambda s: next(iter(s), None),
        lambda s: b"v" in s.values(),
        lambda s: s.verify(),
        lambda s: s.scan(stop),
    ]
    store, trace = new(layout, "process")
    expected = simulator(store.info())
    regions = {region: expected.slots for region, _ in expected.regions()}
    if "meta.1" in regions:
        regions["meta.1"] //= 4  # slots of a bucket
    if not records:
        store.delete_many([b"%d" % i for i in range(20)])
    for call in calls:
        trace.clear()
        with suppress(KeyError):
            call(store)
        read = {region: [i for e in trace.events if e.region == region for i in e.indices] for region in regions}
        assert {event.op for event in trace.events} == {"read"}
        assert read == {region: list(range(slots)) for region, slots in regions.items()}
        assert trace.state_commits == []


def test_errors_before_anything_happens() -> None:
    store, trace = new("path", "process")
    trace.clear()
    wrong: list[Callable[[], object]] = [
        lambda: store.put(b"k", b"x" * 99),
        lambda: store.put(b"k" * 99, b""),
        lambda: store.get("text"),  # type: ignore[call-overload]
        lambda: store.put_many([(b"1", b"x"), (b"k", b"x" * 99)]),
        lambda: store.get_many([b"1"], size=0),
        lambda: store.blocks.read(CAPACITY),
        lambda: store.blocks.write(0, b"x" * 99),
    ]
    for call in wrong:
        with pytest.raises(oram.OramError):
            call()
    assert (trace.events, trace.state_commits) == ([], [])
