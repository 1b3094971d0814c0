"""What Path and Ring have in common outside the kernels: initial positions, and the pool's life outside an access."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from oram.kernels.base import EMPTY, PoolState
from oram.types import I64, U8, U32

S = TypeVar("S", bound=PoolState)


def initial_positions(N: int, leaves: int, random: bytes) -> U32:
    """Initial leaves, uint32 (N,), from 4 N random bytes."""
    return np.frombuffer(random, "<u4", N).astype(np.uint32) & np.uint32(leaves - 1)


class PoolReplay:
    """The pool while a journal is replayed: the last word on an address and on a pool slot stands.

    Every block is left in the pool slot where it was before the crash: pieces of the pool that were taken earlier stay in force.
    """

    def __init__(self, state: PoolState) -> None:
        self._state = state
        self._at: dict[int, set[int]] = {}  # of pieces of different age more than one may name a block
        for q in np.flatnonzero(state.pool_addr != EMPTY).tolist():
            self._at.setdefault(int(state.pool_addr[q]), set()).add(q)

    def forget(self, addr: int) -> None:
        """The block is not in the pool now."""
        for q in self._at.pop(addr, ()):
            self._state.pool_addr[q] = EMPTY

    def put(self, addr: int, q: int, block: U8) -> None:
        """It is, in slot q."""
        state = self._state
        if state.pool_addr[q] != EMPTY:
            self._at[int(state.pool_addr[q])].discard(q)
        state.pool_addr[q], state.pool_data[q] = addr, block
        self._at[addr] = {q}

    def grow_to(self, state: S, q: int) -> S:
        """A pool with a slot q: it grew, and there was no time for the checkpoint."""
        while q >= state.pool_addr.size:
            state = state.grown()
        self._state = state
        return state


def relink(state: PoolState, position: U32, shift: int) -> None:
    """Make the pool's leaves, chains and free slots anew, from positions and ``pool_addr``. A chain is a leaf without its last ``shift`` bits."""
    used, free = np.flatnonzero(state.pool_addr != EMPTY), np.flatnonzero(state.pool_addr == EMPTY)
    leaf = position[state.pool_addr[used]]
    state.pool_leaf[used] = leaf
    chain = leaf >> np.uint32(shift)
    order = np.argsort(chain, kind="stable")
    used, chain = used[order], chain[order]
    state.pool_next[used] = -1
    follows = np.flatnonzero(chain[1:] == chain[:-1])
    state.pool_next[used[follows]] = used[follows + 1]
    heads = np.flatnonzero(np.append(True, chain[1:] != chain[:-1])[: used.size])
    state.head[:] = -1
    state.head[chain[heads]] = used[heads]
    state.pool_next[free] = np.append(free[1:], -1)[: free.size]
    state.free, state.used = int(free[0]) if free.size else -1, used.size


def overflow(state: PoolState, Z: int, T: int, shift: int) -> int:
    """What would overflow the cached levels: with T=0 the paper's stash exactly, else never more than it. Cost: O(pool)."""
    if T == 0:
        return state.used
    load = np.bincount(state.pool_leaf[state.pool_addr != EMPTY] >> np.uint32(shift), minlength=1 << T)
    for _ in range(T):
        load = np.maximum(0, load[0::2] + load[1::2] - Z)
    return int(load[0])


def fill(state: S, rest: I64, addr: U32, blocks: U8) -> S:
    """The pool with these rows of blocks and no others; ``relink`` has to follow."""
    while rest.size > state.pool_addr.size:
        state = state.grown()
    state.pool_addr[:] = EMPTY
    state.pool_addr[: rest.size], state.pool_data[: rest.size] = addr[rest], blocks[rest]
    return state


def place(leaf: U32, L: int, T: int, Z: int) -> Iterator[tuple[int, I64, I64, I64]]:
    """Greedy bottom-up placement of blocks with these leaves: per level from L to T, the rows placed there, their buckets and ranks in them.

    At the end, as level -1, the rows that found no room.
    """
    rows = np.argsort(leaf, kind="stable")
    for level in range(L, T - 1, -1):
        bucket = leaf[rows].astype(np.int64) >> (L - level)
        _, first, count = np.unique(bucket, return_index=True, return_counts=True)
        rank = np.arange(rows.size) - np.repeat(first, count)
        fits = rank < Z
        yield level, rows[fits], bucket[fits], rank[fits]
        rows = rows[~fits]
    yield -1, rows, np.zeros(rows.size, np.int64), np.zeros(rows.size, np.int64)
