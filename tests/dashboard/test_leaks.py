"""Each leak lights up, within seconds at the rate that the page begins with; what it is for another store to be sound is in ``test_session``."""

from __future__ import annotations

import random
from typing import Any

import pytest

import oram
from oram.audit.leaks import LIVE, Leak
from oram.audit.sides import SCHEMES
from oram.backends import MemoryBackend
from oram.dashboard.session import Session, Settings
from oram.errors import ParameterError
from oram.testing.randomness import Coins, pinned

#: The tests that have to find a leak, of any scheme.
FOUND_BY = {
    "a read block stays": {"same record, same leaf"},
    "leaves in turn": {"order of accesses"},
    "a biased leaf": {"each leaf alike"},
    "halves": {"same record, near leaf"},
    "coins thrown once": {"slot of a bucket", "cell repeated"},
    "the same functions": {"same record, same cells"},
    "slots by address": {"slot for a record"},
    "blocks in front": {"slot of a bucket", "slots fetched"},
    "a known block is free": {"as the simulator says"},
    "a miss is free": {"as the simulator says"},
    "its page first": {"as the simulator says"},
    "a get journals less": {"journal lengths"},
}
SECONDS = 10
CASES = [pytest.param(leak, scheme, id=f"{leak.name} ({scheme})") for leak in LIVE for scheme in leak.schemes]


def test_every_leak_is_named_for_a_test() -> None:
    assert [leak.name for leak in LIVE] == list(FOUND_BY)
    assert {scheme for leak in LIVE for scheme in leak.schemes} == set(SCHEMES)
    for leak in LIVE:
        assert [scheme for scheme in SCHEMES if leak.applies_to(scheme)] == list(leak.schemes)


@pytest.mark.parametrize(("leak", "scheme"), CASES)
def test_it_lights_up(leak: Leak, scheme: str) -> None:
    settings = Settings().changed(scheme=scheme, leak=leak.name, leaking=True, workload=leak.workload or "uniform")
    with pinned(Coins(1)):
        session = Session(settings)
        names = {finding.name for finding in session.oblivious.findings}
        expected, loud = FOUND_BY[leak.name] & names, set[str]()
        while session.accesses < SECONDS * settings.rate and not expected <= loud:
            session.step(20)
            loud = {finding.name for finding in session.oblivious.findings if finding.state == "alarm"}
    assert expected
    assert expected <= loud
    assert session.frame()["failed"] is None


@pytest.mark.parametrize(("leak", "scheme"), CASES)
def test_it_answers_rightly(leak: Leak, scheme: str) -> None:
    """A leak that is noticed for another reason shows nothing."""
    store = leak.create(
        MemoryBackend(),
        key=bytes(32),
        capacity=64,
        block_size=64,
        scheme=SCHEMES[scheme],
        tree_top=0,
        durability="process",
    )
    model, source = dict[bytes, bytes](), random.Random(1)
    for i in range(400):
        key = b"%d" % source.randrange(40)
        if source.random() < 0.4:
            store[key] = model[key] = b"%d" % i
        else:
            assert store.get(key) == model.get(key)
    assert dict(store.items()) == model


def test_a_hierarchy_is_broken_while_it_is_empty() -> None:
    leak = next(leak for leak in LIVE if leak.name == "the same functions")
    with pytest.raises(ParameterError, match="new and empty"):
        leak.create(MemoryBackend(), key=bytes(32), capacity=8, block_size=64, scheme="cuckoo", items={b"a": b"b"})


def test_nothing_else_leaks() -> None:
    """What is broken is one handle."""

    def own(store: oram.ObliviousStore) -> tuple[type, bool, bool]:
        engine, scheme = store._engine, store._engine.scheme
        return type(vars(scheme)["_kernel"]), "access" in vars(engine), "access" in vars(scheme)

    for leak in LIVE:
        for scheme in leak.schemes:
            options: dict[str, Any] = {
                "key": bytes(32), "capacity": 8, "block_size": 64, "scheme": SCHEMES[scheme], "tree_top": 0,
            }  # fmt: skip
            before = own(oram.create(MemoryBackend(), **options))
            assert own(leak.create(MemoryBackend(), **options)) != before
            assert own(oram.create(MemoryBackend(), **options)) == before
