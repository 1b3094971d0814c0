"""Oblivious storage: a key-value store whose server learns nothing from which records are touched.

>>> import oram
>>> store = oram.create("memory:", key=oram.generate_key(), capacity=1000, block_size=256)
>>> store[b"name"] = b"value"
>>> store[b"name"]
b'value'
>>> store.close()
"""

from __future__ import annotations

from oram import backends, errors
from oram.errors import OramError
from oram.keys import generate_key
from oram.params import CuckooParams, LinearParams, PathParams, RingParams
from oram.store import Blocks, ObliviousStore, Stats, create, info, open, restore

__version__ = "0.1.0"
__all__ = [
    "Blocks",
    "CuckooParams",
    "LinearParams",
    "ObliviousStore",
    "OramError",
    "PathParams",
    "RingParams",
    "Stats",
    "backends",
    "create",
    "errors",
    "generate_key",
    "info",
    "open",
    "restore",
]
