"""``oram demo``: the same workload on an encrypted store and on three oblivious ones, and what the server saw of it."""

from __future__ import annotations

import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import oram
from oram import encrypted
from oram.assembly import Shape
from oram.backends import Backend, Capability, LMDBBackend, MemoryBackend
from oram.cli import picture, places, workload
from oram.cli.comparison import RUNS, Comparison, Cuckoo, Ring, Side, cost_rows, move_rows, p_text, verdict
from oram.cli.credentials import write_key
from oram.cli.exits import InputError
from oram.cli.output import plain
from oram.cli.progress import Meter, meter
from oram.cli.signals import ending
from oram.cli.view import BINS, Cost, Moved, View, off_schedule
from oram.engine import Durability
from oram.errors import StoreExistsError
from oram.params import CuckooGeometry, PathGeometry, RingGeometry, RingParams
from oram.trace import TraceBackend

__all__ = ["FAST", "FULL", "Setting", "compare", "run", "show"]

BLOCK = 192  # bytes: the longest name with its properties, a put's mark and the record's own 7 bytes
_HEIGHT = 8  # lines of a bar chart


@dataclass(frozen=True, slots=True)
class Setting:
    """How large the demo is."""

    step: int  # each step-th character
    accesses: int
    tree_top: int  # bytes


FULL = Setting(1, 2000, 1 << 20)
FAST = Setting(16, 700, 1 << 16)


class Store(Protocol):
    """What the workload needs."""

    def get(self, key: bytes, /) -> bytes | None:
        """The value of a key."""
        ...

    def put(self, key: bytes, value: bytes, /) -> None:
        """Store a value."""
        ...


class FarBackend(MemoryBackend):
    """Memory that plays a server far away, of which the client sees no more than the answers."""

    capabilities: ClassVar[Capability] = Capability.ATOMIC | Capability.XOR | Capability.REMOTE


class Ground(Protocol):
    """Where the demo's stores lie."""

    #: Whether that is a server.
    remote: bool

    def room(self, store: str) -> AbstractContextManager[None]:
        """Around all that one store does."""
        ...

    def open(self, store: str, *, sync: bool, create: bool) -> Backend:
        """The backend of a store: "encrypted", "oblivious" or "ring"."""
        ...

    def state(self, store: str) -> Path | None:
        """Where its client state lies, None for beside the slots."""
        ...

    def trace(self, backend: Backend) -> TraceBackend:
        """Records what the server sees."""
        ...


class Disk:
    """On this disk; and in memory that plays a server far away, for Ring and Cuckoo."""

    remote = False
    _far = ("ring", "cuckoo")
    trace = staticmethod(TraceBackend)

    def __init__(self, home: Path, client: Path) -> None:
        self._home, self._client = home, client

    def room(self, store: str) -> AbstractContextManager[None]:  # noqa: ARG002  # it stays
        return nullcontext()

    def open(self, store: str, *, sync: bool, create: bool) -> Backend:
        return FarBackend() if store in self._far else LMDBBackend(self._home / store, sync=sync, create=create)

    def state(self, store: str) -> Path | None:
        return self._client / store if store in self._far else None


class Server:
    """On a server; the client states are on this disk."""

    remote = True

    def __init__(self, place: str, client: Path) -> None:
        from oram.cli import guest  # not at the top: it brings redis

        self._guest, self._client = guest.Guest.of(places.server(place)), client
        self.room = self._guest.room
        self.trace: Callable[[Backend], TraceBackend] = guest.WireTrace

    def open(self, store: str, *, sync: bool, create: bool) -> Backend:  # noqa: ARG002  # both are the server's affair
        return self._guest.open(store)

    def state(self, store: str) -> Path | None:
        return self._client / store


def run(
    *, output: Path, directory: Path | None, accesses: int | None, seed: int, fast: bool, server: str | None = None
) -> None:
    """Load the stores, run the workload, print the comparison and write it as a web page.

    server: the URL of one, on which all stores are then, and removed again.
    """
    setting = FAST if fast else FULL
    if seed < 0:
        raise InputError("--seed is a number of 0 or more")
    if not output.parent.is_dir():
        raise InputError(f"there is no directory {output.parent}")
    if server is not None and directory is not None:
        raise InputError("--dir keeps the stores on this disk; those on a server are removed")
    console = Console()
    place: AbstractContextManager[str | Path] = (
        tempfile.TemporaryDirectory(prefix="oram-demo-") if directory is None else nullcontext(directory)
    )
    with ending(), place as home:
        found = compare(
            Path(home), setting, setting.accesses if accesses is None else accesses, seed, keep=directory is not None, server=server,
        )  # fmt: skip
    output.write_text(picture.page(found), encoding="utf-8")
    show(console, found)
    console.print(Text(f"\nThe same as a web page: {output}"), soft_wrap=True)
    if server is not None:
        console.print("What was made on the server is removed.")
    if directory is not None:
        said = f"The oblivious store, Path, is {directory / 'oblivious'}; its key is in {directory / 'key'}."
        console.print(Text(said), soft_wrap=True)


