"""``python -m bench readme``: every ratio that README.md states, measured again; an error where one is not reproduced within its tolerance."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Row

__all__ = ["Figure", "figures", "measure"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A ratio that README states. tolerance: how far a run may be off it, as a share of it."""

    says: str
    figure: float
    row: str
    group: str
    tolerance: float

    def holds(self, ratio: float) -> bool:
        """Whether a run reproduced it."""
        return abs(ratio - self.figure) <= self.tolerance * self.figure


def figures() -> Iterator[Figure]:
    """Those of ``readme.toml``."""
    told = tomllib.loads(Path(__file__).with_name("readme.toml").read_text(encoding="utf-8"))
    for each in told["figure"]:
        for figure, row in zip(each["figures"], each["rows"], strict=True):
            yield Figure(each["says"], figure, row, each["group"], each["tolerance"])


def measure(bars: Mapping[str, Callable[[bool], Iterator[Row]]], console: Console) -> bool:
    """Run the groups that have them, print what they came to, and say whether all that could be measured hold."""
    listed, found = list(figures()), dict[str, Row]()
    for group in dict.fromkeys(figure.group for figure in listed):
        console.print(f"measuring {group}")
        found.update((row.name, row) for row in bars[group](False))
    table = Table("README says", "row", "stated", "measured", "may be off by", "", title="the ratios in README.md")
    good = True
    for figure in listed:
        row = found.get(figure.row)
        if row is None:
            measured, verdict = "", "not measured here (see bench/README.md)"
        else:
            holds = figure.holds(row.ratio)
            good &= holds
            measured, verdict = f"{row.ratio:.2f}", "ok" if holds else "[red]OUTSIDE[/]"
        table.add_row(figure.says, figure.row, f"{figure.figure:g}", measured, f"{figure.tolerance:.0%}", verdict)
    console.print(table)
    return good
