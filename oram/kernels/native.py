"""The native kernels: csrc/ through cffi. The only module that imports cffi's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oram.backends.base import Slots
from oram.errors import CipherUnavailableError
from oram.kernels._native import ffi, lib
from oram.kernels.base import COUNTER_BITS, Keys, PathPlan, PathState, PoolFullError, Requests, TamperedError
from oram.params import TAG_SIZE, LinearGeometry, PathGeometry
from oram.types import I64, U8, U32, U64

name = "native"


def pointer(kind: str, array: np.ndarray[Any, Any]) -> Any:
    """The array's memory as a C pointer, which keeps the array alive. ValueError unless it is contiguous."""
    return ffi.from_buffer(kind, array)


def writable(kind: str, array: np.ndarray[Any, Any]) -> Any:
    """The same for memory that C writes. ValueError if it is read-only."""
    return ffi.from_buffer(kind, array, require_writable=True)


def aegis() -> Any:
    """The module of pyaegis with libaegis' functions."""
    try:
        from pyaegis import _aegis_ffi
    except ImportError as error:
        raise CipherUnavailableError(
            'the cipher aegis-256 needs the package pyaegis: pip install "oram[aegis]"'
        ) from error
    return _aegis_ffi


class NativeKeys:
    """Cipher contexts by generation, in a table that C reads."""

    whole = True

    def __init__(self, cipher: str, key_of: Callable[[int], bytes]) -> None:
        self._key_of = key_of
        self._alive: dict[int, Any] = {}
        self.current = 0
        self.struct = ffi.new("oram_keys *")
        if cipher == "aes-256-gcm":
            self.struct.cipher = lib.oram_gcm()
            self._context = self._gcm
        elif cipher == "aegis-256":
            module = aegis()
            encrypt, decrypt = (
                module.ffi.addressof(module.lib, f"aegis256_{verb}_detached") for verb in ("encrypt", "decrypt")
            )
            self._encrypt = ffi.cast("oram_detached_encrypt_fn", int(module.ffi.cast("uintptr_t", encrypt)))
            self._decrypt = ffi.cast("oram_detached_decrypt_fn", int(module.ffi.cast("uintptr_t", decrypt)))
            self.struct.cipher = lib.oram_detached_cipher()
            self._context = self._detached
        else:
            raise CipherUnavailableError(f"unknown cipher {cipher!r}")
        self._grow(16)

    def _gcm(self, key: bytes) -> Any:
        context = lib.oram_gcm_new(key)
        if context == ffi.NULL:
            raise CipherUnavailableError("libcrypto offers no AES-256-GCM here")
        return ffi.gc(context, lib.oram_gcm_free)

    def _detached(self, key: bytes) -> Any:
        context = ffi.new("oram_detached *")
        context.encrypt, context.decrypt = self._encrypt, self._decrypt
        ffi.memmove(context.key, key, 32)
        return context

    def _grow(self, count: int) -> None:
        table = ffi.new("void *[]", count)
        for generation, context in self._alive.items():
            table[generation] = context
        self.struct.contexts = table  # in this order: what C reads is alive, whatever interrupts us
        self._table, self.struct.count = table, count

    def load(self, generation: int) -> None:
        """Make the context of a generation, once."""
        if generation not in self._alive:
            self._alive[generation] = self._context(self._key_of(generation))
        if generation >= self.struct.count:
            self._grow(2 * generation)
        self._table[generation] = self._alive[generation]

    @property
    def counter(self) -> int:
        """Next nonce of the current generation."""
        return int(self.struct.counter)

    def start(self, generation: int) -> None:
        """Seal under this generation from now on, from counter 0."""
        self.load(generation)
        self.current = generation
        self.struct.current, self.struct.counter = generation, 0

    def run(self, call: Callable[..., int], *args: Any) -> None:
        """Call into C, supplying the keys that it finds missing."""
        while (code := call(*args)) > 0:
            self.load(code)
        if code == lib.ORAM_TAMPERED:
            raise TamperedError
        if code == lib.ORAM_POOL_FULL:
            raise PoolFullError
        if code:
            raise RuntimeError("the cipher failed, or the state is not sound")


