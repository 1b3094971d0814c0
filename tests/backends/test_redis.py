"""The Redis backend over real servers: the contract, what it costs, and what the server sees."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import oram
from oram.backends import (
    Backend,
    Capability,
    RedisBackend,
    RedisOptions,
    RegionShape,
    SlotRead,
    SlotWrite,
    open_url,
)
from oram.backends.redis import backend as backend_module
from oram.backends.redis import keys, wire
from oram.errors import BackendError, ParameterError, StateMissingError, StoreExistsError, StoreNotFoundError
from oram.testing.conformance import BackendConformance
from oram.testing.proxy import Proxy
from oram.testing.servers import Server, redis_server, server_binary
from oram.trace import TraceBackend
from oram.types import I64, U8

#: Flushing at each write would take most of the time of these tests, and none of them cuts the power.
pytestmark = pytest.mark.filterwarnings("ignore:appendfsync:oram.errors.BackendWarning")

SHAPE = RegionShape(64, 200)
ALL = np.arange(SHAPE.slots)


def slots(*indices: int) -> I64:
    return np.array(indices, dtype=np.int64)


def rows(seed: int, count: int, size: int = SHAPE.slot_size) -> U8:
    return np.random.default_rng(seed).integers(1, 256, (count, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def unix_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("unix"), unix=True) as server:
        yield server


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    binary = server_binary(tls=True)
    if binary is None:
        pytest.skip("no server with TLS here, such as Debian's")
    with redis_server(tmp_path_factory.mktemp("other"), binary=binary) as server:
        yield server


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


class RedisConformance(BackendConformance):
    """The contract over one kind of connection."""

    @pytest.fixture
    def place(self) -> str:
        """The URL of a new store."""
        raise NotImplementedError

    @pytest.fixture
    def backend(self, place: str) -> Iterator[RedisBackend]:
        self.url = place
        with RedisBackend(self.url) as backend:
            yield backend

    def reopen(self, backend: Backend) -> RedisBackend:
        backend.close()
        return RedisBackend(self.url)


class TestOverTCP(RedisConformance):
    @pytest.fixture
    def place(self, server: Server, name: str) -> str:
        return server.url(name)


class TestOverAUnixSocket(RedisConformance):
    @pytest.fixture
    def place(self, unix_server: Server, name: str) -> str:
        return unix_server.url(name)


class TestDebianServer(RedisConformance):
    """Redis as Debian has it, in another database."""

    @pytest.fixture
    def place(self, other_server: Server, name: str) -> str:
        return other_server.url(name, db=3)


def test_capabilities() -> None:
    promised = Capability.REMOTE | Capability.ATOMIC | Capability.XOR | Capability.DURABLE
    assert RedisBackend.capabilities == promised


# Where a store is


def test_stores_with_their_own_names_and_databases(server: Server, name: str) -> None:
    places = [server.url(name), server.url(name + "x"), server.url(name, db=1), server.url(name, db=15)]
    for seed, place in enumerate(places):
        with open_url(place, sync=True, create=True) as backend:
            assert isinstance(backend, RedisBackend)
            assert not backend.regions()
            backend.acquire()
            backend.allocate("tree", SHAPE)
            backend.write("tree", ALL, rows(seed, 64))
    for seed, place in enumerate(places):
        with open_url(place, sync=False, create=False) as backend:
            assert np.array_equal(backend.read("tree", ALL).data, rows(seed, 64))
            backend.drop("tree")


def test_urls() -> None:
    of = RedisOptions.from_url
    assert of("redis://example.org") == RedisOptions(host="example.org")
    assert of("redis://[::1]:7000/2?name=a.b_c-1") == RedisOptions(host="::1", port=7000, db=2, name="a.b_c-1")
    assert of("redis://h/?db=4") == RedisOptions(host="h", db=4)
    assert of("rediss://h?ca=/a%20b&cert=c&key=k") == RedisOptions(host="h", tls=True, ca="/a b", cert="c", key="k")
    assert of("unix:///run/a%20b?db=3") == RedisOptions(socket="/run/a b", db=3)
    assert of("redis://h?timeout=1.5&retry=0&lease=60") == RedisOptions(host="h", timeout=1.5, retry=0, lease=60)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://h:port",
        "redis://h:99999",
        "redis://h/x",
        "redis://h/1/2",
        "redis://h/-1",
        "redis://h#f",
        "redis://h?password=hunter2",
        "redis://h?hunter2",
        "redis://h?name=a&name=b",
        "redis://h?name=",
        "redis://h?name=a*b",
        "redis://h?name=a:b",
        "redis://h?name=" + "x" * 65,
        "redis://h?db=x",
        "redis://h?timeout=0",
        "redis://h?timeout=nan",
        "redis://h?retry=-1",
        "redis://h?lease=0.5",
        "redis://h?lease=inf",
        "redis://h?ca=hunter2",
        "unix://h/x",
        "unix://",
        "http://h",
        "redis://hunter2@h",
        "redis://hunter2:hunter2@h",
        "redis://:hunter2@h",
        "unix://hunter2@/x",
    ],
)
def test_bad_urls_are_refused_and_not_repeated(url: str) -> None:
    for opener in (RedisBackend, lambda url: open_url(url, sync=True, create=True)):
        with pytest.raises(ParameterError) as raised:
            opener(url)
        assert "hunter2" not in str(raised.value)
        assert raised.value.__context__ is None


def test_all_problems_together() -> None:
    with pytest.raises(ParameterError) as raised:
        RedisOptions(host="", port=0, db=-1, name="", ca="x", timeout=0)
    assert str(raised.value).count(";") == 4
    with pytest.raises(ParameterError, match="TLS"):
        RedisOptions(socket="/x", tls=True)
    with pytest.raises(ParameterError, match="in the options"):
        RedisBackend(RedisOptions(), credentials=lambda: ("", ""))


def test_importing_the_package_imports_no_redis() -> None:
    program = """
