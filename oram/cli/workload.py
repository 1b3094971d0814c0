"""What the demo stores and what it asks for: the Unicode character database, and skewed requests to it."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from oram.zipf import PUTS, THETA, popularity

__all__ = ["PUTS", "THETA", "Request", "characters", "requests"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: a get, or a put of ``value``. record: number of the record, in the order of loading."""

    record: int
    key: bytes
    value: bytes | None


def characters(step: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """Each ``step``-th character that has a name: the name, and what the standard says about the character."""
    named = 0
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        name = unicodedata.name(character, None)
        if name is None:
            continue
        if named % step == 0:
            yield name.encode(), _properties(character).encode()
        named += 1


def _properties(character: str) -> str:
    """Code point, category, bidirectional class, combining class, width, mirrored, numeric value, decomposition."""
    fields = (
        f"U+{ord(character):04X}",
        unicodedata.category(character),
        unicodedata.bidirectional(character) or "-",
        unicodedata.combining(character),
        unicodedata.east_asian_width(character),
        "Y" if unicodedata.mirrored(character) else "N",
        unicodedata.numeric(character, "-"),
        unicodedata.decomposition(character) or "-",
    )
    return ";".join(map(str, fields))


def requests(records: Sequence[tuple[bytes, bytes]], n: int, seed: int) -> list[Request]:
    """``n`` requests: zipf-distributed over the records, which are popular in random order; one in ten is a put."""
    random = np.random.default_rng(seed)
    popular = random.permutation(len(records))
    asked = popular[random.choice(len(records), n, p=popularity(len(records)))].tolist()
    put = (random.random(n) < PUTS).tolist()
    return [Request(at, records[at][0], records[at][1] + b";%d" % i if put[i] else None) for i, at in enumerate(asked)]
