"""What comes from the server, read with bounds: it may send as much as was asked for, in as much time as that takes, and nothing else."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from oram.types import U8

__all__ = ["FloodError", "Form", "GarbledError", "Inbox"]

_BUFFER = 1 << 18

#: Of what a server says by itself: it may show what it was sent.
_LONG = 1 << 28


class FloodError(Exception):
    """The answer is longer than what was asked for can be."""


class GarbledError(Exception):
    """The answer is none, or of a kind that nobody asked for."""


class Form:
    """The reply to an MGET where all slots are there, all of it but for the slots: then no object is made for each of them.

    count, size: of the slots, at least one. last: what the key behind the slots holds; None where there is none.
    """

    __slots__ = ("between", "count", "end", "separator", "shape", "size", "start", "steps", "total")

    def __init__(self, count: int, size: int, last: bytes | None = None) -> None:
        self.count, self.size = count, size
        bulk = b"$%d\r\n" % size
        self.start = b"*%d\r\n%b" % (count + (last is not None), bulk)
        self.separator = b"\r\n" + bulk
        self.end = b"\r\n" if last is None else b"\r\n$%d\r\n%b\r\n" % (len(last), last)
        self.shape, self.steps = (count, size), (size + len(self.separator), 1)
        self.between = (count - 1, len(self.separator))
        self.total = len(self.start) + (count - 1) * (size + len(self.separator)) + size + len(self.end)


class Inbox:
    """The replies that one connection brings."""

    def __init__(self, connection: socket.socket, reader: Any) -> None:
        self._connection, self._reader = connection, reader
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._at = self._end = 0  # what is there, and was not taken
        self._until = 0.0

    def take(self, count: int, room: int, forms: Sequence[Form | None], until: float) -> list[Any]:
        """The next replies; an error is an exception among them. forms: of the first ones; where one is as its form says, it is an array (count, size).

        room: bytes of all together, at most. TimeoutError after ``until``, by ``time.monotonic``. FloodError, GarbledError or an OSError: what
        comes afterwards belongs to nothing.
        """
        if self._at != self._end:  # an answer to nothing
            raise FloodError
        self._at = self._end = 0
        self._until = until
        found: list[Any] = []
        for form in forms:
            rows = None if form is None else self._rows(form)
            if rows is None:
                found.append(self._value(room))
            else:
                found.append(rows)
        while len(found) < count:
            found.append(self._value(room))
        if len(self._buffer) > 4 * _BUFFER and self._at == self._end:
            self._hold(bytearray(_BUFFER))
        return found

    def hear(self) -> Any:
        """The next reply, which may have come with those before it, however long it takes; each part of it within the connection's timeout."""
        self._until = math.inf
        return self._value(_LONG)

    def _hold(self, buffer: bytearray) -> None:
        self._buffer, self._view = buffer, memoryview(buffer)

    def _more(self, need: int = 1) -> None:
        """Wait for further bytes. need: how many are known to come, at least."""
        if self._end + need > len(self._buffer):
            left = self._end - self._at
            if left + need > len(self._buffer) or not self._at:
                larger = bytearray(max(left + need, 2 * left))
                larger[:left] = self._buffer[self._at : self._end]
                self._hold(larger)
            else:
                self._buffer[:left] = self._buffer[self._at : self._end]
            self._at, self._end = 0, left
        got = self._connection.recv_into(self._view[self._end :] if self._end else self._view)
        if not got:
            raise ConnectionResetError
        self._end += got

    def _in_time(self) -> None:
        if time.monotonic() > self._until:
            raise TimeoutError

    def _rows(self, form: Form) -> U8 | None:
        """The slots, or None as soon as the reply is seen to be of another form, of which nothing is taken then."""
        start, separator = len(form.start), form.separator
        stride, checked = form.size + len(separator), 0
        if self._end == self._at:
            self._more(form.total)
        while True:
            have = self._end - self._at
            if have:
                buffer, at = self._buffer, self._at
                if have >= form.total and not checked:  # as a rule: all at once
                    if (
                        buffer.startswith(form.start, at)
                        and buffer.startswith(form.end, at + form.total - len(form.end))
                        and np.ndarray(form.between, np.uint8, buffer, at + start + form.size, form.steps).tobytes()
                        == separator * (form.count - 1)
                    ):
                        self._at += form.total
                        return np.ndarray(form.shape, np.uint8, buffer, at + start, form.steps).copy()
                    return None
                if have < start:
                    if form.start[:have] != buffer[at : at + have]:
                        return None
                else:
                    if not checked and not buffer.startswith(form.start, at):
                        return None
                    rows = min((have - start) // stride, form.count - 1)
                    if rows > checked:
                        between = np.ndarray(
                            (rows - checked, len(separator)),
                            np.uint8,
                            buffer,
                            at + start + checked * stride + form.size,
                            (stride, 1),
                        )
                        if between.tobytes() != separator * (rows - checked):
                            return None
                        checked = rows
                    behind = at + start + checked * stride + form.size
                    end = form.end if checked == form.count - 1 else separator
                    there = buffer[behind : min(self._end, behind + len(end))]
                    if there != end[: len(there)]:
                        return None
                if have >= form.total:
                    data = np.ndarray((form.count, form.size), np.uint8, buffer, at + start, (stride, 1)).copy()
                    self._at += form.total
                    return data
                self._in_time()
            self._more(form.total - have)

    def _value(self, room: int) -> Any:
        """A reply of any form. The reader gets it when it is whole, and when its lengths are those of what is there: it makes room for what they say."""
        at, left = self._at, 1  # of its parts, as far as they are known
        while left:
            line = self._buffer.find(b"\r\n", at, self._end)
            if line < 0:
                at = self._wait(at, 1, room)
                continue
            kind = self._buffer[at]
            if kind in b"$*":
                length = self._length(at + 1, line, room)
                if kind == ord("*"):
                    left += max(length, 0)
                elif length >= 0:
                    line += length + 2
            elif kind not in b"+-:":  # of RESP3, which nobody asked for
                raise GarbledError
            if line + 2 > self._end:
                at = self._wait(at, line + 2 - self._end, room)
                continue
            if not self._buffer.startswith(b"\r\n", line):
                raise GarbledError
            at, left = line + 2, left - 1
            if left * 3 > room:
                raise FloodError
        self._reader.feed(self._buffer, self._at, at - self._at)
        value = self._reader.gets(False)
        if value is False:
            raise GarbledError
        self._at = at
        return value

    def _length(self, first: int, end: int, room: int) -> int:
        text = bytes(self._buffer[first:end])
        if text == b"-1":
            return -1
        if not text.isdigit():
            raise GarbledError
        if len(text) > 18 or (length := int(text)) > room:
            raise FloodError
        return length

    def _wait(self, at: int, need: int, room: int) -> int:
        """Wait for more of a reply; where ``at`` is then."""
        if self._end - self._at + need > room:
            raise FloodError
        if self._end != self._at:
            self._in_time()
        ahead = at - self._at
        self._more(need)
        return self._at + ahead
