"""Stores of several shards: each shard sees what a store by itself shows for B(R, k) requests, whatever is asked and wherever it is."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import Backend, MemoryBackend, ShardedBackend
from oram.engine import Engine
from oram.errors import ParameterError
from oram.params import OVERFLOW_BITS, ShardedGeometry, Table, shard_batch
from oram.params.sharded import overflows
from oram.store import ObliviousStore
from oram.testing.randomness import Coins, looked_up, pinned
from oram.testing.remote import RemoteBackend
from oram.testing.simulators import ShardedSimulator, by_shard, each_gets, shown, simulator
from oram.testing.worlds import PAIRS, RECORDS, Make, Pair, Work, observe, same
from oram.trace import TraceBackend

from .test_simulators import KEY, Apart, Fragile, Remote, mixed

LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=1), "tree_top": 0, "shards": 2},
    "path, cached top": {"scheme": oram.PathParams(page_levels=2), "tree_top": 1500, "shards": 3},
    "two blocks a value": {"scheme": oram.PathParams(page_levels=2), "tree_top": 0, "blocks_per_value": 2, "shards": 3},
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6), "tree_top": 0, "shards": 2},
    "ring, read one by one": {"scheme": oram.RingParams(Z=4, A=3, S=3, xor=False), "tree_top": 1500, "shards": 3},
    "ring, metadata there": {"scheme": oram.RingParams(Z=3, A=1, S=1, metadata="server"), "tree_top": 0, "shards": 2},
    "linear": {"scheme": "linear", "shards": 4},
}
PLACES: dict[str, tuple[Callable[[], Backend], dict[str, bool]]] = {
    "joint": (MemoryBackend, {}),
    "apart": (Apart, {"joint": False}),
    "torn": (Fragile, {"joint": False, "atomic": False}),
    "remote": (Remote, {"joint": False, "remote": True}),
}


def maker(options: dict[str, Any], new: Callable[[], Backend] = MemoryBackend) -> Make:
    def make() -> tuple[ObliviousStore, TraceBackend]:
        trace = TraceBackend(new())
        usual: dict[str, Any] = {"key": KEY, "capacity": 60, "block_size": 40, "durability": "process"}
        return oram.create(trace, **{**usual, **options}), trace

    return make


# --- how many requests each shard gets


@pytest.mark.parametrize("k", [2, 3, 4, 7, 16])
def test_the_number_is_the_smallest_that_the_bound_allows(k: int) -> None:
    for R in [*range(1, 70), 128, 200]:
        least = Fraction(1, 1 << OVERFLOW_BITS)

        def above(B: int, R: int = R) -> Fraction:
            return Fraction(k * sum(math.comb(R, i) * (k - 1) ** (R - i) for i in range(B + 1, R + 1)), k**R)

        B = shard_batch(R, k)
        assert above(B) <= least
        assert -(-R // k) == B or above(B - 1) > least
        assert each_gets(R, {"shards": k, "blocks": 1 << 20}) == B


def test_it_bounds_what_a_permutation_does() -> None:
    """Every way to put R of N addresses into k shards of N / k places, counted: never more of them overflow than the bound says."""
    for N, k, R in [(8, 2, 4), (9, 3, 5), (10, 2, 6), (12, 3, 6), (12, 4, 5)]:
        ways = [tuple(at // (N // k) for at in places) for places in itertools.combinations(range(N), R)]
        for B in range(-(-R // k), R + 1):
            over = Fraction(sum(max(way.count(j) for j in range(k)) > B for way in ways), len(ways))
            bound = k * sum(Fraction(math.comb(R, i) * (k - 1) ** (R - i), k**R) for i in range(B + 1, R + 1))
            assert over <= bound


#: Of research on proxies that are sharded: the closed bound of Snoopy, for 2^-128, at (R, k).
SNOOPY = {(64, 4): 64, (256, 4): 199, (256, 8): 135, (1024, 2): 844, (1024, 4): 500, (1024, 8): 309, (4096, 8): 846}


def _closed(R: int, k: int, bits: int) -> float:
    """Snoopy, section 4.1: m exp(W0(e^-1 (gamma / m - 1)) + 1), m = R / k, gamma = ln(k 2^bits), W0 by Newton's method."""
    m, gamma = R / k, math.log(k) + bits * math.log(2)
    x = (gamma / m - 1) / math.e
    w = math.log1p(abs(x))
    for _ in range(60):
        w -= (w * math.exp(w) - x) / (math.exp(w) * (w + 1))
    return min(R, m * math.exp(w + 1))


@pytest.mark.parametrize(("R", "k"), SNOOPY)
def test_it_is_below_the_bound_of_the_paper(R: int, k: int) -> None:
    """Below that for the same probability too, as a closed form gives something away."""
    assert math.ceil(_closed(R, k, 128)) == pytest.approx(SNOOPY[R, k], abs=1)
    assert shard_batch(R, k) <= _closed(R, k, 80) < SNOOPY[R, k] + (SNOOPY[R, k] == R)


