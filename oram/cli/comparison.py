"""What the demo found, and how it is put into words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from oram.cli.view import Cost, View
from oram.engine import Durability
from oram.params import PathGeometry

__all__ = ["RUNS", "Comparison", "Side", "cost_rows", "p_text", "verdict"]

#: The workload runs once with each.
RUNS = (Durability.SYNC, Durability.PROCESS)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two stores: what the server saw of the sync run, and the cost of each run."""

    title: str
    unit: str  # what a slot of the view is
    view: View
    costs: dict[str, Cost]
    load_seconds: float


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


def verdict(found: Comparison) -> tuple[str, str]:
    """What the picture shows, in two sentences."""
    plain, flat = found.encrypted.view, found.oblivious.view
    first = (
        f"The encrypted store hides what its records say, but shows that ten of its {plain.slots:,} slots drew {plain.top_share:.0%} of the accesses, "
        f"and which accesses were puts; the oblivious store shows random paths, each read and written back, that "
        f"{'look uniform' if flat.uniform else 'did not pass as uniform this time'} (p = {p_text(flat.p_value)}) whatever is asked for."
    )
    second = (
        "This is an illustration, not a proof: one run cannot show that nothing leaks, for which there are "
        "an argument in the documentation and exact checks against a simulator in the test suite."
    )
    return first, second


def p_text(p: float) -> str:
    """A p-value; far out in the tail the approximation says no more than that it is tiny."""
    return "< 1e-15" if p < 1e-15 else f"{p:.2g}"


def cost_rows(found: Comparison) -> Iterator[tuple[str, ...]]:
    """Durability, store, accesses a second, p50 and p99 in microseconds, round trips, bytes of slots moved, bytes of journal."""
    for durability in RUNS:
        for side in (found.encrypted, found.oblivious):
            cost = side.costs[str(durability)]
            moved = cost.bytes_read + cost.bytes_written
            yield (
                str(durability), side.title.split()[0].lower(), f"{cost.per_second:,.0f}", f"{cost.p50:,.0f}", f"{cost.p99:,.0f}",
                f"{cost.round_trips:.1f}", f"{moved:,.0f}", f"{cost.journal:,.0f}",
            )  # fmt: skip
