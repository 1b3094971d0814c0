"""The same evidence from the server's own log: what MONITOR shows is what the simulator says, and is the same for two workloads."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis

import oram
from oram.backends import RedisBackend, RedisOptions
from oram.errors import BackendError
from oram.store import ObliviousStore
from oram.testing.serverlog import Log, Reader, audible, from_server, parse
from oram.testing.servers import Server, redis_server
from oram.testing.telling import TELLS, reading, telling, telling_elsewhere
from oram.testing.worlds import PAIRS, RECORDS, Make, Pair, Work, observe
from oram.trace import Event, TraceBackend

pytestmark = pytest.mark.filterwarnings("ignore:append:oram.errors.BackendWarning")

LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=2), "tree_top": 700},
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=True), "tree_top": 0},
    "ring, read one by one": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=False), "tree_top": 700},
    "ring, metadata there": {"scheme": oram.RingParams(Z=4, A=3, S=6, metadata="server", xor=True), "tree_top": 0},
    "cuckoo": {"scheme": oram.CuckooParams(c=8)},
    "cuckoo, no index": {"scheme": oram.CuckooParams(c=8, index="none")},
    "linear": {"scheme": "linear"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server"), {"appendonly": "no"}) as server:
        yield server


def maker(server: Server, options: dict[str, Any], states: Iterator[Path], query: str = "") -> Make:
    def make() -> tuple[ObliviousStore, TraceBackend]:
        trace = TraceBackend(RedisBackend(server.url(secrets.token_hex(8), query=query)))
        place = {"key": bytes(32), "capacity": RECORDS, "block_size": 48, "state": next(states)}
        return oram.create(trace, **{**place, "durability": "process", **options}), trace

    return make


@pytest.fixture
def states(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(i) for i in count())


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not pair.bulk], ids=lambda pair: str(pair.name))
@pytest.mark.parametrize("layout", ["path", "ring", "cuckoo"])
def test_two_worlds(server: Server, pair: Pair, layout: str, states: Iterator[Path]) -> None:
    make = maker(server, LAYOUTS[layout], states)
    left, right = (observe(make, work, 1, from_server(server)) for work in (pair.left, pair.right))
    assert left.shown == right.shown
    assert left.shown == audible(left.simulated(joint=False, remote=True).shown)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_simulator(server: Server, layout: str, states: Iterator[Path]) -> None:
    pair = PAIRS[0]
    view = observe(maker(server, LAYOUTS[layout], states), pair.left, 3, from_server(server))
    own = observe(maker(server, LAYOUTS[layout], states), pair.left, 3)
    simulated = view.simulated(joint=False, remote=True)
    assert view.shown == audible(simulated.shown) == audible(own.shown)
    assert len(view.events) > 60


def test_a_client_that_answers_misses_itself_is_rejected(server: Server, states: Iterator[Path]) -> None:
    """The control: what everybody would do for speed, and what the log must tell."""
    pair = next(pair for pair in PAIRS if pair.name == "gets: hits / misses")

    def impatient(work: Work) -> Work:
        def run(store: ObliviousStore) -> None:
            ask = type(store).__getitem__
            with mock.patch.object(type(store), "__getitem__", lambda s, key: ask(s, key) if key in s else None):
                work(store)

        return run

    make = maker(server, LAYOUTS["path"], states)
    left, right = (observe(make, impatient(work), 1, from_server(server)) for work in (pair.left, pair.right))
    assert left.shown != right.shown


@pytest.mark.parametrize("tell", TELLS)
def test_a_store_that_tells_the_address_is_rejected(server: Server, tell: str, states: Iterator[Path]) -> None:
    """The controls: one more round trip for each get, which a look at keys and names of commands alone has let pass."""
    said, complaint = TELLS[tell]
    with telling(said), pytest.raises(ValueError, match=complaint):
        observe(maker(server, LAYOUTS["path"], states), PAIRS[0].left, 1, from_server(server))


def test_a_store_that_reads_the_address_besides_is_rejected(server: Server, states: Iterator[Path]) -> None:
    """In a round trip of a form that there is: the events tell."""
    make = maker(server, LAYOUTS["path"], states)
    with reading():
        left, right = (observe(make, work, 1, from_server(server)) for work in (PAIRS[0].left, PAIRS[0].right))
    assert left.shown != right.shown
    assert left.shown != audible(left.simulated(joint=False, remote=True).shown)


def test_a_second_connection_is_rejected(server: Server, states: Iterator[Path]) -> None:
    with (
        redis.Redis(port=server.port) as client,
        telling_elsewhere(client),
        pytest.raises(ValueError, match="another client"),
    ):
        observe(maker(server, LAYOUTS["path"], states), PAIRS[0].left, 1, from_server(server))


def test_renewals_and_others_are_left_out(server: Server, states: Iterator[Path]) -> None:
    """Time decides when the lease is renewed: a look that takes longer sees more of it, and the same events."""

    def slow(store: ObliviousStore) -> None:
        PAIRS[0].left(store)
        with redis.Redis(port=server.port) as client:
            for i in range(20):
                client.set("foreign", b"x" * i)
                client.get("foreign")
                client.publish("foreign", b"x")
                with client.pipeline() as pipeline:
                    pipeline.set("foreign", b"y").delete("foreign").execute()
                time.sleep(0.05)

    make = maker(server, LAYOUTS["ring"], states, "lease=1")
    with mock.patch.object(Reader, "_renewed", autospec=True, side_effect=Reader._renewed) as renewed:
        left, right = (observe(make, work, 1, from_server(server)) for work in (slow, PAIRS[0].right))
    assert renewed.call_count >= 2
    assert left.shown == right.shown == audible(left.simulated(joint=False, remote=True).shown)


def test_over_a_unix_socket(tmp_path: Path, states: Iterator[Path]) -> None:
    """Everybody has the same address there. By the number of bytes one sees that somebody else spoke, but not who said what."""
    with redis_server(tmp_path / "server", {"appendonly": "no"}, unix=True) as server:
        make = maker(server, LAYOUTS["ring"], states)
        left, right = (observe(make, work, 1, from_server(server)) for work in (PAIRS[0].left, PAIRS[0].right))
        assert left.shown == right.shown == audible(left.simulated(joint=False, remote=True).shown)
        for said, complaint in [TELLS["a message"], TELLS["a setting"]]:
            with telling(said), pytest.raises(ValueError, match=complaint):
                observe(make, PAIRS[0].left, 1, from_server(server))
        with redis.Redis(unix_socket_path=str(server.socket_path)) as client:

            def among_others(store: ObliviousStore) -> None:
                PAIRS[0].left(store)
                client.get("foreign")

            with pytest.raises(BackendError, match="others use the same Unix socket"):
                observe(make, among_others, 1, from_server(server))


def test_with_a_replica(tmp_path: Path, states: Iterator[Path]) -> None:
    """Which is asked what it has, now and then: that is left out."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server(tmp_path / "primary", {"appendonly": "no"}))
        of = {"replicaof": f"127.0.0.1 {server.port}", "appendonly": "no"}
        stack.enter_context(redis_server(tmp_path / "replica", of))
        with redis.Redis(port=server.port) as client:
            client.config_set("min-replicas-to-write", 1)
            assert client.wait(1, 20_000) == 1
        make = maker(server, LAYOUTS["path"], states)
        with mock.patch.object(Reader, "_asks", autospec=True, side_effect=Reader._asks) as asked:
            left, right = (observe(make, work, 1, from_server(server)) for work in (PAIRS[0].left, PAIRS[0].right))
        assert asked.call_count >= 8
    assert left.shown == right.shown == audible(left.simulated(joint=False, remote=True).shown)