import sys
import oram, oram.backends, oram.cli
assert not {"redis", "hiredis"} & sys.modules.keys()
sys.modules["redis"] = None
try:
    oram.backends.RedisBackend("redis://127.0.0.1")
except oram.errors.ParameterError as error:
    assert "pip install oram[redis]" in str(error)
else:
    raise AssertionError
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


# Round trips


@contextlib.contextmanager
def trips(backend: RedisBackend) -> Iterator[list[int]]:
    """How many commands each round trip had."""
    made: list[int] = []
    trip = backend._link.trip

    def counted(commands: list[bytes], *more: object) -> list[object]:
        made.append(len(commands))
        return trip(commands, *more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend._link, "trip", counted)
        yield made


@pytest.mark.parametrize("owned", [False, True])
def test_one_call_is_one_round_trip(server: Server, name: str, owned: bool) -> None:
    with RedisBackend(server.url(name)) as backend:
        backend.allocate("tree", SHAPE)
        if owned:
            backend.acquire()
        backend.write("tree", ALL, rows(1, 64))
        groups = np.array([[1, 2, 3], [4, -1, 5], [-1, -1, -1]])
        writes = (SlotWrite("tree", slots(1, 2), rows(2, 2)),)
        calls: tuple[Callable[[], object], ...] = (
            lambda: backend.read("tree", ALL),
            lambda: backend.write("tree", ALL, rows(1, 64)),
            lambda: backend.read_xor("tree", groups, slots(1, 2)),
            lambda: backend.exchange(writes, SlotRead("tree", ALL, groups)),
            lambda: backend.exchange(writes, SlotRead("tree", ALL)),
            lambda: backend.exchange((), SlotRead("tree", ALL)),
        )
        for call in calls:
            with trips(backend) as made:
                call()
            assert len(made) == 1
        nothing: tuple[Callable[[], object], ...] = (
            lambda: backend.read("tree", slots()),
            lambda: backend.write_all(()),
            lambda: backend.read_xor("tree", np.full((2, 3), -1), slots()),
            backend.regions,
            backend.sync,
        )
        for call in nothing:
            with trips(backend) as made:
                call()
            assert made == []


def test_the_read_of_an_exchange_goes_ahead_of_its_writes(server: Server, name: str) -> None:
    """So that slots come down while others go up; and the lease is looked at behind the transaction, not before it."""
    with RedisBackend(server.url(name)) as backend:
        backend.allocate("tree", SHAPE)
        backend.acquire()
        backend.write("tree", ALL, rows(1, 64))
        groups = np.array([[1, 2], [3, 4]])
        with server.monitor() as seen:
            backend.exchange((SlotWrite("tree", slots(1), rows(2, 1)),), SlotRead("tree", slots(1, 5), groups))
        # the server logs MULTI's commands at EXEC, and which of both comes first is not the same in each version
        names = [words[0] for words in seen if words[0] not in (b"MULTI", b"EXEC")]
        assert names == [b"MGET", b"MSET", b"BITOP", b"GETDEL", b"BITOP", b"GETDEL", b"WATCH", b"GET"]


