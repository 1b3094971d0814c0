"""Ring ORAMs that are broken on purpose, as those of Path in ``test_controls``: each has to be rejected by the check that is named for it, which accepts the
real scheme in the same test.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest

import oram
from oram.backends import Slots
from oram.engine import Engine
from oram.errors import OramError
from oram.kernels.base import EMPTY, RING_SEED, Op, Requests, RingPlan, RingWrite
from oram.kernels.reference import ReferenceRing
from oram.schemes.base import Access
from oram.schemes.ring import RingORAM
from oram.testing import faults, statistics
from oram.testing.faults import Storage
from oram.testing.oracles import Ledger, RingWatch
from oram.testing.randomness import Coins, count_draws, leaves_of, listen, pinned
from oram.testing.statistics import Result
from oram.testing.worlds import PAIRS, observe, same
from oram.trace import Event
from oram.types import I64, U8

from . import common
from .common import RETRIES, Control, Crash, DedupInBatch, ReexecutesAfterACrash, answers_rightly, exact


@dataclass(frozen=True)
class Build(common.Build):
    usual = {"scheme": oram.RingParams(Z=4, A=3, S=4)}

    scheme: type[RingORAM] = RingORAM
    ring: type[ReferenceRing] | None = None  # of the reference kernels

    def parts(self) -> dict[str, Any]:
        return {
            **super().parts(),
            "oram.assembly.RingORAM": self.scheme,
            "oram.kernels.reference.ring": self.ring,
        }


# --- leaves


class NoRemapOnRead(RingORAM):
    """Only puts move a block."""

    def access(self, requests: Requests) -> Access:
        for r in range(requests.m):
            if requests.ops[r] == Op.READ:
                requests.draws[r] = self.state.position[requests.addresses[r]]
        return super().access(requests)


# --- slots


class FirstDummy(ReferenceRing):
    """Reads the first dummy that was not read yet, as the artifact of Compass does."""

    def _dummy(self, spent: int, blocks: dict[int, int]) -> int:
        return next(slot for slot in range(self._geometry.n) if not spent >> slot & 1 and slot not in blocks)


class NeverTheLast(ReferenceRing):
    """Off by one: the last slot is never read as a dummy, unless there is no other."""

    def _dummy(self, spent: int, blocks: dict[int, int]) -> int:
        free = [slot for slot in range(self._geometry.n) if not spent >> slot & 1 and slot not in blocks]
        return free[self._coins.below(max(1, len(free) - 1))]


class Zero:
    """Coins that always fall the same way."""

    def below(self, n: int) -> int:
        return 0


class NotPermuted(ReferenceRing):
    """Blocks lie in the first slots of a bucket."""

    def _write(self, placed: dict[int, list[Any]]) -> RingWrite:
        self._coins = Zero()  # type: ignore[assignment]
        return super()._write(placed)


class DummiesReadAgain(ReferenceRing):
    """Forgets which dummies were read: nothing of value was there."""

    def access(self, requests: Requests, plan: RingPlan, slots: Slots) -> RingWrite:
        written = super().access(requests, plan, slots)
        state = self.state
        for bucket in self._union.values():
            blocks = [slot for addr, slot in zip(state.addr[bucket.row], state.slot[bucket.row]) if addr != EMPTY]  # noqa: B905
            mask = sum(1 << int(slot) for slot in blocks)
            state.spent[bucket.row] &= np.uint64(mask)
        return written


class StopsWhereFound(ReferenceRing):
    """Reads no slot below the bucket where the block is."""

    def plan(self, requests: Requests) -> RingPlan:
        plan = super().plan(requests)
        for r, home in enumerate(self._home):
            if home is not None:
                plan.online[r, home[0] + 1 :] = -1
        return plan


# --- evictions and reshuffles


class EvictsAtRandom(ReferenceRing):
    """The path of an eviction is a random one."""

    def reverse_lexicographic(self, G: int) -> int:
        return random.Random(G).randrange(self._geometry.leaves)


class EvictsWhatWasRead(ReferenceRing):
    """The path of an eviction is the one that was just read, as in Path ORAM."""

    def reverse_lexicographic(self, G: int) -> int:
        return self._path[-1]


class IdleEvictsNothing(ReferenceRing):
    """No eviction where the stash is empty."""

    def buckets(self, requests: Requests) -> I64:
        real = self._geometry
        if self.state.used == 0:
            self._geometry = replace(real, A=1 << 40)
        try:
            return super().buckets(requests)
        finally:
            self._geometry = real


class Reshuffles(ReferenceRing):
    """Reshuffles some of the buckets that are due."""

    def needs(self, bucket: Any) -> bool:
        raise NotImplementedError

    def plan(self, requests: Requests) -> RingPlan:
        plan = super().plan(requests)
        kept = [bucket.evict or self.needs(bucket) for bucket in self._rewritten]
        self._rewritten = [bucket for bucket, keep in zip(self._rewritten, kept, strict=True) if keep]
        return RingPlan(plan.path, plan.online, plan.rewritten[kept], plan.fetched[kept])


class SkipsReshuffles(Reshuffles):
    """Leaves a bucket that was read S times as it is, until somebody asks for a block in it."""

    def needs(self, bucket: Any) -> bool:
        return not set(self._first).isdisjoint(bucket.here.values())


class ReshufflesWhatHoldsBlocks(Reshuffles):
    """A bucket that is empty need not be reshuffled."""

    def needs(self, bucket: Any) -> bool:
        return bool(bucket.here)


# --- sealing


class MetadataInClear(ReferenceRing):
    """Metadata are only about dummies and slots."""

    def seal_rows(self, buckets: I64, rows: dict[str, Any]) -> U8:
        sealed = super().seal_rows(buckets, rows)
        plain = np.zeros(buckets.size, self._row_type)
        for name in self._row_type.names or ():
            plain[name] = rows[name]
        sealed[:, : self._geometry.meta_plain] = plain.view(np.uint8).reshape(buckets.size, -1)
        return sealed

    def open_rows(self, buckets: I64, refs: Any, sealed: Slots) -> dict[str, Any]:
        plain = sealed.data[:, : self._geometry.meta_plain].copy().view(self._row_type).reshape(-1)
        plain[refs == 0] = 0
        return {name: plain[name].copy() for name in self._row_type.names or ()}


class MetadataSealedOnce(ReferenceRing):
    """All metadata are sealed under one nonce, so that two versions differ only where their content does."""

    def seal_rows(self, buckets: I64, rows: dict[str, Any]) -> U8:
        sealed = super().seal_rows(buckets, rows)
        plain = np.zeros(buckets.size, self._row_type)
        for name in self._row_type.names or ():
            plain[name] = rows[name]
        plain["children"] = self._fixed(plain["children"])
        for i, bucket in enumerate(buckets.tolist()):
            at = self._geometry.slots + bucket
            sealed[i] = np.frombuffer(self._keys.seal(at, 0xFFFF0000, plain[i].tobytes()), np.uint8)
        return sealed

    def open_rows(self, buckets: I64, refs: Any, sealed: Slots) -> dict[str, Any]:
        return super().open_rows(buckets, self._fixed(refs), sealed)

    @staticmethod
    def _fixed(refs: Any) -> Any:
        return np.where(refs == 0, refs, refs >> np.uint64(32) << np.uint64(32) | np.uint64(0xFFFF0000))


# --- accesses, batches, recovery


class StashHitIsFree(Engine):
    """A block that is in client memory already is not looked up."""

    def access(self, requests: Requests, note: bytes = b"") -> None:
        assert isinstance(self.scheme, RingORAM)
        state, m = self.scheme.state, requests.m
        held = {int(state.pool_addr[q]): q for q in np.flatnonzero(state.pool_addr != EMPTY)}
        rows = list(zip(requests.ops[:m].tolist(), requests.addresses[:m].tolist(), strict=True))
        if all(op == Op.READ and address in held for op, address in rows):
            for r, (_, address) in enumerate(rows):
                requests.out[r] = state.pool_data[held[address]]
        else:
            super().access(requests, note)


class LogsNoSeed(Engine):
    """Recovery reads the logged paths again, and other dummies on them."""

    def recover(self) -> None:
        journal, intent = self.journal, self.journal.intent()
        if intent is not None:
            other = replace(intent, seed=os.urandom(RING_SEED))
            journal.intent = lambda: other  # type: ignore[method-assign]
        super().recover()


class AnswersTooSoon(Engine):
    """Write-back and journal both wait for the next access."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        journal, waiting = self.journal, list[Callable[[], None]]()
        commit, take, checkpoint = journal.log_commit, journal.take, journal.checkpoint
        done: Callable[[], list[None]] = lambda: [waiting.pop()() for _ in waiting[:]]  # noqa: E731
        self._finish = done

        def later(*args: Any, **options: Any) -> None:
            waiting.append(lambda: commit(*args, **options))

        journal.log_commit = later  # type: ignore[method-assign]
        journal.take = lambda *args: (done(), take(*args))[1]  # type: ignore[method-assign]
        journal.checkpoint = lambda *args, **options: (done(), checkpoint(*args, **options))[1]  # type: ignore[method-assign]

    def close(self) -> None:
        self._finish()
        super().close()


