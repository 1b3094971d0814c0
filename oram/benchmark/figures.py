"""Figures as SVG. Each is drawn from rows of the results and returns the numbers it shows, so that the page can print them beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib.figure import Figure

from oram.benchmark.run import Results

__all__ = ["Drawn", "draw"]

Row: TypeAlias = dict[str, Any]

_COLOURS = {
    "path": "#2563eb", "ring": "#d97706", "cuckoo": "#059669", "linear": "#7c3aed", "encrypted": "#db2777", "dict": "#6b7280",
    "plain-lmdb": "#374151", "plain-redis": "#991b1b", "pyoram": "#0891b2",
}  # fmt: skip
_MARKS = "osD^vP*X<>"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 5)), (0, (3, 5, 1, 5)))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure. caption: what one sees. table: the numbers in it, the first row their names."""

    title: str
    caption: str
    svg: str
    table: list[list[str]]


def _colour(name: str, at: int) -> str:
    return _COLOURS.get(name, f"C{at % 10}")


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "oram"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = out.getvalue()
    return text[text.index("<svg") :]


def _axes(title: str, x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.4, 4.2))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log_x:
        axes.set_xscale("log", base=2 if x.split(",")[0] in ("N", "B", "requests of a window") else 10)
    if log_y:
        axes.set_yscale("log")
    axes.grid(visible=True, which="major", alpha=0.3)
    return figure, axes


def number(value: Any) -> str:
    """For people: three digits that count. What is no number stays as it is, None is nothing."""
    if value is None or isinstance(value, str):
        return value or ""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _lines(
    rows: Iterable[Row],
    key: str,
    x: str,
    y: str,
    title: str,
    labels: tuple[str, str],
    caption: str,
    *,
    log_x: bool = True,
    log_y: bool = True,
    ranges: tuple[str, str] | None = None,
) -> Drawn | None:
    """A line a subject. ranges: the least and the most of y, shown as bars and in the table."""
    listed = [row for row in rows if row.get(y)]
    names = list(dict.fromkeys(row[key] for row in listed))
    if not names:
        return None
    figure, axes = _axes(title, *labels, log_x=log_x, log_y=log_y)
    columns = (x, y, *(ranges or ()))
    table = [[key, *labels, *(("least", "most") if ranges else ())]]
    for i, name in enumerate(names):
        points = sorted(tuple(row[column] for column in columns) for row in listed if row[key] == name)
        at, value, *ends = zip(*points, strict=True)
        style: dict[str, Any] = {"marker": _MARKS[i % 10], "ms": 5, "lw": 1.5, "color": _colour(name, i), "label": name}
        if ends:
            least, most = ends
            bars = [[max(0.0, a - b) for a, b in zip(*pair, strict=True)] for pair in ((value, least), (most, value))]
            axes.errorbar(at, value, yerr=bars, capsize=2, elinewidth=1, **style)
        else:
            axes.plot(at, value, **style)
        table += [[name, *map(number, point)] for point in points]
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return Drawn(title, caption, _svg(figure), table)


