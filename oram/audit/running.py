"""Tests of what was seen so far that are looked at again and again, and yet have one false-alarm rate for the whole run.

Who looks at a test often enough sees every level passed some day. So each look has a level of its own: the share of a test is ``ALPHA / tests``, and
its j-th look spends 1 / (j (j + 1)) of it, which sums to 1 over all looks there can ever be (Bonferroni, twice). Looks come at numbers of
observations that grow by a quarter each time, so few of them cover a long run. An alarm stays until the run ends.

The statistics, their nulls and what they detect are those of ``oram.testing.statistics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import stats as scipy_stats

from oram.audit.sights import Choice, CuckooSights, LinearSights, PlainSights, RingSights, Sight, Sights
from oram.audit.workload import RECORDS
from oram.testing import statistics
from oram.testing.statistics import Result
from oram.types import I64

__all__ = ["ALPHA", "MOST", "Exact", "Finding", "Running", "Statistical", "battery", "choices_by", "chosen_for"]

#: Probability that a run of a sound store, however long, raises any alarm.
ALPHA = statistics.ALPHA_TOTAL
#: Observations after which a statistical test rests: what is there to be found, it has found long before.
MOST = 200_000

LAGS = 8  # accesses within which repeats and dependence are looked for
FEWEST = 50  # observations before the first look

Gather: TypeAlias = Callable[
    [Sight, int], Iterable[Any]
]  # observations of an access, and of the record that was asked for


@dataclass(frozen=True, slots=True)
class Finding:
    """Where a test stands.

    null: what is so if the store is sound. told: whether it needs to be told which record was asked for, which the server is not. seen: observations.
    statistic, p_value, level: of the last look, None before it; level 0 is an exact check. looked: observations at that look. alarm: at which it was
    raised.
    """

    name: str
    null: str
    told: bool
    seen: int
    statistic: float | None
    p_value: float | None
    level: float | None
    looked: int
    alarm: int | None

    @property
    def state(self) -> Literal["waiting", "quiet", "alarm"]:
        """waiting: too few observations for a look."""
        if self.alarm is not None:
            return "alarm"
        return "waiting" if self.p_value is None else "quiet"


class Running:
    """One test of a run."""

    exact = False

    def __init__(self, name: str, null: str, *, told: bool = False) -> None:
        self._name, self._null, self._told = name, null, told
        self._seen = self._looked = 0
        self._last: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
        self._alarm: int | None = None

    def see(self, sight: Sight, record: int) -> None:
        """An access, and the record that was asked for."""
        raise NotImplementedError

    def look(self, *, last: bool = False) -> None:
        """Look, if it is time to. last: nothing more comes, so that it is if anything came since."""

    @property
    def finding(self) -> Finding:
        """Where it stands."""
        statistic, p_value, level = self._last
        return Finding(
            self._name, self._null, self._told, self._seen, statistic, p_value, level, self._looked, self._alarm
        )


class Exact(Running):
    """A check without false alarms: each access is as it has to be."""

    exact = True

    def __init__(self, name: str, null: str, holds: Callable[[Sight], bool]) -> None:
        super().__init__(name, null)
        self._holds, self._odd = holds, 0

    def see(self, sight: Sight, record: int) -> None:  # noqa: ARG002
        self._seen = self._looked = self._seen + 1
        if not self._holds(sight):
            self._odd += 1
            self._alarm = self._alarm or self._seen
        self._last = self._odd, float(not self._odd), 0.0


class Statistical(Running):
    """A test at its share of ``ALPHA``.

    tests: how many there are in the run. gather: its observations of an access. test: of all observations; ValueError if they are too few, which has
    to depend on their number alone.
    """

    def __init__(
        self,
        name: str,
        null: str,
        tests: int,
        gather: Gather,
        test: Callable[[list[Any]], Result],
        *,
        told: bool = False,
    ) -> None:
        super().__init__(name, null, told=told)
        self._share, self._gather, self._test = ALPHA / tests, gather, test
        self._observed: list[Any] = []
        self._looks, self._next = 0, FEWEST

    def see(self, sight: Sight, record: int) -> None:
        if self._seen < MOST:
            self._observed += self._gather(sight, record)
            self._seen = len(self._observed)

    def look(self, *, last: bool = False) -> None:
        due = self._seen > max(self._looked, FEWEST - 1) if last else self._seen >= self._next
        if not due or self._alarm is not None:
            return
        self._next = self._seen + self._seen // 4
        try:
            result = self._test(self._observed)
        except ValueError:
            return
        self._looks, self._looked = self._looks + 1, self._seen
        level = self._share / (self._looks * (self._looks + 1))
        self._last = result.statistic, result.p_value, level
        if result.p_value <= level:
            self._alarm = self._seen


# --- what is observed, and how it is tested


def _shown(sight: Sight, record: int) -> Sequence[int]:  # noqa: ARG001
    return sight.shown


def _ranks(sight: Sight, record: int) -> Sequence[tuple[int, int]]:  # noqa: ARG001
    return sight.ranks


def _fetched(sight: Sight, record: int) -> Sequence[tuple[int, int]]:  # noqa: ARG001
    return sight.fetched


def _choices(sight: Sight, record: int) -> Iterable[tuple[Choice, int]]:
    return [(choice, record) for choice in sight.choices]


def _cells(sight: Sight, record: int) -> Sequence[tuple[int, int]]:  # noqa: ARG001
    return sight.cells


def _in_turn() -> Gather:
    """What a request for a record showed, and what the next request for it did."""
    last: dict[int, tuple[int, ...]] = {}

    def gather(sight: Sight, record: int) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
        before = last.get(record)
        if sight.shown:
            last[record] = sight.shown
        return [(before, sight.shown)] if before and sight.shown else []

    return gather


def _in_turn_by_level() -> Gather:
    """The same of a hierarchy: level, the two pairs of cells, and how many pairs there are."""
    last: dict[tuple[int, int], int] = {}

    def gather(sight: Sight, record: int) -> Iterable[tuple[int, int, int, int]]:
        found = []
        for level, (pair, pairs) in sight.pairs.items():
            before = last.get((record, level))
            last[record, level] = pair
            if before is not None:
                found.append((level, before, pair, pairs))
        return found

    return gather


def _worst(results: Iterable[Result]) -> Result:
    """The smallest p-value, times how many there are."""
    found = list(results)
    worst = min(found, key=lambda result: result.p_value)
    return Result(worst.name, worst.statistic, min(1.0, len(found) * worst.p_value), worst.level)


def _repeats(places: int) -> Callable[[list[int]], Result]:
    return lambda seen: _worst(statistics.runs_equal(seen[:-lag], seen[lag:], places) for lag in range(1, LAGS + 1))


def _pairs(places: int) -> Callable[[list[tuple[tuple[int, ...], tuple[int, ...]]]], Result]:
    return lambda seen: statistics.same_block_pairs([(left[0], right[0]) for left, right in seen], places)


def _by_level(seen: list[tuple[int, int, int, int]]) -> Result:
    levels: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {}
    for level, before, pair, pairs in seen:
        levels.setdefault((level, pairs), []).append(([before], [pair]))
    return _worst(statistics.same_block_equal(each, pairs) for (_, pairs), each in levels.items())


def _spread(seen: list[tuple[int, int]]) -> Result:
    """Of numbers below bounds of their own, each put in the middle of its step at random."""
    scale = 1 << 20
    return statistics.uniform_leaves((statistics.spread(seen, 1) * scale).astype(int).tolist(), scale)


def _ranked(seen: list[tuple[int, int]]) -> Result:
    return statistics.uniform_ranks(seen, 2)


def chosen_for(kinds: I64, ranks: I64, sizes: I64) -> Result:
    """Chi-square of whether a choice depends on what kind of request it was made for. ValueError for too few of each kind.

    kinds: small integers. ranks: of what was chosen, in an order that does not depend on the request, among ``sizes``: uniform whatever came before,
    if the store is sound. So for each kind so many are expected in each of k equal parts: df = kinds (k - 1), over kinds that are often enough there.
    """
    counts = np.bincount(kinds)
    often = np.flatnonzero(counts >= _LEAST * _PARTS)
    if not often.size:
        raise ValueError("too few observations of each kind for a chi-square test")
    placed = (statistics.spread(zip(ranks.tolist(), sizes.tolist(), strict=True), 3) * _PARTS).astype(np.int64)
    table = np.bincount(kinds * _PARTS + placed, minlength=counts.size * _PARTS).reshape(-1, _PARTS)[often]
    expected = counts[often, np.newaxis] / _PARTS
    found = float(((table - expected) ** 2 / expected).sum())
    p = float(scipy_stats.chi2.sf(found, often.size * (_PARTS - 1)))
    return Result("chosen for", found, p, statistics.LEVEL)


_PARTS, _LEAST = 4, 20  # of a choice; expected in each of them
_GROUPS = 8  # of records with neighbouring numbers


def _chosen(seen: list[tuple[Choice, int]]) -> Result:
    """Records by whether their numbers are odd, and by how large these are; those that are not there are one more kind."""
    records = np.array([record for _, record in seen], np.int64)
    there = records < RECORDS
    parity, group = np.where(there, records % 2, 2), np.where(there, records * _GROUPS // RECORDS, _GROUPS)
    return choices_by([choice for choice, _ in seen], parity, group)


def choices_by(seen: Sequence[Choice], *kinds: I64) -> Result:
    """The worst of ``chosen_for`` at each level, in both orders, and for each way to sort the requests into kinds. ValueError for too few."""
    levels, ascending, even_first, sizes = np.array(seen, np.int64).reshape(-1, 4).T
    found = []
    for level in np.unique(levels):
        rows = levels == level
        for each in kinds:
            for ranks in (ascending, even_first):
                with suppress(ValueError):  # of a level that few accesses read
                    found.append(chosen_for(each[rows], ranks[rows], sizes[rows]))
    if not found:
        raise ValueError("too few observations at each level")
    return _worst(found)


# --- the tests of a store


def _of_places(place: str, places: int, tests: int) -> list[Running]:
    def test(
        name: str, null: str, gather: Gather, test: Callable[[list[Any]], Result], *, told: bool = False
    ) -> Running:
        return Statistical(name, null, tests, gather, test, told=told)

    return [
        test(
            f"each {place} alike", f"each {place} is shown as often as any other (chi-square)",
            _shown, lambda seen: statistics.uniform_leaves(seen, places),
        ),
        test(
            f"{place} repeated", f"the {place} of an access comes again in the next {LAGS} as often as by chance (exact binomials)",
            _shown, _repeats(places),
        ),
        test(
            "order of accesses", f"a {place} says nothing about those of the next {LAGS} accesses (chi-square of pairs)",
            _shown, lambda seen: statistics.serial_independence(seen, places, LAGS),
        ),
        test(
            f"same record, same {place}", f"a record that is asked for again shows the same {place} as often as by chance (exact binomial)",
            _in_turn(), lambda seen: statistics.same_block_equal(seen, places), told=True,
        ),
        test(
            f"same record, near {place}", f"what it showed before says nothing about the {place} it shows now (chi-square of pairs)",
            _in_turn(), _pairs(places), told=True,
        ),
    ]  # fmt: skip


def _of_ring(sights: RingSights) -> list[Running]:
    tests = _of_places(sights.place, sights.places, 8)
    choice = "of a bucket's slots not read yet, each is read alike (Kolmogorov-Smirnov)"
    rewritten = "when a bucket is written anew, of its slots not read yet each is fetched alike (Kolmogorov-Smirnov)"
    request = "which slot of a bucket is read says nothing about the record that is asked for (chi-squares, by level)"
    return [
        *tests,
        Statistical("slot of a bucket", choice, 8, _ranks, _ranked),
        Statistical("slots fetched", rewritten, 8, _fetched, _ranked),
        Statistical("slot for a record", request, 8, _choices, _chosen, told=True),
    ]


def _of_cuckoo() -> list[Running]:
    alike = "each cell of a table is looked into alike (chi-square)"
    again = "a cell is looked into again, before its table is rebuilt, as often as by chance (Kolmogorov-Smirnov)"
    same = (
        "a record that is asked for again is looked for in the same two cells as often as by chance (exact binomials)"
    )
    return [
        Statistical("each cell alike", alike, 3, _cells, _spread),
        Statistical("cell repeated", again, 3, _ranks, _ranked),
        Statistical("same record, same cells", same, 3, _in_turn_by_level(), _by_level, told=True),
    ]


def _exact() -> list[Running]:
    said = "which slots are read and written, in which order, follows from what is shown above and from public numbers"
    lengths = "what goes to the journal has lengths that follow from public numbers"
    return [
        Exact("as the simulator says", said, lambda sight: sight.as_said),
        Exact("journal lengths", lengths, lambda sight: sight.committed),
    ]


def battery(sights: Sights) -> list[Running]:
    """The tests of a store that is seen like this; a new run of them."""
    match sights:
        case PlainSights():
            return _of_places(sights.place, sights.places, 5)
        case RingSights():
            return [*_of_ring(sights), *_exact()]
        case CuckooSights():
            return [*_of_cuckoo(), *_exact()]
        case LinearSights():
            return _exact()
        case _:
            return [*_of_places(sights.place, sights.places, 5), *_exact()]
