"""What the demo found, and how it is put into words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from oram.cli.view import ALPHA, Cost, Moved, View
from oram.engine import Durability
from oram.params import CuckooGeometry, PathGeometry, RingGeometry

__all__ = ["RUNS", "Comparison", "Cuckoo", "Ring", "Side", "cost_rows", "move_rows", "p_text", "verdict"]

#: The workload runs once with each.
RUNS = (Durability.SYNC, Durability.PROCESS)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the stores: what the server saw of the first run, and the cost of each run."""

    title: str
    unit: str  # what a slot of the view is
    view: View
    costs: dict[str, Cost]
    load_seconds: float
    moved: Moved


@dataclass(frozen=True, slots=True)
class Ring(Side):
    """The Ring store, whose server is far away or plays that.

    choice: which of the slots not read yet a bucket was asked for. one_by_one: what moves where the server cannot XOR.
    """

    geometry: RingGeometry
    choice: View
    one_by_one: Moved


@dataclass(frozen=True, slots=True)
class Cuckoo(Side):
    """The Cuckoo store, in the place of Ring's.

    cells: where in their tables all cells are that were looked into. tables: how many an access looks into, on average.
    off_schedule: accesses whose rebuilds moved other slots than the clock says.
    """

    geometry: CuckooGeometry
    cells: View
    tables: float
    off_schedule: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything the demo shows."""

    records: int
    unicode: str
    accesses: int
    puts: int
    seed: int
    geometry: PathGeometry
    tree_top: int
    block: int
    names: tuple[str, ...]  # of the records, by slot of the encrypted store
    encrypted: Side
    oblivious: Side
    ring: Ring
    cuckoo: Cuckoo
    server: bool = False  # all stores are on one; else Ring and Cuckoo are in memory that plays one


def verdict(found: Comparison) -> tuple[str, str, str, str]:
    """What the picture shows, in four sentences."""
    plain, flat, ring = found.encrypted.view, found.oblivious.view, found.ring
    first = (
        f"The encrypted store hides what its records say, but shows that ten of its {plain.slots:,} slots drew {plain.top_share:.0%} of the accesses, "
        f"and which accesses were puts; the oblivious store shows random paths, each read and written back, that "
        f"{'look uniform' if flat.uniform else 'did not pass as uniform this time'} (p = {p_text(flat.p_value)}) whatever is asked for."
    )
    g, moved = ring.geometry, ring.moved
    odd = [what for what, view in (("paths", ring.view), ("slots of a bucket", ring.choice)) if not view.uniform]
    second = (
        f"With Ring it sees a random path too, but only one slot of each of its {g.levels} buckets, a random one of those not read yet "
        f"({'both look uniform' if not odd else ' and '.join(odd) + ' did not pass as uniform this time'}, p = {p_text(ring.view.p_value)} and "
        f"{p_text(ring.choice.p_value)}), and returns their XOR: {moved.online_bytes:,.0f} bytes for an answer in place of "
        f"{found.oblivious.moved.online_bytes:,.0f}; the rest of the work is a path written anew every {g.A} accesses."
    )
    c = found.cuckoo
    uniform = "they look uniform" if c.cells.uniform else "they did not pass as uniform this time"
    kept = (
        "in every access just the slots that its number says"
        if not c.off_schedule
        else f"not what the schedule says in {c.off_schedule:,} accesses"
    )
    third = (
        f"With Cuckoo it sees two cells of each of {c.tables:.1f} tables ({uniform}, p = {p_text(c.cells.p_value)}) and a piece of the rebuilds: {kept}, "
        f"whatever was asked for; {c.moved.online_bytes:,.0f} bytes for an answer, {c.moved.all_bytes:,.0f} in all."
    )
    fourth = (
        f"Each of these four tests calls a uniform run not uniform once in {1 / ALPHA:,.0f} times. "
        "This is an illustration, not a proof: one run cannot show that nothing leaks, for which there are "
        "an argument in the documentation and exact checks against a simulator in the test suite."
    )
    return first, second, third, fourth


def p_text(p: float) -> str:
    """A p-value; far out in the tail the approximation says no more than that it is tiny."""
    return "< 1e-15" if p < 1e-15 else f"{p:.2g}"


def move_rows(found: Comparison) -> Iterator[tuple[str, ...]]:
    """Store, round trips, what is read for an answer, its bytes, all bytes moved, bytes of the largest round trip."""
    sides = (
        ("encrypted", "slot", found.encrypted.moved),
        ("Path", "page", found.oblivious.moved),
        ("Ring", "slot", found.ring.one_by_one),
        ("Ring, XOR", "slot", found.ring.moved),
        ("Cuckoo", "slot", found.cuckoo.moved),
    )
    for name, unit, moved in sides:
        many = "" if moved.online_slots == 1 else "s"
        yield (
            name, f"{moved.round_trips:.1f}", f"{moved.online_slots:.3g} {unit}{many}", f"{moved.online_bytes:,.0f}", f"{moved.all_bytes:,.0f}",
            f"{moved.largest:,}",
        )  # fmt: skip


def cost_rows(found: Comparison) -> Iterator[tuple[str, ...]]:
    """Durability, store, accesses a second, p50 and p99 in microseconds, round trips, bytes of slots moved, bytes of journal."""
    sides = [("encrypted", found.encrypted), ("Path", found.oblivious)]
    if found.server:  # else its times say nothing beside theirs
        sides += [("Ring", found.ring), ("Cuckoo", found.cuckoo)]
    for durability in map(str, RUNS):
        for name, side in sides:
            if durability not in side.costs:
                continue
            cost = side.costs[durability]
            moved = cost.bytes_read + cost.bytes_written
            yield (
                durability, name, f"{cost.per_second:,.0f}", f"{cost.p50:,.0f}", f"{cost.p99:,.0f}",
                f"{cost.round_trips:.1f}", f"{moved:,.0f}", f"{cost.journal:,.0f}",
            )  # fmt: skip
