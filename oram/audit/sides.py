"""The two stores of a run, and all that was seen of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

import oram
from oram.audit import sights
from oram.audit.leaks import Leak
from oram.audit.running import Finding, battery
from oram.audit.sights import PlainSights, Sight, Sights
from oram.audit.workload import RECORDS, Request, records
from oram.backends import MemoryBackend
from oram.encrypted import EncryptedStore
from oram.errors import MissingKeyError
from oram.params import CuckooParams, PathParams, RingParams, SchemeParams
from oram.trace import TraceBackend
from oram.types import I64

__all__ = ["RECENT", "SCHEMES", "Side", "oblivious", "plain"]

#: Accesses whose places a side remembers in order.
RECENT = 300

_BLOCK = 64  # bytes
_LINEAR_BLOCK = 512  # of which eight make a page, so that a picture of 64 pages is touched whole

#: What can be watched: of trees, buckets are slots; the whole of each store is at the server, with nothing in the client's cache.
SCHEMES: dict[str, str | SchemeParams] = {
    "path": PathParams(page_levels=1),
    "ring": RingParams(Z=4, A=3, S=6, xor=True),
    "cuckoo": CuckooParams(c=16),
    "linear": "linear",
}


class _Store(Protocol):
    def get(self, key: bytes, /) -> bytes | None: ...
    def put(self, key: bytes, value: bytes, /) -> None: ...


class Side:
    """One store, under observation. again: closes it, and opens it again."""

    def __init__(
        self,
        title: str,
        trace: TraceBackend,
        seen: Sights,
        store: _Store,
        again: Callable[[_Store], _Store] | None = None,
    ) -> None:
        self.title, self.sights, self._trace, self._store, self._again = title, seen, trace, store, again
        trace.clear()
        self.start()

    def start(self) -> None:
        """From here on everything counts; what was seen before is forgotten."""
        self.tests = battery(self.sights)
        self.touched: I64 = np.zeros(sum(row.cells for row in self.sights.rows), np.int64)
        self.recent: deque[int] = deque(maxlen=RECENT)
        self.latest: list[int] = []
        self.sight = Sight()
        self.accesses = 0

    def ask(self, request: Request) -> None:
        """One request, and what the server saw of it."""
        with suppress(MissingKeyError):
            self._ask(request)
        sight = self.sights.see(self._trace.events, self._trace.state_commits)
        self._trace.clear()
        self._note(sight, request.record)

    def _ask(self, request: Request) -> None:
        if request.value is None:
            self._store.get(request.key)
        else:
            self._store.put(request.key, request.value)

    def reopen(self) -> None:
        """Close the store and open it again, which is no access: exact checks see what the server saw of it. Nothing, of a store that cannot be."""
        if self._again is None:
            return
        self._store = self._again(self._store)
        sight = self.sights.reopened(self._trace.events, self._trace.state_commits)
        self._trace.clear()
        for test in self.tests:
            if test.exact:
                test.see(sight, -1)

    def _note(self, sight: Sight, record: int) -> None:
        self.accesses += 1
        self.sight = sight
        self.latest = [cell for cell in sight.touched if 0 <= cell < self.touched.size]
        np.add.at(self.touched, self.latest, 1)
        self.recent.append(sight.shown[0] if sight.shown else -1)
        for test in self.tests:
            test.see(sight, record)

    def look(self, *, last: bool = False) -> None:
        """Look at the tests whose turn it is; at the end of a run, at all that have seen anything since."""
        for test in self.tests:
            test.look(last=last)

    @property
    def findings(self) -> list[Finding]:
        """Where the tests stand."""
        return [test.finding for test in self.tests]

    @property
    def alarm(self) -> bool:
        """Whether any of them was raised."""
        return any(finding.alarm is not None for finding in self.findings)


def plain() -> Side:
    """A store that seals its records, one slot each, and does no more."""
    trace = TraceBackend(MemoryBackend())
    store = EncryptedStore(trace, _BLOCK)
    store.load(records())
    return Side("Encrypted only", trace, PlainSights(RECORDS), store)


def oblivious(
    scheme: str, leak: Leak | None, params: SchemeParams | None = None, key: bytes | None = None, *, filled: bool = True
) -> Side:
    """A store of this scheme that holds the records, sound or with a leak, at an instant from which all its slots and tables are in use.

    params: in place of those of ``SCHEMES``; of trees, with pages of one bucket, and XOR. key: of the user, a new one by default.
    filled: whether a hierarchy holds the records; else it is new and empty.
    """
    trace, held = TraceBackend(MemoryBackend()), records()
    opening: dict[str, Any] = {"key": oram.generate_key() if key is None else key, "durability": "process"}
    options: dict[str, Any] = {
        **opening, "capacity": RECORDS, "block_size": _LINEAR_BLOCK if scheme == "linear" else _BLOCK,
        "scheme": params or SCHEMES[scheme], "tree_top": 0,
        "items": None if scheme == "cuckoo" else held,
    }  # fmt: skip
    store = oram.create(trace, **options) if leak is None else leak.create(trace, **options)

    def again(handle: Any) -> _Store:
        handle.close()
        return oram.open(trace, **opening) if leak is None else leak.open(trace, **opening)

    reopens = leak is None or leak.reopens
    side = Side(f"Oblivious: {scheme.capitalize()}", trace, sights.of(store.info()), store, again if reopens else None)
    if (
        scheme == "cuckoo" and filled
    ):  # one by one, so that every level is there, which a load would leave empty but for the last
        for number in range(len(held) + len(held) // 2):
            side.ask(Request(number % len(held), *held[number % len(held)]))
        side.start()
    return side
