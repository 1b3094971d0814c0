"""What goes wrong between a client and a Redis server, each against a real one: a typed error, and nothing lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py

import oram
from oram.backends import Backend, RedisBackend, RegionShape, SlotRead, Slots, SlotWrite
from oram.backends.redis import wire
from oram.errors import (
    BackendAccessError,
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendWarning,
    FencedError,
    ForkedStoreError,
    IntegrityError,
    OramError,
    RollbackError,
    StoreLockedError,
)
from oram.testing.proxy import Proxy, Where
from oram.testing.servers import Server, free_port, redis_server
from oram.types import I64, U8

#: Flushing at each write would take most of the time of these tests, and none of them cuts the power.
pytestmark = pytest.mark.filterwarnings(
    "ignore:appendfsync:oram.errors.BackendWarning", "ignore:min-replicas:oram.errors.BackendWarning"
)

SHAPE = RegionShape(64, 200)
ALL = np.arange(SHAPE.slots)
CLOCK = RegionShape(1, 64)
WAYS: tuple[Where, Where] = ("up", "down")


def slots(*indices: int) -> I64:
    return np.array(indices, dtype=np.int64)


def rows(seed: int, count: int, size: int = SHAPE.slot_size) -> U8:
    return np.random.default_rng(seed).integers(1, 256, (count, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests leave as it was."""
    with redis_server(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


def admin(server: Server) -> redis_py.Redis:
    return redis_py.Redis(port=server.port)


def through(proxy: Proxy, name: str, query: str = "timeout=5&retry=10&lease=60") -> str:
    return f"redis://127.0.0.1:{proxy.port}/0?name={name}&{query}"


def filled(backend: Backend) -> U8:
    data = rows(0, SHAPE.slots)
    backend.allocate("tree", SHAPE)
    backend.allocate("clock", CLOCK)
    backend.write("tree", ALL, data)
    return data


def check(server: Server, name: str, data: U8) -> None:
    """Compare the region with ``data`` over a connection of its own."""
    with RedisBackend(server.url(name)) as other:
        read = other.read("tree", ALL)
        assert read.present.all()
        assert np.array_equal(read.data, data)


# No connection


def test_refused() -> None:
    start = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="Connection refused"):
        RedisBackend(f"redis://127.0.0.1:{free_port()}?retry=60")
    assert time.monotonic() - start < 5  # the first connection is tried once


def test_no_such_socket(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="No such file"):
        RedisBackend(f"unix://{tmp_path}/none")


def test_no_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(BackendUnavailableError, match="timed out"):
            RedisBackend(f"redis://127.0.0.1:{silent.getsockname()[1]}?timeout=0.2")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*2\r\n:1\r\n", b"$-7\r\n", b":1\r\n" * 50, b"+hello\r\n" * 50]
)
def test_something_else_answers(answer: bytes) -> None:
    """Whatever it says, an error of ours."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(10)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1000):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises((BackendError, IntegrityError)):
            RedisBackend(f"redis://127.0.0.1:{listener.getsockname()[1]}?timeout=2")
        thread.join()


JUNK: tuple[Any, ...] = (
    *(
        None,
        0,
        -1,
        1 << 70,
        b"",
        b"OK",
        b"x" * 200,
        "text",
        1.5,
        [],
        [None],
        [b"a"],
        [1, 2],
        [[]],
        [[b"a", b"b"], None],
    ),
    *([b"0", [None]], [b"x", [b"a"]], [b"a", b"b", b"c"], [b"tree", b"1 2"], [b"a"] * 64, [None] * 65, [[b"x"]] * 3),
)


def _whole(result: Slots) -> None:
    assert result.data.shape[1] == SHAPE.slot_size
    assert result.folded is None or result.folded.shape == (2, SHAPE.slot_size)


def _drop(backend: RedisBackend) -> None:
    backend.drop("clock")
    backend.allocate("clock", CLOCK)


def _reconnect(backend: RedisBackend) -> None:
    backend._link.drop()
    backend.read("tree", ALL)


def _own(backend: RedisBackend) -> None:
    backend.release()
    backend.acquire()


GROUPS = np.array([[1, 2], [3, 4]])
CALLS: dict[str, Callable[[RedisBackend], object]] = {
    "read": lambda backend: _whole(backend.read("tree", ALL)),
    "exchange": lambda backend: _whole(
        backend.exchange((SlotWrite("tree", slots(1, 2), rows(1, 2)),), SlotRead("tree", ALL, GROUPS))
    ),
    "write": lambda backend: backend.write("tree", ALL, rows(0, 64)),
    "renew": lambda backend: backend._renew(),
    "drop": _drop,
    "reconnect": _reconnect,
    "own": _own,
}


@pytest.mark.parametrize("call", CALLS)
def test_answers_that_make_no_sense(shared: Server, name: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reply after another replaced by junk: an error of ours or, where the reply does not matter, slots of the right length."""
    errors = at = 0
    reached = True
    while reached:
        reached = False
        for junk in JUNK:
            with contextlib.closing(RedisBackend(shared.url(name, query="retry=0"))) as backend:
                backend.allocate("tree", SHAPE)
                backend.allocate("clock", CLOCK)
                backend.acquire()
                trip, count = backend._link.trip, 0

                def spoilt(
                    commands: list[bytes], *more: Any, junk: Any = junk, at: int = at, trip: Any = trip
                ) -> list[Any]:
                    nonlocal count, reached
                    replies: list[Any] = trip(commands, *more)
                    if count <= at < count + len(replies):
                        replies[at - count], reached = junk, True
                    count += len(replies)
                    return replies

                with monkeypatch.context() as patch:
                    patch.setattr(backend._link, "trip", spoilt)
                    try:
                        CALLS[call](backend)
                    except OramError:
                        errors += 1
            with contextlib.closing(admin(shared)) as client:
                client.delete(f"{{{name}}}:lease", f"{{{name}}}:dropped")
        at += 1
    assert errors > 15


