"""How likely it is that keys find no cell in a cuckoo hash, whatever is done: by counting bipartite graphs.

Cells are vertices (two sides of m), keys are n labelled edges. A component with e edges and v vertices leaves over max(0, e - v) keys, however they
are placed. With T1 = x exp(T2) and T2 = y exp(T1), the trees with a root on either side (Drmota and Kutzelnigg 2012), and q = T1 T2, components have
the generating functions

    tree        T1 + T2 - q
    one cycle   log(1 / (1 - q)) / 2
    two cycles  q ((T1 + T2)(2 q + 3) + 6 q + 4) / (24 (1 - q)^3)

the last from the three shapes of two cycles (two vertices joined by three paths; two cycles joined by a path; one vertex on both cycles), with paths of
the right parity in place of their edges. Each component in what is counted here has at most one edge more than it has vertices, so the number of trees
is known: 2 m - n, and one more with a component of two cycles. Lagrange's formula in two variables turns T1, T2 into variables u, v at the price of a
factor (1 - u v) exp(m (u + v)), and the coefficient of u^m v^m is Cauchy's integral over two circles, through the saddle point, where the sum over
equidistant points converges faster than any power.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from oram.errors import ParameterError

__all__ = ["asymptotic", "exceeds"]


def asymptotic(m: int, n: int) -> float:
    """P[at least one key finds no cell] but for O(1/m^2): c(e) / m for n = (1 - e) m [Kutzelnigg 2006; Drmota and Kutzelnigg 2012, theorem 1]."""
    e = 1 - n / m
    return (2 * e * e - 5 * e + 5) * (1 - e) ** 3 / (12 * (2 - e) ** 2 * e**3) / m


@cache
def exceeds(m: int, n: int) -> tuple[float, float]:
    """P[more than 0 keys find no cell] and P[more than 1], for n keys and two tables of m cells; right to about 1e-12.

    ParameterError unless n < 2 m - 1. Cost: about 300 m steps and more.
    """
    trees = 2 * m - n
    if n < 1 or trees < 2:
        raise ParameterError("there must be keys, and fewer than 2 m - 1 of them")
    radius = min(n / m, 0.95)
    points = 1 << math.ceil(math.log2(16 * math.sqrt(m) + 128))
    angle = 2 * math.pi * np.arange(points) / points
    v = radius * np.exp(1j * angle)
    logs = math.log(radius) + 1j * angle
    top = trees * math.log(2 * radius - radius**2) + 2 * m * (radius - math.log(radius))
    none = one = 0.0
    for u, log_u in zip(v[: points // 2 + 1].tolist(), logs.tolist(), strict=False):
        q, both = u * v, u + v
        tree = both - q
        with np.errstate(divide="ignore"):  # a zero of what is raised to a power
            path = np.exp(trees * np.log(tree) + m * (both - log_u - logs) - top) * np.sqrt(1 - q)
        twice = 1.0 if log_u.imag in (0.0, math.pi) else 2.0  # the other half of the circle is the conjugate
        none += twice * float(path.real.sum())
        cycles = q * (both * (2 * q + 3) + 6 * q + 4) / (24 * (1 - q) ** 3)
        one += twice * float((path * tree * cycles).real.sum()) / (trees + 1)
    # m!^2 n! / (m^(2 n) trees!), term by term, so that the logarithms of large factorials do not cancel
    ways = math.fsum(
        [2 * math.log(i / m) for i in range(1, m + 1)]
        + [math.log(i / m) for i in range(1, n + 1)]
        + [-math.log(i / m) for i in range(1, trees + 1)]
    )
    scale = math.exp(ways + top) / points**2
    return 1 - scale * none, 1 - scale * (none + one)
