"""What a Redis or Valkey server itself says that it was told (MONITOR), of one store among whatever else happens on it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from oram.backends import RedisBackend, RedisOptions
from oram.backends.lmdb import LMDBStateFile
from oram.backends.redis.link import Link
from oram.backends.redis.wire import pack
from oram.errors import BackendAccessError, BackendError, ParameterError
from oram.testing.scratch import ScratchNames
from oram.testing.serverlog import Log
from oram.trace import Event, TraceBackend

__all__ = ["Listener"]


class _Kept(RedisBackend):
    """It has the file of the client state too, which is on this disk."""

    def __init__(self, options: RedisOptions, state: Path) -> None:
        super().__init__(options)
        self._file = LMDBStateFile.at(state, sync=False, create=True)

    def state_file(self) -> LMDBStateFile:  # type: ignore[override]
        return self._file


class Listener:
    """Scratch stores on a server, and its own account of what they ask for.

    The user needs the right to MONITOR and PING, and to the names of scratch stores; with that to CLIENT INFO, what the server refuses is found too.
    """

    def __init__(self, url: str) -> None:
        self._options = RedisOptions.from_url(url)
        self.names = ScratchNames(self._options, "audit")
        if len(self._options.addresses) > 1:
            raise ParameterError("name one node of the cluster: MONITOR shows what that one is told")

    def backend(self, state: Path | None = None) -> RedisBackend:
        """A backend under a new name on the same server. state: a directory for client state that a trace can watch being written."""
        return self.names.open(RedisBackend if state is None else partial(_Kept, state=state))

    @contextmanager
    def look(self, trace: TraceBackend) -> Iterator[list[Event]]:
        """For ``testing.worlds.observe``: the events of a store as its server logs them; what the trace recorded is not looked at.

        ValueError and BackendError as ``serverlog.Log.events``.
        """
        backend = cast(RedisBackend, trace.inner)
        log, events = Log(backend.options), list[Event]()
        with self._monitored(log), log.listening(backend):
            yield events
        link = self._link()
        try:
            (reply,) = link.trip([pack(b"HGETALL", b"{%s}:regions" % backend.options.name.encode())])
        finally:
            link.drop()
        events += log.events(dict(zip(reply[::2], reply[1::2], strict=True)))

    def _link(self) -> Any:
        link = Link(self._options)
        link.connect(0.0)
        return link

    @contextmanager
    def _monitored(self, log: Log) -> Iterator[None]:
        """All that the server is told meanwhile goes to the log, line by line; the lines themselves are not kept."""
        mark, link = secrets.token_hex(16).encode(), self._link()
        for words, expected in (([b"PING", mark], mark), ([b"MONITOR"], b"OK")):
            if link.trip([pack(*words)]) != [expected]:
                link.drop()
                raise BackendAccessError(
                    f"the user may not {words[0].decode()}: an audit of what the server is told needs both PING and MONITOR"
                )
        failed: list[Exception] = []

        def listen() -> None:
            try:
                while mark not in (line := link.hear()):
                    log.hear(line)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=listen, name="oram-audit", daemon=True)
        thread.start()
        try:
            yield
        finally:
            other = self._link()
            other.trip([pack(b"PING", mark)])
            other.drop()
            thread.join(60)
            link.drop()
        if failed or thread.is_alive():
            raise BackendError("the server stopped showing what it is told")
