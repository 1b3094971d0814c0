"""A figure of a paper, what we measure in its place, and whether the two agree within a tolerance that was stated before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from oram.papers.tail import Estimate

__all__ = ["SIGMAS", "Finding", "Kind", "Row", "Rows"]

SIGMAS = 5  # standard errors: were they normal, one row in 1.7 million would lie outside by chance
#: Independent events that must be expected for a probability to be judged: then its error is known well enough, and none at all is too far off.
EVENTS = 40


class Kind(StrEnum):
    """Where a reference value comes from."""

    PUBLISHED = "published"  # printed in the paper
    DERIVED = "derived"  # by a formula of these docs, which has no free constant
    SIMULATED = "simulated"  # by another program, written independently for the same paper


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    measured: None where there was too little to say. error: standard error of it, None where it is exact. holds: whether it is within the tolerance, None
    where it is only shown. Of a control, which must lie outside, whether it was rejected.
    """

    paper: str
    group: str
    what: str
    measured: float | None
    reference: float | None
    kind: Kind | None
    source: str
    tolerance: str
    holds: bool | None
    error: float | None = None
    note: str = ""
    control: bool = False

    @property
    def deviation(self) -> float | None:
        """Of what was measured from the reference, as a fraction of it."""
        return self.measured / self.reference - 1 if self.reference and self.measured is not None else None


@dataclass(frozen=True)
class Finding:
    """What one paper came to: its rows, and the series that its figures draw, as plain numbers and lists."""

    paper: str
    rows: list[Row]
    series: dict[str, Any]
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every row that is judged is within its tolerance, and every control outside of it."""
        return all(row.holds is not False for row in self.rows)


@dataclass
class Rows:
    """Collects the rows of one paper."""

    paper: str
    rows: list[Row] = field(default_factory=list)

    def exact(
        self, group: str, what: str, measured: float, reference: float, kind: Kind, source: str, **more: Any
    ) -> None:
        """Must be equal."""
        equal = math.isclose(measured, reference, rel_tol=1e-12)
        self._add(group, what, measured, reference, kind, source, "equal", equal, **more)

    def near(
        self, group: str, what: str, measured: float, reference: float, kind: Kind, source: str, share: float, *, error: float | None = None,
        sigmas: int = 0, judged: bool = True, **more: Any,
    ) -> None:  # fmt: skip
        """Must be within a share of the reference, and some standard errors of what was measured."""
        inside = abs(measured - reference) <= share * abs(reference) + sigmas * (error or 0.0)
        tolerance = f"{100 * share:.3g} %" + (f" + {sigmas} s.e." if sigmas else "")
        self._add(
            group, what, measured, reference, kind, source, tolerance, inside if judged else None, error=error, **more
        )

    def between(
        self, group: str, what: str, measured: float, low: float, high: float, kind: Kind, source: str, **more: Any
    ) -> None:
        """Must lie in a range."""
        nearest = min(max(measured, low), high)
        self._add(group, what, measured, nearest, kind, source, f"{low:g} to {high:g}", low <= measured <= high, **more)

    def at_most(
        self, group: str, what: str, found: Estimate, bound: float, kind: Kind, source: str, **more: Any
    ) -> None:
        """Must not exceed a bound by more than its standard errors."""
        inside = found.mean <= bound + SIGMAS * found.error
        self._add(group, what, found.mean, bound, kind, source, "at most", inside, error=found.error, **more)

    def statistical(
        self, group: str, what: str, found: Estimate, reference: float, kind: Kind, source: str, *, error: float = 0.0, share: float = 0.0, **more: Any
    ) -> None:  # fmt: skip
        """Must be within SIGMAS standard errors, of both sides where the reference has one, and a share of the reference.

        Shown only where fewer than EVENTS independent events are expected, here or there.
        """
        own, judged = found.error, True
        if found.trials is not None:
            own = max(own, math.sqrt(reference * (1 - reference) / found.trials))
            judged = reference * found.trials >= EVENTS and (not error or (reference / error) ** 2 >= EVENTS)
        inside = abs(found.mean - reference) <= SIGMAS * math.hypot(own, error) + share * reference
        tolerance = f"{SIGMAS} s.e." + (f" + {100 * share:.2g} %" if share else "")
        self._add(
            group, what, found.mean, reference, kind, source, tolerance, inside if judged else None, error=own, **more
        )  # fmt: skip

    def shown(self, group: str, what: str, measured: float | None, note: str, error: float | None = None) -> None:
        """Is no claim of anybody."""
        self._add(group, what, measured, None, None, "", "", None, error=error, note=note)

    def control(
        self, group: str, what: str, rejected: bool, measured: float, reference: float, source: str, tolerance: str,
        error: float | None = None,
    ) -> None:  # fmt: skip
        """Must be rejected by a comparison that what it is the control of has passed."""
        self._add(group, what, measured, reference, None, source, tolerance, rejected, error=error, control=True)

    def _add(
        self, group: str, what: str, measured: float | None, reference: float | None, kind: Kind | None, source: str, tolerance: str,
        holds: bool | None, **more: Any,
    ) -> None:  # fmt: skip
        self.rows.append(
            Row(
                self.paper, group, what, None if measured is None else float(measured), None if reference is None else float(reference),
                kind, source, tolerance, holds, **more,
            )
        )  # fmt: skip
