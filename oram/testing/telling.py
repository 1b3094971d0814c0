"""Negative controls: stores on Redis that tell the server, besides, which address each get asks for. Each must be found in the server's own log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import redis

from oram.backends import RedisBackend
from oram.backends.redis.wire import pack
from oram.engine import Engine
from oram.kernels.base import Op

__all__ = ["TELLS", "Said", "reading", "telling", "telling_elsewhere"]

#: What is sent: of the prefix of the store's keys and the address.
Said: TypeAlias = Callable[[bytes, int], list[list[bytes]]]


def _renewal(prefix: bytes, milliseconds: int) -> list[list[bytes]]:
    lease = prefix + b"lease"
    return [
        [b"MULTI"], [b"PEXPIRE", lease, b"%d" % milliseconds], [b"EXEC"], [b"WATCH", lease], [b"GET", lease],
    ]  # fmt: skip


#: Ways to say it, in one round trip, each with what the check complains of.
TELLS: dict[str, tuple[Said, str]] = {
    "a slot, alone": (lambda p, a: [[b"GET", p + b"00000001:%08x" % a]], "unexpected words: GET"),
    "a counter": (lambda p, a: [[b"HINCRBY", p + b"hits", b"%d" % a, b"1"]], "unexpected command"),
    "a key of its own": (lambda p, a: [[b"SET", p + b"last", b"%d" % a]], "unexpected command"),
    "a key without the prefix": (lambda _, a: [[b"SET", b"hits:%d" % a, b"1"]], "unexpected command"),
    "a message": (lambda _, a: [[b"PUBLISH", b"oram", b"%d" % a]], "unexpected command"),
    "a slot, in a read without the lease": (lambda p, a: [[b"MGET", p + b"00000001:%08x" % a]], "amid a round trip"),
    "the result of a fold": (
        lambda p, a: [[b"BITOP", b"XOR", p + b"%d" % a, p + b"fold"], [b"UNLINK", p + b"%d" % a]],
        "unexpected words: BITOP",
    ),
    "what is said and answered": (lambda _, a: [[b"ECHO", b"%d" % a]], "unexpected command"),
    "where a scan begins": (lambda _, a: [[b"SCAN", b"%d" % a]], "unexpected command"),
    "a script": (lambda _, a: [[b"EVAL", b"return %d" % a, b"0"]], "unexpected command"),
    "how long the lease is": (lambda p, a: _renewal(p, 30_000 + a), "unexpected number: lease"),
    "how often it is renewed": (lambda p, a: _renewal(p, 30_000) if a % 2 else [], "renewed more often"),
    "whether replicas are asked": (lambda _, a: [[b"WAIT", b"1", b"50"]] * (a % 2), "unexpected number: replicas"),
    "for how long they are asked": (lambda _, a: [[b"WAIT", b"1", b"%d" % (a + 1)]], "unexpected number: replicas"),
    "a transaction taken back": (
        lambda p, a: [[b"MULTI"], [b"GET", p + b"%d" % a], [b"DISCARD"]],
        "unexpected command",
    ),
    "the length of a refused transaction": (lambda _, a: [[b"MULTI"], *[[b"GET"]] * a, [b"EXEC"]], "unexpected order"),
    "a command that there is not": (lambda _, a: [[b"ADDRESS", b"%d" % a]], "bytes that its log does not show"),
    "a setting": (lambda _, a: [[b"CONFIG", b"GET", b"%d" % a]], "bytes that its log does not show"),
}


@contextmanager
def telling(said: Said) -> Iterator[None]:
    """Inside, stores on Redis say this over their own connection, in one round trip for each read."""

    def send(backend: RedisBackend, address: int) -> None:
        commands = [pack(*words) for words in said(b"{%s}:" % backend.options.name.encode(), address)]
        if commands:
            backend._call(partial(backend._link.trip, commands))

    with _at_each_read(send):
        yield


@contextmanager
def reading() -> Iterator[None]:
    """By a read of one slot, which has the form of any other."""

    def send(backend: RedisBackend, address: int) -> None:
        region = next(region for region in backend.regions() if region.startswith("slots."))
        backend.read(region, np.array([address % backend.regions()[region].slots]))

    with _at_each_read(send):
        yield


@contextmanager
def telling_elsewhere(client: redis.Redis) -> Iterator[None]:
    """Over another connection."""

    def send(backend: RedisBackend, address: int) -> None:
        client.hincrby(f"{{{backend.options.name}}}:hits", str(address))

    with _at_each_read(send):
        yield


@contextmanager
def _at_each_read(send: Callable[[RedisBackend, int], None]) -> Iterator[None]:
    real = Engine.access

    def access(self: Engine, requests: Any, note: bytes = b"") -> None:
        real(self, requests, note)
        backend = getattr(self.backend, "inner", self.backend)
        if isinstance(backend, RedisBackend):
            for op, address, _ in requests.rows():
                if op == Op.READ:
                    send(backend, address)

    with mock.patch.object(Engine, "access", access):
        yield
