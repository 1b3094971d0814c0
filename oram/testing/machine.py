"""A hypothesis machine that drives a whole store against a dict, with crashes and full disks in between.

``StoreMachine`` is abstract; ``machine(Config(...))`` makes the class for one configuration, whose ``TestCase`` pytest runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import oram
from oram import record
from oram.backends import LMDBBackend, MemoryBackend, ShardedBackend
from oram.errors import (
    BackendFullError,
    BackendUnavailableError,
    CapacityError,
    MissingKeyError,
    StoreClosedError,
    TookEffectError,
    UncleanShutdownError,
    ValueTooLargeError,
)
from oram.params import LinearParams, PathParams, SchemeParams
from oram.store import ObliviousStore
from oram.testing.faults import Crash, FaultBackend, Storage
from oram.testing.model import check, walk
from oram.testing.remote import ReplicatedBackend

__all__ = ["Config", "StoreMachine", "machine"]

Model: TypeAlias = dict[Any, bytes]
Operation: TypeAlias = tuple[Any, ...]  # name, arguments

_MISSING = "missing"  # results that are exceptions, by name
_FULL = "full"
_TOO_LARGE = "too large"


@dataclass(frozen=True)
class Config:
    """One kind of store.

    scheme: its params; tree_top: bytes. place: arguments of ``Storage``, "lmdb", "sharded": several backends as one, or "replicated": a remote
    server with a replica that takes over now and then, and lags. shards: of the store. kernels: "native" or "reference".
    """

    scheme: SchemeParams = field(default_factory=PathParams)
    tree_top: int = 0
    place: dict[str, Any] | str = field(default_factory=dict)
    cipher: str = "aes-256-gcm"
    kernels: str = "native"
    blocks_per_value: int = 1
    durability: str = "sync"
    keyed: bool = True
    capacity: int = 5
    block_size: int = 32
    shards: int = 1


_keys = st.sampled_from([b"", b"a", b"b", b"c", b"dd", b"ee", b"\0", b"long key"])
_values = st.binary(max_size=12)
_pairs = st.lists(st.tuples(_keys, _values), max_size=7)
_many = st.lists(_keys, max_size=7)
_extra = st.none() | st.integers(0, 3)
_address = st.integers(0, 4)
_addresses = st.lists(_address, max_size=8)

KEYED = st.one_of(
    st.tuples(st.just("get"), _keys),
    st.tuples(st.just("set"), _keys, st.binary(max_size=40)),
    st.tuples(st.just("set"), _keys, _values),
    st.tuples(st.just("delete"), _keys),
    st.tuples(st.just("pop"), _keys, st.none() | _values),
    st.tuples(st.just("setdefault"), _keys, _values),
    st.tuples(st.just("put_many"), _pairs, _extra),
    st.tuples(st.just("get_many"), _many, _extra),
    st.tuples(st.just("delete_many"), _many, _extra),
    st.tuples(st.just("update"), st.dictionaries(_keys, _values, max_size=4)),
    st.tuples(st.just("load"), _pairs),
    st.tuples(st.just("clear")),
)
BLOCKS = st.one_of(
    st.tuples(st.just("read"), _address),
    st.tuples(st.just("write"), _address, st.binary(max_size=32)),
    st.tuples(st.just("read_many"), _addresses),
    st.tuples(st.just("write_many"), st.lists(st.tuples(_address, _values), max_size=8)),
)


def _size(n: int, extra: int | None) -> int | None:
    return None if extra is None else n + extra


def perform(store: ObliviousStore, operation: Operation) -> object:
    """Do an operation; its result, or the name of what it raised."""
    name, arguments = operation[0], operation[1:]
    try:
        return _PERFORM[name](store, *arguments)
    except MissingKeyError:
        return _MISSING
    except CapacityError:
        return _FULL
    except ValueTooLargeError:
        return _TOO_LARGE


_PERFORM: dict[str, Callable[..., object]] = {
    "get": lambda store, key: store[key],
    "set": lambda store, key, value: store.__setitem__(key, value),
    "delete": lambda store, key: store.__delitem__(key),
    "pop": lambda store, key, default: store.pop(key) if default is None else store.pop(key, default),
    "setdefault": lambda store, key, value: store.setdefault(key, value),
    "put_many": lambda store, pairs, extra: store.put_many(pairs, size=_size(len(pairs), extra)),
    "get_many": lambda store, keys, extra: store.get_many(keys, size=_size(len(keys), extra)),
    "delete_many": lambda store, keys, extra: store.delete_many(keys, size=_size(len(keys), extra)),
    "update": lambda store, pairs: store.update(pairs),
    "load": lambda store, pairs: store.load(pairs),
    "clear": lambda store: store.clear(),
    "read": lambda store, address: store.blocks.read(address),
    "write": lambda store, address, data: store.blocks.write(address, data),
    "read_many": lambda store, addresses: [row.tobytes() for row in store.blocks.read_many(addresses)],
    "write_many": lambda store, pairs: store.blocks.write_many([a for a, _ in pairs], [data for _, data in pairs]),
}


def predict(config: Config, model: Model, operation: Operation) -> tuple[object, Model]:
    """What an operation must return, and what must be there afterwards."""
    name, *arguments = operation
    after = dict(model)
    limit = config.blocks_per_value * config.block_size - record.OVERHEAD

    def put(pairs: list[tuple[bytes, bytes]]) -> str | None:
        if any(len(key) + len(value) > limit for key, value in pairs):
            return _TOO_LARGE
        if len({*model, *(key for key, _ in pairs)}) > config.capacity:
            return _FULL
        after.update(pairs)
        return None

    def write(pairs: list[tuple[int, bytes]]) -> tuple[object, Model]:
        after.update({address: data.ljust(config.block_size, b"\0") for address, data in pairs})
        return None, {address: block for address, block in after.items() if any(block)}

    zeros = bytes(config.block_size)
    match name, arguments:
        case "get", [key]:
            return model.get(key, _MISSING), after
        case "set", [key, value]:
            return put([(key, value)]), after
        case "delete", [key]:
            return (_MISSING if after.pop(key, None) is None else None), after
        case "pop", [key, default]:
            return after.pop(key, _MISSING if default is None else default), after
        case "setdefault", [key, value]:
            if key in model:
                return model[key], after
            return put([(key, value)]) or value, after
        case ("put_many", [pairs, _]) | ("load", [pairs]):
            return put(pairs), after
        case "update", [pairs]:
            return put(list(pairs.items())), after
        case "get_many", [keys, _]:
            return [model.get(key) for key in keys], after
        case "delete_many", [keys, _]:
            return [after.pop(key, None) is not None for key in keys], after
        case "clear", []:
            return None, {}
        case "read", [address]:
            return model.get(address, zeros), after
        case "write", [address, data]:
            return write([(address, data)])
        case "read_many", [addresses]:
            return [model.get(address, zeros) for address in addresses], after
        case "write_many", [pairs]:
            return write(pairs)
    raise AssertionError(name)


class StoreMachine(RuleBasedStateMachine):
    """A store, the dict it must equal, and the storage that survives it."""

    config: ClassVar[Config]

    def __init__(self) -> None:
        super().__init__()
        self.directory: tempfile.TemporaryDirectory[str] | None = None

    # --- lives

    @initialize()
    def create(self) -> None:
        place = self.config.place
        if place == "replicated":
            self.storage = Storage(slots=ReplicatedBackend(MemoryBackend()), apart=True)
        elif place == "sharded":
            several = ShardedBackend([MemoryBackend() for _ in range(self.config.shards)])
            self.storage = Storage(slots=several, apart=True, shards=self.config.shards)
        elif isinstance(place, str):
            self.directory = tempfile.TemporaryDirectory()
            self.storage = Storage(slots=LMDBBackend(self.directory.name, sync=False))
        else:
            self.storage = Storage(**place)
        self.key = oram.generate_key()
        self._make()

    def _make(self) -> None:
        """A store where there is none yet."""
        self.model: Model = {}
        self.saved: Model | None = {}  # durability="none": what a crash leaves; None: nothing
        self.backend = self.storage.connect()
        c = self.config
        with self._kernels():
            self.store = oram.create(
                self.backend, key=self.key, capacity=c.capacity, block_size=c.block_size, scheme=c.scheme,
                blocks_per_value=c.blocks_per_value, keyed=c.keyed, cipher=c.cipher, tree_top=c.tree_top,
                durability=c.durability, shards=c.shards,
            )  # fmt: skip

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        before = os.environ.get("ORAM_KERNELS")
        os.environ["ORAM_KERNELS"] = self.config.kernels
        try:
            yield
        finally:
            if before is None:
                del os.environ["ORAM_KERNELS"]
            else:
                os.environ["ORAM_KERNELS"] = before

    def _open(self, backend: FaultBackend) -> ObliviousStore:
        with self._kernels():
            return oram.open(backend, key=self.key, durability=self.config.durability)

    def _content(self) -> Model:
        if self.config.keyed:
            return dict(self.store.items())
        return {
            address: block.tobytes()
            for addresses, rows in self.store._engine.scan()
            for address, block in zip(addresses.tolist(), rows, strict=True)
            if block.any()
        }

    def _after_crash(self, possible: list[Model], again: int, *, lost: bool = False) -> None:
        """Open what a crash left, maybe with a crash in that, and see which of the possible contents it is.

        lost: whether it may also be gone, as durability="none" has it.
        """
        try:
            backend = self.storage.connect()
            backend.faults.arm(again)
            with suppress(Crash):
                self._open(backend)
            self.backend = self.storage.connect()
            self.store = self._open(self.backend)
        except UncleanShutdownError:
            assert lost, "an orderly close was forgotten"
            for region in list(self.storage.slots.regions()):
                self.storage.slots.drop(region)
            state = self.storage.state
            state.commit([], [key for key, _ in state.scan(b"")])
            self._make()
            return
        content = self._content()
        assert content in possible, "something acknowledged was lost, or something half done is there"
        self.model = content

    # --- rules

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Around what may change the store: keeps ``saved`` up to date."""
        faults = self.backend.faults
        faults.arm(None)
        yield
        if "install" in faults.steps:
            self.saved = dict(self.model)
        elif {"mark", "write"} & set(faults.steps):
            self.saved = None

    def _run(self, operation: Operation) -> None:
        expected, after = predict(self.config, self.model, operation)
        with self._watch():
            try:
                assert perform(self.store, operation) == expected
            except BackendUnavailableError:  # a failover took a part of it back, and it leaves what was there
                assert self.config.place == "replicated"
                assert operation[0] in ("load", "clear")
                self._go_on()
            else:
                self.model = after

    def _go_on(self) -> None:
        """After a load that came to nothing, maybe with a new handle."""
        try:
            self.store.stats()
        except StoreClosedError:
            self.store.close()
            self._after_crash([self.model], -1)

    def _crash(self, operation: Operation, at: int, again: int) -> None:
        """Crash at a step of an operation, or right after it where it has fewer."""
        _, after = predict(self.config, self.model, operation)
        self.backend.faults.arm(at)
        try:
            perform(self.store, operation)
            possible = [after]
        except Crash:
            possible = [self.model, after]
        if self.config.durability != "none":
            self._after_crash(possible, again)
            return
        unsaved = self.saved is None
        possible = [] if self.saved is None else [self.saved]
        if operation[0] in ("load", "clear"):  # installs what it makes, or leaves what was there
            self._after_crash([*possible, after], again, lost=unsaved)
        else:
            self._after_crash(possible, again, lost=True)
        self.saved = dict(self.model)

    def _full(self, operation: Operation, at: int, again: int) -> None:
        """No room at some step and from then on, until the handle is given up; then there is room again."""
        _, after = predict(self.config, self.model, operation)
        self.backend.faults.arm(at, lambda: BackendFullError("no room"), sticky=True)
        possible = [self.model, after]
        try:
            perform(self.store, operation)
            possible = [after]
        except TookEffectError:
            possible = [after]
        except BackendFullError:
            pass
        self.backend.faults.arm(None)
        try:
            self.store.stats()
        except StoreClosedError:
            self.store.close()
            self._after_crash(possible, again)
        else:  # it failed before it began, or while it built something beside the store
            content = self._content()
            assert content in possible
            self.model = content

    @precondition(lambda self: self.config.keyed)
    @rule(operation=KEYED)
    def operate(self, operation: Operation) -> None:
        self._run(operation)

    @precondition(lambda self: self.config.keyed)
    @rule(operation=KEYED, at=st.integers(0, 9), again=st.integers(0, 12))
    def crash(self, operation: Operation, at: int, again: int) -> None:
        self._crash(operation, at, again)

    @precondition(lambda self: self.config.keyed and self.config.durability != "none")
    @rule(operation=KEYED, at=st.integers(0, 6), again=st.integers(0, 12))
    def full(self, operation: Operation, at: int, again: int) -> None:
        self._full(operation, at, again)

    @precondition(lambda self: not self.config.keyed)
    @rule(operation=BLOCKS)
    def operate_blocks(self, operation: Operation) -> None:
        self._run(operation)

    @precondition(lambda self: not self.config.keyed)
    @rule(operation=BLOCKS, at=st.integers(0, 9), again=st.integers(0, 12))
    def crash_blocks(self, operation: Operation, at: int, again: int) -> None:
        self._crash(operation, at, again)

    @precondition(lambda self: not self.config.keyed and self.config.durability != "none")
    @rule(operation=BLOCKS, at=st.integers(0, 6), again=st.integers(0, 12))
    def full_blocks(self, operation: Operation, at: int, again: int) -> None:
        self._full(operation, at, again)

    def _plan(self, lost: int, at: int, late: bool) -> None:
        server = self.storage.slots
        assert isinstance(server, ReplicatedBackend)
        server.fail_over(lost, at=at, late=late)

    @precondition(lambda self: self.config.place == "replicated")
    @rule(operation=KEYED, lost=st.integers(0, 6), at=st.integers(0, 3), late=st.booleans())
    def fail_over(self, operation: Operation, lost: int, at: int, late: bool) -> None:
        """The replica takes over in the middle of an operation, or soon after it."""
        self._plan(lost, at, late)
        self._run(operation)

    @precondition(lambda self: self.config.place == "replicated")
    @rule(lost=st.integers(0, 6), at=st.integers(0, 6), late=st.booleans())
    def fail_over_in_rekey(self, lost: int, at: int, late: bool) -> None:
        self._plan(lost, at, late)
        key = oram.generate_key()
        try:
            self.store.rekey(key=key)
            self.key = key
        except BackendUnavailableError:
            self._go_on()

    @precondition(lambda self: self.config.place == "replicated")
    @rule(
        operation=KEYED, at=st.integers(0, 9), again=st.integers(0, 12), lost=st.integers(0, 6), call=st.integers(0, 9)
    )
    def crash_and_fail_over(self, operation: Operation, at: int, again: int, lost: int, call: int) -> None:
        """One of them in the middle of what the other one left."""
        self._plan(lost, call, bool(call % 2))
        try:
            self._crash(operation, at, again)
        except BackendUnavailableError:
            assert operation[0] in ("load", "clear")
            self._go_on()

    @precondition(lambda self: self.config.keyed)
    @rule()
    def popitem(self) -> None:
        with self._watch():
            if self.model:
                key, value = self.store.popitem()
                assert self.model.pop(key) == value
            else:
                with pytest.raises(MissingKeyError):
                    self.store.popitem()

    @precondition(lambda self: self.config.keyed)
    @rule(key=_keys, value=_values)
    def look(self, key: bytes, value: bytes) -> None:
        """Views and membership, as those of a dict."""
        store, model = self.store, self.model
        with self._watch():
            assert (key in store) == (key in model)
            assert len(store) == len(model) == len(store.keys()) == len(store.items())
            assert sorted(store) == sorted(model) == sorted(store.keys())
            assert sorted(store.values()) == sorted(model.values())
            assert (value in store.values()) == (value in model.values())
            assert ((key, value) in store.items()) == ((key, value) in model.items())
            assert store.get(key, value) == model.get(key, value)

    @rule()
    def verify(self) -> None:
        live = self.store.verify()
        if not isinstance(self.config.scheme, LinearParams) and self.config.keyed:
            assert live == self.config.blocks_per_value * len(self.model)

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.saved = dict(self.model)

    @rule()
    def rekey(self) -> None:
        self.key = oram.generate_key()
        self.store.rekey(key=self.key)
        self.saved = dict(self.model)

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self.saved = dict(self.model)
        self.backend = self.storage.connect()
        self.store = self._open(self.backend)

    @rule(again=st.integers(0, 12))
    def just_die(self, again: int) -> None:
        """The process dies between two operations."""
        if self.config.durability == "none":
            self._after_crash([] if self.saved is None else [self.saved], again, lost=self.saved is None)
            self.saved = dict(self.model)
        else:
            self._after_crash([self.model], again)

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "store"):
            return
        if self.config.keyed:
            check(self.store, self.model)
        else:
            walk(self.store)
            assert self._content() == self.model

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.storage.slots.close()
        if self.directory is not None:
            self.directory.cleanup()


def machine(config: Config) -> type[StoreMachine]:
    """The machine for one configuration."""
    return type("ConfiguredStoreMachine", (StoreMachine,), {"config": config})
