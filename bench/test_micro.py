"""Micro-benchmarks for ``pytest --benchmark-only bench``: kernels, store, schemes and backends, no assertions on time."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import oram
from oram.backends import Backend, LMDBBackend, MemoryBackend, RedisBackend, RegionShape, SlotRead, SlotWrite
from oram.testing.servers import redis_server

CIPHERS = ("aes-256-gcm", "aegis-256")


def store(kernels: str, monkeypatch: pytest.MonkeyPatch, **parameters: object) -> oram.ObliviousStore:
    monkeypatch.setenv("ORAM_KERNELS", kernels)
    return oram.create("memory:", key=bytes(32), capacity=1 << 12, **parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("block_size", [64, 1024, 4096])
def test_block_read(
    benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, kernels: str, cipher: str, block_size: int
) -> None:
    with store(kernels, monkeypatch, block_size=block_size, keyed=False, cipher=cipher, tree_top=0) as s:
        s.blocks.write(7, b"x")
        benchmark(s.blocks.read, 7)


@pytest.mark.parametrize("m", [1, 8, 64, 512])
def test_batch(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    with store("native", monkeypatch, block_size=256, keyed=False, tree_top=0) as s:
        ids = np.random.default_rng(1).integers(0, 1 << 12, m)
        benchmark(s.blocks.read_many, ids)


@pytest.mark.parametrize("operation", ["hit", "miss", "put", "delete"])
def test_keyed(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    with store("native", monkeypatch, block_size=256) as s:
        s[b"key"] = b"value"
        work = {
            "hit": lambda: s.get(b"key"),
            "miss": lambda: s.get(b"none"),
            "put": lambda: s.put(b"key", b"value"),
            "delete": lambda: s.pop(b"none", None),
        }[operation]
        benchmark(work)


# Schemes and backends


@pytest.mark.parametrize("m", [1, 64])
@pytest.mark.parametrize("scheme", ["path", "ring", "cuckoo", "linear"])
def test_scheme(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, scheme: str, m: int) -> None:
    with store("native", monkeypatch, block_size=256, keyed=False, scheme=scheme) as s:
        ids = np.random.default_rng(1).integers(0, 1 << 12, m)
        benchmark(s.blocks.read_many, ids)


@pytest.mark.parametrize("backend", ["memory", "lmdb", "redis"])
def test_backend(benchmark: BenchmarkFixture, tmp_path: Path, backend: str) -> None:
    """A path of 13 slots of 4 KiB, read and written back in one round trip."""
    shape, slots = RegionShape(1 << 13, 4096), np.array([(1 << k) - 1 for k in range(13)])
    data = np.zeros((slots.size, 4096), np.uint8)
    with ExitStack() as stack:
        if backend == "redis":
            pytest.importorskip("redis")
            server = stack.enter_context(redis_server(tmp_path, {"appendonly": "no"}))
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            at: Backend = RedisBackend(server.url("bench"))
        else:
            at = MemoryBackend() if backend == "memory" else LMDBBackend(tmp_path / "lmdb", sync=False)
        stack.callback(at.close)
        at.allocate("tree", shape)
        at.write("tree", slots, data)
        benchmark(at.exchange, (SlotWrite("tree", slots, data),), SlotRead("tree", slots))
