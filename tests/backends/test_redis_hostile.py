"""A server that lies: it costs no memory, no time without end, no secret, and no error that is not ours."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hiredis
import numpy as np
import pytest
import redis as redis_py

import oram
from oram.backends import RedisBackend, RedisOptions, RegionShape, SlotRead, SlotWrite
from oram.errors import BackendAccessError, BackendError, BackendUnavailableError, IntegrityError, OramError
from oram.testing.proxy import Proxy
from oram.testing.servers import Server, redis_server

pytestmark = pytest.mark.filterwarnings("ignore::oram.errors.BackendWarning")

SHAPE = RegionShape(64, 200)
ALL = np.arange(64)
KEY = bytes(32)
ONE = SlotWrite("tree", ALL[:1], np.ones((1, 200), np.uint8))
QUICK = "timeout=0.5&retry=0.5&lease=60"

#: What to answer, given the words of a command and the server's true answer; None hangs up.
Answer = Callable[[list[bytes], bytes], bytes | None]


class Liar:
    """Between a client and a server: passes commands on, one by one, and tells the client what it likes. drip: seconds between bytes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.answer: Answer = lambda _, said: said
        self.drip = 0.0
        self.seen: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, name: str, query: str = QUICK) -> str:
        return f"redis://127.0.0.1:{self.port}/0?name={name}&{query}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        commands = hiredis.Reader()
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := client.recv(1 << 18):
                commands.feed(data)
                while (words := commands.gets()) is not False:
                    self.seen.append(words[0].upper())
                    server.sendall(hiredis.pack_command(tuple(words)))
                    said = self.answer(words, self._true(server))
                    if said is None:
                        return
                    if not self.drip:
                        client.sendall(said)
                        continue
                    for byte in said:
                        client.sendall(bytes([byte]))
                        time.sleep(self.drip)

    def _true(self, server: socket.socket) -> bytes:
        replies, said = hiredis.Reader(), b""
        while replies.gets() is False:
            piece = server.recv(1 << 18)
            if not piece:
                raise ConnectionResetError
            said += piece
            replies.feed(piece)
        return said

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("hostile")) as server:
        yield server


@pytest.fixture
def liar(shared: Server) -> Iterator[Liar]:
    with contextlib.closing(Liar(shared.port)) as liar:
        yield liar


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


@contextlib.contextmanager
def admin(server: Server) -> Iterator[redis_py.Redis]:
    with contextlib.closing(redis_py.Redis(port=server.port)) as client:
        yield client


@contextlib.contextmanager
def opened(liar: Liar, name: str) -> Iterator[RedisBackend]:
    with RedisBackend(liar.url(name)) as backend:
        backend.allocate("tree", SHAPE)
        backend.acquire()
        backend.write_all([ONE])
        yield backend
        liar.answer, liar.drip = lambda _, said: said, 0.0


def instead(command: bytes, lie: bytes | None) -> Answer:
    """This lie for each such command, else the truth."""
    return lambda words, said: lie if words[0].upper() == command else said


# Time


@pytest.mark.parametrize("where", ["in the repair", "behind it"])
@pytest.mark.parametrize(
    "lie", [b"-CLUSTERDOWN no\r\n", b"-TRYAGAIN no\r\n", b"-MOVED 7 127.0.0.1:%d\r\n", b"-READONLY no\r\n", None]
)
def test_a_write_that_never_succeeds(liar: Liar, name: str, lie: bytes | None, where: str) -> None:
    """What is checked on a new connection is part of the call that found it: one clock, and no check within a check."""
    depth, deepest, checks = 0, 0, 0

    with opened(liar, name) as backend:

        def check(_: int) -> None:
            nonlocal depth, deepest, checks
            depth, checks = depth + 1, checks + 1
            deepest = max(deepest, depth)
            try:
                backend.read("tree", ALL)
                if where == "in the repair":
                    backend.write_all([ONE])
            finally:
                depth -= 1

        backend.on_reconnect(check)
        liar.answer = instead(b"EXEC", lie and (lie % liar.port if b"%d" in lie else lie))
        backend._link.drop()
        start = time.monotonic()
        with pytest.raises(BackendError):
            backend.write_all([ONE])
        assert time.monotonic() - start < 10
        liar.answer = lambda _, said: said
        before = checks
        backend.read("tree", ALL)  # and not before the check went well
        assert checks == before + 1 or where == "behind it"
    assert deepest == 1
    assert checks < 40


def test_byte_by_byte(liar: Liar, name: str) -> None:
    """Each byte comes in time, and the answer never does."""
    with opened(liar, name) as backend:
        backend.write_all([SlotWrite("tree", ALL, np.ones((64, 200), np.uint8))])
        liar.drip = 0.05
        start = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="timed out"):
            backend.read("tree", ALL)
        assert time.monotonic() - start < 15