def test_an_exchange_takes_one_delay(server: Server, name: str) -> None:
    """Over a line with a delay of 200 ms, which no scheduling hides: below two of them."""
    with Proxy(server.port) as proxy, RedisBackend(f"redis://127.0.0.1:{proxy.port}?name={name}") as backend:
        backend.allocate("tree", SHAPE)
        backend.acquire()
        backend.write("tree", ALL, rows(1, 64))
        proxy.rtt = 0.2
        start = time.monotonic()
        backend.exchange((SlotWrite("tree", ALL, rows(2, 64)),), SlotRead("tree", ALL, np.array([[1, 2]])))
        assert 0.2 <= time.monotonic() - start < 0.4


def test_a_large_batch_is_one_transaction(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (keys, backend_module):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(keys, "CHUNK_KEYS", 7)
    with RedisBackend(server.url(name)) as backend:
        backend.allocate("tree", SHAPE)
        backend.allocate("small", RegionShape(64, 10))
        backend.acquire()
        backend.write("tree", slots(0), rows(0, 1))
        writes = (
            SlotWrite("tree", ALL, rows(1, 64)),
            SlotWrite("small", ALL, rows(2, 64, 10)),
            SlotWrite("tree", slots(3), rows(3, 1)),
        )
        with server.monitor() as seen, trips(backend) as made:
            result = backend.exchange(writes, SlotRead("small", ALL[::-1]))
        assert len(made) == 1
        counted = [words[0] for words in seen]
        assert counted.count(b"MULTI") == counted.count(b"EXEC") == 1
        assert counted.count(b"MSET") > 10
        assert counted.count(b"MGET") == 10
        assert np.array_equal(result.data, rows(2, 64, 10)[::-1])
        expected = rows(1, 64)
        expected[3] = rows(3, 1)
        assert np.array_equal(backend.read("tree", ALL).data, expected)


def test_an_exchange_within_one_region_in_order(server: Server, name: str) -> None:
    """Several writes of a slot, slots that were never written, and slots read twice: the client's own copies are the last ones."""
    with RedisBackend(server.url(name)) as backend:
        backend.allocate("tree", SHAPE)
        backend.allocate("other", SHAPE)
        writes = (
            SlotWrite("tree", slots(9, 2, 5), rows(1, 3)),
            SlotWrite("other", slots(4, 7), rows(9, 2)),
            SlotWrite("tree", slots(5, 7), rows(2, 2)),
        )
        groups = np.array([[9, 2, 5], [4, 7, -1]])
        result = backend.exchange(writes, SlotRead("tree", slots(5, 9, 4, 5, 63, 2), groups))
        a, b, zero = rows(1, 3), rows(2, 2), np.zeros(SHAPE.slot_size, np.uint8)
        assert np.array_equal(result.data, [b[0], a[0], zero, b[0], zero, a[1]])
        assert result.present.tolist() == [1, 1, 0, 1, 0, 1]
        assert result.folded is not None
        assert np.array_equal(result.folded, [a[0] ^ a[1] ^ b[0], b[1]])


def test_a_fold_leaves_nothing_behind(server: Server, name: str) -> None:
    with RedisBackend(server.url(name)) as backend:
        backend.allocate("tree", SHAPE)
        backend.write("tree", slots(1, 2), rows(1, 2))
        backend.read_xor("tree", np.array([[1, 2], [3, 4], [1, 1]]), slots())
        with server.monitor() as seen:
            assert not backend.read("tree", slots(3, 4)).present.any()
        assert len(seen) == 1
        backend.drop("tree")
        with RedisBackend(server.url(name)) as other, contextlib.closing(other):
            left = other._call(lambda: other._ask([wire.pack(b"KEYS", b"{%s}:*" % name.encode())]))
        assert left == [[b"{%s}:regions" % name.encode()]]


def test_slots_too_large_for_a_server(server: Server, name: str) -> None:
    with RedisBackend(server.url(name)) as backend:
        with pytest.raises(BackendError):
            backend.allocate("tree", RegionShape(1, (512 << 20) + 1))
        assert not backend.regions()


def test_threads_may_share_it(server: Server, name: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with RedisBackend(server.url(name, query="lease=1")) as backend:
        backend.allocate("tree", SHAPE)
        backend.acquire()

        def work(seed: int) -> bool:
            mine = slots(2 * seed, 2 * seed + 1)
            for n in range(200):
                result = backend.exchange((SlotWrite("tree", mine, rows(n, 2)),), SlotRead("tree", mine))
                if not np.array_equal(result.data, rows(n, 2)):
                    return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))


