"""The demo: its numbers, and that the page needs nothing but itself."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import oram as library
from oram.assembly import Shape
from oram.backends import LMDBBackend, MemoryBackend
from oram.cli import comparison, demo, picture, workload
from oram.cli.view import BINS, View, chi_square_p, off_schedule
from oram.encrypted import EncryptedStore
from oram.errors import IntegrityError, MissingKeyError
from oram.params import CuckooGeometry
from oram.trace import Event, TraceBackend

Oram = Callable[..., Any]
FALSE_ALARM = 1e-6  # how often the oblivious side fails here although nothing is wrong: its randomness has no seed


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> comparison.Comparison:
    return demo.compare(tmp_path_factory.mktemp("demo"), demo.FAST, demo.FAST.accesses, 1)


def test_the_oblivious_side_is_uniform_and_the_other_is_not(found: comparison.Comparison) -> None:
    assert found.oblivious.view.p_value > FALSE_ALARM
    assert found.encrypted.view.p_value < 1e-15
    assert found.encrypted.view.top_share > 0.2
    assert found.oblivious.view.top_share < 0.1
    assert found.oblivious.view.repeats == pytest.approx(found.oblivious.view.repeats_by_chance, abs=0.1)
    assert found.encrypted.view.repeats > found.encrypted.view.repeats_by_chance + 0.2
    assert found.ring.view.p_value > FALSE_ALARM
    assert found.ring.choice.p_value > FALSE_ALARM
    assert found.ring.view.top_share < 0.1
    assert found.cuckoo.view.p_value > FALSE_ALARM
    assert found.cuckoo.cells.p_value > FALSE_ALARM
    assert found.cuckoo.view.top_share < 0.1


def test_what_the_server_saw_of_puts(found: comparison.Comparison) -> None:
    assert sum(found.encrypted.view.written) == found.puts > 0
    assert not any(found.oblivious.view.written)
    assert not any(found.ring.view.written)
    assert not any(found.cuckoo.view.written)


def test_costs_are_those_of_the_protocol(found: comparison.Comparison) -> None:
    g, size = found.geometry, found.block + 28
    for durability in comparison.RUNS:
        plain, tree = (side.costs[str(durability)] for side in (found.encrypted, found.oblivious))
        assert (plain.round_trips, plain.journal) == (1, 0)
        assert plain.bytes_read + plain.bytes_written == pytest.approx(size)
        assert tree.round_trips == 2
        assert tree.bytes_read == g.layers * g.slot_size
        assert tree.bytes_written == g.layers * g.slot_size + 64  # and the clock


def test_ring_moves_what_the_protocol_says(found: comparison.Comparison) -> None:
    g, n = found.ring.geometry, found.accesses
    folded, apart = found.ring.moved, found.ring.one_by_one
    evictions = n // g.A  # no bucket is read S times between two of them here, but for the few that are reshuffled
    assert folded.round_trips == apart.round_trips == 1
    assert (folded.online_slots, folded.online_bytes) == (1, g.slot_size)
    assert (apart.online_slots, apart.online_bytes) == (g.levels, g.levels * g.slot_size)
    assert apart.all_bytes - folded.all_bytes == pytest.approx((g.levels - 1) * g.slot_size)
    least = n * g.slot_size + (n - 1) * 64 + (evictions - 1) * g.levels * (g.Z + g.n) * g.slot_size
    assert least <= folded.all_bytes * n <= 1.5 * least
    assert g.levels * g.n * g.slot_size <= folded.largest <= 2 * g.levels * (g.Z + g.n) * g.slot_size
    assert found.ring.choice.accesses == n * g.levels
    path = found.geometry
    assert found.oblivious.moved.online_slots == path.layers
    assert found.oblivious.moved.online_bytes == path.layers * path.slot_size
    assert found.encrypted.moved.online_slots == 1


def test_cuckoo_moves_what_the_schedule_says(found: comparison.Comparison) -> None:
    cuckoo, n = found.cuckoo, found.accesses
    g, moved = cuckoo.geometry, cuckoo.moved
    assert cuckoo.off_schedule == 0
    clocks = range(1, n + 1)
    probes = sum(2 * len(g.alive(clock, built=True)) for clock in clocks)
    assert (cuckoo.cells.accesses, cuckoo.view.slots) == (probes, g.levels[g.L].m)
    assert (moved.round_trips, moved.online_slots) == (1, probes / n)
    work = [
        part.last - part.first
        for clock in clocks
        for table in g.running(clock)
        for part in g.work(table, built=True).parts(clock - table.epoch * g.c)
    ]
    most = (probes + sum(work)) * g.slot_size + 64 * n  # and the clocks; what was written last waits
    assert most - 64 - moved.largest <= moved.all_bytes * n <= most


def test_rebuilds_out_of_turn_are_noticed() -> None:
    trace = TraceBackend(MemoryBackend())
    store = library.create(
        trace, key=bytes(32), capacity=64, block_size=48, scheme=library.CuckooParams(c=8), items={b"a": b"1"}
    )
    store[b"a"]
    trace.clear()
    for _ in range(40):
        store[b"a"]
    g = Shape.of(store.info()).geometry
    assert isinstance(g, CuckooGeometry)
    assert off_schedule(trace.events, "slots.1", g, 1) == 0
    assert off_schedule(trace.events, "slots.1", g, 2) > 0
    last = max(i for i, event in enumerate(trace.events) if event.op == "write" and event.region == "slots.1")
    less = [event for i, event in enumerate(trace.events) if i != last]
    assert off_schedule(less + trace.events[-2:-1], "slots.1", g, 1) > 0


def test_the_view_names_the_record_that_was_asked_for(found: comparison.Comparison) -> None:
    records = list(workload.characters(demo.FAST.step))
    asked = workload.requests(records, found.accesses, found.seed)
    assert [request.record for request in asked] == found.encrypted.view.touched.tolist()
    slot, count, _ = found.encrypted.view.top()[0]
    assert count == sum(request.record == slot for request in asked)
    assert found.names[slot] == records[slot][0].decode()


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_self_contained(text: str) -> None:
    assert not re.search(r"https?://|url\(|@import|\bsrc=|\bhref=|<script|<link|<iframe", text)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert {"h1", "svg", "table", "style"} <= set(page.tags)
    assert not {"script", "img", "link"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_the_page_is_self_contained(found: comparison.Comparison) -> None:
    text = picture.page(found)
    check_self_contained(text)
    assert "not a proof" in text
    assert "prefers-color-scheme: dark" in text
    assert "One slot of a bucket" in text
    assert all(cell in text for row in comparison.move_rows(found) for cell in row)
    assert found.names[found.encrypted.view.top()[0][0]] in text
    assert "nan" not in text.lower().replace("resonance", "").split()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_terminal(found: comparison.Comparison, width: int) -> None:
    out = io.StringIO()
    demo.show(Console(file=out, width=width), found)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    for side, header in ((found.encrypted, "slot times what is there"), (found.oblivious, "page times")):
        row, column = next((i, row.index(header)) for i, row in enumerate(cells) if header in row)
        shown = [tuple(map(int, cells[row + 1 + i][column].split()[:2])) for i in range(10)]
        assert shown == [(slot, times) for slot, times, _ in side.view.top()]


def test_the_command(oram: Oram, tmp_path: Path) -> None:
    done = oram("demo", "--fast", "--accesses", 150, "--seed", 7, "--dir", "kept", "--output", "page[b].html")
    assert (done.code, done.err) == (0, "")
    assert "Encrypted store" in done.text
    assert "Oblivious store: Path" in done.text
    assert "Oblivious store: Ring" in done.text
    assert "not a proof" in " ".join(done.text.split())
    assert max(map(len, done.text.splitlines())) <= 80
    assert "page[b].html" in done.text  # no markup
    check_self_contained((tmp_path / "page[b].html").read_text())
    name = unicodedata.name("A")
    assert oram("get", "kept/oblivious", name, "--key-file", "kept/key").code in (0, 1)  # each 16th character is there
    assert oram("verify", "kept/oblivious", "--key-file", "kept/key").code == 0
    assert oram("demo", "--fast", "--dir", "kept").code == 3


def test_characters() -> None:
    records = dict(workload.characters())
    assert len(records) == sum(unicodedata.name(chr(point), None) is not None for point in range(0x110000))
    assert records[b"LATIN SMALL LETTER E WITH ACUTE"] == b"U+00E9;Ll;L;0;A;N;-;0065 0301"
    assert records[b"VULGAR FRACTION ONE HALF"].split(b";")[6] == b"0.5"
    assert max(len(key) + len(value) for key, value in records.items()) + len(b";99999") + 7 <= demo.BLOCK


def test_requests_are_skewed_and_repeatable() -> None:
    records = [(b"%d" % i, b"v") for i in range(1000)]
    asked = workload.requests(records, 5000, 3)
    assert asked == workload.requests(records, 5000, 3)
    assert asked != workload.requests(records, 5000, 4)
    counts = np.bincount([request.record for request in asked], minlength=1000)
    expected = 1 / sum(k**-workload.THETA for k in range(1, 1001))
    assert stats.binomtest(int(counts.max()), 5000, expected).pvalue > 1e-6
    assert stats.binomtest(sum(request.value is not None for request in asked), 5000, workload.PUTS).pvalue > 1e-6


# --- the numbers


@pytest.mark.parametrize("p", [0.999, 0.5, 0.01, 1e-4])
def test_chi_square(p: float) -> None:
    assert chi_square_p(float(stats.chi2.isf(p, BINS - 1)), BINS - 1) == pytest.approx(p, rel=0.04)


def test_uniformity_holds_at_its_stated_rate() -> None:
    """Of 2000 uniform runs, on a number of slots that 64 does not divide, about a hundredth is below 0.01 (false alarm 1e-6)."""
    random = np.random.default_rng(5)
    low = sum(View(1000, random.integers(0, 1000, 3000), (False,) * 3000).p_value < 0.01 for _ in range(2000))
    assert stats.binomtest(low, 2000, 0.01).pvalue > 1e-6


def test_a_hot_slot_is_found() -> None:
    touched = np.random.default_rng(5).integers(0, 1000, 3000)
    touched[::20] = 77
    view = View(1000, touched, (False,) * 3000)
    assert not view.uniform
    assert view.top(1)[0][0] == 77
    assert view.bins().sum() == 3000


def test_repeats() -> None:
    random = np.random.default_rng(5)
    view = View(10_000, random.integers(0, 10_000, 3000), (False,) * 3000)
    assert view.repeats == pytest.approx(view.repeats_by_chance, abs=0.03)
    assert View(4, np.array([0, 1, 0, 0]), (False,) * 4).repeats == 0.5


def test_views_of_events() -> None:
    events = [
        Event("read", "r", (3,), 9, 0),
        Event("write", "r", (4,), 9, 1),
        Event("read", "s", (0, 2, 5), 9, 2),
        Event("write", "s", (0, 2, 5), 9, 3),
        Event("sync", "", (), 0, 4),
    ]
    plain, tree = View.of_records(events, "r", 10), View.of_paths(events, "s", 3, 4)
    assert (plain.touched.tolist(), plain.written) == ([3, 4], (False, True))
    assert (tree.touched.tolist(), tree.written) == ([2], (False,))


def xor(*slots: int) -> Event:
    return Event("xor", "r", slots, 9, 0)


def test_views_of_ring_events() -> None:
    events = [
        xor(1, 9),
        Event("read", "r", (4, 5), 9, 0),
        xor(-1, 11),
        Event("write", "r", (0, 1, 2, 3), 9, 1),
        xor(1, 8),
    ]
    assert View.of_buckets(events, "r", 8, 8).touched.tolist() == [1, 3, 0]
    view = View.of_choices(events, "r", 4, 1)
    ranks = [
        (1, 4), (1, 4),  # of four
        (2, 3),  # slot 3 is the third of those left in bucket 2
        (1, 4),  # bucket 0 was written anew
        (0, 2),
    ]  # fmt: skip
    for touched, (rank, of) in zip(view.touched.tolist(), ranks, strict=True):
        assert rank / of <= touched / view.slots < (rank + 1) / of


@pytest.mark.parametrize("first", [False, True])
def test_the_first_slot_every_time_is_found(first: bool) -> None:
    """A client that takes the first slot that it has not read, and not a random one (false alarm of the honest one 1e-6)."""
    random, events, left = np.random.default_rng(5), [], list(range(20))
    for _ in range(3000):
        slot = left[0] if first else int(random.choice(left))
        left.remove(slot)
        events.append(xor(slot))
        if len(left) == 8:
            events.append(Event("write", "r", tuple(range(20)), 9, 0))
            left = list(range(20))
    assert (View.of_choices(events, "r", 20, 1).p_value > FALSE_ALARM) is not first


def test_the_encrypted_store() -> None:
    backend = MemoryBackend()
    trace = TraceBackend(backend, keep_data=True)
    store = EncryptedStore(trace, 64)
    store.load([(b"a", b"1"), (b"b", b"2")])
    store.put(b"a", b"3")
    assert (store.get(b"a"), store.get(b"b")) == (b"3", b"2")
    with pytest.raises(MissingKeyError):
        store.get(b"c")
    seen = [event.data.tobytes() for event in trace.events if event.data is not None and event.op == "write"]
    assert len({len(data) // (2 if i == 0 else 1) for i, data in enumerate(seen)}) == 1
    slots = backend.read("records", np.array([0, 1]))
    backend.write("records", np.array([1, 0]), slots.data)
    with pytest.raises(IntegrityError):
        store.get(b"a")


def test_plain_durability_of_the_runs_is_the_backends(tmp_path: Path) -> None:
    """The sync run is not made fast by a backend that does not sync."""
    made = []
    init = LMDBBackend.__init__

    def recorded(self: LMDBBackend, path: Any, *, sync: bool = True, **more: Any) -> None:
        made.append(sync)
        init(self, path, sync=sync, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LMDBBackend, "__init__", recorded)
        demo.compare(tmp_path, demo.Setting(256, 10, 0), 10, 1)
    assert made == [False, True, False] * 2  # Ring has its slots elsewhere
    assert library.__version__
