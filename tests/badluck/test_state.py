"""Entries of the client state that were changed, deleted, or replaced by old ones or by one another.

Whatever is done to them, opening the store is a typed error, or the store is exactly what it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

import oram
from oram.errors import IntegrityError, OramError, WrongKeyError
from oram.testing.faults import Crash, Storage
from oram.testing.model import check

from .places import KEY, MODEL, SCHEMES, filled

Entries = dict[bytes, bytes]


def put(storage: Storage, entries: Entries) -> None:
    storage.state.commit(list(entries.items()), [key for key, _ in storage.state.scan(b"")])


def harms(now: Entries, old: Entries) -> Iterator[tuple[str, Entries]]:
    """Each entry deleted, cut, lengthened, emptied, with a bit flipped in several places, older, or another's."""
    rng = random.Random(4)
    keys = sorted(now)
    for key in keys:
        value = now[key]
        name = key[:6].hex()
        yield f"{name} deleted", {k: v for k, v in now.items() if k != key}
        yield f"{name} emptied", {**now, key: b""}
        yield f"{name} cut", {**now, key: value[:-1]}
        yield f"{name} halved", {**now, key: value[: len(value) // 2]}
        yield f"{name} longer", {**now, key: value + b"\0"}
        for at in {0, 3, 4, 11, 12, len(value) - 1, *(rng.randrange(len(value)) for _ in range(3))}:
            if at < len(value):
                flipped = bytearray(value)
                flipped[at] ^= 1 << rng.randrange(8)
                yield f"{name} flipped at {at}", {**now, key: bytes(flipped)}
        if key in old and old[key] != value:
            yield f"{name} older", {**now, key: old[key]}
        other = rng.choice(keys)
        yield f"{name} swapped", {**now, key: now[other], other: value}
    yield "all gone but the header", {b"header": now[b"header"]}
    yield "the header of before", {**now, b"header": old[b"header"]}


@pytest.mark.parametrize("pending", [False, True], ids=["at rest", "crashed"])
@pytest.mark.parametrize("apart", [False, True], ids=["joint", "apart"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_entries(scheme: str, apart: bool, pending: bool) -> None:
    storage = Storage(apart=apart)
    store = filled(backend := storage.connect(), scheme)
    old = dict(storage.state.scan(b""))
    for i in range(12):
        store[b"k%d" % i] = b"new"
    model = {**MODEL, **{b"k%d" % i: b"new" for i in range(12)}}
    if pending:
        backend.faults.arm(2)
        with pytest.raises(Crash):
            store.get(b"k1")
    now = dict(storage.state.scan(b""))
    refused, accepted, rng = 0, 0, random.Random(6)
    messages: set[str] = set()
    for name, entries in harms(now, old):
        if name[:2] == b"p".hex() and rng.random() > 0.15:
            continue  # there are many pieces
        place = storage.copy()
        put(place, entries)
        try:
            store = oram.open(place.connect(), key=KEY, durability="process")
        except OramError as error:
            messages.add(str(error))
            refused += 1
            continue
        try:
            check(store, model, by_access=True)
        except IntegrityError:
            refused += 1
            continue
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        accepted += 1
    assert refused > accepted
    assert not any(word in message for message in messages for word in ("k1", "new", "level", "leaf"))
    put(storage, now)
    check(oram.open(storage.connect(), key=KEY, durability="process"), model)


def test_every_byte_of_the_header() -> None:
    storage = Storage()
    filled(storage.connect(), "linear")
    now = dict(storage.state.scan(b""))
    header = now[b"header"]
    for at in range(len(header)):
        for bit in (1, 0x80):
            changed = bytearray(header)
            changed[at] ^= bit
            put(storage, {**now, b"header": bytes(changed)})
            with pytest.raises((WrongKeyError, IntegrityError)):
                oram.open(storage.connect(), key=KEY)
    for size in range(len(header)):
        put(storage, {**now, b"header": header[:size]})
        with pytest.raises((WrongKeyError, IntegrityError)):
            oram.open(storage.connect(), key=KEY)
    put(storage, now)
    check(oram.open(storage.connect(), key=KEY), MODEL)


def test_a_header_that_asks_for_too_much_work() -> None:
    storage = Storage()
    oram.create(storage.connect(), passphrase="x", capacity=8, block_size=48)
    header = dict(storage.state.scan(b""))[b"header"]
    for old, new in (
        (b'"iterations": 3', b'"iterations": 3000000'),
        (b'"memory_kib": 65536', b'"memory_kib": 99999999'),
    ):
        assert old in header
        text = header[4:].replace(old, new)
        size = int.from_bytes(header[:4], "little") + len(new) - len(old)
        storage.state.commit([(b"header", size.to_bytes(4, "little") + text)])
        with pytest.raises(IntegrityError):
            oram.open(storage.connect(), passphrase="x")


def test_old_salts_bring_no_nonce_back() -> None:
    """A deleted generation is drawn again with another salt, and what it had sealed is refused."""
    storage = Storage()
    store = filled(storage.connect(), "path")
    store.close()
    now = dict(storage.state.scan(b""))
    (latest,) = [max(key for key in now if key[:1] == b"g")]
    put(storage, {key: value for key, value in now.items() if key != latest})
    with pytest.raises(IntegrityError):
        oram.open(storage.connect(), key=KEY)
    put(storage, now)
    store = oram.open(storage.connect(), key=KEY, durability="process")
    salts = [value for key, value in storage.state.scan(b"g")]
    assert len(set(salts)) == len(salts)
    check(store, MODEL)
    assert np.unique([len(salt) for salt in salts]).tolist() == [32]
