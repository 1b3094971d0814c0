"""Stores of several shards over real servers: names on one, a server each, one that dies in the middle, and what each of them logs."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

import oram
from oram.backends import RedisBackend, open_shards
from oram.errors import (
    BackendError,
    BackendUnavailableError,
    ParameterError,
    RollbackError,
    StateMissingError,
    StoreExistsError,
    StoreLockedError,
    StoreNotFoundError,
)
from oram.store import ObliviousStore
from oram.testing.model import check
from oram.testing.randomness import Coins, looked_up, pinned
from oram.testing.serverlog import audible, parse
from oram.testing.servers import Server, redis_server
from oram.testing.simulators import ShardedSimulator, by_shard, canonical, simulator, tree_info
from oram.trace import Event

pytestmark = pytest.mark.filterwarnings("ignore:append:oram.errors.BackendWarning")

KEY = bytes(32)
SCHEMES: dict[str, Any] = {
    "path": oram.PathParams(page_levels=1),
    "ring": oram.RingParams(Z=4, A=3, S=6, xor=True),
    "linear": oram.LinearParams(),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(redis_server(tmp_path_factory.mktemp("server"))) for _ in range(2)]


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


def create(where: Any, state: Path, scheme: str = "path", **options: Any) -> ObliviousStore:
    usual: dict[str, Any] = {"capacity": 60, "block_size": 48, "tree_top": 0, "durability": "process"}
    return oram.create(where, key=KEY, state=state, scheme=SCHEMES[scheme], **{**usual, **options})


def urls(servers: list[Server], name: str, query: str = "") -> list[str]:
    return [server.url(name, query=query) for server in servers]


def test_names_on_one_server(servers: list[Server], name: str, tmp_path: Path) -> None:
    url, state = servers[0].url(name), tmp_path / "state"
    with create(url, state, shards=3) as store:
        store.put_many([(b"%d" % i, b"v%d" % i) for i in range(40)])
        assert store.info()["shards"] == 3
    with redis.Redis(port=servers[0].port) as client:
        tags = {key.partition(b"}")[0] for key in client.scan_iter(match=b"{%s*" % name.encode())}
    assert tags == {b"{%s.%d" % (name.encode(), j) for j in range(3)}
    with oram.open(url, key=KEY, state=state) as store:
        check(store, {b"%d" % i: b"v%d" % i for i in range(40)}, by_access=True)
        with pytest.raises(StoreLockedError):
            oram.open(url, key=KEY, state=state)
    assert oram.info(url, state=state)["shards"] == 3
    with pytest.raises(StoreExistsError):
        create(url, tmp_path / "other", shards=3)
    with pytest.raises(ParameterError, match="3 shards"):
        oram.open([servers[0].url(f"{name}.0"), servers[0].url(f"{name}.1")], key=KEY, state=state)
    with oram.open([servers[0].url(f"{name}.{j}") for j in range(3)], key=KEY, state=state) as store:
        assert store[b"7"] == b"v7"
    with pytest.raises(StateMissingError):
        oram.open(url, key=KEY, state=tmp_path / "nowhere")
    with pytest.raises(StoreNotFoundError):
        oram.open(servers[1].url(name), key=KEY, state=tmp_path / "nowhere")


def test_one_backend_holds_them_all_itself(servers: list[Server], name: str, tmp_path: Path) -> None:
    with RedisBackend(servers[0].url(name)) as backend:
        with create(backend, tmp_path / "state", shards=2) as store:
            store[b"1"] = b"x"
        with oram.open(backend, key=KEY, state=tmp_path / "state") as store:
            assert store[b"1"] == b"x"


def test_wrong_lists(servers: list[Server], name: str, tmp_path: Path) -> None:
    both = urls(servers, name)
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (both, {"shards": 3}),
        ([], {}),
        ([both[0], RedisBackend(both[1])], {}),
    ]
    for where, options in wrong:
        with pytest.raises(ParameterError):
            create(where, tmp_path / "state", **options)
    with pytest.raises(ParameterError, match="state"):
        oram.create(both, key=KEY, capacity=60, block_size=48)
    with pytest.raises(ParameterError):
        open_shards("lmdb:x", 2)
    with pytest.raises(ParameterError, match="name"):
        create(servers[0].url("x" * 64), tmp_path / "state", shards=2)
    assert not (tmp_path / "state").exists()


def test_servers_that_changed_places(servers: list[Server], name: str, tmp_path: Path) -> None:
    both = urls(servers, name)
    with create(both, tmp_path / "state") as store:
        store[b"1"] = b"x"
    with pytest.raises(BackendError, match="order"):
        oram.open(both[::-1], key=KEY, state=tmp_path / "state")
    with oram.open(both, key=KEY, state=tmp_path / "state") as store:
        assert store[b"1"] == b"x"


def test_backup_rekey_and_restore(servers: list[Server], name: str, tmp_path: Path) -> None:
    both, model = urls(servers, name), {b"%d" % i: b"v%d" % i for i in range(30)}
    with create(both, tmp_path / "state", items=model) as store:
        check(store, model)
        store.backup(tmp_path / "backup")
        store.rekey(key=bytes(31) + b"1")
        check(store, model)
        store.clear()
        assert len(store) == 0
    with oram.restore(
        tmp_path / "backup", urls(servers, name + "r"), key=KEY, state=tmp_path / "new", durability="process"
    ) as again:
        check(again, model, by_access=True)
    with pytest.raises(ParameterError):
        oram.restore(tmp_path / "backup", [*both, both[0]], key=KEY, state=tmp_path / "newer")


@pytest.mark.parametrize("scheme", ["ring", "linear"])
def test_a_server_that_is_killed_comes_back(scheme: str, tmp_path: Path) -> None:
    """In the middle of the work: calls wait for it, and nothing is lost or done twice."""
    with ExitStack() as stack:
        pair = [stack.enter_context(redis_server(tmp_path / str(j))) for j in range(2)]
        store = stack.enter_context(create(urls(pair, "s", "timeout=2&retry=20"), tmp_path / "state", scheme))
        model: dict[bytes, bytes] = {}

        def outage() -> None:
            time.sleep(0.05)
            pair[1].kill()
            time.sleep(0.2)
            pair[1].start()

        thread = threading.Thread(target=outage)
        thread.start()
        end, i = time.monotonic() + 20, 0
        while (thread.is_alive() or i % 25) and time.monotonic() < end:
            some = {b"%d" % (j % 50): b"%d" % i for j in range(i, i + 7)}
            store.put_many(some)
            model |= some
            i += 1
        thread.join()
        check(store, model)
    with ExitStack() as stack:
        for server in pair:
            server.start()
            stack.callback(server.stop)
        with oram.open(urls(pair, "s"), key=KEY, state=tmp_path / "state") as store:
            check(store, model)


def test_a_server_that_stays_away(tmp_path: Path) -> None:
    """The access fails; when the server is back, the next handle finishes it, whatever the other one has got of it."""
    with ExitStack() as stack:
        pair = [stack.enter_context(redis_server(tmp_path / str(j))) for j in range(2)]
        where, state = urls(pair, "s", "timeout=1&retry=0.1&lease=1"), tmp_path / "state"
        model = {b"%d" % i: b"old" for i in range(30)}
        with create(where, state, "ring", items=model):
            pass
        for j in (0, 1):
            store = oram.open(where, key=KEY, state=state)
            store[b"1"] = model[b"1"] = b"%d" % j
            pair[j].kill()
            with pytest.raises(BackendUnavailableError):
                store.put_many([(b"2", b"new%d" % j), (b"29", b"x")])
            with pytest.raises(oram.errors.OramError):
                store.get(b"1")
            with pytest.raises(oram.errors.OramError):
                oram.open(where, key=KEY, state=state)
            pair[j].start()
            with suppress(oram.errors.OramError):
                store.close()
            time.sleep(1.1)  # the lease
            with oram.open(where, key=KEY, state=state) as store:
                found = dict(store.items())
                assert found in (model, model | {b"2": b"new%d" % j, b"29": b"x"})
                model = found


def test_a_server_that_comes_back_empty(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = [stack.enter_context(redis_server(tmp_path / str(j), {"appendonly": "no"})) for j in range(2)]
        with create(urls(pair, "s"), tmp_path / "state", items={b"1": b"x"}) as store:
            store[b"2"] = b"y"
        pair[1].kill()
        pair[1].start()
        with pytest.raises(RollbackError):
            oram.open(urls(pair, "s"), key=KEY, state=tmp_path / "state")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_the_servers_log(scheme: str, servers: list[Server], name: str, tmp_path: Path) -> None:
    """MONITOR on both: the same commands, as many look-ups, and for each just what the simulator says of its shard, wherever the keys are."""
    with pinned(Coins(3)), ExitStack() as stack:
        store = create(urls(servers, name), tmp_path / "state", scheme, keyed=False)
        info, engine = store.info(), store._engine
        listens = scheme != "linear"
        leaves = looked_up(engine) if listens else []
        logs = [stack.enter_context(server.monitor()) for server in servers]
        place: Any = engine.scheme._place  # type: ignore[attr-defined]
        skewed = [a for a in range(60) if place[a] < 30]
        for i in range(12):
            store.blocks.write_many(skewed[:9], [b"%d" % i] * 9)
            store.blocks.read(skewed[i])
        stack.close()
        heard: list[list[Event]] = []
        for server, log in zip(servers, logs, strict=True):
            with redis.Redis(port=server.port) as client:
                regions: dict[bytes, bytes] = client.hgetall(b"{%s}:regions" % name.encode())
            regions.pop(b"")
            heard.append(parse(log, name, regions))
        store.close()
    words = [[command[0] for command in log if command[0] in (b"MGET", b"MSET", b"EXEC")] for log in logs]
    assert words[0] == words[1] or scheme == "ring"  # which of Ring's accesses write, each shard's leaves say
    if not listens:
        assert heard[0] == heard[1]
        return
    expected = simulator(info, joint=False, remote=True)
    assert isinstance(expected, ShardedSimulator)
    for batch in leaves:
        expected.access(batch)
    for events, said in zip(heard, by_shard(expected.events, expected), strict=True):
        assert canonical(events, tree_info(info)) == audible(canonical(said, tree_info(info)))
    if scheme == "ring":  # as many look-ups of both: B(9, 2) and B(1, 2)
        assert {sum(event.op == "xor" for event in events) for events in heard} == {12 * (9 + 1)}
