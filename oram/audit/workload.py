"""What is asked for: requests to a few hundred records, skewed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from oram.types import I64
from oram.zipf import PUTS, THETA, popularity

__all__ = ["HOTTEST", "RECORDS", "WORKLOADS", "Request", "Workload", "records"]

#: Records of the stores of a page.
RECORDS = 512

_HOT = 0.9  # of all requests, to the hot key
_PLACES: I64 = np.random.default_rng(0).permutation(RECORDS)  # of popular records, so that they are not neighbours
_CHUNK = 256  # numbers drawn at a time
#: The record that "hot key" and "zipf" ask for most.
HOTTEST = int(_PLACES[0])

Numbers: TypeAlias = Callable[[np.random.Generator, int], I64]  # of the next _CHUNK requests, and of the first of them


@dataclass(frozen=True, slots=True)
class Request:
    """One request: a get, or a put of ``value``. record: its number; RECORDS and more are not there."""

    record: int
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked for. misses: every second request is for a record that is not there."""

    name: str
    says: str
    numbers: Numbers
    misses: bool = False

    def requests(self, seed: int) -> Iterator[Request]:
        """Requests without end; the same ones for the same seed."""
        random, first = np.random.default_rng(seed), 0
        while True:
            puts = random.random(_CHUNK) < PUTS
            numbers = self.numbers(random, first).tolist()
            for i, (number, put) in enumerate(zip(numbers, puts.tolist(), strict=True), first):
                if self.misses and i % 2:
                    yield Request(RECORDS + number, _key(RECORDS + number), None)
                else:
                    yield Request(number, _key(number), b"put %d" % i if put else None)
            first += _CHUNK


def records() -> list[tuple[bytes, bytes]]:
    """What the stores hold before the first request."""
    return [(_key(number), b"record %d" % number) for number in range(RECORDS)]


def _key(number: int) -> bytes:
    return b"key %04d" % number


def _zipf(random: np.random.Generator, first: int) -> I64:  # noqa: ARG001 - the same for each
    return _PLACES[random.choice(RECORDS, _CHUNK, p=popularity(RECORDS))]


def _uniform(random: np.random.Generator, first: int) -> I64:  # noqa: ARG001
    return random.integers(0, RECORDS, _CHUNK)


def _hot(random: np.random.Generator, first: int) -> I64:
    return np.where(random.random(_CHUNK) < _HOT, _PLACES[0], _uniform(random, first))


def _scan(random: np.random.Generator, first: int) -> I64:  # noqa: ARG001
    return np.arange(first, first + _CHUNK) % RECORDS


WORKLOADS: dict[str, Workload] = {
    each.name: each
    for each in (
        Workload("hot key", "nine requests in ten are for one record", _hot),
        Workload("zipf", f"a few records are popular and most are not (zipf, theta {THETA})", _zipf),
        Workload("scan", "all records in turn, again and again", _scan),
        Workload("uniform", "each record as often as any other", _uniform),
        Workload("misses", "as zipf, but every second request is for a record that is not there", _zipf, misses=True),
    )
}
