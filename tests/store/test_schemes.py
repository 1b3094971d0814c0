"""The schemes of the library pass the contract of schemes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

import pytest

from oram import kernels
from oram.backends import SlotRead
from oram.kernels.base import Keys, Op, Requests, TamperedError
from oram.params import (
    CuckooGeometry,
    CuckooParams,
    LinearGeometry,
    PathGeometry,
    PathParams,
    RingGeometry,
    RingParams,
    geometry_of,
)
from oram.params.common import IN_MEMORY
from oram.schemes.base import Access, Outcome, Reader, Scheme
from oram.schemes.cuckoo import CuckooORAM
from oram.schemes.linear import LinearORAM
from oram.schemes.path import PathORAM
from oram.schemes.pool import initial_positions
from oram.schemes.ring import RingORAM
from oram.testing.schemes import SchemeConformance
from oram.types import I64, U8


def keys(scheme: str, generation: int) -> Keys:
    """Sealing keys, the same ones each time."""
    made = kernels.serving(scheme).keys("aes-256-gcm", lambda number: hashlib.sha256(bytes([number])).digest())
    made.start(generation)
    return made


class TestLinear(SchemeConformance):
    def make(self, capacity: int, block_size: int, generation: int) -> Scheme:
        g = LinearGeometry.of(capacity, block_size)
        return LinearORAM(g, "slots", kernels.serving("linear"), keys("linear", generation))


class TestPath(SchemeConformance):
    def make(self, capacity: int, block_size: int, generation: int) -> Scheme:
        g = geometry_of(capacity, block_size, PathParams(), 0, IN_MEMORY)
        assert isinstance(g, PathGeometry)
        position = initial_positions(g.N, g.leaves, bytes(range(256)) * (g.N // 64 + 1))
        return PathORAM(g, "slots", kernels.serving("path"), keys("path", generation), position, None)


class TestRing(SchemeConformance):
    def make(self, capacity: int, block_size: int, generation: int) -> Scheme:
        g = geometry_of(capacity, block_size, RingParams(Z=4), 0, IN_MEMORY)
        assert isinstance(g, RingGeometry)
        position = initial_positions(g.N, g.leaves, bytes(range(256)) * (g.N // 64 + 1))
        made = kernels.serving("ring"), keys("ring", generation)
        return RingORAM(g, "slots", "meta", *made, position, None, xor=False)


class TestCuckoo(SchemeConformance):
    def make(self, capacity: int, block_size: int, generation: int) -> Scheme:
        g = geometry_of(capacity, block_size, CuckooParams(), 0, IN_MEMORY)
        assert isinstance(g, CuckooGeometry)
        return CuckooORAM(g, "slots", kernels.serving("cuckoo"), keys("cuckoo", generation), bytes(32))


class _Fickle(LinearORAM):
    """Reads one slot more, or not, by a coin that no journal has."""

    def access(self, requests: Requests) -> Access:
        if os.urandom(1)[0] % 2:
            yield SlotRead("slots", self._all[:1])
        return (yield from super().access(requests))


class _Telling(LinearORAM):
    """The record of a read is shorter than that of a write."""

    def _record(self, requests: Requests) -> bytes:
        record = super()._record(requests)
        return record if Op.WRITE in requests.ops[: requests.m] else record[:-1]


class _Forgetful(LinearORAM):
    """Does not bring its arrays up to date."""

    def replay(self, records: Iterable[bytes]) -> None:
        """Nothing."""


class _Trusting(LinearORAM):
    """Goes on with what does not open."""

    def access(self, requests: Requests) -> Access:
        try:
            return (yield from super().access(requests))
        except TamperedError:
            return Outcome([], self._record(requests))


class _Curious(LinearORAM):
    """A scan that ends at a page of zeros."""

    def scan(self, read: Reader) -> Iterator[tuple[I64, U8]]:
        found = list(super().scan(read))
        if found[0][1].any():
            read(SlotRead("slots", self._all))
        yield from found


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (_Fickle, "test_an_access_that_broke_off_reads_the_same_again"),
        (_Telling, "test_the_length_of_a_record_says_no_more_than_its_reads_and_writes"),
        (_Forgetful, "test_state_and_records_make_the_state"),
        (_Trusting, "test_changed_slots_are_noticed"),
        (_Curious, "test_a_scan_reads_the_same_whatever_is_there"),
    ],
)
def test_the_contract_rejects_a_broken_scheme(broken: type[LinearORAM], test: str) -> None:
    class Broken(SchemeConformance):
        def make(self, capacity: int, block_size: int, generation: int) -> Scheme:
            g = LinearGeometry.of(capacity, block_size)
            return broken(g, "slots", kernels.serving("linear"), keys("linear", generation))

    arguments: dict[str, list[object]] = {
        "test_state_and_records_make_the_state": [7],
        "test_changed_slots_are_noticed": ["changed"],
    }
    getattr(TestLinear(), test)(*arguments.get(test, []))
    with pytest.raises((AssertionError, TamperedError, pytest.fail.Exception)):
        getattr(Broken(), test)(*arguments.get(test, []))
