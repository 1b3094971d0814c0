"""Pointers into numpy's memory, and request buffers that have theirs at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oram.kernels._native import ffi
from oram.kernels.base import PoolState, Requests


def pointer(kind: str, array: np.ndarray[Any, Any]) -> Any:
    """The array's memory as a C pointer, which keeps the array alive. ValueError unless it is contiguous."""
    return ffi.from_buffer(kind, array)


def writable(kind: str, array: np.ndarray[Any, Any]) -> Any:
    """The same for memory that C writes. ValueError if it is read-only."""
    return ffi.from_buffer(kind, array, require_writable=True)


class NativeRequests(Requests):
    """Requests with their C pointers at hand: making them costs more than a small access."""

    def __init__(self, capacity: int, block_size: int, seed: int = 0) -> None:
        super().__init__(capacity, block_size, seed)
        self.c_seed = pointer("uint8_t[]", self.seed)
        self.c_ops, self.c_data, self.c_out = (pointer("uint8_t[]", a) for a in (self.ops, self.data, self.out))
        self.c_where, self.c_after = pointer("uint8_t[]", self.where), pointer("uint8_t[]", self.after)
        self.c_pool = pointer("uint32_t[]", self.pool)
        self.c_addresses, self.c_draws = pointer("uint32_t[]", self.addresses), pointer("uint32_t[]", self.draws)


def attach_pool(pool: Any, state: PoolState) -> Callable[[], None]:
    """A function that makes the C struct ``pool`` that of the state. It keeps the pointers' memory alive."""
    head, chain = writable("int32_t[]", state.head), writable("int32_t[]", state.pool_next)
    addr, leaf = writable("uint32_t[]", state.pool_addr), writable("uint32_t[]", state.pool_leaf)
    data = writable("uint8_t[]", state.pool_data)

    def attach() -> None:
        pool.head, pool.next, pool.addr, pool.leaf, pool.data = head, chain, addr, leaf, data
        pool.cap, pool.free, pool.used = state.pool_addr.size, state.free, state.used

    return attach
