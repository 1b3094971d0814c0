"""What the kernels seal is what docs/formats.md says, other libraries open it, and nothing else opens."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from oram import kernels
from oram.backends import Slots
from oram.errors import CipherUnavailableError, ParameterError
from oram.kernels.base import (
    COUNTER_BITS,
    EMPTY,
    KernelSet,
    Keys,
    Op,
    PathKernel,
    PathState,
    Requests,
    RingKernel,
    RingPlan,
    RingState,
    TamperedError,
)
from oram.params import LinearGeometry, PathGeometry, RingGeometry
from oram.types import I64, U8

GEOMETRY = PathGeometry(N=40, B=5, Z=2, L=5, T=0, h=2)
NAMES = ["reference", "native"]
CIPHERS = ["aes-256-gcm", "aegis-256"]


def kernel_set(name: str) -> KernelSet:
    try:
        return kernels.load(name)
    except ParameterError:
        pytest.skip("the native kernels are not built here")


@pytest.fixture(params=NAMES)
def which(request: pytest.FixtureRequest) -> KernelSet:
    return kernel_set(request.param)


@pytest.fixture(params=CIPHERS)
def cipher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def key_of(generation: int) -> bytes:
    return bytes(range(generation, generation + 32))


def seal(cipher: str, key: bytes, counter: int, slot: int, plain: bytes) -> bytes:
    """The format, with other libraries."""
    label = struct.pack("<Q", slot)
    if cipher == "aes-256-gcm":
        return AESGCM(key).encrypt(struct.pack("<QI", counter, 0), plain, label)
    pyaegis = pytest.importorskip("pyaegis")
    return bytes(pyaegis.Aegis256(16).encrypt(key, struct.pack("<Q24x", counter), plain, label))


def open_(cipher: str, key: bytes, counter: int, slot: int, sealed: bytes) -> bytes:
    """The format, with other libraries."""
    label = struct.pack("<Q", slot)
    if cipher == "aes-256-gcm":
        return AESGCM(key).decrypt(struct.pack("<QI", counter, 0), sealed, label)
    pyaegis = pytest.importorskip("pyaegis")
    return bytes(pyaegis.Aegis256(16).decrypt(key, struct.pack("<Q24x", counter), sealed, label))


def new(which: KernelSet, cipher: str) -> tuple[PathKernel, Keys]:
    keys = which.keys(cipher, key_of)
    keys.start(3)
    position = (np.arange(GEOMETRY.N) * 7 % GEOMETRY.leaves).astype(np.uint32)
    return which.path(GEOMETRY, PathState.empty(GEOMETRY, position, 64), keys), keys


def page() -> bytes:
    """A page in clear, put together by hand: block 9 in the first slot of the right-hand bucket."""
    children = struct.pack("<4Q", 3 << 32 | 8, 0, (1 << 64) - 1, 1)
    meta = struct.pack("<12I", *[0xFFFFFFFF, 0] * 4, 9, 21, 0xFFFFFFFF, 0)
    return children + meta + bytes(4 * 5) + b"block" + bytes(5)


#: sha256 of ``page`` sealed under key_of(3), counter 0, slot 6.
VECTORS = {
    "aes-256-gcm": "c41813728f5fff323efce684cfa7053952d5110062e722c2662ef2ea8eb95c84",
    "aegis-256": "c67a5138f39407a048afe9c254c32442b6efaedd7fdb1d5f206b11c9d5c36f01",
}


def test_a_page_of_a_path_tree(which: KernelSet, cipher: str) -> None:
    kernel, keys = new(which, cipher)
    source = np.full((1, 6), -1, np.int64)
    source[0, 4] = 0
    sealed = kernel.build_pages(
        np.array([6]),
        np.frombuffer(page()[:32], np.uint64).reshape(1, 4),
        source,
        np.array([9], np.uint32),
        np.array([21], np.uint32),
        np.frombuffer(b"block", np.uint8).reshape(1, 5),
    )
    assert sealed.tobytes() == seal(cipher, key_of(3), 0, 6, page())
    assert hashlib.sha256(sealed.tobytes()).hexdigest() == VECTORS[cipher]
    assert keys.counter == 1


def test_a_page_that_another_library_sealed(which: KernelSet, cipher: str) -> None:
    kernel, _ = new(which, cipher)
    sealed = np.frombuffer(seal(cipher, key_of(77), 1 << 31, 6, page()), np.uint8).reshape(1, -1).copy()
    refs = np.array([77 << COUNTER_BITS | 1 << 31], np.uint64)
    assert kernel.open_pages(np.array([6]), refs, Slots(sealed, np.ones(1, np.uint8))).tobytes() == page()


def test_a_page_of_linear(which: KernelSet, cipher: str) -> None:
    g = LinearGeometry.of(5, 1500)
    keys = which.keys(cipher, key_of)
    keys.start(3)
    kernel = which.linear(g, np.zeros(1, np.uint64), keys)
    blocks = np.random.default_rng(1).integers(0, 256, (g.slots * g.g, g.B)).astype(np.uint8)
    for turn in range(2):
        sealed = kernel.build_pages(blocks)
        for i, row in enumerate(sealed):
            plain = blocks[i * g.g : (i + 1) * g.g].tobytes()
            assert row.tobytes() == seal(cipher, key_of(3), turn * g.slots + i, i, plain)
        assert int(kernel.base[0]) == 3 << COUNTER_BITS | turn * g.slots
        np.testing.assert_array_equal(kernel.open_pages(Slots(sealed, np.ones(g.slots, np.uint8))), blocks)


# --- Ring

RING = RingGeometry(N=24, B=5, Z=3, A=2, S=4, L=3, T=1, metadata="server")


def new_ring(which: KernelSet, cipher: str, g: RingGeometry = RING) -> tuple[RingKernel, Keys]:
    keys = which.keys(cipher, key_of)
    keys.start(3)
    position = (np.arange(g.N) * 7 % g.leaves).astype(np.uint32)
    return which.ring(g, RingState.empty(g, position, 64), keys), keys


def row() -> bytes:
    """A bucket's metadata in clear, put together by hand: block 9 in slot 6, block 2 in slot 0, slots 0 and 5 read."""
    children = struct.pack("<QQ", 3 << 32 | 8, 0)
    return children + struct.pack("<QQ3I3H", 2 << 32 | 77, 1 << 0 | 1 << 5, 9, 0xFFFFFFFF, 2, 6, 0, 0)


