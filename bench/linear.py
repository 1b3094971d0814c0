"""``python -m bench.linear``: Linear against Path with defaults, single reads: where ``linear_is_cheaper`` comes from."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import oram
from bench.measure import best, median
from oram.params import linear_is_cheaper

KEY = bytes(32)


def main() -> None:
    place = Path(tempfile.mkdtemp())
    for B in (64, 1024, 4096):
        for N in (2, 4, 8, 16, 32, 64, 128, 256):
            works = []
            for scheme in ("linear", "path"):
                store = oram.create("memory:", key=KEY, capacity=N, block_size=B, keyed=False, scheme=scheme)
                for i in range(N):
                    store.blocks.write(i, b"x")
                works.append(lambda store=store, N=N: [store.blocks.read(random.randrange(N)) for _ in range(500)])
            a, b = best(*works, rounds=5)
            disk = []
            for scheme in ("linear", "path"):
                store = oram.create(
                    f"lmdb:{place / f'{scheme}{B}-{N}'}", key=KEY, capacity=N, block_size=B, keyed=False, scheme=scheme
                )
                disk.append(lambda store=store, N=N: store.blocks.write(random.randrange(N), b"x"))
            c, d = median(*disk, rounds=30)
            chosen = "linear" if linear_is_cheaper(N, B) else "path"
            memory = f"memory: linear {a / 500 * 1e6:7.2f} path {b / 500 * 1e6:7.2f} us"
            print(
                f"N={N:4} B={B:5}  {memory}   LMDB: linear {c * 1e6:6.0f} path {d * 1e6:6.0f} us   default: {chosen}",
                flush=True,
            )
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
