"""After every access: the pool is as large as the infinity-ORAM says, nothing leaves the server unasked, and every block is where it must be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import LMDBBackend, MemoryBackend, StateFile
from oram.schemes.path import PathORAM
from oram.store import ObliviousStore
from oram.testing.oracles import NonceSet, ViolationError, Watch, check, check_pool
from oram.testing.randomness import Coins, pinned
from oram.testing.remote import RemoteBackend
from oram.testing.statistics import changed_everywhere, constant_lengths
from oram.trace import TraceBackend

from .mixing import mix

KEY = bytes(32)
TREES = [
    # Z, page_levels, tree_top, capacity
    (1, 1, 0, 64),
    (2, 1, 0, 64),
    (3, 1, 0, 128),
    (4, 1, 0, 128),
    (1, 2, 0, 64),
    (1, 3, 0, 50),
    (2, 4, 0, 100),
    (1, 1, 40, 100),
    (1, 1, 200, 100),
    (1, 2, 100, 200),
    (2, 3, 100, 200),
    (4, 2, 600, 300),
    (4, None, 1 << 24, 100),
    (1, 1, 1 << 24, 100),
    (1, 1, 0, 1),
]
PATTERNS: dict[str, Callable[[random.Random, int, int], int]] = {
    "round robin": lambda _, i, n: i % n,
    "uniform": lambda source, _, n: source.randrange(n),
    "hot": lambda source, i, n: source.randrange(n) if i % 2 else source.randrange(1 + n // 50),
}


def create(tree: tuple[int, int | None, int, int], **options: Any) -> ObliviousStore:
    Z, levels, top, capacity = tree
    usual: dict[str, Any] = {"key": KEY, "block_size": 20, "durability": "process"}
    return oram.create(
        MemoryBackend(),
        capacity=capacity,
        scheme=oram.PathParams(Z=Z, page_levels=levels),
        tree_top=top,
        **{**usual, **options},
    )


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_batches(tree: tuple[int, int | None, int, int]) -> None:
    store = create(tree)
    watch, source, model = Watch(store), random.Random(1), dict[bytes, bytes]()
    for turn in range(150):
        mix(store, source, model, turn)
        assert (watch.mismatches, watch.strays) == (0, 0)
        if turn % 10 == 0:
            contents = check(store)
            assert contents.full == watch.oracle.full()
            assert len(contents.blocks) == len(store) == len(model)
    assert watch.accesses > 140


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tree", [tree for tree in TREES if tree[3] > 1][::2], ids=str)
def test_single_accesses(tree: tuple[int, int | None, int, int], pattern: str) -> None:
    store = create(tree, keyed=False, durability="none")
    watch, source = Watch(store), random.Random(2)
    for i in range(600):
        address = PATTERNS[pattern](source, i, tree[3])
        if i < tree[3]:
            store.blocks.write(i, b"%d" % i)
        else:
            store.blocks.read(address)
        if tree[1:3] == (1, 0):  # the paper's own statement: overflow(root) is the stash
            assert store.stats().stash == watch.oracle.pool().get(0, 0)
    assert watch.accesses == 600
    assert (watch.mismatches, watch.strays) == (0, 0)
    assert check(store).full == watch.oracle.full()


def test_pools_are_not_empty() -> None:
    """The comparisons above are about something."""
    store = create((1, 1, 0, 64), keyed=False)
    watch = Watch(store)
    for i in range(200):
        store.blocks.write(i % 64, b"x")
    assert watch.largest > 5


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "aegis-256"])
@pytest.mark.parametrize(
    "scheme",
    [oram.PathParams(page_levels=2), oram.RingParams(Z=4), oram.RingParams(Z=3, metadata="server"), "linear"],
    ids=["path", "ring", "ring, metadata there", "linear"],
)
def test_invariants_and_nonces(scheme: Any, cipher: str) -> None:
    """Everything opens with other libraries, under references that never repeat, over several generations."""
    backend = MemoryBackend()
    store = oram.create(
        backend, key=KEY, capacity=50, block_size=20, scheme=scheme, cipher=cipher, tree_top=100, durability="process"
    )
    seen, source, model = NonceSet(), random.Random(3), dict[bytes, bytes]()
    for _ in range(3):
        for turn in range(40):
            mix(store, source, model, turn)  # at most one access
            seen.add(check(store))
        store.close()
        store = oram.open(backend, key=KEY, durability="process")
    assert seen.repeats == 0
    assert len(seen) > 100
    assert dict(store.items()) == model


@pytest.mark.parametrize("scheme", ["path", oram.RingParams(Z=4), oram.RingParams(Z=3, metadata="server")], ids=str)
def test_a_write_back_that_waits(scheme: Any, tmp_path: Path) -> None:
    """Between accesses a remote store is whole once its write-back has come; and over several generations no nonce repeats."""
    remote = RemoteBackend(MemoryBackend())
    place: dict[str, Any] = {"key": KEY, "state": tmp_path, "durability": "process"}
    store = oram.create(remote, capacity=40, block_size=20, scheme=scheme, tree_top=0, **place)
    seen, source, model = NonceSet(), random.Random(6), dict[bytes, bytes]()
    for _ in range(2):
        for turn in range(60):
            mix(store, source, model, turn)
            if turn % 5 == 0:
                seen.add(check(store))
        assert len(check(store).blocks) == len(model)
        store.close()
        store = oram.open(remote, **place)
    assert seen.repeats == 0
    assert dict(store.items()) == model


@pytest.mark.parametrize("scheme", ["path", oram.RingParams(Z=4), oram.RingParams(Z=3, metadata="server")], ids=str)
@pytest.mark.parametrize("durability", ["process", "none"])
def test_ciphertexts(durability: str, scheme: Any, tmp_path: Path) -> None:
    """Slots have one length, and whatever is written is encrypted anew from end to end."""
    for backend in (MemoryBackend(), LMDBBackend(tmp_path, sync=False)):
        trace = TraceBackend(backend, keep_data=True)
        store = oram.create(
            trace, key=KEY, capacity=60, block_size=40, scheme=scheme, tree_top=200, durability=durability
        )
        source, model = random.Random(4), dict[bytes, bytes]()
        for turn in range(80):
            mix(store, source, model, turn)
        store.close()
        assert constant_lengths(trace.events).passed
        assert changed_everywhere(trace.events).passed
        assert sum(event.op == "write" for event in trace.events) > 40
        for event in trace.events:  # a slot is written after it was read, never before
            assert event.data is None or len(event.data) == (1 if event.op == "xor" else len(event.indices))
        backend.close()


class Recording(MemoryBackend):
    """Memory that keeps every entry ever committed to its state file."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[bytes, bytes]] = []
        self.clocks: list[bytes] = []

    def state_file(self) -> Any:
        state = super().state_file()
        if not hasattr(state, "recorded"):
            inner = state.commit

            def commit(puts: Any, deletes: Any = (), *, writes: Any = ()) -> None:
                self.entries += [(bytes(key), bytes(value)) for key, value in puts]
                self.clocks += [write.data.tobytes() for write in writes if write.region.startswith("clock")]
                inner(puts, deletes, writes=writes)

            state.commit = commit  # type: ignore[method-assign]
            state.recorded = True  # type: ignore[attr-defined]
        assert isinstance(state, StateFile)
        return state


