"""Path ORAM (Stefanov et al., CCS 2013): the tail of its stash, the table that continues it, and the blocks that an access moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from oram.kernels.simulation import Trees
from oram.papers.counting import moved, traced
from oram.papers.row import Finding, Kind, Rows
from oram.papers.run import Run, Size
from oram.papers.tail import LINE_SIGMAS, Tail
from oram.params import PathParams
from oram.types import U64

__all__ = ["TABLE", "study"]

NAME = "path"
#: Table 3: the stash that is exceeded with probability 2^-lambda.
TABLE = {4: {80: 89, 128: 147, 256: 303}, 5: {80: 63, 128: 105, 256: 218}, 6: {80: 53, 128: 89, 256: 186}}
TABLE_SOURCE = "Stefanov et al. 2013, table 3"
TABLE_SHARE = 0.10

#: P[stash > R] by an independent simulation, N = 2^16, L = 15, round robin, 10^9 accesses.
SIMULATED = {
    4: {0: 1.787e-2, 1: 7.99e-3, 2: 3.75e-3, 3: 1.84e-3, 5: 4.90e-4, 8: 7.97e-5, 10: 2.53e-5, 12: 8.4e-6, 15: 1.65e-6},
    5: {0: 3.797e-3, 1: 1.419e-3, 2: 5.44e-4, 3: 2.15e-4, 5: 3.76e-5, 8: 3.35e-6, 10: 8.0e-7},
    6: {0: 1.08e-3, 1: 3.81e-4, 2: 1.37e-4, 3: 5.03e-5, 5: 7.28e-6, 8: 4.78e-7},
}
SIMULATED_ACCESSES = 1e9
SIMULATED_SOURCE = "independent simulation, 10^9 accesses"

FLAT = (0, 2, 5)  # R at which the tails of two N are compared
FLAT_SHARE = 0.15


def burst(Z: int) -> list[float]:
    """Accesses that an excursion above R = 0, 1, ... lasts: the integrated autocorrelation time.

    For Z = 4 as that simulation measured it, 20 at R = 0, 40 at 5 and 50 from 10 on; a third of it for more, and for Z = 3 no less.
    """
    times: list[float] = np.interp(range(11), [0, 5, 10], [20, 40, 50]).tolist()
    return [time / 3 for time in times] if Z > 4 else times


def study(run: Run) -> Finding:
    """All of it."""
    bits = run.choose(16, 16, 10)
    each, blocks, other, control = run.choose((1_000_000, 75, 25, 10), (100_000, 20, 10, 20), (1_000, 40, 10, 60))
    small = bits - 2
    smaller = bits - run.choose(4, 4, 5)  # for the control, whose accesses hang together for long
    copies = 2
    wanted = [
        (4, bits, 2 * blocks),
        (5, bits, blocks),
        (6, bits, blocks),
        (4, small, 2 * other),
        (3, bits, control),
        (3, smaller, control),
    ]
    jobs: list[Callable[[], U64]] = []
    for Z, k, count in wanted:
        for copy in range(copies):
            trees = Trees(1 << k, Z, k - 1, seed=run.seed_of(NAME, Z, k, copy))
            jobs.append(partial(run.path_blocks, trees, count, each))
    counts = run.together(jobs, copies * sum(count for _, _, count in wanted))
    tails = {
        (Z, k): Tail(np.concatenate(counts[copies * i : copies * (i + 1)]), burst(Z))
        for i, (Z, k, _) in enumerate(wanted)
    }
    rows = Rows(NAME)
    for Z in TABLE:
        _tail(rows, run, Z, bits, tails[Z, bits])
    table = {Z: _table(rows, run, Z, tails[Z, bits]) for Z in TABLE}
    _growth(rows, run, tails, {4: small, 3: smaller}, bits)
    _bandwidth(rows)
    return Finding(NAME, rows.rows, _series(tails, table))


def _tail(rows: Rows, run: Run, Z: int, bits: int, tail: Tail) -> None:
    group = f"tail, Z={Z}, N=2^{bits}"
    for R, reference in SIMULATED[Z].items():
        error = math.sqrt(reference * burst(Z)[min(R, 10)] / SIMULATED_ACCESSES)
        found = tail.above(R)
        time = tail.correlation(R)
        note = "" if math.isnan(time) else f"autocorrelation {time:.0f} accesses"
        share = 0.0 if run.size != Size.SMALL else 0.15  # of a smaller tree
        rows.statistical(
            group, f"P[stash > {R}]", found, reference, Kind.SIMULATED, SIMULATED_SOURCE, error=error, share=share, note=note
        )  # fmt: skip


def _table(rows: Rows, run: Run, Z: int, tail: Tail) -> dict[str, Any] | None:
    group, found = f"table 3, Z={Z}", {}
    for lam, published in TABLE[Z].items():
        result = tail.extrapolated(lam, run.seed_of(NAME, "resampled", Z, lam) % (1 << 32))
        if result is None:
            rows.shown(group, f"stash for 2^-{lam}", None, f"too few accesses for a line; published: {published}")
            continue
        estimate, line = result
        enough = line.judged
        note = f"line through R = {line.first}..{line.last}, {line.slope:.2f} bit a block"
        rows.near(
            group, f"stash for 2^-{lam}", estimate.mean, published, Kind.PUBLISHED, TABLE_SOURCE, TABLE_SHARE,
            error=estimate.error, sigmas=LINE_SIGMAS, judged=enough, note=note if enough else note + "; too few accesses to judge",
        )  # fmt: skip
        found[lam] = [estimate.mean, estimate.error]
    line_ = tail.line()
    return None if line_ is None else {"line": [line_.intercept, line_.slope, line_.first, line_.last], "at": found}


def _growth(rows: Rows, run: Run, tails: dict[tuple[int, int], Tail], smaller: dict[int, int], bits: int) -> None:
    """Figure 3: the stash does not depend on N with Z = 4. With Z = 3 it does: the control."""
    source, tolerance = "Stefanov et al. 2013, figure 3: does not depend on N", f"5 s.e. + {100 * FLAT_SHARE:.0f} %"
    grows = run.choose((0, 10), (0, 10), (0,))
    for Z, small in smaller.items():
        few, many = tails[Z, small], tails[Z, bits]
        for R in FLAT if Z == 4 else grows:
            a, b = few.above(R), many.above(R)
            what = f"P[stash > {R}], N=2^{small} against 2^{bits}"
            if Z == 4:
                rows.statistical(
                    "no growth, Z=4", what, a, b.mean, Kind.PUBLISHED, source, error=b.error, share=FLAT_SHARE
                )  # fmt: skip
                continue
            rejected = abs(a.mean - b.mean) > 5 * math.hypot(a.error, b.error) + FLAT_SHARE * b.mean
            rows.control("control: growth, Z=3", what, rejected, a.mean, b.mean, source, tolerance, a.error)


def _bandwidth(rows: Rows) -> None:
    """Blocks that an access of a real store moves, against 2 Z (L + 1)."""
    for Z in TABLE:
        store, trace = traced(PathParams(Z=Z, page_levels=1), 256)
        with store:
            wanted = 2 * Z * (int(store.info()["L"]) + 1)
            # a slot is a bucket; of 40 accesses the one that is furthest off, as all must be equal
            counted = max((Z * slots for slots in moved(store, trace, 40)), key=lambda blocks: abs(blocks - wanted))
        rows.exact(
            "blocks an access", f"Z={Z}, N=2^8, a real store", counted, wanted, Kind.PUBLISHED,
            "Stefanov et al. 2013, section 6: Z (L + 1) blocks read and written",
        )  # fmt: skip


def _series(tails: dict[tuple[int, int], Tail], table: dict[int, dict[str, Any] | None]) -> dict[str, Any]:
    return {
        "tails": [
            {
                "Z": Z,
                "N": 1 << k,
                "accesses": tail.total,
                "P": tail.P[: tail.seen].tolist(),
                "error": tail.error[: tail.seen].tolist(),
            }
            for (Z, k), tail in tails.items()
        ],
        "table": {str(Z): found for Z, found in table.items()},
        "published": {str(Z): {str(lam): R for lam, R in row.items()} for Z, row in TABLE.items()},
        "simulated": {str(Z): {str(R): p for R, p in row.items()} for Z, row in SIMULATED.items()},
    }