# --- the stores


def compare(
    home: Path, setting: Setting, accesses: int, seed: int, *, keep: bool = False, server: str | None = None
) -> Comparison:
    """Run the demo in a directory.

    keep: write the key of the oblivious store to a file beside it. server: the URL of one for the stores.
    """
    if any((home / name).exists() for name in ("encrypted", "oblivious", "key")):
        raise StoreExistsError("the directory has the stores of a demo already")
    with meter("reading the character database") as bar, tempfile.TemporaryDirectory(prefix="oram-demo-") as client:
        ground: Ground = Disk(home, Path(client)) if server is None else Server(server, Path(client))
        records = list(workload.characters(setting.step))
        asked = workload.requests(records, accesses, seed)
        plain = _run_encrypted(ground, records, asked, bar)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = (write_key(home / "key").key if keep else None) or oram.generate_key()
        oblivious, geometry = _run_oblivious(ground, key, records, asked, setting, bar)
        ring = _run_ring(ground, records, asked, setting, bar)
        cuckoo = _run_cuckoo(ground, records, asked, setting, bar)
    return Comparison(
        len(records), unicodedata.unidata_version, accesses, sum(request.value is not None for request in asked), seed,
        geometry, setting.tree_top, BLOCK, tuple(name.decode() for name, _ in records), plain, oblivious, ring, cuckoo, ground.remote,
    )  # fmt: skip


def _run_encrypted(
    ground: Ground, records: Sequence[tuple[bytes, bytes]], asked: Sequence[workload.Request], bar: Meter
) -> Side:
    bar.stage("encrypted store: loading", None)
    costs, seen, moved = {}, None, None
    with ground.room("encrypted"):
        start = time.perf_counter()
        with ground.open("encrypted", sync=False, create=True) as backend:
            store = encrypted.EncryptedStore(backend, BLOCK)
            store.load(records)
            backend.sync()
        loaded = time.perf_counter() - start
        for durability in RUNS:
            bar.stage(f"encrypted store: accesses, {durability}", len(asked))
            with ground.open("encrypted", sync=durability is Durability.SYNC, create=False) as backend:
                trace = ground.trace(backend)
                store.backend = trace
                costs[str(durability)] = Cost.of(trace, _drive(store, asked, bar))
                seen = seen or View.of_records(trace.events, encrypted.REGION, len(records))
                moved = moved or Moved.of_slots(trace, len(asked), encrypted.REGION, ("read", "write"))
    assert seen is not None
    assert moved is not None
    return Side("Encrypted store", "slot", seen, costs, loaded, moved)


def _run_oblivious(
    ground: Ground,
    key: bytes,
    records: Sequence[tuple[bytes, bytes]],
    asked: Sequence[workload.Request],
    setting: Setting,
    bar: Meter,
) -> tuple[Side, PathGeometry]:
    bar.stage("oblivious store: bulk load", len(records))
    name = "oblivious"
    state = ground.state(name)
    costs, seen, moved = {}, None, None
    with ground.room(name):
        start = time.perf_counter()
        with ground.open(name, sync=False, create=True) as backend:
            store = oram.create(
                ground.trace(backend), key=key, capacity=len(records), block_size=BLOCK, scheme="path", tree_top=setting.tree_top,
                durability="process", state=state, items=records, progress=bar.at,
            )  # fmt: skip
            with store:
                store.flush()
                geometry = Shape.of(store.info()).geometry
        loaded = time.perf_counter() - start
        assert isinstance(geometry, PathGeometry)
        first = geometry.offsets[-2]
        for durability in RUNS:
            bar.stage(f"oblivious store: accesses, {durability}", len(asked))
            with ground.open(name, sync=durability is Durability.SYNC, create=False) as backend:
                trace = ground.trace(backend)
                with oram.open(trace, key=key, durability=durability, state=state) as store:
                    trace.clear()
                    costs[str(durability)] = Cost.of(trace, _drive(store, asked, bar))
                    region = next(event.region for event in trace.events if event.op == "read")
                    seen = seen or View.of_paths(trace.events, region, first, geometry.slots - first)
                    moved = moved or Moved.of_slots(trace, len(asked), region)
    assert seen is not None
    assert moved is not None
    return Side("Oblivious store: Path", "page", seen, costs, loaded, moved), geometry


