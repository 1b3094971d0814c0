"""Oracles of Path ORAM: exact statements about where every block must be, checked against what really lies there.

**The infinity-ORAM** (Stefanov et al. 2013, section 5.1, lemmas 1 and 2; the lemma is repaired in Ring ORAM, section 4). In a tree whose buckets
have no limit, an access moves every block of the path to the deepest bucket of the path that is legal for it. Afterwards let, bottom-up,

    overflow(v) = max(0, load(v) + overflow(left child) + overflow(right child) - Z);

then overflow(root) is the real stash after *every* access, and min(Z, load + overflow of the children) is how full each real bucket is.

**Pages, batches and the tree top.** The same holds for any set U of accessed buckets that contains the ancestors of its members, not
only for a path; U may hold buckets on no path (a page is a whole subtree). Why: a real block lies at or above its place in the infinity-ORAM. So what
the real access has in hand are the blocks whose infinity-place is in U, and those which overflowed from a subtree hanging below U; the latter can go no
deeper than the bucket in U from which that subtree hangs, *whichever* of the subtree's blocks they are. So each bucket v of U is offered exactly
load(v) plus the overflow of its two children, in U or not, and the greedy takes Z of them. By induction every count agrees, although the two need not
agree on which blocks overflow; so the order in which eviction prefers blocks does not matter either. A block that was asked for never
lies in a subtree below U, because its whole path is in U; that is what a batch has to guarantee, also where it serves one address twice.

With a tree top the levels above T have no buckets: each subtree at level T is a tree of its own, and a block remapped into a subtree
that is not in U waits above it until that subtree is next accessed. So the pool's chain of a subtree s has overflow(s) plus the blocks waiting for s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oram.kernels.base import EMPTY, Op, Requests
from oram.schemes.path import PathORAM
from oram.store import ObliviousStore
from oram.testing.model import stored
from oram.testing.oracles.base import Bucket, Contents, Opener, Request, check_pool, need, pool_of, rows
from oram.testing.simulators import page_levels
from oram.types import U32

__all__ = ["InfinityORAM", "Watch", "check_path"]


@dataclass
class InfinityORAM:
    """The infinity-ORAM beside a real Path tree.

    tree: N, Z, L, T and h, as in ``store.info()``. position: initial leaf of each address.
    """

    tree: Mapping[str, Any]
    position: list[int]
    _inside: dict[Bucket, set[int]] = field(default_factory=dict)
    _waiting: dict[int, set[int]] = field(default_factory=dict)
    _overflow: dict[Bucket, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.Z, self.L, self.T = int(self.tree["Z"]), int(self.tree["L"]), int(self.tree["T"])
        self._roots = page_levels(self.tree)
        self._ends = [*self._roots[1:], self.L + 1]
        self._alive: set[int] = set()

    def access(self, requests: Sequence[Request]) -> None:
        """One batch."""
        paths, first = [], {}
        for op, addr, draw in requests:
            leaf = draw & ((1 << self.L) - 1)
            if op == Op.DUMMY or addr in first:
                paths.append(leaf)
            else:
                paths.append(self.position[addr])
                first[addr] = leaf
        pages = {(root, leaf >> (self.L - root)) for leaf in paths for root in self._roots}
        accessed = self._buckets(pages)
        moving: set[int] = set()
        for bucket in accessed:
            moving |= self._inside.pop(bucket, set())
        for root, number in pages:
            if root == self.T:
                moving |= self._waiting.pop(number, set())
        need(self._alive.isdisjoint(first.keys() - moving), "a block that was asked for is not on its path")
        for addr, leaf in first.items():
            self.position[addr] = leaf
        for op, addr, _ in requests:
            if op == Op.WRITE:
                self._alive.add(addr)
                moving.add(addr)
            elif op == Op.REMOVE:
                self._alive.discard(addr)
                moving.discard(addr)
        for addr in moving:
            self._settle(addr, pages)
        for level, number in sorted(accessed, reverse=True):
            below = sum(self._overflow.get((level + 1, 2 * number + side), 0) for side in (0, 1))
            self._overflow[level, number] = max(0, len(self._inside.get((level, number), ())) + below - self.Z)

    def _buckets(self, pages: set[Bucket]) -> list[Bucket]:
        return [
            (level, (number << (level - root)) + i)
            for root, number in pages
            for level in range(root, self._ends[self._roots.index(root)])
            for i in range(1 << (level - root))
        ]

    def _settle(self, addr: int, pages: set[Bucket]) -> None:
        leaf = self.position[addr]
        for root, end in zip(reversed(self._roots), reversed(self._ends), strict=True):
            if (root, leaf >> (self.L - root)) in pages:
                bucket = end - 1, leaf >> (self.L - end + 1)
                self._inside.setdefault(bucket, set()).add(addr)
                return
        self._waiting.setdefault(leaf >> (self.L - self.T), set()).add(addr)

    def pool(self) -> dict[int, int]:
        """Blocks that the client must hold, by subtree of level T, where there are any."""
        counts = Counter({number: size for (level, number), size in self._overflow.items() if level == self.T})
        counts.update({number: len(blocks) for number, blocks in self._waiting.items()})
        return {number: size for number, size in counts.items() if size}

    def full(self) -> dict[Bucket, int]:
        """How many blocks each real bucket must hold, where there are any."""
        sizes = {}
        for level, number in self._overflow:
            below = sum(self._overflow.get((level + 1, 2 * number + side), 0) for side in (0, 1))
            sizes[level, number] = min(self.Z, len(self._inside.get((level, number), ())) + below)
        return {bucket: size for bucket, size in sizes.items() if size}


@dataclass
class Watch:
    """Follows a new Path store and compares after every access. No false alarms; nothing is drawn, read or changed.

    accesses: how many. mismatches: accesses after which the pool was not as the infinity-ORAM says. strays: blocks
    that moved from server to client although nobody had asked for them; there must be none, or records would show it (docs/architecture.md).
    largest: the largest pool seen.
    """

    store: ObliviousStore
    accesses: int = 0
    mismatches: int = 0
    strays: int = 0
    largest: int = 0

    def __post_init__(self) -> None:
        engine = self.store._engine
        scheme = engine.scheme
        need(isinstance(scheme, PathORAM) and engine.sequence == 0, "a watch begins with a new Path store")
        assert isinstance(scheme, PathORAM)
        self._scheme = scheme
        self.tree = self.store.info()
        self.oracle = InfinityORAM(self.tree, scheme.state.position.tolist())
        inner = engine.access

        def access(requests: Requests, note: bytes = b"") -> None:
            before = self._held()
            inner(requests, note)
            self._compare(before, rows(requests))

        engine.access = access  # type: ignore[method-assign]

    def _held(self) -> set[int]:
        held: U32 = self._scheme.state.pool_addr
        return set(held[held != EMPTY].tolist())

    def _compare(self, before: set[int], batch: list[Request]) -> None:
        self.accesses += 1
        self.oracle.access(batch)
        held = self._held()
        self.largest = max(self.largest, len(held))
        asked = {addr for op, addr, _ in batch if op != Op.DUMMY}
        self.strays += len(held - before - asked)
        self.mismatches += pool_of(self._scheme.state, self.tree) != self.oracle.pool()


def check_path(store: ObliviousStore, scheme: PathORAM) -> Contents:
    """``check`` for Path."""
    tree, opener, contents = store.info(), Opener(store), Contents()
    L, T, h, Z, B = (int(tree[name]) for name in ("L", "T", "h", "Z", "block_size"))
    cells, fan = Z * ((1 << h) - 1), 1 << h
    roots = page_levels(tree)
    ends = [*roots[1:], L + 1]
    refs = scheme.state.refs.tolist()
    need(len(refs) == 1 << T, "a reference for each page of layer 0")
    position = scheme.state.position
    first = 0
    for root, end in zip(roots, ends, strict=True):
        slots = np.arange(first, first + (1 << root))
        pages = stored(store, scheme.region, slots)
        below: list[int] = []
        for number, reference in enumerate(refs):
            if reference == 0:
                below += [0] * (1 << (end - root))
                continue
            sealed = pages.data[number].tobytes()
            plain = opener.open(first + number, reference, sealed)
            contents.references[first + number] = reference, sealed
            children = np.frombuffer(plain, "<u8", fan)
            meta = np.frombuffer(plain, "<u4", 2 * cells, 8 * fan).reshape(cells, 2)
            blocks = np.frombuffer(plain, "u1", cells * B, 8 * (fan + cells)).reshape(cells, B)
            below += children[: 1 << (end - root)].tolist()
            need(end == L + 1 or not children[1 << (end - root) :].any(), "no references beyond the children")
            need(end <= L or not children.any(), "no references below the leaves")
            for cell in range(cells):
                addr, leaf = int(meta[cell, 0]), int(meta[cell, 1])
                depth = (cell // Z + 1).bit_length() - 1
                level, index = root + depth, (number << depth) + cell // Z + 1 - (1 << depth)
                if addr == EMPTY:
                    need(leaf == 0 and not blocks[cell].any(), "empty slots are zeros")
                    continue
                need(level < end, "no block beside the buckets that exist")
                need(addr < position.size and addr not in contents.blocks, "each address at most once")
                need(int(position[addr]) == leaf, "the leaf of a block is its position")
                need(leaf >> (L - level) == index, "each block on the path of its position")
                contents.blocks[addr] = blocks[cell].tobytes()
                contents.full[level, index] = contents.full.get((level, index), 0) + 1
        first += 1 << root
        refs = below
    contents.server = set(contents.blocks)
    for addr, block in check_pool(scheme.state, tree).items():
        need(addr not in contents.blocks, "each address at most once")
        contents.blocks[addr] = block
    return contents
