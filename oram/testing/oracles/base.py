"""What the oracles have in common: what a store holds, opened with libraries that are not the kernels'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oram.kernels.base import COUNTER_BITS, EMPTY, PathState, PoolState, Requests, RingState
from oram.store import ObliviousStore

__all__ = [
    "Bucket",
    "Contents",
    "NonceSet",
    "Opener",
    "Request",
    "ViolationError",
    "check_pool",
    "need",
    "pool_of",
    "rows",
]

Bucket = tuple[int, int]  # level, number in the level
Request = tuple[int, int, int]  # op, address, draw


class ViolationError(AssertionError):
    """An invariant does not hold."""


def need(holds: bool, what: str) -> None:
    """Raise ViolationError unless it does."""
    if not holds:
        raise ViolationError(what)


def rows(requests: Requests) -> list[Request]:
    """What a batch asked for, and its draws."""
    m = requests.m
    return list(
        zip(requests.ops[:m].tolist(), requests.addresses[:m].tolist(), requests.draws[:m].tolist(), strict=True)
    )


@dataclass
class Contents:
    """Everything that a store holds.

    blocks: content by address. server: addresses that lie there. full: blocks by bucket. references: by slot, what its present ciphertext
    was sealed under, and that ciphertext; a Ring bucket's metadata counts as a slot behind the others. spent: of Ring, by number of the bucket, the
    slots that were read since it was written.
    """

    blocks: dict[int, bytes] = field(default_factory=dict)
    server: set[int] = field(default_factory=set)
    full: dict[Bucket, int] = field(default_factory=dict)
    references: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    spent: dict[int, set[int]] = field(default_factory=dict)


class Opener:
    """Opens pages of a store with libraries that are not the kernels'."""

    def __init__(self, store: ObliviousStore) -> None:
        self._keyring, self._cipher = store._engine.journal.keyring, str(store.info()["cipher"])

    def open(self, slot: int, reference: int, sealed: bytes) -> bytes:
        """A slot in clear, or the AEAD's own error."""
        key = self._keyring.page_key(reference >> COUNTER_BITS)
        counter, label = reference & ((1 << COUNTER_BITS) - 1), slot.to_bytes(8, "little")
        if self._cipher == "aes-256-gcm":
            return AESGCM(key).decrypt(counter.to_bytes(12, "little"), sealed, label)
        from pyaegis import Aegis256

        return bytes(Aegis256(16).decrypt(key, counter.to_bytes(32, "little"), sealed, label))


def pool_of(state: PoolState, tree: Mapping[str, Any]) -> dict[int, int]:
    """Blocks that the client holds, by subtree of level T."""
    used = state.pool_addr != EMPTY
    chains, counts = np.unique(state.pool_leaf[used] >> np.uint32(int(tree["L"]) - int(tree["T"])), return_counts=True)
    return dict(zip(chains.tolist(), counts.tolist(), strict=True))


def check_pool(state: PathState | RingState, tree: Mapping[str, Any]) -> dict[int, bytes]:
    """The pool's blocks by address. ViolationError if its chains, free slots or leaves are not consistent."""
    shift, blocks, seen = int(tree["L"]) - int(tree["T"]), {}, set()
    for chain, head in enumerate(state.head.tolist()):
        q = head
        while q >= 0:
            addr = int(state.pool_addr[q])
            need(q not in seen and addr != EMPTY and addr not in blocks, "chains hold each block of the pool once")
            need(int(state.pool_leaf[q]) == int(state.position[addr]), "the leaf of a block is its position")
            need(int(state.pool_leaf[q]) >> shift == chain, "each block in the chain of its subtree")
            seen.add(q)
            blocks[addr] = state.pool_data[q].tobytes()
            q = int(state.pool_next[q])
    need(len(seen) == state.used == int((state.pool_addr != EMPTY).sum()), "the pool knows how many blocks it holds")
    q, free = state.free, set()
    while q >= 0:
        need(q not in free and q not in seen and int(state.pool_addr[q]) == EMPTY, "free slots are free, once")
        free.add(q)
        q = int(state.pool_next[q])
    need(len(free) + len(seen) == state.pool_addr.size, "every slot of the pool is used or free")
    return blocks


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