def _run_ring(
    ground: Ground,
    records: Sequence[tuple[bytes, bytes]],
    asked: Sequence[workload.Request],
    setting: Setting,
    bar: Meter,
) -> Ring:
    """Ring where it is meant to be: slots far away, client state on this disk. One handle, so that the trace has all since the load."""
    bar.stage("oblivious store, Ring: bulk load", len(records))
    with ground.room("ring"):
        start = time.perf_counter()
        with ground.open("ring", sync=False, create=True) as backend:
            trace = ground.trace(backend)
            store = oram.create(
                trace, key=oram.generate_key(), capacity=len(records), block_size=BLOCK, scheme=RingParams(xor=True),
                tree_top=setting.tree_top, durability="process", state=ground.state("ring"), items=records, progress=bar.at,
            )  # fmt: skip
            with store:
                loaded = time.perf_counter() - start
                g = Shape.of(store.info()).geometry
                assert isinstance(g, RingGeometry)
                bar.stage("oblivious store, Ring: accesses", len(asked))
                trace.clear()
                cost = Cost.of(trace, _drive(store, asked, bar))
                region = next(event.region for event in trace.events if event.op == "xor")
                first = g.slots - (g.n << g.L)
                seen = View.of_buckets(trace.events, region, first, g.n << g.L)
                choice = View.of_choices(trace.events, region, g.n, seed=1)
                moved, apart = (Moved.of_xor(trace, region, folded=folded) for folded in (True, False))
    return Ring(
        "Oblivious store: Ring",
        "slot",
        seen,
        {"process": cost},
        loaded,
        moved,
        geometry=g,
        choice=choice,
        one_by_one=apart,
    )


def _run_cuckoo(
    ground: Ground,
    records: Sequence[tuple[bytes, bytes]],
    asked: Sequence[workload.Request],
    setting: Setting,
    bar: Meter,
) -> Cuckoo:
    """Cuckoo in the same place as Ring, by one handle too."""
    bar.stage("oblivious store, Cuckoo: bulk load", len(records))
    with ground.room("cuckoo"):
        start = time.perf_counter()
        with ground.open("cuckoo", sync=False, create=True) as backend:
            trace = ground.trace(backend)
            store = oram.create(
                trace, key=oram.generate_key(), capacity=len(records), block_size=BLOCK, scheme="cuckoo",
                tree_top=setting.tree_top, durability="process", state=ground.state("cuckoo"), items=records, progress=bar.at,
            )  # fmt: skip
            with store:
                loaded = time.perf_counter() - start
                g = Shape.of(store.info()).geometry
                assert isinstance(g, CuckooGeometry)
                bar.stage("oblivious store, Cuckoo: accesses", len(asked))
                store.get(records[0][0])  # the first access reads the stashes besides
                trace.clear()
                cost = Cost.of(trace, _drive(store, asked, bar))
                region = next(event.region for event in trace.events if event.op == "read")
                seen = View.of_tables(trace.events, region, g, 1)
                cells = View.of_cells(trace.events, region, g, 1, seed=1)
                moved = Moved.of_probes(trace, len(asked), region, cells.accesses)
                odd = off_schedule(trace.events, region, g, 1)
    tables = cells.accesses / 2 / len(asked)
    return Cuckoo(
        "Oblivious store: Cuckoo",
        "cell",
        seen,
        {"process": cost},
        loaded,
        moved,
        geometry=g,
        cells=cells,
        tables=tables,
        off_schedule=odd,
    )


def _drive(store: Store, asked: Sequence[workload.Request], bar: Meter) -> list[float]:
    """Run the requests; the seconds that each took. What was put is checked when it is asked for again."""
    now, seconds = time.perf_counter, []
    last: dict[bytes, bytes] = {}
    for i, request in enumerate(asked):
        start = now()
        if request.value is None:
            value = store.get(request.key)
        else:
            store.put(request.key, request.value)
            value = last[request.key] = request.value
        seconds.append(now() - start)
        if value is None or value != last.get(request.key, value):
            raise AssertionError("a store of the demo returned what was not put")
        if i & 0x3F == 0:
            bar.at(i)
    return seconds


# --- the terminal


