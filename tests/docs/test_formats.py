"""Reads real stores by docs/formats.md alone: LMDB and cryptography, nothing of oram but what made the store."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import oram

EMPTY = 0xFFFFFFFF


def derive(secret: bytes, salt: bytes, label: str, context: bytes = b"") -> bytes:
    return HKDF(SHA256(), 32, salt, b"oram/1 " + label.encode() + b"\0" + context).derive(secret)


def dump(path: Path) -> tuple[dict[bytes, bytes], dict[str, tuple[int, int]], dict[str, dict[int, bytes]]]:
    """Client state, regions and slots of an environment."""
    state: dict[bytes, bytes] = {}
    regions: dict[str, tuple[int, int]] = {}
    slots: dict[str, dict[int, bytes]] = {}
    with lmdb.open(str(path), max_dbs=16, readonly=True, lock=False) as env, env.begin() as txn:
        names = {bytes(key) for key, _ in txn.cursor()}
        for key, value in txn.cursor():
            if key.startswith(b"state "):
                state[key[6:]] = value
            elif key.startswith(b"slot "):
                slots[key[5:].decode()] = {0: value}
        if b"regions" in names:
            for key, value in txn.cursor(env.open_db(b"regions", txn=txn, create=False)):
                regions[key.decode()] = struct.unpack("<QQ", value)
        for name in names:
            if name.startswith(b"region "):
                db = env.open_db(name, txn=txn, create=False)
                slots[name[7:].decode()] = {int.from_bytes(key, "big"): value for key, value in txn.cursor(db)}
        for key, value in txn.cursor(env.open_db(b"state", txn=txn, create=False)):
            assert len(key) > 8
            state[key] = value
    slate = path / "oram.slate"
    if slate.exists():
        state |= dict([max(places(slate.read_bytes()))[1:]])
    return state, regions, slots


def places(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(number of the write, key, value) of the places of a slate that are whole."""
    assert len(data) == 2 << 15
    for place in (data[: 1 << 15], data[1 << 15 :]):
        count, key, value = struct.unpack_from("<QII", place)
        end = 16 + key + value
        if count and zlib.crc32(place[:end]) == struct.unpack_from("<I", place, end)[0]:
            yield count, place[16 : 16 + key], place[16 + key : end]


