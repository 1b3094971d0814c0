"""Tails of a stash: P[stash > R] from counts in blocks of accesses, its standard error, and the straight line that continues it.

Accesses follow one another closely: a stash above R stays so for a while. So the standard error is taken from the means of long blocks, which can be taken as
independent. The ratio to what independent accesses would have is the integrated autocorrelation time of {stash > R}: for Path ORAM with Z = 4 about 18 accesses
at R = 0 and 50 at R = 10. No error is taken to be smaller than a known time of this kind (``burst``) would make it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oram.types import F64, I64, U64

__all__ = ["Estimate", "Line", "Tail", "level"]

REACH = 16  # an extrapolation is judged where the range of its fit reaches 2^-REACH
LINE_SIGMAS = 2  # of its standard errors, which hold the choice of the fit, added to what it may be off
STARTS = (
    12,
    13,
    14,
    15,
    16,
)  # where the fit begins, P <= 2^-start; the middle one gives the value, the others say how much it matters
SURE = 0.2  # relative standard error of the last point of a fit
RESAMPLED = 200
LEAST = 3  # points of a fit that is judged


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error; of a probability also how many independent trials it is worth."""

    mean: float
    error: float
    trials: float | None = None

    @classmethod
    def of(cls, blocks: F64) -> Estimate:
        """From block means float64 (blocks,)."""
        return cls(float(blocks.mean()), float(blocks.std(ddof=1) / math.sqrt(blocks.size)))


@dataclass(frozen=True, slots=True)
class Line:
    """-log2 P[stash > R] = intercept + slope R, fitted to R from ``first`` to ``last``, weighted by errors."""

    intercept: float
    slope: float
    first: int
    last: int
    reach: float  # -log2 P at ``last``
    points: int

    @property
    def judged(self) -> bool:
        """Whether it is long enough to be compared with anything."""
        return self.reach >= REACH and self.points >= LEAST

    def at(self, bits: float) -> float:
        """The R that is exceeded with probability 2^-bits."""
        return (bits - self.intercept) / self.slope


def level(p: float) -> float:
    """-log2."""
    return -math.log2(p) if p > 0 else math.inf


class Tail:
    """Of counts float64 (blocks, sizes): how often in each block the stash held so many.

    burst: what is counted that one excursion above each of the first R lasts, as far as errors go; beyond them as the last.
    """

    def __init__(self, counts: U64, burst: Sequence[float] = (1.0,)) -> None:
        self.counts = counts.astype(np.float64)
        self.total = float(self.counts.sum())
        self.burst = np.array([*burst, *[burst[-1]] * self.counts.shape[1]])[: self.counts.shape[1] - 1]
        self.blocks = self._above(self.counts)
        self.P = self._above(self.counts.sum(0, keepdims=True))[0]
        spread = self.blocks.std(0, ddof=1) / math.sqrt(len(self.blocks))
        self.error = np.maximum(spread, np.sqrt(self.P * self.burst / self.total))

    @staticmethod
    def _above(counts: F64) -> F64:
        """P[stash > R] for R from 0, in each block."""
        more: F64 = counts[:, ::-1].cumsum(1)[:, ::-1]
        above: F64 = more[:, 1:] / more[:, :1]
        return above

    def above(self, R: int) -> Estimate:
        """P[stash > R]."""
        return Estimate(float(self.P[R]), float(self.error[R]), self.total / float(self.burst[R]))

    @property
    def mean(self) -> Estimate:
        """Mean size."""
        return Estimate.of((self.counts @ np.arange(self.counts.shape[1])) / self.counts.sum(1))

    @property
    def largest(self) -> int:
        """The largest size seen."""
        return int(np.flatnonzero(self.counts.sum(0))[-1])

    @property
    def seen(self) -> int:
        """How many R have P > 0."""
        return int((self.P > 0).sum())

    def correlation(self, R: int) -> float:
        """Integrated autocorrelation time of {stash > R}, in accesses."""
        p = float(self.P[R])
        spread = float(self.blocks[:, R].var(ddof=1)) / len(self.blocks)
        return spread * self.total / (p * (1 - p)) if 0 < p < 1 else math.nan

    def line(self, start: int | None = None) -> Line | None:
        """The fit from P <= 2^-start to the last R whose standard error is below SURE of P; None where that is fewer than LEAST points.

        Without a start it is the middle one; then fewer are made up with points before them, two at least, for a line that is shown and not judged.
        """
        sure = np.flatnonzero((self.P > 0) & (self.P < 0.5) & (self.error < SURE * self.P))
        points = sure[self.P[sure] <= 2.0 ** -(STARTS[len(STARTS) // 2] if start is None else start)]
        if points.size >= LEAST:
            return self._fit(self.P, points, points.size)
        return self._fit(self.P, sure[-LEAST:], points.size) if start is None and sure.size >= 2 else None

    def _fit(self, P: F64, points: I64, sure: int) -> Line:
        R, y, w = points.astype(np.float64), -np.log2(P[points]), P[points] / self.error[points]
        x = R - np.average(R, weights=w**2)
        slope = float(np.sum(w**2 * x * y) / np.sum(w**2 * x * x))
        intercept = float(np.average(y, weights=w**2)) - slope * float(np.average(R, weights=w**2))
        return Line(intercept, slope, int(points[0]), int(points[-1]), float(y[-1]), sure)

    def extrapolated(self, bits: int, seed: int) -> tuple[Estimate, Line] | None:
        """The R that is exceeded with probability 2^-bits, by the line; None where there is none.

        Its error: that of the line's points, from resampled blocks, and half the range of what other beginnings of the fit give.
        """
        line = self.line()
        if line is None:
            return None
        points = np.arange(line.first, line.last + 1)
        random, found = np.random.default_rng(seed), []
        for _ in range(RESAMPLED):
            rows = random.integers(0, len(self.counts), len(self.counts))
            P = self._above(self.counts[rows].sum(0, keepdims=True))[0]
            if (P[points] > 0).all():
                found.append(self._fit(P, points, points.size).at(bits))
        others = [line.at(bits)] + [other.at(bits) for start in STARTS if (other := self.line(start)) is not None]
        return Estimate(line.at(bits), math.hypot(float(np.std(found)), (max(others) - min(others)) / 2)), line
