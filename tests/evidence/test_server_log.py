"""The same evidence from the server's own log: what MONITOR shows is what the simulator says, and is the same for two workloads."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import oram
from oram.backends import RedisBackend
from oram.store import ObliviousStore
from oram.testing.serverlog import audible, from_server, parse
from oram.testing.servers import Server, redis_server
from oram.testing.worlds import PAIRS, RECORDS, Make, Pair, Work, observe
from oram.trace import TraceBackend

pytestmark = pytest.mark.filterwarnings("ignore:append:oram.errors.BackendWarning")

LAYOUTS: dict[str, dict[str, Any]] = {
    "path": {"scheme": oram.PathParams(page_levels=2), "tree_top": 700},
    "ring": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=True), "tree_top": 0},
    "ring, read one by one": {"scheme": oram.RingParams(Z=4, A=3, S=6, xor=False), "tree_top": 700},
    "ring, metadata there": {"scheme": oram.RingParams(Z=4, A=3, S=6, metadata="server", xor=True), "tree_top": 0},
    "cuckoo": {"scheme": oram.CuckooParams(c=8)},
    "linear": {"scheme": "linear"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server"), {"appendonly": "no"}) as server:
        yield server


def maker(server: Server, options: dict[str, Any], states: Iterator[Path]) -> Make:
    def make() -> tuple[ObliviousStore, TraceBackend]:
        trace = TraceBackend(RedisBackend(server.url(secrets.token_hex(8))))
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


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ([b"MGET", b"{other}:00000001:0"], "somebody else"),
        ([b"GETRANGE", b"{x}:00000001:0", b"0", b"9"], "unexpected"),
        ([b"MSET", b"{x}:00000001:0", b"short"], "another length"),
    ],
)
def test_a_log_with_anything_else_is_refused(command: list[bytes], complaint: str) -> None:
    end = [[b"WATCH", b"{x}:lease"], [b"GET", b"{x}:lease"]]
    with pytest.raises(ValueError, match=complaint):
        parse([command, *end], "x", {b"slots.1": b"1 64 100"})
