"""The demo's comparison as one web page: HTML, CSS and inline SVG, with nothing to load from anywhere and no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from oram.cli.comparison import Comparison, Side, cost_rows, move_rows, p_text, verdict
from oram.cli.view import ALPHA, BINS, View
from oram.cli.workload import THETA

__all__ = ["page"]

_CSS = """
:root { color-scheme: light dark; --bg: #f7f7f5; --card: #fff; --ink: #1c1d21; --soft: #5d6068; --line: #d9dadd;
  --plain: #c2410c; --put: #6d28d9; --flat: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --bg: #131417; --card: #1c1e22; --ink: #e8e9ec; --soft: #a0a4ad; --line: #3a3d44;
  --plain: #fb923c; --put: #c4b5fd; --flat: #2dd4bf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 0; }
h3 { font-size: .95rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0; }
.lead { color: var(--soft); max-width: 62rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1.1rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem 1.3rem 1.3rem; min-width: 0; }
.card > .lead { font-size: .9rem; min-height: 2.7rem; }
.plain { --side: var(--plain); } .flat { --side: var(--flat); }
.plain h2, .flat h2 { color: var(--side); }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--soft); }
.axis { stroke: var(--line); fill: none; }
.expected { stroke: var(--ink); stroke-dasharray: 4 4; opacity: .65; }
.bar { fill: var(--side); }
.dots { fill: none; stroke-linecap: round; stroke-width: 2.6; opacity: .6; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
.numbers { display: grid; grid-template-columns: repeat(2, 1fr); gap: .6rem 1.2rem; margin: 1.2rem 0 0; }
.numbers div { border-top: 1px solid var(--line); padding-top: .4rem; }
.numbers dt { font-size: .85rem; color: var(--soft); } .numbers dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.numbers small { font-size: .8rem; font-weight: 400; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); } th.n, td.n { text-align: right; white-space: nowrap; }
th, td { padding: .22rem 1.1rem .22rem 0; border-bottom: 1px solid var(--line); } .wide td:last-child, .wide th:last-child, .name { padding-right: 0; }
td.name { max-width: 0; width: 99%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
td.free { white-space: normal; vertical-align: middle; text-align: center; color: var(--soft); padding: 0 2rem; }
.wide { overflow-x: auto; }
.say { font-size: 1.05rem; max-width: 62rem; }
footer { color: var(--soft); font-size: .85rem; margin-top: 1.6rem; }
"""

# The plots' area within their drawing.
_LEFT, _RIGHT, _TOP = 58, 512, 10


def page(found: Comparison) -> str:
    """The whole page."""
    g, r = found.geometry, found.ring.geometry
    highest = max(int(side.view.bins().max()) for side in (found.encrypted, found.oblivious, found.ring, found.cuckoo))
    lead = (
        f"The same {found.accesses:,} requests ({found.puts:,} puts, the rest gets) went to four stores of {found.records:,} records: the named "
        f"characters of Unicode {found.unicode} and their properties. A few records are asked for often and most never (zipf, theta {THETA}, seed "
        f"{found.seed}). All of them encrypt everything; below is all that is left for the server to see."
    )
    server, times = (
        (
            "All stores are on a Redis or Valkey server, which",
            "Syncs are of the client state only: when the server writes to its disk, its settings say.",
        )
        if found.server
        else (
            "Its server is memory that plays one far away: it",
            "The Ring and Cuckoo stores are in memory that plays a remote server, so their times say nothing beside these.",
        )
    )
    sentences = "\n".join(f'<p class="say">{escape(sentence)}</p>' for sentence in verdict(found))
    body = f"""<main>
<h1>What the server sees</h1>
<p class="lead">{escape(lead)}</p>
<div class="pair">
{_card(found, found.encrypted, highest)}
{_card(found, found.oblivious, highest)}
{_card(found, found.ring, highest)}
{_card(found, found.cuckoo, highest)}
{_cells(found)}
{_moves(found)}
</div>
<section class="card">
<h2>The same, without the order</h2>
<p class="lead">How often each slot was touched, the most touched slot first. Both axes are logarithmic and shared.</p>
{_ranks(found)}
<div class="legend">{_key("--plain", "encrypted store, by slot")}{_key("--flat", "oblivious store, Path, by page of the bottom layer")}</div>
</section>
<div class="pair" style="grid-template-columns: 1fr"><section class="card">
<h2>What an access costs</h2>
<div class="wide">{_costs(found)}</div>
<p class="lead">sync survives power loss, process a killed process. Times are those of the client on this machine, with tracing on for both. Bytes are
those of slots; the journal is client state beside them. Loading took {found.encrypted.load_seconds:.1f} s and {found.oblivious.load_seconds:.1f} s. {times}</p>
</section></div>
{sentences}
<footer>Blocks of {found.block} bytes. The first oblivious store is Path ORAM with a tree of {g.L + 1} levels; the client keeps the top {g.T} in
{found.tree_top >> 10:,} KiB of memory and the server holds levels {g.T} to {g.L} in {g.slots:,} pages, of which an access reads and writes {g.layers}. Each
access is shown by its page of the bottom layer, from which the pages above it follow. What the server saw was recorded between the client and its
backend, in the run with durability sync. The second is Ring ORAM with Z={r.Z}, A={r.A}, S={r.S} and a tree of {r.L + 1} levels, of which the client keeps
{r.T}; its client state is on disk. Each access is shown by the slot that it reads at the lowest level. {server} XORs slots, and what
an access writes travels with the next one's read. The third is Cuckoo ORAM with {found.cuckoo.geometry.L} levels of tables above the bottom, which has room for
all blocks; each access is shown by the first cell that it looks into there. It is where the Ring store is. The test of uniformity is chi-square over
{BINS} bins, its p-value by Wilson and Hilferty's approximation; below
{ALPHA:g} a run is called not uniform, which befalls each uniform one once in {1 / ALPHA:,.0f} times.</footer>
</main>"""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>What the server sees: an oblivious store beside an encrypted one</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _key(colour: str, text: str) -> str:
    return f'<span><i style="background: var({colour})"></i>{escape(text)}</span>'


def _card(found: Comparison, side: Side, highest: int) -> str:
    view, plain = side.view, side is found.encrypted
    if plain:
        what = "One slot a record, sealed with AES-256-GCM. The server cannot read a record, but it sees which one."
        where, legend = "slot", _key("--plain", "seen to be read") + _key("--put", "seen to be written")
    elif side is found.oblivious:
        what = "Path ORAM: each access reads one random path of pages, and writes it back sealed anew."
        where, legend = "page of the bottom layer", _key("--flat", "read and written back, each time")
    elif side is found.cuckoo:
        what = "Cuckoo ORAM: each access reads two random cells of every table; tables are rebuilt, a little at a time, as its number says."
        where, legend = "cell of the bottom's first table", _key("--flat", "read, each time")
    else:
        what = "Ring ORAM: each access reads one slot of each bucket on a random path; a path is written anew now and then."
        where, legend = "slot of the lowest level", _key("--flat", "read, each time")
    return f"""<section class="card {"plain" if plain else "flat"}">
<h2>{escape(side.title)}</h2>
<p class="lead">{escape(what)}</p>
<h3>Every access, in order</h3>
{_scatter(view, where)}
<div class="legend">{legend}</div>
<h3>Accesses by {where}, in {BINS} bins</h3>
{_histogram(view, highest, where)}
<div class="legend">Fullest bin {view.bins().max():,}, emptiest {view.bins().min():,}; dashed: even, {view.accesses / BINS:.1f}. Same scale in all.</div>
{_numbers(side)}
<h3>The ten most touched {side.unit}s</h3>
{_top(found, side)}
</section>"""


def _cells(found: Comparison) -> str:
    """Which cells Cuckoo looks into, and what its rebuilds move."""
    cuckoo, view = found.cuckoo, found.cuckoo.cells
    looks = "looks uniform" if view.uniform else "not uniform"
    odd = f"{cuckoo.off_schedule:,} of {len(cuckoo.view.touched):,} accesses" if cuckoo.off_schedule else "no access"
    return f"""<section class="card flat">
<h2>Two cells of each table</h2>
<p class="lead">A block may lie in two cells of a table, as a secret hash says. Where the block is not, two random cells are read in their place.</p>
<h3>Where in its table each of them is, in {BINS} bins</h3>
{_histogram(view, int(view.bins().max()), "part of the table", ("0", "1"))}
<div class="legend">{view.accesses:,} cells, {cuckoo.tables:.1f} tables an access; p = {p_text(view.p_value)}, {looks}.</div>
<h3>Rebuilds</h3>
<p class="lead">They read and write whole tables in a fixed order, a share with each access. Which slots these are follows from the number of accesses
alone: {odd} moved any other.</p>
</section>"""


def _moves(found: Comparison) -> str:
    """Which slot of a bucket Ring reads, and what an access moves."""
    ring, view = found.ring, found.ring.choice
    looks = "looks uniform" if view.uniform else "not uniform"
    head = ("store", "trips", "for an answer", "bytes", "in all", "largest")
    lines = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td class=n>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in move_rows(found)
    )
    columns = f"<th>{head[0]}</th>" + "".join(f"<th class=n>{title}</th>" for title in head[1:])
    return f"""<section class="card flat">
<h2>One slot of a bucket</h2>
<p class="lead">Path reads whole buckets. Ring reads the block that is asked for, or a dummy: a random one of the slots not read since they were written.</p>
<h3>Which of them, as a share of the bucket, in {BINS} bins</h3>
{_histogram(view, int(view.bins().max()), "slot among those not read yet", ("0", "1"))}
<div class="legend">{view.accesses:,} slots in {len(ring.view.touched):,} accesses; p = {p_text(view.p_value)}, {looks}.</div>
<h3>What an access moves</h3>
<div class="wide"><table><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>
<p class="lead">Round trips, and bytes; on average, but for those of the largest round trip. The server of Ring, XOR returns the XOR of the slots; the client
cancels the dummies, which it can seal again itself, and opens what is left.</p>
</section>"""


def _frame(height: int, x: tuple[str, str, str], y: Sequence[tuple[float, str]], inside: str, title: str) -> str:
    """A drawing with axes: labels below the x axis at its ends and middle, and of the y axis by height (0 bottom, 1 top)."""
    bottom = height - 24
    labels = "".join(
        f'<text x="{_LEFT - 7}" y="{bottom - at * (bottom - _TOP) + 4:.0f}" text-anchor="end">{escape(text)}</text>'
        for at, text in y
    )
    below = "".join(
        f'<text x="{at}" y="{height - 6}" text-anchor="{anchor}">{escape(text)}</text>'
        for at, anchor, text in zip((_LEFT, (_LEFT + _RIGHT) // 2, _RIGHT), ("start", "middle", "end"), x, strict=True)
    )
    return (
        f'<svg viewBox="0 0 520 {height}" role="img" aria-label="{escape(title)}">'
        f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{_RIGHT}"/>{inside}{labels}{below}</svg>'
    )


def _scatter(view: View, where: str) -> str:
    height = 300
    bottom = height - 24

    def dots(written: bool) -> str:
        return "".join(
            f"M{_LEFT + 3 + (i + 0.5) * (_RIGHT - _LEFT - 5) / view.accesses:.1f} {bottom - 3 - (slot + 0.5) * (bottom - _TOP - 5) / view.slots:.1f}h0"
            for i, (slot, put) in enumerate(zip(view.touched.tolist(), view.written, strict=True))
            if put == written
        )

    inside = f'<path class="dots" style="stroke: var(--side)" d="{dots(False)}"/>'
    if any(view.written):
        inside += f'<path class="dots" style="stroke: var(--put); opacity: .9" d="{dots(True)}"/>'
    y = [(0.0, "0"), (0.5, f"{view.slots // 2:,}"), (1.0, f"{view.slots - 1:,}")]
    return _frame(height, ("first access", f"↑ {where}", "last"), y, inside, f"Every access in order, by {where}")


def _histogram(view: View, highest: int, where: str, ends: tuple[str, str] | None = None) -> str:
    height = 190
    bottom = height - 24
    bins = view.bins().tolist()
    step, unit = (_RIGHT - _LEFT - 4) / len(bins), (bottom - _TOP) / highest
    bars = "".join(
        f'<rect class="bar" x="{_LEFT + 3 + i * step:.1f}" y="{bottom - n * unit:.1f}" width="{step - 1:.1f}" height="{n * unit:.1f}"/>'
        for i, n in enumerate(bins)
    )
    even = view.accesses / len(bins)
    line = f'<path class="expected" d="M{_LEFT} {bottom - even * unit:.1f}H{_RIGHT}"/>'
    y = [(0.0, "0"), (0.5, f"{highest / 2:,.0f}"), (1.0, f"{highest:,}")]
    first, last = ends or ("0", f"{view.slots - 1:,}")
    return _frame(height, (first, where, last), y, bars + line, f"Accesses by {where}")


def _numbers(side: Side) -> str:
    view = side.view
    entries = [
        ("p-value of uniformity", p_text(view.p_value), "looks uniform" if view.uniform else "not uniform"),
        ("a slot touched before", f"{view.repeats:.1%}", f"by chance {view.repeats_by_chance:.1%}"),
        (f"share of the top ten {side.unit}s", f"{view.top_share:.1%}", ""),
        ("gets and puts", "told apart" if any(view.written) else "look the same", ""),
    ]
    return f'<dl class="numbers">{"".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)} <small>{escape(c)}</small></dd></div>" for a, b, c in entries)}</dl>'


def _top(found: Comparison, side: Side) -> str:
    plain = side is found.encrypted
    rows = [
        (f"{slot:,}", f"{count:,}", f"{share:.2%}", *([found.names[slot]] if plain else []))
        for slot, count, share in side.view.top()
    ]
    if not plain:
        note = f"No {side.unit} stands for a record: the block that was asked for moves to a new random path."
        first, *rest = (_row((*row, "")) for row in rows)
        first = first.replace("<td class=name>", f'<td class="name free" rowspan={len(rows)}>{escape(note)}')
        lines = first + "".join(row.replace("<td class=name></td>", "") for row in rest)
    else:
        lines = "".join(_row(row) for row in rows)
    head = _row((side.unit, "times", "share", "what the owner knows is there"), "th")
    return f"<table><thead>{head}</thead><tbody>{lines}</tbody></table>"


def _row(cells: Iterable[str], tag: str = "td") -> str:
    *numbers, name = cells
    return f"<tr>{''.join(f'<{tag} class=n>{escape(cell)}</{tag}>' for cell in numbers)}<{tag} class=name>{escape(name)}</{tag}></tr>"


def _ranks(found: Comparison) -> str:
    height = 300
    bottom = height - 24
    views = ((found.encrypted.view, "--plain"), (found.oblivious.view, "--flat"))
    lists = [(view.counts()[1].tolist(), colour) for view, colour in views]
    most, longest = max(counts[0] for counts, _ in lists), max(len(counts) for counts, _ in lists)
    across = (_RIGHT - _LEFT - 10) / math.log(max(2, longest))
    up = (bottom - _TOP - 14) / math.log(max(2, most))
    inside = ""
    for counts, colour in lists:
        points = [
            (_LEFT + 3 + across * math.log(rank), bottom - 8 - up * math.log(n)) for rank, n in enumerate(counts, 1)
        ]
        # Steps: where the count stays the same only its ends matter.
        kept = [
            p
            for i, p in enumerate(points)
            if i in (0, len(points) - 1) or not points[i - 1][1] == p[1] == points[i + 1][1]
        ]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in kept)
        inside += f'<path fill="none" stroke="var({colour})" stroke-width="2.2" stroke-linejoin="round" d="M{line}"/>'
    y = [((8 + up * math.log(n)) / (bottom - _TOP), f"{n:,}") for n in _ticks(most)]
    labels = ("rank 1", "slots by rank", f"{longest:,}")
    return f'<div style="max-width: 640px; margin: auto">{_frame(height, labels, y, inside, "How often slots were touched, by rank")}</div>'


def _ticks(most: int) -> list[int]:
    ticks = [1]
    while ticks[-1] * 10 <= most:
        ticks.append(ticks[-1] * 10)
    return ticks if most < ticks[-1] * 2 else [*ticks, most]


def _costs(found: Comparison) -> str:
    head = (
        "durability",
        "store",
        "accesses a second",
        "p50, µs",
        "p99, µs",
        "round trips",
        "bytes moved",
        "journal bytes",
    )
    rows = "".join(
        f"<tr><td>{escape(row[0])}</td><td>{escape(row[1])}</td>{''.join(f'<td class=n>{escape(cell)}</td>' for cell in row[2:])}</tr>"
        for row in cost_rows(found)
    )
    columns = f"<th>{head[0]}</th><th>{head[1]}</th>" + "".join(f"<th class=n>{escape(name)}</th>" for name in head[2:])
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"
