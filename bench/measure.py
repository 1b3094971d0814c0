"""Timing. Everything that is compared is interleaved, so that a noisy machine disturbs both sides alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import oram
from oram import kernels
from oram.kernels.native import floor


@dataclass(frozen=True, slots=True)
class Row:
    """One bar: what was measured, what it is compared with, and the bar. ``met`` is None where there is no bar."""

    name: str
    measured: float
    reference: float
    unit: str
    ratio: float
    bar: str
    met: bool | None
    note: str = ""


def best(*works: Callable[[], object], rounds: int = 7) -> list[float]:
    """Seconds of the best of ``rounds`` runs of each work, the works taking turns."""
    times = [float("inf")] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            times[i] = min(times[i], time.perf_counter() - start)
    return times


def median(*works: Callable[[], object], rounds: int = 150) -> list[float]:
    """Median seconds of each work, the works taking turns. For what waits for the disk."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for i, work in enumerate(works):
            start = time.perf_counter()
            work()
            times[i].append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


def seal_4096(cipher: str) -> float:
    """Microseconds in which this machine seals and opens 4096 bytes, halved: what figures from elsewhere are scaled by."""
    run = floor(cipher, np.zeros((64, 4096 + 16), np.uint8))
    slots = np.arange(64, dtype=np.uint64)
    return best(lambda: run(slots), rounds=60)[0] / 128 * 1e6


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "oram": oram.__version__,
        "kernels": kernels.active().name,
    }
