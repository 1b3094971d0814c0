"""What is asked for: the core workloads of YCSB (Cooper et al., SoCC 2010), and traces that were recorded.

Scans are padded: a workload with scans asks for the same number of records each time, as the length of an answer would tell which it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from oram.errors import ParameterError
from oram.types import I64
from oram.zipf import popularity

__all__ = ["SCAN", "WORKLOADS", "Kind", "Recorder", "Request", "Workload", "key_of", "read_trace"]

#: Records that a scan asks for, whatever its length: the longest that YCSB draws.
SCAN = 100

_CHUNK = 1024

Kind: TypeAlias = Literal["get", "put", "delete", "scan"]
KINDS = ("get", "put", "delete", "scan")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. number: of the record; of a scan, of its first. A record that is not there is a miss."""

    kind: Kind
    number: int


def key_of(number: int) -> bytes:
    """The key of a record: 12 bytes."""
    return b"user%08d" % number


@dataclass(frozen=True, slots=True)
class Workload:
    """Shares of reads, updates, inserts, scans and read-modify-writes; and which records are asked for: "zipfian", "latest" or "uniform"."""

    name: str
    says: str
    get: float = 0.0
    update: float = 0.0
    insert: float = 0.0
    scan: float = 0.0
    modify: float = 0.0
    chosen: str = "zipfian"

    def requests(self, records: int, capacity: int, seed: int) -> Iterator[Request]:
        """Requests without end to a store that holds the records 0..records-1 of at most ``capacity``; the same ones for the same seed.

        An insert is a put of the next record; when the store is full it begins again at the first of those that were inserted.
        """
        random, there = np.random.default_rng(seed), records
        order: I64 = random.permutation(records)  # popular records are not neighbours
        popular = np.cumsum(popularity(records)) if self.chosen != "uniform" else None
        shares = np.cumsum([self.get, self.update, self.insert, self.scan, self.modify])
        while True:
            kinds = shares.searchsorted(random.random(_CHUNK) * shares[-1], side="right")
            drawn = random.random(_CHUNK)
            ranks = (
                np.minimum((drawn * records).astype(np.int64), records - 1)
                if popular is None
                else np.minimum(popular.searchsorted(drawn), records - 1)
            )
            for kind, rank in zip(kinds.tolist(), ranks.tolist(), strict=True):
                if kind == 2:
                    yield Request("put", there)
                    there = records if there + 1 >= capacity else there + 1
                    continue
                number = max(0, there - 1 - rank) if self.chosen == "latest" else int(order[rank])
                if kind == 3:
                    yield Request("scan", min(number, max(0, records - SCAN)))
                    continue
                if kind in (0, 4):
                    yield Request("get", number)
                if kind in (1, 4):
                    yield Request("put", number)


WORKLOADS = {
    each.name: each
    for each in (
        Workload("A", "half reads, half updates; zipfian", get=0.5, update=0.5),
        Workload("B", "reads, and one update in 20; zipfian", get=0.95, update=0.05),
        Workload("C", "reads; zipfian", get=1.0),
        Workload("D", "reads of the latest records, and one insert in 20", get=0.95, insert=0.05, chosen="latest"),
        Workload("E", f"scans of {SCAN} records, and one insert in 20; zipfian", scan=0.95, insert=0.05),
        Workload("F", "half reads, half read-modify-writes; zipfian", get=0.5, modify=0.5),
        Workload("uniform", "reads; each record alike", get=1.0, chosen="uniform"),
    )
}


# --- traces


def read_trace(path: Path) -> list[Request]:
    """A recorded trace: a JSON object a line, ``{"op": "get" | "put" | "delete" | "scan", "record": NUMBER}``. ParameterError for anything else."""
    found, at = [], 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                at += 1
                if not line.strip():
                    continue
                match json.loads(line):
                    case {"op": "get" | "put" | "delete" | "scan" as kind, "record": int(number)} if (
                        0 <= number < 1 << 40
                    ):
                        found.append(Request(kind, number))
                    case _:
                        raise ValueError
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ParameterError(f'{path}, line {at}: not {{"op": ..., "record": NUMBER}}') from None
    if not found:
        raise ParameterError(f"{path} has no requests")
    return found


class Recorder:
    """Notes the requests to a store, or any mapping, as a trace: keys become numbers, in the order of their first use, and values are not kept.

        store = Recorder(store)
        ...
        store.save(Path("mine.jsonl"))

    **Which records were asked for is what an oblivious store hides**: keep a trace as you would keep the keys.
    """

    def __init__(self, store: Any) -> None:
        self._store, self._numbers, self.requests = store, dict[bytes, int](), list[Request]()

    def _note(self, kind: Kind, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.requests.append(Request(kind, self._numbers.setdefault(bytes(key), len(self._numbers))))

    def __getitem__(self, key: bytes) -> Any:
        self._note("get", [key])
        return self._store[key]

    def get(self, key: bytes, default: Any = None) -> Any:
        self._note("get", [key])
        return self._store.get(key, default)

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._note("put", [key])
        self._store[key] = value

    def __delitem__(self, key: bytes) -> None:
        self._note("delete", [key])
        del self._store[key]

    def get_many(self, keys: Iterable[bytes], **options: Any) -> Any:
        keys = list(keys)
        self._note("get", keys)
        return self._store.get_many(keys, **options)

    def put_many(self, items: Any, **options: Any) -> Any:
        pairs = list(items.items() if hasattr(items, "items") else items)
        self._note("put", [key for key, _ in pairs])
        return self._store.put_many(pairs, **options)

    def delete_many(self, keys: Iterable[bytes], **options: Any) -> Any:
        keys = list(keys)
        self._note("delete", keys)
        return self._store.delete_many(keys, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def save(self, path: Path) -> None:
        """Write the trace."""
        with path.open("w", encoding="utf-8") as file:
            for request in self.requests:
                file.write(json.dumps({"op": request.kind, "record": request.number}) + "\n")
