"""What a hierarchy in C has with and without an index: its constants, its memory, its hash functions, and slots outside of an access."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from oram.backends.base import Slots
from oram.errors import StashOverflowError
from oram.kernels._native import ffi, lib
from oram.kernels.base import BinnedState, CuckooState, Keys, Requests
from oram.kernels.native.cipher import NativeKeys
from oram.kernels.native.memory import C_TYPES, Lent, NativeRequests, pointer, writable
from oram.params import CuckooGeometry, Table
from oram.params.cuckoo import STASH, LevelShape
from oram.types import I64, U8, U32

__all__ = ["SEED", "NativeHierarchy"]

SEED = 32  # bytes

S = TypeVar("S", bound=CuckooState | BinnedState)
G = TypeVar("G", bound=CuckooGeometry)
Room = tuple[str, str, int]  # field, dtype, items


class NativeHierarchy(Generic[S, G]):
    """What both kernels of a hierarchy do alike."""

    builds: ClassVar[tuple[str, str]]  #: of the rebuilds: the field that points to them, and its C type
    spare: ClassVar[int]  #: entries that all tables leave over together
    most: ClassVar[int]  #: blocks
    fields: ClassVar[Mapping[str, str]]  #: of the state, with their dtypes
    c_pairs: ClassVar[Any]

    def __init__(self, geometry: G, state: S, keys: Keys, hash_key: bytes, **constants: int) -> None:
        assert isinstance(keys, NativeKeys)
        self._geometry: G = geometry
        self._keys = keys
        g = geometry
        if not 1 <= g.L < lib.ORAM_CUCKOO_LEVELS or g.c < 8 or not 1 <= g.N <= min(g.c << g.L, self.most):
            raise ValueError("no geometry that the kernel can work with")
        if len(hash_key) != 32:
            raise ValueError("the key of the hash functions has 32 bytes")
        self._prf = ffi.gc(lib.oram_prf_new(hash_key), lib.oram_prf_free)
        self._coins = ffi.gc(lib.oram_coins_new(), lib.oram_coins_free)
        if ffi.NULL in (self._prf, self._coins):
            raise RuntimeError("libcrypto offers no AES-256 here")
        field, kind = self.builds
        self._levels, self._builds = ffi.new("oram_cuckoo_level[]", g.L + 1), ffi.new(kind, g.L + 1)
        self._struct = ffi.new(
            "oram_cuckoo *",
            {
                "N": g.N, "B": g.B, "c": g.c, "L": g.L, "slots": g.slots, "levels": self._levels, field: self._builds, "prf": self._prf,
                "coins": self._coins, "stash": self.spare, **constants,
            },
        )  # fmt: skip
        self._places = [self._level(level) for level in range(g.L + 1)]
        self._stashes = Lent(self._struct)
        self._stash_of: npt.NDArray[np.int32] = self._stashes.lend(
            "stash_of", np.full(self.spare, -1, np.int32), "int32_t[]"
        )
        self._stashes.lend("stash_addr", np.zeros(self.spare, np.uint32), "uint32_t[]")
        self._stashes.lend("stash_data", np.zeros((self.spare, g.B), np.uint8), "uint8_t[]")
        self._lent = [Lent(self._builds[level]) for level in range(g.L + 1)]
        for first in range(0, g.L + 1, 3):
            self._share(range(first, min(first + 3, g.L + 1)))
        self._capacity = -1
        self._cold = False
        self.state = state

    # --- memory

    def _level(self, level: int) -> Any:
        """Its constants. Returns what they point to."""
        g, c = self._geometry, self._levels[level]
        shape = g.levels[level]
        c.duration = g.duration(level)
        c.n, c.m, c.b, c.r, c.width = shape.n, shape.m, shape.b, shape.r, self._width(shape)
        c.spare, c.scanned = shape.spare, shape.scanned
        c.first, _ = g.passes(level)
        c.middle, c.stride = g.first_middle(level), stride(shape.m)
        copies = range(g.L + 1) if level < g.L else range(2)
        places = ffi.new("uint64_t[]", [g.place(level, copy) if copy > level or level == g.L else 0 for copy in copies])
        c.place = places
        return places

    def _width(self, shape: LevelShape) -> int:
        """What a segment of the second pass writes, in the unit of ``oram_cuckoo_level``."""
        raise NotImplementedError

    def _share(self, levels: range) -> None:
        """Memory of the rebuilds of levels in a row, of which only one is ever under way."""
        raise NotImplementedError

    def _point(self, levels: range, rooms: list[Room]) -> None:
        """New arrays for these levels, together."""
        for field, dtype, size in rooms:
            array = np.zeros(size, dtype)
            at = writable(C_TYPES[dtype], array)
            for level in levels:
                self._lent[level].point(field, array, at)

    @property
    def state(self) -> S:
        """The arrays."""
        return self._state

    @state.setter
    def state(self, state: S) -> None:
        g, lent = self._geometry, Lent(self._struct)
        shapes = {
            "clock": (2,), "code": (g.N,), "log_addr": (g.log_size,), "log_code": (g.log_size,),
            "page_addr": (g.pages, g.c), "page_data": (g.pages, g.c, g.B),
        }  # fmt: skip
        for field in self.fields:
            if getattr(state, field).shape != shapes[field]:
                raise ValueError("the state of another geometry")
        for field, dtype in self.fields.items():
            lent.lend(field, getattr(state, field), C_TYPES[dtype])
        self._state: S = state
        self._pointers = lent

    @property
    def _clock(self) -> int:
        return int(self._state.clock[0])

    @property
    def _built(self) -> bool:
        return bool(self._state.clock[1])

    def memory(self) -> int:
        """Bytes outside the state: for measurements."""
        return sum({id(a): a.nbytes for lent in [*self._lent, self._stashes] for a in lent.arrays()}.values())

    # --- requests

    def _reserve(self, m: int) -> None:
        """Memory for a batch of m."""
        raise NotImplementedError

    def _grown(self, m: int) -> NativeRequests:
        """The kernel's own request buffers, for a batch of m."""
        if m > self._capacity:
            self._reserve(max(m, 1, min(2 * self._capacity, self._geometry.max_batch)))
        self._requests.m = m
        return self._requests

    _requests: NativeRequests

    def _check(self, requests: Requests) -> None:
        if requests is not self._requests or not 0 <= requests.m <= self._capacity:
            raise ValueError("these requests are not the kernel's, or have outgrown it")

    def _shaped(self, slots: Slots, n: int) -> None:
        if slots.data.shape != (n, self._geometry.slot_size) or slots.present.shape != (n,):
            raise ValueError("another plan, or slots of another shape")

    def _run(self, call: Any, *args: Any) -> None:
        def checked(*given: Any) -> int:
            code = int(call(*given))
            if code == lib.ORAM_STASH_FULL:
                raise StashOverflowError
            return code

        self._keys.run(checked, *args)

    # --- hash functions

    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        """The cells of these addresses in a table, int64 (n, 2); in a table of bins the first is counted over all of them, the second in the first's."""
        given, pairs = np.ascontiguousarray(addr, np.uint32), np.empty((addr.size, 2), np.int64)
        self._run(
            self.c_pairs, self._struct, table.level, table.epoch, given.size, pointer("uint32_t[]", given), writable("int64_t[]", pairs),
        )  # fmt: skip
        return pairs

    # --- after an opening

    def resume(self) -> tuple[I64, I64]:
        """Slots and epochs of what lies outside the state: the stashes of all tables, and what the rebuilds had in hand."""
        if not self._cold:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._geometry.again(self._clock, self._built)

    def resumed(self, slots: Slots) -> None:
        """Put what was read where it was."""
        raise NotImplementedError

    def _warm(self) -> None:
        """Before a batch: where nothing is to be read again, it is as if it had been."""
        if self._cold:
            if self.resume()[0].size:
                raise ValueError("`resume` comes first")
            self.resumed(Slots(np.zeros((0, self._geometry.slot_size), np.uint8), np.zeros(0, np.uint8)))

    def _put(self, call: Any, words: U32, blocks: U8, at: int, n: int, *args: int) -> None:
        some = pointer("uint32_t[]", words[at : at + n]), pointer("uint8_t[]", blocks[at : at + n])
        self._run(call, self._struct, *args, *some)

    @property
    def stash_size(self) -> int:
        """Entries in the stashes of all tables. Secret."""
        g = self._geometry
        places = [
            t.level * lib.ORAM_CUCKOO_PLACES + ((t.epoch >> g.L) & 1 if t.level == g.L else g.target(t.epoch + (1 << t.level)))
            for t in g.alive(self._clock, self._built)
        ]  # fmt: skip
        return int(np.isin(self._stash_of, places).sum())

    # --- slots

    def open_slots(self, slots: I64, epochs: I64, sealed: Slots) -> tuple[U32, U8]:
        """Words, which are addresses where there is an index, and blocks in clear."""
        self._shaped(sealed, slots.size)
        if epochs.shape != slots.shape:
            raise ValueError("an epoch for each slot")
        rows = np.empty((slots.size, 4 + self._geometry.B), np.uint8)
        self._run(
            lib.oram_cuckoo_open, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots),
            pointer("uint64_t[]", epochs), pointer("uint8_t[]", sealed.data), pointer("uint8_t[]", sealed.present),
            writable("uint8_t[]", rows),
        )  # fmt: skip
        words = np.ascontiguousarray(rows[:, :4]).view("<u4").reshape(-1).astype(np.uint32)
        return words, np.ascontiguousarray(rows[:, 4:])

    def seal_slots(self, slots: I64, epoch: int, source: I64, addr: U32, blocks: U8) -> U8:
        """Seal given content."""
        n = len(blocks)
        rows = (blocks.shape, addr.shape) == ((n, self._geometry.B), (n,))
        if not rows or source.shape != slots.shape or source.max(initial=-1) >= n:
            raise ValueError("a row for each slot")
        sealed = np.empty((slots.size, self._geometry.slot_size), np.uint8)
        self._run(
            lib.oram_cuckoo_seal, self._struct, self._keys.struct, slots.size, pointer("uint64_t[]", slots), epoch,
            pointer("int64_t[]", source), pointer("uint32_t[]", addr), pointer("uint8_t[]", blocks), writable("uint8_t[]", sealed),
        )  # fmt: skip
        return sealed


def stride(m: int) -> int:
    """How far apart the cells are that come one after the other where trees are placed: a number without a factor of 2m in common."""
    return next(a for a in range(int(2 * m * 0.6180339887) | 1, 4 * m) if math.gcd(a, 2 * m) == 1)


assert lib.ORAM_CUCKOO_STASH == STASH
