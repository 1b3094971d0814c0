"""The demo's stores on somebody's server: under names that nobody else uses, and gone when it ends."""

from __future__ import annotations

import dataclasses
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from oram.backends import RedisBackend, RedisOptions
from oram.errors import OramError
from oram.trace import TraceBackend

__all__ = ["Guest", "WireTrace"]


class WireTrace(TraceBackend):
    """A trace of a server whose ``sync`` asks nothing of it, and is no round trip."""

    def sync(self) -> None:
        self.inner.sync()


class Guest:
    """A server, and names on it: the one that the URL gives, with a random number and the name of the store behind it."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = dataclasses.replace(options, name=f"{options.name[:30]}-demo-{secrets.token_hex(8)}")

    @classmethod
    def of(cls, options: RedisOptions) -> Self:
        """One that answers: connecting raises what there is to complain of, before the demo has done any work."""
        RedisBackend(options).close()
        return cls(options)

    def open(self, store: str) -> RedisBackend:
        """The place of a store."""
        return RedisBackend(dataclasses.replace(self._options, name=f"{self._options.name}-{store}"))

    @contextmanager
    def room(self, store: str) -> Iterator[None]:
        """The store is made and used in the block; nothing of it is left behind it."""
        try:
            yield
        finally:
            try:
                with self.open(store) as backend:
                    backend.erase()
            except OramError:  # the demo itself may have gone well
                left = f"{self._options.name}-{store}"
                print(
                    f"oram: warning: not all of the demo was removed: see the server's keys {{{left}}}:*",
                    file=sys.stderr,
                )
