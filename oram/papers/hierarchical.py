"""The hierarchical scheme over cuckoo hash tables: its amortised cost, from its schedule and counted at a real store."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np

from oram.papers.counting import moved, traced
from oram.papers.row import Finding, Kind, Rows
from oram.papers.run import Run
from oram.params import BinnedGeometry, CuckooGeometry, CuckooParams, PathGeometry, PathParams
from oram.params.cuckoo import IN_HAND, Index, Rebuild
from oram.schemes.binned import BinnedORAM
from oram.schemes.cuckoo import CuckooORAM

__all__ = ["constants", "schedule", "study"]

NAME = "hierarchical"
CONSTANTS = "docs/schemes/cuckoo.md, constants"
#: Rebuilds, and whether there is an index.
KINDS: tuple[tuple[Rebuild, Index], ...] = (("deamortized", "client"), ("amortized", "client"), ("deamortized", "none"))
#: Of another hierarchy with no state for each block: no number that the paper prints, and with other rooms, so that nothing is judged by it.
FUTORAMA = "FutORAMa's program in its mode counter_only, 16-byte blocks: 106, the first build included (github.com/cryptobiu/FutORAMa)"
SCHEDULE = "docs/schemes/cuckoo.md, schedule"


@cache
def schedule(g: CuckooGeometry) -> tuple[float, float]:
    """Slots that an access reads in the tables alive, and moves for rebuilds, on average over an epoch of the bottom: exact."""
    period = g.c << g.L
    step = max(1, g.c // 4) if g.rebuild == "deamortized" else 1  # tables come and go at quarters of a flush
    clocks = range(2 * period, 3 * period, step)
    alive = sum(len(g.alive(clock, built=True)) for clock in clocks) / len(clocks)
    rebuilds = sum(g.moved(level) / (g.c << min(level + 1, g.L)) for level in range(g.L + 1))
    return 2 * alive, rebuilds


def constants(g: CuckooGeometry) -> tuple[float, float]:
    """The same by the rounded constants for eps = 0.1: 2.2 and 4.0 slots for each small and large level, 6.6 or 10.1 for the bottom."""
    tables = 1 + g.L / 2 + g.L * (g.L + 1) / 16
    small = sum(shape.n < IN_HAND for shape in g.levels[:-1])
    return 2 * tables, 2.2 * small + 4.0 * (g.L - small) + (10.1 if g.N >= IN_HAND else 6.6)


def study(run: Run) -> Finding:
    """All of it."""
    rows = Rows(NAME)
    counted = _counted(rows, run)
    curve = []
    for bits in range(8, 21, 2):
        N = 1 << bits
        g = CuckooGeometry.of(N, 8, CuckooParams(), 1 << 40)
        probes, rebuilds = schedule(g)
        curve.append([N, g.c, g.L, probes, rebuilds])
        if bits in (12, 16, 20):
            by_probes, by_rebuilds = constants(g)
            what = f"N=2^{bits}, c={g.c}"
            rows.near("schedule", f"{what}: probes", probes, by_probes, Kind.DERIVED, CONSTANTS, 0.10)
            rows.near("schedule", f"{what}: rebuilds", rebuilds, by_rebuilds, Kind.DERIVED, CONSTANTS, 0.10)
            path = PathGeometry.of(N, 8, PathParams(page_levels=1), 0)
            rows.shown(
                "schedule", f"{what}: all", probes + rebuilds, f"Path ORAM without cached levels: {2 * path.Z * (path.L + 1)}"
            )  # fmt: skip
            binned = BinnedGeometry.of(N, 8, CuckooParams(index="none"), 1 << 40)
            beside = FUTORAMA if bits == 20 else "the same without an index"
            rows.shown("schedule", f"N=2^{bits}, c={binned.c}, no index: all", sum(schedule(binned)), beside)
    return Finding(NAME, rows.rows, {"schedule": curve, "counted": counted})


def _counted(rows: Rows, run: Run) -> list[dict[str, Any]]:
    """One epoch of the bottom of a real store, after two others."""
    found = []
    sizes = run.choose((1 << 8, 1 << 10, 1 << 12), (1 << 8, 1 << 10), (1 << 8,))
    for N, (rebuild, index) in itertools.product(sizes, KINDS):
        store, trace = traced(CuckooParams(rebuild=rebuild, index=index), N)
        with store:
            scheme = store._engine.scheme
            assert isinstance(scheme, CuckooORAM | BinnedORAM)
            g = scheme.geometry
            period = g.c << g.L
            for _ in moved(store, trace, 2 * period):
                pass
            total = np.fromiter(moved(store, trace, period), float)
        probes, rebuilds = schedule(g)
        what = f"N=2^{int(math.log2(N))}, c={g.c}, {rebuild}" + (", no index" if index == "none" else "")
        rows.exact(
            "counted at a real store", f"{what}: slots an access", float(total.mean()), probes + rebuilds, Kind.DERIVED, SCHEDULE,
            note=f"every access of an epoch of the bottom, {period}",
        )  # fmt: skip
        if rebuild == "deamortized":
            ratio = float(total.max() / total.mean())
            rows.between(
                "counted at a real store",
                f"{what}: most in one access, of the mean",
                ratio,
                1,
                4,
                Kind.DERIVED,
                SCHEDULE,
            )
        if (rebuild, index) == KINDS[0]:
            tables, work = constants(g)
            rows.near(
                "counted at a real store", f"{what}: slots an access", float(total.mean()), tables + work, Kind.DERIVED, CONSTANTS, 0.10
            )  # fmt: skip
        found.append(
            {
                "N": N,
                "c": g.c,
                "rebuild": rebuild,
                "index": index,
                "mean": float(total.mean()),
                "most": float(total.max()),
            }
        )
    return found
