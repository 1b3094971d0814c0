"""Stores of several shards that are broken on purpose: what goes to each shard depends on what is asked. Each is rejected by the check named for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest

import oram
from oram.backends import SlotRead, SlotWrite
from oram.errors import ShardOverflowError
from oram.kernels.base import Op, Requests
from oram.schemes.base import Access, Outcome
from oram.schemes.sharded import Deal, ShardedORAM
from oram.store import ObliviousStore
from oram.testing.statistics import Result
from oram.testing.worlds import Work, observe, same
from oram.types import U32

from . import common
from .common import Control, answers_rightly, exact


@dataclass(frozen=True)
class Build(common.Build):
    usual = {"scheme": oram.PathParams(page_levels=1), "shards": 3, "tree_top": 0}

    scheme: type[ShardedORAM] = ShardedORAM
    placement: Any = None
    deal: Any = None

    def parts(self) -> dict[str, Any]:
        return {
            **super().parts(),
            "oram.assembly.ShardedORAM": self.scheme,
            **({} if self.placement is None else {"oram.assembly.placement": self.placement}),
            **({} if self.deal is None else {"oram.schemes.sharded.Deal": self.deal}),
        }


REAL = Build()


class OfOtherSizes(ShardedORAM):
    """What each shard gets is not the number that the size of the batch gives."""

    def sizes(self, requests: Requests, deal: Deal) -> list[int]:
        raise NotImplementedError

    def _hand_out(self, requests: Requests, deal: Deal) -> list[Requests]:
        m, k = self.geometry.batch(requests.m), self.shards
        draws = np.resize(requests.seed[: 4 * k * m].view("<u4"), (k, max(self.sizes(requests, deal))))
        parts, at = [], 0
        for j, (tree, size) in enumerate(zip(self.trees, self.sizes(requests, deal), strict=True)):
            part, c = tree.requests(size), int(deal.counts[j])
            part.ops[:c], part.ops[c:size] = deal.ops[at : at + c], Op.DUMMY
            part.addresses[:c], part.addresses[c:size] = deal.local[at : at + c], 0
            part.data[:c] = requests.data[deal.source[at : at + c]]
            part.draws[:size] = draws[j, :size]
            parts.append(part)
            at += c
        return parts

    def _deal(self, requests: Requests) -> Deal:
        return Deal.of(requests, self._place, self.geometry.tree.N, self.shards)


class NoPadding(OfOtherSizes):
    """Each shard gets what is asked of it, and one dummy where nothing is."""

    def sizes(self, requests: Requests, deal: Deal) -> list[int]:
        return [max(1, c) for c in deal.counts.tolist()]


class AsManyAsTheBusiest(OfOtherSizes):
    """All the same number, but that of the shard that most is asked of."""

    def sizes(self, requests: Requests, deal: Deal) -> list[int]:
        return [max(1, int(deal.counts.max()))] * self.shards


class LargerWhereItOverflows(OfOtherSizes):
    """Where a shard gets more than there is room for, the batch grows."""

    def sizes(self, requests: Requests, deal: Deal) -> list[int]:
        return [max(self.geometry.batch(requests.m), int(deal.counts.max()))] * self.shards


class OnlyWhoHasSomething(ShardedORAM):
    """Shards that nothing is asked of are left alone."""

    def access(self, requests: Requests) -> Access:
        if requests.m > 1 or requests.ops[0] == Op.DUMMY:
            return (yield from super().access(requests))
        j, local = divmod(int(self._place[requests.addresses[0]]), self.geometry.tree.N)
        part = self.trees[j].requests(1)
        part.ops[0], part.addresses[0], part.data[0] = requests.ops[0], local, requests.data[0]
        part.draws[0] = requests.seed[:4].view("<u4")[0]
        access = self.trees[j].access(part)
        read = next(access)
        away = j * self._slots[read.region]
        slots = yield SlotRead(read.region, read.indices + away)
        try:
            access.send(slots)
        except StopIteration as stop:
            done: Outcome = stop.value
        requests.out[0] = part.out[0]
        writes = [SlotWrite(write.region, write.indices + away, write.data) for write in done.writes]
        return Outcome(writes, done.record)


class SharedDraws(ShardedORAM):
    """All shards look up the same leaves."""

    def _hand_out(self, requests: Requests, deal: Deal) -> list[Requests]:
        parts = super()._hand_out(requests, deal)
        for part in parts[1:]:
            part.draws[: part.m] = parts[0].draws[: part.m]
        return parts


class Duplicates(Deal):
    """A request is a request, also to an address that came before: an address that is asked for twice goes to its shard twice."""

    @classmethod
    def of(cls, requests: Requests, place: U32, tree: int, k: int) -> Deal:
        m = requests.m
        rows = np.flatnonzero(requests.ops[:m] != Op.DUMMY)
        at = place[requests.addresses[rows]].astype(np.int64)
        order = np.argsort(at, kind="stable")
        rows, at = rows[order], at[order]
        shard, local = np.divmod(at, tree)
        return cls(
            np.bincount(shard, minlength=k), local.astype(np.uint32), requests.ops[rows], rows, rows,
            np.arange(rows.size), np.full(rows.size, -1),
        )  # fmt: skip


def public_placement(places: int, random: bytes) -> U32:
    """The first addresses in the first shard, the next in the second."""
    return np.arange(places, dtype=np.uint32)


# --- the checks


def _asks(choose: Any) -> Work:
    def work(store: ObliviousStore) -> None:
        scheme: Any = store._engine.scheme
        place, tree = scheme._place, scheme.geometry.tree.N
        own = [[a for a in range(scheme.capacity) if place[a] // tree == j] for j in range(scheme.shards)]
        for i in range(12):
            some = choose(own)
            store.blocks.write_many(some, [b"%d" % i] * len(some))
            store.blocks.read(some[i % len(some)])

    return work


ONE_SHARD = _asks(lambda own: own[1][:9])
SPREAD = _asks(lambda own: [a for part in own for a in part[:3]])
REPEATED = _asks(lambda own: own[1][:1] * 9)
MANY = 3 * 64  # requests: each shard gets fewer


def worlds(left: Work, right: Work) -> Any:
    def check(build: Build) -> Result:
        with build.active():
            views = [observe(lambda: build.make(keyed=False), work, 3) for work in (left, right)]
        return exact("two worlds", same(*views) and views[0].one_draw_a_request)

    return check


def simulated(build: Build) -> Result:
    """Each shard shows what the size of the batch says, and the leaves that were drawn for it."""
    with build.active():
        try:
            view = observe(lambda: build.make(keyed=False), SPREAD, 3)
            return exact("simulator", view.simulated(keyed=False).shown == view.shown)
        except ValueError:  # no trace of shards that get as many each
            return exact("simulator", False)


def nobody_can_choose_one_shard(build: Build) -> Result:
    """Addresses side by side, or evenly apart, are spread over the shards, so that no batch of them overflows."""
    with build.active():
        store, _ = build.make(keyed=False, capacity=900)
        try:
            for some in (range(MANY), range(0, 4 * MANY, 4), range(900 - MANY, 900)):
                store.blocks.read_many(list(some))
        except ShardOverflowError:
            return exact("placement", False)
    return exact("placement", True)


def one_address_over_and_over(build: Build) -> Result:
    """A batch of requests to one address is a batch like any other, however large."""
    with build.active():
        store, _ = build.make(keyed=False, capacity=900)
        try:
            store.blocks.read_many([7] * MANY)
        except ShardOverflowError:
            return exact("duplicates", False)
    return exact("duplicates", True)


def large_batches(build: Build) -> Result:
    """A batch with more for one shard than the size of the batch gives it is refused, or looks like any other. (Room is made scarce here.)"""
    with build.active(), mock.patch("oram.params.sharded.shard_batch", lambda m, k: -(-m // k) + 2):
        store, trace = build.make(keyed=False)
        trace.clear()
        sizes = []
        for work in (SPREAD, ONE_SHARD):
            trace.clear()
            try:
                work(store)
            except ShardOverflowError:
                return exact("overflow", trace.events == [])
            sizes.append(list(trace.state_commits))
        return exact("overflow", sizes[0] == sizes[1])


CONTROLS = {
    "no padding: two worlds": Control(Build(scheme=NoPadding), worlds(ONE_SHARD, SPREAD)),
    "no padding: simulator": Control(Build(scheme=NoPadding), simulated),
    "as many as the busiest: two worlds": Control(Build(scheme=AsManyAsTheBusiest), worlds(ONE_SHARD, SPREAD)),
    "as many as the busiest: simulator": Control(Build(scheme=AsManyAsTheBusiest), simulated),
    "only who has something: two worlds": Control(Build(scheme=OnlyWhoHasSomething), worlds(ONE_SHARD, SPREAD)),
    "shared draws: simulator": Control(Build(scheme=SharedDraws), simulated),
    "a public placement: placement": Control(Build(placement=public_placement), nobody_can_choose_one_shard),
    "larger where it overflows: overflow": Control(Build(scheme=LargerWhereItOverflows), large_batches),
    "duplicates: duplicates": Control(Build(deal=Duplicates), one_address_over_and_over),
    "duplicates: two worlds": Control(Build(scheme=AsManyAsTheBusiest, deal=Duplicates), worlds(REPEATED, SPREAD)),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control(name: str) -> None:
    CONTROLS[name].holds(REAL)


@pytest.mark.parametrize(
    "build",
    [REAL, Build(scheme=NoPadding), Build(scheme=AsManyAsTheBusiest), Build(placement=public_placement)],
    ids=["real", "no padding", "as many as the busiest", "a public placement"],
)
def test_they_work_apart_from_that(build: Build) -> None:
    with build.active():
        store, _ = build.make()
        answers_rightly(store, 60, str(build))