def test_nonces_of_the_client_state() -> None:
    """Generation and counter stand in front of everything sealed for the state file and the clock: no two are alike."""
    backend = Recording()
    source, model = random.Random(5), dict[bytes, bytes]()
    store = oram.create(backend, key=KEY, capacity=60, block_size=40, scheme="path", durability="process")
    file = backend.state_file()
    for _ in range(3):
        for turn in range(40):
            mix(store, source, model, turn)
        store.flush()
        store.close()
        store = oram.open(backend, key=KEY, durability="process")
    assert file is backend.state_file()
    sealed = [
        value[4:16] if key == b"meta" else value[:12] for key, value in backend.entries if key[:1] not in (b"g", b"h")
    ]
    sealed += [clock[:12] for clock in backend.clocks]
    assert len(sealed) > 300
    assert len(set(sealed)) == len(sealed)
    salts = [value for key, value in backend.entries if key.startswith(b"g")]
    assert len(salts) == len(set(salts)) == 4


def test_the_stash_of_a_cached_tree_is_not_larger() -> None:
    """``stash_size`` with a cached top never exceeds the paper's stash under the same randomness."""
    sizes: dict[int, list[int]] = {}
    largest = 0
    for top in (0, 20, 100, 300, 1 << 20):
        with pinned(Coins(6)):
            store = create((1, 1, top, 64), keyed=False, durability="none")
            sizes[top] = []
            for i in range(400):
                store.blocks.write(i % 64, b"x")
                sizes[top].append(store.stats().stash)
        scheme = store._engine.scheme
        assert isinstance(scheme, PathORAM)
        largest = max(largest, scheme.geometry.T)
        assert np.all(np.array(sizes[top]) <= np.array(sizes[0])), top
    assert largest == 5
    assert max(sizes[0]) > 5


@pytest.mark.parametrize("damage", ["leaf", "twice", "chain", "free", "count"])
def test_the_pool_check_can_fail(damage: str) -> None:
    store = create((1, 1, 200, 64), keyed=False)
    for i in range(64):
        store.blocks.write(i, b"x")
    scheme = store._engine.scheme
    assert isinstance(scheme, PathORAM)
    state, tree = scheme.state, store.info()
    check_pool(state, tree)
    used = np.flatnonzero(state.pool_addr != 0xFFFFFFFF)
    if damage == "leaf":
        state.position[state.pool_addr[used[0]]] ^= 1
    elif damage == "twice":
        state.pool_addr[used[0]] = state.pool_addr[used[1]]
    elif damage == "chain":
        state.head[state.pool_leaf[used[0]] >> (tree["L"] - tree["T"])] = -1
    elif damage == "free":
        state.pool_addr[used[0]] = 0xFFFFFFFF
    else:
        state.pool_next[state.free] = state.free
    with pytest.raises(ViolationError):
        check_pool(state, tree)


def test_the_check_of_pages_can_fail() -> None:
    store = create((4, 1, 0, 64), keyed=False)
    for i in range(64):
        store.blocks.write(i, b"x")
    scheme = store._engine.scheme
    assert isinstance(scheme, PathORAM)
    at_server = min(check(store).server)
    scheme.state.position[at_server] ^= 1
    with pytest.raises(ViolationError, match="leaf"):
        check(store)
