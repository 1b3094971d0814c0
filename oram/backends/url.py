"""Backends by URL."""

from __future__ import annotations

import re
from pathlib import Path

from oram.backends.base import Backend
from oram.backends.lmdb import LMDBBackend
from oram.backends.memory import MemoryBackend
from oram.errors import ParameterError

__all__ = ["open_url"]

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
