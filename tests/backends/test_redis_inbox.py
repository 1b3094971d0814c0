"""Replies, however they arrive: the same as hiredis alone makes of them, and slots in one piece where all are there."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import hiredis
import numpy as np
import pytest

from oram.backends import RegionShape
from oram.backends.redis.inbox import FloodError, Form, GarbledError, Inbox
from oram.backends.redis.keys import Names, Region
from oram.backends.redis.replies import rows
from oram.backends.redis.wire import pack

ROOM = 1 << 16


def said(reply: object) -> bytes:
    """As a server says it."""
    match reply:
        case None:
            return b"$-1\r\n"
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case int():
            return b":%d\r\n" % reply
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(said, reply))
    raise TypeError


class Pieces:
    """Stands for a connection from which data comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = list(pieces)

    def recv_into(self, buffer: memoryview) -> int:
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        taken = min(len(piece), len(buffer))
        buffer[:taken] = piece[:taken]
        if taken < len(piece):
            self._pieces.insert(0, piece[taken:])
        return taken


def take(pieces: list[bytes], count: int, forms: list[Form | None], room: int = ROOM, seconds: float = 60) -> list[Any]:
    there: Any = Pieces(pieces)
    return Inbox(there, hiredis.Reader()).take(count, room, forms, time.monotonic() + seconds)


def cuts(data: bytes, source: random.Random) -> Iterator[list[bytes]]:
    """Whole, byte by byte, in two pieces anywhere, and in some pieces."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for at in range(1, len(data), 1 + len(data) // 60):
        yield [data[:at], data[at:]]
    for _ in range(20):
        marks = sorted(source.sample(range(len(data) + 1), min(5, len(data))))
        yield [piece for piece in (data[i:j] for i, j in zip([0, *marks], [*marks, len(data)], strict=True)) if piece]


@pytest.mark.parametrize(
    "size", [1, 3, 8, 64, 101]
)  # with 101, an array of absent slots can be in step with one of slots
@pytest.mark.parametrize("last", [None, b"0123456789abcdef" * 2])
def test_however_it_arrives(size: int, last: bytes | None) -> None:
    """With any slots absent, or of another length, a lease that is another's, and other replies around it."""
    source = random.Random(size)
    noise = [b"$-1\r\n", b"\r\n$%d\r\n" % size, b"*1\r\n"]
    for turn in range(40):
        count = source.randint(1, 6)
        slots: list[Any] = [
            (source.choice(noise) * size)[:size] if turn % 3 else source.randbytes(size) for _ in range(count)
        ]
        if turn % 2:
            for _ in range(source.randint(1, count)):
                slots[source.randrange(count)] = source.choice([None, None, None, b"", b"x" * (size + 1)])
        whole = all(slot is not None and len(slot) == size for slot in slots)
        keys = slots if last is None else [*slots, last if turn % 5 else source.choice([None, b"f" * 32, b"f"])]
        mine = whole and keys[count:] == ([] if last is None else [last])
        replies = [[1, b"OK", [None, []]], keys, 7]
        data = b"".join(map(said, replies))
        for pieces in cuts(data, source):
            first, middle, end = take(pieces, 3, [None, Form(count, size, last)])
            assert [first, end] == [replies[0], replies[2]]
            assert isinstance(middle, np.ndarray) == mine
            if mine:
                assert [row.tobytes() for row in middle] == slots
                assert rows([middle], count, size)[1].all()
            else:
                assert middle == keys


def test_an_error_in_place_of_slots() -> None:
    data = b"-MOVED 7 127.0.0.1:1\r\n"
    for pieces in cuts(data, random.Random(1)):
        (reply,) = take(pieces, 1, [Form(3, 8)])
        assert isinstance(reply, hiredis.ReplyError)


def test_more_than_the_buffer_holds() -> None:
    slots = [bytes([i]) * 100_000 for i in range(30)]
    keys = [*slots[:10], None, *slots[10:]]
    data = said(slots) + said(keys) + said(slots)
    pieces = [data[i : i + 65_536] for i in range(0, len(data), 65_536)]
    forms: list[Form | None] = [Form(30, 100_000), Form(31, 100_000), Form(30, 100_000)]
    one, two, three = take(pieces, 3, forms, len(data))
    assert two == keys
    assert [row.tobytes() for row in one] == [row.tobytes() for row in three] == slots


