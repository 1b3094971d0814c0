"""How the keys of a store are called, and the commands that are always the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from oram.backends.base import RegionShape
from oram.backends.redis.inbox import Form
from oram.backends.redis.wire import pack
from oram.types import I64

__all__ = ["CHUNK_BYTES", "CHUNK_KEYS", "Names", "Region"]

#: Bounds of one command, so that neither side holds a large batch twice; a batch is still one transaction.
CHUNK_BYTES, CHUNK_KEYS = 8 << 20, 1 << 16

#: Reads that are remembered, of different numbers of slots; and the most of these in one. No name has a percent sign or a zero byte in it.
_ASKINGS, _LONG = 16, 1 << 14


class Names:
    """The keys of a store that are no slots, and the commands that are always the same."""

    def __init__(self, name: str) -> None:
        self.prefix = b"{%s}:" % name.encode()
        self.lease, self.fence, self.regions, self.dropped, self.fold = (
            self.prefix + kind for kind in (b"lease", b"fence", b"regions", b"dropped", b"fold")
        )
        self.small = (self.regions, self.dropped, self.fence, self.fold)  #: all but the lease
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
    width: int  #: digits of an index
    known: dict[tuple[int, bytes | None], Asking] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, names: Names, number: int, shape: RegionShape) -> Self:
        prefix = names.prefix + b"%08x:" % number
        width = len(f"{shape.slots - 1:x}")
        form = prefix + b"%%0%dx" % width
        return cls(number, shape, prefix, form, max(1, min(CHUNK_KEYS, CHUNK_BYTES // shape.slot_size)), width)

    def keys(self, indices: I64) -> list[bytes]:
        """The keys of these slots."""
        form = self.form
        return [form % index for index in indices.tolist()]

    def chunks(self, step: int) -> Iterator[list[bytes]]:
        """All keys, ``step`` at a time."""
        for first in range(0, self.shape.slots, step):
            yield self.keys(np.arange(first, min(first + step, self.shape.slots)))

    def gets(self, indices: I64, last: tuple[bytes, bytes] | None = None) -> tuple[list[bytes], list[Form | None]]:
        """The commands that read these slots and then the key ``last``, which should hold what stands beside it; and what the replies are like if all is
        there.
        """
        count, step = indices.size, self.step
        commands: list[bytes] = []
        forms: list[Form | None] = []
        for first in range(0, count, step):
            some = indices if count <= step else indices[first : first + step]
            end = last if first + step >= count else None
            asking = self.known.get((some.size, end and end[1])) or self._asking(some.size, end)
            commands.append(asking.command % tuple(some.tolist()))
            forms.append(asking.form)
        return commands, forms

    def _asking(self, count: int, last: tuple[bytes, bytes] | None) -> Asking:
        more, held = ([], None) if last is None else ([last[0]], last[1])
        command = pack(b"MGET", *[self.prefix + b"\0" * self.width] * count, *more)
        places = command.replace(b"\0" * self.width, b"%%0%dx" % self.width)
        made = Asking(places, Form(count, self.shape.slot_size, held))
        if len(self.known) >= _ASKINGS:
            self.known.clear()
        if count <= _LONG:
            self.known[count, held] = made
        return made


@dataclass(frozen=True, slots=True)
class Asking:
    """A read of so many slots, whatever they are. command: as hiredis packs it, with a place for each index. form: of the reply."""

    command: bytes
    form: Form
