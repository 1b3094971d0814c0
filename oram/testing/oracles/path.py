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
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oram.backends.base import Backend
from oram.kernels.base import COUNTER_BITS, EMPTY, Op, PathState, Requests
from oram.schemes.linear import LinearORAM
from oram.schemes.path import PathORAM
from oram.store import ObliviousStore
from oram.testing.simulators import page_levels
from oram.trace import TraceBackend
from oram.types import U32

__all__ = ["Contents", "InfinityORAM", "NonceSet", "ViolationError", "Watch", "check", "check_pool"]

Bucket = tuple[int, int]  # level, number in the level
Request = tuple[int, int, int]  # op, address, draw


class ViolationError(AssertionError):
    """An invariant does not hold."""


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ViolationError(what)


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
        _need(self._alive.isdisjoint(first.keys() - moving), "a block that was asked for is not on its path")
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


def pool_of(state: PathState, tree: Mapping[str, Any]) -> dict[int, int]:
    """Blocks that the client holds, by subtree of level T."""
    used = state.pool_addr != EMPTY
    chains, counts = np.unique(state.pool_leaf[used] >> np.uint32(int(tree["L"]) - int(tree["T"])), return_counts=True)
    return dict(zip(chains.tolist(), counts.tolist(), strict=True))


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
        _need(isinstance(scheme, PathORAM) and engine.sequence == 0, "a watch begins with a new Path store")
        assert isinstance(scheme, PathORAM)
        self._scheme = scheme
        self.tree = self.store.info()
        self.oracle = InfinityORAM(self.tree, scheme.state.position.tolist())
        inner = engine.access

        def access(requests: Requests, note: bytes = b"") -> None:
            before = self._held()
            inner(requests, note)
            m = requests.m
            batch = list(
                zip(
                    requests.ops[:m].tolist(), requests.addresses[:m].tolist(), requests.draws[:m].tolist(), strict=True
                )
            )
            self._compare(before, batch)

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


# --- what really lies in the slots


@dataclass
class Contents:
    """Everything that a store holds.

    blocks: content by address. server: addresses that lie there. full: blocks by bucket. references: by slot, what its present ciphertext
    was sealed under, and that ciphertext.
    """

    blocks: dict[int, bytes] = field(default_factory=dict)
    server: set[int] = field(default_factory=set)
    full: dict[Bucket, int] = field(default_factory=dict)
    references: dict[int, tuple[int, bytes]] = field(default_factory=dict)


class _Opener:
    """Opens pages of a store with libraries that are not the kernels'."""

    def __init__(self, store: ObliviousStore) -> None:
        self._keyring, self._cipher = store._engine.journal.keyring, str(store.info()["cipher"])

    def open(self, slot: int, reference: int, sealed: bytes) -> bytes:
        key = self._keyring.page_key(reference >> COUNTER_BITS)
        counter, label = reference & ((1 << COUNTER_BITS) - 1), slot.to_bytes(8, "little")
        if self._cipher == "aes-256-gcm":
            return AESGCM(key).decrypt(counter.to_bytes(12, "little"), sealed, label)
        from pyaegis import Aegis256

        return bytes(Aegis256(16).decrypt(key, counter.to_bytes(32, "little"), sealed, label))


def _beneath(store: ObliviousStore) -> Backend:
    backend = store._engine.backend
    return backend.inner if isinstance(backend, TraceBackend) else backend


