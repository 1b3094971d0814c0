"""Where stores are: from what the user names to URLs and directories, and what is taken away where no store came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import oram
from oram.backends import Backend, open_shards, open_url
from oram.cli.exits import InputError
from oram.errors import (
    IntegrityError,
    OramError,
    ParameterError,
    StateMissingError,
    StoreExistsError,
    StoreNotFoundError,
)
from oram.params import check_shards

if TYPE_CHECKING:
    from oram.backends import RedisOptions

__all__ = ["directory", "made", "making", "refuse_existing", "remote", "server", "store", "url"]

#: Schemes of the URLs of servers.
_SERVERS = ("redis", "rediss", "unix")

#: What the LMDB backend writes into a directory.
_FILES = ("data.mdb", "lock.mdb", "oram.lock")


def url(where: str) -> str:
    """The URL of a store; a bare path is one of lmdb:."""
    scheme, colon, rest = where.partition(":")
    if scheme == "memory" and colon:
        raise InputError("a store in memory would be gone when the command ends")
    if scheme in _SERVERS and colon and not rest.startswith("//"):
        raise InputError("a server is named redis://HOST, rediss://HOST or unix:///SOCKET")
    if where and not (colon and (scheme == "lmdb" or rest.startswith("//"))):
        return f"lmdb:{where}"
    return where


def remote(place: str) -> bool:
    """Whether a URL is that of a server."""
    return place.partition("://")[0] in _SERVERS


def server(place: str) -> RedisOptions:
    """What the URL of a server says. ParameterError or InputError, which do not repeat it."""
    from oram.backends import RedisOptions  # not at the top: it brings redis

    try:
        return RedisOptions.from_url(place)
    except ParameterError:
        raise
    except ValueError:
        pass
    # not inside the handler: Python's parser repeats a part of the URL
    raise InputError("not a server's URL: redis://HOST:PORT/DB?name=NAME, rediss:// or unix:///SOCKET?name=NAME")


def store(where: str, state: Path | None) -> str:
    """The URL of a store with its client state at ``state``. Nothing was asked of a server yet when this refuses it."""
    place = url(where)
    if remote(place):
        server(place)
        if state is None:
            raise InputError(
                "give --state PATH: the client state of a store on a server is kept here, in a directory of its own; "
                "without it the store cannot be read"
            )
    return place


def directory(where: str) -> Path:
    """The directory that a URL or a bare path names, as the backend understands it."""
    scheme, _, rest = url(where).partition(":")
    path = rest[2:] if rest.startswith("///") else rest
    if scheme != "lmdb" or not path or path.startswith("//"):
        raise InputError("a backup, or a store on this disk, is named lmdb:PATH, or just the path")
    return Path(path).expanduser()


def refuse_existing(place: str, state: Path | None) -> None:
    """StoreExistsError if there is a store: before a key is made for a new one."""
    with suppress(StoreNotFoundError):
        with suppress(StateMissingError):
            oram.info(place, state=state)
        raise StoreExistsError("there is a store at this place already")


def made(place: str, state: Path | None) -> bool:
    """Whether there is a store, or something that cannot be looked at. What a full disk cut off is none."""
    try:
        oram.info(place, state=state)
    except (StoreNotFoundError, IntegrityError):
        return False
    except (OramError, OSError):
        return True
    return True


@contextmanager
def making(place: str, state: Path | None, shards: int = 1) -> Iterator[None]:
    """A store is made in the block. If none comes of it, the files, directories and regions that are new since are removed."""
    homes = [] if remote(place) else [directory(place).absolute()]
    homes += [] if state is None else [state.absolute()]
    files = [home / name for home in homes for name in _FILES]
    directories = [path for home in homes for path in (home, *home.parents)]
    before = {path for path in (*files, *directories) if os.path.lexists(path)}
    regions = _regions(place, shards)
    try:
        yield
    except BaseException:
        if not made(place, state):
            for path in files:
                if path not in before:
                    path.unlink(missing_ok=True)
            for path in directories:
                if path not in before:
                    with suppress(OSError):  # somebody else put something there
                        path.rmdir()
            _drop_all_but(regions, place, shards)
        raise


def _backend(place: str, shards: int) -> Backend:
    """What is on a server, under one name or under those of the shards."""
    return open_shards(place, shards) if shards > 1 else open_url(place, sync=False, create=False)


def _regions(place: str, shards: int) -> set[str]:
    """The regions on a server."""
    if not remote(place) or check_shards(shards, shards):  # what is wrong with a number of shards, the library says
        return set()
    with _backend(place, shards) as backend:
        return set(backend.regions())


def _drop_all_but(regions: set[str], place: str, shards: int) -> None:
    """Give the server's memory back, if it lets us: a full one does not."""
    try:
        new = _regions(place, shards) - regions
        if new:
            with _backend(place, shards) as backend:
                backend.acquire()
                for region in new:
                    backend.drop(region)
    except OramError:
        print("oram: warning: slots stay on the server, until a store is made there", file=sys.stderr)
