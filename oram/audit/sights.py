"""What one access showed: from its trace and the public parameters alone, and whether that is what the simulator of the scheme says."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from oram.testing.randomness import leaves_of
from oram.testing.simulators import Commit, CuckooSimulator, simulator
from oram.testing.simulators.cuckoo import STASH
from oram.trace import Event

__all__ = [
    "Choice",
    "CuckooSights",
    "LinearSights",
    "PlainSights",
    "RingSights",
    "Row",
    "Sight",
    "Sights",
    "TreeSights",
    "of",
]

Rank: TypeAlias = tuple[int, int]  # of one among so many


class Choice(NamedTuple):
    """A slot that was read of a Ring bucket, among the ``size`` that were not read yet: how many come before it in two orders of these.

    ascending: by their numbers. even_first: the even ones, and then the odd ones.
    """

    level: int
    ascending: int
    even_first: int
    size: int


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the heat map: so many cells, which share what is touched in it evenly if the store is sound."""

    label: str
    cells: int


@dataclass(slots=True)
class Sight:
    """One access.

    shown: what stands for it, numbers below ``Sights.places``: the leaf of a path, a slot; one for each that there was. touched: cells of the heat map,
    counted through all rows. ranks: of slots that were chosen, among those that could have been. choices: of Ring, the same by level of the tree. fetched: of
    Ring, ranks of the slots that are read when a bucket is written anew. pairs: by level of a hierarchy, the pair of cells that
    was looked into, and how many pairs there are. cells: the same cells, each in its table. as_said, committed: whether the slots, and the lengths of what
    went to the journal, are what the simulator says.
    """

    shown: tuple[int, ...] = ()
    touched: list[int] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    fetched: list[Rank] = field(default_factory=list)
    pairs: dict[int, Rank] = field(default_factory=dict)
    cells: list[Rank] = field(default_factory=list)
    as_said: bool = True
    committed: bool = True


class Sights:
    """What is seen of a store, access by access, from the first one on."""

    #: What stands for an access, in words; empty where nothing does.
    place = ""
    #: How many there are of these.
    places: int
    rows: list[Row]

    def see(self, events: Sequence[Event], commits: Sequence[Commit]) -> Sight:
        """The next access: all that was recorded of it, round trips counted from 0."""
        raise NotImplementedError

    def reopened(self, events: Sequence[Event], commits: Sequence[Commit]) -> Sight:
        """The store was closed, and opened again: all that was recorded of it. No access."""
        raise NotImplementedError