#: sha256 of a block sealed under key_of(3), counter 0, slot 20; and of ``row`` under counter 1, bucket 6, which comes after all slots.
RING_VECTORS = {
    "aes-256-gcm": (
        "dd1e3e699952ef9ed5746a3360e57e5040ec662cfdbde60128f647ed6c5576f1",
        "77a490d1510567bedf0ed37653fca60a355e572d7fed58675b18df5d19d9cb55",
    ),
    "aegis-256": (
        "224c2f9f53401b8d36038c961b1a507a2c374ead8ef7c9ff007d0c9d63ebe879",
        "913a59c4818be1053c0aa82fc127127f255ed8105d304f2cdb4c56c25e8d7574",
    ),
}


def test_a_slot_and_metadata_of_ring(which: KernelSet, cipher: str) -> None:
    kernel, keys = new_ring(which, cipher)
    slot = kernel.seal_slots(np.array([20]), np.array([0]), np.frombuffer(b"block", np.uint8).reshape(1, 5))
    assert slot.tobytes() == seal(cipher, key_of(3), 0, 20, b"block")
    content = {
        "children": np.array([[3 << 32 | 8, 0]], np.uint64),
        "refs": np.array([2 << 32 | 77], np.uint64),
        "spent": np.array([[1 << 0 | 1 << 5]], np.uint64),
        "addr": np.array([[9, EMPTY, 2]], np.uint32),
        "slot": np.array([[6, 0, 0]], np.uint16),
    }
    sealed = kernel.seal_rows(np.array([6]), content)
    assert sealed.tobytes() == seal(cipher, key_of(3), 1, RING.slots + 6, row())
    assert keys.counter == 2
    dummy = kernel.seal_slots(np.array([20]), np.array([-1]), np.zeros((0, 5), np.uint8))
    assert dummy.tobytes() == seal(cipher, key_of(3), 2, 20, bytes(5))
    assert tuple(hashlib.sha256(each.tobytes()).hexdigest() for each in (slot, sealed)) == RING_VECTORS[cipher]