class NativeRequests(Requests):
    """Requests with their C pointers at hand: making them costs more than a small access."""

    def __init__(self, capacity: int, block_size: int) -> None:
        super().__init__(capacity, block_size)
        self.c_ops, self.c_data, self.c_out = (pointer("uint8_t[]", a) for a in (self.ops, self.data, self.out))
        self.c_where, self.c_after = pointer("uint8_t[]", self.where), pointer("uint8_t[]", self.after)
        self.c_pool = pointer("uint32_t[]", self.pool)
        self.c_addresses, self.c_draws = pointer("uint32_t[]", self.addresses), pointer("uint32_t[]", self.draws)


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
        self._attach(state)
        self._reserve(1)

    def _attach(self, state: PathState) -> None:
        c = self._struct
        position, refs, head = (
            writable("uint32_t[]", state.position),
            writable("uint64_t[]", state.refs),
            writable("int32_t[]", state.head),
        )
        addr, leaf = writable("uint32_t[]", state.pool_addr), writable("uint32_t[]", state.pool_leaf)
        chain, data = writable("int32_t[]", state.pool_next), writable("uint8_t[]", state.pool_data)
        # from here on nothing is called, so that nothing can come between the arrays and their pointers
        self._state = state
        c.position, c.refs, c.head = position, refs, head
        c.pool_addr, c.pool_leaf, c.pool_next, c.pool_data = addr, leaf, chain, data
        c.pool_cap, c.pool_free, c.pool_used = state.pool_addr.size, state.free, state.used

    @property
    def state(self) -> PathState:
        """The arrays, with the pool's counters brought up to date."""
        self._state.free, self._state.used = self._struct.pool_free, self._struct.pool_used
        return self._state

    @state.setter
    def state(self, state: PathState) -> None:
        self._capacity = 0  # as in _reserve
        self._attach(state)
        self._make_scratch()  # the requests stay: a batch that found the pool full is still in them

    def _reserve(self, m: int) -> None:
        self._capacity = 0  # C may not run before all memory is there, whatever interrupts us
        self._requests = NativeRequests(m, self._geometry.B)
        self._make_scratch()

    def _make_scratch(self) -> None:
        m = self._requests.capacity
        self._region: Slots | None = None  # whose pointers, with those below, are in _in_place
        self._planned = -1  # pages of the plan in scratch, -1 where there is none
        self._path = np.zeros(m, np.uint32)
        self._slots = np.zeros(m * self._geometry.layers, np.int64)
        self._c_path, self._c_slots = pointer("uint32_t[]", self._path), pointer("uint64_t[]", self._slots)
        self._scratch = np.zeros(lib.oram_path_scratch(self._struct, m) // 8 + 1, np.uint64)
        self._c_scratch = pointer("uint8_t[]", self._scratch)
        self._capacity = m

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._capacity:
            self._reserve(max(m, min(2 * self._capacity, self._geometry.max_batch)))
        self._requests.m, self._planned = m, -1
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
        self._planned = pages = self._plan()
        return PathPlan(self._path[: requests.m].copy(), self._slots[:pages].copy())

    def access(self, requests: Requests, plan: PathPlan, pages: Slots) -> U32:
        """Open, serve, evict and seal."""
        self._check(requests)
        r, n = self._requests, plan.slots.size
        if n != self._planned or pages.data.shape != (n, self._geometry.slot_size) or pages.present.shape != (n,):
            raise ValueError("another plan, or pages of another shape")
        placed = np.empty((n, self._geometry.buckets * self._geometry.Z), np.uint32)
        self._keys.run(
            lib.oram_path_access, self._struct, self._keys.struct, r.m, r.c_ops, r.c_addresses, r.c_draws, n, self._c_slots,
            writable("uint8_t[]", pages.data), writable("uint8_t[]", pages.present), 0, r.c_data, r.c_out,
            pointer("uint32_t[]", placed), r.c_where, r.c_pool, r.c_after, self._c_scratch,
        )  # fmt: skip
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


class NativeLinear:
    """Linear ORAM in C."""

    def __init__(self, geometry: LinearGeometry, base: U64, keys: Keys) -> None:
        assert isinstance(keys, NativeKeys)
        self._geometry, self._keys, self.base = geometry, keys, base
        self._c_base = pointer("uint64_t[]", base)
        self._c_plain = pointer("uint8_t[]", np.zeros(geometry.slots * geometry.plain, np.uint8))
        self._requests = NativeRequests(1, geometry.B)
        self._pages: tuple[Slots, Any, Any] | None = None  # those of the last access, and their pointers

    def requests(self, m: int) -> Requests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._requests.capacity:
            self._requests = NativeRequests(m, self._geometry.B)
        self._requests.m = m
        return self._requests

    def access(self, requests: Requests, pages: Slots) -> None:
        """Open, serve and seal every page."""
        assert requests is self._requests
        if self._pages is None or self._pages[0] is not pages:
            self._pages = pages, writable("uint8_t[]", pages.data), writable("uint8_t[]", pages.present)
        g, r = self._geometry, self._requests
        self._keys.run(
            lib.oram_linear_access, self._keys.struct, g.N, g.B, g.g, g.slots, self._c_base, r.m, r.c_ops, r.c_addresses,
            self._pages[1], self._pages[2], r.c_data, r.c_out, self._c_plain,
        )  # fmt: skip

    def open_pages(self, pages: Slots) -> U8:
        """All blocks in clear."""
        g, base = self._geometry, int(self.base[0])
        plain = np.zeros((g.slots * g.g, g.B), np.uint8)
        if base:
            if not pages.present.all():
                raise TamperedError
            self._keys.load(base >> COUNTER_BITS)
            context, counter = self._keys.struct.contexts[base >> COUNTER_BITS], base & ((1 << COUNTER_BITS) - 1)
            self._keys.run(
                lib.oram_open_many,
                self._keys.struct.cipher,
                context,
                counter,
                g.slots,
                g.plain,
                pointer("uint8_t[]", pages.data),
                pointer("uint8_t[]", plain),
            )
        return plain

    def build_pages(self, blocks: U8) -> U8:
        """Seal all blocks."""
        g, keys = self._geometry, self._keys
        sealed = np.empty((g.slots, g.slot_size), np.uint8)
        counter = keys.counter
        keys.struct.counter += g.slots  # before the first seal
        keys.run(
            lib.oram_seal_many,
            keys.struct.cipher,
            keys.struct.contexts[keys.current],
            counter,
            g.slots,
            g.plain,
            pointer("uint8_t[]", blocks),
            pointer("uint8_t[]", sealed),
        )
        self.base[0] = keys.current << COUNTER_BITS | counter
        return sealed


class NativeIndex:
    """Open addressing in C: 4 bytes a cell, at most half full."""

    def __init__(self, tags: U8) -> None:
        self._rows = memoryview(tags.reshape(-1).data)
        self._table = np.zeros(1 << (2 * max(1, len(tags)) - 1).bit_length(), np.uint32)
        self._args = pointer("uint8_t[]", tags), pointer("uint32_t[]", self._table), self._table.size
        lib.oram_index_build(self._args[0], len(tags), self._args[1], self._args[2])

    def find(self, tag: bytes) -> int:
        """Address of the tag, -1 where there is none."""
        return int(lib.oram_index_find(*self._args, tag))

    def insert(self, tag: bytes, address: int) -> None:
        """Enter a tag that is not there, at a free address."""
        self._rows[16 * address : 16 * address + 16] = tag
        lib.oram_index_insert(*self._args, address)

    def remove(self, address: int) -> None:
        """Free an address."""
        lib.oram_index_remove(*self._args, address)
        self._rows[16 * address : 16 * address + 16] = bytes(16)


def keys(cipher: str, key_of: Callable[[int], bytes]) -> Keys:
    """Sealing keys by generation."""
    return NativeKeys(cipher, key_of)


def path(geometry: PathGeometry, state: PathState, keys: Keys) -> NativePath:
    """Path kernel over this state."""
    return NativePath(geometry, state, keys)


def linear(geometry: LinearGeometry, base: U64, keys: Keys) -> NativeLinear:
    """Linear kernel over this state."""
    return NativeLinear(geometry, base, keys)


def index(tags: U8) -> NativeIndex:
    """Index of the tags that are there now."""
    return NativeIndex(tags)


def floor(cipher: str, region: U8) -> Callable[[U64], None]:
    """For benchmarks: a function that opens and seals the slots it is given, of a region (slots, slot_size), and does nothing else."""
    keys = NativeKeys(cipher, lambda _: bytes(32))
    keys.start(1)
    context, size = keys.struct.contexts[1], region.shape[1] - TAG_SIZE
    memory = pointer("uint8_t[]", region)
    plain = np.zeros(4096 * size, np.uint8)
    desk = pointer("uint8_t[]", plain)
    for first in range(0, len(region), 4096):  # the first seal; nonces do not matter here
        slots = np.arange(first, min(first + 4096, len(region)), dtype=np.uint64)
        keys.run(
            lib.oram_floor, keys.struct.cipher, context, 0, slots.size, pointer("uint64_t[]", slots), size, memory, desk
        )

    def run(slots: U64) -> None:
        keys.run(
            lib.oram_floor, keys.struct.cipher, context, 1, slots.size, pointer("uint64_t[]", slots), size, memory, desk
        )

    return run


assert COUNTER_BITS == lib.ORAM_COUNTER_BITS
