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
from oram.params import cuckoo
from oram.store import ObliviousStore
from oram.testing.randomness import Coins, leaves_of, listen, looked_up, pinned, revealing
from oram.testing.remote import RemoteBackend
from oram.testing.simulators import CuckooSimulator, canonical, simulator
from oram.testing.worlds import Make, Work, observe
from oram.trace import TraceBackend

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
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6), "tree_top": 0},
    "ring, read one by one": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=False), "tree_top": 0},
    "ring, cached top": {"scheme": oram.RingParams(Z=4, A=3, S=6), "tree_top": 700},
    "ring, leaves only": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=False), "tree_top": 1 << 20},
    "ring, metadata there": {"scheme": oram.RingParams(Z=4, A=3, S=6, metadata="server"), "tree_top": 0},
    "ring, metadata there, top here": {
        "scheme": oram.RingParams(Z=4, A=3, S=6, metadata="server", xor=False),
        "tree_top": 700,
    },
    "ring, S=1": {"scheme": oram.RingParams(Z=3, A=1, S=1), "tree_top": 100},
    "ring, S=1, metadata there": {"scheme": oram.RingParams(Z=3, A=1, S=1, metadata="server"), "tree_top": 0},
    "ring, Z=8": {"scheme": oram.RingParams(Z=8, A=8, S=13), "tree_top": 0},
    "ring, two words": {"scheme": oram.RingParams(Z=32, A=46, S=60), "capacity": 300, "tree_top": 0},
    "ring, one leaf": {"scheme": "ring", "capacity": 1},
    "ring, two blocks a value": {"scheme": oram.RingParams(Z=4), "tree_top": 0, "blocks_per_value": 2},
    "cuckoo": {"scheme": oram.CuckooParams(), "tree_top": 0},
    "cuckoo, default": {"scheme": "cuckoo"},
    "cuckoo, amortized": {"scheme": oram.CuckooParams(rebuild="amortized", c=8)},
    "cuckoo, large eps": {"scheme": oram.CuckooParams(eps=0.7), "tree_top": 0, "capacity": 30},
    "cuckoo, two blocks a value": {"scheme": oram.CuckooParams(c=16), "blocks_per_value": 2},
    "cuckoo, one block": {"scheme": "cuckoo", "capacity": 1},
    "cuckoo, no index": {"scheme": oram.CuckooParams(index="none"), "tree_top": 0},
    "cuckoo, no index, amortized": {"scheme": oram.CuckooParams(rebuild="amortized", c=8, index="none")},
    "cuckoo, no index, two blocks a value": {"scheme": oram.CuckooParams(c=16, index="none"), "blocks_per_value": 2},
    "cuckoo, no index, one block": {"scheme": oram.CuckooParams(index="none"), "capacity": 1},
    "linear": {"scheme": "linear"},
    "linear, several pages": {"scheme": "linear", "block_size": 700},
}
RING = [name for name in LAYOUTS if name.startswith("ring")]
MODES: dict[str, dict[str, Any]] = {
    "process": {"durability": "process"},
    "sync": {"durability": "sync"},
    "none": {"durability": "none"},
}


class Kept(MemoryStateFile):
    """A state file that outlives its stores."""

    def close(self) -> None:
        pass


class Apart(MemoryBackend):
    """Memory that shares no transactions with its state file, as where client state and slots are on different machines."""

    def __init__(self) -> None:
        super().__init__()
        self._file = Kept()

    def state_file(self) -> MemoryStateFile:
        return self._file


class Fragile(Apart):
    """Besides, its writes are not all or nothing, as of a plain key-value server."""

    capabilities = MemoryBackend.capabilities & ~Capability.ATOMIC


class Remote(RemoteBackend):
    """Memory across a network, beside a state file that the trace sees."""

    def __init__(self, inner: Backend | None = None) -> None:
        super().__init__(MemoryBackend() if inner is None else inner)
        self._file = Kept()

    def state_file(self) -> MemoryStateFile:  # type: ignore[override]
        return self._file


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
    assert simulated.shown == view.shown
    assert simulated.commits == view.commits
    assert view.one_draw_a_request
    assert sum(map(len, view.asked)) > 30


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "aegis-256"])
@pytest.mark.parametrize("layout", ["cached top", "ring", "ring, metadata there", "cuckoo", "linear, several pages"])
def test_ciphers(layout: str, cipher: str) -> None:
    view = observe(maker({**LAYOUTS[layout], "cipher": cipher, "durability": "process"}), mixed(3), seed=4)
    assert view.simulated().shown == view.shown
    assert view.simulated().commits == view.commits