class LogsNoWrites(Engine):
    """The journal has what happened in the client, and not what the server still has to get."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        commit = self.journal.log_commit
        self.journal.log_commit = (  # type: ignore[method-assign]
            lambda *args, write_back=(), **options: commit(*args, **options)
        )


# --- checks: each says whether it accepts a build


def blocks(build: Build, accesses: int = 400, **options: Any) -> tuple[list[Event], dict[str, Any]]:
    """The trace of writes and reads at the block level: 60 blocks, no cached top."""
    usual: dict[str, Any] = {"keyed": False, "capacity": 60, "block_size": 8, "tree_top": 0, "durability": "none"}
    with pinned(Coins(3)), build.active():
        store, trace = build.make(**{**usual, **options})
        source = random.Random(1)
        for _ in range(accesses):
            store.blocks.write(source.randrange(60), b"x")
            store.blocks.read(source.randrange(60))
    return trace.events, store.info()


def same_block(build: Build) -> Result:
    with pinned(Coins(0)), build.active():
        store, trace = build.make(keyed=False, capacity=128, block_size=8, tree_top=0, durability="none")
        for i in range(45):
            store.blocks.read(i % 5)
    values = [leaves[0] for leaves in leaves_of(trace.events, store.info())]
    pairs = [([a], [b]) for a, b in zip(values, values[5:], strict=False)]
    return statistics.same_block_equal(pairs, 1 << store.info()["L"])


def slots(build: Build) -> Result:
    """Each slot that an access reads is a uniform choice among those that were not read yet."""
    events, info = blocks(build)
    picks = Ledger(info).see(events)
    return statistics.uniform_ranks([(pick.rank, pick.left) for pick in picks if pick.online], 1)


def first_slots(build: Build) -> Result:
    """The first slot that is read of a bucket since it was written is a uniform choice."""
    events, info = blocks(build, 1200)
    picks = [pick for pick in Ledger(info).see(events) if pick.first and pick.online]
    return statistics.uniform_choice([pick.slot for pick in picks], info["Z"] + info["S"])


def no_slot_twice(build: Build) -> Result:
    events, info = blocks(build, 150)
    ledger = Ledger(info)
    ledger.see(events)
    return exact("no slot is read twice between writes", ledger.twice == 0)


def schedule(build: Build) -> Result:
    """Which buckets are written anew follows from the leaves."""
    with pinned(Coins(4)), build.active():
        store, trace = build.make(keyed=False, capacity=60, block_size=8, tree_top=0)
        watch = RingWatch(store, trace)
        source = random.Random(2)
        for _ in range(200):
            store.blocks.write(source.randrange(60), b"x")
    assert watch.accesses == 200
    return exact("schedule", watch.unscheduled == 0)


def simulated(build: Build) -> Result:
    pair = next(pair for pair in PAIRS if pair.name == "gets / puts")
    with build.active():
        view = observe(lambda: build.make(tree_top=0), pair.left, 5)
    return exact("simulator", view.simulated().shown == view.shown)


def two_worlds(name: str) -> Callable[[Build], Result]:
    def accepts(build: Build) -> Result:
        (pair,) = [pair for pair in PAIRS if pair.name == name]
        with build.active():
            return exact("two worlds", same(observe(build.make, pair.left, 3), observe(build.make, pair.right, 3)))

    return accepts


def draws(build: Build) -> Result:
    """One draw a request and one seed a batch, whatever it is."""
    coins = Coins(6)
    with pinned(coins), build.active():
        store, _ = build.make()
        asked = listen(store._engine)
        coins.sizes.clear()
        for i in range(60):
            store[b"%d" % (i % 3)] = b"x"
            store.get(b"%d" % (i % 4))
    return exact("draws", len(asked) == 120 and count_draws(asked, coins.sizes, RING_SEED))


def metadata_of(build: Build) -> list[Event]:
    store, trace = build.make(keep_data=True, scheme=oram.RingParams(Z=4, A=3, S=4, metadata="server"))
    with build.active():
        for i in range(60):
            store[b"%d" % (i % 9)] = b"x"
    return [event for event in trace.events if event.region.startswith("meta.") and event.op == "write"]


def metadata_looks_random(build: Build) -> Result:
    content = [event.data for event in metadata_of(build) if event.data is not None]
    return statistics.uniform_choice(np.concatenate([data.reshape(-1) for data in content]).tolist(), 256)


def metadata_changes(build: Build) -> Result:
    """Two versions of a bucket's metadata have no more in common than random ones."""
    latest: dict[int, U8] = {}
    differences: list[U8] = []
    for event in metadata_of(build):
        assert event.data is not None
        for bucket, row in zip(event.indices, event.data, strict=True):
            if bucket in latest:
                differences.append(latest[bucket] ^ row)
            latest[bucket] = row
    return statistics.uniform_choice(np.concatenate(differences).tolist(), 256)


