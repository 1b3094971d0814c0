"""Where stores are: from what the user names to URLs and directories, and what is taken away where no store came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import oram
from oram.cli.exits import InputError
from oram.errors import IntegrityError, OramError, StateMissingError, StoreExistsError, StoreNotFoundError

__all__ = ["directory", "made", "making", "refuse_existing", "url"]

#: What the LMDB backend writes into a directory.
_FILES = ("data.mdb", "lock.mdb", "oram.lock")


def url(where: str) -> str:
    """The URL of a store; a bare path is one of lmdb:."""
    scheme, colon, rest = where.partition(":")
    if scheme == "memory" and colon:
        raise InputError("a store in memory would be gone when the command ends")
    if where and not (colon and (scheme == "lmdb" or rest.startswith("//"))):
        return f"lmdb:{where}"
    return where


def directory(where: str) -> Path:
    """The directory that a URL or a bare path names, as the backend understands it."""
    scheme, _, rest = url(where).partition(":")
    path = rest[2:] if rest.startswith("///") else rest
    if scheme != "lmdb" or not path or path.startswith("//"):
        raise InputError("a store or backup is named lmdb:PATH, or just the path")
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
def making(place: str, state: Path | None) -> Iterator[None]:
    """A store is made in the block. If none comes of it, the files and directories that are new since are removed."""
    homes = [directory(place).absolute()] + ([] if state is None else [state.absolute()])
    files = [home / name for home in homes for name in _FILES]
    directories = [path for home in homes for path in (home, *home.parents)]
    before = {path for path in (*files, *directories) if os.path.lexists(path)}
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
        raise
