"""Popularity as YCSB has it: the workloads of the demo, the audit and the benchmarks are skewed alike."""

from __future__ import annotations

import numpy as np

from oram.types import F64

__all__ = ["PUTS", "THETA", "popularity"]

#: The k-th most popular record is asked for in proportion to 1 / k^THETA.
THETA = 0.99
#: Share of puts among the requests that hit.
PUTS = 0.1


def popularity(n: int) -> F64:
    """Probability of the most popular record, of the next one, and so on, for n records: float64 (n,)."""
    weights: F64 = np.arange(1, n + 1, dtype=np.float64) ** -THETA
    share: F64 = weights / weights.sum()
    return share