def test_a_slot_and_metadata_of_ring_that_another_library_sealed(which: KernelSet, cipher: str) -> None:
    kernel, _ = new_ring(which, cipher)
    refs = np.array([77 << COUNTER_BITS | 1 << 31], np.uint64)

    def slots(sealed: bytes) -> Slots:
        return Slots(np.frombuffer(sealed, np.uint8).reshape(1, -1).copy(), np.ones(1, np.uint8))

    slot = slots(seal(cipher, key_of(77), 1 << 31, 20, b"block"))
    assert kernel.open_slots(np.array([20]), refs, slot).tobytes() == b"block"
    sealed = slots(seal(cipher, key_of(77), 1 << 31, RING.slots + 6, row()))
    content = kernel.open_rows(np.array([6]), refs, sealed)
    assert {name: array.tolist() for name, array in content.items()} == {
        "children": [[3 << 32 | 8, 0]],
        "refs": [2 << 32 | 77],
        "spent": [[1 << 0 | 1 << 5]],
        "addr": [[9, EMPTY, 2]],
        "slot": [[6, 0, 0]],
    }
    # a slot is no metadata, and metadata are no slot
    for at in (np.array([20]), np.array([6])):
        with pytest.raises(TamperedError):
            kernel.open_rows(at, refs, slots(seal(cipher, key_of(77), 1 << 31, int(at[0]), row())))


