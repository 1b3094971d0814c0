"""A handle: closed, in another loop, in another process, interrupted, failed; and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import oram
import oram.aio
from oram.aio import AsyncObliviousStore
from oram.backends import MemoryBackend
from oram.errors import (
    BackendError,
    HandleError,
    IntegrityError,
    MissingKeyError,
    PoisonedError,
    StoreClosedError,
    ValueTooLargeError,
    WrongKeyError,
)
from oram.testing.model import check

from .places import KEY, START, held, run, small

USES: dict[str, Callable[[AsyncObliviousStore], Any]] = {
    "[]": lambda s: s[b"a"],
    "get": lambda s: s.get(b"a"),
    "put": lambda s: s.put(b"a", b"2"),
    "delete": lambda s: s.delete(b"a"),
    "pop": lambda s: s.pop(b"a", None),
    "popitem": lambda s: s.popitem(),
    "setdefault": lambda s: s.setdefault(b"a", b"2"),
    "get_many": lambda s: s.get_many([b"a"]),
    "put_many": lambda s: s.put_many({b"a": b"2"}),
    "delete_many": lambda s: s.delete_many([b"a"]),
    "update": lambda s: s.update({b"a": b"2"}),
    "contains": lambda s: s.contains(b"a"),
    "items": lambda s: anext(aiter(s.items())),
    "keys": lambda s: anext(aiter(s)),
    "values": lambda s: anext(aiter(s.values())),
    "scan": lambda s: s.scan(lambda *_: None),
    "clear": lambda s: s.clear(),
    "load": lambda s: s.load({b"a": b"2"}),
    "rekey": lambda s: s.rekey(key=KEY),
    "stats": lambda s: s.stats(),
    "verify": lambda s: s.verify(),
    "flush": lambda s: s.flush(),
    "backup": lambda s: s.backup("/nowhere/at/all"),
    "block read": lambda s: s.blocks.read(0),
    "block write": lambda s: s.blocks.write(0, b""),
    "block read_many": lambda s: s.blocks.read_many([0]),
    "block write_many": lambda s: s.blocks.write_many([0], [b""]),
}


@pytest.fixture(autouse=True)
def _no_noise(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged, by asyncio or by concurrent.futures, and no thread stays behind."""
    caplog.set_level(logging.WARNING)
    yield
    gc.collect()
    assert caplog.records == []
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("oram") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not any(thread.name.startswith("oram") for thread in threading.enumerate())


@pytest.mark.parametrize("durability", ["process", "none"])
def test_after_close(durability: str) -> None:
    async def main() -> None:
        backend = MemoryBackend()
        store = await small(backend, durability=durability)
        await store.put(b"a", b"1")
        await store.close()
        await store.close()
        for use in USES.values():
            with pytest.raises(StoreClosedError):
                await use(store)
        with pytest.raises(StoreClosedError):
            len(store)
        with oram.open(backend, key=KEY, durability=durability) as again:
            check(again, {b"a": b"1"})

    run(main())


def test_close_finishes_what_was_begun() -> None:
    """In its turn: what was begun before takes place, what comes after is refused."""

    async def main() -> None:
        backend, faults, _ = held()
        store = await small(backend)
        faults.hold()
        begun = [asyncio.create_task(store.put(b"%d" % i, b"x")) for i in range(5)]
        await faults.there()
        closing = [asyncio.create_task(store.close()) for _ in range(3)]
        begun[3].cancel()
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in closing)
        with pytest.raises(StoreClosedError):
            await store.get(b"0")
        with pytest.raises(StoreClosedError):
            len(store)
        faults.go()
        await asyncio.gather(*closing)
        assert [task.cancelled() for task in begun] == [False, False, False, True, False]
        with oram.open(backend, key=KEY) as again:
            check(again, {b"%d" % i: b"x" for i in range(5)})

    run(main())


def test_a_cancelled_close_goes_on() -> None:
    async def main() -> None:
        backend, faults, _ = held()
        store = await small(backend, durability="none")
        await store.put(b"a", b"1")
        faults.hold()
        closing = asyncio.create_task(store.close())
        await faults.there()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        faults.go()
        await store.close()
        with oram.open(backend, key=KEY) as again:
            check(again, {b"a": b"1"})

    run(main())


