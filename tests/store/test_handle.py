"""A handle: one at a time, in one process, used by many threads, never copied; and what it says of itself."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import oram
from oram.backends import LMDBBackend, MemoryBackend
from oram.errors import (
    ForkedStoreError,
    HandleError,
    MissingKeyError,
    ParameterError,
    StateMissingError,
    StoreClosedError,
    StoreExistsError,
    StoreLockedError,
    StoreNotFoundError,
    UncleanShutdownError,
    WrongKeyError,
)
from oram.store import ObliviousStore
from oram.testing.model import check

from .places import KEY, SCHEMES, small

USES: dict[str, Callable[[ObliviousStore], object]] = {
    "get": lambda s: s[b"a"],
    "get a miss": lambda s: s.get(b"no"),
    "put": lambda s: s.put(b"a", b"2"),
    "delete": lambda s: s.delete(b"a"),
    "pop": lambda s: s.pop(b"a", None),
    "popitem": lambda s: s.popitem(),
    "setdefault": lambda s: s.setdefault(b"a", b"2"),
    "in": lambda s: b"a" in s,
    "len": len,
    "iter": list,
    "items": lambda s: list(s.items()),
    "values": lambda s: list(s.values()),
    "get_many": lambda s: s.get_many([b"a"]),
    "put_many": lambda s: s.put_many({b"a": b"2"}),
    "delete_many": lambda s: s.delete_many([b"a"]),
    "load": lambda s: s.load({b"a": b"2"}),
    "clear": lambda s: s.clear(),
    "rekey": lambda s: s.rekey(key=KEY),
    "verify": lambda s: s.verify(),
    "flush": lambda s: s.flush(),
    "stats": lambda s: s.stats(),
    "backup": lambda s: s.backup("/nowhere/at/all"),
    "block read": lambda s: s.blocks.read(0),
    "block write": lambda s: s.blocks.write(0, b""),
    "block read_many": lambda s: s.blocks.read_many([0]),
    "block write_many": lambda s: s.blocks.write_many([0], [b""]),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("durability", ["process", "none"])
def test_after_close(name: str, durability: str) -> None:
    backend = MemoryBackend()
    store = small(backend, durability=durability)
    store[b"a"] = b"1"
    store.close()
    store.close()
    with pytest.raises(StoreClosedError):
        USES[name](store)
    with oram.open(backend, key=KEY, durability=durability) as again:
        check(again, {b"a": b"1"})


@pytest.mark.parametrize("durability", ["sync", "process", "none"])
def test_after_a_fork(tmp_path: Path, durability: str) -> None:
    """In a program of its own, because a test runner has threads, which do not survive a fork."""
    program = """
import os, sys, oram
from oram.errors import ForkedStoreError, OramError
sys.path.insert(0, sys.argv[1])
store = oram.create(sys.argv[2], key=bytes(32), capacity=8, block_size=48, scheme="path", durability=sys.argv[3])
store[b"a"] = b"1"
pid = os.fork()
if pid == 0:
    code = 0
    for act in (
        lambda: store[b"a"], lambda: store.put(b"a", b"2"), lambda: store.delete(b"a"), lambda: len(store),
        lambda: b"a" in store, lambda: list(store), lambda: store.clear(), lambda: store.flush(), lambda: store.verify(),
        lambda: store.blocks.read(0), lambda: store.stats(), lambda: store.load({}), lambda: store.rekey(key=bytes(32)),
    ):
        try:
            act()
        except ForkedStoreError:
            pass
        else:
            code = 1
    try:
        store.close()
    except OramError:
        pass
    os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
assert store[b"a"] == b"1"
try:
    oram.open(sys.argv[2], key=bytes(32))
except oram.errors.StoreLockedError:
    pass
else:
    raise AssertionError("the child's close gave the parent's store away")
store[b"b"] = b"2"
store.close()
with oram.open(sys.argv[2], key=bytes(32)) as store:
    assert dict(store.items()) == {b"a": b"1", b"b": b"2"}
    assert store.verify() == 2
