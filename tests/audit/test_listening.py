"""``oram audit`` on a server: what its own log says of sound stores passes, and each way to tell it the address besides is found."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis

import oram
from oram.audit import Target
from oram.audit.place import scratch
from oram.audit.worlds import compare
from oram.errors import BackendAccessError, BackendError
from oram.params import SchemeParams
from oram.testing.servers import Server, redis_server
from oram.testing.telling import TELLS, reading, telling, telling_elsewhere
from oram.testing.worlds import PAIRS

pytestmark = pytest.mark.filterwarnings("ignore::oram.errors.BackendWarning")

PARAMS: dict[str, SchemeParams] = {
    "path": oram.PathParams(),
    "ring, xor": oram.RingParams(Z=4, A=3, S=6, xor=True),
    "ring": oram.RingParams(Z=4, A=3, S=6, xor=False),
    "cuckoo": oram.CuckooParams(c=8),
    "cuckoo, no index": oram.CuckooParams(c=8, index="none"),
    "linear": oram.LinearParams(),
}

#: Hits and misses, gets and puts; and each round trip as it is with a batch.
SOME = (*PAIRS[:2], next(pair for pair in PAIRS if pair.name == "batches: duplicates / distinct"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                redis_server(tmp_path_factory.mktemp("server"), {"appendonly": "no"}, unix=kind == "unix")
            )
            for kind in ("tcp", "unix")
        }


@pytest.fixture(params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[str(request.param)]


@pytest.fixture
def tcp(servers: dict[str, Server]) -> Server:
    return servers["tcp"]


def target(server: Server, scheme: str = "path") -> Target:
    return Target(PARAMS[scheme].name, PARAMS[scheme], 60, 64, 0, "aes-256-gcm", kind="redis", url=server.url("notes"))


def client_of(server: Server) -> redis.Redis:
    return redis.from_url(server.url().partition("?")[0])


@pytest.mark.parametrize("scheme", PARAMS)
def test_sound_stores_pass(server: Server, scheme: str) -> None:
    with scratch(target(server, scheme)) as place:
        found = list(compare(place, SOME, 1))
    assert [each.trouble for each in found] == [""] * len(SOME)
    assert all(each.events > 50 for each in found)
    with client_of(server) as client:
        assert client.keys("*notes*") == []


@pytest.mark.parametrize("tell", TELLS)
def test_a_store_that_tells_the_address_is_found(server: Server, tell: str) -> None:
    said, complaint = TELLS[tell]
    with telling(said), scratch(target(server)) as place:
        (found,) = compare(place, PAIRS[:1], 1)
    assert complaint in found.trouble


@pytest.mark.parametrize("scheme", [scheme for scheme in PARAMS if scheme not in ("path", "linear")])
@pytest.mark.parametrize("tell", ["a counter", "a message", "a command that there is not"])
def test_whatever_the_scheme(tcp: Server, tell: str, scheme: str) -> None:
    said, complaint = TELLS[tell]
    with telling(said), scratch(target(tcp, scheme)) as place:
        (found,) = compare(place, PAIRS[:1], 1)
    assert complaint in found.trouble


def test_a_store_that_reads_the_address_besides_is_found(server: Server) -> None:
    with reading(), scratch(target(server)) as place:
        (found,) = compare(place, PAIRS[:1], 1)
    assert found.trouble == "the server saw two different things of the two workloads"


def test_a_second_connection_is_found(tcp: Server) -> None:
    with client_of(tcp) as client, telling_elsewhere(client), scratch(target(tcp)) as place:
        (found,) = compare(place, PAIRS[:1], 1)
    assert "another client named" in found.trouble


@contextmanager
def busy(server: Server) -> Iterator[list[int]]:
    """Another client, that never rests; how often it went round."""
    done, rounds = threading.Event(), [0]

    def work() -> None:
        with client_of(server) as client:
            while not done.is_set():
                client.set("foreign", "x")
                client.get("foreign")
                client.publish("foreign", "x")
                with client.pipeline() as pipeline:
                    pipeline.mset({"foreign": "y"}).mget("foreign").execute()
                rounds[0] += 1
            client.delete("foreign")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield rounds
    finally:
        done.set()
        thread.join()


def test_others_do_not_disturb(tcp: Server) -> None:
    with busy(tcp) as rounds, scratch(target(tcp)) as place:
        (found,) = compare(place, PAIRS[:1], 1)
    assert (found.trouble, rounds[0] > 50) == ("", True)


def test_others_on_the_same_unix_socket_are_no_leak(servers: dict[str, Server]) -> None:
    """Nor can one do without them: all have the same address there."""
    with (
        busy(servers["unix"]),
        scratch(target(servers["unix"])) as place,
        pytest.raises(BackendError, match="others use the same Unix socket"),
    ):
        list(compare(place, PAIRS[:1], 1))


def test_a_connection_that_breaks_is_no_leak(tcp: Server) -> None:
    with scratch(target(tcp)) as place:
        store, trace = place.make()
        with pytest.raises(BackendError, match="connection broke"), place.look(trace):
            store.put(b"k", b"v")
            trace.inner._link.drop()  # type: ignore[attr-defined]
            store.put(b"k", b"v")
        store.close()


def test_what_others_say_is_not_kept(tcp: Server) -> None:
    with scratch(target(tcp)) as place, client_of(tcp) as client:
        store, trace = place.make()
        tracemalloc.start()
        try:
            with place.look(trace) as events:
                store.put(b"k", b"v")
                for _ in range(40):
                    client.set("foreign", b"x" * (1 << 20))
                store.get(b"k")
                client.delete("foreign")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        store.close()
    assert len(events) >= 4
    assert peak < 20 << 20, peak  # a few of them, and not all


#: What a store needs, from docs/remote.md, and MONITOR.
MAY = (
    "resetchannels -@all +auth +select +get +set +del +mget +mset +unlink +scan +dbsize +pexpire +pttl +hgetall +hset +hsetnx +hincrby +hdel +bitop +getdel "
    "+multi +exec +watch +unwatch +wait +ping +info +config|get +cluster|slots +monitor"
)


@pytest.mark.parametrize("counted", [True, False])
def test_a_user_who_may_do_little(tcp: Server, counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server refuses is not in its log: only who may ask how many bytes there were finds that."""
    with client_of(tcp) as client:
        rules = [*MAY.split(), *["+client|info"] * counted]
        client.execute_command("ACL", "SETUSER", "auditor", "reset", "on", ">secret", "~{notes*}:*", *rules)
        monkeypatch.setenv("ORAM_REDIS_USERNAME", "auditor")
        monkeypatch.setenv("ORAM_REDIS_PASSWORD", "secret")
        try:
            with scratch(target(tcp)) as place:
                (sound,) = compare(place, PAIRS[:1], 1)
                with telling(TELLS["a counter"][0]):
                    (allowed,) = compare(place, PAIRS[:1], 1)
                with telling(TELLS["a message"][0]):
                    (refused,) = compare(place, PAIRS[:1], 1)
                client.execute_command("ACL", "SETUSER", "auditor", "-ping")
                with pytest.raises(BackendAccessError, match="PING"):
                    list(compare(place, PAIRS[:1], 1))
                client.execute_command("ACL", "SETUSER", "auditor", "-monitor")
                with pytest.raises(BackendAccessError, match="MONITOR"):
                    list(compare(place, PAIRS[:1], 1))
        finally:
            client.execute_command("ACL", "DELUSER", "auditor")
    assert sound.trouble == ""
    assert "unexpected command" in allowed.trouble
    assert refused.trouble.endswith("bytes that its log does not show" if counted else "")
    assert bool(refused.trouble) is counted