@pytest.mark.parametrize("where", ["client", "server"])
def test_what_an_access_of_ring_seals(which: KernelSet, cipher: str, where: Any) -> None:
    """Opened by other libraries: the slots of an evicted path hold the blocks that were written, and else zeros."""
    g = dataclasses.replace(RING, metadata=where, T=0)
    kernel, _ = new_ring(which, cipher, g)
    requests = kernel.requests(2)
    requests.ops[:2], requests.addresses[:2], requests.draws[:2] = Op.WRITE, (4, 5), (0, 1)
    requests.data[:2] = np.frombuffer(b"blockBLOCK", np.uint8).reshape(2, 5)
    requests.seed[:] = 7
    buckets = kernel.buckets(requests)
    if where == "server":
        kernel.load(Slots(np.zeros((buckets.size, g.meta_size), np.uint8), np.zeros(buckets.size, np.uint8)))
    plan = kernel.plan(requests)
    n = int((plan.online >= 0).sum()) + plan.fetched.size
    written = kernel.access(requests, plan, Slots(np.zeros((n, g.slot_size), np.uint8), np.zeros(n, np.uint8)))
    assert plan.rewritten.tolist() == [0, 1, 3, 7], "the path of leaf 0"
    found = {}
    for i, sealed in enumerate(written.data):
        slot = int(plan.rewritten[i // g.n]) * g.n + i % g.n
        plain = open_(cipher, key_of(3), i, slot, sealed.tobytes())
        if any(plain):
            found[plain] = slot
    assert set(found) == {b"block", b"BLOCK"}
    named = {
        int(addr): int(plan.rewritten[i]) * g.n + int(written.slot[i, z])
        for (i, z), addr in np.ndenumerate(written.addr)
        if addr != EMPTY
    }
    assert named == {4: found[b"block"], 5: found[b"BLOCK"]}
    assert found[b"block"] // g.n == 7
    assert found[b"BLOCK"] // g.n == 3, "its leaf is 1: they part at level 2"
    if where == "server":
        for i, (bucket, sealed) in enumerate(zip(buckets.tolist(), kernel.store(), strict=True)):
            plain = open_(cipher, key_of(3), len(written.data) + i, g.slots + bucket, sealed.tobytes())
            ref = struct.unpack_from("<Q", plain, 16)[0]
            at = plan.rewritten.tolist().index(bucket) if bucket in plan.rewritten else None
            assert ref == (0 if at is None else 3 << COUNTER_BITS | at * g.n)
            if bucket == 0:  # under which its children are sealed
                first = len(written.data) + buckets.tolist().index(1)
                assert struct.unpack_from("<Q", plain)[0] == 3 << COUNTER_BITS | first


def test_unknown_cipher(which: KernelSet) -> None:
    with pytest.raises(CipherUnavailableError):
        which.keys("rot13", key_of)


# --- tampering


class Tree:
    """A little tree that has seen some accesses, with every ciphertext there ever was."""

    def __init__(self, which: KernelSet, cipher: str) -> None:
        self.kernel, self.keys = new(which, cipher)
        g = GEOMETRY
        self.slots = Slots(np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8))
        self.old: list[list[bytes]] = [[] for _ in range(g.slots)]
        for i in range(160):
            requests = self.ask(i * 11 % g.N)
            plan = self.kernel.plan(requests)
            for slot in plan.slots.tolist():
                if self.slots.present[slot]:
                    self.old[slot].append(self.slots.data[slot].tobytes())
            pages = Slots(self.slots.data[plan.slots], self.slots.present[plan.slots])
            self.kernel.access(requests, plan, pages)
            self.slots.data[plan.slots], self.slots.present[plan.slots] = pages.data, pages.present

    def ask(self, address: int) -> Requests:
        requests = self.kernel.requests(2)
        requests.ops[:2] = Op.WRITE, Op.READ
        requests.addresses[:2] = address, (address + 1) % GEOMETRY.N
        requests.draws[:2] = address * 2654435761 % 2**32, address
        requests.data[:2] = address
        return requests

    def frozen(self) -> list[bytes]:
        s = self.kernel.state
        arrays = (s.position, s.refs, s.head, s.pool_addr, s.pool_leaf, s.pool_next, s.pool_data)
        counts = s.free, s.used, self.keys.counter
        return [*(array.tobytes() for array in arrays), repr(counts).encode(), self.slots.data.tobytes()]

    def refuses(self, address: int, in_place: bool) -> None:
        """TamperedError, and nothing is changed."""
        before, requests = self.frozen(), self.ask(address)
        with pytest.raises(TamperedError):
            if in_place:
                self.kernel.access_in_place(requests, self.slots)
            else:
                plan = self.kernel.plan(requests)
                pages = Slots(self.slots.data[plan.slots], self.slots.present[plan.slots])
                self.kernel.access(requests, plan, pages)
        assert self.frozen() == before

    def accepts(self, address: int) -> None:
        self.kernel.access_in_place(self.ask(address), self.slots)


TREES: dict[tuple[str, str], Tree] = {}


def tree(name: str, cipher: str) -> Tree:
    """Shared by the examples, which put back what they changed and are refused before anything else changes."""
    if (name, cipher) not in TREES:
        TREES[name, cipher] = Tree(kernel_set(name), cipher)
    return TREES[name, cipher]


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["byte", "swap", "absent", "old", "zeros"])
@settings(max_examples=12)
@given(data=st.data())
def test_tampering(name: str, cipher: str, how: str, data: st.DataObject) -> None:
    it = tree(name, cipher)
    address, in_place = data.draw(st.integers(0, GEOMETRY.N - 1)), data.draw(st.booleans())
    plan = it.kernel.plan(it.ask(address))
    slot = data.draw(st.sampled_from(plan.slots[it.slots.present[plan.slots] == 1].tolist()))
    row, present = it.slots.data[slot].copy(), it.slots.present[slot]
    if how == "byte":
        it.slots.data[slot, data.draw(st.integers(0, row.size - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "swap":
        others = [s for s in np.flatnonzero(it.slots.present).tolist() if s != slot]
        it.slots.data[slot] = it.slots.data[data.draw(st.sampled_from(others))]
    elif how == "absent":
        it.slots.present[slot] = 0
    elif how == "old":
        it.slots.data[slot] = np.frombuffer(data.draw(st.sampled_from(it.old[slot] or [bytes(row.size)])), np.uint8)
    else:
        it.slots.data[slot] = 0
    try:
        it.refuses(address, in_place)
    finally:
        it.slots.data[slot], it.slots.present[slot] = row, present


def test_the_tree_itself_is_sound(which: KernelSet, cipher: str) -> None:
    it = Tree(which, cipher)
    for address in range(GEOMETRY.N):
        it.accepts(address)


class RingTree:
    """A little Ring tree that has seen some accesses, with every ciphertext there ever was."""

    def __init__(self, which: KernelSet, cipher: str, where: Any) -> None:
        self.g = dataclasses.replace(RING, metadata=where, T=0 if where == "client" else 1)
        self.kernel, self.keys = new_ring(which, cipher, self.g)
        self.slots = Slots(np.zeros((self.g.slots, self.g.slot_size), np.uint8), np.zeros(self.g.slots, np.uint8))
        self.meta = Slots(np.zeros((self.g.buckets, self.g.meta_size), np.uint8), np.zeros(self.g.buckets, np.uint8))
        self.old: list[tuple[U8, U8]] = []
        for i in range(40):
            self.old.append((self.slots.data.copy(), self.meta.data.copy()))
            self.access("in place", i)
        assert self.slots.present.all()

    def ask(self, i: int) -> Requests:
        requests = self.kernel.requests(3)
        requests.ops[:3] = Op.WRITE, Op.READ, Op.DUMMY
        requests.addresses[:3] = i * 11 % self.g.N, (i * 7 + 1) % self.g.N, 0
        requests.draws[:3] = i * 2654435761 % 2**32, i, i * 3
        requests.data[:3], requests.seed[:] = i, i
        return requests

    def reads(self, i: int) -> tuple[I64, RingPlan]:
        """The buckets and the slots that the next access will read."""
        requests = self.ask(i)
        buckets = self.kernel.buckets(requests)
        if self.g.metadata == "server":
            self.kernel.load(self._rows(self.meta, buckets))
        return buckets, self.kernel.plan(requests)

    @staticmethod
    def _rows(slots: Slots, at: I64) -> Slots:
        data, present = slots.data[at], slots.present[at]
        data[present == 0] = 0
        return Slots(data, present)

    def access(self, way: str, i: int) -> None:
        if way == "in place":
            meta = self.meta if self.g.metadata == "server" else None
            self.kernel.access_in_place(self.ask(i), self.slots, meta)
            return
        requests = self.ask(i)
        buckets, plan = self.reads(i)
        online, fetched = plan.online, plan.fetched.reshape(-1)
        if way == "slots":
            slots = self._rows(self.slots, np.concatenate([online[online >= 0], fetched]))
        else:
            read, kept = self._rows(self.slots, fetched), self._rows(self.slots, online.reshape(-1).clip(0))
            kept.data[online.reshape(-1) < 0] = 0
            folded = np.bitwise_xor.reduce(kept.data.reshape(*online.shape, -1), axis=1)
            slots = Slots(read.data, read.present, np.ascontiguousarray(folded))
        written = self.kernel.access(requests, plan, slots)
        at = (plan.rewritten[:, np.newaxis] * self.g.n + np.arange(self.g.n)).reshape(-1)
        self.slots.data[at] = written.data
        if self.g.metadata == "server":
            self.meta.data[buckets] = self.kernel.store()

    def frozen(self) -> list[bytes]:
        s = self.kernel.state
        arrays: list[Any] = [s.position, s.clock, s.roots, s.head, s.pool_addr, s.pool_leaf, s.pool_next, s.pool_data]
        if self.g.metadata == "client":
            arrays += [s.refs, s.spent, s.addr, s.slot]
        counts = s.free, s.used, self.keys.counter
        return [array.tobytes() for array in arrays] + [repr(counts).encode(), self.slots.data.tobytes()]

    def refuses(self, way: str, i: int) -> bool:
        """Whether the access is TamperedError; then nothing is changed."""
        before = self.frozen()
        try:
            self.access(way, i)
        except TamperedError:
            assert self.frozen() == before
            return True
        return False


def ring_harms(slots: Slots, at: int, old: list[U8], apart: list[int]) -> Iterator[tuple[str, Callable[[], None]]]:
    """What a server may do to one slot. apart: slots that are not read with it."""
    data, now = slots.data, slots.data[at].copy()

    def put(value: U8) -> Callable[[], None]:
        return lambda: data.__setitem__(at, value)

    for byte in (0, now.size // 2, now.size - 1):
        flipped = now.copy()
        flipped[byte] ^= 1 << byte % 8
        yield f"byte {byte}", put(flipped)
    yield "another", put(data[apart[at % len(apart)]].copy())
    yield "zeros", put(np.zeros_like(now))
    versions = [version[at] for version in old if version[at].any() and not np.array_equal(version[at], now)]
    yield "old", put(versions[-1])
    yield "oldest", put(versions[0])
    yield "absent", lambda: slots.present.__setitem__(at, 0)


@pytest.mark.parametrize("where", ["client", "server"])
@pytest.mark.parametrize("way", ["slots", "xor", "in place"])
def test_ring_tampering(which: KernelSet, cipher: str, way: str, where: str) -> None:
    """Every slot that is read, whatever is in it: a server that learns which slots go unnoticed learns which are dummies."""
    tree = RingTree(which, cipher, where)
    turn, real, dummy = 41, 0, 0
    for i in (turn, turn + 1):
        buckets, plan = tree.reads(i)
        state = tree.kernel.state
        numbers = range(tree.g.buckets) if where == "client" else buckets.tolist()
        blocks = {
            number * tree.g.n + int(slot)
            for row, number in enumerate(numbers)
            for addr, slot in zip(state.addr[row].tolist(), state.slot[row].tolist(), strict=True)
            if addr != EMPTY
        }
        online = plan.online[plan.online >= 0].tolist()
        seen = [*online, *plan.fetched.reshape(-1).tolist()]
        real, dummy = real + len(blocks & set(seen)), dummy + len(set(seen) - blocks)
        assert len(plan.fetched) >= 3
        cases = [(tree.slots, slot, [data for data, _ in tree.old]) for slot in seen]
        if where == "server":
            cases += [(tree.meta, bucket, [meta for _, meta in tree.old]) for bucket in buckets.tolist()]
        for slots, at, old in cases:
            apart = [k for k in range(len(slots.data)) if k not in (seen if slots is tree.slots else [at])]
            now = slots.data[at].copy()
            for name, harm in ring_harms(slots, at, old, apart):
                harm()
                assert tree.refuses(way, i), f"{name} of slot {at}, a block: {at in blocks}"
                slots.data[at], slots.present[at] = now, 1
        tree.access(way, i)  # nothing of it was kept
    assert real >= 10
    assert dummy >= 10


def test_slots_of_one_xor_that_are_swapped_make_no_difference(which: KernelSet) -> None:
    """The client gets the very bytes it would have got: nothing to notice, and nothing to learn from."""
    trees = [RingTree(which, "aes-256-gcm", "client") for _ in range(2)]
    _, plan = trees[0].reads(41)
    group = [slot for slot in plan.online[0].tolist() if slot >= 0]
    trees[0].slots.data[group[:2]] = trees[0].slots.data[group[1::-1]]
    for tree in trees:
        tree.access("xor", 41)
    assert trees[0].frozen()[:-1] == trees[1].frozen()[:-1]


def test_linear_tampering(which: KernelSet, cipher: str) -> None:
    g = LinearGeometry.of(7, 2000)
    keys = which.keys(cipher, key_of)
    keys.start(1)
    kernel = which.linear(g, np.zeros(1, np.uint64), keys)
    slots = Slots(np.zeros((g.slots, g.slot_size), np.uint8), np.zeros(g.slots, np.uint8))

    def ask() -> Requests:
        requests = kernel.requests(1)
        requests.ops[0], requests.addresses[0], requests.data[0] = Op.WRITE, 3, 7
        return requests

    kernel.access(ask(), slots)
    old = slots.data.copy()
    kernel.access(ask(), slots)
    good, base, counter = slots.data.copy(), int(kernel.base[0]), keys.counter

    def refused() -> None:
        before = slots.data.copy()
        with pytest.raises(TamperedError):
            kernel.access(ask(), slots)
        np.testing.assert_array_equal(slots.data, before)
        assert (int(kernel.base[0]), keys.counter) == (base, counter)
        with pytest.raises(TamperedError):
            kernel.open_pages(slots)
        slots.data[:], slots.present[:] = good, 1

    for at in range(0, good.shape[1], 97):
        slots.data[at % g.slots, at] ^= 1
        refused()
    slots.data[[0, 1]] = slots.data[[1, 0]]
    refused()
    slots.data[2] = old[2]
    refused()
    slots.data[:] = old
    refused()
    slots.present[g.slots - 1] = 0
    refused()
    kernel.access(ask(), slots)


def test_the_native_set_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORAM_KERNELS", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "oram.kernels.native", None)
    monkeypatch.delattr(kernels, "native", raising=False)
    kernels.load.cache_clear()
    try:
        assert kernels.active().name == "reference"
        with pytest.raises(ParameterError, match="not built"):
            kernels.load("native")
        monkeypatch.setenv("ORAM_KERNELS", "native")
        with pytest.raises(ParameterError, match="not built"):
            kernels.active()
    finally:
        kernels.load.cache_clear()


def test_the_choice_of_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORAM_KERNELS", "reference")
    assert kernels.active().name == "reference"
    monkeypatch.setenv("ORAM_KERNELS", "fast")
    with pytest.raises(ParameterError):
        kernels.active()
