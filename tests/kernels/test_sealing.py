"""What the kernels seal is what docs/formats.md says, other libraries open it, and nothing else opens."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from oram import kernels
from oram.backends import Slots
from oram.errors import CipherUnavailableError, ParameterError
from oram.kernels.base import COUNTER_BITS, KernelSet, Keys, Op, PathKernel, PathState, Requests, TamperedError
from oram.params import LinearGeometry, PathGeometry

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
