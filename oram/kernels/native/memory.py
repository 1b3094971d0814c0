"""Pointers into numpy's memory, and request buffers that have theirs at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from oram.kernels._native import ffi
from oram.kernels.base import PoolState, Requests

#: C's name of the items of an array, by their dtype.
C_TYPES = {"u1": "uint8_t[]", "u2": "uint16_t[]", "i4": "int32_t[]", "u4": "uint32_t[]", "i8": "uint64_t[]", "u8": "uint64_t[]"}  # fmt: skip
_BYTES = {
    "uint16_t[]": 2,
    "int32_t[]": 4,
    "uint32_t[]": 4,
    "int64_t[]": 8,
    "uint64_t[]": 8,
}  # the bytes of an array are those of any


def pointer(kind: str, array: np.ndarray[Any, Any]) -> Any:
    """The array's memory as a C pointer, which keeps the array alive. ValueError unless it is contiguous and its items are as large as C's."""
    _fits(kind, array)
    return ffi.from_buffer(kind, array)


def writable(kind: str, array: np.ndarray[Any, Any]) -> Any:
    """The same for memory that C writes. ValueError if it is read-only."""
    _fits(kind, array)
    return ffi.from_buffer(kind, array, require_writable=True)


def _fits(kind: str, array: np.ndarray[Any, Any]) -> None:
    if array.itemsize != _BYTES.get(kind, array.itemsize):
        raise ValueError(f"items of {array.dtype} are no {kind}")


class Lent:
    """Fields of a C struct that point into numpy's memory, which lives as long as this."""

    def __init__(self, struct: Any) -> None:
        self._struct, self._arrays = struct, dict[str, tuple[Any, ...]]()

    def lend(self, field: str, array: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
        """Let a field point to an array."""
        self.point(field, array, writable(kind, array))
        return array

    def point(self, field: str, array: npt.NDArray[Any], at: Any) -> None:
        """The same where the pointer is made."""
        # Whatever interrupts us, what C reads is alive: both arrays are, until C has the new one
        self._arrays[field] = array, at, self._arrays.get(field)
        setattr(self._struct, field, at)
        self._arrays[field] = array, at

    def take_back(self, *fields: str) -> None:
        """Let them point to nothing."""
        for field in fields:
            setattr(self._struct, field, ffi.NULL)
            self._arrays.pop(field, None)

    def array(self, field: str) -> npt.NDArray[Any]:
        """What a field points to."""
        found: npt.NDArray[Any] = self._arrays[field][0]
        return found

    def arrays(self) -> Iterator[npt.NDArray[Any]]:
        """All that is lent."""
        return (array for array, *_ in self._arrays.values())


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