def test_a_hung_server(tmp_path: Path, name: str) -> None:
    with redis_server(tmp_path) as server, RedisBackend(server.url(name, query="timeout=0.3&retry=0.5")) as backend:
        data = filled(backend)
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(BackendUnavailableError, match="timed out"):
            backend.read("tree", ALL)
        with pytest.raises(BackendUnavailableError, match="timed out"):
            backend.write("tree", slots(1), rows(9, 1))
        os.kill(server.pid, signal.SIGCONT)
        data[1:2] = rows(9, 1)
        backend.write("tree", slots(1), data[1:2])
        assert np.array_equal(backend.read("tree", ALL).data, data)


# A connection that breaks in the middle


def exchange(backend: RedisBackend, seed: int) -> U8:
    """A write-back with the next read, and what it read."""
    writes = (
        SlotWrite("tree", slots(1, 2, 3), rows(seed, 3)),
        SlotWrite("clock", slots(0), rows(seed, 1, 64)),
    )
    result = backend.exchange(writes, SlotRead("tree", slots(0, 1, 2, 50), slots(1, 2, 3, 60)[np.newaxis]))
    assert result.folded is not None
    return np.concatenate((result.data, result.folded))


def expected(data: U8, seed: int) -> U8:
    data[1:4] = rows(seed, 3)
    fold = data[1] ^ data[2] ^ data[3] ^ data[60]
    return np.concatenate((data[[0, 1, 2, 50]], fold[np.newaxis]))


def test_a_cut_anywhere_in_an_exchange(shared: Server, name: str) -> None:
    """At every eleventh byte in either direction: the same answer, and the same slots."""
    with Proxy(shared.port) as proxy, RedisBackend(through(proxy, name)) as backend:
        data = filled(backend)
        backend.acquire()
        for seed, (way, at) in enumerate([(way, at) for way in WAYS for at in range(1, 1100, 11)]):
            proxy.cut(way, at)
            assert np.array_equal(exchange(backend, seed), expected(data, seed))
        assert proxy.connections > 150
        check(shared, name, data)
        with RedisBackend(shared.url(name)) as other:
            assert np.array_equal(other.read("clock", slots(0)).data, rows(199, 1, 64))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("command", [b"MULTI", b"EXEC", b"MSET", b"MGET", b"BITOP", b"GETDEL", b"WATCH"])
def test_a_cut_around_each_command(shared: Server, name: str, when: Where, command: bytes) -> None:
    with Proxy(shared.port) as proxy, RedisBackend(through(proxy, name)) as backend:
        data = filled(backend)
        backend.acquire()
        exchange(backend, 1)
        proxy.cut(when, command)
        assert np.array_equal(exchange(backend, 7), expected(data, 7))
        assert proxy.fired.wait(5)
        check(shared, name, data)


def test_the_server_sees_the_same_again(shared: Server, name: str) -> None:
    """After a cut, in which the answer is lost: the same commands with the same bytes, and nothing about what was in the slots."""
    with Proxy(shared.port) as proxy, RedisBackend(through(proxy, name)) as backend:
        filled(backend)
        backend.acquire()
        exchange(backend, 3)
        with shared.monitor() as quiet:
            exchange(backend, 5)
        proxy.cut("after", b"EXEC")
        with shared.monitor() as twice:
            exchange(backend, 5)
        assert proxy.fired.wait(5)
        first, rest = twice[: len(quiet)], twice[len(quiet) :]
        assert first == quiet
        assert rest[-len(quiet) :] == quiet
        asked = (b"CLUSTER", b"CONFIG", b"INFO")
        connecting = [b" ".join(words[:2]) for words in rest[: -len(quiet)] if words[0] not in asked]
        prefix = b"{%s}:" % name.encode()
        assert [words.replace(prefix, b"") for words in connecting] == [
            b"HGETALL regions", b"UNWATCH", b"WATCH lease", b"GET lease", b"GET fence",
            b"MULTI", b"PEXPIRE lease", b"EXEC", b"WATCH lease", b"GET lease",
        ]  # fmt: skip