def replays(build: Build) -> Result:
    """After a crash in its read, an access is made again at once, slot by slot, whatever is asked then."""
    views = []
    for retry in RETRIES.values():
        with pinned(Coins(11)), build.active():
            store, trace = build.make()
            for i in range(20):
                store[b"%d" % (i % 10)] = b"v"
            trace.clear()
            with mock.patch.object(trace.inner, "exchange", side_effect=Crash), pytest.raises(Crash):
                store.get(b"3")
            begun = [(event.op, event.indices) for event in trace.events]
            store._site.release()
            trace.clear()
            store = oram.open(trace, key=bytes(32), durability="process")
            with suppress(OramError):
                retry(store)
        again = [(event.op, event.indices) for event in trace.events if event.region.startswith("slots.")]
        asked = [event for event in again if event[0] != "allocate"]
        assert begun
        views.append(asked[: len(begun)] == begun)
    return exact("replay", all(views))


def kept(build: Build) -> Result:
    """What was acknowledged survives a crash at the next instant, over a backend whose writes wait for the next read."""
    storage, found = Storage(apart=True, remote=True), []
    with build.active():
        store = oram.create(
            storage.connect(),
            key=bytes(32),
            capacity=16,
            block_size=48,
            scheme="ring",
            tree_top=0,
            durability="process",
        )
        for i in range(6):
            store[b"%d" % i] = b"acknowledged"
            store = oram.open(storage.connect(), key=bytes(32), durability="process")
            found.append(store.get(b"%d" % i) == b"acknowledged")
    return exact("acknowledged writes are kept", all(found))


