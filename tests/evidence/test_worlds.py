"""Two workloads of equal length under the same randomness: what an observer sees is identical."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import oram
from oram import kernels
from oram.backends import LMDBBackend, MemoryBackend
from oram.errors import ParameterError
from oram.keys import Keyring
from oram.store import ObliviousStore
from oram.testing.oracles import Watch
from oram.testing.randomness import Coins, pinned
from oram.testing.remote import RemoteBackend
from oram.testing.simulators import Commit
from oram.testing.worlds import PAIRS, RECORDS, Make, Pair, observe, same
from oram.trace import Event, TraceBackend

LAYOUTS: dict[str, dict[str, Any]] = {
    "flat": {"scheme": oram.PathParams(page_levels=1), "tree_top": 0},
    "cached top": {"scheme": oram.PathParams(page_levels=2), "tree_top": 700},
    "all but the leaves cached": {"scheme": oram.PathParams(page_levels=1)},
    "two blocks a value": {"scheme": oram.PathParams(page_levels=2), "tree_top": 0, "blocks_per_value": 2},
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6), "tree_top": 0},
    "ring, cached top": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=False), "tree_top": 700},
    "ring, metadata there": {"scheme": oram.RingParams(Z=3, A=1, S=1, metadata="server"), "tree_top": 0},
    "cuckoo": {"scheme": oram.CuckooParams(c=8)},
    "cuckoo, no index": {"scheme": oram.CuckooParams(c=8, index="none")},
    "linear": {"scheme": "linear"},
}
FACTORIES: dict[str, Callable[[Path], TraceBackend]] = {
    "memory": lambda _: TraceBackend(MemoryBackend()),
    "lmdb": lambda path: TraceBackend(LMDBBackend(path, sync=False)),
    "remote": lambda _: TraceBackend(RemoteBackend(MemoryBackend())),
}


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(i) for i in count())


def maker(options: dict[str, Any], backend: str, paths: Iterator[Path]) -> Make:
    def make() -> tuple[ObliviousStore, TraceBackend]:
        trace = FACTORIES[backend](next(paths))
        place: dict[str, Any] = {"state": next(paths)} if backend == "remote" else {}
        return oram.create(trace, key=bytes(32), capacity=RECORDS, block_size=48, **place, **options), trace

    return make


def compare(pair: Pair, make: Make, **simulation: bool) -> None:
    left, right = observe(make, pair.left, 1), observe(make, pair.right, 1)
    assert left.one_draw_a_request
    assert right.one_draw_a_request
    assert left.shown == right.shown
    assert left.commits == right.commits
    assert same(left, right)
    if not pair.bulk:
        simulated = left.simulated(**simulation)
        assert simulated.shown == left.shown
        assert simulated.commits == left.commits


each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: str(pair.name))


@each_pair
@pytest.mark.parametrize("layout", LAYOUTS)
def test_journaled(pair: Pair, layout: str, paths: Iterator[Path]) -> None:
    compare(pair, maker({**LAYOUTS[layout], "durability": "process"}, "memory", paths))


@each_pair
@pytest.mark.parametrize("layout", ["cached top", "ring", "cuckoo"])
def test_without_a_journal(pair: Pair, layout: str, paths: Iterator[Path]) -> None:
    compare(pair, maker({**LAYOUTS[layout], "durability": "none"}, "memory", paths), logged=False)


@each_pair
@pytest.mark.parametrize("layout", ["cached top", "ring", "ring, metadata there", "cuckoo"])
def test_remote(pair: Pair, layout: str, paths: Iterator[Path]) -> None:
    """Write-backs that wait for the next read wait for it whatever was asked, and whatever is asked next."""
    make = maker({**LAYOUTS[layout], "durability": "process"}, "remote", paths)
    left, right = observe(make, pair.left, 1), observe(make, pair.right, 1)
    assert same(left, right)
    assert {event.op for event in left.events} >= {"read", "write"}
    if not pair.bulk:
        assert left.simulated(joint=False, remote=True).shown == left.shown


@each_pair
def test_aegis(pair: Pair, paths: Iterator[Path]) -> None:
    pytest.importorskip("pyaegis")
    compare(pair, maker({**LAYOUTS["cached top"], "cipher": "aegis-256", "durability": "process"}, "memory", paths))


@each_pair
@pytest.mark.parametrize("layout", ["cached top", "ring, cached top", "cuckoo"])
def test_lmdb(pair: Pair, layout: str, paths: Iterator[Path]) -> None:
    compare(pair, maker({**LAYOUTS[layout], "durability": "process"}, "lmdb", paths))


def test_workloads_reach_the_pool(paths: Iterator[Path]) -> None:
    """The pairs would say nothing about hits in client memory if there were none."""
    pair = next(pair for pair in PAIRS if pair.name == "a hot key / all keys in turn")
    store, _ = maker({**LAYOUTS["all but the leaves cached"], "durability": "process"}, "memory", paths)()
    watch = Watch(store)
    pair.left(store)
    assert watch.largest > 10


def _events_of(kernel: str, pair: Pair, side: str, options: dict[str, Any]) -> tuple[list[Event], list[Commit]]:
    """What a store under these kernels shows, with hash functions and seeds that are the same each time."""
    with (
        pytest.MonkeyPatch.context() as patch,
        pinned(Coins(7)),
    ):
        patch.setenv("ORAM_KERNELS", kernel)
        patch.setattr(Keyring, "hash_key", lambda _, shard=0: bytes(range(32)))
        trace = TraceBackend(MemoryBackend())
        store = oram.create(trace, key=bytes(32), capacity=RECORDS, block_size=48, **options)
        getattr(pair, side)(store)
        events, commits = list(trace.events), list(trace.state_commits)
        store.close()
    return events, commits


@pytest.mark.one_kernel
@pytest.mark.parametrize("layout", ["cuckoo", "cuckoo, no index"])
@pytest.mark.parametrize("side", ["left", "right"])
@each_pair
def test_native_cuckoo_shows_what_the_reference_shows(pair: Pair, side: str, layout: str) -> None:
    """Cuckoo's two worlds are compared on the reference kernels, where hash functions can be chosen; so this is their native counterpart."""
    try:
        kernels.load("native")
    except ParameterError:
        pytest.skip("the native kernels are not built")
    options = {**LAYOUTS[layout], "durability": "process"}
    native, reference = (_events_of(name, pair, side, options) for name in ("native", "reference"))
    assert len(native[0]) > 10
    assert native == reference


@pytest.mark.parametrize("layout", ["flat", "ring", "cuckoo", "cuckoo, no index"])
def test_different_leaves_look_different(layout: str, paths: Iterator[Path]) -> None:
    """The comparison can fail."""
    make = maker({**LAYOUTS[layout], "durability": "process"}, "memory", paths)
    pair = PAIRS[0]
    assert not same(observe(make, pair.left, 1), observe(make, pair.left, 2))


def test_a_workload_that_depends_on_randomness_is_refused(paths: Iterator[Path]) -> None:
    make = maker({**LAYOUTS["flat"], "durability": "process"}, "memory", paths)
    turns = count()

    def work(store: ObliviousStore) -> None:
        for _ in range(next(turns)):
            store.get(b"x")

    with pytest.raises(ValueError, match="depend"):
        observe(make, work, 1)


def test_coins_are_counted() -> None:
    coins = Coins(1)
    assert len(coins.urandom(8)) == 8
    assert coins.sizes == [8]
    assert coins.positions(40) == Coins(1).positions(40) != Coins(2).positions(40)
