"""The contract of ``Scheme`` as a pytest class: what the engine relies on.

A scheme's test module subclasses it and says how to make one. It can add tests and cannot switch any off. Of obliviousness the contract has what is the
same for all schemes: that what is read follows from state and coins, again after a crash, and that a scan does not depend on what is found. A scheme's
simulator, and the broken schemes that it rejects, have to come with the scheme.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from oram.backends import MemoryBackend, SlotRead, Slots
from oram.kernels.base import Op, Requests, TamperedError
from oram.schemes.base import Outcome, Scheme
from oram.testing.conformance import _Conformance

__all__ = ["Driver", "SchemeConformance"]

N, B = 24, 400  # blocks, bytes of one: more than one page, where blocks are sealed together
Asked = tuple[Op, int, bytes]  # operation, address, data


@dataclass
class Driver:
    """A scheme over a backend in memory: the part of the engine that reads and writes, without its journal.

    reads: each read of the last access, in order.
    """

    scheme: Scheme
    backend: MemoryBackend

    def __post_init__(self) -> None:
        self.reads: list[SlotRead] = []
        for region, shape in self.scheme.regions().items():
            self.backend.allocate(region, shape)

    def requests(self, asked: Iterable[Asked], coins: bytes | None = None) -> Requests:
        """A batch, with fresh randomness or the given one."""
        rows = list(asked)
        requests = self.scheme.requests(len(rows))
        for i, (op, address, data) in enumerate(rows):
            requests.ops[i], requests.addresses[i] = op, address
            requests.data[i] = np.frombuffer(data.ljust(self.scheme.block_size, b"\0"), np.uint8)
        requests.toss(os.urandom(requests.coins) if coins is None else coins)
        return requests

    def look_up(self, requests: Requests) -> Outcome:
        """An access up to its commit: its reads, and nothing written yet."""
        self.reads = []
        access = self.scheme.access(requests)
        try:
            read = next(access)
            while True:
                read = access.send(self.read(read))
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome

    def read(self, read: SlotRead) -> Slots:
        """One round trip."""
        self.reads.append(SlotRead(read.region, read.indices.copy(), read.groups))
        return self.backend.read(read.region, read.indices)

    def access(self, asked: Iterable[Asked], coins: bytes | None = None) -> tuple[list[bytes], bytes]:
        """A whole batch: each block as it was before its request, and the record."""
        requests = self.requests(asked, coins)
        outcome = self.look_up(requests)
        self.backend.write_all(outcome.writes)
        return [row.tobytes() for row in requests.out[: requests.m]], outcome.record

    def seen(self) -> list[tuple[str, tuple[int, ...]]]:
        """The reads of the last access: regions and slots."""
        return [(read.region, tuple(read.indices.tolist())) for read in self.reads]


class SchemeConformance(_Conformance):
    """What every scheme does. Override ``make``."""

    _is_contract: ClassVar[bool] = True

    def make(self, capacity: int, block_size: int, generation: int) -> Scheme:
        """A scheme over the arrays of an empty store, the same ones each time, that seals under this generation and opens any."""
        raise NotImplementedError("override `make`")

    def driver(self) -> Driver:
        """An empty store."""
        return Driver(self.make(N, B, 1), MemoryBackend())

    def again(self, driver: Driver, arrays: Iterable[npt.NDArray[Any]], records: Sequence[bytes] = ()) -> Driver:
        """The same slots under a scheme with this client state and the records since, as an opening makes it."""
        scheme, loaded = self.make(N, B, self._generation), list(arrays)
        self._generation += 1
        scheme.grow(len(loaded[-1]))
        for mine, theirs in zip(scheme.arrays(), loaded, strict=True):
            mine[...] = theirs
        scheme.replay(records)
        return Driver(scheme, driver.backend)

    _generation = 2

    def _batch(self, random: np.random.Generator, most: int) -> list[Asked]:
        ops = [Op.READ, Op.WRITE, Op.REMOVE, Op.DUMMY]
        return [
            (ops[random.integers(4)], int(random.integers(N)), random.bytes(B))
            for _ in range(random.integers(1, most + 1))
        ]

    @staticmethod
    def _expected(model: dict[int, bytes], asked: Iterable[Asked]) -> list[bytes | None]:
        """What a batch answers; None where it does not matter."""
        answers: list[bytes | None] = []
        for op, address, data in asked:
            answers.append(None if op == Op.DUMMY else model.get(address, bytes(B)))
            if op == Op.WRITE:
                model[address] = data
            elif op == Op.REMOVE:
                model.pop(address, None)
        return answers

    def _agree(self, answers: list[bytes], expected: Sequence[bytes | None]) -> None:
        assert [a for a, e in zip(answers, expected, strict=True) if e is not None] == [
            e for e in expected if e is not None
        ]

    def _run(self, driver: Driver, batches: int, seed: int) -> dict[int, bytes]:
        random, model = np.random.default_rng(seed), dict[int, bytes]()
        for _ in range(batches):
            asked = self._batch(random, min(5, driver.scheme.max_batch))
            self._agree(driver.access(asked)[0], self._expected(model, asked))
        return model

    # An array

    def test_what_was_never_written_is_zeros(self) -> None:
        driver = self.driver()
        assert driver.access([(Op.READ, N - 1, b"")])[0] == [bytes(B)]

    def test_it_is_an_array(self) -> None:
        driver = self.driver()
        model = self._run(driver, 60, 1)
        for address in range(N):
            assert driver.access([(Op.READ, address, b"")])[0] == [model.get(address, bytes(B))]

    def test_a_batch_is_served_in_order(self) -> None:
        driver = self.driver()
        asked = [(Op.WRITE, 3, b"1" * B), (Op.READ, 3, b""), (Op.REMOVE, 3, b""), (Op.READ, 3, b"")]
        for i in range(0, 4, driver.scheme.max_batch):
            part = asked[i : i + driver.scheme.max_batch]
            self._agree(driver.access(part)[0], [bytes(B), b"1" * B, b"1" * B, bytes(B)][i : i + len(part)])

    def test_in_place_is_the_same(self) -> None:
        driver, random, model = self.driver(), np.random.default_rng(2), dict[int, bytes]()
        for _ in range(30):
            asked = self._batch(random, min(4, driver.scheme.max_batch))
            requests = driver.requests(asked)
            driver.scheme.access_in_place(requests, driver.backend.buffer)
            self._agree([row.tobytes() for row in requests.out[: requests.m]], self._expected(model, asked))
        driver.access([(Op.DUMMY, 0, b"")])

    def test_each_access_is_another_turn(self) -> None:
        driver = self.driver()
        turns = []
        for op in (Op.READ, Op.DUMMY, Op.DUMMY, Op.WRITE, Op.READ):
            turns.append(driver.scheme.turn)
            driver.access([(op, 1, b"x")])
        assert len({*turns, driver.scheme.turn}) == 6

    # Records and recovery

    def test_a_record_is_within_its_size(self) -> None:
        driver, random = self.driver(), np.random.default_rng(3)
        for _ in range(40):
            requests = driver.requests(self._batch(random, min(5, driver.scheme.max_batch)))
            size = driver.scheme.record_size(requests)
            outcome = driver.look_up(requests)
            driver.backend.write_all(outcome.writes)
            assert len(outcome.record) <= size

    def test_the_length_of_a_record_says_no_more_than_its_reads_and_writes(self) -> None:
        """Accesses that read and write as many slots have records of one length, whatever was asked."""
        driver, random = self.driver(), np.random.default_rng(11)
        lengths: dict[tuple[object, ...], set[int]] = {}
        for i in range(120):
            asked = self._batch(random, 1) if i % 2 else [(Op.WRITE, 0, b"hot")]
            outcome = driver.look_up(driver.requests(asked))
            driver.backend.write_all(outcome.writes)
            reads = [(each.region, each.indices.size) for each in driver.reads]
            writes = [(each.region, each.indices.size) for each in outcome.writes]
            lengths.setdefault((tuple(reads), tuple(writes)), set()).add(len(outcome.record))
        assert all(len(found) == 1 for found in lengths.values()), lengths

    @pytest.mark.parametrize("accesses", [1, 7, 40])
    def test_state_and_records_make_the_state(self, accesses: int) -> None:
        """Arrays of an earlier moment, any of them newer than others, and all records since."""
        driver, random = self.driver(), np.random.default_rng(4)
        model = self._run(driver, 5, 5)
        driver = self.again(driver, [a.copy() for a in driver.scheme.arrays()])
        old, records = [a.copy() for a in driver.scheme.arrays()], []
        mixed = list(old)
        for i in range(accesses):
            asked = self._batch(random, min(3, driver.scheme.max_batch))
            answers, record = driver.access(asked)
            self._agree(answers, self._expected(model, asked))
            records.append(record)
            if i == accesses // 2 and [a.shape for a in driver.scheme.arrays()] == [a.shape for a in old]:
                mixed = [
                    a.copy() if j % 2 else b for j, (a, b) in enumerate(zip(driver.scheme.arrays(), old, strict=True))
                ]
        again = self.again(driver, mixed, records)
        for address in range(N):
            assert again.access([(Op.READ, address, b"")])[0] == [model.get(address, bytes(B))]

    def test_an_access_that_broke_off_reads_the_same_again(self) -> None:
        """Without a record: the same requests, with the same coins, on the state before them."""
        driver = self.driver()
        model, random = self._run(driver, 9, 6), np.random.default_rng(7)
        for _ in range(20):
            asked = self._batch(random, min(3, driver.scheme.max_batch))
            before = [a.copy() for a in driver.scheme.arrays()]
            requests = driver.requests(asked)
            coins = requests.draws[: requests.m].tobytes() + requests.seed.tobytes()
            driver.look_up(requests)  # and the client dies
            seen = driver.seen()
            driver = self.again(driver, before)
            answers, _ = driver.access(asked, coins)
            assert driver.seen()[-len(seen) :] == seen  # an opening may read before, what is public, once
            self._agree(answers, self._expected(model, asked))

    def test_a_committed_access_is_made_again_from_its_record(self) -> None:
        """With a record, but without its write: the same reads, and the same effect."""
        driver = self.driver()
        model, random = self._run(driver, 9, 8), np.random.default_rng(9)
        for _ in range(20):
            asked = self._batch(random, min(3, driver.scheme.max_batch))
            before = [a.copy() for a in driver.scheme.arrays()]
            outcome = driver.look_up(driver.requests(asked))  # and the client dies before it writes
            seen = driver.seen()
            self._expected(model, asked)
            driver = self.again(driver, before)
            requests = driver.scheme.redo(outcome.record)
            driver.backend.write_all(driver.look_up(requests).writes)
            assert driver.seen()[-len(seen) :] == seen  # an opening may read before, what is public, once
        for address in range(N):
            assert driver.access([(Op.READ, address, b"")])[0] == [model.get(address, bytes(B))]

    # Scans and builds

    def test_a_scan_finds_all_and_moves_nothing(self) -> None:
        driver = self.driver()
        model = self._run(driver, 40, 10)
        for _ in range(2):
            found: dict[int, bytes] = {}
            for addresses, blocks in driver.scheme.scan(driver.read):
                found |= {int(a): row.tobytes() for a, row in zip(addresses, blocks, strict=True)}
            assert {a: block for a, block in found.items() if any(block)} == {a: b for a, b in model.items() if any(b)}
        assert driver.access([(Op.READ, 0, b"")])[0] == [model.get(0, bytes(B))]

    def test_a_scan_reads_the_same_whatever_is_there(self) -> None:
        views = []
        for blocks in ({}, dict.fromkeys(range(N), b"x" * B)):
            driver = self.driver()
            self._build(driver, blocks)
            driver.reads = []
            for _ in driver.scheme.scan(driver.read):
                pass
            views.append(driver.seen())
        assert views[0] == views[1]

    def test_build(self) -> None:
        driver = self.driver()
        blocks = {a: bytes([a + 1]) * B for a in range(0, N, 2)}
        self._build(driver, blocks)
        for address in [*range(N), *range(N)]:
            assert driver.access([(Op.READ, address, b"")])[0] == [blocks.get(address, bytes(B))]

    def _build(self, driver: Driver, blocks: dict[int, bytes]) -> None:
        rows = np.frombuffer(b"".join(blocks.values()), np.uint8).reshape(-1, B)
        for write in driver.scheme.build(np.array(list(blocks), np.int64), rows):
            driver.backend.write_all([write])

    # An active server

    TAMPERING: ClassVar[dict[str, Callable[[Slots], object]]] = {
        "changed": lambda slots: slots.data[:, -1].__ixor__(1),
        "swapped": lambda slots: slots.data.__setitem__(slice(None), np.roll(slots.data, 1, 0)),
        "withheld": lambda slots: (slots.present.__setitem__(slice(None), 0), slots.data.__setitem__(slice(None), 0))[
            0
        ],
    }

    @pytest.mark.parametrize("how", TAMPERING)
    def test_changed_slots_are_noticed(self, how: str) -> None:
        driver = self.driver()
        self._build(driver, {a: bytes([a + 1]) * B for a in range(N)})
        for region in driver.scheme.regions():
            self.TAMPERING[how](driver.backend.buffer(region))
        with pytest.raises(TamperedError):
            driver.access([(Op.READ, 5, b"")])
