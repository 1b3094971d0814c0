"""Path ORAM in C."""

from __future__ import annotations

import numpy as np

from oram.backends.base import Slots
from oram.kernels._native import ffi, lib
from oram.kernels.base import Keys, PathPlan, PathState, Requests
from oram.kernels.native.cipher import NativeKeys
from oram.kernels.native.memory import NativeRequests, attach_pool, pointer, writable
from oram.params import PathGeometry
from oram.types import I64, U8, U32, U64

_NOTHING = -1, -1  # requests and pages that the scratch memory is of


class NativePath:
    """Path ORAM in C."""

    def __init__(self, geometry: PathGeometry, state: PathState, keys: Keys) -> None:
        assert isinstance(keys, NativeKeys)
        self._geometry, self._keys = geometry, keys
        g = geometry
        self._struct = ffi.new(
            "oram_path *",
            {
                "Z": g.Z,
                "L": g.L,
                "T": g.T,
                "h": g.h,
                "h0": g.h0,
                "layers": g.layers,
                "B": g.B,
                "plain": g.plain,
                "N": g.N,
            },
        )
        self._attached: PathState | None = None
        self._attach(state)
        self._reserve(1)

    def _attach(self, state: PathState) -> None:
        c = self._struct
        position, refs = writable("uint32_t[]", state.position), writable("uint64_t[]", state.refs)
        attach = attach_pool(c.pool, state)
        self._attached = (
            None  # a signal may come between any two lines; until the last one C's counters are not the state's
        )
        self._state = state
        c.position, c.refs = position, refs
        attach()
        self._pool = attach  # keeps the pointers' memory
        self._attached = state

    @property
    def state(self) -> PathState:
        """The arrays, with the pool's counters brought up to date."""
        if self._attached is self._state:
            self._state.free, self._state.used = self._struct.pool.free, self._struct.pool.used
        return self._state

    @state.setter
    def state(self, state: PathState) -> None:
        self._capacity = -1  # as in _reserve
        self._attach(state)
        self._make_scratch()  # the requests stay: a batch that found the pool full is still in them

    def _reserve(self, m: int) -> None:
        self._capacity = -1  # C may not run before all memory is there, whatever interrupts us
        if self._attached is not self._state:
            self._attach(self._state)
        self._requests = NativeRequests(m, self._geometry.B)
        self._make_scratch()

    def _make_scratch(self) -> None:
        m = self._requests.capacity
        self._region: Slots | None = None  # whose pointers, with those below, are in _in_place
        self._planned = _NOTHING  # of what is in scratch
        self._path = np.zeros(m, np.uint32)
        self._slots = np.zeros(m * self._geometry.layers, np.int64)
        self._c_path, self._c_slots = pointer("uint32_t[]", self._path), pointer("uint64_t[]", self._slots)
        self._scratch = np.zeros(lib.oram_path_scratch(self._struct, m) // 8 + 1, np.uint64)
        self._c_scratch = pointer("uint8_t[]", self._scratch)
        self._capacity = m

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._capacity:
            self._reserve(max(m, 1, min(2 * self._capacity, self._geometry.max_batch)))
        self._requests.m, self._planned = m, _NOTHING
        return self._requests

    def _plan(self) -> int:
        r = self._requests
        return int(
            lib.oram_path_plan(
                self._struct, r.m, r.c_ops, r.c_addresses, r.c_draws, self._c_path, self._c_slots, self._c_scratch
            )
        )

    def _check(self, requests: Requests) -> None:
        if requests is not self._requests or not 0 <= requests.m <= self._capacity:
            raise ValueError("these requests are not the kernel's, or have outgrown it")

    def plan(self, requests: Requests) -> PathPlan:
        """Which pages the batch reads."""
        self._check(requests)
        pages = self._plan()
        self._planned = requests.m, pages
        return PathPlan(self._path[: requests.m].copy(), self._slots[:pages].copy())

    def access(self, requests: Requests, plan: PathPlan, pages: Slots) -> U32:
        """Open, serve, evict and seal."""
        self._check(requests)
        r, n = self._requests, plan.slots.size
        if (
            (r.m, n) != self._planned
            or pages.data.shape != (n, self._geometry.slot_size)
            or pages.present.shape != (n,)
        ):
            raise ValueError("another plan, or pages of another shape")
        placed = np.empty((n, self._geometry.buckets * self._geometry.Z), np.uint32)
        self._keys.run(
            lib.oram_path_access, self._struct, self._keys.struct, r.m, r.c_ops, r.c_addresses, r.c_draws, n, self._c_slots,
            writable("uint8_t[]", pages.data), writable("uint8_t[]", pages.present), 0, r.c_data, r.c_out,
            pointer("uint32_t[]", placed), r.c_where, r.c_pool, r.c_after, self._c_scratch,
        )  # fmt: skip
        self._planned = _NOTHING  # the plan was of the state before
        return placed

    def access_in_place(self, requests: Requests, region: Slots) -> None:
        """Plan and access over the region's own memory."""
        self._check(requests)
        if self._region is not region:
            r, g = self._requests, self._geometry
            if region.data.shape != (g.slots, g.slot_size) or region.present.shape != (g.slots,):
                raise ValueError("a region of another shape")
            self._in_place = (
                r.c_ops, r.c_addresses, r.c_draws, self._c_path, self._c_slots, writable("uint8_t[]", region.data),
                writable("uint8_t[]", region.present), r.c_data, r.c_out, self._c_scratch,
            )  # fmt: skip
            self._region = region
        self._planned = _NOTHING  # its scratch is used
        self._keys.run(lib.oram_path_in_place, self._struct, self._keys.struct, requests.m, *self._in_place)

    def open_pages(self, slots: I64, refs: U64, pages: Slots) -> U8:
        """Pages in clear."""
        plain = np.empty((slots.size, self._geometry.plain), np.uint8)
        self._keys.run(
            lib.oram_path_open, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots), pointer("uint64_t[]", refs),
            pointer("uint8_t[]", pages.data), pointer("uint8_t[]", pages.present), pointer("uint8_t[]", plain),
        )  # fmt: skip
        return plain

    def build_pages(self, slots: I64, children: U64, source: I64, addr: U32, leaf: U32, blocks: U8) -> U8:
        """Seal given content."""
        sealed = np.empty((slots.size, self._geometry.slot_size), np.uint8)
        self._keys.run(
            lib.oram_path_build, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots), pointer("uint64_t[]", children),
            pointer("int64_t[]", source), pointer("uint32_t[]", addr), pointer("uint32_t[]", leaf), pointer("uint8_t[]", blocks), pointer("uint8_t[]", sealed),
        )  # fmt: skip
        return sealed