@pytest.mark.parametrize("known", [False, True])
def test_a_write_that_comes_late(shared: Server, name: str, known: bool) -> None:
    """What a client sent before it gave up the connection does not land on what it wrote since."""
    with Proxy(shared.port) as proxy, RedisBackend(through(proxy, name)) as backend:
        data = filled(backend)
        backend.acquire()
        if known:  # not the first transaction of its connection
            backend.write("tree", slots(0), data[:1])
        proxy.cut("hold", b"MSET")
        backend.write("tree", slots(3), rows(3, 1))
        assert proxy.fired.is_set()
        data[3:4] = rows(4, 1)
        backend.write("tree", slots(3), data[3:4])
        proxy.late()
        time.sleep(0.2)
        check(shared, name, data)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cut_in_everything_else(shared: Server, name: str, when: Where) -> None:
    with Proxy(shared.port) as proxy, RedisBackend(through(proxy, name)) as backend:

        def cut(command: bytes, work: Callable[[], object]) -> None:
            proxy.cut(when, command)
            work()
            assert proxy.fired.wait(5), command

        cut(b"SET", backend.acquire)
        with RedisBackend(shared.url(name)) as other, pytest.raises(StoreLockedError):
            other.acquire()
        cut(b"HINCRBY", lambda: backend.allocate("tree", SHAPE))
        cut(b"HSETNX", lambda: backend.allocate("clock", CLOCK))
        cut(b"HGETALL", lambda: backend.allocate("more", SHAPE))
        assert dict(backend.regions()) == {"tree": SHAPE, "clock": CLOCK, "more": SHAPE}
        cut(b"MSET", lambda: backend.write("tree", ALL, rows(1, 64)))
        cut(b"MSET", lambda: backend.write("more", ALL, rows(2, 64)))
        cut(b"MGET", lambda: backend.read("tree", ALL))
        cut(b"HDEL", lambda: backend.drop("more"))
        backend.allocate("more", SHAPE)
        assert not backend.read("more", ALL).present.any()
        backend.write("more", ALL, rows(3, 64))
        cut(b"UNLINK", lambda: backend.drop("more"))
        check(shared, name, rows(1, 64))
        cut(b"DEL", backend.release)
        with RedisBackend(shared.url(name)) as other:
            other.acquire()
            with contextlib.closing(admin(shared)) as client:
                assert not client.exists(f"{{{name}}}:dropped")


def test_the_net_is_gone_for_a_while(shared: Server, name: str) -> None:
    with Proxy(shared.port) as proxy, RedisBackend(through(proxy, name)) as backend:
        data = filled(backend)
        backend.acquire()
        proxy.down()
        back = threading.Timer(0.7, proxy.up)
        back.start()
        start = time.monotonic()
        data[5:6] = rows(5, 1)
        backend.write("tree", slots(5), data[5:6])
        assert time.monotonic() - start > 0.5
        back.join()
        check(shared, name, data)


def test_the_net_is_gone_for_too_long(shared: Server, name: str) -> None:
    with Proxy(shared.port) as proxy, RedisBackend(through(proxy, name, "retry=0.3&lease=60")) as backend:
        data = filled(backend)
        backend.acquire()
        proxy.down()
        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match="Connection refused"):
                backend.write("tree", slots(5), rows(5, 1))
        check(shared, name, data)
        proxy.up()
        data[5:6] = rows(5, 1)
        backend.write("tree", slots(5), data[5:6])
        check(shared, name, data)


