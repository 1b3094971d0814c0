"""Statistical checks of the randomness that shows, with their false-alarm rates, and with what they could have found.

They watch a store of the same scheme and parameters with nothing in the client's cache, pages of one bucket and small buffers, so that every leaf or pair
of cells shows: what a cache hides can only be less. Each test is that of ``running``, whose alarms have one rate for all looks of a run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

import oram
from oram.audit.leaks import Leak
from oram.audit.place import Target
from oram.audit.running import LAGS, Finding, choices_by
from oram.audit.sides import SCHEMES, Side, oblivious
from oram.audit.sights import Choice, Sights
from oram.audit.workload import HOTTEST, RECORDS, WORKLOADS, Request, records
from oram.backends import MemoryBackend
from oram.params import CuckooParams, PathParams, RingParams, SchemeParams
from oram.testing.randomness import leaves_of
from oram.testing.statistics import (
    LEVEL,
    PERMUTATIONS,
    Result,
    bins,
    classifier,
    input_conditioned,
    runs_equal,
    same_block_equal,
    same_block_pairs,
    serial_independence,
    uniform_leaves,
)
from oram.trace import TraceBackend

__all__ = [
    "BEGINS",
    "POWER",
    "RECORDS",
    "Begun",
    "Watched",
    "alike",
    "alike_in",
    "begin",
    "classified",
    "conditioned",
    "detectable",
    "in_order",
    "off",
    "on_input",
    "ordered",
    "repeated",
    "slots_conditioned",
    "slots_on_input",
    "told_apart",
    "uneven",
    "uneven_permuted",
    "watch",
]

#: Probability with which a flaw of the size named would have been found.
POWER = 0.99

#: An alarm is one that comes twice, of two independent runs: with ``POWER`` it does if each finds it with this probability.
_ONCE = math.sqrt(POWER)

_LOOK = 25  # accesses between two looks
_SPREAD = 1 << 20  # places into which ``running`` spreads cells of tables of several sizes


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """One run: what was asked for, accesses, and where its tests stand at the end. leak: None of a sound store.

    shown: what stood for each access that showed something. labels: what kind of request it was, see ``on_input``. choices: of Ring, with the same of each.
    """

    workload: str
    leak: str | None
    accesses: int
    findings: tuple[Finding, ...]
    sights: Sights
    shown: tuple[int, ...]
    labels: tuple[int, ...]
    choices: tuple[tuple[Choice, int], ...]

    @property
    def alarms(self) -> list[Finding]:
        """Those that were raised."""
        return [finding for finding in self.findings if finding.alarm is not None]


def visible(target: Target) -> SchemeParams | None:
    """The parameters under which everything shows; None for those that ``sides`` has."""
    params = target.params
    if isinstance(params, PathParams):
        return PathParams(Z=params.Z, page_levels=1)
    if isinstance(params, RingParams) and params.Z is not None:
        return RingParams(params.Z, params.A, params.S, xor=True)
    if isinstance(params, CuckooParams):
        return dataclasses.replace(params, c=16)
    return None


def watch(
    target: Target,
    workload: str,
    accesses: int,
    seed: int,
    leak: Leak | None = None,
    until: Callable[[Side], bool] = lambda _: False,
    reopened: int | None = None,
) -> Watched:
    """A run of a store, sound or leaking, under a workload of ``workload.WORKLOADS``. until: when it may end sooner.

    reopened: accesses after which the store is closed and opened again, if it can be; half of them by default.
    """
    side = oblivious(target.scheme, leak, visible(target))
    requests = WORKLOADS[workload].requests(seed)
    shown, labels, choices = list[int](), list[int](), list[tuple[Choice, int]]()
    reopened = accesses // 2 if reopened is None else reopened
    for made, request in zip(range(1, accesses + 1), requests, strict=False):
        side.ask(request)
        if side.recent[-1] >= 0:
            shown.append(side.recent[-1])
            labels.append(_label(request))
        choices += [(choice, _label(request)) for choice in side.sight.choices]
        if made == reopened:
            side.reopen()
        if made % _LOOK == 0:
            side.look()
            if until(side):
                break
    side.look(last=True)
    return Watched(
        workload,
        None if leak is None else leak.name,
        side.accesses,
        tuple(side.findings),
        side.sights,
        tuple(shown),
        tuple(labels),
        tuple(choices),
    )


# --- what was asked for


def _label(request: Request) -> int:
    """A get of the hot key, of another record, of one that is not there, or a put."""
    if request.value is not None:
        return 3
    return 2 if request.record >= RECORDS else int(request.record != HOTTEST)


def on_input(watched: Watched, seed: int) -> Result:
    """Whether what showed depends on what kind of request it was: hot key, other record, miss or put. ValueError for too few accesses."""
    kinds = sorted(set(watched.labels))
    labels = [kinds.index(label) for label in watched.labels]
    return input_conditioned(watched.shown, labels, watched.sights.places, seed)


def slots_on_input(watched: Watched) -> Result:
    """The same of which slot of a bucket a Ring store is asked for. ValueError for too few accesses, and for other stores."""
    return choices_by(
        [choice for choice, _ in watched.choices], np.array([label for _, label in watched.choices], np.int64)
    )


# --- new stores


@dataclasses.dataclass(frozen=True, slots=True)
class Begun:
    """What a new store showed. shown: of each of its records in order, and of the first ``BEGINS`` again.

    pairs: of a hierarchy instead, the pair at each level for each access.
    """

    places: int
    shown: tuple[int, ...]
    pairs: tuple[dict[int, tuple[int, int]], ...]


#: Records that are asked for again; of a hierarchy, all that are put into it: a few tables are enough.
BEGINS = 128


def begin(target: Target, leak: Leak | None = None) -> Begun:
    """A new store under a key that others have too. Trees are loaded in bulk, and all records asked for in order, and some again: first leaves are
    those that it began with, then those that it drew. To a hierarchy, which begins with hash functions, some records are put one by one.
    """
    hierarchy = target.scheme == "cuckoo"
    side = oblivious(target.scheme, leak, visible(target), bytes(32), filled=not hierarchy)
    held, again = records()[: BEGINS if hierarchy else None], records()[:BEGINS]
    shown, pairs = list[int](), list[dict[int, tuple[int, int]]]()
    for turn, asked in enumerate((held, again)):
        for number, (key, value) in enumerate(asked):
            side.ask(Request(number, key, value if hierarchy and not turn else None))
            shown.append(max(0, side.recent[-1]))
            pairs.append(side.sight.pairs)
    return Begun(side.sights.places, tuple(shown), tuple(pairs) if hierarchy else ())


def in_order(begun: Begun) -> Result:
    """Whether the first leaves of records say anything about each other, or their numbers about them: the worst of four tests, Bonferroni within."""
    places, first = begun.places, begun.shown[:RECORDS]
    steps = [(b - a) % places for a, b in itertools.pairwise(first)]
    found = [
        uniform_leaves(first, places),
        same_block_pairs([(number * places // RECORDS, leaf) for number, leaf in enumerate(first)], places),
        serial_independence(first, places),
        same_block_equal([([a], [b]) for a, b in itertools.pairwise(steps)], places),
    ]
    worst = min(found, key=lambda result: result.p_value)
    return dataclasses.replace(worst, p_value=min(1.0, len(found) * worst.p_value))


def alike(one: Begun, other: Begun) -> Result:
    """Whether two new stores show the same more often than by chance: of a hierarchy the worst level, Bonferroni within."""
    if not one.pairs:
        return runs_equal(one.shown, other.shown, one.places)
    levels: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for left, right in zip(one.pairs, other.pairs, strict=True):
        for level in left.keys() & right.keys():
            mine, its = levels.setdefault((level, left[level][1]), ([], []))
            mine.append(left[level][0])
            its.append(right[level][0])
    found = [runs_equal(mine, its, places) for (_, places), (mine, its) in levels.items()]
    worst = min(found, key=lambda result: result.p_value)
    return dataclasses.replace(worst, p_value=min(1.0, len(found) * worst.p_value))


# --- whole runs


def told_apart(target: Target, runs: int, seed: int, leak: Leak | None = None) -> Result:
    """Whether a classifier tells runs of a hot key from runs of a scan: trained on half of them, tested on the rest, the labels fair coins.

    A run is 64 accesses to a store of its own; its features are counts, bytes, and where and how often leaves showed.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, runs)
    features = np.array([_features(target, int(label), leak) for label in labels])
    return classifier(features, labels.tolist())


