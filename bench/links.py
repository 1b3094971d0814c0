"""``python -m bench.links``: puts of 4 KiB with Path and Ring, to a local LMDB with fsync and over a round trip of 1 ms: Ring or Path?"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import numpy as np

import oram
from oram.backends import Backend, MemoryBackend
from oram.testing.remote import RemoteBackend

N, B, COUNT = 1 << 14, 4096, 400


def measure(scheme: str, where: str | Backend, place: Path, durability: str) -> list[float]:
    state = place / "state" if isinstance(where, Backend) else None
    with oram.create(
        where,
        key=bytes(32),
        capacity=N,
        block_size=B,
        keyed=False,
        scheme=scheme,
        state=state,
        durability=durability,
        tree_top=1 << 20,
    ) as store:
        times = []
        for _ in range(COUNT):
            start = time.perf_counter()
            store.blocks.write(random.randrange(N), b"x")
            times.append(time.perf_counter() - start)
    return times


for link in ("LMDB, sync", "1 ms, process"):
    for scheme in ("path", "ring"):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            if link.startswith("LMDB"):
                times = measure(scheme, f"lmdb:{place / 'store'}", place, "sync")
            else:
                times = measure(scheme, RemoteBackend(MemoryBackend(), delay=0.001), place, "process")
            p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
            print(f"{link}, {scheme}: mean {np.mean(times) * 1e3:.2f} ms, p50 {p50:.2f}, p99 {p99:.2f}")
