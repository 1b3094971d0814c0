"""What a server's replies mean. It is not trusted: each is checked for its kind and length, and of an error only the code is repeated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from oram.backends.base import SlotWrite
from oram.backends.redis.options import Address
from oram.errors import (
    BackendAccessError,
    BackendError,
    BackendFullError,
    BackendReadOnlyError,
    IntegrityError,
    OramError,
)
from oram.types import I64, U8

_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,255}")
_PLACE = re.compile(r"\d{1,5} (.{0,255}):(\d{1,5})")
_FENCE = re.compile(rb"(\d{1,18}) ([0-9a-f]{32})")
_CODE = re.compile(r"[A-Z]{2,20}")


class BrokenError(Exception):
    """The connection broke: whether the server did what it was asked is not known. Or, of the kinds below, it did nothing and may do it later."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BusyError(BrokenError):
    """The server cannot do it just now. The connection is good."""


class DownError(BrokenError):
    """The node is cut off from its cluster, or the cluster is not whole."""


class MovedError(BrokenError):
    """Another node has the store. An empty host is that of the one that says so."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__("the node that the cluster names does not answer")
        self.host, self.port = host, port


def failure(error: Exception) -> OramError | BrokenError:
    """What to raise for an error reply. Of its text only the code is repeated: a server can echo there what it was sent."""
    code, _, rest = str(error).partition(" ")
    code = code if _CODE.fullmatch(code) else "ERR"
    if code == "OOM":
        return BackendFullError("the server has no memory left for the store (maxmemory)")
    if code in ("READONLY", "NOREPLICAS", "MISCONF", "MASTERDOWN"):
        return BackendReadOnlyError(f"the server takes no writes ({code})")
    if code in ("NOPERM", "NOAUTH", "WRONGPASS"):
        return BackendAccessError(f"the server does not permit this to the user ({code})")
    if code == "WRONGTYPE":
        return damaged()
    if code == "MOVED":
        place = _PLACE.fullmatch(rest)
        return MovedError(place[1], int(place[2])) if place else MovedError("?", 0)
    if code in ("ASK", "TRYAGAIN"):
        return BusyError(f"the store is being moved to another node of its cluster ({code})")
    if code == "CLUSTERDOWN":
        return DownError("the cluster is down, or the node is cut off from it")
    if code == "UNBLOCKED":  # and it closes the connection
        return BrokenError("it became a replica")
    if code == "LOADING":
        return BusyError("it is loading its data")
    return BackendError(f"the server refused a command ({code})")


def address_of(host: str, port: int, here: str) -> Address | None:
    """Where a node is that another one named, or None if it did not say. ``here``: the host that said it, which an empty name stands for."""
    host = host or here
    return (host, port) if _HOST.fullmatch(host) and 1 <= port <= 65535 else None


def nodes_of(reply: list[Any], slot: int, here: str) -> list[Address]:
    """The nodes in an answer to CLUSTER SLOTS, those that have ``slot`` first. What makes no sense is left out: no more than help is lost with it."""
    ours: list[Any] = []
    others: list[Any] = []
    for row in reply:
        match row:
            case [int(first), int(last), *nodes]:
                (ours if first <= slot <= last else others).extend(nodes)
    found: dict[Address, None] = {}
    for node in ours + others:
        match node:
            case [bytes() | None as host, int(port), *_]:
                address = address_of((host or b"").decode("latin-1"), port, here)
                if address is not None:
                    found[address] = None
    return list(found)


def damaged() -> IntegrityError:
    """A key that is no slot."""
    return IntegrityError("a key of the store holds what no store wrote there")


def refuse(replies: Iterable[Any]) -> None:
    """Raise for the first error among replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise failure(reply) from None


def integer(reply: Any) -> int:
    """A number, of 64 bits."""
    try:
        number = int(reply)
    except (TypeError, ValueError, OverflowError):
        raise damaged() from None
    if not -(1 << 63) <= number < 1 << 63:
        raise damaged()
    return number


def taken_by(fence: Any) -> tuple[int, bytes]:
    """How often the lease was taken, and the token of the last time."""
    if fence is None:
        return 0, b""
    match = _FENCE.fullmatch(fence) if isinstance(fence, bytes) else None
    if match is None:
        raise damaged()
    return int(match[1]), match[2]


def array(reply: Any, length: int | None = None) -> list[Any]:
    """A list, of this length."""
    if not isinstance(reply, list) or (length is not None and len(reply) != length):
        raise strange()
    return reply


def strings(reply: Any) -> list[bytes]:
    """A list of strings."""
    if not all(isinstance(word, bytes) for word in array(reply)):
        raise strange()
    return array(reply)


def pairs(reply: Any) -> list[tuple[bytes, bytes]]:
    """A hash, as words that take turns."""
    words = strings(reply)
    if len(words) % 2:
        raise strange()
    return list(zip(words[::2], words[1::2], strict=True))


def strange() -> BackendError:
    """An answer of another kind."""
    return BackendError("the server answered something else than it was asked")


def rows(replies: list[Any], count: int, size: int) -> tuple[U8, U8]:
    """The slots that MGETs got as an array (count, size), and which are there. IntegrityError where one is not ``size`` bytes long.

    Each reply is a list of strings or, where all of its slots are there, an array already.
    """
    if len(replies) == 1 and isinstance(replies[0], np.ndarray) and replies[0].shape == (count, size):
        return replies[0], _ones(count)
    data, present, at = np.zeros((count, size), np.uint8), np.zeros(count, np.uint8), 0
    for reply in replies:
        values = reply if isinstance(reply, np.ndarray) else array(reply)
        end = at + len(values)
        if end > count:
            raise strange()
        if isinstance(values, np.ndarray):
            data[at:end], present[at:end] = values, 1
        else:
            there = [value for value in values if value is not None]
            present[at:end] = [value is not None for value in values]
            if there:
                data[at:end][present[at:end] != 0] = _together(there, size)
        at = end
    if at != count:
        raise strange()
    return data, present


def _ones(count: int) -> U8:
    present = np.empty(count, np.uint8)
    present.fill(1)
    return present


def _together(values: list[Any], size: int) -> U8:
    try:
        if set(map(len, values)) != {size}:
            raise damaged()
        return np.frombuffer(bytearray().join(values), np.uint8).reshape(len(values), size)
    except TypeError:  # no strings at all
        raise damaged() from None


def overlay(write: SlotWrite, indices: I64, data: U8, present: U8) -> None:
    """What a read after ``write`` would have got, in what one before it did."""
    order = write.indices.argsort()
    ordered = write.indices[order]
    at = ordered.searchsorted(indices)
    hit = ordered.take(at, mode="clip") == indices
    if hit.any():
        data[hit], present[hit] = write.data[order[at[hit]]], 1
