"""Bad input is a typed error before anything happens: no slot was read or written, no journal entry made, nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import LMDBBackend, MemoryBackend
from oram.errors import (
    AddressError,
    BlockSizeError,
    KeyTooLargeError,
    KeyTypeError,
    OramError,
    ParameterError,
    ValueTooLargeError,
)
from oram.params import LinearParams, PathParams, RingParams
from oram.testing.model import check

from .places import KEY, small, traced

LIMIT = 48 - 7
START = {b"a": b"1", b"b": b"2"}

Bad = tuple[type[OramError], Callable[[Any], object]]
RECORDS: dict[str, Bad] = {
    "value too large": (ValueTooLargeError, lambda s: s.put(b"a", b"x" * LIMIT)),
    "value too large in setdefault": (ValueTooLargeError, lambda s: s.setdefault(b"a", b"x" * LIMIT)),
    "value too large in a batch": (ValueTooLargeError, lambda s: s.put_many([(b"c", b""), (b"a", b"x" * LIMIT)])),
    "value too large to load": (ValueTooLargeError, lambda s: s.load([(b"c", b""), (b"a", b"x" * LIMIT)])),
    "key too large": (KeyTooLargeError, lambda s: s.get(b"x" * (LIMIT + 1))),
    "key too large to put": (KeyTooLargeError, lambda s: s.put(b"x" * (LIMIT + 1), b"")),
    "key too large to delete": (KeyTooLargeError, lambda s: s.delete(b"x" * (LIMIT + 1))),
    "key too large in a batch": (KeyTooLargeError, lambda s: s.get_many([b"a", b"x" * (LIMIT + 1)])),
    "key too large for in": (KeyTooLargeError, lambda s: b"x" * (LIMIT + 1) in s),
    "key is a str": (KeyTypeError, lambda s: s["a"]),
    "key is a str to put": (KeyTypeError, lambda s: s.put("a", b"1")),
    "key is None": (KeyTypeError, lambda s: s.get(None)),
    "key is an int for in": (KeyTypeError, lambda s: 5 in s),
    "key is an int to delete": (KeyTypeError, lambda s: s.delete(5)),
    "key is an int to pop with default": (KeyTypeError, lambda s: s.pop(5, None)),
    "value is a str": (KeyTypeError, lambda s: s.put(b"a", "1")),
    "value is an int": (KeyTypeError, lambda s: s.put(b"a", 3)),
    "value is None in a batch": (KeyTypeError, lambda s: s.put_many({b"c": b"1", b"a": None})),
    "value is a str to load": (KeyTypeError, lambda s: s.load({b"c": b"1", b"a": "x"})),
    "keyword arguments": (KeyTypeError, lambda s: s.update(a=b"1")),
}
BLOCKS: dict[str, Bad] = {
    "address is the capacity": (AddressError, lambda b: b.read(8)),
    "address is negative": (AddressError, lambda b: b.read(-1)),
    "address is huge": (AddressError, lambda b: b.write(1 << 80, b"")),
    "address is a bool": (AddressError, lambda b: b.read(True)),
    "address is a float": (AddressError, lambda b: b.read(1.0)),
    "address is a str": (AddressError, lambda b: b.write("1", b"")),
    "address is numpy's negative": (AddressError, lambda b: b.read(np.int64(-1))),
    "one of many is the capacity": (AddressError, lambda b: b.read_many([0, 8])),
    "one of many is negative": (AddressError, lambda b: b.write_many([-1, 0], [b"", b""])),
    "one of many is huge": (AddressError, lambda b: b.read_many([1 << 70])),
    "many are floats": (AddressError, lambda b: b.read_many([0.0, 1.0])),
    "many are bools": (AddressError, lambda b: b.read_many([True, False])),
    "many are ragged": (AddressError, lambda b: b.read_many([[1], [2, 3]])),
    "many are two-dimensional": (AddressError, lambda b: b.read_many(np.zeros((2, 2), np.int64))),
    "many is one": (AddressError, lambda b: b.read_many(3)),
    "unsigned and too large": (AddressError, lambda b: b.read_many(np.array([2**64 - 1], np.uint64))),
    "data too long": (BlockSizeError, lambda b: b.write(0, b"x" * 49)),
    "data too long in a batch": (BlockSizeError, lambda b: b.write_many([0, 1], [b"", b"x" * 49])),
    "data is a str": (KeyTypeError, lambda b: b.write(0, "x")),
    "too few data": (BlockSizeError, lambda b: b.write_many([0, 1], [b""])),
    "too much data": (BlockSizeError, lambda b: b.write_many([0], [b"", b""])),
    "rows of another size": (BlockSizeError, lambda b: b.write_many([0], np.zeros((1, 47), np.uint8))),
    "rows of another type": (BlockSizeError, lambda b: b.write_many([0], np.zeros((1, 48), np.int8))),
}


@pytest.mark.parametrize("durability", ["process", "none"])
@pytest.mark.parametrize("scheme", ["path", "linear", "ring"])
@pytest.mark.parametrize("name", RECORDS)
def test_records(name: str, scheme: str, durability: str) -> None:
    error, act = RECORDS[name]
    store, trace = traced(scheme=scheme, durability=durability)
    store.update(START)
    trace.clear()
    with pytest.raises(error) as caught:
        act(store)
    assert trace.events == []
    assert trace.state_commits == []
    assert "xxx" not in str(caught.value)
    check(store, START, by_access=True)


@pytest.mark.parametrize("scheme", ["path", "linear", "ring"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, scheme: str) -> None:
    error, act = BLOCKS[name]
    store, trace = traced(scheme=scheme, keyed=False)
    store.blocks.write_many(range(8), [b"%d" % i for i in range(8)])
    trace.clear()
    with pytest.raises(error):
        act(store.blocks)
    assert trace.events == []
    assert trace.state_commits == []
    assert [row.tobytes().rstrip(b"\0") for row in store.blocks.read_many(range(8))] == [b"%d" % i for i in range(8)]


def test_the_largest_that_fits() -> None:
    store = small()
    model = {b"k" * LIMIT: b"", b"": b"v" * LIMIT, b"k": b"v" * (LIMIT - 1)}
    for key, value in model.items():
        store[key] = value
    check(store, model, by_access=True)
    assert store.value_limit == LIMIT


def test_keys_of_a_large_record() -> None:
    store = small(block_size=70_000, capacity=2)
    store[b"k" * 0xFFFF] = b"v"
    assert store[b"k" * 0xFFFF] == b"v"
    with pytest.raises(KeyTooLargeError):
        store[b"k" * 0x10000]


@pytest.mark.parametrize("value", [0, -1, -(1 << 70), True, False, 1.0, "8", None, (1 << 31) + 1])
@pytest.mark.parametrize("name", ["capacity", "block_size", "blocks_per_value"])
def test_sizes(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=name):
        small(**{name: value})


#: Parameters of Ring, and what is said of them.
NO_NUMBERS: list[Any] = [0, -4, True, 4.0, "4", b"4", [4]]
NO_PLACES: list[Any] = ["nowhere", None, b"client", 1, [], True]
NO_CHOICES: list[Any] = ["yes", 2, 0.5, []]
RING: list[tuple[dict[str, Any], str]] = [
    *[({"Z": value}, "Z must be a positive integer") for value in NO_NUMBERS],
    *[({"Z": 4, letter: value}, f"{letter} must be a positive integer") for letter in "AS" for value in NO_NUMBERS],
    *[({"Z": value}, "Z must be an integer from 3 to 128") for value in (1, 2, 129, 1 << 70)],
    *[(some, "A and S need Z") for some in ({"A": 3}, {"S": 6}, {"A": 3, "S": 6})],
    ({"Z": 4, "A": 4}, "with Z=4 the stash is bounded for A of at most 3"),
    ({"Z": 8, "A": 9}, "with Z=8 the stash is bounded for A of at most 8"),
    ({"Z": 16, "A": 23}, "with Z=16 the stash is bounded for A of at most 20"),
    ({"Z": 4, "A": 1 << 70}, "at most 3"),
    ({"Z": 4, "A": 3, "S": 2}, "S must be at least A=3 and at most 1020"),
    ({"Z": 4, "S": 2}, "S must be at least A=3 and at most 1020"),
    ({"Z": 4, "S": 1021}, "S must be at least A=3 and at most 1020"),
    *[({"metadata": value}, 'metadata must be "client" or "server"') for value in NO_PLACES],
    *[({"xor": value}, "xor must be True, False or None") for value in NO_CHOICES],
]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"scheme": "square"}, "scheme"),
        ({"scheme": b"path"}, "scheme"),
        ({"scheme": PathParams(Z=0)}, "Z"),
        ({"scheme": PathParams(Z=65)}, "Z"),
        ({"scheme": PathParams(page_levels=0)}, "page_levels"),
        ({"scheme": PathParams(page_levels=9)}, "page_levels"),
        *[({"scheme": RingParams(**ring)}, words) for ring, words in RING],
        ({"cipher": "rot13"}, "cipher"),
        ({"cipher": None}, "cipher"),
        ({"durability": "maybe"}, "durability"),
        ({"durability": 3}, "durability"),
        ({"tree_top": -1}, "tree_top"),
        ({"tree_top": 1.5}, "tree_top"),
        ({"tree_top": True}, "tree_top"),
        ({"block_size": 7}, "record"),
        ({"block_size": 1, "blocks_per_value": 7}, "record"),
        ({"capacity": 1 << 31, "blocks_per_value": 2}, "capacity"),
        ({"keyed": False, "blocks_per_value": 2}, "blocks_per_value"),
        ({"keyed": False, "items": {}}, "items"),
        ({"key": None}, "key"),
        ({"passphrase": "too"}, "key"),
        ({"key": bytes(31)}, "32"),
        ({"key": bytes(33)}, "32"),
        ({"key": "0" * 32}, "32"),
        ({"key": None, "passphrase": ""}, "passphrase"),
        ({"key": None, "passphrase": b"bytes"}, "passphrase"),
    ],
)
def test_parameters(options: dict[str, Any], word: str) -> None:
    backend = MemoryBackend()
    with pytest.raises(ParameterError, match=word):
        small(backend, **options)
    assert not backend.regions()
    small(backend)  # it was let go


def test_all_problems_together() -> None:
    with pytest.raises(ParameterError) as caught:
        oram.create(
            "memory:", key=KEY, capacity=0, block_size=-1, scheme="square", cipher="rot13", durability="maybe",
            blocks_per_value=0, tree_top=-1,
        )  # fmt: skip
    words = ("capacity", "block_size", "scheme", "cipher", "durability", "blocks_per_value", "tree_top")
    assert all(word in str(caught.value) for word in words)


def test_all_problems_of_ring_together() -> None:
    with pytest.raises(ParameterError) as caught:
        small(scheme=RingParams(Z=0, A="3", S=-1, metadata="x", xor=5), capacity=0)  # type: ignore[arg-type]
    words = ("Z must", "A must", "S must", "metadata must", "xor must", "capacity")
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("apart", [False, True], ids=["joint", "apart"])
def test_xor_where_the_backend_cannot(tmp_path: Path, apart: bool) -> None:
    """Neither a region nor a header is left behind, and the place is free again."""
    backend = LMDBBackend(tmp_path / "slots", sync=False)
    options: dict[str, Any] = {"state": tmp_path / "state"} if apart else {}
    for _ in range(2):
        with pytest.raises(ParameterError, match="cannot XOR"):
            small(backend, scheme=RingParams(xor=True), **options)
        assert not backend.regions()
        with pytest.raises(oram.errors.OramError):
            oram.open(backend, key=KEY, **options)
    for xor in (None, False):
        with small(LMDBBackend(tmp_path / f"slots {xor}", sync=False), scheme=RingParams(xor=xor)) as store:
            store[b"a"] = b"1"
            check(store, {b"a": b"1"}, by_access=True)
    small(backend, **options).close()


def test_the_smallest_and_largest_ring_parameters() -> None:
    for params in (RingParams(Z=3, A=1, S=1), RingParams(Z=128, A=220, S=896), RingParams(Z=3)):
        store = small(scheme=params, block_size=48)
        store.update(START)
        check(store, START, by_access=True)


@pytest.mark.parametrize("scheme", [PathParams(Z=0, page_levels=99), LinearParams()])
def test_all_problems_of_a_scheme_too(scheme: PathParams | LinearParams) -> None:
    with pytest.raises(ParameterError) as caught:
        small(scheme=scheme, capacity=0, tree_top="x")
    assert all(word in str(caught.value) for word in ("capacity", "tree_top"))
    assert ("Z must" in str(caught.value)) == isinstance(scheme, PathParams)


@pytest.mark.parametrize(
    "where",
    [
        "", "memory", "memory:x", "lmdb:", "file:/x", "lmdb://host/x", "redis:host", "redis://", "redis://host/x", "redis://host?colour=red",
        "redis://user@host", "rediss://host?lease=0", "unix:socket", "unix://host/socket",
    ],
)  # fmt: skip
def test_urls(where: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        oram.create(where, key=KEY, capacity=8, block_size=48, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_bad_items_leave_no_store() -> None:
    backend = MemoryBackend()
    for items in ({b"a": "str"}, {b"a": b"x" * 100}, {b"%d" % i: b"" for i in range(9)}):
        with pytest.raises(OramError):
            small(backend, items=items)
        with pytest.raises(oram.errors.StoreNotFoundError):
            oram.open(backend, key=KEY)
    check(small(backend, items=START), START)


def bad_generator() -> Any:
    yield b"c", b"3"
    raise RuntimeError("no more")


@pytest.mark.parametrize("name", ["put_many", "update", "load"])
def test_an_iterable_that_fails(name: str) -> None:
    store, _ = traced()
    store.update(START)
    with pytest.raises(RuntimeError, match="no more"):
        getattr(store, name)(bad_generator())
    check(store, START, by_access=True)


def test_methods_of_keys_without_keys() -> None:
    store, trace = traced(keyed=False)
    for act in (
        lambda s: s[b"a"],
        lambda s: s.put(b"a", b"1"),
        lambda s: s.delete(b"a"),
        lambda s: b"a" in s,
        len,
        lambda s: s.popitem(),
        lambda s: s.put_many({b"a": b"1"}),
        lambda s: s.get_many([b"a"]),
        lambda s: s.delete_many([b"a"]),
        lambda s: list(s),
        lambda s: s.load({b"a": b"1"}),
    ):
        with pytest.raises(ParameterError, match="blocks"):
            act(store)
    assert trace.events == []


@pytest.mark.parametrize("url", ["redis://localhost:1", "rediss://localhost:1", "unix:///nowhere"])
def test_a_server_needs_a_place_for_the_client_state_before_it_is_asked(url: str) -> None:
    for call in (partial(oram.create, capacity=4, block_size=16), oram.open):
        with pytest.raises(ParameterError, match="state=PATH"):
            call(url, key=bytes(32))
