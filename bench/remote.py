"""Client CPU of a Redis backend beside that of a bare socket and hiredis: ``python -m bench.remote``. Loopback only."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.measure import Row
from oram.backends import RedisBackend, RegionShape, SlotRead, SlotWrite
from oram.testing.servers import Server, redis_server
from oram.types import I64, U8

#: Slots of a path: a tree of a million slots.
LEVELS, SLOTS = 21, 1 << 14


class Bare:
    """The least that a client in Python can do: names, packing, one send, parsing, one array of it all. It checks nothing and has no lease."""

    def __init__(self, server: Server, form: bytes) -> None:
        family, where = (
            (socket.AF_INET, ("127.0.0.1", server.port))
            if server.socket_path is None
            else (socket.AF_UNIX, str(server.socket_path))
        )
        self._socket = socket.socket(family)
        self._socket.connect(where)
        self._socket.settimeout(10)  # as everybody should, and it costs a system call each
        self._reader, self._buffer, self._form = hiredis.Reader(), bytearray(1 << 18), form

    def ask(self, packed: bytes, replies: int) -> list[object]:
        self._socket.sendall(packed)
        answers: list[object] = []
        while len(answers) < replies:
            answer = self._reader.gets(False)
            if answer is False:
                got = self._socket.recv_into(self._buffer)
                self._reader.feed(self._buffer, 0, got)
            else:
                answers.append(answer)
        return answers

    def names(self, indices: I64) -> list[bytes]:
        return [self._form % index for index in indices.tolist()]

    def array(self, values: Any) -> U8:
        return np.frombuffer(bytearray().join(values), np.uint8).reshape(len(values), -1)

    def read(self, indices: I64) -> U8:
        return self.array(self.ask(hiredis.pack_command((b"MGET", *self.names(indices))), 1)[0])

    def exchange(self, written: I64, data: U8, indices: I64) -> U8:
        rows, size = data.data.cast("B"), data.shape[1]
        pairs: list[bytes | memoryview] = [b""] * (2 * len(written))
        pairs[::2] = self.names(written)
        pairs[1::2] = [rows[at : at + size] for at in range(0, len(rows), size)]
        put = hiredis.pack_command((b"MSET", *pairs))
        return self.array(self.ask(hiredis.pack_command((b"MGET", *self.names(indices))) + put, 2)[0])


def cpu(*works: Callable[[int], object], count: int, rounds: int = 7) -> list[float]:
    """Microseconds of this process's CPU for one call of each work, the best of rounds in which they take turns."""
    times = [float("inf")] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            start = time.process_time()
            for n in range(count):
                work(n)
            times[i] = min(times[i], (time.process_time() - start) / count * 1e6)
    return times


def client(quick: bool) -> Iterator[Row]:
    """A path read, and a write-back with the next read, of ``RedisBackend`` and of ``Bare``."""
    count = 300 if quick else 1000
    for unix in (False, True):
        with (
            tempfile.TemporaryDirectory() as place,
            redis_server(Path(place), {"appendonly": "no"}, unix=unix) as server,
        ):
            for size in (1000, 4096, 16384):
                with _backend(server, size) as backend:
                    yield from _rows(server, backend, unix, size, count)


def _backend(server: Server, size: int) -> RedisBackend:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing here is worth a log
        backend = RedisBackend(server.url(f"bench{size}"))
    backend.acquire()
    backend.allocate("tree", RegionShape(SLOTS, size))
    step = (4 << 20) // size
    for first in range(0, SLOTS // 8, step):
        indices = np.arange(first, min(first + step, SLOTS // 8))
        backend.write("tree", indices, np.frombuffer(os.urandom(indices.size * size), np.uint8).reshape(-1, size))
    return backend


def _rows(server: Server, backend: RedisBackend, unix: bool, size: int, count: int) -> Iterator[Row]:
    random = np.random.default_rng(1)
    paths = [random.permutation(SLOTS // 8)[:LEVELS] for _ in range(count + 1)]
    data = np.frombuffer(os.urandom(LEVELS * size), np.uint8).reshape(-1, size)
    bare = Bare(server, b"{bench%d}:00000001:%%04x" % size)
    assert np.array_equal(bare.read(paths[0]), backend.read("tree", paths[0]).data)
    ours, theirs = cpu(lambda n: backend.read("tree", paths[n]), lambda n: bare.read(paths[n]), count=count)
    where = "Unix socket" if unix else "TCP"
    yield Row(
        f"{where}: read {LEVELS} x {size} B", ours, theirs, "us CPU", ours / theirs, "<= 1.3", ours / theirs <= 1.3
    )
    ours, theirs = cpu(
        lambda n: backend.exchange((SlotWrite("tree", paths[n], data),), SlotRead("tree", paths[n + 1])),
        lambda n: bare.exchange(paths[n], data, paths[n + 1]),
        count=count,
    )
    note = "the bare one has no fence"
    yield Row(f"{where}: write, read {LEVELS} x {size} B", ours, theirs, "us CPU", ours / theirs, "", None, note)


def main() -> None:
    """Measure and print."""
    table = Table("what", "oram", "bare", "unit", "ratio", "bar")
    for row in client(False):
        table.add_row(row.name, f"{row.measured:.1f}", f"{row.reference:.1f}", row.unit, f"{row.ratio:.2f}", row.bar)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