"""
    subprocess.run(
        [sys.executable, "-c", program, "", f"lmdb:{tmp_path / 'store'}", durability], check=True, timeout=60
    )


def test_forked_handle_in_memory() -> None:
    store = small()
    store._engine._pid += 1  # as a child would see it
    with pytest.raises(ForkedStoreError):
        store[b"a"] = b"1"


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy, lambda s: pickle.dumps(s.blocks)])
def test_no_copies(act: Callable[[Any], object]) -> None:
    store = small()
    store[b"a"] = b"1"
    with pytest.raises((HandleError, TypeError)):
        act(store)
    assert store[b"a"] == b"1"


def test_a_second_handle(tmp_path: Path) -> None:
    memory = MemoryBackend()
    lmdb = LMDBBackend(tmp_path / "object", sync=False)
    url = f"lmdb:{tmp_path / 'url'}"
    for where in (memory, lmdb, url):
        store = small(where)  # type: ignore[arg-type]
        store[b"a"] = b"1"
        for _ in range(2):
            with pytest.raises(StoreLockedError):
                oram.open(where, key=KEY)
            with pytest.raises(StoreLockedError):
                small(where)  # type: ignore[arg-type]
            with pytest.raises(StoreLockedError):
                oram.info(where)
        assert store[b"a"] == b"1"
        store.close()
        with oram.open(where, key=KEY) as again:
            assert again[b"a"] == b"1"
    lmdb.close()


def test_a_second_process(tmp_path: Path) -> None:
    url = f"lmdb:{tmp_path / 'store'}"
    program = "import sys, oram\noram.open(sys.argv[1], key=bytes(range(32)))\n"
    store = small(url)  # type: ignore[arg-type]
    ran = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=False, timeout=60)
    assert "StoreLockedError" in ran.stderr
    store.close()
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=60)


def test_the_state_is_locked_too(tmp_path: Path) -> None:
    one, two = MemoryBackend(), MemoryBackend()
    store = small(one, state=tmp_path / "state")
    with pytest.raises(StoreLockedError):
        small(two, state=tmp_path / "state")
    store.close()
    with pytest.raises(StoreExistsError):
        small(two, state=tmp_path / "state")
    small(two, state=tmp_path / "other").close()


def test_where_there_is_a_store(tmp_path: Path) -> None:
    backend = MemoryBackend()
    with pytest.raises(StoreNotFoundError):
        oram.open(backend, key=KEY)
    with pytest.raises(StoreNotFoundError):
        oram.info(backend)
    with pytest.raises(StoreNotFoundError):
        oram.open(f"lmdb:{tmp_path / 'nothing'}", key=KEY)
    assert not (tmp_path / "nothing").exists()
    small(backend).close()
    with pytest.raises(StoreExistsError):
        small(backend)
    apart = MemoryBackend()
    small(apart, state=tmp_path / "state").close()
    with pytest.raises(StateMissingError):
        oram.open(apart, key=KEY)
    with pytest.raises(StateMissingError):
        oram.open(apart, key=KEY, state=tmp_path / "elsewhere")
    with pytest.raises(StoreExistsError):
        small(apart)
    oram.open(apart, key=KEY, state=tmp_path / "state").close()


def test_wrong_credentials() -> None:
    backend = MemoryBackend()
    with small(backend) as store:
        store[b"a"] = b"1"
    for wrong in ({"key": bytes(32)}, {"passphrase": "guess"}):
        with pytest.raises(WrongKeyError):
            oram.open(backend, **wrong)
    for bad in ({}, {"key": KEY, "passphrase": "x"}, {"key": b"short"}):
        with pytest.raises(ParameterError):
            oram.open(backend, **bad)
    with oram.open(backend, key=bytearray(KEY)) as store:  # type: ignore[arg-type]
        assert store[b"a"] == b"1"


def test_dying_without_close() -> None:
    backend = MemoryBackend()
    store = small(backend, durability="none")
    store.flush()
    backend.release()
    oram.open(backend, key=KEY, durability="none").close()
    store = oram.open(backend, key=KEY, durability="none")
    store[b"a"] = b"1"
    store.flush()
    store[b"a"] = b"2"
    backend.release()
    with pytest.raises(UncleanShutdownError):
        oram.open(backend, key=KEY)


@pytest.mark.parametrize("first", ["sync", "process", "none"])
@pytest.mark.parametrize("second", ["sync", "process", "none"])
def test_durability_can_change(first: str, second: str) -> None:
    backend = MemoryBackend()
    model = {}
    with small(backend, durability=first, scheme=oram.PathParams(Z=1)) as store:
        for i in range(20):
            store[b"%d" % (i % 8)] = model[b"%d" % (i % 8)] = b"%d" % i
    for durability in (second, first, second):
        with oram.open(backend, key=KEY, durability=durability) as store:
            check(store, model)
            for i in range(5):
                store[b"%d" % i] = model[b"%d" % i] = os.urandom(4)
    with oram.open(backend, key=KEY) as store:
        check(store, model, by_access=True)


@pytest.mark.parametrize("durability", ["process", "none"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads(durability: str, scheme: str) -> None:
    """Each thread has keys of its own, so that its own model is exact; all share the store."""
    store = small(durability=durability, scheme=scheme, capacity=24)
    models: list[dict[bytes, bytes]] = [{} for _ in range(4)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        rng, model = random.Random(number), models[number]
        keys = [b"%d/%d" % (number, i) for i in range(5)]
        try:
            for _ in range(150):
                key, value = rng.choice(keys), rng.randbytes(5)
                match rng.randrange(7):
                    case 0 | 1:
                        store[key] = model[key] = value
                    case 2:
                        assert store.pop(key, None) == model.pop(key, None)
                    case 3:
                        assert store.get(key) == model.get(key)
                    case 4:
                        assert store.get_many(keys) == [model.get(k) for k in keys]
                    case 5:
                        store.put_many([(k, value) for k in keys[:2]])
                        model.update(dict.fromkeys(keys[:2], value))
                    case 6:
                        found = {k: v for k, v in store.items() if k in keys}
                        assert found == model
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check(store, {key: value for model in models for key, value in model.items()}, by_access=True)


def test_closed_by_another_thread() -> None:
    store = small()
    ended: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                store[b"a"] = b"1"
        except StoreClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    store.close()
    thread.join(10)
    assert len(ended) == 1


def test_errors_in_a_with_close_the_store() -> None:
    backend = MemoryBackend()
    with pytest.raises(MissingKeyError), small(backend) as store:
        store[b"no"]
    oram.open(backend, key=KEY).close()


def test_secrets_are_nowhere_to_be_read(tmp_path: Path) -> None:
    passphrase = "correct horse battery"
    backend = MemoryBackend()
    options = {"scheme": "path", "capacity": 8, "block_size": 48}
    store = oram.create(backend, passphrase=passphrase, **options)  # type: ignore[arg-type]
    store[b"user key"] = b"user value"
    engine = store._engine
    secret = store._header.secret
    assert secret is not None
    texts = [
        f(thing)
        for f in (repr, str)
        for thing in (store, store.blocks, store._header, engine, engine.journal, engine.journal.keyring, store.info())
    ]
    texts += [repr(store._site), repr(store.stats()), repr(oram.keys.Credential.of(None, passphrase))]
    store.close()
    texts.append(repr(oram.info(backend)))
    for wrong in ({"passphrase": "wrong horse"}, {"key": bytes(range(100, 132))}):
        with pytest.raises(WrongKeyError) as caught:
            oram.open(backend, **wrong)
        texts += [str(caught.value), repr(caught.value)]
    hidden = (passphrase, "wrong horse", "user key", "user value", secret.hex(), repr(secret)[2:-1], "defg")
    for text in texts:
        assert not any(word in text for word in hidden), text
