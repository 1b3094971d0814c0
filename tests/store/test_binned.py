"""Cuckoo ORAM without an index: its bins, what it moves, and that it finds the newest copy of everything."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

import oram
from oram.backends import MemoryBackend
from oram.errors import IntegrityError, ParameterError
from oram.kernels.reference.binnedoram import ReferenceBinned, Search
from oram.params import BinnedGeometry, CuckooGeometry, CuckooParams, Table, geometry_from
from oram.params.binned import LEFT
from oram.params.cuckoo import STASH
from oram.schemes.binned import BinnedORAM
from oram.store import ObliviousStore
from oram.trace import TraceBackend

from .places import KEY, small
from .test_cuckoo import exercise, load, passes, slots_moved

__all__ = ["passes"]
NONE = CuckooParams(c=8, index="none")


def geometry(N: int, *, top: int = 1 << 24, **given: Any) -> BinnedGeometry:
    g = BinnedGeometry.of(N, 8, CuckooParams(index="none", **given), top)
    assert isinstance(g, BinnedGeometry)
    return g


def scheme_of(store: ObliviousStore) -> BinnedORAM:
    scheme = store._engine.scheme
    assert isinstance(scheme, BinnedORAM)
    return scheme


# --- the work


@pytest.mark.parametrize("N", [8, 64, 256, 1000, 1 << 12, 1 << 14])
def test_no_access_stalls(N: int) -> None:
    g = geometry(N)
    moved = load(g)
    mean = sum(g.moved(level) / (2 * g.c << level) for level in range(g.L)) + g.moved(g.L) / (g.c << g.L)
    probes = np.mean([2 * len(g.alive(clock, built=True)) for clock in range(g.c << g.L, g.c << (g.L + 1))])
    assert moved.mean() == pytest.approx(mean + probes)
    assert moved.max() <= 4 * moved.mean()


def test_constants() -> None:
    """Slots that a rebuild moves, by the constants of docs/schemes/cuckoo.md, within a tenth."""
    for N in (1 << 18, 1 << 20, 1 << 22):
        g = geometry(N)
        for level in range(3, g.L):
            n = g.levels[level].n
            assert g.moved(level) / n == pytest.approx(7.8 if n >= 4096 else 4.5, rel=0.1)
        assert g.moved(g.L) / N == pytest.approx(12.6, rel=0.1)


def test_work_names_every_slot_once(passes: None) -> None:
    g = geometry(500, c=8)
    assert max(shape.b for shape in g.levels) > 1
    for level, shape in enumerate(g.levels):
        table = Table(level, 5 << level if level < g.L else 2 << level)
        work, seen = g.work(table, built=True), Counter[tuple[str, int]]()
        for k in range(g.duration(level)):
            for part in work.parts(k):
                read = work.segments[part.segment].kind in ("input", "middle")
                seen.update(("r" if read else "w", int(slot)) for slot in work.slots(part)[0])
        assert set(seen.values()) == {1}
        inputs = {
            ("r", g.first_slot(t) + i) for t in g.inputs(table, built=True) for i in range(g.levels[t.level].table)
        }
        output = {("w", g.first_slot(table) + i) for i in range(shape.table)}
        assert inputs | output <= set(seen)
        between = set(seen) - inputs - output
        again, written = ({slot for kind, slot in between if kind == which} for which in "rw")
        assert again <= written
        assert len(written) - len(again) == (0 if shape.b == 1 else shape.b * LEFT)
        assert sum(seen.values()) == g.moved(level)


def test_places_do_not_overlap() -> None:
    g = geometry(1 << 14)
    ends = [(g.place(level, copy), g.levels[level].table) for level in range(g.L) for copy in range(level + 1, g.L + 1)]
    ends += [(g.place(g.L, copy), g.levels[g.L].table) for copy in range(2)]
    ends += [(g.first_middle(level), g.levels[level].middle) for level in range(g.L + 1)]
    at = 0
    for first, size in sorted(ends):
        assert first == at or not size
        at += size
    assert at == g.slots


def test_bounds() -> None:
    with pytest.raises(ParameterError):
        CuckooGeometry.of(100, 8, CuckooParams(index="server"), 0)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="134217728"):
        geometry((1 << 27) + 1)
    g = geometry(1 << 20)
    public = {"scheme": "cuckoo", "blocks": g.N, "block_size": g.B, **g.public()}
    assert geometry_from(public) == g
    assert type(geometry_from({name: value for name, value in public.items() if name != "index"})) is CuckooGeometry


def test_bins_hold_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads of bins and of what chunks append, for as many entries as there can be: far below what they have room for."""
    rng = np.random.default_rng(6)
    for N in (1 << 12, 1 << 16):
        shape = geometry(N).levels[-1]
        loads = np.bincount(rng.integers(0, shape.b, N), minlength=shape.b)
        assert loads.max() < shape.m < shape.hand
        entries = N + N
        cells = rng.integers(0, shape.b, (2, entries))
        over = np.maximum(0, np.bincount(cells[0] * shape.b + cells[1], minlength=shape.b**2) - shape.r).sum()
        assert over < LEFT // 4


# --- the store


@pytest.mark.parametrize("durability", ["process", "none"])
@pytest.mark.parametrize("items", [False, True], ids=["empty", "loaded"])
@pytest.mark.parametrize(
    ("capacity", "params"), [(1, {}), (50, {"rebuild": "amortized"}), (60, {"c": 16, "eps": 0.3})], ids=str
)
def test_store(capacity: int, params: dict[str, Any], items: bool, durability: str) -> None:
    scheme = CuckooParams(index="none", **params)
    exercise(200, 37, capacity=capacity, scheme=scheme, load=items, durability=durability, tree_top=0)


