"""Exact checks, without false alarms: each workload shows what the simulator says, and two of them the same.

The simulator knows the public parameters and the leaves (or pairs) that were looked up, and no key, value, address or operation. Where the real
view equals what it says, nothing else in the view can depend on what was asked; that the leaves themselves do not is for ``chance``.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import oram
from oram.audit.leaks import Leak
from oram.audit.place import Scratch, Target
from oram.backends import MemoryBackend
from oram.errors import BackendError, IntegrityError, ParameterError
from oram.params import Table
from oram.store import ObliviousStore
from oram.testing.randomness import Coins, dealt, listen, looked_up, pinned, revealing
from oram.testing.simulators import Dealt, Simulator, shown, simulator
from oram.testing.worlds import PAIRS, RECORDS, Look, OddWorldError, Pair, View, Work, observe
from oram.trace import Event, TraceBackend

__all__ = ["BUILT_IN", "Compared", "comparable", "compare", "named_workload", "opened_again", "pairs_of"]


def _scans(n: int) -> Work:
    """A scan of a store that has n records."""

    def run(store: ObliviousStore) -> None:
        for i in range(RECORDS):
            if i < n:
                store[b"%d" % i] = b"v"
            else:
                store.get(b"%d" % i)
        dict(store.items())

    return run


#: Pairs of workloads that are compared where the user brings none. Those in bulk are no accesses: beyond the simulator, and held against each other only.
BUILT_IN: tuple[Pair, ...] = (*PAIRS, Pair("scans: full / empty", _scans(RECORDS), _scans(0), bulk=True))
QUICK = (
    "gets: hits / misses",
    "gets / puts",
    "gets / deletes of hits",
    "values: small / large",
    "a hot key / all keys in turn",
    "batches: duplicates / distinct",
)


class Compared:
    """What a pair came to. events: compared. trouble: what differed, empty where nothing did."""

    def __init__(self, name: str, events: int, trouble: str) -> None:
        self.name, self.events, self.trouble = name, events, trouble


def named_workload(name: str) -> Work:
    """``module:function`` or ``FILE.py:function``: what it names, a function of a store. ParameterError where there is none.

    It must ask for the same number of records in batches of the same sizes as its partner, and not depend on randomness.
    """
    place, colon, function = name.rpartition(":")
    if not colon:
        raise ParameterError(f"{name}: name a workload as module:function or FILE.py:function")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        work = getattr(module, function)
    except (ImportError, OSError, AttributeError):
        raise ParameterError(f"{name}: there is no such workload") from None
    except (Exception, SystemExit) as error:
        raise ParameterError(f"{name}: the module of the workload failed: {type(error).__name__}") from error
    if not callable(work):
        raise ParameterError(f"{name}: not a function of a store")
    found: Callable[[ObliviousStore], None] = work
    return found


def pairs_of(names: Sequence[str]) -> list[Pair]:
    """Each of the user's workloads against each other."""
    works = [(name, named_workload(name)) for name in names]
    if len(works) == 1:
        raise ParameterError("one workload alone cannot be told from another: name two or more")
    works = [(name, _guarded(name, work)) for name, work in works]
    return [Pair(f"{a} / {b}", left, right) for (a, left), (b, right) in itertools.combinations(works, 2)]


def _guarded(name: str, work: Work) -> Work:
    """What a workload raises is its own trouble, and no outcome of the audit."""

    def run(store: ObliviousStore) -> None:
        try:
            work(store)
        except (BackendError, IntegrityError, OddWorldError):
            raise
        except (Exception, SystemExit) as error:
            raise ParameterError(f"{name}: the workload failed: {type(error).__name__}") from error

    return run


def comparable(pair: Pair, target: Target) -> bool:
    """Whether stores of this kind can be compared by it: what is done in bulk is seen of one store, in this process."""
    return not pair.bulk or (target.kind != "redis" and target.shards == 1)


def compare(place: Scratch, pairs: Sequence[Pair], seed: int) -> Iterator[Compared]:
    """Run both workloads of each pair under the same randomness, and hold them against the simulator and each other."""
    for pair in pairs:
        left, right = (_observed(place, work, seed) for work in (pair.left, pair.right))
        place.erase()
        if isinstance(left, str) or isinstance(right, str):
            yield Compared(pair.name, 0, left if isinstance(left, str) else str(right))
            continue
        yield Compared(pair.name, len(left.events) + len(right.events), _differ(place, pair, left, right))


