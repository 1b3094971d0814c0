"""Every method of the mapping, against what a dict does, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oram.errors import CapacityError, IntegrityError, KeyTypeError, MissingKeyError, ParameterError
from oram.store import ObliviousStore
from oram.testing.model import check
from oram.trace import TraceBackend

from .places import SCHEMES, accesses, small, traced

START = {b"a": b"1", b"b": b"", b"": b"empty key", b"\0": b"\0\0"}


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def both(scheme: str) -> Iterator[tuple[ObliviousStore, TraceBackend]]:
    store, trace = traced(scheme=scheme)
    store.update(START)
    trace.clear()
    yield store, trace
    store.close()


ONE_ACCESS: dict[str, Callable[[Any], object]] = {
    "get a hit": lambda m: m[b"a"],
    "get a miss": lambda m: m[b"no"],
    ".get a hit": lambda m: m.get(b"a"),
    ".get a miss": lambda m: m.get(b"no"),
    ".get with default": lambda m: m.get(b"no", b"default"),
    ".get with any default": lambda m: m.get(b"no", 5),
    "set new": lambda m: m.__setitem__(b"new", b"v"),
    "set old": lambda m: m.__setitem__(b"a", b"v"),
    "delete a hit": lambda m: m.__delitem__(b"a"),
    "delete a miss": lambda m: m.__delitem__(b"no"),
    "pop a hit": lambda m: m.pop(b"a"),
    "pop a miss": lambda m: m.pop(b"no"),
    "pop a hit with default": lambda m: m.pop(b"a", None),
    "pop a miss with default": lambda m: m.pop(b"no", None),
    "pop the empty value": lambda m: m.pop(b"b"),
    "setdefault a hit": lambda m: m.setdefault(b"a", b"v"),
    "setdefault a miss": lambda m: m.setdefault(b"no", b"v"),
    "a record among items": lambda m: (b"a", b"1") in m.items(),
    "another among items": lambda m: (b"a", b"2") in m.items(),
    "a missing one among items": lambda m: (b"no", b"2") in m.items(),
    "None among items": lambda m: (b"no", None) in m.items(),
    "update": lambda m: m.update({b"a": b"x", b"new": b"y"}),
    "update with pairs": lambda m: m.update([(b"a", b"x"), (b"a", b"y")]),
}
FREE: dict[str, Callable[[Any], object]] = {
    "len": len,
    "in": lambda m: b"a" in m,
    "not in": lambda m: b"no" in m,
    "in keys": lambda m: b"a" in m.keys(),  # noqa: SIM118
    "len of views": lambda m: (len(m.keys()), len(m.values()), len(m.items())),
    "what is no pair among items": lambda m: 5 in m.items(),
    "bool": bool,
    "update with nothing": lambda m: m.update(),
}
SCAN: dict[str, Callable[[Any], object]] = {
    "iter": sorted,
    "keys": lambda m: sorted(m.keys()),
    "values": lambda m: sorted(m.values()),
    "items": lambda m: sorted(m.items()),
    "in values": lambda m: b"1" in m.values(),
    "not in values": lambda m: b"no" in m.values(),
    "dict of items": lambda m: dict(m.items()),
    "first of iter": lambda m: next(iter(m)) in START,
}


def outcome(act: Callable[[Any], object], mapping: Any) -> object:
    try:
        return act(mapping)
    except KeyError:
        return KeyError


@pytest.mark.parametrize("name", ONE_ACCESS)
def test_one_access_whatever_happens(both: tuple[ObliviousStore, TraceBackend], name: str) -> None:
    store, trace = both
    model = dict(START)
    assert outcome(ONE_ACCESS[name], store) == outcome(ONE_ACCESS[name], model)
    assert len(accesses(trace)) == 1
    check(store, model, by_access=True)


@pytest.mark.parametrize("name", FREE)
def test_no_access(both: tuple[ObliviousStore, TraceBackend], name: str) -> None:
    store, trace = both
    assert outcome(FREE[name], store) == outcome(FREE[name], dict(START))
    assert trace.events == []
    assert trace.state_commits == []


@pytest.mark.parametrize("name", SCAN)
def test_a_whole_scan(both: tuple[ObliviousStore, TraceBackend], name: str) -> None:
    store, trace = both
    assert outcome(SCAN[name], store) == outcome(SCAN[name], dict(START))
    for region, shape in trace.regions().items():
        seen = [slot for event in trace.events if event.region == region for slot in event.indices]
        assert seen == (list(range(shape.slots)) if region.startswith(("slots", "meta")) else [])
    assert {event.op for event in trace.events} == {"read"}
    assert trace.state_commits == []


def test_a_scan_that_is_stopped_was_whole(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, trace = both
    list(store.items())
    whole = list(trace.events)
    for stop in (iter(store), iter(store.items()), iter(store.values())):
        next(stop)
    trace.clear()
    for _ in store.items():
        break
    assert trace.events == whole
    trace.clear()

    def visit(key: bytes, value: bytes) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        store.scan(visit)
    assert trace.events == whole
    check(store, START, by_access=True)


def test_popitem_until_empty(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, trace = both
    model = dict(START)
    for left in reversed(range(len(START))):
        trace.clear()
        key, value = store.popitem()
        assert model.pop(key) == value
        assert len(store) == left
        assert len(accesses(trace)) == 1
        check(store, model)
    trace.clear()
    with pytest.raises(KeyError):
        store.popitem()
    assert len(accesses(trace)) == 1


def test_many(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, trace = both
    assert store.get_many([b"a", b"no", b"a", b""]) == [b"1", None, b"1", b"empty key"]
    assert store.delete_many([b"a", b"no", b"a"]) == [True, False, False]
    store.put_many([(b"x", b"1"), (b"x", b"2"), (b"b", b"3")])
    assert len(accesses(trace)) == 3
    check(store, {b"x": b"2", b"b": b"3", b"": b"empty key", b"\0": b"\0\0"}, by_access=True)


def test_many_of_nothing_is_nothing(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, trace = both
    assert store.get_many([]) == []
    assert store.delete_many(iter([])) == []
    store.put_many({})
    assert trace.events == []


def test_padding_hides_how_many(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, trace = both
    sizes = set()
    for act in (
        lambda: store.get_many([], size=5),
        lambda: store.get_many([b"a"] * 5, size=5),
        lambda: store.put_many([(b"a", b"x")], size=5),
        lambda: store.delete_many([b"a", b"no"], size=5),
    ):
        trace.clear()
        act()
        assert len(accesses(trace)) == 1
        sizes.add(tuple(trace.state_commits))
    assert len(sizes) == 1 or store.info()["scheme"] != "linear"  # there the union of paths varies, by chance only


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2"])
def test_sizes_too_small_or_no_sizes(both: tuple[ObliviousStore, TraceBackend], size: Any) -> None:
    store, trace = both
    for act in (
        lambda: store.get_many([b"a", b"b"], size=size),
        lambda: store.put_many([(b"a", b"x"), (b"y", b"z")], size=size),
        lambda: store.delete_many([b"a", b"b"], size=size),
    ):
        with pytest.raises(ParameterError):
            act()
    assert trace.events == []
    check(store, START)


def test_more_than_a_batch_is_several(monkeypatch: pytest.MonkeyPatch) -> None:
    store, trace = traced(capacity=40)
    store._limit = 4
    items = {b"k%d" % i: b"v%d" % i for i in range(21)}
    store.put_many(items, size=30)
    assert len(accesses(trace)) == 8
    check(store, items)
    assert store.get_many([b"no", *items]) == [None, *items.values()]
    assert store.delete_many([*items, b"k1"]) == [True] * 21 + [False]
    check(store, {})


def test_update_as_dict_does(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, _ = both

    class WithKeys:
        def keys(self) -> list[bytes]:
            return [b"z"]

        def __getitem__(self, key: bytes) -> bytes:
            return b"value"

    store.update(WithKeys())
    store.update(pair for pair in [(b"y", b"1")])
    check(store, {**START, b"z": b"value", b"y": b"1"})
    with pytest.raises(KeyTypeError):
        store.update(key=b"value")
    with pytest.raises(KeyTypeError):
        store.update({}, key=b"value")


def test_full(scheme: str) -> None:
    store, trace = traced(scheme=scheme, capacity=3)
    model = {b"a": b"1", b"b": b"2", b"c": b"3"}
    store.update(model)
    for act, cost in (
        (lambda: store.put(b"d", b"4"), 1),
        (lambda: store.setdefault(b"d", b"4"), 1),
        (lambda: store.put_many([(b"a", b"x"), (b"d", b"4")]), 1),
        (lambda: store.update({b"e": b"5"}), 1),
        (lambda: store.load({b"d": b"4"}), 0),
    ):
        trace.clear()
        with pytest.raises(CapacityError):
            act()
        if cost:
            assert len(accesses(trace)) == cost
        check(store, model)
    store[b"a"] = b"still"
    assert store.setdefault(b"b", b"x") == b"2"
    store.put_many({b"a": b"1", b"c": b"3"})
    del store[b"b"]
    store[b"d"] = b"4"
    check(store, {b"a": b"1", b"c": b"3", b"d": b"4"}, by_access=True)


def test_bytes_like_keys_and_values(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, _ = both
    store[bytearray(b"a")] = memoryview(b"xyz")[1:]  # type: ignore[index, assignment]
    assert store[memoryview(b"a")] == b"yz"  # type: ignore[index]
    assert type(store[b"a"]) is bytes
    assert type(store.setdefault(b"q", bytearray(b"s"))) is bytes  # type: ignore[arg-type]


def test_identity_not_content(both: tuple[ObliviousStore, TraceBackend]) -> None:
    store, trace = both
    assert store == store
    assert store != dict(START)
    assert store != small()
    assert hash(store) == hash(store)
    assert trace.events == []


def test_missing_key_errors_say_nothing() -> None:
    with pytest.raises(MissingKeyError) as caught:
        small()[b"secret"]
    assert "secret" not in str(caught.value) + repr(caught.value)
    assert caught.value.args == ()


def test_records_written_as_blocks_are_found_out() -> None:
    store = small()
    store[b"a"] = b"1"
    for address in range(8):
        store.blocks.write(address, b"\xff" * 48)
    with pytest.raises(IntegrityError, match="malformed"):
        store[b"a"]
