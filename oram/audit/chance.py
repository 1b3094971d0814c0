"""Statistical checks of the randomness that shows, with their false-alarm rates, and with what they could have found.

They watch a store of the same scheme and parameters with nothing in the client's cache and pages of one bucket, so that every leaf or pair of cells
shows: what a cache hides can only be less. Each test is that of ``running``, whose alarms have one rate for all looks of a run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

import oram
from oram.audit.leaks import Leak
from oram.audit.place import Target
from oram.audit.running import ALPHA, Finding, Statistical
from oram.audit.sides import SCHEMES, Side, oblivious
from oram.audit.workload import WORKLOADS
from oram.backends import MemoryBackend
from oram.params import PathParams, RingParams, SchemeParams
from oram.testing.randomness import leaves_of
from oram.testing.statistics import LEVEL, Result, classifier
from oram.trace import TraceBackend

__all__ = ["POWER", "Watched", "detectable", "told_apart", "watch"]

#: Probability with which a flaw of the size named would have been found.
POWER = 0.99

_LOOK = 25  # accesses between two looks


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """One run: what was asked for, accesses, and where its tests stand at the end. leak: None of a sound store."""

    workload: str
    leak: str | None
    accesses: int
    findings: tuple[Finding, ...]

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
    return None


def watch(
    target: Target,
    workload: str,
    accesses: int,
    seed: int,
    leak: Leak | None = None,
    until: Callable[[Side], bool] = lambda _: False,
) -> Watched:
    """A run of a store, sound or leaking, under a workload of ``workload.WORKLOADS``. until: when it may end sooner."""
    side = oblivious(target.scheme, leak, visible(target))
    requests = WORKLOADS[workload].requests(seed)
    for made, request in zip(range(1, accesses + 1), requests, strict=False):
        side.ask(request)
        if made % _LOOK == 0:
            side.look()
            if until(side):
                break
    return Watched(workload, None if leak is None else leak.name, side.accesses, tuple(side.findings))


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


def detectable(finding: Finding, places: int) -> str:
    """The smallest flaw that this test finds with probability ``POWER`` at its number of observations; empty where there is no such number."""
    level, n = finding.level, finding.seen
    if not level or n < 2:
        return "any single difference" if finding.level == 0.0 else ""
    if "repeated" in finding.name or finding.name.startswith("same record, same"):
        chance = 1 / places
        least = int(scipy_stats.binom.isf(level, n, chance)) + 1
        low, high = chance, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if scipy_stats.binom.sf(least - 1, n, middle) >= POWER else (middle, high)
        return f"a place that comes again in {high:.2%} of cases (chance: {chance:.2%})"
    cells = 16**2 if finding.name.startswith(("order", "same record, near")) else min(256, places)
    df = max(1, cells - 1)
    critical = float(scipy_stats.chi2.isf(level, df))
    low, high = 0.0, 10 * (critical + 100)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if scipy_stats.ncx2.sf(critical, df, max(middle, 1e-9)) >= POWER else (middle, high)
    return f"places that are off their even share by {math.sqrt(high / n):.0%} (root mean square)"


def share(tests: int) -> float:
    """Of the total false-alarm rate, for each of so many tests."""
    return min(LEVEL, ALPHA / tests)


def is_statistical(test: object) -> bool:
    return isinstance(test, Statistical)
