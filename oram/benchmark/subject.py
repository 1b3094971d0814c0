"""What is measured: the schemes, what they are compared with, and what others bring.

A package brings a subject of its own with an entry point of the group ``oram.benchmark.subjects``: its name is the subject's, and it
leads to a function without arguments that returns a ``Subject``.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import oram
from oram.benchmark.place import Place
from oram.encrypted import EncryptedStore
from oram.errors import OramError
from oram.params import SCHEMES

__all__ = ["BASELINES", "GROUP", "Case", "Session", "Subject", "SubjectMissingError", "named", "names"]

GROUP = "oram.benchmark.subjects"

_MANY = 1000  # keys a command where nobody measures


class SubjectMissingError(Exception):
    """It cannot run here, or not with these parameters; the text says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """What all subjects of a comparison have in common: capacity N, records, bytes of a block, cipher, and their place."""

    N: int
    records: int
    block_size: int
    cipher: str
    place: Place


class Session(Protocol):
    """An open store with bytes for keys and values. What is missing is None."""

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Fill the empty store."""

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values, or None."""

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store them."""

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget them; those that are not there, too."""

    def client_bytes(self) -> int | None:
        """Bytes of persisted client state, where it is known."""

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of store. says: what it hides and how, for the report. backends: kinds of place where it runs, "memory", "lmdb" or "redis". ciphers: whether
    the cipher makes a difference. answers: whether it answers with what was put; one that only goes through the motions does not.
    """

    name: str
    says: str
    backends: tuple[str, ...]
    open: Callable[[Case], Session]
    ciphers: bool = False
    answers: bool = True


# --- oblivious


class _Oblivious:
    def __init__(self, case: Case, scheme: str) -> None:
        self._backend, options = case.place.backend()
        self._store: oram.ObliviousStore | None = None
        self._options = {
            **options, "key": oram.generate_key(), "capacity": case.N, "block_size": case.block_size, "cipher": case.cipher, "scheme": scheme,
        }  # fmt: skip

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._store = oram.create(self._backend, items=items, **self._options)

    @property
    def store(self) -> oram.ObliviousStore:
        assert self._store is not None
        return self._store

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [self.store.get(keys[0])] if len(keys) == 1 else self.store.get_many(keys)

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        if len(items) == 1:
            self.store.put(*items[0])
        else:
            self.store.put_many(items)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        self.store.delete_many(keys)

    def client_bytes(self) -> int:
        return self.store.stats().state_bytes

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        self._backend.close()


def _scheme(name: str) -> Subject:
    def begin(case: Case) -> Session:
        try:
            return _Oblivious(case, name)
        except OramError as error:
            raise SubjectMissingError(str(error)) from None

    return Subject(name, f"{name.capitalize()} ORAM of this package", ("memory", "lmdb", "redis"), begin, ciphers=True)


# --- what hides less


class _Dict:
    def __init__(self, _: Case) -> None:
        self._records: dict[bytes, bytes] = {}

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._records.update(items)

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [self._records.get(key) for key in keys]

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._records.update(items)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._records.pop(key, None)

    def client_bytes(self) -> None:
        return None

    def close(self) -> None:
        self._records.clear()


class _LMDB:
    """One transaction a batch, not synced, as the schemes with ``durability="process"``."""

    def __init__(self, case: Case) -> None:
        import lmdb

        self._environment = lmdb.open(str(case.place.scratch()), map_size=1 << 36, sync=False)

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self.put_many(items)

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        with self._environment.begin() as txn:
            return [txn.get(key) for key in keys]

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        with self._environment.begin(write=True) as txn:
            for key, value in items:
                txn.put(key, value)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        with self._environment.begin(write=True) as txn:
            for key in keys:
                txn.delete(key)

    def client_bytes(self) -> None:
        return None

    def close(self) -> None:
        self._environment.close()


class _Redis:
    """One MGET or MSET a batch."""

    def __init__(self, case: Case) -> None:
        self._client, self._prefix = case.place.client()
        self._known: set[bytes] = set()

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        for first in range(0, len(items), _MANY):
            self.put_many(items[first : first + _MANY])

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        found: Any = self._client.mget([self._prefix + key for key in keys])
        return list(found)

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._client.mset({self._prefix + key: value for key, value in items})
        self._known.update(key for key, _ in items)

    def delete_many(self, keys: Sequence[bytes]) -> None:
        self._client.delete(*(self._prefix + key for key in keys))

    def client_bytes(self) -> None:
        return None

    def close(self) -> None:
        known = list(self._known)
        for first in range(0, len(known), _MANY):
            self._client.unlink(*(self._prefix + key for key in known[first : first + _MANY]))
        self._client.close()


class _Encrypted:
    """A record a slot, sealed; a batch is one read or one write. It has no inserts: a put of a new key, as a deletion, is an access to some other slot."""

    def __init__(self, case: Case) -> None:
        self._backend, _ = case.place.backend()
        self._store = EncryptedStore(self._backend, case.block_size)

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._items = list(items)
        self._known = {key for key, _ in items}
        self._store.load(items)

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return self._store.get_many(keys)

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._store.put_many([item if item[0] in self._known else self._other(item[0]) for item in items])

    def delete_many(self, keys: Sequence[bytes]) -> None:
        self._store.put_many([self._other(key) for key in keys])

    def _other(self, key: bytes) -> tuple[bytes, bytes]:
        return self._items[zlib.crc32(key) % len(self._items)]

    def client_bytes(self) -> None:
        return None

    def close(self) -> None:
        self._backend.close()


class _PyORAM:
    """PyORAM 0.2.1 in an environment of its own, which this process talks to over a pipe; a block is a record, and the pipe's time counts."""

    def __init__(self, case: Case) -> None:
        python = os.environ.get("ORAM_PYORAM")
        if python is None:
            raise SubjectMissingError(
                "python3 -m venv /tmp/pyoram && /tmp/pyoram/bin/pip install pyoram==0.2.1, then set ORAM_PYORAM=/tmp/pyoram/bin/python"
            )
        script = Path(__file__).with_name("peer_pyoram.py")
        self._block = case.block_size
        words = [python, str(script), str(case.N), str(case.block_size)]
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise SubjectMissingError(f"ORAM_PYORAM={python}: {error.strerror}") from None
        self._numbers: dict[bytes, int] = {}
        if self._say(b"") != b"ready":
            self.close()
            raise SubjectMissingError(f"{python} has no PyORAM that starts: pip install pyoram==0.2.1 there")

    def _say(self, line: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if line:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def load(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._numbers = {key: i for i, (key, _) in enumerate(items)}

    def _at(self, key: bytes) -> int:
        return self._numbers.get(key, 0)

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self._say(b"r " + b" ".join(b"%d" % self._at(key) for key in keys))
        return [b"" for _ in keys]

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._say(b"w " + b" ".join(b"%d" % self._at(key) for key, _ in items))

    def delete_many(self, keys: Sequence[bytes]) -> None:
        self.put_many([(key, b"") for key in keys])

    def client_bytes(self) -> None:
        return None

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


BASELINES = {
    each.name: each
    for each in (
        Subject("dict", "Python's dict: hides nothing", ("memory",), _Dict),
        Subject("plain-lmdb", "LMDB by itself: hides nothing", ("lmdb",), _LMDB),
        Subject("plain-redis", "Redis or Valkey by itself, MGET and MSET: hides nothing", ("redis",), _Redis),
        Subject("encrypted", "records sealed one by one with AES-256-GCM: hides contents, and not which is asked for", ("memory", "lmdb", "redis"), _Encrypted),
        Subject("pyoram", "PyORAM 0.2.1: Path ORAM in Python, encrypted, without freshness, over a list in memory", ("memory",), _PyORAM, answers=False),
    )
}  # fmt: skip


def names() -> list[str]:
    """All that are known here: schemes, baselines, and those of installed packages, of which nothing is loaded."""
    own = [*SCHEMES, *BASELINES]
    return own + [each.name for each in importlib.metadata.entry_points(group=GROUP) if each.name not in own]


def named(name: str) -> Subject:
    """The one of this name, of ``names``. SubjectMissingError where the package that brings it fails to."""
    if name in BASELINES:
        return BASELINES[name]
    if name in SCHEMES:
        return _scheme(name)
    (entry, *_) = importlib.metadata.entry_points(group=GROUP, name=name)
    try:
        subject = entry.load()()
    except Exception as error:
        raise SubjectMissingError(f"{entry.value} failed: {type(error).__name__}: {error}") from error
    if not isinstance(subject, Subject):
        raise SubjectMissingError(f"{entry.value} returned no oram.benchmark.Subject")
    return subject