def test_an_error_of_close_is_for_the_first() -> None:
    async def main() -> None:
        backend, faults, _ = held()
        store = await small(backend, durability="none")
        await store.put(b"a", b"1")
        faults.arm(0, lambda: BackendError("broken"))
        with pytest.raises(BackendError, match="broken"):
            await store.close()
        await store.close()

    run(main())


def test_errors_in_an_async_with_close_the_store() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        with pytest.raises(MissingKeyError):
            async with small(backend) as store:
                await store[b"no"]
        with pytest.raises(ZeroDivisionError):
            async with await oram.aio.open(backend, key=KEY) as store:
                raise ZeroDivisionError
        oram.open(backend, key=KEY).close()

    run(main())


# --- other loops, threads and processes


def test_another_loop() -> None:
    backend = MemoryBackend()

    async def begin() -> AsyncObliviousStore:
        store = await small(backend)
        await store.put(b"a", b"1")
        return store

    store = run(begin())

    async def use() -> None:
        for use in USES.values():
            with pytest.raises(HandleError):
                await use(store)
        assert len(store) == 1  # which needs no loop

    run(use())
    run(store.close())
    run(store.close())
    with oram.open(backend, key=KEY) as again:
        check(again, {b"a": b"1"})


def test_from_inside_a_visit() -> None:
    """From the store's own thread, which would wait for itself."""

    async def main() -> None:
        async with small() as store:
            await store.put(b"a", b"1")
            with pytest.raises(HandleError):
                await store.scan(lambda key, _: asyncio.run(store.delete(key)))
            assert await store.get(b"a") == b"1"

    run(main())


def test_without_a_loop() -> None:
    for use in (small(), run(small()).get(b"a")):
        with pytest.raises(RuntimeError, match="no running event loop"):
            use.send(None)
    gc.collect()


def test_after_a_fork(tmp_path: Any) -> None:
    """In a program of its own, because a test runner has threads, which do not survive a fork."""
    program = """
import asyncio, os, sys, warnings
import oram.aio
from oram.errors import ForkedStoreError, StoreLockedError
warnings.simplefilter("ignore")  # that there are threads

async def refused(store):
    for act in (store.get(b"a"), store.put(b"a", b"2"), store.contains(b"a"), store.stats(), store.flush(), anext(store.items()), store.blocks.read(0)):
        try:
            await act
        except ForkedStoreError:
            continue
        os._exit(1)
    try:
        len(store)
    except ForkedStoreError:
        await store.close()
        async with store:
            pass
        return
    os._exit(2)

async def main():
    where = "lmdb:" + sys.argv[1]
    async with oram.aio.create(where, key=bytes(32), capacity=8, block_size=48) as store:
        await store.put(b"a", b"1")
        running = asyncio.create_task(store.verify())
        await asyncio.sleep(0)
        if (pid := os.fork()) == 0:
            asyncio._set_running_loop(None)
            asyncio.set_event_loop(None)
            asyncio.run(refused(store))
            sys.stdout.flush()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        await running
        assert await store.get(b"a") == b"1"
        try:
            await oram.aio.open(where, key=bytes(32))
        except StoreLockedError:
            return
        raise AssertionError("the child's close gave the parent's store away")

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], check=True, timeout=60)


@pytest.mark.parametrize("how", ["interrupted", "forgotten"])
def test_the_end_of_a_program(tmp_path: Any, how: str) -> None:
    """Ctrl-C, and a store that nobody closed: the program ends by itself, and no acknowledged write is lost."""
    program = """
import asyncio, itertools, signal, sys
import oram.aio

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored

async def main():
    store = await oram.aio.create("lmdb:" + sys.argv[1], key=bytes(32), capacity=8, block_size=48, durability="process")
    if sys.argv[2] == "forgotten":
        await store.put(b"a", b"0")
        return asyncio.create_task(store.put(b"b", b"0"))
    async with store:
        for i in itertools.count():
            await store.put(b"a", b"%d" % i)
            print(i, flush=True)

