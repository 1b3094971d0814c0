"""What Path and Ring have in common outside the kernels: initial positions, records, and the pool's life outside an access."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from oram.kernels.base import EMPTY, At, Op, PoolState, Requests
from oram.types import I64, U8, U32

S = TypeVar("S", bound=PoolState)


def initial_positions(N: int, leaves: int, random: bytes) -> U32:
    """Initial leaves, uint32 (N,), from 4 N random bytes."""
    return np.frombuffer(random, "<u4", N).astype(np.uint32) & np.uint32(leaves - 1)


class Requested(NamedTuple):
    """What a record says of each request of its batch, as in ``Requests``; slots: of the pool."""

    where: U8
    addresses: U32
    draws: U32
    slots: U32
    blocks: U8


class PoolReplay(Generic[S]):
    """Positions and pool while a journal is replayed: the last word on an address and on a pool slot stands.

    Every block is left in the pool slot where it was before the crash: pieces of the pool that were taken earlier stay in force.
    ``state`` may have grown afterwards.
    """

    def __init__(self, state: S) -> None:
        self.state = state
        self._at: dict[int, set[int]] = {}  # of pieces of different age more than one may name a block
        for q in np.flatnonzero(state.pool_addr != EMPTY).tolist():
            self._at.setdefault(int(state.pool_addr[q]), set()).add(q)

    def apply(self, leaves: int, requests: Requested, placed: U32) -> None:
        """One record: the first requests move their blocks, and what was placed at the server is not in the pool."""
        where, addresses, draws, slots, blocks = requests
        first = where != At.REPEAT
        self.state.position[addresses[first]] = draws[first] & np.uint32(leaves - 1)
        for addr in (*placed[placed != EMPTY].tolist(), *addresses[first].tolist()):
            for q in self._at.pop(addr, ()):
                self.state.pool_addr[q] = EMPTY
        for r in np.flatnonzero(where == At.POOL).tolist():
            self._put(int(addresses[r]), int(slots[r]), blocks[r])

    def _put(self, addr: int, q: int, block: U8) -> None:
        while q >= self.state.pool_addr.size:  # it grew, and there was no time for the checkpoint
            self.state = self.state.grown()
        state = self.state
        if state.pool_addr[q] != EMPTY:
            self._at[int(state.pool_addr[q])].discard(q)
        state.pool_addr[q], state.pool_data[q] = addr, block
        self._at[addr] = {q}


def fields(record: bytes, at: int, layout: Sequence[tuple[str, int]]) -> list[npt.NDArray[Any]]:
    """The arrays of a record from byte ``at`` on: dtype and number of elements of each, -1 for all that is left."""
    parts = []
    for dtype, count in layout:
        part = np.frombuffer(record, dtype, count, at)
        at += part.nbytes
        parts.append(part)
    return parts


def repeat(requests: Requests, done: Requested) -> Requests:
    """Fill in the requests that repeat the effect of those recorded: the same look-ups, with the values that they left behind."""
    where, addresses, draws, _, blocks = done
    m = requests.m
    requests.ops[:m] = np.select([where == At.REPEAT, where == At.NONE], [Op.DUMMY, Op.REMOVE], Op.WRITE)
    requests.addresses[:m], requests.draws[:m], requests.data[:m] = addresses, draws, blocks
    return requests


def contents(state: PoolState) -> tuple[I64, U8]:
    """Addresses and blocks of the pool."""
    used = np.flatnonzero(state.pool_addr != EMPTY)
    return state.pool_addr[used].astype(np.int64), state.pool_data[used]


def relink(state: PoolState, shift: int) -> None:
    """Make the pool's leaves, chains and free slots anew, from positions and ``pool_addr``. A chain is a leaf without its last ``shift`` bits."""
    used, free = np.flatnonzero(state.pool_addr != EMPTY), np.flatnonzero(state.pool_addr == EMPTY)
    leaf = state.position[state.pool_addr[used]]
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
