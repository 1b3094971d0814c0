"""Parameters of a store, validated once, and what follows from them: the geometry of a tree."""

from __future__ import annotations

from typing import TypeAlias

from oram.params.common import (
    DEFAULT_TREE_TOP,
    IN_MEMORY,
    MAX_BLOCK_SIZE,
    MAX_CAPACITY,
    ON_DISK,
    ON_WIRE,
    TAG_SIZE,
    SlotCost,
    check_shape,
    check_tree_top,
    refuse,
)
from oram.params.cuckoo import CuckooGeometry, CuckooParams, Table
from oram.params.linear import LinearGeometry, LinearParams, linear_is_cheaper
from oram.params.path import STASH_BOUND, PathGeometry, PathParams
from oram.params.ring import RING_SETS, RING_STASH_BOUND, RingGeometry, RingParams

__all__ = [
    "DEFAULT_TREE_TOP",
    "GEOMETRIES",
    "IN_MEMORY",
    "MAX_BLOCK_SIZE",
    "MAX_CAPACITY",
    "ON_DISK",
    "ON_WIRE",
    "RING_SETS",
    "RING_STASH_BOUND",
    "SCHEMES",
    "STASH_BOUND",
    "TAG_SIZE",
    "Table",
    "CuckooGeometry",
    "CuckooParams",
    "Geometry",
    "LinearGeometry",
    "LinearParams",
    "PathGeometry",
    "PathParams",
    "RingGeometry",
    "RingParams",
    "SchemeParams",
    "SlotCost",
    "check_shape",
    "check_tree_top",
    "geometry_of",
    "linear_is_cheaper",
    "refuse",
]

SchemeParams: TypeAlias = PathParams | RingParams | CuckooParams | LinearParams
Geometry: TypeAlias = PathGeometry | RingGeometry | CuckooGeometry | LinearGeometry
SCHEMES: dict[str, type[SchemeParams]] = {
    "path": PathParams,
    "ring": RingParams,
    "cuckoo": CuckooParams,
    "linear": LinearParams,
}
GEOMETRIES: dict[str, type[Geometry]] = {
    "path": PathGeometry,
    "ring": RingGeometry,
    "cuckoo": CuckooGeometry,
    "linear": LinearGeometry,
}


def geometry_of(capacity: int, block_size: int, params: SchemeParams, tree_top: int, cost: SlotCost) -> Geometry:
    """The geometry of a new store. ParameterError, all problems together."""
    if isinstance(params, PathParams):
        return PathGeometry.of(capacity, block_size, params, tree_top, cost)
    if isinstance(params, RingParams):
        return RingGeometry.of(capacity, block_size, params, tree_top, cost)
    if isinstance(params, CuckooParams):
        return CuckooGeometry.of(capacity, block_size, params, tree_top, cost)
    return LinearGeometry.of(capacity, block_size)
