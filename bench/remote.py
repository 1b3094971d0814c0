"""A store on a Redis or Valkey server of its own, on the loopback: accesses a second, time over a slow link, bytes, and the client's CPU."""

from __future__ import annotations

import os
import random
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
import redis

import oram
from bench.measure import Row, median
from oram import record
from oram.backends import RedisBackend, RegionShape, SlotRead, SlotWrite
from oram.params import SchemeParams, shard_batch
from oram.testing.proxy import Proxy
from oram.testing.servers import Server, redis_server
from oram.trace import TraceBackend
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
    with warnings.catch_warnings(action="ignore"):  # nothing here is worth a log
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


#: Records of the throughput rows: 2^20, or ``ORAM_BENCH_RECORDS``; of two of them 2 * 10^6. Batches and values: as Obladi and Treebeard evaluate.
MANY = 2_000_000
RECORDS, BATCH, VALUE = int(os.environ.get("ORAM_BENCH_RECORDS", 1 << 20)), 500, 160


def throughput(quick: bool) -> Iterator[Row]:
    """Accesses a second in batches of 500, half of them gets and half of them puts, beside plain Redis with the same values."""
    few = 1 << 16 if quick else RECORDS
    path = oram.PathParams(page_levels=2)  # what a link of ten gigabits and more is best served with
    cases: list[tuple[SchemeParams, str, str, int]] = [
        (path, "aes-256-gcm", "process", few),
        (path, "aegis-256", "process", few),
        (path, "aes-256-gcm", "sync", few),
    ]
    if not quick:
        cases += [
            (oram.PathParams(), "aes-256-gcm", "process", few),
            (oram.RingParams(), "aes-256-gcm", "process", few),
        ]
        cases += [(path, "aes-256-gcm", durability, MANY) for durability in ("process", "sync")]
    for scheme, cipher, durability, records in cases:
        log = {"appendonly": "no"} if durability == "process" else {"appendonly": "yes", "appendfsync": "always"}
        with tempfile.TemporaryDirectory() as place, redis_server(Path(place) / "server", log) as server:
            ours, plain = _batches(server, Path(place), scheme, cipher, durability, records, 20 if quick else 60)
        kind = f"{scheme.name}{', page_levels=2' * (scheme is path)}"
        name = f"batches of {BATCH} x {VALUE} B, N={records:,}: {kind}, {cipher}, {durability!r}"
        bar = (">= 20,000", ours >= 20_000) if scheme is path and durability == "process" else ("", None)
        yield Row(
            name,
            ours,
            plain,
            "accesses/s",
            plain / ours,
            *bar,
            "the reference is plain Redis: MGET and MSET of the same",
        )


def _batches(
    server: Server, place: Path, scheme: SchemeParams, cipher: str, durability: str, records: int, rounds: int
) -> list[float]:
    names = [b"%012d" % i for i in range(records)]
    value = os.urandom(VALUE)
    with redis.Redis(port=server.port) as plain, warnings.catch_warnings(action="ignore"):
        for first in range(0, records, 10_000):
            plain.mset(dict.fromkeys(names[first : first + 10_000], value))
        with oram.create(
            server.url("bench"),
            key=oram.generate_key(),
            capacity=records,
            block_size=VALUE + 12 + record.OVERHEAD,
            scheme=scheme,
            cipher=cipher,
            durability=durability,
            state=place / "state",
            items=((name, value) for name in names),
        ) as store:

            def turn(get: Callable[[list[bytes]], object], put: Callable[[dict[bytes, bytes]], object]) -> None:
                get(random.sample(names, BATCH))
                put(dict.fromkeys(random.sample(names, BATCH), value))

            seconds = median(
                lambda: turn(store.get_many, store.put_many), lambda: turn(plain.mget, plain.mset), rounds=rounds
            )
    return [2 * BATCH / second for second in seconds]


def slow_link(quick: bool) -> Iterator[Row]:
    """A get over added round trips of 10 and 50 ms: how long, and how many round trips; and the bytes that come down before the answer."""
    B, N = 4096, 1 << 10 if quick else 1 << 14
    for delay in (0.010, 0.050):
        for scheme in ("path", "ring", "cuckoo"):
            with (
                tempfile.TemporaryDirectory() as place,
                redis_server(Path(place) / "server", {"appendonly": "no"}) as server,
                Proxy(server.port, rtt=delay) as proxy,
                warnings.catch_warnings(action="ignore"),
            ):
                trace = TraceBackend(RedisBackend(f"redis://127.0.0.1:{proxy.port}?name=bench"))
                options: dict[str, Any] = {"capacity": N, "block_size": B, "tree_top": 1 << 20, "scheme": scheme}
                with oram.create(
                    trace, key=oram.generate_key(), state=Path(place) / "state", durability="process", **options
                ) as store:
                    times, online = [], []
                    for i in range(10 if quick else 100):
                        trace.clear()
                        start = time.perf_counter()
                        store.get(b"%d" % i)
                        times.append(time.perf_counter() - start)
                        online.append(trace.bytes_read / B)
                    trips = trace.round_trips
                p50, p99 = (1e3 * float(each) for each in np.quantile(times, [0.5, 0.99]))
                name = f"get over {delay * 1e3:.0f} ms, B={B}: {scheme}"
                note = f"p99 {p99:.1f} ms; round trips an access: {trips}"
                yield Row(name, p50, delay * 1e3, "ms", p50 / delay / 1e3, "<= 1.2", p50 <= 1.2e3 * delay, note)
                if scheme == "ring" and delay == 0.010:
                    least = min(online)  # an access that evicts nothing
                    note = "sealed blocks that come down in an access that evicts nothing"
                    yield Row("online bytes, Ring with XOR", least, 1, "blocks", least, "<= 1.2", least <= 1.2, note)


def shards(quick: bool) -> Iterator[Row]:
    """A batch of reads over links of 100 megabits a second, a server and a link for each shard: time beside that of one server, and all their work."""
    N, B, rate = 1 << 12 if quick else 1 << 14, 1024, 12.5e6
    sizes, counts = ((64,), (2,)) if quick else ((1, 64, 256, 1024), (2, 4))
    alone: dict[int, float] = {}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [
            stack.enter_context(redis_server(place / f"server{j}", {"appendonly": "no"})) for j in range(max(counts))
        ]
        links = [stack.enter_context(Proxy(server.port, rtt=0.001, rate=rate)) for server in servers]
        for k in (1, *counts):
            where = [f"redis://127.0.0.1:{link.port}?name=shards{k}" for link in links[:k]]
            options: dict[str, Any] = {"capacity": N, "block_size": B, "tree_top": 1 << 20, "scheme": "ring"}
            with oram.create(
                where, key=oram.generate_key(), state=place / f"state{k}", keyed=False, durability="process", **options
            ) as store:
                source = np.random.default_rng(k)
                for R in sizes:
                    rounds = max(3, min(40, 400 // R))
                    asked = iter([source.choice(N, R, replace=False) for _ in range(rounds + 1)])
                    (seconds,) = median(lambda: store.blocks.read_many(next(asked)), rounds=rounds)  # noqa: B023
                    if k == 1:
                        alone[R] = seconds
                        continue
                    each = shard_batch(R, k)
                    name = f"a batch of {R} over {k} shards, B={B}"
                    note = f"B(R, k) = {each}, work / R = {k * each / R:.2f}; B(R, k) / R = {each / R:.2f}"
                    yield Row(name, seconds * 1e3, alone[R] * 1e3, "ms", seconds / alone[R], "", None, note)


BARS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "remote": throughput,
    "remote-link": slow_link,
    "remote-client": client,
    "remote-shards": shards,
}