def _features(target: Target, label: int, leak: Leak | None) -> list[float]:
    trace = TraceBackend(MemoryBackend())
    options: dict[str, Any] = {
        "key": oram.generate_key(), "capacity": 64, "block_size": 64, "scheme": visible(target) or SCHEMES[target.scheme],
        "tree_top": 0, "durability": "process",
    }  # fmt: skip
    store = oram.create(trace, **options) if leak is None else leak.create(trace, **options)
    with store:
        for i in range(32):
            store[b"%d" % i] = b"v"
        trace.clear()
        for i in range(64):
            store.get(b"%d" % (i % 32 if label else 3))
        events, lengths = list(trace.events), sum(size for commit in trace.state_commits for _, size in commit)
        info, trips = store.info(), trace.round_trips
    counts = [float(len(events)), float(trips), float(lengths), float(sum(len(event.indices) for event in events))]
    touched = np.array(
        [
            slot
            for event in events
            if event.op != "write" and event.region.startswith("slots.")
            for slot in event.indices
            if slot >= 0
        ]
    )
    places = (
        np.bincount(touched * 8 // max(1, int(touched.max()) + 1), minlength=8)[:8] if touched.size else np.zeros(8)
    )
    if info["scheme"] in ("path", "ring"):
        leaves = [leaf for row in leaves_of(events, info) for leaf in row]
        repeats = float(sum(a == b for a, b in itertools.pairwise(leaves)))
    else:
        repeats = float(touched.size - np.unique(touched).size)
    return [*counts, *places.astype(float).tolist(), repeats]


# --- power


def detectable(finding: Finding, sights: Sights) -> str:
    """The smallest flaw that this test finds with probability ``POWER``, twice in a row, at its last look; empty before its first one.

    Of exact binomials: exact. Of chi-squares: the root mean square of the deviations, by the noncentral chi-square. Of Kolmogorov-Smirnov: a bound,
    by Hoeffding's inequality at the place where the distributions are farthest apart, so that the true number is smaller.
    """
    level, n, places = finding.level, finding.looked, sights.places
    if level is None:
        return ""
    if level == 0:
        return "any single difference"
    place = sights.place
    if finding.name in ("slot of a bucket", "slots fetched", "cell repeated"):
        return _told(off(n, level), 1, "ranks whose distribution is off by {:.1%} somewhere")
    if (
        finding.name == "slot for a record"
    ):  # so many levels, two orders and two kinds of records, of which one has more
        levels = len(sights.rows)
        share = uneven(n // levels, level / (4 * levels), 9 * 3)
        return _told(
            share, math.sqrt(3), "shares of a quarter of slots off by {:.0%} on average with the record, at one level"
        )
    if finding.name == "same record, same cells":  # one binomial a level, which have about as many observations each
        levels = len(sights.rows) // 2
        again = repeated(n // levels, level / levels, 1 / places**2)
        return _told(again, 1, "the same two cells of the last level again in {:.2%} of cases")
    if finding.name.startswith("same record, same"):
        chance = f"(by chance {1 / places:.2%})"
        return _told(repeated(n, level, 1 / places), 1, f"a {place} shown again in {{:.2%}} of cases {chance}")
    if finding.name.endswith("repeated"):
        chance = f"(by chance {1 / places:.2%})"
        return _told(
            repeated(n, level / LAGS, 1 / places), 1, f"a {place} that comes again in {{:.2%}} of cases {chance}"
        )
    if finding.name.startswith("each"):
        k = bins(n, _SPREAD if place == "cell" else places, lambda k: k, 256)
        return _told(
            uneven(n, level, k - 1), math.sqrt(k - 1), f"shares of {k} groups of places off by {{:.0%}} on average"
        )
    k = bins(n, places, lambda k: k * k, 16)
    of_lags = LAGS if finding.name.startswith("order") else 1
    share = uneven(n, level / of_lags, k * k - 1)
    return _told(share, math.sqrt(k * k - 1), f"shares of {k * k} groups of pairs off by {{:.0%}} on average")


def alike_in(one: Begun, other: Begun) -> str:
    """The least part of look-ups that two new stores have to share to be noticed; of a hierarchy at the level with the most."""
    if not one.pairs:
        n, chance, levels = len(one.shown), 1 / one.places, 1
    else:
        seen = [
            left[level]
            for left, right in zip(one.pairs, other.pairs, strict=True)
            for level in left.keys() & right.keys()
        ]
        counts = Counter(pairs for _, pairs in seen)
        pairs, n = counts.most_common(1)[0]
        chance, levels = 1 / pairs, len(counts)
    return _told(repeated(n, LEVEL / levels, chance), 1, f"the same in {{:.1%}} of accesses (by chance {chance:.2%})")


def ordered(n: int, places: int) -> str:
    """Of ``in_order``: the smallest flaw that its chi-square of numbers and leaves finds."""
    k = bins(n, places, lambda k: k * k, 16)
    return _told(
        uneven(n, LEVEL / 4, k * k - 1), math.sqrt(k * k - 1), f"shares of {k * k} groups off by {{:.0%}} on average"
    )


def slots_conditioned(watched: Watched) -> str:
    """Of ``slots_on_input``, where all levels are read about as often."""
    levels, kinds = len(watched.sights.rows), len({label for _, label in watched.choices})
    share = uneven(len(watched.choices) // levels, LEVEL / (2 * levels), 3 * kinds)
    return _told(
        share, math.sqrt(3), "shares of a quarter of slots off by {:.0%} on average with the request, at one level"
    )


def _told(flaw: float, most: float, says: str) -> str:
    """In words, where there can be such a flaw at all."""
    return says.format(flaw) if flaw < most else ""


def repeated(n: int, level: float, chance: float) -> float:
    """Of an exact binomial of n trials: the probability of success that is found, where it should be ``chance``."""
    least = int(scipy_stats.binom.isf(level, n, chance)) + 1
    low, high = chance, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if scipy_stats.binom.sf(least - 1, n, middle) >= _ONCE else (middle, high)
    return high


def uneven(n: int, level: float, df: int) -> float:
    """Of a chi-square: the deviation of the bins' shares that is found, as a part of these, root mean square."""
    critical = float(scipy_stats.chi2.isf(level, df))
    low, high = 0.0, 10 * (critical + 100)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if scipy_stats.ncx2.sf(critical, df, max(middle, 1e-9)) >= _ONCE else (middle, high)
    return math.sqrt(high / n)


def uneven_permuted(n: int, df: int) -> float:
    """The same of a permutation test of such a statistic, which has to be larger than in any permutation: the largest of so many is a random number too."""
    shares = (np.arange(2000) + 0.5) / 2000
    critical = scipy_stats.chi2.isf(-np.expm1(np.log(shares) / PERMUTATIONS), df)
    low, high = 0.0, 10 * (float(critical[-1]) + 100)
    for _ in range(60):
        middle = (low + high) / 2
        found = float(np.mean(scipy_stats.ncx2.sf(critical, df, max(middle, 1e-9))))
        low, high = (low, middle) if found >= _ONCE else (middle, high)
    return math.sqrt(high / n)


def off(n: int, level: float) -> float:
    """Of Kolmogorov-Smirnov: the distance of the distributions that is found."""
    return float(scipy_stats.kstwo.isf(level, n)) + math.sqrt(math.log(1 / (1 - _ONCE)) / (2 * n))


def classified(tested: int) -> str:
    """The least part of runs that a classifier has to get right to be noticed."""
    return _told(repeated(tested, LEVEL, 0.5), 1, "workloads that can be told apart in {:.1%} of runs")


def conditioned(n: int, places: int, labels: int) -> str:
    """The same of ``input_conditioned``, whose statistic has nearly a chi-square distribution."""
    k = bins(n, places, lambda k: k, 16)
    df = (k - 1) * (labels - 1)
    return _told(
        uneven_permuted(n, df),
        math.sqrt(df),
        "shares of places that differ by {:.0%} on average with what was asked",
    )
