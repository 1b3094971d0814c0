"""A primary that dies and a replica that lacks its latest writes, both of them real: what is repaired, and what is refused."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import redis as redis_py

import oram
from oram.backends import RedisBackend, RegionShape, SlotWrite
from oram.engine import KEPT
from oram.errors import (
    BackendReadOnlyError,
    BackendUnavailableError,
    FencedError,
    PoisonedError,
    RollbackError,
)
from oram.store import ObliviousStore
from oram.testing.proxy import Proxy
from oram.testing.servers import Server, redis_server

#: Flushing at each write would take most of the time of these tests, and none of them cuts the power.
pytestmark = pytest.mark.filterwarnings("ignore::oram.errors.BackendWarning")

SHAPE = RegionShape(64, 200)
KEY = bytes(32)
LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=2), "tree_top": 300},
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6), "tree_top": 0},
}


def admin(server: Server) -> redis_py.Redis:
    return redis_py.Redis(port=server.port)


def put(i: int) -> SlotWrite:
    return SlotWrite("tree", np.array([i % SHAPE.slots]), np.full((1, SHAPE.slot_size), i, np.uint8))


class Pair:
    """A primary and its replica, and the address that leads to the one that has the store."""

    def __init__(self, path: Path, primary: Server, replica: Server, proxy: Proxy) -> None:
        self.path, self.primary, self.replica, self.proxy = path, primary, replica, proxy
        self.follow(replica, primary)

    def follow(self, replica: Server, primary: Server) -> None:
        with contextlib.closing(admin(replica)) as below, contextlib.closing(admin(primary)) as above:
            below.replicaof("127.0.0.1", primary.port)
            above.set("there", secrets.token_hex(8))
            while above.wait(1, 100) < 1:
                pass

    def url(self, query: str = "") -> str:
        return f"redis://127.0.0.1:{self.proxy.port}/0?name=s&timeout=2&retry=10&lease=60{query}"

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The replica answers nobody for a while, and gets what it missed afterwards."""
        os.kill(self.replica.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.replica.pid, signal.SIGCONT)

    def cut_off(self) -> None:
        """The replica gets nothing more, and it is no secret."""
        with contextlib.closing(admin(self.replica)) as client:
            client.replicaof("127.0.0.1", 1)

    def promote(self) -> None:
        with contextlib.closing(admin(self.replica)) as client:
            client.replicaof("no", "one")

    def fail_over(self) -> None:
        self.primary.kill()
        self.promote()
        self.proxy.lead_to(self.replica.port)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    at_once = {"repl-diskless-sync-delay": "0"}
    with (
        redis_server(tmp_path / "primary", at_once) as primary,
        redis_server(tmp_path / "replica", at_once) as replica,
        Proxy(primary.port) as proxy,
    ):
        yield Pair(tmp_path, primary, replica, proxy)


@contextlib.contextmanager
def opened(pair: Pair, query: str = "") -> Iterator[RedisBackend]:
    with RedisBackend(pair.url(query)) as backend:
        backend.allocate("tree", SHAPE)
        backend.acquire()
        yield backend


# What is at risk


def test_what_a_new_connection_has_not_written_is_not_confirmed_by_it(pair: Pair) -> None:
    """WAIT on a connection that wrote nothing is answered at once, with all replicas, whatever they have."""
    with opened(pair) as backend:
        with pair.stopped():
            for i in range(16):
                backend.write_all([put(i)])
                pair.proxy.break_all()
                backend.read("tree", np.array([0]))
            assert backend.at_risk >= 32  # with the renewal of each new connection
        backend.replicate()
        assert backend.at_risk == 0


def test_a_replica_that_lags_is_asked_now_and_then_only(pair: Pair) -> None:
    with opened(pair) as backend, pair.stopped(), pair.primary.monitor() as seen:
        for i in range(40):
            backend.write_all([put(i)])
        assert 40 <= backend.at_risk <= 42
    assert 4 <= sum(words[0] == b"WAIT" for words in seen) <= 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_access_is_one_round_trip(pair: Pair, tmp_path: Path, layout: str) -> None:
    """With replicas that are asked, and that keep up."""
    with RedisBackend(pair.url()) as backend:
        options = {"capacity": 40, "block_size": 40, **LAYOUTS[layout]}
        with oram.create(backend, state=tmp_path / "state", key=KEY, **options) as store:
            store[b"a"] = b"1"
            trips = mock.Mock(wraps=backend._link.trip)
            with mock.patch.object(backend._link, "trip", trips):
                for _ in range(24):
                    assert store[b"a"] == b"1"
            assert trips.call_count == 24
            asked = [call for call in trips.call_args_list if any(b"WAIT" in command for command in call.args[0][:1])]
            assert 2 <= len(asked) <= 4
            assert backend.at_risk <= 8


