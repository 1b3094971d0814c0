"""``python -m bench.pages``: cost of an access by page height, in memory and on disk: where SlotCost in oram/params/common.py comes from.

Compare the best height measured with the one ``PathGeometry.of`` picks (marked).
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np

import oram
from bench.measure import best, median
from oram.params import DEFAULT_TREE_TOP, IN_MEMORY, ON_DISK, PathGeometry, PathParams

KEY = bytes(32)


def in_memory(N: int, B: int, cipher: str, tree_top: int) -> None:
    picked = PathGeometry.of(N, B, PathParams(), tree_top, IN_MEMORY).h
    works, labels = [], []
    for h in (1, 2, 3, 4):
        params = PathParams(page_levels=h)
        store = oram.create(
            "memory:", key=KEY, capacity=N, block_size=B, keyed=False, scheme=params, cipher=cipher, tree_top=tree_top
        )
        for first in range(0, N, 64):
            store.blocks.write_many(np.arange(first, first + 64), np.zeros((64, B), np.uint8))
        ids = [np.random.default_rng(i).integers(0, N, 64) for i in range(60)]
        works.append(lambda store=store, ids=ids: [store.blocks.read_many(i) for i in ids])
        labels.append(f"h={h}{'*' if h == picked else ''}")
    times = best(*works, rounds=5)
    print(
        f"memory N={N} B={B} {cipher} tree_top={tree_top}:",
        *(f"{a} {t / 60 / 64 * 1e6:.2f} us" for a, t in zip(labels, times, strict=True)),
        flush=True,
    )


def on_disk(N: int, B: int) -> None:
    picked = PathGeometry.of(N, B, PathParams(), DEFAULT_TREE_TOP, ON_DISK).h
    place = Path(tempfile.mkdtemp())
    works, labels, many = [], [], []
    for h in (1, 2, 3, 4):
        store = oram.create(
            f"lmdb:{place / str(h)}", key=KEY, capacity=N, block_size=B, keyed=False, scheme=PathParams(page_levels=h)
        )
        for first in range(0, N, 1024):
            store.blocks.write_many(np.arange(first, first + 1024), np.zeros((1024, B), np.uint8))
        works.append(lambda store=store: store.blocks.write(random.randrange(N), b"x"))
        many.append(
            lambda store=store: store.blocks.write_many(
                np.random.default_rng().integers(0, N, 64), np.zeros((64, B), np.uint8)
            )
        )
        labels.append(f"h={h}{'*' if h == picked else ''}")
    for name, group, rounds in (("write", works, 60), ("write_many(64)", many, 20)):
        times = median(*group, rounds=rounds)
        print(
            f"LMDB N={N} B={B} {name}:",
            *(f"{a} {t * 1e6:.0f} us" for a, t in zip(labels, times, strict=True)),
            flush=True,
        )
    shutil.rmtree(place)


if __name__ == "__main__":
    for cipher in ("aes-256-gcm", "aegis-256"):
        for B in (16, 64, 256, 1024):
            in_memory(1 << 16, B, cipher, 1 << 20)
    for B in (64, 1024, 4096):
        on_disk(1 << 14, B)
