"""Stores to be crashed: a few kinds of place and of scheme, each built once and copied."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import oram
from oram.backends import Backend
from oram.params import CuckooParams, LinearParams, PathParams, RingParams, SchemeParams
from oram.store import ObliviousStore
from oram.testing.faults import FaultBackend, Storage
from oram.testing.model import check, walk

PLACES: dict[str, dict[str, Any]] = {
    "joint": {},
    "apart": {"apart": True},
    "unsynced": {"apart": True, "lossy": True},
    "torn": {"apart": True, "atomic": False},
    "torn-reverse-unsynced": {"apart": True, "atomic": False, "reverse": True, "lossy": True},
    "remote": {"apart": True, "remote": True},
    "remote-torn-unsynced": {"apart": True, "remote": True, "atomic": False, "lossy": True},
}
#: Ring writes many slots at a time. They are torn here and there, also within a bucket.
IN_PARTS: dict[str, dict[str, Any]] = {
    "torn-in-parts": {**PLACES["torn-reverse-unsynced"], "part": 7},
    "remote-torn-in-parts": {**PLACES["remote-torn-unsynced"], "part": 7},
}

#: A write that reaches one shard after the other; a tear within a shard's part besides.
SHARDED: dict[str, dict[str, Any]] = {
    "shard by shard": {"apart": True, "shards": 2},
    "last shard first": {"apart": True, "shards": 2, "reverse": True, "lossy": True},
    "remote shards": {"apart": True, "shards": 3, "remote": True},
    "remote shards, last first": {"apart": True, "shards": 2, "remote": True, "reverse": True, "lossy": True},
    "torn shards": {"apart": True, "shards": 2, "atomic": False, "part": 5},
    "shards in one": {"apart": True},
}

#: scheme, tree_top. Z=1 has a large stash, so that the pool is always in use. Two or three levels of Ring are at the server. With A=1 every access
#: evicts; with A=3 single ones after these beginnings do not, and with S=A early reshuffles are frequent.
SCHEMES: dict[str, tuple[SchemeParams, int]] = {
    "path": (PathParams(page_levels=2), 0),
    "cached": (PathParams(page_levels=1), 1500),
    "stash": (PathParams(Z=1), 0),
    "cuckoo": (CuckooParams(), 0),
    "cuckoo-none": (CuckooParams(index="none"), 0),
    "linear": (LinearParams(), 0),
    "ring": (RingParams(Z=4, A=3, S=3, xor=False), 480),
    "ring-evicts": (RingParams(Z=3, A=1, S=2), 1800),
    "ring-server": (RingParams(Z=3, A=1, S=2, metadata="server"), 1800),
}
RINGS = [name for name in SCHEMES if name.startswith("ring")]

KEY = bytes(range(32))
Content = dict[Any, bytes]


@dataclass
class Base:
    """Storage with a store in it, at rest, and what it holds."""

    storage: Storage
    content: Content
    key: bytes = KEY


def open_store(backend: Backend, key: bytes = KEY) -> ObliviousStore:
    return oram.open(backend, key=key, durability="sync")


def _at(place: str) -> tuple[Storage, int]:
    """A place, and how many shards a store there has."""
    options = {**PLACES, **IN_PARTS, **SHARDED}[place]
    return Storage(**options), int(options.get("shards", 2 if place in SHARDED else 1))


@cache
def keyed(place: str, scheme: str, per_value: int = 1) -> Base:
    params, top = SCHEMES[scheme]
    (storage, shards), model = _at(place), {}
    store = oram.create(
        storage.connect(), key=KEY, capacity=16, block_size=40, scheme=params, tree_top=top,
        blocks_per_value=per_value, durability="sync", shards=shards,
    )  # fmt: skip
    random = np.random.default_rng(7)
    for i in range(80):
        key = b"k%d" % random.integers(12)
        model[key] = b"v%d" % i
        store[key] = model[key]
    for key in (b"k3", b"k4"):
        model[key] = store.setdefault(key, b"there")
    for key in (b"k0", b"k11"):
        model.pop(key, None)
        store.pop(key, None)
    check(store, model)
    return Base(storage, model)


@cache
def blocks(place: str, scheme: str) -> Base:
    params, top = SCHEMES[scheme]
    (storage, shards), model = _at(place), {}
    store = oram.create(
        storage.connect(), key=KEY, capacity=16, block_size=40, scheme=params, tree_top=top, keyed=False,
        durability="sync", shards=shards,
    )  # fmt: skip
    for i in range(40):
        model[i * 5 % 16] = (b"b%d" % i).ljust(40, b"\0")
        store.blocks.write(i * 5 % 16, b"b%d" % i)
    return Base(storage, model)


def content(store: ObliviousStore) -> Content:
    """What a store holds, by a scan. Its insides are checked on the way."""
    if store._engine.directory is not None:
        found: Content = dict(store.items())
        check(store, found)
        return found
    walk(store)
    return {
        address: block.tobytes()
        for addresses, rows in store._engine.scan()
        for address, block in zip(addresses.tolist(), rows, strict=True)
        if block.any()
    }


def fresh_key() -> bytes:
    return os.urandom(32)


Act = Callable[[ObliviousStore], object]
Change = Callable[[Content], object]
Life = FaultBackend