asyncio.run(main())
"""
    command = [sys.executable, "-c", program, str(tmp_path / "store"), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        last = -1
        if how == "interrupted":
            for _ in range(20):
                last = int(child.stdout.readline())
            child.send_signal(signal.SIGINT)
            for line in child.stdout:
                last = int(line)
        complaint = child.stderr.read()
        assert child.wait(30) == (-signal.SIGINT if how == "interrupted" else 0)
        assert not any(noise in complaint for noise in ("never", "ignored", "Warning", "OramError"))
        assert ("KeyboardInterrupt" in complaint) == (how == "interrupted")
    with oram.open(tmp_path / "store", key=bytes(32)) as store:
        assert int(store[b"a"]) in ((last, last + 1) if how == "interrupted" else (0,))


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("part", ["store", "blocks"])
def test_no_copies(act: Callable[[Any], object], part: str) -> None:
    async def main() -> None:
        async with small() as store:
            with pytest.raises(HandleError):
                act(store if part == "store" else store.blocks)

    run(main())


# --- failures


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("durability", ["process", "none"])
def test_interrupts(kind: type[BaseException], durability: str) -> None:
    """In the loop's thread, while an access runs: the access is finished, and the store goes on or closes."""
    backend, faults, _ = held()
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        store: AsyncObliviousStore = loop.run_until_complete(small(backend, durability=durability))

        def interrupt() -> None:
            raise kind

        async def until_interrupted() -> None:
            await faults.there()
            loop.call_soon(interrupt)
            await asyncio.sleep(0)
            raise AssertionError("the loop goes on")

        faults.hold()
        put, watch = loop.create_task(store.put(b"a", b"1")), loop.create_task(until_interrupted())
        with pytest.raises(kind):
            loop.run_until_complete(put)
        watch.cancel()
        faults.go()
        loop.run_until_complete(asyncio.wait([put, watch]))
        assert loop.run_until_complete(store.get(b"a")) == b"1"
        loop.run_until_complete(store.put(b"b", b"2"))
        loop.run_until_complete(store.close())
    with oram.open(backend, key=KEY) as again:
        check(again, {b"a": b"1", b"b": b"2"})


@pytest.mark.parametrize("error", [BackendError("broken"), OSError(5, "broken"), TimeoutError("slow"), SystemExit(3)])
def test_failed_accesses(error: BaseException) -> None:
    """The very error comes, then StoreClosedError; opened again, the store is whole."""

    async def main() -> None:
        backend, faults, _ = held()
        async with small(backend) as store:
            await store.update(START)
            faults.arm(1, lambda: error)
            acts = [store.put(b"a", b"2"), store.get(b"a"), store.get(b"b")]
            tasks = [asyncio.ensure_future(_caught(act)) for act in acts]
            first, second, third = await asyncio.gather(*tasks)
            assert first is error
            assert isinstance(second, StoreClosedError)
            assert isinstance(third, StoreClosedError)
            with pytest.raises(StoreClosedError):
                len(store)
        faults.arm(None)
        async with oram.aio.open(backend, key=KEY) as store:
            assert await store.get(b"b") == b""

    async def _caught(act: Any) -> BaseException | None:
        try:
            await act
        except BaseException as error:
            return error
        return None

    run(main())


def test_changed_data() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        async with small(backend, scheme="linear") as store:
            await store.update(START)
            region = next(name for name in backend.regions() if name.startswith("slots"))
            backend.buffer(region).data[:] ^= 1
            with pytest.raises(IntegrityError):
                await store.get(b"a")
            with pytest.raises(PoisonedError):
                await store.get(b"a")

    run(main())


def test_a_failed_access_that_nobody_waits_for() -> None:
    """Its error is dropped with it; the store's state says it to the next one."""

    async def main() -> None:
        backend, faults, _ = held()
        async with small(backend) as store:
            faults.hold()
            tasks = [asyncio.create_task(store.delete(b"no")), asyncio.create_task(store.put(b"a", b"1"))]
            await faults.there()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            faults.go()
            assert await store.get(b"a") == b"1"
            faults.hold(1)
            task = asyncio.create_task(store.put(b"a", b"2"))
            await faults.there()
            faults.arm(0, lambda: BackendError("broken"))
            task.cancel()
            await asyncio.wait([task])
            faults.go()
            with pytest.raises(StoreClosedError):
                await store.get(b"a")

    run(main())


