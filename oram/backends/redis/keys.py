"""How the keys of a store are called, and the commands that are always the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from oram.backends.base import RegionShape
from oram.backends.redis.inbox import Form
from oram.backends.redis.wire import pack
from oram.types import I64

__all__ = ["CHUNK_BYTES", "CHUNK_KEYS", "Names", "Region"]

#: Bounds of one command, so that neither side holds a large batch twice; a batch is still one transaction.
CHUNK_BYTES, CHUNK_KEYS = 8 << 20, 1 << 16


class Names:
    """The keys of a store that are no slots, and the commands that are always the same."""

    def __init__(self, name: str) -> None:
        self.prefix = b"{%s}:" % name.encode()
        self.lease, self.fence, self.regions, self.dropped, self.fold = (
            self.prefix + kind for kind in (b"lease", b"fence", b"regions", b"dropped", b"fold")
        )
        self.watch = pack(b"WATCH", self.lease)
        # A watch that was touched fails the next transaction, also one behind a further WATCH.
        self.look = [pack(b"UNWATCH"), self.watch, pack(b"GET", self.lease), pack(b"GET", self.fence)]
        self.holder = pack(b"GET", self.lease)
        self.take_fold = pack(b"GETDEL", self.fold)

    def take(self, number: int, token: bytes, milliseconds: bytes) -> list[bytes]:
        """The lease, for the number-th time."""
        fence = pack(b"SET", self.fence, b"%d %s" % (number, token))
        return [fence, pack(b"SET", self.lease, token, b"PX", milliseconds)]

    def wait(self, replicas: int, milliseconds: int) -> bytes:
        return pack(b"WAIT", b"%d" % replicas, b"%d" % milliseconds)


@dataclass(frozen=True, slots=True)
class Region:
    """A region, and how its slots are called."""

    number: int
    shape: RegionShape
    prefix: bytes
    form: bytes  #: the key of a slot, but for its index
    step: int  #: slots of one command

    @classmethod
    def of(cls, names: Names, number: int, shape: RegionShape) -> Self:
        prefix = names.prefix + b"%08x:" % number
        form = prefix + b"%%0%dx" % len(f"{shape.slots - 1:x}")
        return cls(number, shape, prefix, form, max(1, min(CHUNK_KEYS, CHUNK_BYTES // shape.slot_size)))

    def keys(self, indices: I64) -> list[bytes]:
        """The keys of these slots."""
        form = self.form
        return [form % index for index in indices.tolist()]

    def chunks(self, step: int) -> Iterator[list[bytes]]:
        """All keys, ``step`` at a time."""
        for first in range(0, self.shape.slots, step):
            yield self.keys(np.arange(first, min(first + step, self.shape.slots)))

    def gets(self, indices: I64, *more: bytes) -> list[bytes]:
        """The commands that read these slots, the last of them the keys ``more`` too."""
        keys, step = [*self.keys(indices), *more], self.step + len(more)
        return [pack(b"MGET", *keys[first : first + step]) for first in range(0, len(keys), step)]

    def forms(self, count: int, last: bytes | None = None) -> list[Form | None]:
        """What the replies to those commands are like if all slots are there, and the key behind them, if any, holds ``last``."""
        size, step = self.shape.slot_size, self.step + (last is not None)
        if count + (last is not None) <= step:
            return [Form(count, size, last)] if count else []
        firsts = range(0, count, step)
        forms: list[Form | None] = [Form(min(step, count - first), size) for first in firsts]
        rest = count - firsts[-1]
        if last is not None:
            forms = [*forms[:-1], Form(rest, size, last)] if rest < step else [*forms, None]
        return forms
