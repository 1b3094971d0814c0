"""The whole store against a dict, by a stateful machine, over schemes, places, ciphers, kernels and durabilities."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from oram.params import CuckooParams, LinearParams, PathParams, RingParams
from oram.testing.machine import Config, machine

APART = {"apart": True}
UNSYNCED = {"apart": True, "lossy": True}
TORN = {"apart": True, "atomic": False}
REMOTE = {"apart": True, "remote": True}
REMOTE_WORST = {"apart": True, "remote": True, "atomic": False, "lossy": True, "part": 4}
WORST = {"apart": True, "atomic": False, "reverse": True, "lossy": True}

RING = RingParams(Z=4, A=3, S=3)
BUSY = RingParams(Z=3, A=1, S=1, xor=False)
SERVER = RingParams(Z=4, A=2, S=3, metadata="server")

CONFIGS: dict[str, Config] = {
    "path": Config(),
    "path, reference": Config(kernels="reference", capacity=3),
    "path, small pages": Config(PathParams(page_levels=1), place=APART),
    "path, all cached": Config(PathParams(page_levels=1), tree_top=1 << 20, block_size=300),
    "path, partly cached": Config(PathParams(page_levels=1), tree_top=500, place=WORST),
    "path, large stash": Config(PathParams(Z=1), place=UNSYNCED),
    "path, large stash, torn": Config(PathParams(Z=1), tree_top=100, place=TORN),
    "path, records of blocks": Config(PathParams(page_levels=2), blocks_per_value=3, block_size=11, place=APART),
    "path, reference, torn": Config(PathParams(Z=2), kernels="reference", place=TORN, capacity=3),
    "path, aegis": Config(cipher="aegis-256"),
    "path, aegis, reference": Config(cipher="aegis-256", kernels="reference", place=WORST, capacity=3),
    "path, process": Config(durability="process", place=APART),
    "path, none": Config(durability="none"),
    "path, none, apart": Config(PathParams(Z=1), durability="none", place=APART),
    "path, LMDB": Config(place="lmdb", durability="process"),
    "path, remote": Config(PathParams(Z=1), place=REMOTE),
    "path, replicated": Config(PathParams(Z=1), place="replicated"),
    "path, replicated, process": Config(PathParams(page_levels=1), place="replicated", durability="process"),
    "path, remote, torn": Config(PathParams(page_levels=1), place=REMOTE_WORST),
    "ring": Config(RING),
    "ring, reference": Config(RING, kernels="reference", place=APART, capacity=3),
    "ring, partly cached": Config(BUSY, tree_top=300, place={**WORST, "part": 4}),
    "ring, all cached": Config(RING, tree_top=1 << 20, place=UNSYNCED),
    "ring, aegis": Config(RING, cipher="aegis-256", place=APART),
    "ring, none": Config(RING, durability="none"),
    "ring, LMDB": Config(RING, place="lmdb", durability="process"),
    "ring, records of blocks": Config(RING, blocks_per_value=3, block_size=11, place=APART),
    "ring, remote": Config(RING, place=REMOTE),
    "ring, replicated": Config(RING, place="replicated"),
    "ring, replicated, metadata there": Config(SERVER, place="replicated", durability="process"),
    "ring, remote, torn": Config(BUSY, tree_top=300, place=REMOTE_WORST),
    "ring, metadata there": Config(SERVER),
    "ring, metadata there, reference": Config(SERVER, kernels="reference", place=APART, capacity=3),
    "ring, metadata there, torn": Config(SERVER, tree_top=200, place={**WORST, "part": 4}),
    "ring, metadata there, none": Config(SERVER, durability="none"),
    "ring, metadata there, remote": Config(SERVER, place=REMOTE_WORST),
    "cuckoo": Config(CuckooParams(), tree_top=0),
    "cuckoo, torn": Config(CuckooParams(eps=0.3), tree_top=0, place=WORST),
    "cuckoo, amortized": Config(CuckooParams(rebuild="amortized"), place=APART),
    "cuckoo, records of blocks": Config(CuckooParams(), blocks_per_value=3, block_size=11, place=UNSYNCED),
    "cuckoo, reference, aegis": Config(CuckooParams(), kernels="reference", cipher="aegis-256"),
    "cuckoo, remote": Config(CuckooParams(), tree_top=0, place=REMOTE),
    "cuckoo, remote, torn": Config(CuckooParams(c=8), place=REMOTE_WORST),
    "cuckoo, none": Config(CuckooParams(), durability="none"),
    "cuckoo, LMDB": Config(CuckooParams(), place="lmdb", durability="process"),
    "cuckoo, no index": Config(CuckooParams(index="none"), tree_top=0),
    "cuckoo, no index, torn": Config(CuckooParams(c=8, index="none"), place=WORST),
    "cuckoo, no index, reference, amortized": Config(
        CuckooParams(rebuild="amortized", index="none"), kernels="reference", place=APART
    ),
    "cuckoo, no index, remote, torn": Config(CuckooParams(c=8, index="none"), place=REMOTE_WORST, blocks_per_value=2),
    "cuckoo, no index, none": Config(CuckooParams(index="none"), durability="none"),
    "linear": Config(LinearParams()),
    "linear, reference": Config(LinearParams(), kernels="reference", place=APART),
    "linear, records of blocks": Config(LinearParams(), blocks_per_value=2, place=WORST),
    "linear, none": Config(LinearParams(), durability="none"),
    "linear, LMDB": Config(LinearParams(), place="lmdb", durability="process", cipher="aegis-256"),
    "shards of path, several backends": Config(PathParams(page_levels=1), tree_top=900, place="sharded", shards=3),
    "shards of path, torn": Config(PathParams(Z=1), place={**WORST, "shards": 2}, shards=2),
    "shards of path, none": Config(PathParams(page_levels=1), durability="none", shards=2),
    "shards of ring, reference": Config(RING, kernels="reference", place="sharded", capacity=3, shards=3),
    "shards of ring, remote": Config(RING, place={**REMOTE, "shards": 3}, blocks_per_value=2, block_size=20, shards=3),
    "shards of ring, metadata there": Config(SERVER, place={**REMOTE, "lossy": True, "shards": 2}, shards=2),
    "shards of cuckoo": Config(CuckooParams(), place="sharded", shards=2),
    "shards of cuckoo, no index": Config(CuckooParams(index="none"), place=REMOTE | {"shards": 2}, shards=2),
    "shards of linear": Config(LinearParams(), place="sharded", shards=2),
    "blocks, shards": Config(BUSY, keyed=False, place={**REMOTE, "shards": 2}, shards=2),
    "blocks": Config(keyed=False),
    "blocks, large stash": Config(PathParams(Z=1), keyed=False, place=WORST),
    "blocks, ring": Config(BUSY, keyed=False, place=REMOTE),
    "blocks, ring, metadata there": Config(SERVER, keyed=False),
    "blocks, cuckoo": Config(CuckooParams(), keyed=False, place=TORN),
    "blocks, cuckoo, no index": Config(CuckooParams(index="none"), keyed=False, place=TORN),
    "blocks, linear": Config(LinearParams(), keyed=False, place=APART),
    "blocks, none": Config(PathParams(page_levels=1), tree_top=500, keyed=False, durability="none"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_store(name: str) -> None:
    config = CONFIGS[name]
    if config.cipher == "aegis-256" and importlib.util.find_spec("pyaegis") is None:
        pytest.skip("pyaegis is not installed")
    slow = config.kernels == "reference" or config.place == "lmdb" or isinstance(config.scheme, RingParams)
    options: dict[str, Any] = {"max_examples": 6 if slow else 12, "stateful_step_count": 25}
    run_state_machine_as_test(machine(config), settings=settings(**options))
