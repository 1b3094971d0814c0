"""Order, cancellation at every instant, scans that nobody waits for, and a loop that never waits itself."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import oram
import oram.aio
from oram.aio import AsyncObliviousStore
from oram.backends import MemoryBackend
from oram.errors import MissingKeyError, StoreLockedError
from oram.testing.faults import FaultBackend
from oram.testing.model import check
from oram.testing.randomness import Coins, pinned
from oram.trace import TraceBackend

from .places import KEY, SMALL, START, Held, held, run, seen, small

# --- order


def test_a_thousand_tasks() -> None:
    """In the order in which they were begun: each finds what those before it have left."""

    async def main() -> None:
        async with small(capacity=24, durability="none") as store:
            rng = random.Random(5)
            model: dict[bytes, bytes] = {}
            expected: list[object] = []
            tasks: list[asyncio.Task[object]] = []
            for i in range(1000):
                key, value = b"%d" % rng.randrange(20), b"%d" % i
                act: Any
                result: object
                match rng.randrange(4):
                    case 0:
                        model[key] = value
                        act, result = store.put(key, value), None
                    case 1:
                        act, result = store.get(key), model.get(key)
                    case 2:
                        act, result = store.pop(key, None), model.pop(key, None)
                    case _:
                        act, result = store.contains(key), key in model
                expected.append(result)
                tasks.append(asyncio.create_task(act))
            assert await asyncio.gather(*tasks) == expected
            assert {key: value async for key, value in store.items()} == model
            assert len(store) == len(model)

    run(main())


def test_several_stores_in_one_loop() -> None:
    """Each has a thread of its own: one that stands still keeps nobody else waiting."""

    async def main() -> None:
        backend, faults, _ = held()
        async with small(backend) as still, small() as one, small() as other:
            faults.hold()
            task = asyncio.create_task(still.put(b"a", b"1"))
            await faults.there()
            await asyncio.gather(*(store.put(b"%d" % i, b"x") for i in range(5) for store in (one, other)))
            assert len(one) == len(other) == 5
            assert not task.done()
            faults.go()
            await task
            assert await still.get(b"a") == b"1"

    run(main())


def test_the_loop_never_waits() -> None:
    """While an access stands still, everything that does not await answers at once, and everything that does lets the loop go on."""

    async def main() -> None:
        backend, faults, _ = held()
        async with small(backend) as store:
            await store.put(b"a", b"1")
            faults.hold()
            first = asyncio.create_task(store.put(b"b", b"2"))
            await faults.there()
            rest: list[Any] = [store.get(b"a"), store.contains(b"b"), store.stats(), store.verify(), store.close()]
            tasks: list[asyncio.Task[Any]] = [first, *map(asyncio.create_task, rest)]
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(store.blocks) == store.capacity == 8
            assert repr(store)
            assert store.info()
            assert store
            assert not any(task.done() for task in tasks)
            faults.go()
            _, value, there, stats, live, _ = await asyncio.gather(*tasks)
            assert (value, there, stats.records, live) == (b"1", True, 2, 2)

    run(main())


def test_len_counts_what_is_done() -> None:
    async def main() -> None:
        backend, faults, _ = held()
        async with small(backend) as store:
            await store.put(b"a", b"1")
            faults.hold()
            task = asyncio.create_task(store.put(b"b", b"2"))
            await faults.there()
            assert len(store) == 1
            faults.go()
            await task
            assert len(store) == 2

    run(main())


def test_nobody_is_busy() -> None:
    """A store that waits, and a caller that waits, need no time of the processor."""

    async def main() -> None:
        backend, faults, _ = held()
        async with small(backend) as store:
            faults.hold()
            task = asyncio.create_task(store.put(b"b", b"2"))
            await faults.there()
            before, turns = time.process_time(), asyncio.get_running_loop().time()
            await asyncio.sleep(0.2)
            assert time.process_time() - before < 0.1
            assert asyncio.get_running_loop().time() - turns >= 0.2
            faults.go()
            await task

    run(main())


def test_the_context_comes_along() -> None:
    """As with asyncio.to_thread: a backend that traces sees who asked."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")

    async def main() -> None:
        async with small() as store:
            await store.put(b"a", b"1")
            who.set("me")
            heard: list[tuple[str, bool]] = []
            here = threading.get_ident()
            await store.scan(lambda *_: heard.append((who.get(), threading.get_ident() == here)))
            assert heard == [("me", False)]

    run(main())


# --- cancellation

