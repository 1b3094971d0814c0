"""What one access showed: from its trace and the public parameters alone, and whether that is what the simulator of the scheme says."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from oram.testing.randomness import leaves_of
from oram.testing.simulators import Commit, CuckooSimulator, simulator
from oram.trace import Event

__all__ = ["CuckooSights", "LinearSights", "PlainSights", "RingSights", "Row", "Sight", "Sights", "TreeSights", "of"]

Rank: TypeAlias = tuple[int, int]  # of one among so many


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the heat map: so many cells, which share what is touched in it evenly if the store is sound."""

    label: str
    cells: int


@dataclass(slots=True)
class Sight:
    """One access.

    shown: what stands for it, numbers below ``Sights.places``: the leaf of a path, a slot; one for each that there was. touched: cells of the heat map,
    counted through all rows. ranks: of slots that were chosen, among those that could have been. pairs: by level of a hierarchy, the pair of cells that
    was looked into, and how many pairs there are. cells: the same cells, each in its table. as_said, committed: whether the slots, and the lengths of what
    went to the journal, are what the simulator says.
    """

    shown: tuple[int, ...] = ()
    touched: list[int] = field(default_factory=list)
    ranks: list[Rank] = field(default_factory=list)
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
            for bucket, slot in (divmod(slot, self._n) for slot in slots):
                spent = self._spent.setdefault(bucket, [])
                sight.touched.append(bucket)
                if slot in spent:  # never, before the bucket is written anew
                    sight.as_said = False
                    continue
                if event.op == "xor":
                    sight.ranks.append((slot - bisect_left(spent, slot), self._n - len(spent)))
                insort(spent, slot)


class CuckooSights(_Simulated):
    """Of a Cuckoo hierarchy, all levels."""

    place = "cell"
    simulator: CuckooSimulator

    def __init__(self, info: Mapping[str, Any]) -> None:
        super().__init__(info)
        c, L, E = int(info["c"]), int(info["L"]), 1000 + int(info["eps"])
        sizes = [c << level for level in range(L)] + [int(info["blocks"])]
        self._m = [-(-n * E // 1000) for n in sizes]
        self.places = self._m[-1]
        self.rows = [Row(f"{level}{side}", m) for level, m in enumerate(self._m) for side in "ab"]
        firsts = [0]
        for row in self.rows:
            firsts.append(firsts[-1] + row.cells)
        self._first = firsts
        self._used: dict[
            tuple[int, int, int], tuple[list[int], list[int]]
        ] = {}  # of a table's side: as they came, and ascending
        self._probed = list[tuple[int, int, int, int]]()  # by the next access: level, epoch, first slot, cells

    def shown(self, events: Sequence[Event]) -> tuple[int, ...]:
        self._probed = [(epoch.level, epoch.number, epoch.first, m) for epoch, m in self.simulator.probed()]
        read = next((event.indices for event in events if event.op == "read" and _of_slots(event)), ())
        if not self._probed:
            return (0,)
        *_, (_, _, first, m) = self._probed
        at = 2 * (len(self._probed) - 1)
        cell = (read[at] - first) // 2 if at < len(read) else -1
        return (cell,) if 0 <= cell < m else ()

    def named(self, events: Iterable[Event]) -> list[Event]:
        """The pair of a table by the table and the side."""
        known, named = {}, []
        for at, (_, _, first, m) in enumerate(self._probed):
            known[2 * at], known[2 * at + 1] = (first, 0, m), (first, 1, m)
        for event in events:
            indices = event.indices
            if event.op == "read" and _of_slots(event):
                indices = tuple(_side(slot, *known[at]) if at in known else slot for at, slot in enumerate(indices))
            named.append(dataclasses.replace(event, indices=indices))
        return named

    def notice(self, events: Sequence[Event], sight: Sight) -> None:
        read = next((event.indices for event in events if event.op == "read" and _of_slots(event)), ())
        alive = {(level, epoch) for level, epoch, _, _ in self._probed}
        self._used = {side: used for side, used in self._used.items() if side[:2] in alive}
        for (level, epoch, first, m), left, right in zip(self._probed, read[::2], read[1::2], strict=False):
            u, v = (left - first) // 2, (right - first) // 2
            if not (0 <= u < m and 0 <= v < m):
                return  # which the simulator does not say
            sight.pairs[level] = u * m + v, m * m
            for side, cell in enumerate((u, v)):
                sight.touched.append(self._first[2 * level + side] + cell)
                sight.cells.append((cell, m))
                sight.ranks.append((self._rank((level, epoch, side), cell), m))

    def _rank(self, side: tuple[int, int, int], cell: int) -> int:
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


def _side(slot: int, first: int, side: int, m: int) -> int:
    """One number for all cells of a table's side."""
    cell, parity = divmod(slot - first, 2)
    return -1 - side if parity == side and 0 <= cell < m else slot
