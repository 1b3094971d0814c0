"""A TCP proxy in this process that is slow and breaks on demand: what lies between a client and a remote backend."""

from __future__ import annotations

import queue
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypeAlias

__all__ = ["Proxy"]

_CHUNK = 1 << 16

#: Chunks on their way in one direction of one connection: beyond them the sender has to wait.
_IN_FLIGHT = 4096

_CONNECTIONS = 64
#: When a chunk came, and the chunk; an empty one is the end.
_Flight: TypeAlias = "queue.Queue[tuple[float, bytes]]"

Where: TypeAlias = Literal["up", "down", "before", "after", "hold"]

_HURRY = 60e-6  # a sleep takes about this much longer than asked for


class Proxy:
    """Forwards connections to ``port`` of ``host`` from ``self.port`` of 127.0.0.1, as a context manager.

    rtt: seconds of a round trip, half of it in each direction; to be changed at any time.
    rate: bytes a second in each direction, or None.

    A fault is ordered by ``cut`` and happens once, to the connection that gets there first; ``fired`` is set then.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", rtt: float = 0.0, rate: float | None = None) -> None:
        self.rtt, self.rate = rtt, rate
        self.connections = 0
        self.fired = threading.Event()
        self._host, self._target = host, port
        self._lock = threading.Lock()
        self._fault: _Fault | None = None
        self._open: list[_Connection] = []
        self._held: list[tuple[socket.socket, bytes]] = []
        self._listener: socket.socket | None = None
        self._closed = False
        self.port = 0
        self.up()

    def up(self) -> None:
        """Listen, on the same port as before. Nothing if it does already."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(_CONNECTIONS)
        self.port, self._listener = listener.getsockname()[1], listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="proxy").start()

    def lead_to(self, port: int) -> None:
        """From now on to another server. Connections break."""
        self._target = port
        self.break_all()

    def down(self) -> None:
        """Reset all connections and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in `accept`
            listener.close()
        self.break_all()

    def break_all(self) -> None:
        """Reset all connections; new ones are welcome."""
        with self._lock:
            broken, self._open = self._open, []
        for connection in broken:
            connection.reset()

    def cut(self, where: Where, at: int | bytes, *, skip: int = 0) -> None:
        """Order one fault: reset a connection

        up, down: when ``at`` further bytes went to the server, or to the client; they still go.
        before: just before a command of this name, as of ``b"EXEC"``, goes to the server.
        after: when the server answered a command of this name, and before anything of that answer goes to the client.
        hold: the client's side, as soon as a command of this name comes. What came with it goes to the server at ``late``, as what a client
            sent before it gave up can.
        skip: commands of that name that go unharmed first.
        """
        self.fired.clear()
        self._fault = _Fault(where, at, skip)

    def late(self) -> None:
        """Let what was held go to the server."""
        held, self._held = self._held, []
        for server, data in held:
            server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((self._host, self._target), timeout=10)
            except OSError:
                _reset(client)
                continue
            connection = _Connection(self, client, server)
            with self._lock:
                full = len(self._open) >= _CONNECTIONS
                if not full:
                    self._open.append(connection)
                    self.connections += 1
            if full:
                connection.reset()
            else:
                connection.start()

    def close(self) -> None:
        """Reset everything. Idempotent."""
        self.down()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Fault:
    """One ordered fault."""

    def __init__(self, where: Where, at: int | bytes, skip: int) -> None:
        self.where, self.skip = where, skip
        self.left = at if isinstance(at, int) else 0
        name = at if isinstance(at, bytes) else b""
        self.name = re.compile(rb"\$%d\r\n%s\r\n" % (len(name), re.escape(name)), re.IGNORECASE)

    def found(self, data: bytes) -> int | None:
        """Where in ``data`` the command begins, if it is there and its turn has come."""
        for match in self.name.finditer(data):
            if not self.skip:
                return data.rindex(b"*", 0, match.start())
            self.skip -= 1
        return None


class _Connection:
    """A client's connection and ours to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._deaf = threading.Event()  # what the server says from now on is not for the client
        for end in (client, server):
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Forward in both directions, from two threads each: one that takes, and one that holds back."""
        for source, target, pass_on in (
            (self._client, self._server, self._upwards),
            (self._server, self._client, self._downwards),
        ):
            flight: _Flight = queue.Queue(_IN_FLIGHT)
            for work in (partial(self._take, source, flight), partial(self._give, target, flight, pass_on)):
                threading.Thread(target=work, daemon=True, name="proxy").start()

    def _take(self, source: socket.socket, flight: _Flight) -> None:
        while True:
            try:
                data = source.recv(_CHUNK)
            except OSError:
                data = b""
            flight.put((time.perf_counter(), data))
            if not data:
                if source is self._server:
                    source.close()
                return

    def _give(self, target: socket.socket, flight: _Flight, pass_on: Callable[[socket.socket, bytes], bool]) -> None:
        free = 0.0
        while True:
            came, data = flight.get()
            if not data:
                with suppress(OSError):
                    target.shutdown(socket.SHUT_WR)
                if target is self._client:
                    self._forget()
                    target.close()
                return
            due = came
            if self._proxy.rate is not None:
                free = due = max(free, came) + len(data) / self._proxy.rate
            wait = due + self._proxy.rtt / 2 - time.perf_counter()
            if wait > _HURRY:
                time.sleep(wait - _HURRY)
            try:
                if not pass_on(target, data):
                    return
            except OSError:
                return

    def _upwards(self, target: socket.socket, data: bytes) -> bool:
        """Send what may still go to the server; whether the connection lives on."""
        fault = self._proxy._fault
        if fault is None or fault.where == "down":
            target.sendall(data)
            return True
        if fault.where == "up":
            target.sendall(data[: fault.left])
            fault.left -= len(data)
            return fault.left > 0 or self._fire()
        at = fault.found(data)
        if at is None:
            target.sendall(data)
        elif fault.where == "before":
            target.sendall(data[:at])
            return self._fire()
        elif fault.where == "hold":
            self._proxy._held.append((target, data))
            self._proxy._fault = None
            self._forget()
            _reset(self._client)
            self._proxy.fired.set()
            return False
        else:
            target.sendall(data[:at])
            time.sleep(0.05)  # for answers to earlier commands to come through
            self._proxy._fault = None
            self._deaf.set()
            target.sendall(data[at:])
        return True

    def _downwards(self, target: socket.socket, data: bytes) -> bool:
        """Send what may still go to the client; whether the connection lives on."""
        if self._deaf.is_set():
            return self._fire()
        fault = self._proxy._fault
        if fault is None or fault.where != "down":
            target.sendall(data)
            return True
        target.sendall(data[: fault.left])
        fault.left -= len(data)
        return fault.left > 0 or self._fire()

    def _fire(self) -> bool:
        self._proxy._fault = None
        self.reset()
        self._proxy.fired.set()
        return False

    def reset(self) -> None:
        """End both connections without a farewell."""
        self._forget()
        _reset(self._client)
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)  # after what was sent to it, which it is to get
        # the thread that reads from the server closes it when the server ends it

    def _forget(self) -> None:
        with self._proxy._lock:
            if self in self._proxy._open:
                self._proxy._open.remove(self)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
