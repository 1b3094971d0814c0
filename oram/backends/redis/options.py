"""Where a store lies on a Redis server, by URL or field by field."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from oram.errors import ParameterError

__all__ = ["MAX_NODES", "Address", "Credentials", "PASSWORD", "RedisOptions", "USERNAME"]

Credentials: TypeAlias = Callable[[], tuple[str, str]]
Address: TypeAlias = tuple[str, int]

#: Environment variables for the user's name and password.
USERNAME, PASSWORD = "ORAM_REDIS_USERNAME", "ORAM_REDIS_PASSWORD"

#: Nodes of a cluster that are remembered, and replicas that may be asked for.
MAX_NODES, MAX_REPLICAS = 32, 16

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where a store lies on a Redis server, and how patient to be.

    host, port: of the server, or of any node of a cluster; or socket: the path of its Unix socket.
    nodes: (host, port) of further nodes of the cluster, to be asked where that one is dead. Any of them knows which one has the store.
    db: number of the database. name: of the store in it: letters, digits, ``_``, ``.``, ``-``.
    tls: whether to encrypt the connection. The server's certificate is always checked, against ``ca`` (a PEM file; None: the system's).
    cert, key: PEM files of the client's own certificate.
    credentials: called at each connection, returns (user name, password), with "" for the user ``default``. None: from the
        environment, ``ORAM_REDIS_USERNAME`` and ``ORAM_REDIS_PASSWORD``, if there.
    timeout: seconds to wait for a connection or for the next bytes of a reply. A round trip as a whole has these and the time that its bytes take at 8 KiB
        a second, so that a server which answers byte by byte holds nobody up for ever.
    retry: seconds during which a call goes on connecting again. The constructor tries once.
    lease: seconds after which the store of a client that died can be taken. It is renewed three times in these.
    replicas: how many replicas must have a write before the client lets its copy go; 0 gives up what a failover takes back. None: one, where the
        server says when the store is opened, or later at a new connection, that it has some.

    Raises ParameterError with all problems together.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    nodes: tuple[Address, ...] = ()
    socket: str | None = None
    db: int = 0
    name: str = "oram"
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    credentials: Credentials | None = field(default=None, repr=False, compare=False)
    timeout: float = 10.0
    retry: float = 30.0
    lease: float = 30.0
    replicas: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.socket is None and not all(host and 1 <= port <= 65535 for host, port in self.addresses):
            problems.append("a server needs a host, and a port from 1 to 65535")
        if len(self.nodes) >= MAX_NODES:
            problems.append(f"name at most {MAX_NODES} nodes")
        if self.socket is not None and self.nodes:
            problems.append("nodes of a cluster are named by their hosts, not by a Unix socket")
        if self.socket is not None and self.tls:
            problems.append("a Unix socket has no TLS")
        if not self.tls and (self.ca or self.cert or self.key):
            problems.append("certificates need rediss://")
        if not 0 <= self.db < 1 << 31:
            problems.append("db must be a number of a database")
        if not _NAME.fullmatch(self.name):
            problems.append("name must be 1 to 64 letters, digits, or any of _.-")
        if not (0 < self.timeout <= 3600 and 0 <= self.retry <= 86400 and 1 <= self.lease <= 86400):
            problems.append("timeout must be up to 3600 s, retry up to 86400 s, lease 1 to 86400 s")
        if self.replicas is not None and not 0 <= self.replicas <= MAX_REPLICAS:
            problems.append(f"replicas must be 0 to {MAX_REPLICAS}")
        if problems:
            raise ParameterError("; ".join(problems))

    @classmethod
    def from_url(cls, url: str, credentials: Credentials | None = None) -> Self:
        """``redis://HOST[:PORT][/DB]``, ``rediss://`` for TLS, ``unix:///PATH``; then ``?`` and any of name, db, ca, cert, key, timeout, retry, lease,
        replicas.

        Several nodes of a cluster are separated by commas: ``redis://HOST:PORT,HOST:PORT``.
        ParameterError for anything else, a user name or password among it. Messages do not repeat the URL.
        """
        head, slashes, tail = url.partition("//")
        authority = re.split(r"[/?#]", tail, maxsplit=1)[0]
        if "@" in authority:
            raise ParameterError(f"a URL must not contain a user or password: set {USERNAME} and {PASSWORD}")
        kinds: dict[str, Callable[[str], Any]] = {
            **dict.fromkeys(("name", "ca", "cert", "key"), str),
            **dict.fromkeys(("timeout", "retry", "lease"), float),
            **dict.fromkeys(("db", "replicas"), int),
        }
        try:
            parts = urllib.parse.urlsplit(head + slashes + tail[len(authority) :])
            values: dict[str, Any] = {"tls": parts.scheme == "rediss"}
            if parts.scheme == "unix":
                if authority or not parts.path:
                    raise ValueError
                values["socket"] = urllib.parse.unquote(parts.path)
            elif parts.scheme in ("redis", "rediss"):
                if not re.fullmatch(r"(/\d{0,9})?", parts.path):
                    raise ValueError
                (host, port), *nodes = map(_named, authority.split(","))
                values |= {"host": host, "port": port, "nodes": tuple(nodes), "db": int(parts.path[1:] or 0)}
            else:
                raise ValueError
            query = urllib.parse.parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            if parts.fragment or any(len(given) > 1 for given in query.values()):
                raise ValueError
            values |= {option: kinds[option](given[0]) for option, given in query.items()}
        except (ValueError, KeyError):
            bad = True
        else:
            bad = False
        if bad:  # not inside the handler, whose exception repeats a part of the URL
            raise ParameterError(
                "not a server's URL: redis://HOST:PORT/DB?name=NAME, rediss:// or unix:///PATH?db=DB&name=NAME, "
                f"with any of {', '.join(sorted(kinds))}"
            )
        return cls(**values, credentials=credentials)

    @property
    def url(self) -> str:
        """Where it is, for people."""
        if self.socket is not None:
            return f"unix://{self.socket}?db={self.db}&name={self.name}"
        where = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses)
        return f"redis{'s' * self.tls}://{where}/{self.db}?name={self.name}"

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Of all nodes that are named; none of them counts where there is a Unix socket."""
        return ((self.host, self.port), *self.nodes)


def _named(node: str) -> Address:
    """Host and port of a node in a URL; ValueError."""
    parts = urllib.parse.urlsplit(f"//{node}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, 6379 if parts.port is None else parts.port