@pytest.mark.parametrize("reopen", [23, 10_000])
def test_store_of_two_passes(passes: None, reopen: int) -> None:
    store = exercise(700, reopen, capacity=300, block_size=30, scheme=NONE, tree_top=0)
    assert max(shape.b for shape in scheme_of(store).geometry.levels) > 1


@pytest.mark.parametrize("workload", ["misses", "one key", "all keys"])
def test_cost_is_exact(passes: None, workload: str) -> None:
    """Slots and round trips of each access: one of these for each table that is there, and one to write."""
    trace = TraceBackend(MemoryBackend())
    store = oram.create(trace, key=KEY, capacity=128, block_size=8, keyed=False, scheme=NONE, durability="process")
    g = scheme_of(store).geometry
    expected, period = load(g), g.c << g.L
    for i in range(3 * period):
        trace.clear()
        match workload:
            case "misses":
                store.blocks.read(i % 128)
            case "one key":
                store.blocks.write(3, b"x")
            case _:
                store.blocks.write(i % 128, b"y")
        assert trace.round_trips == max(1, len(g.alive(i, built=False))) + 1
        if i >= 2 * period:  # from here on the bottom has an old one
            assert slots_moved(trace) == expected[i - 2 * period]


def test_a_batch_has_the_rounds_of_an_access_for_each_stretch_of_the_schedule() -> None:
    trace = TraceBackend(MemoryBackend())
    store = oram.create(trace, key=KEY, capacity=64, block_size=8, keyed=False, scheme=NONE, durability="process")
    g, clock = scheme_of(store).geometry, 0
    for m in (1, 5, 30, 64, 2, 17):
        trace.clear()
        store.blocks.read_many(np.arange(m) % 64)
        tables = [g.alive(clock + r, built=False) for r in range(m)]
        cuts = [0, *(r for r in range(1, m) if tables[r] != tables[r - 1])]
        assert trace.round_trips == sum(max(1, len(tables[cut])) for cut in cuts) + 1
        clock += m


def test_a_miss_is_remembered_and_forgotten_at_the_bottom() -> None:
    """Every access of an address leaves an entry, until the bottom is rebuilt."""
    store = small(scheme=NONE, capacity=64, keyed=False, tree_top=0)
    kernel, g = scheme_of(store)._kernel, scheme_of(store).geometry
    store.blocks.read(7)
    flush, page, row = kernel.rows()[7]
    assert (flush, int(kernel.state.page_addr[page, row])) == (0, 7 | 1 << 27)
    for i in range(3 * g.c << g.L):
        store.blocks.read(8 + i % 50)
    assert not any(block.any() for block in store.blocks.read_many(np.arange(64)))


def test_a_changed_slot_is_noticed() -> None:
    backend = MemoryBackend()
    store = small(backend, scheme=NONE, capacity=50, items={b"a": b"1"}, tree_top=0)
    region = backend.buffer(scheme_of(store).region)
    region.data[region.present == 1, 40] ^= 1
    with pytest.raises(IntegrityError):
        store[b"a"]
    region.data[region.present == 1, 40] ^= 1
    store.close()
    store = oram.open(backend, key=KEY)
    region.data[region.present == 1, :8] = 0xFF  # references to generations that never were
    with pytest.raises(IntegrityError):
        store[b"a"]


def test_pairs_are_those_of_the_documented_function(passes: None) -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    store = small(scheme=NONE, capacity=100, tree_top=0)
    scheme = scheme_of(store)
    key, table = store._engine.journal.keyring.hash_key(), Table(4, 0x1_0000_0010)
    shape = scheme.geometry.levels[4]
    assert shape.b > 1
    for addr in (0, 1, 99):
        words = b"".join(x.to_bytes(4, "little") for x in (addr, 4, 16, 1))
        half = Cipher(AES(key), ECB()).encryptor().update(words)
        u, v = (int.from_bytes(half[i : i + 8], "little") * m >> 64 for i, m in ((0, shape.b * shape.m), (8, shape.m)))
        pairs = scheme._kernel.pairs(table, np.array([addr]))
        assert pairs[0].tolist() == [u, v]
        begin = u // shape.m * (2 * shape.m + STASH)
        assert shape.slots(pairs)[0].tolist() == [begin + 2 * (u % shape.m), begin + 2 * v + 1]


def test_every_address_is_probed_once_an_epoch(passes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is there, was removed, or never was."""
    monkeypatch.setenv("ORAM_KERNELS", "reference")
    real, inner = Counter[tuple[Table, int]](), ReferenceBinned._probe

    def probe(kernel: ReferenceBinned, search: Search, table: Table, number: int) -> tuple[int, int]:
        real[table, search.addr] += kernel._real(search, table)
        return inner(kernel, search, table, number)

    monkeypatch.setattr(ReferenceBinned, "_probe", probe)
    store, rng = small(scheme=NONE, capacity=64, keyed=False, tree_top=0), random.Random(5)
    for i in range(400):
        some = [rng.randrange(12) for _ in range(rng.randrange(1, 4))]
        if i % 2:
            store.blocks.read_many(np.array(some))
        else:
            store.blocks.write_many([addr + 20 for addr in some], [b"x"] * len(some))
    assert sum(real.values()) > 100
    assert max(real.values()) == 1