@pytest.mark.parametrize(
    "layout", ["short first page", "cached top", "ring", "ring, S=1, metadata there", "cuckoo", "linear"]
)
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
    assert view.simulated(keyed=False).shown == view.shown
    assert view.simulated(keyed=False).commits == view.commits


@pytest.mark.parametrize("layout", ["one bucket a page", "cached top", "ring, read one by one", "cuckoo", "linear"])
def test_lmdb(layout: str, tmp_path: Path) -> None:
    places = (tmp_path / str(i) for i in range(9))
    view = observe(maker(LAYOUTS[layout], lambda: LMDBBackend(next(places), sync=False)), mixed(7), seed=8)
    simulated = view.simulated(synced=True, xor=False)
    assert simulated.shown == view.shown
    assert simulated.commits == view.commits


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
@pytest.mark.parametrize("mode", ["process", "sync"])
@pytest.mark.parametrize(
    "layout", ["cached top", "two blocks a value", *RING[:3], "ring, metadata there", "cuckoo", "linear"]
)
def test_client_state_elsewhere(layout: str, mode: str, atomic: bool) -> None:
    view = observe(maker({**LAYOUTS[layout], **MODES[mode]}, Apart if atomic else Fragile), mixed(9), seed=10)
    simulated = view.simulated(joint=False, atomic=atomic, synced=mode == "sync")
    assert simulated.shown == view.shown
    assert simulated.commits == view.commits


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["one bucket a page", "cached top", *RING[:6], "ring, S=1", "cuckoo", "linear"])
def test_remote(layout: str, mode: str) -> None:
    """Write-backs come with the next read, in its round trip; the last one with the close."""
    view = observe(maker({**LAYOUTS[layout], **MODES[mode]}, Remote), mixed(17), seed=18)
    simulated = view.simulated(joint=False, remote=True, logged=mode != "none", synced=mode == "sync")
    assert simulated.shown == view.shown
    assert simulated.commits == view.commits
    reads = 2 if view.info.get("metadata") == "server" else 1
    assert max(event.trip for event in view.events) + 1 == reads * len(view.asked)


@pytest.mark.parametrize("layout", ["cached top", "ring, read one by one", "ring, metadata there"])
def test_remote_and_durable(layout: str, tmp_path: Path) -> None:
    """A write-back that was delivered is made durable before its journaled copy goes."""
    places = (tmp_path / str(i) for i in range(9))
    view = observe(maker(LAYOUTS[layout], lambda: Remote(LMDBBackend(next(places), sync=False))), mixed(17), seed=18)
    simulated = view.simulated(joint=False, remote=True, synced=True, durable=True, xor=False)
    assert simulated.shown == view.shown
    assert simulated.commits == view.commits
    assert sum(event.op == "sync" for event in view.events) == len(view.asked) - 1


@pytest.mark.parametrize("between", ["scan", "flush", "verify"])
def test_what_a_scan_delivers_is_made_durable_too(between: str, tmp_path: Path) -> None:
    trace = TraceBackend(Remote(LMDBBackend(tmp_path, sync=False)))
    with oram.create(trace, key=KEY, capacity=30, block_size=40, scheme="path", tree_top=0, durability="sync") as store:
        store[b"1"] = b"x"
        trace.clear()
        dict(store.items()) if between == "scan" else getattr(store, between)()
        store[b"2"] = b"y"
        assert "sync" in [event.op for event in trace.events]


@pytest.mark.parametrize("layout", ["short first page", "linear"])
def test_more_than_a_batch(layout: str) -> None:
    def work(store: ObliviousStore) -> None:
        keys = [b"%d" % (i % 70) for i in range(store.max_batch + 40)]
        store.put_many([(key, b"x") for key in keys])
        store.get_many(keys[:3], size=store.max_batch + 1)

    view = observe(maker({**LAYOUTS[layout], "durability": "process"}), work, seed=15)
    assert [len(batch) for batch in view.asked] == [1024, 40, 1024, 1]
    assert view.simulated().shown == view.shown
    assert view.simulated().commits == view.commits