# A store


def test_a_store_needs_a_state_of_its_own(server: Server, name: str) -> None:
    with pytest.raises(ParameterError, match="state=PATH"):
        oram.create(server.url(name), key=bytes(32), capacity=10, block_size=64)
    with RedisBackend(server.url(name)) as backend:
        backend.acquire()  # nothing has it


@pytest.mark.parametrize(
    ("round_trip", "rate", "size", "pays"),
    [
        (60e-6, 4e9, 4096, False),  # loopback
        (60e-6, 125e6, 4096, True),  # a gigabit a second
        (60e-6, 125e6, 16384, True),
        (60e-6, 1.25e9, 16384, True),
        (60e-6, 1.25e9, 200, False),  # ten gigabits: what is saved is less than the commands cost
        (20e-3, 1e12, 200, True),  # far away
    ],
)
def test_folding_pays_where_the_link_is_slower_than_the_server_folds(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch, round_trip: float, rate: float, size: int, pays: bool
) -> None:
    with RedisBackend(server.url(name)) as backend:
        monkeypatch.setattr(backend, "_ping", lambda payload: round_trip + 2 * len(payload) / rate)
        assert backend.fold_pays(20, size) is pays


def test_a_link_is_measured(server: Server, name: str) -> None:
    with Proxy(server.port, rtt=0.005) as proxy, RedisBackend(f"redis://127.0.0.1:{proxy.port}?name={name}") as backend:
        assert backend.fold_pays(20, 200)  # a proxy is never quicker than its delay


@pytest.mark.parametrize("forced", [None, False, True])
def test_ring_folds_where_it_pays_or_where_it_is_told(
    server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool | None
) -> None:
    key = oram.generate_key()
    for round_trip, pays in ((0.0, False), (1.0, True)):
        monkeypatch.setattr(RedisBackend, "_ping", lambda self, payload, seconds=round_trip: seconds)
        backend = TraceBackend(RedisBackend(server.url(f"{name}{pays}")))
        scheme = oram.RingParams(xor=forced)
        state = tmp_path / str(pays)
        with oram.create(backend, key=key, capacity=64, block_size=32, scheme=scheme, state=state, tree_top=0) as store:
            backend.clear()
            store[b"k"] = b"v"
            assert {event.op for event in backend.events} >= {"xor" if (pays if forced is None else forced) else "read"}
            assert ("xor" in {event.op for event in backend.events}) is (pays if forced is None else forced)


@pytest.mark.parametrize("scheme", ["path", "ring", "linear"])
def test_a_store(server: Server, name: str, tmp_path: Path, scheme: str) -> None:
    key, url = oram.generate_key(), server.url(name)
    with pytest.raises(StoreNotFoundError):
        oram.open(url, state=tmp_path / "state", key=key)
    items = {b"%d" % i: b"value %d" % i for i in range(50)}
    with oram.create(
        url, state=tmp_path / "state", key=key, capacity=100, block_size=64, scheme=scheme, items=items
    ) as store:
        store[b"more"] = b"x"
        store.put_many({b"a": b"1", b"b": b"2"})
        store.rekey(key=key)
        store.backup(tmp_path / "copy")
    with pytest.raises(StoreExistsError):
        oram.create(url, state=tmp_path / "other", key=key, capacity=100, block_size=64, scheme=scheme)
    with pytest.raises(StateMissingError):
        oram.open(url, state=tmp_path / "third", key=key)
    with oram.open(url, state=tmp_path / "state", key=key) as store:
        assert dict(store.items()) == items | {b"more": b"x", b"a": b"1", b"b": b"2"}
        store.verify()


_KEY = re.compile(rb"\{([0-9a-f]{16})\}:([0-9a-f]{8}):([0-9a-f]+)")
_SMALL = {b"regions", b"lease", b"fence", b"dropped", b"fold"}