def _dots(pairs: Sequence[tuple[str, float]], title: str, label: str, caption: str) -> Drawn | None:
    """A value each, on a logarithmic axis, where bars would have no length."""
    if not pairs:
        return None
    figure, axes = _axes(title, label, "", log_x=True)
    figure.set_size_inches(7.4, 1.2 + 0.3 * len(pairs))
    for i, (name, value) in enumerate(pairs):
        axes.plot([value], [name], marker=_MARKS[i % 10], ms=7, color=_colour(name.split(",")[0], i))
        axes.annotate(number(value), (value, i), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    return Drawn(title, caption, _svg(figure), [["", label], *([name, number(value)] for name, value in pairs)])


# --- from the results


def _varied(results: Results, name: str, backend: str) -> list[Row]:
    """The rows of a backend in which only this setting differs from the first of each."""
    base = _base(results)
    others = [each for each in base if each != name]
    return [r for r in results.compared if r["backend"] == backend and all(r[each] == base[each] for each in others)]


def _base(results: Results) -> Row:
    plan = results.plan
    return {
        "N": plan["capacities"][-1], "block_size": plan["block_sizes"][0], "batch": plan["batches"][0], "rtt": plan["rtts"][0],
        "workload": plan["workloads"][0], "cipher": plan["ciphers"][0],
    }  # fmt: skip


def _said(results: Results, *without: str) -> str:
    base = _base(results)
    units = {
        "N": "N = {:,} blocks",
        "block_size": "B = {} bytes",
        "batch": "windows of {} requests",
        "rtt": "{} ms of round trip added",
        "workload": "workload {}",
        "cipher": "{}",
    }
    listed = [name for name in units if name not in without and (name != "rtt" or base["rtt"])]
    return ", ".join(units[name].format(base[name]) for name in listed)


def _moved(results: Results) -> Drawn | None:
    B = results.plan["block_sizes"][0]
    return _lines(
        results.access, "scheme", "N", "blowup", "Bytes moved by an access, in blocks", ("N, blocks", "bytes down and up / B"),
        f"Counted from the trace, not timed; B = {B} bytes, no tree-top cache, seals and metadata included. Ring is asked for XORs, as over a network where "
        "they pay.",
    )  # fmt: skip


def _at_one_N(results: Results) -> list[Row]:
    """What accesses of all schemes cost at the largest N that all of them were counted at, or each at its own."""
    sizes: dict[str, dict[int, Row]] = {}
    for row in results.access:
        sizes.setdefault(row["scheme"], {})[row["N"]] = row
    common = set.intersection(*map(set, sizes.values())) if sizes else set()
    return [each[max(common or each)] for each in sizes.values()]


def _bytes(results: Results) -> Drawn | None:
    listed = _at_one_N(results)
    drawn = _dots(
        [(f"{row['scheme']}, N = {row['N']:,}", row["bytes_down"] + row["bytes_up"]) for row in listed], "Bytes of an access",
        "bytes down and up", "Counted from the trace, as over a network: the write-back rides with the next read. No tree-top cache.",
    )  # fmt: skip
    if drawn is not None:
        names = ("bytes_down", "bytes_up", "round_trips", "server_blowup")
        head = ["scheme", "N", "bytes down", "bytes up", "round trips", "bytes at the server / (N B)"]
        drawn.table[:] = [head] + [
            [row["scheme"], number(row["N"]), *(number(row[name]) for name in names)] for row in listed
        ]
    return drawn


def _stash(results: Results) -> Drawn | None:
    rows = [
        {"scheme": row["scheme"], "R": r, "share": share}
        for row in results.stash
        for r, share in enumerate(row["tail"])
    ]
    how = "; ".join(f"{row['scheme']}, N = {row['N']:,}, {row['looks']:,} looks" for row in results.stash)
    return _lines(
        rows, "scheme", "R", "share", "Stash", ("R, blocks", "share of looks at which the stash holds more than R"),
        f"Round robin over all blocks, which fills the stash most: {how}; of Path after each access, of Ring after each eviction, no tree-top cache; cut where "
        "fewer than 10 looks tell. The papers' tails are log-linear: oram reproduce measures them in full.",
        log_x=False,
    )  # fmt: skip


def _latency(backend: str) -> Callable[[Results], Drawn | None]:
    def draw_it(results: Results) -> Drawn | None:
        rows = _varied(results, "", backend)
        if not rows:
            return None
        title = f"Latency, {backend}"
        figure, axes = _axes(title, "milliseconds of a call", "share of calls that take longer", log_x=True, log_y=True)
        table = [["subject", "calls", "p50, ms", "p99, ms", "p99.9, ms", "largest, ms"]]
        for i, row in enumerate(rows):
            shares, times = zip(*row["slower"], strict=True)
            style: dict[str, Any] = {"lw": 1.6, "ls": _DASHES[i % len(_DASHES)], "color": _colour(row["subject"], i)}
            axes.plot(times, shares, drawstyle="steps-post", label=row["subject"], **style)
            table.append(
                [row["subject"], *map(number, (row["calls"], row["p50"], row["p99"], row["p999"], row["max"]))]
            )
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        said = f"{_said(results)}. Wall-clock time; the subjects took turns. A percentile is told where at least five calls lie beyond it."
        return Drawn(title, said, _svg(figure), table)

    return draw_it


def _against(name: str, label: str, backend: str) -> Callable[[Results], Drawn | None]:
    def draw_it(results: Results) -> Drawn | None:
        rows = _varied(results, name, backend)
        if len({row[name] for row in rows}) < 2:
            return None
        title = f"Throughput against {label.split(',')[0]}, {backend}"
        said = (
            f"{_said(results, name)}. One client, one call after the other; bars are the least and the most of five turns. "
            "Subjects at one place of the axis took turns; those at another had their own."
        )
        if name == "rtt" and backend == "memory":
            said += " At 0 a store works in its own memory; with a round trip it asks for slots and waits."
        if name in ("workload", "cipher"):
            return _dots(
                [(f"{row['subject']}, {row[name]}", row["a_second"]) for row in rows], title, "requests a second", said
            )
        return _lines(
            rows, "subject", name, "a_second", title, (label, "requests a second"), said, log_x=name != "rtt",
            ranges=("a_second_least", "a_second_most"),
        )  # fmt: skip

    return draw_it


def _memory(results: Results) -> Drawn | None:
    return _lines(
        results.access, "scheme", "N", "client_bytes", "Client state", ("N, blocks", "bytes that the client keeps"),
        f"Persisted, without a tree-top cache, with a directory of 16 bytes a record; B = {results.plan['block_sizes'][0]} bytes, on which that part depends "
        "which is the same for each N: pools and buffers for whole blocks.",
    )  # fmt: skip


def _set_up(results: Results) -> Drawn | None:
    rows = [row for backend in results.plan["backends"] for row in _varied(results, "", backend)]
    return _dots(
        [(f"{row['subject']}, {row['backend']}", row["set_up_seconds"]) for row in rows], "Set-up", "seconds",
        f"Making the store and filling it half; {_said(results, 'batch', 'workload')}. One run each: read it as an order of magnitude.",
    )  # fmt: skip


def _layers(results: Results) -> Drawn | None:
    at = "".join(f", N = {row['N']:,}, B = {row['block_size']}, {row['cipher']}" for row in results.layers[:1])
    drawn = _dots(
        [(row["layer"], row["microseconds"]) for row in results.layers], "What each layer of safety costs", "microseconds of a put, median",
        f"On LMDB, Path ORAM without a tree-top cache{at}. Each row does what the one above it does, and more. "
        "The difference is what that costs; one that is less than half the quartiles' distance is noise.",
    )  # fmt: skip
    if drawn is not None:
        drawn.table[:] = [["layer", "what it is", "lower quartile", "median, us", "upper quartile"]] + [
            [
                row["layer"],
                row["says"],
                *map(number, (row["lower_quartile"], row["microseconds"], row["upper_quartile"])),
            ]
            for row in results.layers
        ]
    return drawn


#: Settings that figures vary.
_AXES = {
    "batch": "requests of a window", "rtt": "round trip, ms added", "N": "N, blocks", "block_size": "B, bytes", "workload": "workload", "cipher": "cipher",
}  # fmt: skip


def _figures(backends: Sequence[str]) -> Iterable[Callable[[Results], Drawn | None]]:
    yield from (_moved, _bytes)
    yield from map(_latency, backends)
    for name, label in _AXES.items():
        yield from (_against(name, label, backend) for backend in backends)
    yield from (_stash, _memory, _set_up, _layers)


def draw(results: Results) -> list[Drawn]:
    """All figures for which there are rows."""
    figures = _figures(results.plan["backends"])
    return [drawn for each in figures if (drawn := each(results)) is not None]
