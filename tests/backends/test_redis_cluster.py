"""The Redis backend on a real cluster: the node that has the store is found, followed, and missed no longer than it takes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
import pytest
import redis as redis_py

import oram
from oram.backends import Backend, RedisBackend, RedisOptions, RegionShape, SlotRead, SlotWrite, open_url
from oram.backends.redis import wire
from oram.errors import (
    BackendAccessError,
    BackendError,
    BackendReadOnlyError,
    BackendUnavailableError,
    BackendWarning,
    FencedError,
    IntegrityError,
    ParameterError,
    PoisonedError,
    RollbackError,
    StoreLockedError,
)
from oram.store import ObliviousStore
from oram.testing.conformance import BackendConformance
from oram.testing.servers import Cluster, Server, free_port, redis_cluster, redis_server
from oram.types import I64, U8

#: Flushing at each write would take most of the time of these tests, and a lost write is what some of them are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:appendfsync:oram.errors.BackendWarning"),
    pytest.mark.filterwarnings("ignore:min-replicas:oram.errors.BackendWarning"),
]

SHAPE = RegionShape(64, 200)
ALL = np.arange(SHAPE.slots)
CLOCK = RegionShape(1, 64)
PAGE = Path(__file__).parents[2] / "docs" / "remote.md"
PATIENT = "timeout=2&retry=20&lease=60"


def slots(*indices: int) -> I64:
    return np.array(indices, dtype=np.int64)


def rows(seed: int, count: int, size: int = SHAPE.slot_size) -> U8:
    return np.random.default_rng(seed).integers(1, 256, (count, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """All nodes are up before each test. Which one has which role, a test has to ask."""
    dead = [node for node in shared.nodes if not node.running]
    for node in dead:
        node.start()
    if dead:
        shared.wait_ready()
    yield shared
    for node in shared.alive:
        os.kill(node.pid, signal.SIGCONT)


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


def primaries(cluster: Cluster, says: Server | None = None) -> list[Server]:
    ports = {int(row[2][1]) for row in cluster.ask(says or cluster.nodes[0], "CLUSTER", "SLOTS")}
    return [node for node in cluster.nodes if node.port in ports]


def on(node: Server, cluster: Cluster) -> str:
    """The name of a new store that lies on this primary."""
    while True:
        name = secrets.token_hex(8)
        if cluster.places(name)[0] is node:
            return name


def elsewhere(cluster: Cluster, name: str) -> Server:
    """A primary that has not this store."""
    return next(node for node in primaries(cluster) if node is not cluster.places(name)[0])


def filled(backend: Backend) -> U8:
    data = rows(0, SHAPE.slots)
    backend.allocate("tree", SHAPE)
    backend.allocate("clock", CLOCK)
    backend.write("tree", ALL, data)
    return data


def exchange(backend: RedisBackend, seed: int, data: U8) -> None:
    """A write-back with the next read, which has to be what ``data`` becomes by it."""
    writes = (SlotWrite("tree", slots(1, 2, 3), rows(seed, 3)), SlotWrite("clock", slots(0), rows(seed, 1, 64)))
    result = backend.exchange(writes, SlotRead("tree", slots(0, 1, 2, 50), slots(1, 2, 3, 60)[np.newaxis]))
    data[1:4] = rows(seed, 3)
    assert result.folded is not None
    assert np.array_equal(result.data, data[[0, 1, 2, 50]])
    assert np.array_equal(result.folded[0], data[1] ^ data[2] ^ data[3] ^ data[60])


def check(cluster: Cluster, name: str, data: U8) -> None:
    """Compare the region with ``data`` over a connection of its own."""
    with RedisBackend(cluster.places(name)[0].url(name)) as other:
        read = other.read("tree", ALL)
        assert read.present.all()
        assert np.array_equal(read.data, data)


def replicated(backend: RedisBackend) -> None:
    """Until a replica has all that this backend wrote."""
    assert backend._call(lambda: backend._ask([wire.pack(b"WAIT", b"1", b"5000")])) == [1]


def reply(text: str) -> Exception:
    reader = hiredis.Reader()
    reader.feed(b"-%s\r\n" % text.encode())
    error = reader.gets()
    assert isinstance(error, Exception)
    return error


class TestOnACluster(BackendConformance):
    """The contract, where the URL names a node that has not the store."""

    @pytest.fixture
    def backend(self, cluster: Cluster, name: str) -> Iterator[RedisBackend]:
        self.url = elsewhere(cluster, name).url(name)
        with RedisBackend(self.url) as backend:
            yield backend

    def reopen(self, backend: Backend) -> RedisBackend:
        backend.close()
        return RedisBackend(self.url)


# Which node


def test_urls_of_several_nodes() -> None:
    of = RedisOptions.from_url
    several = of("redis://h1:7000,h2,[::1]:7002/0?name=x")
    assert several == RedisOptions(host="h1", port=7000, nodes=(("h2", 6379), ("::1", 7002)), name="x")
    assert several.url == "redis://h1:7000,h2:6379,[::1]:7002/0?name=x"
    assert of(several.url) == several
    assert of("rediss://r,e:7?timeout=3") == RedisOptions(host="r", nodes=(("e", 7),), tls=True, timeout=3)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h,",
        "redis://,h",
        "redis://h1,,h2",
        "redis://h1:7000,h2:x",
        "redis://h1,h2:99999",
        "redis://h1:0",
        "redis://h1,[::1",
        "redis://[hunter2",
        "redis://h1,hunter2@h2",
        "redis://" + ",".join(f"h{i}" for i in range(40)),
    ],
)
def test_bad_urls_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ParameterError) as raised:
        open_url(url, sync=True, create=True)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__context__ is None


def test_nodes_have_no_unix_socket() -> None:
    with pytest.raises(ParameterError, match="not by a Unix socket"):
        RedisOptions(socket="/x", nodes=(("h", 1),))


def test_any_node_leads_to_the_store(cluster: Cluster, name: str) -> None:
    for seed, node in enumerate(cluster.nodes):
        with RedisBackend(node.url(name)) as backend:
            backend.acquire()
            if not seed:
                filled(backend)
            backend.write("tree", ALL, rows(seed, 64))
            assert backend.options.url == node.url(name)
        check(cluster, name, rows(seed, 64))


def test_stores_lie_on_different_nodes(cluster: Cluster) -> None:
    """All of a store on one node, and its replica, whatever node was asked."""
    where = {on(node, cluster): node for node in primaries(cluster)}
    assert len(where) == 3
    backends = [RedisBackend(cluster.nodes[0].url(name)) for name in where]
    try:
        for seed, backend in enumerate(backends):
            backend.acquire()
            filled(backend)
            backend.write("tree", ALL, rows(seed, 64))
        for seed, backend in enumerate(backends):
            assert np.array_equal(backend.read("tree", ALL).data, rows(seed, 64))
        for name, node in where.items():
            for other in primaries(cluster):
                found = cluster.ask(other, "KEYS", f"{{{name}}}:*")
                assert bool(found) == (other is node)
    finally:
        for backend in backends:
            backend.close()


def test_the_other_nodes_do_nothing(cluster: Cluster, name: str, tmp_path: Path) -> None:
    """One that has not the store is asked for the nodes and its settings. What else it gets, it refuses."""
    wrong = elsewhere(cluster, name)
    with (
        wrong.monitor() as seen,
        oram.create(wrong.url(name), state=tmp_path, key=bytes(32), capacity=20, block_size=64) as store,
    ):
        store[b"a"] = b"1"
    # the server keeps CONFIG to itself, and Redis 6.2 CLUSTER too
    assert {words[0] for words in seen} - {b"CLUSTER"} == {b"INFO"}
    assert not any(name.encode() in word for words in seen for word in words)


def test_the_first_node_is_dead(cluster: Cluster, name: str) -> None:
    dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    alive = f"127.0.0.1:{elsewhere(cluster, name).port}"
    with RedisBackend(f"redis://{dead[0]},{dead[1]},{alive}/0?name={name}&retry=60") as backend:
        filled(backend)
    start = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="Connection refused"):
        RedisBackend(f"redis://{dead[0]},{dead[1]}?retry=60")
    assert time.monotonic() - start < 5


def test_several_servers_that_are_no_cluster(tmp_path: Path, name: str) -> None:
    with redis_server(tmp_path) as server:
        one = f"127.0.0.1:{server.port}"
        with pytest.raises(BackendError, match="no part of a cluster"):
            RedisBackend(f"redis://{one},127.0.0.1:{free_port()}?name={name}")


def test_a_database_that_a_cluster_has_not(cluster: Cluster, tmp_path: Path, name: str) -> None:
    with pytest.raises(ParameterError, match="no database 1"):
        RedisBackend(cluster.nodes[0].url(name, db=1))
    with redis_server(tmp_path, {"databases": "2"}) as server, pytest.raises(ParameterError, match="no database 2"):
        RedisBackend(server.url(name, db=2))


def test_a_second_client_is_refused_wherever_it_asks(cluster: Cluster, name: str) -> None:
    with RedisBackend(cluster.nodes[0].url(name)) as backend:
        backend.acquire()
        for node in cluster.nodes:
            with RedisBackend(node.url(name)) as other, pytest.raises(StoreLockedError):
                other.acquire()


def test_nodes_that_hang(cluster: Cluster, name: str) -> None:
    """No call goes on far beyond ``retry`` because there are many; the next one begins where it ended."""
    with contextlib.ExitStack() as stack:
        hung = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(6)]
        where = cluster.places(name)[0]
        backend = stack.enter_context(RedisBackend(where.url(name, query="timeout=0.3&retry=0.1")))
        filled(backend)
        backend._link.drop()
        backend._link._order = [*(silent.getsockname() for silent in hung), ("127.0.0.1", where.port)]
        failed = 0
        while True:
            start = time.monotonic()
            try:
                backend.read("tree", ALL)
                break
            except BackendUnavailableError:
                failed += 1
                assert failed < 7
                assert time.monotonic() - start < 1
        assert failed > 1


# The store goes to another node


@pytest.mark.parametrize("due", [False, True])
def test_an_orderly_failover(cluster: Cluster, name: str, due: bool) -> None:
    """There and back, while the store is in use: nothing is lost, and the owner's checks are made at each new primary.

    due: the replicas are about to be asked what they have, which the old primary refuses by then.
    """
    with RedisBackend(elsewhere(cluster, name).url(name, query=PATIENT)) as backend:
        backend.acquire()
        data = filled(backend)
        for turn in range(2):
            exchange(backend, turn, data)
            _, new = cluster.places(name)
            with new.monitor() as seen:
                cluster.promote(new)
                assert cluster.places(name)[0] is new
                if due:
                    backend._at_risk = 8
                exchange(backend, 10 + turn, data)
            mine = [b" ".join(words[:2]) for words in seen if words[0] in (b"WATCH", b"PEXPIRE", b"MSET")]
            while mine and not mine[0].startswith(b"WATCH"):  # Redis 6.2 shows what a replica gets from its primary
                del mine[0]
            assert [words.split(b":")[-1] for words in mine[:2]] == [b"lease", b"lease"]
            assert mine[1].startswith(b"PEXPIRE")
            assert b"MSET" in mine[-2] + mine[-1]
        check(cluster, name, data)


def test_a_failover_with_another_owner_meanwhile(cluster: Cluster, name: str) -> None:
    """The lease went along: who lost it before is told so at the new primary, and writes nothing there."""
    old, new = RedisBackend(cluster.nodes[0].url(name)), RedisBackend(cluster.nodes[1].url(name))
    with old, new:
        old.acquire()
        data = filled(old)
        cluster.ask(cluster.places(name)[0], "DEL", f"{{{name}}}:lease")
        new.acquire()
        cluster.promote(cluster.places(name)[1])
        new.write("tree", slots(7), rows(7, 1))
        data[7:8] = rows(7, 1)
        with pytest.raises(FencedError):
            old.write("tree", slots(7), rows(8, 1))
        check(cluster, name, data)


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_the_primary_dies(cluster: Cluster, name: str, how: str) -> None:
    """The call waits until the replica has taken its place, and goes on there. The old one comes back and is nobody."""
    seed = elsewhere(cluster, name) if how == "hung" else cluster.places(name)[0]  # which is to be of no help then
    with RedisBackend(seed.url(name, query="timeout=0.5&retry=30&lease=60")) as backend:
        backend.acquire()
        data = filled(backend)
        exchange(backend, 1, data)
        replicated(backend)
        old, new = cluster.places(name)
        if how == "killed":
            old.kill()
        else:
            os.kill(old.pid, signal.SIGSTOP)
        start = time.monotonic()
        exchange(backend, 2, data)
        assert cluster.timeout / 2 < time.monotonic() - start < 15
        assert np.array_equal(backend.read("tree", ALL).data, data)
        if how == "killed":
            old.start()
        else:
            os.kill(old.pid, signal.SIGCONT)
        cluster.wait_ready()
        assert cluster.places(name) == [new, old]
        exchange(backend, 3, data)
        check(cluster, name, data)


def test_the_primary_dies_and_nobody_may_follow(cluster: Cluster, name: str) -> None:
    """As an operator has it who prefers waiting: the call fails after ``retry``, and goes on when the node is back."""
    primary, replica = cluster.places(name)
    query = "timeout=0.5&retry=1&lease=60"
    cluster.ask(primary, "CONFIG", "SET", "appendfsync", "always")  # else it holds writes back while the disk is busy
    with RedisBackend(elsewhere(cluster, name).url(name, query=query)) as backend:
        backend.acquire()
        data = filled(backend)
        cluster.ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "yes")
        primary.kill()
        start = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="no answer from"):
            backend.read("tree", ALL)
        assert 1 <= time.monotonic() - start < 5
        with pytest.raises(BackendUnavailableError):
            RedisBackend(replica.url(name, query=query))
        primary.start()
        cluster.wait_ready()
        cluster.ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "no")
        assert cluster.places(name) == [primary, replica]
        exchange(backend, 2, data)
        check(cluster, name, data)


def cut_off(cluster: Cluster, primary: Server, replica: Server) -> None:
    """From here on the replica gets nothing, until it is told to go on."""
    os.kill(replica.pid, signal.SIGSTOP)
    cluster.ask(primary, "CLIENT", "KILL", "TYPE", "replica")  # else what is sent waits for it in its socket


@pytest.mark.filterwarnings("ignore:there are replicas")
def test_a_replica_that_had_not_everything(cluster: Cluster, name: str) -> None:
    """A failover that takes the taking of the lease back: noticed at the next access, and nothing is written there."""
    primary, replica = cluster.places(name)
    with RedisBackend(primary.url(name, query=f"{PATIENT}&replicas=0")) as backend:
        filled(backend)
        replicated(backend)
        cut_off(cluster, primary, replica)
        backend.acquire()
        backend.write("tree", slots(1), rows(9, 1))
        primary.kill()
        os.kill(replica.pid, signal.SIGCONT)
        with pytest.raises(RollbackError):
            backend.write("tree", slots(2), rows(9, 1))
    check(cluster, name, rows(0, 64))


class Move:
    """A store's slot on its way to another node, key by key."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._slot = cluster, cluster.slot(name)
        self._source, self.target = cluster.places(name)[0], elsewhere(cluster, name)
        ask, identity = cluster.ask, cluster.identity
        ask(self.target, "CLUSTER", "SETSLOT", self._slot, "IMPORTING", identity(self._source))
        ask(self._source, "CLUSTER", "SETSLOT", self._slot, "MIGRATING", identity(self.target))

    def some(self, count: int, *, named: bool = True) -> int:
        """Move up to ``count`` keys. named: also those that are no slots, such as the lease."""
        keys = self._cluster.ask(self._source, "CLUSTER", "GETKEYSINSLOT", self._slot, count if named else count + 10)
        if not named:
            keys = [key for key in keys if key.count(b":") == 2][:count]
        if keys:
            self._cluster.ask(self._source, "MIGRATE", "127.0.0.1", self.target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def finish(self) -> None:
        while self.some(100):
            pass
        identity = self._cluster.identity(self.target)
        for node in (self.target, self._source, *primaries(self._cluster, self._source)):
            self._cluster.ask(node, "CLUSTER", "SETSLOT", self._slot, "NODE", identity)


CALLS: dict[str, Callable[[RedisBackend, U8], object]] = {
    "read": lambda backend, _: backend.read("tree", ALL),
    "one": lambda backend, _: backend.read("tree", slots(5)),
    "write": lambda backend, data: backend.write("tree", ALL, data),
    "exchange": lambda backend, data: exchange(backend, 5, data),
    "renew": lambda backend, _: backend._call(backend._renew),
    "allocate": lambda backend, _: backend.allocate("more", SHAPE),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_store_is_moved_while_in_use(cluster: Cluster, name: str, call: str) -> None:
    """A call waits until all of the store has arrived, and is made at the node where it is."""
    with RedisBackend(cluster.nodes[0].url(name, query=PATIENT)) as backend:
        backend.acquire()
        data = filled(backend)
        move = Move(cluster, name)
        moved = 0

        def go() -> None:
            nonlocal moved
            while moved < 60 and move.some(10):
                moved += 10
                time.sleep(0.02)
            move.finish()

        thread = threading.Thread(target=go)
        thread.start()
        while moved < 40:
            CALLS[call](backend, data)
        CALLS[call](backend, data)
        thread.join()
        assert cluster.places(name, move.target)[0] is move.target
        exchange(backend, 7, data)
        assert np.array_equal(backend.read("tree", ALL).data, data)
        with RedisBackend(cluster.nodes[1].url(name)) as other, pytest.raises(StoreLockedError):
            other.acquire()
        assert len(cluster.ask(move.target, "KEYS", f"{{{name}}}:0*")) == 65


def test_a_move_that_takes_too_long(cluster: Cluster, name: str) -> None:
    """Nothing half done, a typed error, and afterwards it goes on."""
    with RedisBackend(cluster.nodes[0].url(name, query="retry=0.1&lease=60")) as backend:
        backend.acquire()
        data = filled(backend)
        move = Move(cluster, name)
        for count in (20, 100):
            move.some(count)
            with pytest.raises(BackendUnavailableError, match="being moved"):
                backend.read("tree", ALL)
            with pytest.raises(BackendUnavailableError, match="being moved"):
                backend.write("tree", ALL, rows(1, 64))
            with pytest.raises(BackendUnavailableError, match="being moved"):
                backend._link.drop()
                exchange(backend, 1, data.copy())
        move.finish()
        assert np.array_equal(backend.read("tree", ALL).data, data)
        exchange(backend, 2, data)
        check(cluster, name, data)


def atomic_move(cluster: Cluster, name: str) -> Server:
    """Start a move of the store's slot as a whole."""
    slot, target = cluster.slot(name), elsewhere(cluster, name)
    try:
        cluster.ask(
            cluster.places(name)[0], "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE",
            cluster.identity(target),
        )  # fmt: skip
    except Exception as error:
        pytest.skip(f"no such thing as an atomic move here: {error}")
    return target


def test_a_move_as_a_whole(cluster: Cluster, name: str) -> None:
    with RedisBackend(cluster.nodes[0].url(name, query=PATIENT)) as backend:
        backend.acquire()
        data = filled(backend)
        target = atomic_move(cluster, name)
        end, seed = time.monotonic() + 10, 0
        while cluster.places(name, target)[0] is not target and time.monotonic() < end:
            seed += 1
            exchange(backend, seed, data)
        exchange(backend, seed + 1, data)
        assert np.array_equal(backend.read("tree", ALL).data, data)
        check(cluster, name, data)


def test_a_drop_goes_along(cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a dropped region are found where the store has gone meanwhile."""
    monkeypatch.setattr("oram.backends.redis.backend._SWEEP", 8)
    with RedisBackend(cluster.nodes[0].url(name, query=PATIENT)) as backend:
        backend.acquire()
        backend.allocate("big", RegionShape(1 << 20, 8))
        backend.write("big", np.arange(400), rows(1, 400, 8))
        trip, scans = backend._link.trip, 0

        def moving(commands: list[bytes], *more: Any) -> list[Any]:
            nonlocal scans
            scans += any(b"SCAN" in command for command in commands)
            if scans == 3:
                scans += 1
                Move(cluster, name).finish()
            return trip(commands, *more)

        monkeypatch.setattr(backend._link, "trip", moving)
        backend.drop("big")
        assert scans > 10
    for node in primaries(cluster):
        assert cluster.ask(node, "KEYS", f"{{{name}}}:0*") == []


@pytest.mark.parametrize(("erase", "guard"), [(False, "fold"), (True, "fold"), (False, "fence")])
def test_slots_are_deleted_in_the_middle_of_a_move(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch, erase: bool, guard: str
) -> None:
    """Half of the slots are at the other node already, and the rest stays until everything that is there is deleted: so it is not taken for everything.

    guard: what is asked for beside the keys that are there. Where it is still the fence, half of the slots are missed.
    """
    monkeypatch.setattr("oram.backends.redis.backend._SWEEP", 8)
    with RedisBackend(cluster.nodes[0].url(name, query=PATIENT)) as backend:
        backend.acquire()
        backend.allocate("big", RegionShape(1 << 20, 8))
        backend.write("big", np.arange(400), rows(1, 400, 8))
        monkeypatch.setattr(backend._names, "fold", getattr(backend._names, guard))
        trip, scans = backend._link.trip, 0
        move: Move | None = None
        end: threading.Timer | None = None

        def moving(commands: list[bytes], *more: Any) -> list[Any]:
            nonlocal scans, move, end
            scans += any(b"SCAN" in command for command in commands)
            if scans == 3 and move is None:
                move = Move(cluster, name)
                move.some(200, named=False)
                end = threading.Timer(1, move.finish)
                end.start()
            return trip(commands, *more)

        monkeypatch.setattr(backend._link, "trip", moving)
        if erase:
            backend.erase()
        else:
            backend.drop("big")
        assert end is not None
        end.join()
    left = [key for node in primaries(cluster) for key in cluster.ask(node, "KEYS", f"{{{name}}}:0*")]
    assert bool(left) == (guard == "fence")


# What a cluster says


def answering(backend: RedisBackend, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Exception | None]) -> None:
    """Replace replies of the server by ``answer()``, where that is something."""
    trip = backend._link.trip

    def spoilt(commands: list[bytes], *more: Any) -> list[Any]:
        replies = trip(commands, *more)
        instead = answer()
        return replies if instead is None else [instead] * len(replies)

    monkeypatch.setattr(backend._link, "trip", spoilt)


BUSY = {
    "TRYAGAIN Multiple keys request during rehashing of slot": "being moved",
    "ASK 7 127.0.0.1:1": "being moved",
    "CLUSTERDOWN The cluster is down": "cluster is down",
    "LOADING Redis is loading the dataset in memory": "loading",
}


@pytest.mark.parametrize("text", BUSY)
def test_what_passes(cluster: Cluster, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = 5

    def answer() -> Exception | None:
        nonlocal left
        left -= 1
        return reply(text) if left > 0 else None

    with RedisBackend(cluster.nodes[0].url(name, query=PATIENT)) as backend:
        backend.acquire()
        data = filled(backend)
        count = backend._link.count
        with monkeypatch.context() as patch:
            answering(backend, patch, answer)
            exchange(backend, 3, data)
        assert left <= 0
        assert (backend._link.count > count) == text.startswith("CLUSTERDOWN")  # who is only busy keeps its connection
        check(cluster, name, data)


@pytest.mark.parametrize("text", BUSY)
def test_what_does_not_pass(cluster: Cluster, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisBackend(cluster.nodes[0].url(name, query="retry=0.3&lease=60")) as backend:
        backend.acquire()
        data = filled(backend)
        with monkeypatch.context() as patch:
            answering(backend, patch, lambda: reply(text))
            start = time.monotonic()
            with pytest.raises(BackendUnavailableError, match=BUSY[text]):
                backend.read("tree", ALL)
            assert 0.3 <= time.monotonic() - start < 3
        exchange(backend, 3, data)
        check(cluster, name, data)


def test_too_few_replicas_for_a_while(cluster: Cluster, name: str) -> None:
    """As after a failover, until the old primary is back. Elsewhere nobody mends it, and waiting is no use."""
    primary = cluster.places(name)[0]
    with (
        RedisBackend(primary.url(name, query=PATIENT)) as backend,
        RedisBackend(primary.url("x" + name, query="retry=0.2")) as hasty,
    ):
        data = filled(backend)
        cluster.ask(primary, "CONFIG", "SET", "min-replicas-to-write", "2")
        later = threading.Timer(0.2, cluster.ask, (primary, "CONFIG", "SET", "min-replicas-to-write", "0"))
        if cluster.places("x" + name)[0] is primary:
            with pytest.raises(BackendReadOnlyError, match="NOREPLICAS"):
                hasty.allocate("tree", SHAPE)
        later.start()
        exchange(backend, 1, data)
        later.join()
        check(cluster, name, data)


class Fake:
    """Answers each command with ``answer(command)``; a node of a cluster that there is not."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer, self.connections = answer, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = hiredis.Reader()
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                reader.feed(data)
                while (words := reader.gets()) is not False:
                    connection.sendall(self.answer(words[0].upper()))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def node(*keyed: Callable[[], bytes]) -> Iterator[list[Fake]]:
    """Nodes that permit no questions, and answer commands with keys as told."""
    refused = (b"CLUSTER", b"CONFIG", b"INFO")
    fakes = [
        Fake(lambda command, told=told: b"-NOPERM no\r\n" if command in refused else told() + b"\r\n")  # type: ignore[misc]
        for told in keyed
    ]
    try:
        yield fakes
    finally:
        for fake in fakes:
            fake.close()


def test_an_empty_host_is_the_same_host(tmp_path: Path, name: str) -> None:
    with (
        redis_server(tmp_path) as server,
        node(lambda: b"-MOVED 7 :%d" % server.port) as (fake,),
        RedisBackend(f"redis://127.0.0.1:{fake.port}?name={name}") as backend,
    ):
        backend.acquire()
        data = filled(backend)
        exchange(backend, 1, data)
        assert fake.connections == 1


@pytest.mark.parametrize("retry", [0, 0.5])
def test_round_in_circles(retry: float) -> None:
    ports: list[int] = []
    ring = [lambda at=at: b"-MOVED 7 127.0.0.1:%d" % ports[(at + 1) % 3] for at in range(3)]
    with node(*ring) as fakes:
        ports += [fake.port for fake in fakes]
        first = f"redis://127.0.0.1:{ports[0]}?timeout=2"
        with pytest.raises(BackendUnavailableError):
            RedisBackend(first)  # which tries once
        assert [fake.connections for fake in fakes] == [1, 1, 1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RedisBackend, "_call", lambda self, work, retry=None: None)
            backend = RedisBackend(f"{first}&retry={retry}")
        start = time.monotonic()
        with contextlib.closing(backend), pytest.raises(BackendUnavailableError):
            backend._call(lambda: None)
        assert retry <= time.monotonic() - start < retry + 2
        assert all(fake.connections < 60 for fake in fakes)


def test_always_another_node() -> None:
    """A hostile one: each time to itself under another name. There is an end to it."""
    count = 0

    def somewhere() -> bytes:
        nonlocal count
        count += 1
        host = "".join(c.upper() if count >> i & 1 else c for i, c in enumerate("localhost"))
        return b"-MOVED 7 %s:%d" % (host.encode(), fakes[0].port)

    with node(somewhere) as fakes:
        with pytest.raises(BackendUnavailableError):
            RedisBackend(f"redis://127.0.0.1:{fakes[0].port}")
        assert 5 < fakes[0].connections <= 10


@pytest.mark.parametrize("says", [b"-CLUSTERDOWN no", b"-MOVED 7 127.0.0.1:1", b"-MOVED 7 ?:0"])
def test_a_node_that_knows_nothing(cluster: Cluster, name: str, says: bytes) -> None:
    """As one that is cut off from the others. They are asked at once, also at the first connection."""
    with node(lambda: says) as (fake,):
        right = elsewhere(cluster, name).port
        with RedisBackend(f"redis://127.0.0.1:{fake.port},127.0.0.1:{right}?name={name}") as backend:
            filled(backend)
        assert fake.connections == 1


@pytest.mark.parametrize(
    "where",
    [
        "?:1",
        "hunter2:0",
        "hunter2:99999",
        "127.0.0.1:1",
        "hunter2",
        "hunter2:x",
        "a hunter2:1",
        "/hunter2:1",
        "x" * 300,
    ],
)
def test_redirects_to_nowhere(where: str) -> None:
    with node(lambda: b"-MOVED 7 " + where.encode()) as (fake,):
        with pytest.raises((BackendUnavailableError, BackendError)) as raised:
            RedisBackend(f"redis://127.0.0.1:{fake.port}?timeout=2")
        assert "hunter2" not in str(raised.value)
        assert raised.value.__context__ is None


JUNK: tuple[Any, ...] = (
    *(None, 0, b"OK", [], [None], [1], [[1]], [[1, 2]], [[b"1", b"2", [b"h", 1]]], [[0, 16383]], [[0, 16383, None]]),
    *([[0, 16383, [host, port]]] for host in (None, b"", b"?", b"a b", 7, b"\xff", b"x" * 300) for port in (0, 1, -1)),
    [[0, 16383, [b"h", b"1"]]],
    [[0, 16383, [b"127.0.0.1", 1, b"id", []]] * 100] * 100,
    [[0, 16383, *([b"h%d" % i, 1] for i in range(1000))]],
)


def test_nodes_that_make_no_sense(cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CLUSTER SLOTS says is help, and no more: MOVED alone leads to the store."""
    with RedisBackend(elsewhere(cluster, name).url(name, query=PATIENT)) as backend:
        filled(backend)
        trip = backend._link.trip
        for junk in JUNK:

            def spoilt(commands: list[bytes], *more: Any, junk: Any = junk) -> list[Any]:
                replies = trip(commands, *more)
                return [junk] if commands == [wire.CLUSTER_SLOTS] else replies

            monkeypatch.setattr(backend._link, "trip", spoilt)
            backend._link.drop()
            backend._link._order = [("127.0.0.1", elsewhere(cluster, name).port)]
            assert np.array_equal(backend.read("tree", ALL).data, rows(0, 64))
            assert len(backend._link._order) <= 40
            for host, port in backend._link._order:
                assert re.fullmatch(r"[a-z0-9.]{1,255}", host)
                assert 0 < port < 65536


def test_another_node_behind_a_unix_socket(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who named a socket did not ask for the network."""
    with redis_server(tmp_path, unix=True) as server, RedisBackend(server.url(name)) as backend:
        filled(backend)
        with monkeypatch.context() as patch:
            answering(backend, patch, lambda: reply("MOVED 7 127.0.0.1:1"))
            with pytest.raises(BackendError, match="not a Unix socket"):
                backend.read("tree", ALL)
        assert np.array_equal(backend.read("tree", ALL).data, rows(0, 64))


# What a user may do


@pytest.mark.parametrize("without", [("+cluster|slots",), ("+cluster|slots", "+info", "+config|get"), ()])
def test_users(cluster: Cluster, name: str, without: tuple[str, ...]) -> None:
    """The line of the operator's page suffices, and what may be left out there may: MOVED leads the way then."""
    (line,) = re.findall(r"^user oram on >PASSWORD (.+)$", PAGE.read_text(), re.MULTILINE)
    rules = [rule.replace("{oram}", f"{{{name}}}") for rule in line.split() if rule not in without]
    assert len(rules) == len(line.split()) - len(without)
    user, password = "user-" + name, "hunter2-" + name
    for member in cluster.nodes:
        cluster.ask(member, "ACL", "SETUSER", user, "on", f">{password}", *rules)
    asked = 0

    def credentials() -> tuple[str, str]:
        nonlocal asked
        asked += 1
        return user, password

    for member in cluster.nodes:
        with RedisBackend(member.url(name, query=PATIENT), credentials=credentials) as backend:
            backend.acquire()
            data = filled(backend)
    assert asked > 6
    with RedisBackend(cluster.nodes[0].url(name, query=PATIENT), credentials=credentials) as backend:
        backend.acquire()
        cluster.promote(cluster.places(name)[1])
        exchange(backend, 1, data)
        check(cluster, name, data)
        cluster.ask(cluster.places(name)[1], "ACL", "DELUSER", user)
        cluster.promote(cluster.places(name)[1])
        with pytest.raises(BackendAccessError) as raised:
            exchange(backend, 2, data)
        assert password not in str(raised.value) + repr(backend) + repr(vars(backend)) + repr(vars(backend._link))


def test_warnings_are_those_of_the_node_that_has_the_store(cluster: Cluster) -> None:
    """And once."""
    first, second, _ = primaries(cluster)
    name = on(second, cluster)
    cluster.ask(first, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            RedisBackend(first.url(name)).close()
    finally:
        cluster.ask(first, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    said = [str(warning.message) for warning in caught if issubclass(warning.category, BackendWarning)]
    assert len(said) == 2  # of appendfsync and of min-replicas-to-write
    assert not any("maxmemory-policy" in text for text in said)
    assert {warning.filename for warning in caught} == {__file__}


# A whole store


@pytest.mark.parametrize("scheme", ["path", "ring"])
def test_a_store(cluster: Cluster, name: str, tmp_path: Path, scheme: str) -> None:
    """Through an orderly failover, a move of its slot, and the death of its primary: what was acknowledged is there."""
    key, model = oram.generate_key(), {}
    several = ",".join(f"127.0.0.1:{member.port}" for member in cluster.nodes[:3])
    backend = RedisBackend(f"redis://{several}/0?name={name}&timeout=1&retry=30&lease=60")
    random = np.random.default_rng(1)

    def work(store: oram.ObliviousStore, count: int) -> None:
        for _ in range(count):
            at, value = b"%d" % random.integers(20), b"%d" % random.integers(1000)
            if random.integers(3):
                store[at] = model[at] = value
            else:
                assert store.pop(at, None) == model.pop(at, None)
            other = b"%d" % random.integers(20)
            assert store.get(other) == model.get(other)

    with backend:
        with oram.create(backend, state=tmp_path, key=key, capacity=64, block_size=64, scheme=scheme) as store:
            work(store, 10)
            cluster.promote(cluster.places(name)[1])
            work(store, 10)
            mover = threading.Thread(target=Move(cluster, name).finish)
            mover.start()
            work(store, 10)
            mover.join()
            cluster.wait_ready()
            work(store, 10)
            replicated(backend)
            cluster.places(name)[0].kill()
            work(store, 10)
            assert dict(store.items()) == model
        with oram.open(backend, state=tmp_path, key=key) as store:
            assert dict(store.items()) == model
            store.verify()


def lagging(
    cluster: Cluster, name: str, state: Path, key: bytes, **options: Any
) -> tuple[ObliviousStore, dict[bytes, bytes]]:
    """A store, and its content, of which the replica has the first half only."""
    primary, replica = cluster.places(name)
    query = options.pop("query", PATIENT)
    backend = RedisBackend(primary.url(name, query=query))
    store = oram.create(backend, state=state, key=key, capacity=64, block_size=64, **options)
    model = {b"%d" % i: b"old" for i in range(6)}
    store.put_many(model)
    store.flush()
    replicated(backend)
    cut_off(cluster, primary, replica)
    for i in range(10):
        model[b"%d" % (i % 8)] = b"%d" % i
        store[b"%d" % (i % 8)] = b"%d" % i
    primary.kill()
    os.kill(replica.pid, signal.SIGCONT)
    return store, model


@pytest.mark.parametrize("scheme", ["path", "ring"])
def test_what_a_failover_took_back_is_repaired(cluster: Cluster, name: str, tmp_path: Path, scheme: str) -> None:
    """Ten acknowledged writes that the replica never had; it takes over, and the next access writes them again from the journal."""
    key = oram.generate_key()
    store, model = lagging(cluster, name, tmp_path / "state", key, scheme=scheme)
    with store._engine.backend, store:
        assert {key: store.get(key) for key in model} == model
        store[b"more"] = model[b"more"] = b"x"
        assert dict(store.items()) == model
        store.verify()


def test_what_a_failover_took_back_is_repaired_by_the_next_client(cluster: Cluster, name: str, tmp_path: Path) -> None:
    key = oram.generate_key()
    store, model = lagging(cluster, name, tmp_path / "state", key, scheme="path", query="timeout=2&retry=20&lease=1")
    store._engine.retire()  # it died
    store._site.release()
    dead = store._engine.backend
    assert isinstance(dead, RedisBackend)
    dead._token = None
    dead.close()
    end = time.monotonic() + 20
    while True:
        try:
            backend = RedisBackend(cluster.alive[0].url(name, query=PATIENT))
            store = oram.open(backend, state=tmp_path / "state", key=key)
            break
        except (StoreLockedError, BackendUnavailableError):
            assert time.monotonic() < end
            time.sleep(0.2)
    with backend, store:
        assert dict(store.items()) == model
        assert {key: store.get(key) for key in model} == model


@pytest.mark.filterwarnings("ignore:there are replicas")
def test_what_a_failover_took_back_without_asking_replicas_is_a_rollback(
    cluster: Cluster, name: str, tmp_path: Path
) -> None:
    """Nothing was kept: no old answer, nothing is written there, and no older position is used."""
    key = oram.generate_key()
    store, _ = lagging(cluster, name, tmp_path / "state", key, scheme="path", query=f"{PATIENT}&replicas=0")
    with store._engine.backend:
        with pytest.raises(RollbackError):
            store[b"0"] = b"newer"
        with pytest.raises(PoisonedError):
            store.get(b"0")
        store.close()


@pytest.mark.parametrize("asked", [False, True])
def test_a_move_whose_target_dies(cluster: Cluster, name: str, tmp_path: Path, asked: bool) -> None:
    """MIGRATE reaches the replicas of the target later. The one that takes over without what it brought: no old answer, and no repair, as the journal
    has let go of it.

    asked: whoever moved it waited until WAIT said, behind a write over the same connection, that the replica has everything (docs/remote.md).
    """
    options: dict[str, Any] = {"key": bytes(32), "state": tmp_path, "durability": "process"}
    url = cluster.nodes[0].url(name, query=f"{PATIENT}&replicas=1")
    with oram.create(url, capacity=60, block_size=48, scheme="path", **options) as store:
        model = {b"%d" % i: b"old" for i in range(40)}
        store.put_many(model)
        store.flush()
        move = Move(cluster, name)
        own = on(move.target, cluster)
        target, replica = cluster.places(own)
        if not asked:
            cut_off(cluster, target, replica)
        while move.some(100):
            pass
        with contextlib.closing(redis_py.Redis(port=target.port, single_connection_client=True)) as client:
            client.set(f"{{{own}}}", b"")
            assert client.wait(1, 1000) == asked
        if asked:
            cut_off(cluster, target, replica)
        move.finish()
        store[b"1"] = model[b"1"] = b"new"
        target.kill()
        os.kill(replica.pid, signal.SIGCONT)
        if asked:
            assert dict(store.items()) == model
            return
        with pytest.raises((RollbackError, IntegrityError)):
            store.get(b"1")
    target.start()
    cluster.wait_ready()
    with pytest.raises((RollbackError, IntegrityError)):
        oram.open(url, **options)


def test_the_shards_of_a_store_are_on_the_nodes_that_their_names_lead_to(
    cluster: Cluster, name: str, tmp_path: Path
) -> None:
    """One URL, a name for each shard: a store that is larger than a node. One that goes over to a replica is followed, the others stay."""
    url = cluster.nodes[0].url(name, query=PATIENT)
    options: dict[str, Any] = {"key": bytes(32), "state": tmp_path / "state", "durability": "process"}
    model = {b"%d" % i: b"v%d" % i for i in range(30)}
    with oram.create(url, capacity=60, block_size=64, shards=6, scheme="path", items=model, **options) as store:
        places = {cluster.places(f"{name}.{j}")[0].port for j in range(6)}
        assert len(places) > 1 or len({cluster.slot(f"{name}.{j}") for j in range(6)}) > 1
        store[b"1"] = model[b"1"] = b"new"
        cluster.promote(cluster.places(f"{name}.3")[1])
        for i in range(8):
            store[b"%d" % i] = model[b"%d" % i] = b"newer%d" % i
    with oram.open(url, **options) as store:
        assert dict(store.items()) == model
        assert store.get_many(list(model)) == list(model.values())
