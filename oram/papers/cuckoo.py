"""Cuckoo hashing with a stash: how many keys find no cell."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from oram.papers.excess import asymptotic, exceeds
from oram.papers.row import Finding, Kind, Rows
from oram.papers.run import Run
from oram.papers.tail import Estimate
from oram.types import U64

__all__ = ["study"]

NAME = "cuckoo"
EPS = (0.1, 0.25, 0.5, 1.0)
COUNTED = "docs/reproducing.md, counting graphs"
ASYMPTOTIC = "Kutzelnigg 2006; Drmota and Kutzelnigg 2012, theorem 1"
THETA = "Kirsch, Mitzenmacher, Wieder 2009: Theta(n^-(s+1))"
FAR = 40  # m e^3 from which the asymptotic value is compared; it misses O(1/m^2), about MISSED / (m e^3) of itself
MISSED = 5.0
EXPONENT_SHARE = 0.05


def cells(n: int, eps: float) -> int:
    """M for n keys: ceil((1 + eps) n)."""
    return math.ceil(n * (1000 + round(1000 * eps)) / 1000)


def study(run: Run) -> Finding:
    """All of it."""
    sizes = run.choose(
        {6: 2_000_000, 8: 1_000_000, 10: 400_000, 12: 60_000},
        {6: 200_000, 8: 60_000, 10: 16_000, 12: 2_000},
        {5: 8_000, 6: 5_000, 7: 2_500},
    )
    blocks = run.choose(20, 10, 5)
    wanted = [(1 << k, eps, builds // blocks) for k, builds in sizes.items() for eps in EPS]
    jobs = [partial(run.cuckoo_blocks, n, cells(n, eps), blocks, each) for n, eps, each in wanted]
    counts = run.together(jobs, len(jobs) * blocks)
    rows = Rows(NAME)
    measured = [_row(rows, n, eps, found) for (n, eps, _), found in zip(wanted, counts, strict=True)]
    _exponents(rows)
    curves = [
        [n, eps, *exceeds(cells(n, eps), n), asymptotic(cells(n, eps), n)]
        for eps in EPS
        for n in [1 << k for k in range(5, 13)]
    ]
    return Finding(NAME, rows.rows, {"measured": measured, "derived": curves})


def _row(rows: Rows, n: int, eps: float, counts: U64) -> dict[str, Any]:
    """One number of keys: every build is a case of its own, so errors are binomial."""
    total, m, line = int(counts.sum()), cells(n, eps), {"n": n, "eps": eps}
    sizes, group = counts.sum(0), f"n=2^{int(math.log2(n))}, eps={eps:g}"
    for s in range(2):
        p = float(sizes[s + 1 :].sum()) / total
        exact = exceeds(m, n)[s]
        found = Estimate(p, math.sqrt(p * (1 - p) / total), float(total))
        rows.statistical(
            group, f"P[stash > {s}]", found, exact, Kind.DERIVED, COUNTED, note=f"{total:,} builds"
        )  # fmt: skip
        line[f"P{s}"], line[f"error{s}"] = found.mean, found.error
        if s == 0 and (far := m * (1 - n / m) ** 3) >= FAR:
            rows.statistical(
                group,
                "P[stash > 0], asymptotic",
                found,
                asymptotic(m, n),
                Kind.PUBLISHED,
                ASYMPTOTIC,
                share=MISSED / far,
            )
    rows.shown(group, "largest stash", float(np.flatnonzero(sizes)[-1]), f"of {total:,} builds")
    return line


def _exponents(rows: Rows) -> None:
    """P[stash > s] falls as n^-(s+1): by the exact counts, which the rows above confirm where a simulation gets to."""
    few, many, eps = 1 << 10, 1 << 12, 1.0
    for s in range(2):
        a, b = exceeds(cells(few, eps), few)[s], exceeds(cells(many, eps), many)[s]
        rows.near(
            "exponent of n, eps=1", f"P[stash > {s}], from n=2^10 to 2^12, counted", math.log(a / b) / math.log(many / few), s + 1, Kind.PUBLISHED, THETA,
            EXPONENT_SHARE,
        )  # fmt: skip
    # the control: with hardly any room the same probability does not fall so
    a, b = exceeds(cells(few, 0.1), few)[0], exceeds(cells(many, 0.1), many)[0]
    exponent = math.log(a / b) / math.log(many / few)
    rows.control(
        "control: n too small for eps=0.1", "exponent of n, P[stash > 0], from n=2^10 to 2^12", abs(exponent - 1) > EXPONENT_SHARE, exponent, 1.0, THETA,
        f"{100 * EXPONENT_SHARE:g} %",
    )  # fmt: skip
