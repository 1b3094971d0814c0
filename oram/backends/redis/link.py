"""One connection to the server, or to the node of a cluster that has the store."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, Self

from oram.backends.redis.inbox import Form
from oram.backends.redis.options import MAX_NODES, PASSWORD, USERNAME, Address, Credentials, RedisOptions
from oram.backends.redis.replies import (
    BrokenError,
    BusyError,
    DownError,
    MovedError,
    address_of,
    failure,
    nodes_of,
)
from oram.backends.redis.wire import CLUSTER_SLOTS, FloodError, Wire, pack, redis
from oram.errors import BackendAccessError, BackendError, BackendReadOnlyError, HandleError, ParameterError

__all__ = ["Link", "Turns"]

#: Nodes of a cluster that are asked before there is a pause.
_ROUND = 8

_NOT_LET_IN = "the server refused the user or the password, or wants some"
_NO_DATABASE = re.compile(r"^(ERR )?(SELECT is not allowed|DB index is out of range)")


class Link:
    """One connection to the server, or to the node of a cluster that has the store; or none."""

    def __init__(self, options: RedisOptions) -> None:
        self._options, self._login = options, Login.of(options.credentials)
        self._seeds: tuple[Address, ...] = options.addresses if options.socket is None else (("", 0),)
        self._order = list(dict.fromkeys(self._seeds))  # whom to ask, the likeliest first
        self._at = self._order[0]
        self._slot: int = redis.crc.key_slot(b"{%s}" % options.name.encode())
        self._wire = self._new(self._at)
        self._busy = False
        self.cluster = False  #: whether the server is one of a cluster, as far as is known
        self.count = 0  #: connections so far
        self.found = False  #: whether one of them led to the store
        self.tried: set[Address] = set()  #: nodes that are not to be asked again before the next pause

    def _new(self, address: Address) -> Wire:
        """A connection that is still to be made. The name in a certificate has to be ``address``'s."""
        options = self._options
        arguments: dict[str, Any] = {"protocol": 2, "driver_info": None}
        kinds: Any = redis.connection
        if options.socket is not None:
            return Wire(kinds.UnixDomainSocketConnection, options.timeout, path=options.socket, **arguments)
        host, port = address
        if not options.tls:
            return Wire(kinds.Connection, options.timeout, host=host, port=port, **arguments)
        return Wire(
            kinds.SSLConnection,
            options.timeout,
            host=host,
            port=port,
            ssl_ca_certs=options.ca,
            ssl_certfile=options.cert,
            ssl_keyfile=options.key,
            ssl_cert_reqs="required",
            ssl_check_hostname=True,
            ssl_min_version=ssl.TLSVersion.TLSv1_2,
            **arguments,
        )

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._wire.up

    def connect(self, until: float) -> None:
        """Connect to the first node that answers. No further one is tried after ``until``, but next time, unless the store is still to be found."""
        trouble: BrokenError | None = None
        self._login.ask()
        try:
            for address in [address for address in self._order if address not in self.tried]:
                if trouble is not None and self.found and time.monotonic() >= until:
                    break
                self.tried.add(address)
                try:
                    self._open(address)
                    self._learn()
                except BrokenError as error:
                    trouble = trouble or error
                    self._order = [*(other for other in self._order if other != address), address]
                except BaseException:
                    self.drop()
                    raise
                else:
                    self.count += 1
                    return
        finally:
            self._login.forget()
        raise trouble or BrokenError("no node answers")

    def _open(self, address: Address) -> None:
        """Connect, authenticate, select the database."""
        if address != self._at:
            self._wire, self._at = self._new(address), address
        try:
            self._wire.connect()
        except Exception as error:  # of any kind: a hostile server can make redis-py stumble
            trouble: Exception | None = trouble_of(error)
        else:
            trouble = self._greet()
        if trouble is not None:
            self.drop()
            # Not inside a handler: a server can repeat the password in the text of its error.
            raise trouble

    def _greet(self) -> Exception | None:
        """Say who we are, and which database is meant. Each by itself: a server answers nothing that comes ahead of the password."""
        if self._login.wanted:
            (reply,) = self.trip([pack(b"AUTH", *self._login.words())])
            if isinstance(reply, Exception):
                found = failure(reply)
                return found if isinstance(found, BrokenError) else BackendAccessError(_NOT_LET_IN)
        if self._options.db:
            (reply,) = self.trip([pack(b"SELECT", b"%d" % self._options.db)])
            if isinstance(reply, Exception):
                if _NO_DATABASE.search(str(reply)):
                    return ParameterError(
                        f"the server has no database {self._options.db} (one of a cluster has only 0, as a rule)"
                    )
                return failure(reply)
        return None

    def _learn(self) -> None:
        """Ask a node of a cluster for the others. It need not say: MOVED leads to the right one, and these are for the time when that one is dead."""
        (reply,) = self.trip([CLUSTER_SLOTS])
        if isinstance(reply, list) and self._options.socket is None:
            self.cluster = True
            nodes = nodes_of(reply, self._slot, self._at[0])
            self._first(self._at, *nodes)
        elif len(self._seeds) > 1 and isinstance(reply, Exception) and "cluster support disabled" in str(reply):
            raise BackendError("several servers are named, and one of them is no part of a cluster")

    def follow(self, trouble: BrokenError | BackendReadOnlyError) -> bool:
        """Whether to call again at once, at another node: one that is named now, or else the next one, which may know better. Each once between two pauses.

        Raises what it is no use repeating.
        """
        if isinstance(trouble, BusyError):
            return False
        if isinstance(trouble, BackendReadOnlyError) and not self.cluster:
            raise trouble
        self.drop()
        if isinstance(trouble, MovedError):
            if self._options.socket is not None:
                raise BackendError("another node of the cluster has the store: name a host, not a Unix socket")
            self.cluster = True
            address = address_of(trouble.host, trouble.port, self._at[0])
            if address is not None:
                self._first(address, *self._order)
        elif not isinstance(trouble, DownError):
            return False
        return len(self.tried) < _ROUND and not self.tried.issuperset(self._order)

    def _first(self, *addresses: Address) -> None:
        self._order = list(dict.fromkeys((*addresses[:MAX_NODES], *self._seeds)))

    def trip(self, commands: list[bytes], expected: int = 0, forms: Sequence[Form | None] = ()) -> list[Any]:
        """Send packed commands, and read a reply to each; an error reply is an exception among them. expected, forms: as for ``Wire``."""
        if self._busy:
            raise HandleError("this backend is in use by one of its own calls")
        try:
            self._busy = True
            return self._wire.trip(commands, expected, forms)
        except Exception as error:
            trouble = trouble_of(error)
        except BaseException:
            self.drop()  # the replies that are still to come belong to nothing
            raise
        finally:
            self._busy = False
        self.drop()
        raise trouble

    def hear(self) -> Any:
        """The next thing that the server says by itself."""
        try:
            return self._wire.hear()
        except Exception as error:
            trouble = trouble_of(error)
        self.drop()
        raise trouble

    def drop(self) -> None:
        """Close the connection, if any. In a child of the process that made it, its copy only."""
        self._wire.drop()