@pytest.mark.parametrize("scheme", ["path", "ring"])
def test_what_the_server_sees_of_a_store(server: Server, name: str, tmp_path: Path, scheme: str) -> None:
    """The whole log of a store: nothing but names of slots, of one width in each region, and values of one length; each access like any other."""
    key = oram.generate_key()
    secret = b"a value that nobody is to see"
    url = server.url(name)
    with server.monitor() as seen:
        with oram.create(
            url, state=tmp_path, key=key, capacity=256, block_size=128, scheme=scheme, tree_top=0
        ) as store:
            store[b"hunter2"] = secret
        with oram.open(url, state=tmp_path, key=key) as store:
            store.get(b"no such key")  # so that each access from here on carries the write-back of the one before it
            with server.monitor() as accesses:
                for i in range(40):
                    store[b"hunter2 %d" % i] = secret
                    assert store[b"hunter2"] == secret
                    assert store.get(b"no such key") is None
            del store[b"hunter2"]
    text = b" ".join(word for words in seen for word in words)
    for private in (key, key.hex().encode(), secret, b"hunter2", secret.hex().encode()):
        assert private not in text

    widths: dict[bytes, set[int]] = {}
    lengths: dict[bytes, set[int]] = {}
    for command, *words in seen:
        if command == b"PING":  # how fast the link is
            assert len(words) <= 1
            assert not b"".join(words).strip(b"\0")
            continue
        if command in (b"MULTI", b"EXEC", b"UNWATCH", b"INFO", b"CONFIG", b"CLUSTER", b"DBSIZE", b"SCAN", b"ECHO"):
            assert len(words) <= 5
            continue
        keys = {b"MSET": words[::2], b"MGET": words, b"UNLINK": words, b"BITOP": words[1:]}
        names = keys.get(command, words[:1])
        for word in names:
            match = _KEY.fullmatch(word)
            if match is None:
                prefix, kind = word.split(b":")
                assert prefix == b"{%s}" % name.encode()
                assert kind in _SMALL
                continue
            widths.setdefault(match[2], set()).add(len(match[3]))
        if command == b"MSET":
            for slot, value in zip(names, words[1::2], strict=True):
                match = _KEY.fullmatch(slot)
                assert match is not None
                lengths.setdefault(match[2], set()).add(len(value))
    assert len(lengths) >= 3
    assert all(len(width) == 1 for width in widths.values())
    assert all(len(length) == 1 for length in lengths.values())

    if scheme == "ring":  # what differs from access to access there is a matter of the scheme, not of this backend
        return
    shapes = [(words[0], len(words), sum(map(len, words))) for words in accesses]
    each = len(shapes) // 120
    assert len(shapes) == 120 * each
    assert {tuple(shapes[at : at + each]) for at in range(0, len(shapes), each)} == {tuple(shapes[:each])}
    assert b"MGET" in {command for command, _, _ in shapes[:each]}


def test_another_server_for_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that is named, or none: never another one in its place."""
    program = tmp_path / "some-server"
    program.write_text("#!/bin/sh\necho Bad directive\n")
    program.chmod(0o755)
    monkeypatch.setenv("ORAM_TEST_SERVER", str(program))
    assert server_binary() == program
    assert server_binary(tls=True) is None
    monkeypatch.setenv("ORAM_TEST_SERVER", str(tmp_path / "no-server"))
    with pytest.raises(RuntimeError, match="no-server"):
        server_binary()


def test_a_store_that_is_erased(server: Server, name: str, tmp_path: Path) -> None:
    """Nothing of it is left, nor anything of another touched; and the place can be used again."""
    kept = oram.generate_key()
    with oram.create(
        server.url(f"{name}x"), key=kept, state=tmp_path / "other", capacity=20, block_size=40, scheme="path"
    ) as store:
        store[b"a"] = b"1"
    for i in range(2):
        with RedisBackend(server.url(name)) as backend:
            with oram.create(backend, key=bytes(32), state=tmp_path / str(i), capacity=20, block_size=40) as store:
                store[b"a"] = b"1"
                store.load({b"b": b"2"})
            backend.erase()
            assert dict(backend.regions()) == {}
            assert backend._call(lambda: backend._ask([wire.pack(b"KEYS", b"{%s}:*" % name.encode())])) == [[]]
    with oram.open(server.url(f"{name}x"), key=kept, state=tmp_path / "other") as store:
        assert store[b"a"] == b"1"
