"""Statistical tests of randomness, each with its false-positive rate. For everything else there are exact checks.

One run of the suite raises a false alarm with probability at most ``ALPHA_TOTAL``: the tests in ``FAMILY`` share it equally (Bonferroni),
and so do the parts of one test. A permutation test with B permutations cannot have a p-value below 1/(1+B); such tests are run on two independent
samples and fail if both fail (``confirmed``), so that the square of their level is what counts. With fixed seeds an outcome never changes.

Always prefer the sharp statistic: if the next leaf equals the last one with probability e, the equality test sees it after about 10/e accesses, a
chi-square test on 16 x 16 pairs after 13.5/e^2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from oram.trace import Event

__all__ = [
    "ALPHA_TOTAL",
    "FAMILY",
    "LEVEL",
    "Result",
    "bins",
    "changed_everywhere",
    "classifier",
    "confirmed",
    "constant_lengths",
    "early_rates",
    "excess_rate",
    "graph_excess",
    "input_conditioned",
    "runs_equal",
    "same_block_equal",
    "same_block_pairs",
    "serial_independence",
    "spread",
    "two_world_runs",
    "uniform_choice",
    "uniform_leaves",
    "uniform_ranks",
    "used_first",
]

ALPHA_TOTAL = 1e-6
FAMILY = 40  # tests that share it, with room to spare
LEVEL = ALPHA_TOTAL / FAMILY
PERMUTATIONS = 7999  # 1/8000 squared is below LEVEL

F64 = npt.NDArray[np.float64]
Ints = Sequence[int]


@dataclass(frozen=True)
class Result:
    """The outcome of one test. level: probability that it fails although nothing is wrong; 0 for an exact check."""

    name: str
    statistic: float
    p_value: float
    level: float

    @property
    def passed(self) -> bool:
        """Whether the data are consistent with the null hypothesis."""
        return self.p_value > self.level


def _chi_square(name: str, observed: F64, expected: F64 | float, df: int, parts: int = 1) -> Result:
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return Result(name, statistic, min(1.0, parts * float(scipy_stats.chi2.sf(statistic, df))), LEVEL)


def bins(n: int, leaves: int, cells: Callable[[int], int], most: int) -> int:
    """The largest power of two, at most ``most`` and the number of leaves, with 20 expected in each cell."""
    k = 2
    while 2 * k <= min(most, leaves) and 20 * cells(2 * k) <= n:
        k *= 2
    if 20 * cells(k) > n:
        raise ValueError(f"{n} observations are too few for a chi-square test")
    return k


def _binned(values: Ints, leaves: int, k: int) -> npt.NDArray[np.int64]:
    return np.asarray(values, np.int64) * k // leaves


def uniform_leaves(values: Ints, leaves: int) -> Result:
    """Chi-square of leaves 0 <= value < ``leaves`` on k equal bins, df = k - 1."""
    k = bins(len(values), leaves, lambda k: k, 256)
    observed = np.bincount(_binned(values, leaves, k), minlength=k).astype(np.float64)
    return _chi_square("uniform leaves", observed, len(values) / k, k - 1)


def _pairs(name: str, left: Ints, right: Ints, leaves: int, parts: int = 1) -> Result:
    """Chi-square of binned pairs under known uniform marginals, df = k^2 - 1."""
    k = bins(len(left), leaves, lambda k: k * k, 16)
    cells = _binned(left, leaves, k) * k + _binned(right, leaves, k)
    observed = np.bincount(cells, minlength=k * k).astype(np.float64)
    return _chi_square(name, observed, len(left) / k**2, k * k - 1, parts)


def serial_independence(values: Ints, leaves: int, lags: int = 8) -> Result:
    """The worst of the chi-squares of (leaf, leaf ``lag`` accesses later), lags 1 to ``lags``, Bonferroni within."""
    return min(
        (
            _pairs(f"serial independence, lag {lag}", values[:-lag], values[lag:], leaves, lags)
            for lag in range(1, lags + 1)
        ),
        key=lambda result: result.p_value,
    )


def same_block_equal(pairs: Iterable[tuple[Ints, Ints]], leaves: int) -> Result:
    """Exact binomial on how often a leaf that one access to a block showed is shown again by the next access to it.

    pairs: the leaves that the two accesses showed, one each for a single read: then the count is Bin(n, 1/leaves) exactly; where more are
    shown, at most Bin(n, largest product / leaves). The sharpest test there is of remapping.
    """
    each = [(set(left), set(right)) for left, right in pairs]
    chance = max((len(left) * len(right) for left, right in each), default=1) / leaves
    hits = sum(not left.isdisjoint(right) for left, right in each)
    p = float(scipy_stats.binom.sf(hits - 1, len(each), min(1.0, chance)))
    return Result("same block, equality", hits, p, LEVEL)


def same_block_pairs(pairs: Sequence[tuple[int, int]], leaves: int) -> Result:
    """Chi-square of binned (leaf at one access to a block, leaf at the next access to it)."""
    return _pairs("same block, pairs", [a for a, _ in pairs], [b for _, b in pairs], leaves)


def runs_equal(left: Ints, right: Ints, leaves: int) -> Result:
    """Exact binomial on equal leaves at the same place of two runs: Bin(n, 1/leaves) if each run has randomness of its own."""
    hits = sum(a == b for a, b in zip(left, right, strict=True))
    return Result("runs equal", hits, float(scipy_stats.binom.sf(hits - 1, len(left), 1 / leaves)), LEVEL)


# --- slots of a Ring bucket


def uniform_choice(values: Ints, n: int) -> Result:
    """Chi-square of numbers 0 <= value < n, each a cell, df = n - 1. For the first slot that is read of a bucket since it was written."""
    if len(values) < 20 * n:
        raise ValueError(f"{len(values)} observations are too few for a chi-square test")
    observed = np.bincount(np.asarray(values, np.int64), minlength=n).astype(np.float64)
    return _chi_square("uniform choice", observed, len(values) / n, n - 1)


def spread(ranks: Iterable[tuple[int, int]], seed: int) -> F64:
    """(rank + V) / size of each (rank, size), V uniform: uniform and independent if each rank is uniform below its size, whatever came before."""
    table = np.array(list(ranks), np.float64).reshape(-1, 2)
    placed: F64 = (table[:, 0] + np.random.default_rng(seed).random(len(table))) / table[:, 1]
    return placed


def uniform_ranks(ranks: Iterable[tuple[int, int]], seed: int) -> Result:
    """Kolmogorov-Smirnov of ``spread``: each slot that is read is a uniform choice among those that could have been.

    ranks: of the slot read among these, and how many they are: all that were not read since the bucket was written, which is what the server knows; or the
    dummies among them, for those who know where the blocks are.
    """
    placed = spread(ranks, seed)
    found = scipy_stats.kstest(placed, "uniform")
    return Result("uniform ranks", float(found.statistic), float(found.pvalue), LEVEL)


def early_rates(found: Ints, intervals: Ints, tree: Mapping[str, Any]) -> Result:
    """Early reshuffles at each level from T on against their exact rate; the worst level, Bonferroni within.

    found, intervals: as ``oracles.early_reshuffles(..., whole=True)`` gives them. In an interval of level l the reads K are Bin(A 2^l - 1, 2^-l),
    and floor(K / S) of them are early reshuffles: per ReadPath the sum over k >= 1 of P[K >= k S], over A. Reads of different buckets are negatively
    associated, so the variance of the sum is at most the sum of the variances; the normal approximation is two-sided. A level that cannot vary must be exact.
    """
    A, S, T = int(tree["A"]), int(tree["S"]), int(tree["T"])
    worst = Result("early reshuffles", 0.0, 1.0, LEVEL)
    for level, (count, n) in enumerate(zip(found, intervals, strict=True), T):
        reads = scipy_stats.binom((A << level) - 1, 0.5**level)
        tails = [float(reads.sf(k * S - 1)) for k in range(1, (A << level) // S + 1)]
        mean = sum(tails)
        variance = sum((2 * k - 1) * tail for k, tail in enumerate(tails, 1)) - mean**2
        if variance <= 0:
            z, p = float(count - round(n * mean)), float(count == round(n * mean))
        else:
            z = (count - n * mean) / math.sqrt(n * variance)
            p = min(1.0, 2 * len(found) * float(scipy_stats.norm.sf(abs(z))))
        if p < worst.p_value:
            worst = Result(f"early reshuffles, level {level}", z, p, LEVEL)
    return worst


def _permuted(name: str, statistic: Callable[[npt.NDArray[Any]], float], labels: npt.NDArray[Any], seed: int) -> Result:
    """Permutation test, exact by exchangeability: p = (1 + #{at least as large}) / (1 + permutations)."""
    random = np.random.default_rng(seed)
    real = statistic(labels)
    larger = sum(statistic(random.permutation(labels)) >= real - 1e-9 for _ in range(PERMUTATIONS))
    return Result(name, real, (1 + larger) / (1 + PERMUTATIONS), math.sqrt(LEVEL))


def input_conditioned(values: Ints, labels: Ints, leaves: int, seed: int) -> Result:
    """Permutation test of independence of the leaves from what was asked: an id, an operation, hit or miss, a size.

    labels: small integers, one a leaf. Statistic: chi-square of the contingency table. Use with ``confirmed``.
    """
    k = bins(len(values), leaves, lambda k: k, 16)
    binned, named = _binned(values, leaves, k), np.asarray(labels, np.int64)
    rows = int(named.max()) + 1
    expected = np.outer(np.bincount(named, minlength=rows), np.bincount(binned, minlength=k)) / len(values)
    expected[expected == 0] = 1

    def statistic(permuted: npt.NDArray[Any]) -> float:
        table = np.bincount(permuted * k + binned, minlength=rows * k).reshape(rows, k)
        return float(((table - expected) ** 2 / expected).sum())

    return _permuted("input-conditioned", statistic, named, seed)


def two_world_runs(left: F64, right: F64, seed: int) -> Result:
    """Permutation test over whole runs of two worlds: features float (runs, k) of each. Statistic: distance of the means.

    Runs are the unit that may be exchanged, never the accesses within one. Use with ``confirmed``.
    """
    features = np.concatenate([left, right])
    labels = np.repeat([1.0, 0.0], [len(left), len(right)])

    def statistic(permuted: npt.NDArray[Any]) -> float:
        difference = permuted @ features / len(left) - (1 - permuted) @ features / len(right)
        return float(difference @ difference)

    return _permuted("two worlds, runs", statistic, labels, seed)


def classifier(features: F64, labels: Ints, *, steps: int = 300) -> Result:
    """Logistic regression trained on the first half of the runs, tested on the rest.

    features: float (runs, k). labels: 0 or 1 a run, drawn as independent fair coins before the run; so if runs tell nothing about
    them, the number of right answers is Bin(n, 1/2) exactly, whatever was learnt.
    """
    truth = np.asarray(labels, np.float64)
    half = len(truth) // 2
    mean, spread = features[:half].mean(axis=0), features[:half].std(axis=0) + 1e-9
    scaled = (features - mean) / spread
    weights, bias = np.zeros(features.shape[1]), 0.0
    for _ in range(steps):
        error = 1 / (1 + np.exp(-np.clip(scaled[:half] @ weights + bias, -30, 30))) - truth[:half]
        weights -= 0.5 * (scaled[:half].T @ error / half + 0.05 * weights)
        bias -= 0.5 * float(error.mean())
    right = int(((scaled[half:] @ weights + bias > 0) == (truth[half:] == 1)).sum())
    n = len(truth) - half
    return Result("classifier", right / n, float(scipy_stats.binom.sf(right - 1, n, 0.5)), LEVEL)


# --- pairs of a hierarchy


def graph_excess(pairs: Iterable[tuple[int, int]]) -> int:
    """How many entries would not fit if these pairs of cells were those of entries: over the components of the graph, edges beyond vertices."""
    root: dict[tuple[int, int], tuple[int, int]] = {}

    def find(v: tuple[int, int]) -> tuple[int, int]:
        while root.setdefault(v, v) != v:
            v = root[v]
        return v

    edges = [((0, u), (1, v)) for u, v in pairs]
    for left, right in edges:
        root[find(left)] = find(right)
    vertices, counts = Counter(find(v) for v in list(root)), Counter(find(left) for left, _ in edges)
    return sum(max(0, n - vertices[component]) for component, n in counts.items())


def excess_rate(epochs: Sequence[int], m: int, entries: int, seed: int, bins: int = 1) -> Result:
    """Fisher's exact test of how often an epoch's graph of looked-up pairs has an excess, against as many pairs of dummies alone.

    epochs: the excess of each epoch, over its first ``entries`` pairs in tables of m cells; of ``bins`` together, each with two such tables.
    Dummies are uniform, so their graph sometimes does not fit. Where only keys were kept under which the entries fit, or entries that did not
    fit are looked up as dummies, the graph fits too often.
    """
    rng, reference = np.random.default_rng(seed), 20_000
    drawn = rng.integers(0, m, (reference, entries, 2)) + m * rng.integers(0, bins, (reference, entries, 1))
    fits = sum(graph_excess(map(tuple, pairs)) == 0 for pairs in drawn.tolist())
    seen = sum(excess == 0 for excess in epochs)
    table = [[seen, len(epochs) - seen], [fits, reference - fits]]
    return Result("graph excess", 1 - seen / len(epochs), float(scipy_stats.fisher_exact(table).pvalue), LEVEL)


def used_first(epochs: Iterable[tuple[Ints, int]]) -> list[tuple[int, int]]:
    """For ``uniform_ranks``: the rank of each cell looked up among all m of its table, if those looked up before are put first.

    epochs: the cells looked up in a table, in order, and m. Uniform cells have uniform ranks, whatever came before. Where dummies avoid
    cells that were read, low ranks are missing; where a cell is read again too often, there are too many of them.
    """
    ranks = list[tuple[int, int]]()
    for cells, m in epochs:
        used = list[int]()
        for cell in cells:
            if cell in used:
                ranks.append((used.index(cell), m))
            else:
                ranks.append((len(used) + cell - sum(other < cell for other in used), m))
                used.append(cell)
    return ranks


def confirmed(test: Callable[[int], Result]) -> Result:
    """Run a test on the sample of seed 0 and, if it fails, once more on that of seed 1: fails only if both do, at the square of its level."""
    first = test(0)
    if first.passed:
        return first
    second = test(1)
    return second if second.passed else Result(first.name, second.statistic, first.p_value * second.p_value, LEVEL)


# --- exact checks of ciphertexts: traces taken with keep_data


def constant_lengths(events: Iterable[Event]) -> Result:
    """Every slot of a region has one length, in every read and write."""
    sizes: dict[str, set[int]] = {}
    for event in events:
        if event.data is not None:
            sizes.setdefault(event.region, set()).update((event.slot_size, event.data.shape[1]))
    odd = sum(len(each) - 1 for each in sizes.values())
    return Result("constant lengths", odd, float(odd == 0), 0.0)


def changed_everywhere(events: Iterable[Event]) -> Result:
    """Every whole 16-byte block of every slot written differs from what was last in that slot: all of it was encrypted anew.

    The level is not exactly 0: two independent blocks are equal with probability 2^-128.
    """
    last: dict[tuple[str, int], npt.NDArray[np.uint8]] = {}
    kept = 0
    for event in events:
        if event.data is None or event.op == "xor" or not event.region.startswith(("slots.", "meta.")):
            continue
        for slot, row in zip(event.indices, event.data, strict=True):
            whole = row[: row.size // 16 * 16].reshape(-1, 16)
            old = last.get((event.region, slot))
            if event.op == "write":
                kept += 0 if old is None else int((whole == old).all(axis=1).sum())
                last[event.region, slot] = whole
    return Result("changed everywhere", kept, float(kept == 0), 0.0)