def test_an_interrupt_in_a_reply(shared: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replies that are still to come are not taken for those of the next call."""
    with RedisBackend(shared.url(name)) as backend:
        data = filled(backend)
        inbox = backend._link._wire._inbox
        assert inbox is not None
        more = inbox._more

        def interrupted(need: int) -> None:
            more(need)
            raise KeyboardInterrupt

        monkeypatch.setattr(inbox, "_more", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.write("tree", slots(5), rows(5, 1))
        monkeypatch.undo()
        data[5:6] = rows(5, 1)
        assert np.array_equal(backend.read("tree", ALL).data, data)


# The server


def test_a_restart_in_the_middle(tmp_path: Path, name: str) -> None:
    with redis_server(tmp_path, {"appendfsync": "always"}) as server:
        with RedisBackend(server.url(name, query="retry=20&lease=60")) as backend:
            data = filled(backend)
            backend.acquire()
            for seed in range(3):
                backend.write("tree", slots(5, 6), rows(seed, 2))
                data[5:7] = rows(seed, 2)
                server.kill()
                start = threading.Timer(0.2, server.start)
                start.start()
                exchange(backend, seed)
                expected(data, seed)
                start.join()
            with RedisBackend(server.url(name)) as other, pytest.raises(StoreLockedError):
                other.acquire()
            assert np.array_equal(backend.read("tree", ALL).data, data)
        check(server, name, data)


@pytest.mark.filterwarnings("ignore::oram.errors.BackendWarning")
def test_a_restart_that_forgot(tmp_path: Path, name: str) -> None:
    """A server without a log comes back empty: the owner is told, and writes nothing to it."""
    with redis_server(tmp_path, {"appendonly": "no"}) as server:
        with RedisBackend(server.url(name, query="retry=20")) as backend:
            filled(backend)
            backend.acquire()
            server.kill()
            server.start()
            for _ in range(2):
                with pytest.raises(RollbackError):
                    backend.read("tree", ALL)
                with pytest.raises(RollbackError):
                    backend.write("tree", slots(1), rows(1, 1))
        with contextlib.closing(admin(server)) as client:
            assert client.dbsize() == 0


def test_full(tmp_path: Path, name: str) -> None:
    with (
        redis_server(tmp_path) as server,
        contextlib.closing(admin(server)) as client,
        RedisBackend(server.url(name)) as backend,
    ):
        data = filled(backend)
        backend.allocate("big", RegionShape(64, 1 << 20))
        backend.acquire()
        client.config_set("maxmemory", client.info("memory")["used_memory"] + (4 << 20))
        writes = (SlotWrite("tree", slots(0), rows(9, 1)), SlotWrite("big", slots(0), rows(9, 1, 1 << 20)))
        with pytest.raises(BackendFullError):
            for index in range(64):
                backend.write("big", slots(index), rows(index, 1, 1 << 20))
        with pytest.raises(BackendFullError):
            backend.write_all(writes)
        with pytest.raises(BackendFullError):
            backend.exchange(writes, SlotRead("tree", ALL))
        assert np.array_equal(backend.read("tree", ALL).data, data)
        client.config_set("maxmemory", 0)
        backend.write_all(writes)
        data[0:1] = rows(9, 1)
        assert np.array_equal(backend.read("tree", ALL).data, data)


def test_a_replica(tmp_path: Path, name: str) -> None:
    with redis_server(tmp_path / "primary") as primary, redis_server(tmp_path / "replica") as replica:
        with RedisBackend(primary.url(name)) as backend:
            filled(backend)
        with contextlib.closing(admin(replica)) as client:
            client.replicaof("127.0.0.1", primary.port)
            with pytest.raises(BackendReadOnlyError):
                RedisBackend(replica.url(name))


def test_a_primary_that_became_a_replica(tmp_path: Path, name: str) -> None:
    with (
        redis_server(tmp_path) as server,
        contextlib.closing(admin(server)) as client,
        RedisBackend(server.url(name, query="retry=0.2")) as backend,
    ):
        data = filled(backend)
        backend.acquire()
        client.replicaof("127.0.0.1", free_port())
        for _ in range(2):
            with pytest.raises(BackendReadOnlyError):
                backend.write("tree", slots(1), rows(1, 1))
        client.replicaof("NO", "ONE")
        backend.write("tree", slots(1), rows(1, 1))
        data[1:2] = rows(1, 1)
        assert np.array_equal(backend.read("tree", ALL).data, data)


def test_too_few_replicas(tmp_path: Path, name: str) -> None:
    with (
        redis_server(tmp_path) as server,
        contextlib.closing(admin(server)) as client,
        RedisBackend(server.url(name)) as backend,
    ):
        data = filled(backend)
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(BackendReadOnlyError, match="NOREPLICAS"):
            backend.write("tree", slots(1), rows(1, 1))
        assert np.array_equal(backend.read("tree", ALL).data, data)
        client.config_set("min-replicas-to-write", 0)


# What a server is told


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("appendonly", "no", "appendonly is off"),
        ("appendfsync", "everysec", "appendfsync is not always"),
        ("appendfsync", "no", "appendfsync is not always"),
    ],
)
def test_settings_that_lose_slots(tmp_path: Path, setting: str, value: str, message: str) -> None:
    with redis_server(tmp_path, {"appendfsync": "always", setting: value}) as server:
        with pytest.warns(BackendWarning, match=message) as warned:
            backend = RedisBackend(server.url())
        assert [warning.filename for warning in warned] == [__file__]
        backend.close()


def test_settings_as_they_should_be(tmp_path: Path) -> None:
    with redis_server(tmp_path, {"appendfsync": "always"}) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        RedisBackend(server.url()).close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    settings = {"appendfsync": "always"}
    with (
        redis_server(tmp_path / "primary", settings) as primary,
        redis_server(tmp_path / "replica", settings) as replica,
    ):
        with contextlib.closing(admin(replica)) as client, contextlib.closing(admin(primary)) as other:
            client.replicaof("127.0.0.1", primary.port)
            while other.wait(1, 100) < 1:
                pass
        yield primary, replica


def test_replicas_that_are_not_asked(pair: tuple[Server, Server]) -> None:
    with pytest.warns(BackendWarning, match="not asked"):
        RedisBackend(pair[0].url(query="replicas=0")).close()
    with pytest.warns(BackendWarning, match="min-replicas-to-write"):
        RedisBackend(pair[0].url()).close()
    with contextlib.closing(admin(pair[0])) as client, warnings.catch_warnings():
        client.config_set("min-replicas-to-write", 1)
        warnings.simplefilter("error")
        RedisBackend(pair[0].url()).close()


def test_replicas_that_may_not_be_asked(pair: tuple[Server, Server]) -> None:
    with contextlib.closing(admin(pair[0])) as client:
        client.acl_setuser("default", enabled=True, commands=["-wait"])
    with pytest.warns(BackendWarning, match="not asked"):
        RedisBackend(pair[0].url()).close()
    with RedisBackend(pair[0].url(query="replicas=1")) as backend, pytest.raises(BackendAccessError):
        backend.acquire()


def test_what_replicas_have_is_asked_now_and_then(pair: tuple[Server, Server], name: str) -> None:
    """In the round trip of a write: every eighth, and never more is at risk."""
    with RedisBackend(pair[0].url(name)) as backend:
        filled(backend)
        backend.acquire()
        with pair[0].monitor() as seen:
            risks = []
            for i in range(40):
                backend.exchange((SlotWrite("tree", slots(i), rows(i, 1)),), SlotRead("tree", slots(i + 1)))
                risks.append(backend.at_risk)
        assert max(risks) <= 8
        assert sum(words[0] == b"WAIT" for words in seen) in (4, 5, 6)
        backend.replicate()
        assert backend.at_risk == 0


def test_replicas_that_do_not_keep_up(pair: tuple[Server, Server], name: str) -> None:
    with RedisBackend(pair[0].url(name, query="timeout=1")) as backend:
        filled(backend)
        backend.acquire()
        os.kill(pair[1].pid, signal.SIGSTOP)
        try:
            for i in range(10):
                backend.write("tree", slots(i), rows(i, 1))
            assert backend.at_risk >= 10
            with pytest.raises(BackendReadOnlyError, match="replicas"):
                backend.replicate()
        finally:
            os.kill(pair[1].pid, signal.SIGCONT)
        backend.replicate()
        assert backend.at_risk == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_failover_behind_one_address(pair: tuple[Server, Server], name: str, tmp_path: Path, late: bool) -> None:
    """No cluster: an address that leads to the replica, once it was promoted. late: the client finds out in the middle of an access."""
    primary, replica = pair
    key, model = oram.generate_key(), dict[bytes, bytes]()
    with Proxy(primary.port) as proxy, RedisBackend(f"redis://127.0.0.1:{proxy.port}?name={name}&lease=1") as backend:
        with oram.create(backend, state=tmp_path / "state", key=key, capacity=40, block_size=40) as store:
            for i in range(20):
                store[b"%d" % i] = model[b"%d" % i] = b"%d" % i
                if i == 9:
                    store.flush()
                    os.kill(replica.pid, signal.SIGSTOP)
                    with contextlib.closing(admin(primary)) as client:
                        client.client_kill_filter(_type="replica")
            if late:
                proxy.cut("before", b"EXEC")
                with pytest.raises(BackendUnavailableError):
                    backend.options = dataclasses.replace(backend.options, retry=0.0)
                    store.get(b"0")
                store.close()
            primary.kill()
            os.kill(replica.pid, signal.SIGCONT)
            with contextlib.closing(admin(replica)) as client:
                client.replicaof("no", "one")
            proxy.lead_to(replica.port)
            if late:
                backend.options = dataclasses.replace(backend.options, retry=10.0)
                time.sleep(1.1)  # the replica does not know that the lease was given back
                store = oram.open(backend, state=tmp_path / "state", key=key)
            with store, replica.monitor() as seen:
                assert {name: store.get(name) for name in model} == model
                assert dict(store.items()) == model
        commands = [words[0] for words in seen if words[0] in (b"MSET", b"MGET")]
        assert commands[:2] == [b"MGET", b"MSET"]  # the clock; then what was lost, before anything else


def test_a_lease_that_was_taken_and_given_back_under_the_same_number(tmp_path: Path, name: str) -> None:
    """A failover takes back that this client took the lease; another takes it, for the same time, and gives it back."""
    with redis_server(tmp_path / "server") as server, RedisBackend(server.url(name)) as backend:
        filled(backend)
        backend.acquire()
        with contextlib.closing(admin(server)) as client:
            client.unlink(f"{{{name}}}:lease", f"{{{name}}}:fence")
            with RedisBackend(server.url(name)) as other:
                other.acquire()
                other.release()
            fence = client.get(f"{{{name}}}:fence")
            assert isinstance(fence, bytes)
            assert fence.startswith(b"1 ")
        with pytest.raises(FencedError):
            backend.write("tree", slots(1), rows(1, 1))


def test_a_server_that_must_not_be_asked(tmp_path: Path, name: str) -> None:
    """Where CONFIG and INFO are forbidden there is no warning and no error."""
    with redis_server(tmp_path, {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}) as server:
        with contextlib.closing(admin(server)) as client:
            client.acl_setuser("default", enabled=True, commands=["-config", "-info"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            backend = RedisBackend(server.url(name))
        filled(backend)
        backend.close()


# Slots that somebody changed


@pytest.mark.parametrize("length", [0, 199, 201, 5000])
def test_a_slot_of_another_length(shared: Server, name: str, length: int) -> None:
    with RedisBackend(shared.url(name)) as backend:
        filled(backend)
        backend.acquire()
        with contextlib.closing(admin(shared)) as client:
            (key,) = client.keys(f"{{{name}}}:*:07")
            for whole in range(2):
                client.set(key, bytes(length))
                with pytest.raises(IntegrityError):
                    backend.read("tree", ALL if whole else slots(7))
            with pytest.raises(IntegrityError):
                backend.exchange((SlotWrite("tree", slots(1), rows(1, 1)),), SlotRead("tree", slots(7)))
            if length > 200:
                with pytest.raises(IntegrityError):
                    backend.read_xor("tree", slots(6, 7)[np.newaxis], slots())
        backend.write("tree", slots(7), rows(1, 1))
        assert np.array_equal(backend.read("tree", slots(7)).data, rows(1, 1))


def test_keys_of_another_type(shared: Server, name: str) -> None:
    with RedisBackend(shared.url(name)) as backend, contextlib.closing(admin(shared)) as client:
        filled(backend)
        (key,) = client.keys(f"{{{name}}}:*:07")
        client.delete(key)
        client.lpush(key, b"x")
        assert backend.read("tree", slots(6, 7)).present.tolist() == [1, 0]  # MGET says so; the store misses its slot
        with pytest.raises(IntegrityError):
            backend.read_xor("tree", slots(6, 7)[np.newaxis], slots())
        client.delete(f"{{{name}}}:regions")
        client.set(f"{{{name}}}:regions", b"x")
        with pytest.raises(IntegrityError):
            RedisBackend(shared.url(name))


@pytest.mark.parametrize(
    "record", [b"", b"1", b"1 2", b"1 0 3", b"1 -1 3", b"x y z", b"1 2 3 4", b"1 2 3\n", b"9" * 50]
)
def test_a_changed_shape(shared: Server, name: str, record: bytes) -> None:
    with contextlib.closing(admin(shared)) as client:
        client.hset(f"{{{name}}}:regions", "tree", record)
    with pytest.raises(IntegrityError):
        RedisBackend(shared.url(name))


def test_shapes_that_change_under_the_owner(shared: Server, name: str) -> None:
    """The server's word counts at each connection, and the owner's memory beside it."""
    with RedisBackend(shared.url(name)) as backend, contextlib.closing(admin(shared)) as client:
        filled(backend)
        backend.acquire()
        client.hdel(f"{{{name}}}:regions", "clock")
        backend._link.drop()
        with pytest.raises(RollbackError):
            backend.read("tree", ALL)


# The lease


def test_a_second_client_is_refused(shared: Server, name: str) -> None:
    with RedisBackend(shared.url(name)) as first, RedisBackend(shared.url(name)) as second:
        data = filled(first)
        first.acquire()
        second = RedisBackend(shared.url(name))
        with pytest.raises(StoreLockedError, match=r"expires in \d+ s"):
            second.acquire()
        assert np.array_equal(second.read("tree", ALL).data, data)
        calls: tuple[Callable[[], object], ...] = (
            lambda: second.write("tree", slots(0), rows(1, 1)),
            lambda: second.drop("tree"),
            lambda: second.allocate("other", SHAPE),
        )
        for refused in calls:
            with pytest.raises(StoreLockedError):
                refused()
        assert set(second.regions()) == {"tree", "clock"}
        assert np.array_equal(first.read("tree", ALL).data, data)
        first.close()
        second.acquire()
        assert np.array_equal(second.read("tree", ALL).data, data)
        second.close()


def expire(server: Server, name: str) -> None:
    """What the end of the lease's time does."""
    with contextlib.closing(admin(server)) as client:
        client.delete(f"{{{name}}}:lease")


@pytest.mark.parametrize("renewed", [False, True])
def test_a_client_that_lost_the_lease_writes_nothing(shared: Server, name: str, renewed: bool) -> None:
    old, new = RedisBackend(shared.url(name)), RedisBackend(shared.url(name))
    data = filled(old)
    old.acquire()
    old.write("tree", slots(3), data[3:4])
    expire(shared, name)
    new.acquire()
    data[3:4] = rows(33, 1)
    new.write("tree", slots(3), data[3:4])
    if renewed:
        old._renew_at = 0.0
    with shared.monitor() as seen, pytest.raises(FencedError):
        old.exchange((SlotWrite("tree", slots(3, 4), rows(1, 2)),), SlotRead("tree", ALL))
    assert all(words[0] != b"SET" for words in seen)
    calls: tuple[Callable[[], object], ...] = (
        lambda: old.write("tree", slots(3), rows(1, 1)),
        lambda: old.read("tree", ALL),
        lambda: old.read_xor("tree", slots(1, 2)[np.newaxis], slots()),
        lambda: old.drop("tree"),
        lambda: old.allocate("other", SHAPE),
    )
    with shared.monitor() as seen:
        for work in calls:
            with pytest.raises(FencedError):
                work()
    assert seen == []  # it does not even ask
    check(shared, name, data)
    old.close()
    new.write("tree", slots(3), data[3:4])  # closing the old one did not take the lease from the new one
    new.close()


def test_a_reader_that_lost_the_lease(shared: Server, name: str) -> None:
    """It is told so, before it takes another's slots for changed ones; a fold leaves nothing behind."""
    calls: tuple[Callable[[RedisBackend], object], ...] = (
        lambda old: old.read("tree", ALL),
        lambda old: old.read_xor("tree", slots(1, 2)[np.newaxis], slots()),
    )
    for work in calls:
        with RedisBackend(shared.url(name)) as old, RedisBackend(shared.url(name)) as new:
            filled(old)
            old.acquire()
            expire(shared, name)
            new.acquire()
            new.release()  # even where nobody has it any more
            old._link.drop()
            with pytest.raises(FencedError):
                work(old)


def test_a_lease_that_nobody_took(shared: Server, name: str) -> None:
    with RedisBackend(shared.url(name)) as backend:
        data = filled(backend)
        backend.acquire()
        for seed in range(3):
            expire(shared, name)
            assert np.array_equal(exchange(backend, seed), expected(data, seed))
            expire(shared, name)
            assert np.array_equal(backend.read("tree", ALL).data, data)
        with RedisBackend(shared.url(name)) as other, pytest.raises(StoreLockedError):
            other.acquire()


@pytest.mark.parametrize("taken", [False, True])
def test_a_lease_whose_time_is_over(shared: Server, name: str, taken: bool) -> None:
    """As after a night's sleep of its machine: by the server's clock, and whether it has noticed already or not."""
    with RedisBackend(shared.url(name, query="lease=1")) as old, RedisBackend(shared.url(name)) as new:
        data = filled(old)
        old.acquire()
        assert old._keeper is not None
        old._keeper.set()
        old.write("tree", slots(0), data[:1])
        old._renew_at = float("inf")  # nor does it know how late it is
        time.sleep(1.2)
        if taken:
            new.acquire()
            with pytest.raises(FencedError):
                old.write("tree", slots(3), rows(3, 1))
        else:
            data[3:4] = rows(3, 1)
            old.write("tree", slots(3), data[3:4])
            with pytest.raises(StoreLockedError):
                new.acquire()
        check(shared, name, data)


def test_an_idle_store_keeps_its_lease(shared: Server, name: str) -> None:
    with RedisBackend(shared.url(name, query="lease=1")) as backend, RedisBackend(shared.url(name)) as other:
        data = filled(backend)
        backend.acquire()
        start = time.monotonic()
        while time.monotonic() - start < 2.5:
            with pytest.raises(StoreLockedError):
                other.acquire()
            time.sleep(0.1)
        assert np.array_equal(backend.read("tree", ALL).data, data)


def test_a_busy_store_keeps_its_lease(shared: Server, name: str) -> None:
    with RedisBackend(shared.url(name, query="lease=1")) as backend, RedisBackend(shared.url(name)) as other:
        filled(backend)
        backend.acquire()
        assert backend._keeper is not None
        backend._keeper.set()  # no help from the background
        start = time.monotonic()
        while time.monotonic() - start < 2:
            backend.read("tree", slots(1))
            with pytest.raises(StoreLockedError):
                other.acquire()


def test_a_client_that_crashed(shared: Server, name: str) -> None:
    program = """
import sys, os, numpy as np
from oram.backends import RedisBackend, RegionShape
backend = RedisBackend(sys.argv[1])
backend.allocate("tree", RegionShape(64, 200))
backend.acquire()
backend.write("tree", np.arange(64), np.full((64, 200), 7, np.uint8))
os._exit(0)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    url = shared.url(name, query="lease=2")
    subprocess.run([sys.executable, "-c", program, url], env=environment, check=True, timeout=60)
    with RedisBackend(url) as backend:
        with pytest.raises(StoreLockedError):
            backend.acquire()
        time.sleep(2.1)
        backend.acquire()
        assert (backend.read("tree", ALL).data == 7).all()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of threads: from Python 3.12 on
def test_a_fork(shared: Server, name: str) -> None:
    with RedisBackend(shared.url(name)) as backend:
        data = filled(backend)
        backend.acquire()
        child = os.fork()
        if not child:
            code = 1
            try:
                with contextlib.suppress(ForkedStoreError):
                    backend.read("tree", ALL)
                    os._exit(2)
                backend.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert np.array_equal(backend.read("tree", ALL).data, data)
        with RedisBackend(shared.url(name)) as other, pytest.raises(StoreLockedError):
            other.acquire()


def test_a_forgotten_backend_lets_its_lease_expire(shared: Server, name: str) -> None:
    backend = RedisBackend(shared.url(name, query="lease=1"))
    backend.acquire()
    del backend
    with RedisBackend(shared.url(name)) as other:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                other.acquire()
                return
            except StoreLockedError:
                time.sleep(0.1)
    pytest.fail("the lease did not expire")


# Dropped regions


@pytest.mark.parametrize("others", [0, 3000])
def test_a_crash_in_a_drop(shared: Server, name: str, others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is gone, and the next owner deletes what is left of it; whichever way is shorter."""
    with contextlib.closing(admin(shared)) as client:
        with RedisBackend(shared.url(name)) as backend:
            filled(backend)
            backend.allocate("other", RegionShape(3000, 10))
            backend.write("other", np.arange(others), rows(1, others, 10))
            monkeypatch.setattr(RedisBackend, "_sweep", lambda *_: None)
            backend.drop("tree")
            monkeypatch.undo()
            assert "tree" not in backend.regions()
            backend.allocate("tree", SHAPE)
            assert not backend.read("tree", ALL).present.any()
            assert len(client.keys(f"{{{name}}}:00000001:*")) == 64
        with RedisBackend(shared.url(name)) as backend:
            backend.acquire()
            assert client.keys(f"{{{name}}}:00000001:*") == []
            assert not client.exists(f"{{{name}}}:dropped")
            assert backend.read("other", np.arange(others)).present.all()
            backend.drop("other")
        assert len(client.keys(f"{{{name}}}:0*")) == 0


# An erasure


def erased_late(server: Server, name: str, tmp_path: Path, skip: int) -> None:
    """Over a connection that breaks in the middle of it, and another one; then there is a new store, and then what the first connection had sent comes.

    skip: which of its deletions that is.
    """
    options: dict[str, Any] = {
        "key": bytes(32), "capacity": 60, "block_size": 48, "tree_top": 0, "durability": "process",
        "scheme": oram.PathParams(page_levels=1),
    }  # fmt: skip
    with Proxy(server.port) as proxy:
        url = through(proxy, name)
        with oram.create(url, state=tmp_path / "old", items={b"1": b"old"}, **options):
            pass
        with RedisBackend(url) as backend:
            proxy.cut("hold", b"UNLINK", skip=skip)
            backend.erase()
            assert proxy.fired.is_set()
        with oram.create(url, state=tmp_path / "new", **options) as store:
            model = {b"%d" % i: b"new" for i in range(40)}
            for record, value in model.items():
                store[record] = value
            store.flush()
            with server.monitor() as seen:
                proxy.late()
                time.sleep(0.3)
            assert {b"UNLINK", b"EXEC"} & {
                words[0] for words in seen
            }  # a transaction that fails shows no more than its end
            assert dict(store.items()) == model


@pytest.mark.parametrize("skip", range(3))
def test_an_erasure_that_comes_late(shared: Server, name: str, tmp_path: Path, skip: int) -> None:
    """The lease, the slots, the names: the next store of that name loses nothing by it."""
    erased_late(shared, name, tmp_path, skip)


def test_an_erasure_that_looks_at_no_lease_is_found_out(
    shared: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(self: RedisBackend, keys: list[bytes]) -> None:
        self._call(lambda: self._ask([wire.pack(b"UNLINK", *keys)]))

    monkeypatch.setattr(RedisBackend, "_unlink", alone)
    with pytest.raises(OramError):
        erased_late(shared, name, tmp_path, 1)


@pytest.mark.parametrize("full", [False, True])
def test_an_erasure_makes_room_and_stops_where_somebody_comes(
    tmp_path: Path, name: str, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oram.backends.redis.backend._SWEEP", 8)
    with redis_server(tmp_path) as server, contextlib.closing(admin(server)) as client:
        with RedisBackend(server.url(name)) as backend:
            backend.acquire()
            filled(backend)
            if full:
                client.config_set("maxmemory", 1)
                with pytest.raises(BackendFullError):
                    backend.drop("tree")
            trip, scans = backend._link.trip, 0

            def taken(commands: list[bytes], *more: Any) -> list[Any]:
                nonlocal scans
                scans += any(b"SCAN" in command for command in commands)
                if scans == 3:
                    scans += 1
                    client.config_set("maxmemory", 0)
                    client.set(f"{{{name}}}:lease", b"somebody's")
                    client.config_set("maxmemory", int(full))
                return trip(commands, *more)

            with monkeypatch.context() as patch:
                patch.setattr(backend._link, "trip", taken)
                with pytest.raises(StoreLockedError):
                    backend.erase()
            assert 30 < len(client.keys(f"{{{name}}}:0*")) < 65
            backend.erase()
        assert client.dbsize() == 0


# A whole store


@pytest.mark.parametrize("scheme", ["path", "ring", "linear"])
def test_a_store_over_a_bad_line(shared: Server, name: str, tmp_path: Path, scheme: str) -> None:
    """Every hundredth or so byte breaks the line: what was acknowledged is there."""
    key, model = oram.generate_key(), {}
    random = np.random.default_rng(1)
    with Proxy(shared.port) as proxy:
        url = through(proxy, name)
        with oram.create(url, state=tmp_path, key=key, capacity=64, block_size=64, scheme=scheme) as store:
            for i in range(60):
                proxy.cut(WAYS[i % 2], int(random.integers(1, 600)))
                at, value = b"%d" % random.integers(20), b"%d" % i
                store[at] = model[at] = value
            assert dict(store.items()) == model
        with oram.open(url, state=tmp_path, key=key) as store:
            proxy.cut("down", 1000)
            assert dict(store.items()) == model
        assert proxy.connections > 10


@pytest.mark.parametrize("scheme", ["path", "ring"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_whose_net_is_gone(shared: Server, name: str, tmp_path: Path, when: Where, scheme: str) -> None:
    """The access fails, the handle is out of use, and the next one finishes the access: all that was acknowledged is there."""
    key = oram.generate_key()
    with Proxy(shared.port) as proxy:
        url = through(proxy, name, "retry=0.2&lease=1")
        store = oram.create(url, state=tmp_path, key=key, capacity=64, block_size=64, scheme=scheme)
        store[b"a"] = b"0"
        proxy.cut(when, b"EXEC", skip=3)

        def fall() -> None:
            proxy.fired.wait(20)
            proxy.down()

        threading.Thread(target=fall).start()
        acknowledged = 0
        with pytest.raises(BackendUnavailableError):
            while True:
                store[b"a"] = b"%d" % (acknowledged + 1)
                acknowledged += 1
        with contextlib.suppress(BackendUnavailableError):
            store.close()
        proxy.up()
        time.sleep(1.1)  # the lease of the handle that could not give it back
        with oram.open(url, state=tmp_path, key=key) as store:
            assert int(store[b"a"]) in (acknowledged, acknowledged + 1)
            store.verify()
        assert acknowledged > 0


def test_a_store_that_was_taken_over(shared: Server, name: str, tmp_path: Path) -> None:
    """The old handle fails without having written; the new one goes on."""
    key = oram.generate_key()
    url = shared.url(name)
    old = oram.create(url, state=tmp_path, key=key, capacity=64, block_size=64, scheme="path")
    old[b"a"] = b"1"
    expire(shared, name)
    with RedisBackend(url) as thief:
        thief.acquire()
        with shared.monitor() as seen, pytest.raises(FencedError):
            old[b"a"] = b"2"
        assert all(words[0] not in (b"MSET", b"SET") for words in seen)
    old.close()


@pytest.mark.parametrize("scheme", ["path", "ring"])
def test_a_store_whose_client_is_killed(shared: Server, name: str, tmp_path: Path, scheme: str) -> None:
    """``kill -9`` at random instants: what was acknowledged is there, and the next client need only wait for the lease."""
    program = """
import sys, oram, warnings
warnings.simplefilter("ignore")
with oram.open(sys.argv[1], state=sys.argv[2], key=bytes(32)) as store:
    n = int(sys.argv[3])
    while True:
        n += 1
        store[b"%d" % (n % 20)] = b"%d" % n
        print(n, flush=True)
"""
    url = shared.url(name, query="lease=1")
    oram.create(url, state=tmp_path, key=bytes(32), capacity=64, block_size=64, scheme=scheme).close()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    random, acknowledged = np.random.default_rng(3), 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", program, url, tmp_path, str(acknowledged)], env=environment, stdout=subprocess.PIPE
        ) as client:
            assert client.stdout is not None
            acknowledged = int(client.stdout.readline())
            time.sleep(random.random() / 10)
            client.kill()
            acknowledged = int(([b"%d" % acknowledged, *client.stdout.read().split()])[-1])
        time.sleep(1.1)
        with oram.open(url, state=tmp_path, key=bytes(32)) as store:
            newest = max(int(value) for value in store.values())
            assert newest in (acknowledged, acknowledged + 1)
            for n in range(max(1, acknowledged - 18), acknowledged + 1):
                assert int(store[b"%d" % (n % 20)]) in (n, n + 20)
        acknowledged = newest


def test_wrong_access(tmp_path: Path) -> None:
    """See test_redis_secure.py for what a user may do."""
    with redis_server(tmp_path, {"requirepass": "hunter2"}) as server, pytest.raises(BackendAccessError):
        RedisBackend(server.url())
