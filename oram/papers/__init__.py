"""Published figures, measured again: ``oram reproduce``.

Each paper is a module with a ``study`` that simulates (``oram.kernels.simulation``), counts at real stores, and sets what it measured beside what is
published or derived, with a tolerance that does not depend on the outcome. docs/reproducing.md says what the simulations contain and what they do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from oram.papers import cuckoo, hierarchical, path, ring
from oram.papers.row import Finding, Kind, Row
from oram.papers.run import Run, Size

__all__ = ["PAPERS", "Finding", "Kind", "Paper", "Row", "Run", "Size", "reproduce"]


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper, and what of it is measured again."""

    name: str
    citation: str
    what: str
    study: Callable[[Run], Finding]


PAPERS = {
    paper.name: paper
    for paper in (
        Paper(
            "path",
            "Stefanov, van Dijk, Shi, Fletcher, Ren, Yu, Devadas: Path ORAM: An Extremely Simple Oblivious RAM Protocol, CCS 2013",
            "tail of the stash for Z = 4, 5, 6; the table that extrapolates it; blocks an access",
            path.study,
        ),
        Paper(
            "ring",
            "Ren, Fletcher, Kwon, Stefanov, Shi, van Dijk, Devadas: Constants Count: Practical Improvements to Oblivious RAM, USENIX Security 2015",
            "stash and its table; early reshuffles of each level; bandwidth with and without XOR; the choice of A and S",
            ring.study,
        ),
        Paper(
            "cuckoo",
            "Kirsch, Mitzenmacher, Wieder: More Robust Hashing: Cuckoo Hashing with a Stash, SIAM J. Comput. 2009; "
            "Drmota, Kutzelnigg: A Precise Analysis of Cuckoo Hashing, ACM TALG 2012",
            "keys that find no cell, for several n and eps",
            cuckoo.study,
        ),
        Paper(
            "hierarchical",
            "Goldreich, Ostrovsky: Software Protection and Simulation on Oblivious RAMs, JACM 1996, over cuckoo hash tables as of Pinkas, Reinman, CRYPTO 2010",
            "amortised cost of an access, against the schedule and its constants",
            hierarchical.study,
        ),
    )
}


def reproduce(name: str, run: Run) -> Finding:
    """Measure what a paper says. KeyError for a paper that is not in PAPERS."""
    start = time.perf_counter()
    found = PAPERS[name].study(run)
    return replace(found, seconds=time.perf_counter() - start)
