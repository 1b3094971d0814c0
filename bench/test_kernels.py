"""Micro-benchmarks for ``pytest --benchmark-only bench``: the kernels and the store, both kernel sets, no assertions on time."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import oram

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