def test_a_primary_that_steps_down_while_it_is_asked(pair: Pair) -> None:
    with opened(pair) as backend, pair.stopped():
        backend.write_all([put(1)])

        def step_down() -> None:
            time.sleep(0.3)
            with contextlib.closing(admin(pair.primary)) as client:
                client.replicaof("127.0.0.1", pair.replica.port)

        thread = threading.Thread(target=step_down)
        thread.start()
        with pytest.raises((BackendReadOnlyError, BackendUnavailableError)):
            backend.replicate()
        thread.join()
        assert backend.at_risk


def test_a_check_that_fails_is_made_again_before_the_next_call(pair: Pair) -> None:
    """On the same connection, too: nothing is sent before it went well."""
    calls: list[bool] = []

    def check(part: int) -> None:
        calls.append(True)
        if len(calls) < 3:
            raise RollbackError("not yet")

    with opened(pair) as backend:
        backend.on_reconnect(check)
        pair.proxy.break_all()
        with pair.primary.monitor() as seen:
            for _ in range(2):
                with pytest.raises(RollbackError):
                    backend.write_all([put(1)])
        assert seen  # the connection, and the lease
        assert slots_of(seen) == []
        backend.write_all([put(1)])
        backend.write_all([put(2)])
    assert len(calls) == 3


# The lease


def lease(pair: Pair, number: int, last: bytes, holder: bytes | None) -> None:
    """What a replica that took over knows of the lease."""
    with contextlib.closing(admin(pair.primary)) as client:
        client.unlink("{s}:lease", "{s}:fence")
        if number:
            client.set("{s}:fence", b"%d %s" % (number, last))
        if holder is not None:
            client.set("{s}:lease", holder, px=60_000)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("resurrected", [False, True])
def test_a_lease_whose_taking_was_lost_is_taken_again(pair: Pair, earlier: bool, resurrected: bool) -> None:
    """Where nobody took it since. The client before this one may seem to have it still."""
    verified = []
    with RedisBackend(pair.url()) as backend:
        backend.allocate("tree", SHAPE)
        backend.on_reconnect(lambda _: verified.append(True))
        before = b""
        if earlier:
            backend.acquire()
            before = backend._token or b""
            backend.release()
        backend.acquire()
        lease(pair, int(earlier), before, before if earlier and resurrected else None)
        backend.write_all([put(1)])
        with contextlib.closing(admin(pair.primary)) as client:
            assert client.get("{s}:lease") == backend._token
            assert client.get("{s}:fence") == b"%d %s" % (1 + earlier, backend._token)
    assert verified


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("held", [False, True])
def test_a_lease_that_another_took_since_is_not_taken_from_it(pair: Pair, number: int, held: bool) -> None:
    with RedisBackend(pair.url()) as backend:
        backend.allocate("tree", SHAPE)
        backend.on_reconnect(lambda _: None)
        for _ in range(2):
            backend.acquire()
            backend.release()
        backend.acquire()  # for the third time
        other = b"f" * 32
        lease(pair, number, other, other if held else None)
        with pytest.raises(RollbackError if number < 2 else FencedError):
            backend.write_all([put(1)])
        with contextlib.closing(admin(pair.primary)) as client:
            assert client.get("{s}:lease") == (other if held else None)
            assert client.mget("{s}:00000001:00", "{s}:00000001:01") == [None, None]


# Stores


