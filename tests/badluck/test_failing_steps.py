"""A full disk, a failing one, no memory, or an interrupt, at every step: a clear error, nothing acknowledged lost, and all is well afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import oram
import oram.site
from oram.backends import LMDBBackend
from oram.errors import (
    BackendError,
    BackendFullError,
    ParameterError,
    StoreClosedError,
    StoreNotFoundError,
    TookEffectError,
)
from oram.params import PathGeometry
from oram.store import ObliviousStore
from oram.testing.faults import Storage
from oram.testing.model import check

from .places import KEY, MODEL, SCHEMES, filled

PLACES: dict[str, dict[str, Any]] = {
    "joint": {},
    "apart": {"apart": True},
    "torn": {"apart": True, "atomic": False},
    "remote": {"apart": True, "remote": True},
}
ERRORS: dict[str, type[BaseException]] = {
    "full": BackendFullError,
    "failing": BackendError,
    "memory": MemoryError,
    "interrupt": KeyboardInterrupt,
}
#: What replaces the whole store says so where it took effect, and something behind that failed.
WHOLE = {"load", "clear", "rekey"}
#: No memory where the client state is made is said to be a matter of the capacity.
RAISED: dict[str, tuple[type[BaseException], ...]] = {
    **{name: (error,) for name, error in ERRORS.items()},
    "memory": (MemoryError, ParameterError),
}
NEW = [(b"k1", b"x"), (b"new", b"y"), (b"newer", b"z")]
Change = Callable[[dict[bytes, bytes]], object]
OPERATIONS: dict[str, tuple[Callable[[ObliviousStore], object], Change]] = {
    "get": (lambda s: s[b"k1"], lambda m: None),
    "put new": (lambda s: s.put(b"new", b"x"), lambda m: m.update({b"new": b"x"})),
    "overwrite": (lambda s: s.put(b"k1", b"x"), lambda m: m.update({b"k1": b"x"})),
    "delete": (lambda s: s.delete(b"k1"), lambda m: m.pop(b"k1", None)),
    "put_many": (lambda s: s.put_many(NEW), lambda m: m.update(NEW)),
    "delete_many": (lambda s: s.delete_many([b"k1", b"k2"]), lambda m: (m.pop(b"k1", None), m.pop(b"k2", None))),
    "load": (lambda s: s.load(NEW), lambda m: m.update(NEW)),
    "clear": (lambda s: s.clear(), lambda m: m.clear()),
    "rekey": (lambda s: s.rekey(key=KEY), lambda m: None),
    "flush": (lambda s: s.flush(), lambda m: None),
}


def reopen(storage: Storage) -> ObliviousStore:
    return oram.open(storage.connect(), key=KEY, durability="sync")


_bases: dict[tuple[str, str], Storage] = {}


def base(place: str, scheme: str) -> Storage:
    if (place, scheme) not in _bases:
        storage = Storage(**PLACES[place])
        filled(storage.connect(), scheme, durability="sync")
        _bases[place, scheme] = storage
    return _bases[place, scheme].copy()


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str, place: str, what: str, sticky: bool) -> None:
    act, change = OPERATIONS[name]
    schemes = ["linear", "cached"] if place == "torn" else ["linear", "cached", "ring-server", "ring"]
    for at in range(200):
        storage = base(place, schemes[at % len(schemes)])
        store = reopen(storage)
        backend = store._site.backend
        backend.faults.arm(at, ERRORS[what], sticky=sticky)  # type: ignore[attr-defined]
        before, after = dict(MODEL), dict(MODEL)
        change(after)
        possible = [before, after]
        failed, took = False, None
        try:
            act(store)
        except TookEffectError as error:
            failed, possible, took = True, [after], error
        except RAISED[what]:
            failed = True
            if name in WHOLE and what != "interrupt":
                possible = [before]
        else:
            possible = [after]
        fired = backend.faults.fired  # type: ignore[attr-defined]
        backend.faults.arm(None)  # type: ignore[attr-defined]  # there is room again
        assert failed == fired or not failed
        assert took is None or (name in WHOLE and isinstance(took.__cause__, RAISED[what]))
        try:
            found = dict(store.items())
        except StoreClosedError:
            store.close()
        else:  # nothing had begun
            assert found in possible
            check(store, found)
            store[b"k3"] = b"goes on"
            store.pop(b"k4", None)
            for model in possible:
                model[b"k3"] = b"goes on"
                model.pop(b"k4", None)
            check(store, dict(store.items()))
            store.close()
        store = reopen(storage)
        found = dict(store.items())
        assert found in possible
        check(store, found, by_access=True)
        if not fired:
            assert found == possible[-1]
            break
    else:
        pytest.fail("it never ends")


@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_recovery(scheme: str, place: str, what: str) -> None:
    """Of a crash before and after the commit; each failed opening leaves it as hard as before."""
    for crash_at in (1, 2, 3, 4):
        storage = base(place, scheme)
        store = reopen(storage)
        store._site.backend.faults.arm(crash_at)  # type: ignore[attr-defined]
        try:
            store[b"k1"] = b"x"
        except BaseException:
            possible = [MODEL, {**MODEL, b"k1": b"x"}]
        else:
            possible = [{**MODEL, b"k1": b"x"}]
        for at in range(40):
            backend = storage.connect()
            backend.faults.arm(at, ERRORS[what], sticky=True)
            try:
                oram.open(backend, key=KEY, durability="sync")
            except RAISED[what]:
                pass
            else:
                break
        store = reopen(storage)
        found = dict(store.items())
        assert found in possible
        check(store, found, by_access=True)


@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("place", PLACES)
def test_growth_of_the_pool(place: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathGeometry, "pool_size", property(lambda g: 2))
    scheme = oram.PathParams(Z=1)
    model = {b"k%d" % i: b"v" for i in range(14)}
    for at in range(40):
        storage = Storage(**PLACES[place])
        store = oram.create(
            storage.connect(), key=KEY, capacity=16, block_size=40, scheme=scheme, tree_top=0, durability="sync"
        )
        backend = store._site.backend
        backend.faults.arm(at, ERRORS[what], sticky=True)  # type: ignore[attr-defined]
        try:
            store.put_many(model)
            possible = [model]
        except RAISED[what]:
            possible = [{}, model]
        else:
            assert "checkpoint" in backend.faults.steps  # type: ignore[attr-defined]
        fired = backend.faults.fired  # type: ignore[attr-defined]
        backend.faults.arm(None)  # type: ignore[attr-defined]
        store.close()
        store = reopen(storage)
        assert dict(store.items()) in possible
        check(store, dict(store.items()), by_access=True)
        if not fired:
            break


@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("items", [None, MODEL], ids=["empty", "items"])
def test_create(place: str, what: str, items: dict[bytes, bytes] | None) -> None:
    def make(backend: Any) -> ObliviousStore:
        return oram.create(backend, key=KEY, capacity=40, block_size=100, items=items, durability="sync", scheme="path")

    may_raise: tuple[type[BaseException], ...] = (TookEffectError, *RAISED[what])
    for at in range(40):
        storage = Storage(**PLACES[place])
        backend = storage.connect()
        backend.faults.arm(at, ERRORS[what], sticky=True)
        try:
            store = make(backend)
        except may_raise:
            assert not storage.slots._ownership.locked(), "the place was not given back"  # type: ignore[attr-defined]
            try:
                store = reopen(storage)
            except StoreNotFoundError:
                store = make(storage.connect())
            check(store, items or {})
        else:
            backend.faults.arm(None)
            check(store, items or {})
            break


@pytest.mark.parametrize("what", ERRORS)
def test_backup(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[Any] = []
    monkeypatch.setattr(oram.site, "open_url", lambda url, **_: targets.pop())
    store = reopen(base("joint", "cached"))
    for at in range(40):
        target = Storage()
        backend = target.connect()
        backend.faults.arm(at, ERRORS[what], sticky=True)
        targets.append(backend)
        try:
            store.backup(Path("elsewhere"))
        except RAISED[what]:
            check(store, MODEL)
            targets.append(target.connect())
            store.backup(Path("elsewhere"))
        fired = backend.faults.fired
        restored = oram.restore(target.connect(), Storage().connect(), key=KEY)
        check(restored, MODEL)
        if not fired:
            break


@pytest.mark.parametrize(
    ("scheme", "pages"), [("path", 40), ("path", 110), ("cached", 40), ("cached", 70), ("linear", 20), ("linear", 40)]
)
def test_a_small_map(tmp_path: Path, scheme: str, pages: int) -> None:
    """LMDB's own limit, met wherever it happens to be met."""
    options = {"map_size": 1 << 16, "max_map_size": pages << 12, "sync": False}
    model: dict[bytes, bytes] = {}
    backend = LMDBBackend(tmp_path / "store", **options)  # type: ignore[arg-type]
    possible = [model]
    with pytest.raises(BackendFullError):
        try:
            store = oram.create(
                backend, key=KEY, capacity=200, block_size=500, durability="process", tree_top=0, **_scheme(scheme)
            )
            for i in range(400):
                key = b"k%d" % (i % 200)
                possible = [model, {**model, key: b"v%d" % i}]
                store[key] = b"v%d" % i
                model = possible[1]
                possible = [model]
        finally:
            backend.release()
    for _ in range(2):  # still no room: perhaps a clear error, perhaps it opens
        with suppress(BackendFullError, StoreNotFoundError):
            oram.open(backend, key=KEY, durability="process").close()
    backend.close()
    try:
        store = oram.open(f"lmdb:{tmp_path / 'store'}", key=KEY, durability="process")
    except StoreNotFoundError:
        assert model == {}
        return
    found = dict(store.items())
    assert found in possible
    check(store, found, by_access=True)
    store.update({b"k%d" % i: b"room" for i in range(200)})
    assert len(store) == 200
    store.close()


def _scheme(name: str) -> dict[str, Any]:
    return {"scheme": SCHEMES[name]["scheme"]}
