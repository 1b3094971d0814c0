"""The simulator says what the server and the state file's disk see, event by event, from public parameters and leaves alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import oram
from oram.backends import Backend, Capability, LMDBBackend, MemoryBackend
from oram.backends.memory import MemoryStateFile
from oram.store import ObliviousStore
from oram.testing.randomness import Coins, leaves_of, pinned
from oram.testing.simulators import simulator
from oram.testing.worlds import Make, Work, observe
from oram.trace import Event, TraceBackend

KEY = bytes(32)
LAYOUTS: dict[str, dict[str, Any]] = {
    "one bucket a page": {"scheme": oram.PathParams(page_levels=1), "tree_top": 0},
    "short first page": {"scheme": oram.PathParams(page_levels=4), "tree_top": 0},
    "cached top": {"scheme": oram.PathParams(page_levels=2), "tree_top": 700},
    "default": {"scheme": "path"},
    "all but the leaves cached": {"scheme": oram.PathParams(page_levels=1), "tree_top": 1 << 20},
    "Z=1": {"scheme": oram.PathParams(Z=1, page_levels=3), "tree_top": 100},
    "two blocks a value": {"scheme": oram.PathParams(page_levels=2), "tree_top": 0, "blocks_per_value": 2},
    "one leaf": {"scheme": "path", "capacity": 1},
    "large blocks": {"scheme": "path", "block_size": 3000, "capacity": 20},
    "linear": {"scheme": "linear"},
    "linear, several pages": {"scheme": "linear", "block_size": 700},
}
MODES: dict[str, dict[str, Any]] = {
    "process": {"durability": "process"},
    "sync": {"durability": "sync"},
    "none": {"durability": "none"},
}


class Apart(MemoryBackend):
    """Memory that shares no transactions with its state file, as where client state and slots are on different machines."""

    def __init__(self) -> None:
        super().__init__()
        self._file = MemoryStateFile()

    def state_file(self) -> MemoryStateFile:
        return self._file


class Fragile(Apart):
    """Besides, its writes are not all or nothing, as of a plain key-value server."""

    capabilities = MemoryBackend.capabilities & ~Capability.ATOMIC


def maker(
    options: dict[str, Any], new: Callable[[], Backend] = MemoryBackend, apart: Callable[[], Path] | None = None
) -> Make:
    def make() -> tuple[ObliviousStore, TraceBackend]:
        trace = TraceBackend(new())
        usual: dict[str, Any] = {"key": KEY, "capacity": 100, "block_size": 40}
        return oram.create(trace, **{**usual, **options}), trace

    return make


def mixed(seed: int, turns: int = 30) -> Work:
    """Everything that makes an access, in random order; batches of all sizes, with duplicates, some padded."""

    def work(store: ObliviousStore) -> None:
        source = random.Random(seed)
        keys = [b"%d" % i for i in range(min(store.capacity + 20, 150))]
        some: list[bytes] = []
        for _ in range(turns):
            some[:] = source.choices(keys, k=source.randrange(12))
            calls: list[Callable[[], object]] = [
                lambda: store.get(source.choice(keys)),
                lambda: store.put(source.choice(keys), b"x" * source.randrange(9)),
                lambda: store.delete(source.choice(keys)),
                lambda: store.setdefault(source.choice(keys), b"d"),
                lambda: store.pop(source.choice(keys), None),
                lambda: store.popitem(),
                lambda: store.get_many(list(some), size=source.choice([None, 12, 12])),
                lambda: store.put_many([(key, b"y") for key in some], size=source.choice([None, 15])),
                lambda: store.delete_many(some),
            ]
            with suppress(oram.errors.MissingKeyError, oram.errors.CapacityError):
                source.choice(calls)()

    return work


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accesses(layout: str, mode: str) -> None:
    options = {**LAYOUTS[layout], **MODES[mode]}
    view = observe(maker(options), mixed(1), seed=2)
    simulated = view.simulated(logged=mode != "none", synced=mode == "sync")
    assert simulated.events == view.events
    assert simulated.commits == view.commits
    assert view.one_draw_a_request
    assert sum(map(len, view.asked)) > 30


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "aegis-256"])
@pytest.mark.parametrize("layout", ["cached top", "linear, several pages"])
def test_ciphers(layout: str, cipher: str) -> None:
    view = observe(maker({**LAYOUTS[layout], "cipher": cipher, "durability": "process"}), mixed(3), seed=4)
    assert view.simulated().events == view.events
    assert view.simulated().commits == view.commits


@pytest.mark.parametrize("layout", ["short first page", "cached top", "linear"])
def test_blocks(layout: str) -> None:
    def work(store: ObliviousStore) -> None:
        source = random.Random(5)
        for _ in range(30):
            store.blocks.write(source.randrange(100), b"x")
            store.blocks.read(source.randrange(100))
            some = [source.randrange(100) for _ in range(source.randrange(1, 9))]
            store.blocks.read_many(some)
            store.blocks.write_many(some, [b"y"] * len(some))

    view = observe(maker({**LAYOUTS[layout], "keyed": False, "durability": "process"}), work, seed=6)
    assert view.simulated(keyed=False).events == view.events
    assert view.simulated(keyed=False).commits == view.commits


@pytest.mark.parametrize("layout", ["one bucket a page", "cached top", "linear"])
def test_lmdb(layout: str, tmp_path: Path) -> None:
    places = (tmp_path / str(i) for i in range(9))
    view = observe(maker(LAYOUTS[layout], lambda: LMDBBackend(next(places), sync=False)), mixed(7), seed=8)
    assert view.simulated(synced=True).events == view.events
    assert view.simulated(synced=True).commits == view.commits


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
@pytest.mark.parametrize("mode", ["process", "sync"])
@pytest.mark.parametrize("layout", ["cached top", "two blocks a value", "linear"])
def test_client_state_elsewhere(layout: str, mode: str, atomic: bool) -> None:
    view = observe(maker({**LAYOUTS[layout], **MODES[mode]}, Apart if atomic else Fragile), mixed(9), seed=10)
    simulated = view.simulated(joint=False, atomic=atomic, synced=mode == "sync")
    assert simulated.events == view.events
    assert simulated.commits == view.commits


@pytest.mark.parametrize("layout", ["short first page", "linear"])
def test_more_than_a_batch(layout: str) -> None:
    def work(store: ObliviousStore) -> None:
        keys = [b"%d" % (i % 70) for i in range(store.max_batch + 40)]
        store.put_many([(key, b"x") for key in keys])
        store.get_many(keys[:3], size=store.max_batch + 1)

    view = observe(maker({**LAYOUTS[layout], "durability": "process"}), work, seed=15)
    assert [len(batch) for batch in view.asked] == [1024, 40, 1024, 1]
    assert view.simulated().events == view.events
    assert view.simulated().commits == view.commits


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "linear" not in name])
def test_from_what_the_trace_shows(layout: str) -> None:
    """With real randomness, and leaves known only as far as the trace tells."""
    store, trace = maker({**LAYOUTS[layout], "durability": "process"})()
    trace.clear()
    sizes: list[int] = []
    source = random.Random(11)
    for _ in range(40):
        sizes.append(source.randrange(1, min(9, store.max_batch + 1)))
        store.get_many([b"%d" % source.randrange(99) for _ in range(sizes[-1])])
    info = store.info()
    simulated = simulator(info)
    for leaves in leaves_of(trace.events, info):
        simulated.access(leaves, 0)
    assert simulated.events == trace.events


@pytest.mark.parametrize("layout", ["one bucket a page", "default", "two blocks a value", "linear"])
def test_reopening(layout: str) -> None:
    with pinned(Coins(12)):
        store, trace = maker({**LAYOUTS[layout], "durability": "process"})()
        trace.clear()
        expected = simulator(store.info())
        for turn in range(4):
            mixed(turn, 5)(store)
            store.close()
            trace.clear()
            store = oram.open(trace, key=KEY, durability="process")
            expected.events, expected.commits, expected.round_trips = [], [], 0
            expected.reopen()
            assert trace.events == expected.events
            assert trace.state_commits == expected.commits


def test_a_journal_over_many_turns_of_the_pieces() -> None:
    """The ring of pieces goes round several times, also where one batch writes more pieces than there are."""
    layout = {"scheme": oram.PathParams(page_levels=2), "capacity": 300, "block_size": 64, "tree_top": 3000}
    view = observe(maker({**layout, "durability": "process"}), mixed(13, 400), seed=14)
    assert view.simulated().events == view.events
    assert view.simulated().commits == view.commits
    rings = [key for commit in view.commits for key, _ in commit if key.startswith(b"p")]
    assert len(rings) > 3 * len(set(rings)) > 12


class Crash(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("new", [MemoryBackend, Fragile], ids=["atomic", "not atomic"])
@pytest.mark.parametrize("layout", ["cached top", "linear"])
def test_a_crash_between_commit_and_write(layout: str, new: type[MemoryBackend], tmp_path: Path) -> None:
    """Client state and slots share no transaction: the write is made again, the same whatever is asked next."""
    for turn, retry in enumerate([b"1", b"2", b"missing"]):
        with pinned(Coins(16)):
            trace = TraceBackend(new())
            place: dict[str, Any] = {"state": tmp_path / str(turn), "key": KEY, "durability": "process"}
            store = oram.create(trace, capacity=100, block_size=40, **LAYOUTS[layout], **place)
            for i in range(10):
                store[b"%d" % i] = b"v"
            trace.clear()
            with mock.patch.object(trace.inner, "write_all", side_effect=Crash), pytest.raises(Crash):
                store[b"1"] = b"new"
            store._site.release()
            expected = simulator(store.info(), joint=False)
            leaves = leaves_of(trace.events, store.info())[0] if "linear" not in layout else (0,)
            expected.access(leaves, 1)
            store = oram.open(trace, **place)
            expected.reopen()
            if new is MemoryBackend:
                expected.access(leaves, 1)
            else:  # the slots to write are in the journal
                for region, slots, size in (
                    ("slots.1", expected.touched(leaves), expected.slot_size),
                    ("clock.1", (0,), 64),
                ):
                    expected.events.append(Event("write", region, slots, size, expected.round_trips))
                    expected.round_trips += 1
            assert trace.events == expected.events
            store.get(retry)
            assert store[b"1"] == b"new"
            store.close()
