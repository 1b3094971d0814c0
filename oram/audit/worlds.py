"""Exact checks, without false alarms: each workload shows what the simulator says, and two of them the same.

The simulator knows the public parameters and the leaves (or pairs) that were looked up, and no key, value, address or operation. Where the real
view equals what it says, nothing else in the view can depend on what was asked; that the leaves themselves do not is for ``chance``.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from oram.audit.place import Scratch
from oram.errors import BackendError, IntegrityError, ParameterError
from oram.store import ObliviousStore
from oram.testing.worlds import PAIRS, Look, OddWorldError, Pair, View, Work, observe
from oram.trace import Event, TraceBackend

__all__ = ["BUILT_IN", "Compared", "compare", "named_workload", "pairs_of"]

#: Pairs of workloads that are compared where the user brings none: all that are made of accesses.
BUILT_IN: tuple[Pair, ...] = tuple(pair for pair in PAIRS if not pair.bulk)
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


def compare(place: Scratch, pairs: Sequence[Pair], seed: int) -> Iterator[Compared]:
    """Run both workloads of each pair under the same randomness, and hold them against the simulator and each other."""
    for pair in pairs:
        left, right = (_observed(place, work, seed) for work in (pair.left, pair.right))
        place.erase()
        if isinstance(left, str) or isinstance(right, str):
            yield Compared(pair.name, 0, left if isinstance(left, str) else str(right))
            continue
        yield Compared(pair.name, len(left.events) + len(right.events), _differ(place, left, right))


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


def _differ(place: Scratch, left: View, right: View) -> str:
    if [len(batch) for batch in left.asked] != [len(batch) for batch in right.asked]:
        return "the two workloads made different numbers of accesses: a leak, unless they ask for different numbers of records"
    if left.shown != right.shown:
        return "the server saw two different things of the two workloads"
    if left.commits != right.commits:
        return "the two workloads journaled records of different lengths"
    if left.draws != right.draws or not (left.one_draw_a_request and right.one_draw_a_request):
        return "a request did not consume exactly one draw"
    for view in (left, right):
        simulated = view.simulated(joint=place.joint, remote=place.remote)
        if view.shown != (_audible(simulated.shown) if place.remote else simulated.shown):
            return "the server saw something that does not follow from the leaves looked up"
        if view.commits != simulated.commits:
            return "the journal's records are not as long as they have to be"
    return ""


def _audible(events: list[Event]) -> list[Event]:
    from oram.testing.serverlog import audible  # not at the top: it brings redis

    return audible(events)
