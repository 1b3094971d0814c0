"""Parameters of a store, validated once, and what follows from them: the geometry of a tree."""

from __future__ import annotations

from typing import Any, TypeAlias

from oram.params.binned import BinnedGeometry
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
from oram.params.sharded import MAX_SHARDS, OVERFLOW_BITS, ShardedGeometry, check_shards, shard_batch

__all__ = [
    "DEFAULT_TREE_TOP",
    "GEOMETRIES",
    "IN_MEMORY",
    "MAX_BLOCK_SIZE",
    "MAX_CAPACITY",
    "MAX_SHARDS",
    "ON_DISK",
    "ON_WIRE",
    "OVERFLOW_BITS",
    "RING_SETS",
    "RING_STASH_BOUND",
    "SCHEMES",
    "STASH_BOUND",
    "TAG_SIZE",
    "Table",
    "BinnedGeometry",
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
    "ShardedGeometry",
    "SlotCost",
    "TreeGeometry",
    "check_shape",
    "check_shards",
    "check_tree_top",
    "geometry_from",
    "geometry_of",
    "linear_is_cheaper",
    "refuse",
    "shard_batch",
]

SchemeParams: TypeAlias = PathParams | RingParams | CuckooParams | LinearParams
TreeGeometry: TypeAlias = PathGeometry | RingGeometry | CuckooGeometry | LinearGeometry
Geometry: TypeAlias = TreeGeometry | ShardedGeometry
SCHEMES: dict[str, type[SchemeParams]] = {
    "path": PathParams,
    "ring": RingParams,
    "cuckoo": CuckooParams,
    "linear": LinearParams,
}
GEOMETRIES: dict[str, type[TreeGeometry]] = {
    "path": PathGeometry,
    "ring": RingGeometry,
    "cuckoo": CuckooGeometry,
    "linear": LinearGeometry,
}


def geometry_of(
    capacity: int, block_size: int, params: SchemeParams, tree_top: int, cost: SlotCost, shards: int = 1
) -> Geometry:
    """The geometry of a new store. ParameterError, all problems together. tree_top: bytes, of all shards together."""
    if shards == 1:
        return _tree_of(capacity, block_size, params, tree_top, cost)
    refuse(check_shape(capacity, block_size) + check_shards(shards, capacity) + check_tree_top(tree_top))
    tree = _tree_of(-(-capacity // shards), block_size, params, tree_top // shards, cost)
    return ShardedGeometry(capacity, shards, tree)


def _tree_of(capacity: int, block_size: int, params: SchemeParams, tree_top: int, cost: SlotCost) -> TreeGeometry:
    if isinstance(params, PathParams):
        return PathGeometry.of(capacity, block_size, params, tree_top, cost)
    if isinstance(params, RingParams):
        return RingGeometry.of(capacity, block_size, params, tree_top, cost)
    if isinstance(params, CuckooParams):
        hierarchy = BinnedGeometry if params.index == "none" else CuckooGeometry
        return hierarchy.of(capacity, block_size, params, tree_top, cost)
    return LinearGeometry.of(capacity, block_size)


def geometry_from(public: dict[str, Any]) -> Geometry:
    """The geometry in an authenticated header. KeyError for a scheme that this version does not know."""
    kind, shards = GEOMETRIES[public["scheme"]], public.get("shards", 1)
    if public.get("index") == "none":
        kind = BinnedGeometry
    if shards == 1:
        return kind.from_public(public["blocks"], public["block_size"], public)
    tree = kind.from_public(-(-public["blocks"] // shards), public["block_size"], public)
    return ShardedGeometry(public["blocks"], shards, tree)
