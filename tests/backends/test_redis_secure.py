"""The Redis backend with TLS, users and passwords."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import logging
import os
import re
import select
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import redis as redis_py
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import oram
from oram.backends import RedisBackend, RedisOptions, RegionShape, SlotRead, SlotWrite
from oram.backends.redis.wire import pack
from oram.errors import BackendAccessError, BackendError, BackendUnavailableError
from oram.testing.proxy import Proxy
from oram.testing.servers import Server, free_port, redis_server, server_binary

#: Flushing at each write would take most of the time of these tests, and none of them cuts the power.
pytestmark = pytest.mark.filterwarnings("ignore:appendfsync:oram.errors.BackendWarning")

SHAPE = RegionShape(64, 200)
ALL = np.arange(SHAPE.slots)
DATA = np.random.default_rng(1).integers(1, 256, (64, 200), dtype=np.uint8)
PASSWORD = "hunter2-correct-horse"
PAGE = Path(__file__).parents[2] / "docs" / "remote.md"


def use(backend: RedisBackend) -> None:
    """Everything that a backend does."""
    backend.acquire()
    backend.allocate("tree", SHAPE)
    backend.allocate("other", SHAPE)
    backend.write("tree", ALL, DATA)
    groups = np.array([[1, 2], [3, -1]])
    result = backend.exchange((SlotWrite("tree", ALL[:1], DATA[:1]),), SlotRead("tree", ALL, groups))
    assert np.array_equal(result.data, DATA)
    assert np.array_equal(backend.read("tree", ALL).data, DATA)
    backend.sync()
    backend._renew()
    backend.drop("other")  # few of so many keys
    backend.allocate("other", RegionShape(1 << 20, 8))
    backend.drop("other")
    backend.drop("tree")
    backend.release()


# TLS


class Authority:
    """Makes certificates in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's authority")])
        self.ca = self._write("ca.pem", self._sign(self._subject, self._key, None))

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, names: list[x509.GeneralName] | None) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )
        if names is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _write(self, name: str, pem: bytes) -> str:
        path = self._directory / name
        path.write_bytes(pem)
        return str(path)

    def issue(self, name: str, *hosts: x509.GeneralName) -> tuple[str, str]:
        """Paths of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(f"{name}.pem", self._sign(subject, key, list(hosts))), self._write(f"{name}.key", pem)


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@contextlib.contextmanager
def tls_server(
    directory: Path,
    authority: Authority,
    *hosts: x509.GeneralName,
    clients: str = "no",
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    binary = server_binary(tls=True)
    if binary is None:
        pytest.skip("no server that was built with TLS (on Debian: apt-get install redis-server)")
    cert, key = authority.issue("server", *hosts)
    settings = {
        "tls-cert-file": cert,
        "tls-key-file": key,
        "tls-ca-cert-file": authority.ca,
        "tls-auth-clients": clients,
        **more,
    }
    with redis_server(directory, binary=binary, tls=settings) as server:
        yield server


def test_tls(tmp_path: Path, authority: Authority) -> None:
    with tls_server(tmp_path / "server", authority, LOOPBACK) as server:
        with RedisBackend(server.url("tls", query=f"ca={authority.ca}")) as backend:
            use(backend)
        key = oram.generate_key()
        url = server.url("store", query=f"ca={authority.ca}")
        with oram.create(url, state=tmp_path / "state", key=key, capacity=64, block_size=64, scheme="path") as store:
            store[b"a"] = b"1"
        with oram.open(url, state=tmp_path / "state", key=key) as store:
            assert store[b"a"] == b"1"
        with pytest.raises(BackendUnavailableError, match="certificate does not hold"):
            RedisBackend(server.url("tls"))  # not one of the system's authorities
        stranger = Authority(tmp_path / "stranger")
        with pytest.raises(BackendUnavailableError, match="certificate does not hold"):
            RedisBackend(server.url("tls", query=f"ca={stranger.ca}"))
        with pytest.raises(BackendUnavailableError):
            RedisBackend(f"redis://127.0.0.1:{server.port}?timeout=2")


def test_a_certificate_of_another_host(tmp_path: Path, authority: Authority) -> None:
    with (
        tls_server(tmp_path / "server", authority, x509.DNSName("example.org")) as server,
        pytest.raises(BackendUnavailableError, match="certificate does not hold"),
    ):
        RedisBackend(server.url("tls", query=f"ca={authority.ca}"))


def test_clients_with_certificates(tmp_path: Path, authority: Authority) -> None:
    with tls_server(tmp_path / "server", authority, LOOPBACK, clients="yes") as server:
        with pytest.raises(BackendUnavailableError):
            RedisBackend(server.url("tls", query=f"ca={authority.ca}"))
        cert, key = authority.issue("client")
        with RedisBackend(server.url("tls", query=f"ca={authority.ca}&cert={cert}&key={key}")) as backend:
            use(backend)


class Terminator:
    """Takes TLS off in front of a server that has none. cut: bytes to the client after which it hangs up, as an end in order or as a break."""

    def __init__(self, port: int, cert: str, key: str) -> None:
        self._target, self.cut, self.in_order, self.connections = port, 0, True, 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(raw, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._target)) as server,
        ):
            client.setblocking(False)
            selector = select.poll()
            selector.register(client, select.POLLIN)
            selector.register(server, select.POLLIN)
            while True:
                ready = {descriptor for descriptor, _ in selector.poll()}
                if client.fileno() in ready:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        while data := client.recv(1 << 16):
                            server.sendall(data)
                        return
                if server.fileno() in ready:
                    data = server.recv(1 << 16)
                    cut, self.cut = self.cut, max(0, self.cut - len(data))
                    client.setblocking(True)
                    client.sendall(data[:cut] if cut and cut <= len(data) else data)
                    if not data or (cut and cut <= len(data)):
                        if self.in_order:
                            client.unwrap()
                        return
                    client.setblocking(False)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_tls_that_ends_in_front_of_the_server(tmp_path: Path, authority: Authority) -> None:
    """All calls over it, slots of many records, and ends in the middle of an answer, in order and not."""
    with (
        redis_server(tmp_path) as server,
        contextlib.closing(Terminator(server.port, *authority.issue("front", LOOPBACK))) as front,
    ):
        url = f"rediss://127.0.0.1:{front.port}?ca={authority.ca}&lease=60&timeout=5"
        with RedisBackend(url) as backend:
            use(backend)
            backend.allocate("large", RegionShape(8, 1 << 18))
            large = np.random.default_rng(1).integers(0, 256, (8, 1 << 18), dtype=np.uint8)
            backend.acquire()
            backend.write("large", ALL[:8], large)
            for cut in (0, 1, 7, 40, 16_000, 17_000, 300_000, 2_000_000):
                for front.in_order in (True, False):
                    connections, front.cut = front.connections, cut
                    got = backend.exchange((SlotWrite("large", ALL[:1], large[:1]),), SlotRead("large", ALL[:8]))
                    assert np.array_equal(got.data, large)
                    assert (front.connections > connections) == bool(cut)
                    assert np.array_equal(backend.read("large", ALL[:8]).data, large)
        with pytest.raises(BackendUnavailableError, match="certificate does not hold"):
            RedisBackend(f"rediss://127.0.0.1:{front.port}")
        with pytest.raises(BackendUnavailableError, match="certificate does not hold"):
            RedisBackend(f"rediss://localhost:{front.port}?ca={authority.ca}")
        with pytest.raises(BackendUnavailableError):
            RedisBackend(f"redis://127.0.0.1:{front.port}?timeout=1")


def test_no_tls_with_that_server(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, pytest.raises(BackendUnavailableError):
        RedisBackend(f"rediss://127.0.0.1:{server.port}?timeout=2")


def test_cuts_under_tls(tmp_path: Path, authority: Authority) -> None:
    with (
        tls_server(tmp_path / "server", authority, LOOPBACK) as server,
        Proxy(server.port) as proxy,
        RedisBackend(f"rediss://127.0.0.1:{proxy.port}?ca={authority.ca}&lease=60") as backend,
    ):
        backend.allocate("tree", SHAPE)
        backend.acquire()
        for at in range(1, 15_000, 1001):
            proxy.cut("up" if at % 2 else "down", at)
            backend.write("tree", ALL, DATA)
            assert np.array_equal(backend.read("tree", ALL).data, DATA)
        assert proxy.connections > 5


@pytest.mark.filterwarnings("ignore::oram.errors.BackendWarning")
@pytest.mark.parametrize("host", ["localhost", "example.org"])
def test_another_node_of_a_cluster(tmp_path: Path, authority: Authority, host: str) -> None:
    """It gets the same credentials, and its certificate has to have the name that the cluster has for it."""
    ports, buses = [free_port(), free_port()], [free_port(), free_port()]
    more = [
        {
            "port": str(port),
            "cluster-port": str(bus),
            "cluster-enabled": "yes",
            "tls-cluster": "yes",
            "cluster-preferred-endpoint-type": "hostname",
            "requirepass": PASSWORD,
        }
        for port, bus in zip(ports, buses, strict=True)
    ]
    more[1]["cluster-announce-hostname"] = "localhost"
    with (
        tls_server(tmp_path / "first", authority, LOOPBACK, more=more[0]) as first,
        tls_server(tmp_path / "second", authority, x509.DNSName(host), more=more[1]) as second,
        contextlib.closing(redis_py.Redis(port=ports[0], password=PASSWORD)) as asking,
        contextlib.closing(redis_py.Redis(port=ports[1], password=PASSWORD)) as client,
    ):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, buses[0])  # type: ignore[no-untyped-call]
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                asking.get("key")
            except redis_py.exceptions.MovedError as moved:
                if moved.host == "localhost":
                    break
            except redis_py.ResponseError:
                pass
            time.sleep(0.05)
        options = RedisOptions(
            port=first.port, tls=True, ca=authority.ca, retry=0.5, credentials=lambda: ("", PASSWORD)
        )
        if host == "localhost":
            with RedisBackend(options) as backend:
                use(backend)
                assert backend._link._at == ("localhost", second.port)
        else:
            with pytest.raises(BackendUnavailableError, match="certificate does not hold") as raised:
                RedisBackend(options)
            assert PASSWORD not in everything(raised.value)


# Users


def acl(name: str) -> list[str]:
    """The rules of the operator's page, for a store of this name and without the password."""
    (line,) = re.findall(r"^user oram on >PASSWORD (.+)$", PAGE.read_text(), re.MULTILINE)
    return [rule.replace("{oram}", f"{{{name}}}") for rule in line.split()]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A server with a user as in the operator's page, and no other."""
    users: list[str] = [f"oram on >{PASSWORD} {' '.join(acl('mine'))}", "default off"]
    with redis_server(tmp_path / "guarded", {"user": users}) as server:
        yield server


