"""What a store of several shards shows: each shard what a store by itself would, in the same round trips, for the same number of requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from math import comb
from typing import Any, Self

from oram.testing.simulators.base import Batch, Seen, Simulator
from oram.trace import Event

__all__ = ["Dealt", "ShardedSimulator", "by_shard", "each_gets", "tree_info"]


class Dealt(list[int]):
    """The leaves that a batch looks up, shard after shard, and m, how many requests it was made of."""

    m: int

    @classmethod
    def of(cls, leaves: Iterable[int], m: int) -> Self:
        made = cls(leaves)
        made.m = m
        return made


def tree_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """The public parameters of one shard, as of a store by itself."""
    tree = {name: value for name, value in info.items() if name != "shards"}
    return {**tree, "blocks": -(-int(info["blocks"]) // int(info["shards"]))}


@cache
def _bound(m: int, k: int) -> int:
    """The smallest B with k P[Bin(m, 1/k) > B] <= 2^-80, by the definition."""
    tail, B = Fraction(0), m
    while B > 0:
        tail += Fraction(comb(m, B) * (k - 1) ** (m - B), k**m)
        if k * tail > Fraction(1, 1 << 80):
            break
        B -= 1
    return B


def each_gets(m: int, info: Mapping[str, Any]) -> int:
    """The requests that each shard gets in a batch of m."""
    return min(_bound(m, int(info["shards"])), int(tree_info(info)["blocks"]))


class ShardedSimulator(Simulator):
    """k simulators in step."""

    trees: list[Simulator]

    def __init__(self, info: Mapping[str, Any], trees: Sequence[Simulator], **options: bool) -> None:
        super().__init__(info, **options)
        self.trees, self.k = list(trees), len(trees)
        one = self.trees[0]
        self.seed = self.k * one.seed
        self.slots, self.slot_size = self.k * one.slots, one.slot_size

    def regions(self) -> list[tuple[str, int]]:
        return self.trees[0].regions()

    @property
    def shown(self) -> list[Event]:
        from oram.testing.simulators import shown

        return shown(self.events, self.info)

    def asked(self, leaves: Sequence[int]) -> int:
        assert isinstance(leaves, Dealt)
        return leaves.m

    def coins(self, m: int) -> int:
        return self.k * 4 * each_gets(m, self.info) + self.seed

    def randomness(self, m: int) -> int:
        return self.coins(m)

    def _own(self, leaves: Sequence[int]) -> list[Sequence[int]]:
        each = each_gets(self.asked(leaves), self.info)
        assert len(leaves) == self.k * each
        return [leaves[j * each : (j + 1) * each] for j in range(self.k)]

    def batch(self, leaves: Sequence[int]) -> Batch:
        own = [tree.batch(part) for tree, part in zip(self.trees, self._own(leaves), strict=True)]
        reads = tuple(tuple(self._together(trips)) for trips in zip(*(each.reads for each in own), strict=True))
        writes = tuple(self._together([each.writes for each in own]))
        return Batch(reads, writes, 8 + sum(4 + each.record for each in own))

    def _together(self, own: Sequence[Sequence[Seen]]) -> Iterator[Seen]:
        """What all shards show at one time: the groups one by one, and what they read or write of a region as one."""
        whole: dict[tuple[str, str], list[Seen]] = {}
        for j, seen in enumerate(own):
            for op, region, slots, size in seen:
                n = self.stripe(region)
                moved: Seen = (op, region, tuple(slot if slot < 0 else slot + j * n for slot in slots), size)
                if op == "xor":
                    yield moved
                else:
                    whole.setdefault((region, op), []).append(moved)
        for _, parts in sorted(whole.items(), key=lambda item: item[0][0], reverse=True):  # slots, then metadata
            op, region, _, size = parts[0]
            yield op, region, tuple(slot for part in parts for slot in part[2]), size

    def stripe(self, region: str) -> int:
        """How many slots of a region one shard has."""
        kind = region.partition(".")[0]
        if kind == "slots":
            return self.trees[0].slots
        return int(getattr(self.trees[0], "_buckets")) if kind == "meta" else 1  # noqa: B009 - only Ring has them

    def done(self, leaves: Sequence[int]) -> None:
        for tree, part in zip(self.trees, self._own(leaves), strict=True):
            tree.done(part)

    def record_size(self, m: int) -> int:
        return 8 + self.k * (4 + self.trees[0].record_size(each_gets(m, self.info)))

    def state_size(self) -> int:
        return self.k * self.trees[0].state_size()


def by_shard(events: Iterable[Event], simulated: ShardedSimulator) -> list[list[Event]]:
    """What each shard sees of a trace, as if it were a store by itself. ValueError where a read or write does not go from shard to shard in order.

    Of the groups of a round trip each shard has as many, in order: one that names no slot has no other mark.
    """
    k = simulated.k
    events = list(events)
    groups: dict[int, int] = {}
    for event in events:
        groups[event.trip] = groups.get(event.trip, 0) + (event.op == "xor")
    if any(count % k for count in groups.values()):
        raise ValueError("not the same number of groups for each shard")
    found: list[list[Event]] = [[] for _ in range(k)]
    at: dict[int, int] = {}
    for event in events:
        n = simulated.stripe(event.region)
        which = [slot // n for slot in event.indices if slot >= 0]
        if event.op == "xor":
            number = at.get(event.trip, 0)
            at[event.trip] = number + 1
            j = number * k // groups[event.trip]
            if set(which) - {j}:
                raise ValueError("a group of another shard's slots")
            found[j].append(replace(event, indices=tuple(s if s < 0 else s - j * n for s in event.indices)))
            continue
        if which != sorted(which):
            raise ValueError("slots of one shard between those of another")
        for j in sorted(set(which)) if which else range(k):
            found[j].append(replace(event, indices=tuple(s - j * n for s in event.indices if s // n == j)))
    return found
