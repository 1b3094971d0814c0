"""The figures, as SVG: published values as marks, derived ones as thin lines, measured ones as lines with bands, or points with bars, of 2 standard errors.

Needs matplotlib (``pip install 'oram[report]'``). The same findings give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oram.papers.row import Finding

__all__ = ["draw"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # told apart without colour vision, too
_GREY = "#7f7f7f"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "oram", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5, "axes.titlesize": 10.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "legend.fontsize": 8.5, "lines.linewidth": 1.6,
}  # fmt: skip
_LINE = 138  # characters of a caption's line
_MARKUP = str.maketrans("", "", "${}^_\\")  # of formulas


def draw(finding: Finding) -> dict[str, bytes]:
    """The figures of a paper, by name, as SVG."""
    makers: dict[str, dict[str, Callable[[dict[str, Any]], Figure]]] = {
        "path": {"path-stash": _path_stash},
        "ring": {"ring-stash": _ring_stash, "ring-early": _ring_early, "ring-bandwidth": _ring_bandwidth},
        "cuckoo": {"cuckoo-stash": _cuckoo_stash},
        "hierarchical": {"hierarchical-cost": _hierarchical},
    }
    found = {}
    with mpl.rc_context(_STYLE):
        for name, make in makers[finding.paper].items():
            file = io.BytesIO()
            figure = make(finding.series)
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": "oram reproduce"})  # type: ignore[no-untyped-call]
            found[name] = file.getvalue()
    return found


def _figure(columns: int, caption: str, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    lines = _wrapped(caption)
    figure = Figure(figsize=(9.0, height + 0.17 * len(lines)))
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    low = (0.62 + 0.17 * len(lines)) / figure.get_figheight()
    figure.subplots_adjust(left=0.08, right=0.98, top=1 - 0.35 / figure.get_figheight(), bottom=low, wspace=0.22)
    for i, line in enumerate(reversed(lines)):
        figure.text(0.012, (0.08 + 0.17 * i) / figure.get_figheight(), line, fontsize=8.5, color="#333333")
    return figure, axes


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len((lines[-1] + word).translate(_MARKUP)) >= _LINE:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _two(n: float) -> str:
    """A power of two as such."""
    bits = int(n).bit_length() - 1
    return f"$2^{{{bits}}}$" if 1 << bits == n else f"{n:,.0f}"


def _many(n: float) -> str:
    exponent = int(np.floor(np.log10(n)))
    return f"{n / 10**exponent:.2g} x $10^{{{exponent}}}$"


def _tail(
    axis: Axes, P: list[float], error: list[float], colour: str, label: str, shift: int = 0, **style: Any
) -> None:
    R, p, e = np.arange(len(P)) - shift, np.array(P), np.array(error)
    shown = (R >= 0) & (p > 0)
    R, p, e = R[shown], p[shown], e[shown]
    axis.plot(R, p, color=colour, label=label, **style)
    axis.fill_between(R, np.maximum(p - 2 * e, p / 30), p + 2 * e, color=colour, alpha=0.18, linewidth=0)


def _extrapolated(
    axis: Axes, line: list[float], at: Iterable[tuple[float, float, float]], colour: str, label: str
) -> None:
    """A line through what was measured, with what it says further out: (lambda, R, its standard error)."""
    points = sorted(at)
    bits = np.array([0.0, *(each[0] for each in points)])
    R, e = (bits - line[0]) / line[1], np.array([0.0, *(each[2] for each in points)])
    axis.plot(R, bits, color=colour, label=label)
    axis.fill_betweenx(bits, R - 2 * e, R + 2 * e, color=colour, alpha=0.18, linewidth=0)


def _key(axis: Axes, marks: dict[str, dict[str, Any]], **place: Any) -> None:
    """The legend, with what marks mean at its end."""
    handles, labels = axis.get_legend_handles_labels()
    for label, style in marks.items():
        handles.append(Line2D([], [], color=_GREY, **style))
        labels.append(label)
    axis.legend(handles, labels, **place)


_PUBLISHED: dict[str, Any] = {
    "marker": "D",
    "linestyle": "none",
    "markerfacecolor": "white",
    "markersize": 6,
    "markeredgewidth": 1.4,
}
_OTHER: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "none", "markersize": 5}


def _path_stash(series: dict[str, Any]) -> Figure:
    first = series["tails"][0]
    caption = (
        f"Path ORAM, stash after each access, round robin, {_two(first['N'])} blocks ({_many(first['accesses'])} accesses with Z=4). Left: measured, "
        "bands of 2 standard errors; circles: an independent simulation. Z=3, the control, grows with N. Right: straight lines through the end of the "
        "measured tails, with bands of 2 standard errors (resampling, and where the fit begins); diamonds: Stefanov et al. 2013, table 3."
    )
    figure, (left, right) = _figure(2, caption)
    many = max(tail["N"] for tail in series["tails"])
    for tail in series["tails"]:
        Z, main = tail["Z"], tail["N"] == many
        colour = _GREY if Z == 3 else _COLOURS[Z - 4]
        style: dict[str, Any] = {} if main else {"linestyle": "--", "linewidth": 1.1}
        _tail(left, tail["P"], tail["error"], colour, f"Z={Z}, N={_two(tail['N'])}", **style)
        if main and Z != 3:
            known = series["simulated"][str(Z)]
            left.plot([int(R) for R in known], list(known.values()), color=colour, **_OTHER)
    left.set(
        yscale="log", xlim=(-0.5, 24), ylim=(1e-8, 1e3), xlabel="R (blocks)", ylabel="P[stash > R]", title="Measured"
    )
    left.set_yticks([10.0**-k for k in range(9)])
    _key(left, {"independent simulation": _OTHER}, loc="upper right", ncols=2)
    for Z, found in series["table"].items():
        colour = _COLOURS[int(Z) - 4]
        published = series["published"][Z]
        if found is not None:
            at = [(float(lam), *each) for lam, each in found["at"].items()]
            _extrapolated(right, found["line"], at, colour, f"Z={Z}")
        right.plot(list(published.values()), [int(lam) for lam in published], color=colour, **_PUBLISHED)
    right.set(
        xlim=(0, 340),
        ylim=(0, 270),
        xlabel="R (blocks)",
        ylabel=r"$\lambda = -\log_2$ P[stash > R]",
        title="Extrapolated",
    )
    right.set_yticks([0, 26, 80, 128, 256])
    _key(right, {"published, table 3": _PUBLISHED}, loc="lower right")
    return figure


def _ring_stash(series: dict[str, Any]) -> Figure:
    caption = (
        f"Ring ORAM, stash right before an eviction, round robin, N = A $2^{{L-1}}$ ({_many(series['before'][0]['evictions'])} evictions with "
        "Z=4). Left: measured, beyond the A blocks that have been read since the last eviction; bands of 2 standard errors. Z=16, A=23, the control "
        "(dashed: two L), violates the proof's condition and grows with L. Right: straight lines through the end of the measured tails, with bands of "
        "2 standard errors; diamonds: Ren et al. 2015, table 3 (L = 20, random addresses)."
    )
    figure, (left, right) = _figure(2, caption)
    colours = {"4,3": _COLOURS[0], "8,8": _COLOURS[1], "16,20": _COLOURS[2], "32,46": _COLOURS[3], "16,23": _GREY}
    for tail in series["before"]:
        name = f"{tail['Z']},{tail['A']}"
        control = name == "16,23"
        style: dict[str, Any] = {"linestyle": "--", "linewidth": 1.1} if control else {}
        label = f"Z,A = {name}" + (f", L={tail['L']}" if control else "")
        _tail(left, tail["P"], tail["error"], colours[name], label, tail["A"], **style)
    left.set(
        yscale="log", xlim=(-0.5, 30), ylim=(1e-8, 1), xlabel="R - A (blocks)", ylabel="P[stash > R]", title="Measured"
    )
    left.legend(loc="upper right")
    for name, found in series["table"].items():
        at = [(float(lam), R, e) for lam, (R, e, _) in found["at"].items()]
        _extrapolated(right, found["line"], at, colours[name], f"Z,A = {name}")
        right.plot(
            [each[2] for each in found["at"].values()],
            [int(lam) for lam in found["at"]],
            color=colours[name],
            **_PUBLISHED,
        )
    right.set(
        xlim=(0, 620),
        ylim=(0, 270),
        xlabel="R (blocks)",
        ylabel=r"$\lambda = -\log_2$ P[stash > R]",
        title="Extrapolated",
    )
    right.set_yticks([0, 30, 80, 128, 256])
    _key(right, {"published, table 3": _PUBLISHED}, loc="lower right")
    return figure


def _ring_early(series: dict[str, Any]) -> Figure:
    caption = (
        "Ring ORAM: early reshuffles at each level, an access. Points: counted, with bars of 2 standard errors (mostly smaller than the points). Lines: "
        "the exact rate, (1/A) sum over k of P[Bin(A $2^l$ - 1, $2^{-l}$) >= k S]; dotted: deep in the tree, P[Poisson(A) >= S] / A. At the root there "
        "are none."
    )
    figure, (axis,) = _figure(1, caption, 3.8)
    for colour, found in zip(_COLOURS, series["early"], strict=False):
        level, mean, error, exact = np.array(found["levels"]).T
        some = exact > 0
        axis.plot(level[some], exact[some], color=colour, linewidth=1.0)
        axis.axhline(found["deep"], color=colour, linewidth=0.9, linestyle=":")
        axis.errorbar(
            level[some], mean[some], 2 * error[some], color=colour, fmt="o", markersize=4, capsize=2, label=f"Z,A,S = {found['Z']},{found['A']},{found['S']}"
        )  # fmt: skip
    axis.set(yscale="log", xlabel="level", ylabel="early reshuffles an access")
    axis.set_xticks(range(max(len(found["levels"]) for found in series["early"])))
    axis.legend(loc="lower right", ncols=2)
    return figure


def _ring_bandwidth(series: dict[str, Any]) -> Figure:
    N = series["bandwidth"][0]["N"]
    caption = (
        f"Ring ORAM. Left: blocks moved an access, N = {_two(N)}, without a tree-top cache; bars: counted, diamonds: the formula of Ren et al. 2015, "
        "section 5 (without and with XOR); line: Path ORAM with Z=4. Right: the same cost by S, relative to its least value, counted (bars of 2 standard "
        "errors); "
        "diamond: the S that minimises (2Z + S)(1 + P[Poisson(A) >= S])."
    )
    figure, (left, right) = _figure(2, caption)
    for i, found in enumerate(series["bandwidth"]):
        for j, word in enumerate(("without XOR", "with XOR")):
            x = i + 0.36 * (j - 0.5)
            left.bar(x, found[word], width=0.34, color=_COLOURS[j], label=word if i == 0 else None)
            left.plot([x], [found[f"{word}, formula"]], color="black", **_PUBLISHED)
            left.text(x, found[word] + 3, f"{found[word]:.0f}", ha="center", va="bottom", fontsize=8.5)
    left.axhline(series["path"], color=_GREY, linestyle="--", linewidth=1.2, label=f"Path ORAM, Z=4: {series['path']}")
    left.set_xticks(range(len(series["bandwidth"])))
    left.set_xticklabels([f"{found['Z']},{found['A']},{found['S']}" for found in series["bandwidth"]])
    left.set(ylim=(0, 1.22 * series["path"]), xlabel="Z, A, S", ylabel="blocks an access", title="Bandwidth")
    left.grid(visible=False, axis="x")
    _key(left, {"published formula": _PUBLISHED}, loc="upper right", ncols=2)
    for colour, found in zip(_COLOURS, series["choice"], strict=False):
        S, cost, error = (np.array(found[name]) for name in ("S", "cost", "error"))
        least = cost.min()
        right.errorbar(
            S - found["best"],
            cost / least,
            2 * error / least,
            color=colour,
            capsize=2,
            label=f"Z,A = {found['Z']},{found['A']}: S={found['best']}",
        )
        right.plot([0], [float(cost[found["best"] == S][0] / least)], color=colour, **_PUBLISHED)
    right.set(xlabel="S - S of the formula", ylabel="cost, relative to the least", title="Choice of S")
    right.legend(loc="upper center")
    return figure


def _cuckoo_stash(series: dict[str, Any]) -> Figure:
    caption = (
        "Cuckoo hashing, n keys in two tables of (1 + eps) n cells: how often more than s keys find no cell, however they are placed. Points: simulated "
        "builds, bars of 2 standard errors. Lines: exact, by counting bipartite graphs. Dashed: the published asymptotic value c(e)/m (Kutzelnigg 2006; "
        "Drmota and Kutzelnigg 2012). "
        "Grey: slopes -1 and -2, Theta(n^-(s+1)) of Kirsch, Mitzenmacher and Wieder."
    )
    figure, axes = _figure(2, caption)
    for s, axis in enumerate(axes):
        for colour, eps in zip(_COLOURS, sorted({each[1] for each in series["derived"]}), strict=False):
            curve = np.array([[n, exact[s], far] for n, e, *exact, far in series["derived"] if e == eps])
            axis.plot(curve[:, 0], curve[:, 1], color=colour, linewidth=1.1)
            if s == 0:
                close = curve[:, 2] < 2.2 * curve[:, 1]
                axis.plot(curve[close, 0], curve[close, 2], color=colour, linewidth=1.1, linestyle="--")
            points = np.array(
                [[m["n"], m[f"P{s}"], m[f"error{s}"]] for m in series["measured"] if m["eps"] == eps and m[f"P{s}"] > 0]
            )
            if points.size:
                n, p, e = points.T
                axis.errorbar(
                    n,
                    p,
                    [np.minimum(2 * e, 0.9 * p), 2 * e],
                    color=colour,
                    fmt="o",
                    markersize=4,
                    capsize=2,
                    label=f"eps = {eps:g}",
                )
        n = np.array([512.0, 4096.0])
        axis.plot(n, (0.12, 0.03)[s] * (n / n[0]) ** -(s + 1), color=_GREY, linewidth=1.0)
        axis.set_xscale("log", base=2)
        axis.set(
            yscale="log",
            ylim=((3e-6, 0.3), (1e-9, 0.1))[s],
            xlabel="n (keys)",
            ylabel=f"P[stash > {s}]",
            title=f"s = {s}",
        )
    axes[0].legend(loc="lower left")
    return figure


def _hierarchical(series: dict[str, Any]) -> Figure:
    caption = (
        "The hierarchical scheme over cuckoo hash tables (eps = 0.1, c = sqrt(N), deamortized): slots moved an access, on average over an epoch of the "
        "bottom. Lines: by the schedule, exactly; marks: counted at a real store over every access of an epoch. Dashed: Path ORAM, Z=4, without cached levels."
    )
    figure, (axis,) = _figure(1, caption, 3.8)
    N, _, _, probes, rebuilds = np.array(series["schedule"], float).T
    axis.fill_between(N, 0, probes, color=_COLOURS[4], alpha=0.45, linewidth=0, label="probes of the tables alive")
    axis.fill_between(N, probes, probes + rebuilds, color=_COLOURS[5], alpha=0.35, linewidth=0, label="rebuilds")
    axis.plot(N, probes + rebuilds, color=_COLOURS[0], label="all, deamortized")
    axis.plot(N, 8 * np.log2(N), color=_GREY, linestyle="--", linewidth=1.2, label="Path ORAM")
    for rebuild, index, marker in (
        ("deamortized", "client", "o"),
        ("amortized", "client", "s"),
        ("deamortized", "none", "^"),
    ):
        counted = [each for each in series["counted"] if (each["rebuild"], each["index"]) == (rebuild, index)]
        style: dict[str, Any] = {"marker": marker, "linestyle": "none", "markersize": 5, "markerfacecolor": "white"}
        axis.plot(
            [each["N"] for each in counted],
            [each["mean"] for each in counted],
            color="black",
            label=f"counted, {rebuild}" + (", no index" if index == "none" else ""),
            **style,
        )
    axis.set_xscale("log", base=2)
    axis.set(ylim=(0, 180), xlabel="N (blocks)", ylabel="blocks moved an access")
    axis.legend(loc="upper left", ncols=2)
    return figure
