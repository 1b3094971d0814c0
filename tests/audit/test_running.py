"""Tests that are looked at again and again: their levels, their looks, their alarms."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from oram.audit.running import ALPHA, MOST, Exact, Statistical, battery, choices_by, chosen_for
from oram.audit.sides import oblivious, plain
from oram.audit.sights import Choice, PlainSights, Sight
from oram.testing.statistics import Result


def one(sight: Sight, record: int) -> Iterable[int]:
    return [record]


def fed(p_values: dict[int, float], accesses: int, tests: int = 4) -> tuple[Statistical, list[int], list[float]]:
    """A test with these p-values by number of observations, 1 for others; at which numbers it looked, and at which levels."""
    looks, levels = list[int](), list[float]()

    def test(seen: list[Any]) -> Result:
        if len(seen) < 60:
            raise ValueError
        looks.append(len(seen))
        return Result("", 0.0, p_values.get(len(seen), 1.0), 0.0)

    running = Statistical("", "", tests, one, test)
    for i in range(accesses):
        running.see(Sight(), i)
        running.look()
        if len(looks) > len(levels):
            levels.append(running.finding.level or 0.0)
    return running, looks, levels


def test_all_looks_there_can_be_spend_no_more_than_the_share() -> None:
    running, looks, levels = fed({}, 50_000)
    assert looks[0] == 62  # not at 50, of which the test says that they are too few
    assert all(later == pytest.approx(1.25 * now, abs=1) for now, later in pairwise(looks))
    assert levels == pytest.approx([ALPHA / 4 / (j * (j + 1)) for j in range(1, len(looks) + 1)])
    assert sum(levels) < ALPHA / 4
    assert sum(1 / (j * (j + 1)) for j in range(1, 10_000)) < 1
    assert running.finding.state == "quiet"


def test_an_alarm_is_at_the_level_and_stays() -> None:
    _, looks, levels = fed({}, 1000)
    at, level = looks[3], levels[3]
    quiet, _, _ = fed({at: level * 1.01}, 1000)
    assert quiet.finding.alarm is None
    loud, _, _ = fed({at: level}, 1000)
    assert (loud.finding.alarm, loud.finding.state, loud.finding.seen) == (at, "alarm", 1000)


def test_the_end_of_a_run_is_looked_at() -> None:
    """What was seen since the last look, at a level of its own; once, and not where nothing came or too little is there."""
    running, looks, levels = fed({999: 0.0}, 999)
    before = running.finding
    assert (before.looked, before.seen) == (looks[-1], 999)
    assert looks[-1] < 999
    running.look(last=True)
    after = running.finding
    assert (after.looked, after.alarm, looks[-1]) == (999, 999, 999)
    assert after.level == pytest.approx(ALPHA / 4 / ((len(levels) + 1) * (len(levels) + 2)))
    again, looks, _ = fed({}, 999)
    again.look(last=True)
    again.look(last=True)
    assert looks.count(999) == 1
    few, looks, _ = fed({}, 40)
    few.look(last=True)
    assert (few.finding.state, looks) == ("waiting", [])


def test_choices_for_kinds_of_requests() -> None:
    """Uniform choices are quiet whatever is asked for; those of one kind that prefer a half of the slots are not, at the level where they do."""
    draw = np.random.default_rng(4)
    kinds, levels = draw.integers(0, 2, 4000), np.arange(4000) % 5
    sizes = draw.integers(5, 11, 4000)
    ranks = draw.integers(0, sizes)
    odd = np.where((levels == 3) & (kinds == 1), draw.integers(0, sizes // 2), ranks)
    p_values = []
    for even in (ranks, odd):
        seen = [Choice(*each) for each in zip(*(a.tolist() for a in (levels, ranks, even, sizes)), strict=True)]
        p_values.append(choices_by(seen, kinds).p_value)
    assert p_values[0] > 1e-3
    assert p_values[1] < 1e-9
    with pytest.raises(ValueError, match="too few"):
        choices_by(seen[:50], kinds[:50])


def test_levels_of_choices_are_kept() -> None:
    """Of many samples of uniform choices, as many have a p-value below a bound as it says, or fewer."""
    draw = np.random.default_rng(5)
    sizes = np.full(1000, 10)
    p = [chosen_for(draw.integers(0, 9, 1000), draw.integers(0, 10, 1000), sizes).p_value for _ in range(2000)]
    assert np.mean(np.array(p) < 0.01) < 0.02


def test_before_the_first_look() -> None:
    running, _, _ = fed({}, 40)
    assert (running.finding.state, running.finding.p_value, running.finding.seen) == ("waiting", None, 40)


def test_a_test_rests_at_last() -> None:
    sizes = list[int]()

    def test(seen: list[Any]) -> Result:
        sizes.append(len(seen))
        return Result("", 0.0, 1.0, 0.0)

    running = Statistical("", "", 1, lambda sight, record: range(10_000), test)
    for i in range(100):
        running.see(Sight(), i)
        running.look()
    assert running.finding.seen == MOST
    assert sizes[-1] <= MOST


def test_an_exact_check_knows_no_chance() -> None:
    running = Exact("", "", lambda sight: sight.as_said)
    for said in (True, True, False, True):
        running.see(Sight(as_said=said), 0)
    assert (running.finding.alarm, running.finding.statistic, running.finding.level) == (3, 1, 0.0)


@pytest.mark.parametrize("scheme", ["path", "ring", "cuckoo", "linear"])
def test_shares_of_a_store_add_up(scheme: str) -> None:
    for side in (plain(), oblivious(scheme, None)):
        shares = [test._share for test in side.tests if isinstance(test, Statistical)]
        assert not shares or sum(shares) == pytest.approx(ALPHA)


def test_the_plain_tests_say_which_of_them_found_what() -> None:
    """Each way to be odd is found by the test that is named for it, and uniform independent places by none."""
    draw = random.Random(7)
    uniform = [draw.randrange(512) for _ in range(4000)]
    twice = [value for value in uniform for _ in range(2)]
    moving = [i * 3 % 512 for i in range(4000)]
    by_record = [(i % 90 * 5, i % 90) for i in draw.sample(range(9000), 4000)]

    def loud(seen: Iterable[tuple[int, int]]) -> set[str]:
        tests = battery(PlainSights(512))
        for place, record in seen:
            for test in tests:
                test.see(Sight((place,)), record)
                test.look()
        return {test.finding.name for test in tests if test.finding.alarm is not None}

    assert loud((value, i % 90) for i, value in enumerate(uniform)) == set()
    assert "each slot alike" in loud((value * value // 512, i % 90) for i, value in enumerate(uniform))
    assert "slot repeated" in loud((value, i) for i, value in enumerate(twice))
    assert "order of accesses" in loud((value, i) for i, value in enumerate(moving))
    assert {"same record, same slot", "same record, near slot"} <= loud(by_record)