ACTS: dict[str, tuple[Callable[[Any], Any], dict[bytes, bytes]]] = {
    "get": (lambda s: s.get(b"a"), START),
    "a miss": (lambda s: s.delete(b"no"), START),
    "put": (lambda s: s.put(b"a", b"2"), {**START, b"a": b"2"}),
    "put new": (lambda s: s.put(b"new", b"2"), {**START, b"new": b"2"}),
    "delete": (lambda s: s.delete(b"a"), {k: v for k, v in START.items() if k != b"a"}),
    "put_many": (lambda s: s.put_many({b"a": b"2", b"new": b"3"}), {**START, b"a": b"2", b"new": b"3"}),
    "load": (lambda s: s.load({b"new": b"2"}), {**START, b"new": b"2"}),
    "clear": (lambda s: s.clear(), {}),
    "verify": (lambda s: s.verify(), START),
}


def _plain(acts: list[Callable[[Any], Any]], *, remote: bool = False) -> tuple[Any, list[str]]:
    """What the server sees of these acts on the synchronous store, and the steps."""
    backend, faults, trace = held(remote=remote)
    with pinned(Coins(7)):
        store = oram.create(backend, **SMALL)
        store.update(START)
        trace.clear()
        faults.arm(None)
        for act in acts:
            with contextlib.suppress(MissingKeyError):
                act(store)
        steps = list(faults.steps)
        store.close()
    return seen(trace), steps


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("remote", [False, True])
def test_cancelled_at_every_step(name: str, remote: bool) -> None:
    """An operation is cancelled while it runs, the next one before it runs: both take place, and the server sees no difference."""
    act, content = ACTS[name]
    view, steps = _plain([act, lambda s: s.put(b"last", b"x"), lambda s: s.get(b"a")], remote=remote)
    alone = _plain([act], remote=remote)[1]

    async def main(at: int) -> None:
        backend, faults, trace = held(remote=remote)
        with pinned(Coins(7)):
            async with small(backend) as store:
                await store.update(START)
                trace.clear()
                faults.hold(at)
                first, second = asyncio.create_task(act(store)), asyncio.create_task(store.put(b"last", b"x"))
                await faults.there()
                for task in (second, first):
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                last = asyncio.create_task(store.get(b"a"))
                await asyncio.sleep(0)
                faults.go()
                assert await last == content.get(b"a")
                assert len(store) == len(content) + 1
            check_view = seen(trace)
        assert faults.steps[: len(steps)] == steps
        assert check_view == view
        with oram.open(backend, key=KEY) as again:
            check(again, {**content, b"last": b"x"})

    assert alone
    for at in range(len(alone)):
        run(main(at))


