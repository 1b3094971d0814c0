"""The asyncio facade: the same store behind awaitable methods, its accesses in a thread of its own.

>>> import asyncio, oram, oram.aio
>>> async def main():
...     async with oram.aio.create("memory:", key=oram.generate_key(), capacity=1000, block_size=256) as store:
...         await store.put(b"name", b"value")
...         return await store.get(b"name")
>>> asyncio.run(main())
b'value'

Every method is the one of ``oram.ObliviousStore`` and makes its accesses, hit or miss, error or not. Three rules go for all of them:

* **In order.** Operations run one after the other, in the order in which they were begun; ``asyncio.gather`` and tasks begin them in the order they are given.
* **Begun is done.** An operation is begun when its coroutine first runs. From then on it takes place, also while it waits for its turn: cancelling it
  stops the waiting and drops the result or the error, and nothing else, so that no access is torn, and none is missing. Otherwise a task group that
  cancels the rest after a miss would show the server where the miss was.
* **As it was.** Buffers, lists, dicts and iterables of a batch are copied when it begins. ``items`` of ``create`` and ``load`` are read in the store's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, Self, TypeAlias, TypeVar, overload

import numpy as np

from oram import store as sync
from oram.errors import ForkedStoreError, HandleError, StoreClosedError
from oram.store import Blocks, ObliviousStore, Pairs, Progress, Stats
from oram.types import I64, U8

T = TypeVar("T")
P = ParamSpec("P")
_Outcome: TypeAlias = tuple[Any, BaseException | None]  # of a call: what it returned, or what it raised


class _Worker:
    """One thread, in which calls are made one after the other, in the order in which they were begun."""

    def __init__(self) -> None:
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        self._executor = ThreadPoolExecutor(1, "oram")
        self._ended: Future[None] | None = None

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that has the thread."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raise unless the thread is there."""
        if self.forked:
            raise ForkedStoreError("this store was opened before a fork; open it in one process only")
        if self._ended is not None:
            raise StoreClosedError("the store is closed")

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call and wait for what it gives."""
        self.check()
        if asyncio.get_running_loop() is not self._loop:
            raise HandleError("this store was opened in another event loop, and only its close works in this one")
        result: T = _result(await asyncio.wrap_future(self.begin(function, *args, **kwargs)))
        return result

    def begin(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Future[_Outcome]:
        """Ask for a call that takes place whether or not somebody waits."""
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        outcome: Future[_Outcome] = _promise()
        self._executor.submit(_settle, [call, outcome])
        return outcome

    def last(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Future[_Outcome]:
        """Ask for the call after which the thread ends."""
        outcome = self.begin(function, *args, **kwargs)
        self._ended = ended = _promise()
        outcome.add_done_callback(lambda _: ended.set_result(None))
        self._executor.shutdown(wait=False)
        return outcome

    async def end(self, function: Callable[[], None]) -> None:
        """Make the last call. Whoever ends the thread again waits for the same; the error of the call is for the first."""
        if self._ended is None:
            _result(await asyncio.wrap_future(self.last(function)))
        else:
            await asyncio.wrap_future(self._ended)


def _promise() -> Future[Any]:
    """A future that cannot be cancelled, because it counts as running."""
    promise: Future[Any] = Future()
    promise.set_running_or_notify_cancel()
    return promise


def _settle(begun: list[Any]) -> None:
    """Make a call, in the thread, and keep what came of it."""
    call, outcome = begun
    begun.clear()  # an error's traceback leads to this frame and to the executor's, which have the list: it must not lead to the error
    try:
        outcome.set_result((call(), None))
    except BaseException as error:  # as a result: futures copy, refuse or report some errors
        outcome.set_result((None, error))
    finally:
        del call, outcome


def _result(outcome: _Outcome) -> Any:
    """What a call gave, or its error, raised."""
    value, error = outcome
    if error is None:
        return value
    try:
        raise error
    finally:
        del outcome, error


def _let_go(outcome: Future[_Outcome]) -> None:
    """Close a store that nobody waited for."""
    store, _ = outcome.result()
    if store is not None:
        store.close()


def _nothing() -> None:
    """The end of a thread that has no store."""


def _own(value: Any) -> Any:
    """The same for good: a copy of what the caller may change while the operation waits for its turn."""
    match value:
        case bytearray() | memoryview():
            return bytes(value)
        case np.ndarray():
            return value.copy()
        case list():
            return [_own(each) for each in value]
        case tuple():
            return tuple(_own(each) for each in value)
        case dict():
            return {key: _own(each) for key, each in value.items()}
    return value


def _batch(items: Any) -> Any:
    """The keys or pairs of a batch as they are now. A mapping that is no dict is read in the thread: it may be a store."""
    return _own(items if isinstance(items, Mapping) or hasattr(items, "keys") else list(items))


def _in_loop(progress: Progress | None) -> Progress | None:
    """The same, called in the event loop, which may have gone."""
    if progress is None:
        return None
    loop = asyncio.get_running_loop()

    def tell(done: int) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(progress, done)

    return tell


# --- making and opening


class Opening(
    Coroutine[Any, Any, "AsyncObliviousStore"], contextlib.AbstractAsyncContextManager["AsyncObliviousStore"]
):
    """What ``create``, ``open`` and ``restore`` return: ``await`` it for the store, or use it in an ``async with``, which closes the store."""

    def __init__(self, opened: Coroutine[Any, Any, AsyncObliviousStore]) -> None:
        self._opened = opened

    def __await__(self) -> Generator[Any, Any, AsyncObliviousStore]:
        return self._opened.__await__()

    async def __aenter__(self) -> AsyncObliviousStore:
        self._store = await self._opened
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._store.close()

    # A coroutine too, so that asyncio.create_task takes it.

    def send(self, value: Any) -> Any:
        return self._opened.send(value)

    def throw(self, *args: Any) -> Any:
        return self._opened.throw(*args)

    def close(self) -> None:
        self._opened.close()


async def _opened(make: Callable[..., ObliviousStore], *args: Any, **kwargs: Any) -> AsyncObliviousStore:
    worker = _Worker()
    for name, taken in (("key", _own), ("progress", _in_loop)):
        if name in kwargs:
            kwargs[name] = taken(kwargs[name])
    outcome = worker.begin(make, *args, **kwargs)
    try:
        return AsyncObliviousStore(worker, _result(await asyncio.wrap_future(outcome)))
    except BaseException:
        worker.last(_let_go, outcome)
        raise
    finally:
        del outcome  # else an error in it would hold the frame that holds it


def _opening(make: Callable[P, ObliviousStore]) -> Callable[[Callable[[], None]], Callable[P, Opening]]:
    """A function of this module with the parameters of one of ``oram``."""

    def decorate(described: Callable[[], None]) -> Callable[P, Opening]:
        @functools.wraps(described)
        def begin(*args: P.args, **kwargs: P.kwargs) -> Opening:
            return Opening(_opened(make, *args, **kwargs))

        begin.__annotations__ = {**make.__annotations__, "return": "Opening"}
        begin.__signature__ = inspect.signature(make).replace(return_annotation="Opening")  # type: ignore[attr-defined]
        return begin

    return decorate


@_opening(sync.create)
def create() -> None:
    """Make a new store and open it, as ``oram.create`` does: the same parameters, errors, cost and leaks.

    where: a Backend is the store's thread's alone until the store is closed.
    items: read in the store's thread; leave it alone until the store is there.
    progress: called in the event loop; what it raises goes to the loop's exception handler, and the work goes on.

    If it is cancelled, the store is made, and closed again at once: until then its place is locked. Cost and leaks as ``oram.create``.
    """


@_opening(sync.open)
def open() -> None:
    """Open a store, as ``oram.open`` does: the same parameters, errors, cost and leaks.

    If it is cancelled, the store is opened, and closed again at once: until then its place is locked. Cost and leaks as ``oram.open``.
    """


@_opening(sync.restore)
def restore() -> None:
    """Make a new store from a backup and open it, as ``oram.restore`` does: the same parameters, errors, cost and leaks.

    If it is cancelled, the store is made, and closed again at once: until then its place is locked. Cost and leaks as ``oram.restore``.
    """


async def info(where: Any, *, state: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The public header of a store, **not authenticated**. Parameters, result, errors, cost and leaks as ``oram.info``."""
    worker = _Worker()
    try:
        return await worker.run(sync.info, where, state=state)
    finally:
        worker.last(_nothing)