def show(console: Console, found: Comparison) -> None:
    """Print the comparison."""
    g = found.geometry
    console.print(
        f"[bold]What the server sees[/bold]: {found.records:,} records (the named characters of Unicode {found.unicode}), {found.accesses:,} accesses, "
        f"{found.puts:,} of them puts, zipf with theta {workload.THETA}, seed {found.seed}. The server of the oblivious store holds levels {g.T} to {g.L} "
        f"of the tree; the client keeps the {g.T} levels above in {found.tree_top >> 10:,} KiB of memory.",
        highlight=False,
    )
    r = found.ring.geometry
    where = (
        "All four stores are on the server. Of Ring it has"
        if found.server
        else "The Ring and Cuckoo stores are in memory that plays a remote server; of Ring it has"
    )
    console.print(
        f"{where} levels {r.T} to {r.L} of its tree, with {r.Z} blocks and {r.S} dummies or more in each bucket; of Cuckoo "
        f"{found.cuckoo.geometry.L} levels of tables and a bottom for all blocks, below {found.cuckoo.geometry.c} blocks in client memory.",
        highlight=False,
    )
    bars = BINS if console.width >= 2 * (BINS + 5) else BINS // 2
    sides = (found.encrypted, found.oblivious, found.ring, found.cuckoo)
    scale = max(int(side.view.bins(bars).max()) for side in sides)
    panels = [_panel(side, bars, scale, found.names if side is found.encrypted else None) for side in sides]
    panels.append(_moves(found, bars))
    grid = Table.grid(padding=(0, 1))
    across = 2 if console.width >= 2 * (bars + 5) else 1
    for first in range(0, len(panels), across):
        grid.add_row(*panels[first : first + across])
    console.print(grid)
    console.print(_costs(found))
    for sentence in verdict(found):
        console.print(Text(sentence))


def _panel(side: Side, bars: int, scale: int, names: Sequence[str] | None) -> Panel:
    view = side.view
    text = Text()
    text.append(f"{bars} bins of {side.unit}s, 0 to {scale}\n", "dim")
    for line in _chart(view.bins(bars).tolist(), scale):
        text.append(line + "\n", "bold red" if names else "bold cyan")
    text.append(f"{side.unit} 0" + f"{view.slots - 1:,}".rjust(bars - len(side.unit) - 2) + "\n\n", "dim")
    text.append(f"p(uniform)      {p_text(view.p_value)}\n")
    text.append(f"                {'looks uniform' if view.uniform else 'not uniform'}\n")
    text.append(f"touched before  {view.repeats:.1%}\n")
    text.append(f"  by chance     {view.repeats_by_chance:.1%}\n")
    text.append(f"gets and puts   {'told apart' if any(view.written) else 'look the same'}\n")
    text.append(f"top ten {side.unit}s   {view.top_share:.1%}\n\n")
    header = f"{side.unit:>8} times{'' if names is None else ' what is there'}"
    text.append(header[:bars] + "\n", "dim")
    for slot, count, _ in view.top():
        name = "" if names is None else f" {names[slot]}"
        text.append(f"{slot:8} {count:5}{name}"[:bars] + "\n")
    text.rstrip()
    return Panel(text, title=side.title, width=bars + 4)


def _moves(found: Comparison, bars: int) -> Panel:
    """What an access moves, which slot of a bucket Ring asks for, and which cells Cuckoo looks into."""
    choice, cells = found.ring.choice, found.cuckoo.cells
    text = Text()
    text.append("Cuckoo: cells in all tables\n", "dim")
    text.append(f"p(uniform)      {p_text(cells.p_value)}\n")
    text.append(f"                {'looks uniform' if cells.uniform else 'not uniform'}\n")
    odd = found.cuckoo.off_schedule
    text.append(f"rebuilds        {f'{odd:,} out of turn' if odd else 'as the clock says'}\n\n")
    text.append("Ring: a bucket's unread slots\n", "dim")
    text.append(f"p(uniform)      {p_text(choice.p_value)}\n")
    text.append(f"                {'looks uniform' if choice.uniform else 'not uniform'}\n\n")
    text.append("an access moves, in bytes\n", "dim")
    for name, trips, slots, online, moved, largest in move_rows(found):
        text.append(f"{name}\n", "bold")
        rows = (
            (f"for an answer: {slots}", online),
            ("in all", moved),
            ("largest trip", largest),
            ("round trips", trips),
        )
        for label, value in rows:
            text.append(f"  {label}".ljust(bars - len(value)) + value + "\n")
    text.rstrip()
    return Panel(text, title="What moves", width=bars + 4)


def _chart(heights: Sequence[int], scale: int) -> Iterator[str]:
    """A bar chart, from its top line to the bottom."""
    eighths = [round(height * _HEIGHT * 8 / scale) if scale else 0 for height in heights]
    eighths = [max(1, value) if height else 0 for value, height in zip(eighths, heights, strict=True)]
    for row in reversed(range(_HEIGHT)):
        yield "".join(" ▁▂▃▄▅▆▇█"[min(8, max(0, value - 8 * row))] for value in eighths)


def _costs(found: Comparison) -> Table:
    table = Table(
        title="Cost of an access",
        title_justify="left",
        caption="times are of the client, with tracing on",
        caption_justify="left",
    )
    for name in ("durability", "store"):
        table.add_column(name, no_wrap=True)
    for name in ("per s", "p50 us", "p99 us", "trips", "bytes", "journal"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in cost_rows(found):
        table.add_row(*plain(*row))
    return table
