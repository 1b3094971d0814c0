"""Ring ORAM (Ren et al., USENIX Security 2015): bandwidth, stash, early reshuffles, and the choice of A and S."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from oram.kernels.simulation import Pattern, RingCounts, Trees
from oram.papers.row import SIGMAS, Finding, Kind, Rows
from oram.papers.run import Run, Size
from oram.papers.tail import LINE_SIGMAS, Estimate, Tail
from oram.params.ring import RING_SETS, best_S, largest_A, stash_exponent
from oram.types import F64

__all__ = ["TABLE", "early_rate", "moved", "study"]

NAME = "ring"
#: Table 3, maximum stash: exceeded with probability 2^-lambda, by (Z, A).
TABLE = {
    (4, 3): {80: 32, 128: 51, 256: 103},
    (8, 8): {80: 41, 128: 62, 256: 120},
    (16, 20): {80: 65, 128: 93, 256: 171},
    (32, 46): {80: 113, 128: 155, 256: 272},
    (16, 23): {80: 197, 128: 302, 256: 595},
}
TABLE_SOURCE = "Ren et al. 2015, table 3"
TABLE_SHARE = 0.15
UNPROVED = (
    16,
    23,
    32,
)  # its A violates the condition of the proof; it is in the table as the largest that works in simulation

#: P[stash > R] right after EvictPath by an independent simulation, round robin, N = A 2^(L-1); and its accesses.
SIMULATED: dict[tuple[int, int], tuple[float, dict[int, float]]] = {
    (4, 3): (3e8, {0: 1.03e-4, 1: 1.2e-5, 2: 2.1e-6}),
    (8, 8): (3e8, {0: 1.9e-4, 1: 4.3e-5, 2: 9.9e-6, 3: 2.6e-6}),
    (16, 20): (1e8, {0: 1.6e-3, 1: 3.4e-4, 2: 7.8e-5, 3: 2.2e-5}),
    (32, 46): (1e8, {0: 2.7e-3, 2: 4.1e-4, 4: 6.1e-5, 6: 1.3e-5}),
}
SIMULATED_SOURCE = "independent simulation, 1 to 3 x 10^8 accesses"
BURST = (2.0,)  # evictions that an excursion lasts, with an A that is proved: measured, 1.0 to 1.8
ROUNDED = 0.03  # of these references: they have two digits

FORMULA = "Ren et al. 2015, section 5"
FORMULA_SHARE = 0.03  # it takes every level for a deep one
RATE = "docs/schemes/ring.md, early reshuffles"
GROWTH_SHARE = 0.15
FLAT_SHARE = 0.005  # of the cost, near its minimum over S


@cache
def _binomial(n: int, p: float, most: int) -> F64:
    """P[Bin(n, p) = j] for j from 0 to ``most``."""
    j = np.arange(min(n, most) + 1)
    if p == 1:
        return np.array(j == n, np.float64)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in j.tolist()]
    masses: F64 = np.exp(np.array(logs) + j * math.log(p) + (n - j) * math.log1p(-p))
    return masses


def early_rate(A: int, S: int, level: int) -> float:
    """Early reshuffles an access at a level: (1/A) sum over k >= 1 of P[Bin(A 2^l - 1, 2^-l) >= k S]."""
    masses = _binomial((A << level) - 1, 0.5**level, A + 12 * S + 60)
    return sum(float(masses[k * S :].sum()) for k in range(1, (masses.size - 1) // S + 1)) / A


def poisson_tail(A: int, S: int) -> float:
    """P[Poisson(A) >= S]: the same deep in the tree, but for 1/A."""
    return 1 - sum(math.exp(k * math.log(A) - A - math.lgamma(k + 1)) for k in range(S))


def moved(Z: int, A: int, S: int, L: int, early: float, *, xor: bool) -> float:
    """Blocks that an access moves: online, its share of an eviction, and ``early`` reshuffles an access in all levels together."""
    return (1 if xor else L + 1) + (2 * Z + S) * ((L + 1) / A + early)


def height(N: int, A: int) -> int:
    """L for N blocks: the smallest with N <= A 2^(L-1)."""
    return max(1, (-(-2 * N // A) - 1).bit_length())


def study(run: Run) -> Finding:
    """All of it."""
    rows, series = Rows(NAME), dict[str, Any]()
    _stash(rows, run, series)
    _bandwidth(rows, run, series)
    _choices(rows, run, series)
    return Finding(NAME, rows.rows, series)


# --- stash and early reshuffles


def _stash(rows: Rows, run: Run, series: dict[str, Any]) -> None:
    each, blocks, other = run.choose((1_000_000, 150, 25), (100_000, 20, 60), (2_000, 10, 5))
    heights = run.choose((12, 11, 10, 9), (12, 11, 10, 9), (7, 6, 5, 4))
    unproved = run.choose((10, 14), (6, 12), (5, 7))
    wanted = [(*each_set, L, blocks) for each_set, L in zip(RING_SETS, heights, strict=True)]
    wanted += [(*UNPROVED, L, other) for L in unproved]
    jobs: list[Callable[[], list[RingCounts]]] = []
    for Z, A, S, L, count in wanted:
        for copy in range(2):
            trees = Trees(A << (L - 1), Z, L, A, S, Pattern.ROUND_ROBIN, run.seed_of(NAME, Z, A, L, copy))
            jobs.append(partial(run.ring_blocks, trees, count, each))
    found = run.together(jobs, 2 * sum(count for *_, count in wanted))
    series |= {"before": [], "after": [], "early": [], "table": {}}
    tails = {}
    for i, (Z, A, S, L, _) in enumerate(wanted):
        counts = found[2 * i] + found[2 * i + 1]
        before, after = (Tail(np.array([getattr(c, name) for c in counts]), BURST) for name in ("before", "after"))
        tails[Z, A, L] = before, after
        for name, tail in (("before", before), ("after", after)):
            P, error = tail.P[: tail.seen].tolist(), tail.error[: tail.seen].tolist()
            series[name].append({"Z": Z, "A": A, "L": L, "evictions": tail.total, "P": P, "error": error})
        if (Z, A, S) == UNPROVED:
            if unproved[-1] == L:
                _table(rows, run, Z, A, before, series, of=f", L={L}", proved=False)
            continue
        _tail(rows, run, Z, A, after)
        _table(rows, run, Z, A, before, series)
        _bound(rows, Z, A, after)
        _early(rows, Z, A, S, L, counts, each, series)
    if run.size != Size.SMALL:  # which has too few accesses to tell
        _growth(rows, tails, unproved)


def _tail(rows: Rows, run: Run, Z: int, A: int, after: Tail) -> None:
    accesses, known = SIMULATED[Z, A]
    for R, reference in known.items():
        error = math.sqrt(BURST[0] * reference / (accesses / A))
        share = ROUNDED if run.size != Size.SMALL else 0.25
        rows.statistical(
            f"stash after EvictPath, Z={Z}, A={A}", f"P[stash > {R}]", after.above(R), reference, Kind.SIMULATED, SIMULATED_SOURCE,
            error=error, share=share,
        )  # fmt: skip


def _table(
    rows: Rows, run: Run, Z: int, A: int, before: Tail, series: dict[str, Any], *, of: str = "", proved: bool = True
) -> None:
    group = f"table 3, Z={Z}, A={A}{of}"
    for lam, published in TABLE[Z, A].items():
        result = before.extrapolated(lam, run.seed_of(NAME, "resampled", Z, A, lam) % (1 << 32))
        if result is None:
            rows.shown(group, f"stash for 2^-{lam}", None, f"too few accesses for a line; published: {published}")
            continue
        estimate, line = result
        note = f"line through R = {line.first}..{line.last}, {line.slope:.2f} bit a block"
        if not proved:
            note += "; grows with L, and the paper's is of L = 20"
        elif not line.judged:
            note += "; too few accesses to judge"
        rows.near(
            group, f"stash for 2^-{lam}", estimate.mean, published, Kind.PUBLISHED, TABLE_SOURCE, TABLE_SHARE,
            error=estimate.error, sigmas=LINE_SIGMAS, judged=proved and line.judged, note=note,
        )  # fmt: skip
        series["table"].setdefault(f"{Z},{A}", {"line": [line.intercept, line.slope], "at": {}})
        series["table"][f"{Z},{A}"]["at"][str(lam)] = [estimate.mean, estimate.error, published]


def _bound(rows: Rows, Z: int, A: int, after: Tail) -> None:
    """The theorem: P[stash > R] <= (A / 2Z)^R / (1 - e^-q)."""
    bounds = np.minimum(1.0, (A / (2 * Z)) ** np.arange(after.P.size) / -math.expm1(-stash_exponent(Z, A)))
    shares = np.where(after.P > 0, after.P / bounds, 0.0)
    R = int(np.argmax(shares))
    found = Estimate(float(shares[R]), float(after.error[R] / bounds[R]))
    rows.at_most(
        f"stash after EvictPath, Z={Z}, A={A}", f"P[stash > R] / bound, largest (R={R})", found, 1.0, Kind.PUBLISHED,
        "Ren et al. 2015, section 4.3",
    )  # fmt: skip


def _early(
    rows: Rows, Z: int, A: int, S: int, L: int, counts: list[RingCounts], each: int, series: dict[str, Any]
) -> None:
    measured = []
    for level in range(L + 1):
        found = replace(
            Estimate.of(np.array([c.early[level] / each for c in counts])), trials=float(each * len(counts))
        )
        exact = early_rate(A, S, level)
        what, group = f"level {level}", f"early reshuffles an access, {Z},{A},{S}"
        measured.append([level, found.mean, found.error, exact])
        if exact == 0:
            rows.exact(group, what, found.mean, 0.0, Kind.DERIVED, RATE)
        else:
            rows.statistical(group, what, found, exact, Kind.DERIVED, RATE)
    series["early"].append({"Z": Z, "A": A, "S": S, "levels": measured, "deep": poisson_tail(A, S) / A})


def _growth(rows: Rows, tails: dict[tuple[int, int, int], tuple[Tail, Tail]], heights: tuple[int, ...]) -> None:
    """The control: with an A beyond the proof the stash grows with the tree."""
    Z, A, _ = UNPROVED
    few, many = (tails[Z, A, L][1] for L in heights)
    R = 5
    a, b = few.above(R), many.above(R)
    rejected = abs(a.mean - b.mean) > SIGMAS * math.hypot(a.error, b.error) + GROWTH_SHARE * b.mean
    rows.control(
        f"control: growth, Z={Z}, A={A}", f"P[stash > {R}] after EvictPath, L={heights[0]} against {heights[1]}", rejected, a.mean, b.mean,
        "Ren et al. 2015, section 4.3: q > 0 bounds it for every L", f"{SIGMAS} s.e. + {100 * GROWTH_SHARE:.0f} %", a.error,
    )  # fmt: skip


# --- bandwidth


def _bandwidth(rows: Rows, run: Run, series: dict[str, Any]) -> None:
    bits = run.choose(20, 14, 9)
    each, blocks = run.choose((500_000, 10), (50_000, 10), (2_000, 5))
    N = 1 << bits
    jobs = []
    for Z, A, S in RING_SETS:
        trees = Trees(N, Z, height(N, A), A, S, Pattern.UNIFORM, run.seed_of(NAME, "bandwidth", Z, A))
        jobs.append(partial(run.ring_blocks, trees, blocks, each))
    counts = run.together(jobs, len(jobs) * blocks)
    series["bandwidth"] = []
    series["path"] = 2 * 4 * bits  # Z = 4, L + 1 = log2 N
    for (Z, A, S), found in zip(RING_SETS, counts, strict=True):
        L = height(N, A)
        early = np.array([c.early.sum() / each for c in found])
        exact = sum(early_rate(A, S, level) for level in range(L + 1))
        deep = (L + 1) * poisson_tail(A, S) / A
        group = f"blocks an access, {Z},{A},{S}, N=2^{bits}, L={L}"
        line = {"Z": Z, "A": A, "S": S, "N": N, "L": L}
        for xor in (False, True):
            word = "with XOR" if xor else "without XOR"
            measured = Estimate.of(np.array([moved(Z, A, S, L, float(e), xor=xor) for e in early]))
            rows.statistical(group, word, measured, moved(Z, A, S, L, exact, xor=xor), Kind.DERIVED, RATE)
            rows.near(
                group, f"{word}, by the paper's formula", measured.mean, moved(Z, A, S, L, deep, xor=xor), Kind.PUBLISHED, FORMULA, FORMULA_SHARE,
                error=measured.error,
            )  # fmt: skip
            line[f"{word}, formula"] = moved(Z, A, S, L, deep, xor=xor)  # type: ignore[assignment]
            line[word] = measured.mean  # type: ignore[assignment]
            if (Z, bits) == (32, 20):
                low, high = (2, 2.5) if xor else (3, 3.5)
                rows.between(
                    group, f"{word}, of log2 N", measured.mean / bits, low, high, Kind.PUBLISHED, "Ren et al. 2015, section 1", error=measured.error / bits
                )  # fmt: skip
        series["bandwidth"].append(line)


# --- the choice of A and S


def _choices(rows: Rows, run: Run, series: dict[str, Any]) -> None:
    group = "the largest A with q > 0"
    for Z, A in [each for each in TABLE if each != UNPROVED[:2]]:
        rows.exact(
            group, f"Z={Z}", largest_A(Z), A, Kind.PUBLISHED, TABLE_SOURCE, note=f"q = {stash_exponent(Z, A):.3f}"
        )
    Z, A, _ = UNPROVED
    rows.control(
        f"control: A beyond the proof, Z={Z}", f"A={A}", stash_exponent(Z, A) <= 0, A, largest_A(Z), "Ren et al. 2015, section 4.3", "q > 0"
    )  # fmt: skip
    each, blocks = run.choose((200_000, 5), (40_000, 5), (1_000, 3))
    L = run.choose(8, 8, 5)
    choices = [(Z, A, S) for Z, A, best in RING_SETS for S in range(max(A, best - 4), best + 5)]
    jobs = []
    for Z, A, S in choices:
        trees = Trees(A << (L - 1), Z, L, A, S, seed=run.seed_of(NAME, "choice", Z, A, S))
        jobs.append(partial(run.ring_blocks, trees, blocks, each))
    costs = {
        choice: Estimate.of(np.array([moved(*choice, L, float(c.early.sum()) / each, xor=False) for c in found]))
        for choice, found in zip(choices, run.together(jobs, len(jobs) * blocks), strict=True)
    }
    series["choice"] = []
    for Z, A, _ in RING_SETS:
        S = best_S(Z, A)
        measured = {s: cost for (z, a, s), cost in costs.items() if (z, a) == (Z, A)}
        least = min(measured, key=lambda s: measured[s].mean)
        rows.near(
            "S that moves the fewest blocks", f"Z={Z}, A={A}: cost of S={S}, of the least measured (S={least})", measured[S].mean,
            measured[least].mean, Kind.PUBLISHED, f"{FORMULA}: minimise (2Z + S)(1 + Poiss(S, A))",
            FLAT_SHARE, error=measured[S].error, sigmas=SIGMAS,
        )  # fmt: skip
        series["choice"].append(
            {"Z": Z, "A": A, "best": S, "S": list(measured), "cost": [c.mean for c in measured.values()], "error": [c.error for c in measured.values()]}
        )  # fmt: skip
