"""The definition of security, as code: everything that an observer sees, from public parameters and the leaves looked up alone.

A simulator knows no key, no value, no address, no operation and no hit or miss. If its events equal a store's real trace, event
by event, and its commits the real ones, length by length, then nothing but the leaves can tell two workloads apart; and those are uniform
and independent of the workload (``randomness.script``). It shares no arithmetic with the code it judges.

Ring reveals one thing more: which slots of a bucket are read. The simulator draws them itself, uniformly from those not read since the bucket was
written; so events are compared up to the names of slots (``canonical``), and that the real ones are drawn like that is for ``statistics.uniform_ranks``.

Cuckoo reveals two slots of each table for each request, with an index or without. They are all drawn in advance here
(``randomness.revealing``): so events are compared whole.

Source: the argument of Stefanov et al. (CCS 2013), section 3.6, and of Ren et al. (2015), section 3.6; docs/architecture.md for pages, pieces and the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from oram.testing.simulators.base import Batch, Commit, Simulator
from oram.testing.simulators.binned import BinnedSimulator
from oram.testing.simulators.cuckoo import CuckooSimulator
from oram.testing.simulators.linear import LinearSimulator
from oram.testing.simulators.path import PathSimulator, page_levels
from oram.testing.simulators.ring import RingSchedule, RingSimulator, Turn, canonical
from oram.testing.simulators.sharded import Dealt, ShardedSimulator, by_shard, each_gets, tree_info
from oram.trace import Event

__all__ = [
    "Batch",
    "BinnedSimulator",
    "Commit",
    "CuckooSimulator",
    "Dealt",
    "LinearSimulator",
    "PathSimulator",
    "RingSchedule",
    "RingSimulator",
    "ShardedSimulator",
    "Simulator",
    "Turn",
    "by_shard",
    "canonical",
    "each_gets",
    "page_levels",
    "shown",
    "simulator",
    "tree_info",
]

SIMULATORS: dict[str, type[Simulator]] = {
    "cuckoo": CuckooSimulator,
    "linear": LinearSimulator,
    "path": PathSimulator,
    "ring": RingSimulator,
}


def simulator(info: Mapping[str, Any], **options: bool) -> Simulator:
    """The simulator of the scheme in ``info``; options as for ``Simulator``."""
    kind, shards = SIMULATORS[info["scheme"]], int(info.get("shards", 1))
    if info.get("index") == "none":
        kind = BinnedSimulator
    if shards == 1:
        return kind(info, **options)
    return ShardedSimulator(info, [kind(tree_info(info), **options) for _ in range(shards)], **options)


def shown(events: Iterable[Event], info: Mapping[str, Any]) -> list[Event]:
    """A trace, the slots of a Ring bucket up to their names; of several shards what each of them sees, one after the other."""
    simulated = simulator(info)
    if not isinstance(simulated, ShardedSimulator):
        return canonical(events, info)
    return [
        replace(event, region=f"{event.region} of shard {j}")
        for j, own in enumerate(by_shard(events, simulated))
        for event in canonical(own, tree_info(info))
    ]