def test_a_connection_that_breaks_is_no_leak(server: Server, states: Iterator[Path]) -> None:
    """And no evidence either."""

    def broken(store: ObliviousStore) -> None:
        PAIRS[0].left(store)
        store._engine.backend.inner._link.drop()  # type: ignore[attr-defined]
        store.get(b"0")

    with pytest.raises(BackendError, match="connection broke"):
        observe(maker(server, LAYOUTS["path"], states), broken, 1, from_server(server))


# The forms, one by one

X = b"{x}:"
LEASE, FOLD = X + b"lease", X + b"fold"
REGIONS = {b"": b"2", b"slots.1": b"1 64 100", b"meta.1": b"2 300 8000000"}
LOOK = [[b"WATCH", LEASE], [b"GET", LEASE]]
RENEWAL = [[b"MULTI"], [b"PEXPIRE", LEASE, b"30000"], [b"EXEC"], *LOOK]
WRITE = [[b"MULTI"], [b"MSET", X + b"00000001:0a", bytes(100), X + b"00000001:3f", bytes(100)], [b"EXEC"], *LOOK]
LARGE = [[b"MSET", X + b"00000002:%03x" % i, bytes(8_000_000)] for i in range(2)]
FOLDED = [
    [b"MULTI"],
    *[[b"BITOP", b"XOR", FOLD, X + b"00000001:01", X + b"00000001:02"], [b"GETDEL", FOLD]] * 2,
    [b"EXEC"],
    *LOOK,
]
READ = [b"MGET", X + b"00000001:01", X + b"00000001:00"]
EARLY, LATE = [b"WAIT", b"1", b"50"], [b"WAIT", b"1", b"5000"]


