"""What the controls of every scheme need: how a broken one is made and judged."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar
from unittest import mock

import oram
from oram.backends import MemoryBackend
from oram.engine import Engine
from oram.store import ObliviousStore
from oram.testing.statistics import Result
from oram.testing.worlds import RECORDS
from oram.trace import TraceBackend


@dataclass(frozen=True)
class Build:
    """A way to make stores: which parts take the place of the real ones."""

    usual: ClassVar[dict[str, Any]]  # options of the stores besides the common ones

    engine: type[Engine] = Engine
    store: type[ObliviousStore] = ObliviousStore

    def parts(self) -> dict[str, Any]:
        """What is replaced, by its place; None = the real one. Those of the reference kernels make them the active ones."""
        return {"oram.assembly.Engine": self.engine, "oram.store.ObliviousStore": self.store}

    def begin(self, trace: TraceBackend) -> None:
        """Told of each new store's backend before it is made."""

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            for place, part in self.parts().items():
                if part is None:
                    continue
                if place.startswith("oram.kernels.reference."):
                    stack.enter_context(mock.patch.dict(os.environ, {"ORAM_KERNELS": "reference"}))
                stack.enter_context(mock.patch(place, part))
            yield

    def make(self, **options: Any) -> tuple[ObliviousStore, TraceBackend]:
        """A new store and its trace; keyed, with a small cached top, unless the options say otherwise."""
        trace = TraceBackend(MemoryBackend(), keep_data=options.pop("keep_data", False))
        usual: dict[str, Any] = {
            "key": bytes(32),
            "capacity": RECORDS,
            "block_size": 48,
            "tree_top": 700,
            "durability": "process",
        }
        self.begin(trace)
        with self.active():
            store = oram.create(trace, **{**usual, **self.usual, **options})
        trace.clear()
        return store, trace


B = TypeVar("B", bound=Build)


@dataclass(frozen=True)
class Control(Generic[B]):
    """A broken build, and the check that rejects it."""

    build: B
    check: Callable[[B], Result]

    def holds(self, real: B) -> None:
        """The check accepts the real scheme and rejects this one."""
        accepted = self.check(real)
        assert accepted.passed, f"the real scheme fails: {accepted}"
        broken = self.check(self.build)
        assert not broken.passed, f"a broken scheme passes: {broken}"


def exact(name: str, holds: bool) -> Result:
    return Result(name, float(not holds), float(holds), 0.0)


class DedupInBatch(ObliviousStore):
    """A key that is asked for twice is looked up once."""

    def get_many(self, keys: Iterable[bytes], *, size: int | None = None) -> list[bytes | None]:
        wanted = list(keys)
        once = list(dict.fromkeys(wanted))
        found = dict(zip(once, super().get_many(once, size=size), strict=True))
        return [found[key] for key in wanted]


class ReexecutesAfterACrash(Engine):
    """Recovery restores the state before the interrupted access, and leaves it to the application to ask again."""

    def recover(self) -> None:
        journal, intent = self.journal, self.journal.intent()
        if intent is not None:
            done = replace(intent, sequence=journal.meta.sequence)
            journal.intent = lambda: done  # type: ignore[method-assign]
        super().recover()


class Crash(BaseException):
    """The end of the process."""


#: What the application may ask for after a crash.
RETRIES: dict[str, Callable[[ObliviousStore], object]] = {
    "the same": lambda store: store[b"3"],
    "another": lambda store: store[b"7"],
    "a miss": lambda store: store.get(b"nothing"),
    "a put": lambda store: store.put(b"3", b"new"),
    "a batch": lambda store: store.get_many([b"3", b"3", b"4"]),
}


def answers_rightly(store: ObliviousStore, turns: int, name: str) -> None:
    """A control that fails for another reason proves nothing: what it answers has to be right."""
    model: dict[bytes, bytes] = {}
    source = random.Random(1)
    for i in range(turns):
        key = b"%d" % source.randrange(20)
        if i % 3:
            store[key] = model[key] = b"%d" % i
        elif i % 9:
            assert store.get(key) == model.get(key), name
        else:
            assert store.pop(key, None) == model.pop(key, None), name
    keys = [b"%d" % i for i in range(20)] * 2
    assert store.get_many(keys) == [model.get(key) for key in keys], name
