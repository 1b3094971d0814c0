"""Operations of every kind, for the oracles to follow."""

from __future__ import annotations

import random
from contextlib import suppress

from oram.errors import CapacityError, MissingKeyError
from oram.store import ObliviousStore


def mix(store: ObliviousStore, source: random.Random, model: dict[bytes, bytes], turn: int) -> None:
    """One operation of any kind, compared with a dict."""
    keys = [b"%d" % i for i in range(store.capacity * 3 // 2 + 1)]

    def put_many() -> None:
        items = [(source.choice(keys), b"p%d" % turn) for _ in range(source.randrange(1, 9))]
        store.put_many(items)
        model.update(items)

    def delete_many() -> None:
        some = source.choices(keys, k=5) + source.choices(keys[:5], k=3)
        expected = [model.pop(key, None) is not None for key in some]
        assert store.delete_many(some) == expected

    def get_many() -> None:
        some = source.choices(keys, k=6) + source.choices(keys[:5], k=3)
        assert store.get_many(some, size=10) == [model.get(key) for key in some]

    def put() -> None:
        key = source.choice(keys)
        store[key] = b"v%d" % turn
        model[key] = b"v%d" % turn

    def pop() -> None:
        key = source.choice(keys)
        assert store.pop(key, None) == model.pop(key, None)

    def get() -> None:
        key = source.choice(keys)
        assert store.get(key) == model.get(key)

    with suppress(MissingKeyError, CapacityError):
        source.choice([put, put, put, pop, get, get, put_many, put_many, delete_many, get_many])()
