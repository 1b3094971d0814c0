"""Named leaks: stores that are broken on purpose, each in a way in which some store was or might be, so that one can see what the tests find.

**Never store anything in one.** What is broken is one handle: nothing else in the process changes, and the answers stay right.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import oram
from oram.backends.base import SlotRead, Slots
from oram.errors import ParameterError
from oram.kernels.base import EMPTY, TOMB, BinnedState, CuckooState, Op, Requests
from oram.kernels.reference import ReferenceKeys
from oram.kernels.reference.binnedoram import ReferenceBinned
from oram.kernels.reference.coins import Coins
from oram.kernels.reference.cuckoooram import ReferenceCuckoo
from oram.kernels.reference.ringoram import Entry, ReferenceRing
from oram.params import Table
from oram.schemes.base import Access, Outcome, Scheme
from oram.schemes.binned import BinnedORAM
from oram.schemes.cuckoo import CuckooORAM
from oram.schemes.linear import LinearORAM
from oram.schemes.path import PathORAM
from oram.schemes.ring import RingORAM
from oram.store import ObliviousStore
from oram.types import I64, U8, U32

__all__ = ["LEAKS", "LIVE", "Leak"]

_TREES = ("path", "ring")
_ALL = ("path", "ring", "cuckoo", "linear")


@dataclass(frozen=True, slots=True)
class Leak:
    """A way to be broken.

    says: what it is, for people, without a full stop. schemes: those that can be. workload: one under which it shows, None where it does under all.
    test: of ``running``, that has to find it; any may where it is empty. opened: only a store that was opened again is broken.
    reopens: whether a store that is broken so can be opened again.
    """

    name: str
    says: str
    schemes: tuple[str, ...]
    harm: Callable[[ObliviousStore], None]
    workload: str | None = None
    test: str = ""
    opened: bool = False
    reopens: bool = True

    def applies_to(self, scheme: str) -> bool:
        """Whether a store of this scheme can be broken like that."""
        return scheme in self.schemes

    def create(self, where: Any, **options: Any) -> ObliviousStore:
        """A new store as ``oram.create`` makes it, its scheme named or given as parameters, that leaks from now on. Errors as there.

        ParameterError for a leak that is made into an empty store only, where there are items.
        """
        store = oram.create(where, **options)
        return store if self.opened else self._harmed(store)

    def open(self, where: Any, **options: Any) -> ObliviousStore:
        """The store there as ``oram.open`` opens it, that leaks from now on. Errors as there; ParameterError for a leak that is made into a new store only."""
        if not self.reopens:
            raise ParameterError("this leak is made into a new store only")
        return self._harmed(oram.open(where, **options))

    def _harmed(self, store: ObliviousStore) -> ObliviousStore:
        try:
            self.harm(store)
        except BaseException:
            store.close()
            raise
        return store


# --- how a handle is broken


def _scheme_does(change: Callable[[Scheme, Requests], None]) -> Callable[[ObliviousStore], None]:
    """Before each access something is done to its requests."""

    def harm(store: ObliviousStore) -> None:
        scheme = store._engine.scheme
        inner = scheme.access

        def access(requests: Requests) -> Access:
            change(scheme, requests)
            return (yield from inner(requests))

        scheme.access = access  # type: ignore[method-assign]

    return harm


def _engine_skips(answers: Callable[[Scheme, Requests], bool]) -> Callable[[ObliviousStore], None]:
    """An access that can be answered without the server is not made."""

    def harm(store: ObliviousStore) -> None:
        engine = store._engine
        inner = engine.access

        def access(requests: Requests, note: bytes = b"") -> None:
            if not answers(engine.scheme, requests):
                inner(requests, note)

        engine.access = access  # type: ignore[method-assign]

    return harm


def _leaf(change: Callable[[Any, Requests, int], int]) -> Callable[[ObliviousStore], None]:
    """The leaf to which the block of each request moves is another one."""

    def redraw(scheme: Scheme, requests: Requests) -> None:
        for r in range(requests.m):
            requests.draws[r] = change(scheme, requests, r)

    return _scheme_does(redraw)


def _other_kernel(store: ObliviousStore, kernel_of: Callable[[Any, ReferenceKeys], Any]) -> None:
    """The scheme gets another kernel, and keys that it can use, in a generation of their own: no nonce is used twice."""
    engine, scheme = store._engine, store._engine.scheme
    keys = ReferenceKeys(str(store.info()["cipher"]), engine.journal.keyring.page_key)
    scheme._kernel = kernel_of(scheme, keys)  # type: ignore[attr-defined]
    engine._keys = scheme._keys = keys  # type: ignore[attr-defined]
    engine.start()
    engine._lay_out()


class _SameFunctions(ReferenceCuckoo):
    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        return super().pairs(Table(table.level, 0), addr)


class _SameFunctionsOfBins(ReferenceBinned):
    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        return super().pairs(Table(table.level, 0), addr)


def _same_functions(store: ObliviousStore) -> None:
    _hashed(store, _SameFunctions, _SameFunctionsOfBins, os.urandom(32))


def _known_functions(store: ObliviousStore) -> None:
    _hashed(store, ReferenceCuckoo, ReferenceBinned, bytes(32))


def _hashed(
    store: ObliviousStore, cuckoo: type[ReferenceCuckoo], binned: type[ReferenceBinned], hash_key: bytes
) -> None:
    """A hierarchy that nothing was put into gets another kernel, and this key of its hash functions."""
    if len(store) or store._engine.sequence:
        raise ParameterError("this leak is made into a new and empty store")

    def kernel(scheme: CuckooORAM | BinnedORAM, keys: ReferenceKeys) -> ReferenceCuckoo | ReferenceBinned:
        if isinstance(scheme, BinnedORAM):
            return binned(scheme.geometry, BinnedState.empty(scheme.geometry), keys, hash_key)
        return cuckoo(scheme.geometry, CuckooState.empty(scheme.geometry), keys, hash_key)

    _other_kernel(store, kernel)


class _InFront:
    """Coins of a bucket that is written: blocks get its first slots."""

    def __init__(self, *_: Any) -> None:
        pass

    def below(self, n: int) -> int:  # noqa: ARG002
        """For the next block: the first slot that is left."""
        return 0


class _ByParity:
    """The same: even addresses get even slots, and odd ones odd slots, as long as there are any, at random among these."""

    def __init__(self, coins: Coins, buckets: list[list[int]], slots: int) -> None:
        self._coins, self._slots, self._order = coins, slots, list[int]()
        self._turns = ((z, addr) for bucket in buckets for z, addr in enumerate(bucket))

    def below(self, n: int) -> int:
        """For the next block: which of the n slots that are left, in the order that these are in by now."""
        z, addr = next(self._turns)
        if z == 0:
            self._order = list(range(self._slots))
        left = range(z, z + n)
        k = (fitting := [k for k in left if self._order[k] % 2 == addr % 2] or [*left])[self._coins.below(len(fitting))]
        self._order[z], self._order[k] = self._order[k], self._order[z]
        return k - z


class _Placing(ReferenceRing):
    placing: Any  # coins for where blocks go

    def _evict(self) -> dict[int, list[Entry]]:
        placed = super()._evict()
        addresses = [[entry.addr for entry in placed[bucket.number]] for bucket in self._rewritten]
        self._coins = self.placing(self._coins, addresses, self._geometry.n)
        return placed


def _placed(coins: type[_InFront | _ByParity]) -> Callable[[ObliviousStore], None]:
    """A bucket of a Ring is odd from when it is written next on."""

    def kernel(scheme: RingORAM, keys: ReferenceKeys) -> ReferenceRing:
        made = _Placing(scheme.geometry, scheme.state, keys)
        made.placing = coins
        return made

    return lambda store: _other_kernel(store, kernel)


_FOR_A_RECORD = "slot for a record"
_BY_PARITY, _IN_FRONT = _placed(_ByParity), _placed(_InFront)


def _begins(position: Callable[[int, int], U32]) -> Callable[[ObliviousStore], None]:
    """The blocks of a tree are where they might have been had it been loaded with these positions: of so many blocks, at so many leaves."""

    def harm(store: ObliviousStore) -> None:
        engine, scheme = store._engine, store._engine.scheme
        assert isinstance(scheme, PathORAM | RingORAM)
        chunks = list(engine.scan())
        g = scheme.geometry
        addresses, blocks = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        scheme._kernel.state = type(scheme.state).empty(g, position(g.N, g.leaves))  # type: ignore[arg-type]
        engine.start()
        for write in scheme.build(addresses, blocks):
            engine.put(write)
        engine._lay_out()

    return harm


def _in_order(n: int, leaves: int) -> U32:
    return np.arange(n, dtype=np.uint32) % np.uint32(leaves)


def _as_everywhere(n: int, leaves: int) -> U32:
    return np.random.default_rng(1).integers(0, leaves, n, dtype=np.uint32)


def _sealed(spoil: Callable[[dict[tuple[str, int], U8], str, I64, U8], None]) -> Callable[[ObliviousStore], None]:
    """What is written are other ciphertexts than those that the scheme made; what it reads are its own.

    spoil: changes what is written to these slots of a region, given what the server has in each.
    """

    def harm(store: ObliviousStore) -> None:
        scheme = store._engine.scheme
        inner = scheme.access
        shown, differs = dict[tuple[str, int], U8](), dict[tuple[str, int], U8]()

        def own(read: SlotRead, slots: Slots) -> Slots:
            for i, slot in enumerate(read.indices.tolist()):
                slots.data[i] ^= differs.get((read.region, slot), _NOTHING)
            if read.groups is not None and slots.folded is not None:
                for i, group in enumerate(read.groups.tolist()):
                    for slot in group:
                        slots.folded[i] ^= differs.get((read.region, slot), _NOTHING)
            return slots

        def access(requests: Requests) -> Access:
            steps = inner(requests)
            try:
                read = next(steps)
                while True:
                    read = steps.send(own(read, (yield read)))
            except StopIteration as stop:
                outcome: Outcome = stop.value
            for write in outcome.writes:
                made = write.data.copy()
                spoil(shown, write.region, write.indices, write.data)
                for slot, row, old in zip(write.indices.tolist(), write.data, made, strict=True):
                    shown[write.region, slot], differs[write.region, slot] = row.copy(), row ^ old
            return outcome

        scheme.access = access  # type: ignore[method-assign]

    return harm


_NOTHING: U8 = np.zeros(1, np.uint8)
_BLOCK = 16  # bytes


def _kept(shown: dict[tuple[str, int], U8], region: str, slots: I64, data: U8) -> None:
    for slot, row in zip(slots.tolist(), data, strict=True):
        row[:_BLOCK] = shown.get((region, slot), row)[:_BLOCK]


def _twice(shown: dict[tuple[str, int], U8], region: str, slots: I64, data: U8) -> None:  # noqa: ARG001
    data[:1, :_BLOCK] = shown.setdefault(("", 0), data[:1, :_BLOCK].copy())


# --- what is done


def _stays(scheme: PathORAM | RingORAM, requests: Requests, r: int) -> int:
    read = requests.ops[r] == Op.READ
    return int(scheme.state.position[requests.addresses[r]] if read else requests.draws[r])


def _biased(scheme: PathORAM | RingORAM, requests: Requests, r: int) -> int:
    leaves = scheme.geometry.leaves
    return int(requests.draws[r]) % (leaves // 2 * 3) % leaves


def _halved(scheme: PathORAM | RingORAM, requests: Requests, r: int) -> int:
    half = scheme.geometry.leaves // 2
    return int(requests.draws[r]) % half + half * (int(requests.addresses[r]) % 2)


def _in_turn(store: ObliviousStore) -> None:
    number = 0

    def following(_scheme: Any, _requests: Requests, _r: int) -> int:
        nonlocal number
        number += 1
        return number

    _leaf(following)(store)


def _same_coins(scheme: Scheme, requests: Requests) -> None:  # noqa: ARG001
    requests.seed[:] = 7


def _same_again(store: ObliviousStore) -> None:
    """A get of one record, where the last access was that too."""
    engine = store._engine
    inner = engine.access
    last: tuple[list[tuple[int, int]], Any] = ([], None)

    def access(requests: Requests, note: bytes = b"") -> None:
        nonlocal last
        asked = [(op, address) for op, address, _ in requests.rows()]
        if asked == last[0] and all(op == Op.READ for op, _ in asked):
            requests.out[: requests.m] = last[1]
            return
        inner(requests, note)
        last = asked, requests.out[: requests.m].copy()

    engine.access = access  # type: ignore[method-assign]


def _is_miss(scheme: Scheme, requests: Requests) -> bool:  # noqa: ARG001
    if not (requests.ops[: requests.m] == Op.DUMMY).all():
        return False
    requests.out[: requests.m] = 0
    return True


def _is_held(scheme: Scheme, requests: Requests) -> bool:
    """Of gets alone: a put changes what is held."""
    rows = requests.rows()
    held: dict[int, Any] = {}
    if isinstance(scheme, CuckooORAM):
        state = scheme.state
        held = {addr: state.page_data[page, row] for addr, (page, row) in scheme._kernel.rows().items()}
    elif isinstance(scheme, BinnedORAM):
        held = _held_of_bins(scheme)
    elif isinstance(scheme, RingORAM):
        pool = scheme.state
        held = {int(pool.pool_addr[q]): pool.pool_data[q] for q in np.flatnonzero(pool.pool_addr != EMPTY)}
    if not all(op == Op.READ and address in held for op, address, _ in rows):
        return False
    for r, (_, address, _) in enumerate(rows):
        requests.out[r] = held[address]
    return True


def _held_of_bins(scheme: BinnedORAM) -> dict[int, Any]:
    """Blocks in the top buffers that are newer than any table."""
    state, alive = scheme.state, scheme.geometry.alive(scheme.turn, bool(scheme.state.clock[1]))
    newest = max((table.epoch for table in alive), default=-1)
    return {
        addr: state.page_data[page, row]
        for addr, (flush, page, row) in scheme._kernel.rows().items()
        if flush >= newest and not state.page_addr[page, row] & TOMB
    }


def _says_less_of_gets(store: ObliviousStore) -> None:
    scheme = store._engine.scheme
    inner = scheme.access

    def access(requests: Requests) -> Access:
        outcome = yield from inner(requests)
        if (requests.ops[: requests.m] == Op.READ).all():
            outcome.record = outcome.record[: -scheme.block_size]
        return outcome

    scheme.access = access  # type: ignore[method-assign]


def _its_page_first(store: ObliviousStore) -> None:
    scheme = store._engine.scheme
    assert isinstance(scheme, LinearORAM)
    inner = scheme.access

    def access(requests: Requests) -> Access:
        outcome = yield from inner(requests)
        (write,) = outcome.writes
        together = -(-scheme.geometry.N // write.indices.size)
        page = int(requests.addresses[0]) // together
        order = np.argsort(write.indices != page, kind="stable")
        outcome.writes = [type(write)(write.region, write.indices[order], write.data[order])]
        return outcome

    scheme.access = access  # type: ignore[method-assign]


#: Those that the tests of ``running`` find, and so ``oram watch``.
LIVE: tuple[Leak, ...] = (
    Leak("a read block stays", "only a put moves its block to a new leaf, a get leaves it where it is", _TREES, _leaf(_stays)),
    Leak("leaves in turn", "a block moves to the leaf after the one that was chosen last: uniform, and foreseen", _TREES, _in_turn, "hot key"),
    Leak("a biased leaf", "a random number is folded into leaves of which it is no multiple, so that half of them come twice as often", _TREES, _leaf(_biased)),
    Leak("halves", "odd blocks live in one half of the tree, and even ones in the other", _TREES, _leaf(_halved)),
    Leak("coins thrown once", "which dummies are read is drawn from the same seed in every access", ("ring", "cuckoo"), _scheme_does(_same_coins)),
    Leak("the same functions", "a table has the hash functions of the one that it replaces", ("cuckoo",), _same_functions, "zipf", reopens=False),
    Leak("slots by address", "a bucket has odd blocks in odd slots, and even ones in even ones", ("ring",), _BY_PARITY, test=_FOR_A_RECORD, reopens=False),
    Leak("blocks in front", "a bucket has its blocks in its first slots, and dummies behind them", ("ring",), _IN_FRONT, test="slots fetched", reopens=False),
    Leak("a known block is free", "a get of a block that the client happens to hold makes no access", ("ring", "cuckoo"), _engine_skips(_is_held), "hot key"),
    Leak("a miss is free", "a get of a key that is not there makes no access", _ALL, _engine_skips(_is_miss), "misses"),
    Leak("its page first", "the page with the block that was asked for is written before the others", ("linear",), _its_page_first),
    Leak("a get journals less", "what goes to the journal is shorter if nothing was changed", _ALL, _says_less_of_gets, reopens=False),
)  # fmt: skip

#: All of them: the others are for other checks of the audit.
LEAKS: tuple[Leak, ...] = (
    *LIVE,
    Leak("stays once opened again", "in a store that was opened again, a get leaves its block where it is", _TREES, _leaf(_stays), opened=True),
    Leak("begins in order", "the blocks of a new store are in the order of their addresses", _TREES, _begins(_in_order), reopens=False),
    Leak("begins as any other", "the blocks of a new store are where those of any other are", _TREES, _begins(_as_everywhere), reopens=False),
    Leak("hashes as any other", "a store has the hash functions that any other has", ("cuckoo",), _known_functions, reopens=False),
    Leak("the same again is free", "a get of what the last access got makes no access", _ALL, _same_again),
    Leak("a ciphertext is kept", "a slot that is written anew begins as it did before", _ALL, _sealed(_kept), reopens=False),
    Leak("two ciphertexts alike", "slots begin alike, as empty ones do under the same nonce", _ALL, _sealed(_twice), reopens=False),
)  # fmt: skip