def test_how_often_replicas_are_asked() -> None:
    assert len(parse([EARLY, *WRITE * 8, EARLY, *WRITE, LATE, LOOK[1], *WRITE * 64, LATE, LOOK[1]], "x", REGIONS)) == 73


def test_each_form() -> None:
    log = [
        [*READ, LEASE],
        *WRITE,
        EARLY,
        *RENEWAL,
        *RENEWAL,
        READ,
        *WRITE,
        LATE,
        LOOK[1],
        *FOLDED,
        [b"MULTI"],
        *LARGE,
        [b"EXEC"],
        *LOOK,
    ]
    write = Event("write", "slots.1", (10, 63), 100, 1)
    assert parse(log, "x", REGIONS) == [
        Event("read", "slots.1", (1, 0), 100, 0),
        write,
        replace(write, trip=2),
        Event("read", "slots.1", (1, 0), 100, 2),
        *[Event("xor", "slots.1", (1, 2), 100, 3)] * 2,
        Event("write", "meta.1", (0, 1), 8_000_000, 4),
    ]


def test_exec_is_ahead_of_what_it_executes_or_behind_but_always_the_same() -> None:
    """A transaction with nothing in it, and its commands by themselves, would look like a log of the other kind."""
    ahead = [WRITE[0], WRITE[2], WRITE[1], *LOOK]
    assert parse(ahead * 2, "x", REGIONS) == parse(WRITE * 2, "x", REGIONS)
    for log in ([*ahead, *WRITE], [*WRITE, *ahead], [*ahead, *RENEWAL]):
        with pytest.raises(ValueError, match="outside of their transaction"):
            parse(log, "x", REGIONS)


@pytest.mark.parametrize("order", ["first", "last"])
def test_which_of_both_the_mark_tells(order: str) -> None:
    options = RedisOptions(name="x")
    log = Log(options)
    mark, end = ([b"PING", mark] for mark in log._marks)

    def said(*commands: list[bytes]) -> list[bytes]:
        return [b'1.0 [0 127.0.0.1:9] "' + b'" "'.join(words) + b'"' for words in commands]

    multi, execute = [b"MULTI"], [b"EXEC"]
    lead = [multi, mark, execute, *LOOK] if order == "last" else [multi, execute, mark, *LOOK]
    write = [b"MSET", X + b"00000001:0a", b"x" * 100]
    for last in (True, False):
        log = Log(options)
        log._marks = (mark[1], end[1])
        log._connections = [1, 1]
        body = [multi, write, execute, *LOOK] if last else [multi, execute, write, *LOOK]
        for line in said(*lead, *body, end):
            log.hear(line)
        if (order == "last") is last:
            assert log.events(REGIONS) == [Event("write", "slots.1", (10,), 100, 0)]
        else:
            with pytest.raises(ValueError, match="outside of their transaction"):
                log.events(REGIONS)