class Reader:
    """A store, read by its documented formats."""

    def __init__(
        self,
        state: dict[bytes, bytes],
        regions: dict[str, tuple[int, int]],
        slots: dict[str, dict[int, bytes]],
        user: bytes | str,
    ) -> None:
        self.state, self.regions, self.slots = state, regions, slots
        self._header(user)
        self.inc = int.from_bytes(state[b"meta"][:4], "big")
        inc = self.inc.to_bytes(4, "big")
        self.inc_key = inc
        self.where = self.store + struct.pack("<I", self.inc) + self.header["cipher"].encode()
        self.salts = {int.from_bytes(k[5:], "big"): v for k, v in state.items() if k[:5] == b"g" + inc}
        names = (
            "layout",
            "cursor",
            "sequence",
            "growth",
            "newest",
            "generations",
            "salts",
            "sparse",
            "dirty",
            "backup",
        )
        plain = self.open(state[b"meta"][4:], b"meta")
        self.meta = dict(zip(names, struct.unpack("<QQQQ16sI32s???", plain), strict=True))
        salts = b"".join(self.salts[g] for g in range(1, self.meta["generations"] + 1))
        assert self.meta["salts"] == hashlib.sha256(salts).digest()

    def _header(self, user: bytes | str) -> None:
        blob = self.state[b"header"]
        (n,) = struct.unpack_from("<I", blob)
        text, nonce, box = blob[4 : 4 + n], blob[4 + n : 16 + n], blob[16 + n :]
        assert text[:8] == bytes.fromhex("4f52414d00010d0a")
        assert len(box) == 48
        assert self.slots["header"][0] == blob.ljust(4096, b"\0")
        self.header: dict[str, Any] = json.loads(text[8:])
        assert text[8:] == json.dumps(self.header, sort_keys=True).encode()
        kdf = self.header["kdf"]
        salt = bytes.fromhex(kdf["salt"])
        if isinstance(user, bytes):
            assert kdf["name"] == "hkdf-sha256"
            wrap = derive(user, salt, "wrap")
        else:
            assert kdf["name"] == "argon2id"
            wrap = Argon2id(
                salt=salt, length=32, iterations=kdf["iterations"], lanes=kdf["lanes"], memory_cost=kdf["memory_kib"]
            ).derive(user.encode())
        self.secret = AESGCM(wrap).decrypt(nonce, box, text)
        self.store = bytes.fromhex(self.header["store"])

    def open(self, blob: bytes, what: bytes) -> bytes:
        generation, counter = struct.unpack_from("<IQ", blob)
        key = derive(self.secret, self.salts[generation], "state", self.where + struct.pack("<I", generation))
        return AESGCM(key).decrypt(counter.to_bytes(12, "little"), blob[12:], what)

    def page(self, slot: int, reference: int, *, region: str = "slots", first: int = 0) -> bytes:
        """first: what the numbers of the region's slots begin with in associated data."""
        generation = reference >> 32
        key = derive(self.secret, self.salts[generation], "pages", self.where + struct.pack("<I", generation))
        nonce = (reference & (1 << 32) - 1).to_bytes(12, "little")
        return AESGCM(key).decrypt(nonce, self.slots[f"{region}.{self.inc}"][slot], struct.pack("<Q", first + slot))

    def tag(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, digest_size=16, key=derive(self.secret, self.store, "tag")).digest()

    def stream(self, label: str, size: int) -> bytes:
        key = derive(self.secret, self.salts[1], label, self.where + struct.pack("<I", 1))
        return Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(size))

    def clock(self, shard: int = 0) -> int:
        slot = self.slots[f"clock.{self.inc}"][shard]
        assert len(slot) == 64
        assert not any(slot[36:])
        return int.from_bytes(self.open(slot[:36], b"clock%d" % shard if shard else b"clock"), "little")

    def intent(self) -> tuple[int, int, int, bytes, tuple[int, ...], tuple[int, ...]]:
        plain = self.open(self.state[b"i" + self.inc_key], b"intent")
        sequence, m, note = struct.unpack_from("<QII", plain)
        assert len(plain) == 16 + 9 * m + (32 if self.header["scheme"] in ("ring", "cuckoo") else 0)
        addresses, draws = struct.unpack_from(f"<{m}I", plain, 16 + m), struct.unpack_from(f"<{m}I", plain, 16 + 5 * m)
        return sequence, m, note, plain[16 : 16 + m], addresses, draws

    def write_back(self) -> dict[tuple[str, int], bytes]:
        """What `w` says is to be written, by region and slot."""
        plain, at, written = self.open(self.state[b"w" + self.inc_key + bytes(8)], b"write-back"), 8, {}
        assert int.from_bytes(plain[:8], "little") == self.meta["sequence"]
        while at < len(plain):
            name, n, size = struct.unpack_from("<HQQ", plain, at)
            region = plain[at + 18 : at + 18 + name].decode()
            at += 18 + name
            indices = struct.unpack_from(f"<{n}q", plain, at)
            for i, index in enumerate(indices):
                written[region, index] = plain[at + 8 * n + i * size :][:size]
            at += n * (8 + size)
        return written

    def ring(self, initial: bytes, record: int) -> tuple[bytearray, list[tuple[int, bytes, bytes]]]:
        """The arrays, and (sequence, record, note) in order. initial: the arrays of a new store."""
        around = 36 + 28
        pages = -(-(record + around + 16 + 1500) // 4096)
        length = (2008 if record <= 1200 else 4096 * pages - 16) - around - record
        arrays, found = bytearray(initial), {}
        n, cursor = -(-len(initial) // length), self.meta["cursor"]
        tag: bytes | None = bytes(16) if cursor <= n else None
        turns = {i: 0 if cursor <= i else cursor - (cursor - 1 - i) % n for i in range(n)}
        for i, turn in sorted(turns.items(), key=lambda item: item[1]):
            key = b"p" + self.inc_key + struct.pack(">Q", i)
            if self.meta["sparse"] and turn == 0:
                assert key not in self.state
                continue
            plain = self.open(self.state[key], b"entry%d/%d/%d" % (self.meta["layout"], i, turn))
            sequence, before, piece, size, note = struct.unpack_from("<Q16sIII", plain)
            assert len(plain) == 36 + piece + size + note
            assert tag is None or not turn or before == tag, "each entry names the one before it"
            tag = self.state[key][-16:] if turn else None if cursor > n else bytes(16)
            assert piece == min(length, len(initial) - i * length)
            arrays[i * length : i * length + piece] = plain[36 : 36 + piece]
            if sequence:
                found[sequence] = plain[36 + piece : 36 + piece + size], plain[36 + piece + size :]
            else:
                assert (size, note) == (0, 0)
        assert not cursor or tag == self.meta["newest"]
        return arrays, [(sequence, *found[sequence]) for sequence in sorted(found)]


def apply_note(tags: dict[int, bytes], note: bytes) -> None:
    tags |= {record: tag for record, tag in struct.iter_unpack("<I16s", note) if record != EMPTY}


def unpack(record: bytes) -> tuple[bytes, bytes]:
    used, key, value = struct.unpack_from("<BHI", record)
    assert used == 1
    assert not any(record[7 + key + value :])
    return record[7 : 7 + key], record[7 + key : 7 + key + value]


@dataclass
class Tree:
    """Every block of a Path store, and what the client knows."""

    blocks: dict[int, bytes]
    tags: dict[int, bytes]
    in_pool: set[int]
    pages: int
    records: int
    requests: int = 0


def read_path(reader: Reader) -> Tree:
    h = reader.header
    Z, L, T, B, N, k = h["Z"], h["L"], h["T"], h["block_size"], h["blocks"], h["blocks_per_value"]
    high, growth, records = h["h"], reader.meta["growth"], N // k
    buckets = (1 << high) - 1
    h0 = (L + 1) % high if T == 0 and (L + 1) % high else high
    roots = [T]
    while roots[-1] + (high if len(roots) > 1 else h0) <= L:
        roots.append(roots[-1] + (high if len(roots) > 1 else h0))
    offsets = [sum(1 << root for root in roots[:j]) for j in range(len(roots) + 1)]
    plain = (8 << high) + buckets * Z * (8 + B)
    assert reader.regions[f"slots.{reader.inc}"] == (offsets[-1], plain + 16)

    stream = reader.stream("positions", 4 * N)
    first = struct.pack(f"<{N}I", *(p % (1 << L) for p in struct.unpack(f"<{N}I", stream)))
    tags_size = 16 * records if h["keyed"] else 0
    empty = bytes(tags_size) + first + bytes(8 << T) + b"\xff" * (4 * growth) + bytes(B * growth)
    usual = 16 + k * (13 + B + len(roots) * (8 + 4 * buckets * Z)) + (20 if h["keyed"] else 0)
    arrays, log = reader.ring(empty, usual)

    at = tags_size
    tags = {i: bytes(arrays[16 * i : 16 * i + 16]) for i in range(tags_size // 16)}
    position = list(struct.unpack_from(f"<{N}I", arrays, at))
    refs = list(struct.unpack_from(f"<{1 << T}Q", arrays, at := at + 4 * N))
    pool_addr = list(struct.unpack_from(f"<{growth}I", arrays, at := at + (8 << T)))
    pool = [bytes(arrays[at + 4 * growth + B * q :][:B]) for q in range(growth)]

    for _, record, note in log:
        m, pages, reference = struct.unpack_from("<IIQ", record)
        form = struct.Struct(f"<IIQ{m}B{m}I{m}I{m}I{m * B}s{pages}q{pages * buckets * Z}I")
        values = list(form.unpack(record))[3:]
        where, addresses, draws, slots_of = (values[i * m : i * m + m] for i in range(4))
        after, slots, placed = values[4 * m], values[4 * m + 1 : 4 * m + 1 + pages], values[4 * m + 1 + pages :]
        assert slots == sorted(slots)
        gone = {a for a in placed if a != EMPTY}
        for r in range(m):
            if where[r]:
                position[addresses[r]] = draws[r] % (1 << L)
                gone.add(addresses[r])
        pool_addr = [EMPTY if a in gone else a for a in pool_addr]
        for r in range(m):
            if where[r] == 3:
                pool_addr[slots_of[r]], pool[slots_of[r]] = addresses[r], after[r * B : r * B + B]
        for i, slot in enumerate(s for s in slots if s < 1 << T):
            refs[slot] = reference + i
        apply_note(tags, note)

    blocks: dict[int, bytes] = {}
    opened = 0
    layer = dict(enumerate(refs))
    for j, root in enumerate(roots):
        height, below = (high if j else h0), {}
        for prefix, reference in layer.items():
            if not reference:
                continue
            page = reader.page(offsets[j] + prefix, reference)
            opened += 1
            assert len(page) == plain
            children = struct.unpack_from(f"<{1 << high}Q", page)
            assert not any(children[1 << height :])
            meta = struct.unpack_from(f"<{2 * buckets * Z}I", page, 8 << high)
            for z in range(buckets * Z):
                address, leaf = meta[2 * z : 2 * z + 2]
                block = page[(8 << high) + 8 * buckets * Z + z * B :][:B]
                if address == EMPTY:
                    assert not any(block)
                    continue
                depth = (z // Z + 1).bit_length() - 1
                bucket = (prefix << depth) + z // Z + 1 - (1 << depth)
                assert depth < height
                assert leaf >> (L - root - depth) == bucket, "a block lies on the path of its leaf"
                assert leaf == position[address]
                assert address not in blocks
                blocks[address] = block
            for turn, child in enumerate(children[: 1 << height]):
                below[(prefix << height) + turn] = child
        layer = below
    in_pool = set()
    for q, address in enumerate(pool_addr):
        if address != EMPTY:
            assert address not in blocks
            blocks[address] = pool[q]
            in_pool.add(address)
    return Tree(blocks, tags, in_pool, opened, len(log))


@dataclass
class Ring:
    """What a header says of a Ring tree, and its numbers."""

    Z: int
    A: int
    S: int
    L: int
    T: int
    B: int
    N: int
    k: int
    client: bool

    @classmethod
    def of(cls, h: dict[str, Any]) -> Ring:
        tree = {name: h[name] for name in ("Z", "A", "S", "L", "T")}
        return cls(**tree, B=h["block_size"], N=h["blocks"], k=h["blocks_per_value"], client=h["metadata"] == "client")

    @property
    def n(self) -> int:
        return self.Z + self.S

    @property
    def words(self) -> int:
        return -(-self.n // 64)

    @property
    def levels(self) -> int:
        return self.L + 1 - self.T

    @property
    def buckets(self) -> int:
        return (2 << self.L) - (1 << self.T)

    def on_path(self, leaf: int) -> list[int]:
        return [(1 << level) + (leaf >> (self.L - level)) - (1 << self.T) for level in range(self.T, self.L + 1)]

    def usual(self) -> int:
        """Bytes of the record of an ordinary access."""
        most = (self.k + -(-self.k // self.A)) * self.levels
        rows = (
            2 * self.k * self.levels + most * (8 + 6 * self.Z)
            if self.client
            else 4 * self.Z * most + 8 * min(most, 1 << self.T)
        )
        return 68 + self.k * (17 + self.B) + rows


@dataclass
class Row:
    """Metadata of a bucket."""

    reference: int
    spent: int
    addresses: list[int]
    slots: list[int]

    def live(self) -> Iterator[tuple[int, int]]:
        """(address, slot) of the blocks that are there."""
        if self.reference:
            for address, slot in zip(self.addresses, self.slots, strict=True):
                if address != EMPTY and not self.spent >> slot & 1:
                    yield address, slot


class Cut:
    """Reads one part after the other."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.at = bytes(data), 0

    def __call__(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def done(self) -> bool:
        return self.at == len(self.data)


def ring_arrays(
    reader: Reader, g: Ring
) -> tuple[dict[int, bytes], list[int], int, dict[int, Row], list[int], list[int], list[bytes], int]:
    """Tags, positions, clock, rows, references of level T, pool addresses and blocks, number of records; all records applied."""
    Z, W, growth, tags_size = g.Z, g.words, reader.meta["growth"], 16 * (g.N // g.k) if reader.header["keyed"] else 0
    stream = reader.stream("positions", 4 * g.N)
    first = struct.pack(f"<{g.N}I", *(p % (1 << g.L) for p in struct.unpack(f"<{g.N}I", stream)))
    rows_size = g.buckets * (8 + 8 * W + 6 * Z) if g.client else 8 << g.T
    empty = bytes(tags_size) + first + bytes(8 + rows_size) + b"\xff" * (4 * growth) + bytes(g.B * growth)
    arrays, log = reader.ring(empty, g.usual() + (20 if tags_size else 0))

    cut = Cut(arrays)
    tags = {i: cut("16s")[0] for i in range(tags_size // 16)}
    position, (clock,) = list(cut(f"{g.N}I")), cut("Q")
    rows, tops = {}, []
    if g.client:
        references = cut(f"{g.buckets}Q")
        spent = [int.from_bytes(cut(f"{8 * W}s")[0], "little") for _ in range(g.buckets)]
        addresses = [list(cut(f"{Z}I")) for _ in range(g.buckets)]
        rows = {b: Row(references[b], spent[b], addresses[b], list(cut(f"{Z}H"))) for b in range(g.buckets)}
    else:
        tops = list(cut(f"{1 << g.T}Q"))
    pool_addr = list(cut(f"{growth}I"))
    pool = [cut(f"{g.B}s")[0] for _ in range(growth)]
    assert cut.done()

    for _, record, note in log:
        cut = Cut(record)
        m, r, t, clock, reference, row_reference = cut("IIIQQQ")
        cut("32s")
        where, asked, draws, leaves, at = cut(f"{m}B"), cut(f"{m}I"), cut(f"{m}I"), cut(f"{m}I"), cut(f"{m}I")
        after = [cut(f"{g.B}s")[0] for _ in range(m)]
        online = [cut(f"{g.levels}H") for _ in range(m)] if g.client else []
        written = cut(f"{r}q") if g.client else ()
        placed = [list(cut(f"{Z}I")) for _ in range(r)]
        slots = [list(cut(f"{Z}H")) for _ in range(r)] if g.client else []
        top = cut(f"{t}q")
        assert cut.done()
        assert list(written) == sorted(written)
        assert t == 0 or not g.client
        for leaf, read in zip(leaves, online, strict=g.client):
            for b, slot in zip(g.on_path(leaf), read, strict=True):
                if slot < g.n:
                    rows[b].spent |= 1 << slot
        for i, b in enumerate(written):
            rows[b] = Row(reference + i * g.n, 0, placed[i], slots[i])
        for i, b in enumerate(top):
            tops[b] = row_reference + i
        gone = {a for some in placed for a in some} - {EMPTY}
        for i in range(m):
            if where[i]:
                position[asked[i]] = draws[i] % (1 << g.L)
                gone.add(asked[i])
        pool_addr = [EMPTY if a in gone else a for a in pool_addr]
        for i in range(m):
            if where[i] == 3:
                pool_addr[at[i]], pool[at[i]] = asked[i], after[i]
        apply_note(tags, note)
    return tags, position, clock, rows, tops, pool_addr, pool, len(log)


def ring_rows(reader: Reader, g: Ring, tops: list[int]) -> dict[int, Row]:
    """The rows that lie at the server, from level T down."""
    W, Z, size = g.words, g.Z, 8 * (3 + g.words) + 6 * g.Z
    assert reader.regions[f"meta.{reader.inc}"] == (g.buckets, size + 16)
    rows, level = {}, dict(enumerate(tops))
    while level:
        below: dict[int, int] = {}
        for b, reference in level.items():
            if not reference:
                continue
            cut = Cut(reader.page(b, reference, region="meta", first=g.buckets * g.n))
            children, (of_slots,) = cut("QQ"), cut("Q")
            spent = int.from_bytes(cut(f"{8 * W}s")[0], "little")
            rows[b] = Row(of_slots, spent, list(cut(f"{Z}I")), list(cut(f"{Z}H")))
            assert cut.done()
            heap = b + (1 << g.T)
            if heap >> g.L:
                assert children == (0, 0)
            else:
                below |= {2 * heap + side - (1 << g.T): child for side, child in enumerate(children)}
        level = below
    return rows


def read_ring(reader: Reader) -> Tree:
    g = Ring.of(reader.header)
    assert reader.regions[f"slots.{reader.inc}"] == (g.buckets * g.n, g.B + 16)
    tags, position, clock, rows, tops, pool_addr, pool, records = ring_arrays(reader, g)
    if not g.client:
        rows = ring_rows(reader, g, tops)
    blocks: dict[int, bytes] = {}
    opened = 0
    for b, row in rows.items():
        if not row.reference:
            assert not any(slot in reader.slots[f"slots.{reader.inc}"] for slot in range(b * g.n, b * g.n + g.n))
            continue
        assert row.spent >> g.n == 0
        live = dict(row.live())
        assert len({*live.values()}) == len(live)
        for slot in range(g.n):
            block = reader.page(b * g.n + slot, row.reference + slot)
            opened += 1
            assert slot in row.slots or not any(block), "a dummy is zeros"
        for address, slot in live.items():
            assert b in g.on_path(position[address]), "a block lies on the path of its leaf"
            assert address not in blocks
            blocks[address] = reader.page(b * g.n + slot, row.reference + slot)
    in_pool = set()
    for q, address in enumerate(pool_addr):
        if address != EMPTY:
            assert address not in blocks
            blocks[address] = pool[q]
            in_pool.add(address)
    return Tree(blocks, tags, in_pool, opened, records, clock)


@dataclass(frozen=True)
class Epoch:
    """A table of a hierarchy. number: the flush at which its rebuild began. first: its first slot."""

    level: int
    number: int
    first: int


class Hierarchy:
    """What a header says of a Cuckoo store: where its tables are, and which of them hold something at a clock."""

    STASH = 32

    def __init__(self, h: dict[str, Any]) -> None:
        self.N, self.B, self.k = int(h["blocks"]), int(h["block_size"]), int(h["blocks_per_value"])
        self.c, self.L, self.eps = int(h["c"]), int(h["L"]), int(h["eps"])
        self.none, self.amortized = h.get("index") == "none", h["rebuild"] == "amortized"
        self.n = [self.c << level for level in range(self.L)] + [self.N]
        assert all(n < 4096 for n in self.n), "of one pass: a table is one bin"
        self.m = [-(-n * (1000 + self.eps) // 1000) for n in self.n]
        self.place: dict[tuple[int, int], int] = {}
        at = 0
        for level in range(self.L + 1):
            for last in range(level + 1, self.L + 1) if level < self.L else (0, 1):
                self.place[level, last] = at
                at += 2 * self.m[level] + self.STASH
        self.slots = at
        self.D = 1 if self.amortized else (self.c << self.L) // 4

    def consumer(self, flush: int) -> int:
        return min((flush & -flush).bit_length() - 1, self.L)

    def ready(self, flush: int) -> int:
        """The clock from which on the table is there whose rebuild began at a flush."""
        return flush * self.c + (1 if self.amortized else (self.c << self.consumer(flush)) // 4)

    def alive(self, clock: int, built: bool) -> list[Epoch]:
        """The newest first."""
        found: dict[int, list[Epoch]] = {self.L: [Epoch(self.L, 0, self.place[self.L, 0])] if built else []}
        for flush in range(1, clock // self.c + 1):
            if self.ready(flush) > clock:
                continue
            level = self.consumer(flush)
            found |= {below: [] for below in range(level)}
            if level < self.L:
                after = flush + (1 << level)
                last = min((after & -after).bit_length() - 1, self.L)
            else:
                last = (flush >> self.L) % 2
            found.setdefault(level, [])
            found[level] = [*(found[level] if level < self.L else []), Epoch(level, flush, self.place[level, last])]
        return sorted((epoch for each in found.values() for epoch in each), key=lambda epoch: -epoch.number)

    def page(self, flush: int) -> int:
        """The top buffer that fills until a flush."""
        return self.consumer(flush)

    def covers(self, epoch: Epoch, flush: int) -> bool:
        """Whether a table has what was asked for in the buffer of this flush."""
        if epoch.level == self.L:
            return flush <= epoch.number
        return epoch.number - (1 << epoch.level) < flush <= epoch.number


def read_hierarchy(reader: Reader) -> Tree:
    g = Hierarchy(reader.header)
    N, B, c, D, rows, keyed = g.N, g.B, g.c, g.D, (g.L + 1) * g.c, reader.header["keyed"]
    assert reader.regions[f"slots.{reader.inc}"] == (g.slots, B + 28)
    tags_size = 16 * (N // g.k) if keyed else 0
    empty = bytes(tags_size) + (b"" if g.none else bytes(2 * N)) + bytes(16)
    empty += (b"" if g.none else b"\xff" * (4 * D) + bytes(2 * D)) + b"\xff" * (4 * rows) + bytes(B * rows)
    assert reader.meta["growth"] == g.L + 1
    usual = 44 + g.k * ((5 if g.none else 7) + B) + (20 if keyed else 0)
    arrays, log = reader.ring(empty, usual)

    cut = Cut(arrays)
    tags = {i: cut("16s")[0] for i in range(tags_size // 16)}
    codes = [] if g.none else list(cut(f"{N}H"))
    clock, built = cut("QQ")
    if not g.none:
        cut(f"{D}I"), cut(f"{D}H")
    words = list(cut(f"{rows}I"))
    held = [cut(f"{B}s")[0] for _ in range(rows)]
    assert cut.done()
    for _, record, note in log:
        cut = Cut(record)
        m, before = cut("IQ")
        cut("32s")
        where, asked = cut(f"{m}B"), cut(f"{m}I")
        if not g.none:
            cut(f"{m}H")
        after = [cut(f"{B}s")[0] for _ in range(m)]
        assert cut.done()
        for k, (kind, address, block) in enumerate(zip(where, asked, after, strict=True), before):
            row = g.page(k // c + 1) * c + k % c
            if g.none:
                words[row] = EMPTY if kind == 0 else address | (1 << 27 if kind == 1 else 0)
            else:
                words[row] = address if kind == 3 else EMPTY
                if kind:
                    codes[address] = 2 + k // c % 65534 if kind == 3 else 0
            held[row] = block
        clock = before + m
        apply_note(tags, note)

    alive = g.alive(clock, bool(built))
    entries = {epoch: dict(entries_of(reader, g, epoch)) for epoch in alive}
    opened = sum(2 * g.m[epoch.level] + g.STASH for epoch in alive)
    # each flush, and the newest row of each address in its buffer
    buffers = [
        {
            words[row] & (1 << 27) - 1: (words[row], held[row])
            for row in range(first, first + size)
            if words[row] != EMPTY
        }
        for flush in range(1, clock // c + 2)
        for first, size in [(g.page(flush) * c, clock % c if flush == clock // c + 1 else c)]
    ]
    blocks: dict[int, bytes] = {}
    if g.none:
        known: set[int] = set()
        loose = [f for f in range(clock // c + 1, 0, -1) if not any(g.covers(epoch, f) for epoch in alive)]
        searched: list[tuple[int, dict[int, tuple[int, bytes]]]] = [(f, buffers[f - 1]) for f in loose]
        searched += [(epoch.number, entries[epoch]) for epoch in alive]
        for _, found in sorted(searched, key=lambda each: -each[0]):
            for address, (word, block) in found.items():
                if address not in known and not word >> 27:
                    blocks[address] = block
            known |= set(found)
        return Tree(blocks, tags, set(), opened, len(log), clock)
    for address, code in enumerate(codes):
        if not code:
            continue
        flush = 0 if code == 1 else code - 2 + 1
        home = next((epoch for epoch in alive if g.covers(epoch, flush)), None)
        word, block = (buffers[flush - 1] if home is None else entries[home])[address]
        assert word == address
        blocks[address] = block
    return Tree(blocks, tags, set(), opened, len(log), clock)


def entries_of(reader: Reader, g: Hierarchy, epoch: Epoch) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """Of a table: address, word and block. Each lies in one of its cells, or in the stash."""
    m, region = g.m[epoch.level], reader.slots[f"slots.{reader.inc}"]
    label = f"hash {reader.j}" if isinstance(reader, Shard) and reader.j else "hash"
    key = derive(reader.secret, reader.salts[1], label, reader.where + struct.pack("<I", 1))
    for at in range(2 * m + g.STASH):
        slot = epoch.first + at
        (reference,) = struct.unpack_from("<Q", region[slot])
        page = derive(
            reader.secret, reader.salts[reference >> 32], "pages", reader.where + struct.pack("<I", reference >> 32)
        )
        nonce, data = (
            (reference & (1 << 32) - 1).to_bytes(12, "little"),
            struct.pack("<Q", epoch.number * g.slots + slot),
        )
        plain = AESGCM(page).decrypt(nonce, region[slot][8:], data)
        word, block = struct.unpack(f"<I{g.B}s", plain)
        if word == EMPTY or word >> 27:
            assert not any(block)
        if word == EMPTY:
            continue
        address = word & (1 << 27) - 1
        hashed = Cipher(AES(key), ECB()).encryptor().update(struct.pack("<IIQ", address, epoch.level, epoch.number))
        cells = [x * m >> 64 for x in struct.unpack("<QQ", hashed)]
        assert at >= 2 * m or at // 2 == cells[at % 2], "an entry lies in one of its cells"
        yield address, (word, block)


def content(tree: Tree, reader: Reader) -> dict[bytes, bytes]:
    k, found = reader.header["blocks_per_value"], {}
    for record, tag in tree.tags.items():
        if any(tag):
            key, value = unpack(b"".join(tree.blocks[record * k + i] for i in range(k)))
            assert tag == reader.tag(key)
            found[key] = value
    return found


KEY = bytes(range(32))
WORLDS: dict[str, dict[str, Any]] = {
    "all at the server": {"tree_top": 0},
    "one page a bucket": {"tree_top": 0, "scheme": oram.PathParams(page_levels=1)},
    "short first layer": {"tree_top": 0, "scheme": oram.PathParams(page_levels=4)},
    "tree-top": {"tree_top": 3000},
    "records of blocks": {"tree_top": 0, "blocks_per_value": 3, "capacity": 40},
    "large blocks": {"tree_top": 0, "block_size": 1500, "capacity": 40},
    "small and in memory": {"capacity": 20},
}


@pytest.mark.parametrize("world", WORLDS)
def test_a_path_store(world: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "capacity": 150,
        "block_size": 96,
        "scheme": "path",
        "key": KEY,
        "durability": "process",
        **WORLDS[world],
    }
    place, model = f"lmdb:{tmp_path / 'store'}", {}
    with oram.create(place, **given) as store:
        for i in range(60):
            key = b"k%d" % (i % 17)
            store[key] = model[key] = b"value %d" % i
    with oram.open(place, key=KEY, durability="process") as store:
        store.put_many({b"x%d" % i: b"y" * i for i in range(3)})
        model |= {b"x%d" % i: b"y" * i for i in range(3)}
        del store[b"k3"], model[b"k3"]
        assert store.get(b"nobody") is None
    reader = Reader(*dump(tmp_path / "store"), KEY)
    tree = read_path(reader)
    assert content(tree, reader) == model
    assert tree.pages > 1
    assert tree.records >= 1
    assert reader.meta["sequence"] == reader.clock() == 63
    assert set(reader.salts) == {1, 2}
    assert reader.header["scheme"] == "path"
    sequence, m, note, ops, _, _ = reader.intent()
    assert (sequence, m, note) == (63, given.get("blocks_per_value", 1), 20)
    assert ops == bytes([3]) * m, "a miss is a dummy"


def test_the_tree_top_is_in_the_pool(tmp_path: Path) -> None:
    with oram.create(
        f"lmdb:{tmp_path / 's'}", key=KEY, capacity=150, block_size=96, scheme="path", tree_top=3000
    ) as store:
        for i in range(150):
            store[b"%d" % i] = b"v"
    reader = Reader(*dump(tmp_path / "s"), KEY)
    assert reader.header["T"] > 0
    tree = read_path(reader)
    assert tree.in_pool
    assert len(content(tree, reader)) == 150


def test_a_bulk_load_and_a_passphrase(tmp_path: Path) -> None:
    items = {b"k%d" % i: b"v%d" % i for i in range(100)}
    with oram.create(
        f"lmdb:{tmp_path / 's'}",
        passphrase="ä passphrase",
        capacity=120,
        block_size=64,
        scheme="path",
        tree_top=0,
        items=items,
    ) as store:
        store.load({b"more": b"1"})
        store.rekey(passphrase="another")
    reader = Reader(*dump(tmp_path / "s"), "another")
    assert reader.inc == 3
    assert set(reader.regions) == {"header", "clock.3", "slots.3"}
    assert content(read_path(reader), reader) == items | {b"more": b"1"}
    assert (reader.meta["cursor"], reader.meta["sparse"]) == (0, False)


def test_a_backup_is_marked(tmp_path: Path) -> None:
    with oram.create(f"lmdb:{tmp_path / 's'}", key=KEY, capacity=20, block_size=64, scheme="path", tree_top=0) as store:
        store[b"a"] = b"1"
        store.backup(tmp_path / "b")
    reader = Reader(*dump(tmp_path / "b"), KEY)
    assert reader.meta["backup"]
    assert content(read_path(reader), reader) == {b"a": b"1"}


RINGS: dict[str, dict[str, Any]] = {
    "all at the server": {},
    "large buckets": {"scheme": oram.RingParams(Z=32)},
    "tree-top": {"tree_top": 3000},
    "records of blocks": {"blocks_per_value": 3, "capacity": 40},
    "large blocks": {"block_size": 1500, "capacity": 40},
}


@pytest.mark.parametrize("world", RINGS)
def test_a_ring_store(world: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "capacity": 150,
        "block_size": 96,
        "scheme": oram.RingParams(Z=4),
        "tree_top": 0,
        "key": KEY,
        "durability": "process",
        **RINGS[world],
    }
    model = drive(tmp_path / "store", given)
    reader = Reader(*dump(tmp_path / "store"), KEY)
    tree = read_ring(reader)
    assert content(tree, reader) == model
    assert tree.pages > 1
    assert tree.records >= 1
    assert reader.meta["sequence"] == reader.clock() == 63
    sequence, m, note, ops, _, _ = reader.intent()
    assert (sequence, m, note) == (63, given.get("blocks_per_value", 1), 20)
    assert tree.requests == 65 * m, "a batch counts as its requests"
    assert ops == bytes([3]) * m, "a miss is a dummy"


def drive(place: Path, given: dict[str, Any]) -> dict[bytes, bytes]:
    """Some work on a new store; its content."""
    model = {}
    with oram.create(f"lmdb:{place}", **given) as store:
        for i in range(60):
            key = b"k%d" % (i % 17)
            store[key] = model[key] = b"value %d" % i
    with oram.open(f"lmdb:{place}", key=KEY, durability="process") as store:
        store.put_many({b"x%d" % i: b"y" * i for i in range(3)})
        model |= {b"x%d" % i: b"y" * i for i in range(3)}
        del store[b"k3"], model[b"k3"]
        assert store.get(b"nobody") is None
    return model


@pytest.mark.parametrize("tree_top", [0, 3000])
def test_a_ring_store_with_metadata_at_the_server(tree_top: int, tmp_path: Path) -> None:
    params = oram.RingParams(Z=4, metadata="server", xor=False)
    given = {"capacity": 150, "block_size": 96, "scheme": params, "key": KEY, "durability": "process"}
    model = drive(tmp_path / "store", {**given, "tree_top": tree_top})
    reader = Reader(*dump(tmp_path / "store"), KEY)
    assert (reader.header["metadata"], reader.header["xor"]) == ("server", False)
    assert content(read_ring(reader), reader) == model


@pytest.mark.parametrize("metadata", ["client", "server"])
def test_a_bulk_load_of_a_ring_store(metadata: Any, tmp_path: Path) -> None:
    items = {b"k%d" % i: b"v%d" % i for i in range(100)}
    params = oram.RingParams(Z=8, metadata=metadata)
    with oram.create(
        f"lmdb:{tmp_path / 's'}", key=KEY, capacity=120, block_size=64, scheme=params, tree_top=0, items=items
    ) as store:
        store.load({b"more": b"1"})
    reader = Reader(*dump(tmp_path / "s"), KEY)
    assert set(reader.regions) == {"header", "clock.2", "slots.2"} | ({"meta.2"} if metadata == "server" else set())
    tree = read_ring(reader)
    assert content(tree, reader) == items | {b"more": b"1"}
    g = Ring.of(reader.header)
    assert tree.pages == g.buckets * g.n, "each slot was written"


HIERARCHIES: dict[str, dict[str, Any]] = {
    "with an index": {"scheme": oram.CuckooParams(c=8)},
    "amortized": {"scheme": oram.CuckooParams(c=8, rebuild="amortized")},
    "without an index": {"scheme": oram.CuckooParams(c=8, index="none")},
    "without an index, amortized": {"scheme": oram.CuckooParams(c=8, index="none", rebuild="amortized")},
    "records of blocks": {"scheme": oram.CuckooParams(c=8), "blocks_per_value": 3, "capacity": 40},
}


@pytest.mark.parametrize("items", [0, 30])
@pytest.mark.parametrize("world", HIERARCHIES)
def test_a_cuckoo_store(world: str, items: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "capacity": 60,
        "block_size": 96,
        "key": KEY,
        "durability": "process",
        **HIERARCHIES[world],
    }
    loaded = {b"k%d" % i: b"loaded %d" % i for i in range(items)}
    if items:
        given |= {"items": loaded}
    model = {key: value for key, value in loaded.items() if key != b"k3"} | drive(tmp_path / "store", given)
    reader = Reader(*dump(tmp_path / "store"), KEY)
    tree = read_hierarchy(reader)
    assert content(tree, reader) == model
    assert tree.pages > 1
    assert reader.meta["sequence"] == reader.clock() == 63
    sequence, m, note, ops, _, _ = reader.intent()
    assert (sequence, m, note) == (63, given.get("blocks_per_value", 1), 20)
    assert tree.requests == 65 * m, "a batch counts as its requests"
    assert ops == bytes([3]) * m, "a miss is a dummy"


def test_what_a_remote_backend_has_still_to_be_told(tmp_path: Path) -> None:
    """The slots lag by the last access, and `w` has what it wrote."""

    class Far(oram.backends.MemoryBackend):
        capabilities = oram.backends.Capability.ATOMIC | oram.backends.Capability.REMOTE

    backend, client = Far(), tmp_path / "client"
    given: dict[str, Any] = {"capacity": 50, "block_size": 64, "tree_top": 0, "scheme": oram.RingParams(Z=4)}
    store = oram.create(backend, state=client, key=KEY, durability="process", **given)
    for i in range(21):  # so that the last one evicts
        store[b"%d" % i] = b"v"
    shutil.copytree(client, tmp_path / "copy")  # LMDB opens an environment only once
    state, _, _ = dump(tmp_path / "copy")
    shapes = {name: (shape.slots, shape.slot_size) for name, shape in backend.regions().items()}
    slots: dict[str, dict[int, bytes]] = {}
    for name, (n, _) in shapes.items():
        memory = backend.buffer(name)
        slots[name] = {i: memory.data[i].tobytes() for i in range(n) if memory.present[i]}
    reader = Reader(state, shapes, slots, KEY)
    assert reader.clock() == 20 < reader.meta["sequence"] == 21
    written = reader.write_back()
    assert {region for region, _ in written} == {"slots.1", "clock.1"}
    for (region, index), data in written.items():
        slots[region][index] = data
    assert reader.clock() == 21
    assert content(read_ring(reader), reader) == {b"%d" % i: b"v" for i in range(21)}
    store.close()


class _Asked(Exception):
    """What a shard's arrays are in a new store, and the size of an ordinary record."""


class Shard(Reader):
    """One shard of a store, as a store by itself; ``arrays`` and ``records`` once they are known."""

    def __init__(self, whole: Reader, j: int) -> None:
        self.__dict__ |= vars(whole)
        self.k, self.j = whole.header["shards"], j
        n = -(-whole.header["blocks"] // self.k)
        self.header = {**whole.header, "blocks": n, "keyed": False}
        self.regions, self.slots = {}, {}
        for region, (slots, size) in whole.regions.items():
            m = slots // self.k
            self.regions[region] = m, size
            self.slots[region] = {s - j * m: data for s, data in whole.slots[region].items() if s // max(m, 1) == j}
        self.found: tuple[bytes, list[tuple[int, bytes, bytes]]] | None = None

    def stream(self, label: str, size: int) -> bytes:
        return super().stream(label, size * self.k)[self.j * size : (self.j + 1) * size]

    def ring(self, initial: bytes, record: int) -> tuple[bytearray, list[tuple[int, bytes, bytes]]]:
        if self.found is None:
            raise _Asked(initial, record)
        return bytearray(self.found[0]), self.found[1]


def read_shards(reader: Reader, read: Callable[[Reader], Tree]) -> Tree:
    """Every block of a store of several shards, each of which ``read`` reads."""
    k, N, per = reader.header["shards"], reader.header["blocks"], reader.header["blocks_per_value"]
    n, shards, initial, usual = -(-N // k), [Shard(reader, j) for j in range(k)], [], 0
    for shard in shards:
        with pytest.raises(_Asked) as asked:
            read(shard)
        initial.append(asked.value.args[0])
        usual = asked.value.args[1]
    tags_size = 16 * (N // per)
    arrays, log = reader.ring(bytes(tags_size) + b"".join(initial), 8 + k * (4 + usual) + 20)
    tags = {i: bytes(arrays[16 * i : 16 * i + 16]) for i in range(N // per)}
    records: list[list[tuple[int, bytes, bytes]]] = [[] for _ in shards]
    for sequence, record, note in log:
        cut = Cut(record)
        m, each = cut("II")
        assert each <= m <= k * each
        for own in records:
            (size,) = cut("I")
            own.append((sequence, cut(f"{size}s")[0], b""))
        assert cut.done()
        apply_note(tags, note)
    words = struct.unpack(f"<{k * n}Q", reader.stream("placement", 8 * k * n))
    place = sorted(range(k * n), key=lambda i: (words[i], i))
    blocks: dict[int, bytes] = {}
    pages, at = 0, tags_size
    for j, shard in enumerate(shards):
        shard.found = bytes(arrays[at : at + len(initial[j])]), records[j]
        at += len(initial[j])
        tree = read(shard)
        pages += tree.pages
        blocks |= {place.index(j * n + address): block for address, block in tree.blocks.items()}
    assert at == len(arrays)
    return Tree(blocks, tags, set(), pages, len(log))


@pytest.mark.parametrize("scheme", ["path", "ring", "ring, metadata there", "cuckoo", "cuckoo, no index"])
def test_a_store_of_several_shards(scheme: str, tmp_path: Path) -> None:
    params: Any = {
        "path": oram.PathParams(page_levels=2),
        "ring": oram.RingParams(Z=4),
        "ring, metadata there": oram.RingParams(Z=4, metadata="server"),
        "cuckoo": oram.CuckooParams(c=8),
        "cuckoo, no index": oram.CuckooParams(c=8, index="none"),
    }[scheme]
    given = {"capacity": 100, "block_size": 96, "scheme": params, "tree_top": 0, "key": KEY, "durability": "process"}
    model = drive(tmp_path / "s", {**given, "shards": 3})
    reader = Reader(*dump(tmp_path / "s"), KEY)
    assert reader.header["shards"] == 3
    assert reader.regions["clock.1"] == (3, 64)
    assert [reader.clock(j) for j in range(3)] == [63, 63, 63]
    readers = {"path": read_path, "ring": read_ring, "cuckoo": read_hierarchy}
    tree = read_shards(reader, readers[scheme.partition(",")[0]])
    assert content(tree, reader) == model
    assert tree.pages > 3
    sequence, m, note = struct.unpack_from("<QII", plain := reader.open(reader.state[b"i" + reader.inc_key], b"intent"))
    assert (sequence, m, note) == (63, 1, 20)
    assert plain[21:25] == bytes(4), "draws are with the shards'"
    assert len(plain) == 16 + 9 * m + 3 * (4 + (0 if scheme == "path" else 32))


def test_a_linear_store(tmp_path: Path) -> None:
    with oram.create(f"lmdb:{tmp_path / 's'}", key=KEY, capacity=100, block_size=64, scheme="linear") as store:
        for i in range(30):
            store[b"%d" % i] = b"v%d" % i
        del store[b"3"]
    reader = Reader(*dump(tmp_path / "s"), KEY)
    g = 4096 // 64
    assert reader.regions["slots.1"] == (-(-100 // g), g * 64 + 16)
    arrays, log = reader.ring(bytes(16 * 100 + 8), 12 + 5 + 64 + 20)
    tags = {i: bytes(arrays[16 * i : 16 * i + 16]) for i in range(100)}
    base = 0
    for _, record, note in log:
        m, base = struct.unpack_from("<IQ", record)
        assert len(record) == 12 + m * (5 + 64)
        apply_note(tags, note)
    plain = b"".join(reader.page(i, base + i) for i in range(-(-100 // g)))
    live = {record: unpack(plain[64 * record : 64 * record + 64]) for record, tag in tags.items() if any(tag)}
    assert all(tags[record] == reader.tag(key) for record, (key, _) in live.items())
    assert dict(live.values()) == {b"%d" % i: b"v%d" % i for i in range(30) if i != 3}


def test_client_state_apart_over_a_backend_that_is_not_atomic(tmp_path: Path) -> None:
    class Torn(oram.backends.MemoryBackend):
        capabilities = oram.backends.Capability.NONE

        def state_file(self) -> Any:
            return None

    backend = Torn()
    with oram.create(
        backend,
        state=tmp_path / "client",
        key=KEY,
        capacity=50,
        block_size=64,
        scheme="path",
        tree_top=0,
        durability="process",
    ) as store:
        for i in range(20):
            store[b"%d" % i] = b"v"
    state, regions, _ = dump(tmp_path / "client")
    assert regions == {}
    slots: dict[str, dict[int, bytes]] = {}
    for name, shape in backend.regions().items():
        memory = backend.buffer(name)
        slots[name] = {i: memory.data[i].tobytes() for i in range(shape.slots) if memory.present[i]}
    reader = Reader(state, {n: (s.slots, s.slot_size) for n, s in backend.regions().items()}, slots, KEY)
    assert content(read_path(reader), reader) == {b"%d" % i: b"v" for i in range(20)}
    written = reader.write_back()
    assert {region for region, _ in written} == {"slots.1", "clock.1"}
    assert all(slots[region][index] == data for (region, index), data in written.items())
