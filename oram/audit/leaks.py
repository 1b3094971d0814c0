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
from oram.errors import ParameterError
from oram.kernels.base import EMPTY, TOMB, BinnedState, CuckooState, Op, Requests
from oram.kernels.reference import ReferenceKeys
from oram.kernels.reference.binnedoram import ReferenceBinned
from oram.kernels.reference.cuckoooram import ReferenceCuckoo
from oram.params import Table
from oram.schemes.base import Access, Scheme
from oram.schemes.binned import BinnedORAM
from oram.schemes.cuckoo import CuckooORAM
from oram.schemes.linear import LinearORAM
from oram.schemes.path import PathORAM
from oram.schemes.ring import RingORAM
from oram.store import ObliviousStore
from oram.types import I64

__all__ = ["LEAKS", "Leak"]

_TREES = ("path", "ring")
_ALL = ("path", "ring", "cuckoo", "linear")


@dataclass(frozen=True, slots=True)
class Leak:
    """A way to be broken.

    says: what it is, for people, without a full stop. schemes: those that can be. workload: one under which it shows, None where it does under all.
    """

    name: str
    says: str
    schemes: tuple[str, ...]
    harm: Callable[[ObliviousStore], None]
    workload: str | None = None

    def applies_to(self, scheme: str) -> bool:
        """Whether a store of this scheme can be broken like that."""
        return scheme in self.schemes

    def create(self, where: Any, **options: Any) -> ObliviousStore:
        """A new store as ``oram.create`` makes it, its scheme named or given as parameters, that leaks from now on. Errors as there.

        ParameterError for a leak that is made into an empty store only, where there are items.
        """
        store = oram.create(where, **options)
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


class _SameFunctions(ReferenceCuckoo):
    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        return super().pairs(Table(table.level, 0), addr)


class _SameFunctionsOfBins(ReferenceBinned):
    def pairs(self, table: Table, addr: npt.NDArray[np.integer[Any]]) -> I64:
        return super().pairs(Table(table.level, 0), addr)


def _same_functions(store: ObliviousStore) -> None:
    """A hierarchy that nothing was put into gets another kernel, and keys that it can use."""
    engine, scheme = store._engine, store._engine.scheme
    if len(store) or engine.sequence:
        raise ParameterError("this leak is made into a new and empty store")
    keys, seed = ReferenceKeys(str(store.info()["cipher"]), engine.journal.keyring.page_key), os.urandom(32)
    if isinstance(scheme, BinnedORAM):
        scheme._kernel = _SameFunctionsOfBins(scheme.geometry, BinnedState.empty(scheme.geometry), keys, seed)
    else:
        assert isinstance(scheme, CuckooORAM)
        scheme._kernel = _SameFunctions(scheme.geometry, CuckooState.empty(scheme.geometry), keys, seed)
    engine._keys = keys
    engine.start()  # a generation of its own: no nonce is used twice
    engine._lay_out()


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


LEAKS: tuple[Leak, ...] = (
    Leak("a read block stays", "only a put moves its block to a new leaf, a get leaves it where it is", _TREES, _leaf(_stays)),
    Leak("leaves in turn", "a block moves to the leaf after the one that was chosen last: uniform, and foreseen", _TREES, _in_turn, "hot key"),
    Leak("a biased leaf", "a random number is folded into leaves of which it is no multiple, so that half of them come twice as often", _TREES, _leaf(_biased)),
    Leak("halves", "odd blocks live in one half of the tree, and even ones in the other", _TREES, _leaf(_halved)),
    Leak("coins thrown once", "which dummies are read is drawn from the same seed in every access", ("ring", "cuckoo"), _scheme_does(_same_coins)),
    Leak("the same functions", "a table has the hash functions of the one that it replaces", ("cuckoo",), _same_functions, "zipf"),
    Leak("a known block is free", "a get of a block that the client happens to hold makes no access", ("ring", "cuckoo"), _engine_skips(_is_held), "hot key"),
    Leak("a miss is free", "a get of a key that is not there makes no access", _ALL, _engine_skips(_is_miss), "misses"),
    Leak("its page first", "the page with the block that was asked for is written before the others", ("linear",), _its_page_first),
    Leak("a get journals less", "what goes to the journal is shorter if nothing was changed", _ALL, _says_less_of_gets),
)  # fmt: skip
