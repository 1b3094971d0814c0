"""Stores of unusual sizes and kinds."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import MemoryBackend
from oram.errors import CapacityError, ParameterError, WrongKeyError
from oram.params import LinearParams, PathParams, RingParams
from oram.schemes.path import PathORAM
from oram.testing.model import check, walk

from .places import KEY, SCHEMES, small

DURABILITIES = ["process", "none"]


def exercise(backend: MemoryBackend, durability: str, steps: int = 60, **options: Any) -> None:
    """Random operations on a store, with a reopening in the middle."""
    store = small(backend, durability=durability, **options)
    rng = random.Random(1)
    model: dict[bytes, bytes] = {}
    capacity, limit = store.capacity, min(store.value_limit, 60)
    for step in range(steps):
        if step % 20 == 19:
            store.close()
            store = oram.open(backend, key=KEY, durability=durability)
        key = b"%x" % rng.randrange(min(16, capacity + 1)) if limit else b""
        value = rng.randbytes(rng.randrange(limit)) if limit > 1 else b""
        match rng.randrange(4):
            case 0 | 1:
                if key in model or len(model) < capacity:
                    store[key] = model[key] = value
                else:
                    with pytest.raises(CapacityError):
                        store[key] = value
            case 2:
                assert store.pop(key, None) == model.pop(key, None)
            case 3:
                assert store.get(key) == model.get(key)
    check(store, model, by_access=True)
    store.close()


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(
    "scheme",
    ["path", "linear", PathParams(Z=1, page_levels=1), PathParams(Z=3, page_levels=8), "ring", "ring, metadata there"],
)
@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 7, 8, 9, 17, 33])
def test_capacities(capacity: int, scheme: Any, durability: str) -> None:
    exercise(MemoryBackend(), durability, capacity=capacity, scheme=scheme)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize(
    ("block_size", "per_value"), [(8, 1), (9, 1), (1, 8), (3, 7), (16, 7), (1, 100), (5000, 1), (700, 7)]
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_records_of_several_blocks(block_size: int, per_value: int, scheme: str, durability: str) -> None:
    exercise(
        MemoryBackend(),
        durability,
        steps=40,
        block_size=block_size,
        blocks_per_value=per_value,
        scheme=scheme,
        capacity=5,
    )


@pytest.mark.parametrize("durability", DURABILITIES)
def test_more_blocks_a_record_than_spare_slots_in_the_pool(durability: str) -> None:
    exercise(MemoryBackend(), durability, steps=8, block_size=2048, blocks_per_value=512, capacity=2, tree_top=0)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("tree_top", [0, 1, 200, 1000, 5000, 1 << 40])
@pytest.mark.parametrize("page_levels", [1, 2, 3, None])
def test_tree_tops(tree_top: int, page_levels: int | None, durability: str) -> None:
    scheme = PathParams(page_levels=page_levels)
    exercise(MemoryBackend(), durability, tree_top=tree_top, capacity=50, scheme=scheme)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("tree_top", [0, 200, 1000, 5000, 1 << 40])
@pytest.mark.parametrize("metadata", ["client", "server"])
def test_tree_tops_of_ring(tree_top: int, metadata: Any, durability: str) -> None:
    scheme = RingParams(Z=4, metadata=metadata)
    exercise(MemoryBackend(), durability, tree_top=tree_top, capacity=50, scheme=scheme)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("xor", [None, False])
@pytest.mark.parametrize(("Z", "A", "S"), [(3, 1, 1), (4, 3, 3), (8, 8, 13), (16, 20, 29), (32, 46, 60), (128, 1, 300)])
def test_parameters_of_ring(Z: int, A: int, S: int, xor: bool | None, durability: str) -> None:
    exercise(MemoryBackend(), durability, scheme=RingParams(Z=Z, A=A, S=S, xor=xor), capacity=20, tree_top=0)


def test_a_huge_tree_top_leaves_one_page_a_path() -> None:
    store = small(capacity=100, tree_top=1 << 50)
    assert isinstance(store._engine.scheme, PathORAM)
    assert store._engine.scheme.geometry.layers == 1


@pytest.mark.parametrize("scheme", ["path", "ring", "ring, metadata there", "cuckoo", "cuckoo, no index"])
@pytest.mark.parametrize("cipher", ["aes-256-gcm", "aegis-256"])
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_kernels_read_each_other(cipher: str, kernels: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cipher == "aegis-256":
        pytest.importorskip("pyaegis")
    backend, model = MemoryBackend(), {}
    names = [kernels, "native" if kernels == "reference" else "reference"]
    monkeypatch.setenv("ORAM_KERNELS", names[0])
    store = small(backend, cipher=cipher, scheme=scheme)
    for i in range(150 if "cuckoo" in scheme else 20):  # so that it opens inside its rebuilds
        store[b"%d" % (i % 8)] = model[b"%d" % (i % 8)] = b"%d" % i
        if i % 7 == 6:
            names.reverse()
            store.close()
            monkeypatch.setenv("ORAM_KERNELS", names[0])
            store = oram.open(backend, key=KEY, durability="process")
    check(store, model, by_access=True)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("scheme", [*SCHEMES, PathParams(Z=1)])
@pytest.mark.parametrize(("capacity", "size"), [(1, 1), (2, 1), (3, 5), (8, 48), (70, 1), (33, 4096)])
def test_blocks_only(capacity: int, size: int, scheme: Any, durability: str) -> None:
    backend = MemoryBackend()
    store = small(backend, keyed=False, capacity=capacity, block_size=size, scheme=scheme, durability=durability)
    model = np.zeros((capacity, size), np.uint8)
    rng = np.random.default_rng(3)
    assert len(store.blocks) == store.capacity == capacity
    for step in range(30):
        if step == 15:
            store.close()
            store = oram.open(backend, key=KEY, durability=durability)
        addresses = rng.integers(0, capacity, rng.integers(0, 6))
        data = rng.integers(0, 256, (addresses.size, size), dtype=np.uint8)
        store.blocks.write_many(addresses, data)
        for address, row in zip(addresses, data, strict=True):
            model[address] = row
        at = int(rng.integers(capacity))
        assert store.blocks.read(at) == model[at].tobytes()
        store.blocks.write(at, b"")
        model[at] = 0
    walk(store)
    assert np.array_equal(store.blocks.read_many(range(capacity)), model)
    assert np.array_equal(store.blocks.read_many([0, 0]), model[[0, 0]])


def test_blocks_in_more_than_a_batch() -> None:
    store = small(keyed=False, capacity=3000, block_size=1)
    data = np.arange(3000, dtype=np.uint64).astype(np.uint8).reshape(-1, 1)
    store.blocks.write_many(np.arange(3000), data)
    assert np.array_equal(store.blocks.read_many(np.arange(3000)), data)
    with pytest.raises(ParameterError):
        len(store)


def test_blocks_of_a_keyed_store_lie_beside_its_records() -> None:
    store = small()
    store[b"a"] = b"1"
    store.blocks.write(7, b"block")
    assert store.blocks.read(7) == b"block".ljust(48, b"\0")
    assert store[b"a"] == b"1"


def test_passphrases() -> None:
    backend = MemoryBackend()
    with oram.create(backend, passphrase="pa\u00dfphrase \U0001f511", capacity=8, block_size=48) as store:
        store[b"a"] = b"1"
    kdf = oram.info(backend)["kdf"]
    assert (kdf["name"], kdf["memory_kib"], kdf["iterations"], kdf["lanes"]) == ("argon2id", 65536, 3, 4)
    with pytest.raises(WrongKeyError):
        oram.open(backend, passphrase="passphrase")
    with oram.open(backend, passphrase="pa\u00dfphrase \U0001f511") as store:
        assert store[b"a"] == b"1"
        store.rekey(key=KEY)
    with pytest.raises(WrongKeyError):
        oram.open(backend, passphrase="pa\u00dfphrase \U0001f511")
    with oram.open(backend, key=KEY) as store:
        assert store[b"a"] == b"1"
        store.rekey(passphrase="new")
    with oram.open(backend, passphrase="new") as store:
        check(store, {b"a": b"1"})


def test_the_scheme_is_chosen() -> None:
    assert small(scheme=None, capacity=8).info()["scheme"] == "linear"
    assert small(scheme=None, capacity=100_000).info()["scheme"] == "path"


def test_creating_is_instant_and_open_is_too() -> None:
    backend = MemoryBackend()
    store = small(backend, capacity=1 << 22, keyed=False, block_size=4096)
    store.blocks.write(1 << 21, b"x")
    store.close()
    with oram.open(backend, key=KEY) as store:
        assert store.blocks.read(1 << 21)[:1] == b"x"


@pytest.mark.parametrize("per_value", [1, 3])
@pytest.mark.parametrize(
    "scheme",
    [PathParams(Z=1), PathParams(page_levels=1), LinearParams(), "ring", "ring, metadata there"],
    ids=["Z=1", "cached", "linear", "ring", "ring, metadata there"],
)
@pytest.mark.parametrize("tree_top", [0, 1 << 20])
def test_bulk_loaded_stores_survive(scheme: Any, tree_top: int, per_value: int) -> None:
    """Most of all what did not fit into the tree."""
    backend = MemoryBackend()
    items = {b"%d" % i: os.urandom(20) for i in range(60)}
    options = {"capacity": 64, "scheme": scheme, "tree_top": tree_top, "blocks_per_value": per_value, "block_size": 300}
    with small(backend, items=items, **options) as store:
        check(store, items)
        for key in list(items)[:10]:
            assert store[key] == items[key]
    with oram.open(backend, key=KEY) as store:
        check(store, items, by_access=True)
        store.load({b"%d" % i: b"new" for i in range(50, 64)})
        items.update({b"%d" % i: b"new" for i in range(50, 64)})
        check(store, items)
    with oram.open(backend, key=KEY) as store:
        store.rekey(key=KEY)
    with oram.open(backend, key=KEY) as store:
        check(store, items, by_access=True)


@pytest.mark.parametrize(
    ("scheme", "held"),
    [
        (PathParams(Z=2, page_levels=1), 50),
        (RingParams(Z=4, A=3, S=4), 50),
        (RingParams(Z=4, A=3, S=4, metadata="server"), 50),
    ],
    ids=["path", "ring", "ring, metadata there"],
)
def test_many_openings_with_a_few_accesses_each(scheme: Any, held: int) -> None:
    """A checkpoint that is never whole in one life."""
    backend = MemoryBackend()
    rng = random.Random(5)
    model = {b"%d" % i: b"%d" % i for i in range(200)}
    options = {"capacity": 256, "block_size": 200, "tree_top": 1 << 16}
    with small(backend, scheme=scheme, **options) as store:
        for key, value in model.items():
            store[key] = value
        assert store._engine.scheme.state.used > held  # type: ignore[attr-defined]
    for _ in range(60):
        with oram.open(backend, key=KEY, durability="process") as store:
            for _ in range(rng.randrange(6)):
                key = b"%d" % rng.randrange(200)
                store[key] = model[key] = rng.randbytes(5)
    with oram.open(backend, key=KEY) as store:
        check(store, model, by_access=True)
