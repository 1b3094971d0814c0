"""Every method does what the synchronous one does: result, error, content, and all that the server sees."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oram
import oram.aio
from oram.aio import AsyncBlocks, AsyncObliviousStore
from oram.backends import MemoryBackend
from oram.errors import ParameterError
from oram.store import Blocks, ObliviousStore
from oram.testing.model import check
from oram.testing.randomness import Coins, pinned
from oram.trace import TraceBackend

from .places import KEY, SMALL, START, run, seen, small

Sync: TypeAlias = Callable[[ObliviousStore], object]
Async: TypeAlias = Callable[[AsyncObliviousStore], Awaitable[object]]


async def _listed(items: Any) -> list[Any]:
    return [item async for item in items]


async def _now(value: object) -> object:
    return value


def _both(name: str, *args: Any, **options: Any) -> tuple[Sync, Async]:
    return (lambda s: getattr(s, name)(*args, **options)), (lambda s: getattr(s, name)(*args, **options))


def _block(name: str, *args: Any) -> tuple[Sync, Async]:
    return (lambda s: getattr(s.blocks, name)(*args)), (lambda s: getattr(s.blocks, name)(*args))


MANY = [b"a", b"no", b"a", b"\0", b"new"]
KEYED: dict[str, tuple[Sync, Async]] = {
    "[] a hit": (lambda s: s[b"a"], lambda s: s[b"a"]),
    "[] a miss": (lambda s: s[b"no"], lambda s: s[b"no"]),
    "get a hit": _both("get", b"a"),
    "get a miss": _both("get", b"no"),
    "get with a default": _both("get", b"no", 5),
    "get a bytearray": _both("get", bytearray(b"a")),
    "get no bytes": _both("get", "a"),
    "get too large": _both("get", bytes(100)),
    "put old": _both("put", b"a", b"2"),
    "put new": _both("put", b"new", b"2"),
    "put a memoryview": _both("put", b"new", memoryview(b"12")),
    "put too large": _both("put", b"a", bytes(100)),
    "put no bytes": _both("put", b"a", None),
    "delete a hit": _both("delete", b"a"),
    "delete a miss": _both("delete", b"no"),
    "pop a hit": _both("pop", b"a"),
    "pop a miss": _both("pop", b"no"),
    "pop with a default": _both("pop", b"no", None),
    "pop by name": _both("pop", b"no", default=b"d"),
    "pop with too much": _both("pop", b"no", 1, 2),
    "popitem": _both("popitem"),
    "setdefault a hit": _both("setdefault", b"a", b"d"),
    "setdefault a miss": _both("setdefault", b"no", b"d"),
    "setdefault alone": _both("setdefault", b"no"),
    "get_many": _both("get_many", MANY),
    "get_many, padded": _both("get_many", MANY, size=7),
    "get_many, too small": _both("get_many", MANY, size=2),
    "get_many of nothing": _both("get_many", []),
    "get_many of a number": _both("get_many", 5),
    "get_many of a str": _both("get_many", "a"),
    "put_many": _both("put_many", {b"a": b"x", b"new": bytearray(b"y")}, size=3),
    "put_many of pairs": _both("put_many", [(b"a", b"x"), [b"a", b"y"]]),
    "put_many of no pairs": _both("put_many", [b"a"]),
    "put_many too many": _both("put_many", [(b"%d" % i, b"") for i in range(9)]),
    "delete_many": _both("delete_many", MANY, size=6),
    "update": _both("update", {b"a": b"x"}),
    "update with nothing": _both("update"),
    "update by name": _both("update", a=b"x"),
    "in": (lambda s: b"a" in s, lambda s: s.contains(b"a")),
    "not in": (lambda s: b"no" in s, lambda s: s.contains(b"no")),
    "in, no bytes": (lambda s: s.__contains__(5), lambda s: s.contains(5)),
    "len": (len, lambda s: _now(len(s))),
    "iter": (list, _listed),
    "keys": (lambda s: list(s.keys()), lambda s: _listed(s.keys())),
    "values": (lambda s: list(s.values()), lambda s: _listed(s.values())),
    "items": (lambda s: list(s.items()), lambda s: _listed(s.items())),
    "scan": _both("scan", lambda key, value: None),
    "scan that fails": _both("scan", lambda key, value: {}[key]),
    "clear": _both("clear"),
    "load": _both("load", {b"a": b"x", b"new": b"y"}),
    "load too many": _both("load", {b"%d" % i: b"" for i in range(9)}),
    "rekey": _both("rekey", key=bytearray(32)),
    "rekey without": _both("rekey"),
    "stats": _both("stats"),
    "verify": _both("verify"),
    "flush": _both("flush"),
    "capacity": (lambda s: s.capacity, lambda s: _now(s.capacity)),
    "max_batch": (lambda s: s.max_batch, lambda s: _now(s.max_batch)),
    "value_limit": (lambda s: s.value_limit, lambda s: _now(s.value_limit)),
    "info's names": (lambda s: list(s.info()), lambda s: _now(list(s.info()))),
    "repr": (repr, lambda s: _now(repr(s).replace("Async", ""))),
    "bool": (bool, lambda s: _now(bool(s))),
    "close": _both("close"),
}
BLOCKS: dict[str, tuple[Sync, Async]] = {
    "read": _block("read", 3),
    "read nothing": _block("read", 5),
    "read beyond": _block("read", 8),
    "write": _block("write", 3, bytearray(b"x")),
    "write too much": _block("write", 3, bytes(49)),
    "read_many": _block("read_many", [3, 5, 3]),
    "read_many of an array": _block("read_many", np.array([3, 5])),
    "read_many of a number": _block("read_many", 5),
    "write_many": _block("write_many", [1, 2], [b"x", bytearray(b"y")]),
    "write_many of an array": _block("write_many", (1, 2), np.ones((2, 48), np.uint8)),
    "write_many of another": _block("write_many", (1, 2), np.ones((2, 4), np.uint8)),
    "len": (lambda s: len(s.blocks), lambda s: _now(len(s.blocks))),
    "block_size": (lambda s: s.blocks.block_size, lambda s: _now(s.blocks.block_size)),
    "len of the store": (len, lambda s: _now(len(s))),
    "contains": (lambda s: b"a" in s, lambda s: s.contains(b"a")),
    "items": (lambda s: list(s.items()), lambda s: _listed(s.items())),
}


def _known(result: object) -> object:
    return result.tolist() if isinstance(result, np.ndarray) else result


def _outcome(error: Exception) -> tuple[type[Exception], str]:
    return type(error), str(error)


def _synchronous(act: Sync, **options: Any) -> tuple[object, Any, Any]:
    with pinned(Coins(5)):
        trace = TraceBackend(MemoryBackend())
        with oram.create(trace, **{**SMALL, **options}) as store:
            if options.get("keyed", True):
                store.update(START)
            else:
                store.blocks.write(3, b"three")
            trace.clear()
            try:
                result = _known(act(store))
            except Exception as error:
                result = _outcome(error)
            view = seen(trace)
        return result, view, _content(trace.inner, act)


def _asynchronous(act: Async, **options: Any) -> tuple[object, Any, Any]:
    async def main() -> tuple[object, Any, TraceBackend]:
        trace = TraceBackend(MemoryBackend())
        async with small(trace, **options) as store:
            if options.get("keyed", True):
                await store.update(START)
            else:
                await store.blocks.write(3, b"three")
            trace.clear()
            try:
                result = _known(await act(store))
            except Exception as error:
                result = _outcome(error)
            view = seen(trace)
        return result, view, trace

    with pinned(Coins(5)):
        result, view, trace = run(main())
        return result, view, _content(trace.inner, act)


def _content(backend: Any, act: object) -> object:
    for key in (KEY, bytes(32)):
        try:
            with oram.open(backend, key=key) as store:
                records = sorted(store.items()) if store.info()["keyed"] else store.blocks.read_many(range(8)).tolist()
                return key, records
        except oram.errors.WrongKeyError:
            pass
    raise AssertionError("the store does not open")


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("scheme", ["path", "linear"])
def test_keyed(name: str, scheme: str) -> None:
    plain, awaited = KEYED[name]
    assert _asynchronous(awaited, scheme=scheme) == _synchronous(plain, scheme=scheme)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    plain, awaited = BLOCKS[name]
    assert _asynchronous(awaited, keyed=False) == _synchronous(plain, keyed=False)


def test_other_backends(tmp_path: Any) -> None:
    """In a directory, from a backup, and what ``info`` says before and after."""

    async def main() -> None:
        store = await oram.aio.create(f"lmdb:{tmp_path / 'store'}", key=KEY, capacity=8, block_size=48)
        await store.update(START)
        await store.backup(tmp_path / "backup")
        with pytest.raises(oram.errors.StoreExistsError):
            await store.backup(tmp_path / "backup")
        with pytest.raises(oram.errors.StoreLockedError):
            await oram.aio.info(f"lmdb:{tmp_path / 'store'}")
        await store.close()
        assert (await oram.aio.info(f"lmdb:{tmp_path / 'store'}"))["keyed"] is True
        with pytest.raises(oram.errors.WrongKeyError):
            await oram.aio.open(f"lmdb:{tmp_path / 'store'}", key=bytes(32))
        async with oram.aio.open(tmp_path / "store", key=KEY) as store:
            assert {key: value async for key, value in store.items()} == START
        with pytest.raises(oram.errors.BackupError):
            await oram.aio.open(tmp_path / "backup", key=KEY)
        async with oram.aio.restore(tmp_path / "backup", tmp_path / "again", key=KEY) as store:
            assert {key: value async for key, value in store.items()} == START

    run(main())
    with oram.open(tmp_path / "again", key=KEY) as store:
        check(store, START)


def test_a_large_load_with_progress() -> None:
    async def main() -> None:
        done: list[int] = []
        loads = ((b"%d" % i, b"x") for i in range(3000))
        async with small(capacity=4000, items=loads, progress=lambda n: done.append(n)) as store:
            assert done == [1024, 2048, 3000], "told in the loop, before the store is there"
            done.clear()
            await store.load(((b"%d" % i, b"y") for i in range(2000)), progress=done.append)
            assert done[-1] == 2000
            assert len(store) == 3000

    run(main())


def test_progress_that_fails_is_the_loops_affair() -> None:
    async def main() -> None:
        heard: list[BaseException] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))
        async with small(items=START, progress=lambda n: {}[n]) as store:
            assert len(store) == len(START)
        assert [type(error) for error in heard] == [KeyError]

    run(main())


def test_what_is_given_is_taken_as_it_is() -> None:
    """The caller may go on with its buffers, lists and dicts, while the operation waits for its turn."""

    async def main() -> None:
        async with small() as store:
            first = asyncio.create_task(store.verify())
            keys, pairs = [b"p", b"k"], {b"p": bytearray(b"1")}
            key: Any = bytearray(b"k")
            value: Any = bytearray(b"v")
            given: Any = pairs
            tasks = [
                asyncio.create_task(act)
                for act in (
                    store.put(key, value),
                    store.put_many(given),
                    store.get_many(keys),
                    store.get_many(iter(keys)),
                )
            ]
            await asyncio.sleep(0)
            key[:], value[:] = b"x", b"y"
            pairs[b"p"][:] = b"2"
            pairs[b"q"] = bytearray(b"3")
            keys.clear()
            await first
            assert [await task for task in tasks] == [None, None, [b"1", b"v"], [b"1", b"v"]]
        async with small(keyed=False) as store:
            addresses, rows = np.array([1, 2]), np.ones((2, 48), np.uint8)
            task = asyncio.create_task(store.blocks.write_many(addresses, rows))
            await asyncio.sleep(0)
            addresses[:], rows[:] = 5, 7
            await task
            assert (await store.blocks.read_many([1, 2, 5])).sum() == 2 * 48

    run(main())


# --- the whole interface is there

RENAMED = {"__contains__": "contains", "__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__"}
LEFT_OUT = {
    "__setitem__",
    "__delitem__",
    "__eq__",
    "__hash__",
}  # those that cannot be awaited, and identity, which is inherited


def _methods(where: type) -> list[str]:
    return [
        name
        for name, value in vars(where).items()
        if (callable(value) or isinstance(value, property))
        and (not name.startswith("_") or (name.startswith("__") and name not in ("__init__", "__reduce_ex__")))
    ]


def _parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("plain", "awaited"), [(ObliviousStore, AsyncObliviousStore), (Blocks, AsyncBlocks)])
def test_every_method_is_there(plain: type, awaited: type) -> None:
    for name in _methods(plain):
        if name in LEFT_OUT:
            continue
        there = inspect.getattr_static(awaited, RENAMED.get(name, name))
        if not isinstance(there, property) and name not in ("pop", "__exit__"):
            assert _parameters(there) == _parameters(inspect.getattr_static(plain, name)), name
    assert set(_methods(awaited)) <= {RENAMED.get(name, name) for name in _methods(plain)}


@pytest.mark.parametrize("name", ["create", "open", "restore", "info"])
def test_every_function_is_there(name: str) -> None:
    assert _parameters(getattr(oram.aio, name)) == _parameters(getattr(oram, name))
    assert getattr(oram.aio, name).__name__ == name


@pytest.mark.parametrize("where", [oram.aio, AsyncObliviousStore, AsyncBlocks])
def test_docstrings_say_cost_and_leaks(where: Any) -> None:
    names = ["create", "open", "restore", "info"] if inspect.ismodule(where) else _methods(where)
    for name in names:
        text = inspect.getattr_static(where, name).__doc__ or ""
        assert (re.search("[Cc]ost", text) and re.search("[Ll]eaks", text)) or text.startswith("The same as"), name


def test_syntax_that_cannot_wait_is_refused() -> None:
    async def main() -> None:
        async with small() as store:
            anything: Any = store
            for act in (
                lambda: b"a" in anything,
                lambda: list(anything),
                lambda: dict(anything),
                lambda: anything.__setitem__(b"a", b"1"),
            ):
                with pytest.raises((TypeError, AttributeError)):
                    act()
            assert store == store
            assert len({store, store}) == 1

    run(main())


# --- any sequence of operations

_KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
_VALUES = st.binary(max_size=4)
_STEP = st.one_of(
    st.tuples(st.just("get"), _KEYS),
    st.tuples(st.just("put"), _KEYS, _VALUES),
    st.tuples(st.just("pop"), _KEYS, st.none()),
    st.tuples(st.just("setdefault"), _KEYS, _VALUES),
    st.tuples(st.just("delete"), _KEYS),
    st.tuples(st.just("get_many"), st.lists(_KEYS, max_size=4)),
    st.tuples(st.just("put_many"), st.dictionaries(_KEYS, _VALUES, max_size=4)),
    st.tuples(st.just("delete_many"), st.lists(_KEYS, max_size=4)),
    st.tuples(st.just("clear")),
)


@settings(max_examples=25)
@given(steps=st.lists(_STEP, max_size=12), scheme=st.sampled_from(["path", "linear", "ring"]), data=st.data())
def test_any_sequence(steps: list[Any], scheme: str, data: st.DataObject) -> None:
    """Begun all at once, any of them cancelled at any time: results, content and view are those of the synchronous store, one after the other."""
    cancelled = data.draw(st.sets(st.integers(0, max(0, len(steps) - 1))), "cancelled")
    turns = data.draw(st.integers(1, 4), "turns of the loop before")

    def plainly(store: ObliviousStore) -> list[object]:
        results: list[object] = []
        for name, *args in steps:
            try:
                results.append(getattr(store, name)(*args))
            except Exception as error:
                results.append(_outcome(error))
        store.flush()
        return results

    async def together(store: AsyncObliviousStore) -> list[object]:
        tasks = [asyncio.ensure_future(getattr(store, name)(*args)) for name, *args in steps]
        for _ in range(turns):
            await asyncio.sleep(0)
        dropped = {i for i in cancelled if i < len(tasks) and tasks[i].cancel()}
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await store.flush()
        for i, result in enumerate(results):
            assert isinstance(result, asyncio.CancelledError) == (i in dropped)
        return [_outcome(r) if isinstance(r, Exception) else r for r in results]

    expected, view, content = _synchronous(plainly, scheme=scheme)
    found, viewed, left = _asynchronous(together, scheme=scheme)
    assert (viewed, left) == (view, content)
    assert isinstance(found, list)
    assert isinstance(expected, list)
    assert all(isinstance(f, asyncio.CancelledError) or f == e for f, e in zip(found, expected, strict=True))


def test_a_store_without_keys_says_so() -> None:
    async def main() -> None:
        async with small(keyed=False) as store:
            with pytest.raises(ParameterError):
                await store.get(b"a")
            with pytest.raises(ParameterError):
                len(store)

    run(main())