def everything(error: BaseException | None) -> str:
    """All that an exception has to say, its causes and contexts included."""
    text = ""
    while error is not None:
        text += repr(error) + str(error) + "".join(traceback.format_exception(error))
        error = error.__cause__ or error.__context__
    return text


def test_the_rules_of_the_page_suffice(guarded: Server, tmp_path: Path) -> None:
    credentials = lambda: ("oram", PASSWORD)  # noqa: E731
    with RedisBackend(guarded.url("mine"), credentials=credentials) as backend:
        use(backend)
        for command in ([b"FLUSHALL"], [b"CONFIG", b"SET", b"appendonly", b"no"], [b"GET", b"other"], [b"KEYS", b"*"]):
            with pytest.raises(BackendAccessError, match="NOPERM"):
                backend._call(lambda command=command: backend._ask([pack(*command)]))  # type: ignore[misc]
    with pytest.raises(BackendAccessError, match="NOPERM"):
        RedisBackend(guarded.url("theirs"), credentials=credentials)


def test_the_password_comes_from_the_environment(
    guarded: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORAM_REDIS_USERNAME", "oram")
    monkeypatch.setenv("ORAM_REDIS_PASSWORD", PASSWORD)
    key = oram.generate_key()
    with oram.create(guarded.url("mine"), state=tmp_path / "state", key=key, capacity=64, block_size=64) as store:
        store[b"a"] = b"1"
        assert PASSWORD not in repr(store) + repr(vars(store))


def test_a_password_without_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_REDIS_PASSWORD", PASSWORD)
    with redis_server(tmp_path, {"requirepass": PASSWORD}) as server, RedisBackend(server.url()) as backend:
        use(backend)


def test_a_password_that_is_asked_for_at_each_connection(tmp_path: Path) -> None:
    asked: list[str] = []

    def credentials() -> tuple[str, str]:
        asked.append("")
        return "", PASSWORD

    with (
        redis_server(tmp_path, {"requirepass": PASSWORD}) as server,
        RedisBackend(RedisOptions(port=server.port, credentials=credentials)) as backend,
    ):
        backend.acquire()
        assert len(asked) == 1
        backend._link.drop()
        backend.allocate("tree", SHAPE)
        assert len(asked) == 2
        assert PASSWORD not in repr(backend) + repr(backend.options) + repr(vars(backend)) + repr(vars(backend._link))


def test_a_callback_that_fails(guarded: Server) -> None:
    def credentials() -> tuple[str, str]:
        raise LookupError("the vault is closed")

    with pytest.raises(LookupError, match="vault"):
        RedisBackend(guarded.url("mine"), credentials=credentials)


def test_a_callback_that_fails_later(tmp_path: Path) -> None:
    """Not where nobody asked for anything: in the background, and in closing."""
    broken = False

    def credentials() -> tuple[str, str]:
        if broken:
            raise LookupError("the vault is closed")
        return "", PASSWORD

    with redis_server(tmp_path, {"requirepass": PASSWORD}) as server:
        backend = RedisBackend(server.url(), credentials=credentials)
        backend.allocate("tree", SHAPE)
        backend.acquire()
        broken = True
        backend._link.drop()
        backend._keep_lease()
        with pytest.raises(LookupError):
            backend.read("tree", ALL)
        broken = False
        backend.read("tree", ALL)
        broken = True
        backend._link.drop()
        backend.close()


@pytest.mark.parametrize("user", ["oram", "nobody", ""])
def test_a_wrong_password_is_not_repeated(guarded: Server, user: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(BackendAccessError) as raised:
        RedisBackend(guarded.url("mine", query="retry=20"), credentials=lambda: (user, "wrong-" + PASSWORD))
    assert PASSWORD not in everything(raised.value).replace('"wrong-" + PASSWORD', "")
    assert PASSWORD not in caplog.text


def test_no_password_where_one_is_wanted(guarded: Server) -> None:
    with pytest.raises(BackendAccessError):
        RedisBackend(guarded.url("mine"))


def test_a_password_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out at the next connection; and once the client has the new one, it goes on."""
    monkeypatch.setenv("ORAM_REDIS_PASSWORD", PASSWORD)
    with redis_server(tmp_path, {"requirepass": PASSWORD}) as server, RedisBackend(server.url()) as backend:
        backend.allocate("tree", SHAPE)
        backend.acquire()
        backend._call(lambda: backend._ask([pack(b"CONFIG", b"SET", b"requirepass", b"another")]))
        backend.write("tree", ALL, DATA)
        backend._link.drop()
        with pytest.raises(BackendAccessError):
            backend.read("tree", ALL)
        monkeypatch.setenv("ORAM_REDIS_PASSWORD", "another")
        assert np.array_equal(backend.read("tree", ALL).data, DATA)


@pytest.mark.parametrize(
    "answer",
    [
        lambda got: b"-ERR unknown command 'AUTH', with args beginning with: " + got.replace(b"\r\n", b" ") + b"\r\n",
        lambda got: b"-" + got.replace(b"\r\n", b" ") + b"\r\n",
        lambda got: b"-WRONGPASS " + got.replace(b"\r\n", b" ") + b"\r\n",
        lambda got: b"-LOADING " + got.replace(b"\r\n", b" ") + b"\r\n",
        lambda got: b"-MOVED " + got.replace(b"\r\n", b" ") + b"\r\n",
        lambda got: b"+" + got.replace(b"\r\n", b" ") + b"\r\n",
        lambda got: b"?" + got,
    ],
)
def test_a_server_that_repeats_the_password(answer: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture) -> None:
    """Servers do that, in the error for a command that they do not know. It goes no further."""
    caplog.set_level(logging.DEBUG)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(answer(connection.recv(1000)))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1000):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        secret = os.urandom(8).hex()
        with pytest.raises(BackendError) as raised:
            RedisBackend(
                f"redis://127.0.0.1:{listener.getsockname()[1]}?timeout=2", credentials=lambda: ("oram", secret)
            )
        thread.join()
    assert secret not in everything(raised.value)
    assert secret not in caplog.text
