"""Stores whose storage goes bad."""

from __future__ import annotations

from typing import Any

import oram
from oram.backends import MemoryBackend
from oram.params import LinearParams, PathParams, RingParams
from oram.store import ObliviousStore
from oram.types import U8

KEY = bytes(range(32))
SCHEMES: dict[str, dict[str, Any]] = {
    "path": {"scheme": PathParams(page_levels=2), "tree_top": 0},
    "cached": {"scheme": PathParams(page_levels=1), "tree_top": 700},
    "linear": {"scheme": LinearParams()},
    "ring": {"scheme": RingParams(Z=4, A=3, S=3), "tree_top": 12000},
    "ring-server": {"scheme": RingParams(Z=4, A=3, S=3, metadata="server", xor=False), "tree_top": 12000},
}
MODEL = {b"k%d" % i: b"v%d" % i for i in range(30)}


def filled(backend: Any, scheme: str, /, **options: Any) -> ObliviousStore:
    """A store of 40 records over several pages, all of them written."""
    store = oram.create(
        backend, key=KEY, capacity=40, block_size=200, **{"durability": "process", **SCHEMES[scheme], **options}
    )
    for key, value in MODEL.items():
        store[key] = value
    store.rekey(key=KEY)  # so that every slot is there
    return store


def region_of(backend: MemoryBackend, kind: str = "slots") -> str:
    (name,) = (name for name in backend.regions() if name.startswith(kind + "."))
    return name


def rows(backend: MemoryBackend, kind: str = "slots") -> tuple[U8, U8]:
    """The memory itself."""
    slots = backend.buffer(region_of(backend, kind))
    return slots.data, slots.present
