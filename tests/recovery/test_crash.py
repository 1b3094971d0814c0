"""A crash at every step of every operation, and another at every step of the recovery from it.

After reopening, what was acknowledged is there, and the operation that was not is either done or not begun.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from oram.engine import Engine
from oram.params import PathGeometry, RingGeometry
from oram.store import ObliviousStore
from oram.testing.faults import Crash, Storage, crash

from .lives import IN_PARTS, PLACES, RINGS, SCHEMES, Base, Content, blocks, content, keyed, open_store

PAIRS = [
    *[("joint", scheme) for scheme in SCHEMES if scheme not in RINGS],
    *[("apart", scheme) for scheme in ("path", "cached", "cuckoo", "linear")],
    *[("unsynced", scheme) for scheme in ("stash", "cuckoo", "linear")],
    *[("torn", scheme) for scheme in ("path", "cached", "linear")],
    *[("torn-reverse-unsynced", scheme) for scheme in ("stash", "cuckoo", "linear")],
    *[("remote", scheme) for scheme in ("cached", "cuckoo", "cuckoo-none")],
    ("remote-torn-unsynced", "path"),
]
assert math.gcd(len(PAIRS), 10) == 1, "every second case, or fifth, has to come to each pair: see tests/conftest.py"
RING_PAIRS = [
    *[("joint", scheme) for scheme in ("ring", "ring-server")],
    *[("apart", scheme) for scheme in ("ring-evicts", "ring-server")],
    *[("remote", scheme) for scheme in RINGS],
    *[(place, scheme) for place in IN_PARTS for scheme in ("ring-evicts", "ring-server")],
]
NEW = [(b"k%d" % i, b"many%d" % i) for i in (2, 13, 5, 14, 2)]


def _delete(model: Content, *keys: Any) -> None:
    for key in keys:
        model.pop(key, None)


@dataclass(frozen=True)
class Operation:
    act: Callable[[ObliviousStore], object]
    change: Callable[[Content], object] = lambda model: None


KEYED = {
    "get": Operation(lambda s: s[b"k3"]),
    "miss": Operation(lambda s: s.get(b"nothing")),
    "put new": Operation(lambda s: s.put(b"new", b"value"), lambda m: m.update({b"new": b"value"})),
    "overwrite": Operation(lambda s: s.put(b"k3", b"other"), lambda m: m.update({b"k3": b"other"})),
    "delete": Operation(lambda s: s.delete(b"k3"), lambda m: _delete(m, b"k3")),
    "delete a miss": Operation(lambda s: s.pop(b"nothing", None)),
    "setdefault": Operation(lambda s: s.setdefault(b"new", b"set"), lambda m: m.update({b"new": b"set"})),
    "put_many": Operation(lambda s: s.put_many(NEW, size=6), lambda m: m.update(NEW)),
    "get_many": Operation(lambda s: s.get_many([b"k2", b"k3", b"k2", b"nothing"])),
    "delete_many": Operation(
        lambda s: s.delete_many([b"k2", b"k3", b"nothing", b"k2"]), lambda m: _delete(m, b"k2", b"k3")
    ),
}
BLOCKS = {
    "write": Operation(lambda s: s.blocks.write(3, b"new"), lambda m: m.update({3: b"new".ljust(40, b"\0")})),
    "write_many": Operation(
        lambda s: s.blocks.write_many([3, 4, 3], [b"a", b"b", b"c"]),
        lambda m: m.update({3: b"c".ljust(40, b"\0"), 4: b"b".ljust(40, b"\0")}),
    ),
    "read_many": Operation(lambda s: s.blocks.read_many([1, 2, 1, 15])),
}
WHOLE = {
    "load": Operation(lambda s: s.load(NEW), lambda m: m.update(NEW)),
    "clear": Operation(lambda s: s.clear(), lambda m: m.clear()),
}


def recoveries(crashed: Storage) -> Content:
    """What recovery makes of a crashed store: the same, wherever it is crashed itself, once or again and again."""
    calm = crashed.copy()
    backend = calm.connect()
    store = open_store(backend)
    steps = len(backend.faults.steps)
    outcome = content(store)
    persistent = crashed.copy()
    for at in range(steps):
        once = crashed.copy()
        for storage in (once, persistent):
            backend = storage.connect()
            crash(backend.faults, at, lambda backend=backend: open_store(backend))  # type: ignore[misc]
            assert backend.faults.dead or storage is persistent  # which has less and less to do
        assert content(open_store(once.connect())) == outcome
    assert reopened(persistent) == outcome
    return outcome


def reopened(storage: Storage) -> Content:
    """What a store holds after recovery; it then works as ever, also after yet another opening."""
    store = open_store(storage.connect())
    found = content(store)
    if store._engine.directory is not None:
        for key, value in found.items():
            assert store[key] == value
        store[b"afterwards"] = b"x"
        del store[b"afterwards"]
    again = open_store(storage.connect())
    assert content(again) == found
    return found


def crash_everywhere(base: Base, operation: Operation) -> None:
    before, after = dict(base.content), copy.deepcopy(base.content)
    operation.change(after)
    outcomes: list[bool] = []
    alive = False
    while not alive:
        crashed = base.storage.copy()
        backend = crashed.connect()
        store = open_store(backend)
        backend.faults.arm(len(outcomes))
        try:
            operation.act(store)
        except Crash:
            pass
        else:
            alive = True  # and the crash comes after what is acknowledged
        found = recoveries(crashed)
        assert found in (before, after), f"crashed at {backend.faults.steps}"
        outcomes.append(found == after)
    assert outcomes == sorted(outcomes), "what was done stays done"
    assert outcomes[-1], "what was acknowledged is done"


@pytest.mark.parametrize(("place", "scheme"), PAIRS)
@pytest.mark.parametrize("name", KEYED)
def test_access(place: str, scheme: str, name: str) -> None:
    crash_everywhere(keyed(place, scheme), KEYED[name])


@pytest.mark.parametrize(("place", "scheme"), RING_PAIRS)
@pytest.mark.parametrize("name", ["overwrite", "delete_many"])
def test_access_of_ring(place: str, scheme: str, name: str) -> None:
    crash_everywhere(keyed(place, scheme), KEYED[name])


@pytest.mark.parametrize("place", ["joint", "torn"])
@pytest.mark.parametrize("name", ["put new", "delete", "put_many"])
def test_access_of_several_blocks(place: str, name: str) -> None:
    crash_everywhere(keyed(place, "stash", 3), KEYED[name])


@pytest.mark.parametrize(("place", "scheme"), PAIRS)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(place: str, scheme: str, name: str) -> None:
    crash_everywhere(blocks(place, scheme), BLOCKS[name])


@pytest.mark.parametrize(("place", "scheme"), RING_PAIRS[::2])
def test_blocks_of_ring(place: str, scheme: str) -> None:
    crash_everywhere(blocks(place, scheme), BLOCKS["write_many"])


@pytest.mark.parametrize(("place", "scheme"), [*PAIRS, ("joint", "ring-server"), ("remote", "ring")])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_store(place: str, scheme: str, name: str) -> None:
    crash_everywhere(keyed(place, scheme), WHOLE[name])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["put new", "put_many"])
def test_renewal_of_the_generation(place: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = keyed(place, "cached")
    monkeypatch.setattr(Engine, "_renew", lambda engine: engine.start())
    crash_everywhere(base, KEYED[name])


GROWING = {
    "read": Operation(lambda s: s.blocks.read_many(range(16))),
    "write": Operation(
        lambda s: s.blocks.write_many(range(16), [b"w%d" % i for i in range(16)]),
        lambda m: m.update({i: (b"w%d" % i).ljust(40, b"\0") for i in range(16)}),
    ),
}


def before_it_grows(make: Callable[[], Base], size: int) -> Base:
    """A beginning whose pool has fewer slots than that: now and then chance has filled it before."""
    for _ in range(20):
        base = make()
        if open_store(base.storage.copy().connect())._engine.growth < size:
            return base
    pytest.fail("it always grows before")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", GROWING)
def test_growth_of_the_pool(place: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathGeometry, "pool_size", property(lambda g: 2))
    base = before_it_grows(lambda: blocks.__wrapped__(place, "stash"), 16)
    backend = base.storage.copy().connect()
    store = open_store(backend)
    GROWING[name].act(store)
    assert store._engine.growth >= 16
    assert "checkpoint" in backend.faults.steps
    crash_everywhere(base, GROWING[name])


@pytest.mark.parametrize(
    ("place", "scheme"),
    [("joint", "ring"), ("remote", "ring"), ("remote-torn-in-parts", "ring"), ("remote", "ring-server")],
)
def test_growth_of_the_pool_of_ring(place: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RingGeometry, "pool_size", property(lambda g: 2))
    monkeypatch.setitem(SCHEMES, scheme, (SCHEMES[scheme][0], 0))  # else most blocks are in the pool always
    base = before_it_grows(lambda: blocks.__wrapped__(place, scheme), 16)
    backend = base.storage.copy().connect()
    GROWING["write"].act(open_store(backend))
    assert "checkpoint" in backend.faults.steps
    crash_everywhere(base, GROWING["write"])


@pytest.mark.parametrize("place", PLACES)
def test_growth_with_a_new_key(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathGeometry, "pool_size", property(lambda g: 2))
    base = before_it_grows(lambda: keyed.__wrapped__(place, "stash"), 14)
    items = [(b"k%d" % i, b"new") for i in range(14)]
    crash_everywhere(base, Operation(lambda s: s.put_many(items), lambda m: m.update(items)))


@pytest.mark.parametrize("place", ["unsynced", "torn-reverse-unsynced"])
@pytest.mark.parametrize("scheme", ["cached", "stash", "linear"])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "power"])
def test_power_fails_in_the_access_after_recovery(place: str, scheme: str, killed: bool) -> None:
    """The first crash may be that of the process only, so that what it wrote is seen, but not yet safe."""
    base = keyed(place, scheme)
    one, two = KEYED["overwrite"], KEYED["put new"]
    for first in range(30):
        storage = base.storage.copy()
        backend = storage.connect()
        store = open_store(backend)
        if killed:
            backend.faults.spare()
        crash(backend.faults, first, lambda store=store: one.act(store))  # type: ignore[misc]
        acknowledged = not backend.faults.dead
        for second in range(30):
            again = storage.copy()
            backend = again.connect()
            store = open_store(backend)
            start = content(store)
            crash(backend.faults, second, lambda store=store: two.act(store))  # type: ignore[misc]
            after = dict(start)
            two.change(after)
            expected = (start, after) if backend.faults.dead else (after,)
            assert content(open_store(again.connect())) in expected
            if not backend.faults.dead:
                break
        if acknowledged:
            break
    else:
        pytest.fail("never acknowledged")