@pytest.mark.parametrize(
    "layout",
    [
        name
        for name in LAYOUTS
        if LAYOUTS[name]["scheme"] == "path" or isinstance(LAYOUTS[name]["scheme"], oram.PathParams)
    ],
)
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


@pytest.mark.parametrize("place", ["joint", "apart", "torn", "remote"])
@pytest.mark.parametrize("mode", ["process", "sync"])
@pytest.mark.parametrize(
    "layout", ["one bucket a page", "two blocks a value", "ring", "ring, metadata there", "linear"]
)
def test_reopening(layout: str, mode: str, place: str) -> None:
    with pinned(Coins(12)):
        store, trace = maker({**LAYOUTS[layout], **MODES[mode]}, PLACES[place])()
        trace.clear()
        expected = simulator(
            store.info(),
            joint=place == "joint",
            atomic=place != "torn",
            remote=place == "remote",
            synced=mode == "sync",
        )
        for turn in range(4):
            leaves = [] if layout == "linear" else looked_up(store._engine)
            asked = listen(store._engine)
            mixed(turn, 5)(store)
            store.close()
            unit = store.info()["blocks_per_value"]
            for i, batch in enumerate(asked):
                expected.access(leaves[i] if leaves else [0] * len(batch), len(batch) // unit)
            store = oram.open(trace, key=KEY, **MODES[mode])
            expected.reopen()
            assert canonical(trace.events, store.info()) == expected.shown
            assert trace.state_commits == expected.commits


@pytest.mark.parametrize("place", ["joint", "apart", "torn", "remote"])
@pytest.mark.parametrize("layout", ["cuckoo", "cuckoo, amortized", "cuckoo, no index"])
def test_cuckoo_reopened_inside_rebuilds(layout: str, place: str) -> None:
    """The first access after an opening reads stashes and what the rebuilds had in hand, as the clock says; then all goes on as before."""
    leaves, homes = [random.Random(21).getrandbits(31) for _ in range(2000)], dict[Any, int]()
    options = {**LAYOUTS[layout], "capacity": 60, "durability": "process"}
    for known in (homes, dict[Any, int]()):
        with pinned(Coins(12)), revealing(leaves, homes if known is homes else {**homes}):
            store, trace = maker(options, PLACES[place])()
            trace.clear()
            info, at = store.info(), 0
            expected = simulator(info, joint=place == "joint", atomic=place != "torn", remote=place == "remote")
            for turn in range(40):
                asked = listen(store._engine)
                mixed(turn, 6)(store)
                store.close()
                for batch in asked:
                    expected.access(leaves[at : at + len(batch)], len(batch))
                    at += len(batch)
                store = oram.open(trace, key=KEY, durability="process")
                expected.reopen()
    assert at > 300
    assert trace.events == expected.events
    assert trace.state_commits == expected.commits


@pytest.mark.parametrize("place", ["joint", "remote"])
def test_cuckoo_no_index_reopened_inside_two_passes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where rebuilds have two passes: what chunks left over, and the stashes of bins that are written, are read again, too."""
    for module in (cuckoo, CuckooSimulator):
        monkeypatch.setattr(module, "IN_HAND" if module is cuckoo else "in_hand", 60)
        monkeypatch.setattr(module, "SPREAD" if module is cuckoo else "spread", 3)
    test_cuckoo_reopened_inside_rebuilds("cuckoo, no index", place)


def test_a_journal_over_many_turns_of_the_pieces() -> None:
    """The ring of pieces goes round several times, also where one batch writes more pieces than there are."""
    layout = {"scheme": oram.PathParams(page_levels=2), "capacity": 300, "block_size": 64, "tree_top": 3000}
    view = observe(maker({**layout, "durability": "process"}), mixed(13, 400), seed=14)
    assert view.simulated().shown == view.shown
    assert view.simulated().commits == view.commits
    rings = [key for commit in view.commits for key, _ in commit if key.startswith(b"p")]
    assert len(rings) > 3 * len(set(rings)) > 12


class Crash(BaseException):
    """The end of the process."""


PLACES: dict[str, type[Backend]] = {"joint": MemoryBackend, "apart": Apart, "torn": Fragile, "remote": Remote}
CRASHES = ["cached top", *RING[:1], *RING[4:7], "linear"]
RETRIES: list[Callable[[ObliviousStore], object]] = [
    lambda store: store.put(b"1", b"new"),
    lambda store: store.get(b"2"),
    lambda store: store.get_many([b"missing"] * 3),
]


class Life:
    """A store, what it looks up, and what the simulator says of it, over crashes."""

    def __init__(self, layout: str, place: str) -> None:
        self.trace, self.place = TraceBackend(PLACES[place]()), place
        store = oram.create(
            self.trace, **{"key": KEY, "capacity": 100, "block_size": 40, "durability": "process", **LAYOUTS[layout]}
        )
        self.trace.clear()
        self.expected = simulator(
            store.info(), joint=place == "joint", atomic=place != "torn", remote=place == "remote"
        )
        self.enter(store)

    def enter(self, store: ObliviousStore) -> None:
        self.store, self._told = store, 0
        self.asked = listen(store._engine)
        self.leaves = looked_up(store._engine) if store.info()["scheme"] != "linear" else self.asked

    def rows(self, i: int) -> list[int]:
        return [0] * len(self.asked[i]) if self.leaves is self.asked else self.leaves[i]  # type: ignore[return-value]

    def tell(self, last: int | None = None) -> None:
        """The simulator hears of the accesses it does not know yet."""
        for i in range(self._told, len(self.asked) if last is None else last):
            self.expected.access(self.rows(i), len(self.asked[i]))
            self._told += 1

    def die(self) -> None:
        self.store._site.release()

    def reborn(self) -> None:
        self.enter(oram.open(self.trace, key=KEY, durability="process"))

    def compare(self) -> None:
        assert canonical(self.trace.events, self.store.info()) == self.expected.shown
        assert self.trace.state_commits == self.expected.commits


def failing(call: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The same so many times, and then a crash."""
    calls = iter(range(after))

    def fails(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise Crash
        return call(*arguments)

    return fails


@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", CRASHES)
def test_a_crash_in_a_read(layout: str, place: str, retry: Callable[[ObliviousStore], object]) -> None:
    """The very same slots are read again, whatever is asked next; also where it had come to the second of two reads."""
    with pinned(Coins(16)):
        life = Life(layout, place)
        for after in range(2 if "metadata there" in layout else 1):
            mixed(after, 8)(life.store)
            life.tell()
            inner = life.trace.inner
            with mock.patch.object(inner, "exchange", failing(inner.exchange, after)), pytest.raises(Crash):
                life.store[b"1"] = b"new"
            life.die()
            leaves = life.rows(-1)
            life.expected.interrupted(leaves, after + 1)
            life.expected.round_trips += 1
            life.expected.reopen(crashed=True)
            life.expected.access(leaves, 1)
            life.reborn()
            retry(life.store)
            life.tell()
            life.compare()


@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("place", ["apart", "torn", "remote"])
@pytest.mark.parametrize("layout", CRASHES)
def test_a_crash_between_commit_and_write(layout: str, place: str, retry: Callable[[ObliviousStore], object]) -> None:
    """Client state and slots share no transaction: the write is made again, the same whatever is asked next."""
    with pinned(Coins(17)):
        life = Life(layout, place)
        mixed(1, 8)(life.store)
        life.tell()
        if place == "remote":
            life.store[b"1"] = b"new"  # what is to be written waits for the next read, which never comes
        else:
            with mock.patch.object(life.trace.inner, "write_all", side_effect=Crash), pytest.raises(Crash):
                life.store[b"1"] = b"new"
        life.die()
        leaves = life.rows(-1)
        life.expected.access(leaves, 1, lost=place == "apart")
        life.expected.reopen(crashed=True)
        if place == "apart":  # the slots to write are not in the journal
            life.expected.access(leaves, 1)
        life.reborn()
        retry(life.store)
        life.tell()
        life.compare()
        assert life.store.get(b"1") in (b"new", None)
