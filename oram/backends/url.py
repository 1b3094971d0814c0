"""Backends by URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from oram.backends.base import Backend
from oram.backends.lmdb import LMDBBackend
from oram.backends.memory import MemoryBackend
from oram.backends.sharded import ShardedBackend
from oram.errors import ParameterError

__all__ = ["open_each", "open_shards", "open_url"]

#: Schemes of URLs that lead to a server, where no client state is kept.
SERVERS = ("redis", "rediss", "unix")


def open_url(url: str, *, sync: bool, create: bool) -> Backend:
    """The backend that a URL names.

    url: ``memory:``, or ``lmdb:PATH`` with a path taken literally but for a leading ``~`` (``lmdb:///abs/path`` too), or ``redis://``, ``rediss://``
        or ``unix://`` as ``RedisOptions.from_url`` takes them.
    sync, create: as for ``LMDBBackend``; the others have no use for them.

    Raises ParameterError for any other URL, and what ``LMDBBackend`` and ``RedisBackend`` raise. Messages do not repeat the URL, which
    may hold a secret by mistake.
    """
    scheme, colon, rest = url.partition(":")
    if scheme == "lmdb" and rest.startswith("///"):
        rest = rest[2:]
    if colon and re.match(r"//[^/?#]*:.*@", rest):
        raise ParameterError("a URL must not contain a password")
    if scheme == "memory" and colon and not rest:
        return MemoryBackend()
    if scheme == "lmdb" and rest and not rest.startswith("//"):
        return LMDBBackend(Path(rest).expanduser(), sync=sync, create=create)
    if scheme in SERVERS and rest.startswith("//"):
        from oram.backends.redis import RedisBackend

        return RedisBackend(url)
    raise ParameterError(
        "not a backend's URL; the known ones are memory: and lmdb:PATH (a directory), redis://HOST, rediss://HOST and unix:///SOCKET"
    )


def open_each(urls: Iterable[str], *, sync: bool, create: bool) -> ShardedBackend:
    """One backend a URL, as one. Raises what ``open_url`` raises for any of them; then none is open."""
    return _together([partial(open_url, url, sync=sync, create=create) for url in urls])


def open_shards(url: str, shards: int) -> ShardedBackend:
    """Backends under the names ``NAME.0`` to ``NAME.{shards - 1}`` on the server that a URL leads to, each with a hash tag of its own, as one.

    Raises what ``RedisBackend`` raises; ParameterError for a URL that leads to no server.
    """
    if url.partition(":")[0] not in SERVERS:
        raise ParameterError("only names on a server have numbers: give one URL a shard")
    from oram.backends.redis import RedisBackend, RedisOptions

    options = RedisOptions.from_url(url)
    named = [replace(options, name=f"{options.name}.{j}") for j in range(shards)]
    return _together([partial(RedisBackend, each) for each in named])


def _together(makers: Iterable[Callable[[], Backend]]) -> ShardedBackend:
    made: list[Backend] = []
    try:
        for make in makers:
            made.append(make())
        return ShardedBackend(made)
    except BaseException:
        for backend in made:
            backend.close()
        raise