def check(store: ObliviousStore) -> Contents:
    """Open everything, beneath any trace, and check every invariant; ViolationError, or the AEAD's own error for a page that does not open.

    Each address at most once; each block on the path of its position, with that leaf; nothing beside the buckets that exist; empty
    slots are zeros; the pool's chains and free slots are consistent. Cost: every slot read, with no access and no trace of it.
    """
    scheme = store._engine.scheme
    if isinstance(scheme, LinearORAM):
        return _check_linear(store, scheme)
    assert isinstance(scheme, PathORAM)
    tree, opener, contents = store.info(), _Opener(store), Contents()
    L, T, h, Z, B = (int(tree[name]) for name in ("L", "T", "h", "Z", "block_size"))
    cells, fan = Z * ((1 << h) - 1), 1 << h
    roots = page_levels(tree)
    ends = [*roots[1:], L + 1]
    refs = scheme.state.refs.tolist()
    _need(len(refs) == 1 << T, "a reference for each page of layer 0")
    position = scheme.state.position
    first = 0
    for root, end in zip(roots, ends, strict=True):
        slots = np.arange(first, first + (1 << root))
        pages = _beneath(store).read(scheme.region, slots)
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
            _need(end == L + 1 or not children[1 << (end - root) :].any(), "no references beyond the children")
            _need(end <= L or not children.any(), "no references below the leaves")
            for cell in range(cells):
                addr, leaf = int(meta[cell, 0]), int(meta[cell, 1])
                depth = (cell // Z + 1).bit_length() - 1
                level, index = root + depth, (number << depth) + cell // Z + 1 - (1 << depth)
                if addr == EMPTY:
                    _need(leaf == 0 and not blocks[cell].any(), "empty slots are zeros")
                    continue
                _need(level < end, "no block beside the buckets that exist")
                _need(addr < position.size and addr not in contents.blocks, "each address at most once")
                _need(int(position[addr]) == leaf, "the leaf of a block is its position")
                _need(leaf >> (L - level) == index, "each block on the path of its position")
                contents.blocks[addr] = blocks[cell].tobytes()
                contents.full[level, index] = contents.full.get((level, index), 0) + 1
        first += 1 << root
        refs = below
    contents.server = set(contents.blocks)
    for addr, block in check_pool(scheme.state, tree).items():
        _need(addr not in contents.blocks, "each address at most once")
        contents.blocks[addr] = block
    return contents


def check_pool(state: PathState, tree: Mapping[str, Any]) -> dict[int, bytes]:
    """The pool's blocks by address. ViolationError if its chains, free slots or leaves are not consistent."""
    shift, blocks, seen = int(tree["L"]) - int(tree["T"]), {}, set()
    for chain, head in enumerate(state.head.tolist()):
        q = head
        while q >= 0:
            addr = int(state.pool_addr[q])
            _need(q not in seen and addr != EMPTY and addr not in blocks, "chains hold each block of the pool once")
            _need(int(state.pool_leaf[q]) == int(state.position[addr]), "the leaf of a block is its position")
            _need(int(state.pool_leaf[q]) >> shift == chain, "each block in the chain of its subtree")
            seen.add(q)
            blocks[addr] = state.pool_data[q].tobytes()
            q = int(state.pool_next[q])
    _need(len(seen) == state.used == int((state.pool_addr != EMPTY).sum()), "the pool knows how many blocks it holds")
    q, free = state.free, set()
    while q >= 0:
        _need(q not in free and q not in seen and int(state.pool_addr[q]) == EMPTY, "free slots are free, once")
        free.add(q)
        q = int(state.pool_next[q])
    _need(len(free) + len(seen) == state.pool_addr.size, "every slot of the pool is used or free")
    return blocks


def _check_linear(store: ObliviousStore, scheme: LinearORAM) -> Contents:
    contents, opener = Contents(), _Opener(store)
    base, B = int(scheme.arrays()[0][0]), scheme.block_size
    slots = next(iter(scheme.regions().values())).slots
    if base:
        pages = _beneath(store).read(scheme.region, np.arange(slots))
        for slot in range(slots):
            sealed = pages.data[slot].tobytes()
            plain = opener.open(slot, base + slot, sealed)
            contents.references[slot] = base + slot, sealed
            for i in range(len(plain) // B):
                contents.blocks[len(contents.blocks)] = plain[i * B : (i + 1) * B]
    contents.server = set(contents.blocks)
    return contents


@dataclass
class NonceSet:
    """Every reference (generation and nonce) that was ever used, with what was sealed under it. There must be no ``repeats``."""

    repeats: int = 0
    _seen: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    def add(self, contents: Contents) -> None:
        """What lies in the slots now; an unchanged slot is no repeat."""
        for slot, (reference, sealed) in contents.references.items():
            self.repeats += self._seen.setdefault(reference, (slot, sealed)) != (slot, sealed)

    def __len__(self) -> int:
        return len(self._seen)