# --- the store


class AsyncObliviousStore:
    """An ``oram.ObliviousStore`` for one event loop. Made by ``oram.aio.create``, ``open`` and ``restore``; close it, or use it in an ``async with``.

    Its accesses run in a thread of its own, one at a time, in the order in which they were begun. What was begun takes place: a cancelled
    operation is finished without its caller, whose next operation comes after it. The event loop never waits for an access.

    Errors are those of the synchronous store. Besides: HandleError in another event loop than that in which it was opened. ``close`` works in any.
    """

    def __init__(self, worker: _Worker, store: ObliviousStore) -> None:
        self._worker, self._store = worker, store
        self.blocks = AsyncBlocks(worker, store.blocks)

    # --- one record

    async def __getitem__(self, key: bytes) -> bytes:
        """``await store[key]``: the value of a key. MissingKeyError (a KeyError) after the access.

        Cost: one access, hit or miss. Leaks: nothing beyond the access.
        """
        return await self._worker.run(self._store.__getitem__, _own(key))

    @overload
    async def get(self, key: bytes) -> bytes | None: ...
    @overload
    async def get(self, key: bytes, default: bytes | T) -> bytes | T: ...
    async def get(self, key: bytes, default: Any = None) -> Any:
        """The value of a key, or ``default``. Cost: one access, hit or miss. Leaks: nothing beyond the access."""
        return await self._worker.run(self._store.get, _own(key), default)

    async def put(self, key: bytes, value: bytes) -> None:
        """Store a value. Acknowledged when it returns: see ``durability``.

        Raises KeyTypeError, KeyTooLargeError, ValueTooLargeError without an access; CapacityError after it.
        Cost: one access, new key or old. Leaks: nothing beyond the access.
        """
        await self._worker.run(self._store.put, _own(key), _own(value))

    async def delete(self, key: bytes) -> None:
        """Delete a key. MissingKeyError after the access. Cost: one access, hit or miss. Leaks: nothing beyond the access."""
        await self._worker.run(self._store.delete, _own(key))

    @overload
    async def pop(self, key: bytes, /) -> bytes: ...
    @overload
    async def pop(self, key: bytes, /, default: bytes | T) -> bytes | T: ...
    async def pop(self, key: bytes, /, *args: Any, **default: Any) -> Any:
        """Remove a key and return its value, or ``default``. Cost: one access, hit or miss. Leaks: nothing beyond the access."""
        return await self._worker.run(self._store.pop, _own(key), *args, **default)

    async def popitem(self) -> tuple[bytes, bytes]:
        """Remove some record and return it. MissingKeyError if there is none. Cost: one access. Leaks: nothing beyond the access."""
        return await self._worker.run(self._store.popitem)

    async def setdefault(self, key: bytes, default: bytes = b"") -> bytes:
        """The value of a key, which is stored first if it is missing. Cost: one access either way. Leaks: nothing beyond the access."""
        return await self._worker.run(self._store.setdefault, _own(key), _own(default))

    # --- many records

    async def get_many(self, keys: Iterable[bytes], *, size: int | None = None) -> list[bytes | None]:
        """Values in the order of ``keys``, None where missing.

        size: pad the batch to this many records (with dummies), so that the server does not learn how many were asked for.

        Cost: one batch of len(keys) or ``size`` records. Leaks: that number.
        """
        return await self._worker.run(self._store.get_many, _batch(keys), size=size)

    async def put_many(self, items: Pairs, *, size: int | None = None) -> None:
        """Store many records; later ones win. Up to ``max_batch`` of them are one atomic batch. Errors as ``oram.ObliviousStore.put_many``.

        size: as for ``get_many``.

        Cost: one batch of len(items) or ``size`` records. Leaks: that number.
        """
        await self._worker.run(self._store.put_many, _batch(items), size=size)

    async def delete_many(self, keys: Iterable[bytes], *, size: int | None = None) -> list[bool]:
        """Delete many keys; whether each was there. Cost: one batch of len(keys) or ``size`` records. Leaks: that number.

        size: as for ``get_many``.
        """
        return await self._worker.run(self._store.delete_many, _batch(keys), size=size)

    async def update(self, other: Any = (), /, **more: bytes) -> None:
        """The same as ``put_many``. Keyword arguments are refused: keys are bytes."""
        await self._worker.run(self._store.update, _batch(other), **more)

    # --- without the server

    async def contains(self, key: object) -> bool:
        """Whether a key is there, once all that was begun before is done. ``in`` cannot wait, and is refused.

        Cost: no access, answered from client state. Leaks: nothing at all.
        """
        return await self._worker.run(self._store.__contains__, _own(key))

    __contains__: None = None
    __iter__: None = None

    def __len__(self) -> int:
        """Records in use, as far as operations are done: all that you have awaited, and maybe more. Never waits.

        Cost: no access, answered from client state. Leaks: nothing at all.
        """
        self._worker.check()
        self._store._engine.check()
        return len(self._store._directory())  # of integers: a lookup would not be safe here

    def __bool__(self) -> bool:
        """True: a handle is not its content. Cost: no access. Leaks: nothing."""
        return True

    # --- all records

    async def items(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """``async for key, value in store.items()``: all records, in no useful order.

        One scan before the first is returned, so that stopping early or being cancelled shows nothing, and the store can be used in the loop.
        For a dict: ``{key: value async for key, value in store.items()}``.

        Cost: every slot read once, in index order. Leaks: that a scan took place. Client memory: all records.
        """
        for pair in await self._worker.run(list, self._store.items()):
            yield pair

    async def keys(self) -> AsyncIterator[bytes]:
        """All keys. Cost and leaks as ``items``."""
        for key in await self._worker.run(list, self._store.keys()):
            yield key

    async def values(self) -> AsyncIterator[bytes]:
        """All values. Cost and leaks as ``items``."""
        for value in await self._worker.run(list, self._store.values()):
            yield value

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The same as ``keys``."""
        return self.keys()

    async def scan(self, visit: Callable[[bytes, bytes], None]) -> None:
        """Call ``visit(key, value)`` for every record while one scan of all slots goes on: less client memory than ``items``.

        visit: called **in the store's thread**, between reads, so that slow code shows as time how many records a chunk has. It must not wait for the
        store, which waits for it, nor touch what belongs to the event loop.

        The scan finishes even if ``visit`` raises; what it raised is raised then. Cost, leaks and client memory as ``oram.ObliviousStore.scan``.
        """
        await self._worker.run(self._store.scan, visit)

    async def clear(self) -> None:
        """Empty the store by making it anew. Cost: no access; the client state is written anew. Leaks: that it was cleared."""
        await self._worker.run(self._store.clear)

    async def load(self, items: Pairs, *, progress: Progress | None = None) -> None:
        """Bulk load: read every slot, merge the items in memory, write every slot once. All or nothing. Errors as ``oram.ObliviousStore.load``.

        items: read in the store's thread, when the load's turn comes; leave it alone until the load is done.
        progress: as for ``create``.

        Cost: one scan and one rewriting of all slots, whatever is loaded. Leaks: that it took place. Client memory: all records.
        """
        await self._worker.run(self._store.load, items, progress=_in_loop(progress))

    async def rekey(self, *, key: bytes | None = None, passphrase: str | None = None) -> None:
        """Change the key or passphrase: everything is read and written anew. Cost and leaks as ``load``.

        key: the new key, 32 bytes; or a new ``passphrase``.
        passphrase: as for ``create``.

        If it is cancelled, the key is changed all the same.
        """
        await self._worker.run(self._store.rekey, key=_own(key), passphrase=passphrase)

    # --- the handle

    @property
    def capacity(self) -> int:
        """Records it can hold (blocks where there is no directory). Cost: no access. Leaks: nothing."""
        return self._store.capacity

    @property
    def max_batch(self) -> int:
        """Records that one batch, and so one atomic ``put_many``, can hold. Cost: no access. Leaks: nothing."""
        return self._store.max_batch

    @property
    def value_limit(self) -> int:
        """Bytes that key and value may have together. Cost: no access. Leaks: nothing."""
        return self._store.value_limit

    def info(self) -> dict[str, Any]:
        """The public parameters, authenticated. Cost: no access. Leaks: nothing."""
        return self._store.info()

    async def stats(self) -> Stats:
        """Numbers for the owner; some are secret. Cost: no access, O(client state) time. Leaks: nothing, if you keep them to yourself."""
        return await self._worker.run(self._store.stats)

    async def verify(self) -> int:
        """Open every slot; return the number of live blocks. IntegrityError at the first that does not open.

        Cost: every slot read once, in index order. Leaks: that it took place.
        """
        return await self._worker.run(self._store.verify)

    async def flush(self) -> None:
        """Make everything that was begun before survive power loss. Cost: no access; over a remote backend the last access's write.
        Leaks: that it took place.
        """
        await self._worker.run(self._store.flush)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy slots and client state into a new LMDB directory, for ``restore`` only. Errors as ``oram.ObliviousStore.backup``.

        path: the directory, with or without ``lmdb:``.

        Cost: every slot read once. Leaks: that it took place.
        """
        await self._worker.run(self._store.backup, path)

    async def close(self) -> None:
        """Finish what was begun, then leave the store so that it can be opened again. From now on nothing more can be begun: StoreClosedError.

        Idempotent; whoever calls it again, or after having been cancelled, waits for the same. It works in any event loop. In a child of a fork it only
        lets go. Cost and leaks as ``oram.ObliviousStore.close``.
        """
        if self._worker.forked:
            self._store.close()
        else:
            await self._worker.end(self._store.close)

    async def __aenter__(self) -> Self:
        """The store itself. Cost: no access. Leaks: nothing."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """The same as ``close``."""
        await self.close()

    def __repr__(self) -> str:
        """Public parameters only. Cost: no access. Leaks: nothing."""
        return f"<Async{repr(self._store)[1:]}"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise HandleError("a store handle cannot be pickled or copied: open the store where it is used")


class AsyncBlocks:
    """The block level, ``store.blocks``: blocks of ``block_size`` bytes by address, zeros where never written."""

    def __init__(self, worker: _Worker, blocks: Blocks) -> None:
        self._worker, self._blocks = worker, blocks
        self.block_size = blocks.block_size

    def __len__(self) -> int:
        """Blocks. Cost: no access. Leaks: nothing."""
        return len(self._blocks)

    async def read(self, address: int) -> bytes:
        """One block, ``block_size`` bytes. AddressError. Cost: one access. Leaks: nothing beyond the access."""
        return await self._worker.run(self._blocks.read, address)

    async def write(self, address: int, data: bytes) -> None:
        """Store one block; shorter data is padded with zeros. AddressError, BlockSizeError without an access. Cost: one access.
        Leaks: nothing beyond the access.
        """
        await self._worker.run(self._blocks.write, address, _own(data))

    async def read_many(self, addresses: Sequence[int] | I64) -> U8:
        """Blocks as uint8 (n, block_size), in the order of the addresses. AddressError. Cost: one batch of n. Leaks: n."""
        return await self._worker.run(self._blocks.read_many, _own(addresses))

    async def write_many(self, addresses: Sequence[int] | I64, data: U8 | Sequence[bytes]) -> None:
        """Store blocks: uint8 (n, block_size) or n bytes objects. AddressError, BlockSizeError without an access. Cost: one batch of n. Leaks: n."""
        await self._worker.run(self._blocks.write_many, _own(addresses), _own(data))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise HandleError("a store handle cannot be pickled or copied: open the store where it is used")


__all__ = ["AsyncBlocks", "AsyncObliviousStore", "Opening", "create", "info", "open", "restore"]