def test_the_largest_batch_is_the_largest_that_the_trees_take() -> None:
    for shards in (2, 5, 16):
        store, _ = maker({"capacity": 40_000, "shards": shards, "scheme": "path"})()
        g = store._shape.geometry
        assert isinstance(g, ShardedGeometry)
        assert g.batch(store.max_batch) == g.tree.max_batch
        assert overflows(store.max_batch + 1, shards, g.tree.max_batch)


@pytest.mark.parametrize("shards", [0, -1, 257, 61, 2.0, True, "2"])
def test_numbers_of_shards_that_make_no_sense(shards: Any) -> None:
    with pytest.raises(ParameterError):
        maker({"shards": shards})()


# --- the simulator


@pytest.mark.parametrize("mode", ["sync", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accesses(layout: str, mode: str) -> None:
    view = observe(maker({**LAYOUTS[layout], "durability": mode}), mixed(1, 20), seed=2)
    simulated = view.simulated(logged=mode != "none", synced=mode == "sync")
    assert simulated.shown == view.shown
    assert simulated.commits == view.commits
    assert view.one_draw_a_request


@pytest.mark.one_kernel
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", ["path, cached top", "ring", "ring, metadata there"])
def test_places(layout: str, place: str) -> None:
    new, options = PLACES[place]
    view = observe(maker(LAYOUTS[layout], new), mixed(3, 15), seed=4)
    simulated = view.simulated(**options)
    assert simulated.shown == view.shown
    assert simulated.commits == view.commits


@pytest.mark.parametrize("place", ["torn", "remote"])
@pytest.mark.parametrize("layout", ["path", "ring, metadata there"])
def test_reopening(layout: str, place: str) -> None:
    new, options = PLACES[place]
    with pinned(Coins(12)):
        store, trace = maker(LAYOUTS[layout], new)()
        trace.clear()
        expected = simulator(store.info(), **options)
        for turn in range(3):
            leaves = looked_up(store._engine)
            mixed(turn, 5)(store)
            store.close()
            for batch in leaves:
                expected.access(batch, expected.asked(batch))
            store = oram.open(trace, key=KEY, durability="process")
            expected.reopen()
            assert shown(trace.events, store.info()) == expected.shown
            assert trace.state_commits == expected.commits


def test_each_server_sees_its_shard_and_no_more() -> None:
    """Traces of the servers themselves, beneath the backend that makes one of them: what the simulator says of each shard alone."""
    inner = [TraceBackend(MemoryBackend()) for _ in range(3)]
    with pinned(Coins(5)):
        store = _over(inner)
        leaves = looked_up(store._engine)
        for trace in inner:
            trace.clear()
        mixed(6, 15)(store)
        expected = simulator(store.info(), joint=False, atomic=False)
        for batch in leaves:
            expected.access(batch, expected.asked(batch))
        assert isinstance(expected, ShardedSimulator)
        assert [trace.events for trace in inner] == by_shard(expected.events, expected)
        assert len({trace.round_trips for trace in inner}) == 1


def _over(inner: list[TraceBackend], layout: dict[str, Any] = LAYOUTS["path, cached top"]) -> ObliviousStore:
    class Together(ShardedBackend):
        def state_file(self) -> Any:
            return apart.state_file()

    apart = Apart()
    options: dict[str, Any] = {"key": KEY, "capacity": 60, "block_size": 40, "durability": "process"}
    return oram.create(Together(inner), **options, **layout)


# --- two worlds


def _of_shard(store: ObliviousStore, shard: int | None, n: int) -> list[int]:
    """Addresses that are all in one shard, or spread over them as evenly as can be."""
    scheme: Any = store._engine.scheme
    place, tree = scheme._place, scheme.geometry.tree.N
    own = [[a for a in range(scheme.capacity) if place[a] // tree == j] for j in range(scheme.shards)]
    if shard is not None:
        return own[shard][:n]
    return [a for row in zip(*own, strict=False) for a in row][:n]


def _skewed(shard: int | None) -> Work:
    def work(store: ObliviousStore) -> None:
        for i in range(8):
            some = _of_shard(store, shard, 9)
            store.blocks.write_many(some, [b"%d" % i] * 9)
            assert bytes(store.blocks.read_many(some[:4])[3][:2]).rstrip(b"\0") == b"%d" % i
            store.blocks.read(some[i % 9])

    return work


def _repeated(store: ObliviousStore) -> None:
    """The same block over and over in each batch."""
    for i in range(8):
        store.blocks.write_many([3] * 9, [b"%d" % (i + j) for j in range(9)])
        assert bytes(store.blocks.read_many([3] * 4)[0][:2]).rstrip(b"\0") == b"%d" % (i + 8)
        store.blocks.read(3)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "blocks" not in name])
def test_all_requests_in_one_shard_look_like_requests_everywhere(layout: str) -> None:
    make = maker({**LAYOUTS[layout], "keyed": False})
    views = [observe(make, work, 7) for work in (_skewed(0), _skewed(1), _skewed(None), _repeated)]
    for view in views:
        assert view.one_draw_a_request
        assert same(views[0], view)
        simulated = view.simulated(keyed=False)
        assert simulated.shown == view.shown
        assert simulated.commits == view.commits


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(i) for i in count())


@pytest.mark.one_kernel
@pytest.mark.parametrize("pair", PAIRS[::2], ids=lambda pair: str(pair.name))
def test_worlds(pair: Pair, paths: Iterator[Path]) -> None:
    def make() -> tuple[ObliviousStore, TraceBackend]:
        trace = TraceBackend(RemoteBackend(MemoryBackend()))
        options = {**LAYOUTS["ring"], "capacity": RECORDS, "block_size": 48, "durability": "process"}
        return oram.create(trace, key=bytes(32), state=next(paths), **options), trace

    left, right = observe(make, pair.left, 1), observe(make, pair.right, 1)
    assert left.one_draw_a_request
    assert same(left, right)


# --- overflow, made likely


def test_an_overflow_is_raised_before_anything_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    store, trace = maker({**LAYOUTS["path"], "keyed": False})()
    monkeypatch.setattr(ShardedGeometry, "batch", lambda g, m: -(-m // g.shards))
    trace.clear()
    with pytest.raises(oram.errors.ShardOverflowError):
        store.blocks.write_many(_of_shard(store, 1, 8), [b"x"] * 8)
    assert (trace.events, trace.state_commits) == ([], [])
    some = _of_shard(store, None, 8)
    store.blocks.write_many(some, [b"x"] * 8)
    assert (store.blocks.read_many(some)[:, 0] == ord("x")).all()
    assert store.stats().accesses == 2


def test_a_permutation_that_every_incarnation_has_anew() -> None:
    store, _ = maker({**LAYOUTS["path"], "keyed": False, "capacity": 60})()
    places = set()
    for _ in range(3):
        scheme: Any = store._engine.scheme
        assert sorted(scheme._place.tolist()) == list(range(60))
        places.add(scheme._place.tobytes())
        store.clear()
    assert len(places) == 3


def test_random_batches_against_a_dict() -> None:
    """Repetitions of an address in a batch are served in their order, as a tree by itself serves them."""
    for layout in ("path", "ring", "linear"):
        one, many = (
            maker({**LAYOUTS[layout], "shards": 1, "keyed": False})()[0],
            maker({**LAYOUTS[layout], "keyed": False})()[0],
        )
        source = random.Random(9)
        for _ in range(60):
            m = source.randrange(1, 12)
            rows = [
                (source.choice([0, 0, 1, 1, 2, 3]), source.randrange(6), bytes([source.randrange(256)]))
                for _ in range(m)
            ]
            found = []
            for store in (one, many):
                engine: Engine = store._engine
                requests = engine.scheme.requests(m)
                for i, (op, address, data) in enumerate(rows):
                    requests.ops[i], requests.addresses[i], requests.data[i] = op, address, data[0]
                engine.access(requests)
                found.append([requests.out[i].tobytes() for i in range(m) if rows[i][0] != 3])
            assert found[0] == found[1]


def test_each_shard_of_cuckoo_has_a_hash_key_of_its_own() -> None:
    """With one for all, the same address in two shards would be looked for at the same places of both."""
    store, _ = maker({"scheme": "cuckoo", "shards": 3, "capacity": 60})()
    keyring = store._engine.journal.keyring
    kernels = [tree._kernel for tree in store._engine.scheme.trees]  # type: ignore[attr-defined]
    assert len({keyring.hash_key(j) for j in range(3)} | {keyring.hash_key()}) == 3
    table = Table(kernels[0]._geometry.L, 0)
    found = {np.asarray(kernel.pairs(table, np.arange(20, dtype=np.uint32))).tobytes() for kernel in kernels}
    assert len(found) == 3


def test_shards_of_cuckoo_are_all_used_alike() -> None:
    """Wherever the addresses are: reads and writes of both shards at the same times, and as many slots written."""
    seen = []
    for shard in (0, 1, None, -1):
        inner = [TraceBackend(MemoryBackend()) for _ in range(2)]
        store = _over(inner, {"scheme": "cuckoo", "shards": 2, "keyed": False})
        some = [3] * 9 if shard == -1 else _of_shard(store, shard, 9)
        for trace in inner:
            trace.clear()
        for i in range(12):
            store.blocks.write_many(some, [b"x"] * 9)
            store.blocks.read(some[i % 9])
        for trace in inner:
            written = [(event.region, len(event.indices)) for event in trace.events if event.op == "write"]
            seen.append(([event.op for event in trace.events], written))
            assert sum(len(event.indices) for event in trace.events if event.op == "read") > 100
    assert all(one == seen[0] for one in seen)  # the slots read are a union, whose size chance decides
