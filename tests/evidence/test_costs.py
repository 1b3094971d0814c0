"""Protocol costs, exactly: slots, bytes and round trips of every method, the same for hits and misses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

import oram
from oram.backends import MemoryBackend
from oram.errors import CapacityError, MissingKeyError
from oram.store import Blocks, ObliviousStore
from oram.testing.randomness import leaves_of, listen
from oram.testing.simulators import simulator
from oram.trace import TraceBackend

CAPACITY = 30
LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=1), "tree_top": 0},
    "pages and cached top": {"scheme": oram.PathParams(page_levels=2), "tree_top": 400},
    "two blocks a value": {"scheme": oram.PathParams(page_levels=2), "tree_top": 0, "blocks_per_value": 2},
    "linear": {"scheme": "linear"},
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
    store = oram.create(trace, **{**usual, **LAYOUTS[layout], **options})
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


@pytest.mark.parametrize("layout", LAYOUTS)
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
    if not records:
        store.delete_many([b"%d" % i for i in range(20)])
    for call in calls:
        trace.clear()
        with suppress(KeyError):
            call(store)
        read = [index for event in trace.events for index in event.indices]
        assert {event.op for event in trace.events} == {"read"}
        assert read == list(range(simulator(store.info()).slots))
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