class PlainSights(Sights):
    """Of a store with one slot a record."""

    place = "slot"
    WIDTH = 32  # cells of a row

    def __init__(self, slots: int) -> None:
        self.places = slots
        self.rows = [Row("", self.WIDTH)] * (slots // self.WIDTH)

    def see(self, events: Sequence[Event], commits: Sequence[Commit]) -> Sight:  # noqa: ARG002 - it has no journal
        slots = [slot for event in events for slot in event.indices]
        return Sight(tuple(slots), slots)


class _Simulated(Sights):
    """Of an oblivious store, beside the simulator of its scheme. info: ``store.info()`` of a new store, of which nothing was seen yet."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.info = info
        self.simulator = simulator(info)

    def shown(self, events: Sequence[Event]) -> tuple[int, ...]:
        """What the access looked up, as far as its trace tells."""
        raise NotImplementedError

    def named(self, events: Iterable[Event]) -> list[Event]:
        """The events with the slots that are a draw of their own called by what they have in common."""
        return list(events)

    def notice(self, events: Sequence[Event], sight: Sight) -> None:
        """What else there is to see."""

    def see(self, events: Sequence[Event], commits: Sequence[Commit]) -> Sight:
        sight = Sight(self.shown(events))
        self.notice(events, sight)
        simulated = self.simulator
        simulated.round_trips = 0
        # An access that does not show one leaf is not what a simulator says, whichever it is told.
        simulated.access([sight.shown[0] if sight.shown else 0], 1)
        sight.as_said &= len(sight.shown) == 1 and self.named(simulated.events) == self.named(events)
        sight.committed = simulated.commits == list(commits)
        simulated.events, simulated.commits = [], []
        return sight

    def reopened(self, events: Sequence[Event], commits: Sequence[Commit]) -> Sight:
        simulated = self.simulator
        simulated.round_trips = 0
        simulated.reopen()
        sight = Sight(as_said=simulated.events == list(events), committed=simulated.commits == list(commits))
        simulated.events, simulated.commits = [], []
        return sight


class TreeSights(_Simulated):
    """Of a Path tree whose pages are buckets, all of them at the server."""

    place = "leaf"

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        L = int(info["L"])
        self.places = 1 << L
        self.rows = [Row(str(level), 1 << level) for level in range(L + 1)]

    def shown(self, events: Sequence[Event]) -> tuple[int, ...]:
        return tuple(leaf for leaves in leaves_of(events, self.info) for leaf in leaves)

    def notice(self, events: Sequence[Event], sight: Sight) -> None:
        sight.touched = [slot for event in events if _of_slots(event) for slot in event.indices]


class RingSights(TreeSights):
    """Of a Ring tree, all of it at the server, that is asked for XORs."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        self._n = int(info["Z"]) + int(info["S"])
        self._spent: dict[int, list[int]] = {}  # slots of a bucket that were read since it was written, ascending
        self._shuffled = random.Random(1)  # the slots of a bucket that are fetched together have no order

    def named(self, events: Iterable[Event]) -> list[Event]:
        """Slots by their buckets: which of a bucket's is a draw."""
        return [
            dataclasses.replace(event, indices=tuple(slot if slot < 0 else slot // self._n for slot in event.indices))
            if _of_slots(event)
            else event
            for event in events
        ]

    def notice(self, events: Sequence[Event], sight: Sight) -> None:
        for event in events:
            if not _of_slots(event):
                continue
            slots = [slot for slot in event.indices if slot >= 0]
            if event.op == "write":
                sight.touched += {slot // self._n for slot in slots}
                for slot in slots:
                    self._spent.pop(slot // self._n, None)
                continue
            if event.op == "read":
                self._shuffled.shuffle(slots)
            for bucket, slot in (divmod(slot, self._n) for slot in slots):
                spent = self._spent.setdefault(bucket, [])
                sight.touched.append(bucket)
                if slot in spent:  # never, before the bucket is written anew
                    sight.as_said = False
                    continue
                ascending, size = slot - bisect_left(spent, slot), self._n - len(spent)
                if event.op == "xor":
                    even = self._even_first(slot, spent)
                    sight.ranks.append((ascending, size))
                    sight.choices.append(Choice((bucket + 1).bit_length() - 1, ascending, even, size))
                else:
                    sight.fetched.append((ascending, size))
                insort(spent, slot)

    def _even_first(self, slot: int, spent: Sequence[int]) -> int:
        """How many of those not read yet come before this one, where even slots come first."""
        return sum((other % 2, other) < (slot % 2, slot) and other not in spent for other in range(self._n))


@dataclass(frozen=True, slots=True)
class _Table:
    """A table that an access looks into, as slots show it: bins, each with m cells of both sides in turn and a stash."""

    level: int
    epoch: int
    first: int
    bins: int
    m: int

    def cell(self, slot: int, side: int) -> int:
        """The cell of this side, counted over all bins, in which a slot is; -1 where it is none."""
        at, bins = slot - self.first, 2 * self.m + STASH
        place, parity = divmod(at % bins, 2)
        return at // bins * self.m + place if parity == side and 0 <= at < self.bins * bins and place < self.m else -1


class CuckooSights(_Simulated):
    """Of a Cuckoo hierarchy, all levels, with an index or without one."""

    place = "cell"
    simulator: CuckooSimulator

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        sizes = [math.prod(self.simulator.sides(level)) for level in range(int(info["L"]) + 1)]
        self.places = sizes[-1]
        self.rows = [Row(f"{level}{side}", cells) for level, cells in enumerate(sizes) for side in "ab"]
        self._first = list(itertools.accumulate((row.cells for row in self.rows), initial=0))
        #: Of a side, or of that of a bin: cells as they came, and ascending.
        self._used: dict[tuple[int, int, int, int], tuple[list[int], list[int]]] = {}
        self._probed = list[_Table]()  # by the next access
        self._before = (
            0  # reads of it that come before those of tables: after an opening, what the client has forgotten
        )

    def shown(self, events: Sequence[Event]) -> tuple[int, ...]:
        self._before = int(self.simulator._cold and bool(self.simulator._again()))
        self._probed = [
            _Table(epoch.level, epoch.number, epoch.first, *self.simulator.sides(epoch.level))
            for epoch in self.simulator.probed()
        ]
        if not self._probed:
            return (0,)
        (left, _) = self._probes(events)[-1]
        cell = self._probed[-1].cell(left, 0)
        return (cell,) if cell >= 0 else ()

    def _where(self) -> list[tuple[int, int]]:
        """Where the pair of each table begins: in which of the reads of an access, and at which of its slots. Without an index each table has a read."""
        alone = self.info.get("index") == "none"
        first = self._before
        return [(first + at, 0) if alone else (first, 2 * at) for at in range(len(self._probed))]

    def _probes(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """The two slots of each table; -1 for what is not there."""
        reads = [event.indices for event in events if event.op == "read" and _of_slots(event)]
        rows = [reads[read][at : at + 2] if read < len(reads) else () for read, at in self._where()]
        return [(row[0], row[1]) if len(row) == 2 else (-1, -1) for row in rows]

    def named(self, events: Iterable[Event]) -> list[Event]:
        """The pair of a table by the table and the side."""
        known = {
            (read, at + side): (table, side)
            for table, (read, at) in zip(self._probed, self._where(), strict=True)
            for side in (0, 1)
        }
        named, read = list[Event](), 0
        for event in events:
            if event.op == "read" and _of_slots(event):
                slots = tuple(_side(slot, *known.get((read, at), (None, 0))) for at, slot in enumerate(event.indices))
                event, read = dataclasses.replace(event, indices=slots), read + 1  # noqa: PLW2901
            named.append(event)
        return named

    def notice(self, events: Sequence[Event], sight: Sight) -> None:
        alive = {(table.level, table.epoch) for table in self._probed}
        self._used = {side: used for side, used in self._used.items() if side[:2] in alive}
        for table, (left, right) in zip(self._probed, self._probes(events), strict=True):
            level, m = table.level, table.m
            u, v = table.cell(left, 0), table.cell(right, 1)
            if u < 0 or v < 0 or u // m != v // m:  # which the simulator does not say
                sight.as_said = False
                return
            sight.touched += [self._first[2 * level] + u, self._first[2 * level + 1] + v]
            inside, sizes = v % m, (table.bins * m, m)
            sight.pairs[level] = u * m + inside, sizes[0] * m
            sight.cells += zip((u, inside), sizes, strict=True)
            sides = (level, table.epoch, 0, 0), (level, table.epoch, 1, u // m)
            sight.ranks += zip(map(self._rank, sides, (u, inside)), sizes, strict=True)

    def _rank(self, side: tuple[int, int, int, int], cell: int) -> int:
        """Among all cells of the side, if those looked into before are put first: see ``statistics.used_first``."""
        came, ascending = self._used.setdefault(side, ([], []))
        at = bisect_left(ascending, cell)
        if at < len(ascending) and ascending[at] == cell:
            return came.index(cell)
        came.append(cell)
        ascending.insert(at, cell)
        return len(ascending) - 1 + cell - at


class LinearSights(_Simulated):
    """Of Linear: there is nothing to look up."""

    WIDTH = PlainSights.WIDTH

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        self.places = int(self.simulator.slots)
        width = min(self.WIDTH, self.places)
        self.rows = [Row("", width)] * -(-self.places // width)

    def shown(self, events: Sequence[Event]) -> tuple[int, ...]:  # noqa: ARG002
        return (0,)

    def notice(self, events: Sequence[Event], sight: Sight) -> None:
        sight.touched = [slot for event in events if event.op == "read" and _of_slots(event) for slot in event.indices]


def of(info: Mapping[str, Any]) -> _Simulated:
    """What is seen of a new store with these parameters."""
    kinds: dict[str, type[_Simulated]] = {
        "path": TreeSights,
        "ring": RingSights,
        "cuckoo": CuckooSights,
        "linear": LinearSights,
    }
    return kinds[info["scheme"]](info)


def _of_slots(event: Event) -> bool:
    return event.region.startswith("slots.")


def _side(slot: int, table: _Table | None, side: int) -> int:
    """One number for all cells of a table's side."""
    return slot if table is None or table.cell(slot, side) < 0 else -1 - side