def test_cancelled_before_it_is_begun() -> None:
    """A coroutine that never ran has asked for nothing."""

    async def main() -> None:
        trace = TraceBackend(MemoryBackend())
        async with small(trace) as store:
            trace.clear()
            task = asyncio.create_task(store.put(b"a", b"1"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await store.contains(b"a") is False
            assert seen(trace) == ([], [])

    run(main())


def test_cancelled_at_any_time() -> None:
    """Against the clock: whatever was cut off, what is there is what was begun, and the store is sound."""

    async def main() -> None:
        backend = MemoryBackend()
        rng = random.Random(1)
        async with small(backend) as store:
            model: dict[bytes, bytes] = {}
            for i in range(150):
                key, value = b"%d" % rng.randrange(8), b"%d" % i
                try:
                    async with asyncio.timeout(rng.random() * 0.001):
                        model[key] = value  # begun at once
                        await store.put(key, value)
                except TimeoutError:
                    pass
            assert {key: value async for key, value in store.items()} == model
        with oram.open(backend, key=KEY) as again:
            check(again, model, by_access=True)

    run(main())


def test_a_miss_that_cancels_the_rest_shows_nothing() -> None:
    """A task group ends its tasks at the first miss. The server sees all their accesses, wherever the miss was."""
    keys = [b"a", b"b", b"", b"\0"]

    async def look(trace: TraceBackend, keys: list[bytes]) -> Any:
        async with small(trace) as store:
            await store.update(START)
            trace.clear()
            try:
                async with asyncio.TaskGroup() as group:
                    for key in keys:
                        group.create_task(store[key])
            except* MissingKeyError:
                pass
            await store.flush()
            return seen(trace)

    views = []
    for miss in (None, 0, 1, 2, 3):
        with pinned(Coins(7)):
            asked = [b"no" if i == miss else key for i, key in enumerate(keys)]
            views.append(run(look(TraceBackend(MemoryBackend()), asked)))
    shapes = [([(e.op, e.region, e.trip) for e in events], commits) for events, commits in views]
    assert all(shape == shapes[0] for shape in shapes)
    assert sum(op == "read" for op, *_ in shapes[0][0]) == len(keys)


# --- scans


async def _stopped(items: Any) -> None:
    async for _ in items:
        break


async def _cancelled(items: Any) -> None:
    task = asyncio.create_task(_stopped(items))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _failed(items: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async for _ in items:
            raise ZeroDivisionError


async def _closed(items: Any) -> None:
    await anext(items)
    await items.aclose()


async def _to_the_end(items: Any) -> None:
    async for _ in items:
        await asyncio.sleep(0)


@pytest.mark.parametrize("ends", [_stopped, _cancelled, _failed, _closed])
@pytest.mark.parametrize("which", ["items", "keys", "values", "__aiter__"])
@pytest.mark.parametrize("scheme", ["path", "linear", "ring"])
def test_a_scan_runs_to_its_end(ends: Callable[[Any], Awaitable[None]], which: str, scheme: str) -> None:
    async def main(ends: Callable[[Any], Awaitable[None]]) -> Any:
        trace = TraceBackend(MemoryBackend())
        with pinned(Coins(7)):
            async with small(trace, scheme=scheme) as store:
                await store.update(START)
                trace.clear()
                await ends(getattr(store, which)())
                await store.get(b"a")
                return seen(trace)

    assert run(main(ends)) == run(main(_to_the_end))


def test_a_scan_is_cancelled_at_each_read() -> None:
    """In the middle, for real."""
    view, steps = _plain([lambda s: s.verify()])

    async def main(at: int) -> Any:
        backend, faults, trace = held()
        with pinned(Coins(7)):
            async with small(backend) as store:
                await store.update(START)
                trace.clear()
                faults.hold(at)
                task = asyncio.create_task(_stopped(store.items()))
                await faults.there()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                faults.go()
                await store.contains(b"a")
                return seen(trace)

    assert "read" in steps
    for at in range(len(steps)):
        assert run(main(at)) == view


def test_the_store_can_be_used_while_its_records_are_gone_through() -> None:
    async def main() -> None:
        async with small() as store:
            await store.update(START)
            async for key in store:
                await store.put(key, b"new")
                if key == b"a":
                    await store.delete(key)
            assert {value async for value in store.values()} == {b"new"}

    run(main())


def test_a_scan_with_a_visitor() -> None:
    async def main() -> None:
        async with small() as store:
            await store.update(START)
            found: dict[bytes, bytes] = {}
            await store.scan(found.__setitem__)
            assert found == START

            def stop(key: bytes, value: bytes) -> None:
                raise StopIteration

            with pytest.raises(RuntimeError) as caught:  # which no coroutine raises
                await store.scan(stop)
            assert isinstance(caught.value.__cause__, StopIteration)
            assert await store.get(b"a") == b"1"

    run(main())


# --- opening


@pytest.mark.parametrize("how", ["create", "open", "restore"])
@pytest.mark.parametrize("as_context", [False, True])
def test_cancelled_while_it_opens(how: str, as_context: bool, tmp_path: Any) -> None:
    """The store is made all the same, and let go: nobody's lock stays behind."""

    async def main() -> None:
        inner = MemoryBackend()
        if how == "open":
            async with small(inner) as store:
                await store.update(START)
        if how == "restore":
            async with small() as store:
                await store.update(START)
                await store.backup(tmp_path / "backup")
        faults = Held()
        backend = FaultBackend(inner, faults)
        faults.hold()
        opening = {
            "create": lambda: oram.aio.create(backend, **SMALL, items=START),
            "open": lambda: oram.aio.open(backend, key=KEY),
            "restore": lambda: oram.aio.restore(tmp_path / "backup", backend, key=KEY),
        }[how]()

        async def within() -> None:
            async with opening:
                raise AssertionError("it was cancelled before")

        task = asyncio.create_task(within() if as_context else opening)
        await faults.there()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(StoreLockedError):
            await oram.aio.open(inner, key=KEY)
        faults.go()
        while True:
            try:
                async with oram.aio.open(inner, key=KEY) as store:
                    assert {key: value async for key, value in store.items()} == START
                return
            except StoreLockedError:
                await asyncio.sleep(0.001)

    run(main())


def test_cancelled_when_it_was_open_already() -> None:
    """Between the thread's answer and the task that waits for it."""

    async def main() -> None:
        backend = MemoryBackend()
        faults = Held()
        opening = asyncio.create_task(small(FaultBackend(backend, faults)))
        await asyncio.sleep(0)
        time.sleep(0.2)
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        for _ in range(1000):
            try:
                await (await oram.aio.open(backend, key=KEY)).close()
                return
            except StoreLockedError:
                await asyncio.sleep(0.001)
        raise AssertionError("the store was never let go")

    run(main())


def test_opening_as_a_task_in_a_group_and_twice() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[AsyncObliviousStore]] = [group.create_task(small()) for _ in range(3)]
        stores = [await task for task in tasks] + list(await asyncio.gather(small(), small()))
        stores.append(await asyncio.wait_for(small(), 10))
        await asyncio.gather(*(store.close() for store in stores))
        opening = small()
        await (await opening).close()
        with pytest.raises(RuntimeError, match="already awaited"):
            await opening

    run(main())
