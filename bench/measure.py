"""Timing. Everything that is compared is interleaved, so that a noisy machine disturbs both sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import oram
from oram import kernels
from oram.provenance import provenance


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


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {name: str(value) for name, value in provenance().items()} | {
        "oram": oram.__version__,
        "kernels": kernels.active().name,
    }