@pytest.mark.parametrize(
    "data",
    [b"*65536\r\n", b"*2147483647\r\n", b"*99999999999999999999\r\n", b"$65537\r\n", b"*1\r\n" * 4 + b"*65000\r\n", b"+" + b"x" * 70_000],
)  # fmt: skip
def test_too_long(data: bytes) -> None:
    for form in (None, Form(5, 8)):
        with pytest.raises(FloodError):
            take([data, b"x" * ROOM], 1, [form])


def test_more_replies_than_questions() -> None:
    """They are heard by who listens, and are no answers to the next question."""
    there: Any = Pieces([b"+OK\r\n+one\r\n+t", b"wo\r\n+three\r\n"])
    inbox = Inbox(there, hiredis.Reader())
    assert inbox.take(1, ROOM, [], time.monotonic() + 60) == [b"OK"]
    assert [inbox.hear(), inbox.hear()] == [b"one", b"two"]
    with pytest.raises(FloodError):
        inbox.take(1, ROOM, [], time.monotonic() + 60)


@pytest.mark.parametrize(
    "data",
    [b"x\r\n", b"\r\n", b"*x\r\n", b"*-2\r\n", b"$+1\r\na\r\n", b"$ 1\r\na\r\n", b"$1_0\r\n",
     b">1\r\n+a\r\n", b",inf\r\n", b"%0\r\n", b"$1\r\nabc\r\n", b":x\r\n"],
)  # fmt: skip
def test_garbled(data: bytes) -> None:
    with pytest.raises((GarbledError, hiredis.ProtocolError, FloodError)):
        take([data], 1, [])


def test_the_end() -> None:
    for form in (None, Form(2, 8)):
        for data in (b"", b"*2\r\n$8\r\n1234"):
            with pytest.raises(ConnectionResetError):
                take([data] if data else [], 1, [form])


def test_out_of_time() -> None:
    for form in (None, Form(2, 8)):
        with pytest.raises(TimeoutError):
            take([b"*2\r\n", b"$8\r\n"] + [b"1"] * 9, 1, [form], seconds=-1)


def test_random_bytes() -> None:
    """An answer or one of a few errors, and no end is waited for."""
    source, answers = random.Random(3), 0
    for _ in range(5000):
        data = b"".join(
            source.choice([b"*", b"$", b":", b"+", b"-", b"1", b"2", b"0", b"\r\n", b"\r", b"x"]) for _ in range(12)
        )
        with contextlib.suppress(FloodError, GarbledError, ConnectionResetError, hiredis.ProtocolError):
            take([data, b"\r\n" * source.randint(0, 2)], 1, [Form(2, 1) if source.random() < 0.5 else None])
            answers += 1
    assert answers > 20


def test_over_a_real_connection() -> None:
    left, right = socket.socketpair()
    with left, right:
        inbox = Inbox(left, hiredis.Reader())
        for _ in range(3):  # its buffer is used again
            right.sendall(said([b"12345678"] * 2) + b"+OK\r\n")
            array, ok = inbox.take(2, ROOM, [Form(2, 8)], time.monotonic() + 10)
            assert array.tobytes() == b"12345678" * 2
            assert ok == b"OK"


@pytest.mark.parametrize("slots", [1, 16, 17, 1 << 20, (1 << 40) + 1])
def test_reads_are_what_hiredis_packs(slots: int) -> None:
    """Also those that are remembered, in chunks, and with a lease behind them."""
    names = Names("a.b_c-9")
    region = Region.of(names, 7, RegionShape(slots, 3 << 20))  # of which two make a command
    source = np.random.default_rng(1)
    for last in (None, (names.lease, b"f" * 32), (names.lease, b"e" * 32)):
        for count in (1, 2, 3, 5, 2, 1):
            indices = source.integers(0, slots, count)
            commands, forms = region.gets(indices, last)
            keys = region.keys(indices)
            pieces = [keys[i : i + 2] for i in range(0, count, 2)]
            if last is not None:
                pieces[-1].append(last[0])
            assert commands == [pack(b"MGET", *piece) for piece in pieces]
            assert sum(form.count for form in forms if form is not None) == count
            assert forms[-1] is not None
            assert (b"" if last is None else last[1]) in forms[-1].end
    assert region.gets(indices[:0], last) == ([], [])
