"""Two worlds: the same randomness, two workloads of equal length; what the server and the state file's disk see must be identical.

The randomness is fixed as the leaves that are looked up, one a request (``randomness.script`` says why that is fair): a workload is run once to
learn what it asks, and again under the randomness that makes it look up exactly those leaves. So each view is also what the simulator says for them.
"""

# ruff: noqa: ARG001, ARG005 - a workload is told the turn, whether it needs it or not

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from oram.errors import CapacityError, MissingKeyError
from oram.params import Table
from oram.store import ObliviousStore
from oram.testing.randomness import Coins, OddWorldError, Question, dealt, listen, pinned, revealing, script
from oram.testing.simulators import Commit, Dealt, Simulator, shown, simulator
from oram.trace import Event, TraceBackend

__all__ = ["PAIRS", "Look", "Make", "OddWorldError", "Pair", "View", "Work", "observe", "same"]

Work: TypeAlias = Callable[[ObliviousStore], None]
Make: TypeAlias = Callable[[], tuple[ObliviousStore, TraceBackend]]
Look: TypeAlias = Callable[[TraceBackend], AbstractContextManager[list[Event]]]
LONGEST = 24  # bytes of the largest value in these workloads, where the store has room for it
RECORDS = 40  # capacity that these workloads want


@dataclass(frozen=True)
class View:
    """What one world shows. asked and leaves: what the tester knows besides."""

    info: dict[str, Any]
    events: list[Event]
    commits: list[Commit]
    draws: list[int]
    asked: list[list[Question]]
    leaves: list[Sequence[int]]

    def simulated(self, *, keyed: bool = True, **options: bool) -> Simulator:
        """What the simulator says for the same leaves."""
        simulated = simulator(self.info, **options)
        for batch in self.leaves:
            simulated.access(batch, simulated.asked(batch) // int(self.info["blocks_per_value"]) if keyed else 0)
        return simulated

    @property
    def shown(self) -> list[Event]:
        """The events, the slots of a Ring bucket up to their names: which of them are read is a draw of its own."""
        return shown(self.events, self.info)

    @property
    def one_draw_a_request(self) -> bool:
        """Whether each request consumed one draw, whatever it was, and each batch a seed where the scheme needs one."""
        coins = simulator(self.info).coins
        return self.draws == [coins(len(batch)) for batch in self.asked]


@contextmanager
def own_trace(trace: TraceBackend) -> Iterator[list[Event]]:
    """What the trace records meanwhile."""
    trace.clear()
    events: list[Event] = []
    yield events
    events += trace.events


def observe(make: Make, work: Work, seed: int, look: Look = own_trace) -> View:
    """The view of a workload when its requests look up the leaves of ``seed``. ``make`` gives a new store, and its trace; ``look`` at what the server saw.

    OddWorldError where it asks for something else the second time, or looks up what it cannot; and what the workload and the store raise.
    """
    homes: dict[tuple[Table, int], int] = {}
    with pinned(Coins(seed)), revealing((), homes):
        store, trace = make()
        info = store.info()
        asked = listen(store._engine)
        work(store)
        rows = [dealt(store._engine, batch) for batch in asked]
        store.close()
    levels = 31 if info["scheme"] == "cuckoo" else int(info.get("L", 1))
    leaf = random.Random(f"leaves {seed}")
    leaves = [
        Dealt.of((leaf.getrandbits(levels) for _ in row), len(batch)) for row, batch in zip(rows, asked, strict=True)
    ]
    flat = [each for batch in leaves for each in batch]
    with pinned(Coins(seed, script(rows, flat, levels, seed))) as coins, revealing(flat, homes):
        store, trace = make()
        coins.extra = simulator(info).seed
        again = listen(store._engine)
        coins.sizes.clear()
        trace.clear()
        with look(trace) as events:
            work(store)
        commits = list(trace.state_commits)
        store.close()
    if again != asked:
        raise OddWorldError("a workload of two worlds must not depend on randomness")
    return View(store.info(), events, commits, coins.sizes, asked, list(leaves))


def same(left: View, right: View) -> bool:
    """Whether the views are identical, commits by their keys and lengths."""
    return left.shown == right.shown and left.commits == right.commits and left.draws == right.draws


@dataclass(frozen=True)
class Pair:
    """Two workloads that must look the same, on a new keyed store of ``RECORDS`` records."""

    name: str
    left: Work
    right: Work
    bulk: bool = False  # more than accesses: beyond the simulator


def _key(i: int) -> bytes:
    return b"%04d" % i


def _fill(store: ObliviousStore, n: int) -> None:
    """RECORDS accesses that leave n records."""
    for i in range(RECORDS):
        store[_key(i % n)] = b"v"


def _after(n: int, work: Callable[[ObliviousStore, int], object], times: int = 30) -> Work:
    """A store of n records, then ``work(store, i)`` for each i."""

    def run(store: ObliviousStore) -> None:
        _fill(store, n)
        for i in range(times):
            with suppress(MissingKeyError, CapacityError):
                work(store, i)

    return run


def _get(i: int) -> Callable[[ObliviousStore, int], object]:
    return lambda store, k: store.get(_key((i + k) % RECORDS))


def _batched(choose: Callable[[int], int]) -> Callable[[ObliviousStore, int], object]:
    def work(store: ObliviousStore, i: int) -> None:
        keys = [_key(choose(k)) for k in range(6)]
        store.get_many(keys)
        store.put_many([(key, b"w") for key in keys])
        store.delete_many(keys)
        store.put_many([(key, b"w") for key in keys])

    return work


def _sized(n: int) -> Callable[[ObliviousStore, int], object]:
    def work(store: ObliviousStore, i: int) -> None:
        keys = [_key((i + k) % 20) for k in range(n)]
        store.get_many(keys, size=6)
        store.put_many([(key, b"x") for key in keys], size=6)
        store.delete_many(keys[: n // 2], size=6)

    return work


def _longest(store: ObliviousStore) -> int:
    """Bytes of the largest value under one of these keys."""
    return min(LONGEST, store.value_limit - len(_key(0)))


def _values(size: Callable[[ObliviousStore], int]) -> Callable[[ObliviousStore, int], object]:
    def work(store: ObliviousStore, i: int) -> None:
        store[_key(i % 10)] = b"x" * size(store)
        store.put_many([(_key(k), b"y" * size(store)) for k in range(4)])
        store.get(_key(i % 10))

    return work


def _assign(at: Callable[[int], int]) -> Callable[[ObliviousStore, int], object]:
    return lambda store, i: store.put(_key(at(i)), b"new")


#: Every workload makes the same number of batches of the same sizes as its partner.
PAIRS: tuple[Pair, ...] = (
    Pair(
        "gets: hits / misses", _after(20, lambda s, i: s.get(_key(i % 20))), _after(20, lambda s, i: s[_key(100 + i)])
    ),
    Pair("gets / puts", _after(20, _get(0)), _after(20, _assign(lambda i: i % 20))),
    Pair("gets / deletes of hits", _after(RECORDS, _get(0)), _after(RECORDS, lambda s, i: s.delete(_key(i)))),
    Pair("gets / deletes of misses", _after(5, _get(0)), _after(5, lambda s, i: s.delete(_key(100 + i)))),
    Pair("puts: old keys / new keys", _after(1, _assign(lambda i: 0)), _after(1, _assign(lambda i: i + 1))),
    Pair("puts / gets in a full store", _after(RECORDS, _assign(lambda i: 100 + i)), _after(RECORDS, _get(0))),
    Pair(
        "batches of puts / gets in a full store",
        _after(RECORDS, lambda s, i: s.put_many([(_key(100 + i), b"x")] * 3 + [(_key(0), b"x")])),
        _after(RECORDS, lambda s, i: s.get_many([_key(i)] * 4)),
    ),
    Pair("values: small / large", _after(20, _values(lambda store: 0)), _after(20, _values(_longest))),
    # with a tree top nearly every access to a hot key finds its block in the pool
    Pair("a hot key / all keys in turn", _after(RECORDS, lambda s, i: s.get(_key(3))), _after(RECORDS, _get(7))),
    Pair("a nearly empty store / a full one", _after(1, _get(0)), _after(RECORDS, _get(0))),
    Pair("batches: duplicates / distinct", _after(20, _batched(lambda k: 3)), _after(20, _batched(lambda k: k))),
    Pair("batches: hits / misses", _after(20, _batched(lambda k: k)), _after(20, _batched(lambda k: 30 + k))),
    Pair("batches padded from 0 / 6", _after(20, _sized(0)), _after(20, _sized(6))),
    Pair(
        "setdefault: there / not there",
        _after(20, lambda s, i: s.setdefault(_key(i % 20), b"d")),
        _after(5, lambda s, i: s.setdefault(_key(5 + i), b"d")),
    ),
    Pair(
        "pop: there / not there",
        _after(RECORDS, lambda s, i: s.pop(_key(i))),
        _after(RECORDS, lambda s, i: s.pop(_key(100 + i), None)),
    ),
    Pair("popitem: full / soon empty", _after(RECORDS, lambda s, i: s.popitem()), _after(3, lambda s, i: s.popitem())),
    Pair(
        "scans: full / nearly empty",
        _after(RECORDS, lambda s, i: dict(s.items()), 2),
        _after(1, lambda s, i: next(iter(s.items())), 2),
        bulk=True,
    ),
    Pair(
        "in, len and views / nothing",
        _after(9, lambda s, i: (_key(i) in s, _key(i) in s.keys(), len(s), s.stats())),  # noqa: SIM118
        _after(9, lambda s, i: None),
    ),
    Pair(
        "bulk load: few / many",
        _after(9, lambda s, i: s.load({_key(0): b"x"}), 1),
        _after(1, lambda s, i: s.load({_key(k): b"x" * _longest(s) for k in range(RECORDS)}), 1),
        bulk=True,
    ),
    Pair(
        "clear: full / nearly empty",
        _after(RECORDS, lambda s, i: s.clear(), 1),
        _after(1, lambda s, i: s.clear(), 1),
        bulk=True,
    ),
)