def _observed(place: Scratch, work: Work, seed: int) -> View | str:
    try:
        return observe(place.make, work, seed, _heard(place.look))
    except OddWorldError as error:
        return str(error)


def _heard(look: Look) -> Look:
    """What a server says that it was told, and what no store of this library tells it, is an odd world; what the workload raises is not."""

    @contextmanager
    def heard(trace: TraceBackend) -> Iterator[list[Event]]:
        with ExitStack() as stack:
            events = stack.enter_context(look(trace))
            yield events
            try:
                stack.close()
            except ValueError as error:
                raise OddWorldError(str(error)) from error

    return heard


def _differ(place: Scratch, pair: Pair, left: View, right: View) -> str:
    if [len(batch) for batch in left.asked] != [len(batch) for batch in right.asked]:
        return "the two workloads made different numbers of accesses: a leak, unless they ask for different numbers of records"
    if left.shown != right.shown:
        return "the server saw two different things of the two workloads"
    if left.commits != right.commits:
        return "the two workloads journaled records of different lengths"
    if left.draws != right.draws or not (left.one_draw_a_request and right.one_draw_a_request):
        return "a request did not consume exactly one draw"
    for view in () if pair.bulk else (left, right):
        simulated = view.simulated(joint=place.joint, remote=place.remote)
        if view.shown != (_audible(simulated.shown) if place.remote else simulated.shown):
            return "the server saw something that does not follow from the leaves looked up"
        if view.commits != simulated.commits:
            return "the journal's records are not as long as they have to be"
    return ""


def _audible(events: list[Event]) -> list[Event]:
    from oram.testing.serverlog import audible  # not at the top: it brings redis

    return audible(events)


# --- stores that are opened again


def opened_again(target: Target, seed: int, leak: Leak | None = None) -> Compared:
    """Whether a store in this process that is closed and opened again and again shows what the simulator says, also of that, and of what comes after it."""
    homes: dict[tuple[Table, int], int] = {}
    try:
        trace, expected = _lives(target, seed, leak, homes)
        if target.scheme == "cuckoo":  # again, now that it is known which pairs are to be seen
            trace, expected = _lives(target, seed, leak, homes)
    except OddWorldError as error:
        return Compared(OPENED, 0, str(error))
    differs = shown(trace.events, expected.info) != expected.shown or trace.state_commits != expected.commits
    trouble = "a store that was opened again shows something that does not follow from the leaves looked up"
    return Compared(OPENED, len(trace.events), trouble if differs else "")


OPENED = "opened again"


def _lives(
    target: Target, seed: int, leak: Leak | None, homes: dict[tuple[Table, int], int]
) -> tuple[TraceBackend, Simulator]:
    """Workloads of several pairs, the store opened again after each of them."""
    leaf, trace = random.Random(f"leaves {seed}"), TraceBackend(MemoryBackend())
    options, at = target.options(), 0
    opening = {name: options[name] for name in ("key", "durability")}
    leaves = [leaf.getrandbits(31) for _ in range(_REQUESTS * target.blocks_per_value)]
    with pinned(Coins(seed)), revealing(leaves if homes else (), homes):
        store = (oram.create if leak is None else leak.create)(trace, **options)
        trace.clear()
        expected = simulator(store.info())
        for work in (work for pair in BUILT_IN if pair.name in _OPENED for work in (pair.left, pair.right)):
            asked = listen(store._engine)
            trees = [] if target.scheme in ("cuckoo", "linear") else looked_up(store._engine)
            work(store)
            store.close()
            for i, batch in enumerate(asked):
                if target.scheme == "cuckoo":
                    seen: Sequence[int] = leaves[at : at + len(batch)]
                else:
                    seen = trees[i] if trees else Dealt.of([0] * len(dealt(store._engine, batch)), len(batch))
                expected.access(seen, expected.asked(seen) // target.blocks_per_value)
                at += len(batch)
            store = (oram.open if leak is None else leak.open)(trace, **opening)
            expected.reopen()
        store.close()
    return trace, expected


_OPENED, _REQUESTS = ("gets: hits / misses", "gets / puts"), 512