class Turns:
    """The attempts of one call: until when there are more, and how long to wait for the next.

    There is one a call, and one clock: what a call does on its way makes no turns of its own.
    """

    def __init__(self, link: Link, start: float, patience: float) -> None:
        self._link, self.end = link, start + patience
        self._pauses = 0
        link.tried.clear()

    def another(self, trouble: BrokenError | BackendReadOnlyError) -> bool:
        """Whether to call again, after waiting if need be. Raises what it is no use repeating."""
        at_once = self._link.follow(trouble)
        left = self.end - time.monotonic()
        if at_once and (left > 0 or not self._pauses):  # who must not wait is led to the right node all the same
            return True
        if left <= 0:
            return False
        self._pauses += 1
        backoff = redis.backoff.ExponentialWithJitterBackoff(cap=2.0, base=0.02)
        time.sleep(min(backoff.compute(self._pauses), left))
        self._link.tried.clear()
        return True


class Login:
    """User and password; it has them while a connection is made, and no longer."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials
        self._answer: tuple[str, ...] = ()

    @classmethod
    def of(cls, credentials: Credentials | None) -> Self:
        if credentials is None and (USERNAME in os.environ or PASSWORD in os.environ):
            return cls(lambda: (os.environ.get(USERNAME, ""), os.environ.get(PASSWORD, "")))
        return cls(credentials)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to say."""
        return self._credentials is not None

    def ask(self) -> None:
        """Get them now; the caller's own errors pass."""
        if self._credentials is not None:
            user, password = self._credentials()
            self._answer = (user, password) if user else (password,)

    def forget(self) -> None:
        self._answer = ()

    def words(self) -> list[bytes]:
        """What AUTH says."""
        return [word.encode() for word in self._answer]


def trouble_of(error: Exception) -> Exception:
    """What to raise for an error of the connection."""
    kinds = redis.exceptions
    if isinstance(error, FloodError):
        return BackendError("the server answered more than it was asked")
    if isinstance(error, kinds.ConnectionError | kinds.TimeoutError | OSError):
        return BrokenError(_reason(error))
    return BackendError("what answers there is no Redis server")


def _reason(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate does not hold ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return "there is no TLS with it"
    if isinstance(cause, socket.gaierror):
        return "its name does not resolve"
    if isinstance(error, redis.exceptions.TimeoutError | TimeoutError):
        return "timed out"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return "the connection broke"
