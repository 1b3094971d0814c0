"""Statistics of the leaves, each with its false-positive rate, on fixed seeds. What they reject is in tests/controls.

``ORAM_SEED`` chooses other seeds: then one run in a million fails although nothing is wrong.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import MemoryBackend
from oram.store import ObliviousStore
from oram.testing import statistics
from oram.testing.randomness import Coins, leaves_of, pinned
from oram.testing.statistics import ALPHA_TOTAL, FAMILY, LEVEL, Result, confirmed
from oram.trace import Event, TraceBackend

SEED = int(os.environ.get("ORAM_SEED", "0"))
RECORDS = 128
N = 3000


def create(**options: Any) -> tuple[ObliviousStore, TraceBackend]:
    trace = TraceBackend(MemoryBackend())
    usual: dict[str, Any] = {"scheme": oram.PathParams(page_levels=1), "tree_top": 0, "durability": "none"}
    store = oram.create(trace, key=bytes(32), capacity=RECORDS, block_size=32, **{**usual, **options})
    return store, trace


@cache
def history(seed: int, accesses: int = N, top: int = 0) -> tuple[list[int], list[int], list[int], int]:
    """Leaves of single accesses; for each the number of its key, and what it was (get, put, delete: hit or miss); number of leaves."""
    with pinned(Coins(1000 * SEED + seed)):
        store, trace = create(tree_top=top)
        source = random.Random(seed)
        ids, kinds = [], []
        for _ in range(accesses):
            i = source.randrange(12) if source.random() < 0.5 else source.randrange(2 * RECORDS // 3)
            key = b"%d" % i
            hit, what = key in store, source.choice("gggppd")
            if what == "g":
                store.get(key)
            elif what == "p":
                store[key] = b"v" * source.randrange(20)
            else:
                store.pop(key, None)
            ids.append(i)
            kinds.append(2 * "gpd".index(what) + hit)
    info = store.info()
    return [shown[0] for shown in leaves_of(trace.events, info)], ids, kinds, 1 << info["L"]


def same_key(values: list[int], ids: list[int], kinds: list[int]) -> list[tuple[int, int]]:
    """Leaves at one access to a key that was there, and at the next access to it."""
    last: dict[int, int] = {}
    pairs = []
    for value, i, kind in zip(values, ids, kinds, strict=True):
        if i in last and kind % 2:
            pairs.append((last[i], value))
        last[i] = value
    return pairs


@pytest.mark.parametrize("top", [0, 300])
def test_leaves(top: int) -> None:
    values, ids, kinds, leaves = history(1, top=top)
    pairs = same_key(values, ids, kinds)
    assert len(pairs) > 800
    results = [
        statistics.uniform_leaves(values, leaves),
        statistics.serial_independence(values, leaves),
        statistics.same_block_equal([([a], [b]) for a, b in pairs], leaves),
        statistics.same_block_pairs(pairs, leaves),
        statistics.runs_equal(values, history(2, top=top)[0], leaves),
    ]
    assert [result for result in results if not result.passed] == []
    assert all(result.level == LEVEL for result in results)


@pytest.mark.parametrize("label", ["id", "operation", "hit or miss"])
def test_leaves_do_not_depend_on_what_is_asked(label: str) -> None:
    def test(seed: int) -> Result:
        values, ids, kinds, leaves = history(10 + seed, 2000)
        labels = {
            "id": [i % 8 for i in ids],
            "operation": [k // 2 for k in kinds],
            "hit or miss": [k % 2 for k in kinds],
        }
        return statistics.input_conditioned(values, labels[label], leaves, seed)

    assert confirmed(test).passed


def run(world: int, seed: int) -> Any:
    """One run of one of two worlds, as features: histograms of leaves and of their differences."""
    with pinned(Coins(100_000 * SEED + seed)):
        store, trace = create()
        for i in range(50):
            if world:
                store.put(b"%d" % i, b"x" * 20)
            else:
                store.get(b"hot")
    values = np.array([shown[0] for shown in leaves_of(trace.events, store.info())])
    leaves = 1 << store.info()["L"]
    steps = (values[1:] - values[:-1]) % leaves
    return np.concatenate([np.bincount(each * 8 // leaves, minlength=8) for each in (values, steps)]).astype(np.float64)


def test_whole_runs() -> None:
    def test(seed: int) -> Result:
        left, right = (np.array([run(world, 1000 * seed + 100 * world + i) for i in range(12)]) for world in (0, 1))
        return statistics.two_world_runs(left, right, seed)

    assert confirmed(test).passed


def test_a_classifier_learns_nothing() -> None:
    labels = [random.Random(f"label {SEED} {i}").getrandbits(1) for i in range(120)]
    assert statistics.classifier(np.array([run(label, 5000 + i) for i, label in enumerate(labels)]), labels).passed


# --- the tests themselves


def test_levels_add_up() -> None:
    assert pytest.approx(ALPHA_TOTAL) == LEVEL * FAMILY
    assert (1 / (1 + statistics.PERMUTATIONS)) ** 2 < LEVEL


def uniform(seed: int, n: int = 4000) -> list[int]:
    values: list[int] = np.random.default_rng(seed).integers(0, 64, n).tolist()
    return values


P_VALUES: dict[str, Callable[[int], Result]] = {
    "uniform": lambda seed: statistics.uniform_leaves(uniform(seed), 64),
    "pairs": lambda seed: statistics.same_block_pairs(
        list(zip(uniform(seed), uniform(seed + 10_000), strict=True)), 64
    ),
    "serial": lambda seed: statistics.serial_independence(uniform(seed), 64),
    "equal": lambda seed: statistics.runs_equal(uniform(seed), uniform(seed + 10_000), 64),
    "same block": lambda seed: statistics.same_block_equal(
        [([a], [b]) for a, b in zip(uniform(seed, 500), uniform(seed + 10_000, 500), strict=True)], 64
    ),
    "classifier": lambda seed: statistics.classifier(
        np.random.default_rng(seed).normal(size=(200, 4)),
        np.random.default_rng(seed + 10_000).integers(0, 2, 200).tolist(),
        steps=20,
    ),
}


@pytest.mark.parametrize("name", P_VALUES)
def test_p_values_are_valid(name: str) -> None:
    """Under the null hypothesis, P(p <= x) is at most x: here 300 trials at x = 0.1, with a margin of more than 6 standard deviations."""
    ps = np.array([P_VALUES[name](seed).p_value for seed in range(300)])
    assert (ps <= 0.1).sum() <= 30 + 33
    assert ps.max() > 0.5


def test_too_few_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="few"):
        statistics.uniform_leaves([1, 2, 3], 64)


def test_confirmation() -> None:
    """One failure is looked at again; two are one."""

    def outcome(*ps: float) -> Result:
        return confirmed(lambda seed: Result("test", seed, ps[seed], 1e-3))

    assert outcome(0.5).passed
    assert outcome(1e-4, 0.5).passed
    assert not outcome(1e-4, 1e-4).passed


def test_exact_checks_of_ciphertexts_can_fail() -> None:
    data = np.arange(64, dtype=np.uint8).reshape(2, 32)
    same = [Event("write", "slots.1", (0, 1), 32, trip, data) for trip in (0, 1)]
    assert statistics.constant_lengths(same).passed
    assert not statistics.changed_everywhere(same).passed
    half = data.copy()
    half[0, :16] += 1
    half[1] += 1
    assert not statistics.changed_everywhere([same[0], Event("write", "slots.1", (0, 1), 32, 1, half)]).passed
    assert statistics.changed_everywhere([same[0], Event("write", "slots.1", (0, 1), 32, 1, data + 1)]).passed
    longer = Event("write", "slots.1", (0,), 33, 2, np.zeros((1, 33), np.uint8))
    assert not statistics.constant_lengths([*same, longer]).passed
