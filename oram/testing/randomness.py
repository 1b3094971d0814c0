"""Randomness under the tester's control: every leaf that a store draws, pinned, counted, or chosen in advance.

The engine consumes one 32-bit draw a request, of a Ring store a seed for each batch besides, and nothing else; where the blocks of a new store are is a
keystream. These are replaced here, and only these: keys, salts and nonces stay as they are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import numpy as np

from oram import engine as engine_module
from oram import kernels
from oram.engine import Engine
from oram.kernels.base import CuckooPlan, KernelSet, Op, Requests
from oram.kernels.reference import binnedoram, cuckoooram
from oram.kernels.reference.binnedoram import Piece, ReferenceBinned, Search
from oram.kernels.reference.cuckoooram import ReferenceCuckoo
from oram.keys import Keyring
from oram.params import Table
from oram.schemes.path import PathORAM
from oram.schemes.ring import RingORAM
from oram.schemes.sharded import ShardedORAM
from oram.testing.simulators import Dealt, each_gets, page_levels
from oram.testing.simulators.binned import bin_pair
from oram.testing.simulators.cuckoo import pair
from oram.trace import Event

__all__ = [
    "Coins",
    "OddWorldError",
    "Question",
    "Script",
    "count_draws",
    "dealt",
    "leaves_of",
    "listen",
    "looked_up",
    "pinned",
    "revealing",
    "script",
]


class OddWorldError(ValueError):
    """A world that cannot be one of two: what was asked for depends on randomness, or what was looked up is nothing that a simulator says."""


Question = tuple[int, int]  # what one request asks for: op and address
WORD = 4  # bytes of a draw


@dataclass(frozen=True)
class Script:
    """Randomness chosen in advance. positions: initial leaf by address; draws: 32-bit draws by number of the request."""

    positions: Mapping[int, int]
    draws: Mapping[int, int]


@dataclass
class Coins:
    """A source of randomness with a seed. ``sizes``: bytes asked for at each call, which is once a batch; the last ``extra`` of them are no draws."""

    seed: int
    script: Script = field(default_factory=lambda: Script({}, {}))
    sizes: list[int] = field(default_factory=list)
    extra: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._drawn = 0

    def urandom(self, size: int) -> bytes:
        """What the engine gets for ``os.urandom``."""
        self.sizes.append(size)
        words = np.frombuffer(self._random.randbytes((size - self.extra) // WORD * WORD), "<u4").copy()
        for i in range(words.size):
            words[i] = self.script.draws.get(self._drawn + i, words[i])
        self._drawn += words.size
        return words.tobytes() + self._random.randbytes(size - words.nbytes)

    def placement(self, size: int) -> bytes:
        """What a new store gets for the order of its addresses, where it has several shards."""
        return random.Random(f"placement {self.seed}").randbytes(size)

    def positions(self, size: int) -> bytes:
        """What a new store gets for its positions; the same at every call, as recovery needs it."""
        words = np.frombuffer(random.Random(f"positions {self.seed}").randbytes(size), "<u4").copy()
        for address, leaf in self.script.positions.items():
            words[address] = leaf
        return words.tobytes()


class _System:
    """The module ``os`` as the engine sees it, but for ``urandom``."""

    def __init__(self, coins: Coins) -> None:
        self.urandom = coins.urandom

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@contextmanager
def pinned(coins: Coins) -> Iterator[Coins]:
    """Stores made, opened and used inside take their leaves from ``coins``."""
    with (
        mock.patch.object(engine_module, "os", _System(coins)),
        mock.patch.object(Keyring, "initial_positions", lambda _, size: coins.positions(size)),
        mock.patch.object(Keyring, "placement", lambda _, size: coins.placement(size)),
    ):
        yield coins


def listen(engine: Engine) -> list[list[Question]]:
    """What each access of this engine asks for from now on, in order."""
    asked: list[list[Question]] = []
    inner = engine.access

    def access(requests: Requests, note: bytes = b"") -> None:
        m = requests.m
        asked.append(list(zip(requests.ops[:m].tolist(), requests.addresses[:m].tolist(), strict=True)))
        inner(requests, note)

    engine.access = access  # type: ignore[method-assign]
    return asked


def count_draws(asked: Sequence[Sequence[Question]], sizes: Sequence[int], extra: int = 0) -> bool:
    """Whether each batch consumed one 32-bit draw a request and ``extra`` bytes, in one call, whatever was asked."""
    return list(sizes) == [WORD * len(batch) + extra for batch in asked]


def dealt(engine: Engine, batch: Sequence[Question]) -> list[Question]:
    """What a batch asks of the tree; of the trees of several shards, one after the other: each the distinct addresses that it has, then dummies.

    These are named by their places, as initial positions are, and in this order.
    """
    scheme = engine.scheme
    if not isinstance(scheme, ShardedORAM):
        return list(batch)
    place, n, k = scheme._place, scheme.geometry.tree.N, scheme.shards
    each = each_gets(len(batch), {"shards": k, "blocks": k * n})
    wanted = {int(place[address]) for op, address in batch if op != Op.DUMMY}
    rows: list[Question] = []
    for j in range(k):
        own = [(int(Op.READ), at) for at in sorted(wanted) if at // n == j]
        rows += own + [(int(Op.DUMMY), 0)] * (each - len(own))
    return rows


def looked_up(engine: Engine) -> list[Sequence[int]]:
    """The leaves that each access of this engine looks up from now on, by the rule alone: where a block's last draw put it, else a fresh one.

    An access that fails in the middle is one of them.
    """
    # Cuckoo's are chosen in advance
    trees = engine.scheme.trees if isinstance(engine.scheme, ShardedORAM) else [engine.scheme]
    states = [cast(PathORAM | RingORAM, tree).state for tree in trees]
    position = [leaf for state in states for leaf in state.position.tolist()]
    leaves = 1 << cast(PathORAM | RingORAM, trees[0]).geometry.L
    found: list[Sequence[int]] = []
    inner = engine.access

    def access(requests: Requests, note: bytes = b"") -> None:
        try:
            inner(requests, note)
        finally:
            m, seen, now = requests.m, set[int](), list[int]()
            batch = list(zip(requests.ops[:m].tolist(), requests.addresses[:m].tolist(), strict=True))
            rows = dealt(engine, batch)
            draws = requests.draws[:m] if len(trees) == 1 else requests.seed[: WORD * len(rows)].view("<u4")
            for (op, address), draw in zip(rows, draws.tolist(), strict=True):
                if op == Op.DUMMY or address in seen:
                    now.append(draw % leaves)
                else:
                    seen.add(address)
                    now.append(position[address] % leaves)
                    position[address] = draw
            found.append(now if len(trees) == 1 else Dealt.of(now, m))

    engine.access = access  # type: ignore[method-assign]
    return found


def script(asked: Iterable[Sequence[Question]], leaves: Sequence[int], levels: int, seed: int) -> Script:
    """The randomness under which the requests ``asked`` look up exactly ``leaves``, one a request, in a tree of height ``levels``.

    A leaf that is looked up was chosen earlier: by the draw of the last request to that address, or at creation. Each
    draw is looked up at most once. So for *any* requests this is a bijection between randomness and leaves looked up (and those
    that no one looks at any more), which proves that the leaves are uniform and independent of the requests.
    """
    words = random.Random(f"words {seed}")
    positions: dict[int, int] = {}
    draws: dict[int, int] = {}
    chosen_by: dict[int, int] = {}
    number = 0
    for batch in asked:
        seen: set[int] = set()
        for op, address in batch:
            word = leaves[number] | words.getrandbits(32) >> levels << levels & 0xFFFFFFFF
            if op == Op.DUMMY or address in seen:
                draws[number] = word
            else:
                seen.add(address)
                if address in chosen_by:
                    draws[chosen_by[address]] = word
                else:
                    positions[address] = word
                chosen_by[address] = number
            number += 1
    return Script(positions, draws)


@contextmanager
def revealing(leaves: Sequence[int], homes: dict[tuple[Table, int], int]) -> Iterator[None]:
    """Cuckoo stores made and used inside look up, in every table, the pairs of ``leaves``, one a request since creation, whatever is asked.

    homes: the request that first looks for an address in a table, where it is or, without an index, may be; filled in by a first run with the same
    requests, in which it was empty. A pair is the hash of such an address, or a dummy's. As an address is looked for in a table once, this is
    for *any* requests a bijection between randomness (hash functions and coins) and pairs looked up (and hashes that no one looks at), which
    proves that the pairs are uniform and independent of the requests. Where two requests should look for the same address in the same table, OddWorldError.

    Hash functions and coins can be chosen in the reference kernel only, so these stores run on it, whatever kernels are active. That the native
    one looks up the same, given the same key and seeds, is an exact test of its own (``test_native_cuckoo_shows_what_the_reference_shows``).
    """
    known, plan, serving = dict(homes), ReferenceCuckoo.plan, kernels.serving
    cut, probe = ReferenceBinned._cut, ReferenceBinned._probe
    words: list[int] = []

    class Scripted:
        def __init__(self, seed: bytes) -> None:
            pass

        def below(self, n: int) -> int:  # noqa: ARG002 - of the table whose turn it is
            return words.pop(0)

    def pairs(kernel: ReferenceCuckoo, table: Table, addr: Any) -> Any:
        m = kernel._geometry.levels[table.level].m
        found = [
            pair(leaves[known[table, a]] if (table, a) in known else -1 - a, *table, m)
            for a in np.asarray(addr).tolist()
        ]
        return np.array(found, np.int64).reshape(-1, 2)

    def planned(kernel: ReferenceCuckoo, requests: Requests) -> CuckooPlan:
        g, clock = kernel._geometry, int(kernel.state.clock[0])
        words.clear()
        for number in range(clock, clock + requests.m):
            for table in g.alive(number, bool(kernel.state.clock[1])):
                leaf = leaves[number] if number < len(leaves) else 0
                words.extend(pair(leaf, *table, g.levels[table.level].m))
        found = plan(kernel, requests)
        for step, addr in zip(kernel._steps, requests.addresses[: requests.m].tolist(), strict=True):
            for table in [probe.table for probe in step.probes if probe.real]:
                if homes.setdefault((table, addr), step.clock) != step.clock:
                    raise OddWorldError("an address was looked for twice in an epoch")
        return found

    def bins(kernel: ReferenceBinned, table: Table, addr: Any) -> Any:
        shape = kernel._geometry.levels[table.level]
        found = [
            bin_pair(leaves[known[table, a]] if (table, a) in known else -1 - a, *table, shape.m, shape.b)
            for a in np.asarray(addr).tolist()
        ]
        return np.array(found, np.int64).reshape(-1, 2)

    def cut_up(kernel: ReferenceBinned) -> Piece:
        g, clock = kernel._geometry, int(kernel.state.clock[0])
        words.clear()
        for number in range(clock, clock + kernel._asked.m - kernel._at):
            for table in g.alive(clock, bool(kernel.state.clock[1])):
                leaf = leaves[number] if number < len(leaves) else 0
                words.extend(bin_pair(leaf, *table, g.levels[table.level].m, g.levels[table.level].b))
        return cut(kernel)

    def probed(kernel: ReferenceBinned, search: Search, table: Table, number: int) -> tuple[int, int]:
        piece = kernel._piece
        if kernel._real(search, table) and piece is not None:
            request = int(kernel.state.clock[0]) + next(i for i, each in enumerate(piece.searches) if each is search)
            if homes.setdefault((table, search.addr), request) != request:
                raise OddWorldError("an address was looked for twice in an epoch")
        return probe(kernel, search, table, number)

    def served(scheme: str) -> KernelSet:
        return kernels.load("reference") if scheme == "cuckoo" else serving(scheme)

    with (
        mock.patch.object(kernels, "serving", served),
        mock.patch.object(cuckoooram, "Coins", Scripted),
        mock.patch.object(ReferenceCuckoo, "pairs", pairs),
        mock.patch.object(ReferenceCuckoo, "plan", planned),
        mock.patch.object(binnedoram, "Coins", Scripted),
        mock.patch.object(ReferenceBinned, "pairs", bins),
        mock.patch.object(ReferenceBinned, "_cut", cut_up),
        mock.patch.object(ReferenceBinned, "_probe", probed),
    ):
        yield


def leaves_of(events: Iterable[Event], info: Mapping[str, Any], *, op: str = "read") -> list[tuple[int, ...]]:
    """The leaves that each read (or write) of a tree shows.

    Path: as far as pages tell, the first leaf below each lowest page. Ring, reads only: one leaf for each request where slots are XORed, else that of
    the first request. Known as far down as the deepest bucket that was not skipped.
    """
    if info["scheme"] == "ring":
        return _ring_leaves(list(events), info)
    L, root = int(info["L"]), page_levels(info)[-1]
    first = sum(1 << level for level in page_levels(info)[:-1])
    return [
        tuple((slot - first) << (L - root) for slot in event.indices if slot >= first)
        for event in events
        if event.op == op and event.region.startswith("slots.")
    ]


def _ring_leaves(events: Sequence[Event], info: Mapping[str, Any]) -> list[tuple[int, ...]]:
    L, T, n = int(info["L"]), int(info["T"]), int(info["Z"]) + int(info["S"])
    found: dict[int, list[int]] = {}
    for event in events:
        if event.op not in ("xor", "read") or not event.region.startswith("slots."):
            continue
        if event.op == "read" and event.trip in found:
            continue  # what is fetched beside the XORs
        bucket = max(slot // n for slot in event.indices[: L + 1 - T]) + (1 << T)
        level = bucket.bit_length() - 1
        found.setdefault(event.trip, []).append((bucket - (1 << level)) << (L - level))
    return [tuple(leaves) for leaves in found.values()]