class Life:
    """A store that works while the replica gets nothing, or does not."""

    def __init__(self, pair: Pair, layout: str = "path", query: str = "", **options: Any) -> None:
        self.pair, self.state, self.query, self.model = pair, pair.path / "state", query, dict[bytes, bytes]()
        self.backend = RedisBackend(pair.url(query))
        place = {"capacity": 40, "block_size": 40, "key": KEY, "state": self.state}
        self.store = oram.create(self.backend, **{**place, **LAYOUTS[layout], **options})
        self.work(0, 12)
        self.store.flush()

    def work(self, first: int, n: int) -> None:
        for i in range(first, first + n):
            self.store[b"%d" % (i % 15)] = self.model[b"%d" % (i % 15)] = b"%d" % i

    def check(self) -> None:
        assert {key: self.store.get(key) for key in self.model} == self.model
        assert dict(self.store.items()) == self.model
        self.store.verify()

    def end(self) -> None:
        self.store.close()
        self.backend.close()

    def abandon(self) -> None:
        """The client's process dies, with its connection and its lease."""
        self.store._engine.retire()
        self.store._site.file.close()
        if self.backend._keeper is not None:
            self.backend._keeper.set()
        self.backend._token = None
        self.backend.close()

    def open(self) -> ObliviousStore:
        self.backend = RedisBackend(self.pair.url(self.query))
        self.store = oram.open(self.backend, state=self.state, key=KEY)
        return self.store


def slots_of(seen: list[list[bytes]]) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """Reads and writes of slots, in the order of the server's log."""
    found = []
    for words in seen:
        if words[0] in (b"MGET", b"MSET"):
            keys = words[1:] if words[0] == b"MGET" else words[1::2]
            found.append((words[0], tuple(key for key in keys if key != b"{s}:lease")))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_very_same_slots_again(pair: Pair, layout: str) -> None:
    """The clock is read, what was lost is written again in order, and the access goes on: nothing else."""
    life = Life(pair, layout)
    pair.cut_off()
    with pair.primary.monitor() as before:
        life.work(20, 9)
    pair.fail_over()
    with pair.replica.monitor() as after:
        life.work(40, 1)
    life.check()
    life.end()
    sent = [words for words in before if words[0] == b"MSET"]  # eight: the ninth is still to be written
    assert len(sent) == 8
    repair = [words for words in after if words[0] in (b"MGET", b"MSET")]
    assert slots_of(repair[:1])[0][1] == (b"{s}:00000002:0",)  # the clock
    assert repair[1:9] == sent  # the bytes, too
    pending, read, again = repair[9:]
    assert [pending[0], read[0]] == [b"MSET", b"MGET"]
    assert again == pending


@pytest.mark.parametrize("layout", LAYOUTS)
def test_repaired_by_the_next_process(pair: Pair, layout: str) -> None:
    life = Life(pair, layout)
    pair.cut_off()
    life.work(20, 9)
    life.abandon()
    pair.fail_over()
    with contextlib.closing(admin(pair.replica)) as client:
        client.unlink("{s}:lease")  # instead of waiting for it to expire
    life.open()
    life.check()
    life.end()


def test_what_an_earlier_process_wrote_is_at_risk_still(pair: Pair) -> None:
    """The next one lets no copy go that the replica, which lags, has not got; and the copies repair what a failover takes back after all."""
    life = Life(pair)
    with pair.stopped():
        life.work(20, 9)
        life.abandon()
        with contextlib.closing(admin(pair.primary)) as client:
            client.unlink("{s}:lease")  # instead of waiting for it to expire
        for _ in range(2):
            with pytest.raises(BackendReadOnlyError, match="replicas"):
                life.open()
            life.backend.close()
        pair.primary.kill()
    pair.fail_over()
    with contextlib.closing(admin(pair.replica)) as client:
        client.unlink("{s}:lease")
    life.open()
    life.check()
    life.end()


def test_a_kept_backend_does_not_forget_what_is_at_risk(pair: Pair) -> None:
    """As by a URL: a store that is opened again waits for the replicas, whose confirmation the handle before did not wait for."""
    arguments: dict[str, Any] = {"state": pair.path / "kept", "key": KEY}
    with RedisBackend(pair.url()) as backend:
        store = oram.create(backend, capacity=20, block_size=60, **arguments)
        store[b"k"] = b"old"
        with pair.stopped():
            store[b"k"] = b"new"
            store.close()
            with pytest.raises(BackendReadOnlyError, match="replicas"):
                oram.open(backend, **arguments)
        with oram.open(backend, **arguments) as store:
            pair.fail_over()
            assert store[b"k"] == b"new"


