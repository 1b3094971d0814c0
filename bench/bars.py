"""The bars a release has to meet. Each function measures one of them beside its reference."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

import oram
from bench.measure import Row, best, median
from oram.backends.base import SlotWrite
from oram.benchmark.counting import seal_4096
from oram.kernels.native import floor
from oram.params import DEFAULT_TREE_TOP, PathGeometry, PathParams

KEY = bytes(32)
CIPHERS = ("aes-256-gcm", "aegis-256")


def filled(N: int, B: int, cipher: str, tree_top: int) -> oram.ObliviousStore:
    """A Path store in memory with every block written."""
    store = oram.create(
        "memory:", key=KEY, capacity=N, block_size=B, keyed=False, scheme="path", cipher=cipher, tree_top=tree_top
    )
    zeros = np.zeros((64, B), np.uint8)
    for first in range(0, N, 64):
        store.blocks.write_many(np.arange(first, first + 64), zeros)
    return store


def unions(g: PathGeometry, m: int, count: int) -> list[Any]:
    """Slots of ``count`` batches of m uniform paths."""
    leaves = np.random.default_rng(1).integers(0, g.leaves, (count, m))
    layers = list(enumerate(g.offsets[:-1]))
    return [
        np.concatenate([first + np.unique(row >> (g.L - g.root_level(j))) for j, first in layers]).astype(np.uint64)
        for row in leaves
    ]


def reads(quick: bool) -> Iterator[Row]:
    """``blocks.read`` against opening and sealing the same slots of the same memory, tree-top cache off."""
    N, count = (1 << 12, 500) if quick else (1 << 14, 2000)
    for cipher in CIPHERS:
        for B in (1024, 4096):
            store = filled(N, B, cipher, 0)
            g = PathGeometry.of(N, B, PathParams(), 0)
            touch, paths = floor(cipher, np.zeros((g.slots, g.slot_size), np.uint8)), unions(g, 1, count)
            ids, read = [random.randrange(N) for _ in range(count)], store.blocks.read
            a, b = best(
                lambda ids=ids, read=read: [read(i) for i in ids],
                lambda paths=paths, touch=touch: [touch(p) for p in paths],
            )
            yield Row(
                f"blocks.read, N={N}, B={B}, {cipher}",
                a / count * 1e6,
                b / count * 1e6,
                "us",
                a / b,
                "<= 1.5 x floor",
                a <= 1.5 * b,
            )
            store.close()


def batches(quick: bool) -> Iterator[Row]:
    """``blocks.read_many`` of 64 with defaults."""
    count = 50 if quick else 300
    speed = seal_4096("aes-256-gcm")
    for N, B, bar in ((1 << 20, 64, 6.0), (1 << 16, 4096, 85.0)):
        for cipher in CIPHERS:
            store = filled(N, B, cipher, DEFAULT_TREE_TOP)
            g = PathGeometry.of(N, B, PathParams(), DEFAULT_TREE_TOP)
            touch, paths = floor(cipher, np.zeros((g.slots, g.slot_size), np.uint8)), unions(g, 64, count)
            ids = [np.random.default_rng(i).integers(0, N, 64) for i in range(count)]
            many = store.blocks.read_many
            a, b = best(
                lambda ids=ids, many=many: [many(i) for i in ids],
                lambda paths=paths, touch=touch: [touch(p) for p in paths],
            )
            us, below = a / count / 64 * 1e6, b / count / 64 * 1e6
            barred = (B == 64 and cipher == "aegis-256") or (B == 4096 and cipher == "aes-256-gcm")
            limit = bar if B == 64 else bar * speed / 1.38
            text = f"<= {limit:.1f} us" + ("" if B == 64 else f" (85 x {speed:.2f}/1.38)") if barred else ""
            met = us <= limit if barred else None
            yield Row(
                f"blocks.read_many(64), N={N}, B={B}, {cipher}",
                us,
                below,
                "us/access",
                us / below,
                text,
                met,
                "reference: floor",
            )
            store.close()


def creation(quick: bool) -> Iterator[Row]:
    """``create`` of a large store, in a process of its own for its memory; and bulk load."""
    code = (
        "import oram,time;peak=lambda:int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]);"
        "a=peak();t=time.perf_counter();"
        "s=oram.create('memory:',key=bytes(32),capacity=1<<20,block_size=4096);"
        "print(time.perf_counter()-t,(peak()-a)/1024)"
    )
    seconds, megabytes = map(
        float, subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    yield Row("create, N=2^20, B=4096", seconds, 1, "s", seconds, "< 1 s", seconds < 1)
    yield Row(
        "create, N=2^20, B=4096, client memory", megabytes, 100, "MB", megabytes / 100, "< 100 MB", megabytes < 100
    )
    n = 100_000 if quick else 1_000_000
    items = [(b"%07d" % i, os.urandom(64)) for i in range(n)]
    for cipher in CIPHERS:
        start = time.perf_counter()
        store = oram.create("memory:", key=KEY, capacity=n, block_size=80, items=items, cipher=cipher)
        rate = n / (time.perf_counter() - start)
        store.close()
        yield Row(
            f"bulk load of {n} values of 64 bytes, {cipher}",
            rate,
            100_000,
            "records/s",
            rate / 100_000,
            ">= 100000 /s",
            rate >= 100_000,
        )


def disk(quick: bool) -> Iterator[Row]:
    """LMDB, durability="sync": acknowledged puts against plain synced LMDB on the same disk."""
    rounds, pick = 60 if quick else 300, random.Random(1)
    for B, N in ((64, 1 << 16), (1024, 1 << 16), (4096, 1 << 14)):
        place = Path(tempfile.mkdtemp(dir=os.environ.get("ORAM_BENCH_DIR")))
        try:
            size = B - 15
            items = [(b"%08d" % i, os.urandom(size)) for i in range(N // 2)]
            store = oram.create(f"lmdb:{place / 'oram'}", key=KEY, capacity=N, block_size=B, items=items)
            plain = lmdb.open(str(place / "plain"), map_size=1 << 32, sync=True, readahead=False)
            with plain.begin(write=True) as txn:
                for key, value in items:
                    txn.put(key, value)
            names = [key for key, _ in items]

            def ours(store: oram.ObliviousStore = store, names: list[bytes] = names, size: int = size) -> None:
                store[pick.choice(names)] = os.urandom(size)

            def theirs(plain: Any = plain, names: list[bytes] = names, size: int = size) -> None:
                with plain.begin(write=True) as txn:
                    txn.put(pick.choice(names), os.urandom(size))

            a, b = median(ours, theirs, rounds=rounds)
            yield Row(f'LMDB put, "sync", N={N}, B={B}', a * 1e6, b * 1e6, "us", a / b, "<= 3 x plain put", a <= 3 * b)

            # the floor of put_many's bytes: the same slots read, opened, sealed and written in one synced transaction, and nothing else
            g = store._shape.geometry
            assert isinstance(g, PathGeometry)
            with oram.backends.LMDBBackend(place / "floor") as slots:
                slots.allocate("slots", oram.backends.RegionShape(g.slots, g.slot_size))
                for first in range(0, g.slots, 256):
                    some = np.arange(first, min(first + 256, g.slots))
                    slots.write("slots", some, np.zeros((some.size, g.slot_size), np.uint8))
                paths = iter(unions(g, 64, rounds))

                def many(store: oram.ObliviousStore = store, names: list[bytes] = names, size: int = size) -> None:
                    store.put_many([(pick.choice(names), os.urandom(size)) for _ in range(64)])

                def many_plain(plain: Any = plain, names: list[bytes] = names, size: int = size) -> None:
                    with plain.begin(write=True) as txn:
                        for _ in range(64):
                            txn.put(pick.choice(names), os.urandom(size))

                touch = floor("aes-256-gcm", np.zeros((64 * g.layers, g.slot_size), np.uint8))

                def bytes_alone(
                    slots: oram.backends.LMDBBackend = slots, paths: Iterator[Any] = paths, touch: Any = touch
                ) -> None:
                    where = next(paths).astype(np.int64)
                    data = slots.read("slots", where).data
                    touch(np.arange(where.size, dtype=np.uint64))
                    slots.write_all([SlotWrite("slots", where, data)])

                a, b, c = median(many, many_plain, bytes_alone, rounds=rounds // 3)
            allowed = 2 * b + c
            yield Row(
                f'LMDB put_many(64), "sync", N={N}, B={B}', a * 1e6, allowed * 1e6, "us", a / allowed, "<= 2 x plain + floor of its bytes", a <= allowed,
                f"plain {b * 1e6:.0f} us, bytes {c * 1e6:.0f} us",
            )  # fmt: skip
            yield Row(
                f'LMDB put_many(64), "sync", N={N}, B={B}, against plain', a * 1e6, b * 1e6, "us", a / b, "", None
            )
            store.close()
            plain.close()
        finally:
            shutil.rmtree(place)


def stalls(quick: bool) -> Iterator[Row]:
    """Latency of puts at N=2^20 while the checkpoint goes round: with fsync off, so that only this library's work shows."""
    N, n = (1 << 16, 3000) if quick else (1 << 20, 30_000)
    place = Path(tempfile.mkdtemp(dir=os.environ.get("ORAM_BENCH_DIR")))
    try:
        items = ((b"%08d" % i, bytes(40)) for i in range(N // 2))
        with oram.create(
            f"lmdb:{place}", key=KEY, capacity=N, block_size=64, items=items, durability="process"
        ) as store:
            times = []
            for _ in range(n):
                key = b"%08d" % random.randrange(N // 2)
                start = time.perf_counter()
                store[key] = b"x"
                times.append(time.perf_counter() - start)
            p50, p99, p999 = (float(np.quantile(times, q)) * 1e6 for q in (0.5, 0.99, 0.999))
            full = store._engine.pieces.size
        note = f"p99 {p99:.0f} us, max {max(times) * 1e6:.0f} us; {full / 1e6:.0f} MB of client state"
        yield Row(
            f"put latency p99.9, N={N}, B=64, LMDB, no fsync", p999, p50, "us", p999 / p50, "reference: p50", None, note
        )
    finally:
        shutil.rmtree(place)


def pyoram(quick: bool) -> Iterator[Row]:
    """PyORAM 0.2.1 at N=2^16, B=1024, Z=4, RAM. ``ORAM_PYORAM`` names the python of the environment it is in (bench/README.md)."""
    python = os.environ.get("ORAM_PYORAM")
    if not python:
        yield Row(
            "PyORAM 0.2.1", 0, 0, "accesses/s", 0, ">= 10 x", None, "skipped: set ORAM_PYORAM, see bench/README.md"
        )
        return
    out = subprocess.run(
        [python, str(Path(__file__).with_name("peer_pyoram.py"))], check=True, capture_output=True, text=True
    ).stdout
    peer, N, count = float(out.split()[-1]), 1 << 16, 500 if quick else 3000
    ids = [random.randrange(N) for _ in range(count)]
    for cipher in CIPHERS:
        for tree_top, barred in ((DEFAULT_TREE_TOP, True), (0, False)):
            store = filled(N, 1024, cipher, tree_top)
            (a,) = best(lambda ids=ids, read=store.blocks.read: [read(i) for i in ids])
            name = f"blocks.read, N=2^16, B=1024, {cipher}, {'defaults' if tree_top else 'tree-top cache off'}, against PyORAM"
            rate, bar = count / a, ">= 10 x" if barred else ""
            yield Row(name, rate, peer, "accesses/s", rate / peer, bar, rate >= 10 * peer if barred else None)
            store.close()


BARS = {"reads": reads, "batches": batches, "creation": creation, "disk": disk, "stalls": stalls, "pyoram": pyoram}