def kept_where_writes_tear(build: Build) -> Result:
    """The same where the crash comes in the middle of the write-back, at the beginning of the next access."""
    scheme, whole = oram.RingParams(Z=3, A=1, S=2), []
    with build.active():
        for at in range(1, 12, 2):
            storage = Storage(apart=True, remote=True, atomic=False, part=3)
            store = oram.create(
                storage.connect(), key=bytes(32), capacity=16, block_size=48, scheme=scheme, tree_top=0,
                durability="process",
            )  # fmt: skip
            for i in range(8):
                store[b"%d" % i] = b"acknowledged"
            faults.crash(storage.faults, at, lambda store=store: store.get(b"1"))  # type: ignore[misc]
            try:
                store = oram.open(storage.connect(), key=bytes(32), durability="process")
                whole.append(dict(store.items()) == {b"%d" % i: b"acknowledged" for i in range(8)})
            except OramError:
                whole.append(False)
    return exact("torn write-backs are made good", all(whole))


# --- the table


REFERENCE = Build(ring=ReferenceRing)

CONTROLS: dict[str, Control[Build]] = {
    "no remap on read": Control(Build(scheme=NoRemapOnRead), same_block),
    "the first dummy": Control(Build(ring=FirstDummy), slots),
    "never the last dummy": Control(Build(ring=NeverTheLast), slots),
    "blocks are not permuted": Control(Build(ring=NotPermuted), first_slots),
    "dummies are read again": Control(Build(ring=DummiesReadAgain), no_slot_twice),
    "stops reading where the block is": Control(Build(ring=StopsWhereFound), simulated),
    "evicts at random": Control(Build(ring=EvictsAtRandom), schedule),
    "evicts at random, simulated": Control(Build(ring=EvictsAtRandom), simulated),
    "evicts what was read": Control(Build(ring=EvictsWhatWasRead), schedule),
    "does not evict an empty stash": Control(Build(ring=IdleEvictsNothing), simulated),
    "skips early reshuffles": Control(Build(ring=SkipsReshuffles), schedule),
    "reshuffles only what holds blocks": Control(Build(ring=ReshufflesWhatHoldsBlocks), schedule),
    "reshuffles only what holds blocks, simulated": Control(Build(ring=ReshufflesWhatHoldsBlocks), simulated),
    "metadata in clear": Control(Build(ring=MetadataInClear), metadata_looks_random),
    "metadata sealed under one nonce": Control(Build(ring=MetadataSealedOnce), metadata_changes),
    "a stash hit skips the access": Control(Build(engine=StashHitIsFree), draws),
    "a stash hit skips the access, seen": Control(
        Build(engine=StashHitIsFree), two_worlds("a hot key / all keys in turn")
    ),
    "dedup shrinks a batch": Control(Build(store=DedupInBatch), two_worlds("batches: duplicates / distinct")),
    "recovery asks again": Control(Build(engine=ReexecutesAfterACrash), replays),
    "recovery reads other slots": Control(Build(engine=LogsNoSeed), replays),
    "answers before the journal has it": Control(Build(engine=AnswersTooSoon), kept),
    "does not log what it will write": Control(Build(engine=LogsNoWrites), kept_where_writes_tear),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control(name: str) -> None:
    control = CONTROLS[name]
    control.holds(Build() if control.build.ring is None else REFERENCE)


CHECKS = {control.check: name for name, control in CONTROLS.items() if control.build.ring is not None}


@pytest.mark.parametrize("check", CHECKS, ids=CHECKS.values())
def test_the_active_kernels_pass(check: Callable[[Build], Result]) -> None:
    """The controls break the reference kernels; the others are judged by the same checks."""
    assert check(Build()).passed


def test_broken_schemes_work() -> None:
    """A control that fails for another reason proves nothing: all of them answer rightly."""
    for name, control in CONTROLS.items():
        server = "metadata" in name
        for durability in ("process", "none"):
            options: dict[str, Any] = {"scheme": oram.RingParams(Z=4, A=3, S=4, metadata="server")} if server else {}
            if control.build.engine is AnswersTooSoon:  # made for state and slots apart
                continue
            store, _ = control.build.make(durability=durability, **options)
            with control.build.active():
                answers_rightly(store, 90, name)