def test_the_background_connects_first(pair: Pair) -> None:
    """It renews the lease, and leaves the rest to the next caller."""
    life = Life(pair)
    pair.cut_off()
    life.work(20, 9)
    pair.fail_over()
    with pair.replica.monitor() as seen:
        life.backend._renew_at = 0
        life.backend._keep_lease()  # finds out that the connection is gone, and has no patience
        life.backend._keep_lease()
        life.backend._renew_at = 0
        life.backend._keep_lease()
        assert life.backend._link.up
        assert life.backend.at_risk >= 9  # it may not say that the new primary's replicas have what it has not
    assert slots_of(seen) == []
    life.work(40, 1)
    life.check()
    life.end()


def test_a_primary_that_was_a_replica_for_a_while(pair: Pair) -> None:
    """It steps down, gets the other's older data, and takes over again, all while the connection lasts."""
    life = Life(pair)
    pair.cut_off()
    life.work(20, 9)
    pair.promote()
    pair.follow(pair.primary, pair.replica)
    with contextlib.closing(admin(pair.primary)) as client:
        client.replicaof("no", "one")
    connections = pair.proxy.connections
    assert life.backend._link.up
    life.work(40, 1)
    assert pair.proxy.connections > connections
    life.check()
    life.end()


def test_what_was_not_kept_is_a_rollback(pair: Pair) -> None:
    """A server that comes back with an older snapshot."""
    life = Life(pair)
    with contextlib.closing(admin(pair.primary)) as client:
        client.save()
    directory = next(path for path in (pair.path / "primary").rglob("*.rdb")).parent
    shutil.copytree(directory, pair.path / "older")
    life.work(20, 9)
    life.store.flush()
    life.work(30, 1)
    pair.primary.kill()
    with redis_server(pair.path / "older", {"appendonly": "no"}) as older:
        pair.proxy.lead_to(older.port)
        with older.monitor() as seen, pytest.raises(RollbackError) as caught:
            life.store[b"secret"] = b"secret"
        assert "secret" not in repr(caught.value)
        assert [kind for kind, _ in slots_of(seen)] == [b"MGET"]  # the clock, and nothing was written
        with pytest.raises(PoisonedError):
            life.store.get(b"1")
        life.end()


def test_replicas_that_do_not_keep_up(pair: Pair) -> None:
    """An error before the access; nothing happened, and it goes on when they do."""
    life = Life(pair)
    done = 0
    with pair.stopped():
        with pytest.raises(BackendReadOnlyError, match="replicas"):
            for i in range(2 * KEPT):
                life.work(i, 1)
                done += 1
        assert KEPT <= done <= KEPT + 1
        sequence = life.store._engine.sequence
        with pytest.raises(BackendReadOnlyError, match="replicas"):
            life.store.get(b"0")
        assert life.store._engine.sequence == sequence
    life.model.pop(b"%d" % (done % 15), None)  # its put was not done, and the model said that it was
    life.work(done, 1)
    life.work(200, 3)
    life.check()
    life.end()


@pytest.mark.parametrize("durability", ["process", "none"])
def test_without_a_log_a_failover_that_lost_writes_is_a_rollback(pair: Pair, durability: str) -> None:
    life = Life(pair, durability=durability)
    life.work(20, 3)
    pair.proxy.break_all()
    life.work(30, 3)  # nothing was lost
    pair.cut_off()
    life.work(40, 3)
    pair.fail_over()
    if durability == "process":
        life.check()
    else:
        with pytest.raises(RollbackError):
            life.store.get(b"1")
    life.end()


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_failover_in_a_load(pair: Pair, at: int) -> None:
    """It takes back that the new regions were declared, or some of their slots: the load fails as a whole, or it goes on; what was there is there."""
    life = Life(pair)
    life.store.flush()
    made = 0
    trip = life.backend._link.trip

    def failing(commands: list[bytes], *more: Any) -> list[Any]:
        nonlocal made
        if any(b"\nEXEC\r" in command for command in commands[-3:]):
            made += 1
            if made == 1:
                pair.cut_off()
            if made == at + 1:
                pair.fail_over()
        return trip(commands, *more)

    with mock.patch.object(life.backend._link, "trip", failing):
        try:
            life.store.load({b"new": b"1"})
        except (BackendUnavailableError, BackendReadOnlyError):  # or the new primary has no replica
            life.end()
            life.open()
        else:
            life.model[b"new"] = b"1"
    assert made > at
    life.check()
    life.end()
