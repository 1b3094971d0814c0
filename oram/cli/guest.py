"""The demo's stores on somebody's server: under names that nobody else uses, and gone when it ends."""

from __future__ import annotations

import dataclasses
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Self

from oram.backends import RedisBackend, RedisOptions, RegionShape
from oram.backends.redis import _pack, _Region
from oram.errors import OramError
from oram.trace import TraceBackend

__all__ = ["Guest", "GuestBackend", "WireTrace"]


_AT_A_TIME = 1000  # keys deleted by one command


class GuestBackend(RedisBackend):
    """A store's place of which nothing is to stay."""

    def erase(self) -> None:
        """Delete all that is under this name, which nobody else may know.

        Without taking the lease or dropping regions, for a server whose memory is full may refuse both, and this is what makes room.
        """
        names = self._names
        self._unlink([names.lease])  # first, so that what is still on its way over an older connection fails
        dropped = [_Region.of(names, number, RegionShape(slots, 1)) for number, slots in self._call(self._leftovers)]
        for region in (*self._regions.values(), *dropped):
            for keys in region.chunks(_AT_A_TIME):
                self._unlink(keys)
        self._unlink([names.regions, names.dropped, names.fence, names.fold])

    def _unlink(self, keys: list[bytes]) -> None:
        self._call(partial(self._ask, [_pack(b"UNLINK", *keys)]))


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
        GuestBackend(options).close()
        return cls(options)

    def open(self, store: str) -> GuestBackend:
        """The place of a store."""
        return GuestBackend(dataclasses.replace(self._options, name=f"{self._options.name}-{store}"))

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