@pytest.mark.parametrize(
    ("log", "complaint"),
    [
        ([[b"MGET", b"{other}:00000001:00", LEASE]], "somebody else"),
        ([[b"MGET", X + b"hits", LEASE]], "no slot"),
        ([[b"MGET", X + b"00000001:0A", LEASE]], "no slot"),
        ([[b"MGET", X + b"00000001:00", X + b"00000002:000", LEASE]], "several regions"),
        ([[b"MGET", X + b"00000001:0", LEASE]], "has not"),
        ([[b"MGET", X + b"00000001:40", LEASE]], "has not"),
        ([[b"MGET", X + b"00000003:00", LEASE]], "no region"),
        ([[b"MGET", LEASE]], "no slot"),
        ([[b"mget", X + b"00000001:00", LEASE]], "unexpected command"),
        ([READ, [*READ, LEASE]], "before it is full"),
        ([[b"MGET", X + b"00000002:000"], READ, *WRITE], "several regions"),
        ([READ], "amid a round trip"),
        ([[b"GETRANGE", X + b"00000001:00", b"0", b"9"]], "unexpected command"),
        ([LOOK[1]], "unexpected order"),
        (LOOK, "unexpected order"),
        ([[b"MULTI"], [b"EXEC"], *LOOK], "unexpected order"),
        ([*WRITE[:2], *LOOK], "unexpected order"),
        ([*WRITE, *LOOK], "unexpected order"),
        ([*WRITE[:3], [b"WATCH", X + b"fence"]], "unexpected words: WATCH"),
        ([*WRITE[:2], FOLDED[1], *WRITE[2:]], "unexpected order"),
        ([*FOLDED[:3], WRITE[1], *FOLDED[3:]], "unexpected order"),
        ([[b"BITOP", b"XOR", X + b"fold2", X + b"00000001:01"]], "unexpected words: BITOP"),
        ([[b"BITOP", b"AND", FOLD, X + b"00000001:01"]], "unexpected words: BITOP"),
        ([[b"BITOP", b"XOR", FOLD, X + b"00000001:01", X + b"00000002:000"]], "several regions"),
        ([[b"GETDEL", LEASE]], "unexpected words: GETDEL"),
        ([WRITE[0], [b"MSET", X + b"00000001:00", b"short"], *WRITE[2:]], "another length"),
        ([WRITE[0], [b"MSET", X + b"00000001:00"], *WRITE[2:]], "unexpected words: MSET"),
        ([WRITE[0], WRITE[1], WRITE[1], *WRITE[2:]], "before it is full"),
        ([READ, *RENEWAL], "unexpected order"),
        ([*RENEWAL, RENEWAL[0], [b"PEXPIRE", LEASE, b"30001"]], "unexpected number"),
        ([[b"PEXPIRE", LEASE, b"0x1"]], "unexpected number"),
        ([[b"PEXPIRE", X + b"00000001:01", b"30000"]], "unexpected words: PEXPIRE"),
        ([EARLY, *WRITE, EARLY, *WRITE], "too often"),
        ([LATE, *WRITE], "unexpected order"),
        ([LATE, LOOK[1], *WRITE * 63, LATE, LOOK[1]], "too often"),
        ([EARLY, LOOK[1]], "unexpected order"),
        ([LATE, LOOK[1], [b"WAIT", b"2", b"5000"]], "unexpected number"),
        ([LATE, LOOK[1], [b"WAIT", b"1", b"5001"]], "unexpected number"),
        ([[b"SET", X + b"fence", b"1 0"]], "unexpected command"),
        ([[b"HGETALL", X + b"regions"]], "unexpected command"),
        ([[]], "no command"),
    ],
)
def test_a_log_with_anything_else_is_refused(log: list[list[bytes]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(log, "x", REGIONS)