def test_a_loop_that_goes_before_the_answer_comes() -> None:
    backend, faults, _ = held()

    async def main() -> AsyncObliviousStore:
        store = await small(backend)
        faults.hold()
        task = asyncio.create_task(store.put(b"a", b"1"))
        await faults.there()
        assert not task.done()
        return store

    store = run(main())
    faults.go()
    run(store.close())
    with oram.open(backend, key=KEY) as again:
        check(again, {b"a": b"1"})


# --- what is left behind


@pytest.mark.parametrize("how", ["a miss", "too large", "a wrong key", "a failed open", "in a task"])
def test_errors_are_not_kept(how: str) -> None:
    """No reference to an error, or to what its traceback holds, outlives it; no cycle that a collector must find."""

    class Thing:
        """Something in the caller's frame."""

    async def fails(store: AsyncObliviousStore) -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        match how:
            case "a miss":
                await store[b"no"]
            case "too large":
                await store.put(b"a", bytes(100))
            case "a wrong key":
                await oram.aio.open(closed, key=bytes(32))
            case "a failed open":
                await small(closed)
            case "in a task":
                await asyncio.create_task(store.delete(b"no"))

    async def main() -> None:
        async with small(closed):
            pass
        async with small() as store:
            await store.verify()
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    try:
                        await fails(store)
                    except (oram.OramError, MissingKeyError) as error:
                        errors.append(weakref.ref(error))
                await store.verify()  # the thread has let go of the last one
                await asyncio.sleep(0.02)
                assert [ref() for ref in errors] == [None] * 3
                assert [ref() for ref in things] == [None] * 3
            finally:
                gc.enable()

    closed = MemoryBackend()
    errors: list[weakref.ref[BaseException]] = []
    things: list[weakref.ref[Thing]] = []
    run(main())


def test_a_dropped_store_ends_its_thread() -> None:
    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            store = await small()
            await store.put(b"a", b"1")
            ref = weakref.ref(store)
            del store
            await asyncio.sleep(0)
            assert ref() is None
        finally:
            gc.enable()

    run(main())


def test_results_are_not_kept() -> None:
    class Default:
        """What a miss gives."""

    async def main() -> None:
        async with small() as store:
            default = Default()
            ref = weakref.ref(default)
            assert await store.get(b"no", default) is default
            del default
            await store.verify()
            await asyncio.sleep(0.01)
            assert ref() is None

    run(main())


def test_what_is_never_awaited_never_happens() -> None:
    async def main() -> None:
        async with small() as store:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                store.put(b"a", b"1")  # type: ignore[unused-coroutine]
                small()
                gc.collect()
            assert [str(w.message) for w in heard if "never awaited" in str(w.message)] != []
            assert await store.contains(b"a") is False

    run(main())


def test_debug_mode() -> None:
    """Slow callbacks are reported there, and calls from wrong threads."""

    async def main() -> None:
        async with asyncio.timeout(30), small() as store:
            await asyncio.gather(*(store.put(b"%d" % i, b"x") for i in range(8)))
            with pytest.raises(ValueTooLargeError):
                await store.put(b"a", bytes(100))

    asyncio.run(main(), debug=True)


def test_wrong_keys() -> None:
    async def main() -> None:
        backend = MemoryBackend()
        async with small(backend, key=bytearray(KEY)):
            pass
        with pytest.raises(WrongKeyError):
            await oram.aio.open(backend, key=bytes(32))
        with pytest.raises(WrongKeyError):
            async with oram.aio.open(backend, passphrase="guess"):
                raise AssertionError("it does not open")
        with pytest.raises(TypeError):
            await oram.aio.open()  # type: ignore[call-arg]
        async with oram.aio.open(backend, key=KEY):
            pass

    run(main())


def test_shards(tmp_path: Path) -> None:
    async def work() -> None:
        backends = [MemoryBackend() for _ in range(3)]
        options: dict[str, Any] = {"key": KEY, "state": tmp_path / "state"}
        async with oram.aio.create(backends, capacity=30, block_size=64, durability="process", **options) as store:
            await asyncio.gather(*(store.put(b"%d" % i, b"x") for i in range(9)))
            assert store.info()["shards"] == 3
        async with oram.aio.open(backends, durability="process", **options) as store:
            assert await store.get_many([b"3", b"99"]) == [b"x", None]

    run(work())