def test_a_check_that_takes_for_ever(liar: Liar, name: str) -> None:
    """Each answer comes in time, and there is no end to what has to be asked: the call around it has one all the same."""
    with opened(liar, name) as backend:
        reads = 0

        def check(_: int) -> None:
            nonlocal reads
            for _ in range(10_000):
                backend.read("tree", ALL)
                reads += 1

        def slowly(words: list[bytes], said: bytes) -> bytes:
            if words[0] == b"MGET":
                time.sleep(0.05)
            return said

        backend.on_reconnect(check)
        liar.answer = slowly
        backend._link.drop()
        start = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="timed out"):
            backend.write_all([ONE])
        assert time.monotonic() - start < 10
        assert reads > 1
        backend.on_reconnect(lambda _: None)


def test_a_planted_region(
    liar: Liar, shared: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As large as a number can be. What is left of it another opening may delete."""
    monkeypatch.setattr("oram.backends.redis.backend._SWEEPING", 0.1)
    options = {"state": tmp_path / "state", "key": KEY}
    url = liar.url(name, "lease=60&retry=5")
    oram.create(url, capacity=10, block_size=50, durability="process", **options).close()  # type: ignore[arg-type]
    with admin(shared) as client:
        for region in ("slots.7", "meta.9", "foreign"):
            client.hset(f"{{{name}}}:regions", region, "77 999999999999999999 100")
        # so that there are more keys than slots, as far as the server says
        liar.answer = instead(b"DBSIZE", b":9223372036854775807\r\n")
        start = time.monotonic()
        with oram.open(url, durability="process", **options) as store:  # type: ignore[arg-type]
            store[b"k"] = b"v"
            store.backup(tmp_path / "copy")
        assert time.monotonic() - start < 20
        assert client.hexists(f"{{{name}}}:dropped", "77")


def test_erasing_a_planted_region(shared: Server, name: str, tmp_path: Path) -> None:
    """What is there decides how long it takes, and not what a record says."""
    with admin(shared) as client, RedisBackend(shared.url(name)) as backend:
        backend.acquire()
        backend.allocate("slots.1", RegionShape(9, 100))
        backend.write("slots.1", np.arange(9), np.ones((9, 100), np.uint8))
        client.hset(f"{{{name}}}:regions", "slots.7", "77 999999999999999999 100")
        client.hset(f"{{{name}}}:dropped", "78", "999999999999999999")
        client.set(f"{{{name}}}:0000004e:{3:015x}", "left")
        client.set(f"{{{name}}}:0000004f:03", "of no region")
        backend.close()
    with admin(shared) as client, RedisBackend(shared.url(name)) as backend:
        start = time.monotonic()
        backend.erase()
        assert time.monotonic() - start < 10
        assert list(client.scan_iter(f"{{{name}}}:*")) == []


def test_many_leftovers(liar: Liar, shared: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together take an opening no longer than one; and there is an end to how many there can be."""
    monkeypatch.setattr("oram.backends.redis.backend._SWEEPING", 0.3)
    liar.answer = instead(b"DBSIZE", b":9223372036854775807\r\n")
    with admin(shared) as client, opened(liar, name) as backend:
        backend.release()
        client.hset(f"{{{name}}}:dropped", mapping={str(i): 10**17 for i in range(20)})
        start = time.monotonic()
        backend.acquire()
        assert time.monotonic() - start < 2
        backend.release()
        client.hset(f"{{{name}}}:dropped", mapping={str(i): 1 for i in range(2000)})
        with pytest.raises(IntegrityError):
            backend.acquire()
        assert not client.exists(f"{{{name}}}:lease")


def test_an_erasure_without_end(liar: Liar, shared: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server always says that there is more. What is gone half way is not taken for gone, and the next erasure goes on."""
    monkeypatch.setattr("oram.backends.redis.backend._ERASING", 0.3)
    with admin(shared) as client, opened(liar, name) as backend:
        liar.answer = instead(b"SCAN", b"*2\r\n$1\r\n7\r\n*0\r\n")
        start = time.monotonic()
        with pytest.raises(BackendError, match="erase it again"):
            backend.erase()
        assert time.monotonic() - start < 2
        assert client.exists(f"{{{name}}}:regions")
        liar.answer = lambda _, said: said
        backend.erase()
        assert list(client.scan_iter(f"{{{name}}}:*")) == []


# Memory


def test_a_flood(liar: Liar, name: str) -> None:
    with opened(liar, name) as backend:
        liar.answer = instead(b"MGET", b"*65\r\n$100000000\r\n" + bytes(4 << 20))
        with pytest.raises(BackendError, match="more than it was asked"):
            backend.read("tree", ALL)


@pytest.mark.parametrize("command", [b"MGET", b"EXEC", b"HGETALL", b"CLUSTER", b"WATCH"])
@pytest.mark.parametrize(
    "lie", [b"*2147483647\r\n", b"*1\r\n" * 6 + b"*99999999\r\n", b"*4294967296\r\n", b"$536870912\r\n"]
)
def test_lengths_that_are_only_said(liar: Liar, name: str, command: bytes, lie: bytes) -> None:
    """The parser makes room for as many as a header says, before any of them is there: it does not get to see such a one."""
    with opened(liar, name) as backend:
        backend._link.drop()
        liar.answer = instead(command, lie)
        start = time.process_time()
        with pytest.raises(BackendError, match="more than it was asked"):
            backend.exchange((ONE,), SlotRead("tree", ALL)) if command != b"MGET" else backend.read("tree", ALL)
        assert time.process_time() - start < 1


@pytest.mark.parametrize("size", [1 << 29, 4097, 1])
def test_a_header_of_another_size(liar: Liar, name: str, tmp_path: Path, size: int) -> None:
    """It is read before anything is authenticated: not as long as the server says."""
    options = {"state": tmp_path / "state", "key": KEY}
    oram.create(liar.url(name), capacity=10, block_size=50, durability="process", **options).close()  # type: ignore[arg-type]
    record = b"1 1 %d" % size
    lie = b"*2\r\n$6\r\nheader\r\n$%d\r\n%s\r\n" % (len(record), record)
    liar.answer = lambda words, said: lie if words[0] == b"HGETALL" and words[1].endswith(b":regions") else said
    liar.seen.clear()
    with pytest.raises(IntegrityError, match="header is damaged"):
        oram.open(liar.url(name), durability="process", **options)  # type: ignore[arg-type]
    assert b"MGET" not in liar.seen


# Errors


RAW = (
    b",inf\r\n", b",nan\r\n", b":9223372036854775807\r\n", b":-1\r\n", b"*0\r\n", b"*-1\r\n", b"$-1\r\n", b"_\r\n", b"#t\r\n", b"$0\r\n\r\n",
    b"(123456789012345678901234567890\r\n", b"%1\r\n+a\r\n+b\r\n", b"~1\r\n+a\r\n", b">2\r\n+a\r\n+b\r\n", b"*1\r\n*1\r\n*0\r\n", b"-\r\n",
    b"-MOVED x y\r\n", b"-MOVED 1 :99999\r\n", b"-\xff\xfe\r\n", b"$3\r\n\xff\xfe\xfd\r\n", b"+OK\r\n", b"x", b"*2\r\n$9\r\nclock.1.2\r\n$5\r\n1 1 1\r\n",
)  # fmt: skip


def test_any_answer_at_any_place(liar: Liar, shared: Server, name: str, tmp_path: Path) -> None:
    """Opening a store and using it while one of the answers is another one: it works, or it fails with an error of ours."""
    options = {"state": tmp_path / "state", "key": KEY, "durability": "process"}
    url = liar.url(name, "timeout=0.3&retry=0&lease=60")

    def use() -> None:
        with oram.open(url, **options) as store:  # type: ignore[arg-type]
            store[b"k"] = b"v"
            assert store[b"k"] == b"v"

    oram.create(url, capacity=10, block_size=50, **{**options, "scheme": "path"}).close()  # type: ignore[arg-type]
    count = 0

    def counting(_: list[bytes], said: bytes) -> bytes:
        nonlocal count
        count += 1
        return said

    liar.answer = counting
    use()
    answers, failed = count, 0
    assert answers > 30
    with admin(shared) as client:
        for k in range(answers):
            for lie in RAW[k % 2 :: 2] if k > 25 else RAW:
                left = k

                def lying(_: list[bytes], said: bytes, lie: bytes = lie) -> bytes:
                    nonlocal left
                    left -= 1
                    return lie if left == -1 else said

                liar.answer = lying
                try:
                    use()
                except OramError:
                    failed += 1
                liar.answer = lambda _, said: said
                client.delete(f"{{{name}}}:lease")
    assert failed > answers
    use()  # nothing was lost over it


@pytest.mark.parametrize("lie", [b"*0\r\n", b"*2\r\n$0\r\n\r\n$1\r\n7\r\n"])
def test_a_region_that_is_declared_and_not_there(liar: Liar, name: str, lie: bytes) -> None:
    liar.answer = instead(b"HGETALL", lie)
    with RedisBackend(liar.url(name)) as backend, pytest.raises(OramError):
        backend.allocate("tree", SHAPE)


@pytest.mark.parametrize(
    "region", ["clock.1.2", "clock.²", "slots.99999999999999999999", "slots.-1", "clock.", "..", "meta.1.1"]
)
def test_regions_of_any_name(shared: Server, name: str, tmp_path: Path, region: str) -> None:
    options = {"state": tmp_path / "state", "key": KEY, "durability": "process"}
    url = shared.url(name, query="lease=60")
    oram.create(url, capacity=10, block_size=50, **options).close()  # type: ignore[arg-type]
    with admin(shared) as client:
        client.hset(f"{{{name}}}:regions", region, "77 5 100")
        client.delete(*client.keys(f"{{{name}}}:00000003:*"), f"{{{name}}}:dropped")
    with contextlib.suppress(OramError), oram.open(url, **options) as store:  # type: ignore[arg-type]
        store[b"k"] = b"v"


# Secrets


@pytest.mark.parametrize(
    "form",
    [b"-WRONGPASS %s\r\n", b">2\r\n+invalidate\r\n$%d\r\n%s\r\n+OK\r\n", b">2\r\n+%s\r\n+%s\r\n", b"+%s\r\n", b"%s"],
)
def test_no_password_in_a_log(liar: Liar, name: str, form: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the server does with what it was told."""
    secret = b"correct-horse-battery"
    values = {1: (secret,), 2: (len(secret), secret) if b"%d" in form else (secret, secret)}[form.count(b"%")]
    liar.answer = instead(b"AUTH", form % values)
    options = RedisOptions.from_url(liar.url(name), lambda: ("user", secret.decode()))
    caplog.set_level(logging.DEBUG)
    logging.getLogger("redis").setLevel(logging.DEBUG)
    try:
        with contextlib.closing(RedisBackend(options)) as backend:
            backend.allocate("tree", SHAPE)
    except (BackendError, IntegrityError) as error:
        raised: BaseException | None = error
    else:
        raised = None
    assert isinstance(raised, BackendAccessError) or form != b"-WRONGPASS %s\r\n"
    assert raised is None or secret.decode() not in f"{raised!r}{raised.__cause__!r}{raised.__context__!r}"
    assert secret.decode() not in caplog.text


# An honest one, over a bad line


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_drop_that_is_interrupted(shared: Server, name: str, when: str) -> None:
    with (
        Proxy(shared.port) as proxy,
        RedisBackend(f"redis://127.0.0.1:{proxy.port}/0?name={name}&timeout=5&retry=5&lease=60") as backend,
    ):
        backend.allocate("tree", SHAPE)
        backend.allocate("other", SHAPE)
        backend.acquire()
        backend.write_all([ONE])
        proxy.cut(when, b"EXEC")  # type: ignore[arg-type]
        backend.drop("tree")
        assert proxy.fired.is_set()
        assert list(backend.regions()) == ["other"]
        proxy.break_all()
        assert not backend.read("other", ALL).present.any()
        backend.allocate("tree", SHAPE)
        assert not backend.read("tree", ALL).present.any()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_drop_of_which_nothing_was_heard(shared: Server, name: str, when: str) -> None:
    """It may have happened, or not: neither is a rollback, and declared again the region is empty."""
    with (
        Proxy(shared.port) as proxy,
        RedisBackend(f"redis://127.0.0.1:{proxy.port}/0?name={name}&timeout=1&retry=0&lease=60") as backend,
    ):
        backend.allocate("tree", SHAPE)
        backend.acquire()
        backend.write_all([ONE])
        proxy.cut(when, b"EXEC")  # type: ignore[arg-type]
        with pytest.raises(BackendUnavailableError):
            backend.drop("tree")
        backend.drop("tree")
        backend.allocate("tree", SHAPE)
        assert not backend.read("tree", ALL).present.any()


@pytest.mark.parametrize("skip", range(3))
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_erasure_that_is_interrupted(shared: Server, name: str, when: str, skip: int) -> None:
    """By the owner. What goes away is not missed on a new connection."""
    with (
        Proxy(shared.port) as proxy,
        RedisBackend(f"redis://127.0.0.1:{proxy.port}/0?name={name}&timeout=5&retry=5&lease=60") as backend,
    ):
        backend.allocate("tree", SHAPE)
        backend.acquire()
        backend.write_all([ONE])
        proxy.cut(when, b"UNLINK", skip=skip)  # type: ignore[arg-type]
        backend.erase()
        assert proxy.fired.is_set()
        backend.acquire()
        assert not backend.regions()
    with admin(shared) as client:
        assert client.keys(f"{{{name}}}:0*") == client.keys(f"{{{name}}}:[rdl]*") == []
