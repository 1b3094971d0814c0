"""``oram reproduce``: published figures, measured again, as tables, JSON and figures."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import oram
from oram.cli import exits
from oram.cli.exits import InputError
from oram.cli.output import console, directory, plain, say, write
from oram.cli.progress import meter
from oram.provenance import command, provenance

__all__ = ["reproduce"]

_VERDICTS = {True: ("ok", "green"), False: ("OUTSIDE", "bold red"), None: ("", "")}


def reproduce(
    paper: Annotated[
        str | None,
        typer.Argument(
            metavar="[PAPER]", help="One of those that are listed without it, or all.", show_default="list them"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer accesses: seconds in place of minutes. Less is judged.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 1,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="For results.json and the figures; those of an earlier run are replaced.",
        ),
    ] = Path("oram-reproduce"),
    as_json: Annotated[bool, typer.Option("--json", help="The results on stdout as JSON, in place of tables.")] = False,
) -> int:
    """Measure again what papers say about their schemes, and set it beside that.

    Exit code 14 if a value lies outside its tolerance. Takes some minutes on two cores, and no store.
    What was measured is kept when a run is interrupted.
    """  # fmt: skip
    from oram.papers import PAPERS, Run, Size
    from oram.papers import reproduce as measure

    if paper is None:
        _list()
        return 0
    if paper not in (*PAPERS, "all"):
        raise InputError(f"no such paper: {', '.join(PAPERS)} or all")
    names = list(PAPERS) if paper == "all" else [paper]
    directory(output)
    run = Run(seed=seed, size=Size.QUICK if quick else Size.FULL)
    kept = _Kept(output, {"command": command(f"oram.cli.main({['reproduce', paper]})"), **_described(run)}, names)
    try:
        with meter("") as bar:
            for name in names:
                bar.stage(name, None)
                shown = 0

                def progress(done: int, total: int, name: str = name) -> None:
                    nonlocal shown
                    if shown != total:
                        bar.stage(name, total)
                        shown = total
                    bar.at(done)

                run.progress = progress
                finding = measure(name, run)
                bar.stage("drawing", None)
                kept.add(finding)
    finally:
        if as_json:
            print(json.dumps(kept.found()))
        elif kept.findings:
            _report(kept)
    return exits.OUTSIDE if kept.found()["holds"] is False else 0


def _described(run: Any) -> dict[str, Any]:
    return {**run.described(), "oram": oram.__version__, **provenance()}


class _Kept:
    """What was measured so far, in the directory as soon as it is there: nothing else of an interrupted run stays.

    drawn: names of the figures; None where matplotlib is not installed.
    """

    def __init__(self, output: Path, provenance: dict[str, Any], names: Sequence[str]) -> None:
        self.output, self.provenance, self.names = output, provenance, names
        self.findings: list[Any] = []
        self.drawn: list[str] | None = []
        self._write()  # of an earlier run, what is there is no result of this one

    @property
    def complete(self) -> bool:
        """Whether all papers are done."""
        return len(self.findings) == len(self.names)

    def add(self, finding: Any) -> None:
        """A paper is done."""
        self.findings.append(finding)
        drawn = _draw(finding)
        self.drawn = None if self.drawn is None or drawn is None else [*self.drawn, *drawn]
        for name, figure in (drawn or {}).items():
            write(self.output / f"{name}.svg", figure)
        self._write()

    def _write(self) -> None:
        write(self.output / "results.json", json.dumps(self.found(), indent=1) + "\n")

    def found(self) -> dict[str, Any]:
        """For results.json. holds: false if a value lies outside its tolerance, null as long as some are to come."""
        holds = all(each.holds for each in self.findings)
        return {
            "provenance": self.provenance,
            "complete": self.complete,
            "holds": holds and (True if self.complete else None),
            "papers": {
                each.paper: {
                    "holds": each.holds,
                    "seconds": round(each.seconds, 1),
                    "rows": [_row(row) for row in each.rows],
                    "series": each.series,
                }
                for each in self.findings
            },
        }


# rich is imported where something is shown: the command line takes this module's command in, whatever it is asked for.


def _list() -> None:
    from rich.text import Text

    from oram.papers import PAPERS

    out = console()
    for paper in PAPERS.values():
        out.print(Text(paper.name, style="bold"), soft_wrap=True)
        out.print(Text(f"  {paper.citation}\n  {paper.what}"), soft_wrap=True)


def _draw(finding: Any) -> dict[str, bytes] | None:
    """The figures; None where matplotlib is not installed."""
    try:
        figures = importlib.import_module("oram.papers.figures")
    except ImportError:
        return None
    drawn: dict[str, bytes] = figures.draw(finding)
    return drawn


def _row(row: Any) -> dict[str, Any]:
    return {**asdict(row), "deviation": row.deviation}


# --- for people


def _report(kept: _Kept) -> None:
    from rich.table import Table
    from rich.text import Text

    from oram.papers import PAPERS

    out = console()
    for finding in kept.findings:
        title = Text(f"{finding.paper}: {PAPERS[finding.paper].citation}", style="table.title")
        table = Table(title=title, title_justify="left", pad_edge=False)
        for name in ("what", "measured", "s.e.", "reference", "", "deviation", "tolerance", ""):
            table.add_column(
                name, justify="right" if name in ("measured", "s.e.", "reference", "deviation") else "left"
            )
        group = None
        for row in finding.rows:
            if row.group != group:
                group = row.group
                table.add_section()
                table.add_row(Text(group, style="bold"), "", "", "", "", "", "", "")
            table.add_row(*_cells(row))
        out.print(table)
        say(out, _summary(finding))
        out.print()
    for line in _sources(kept.findings):
        say(out, line)
    if kept.provenance["kernels"] != "native":
        say(out, "The native kernels are not in use here, so only small trees were simulated: see oram doctor.")
    if not kept.complete:
        say(out, f"Not complete: {len(kept.findings)} of {len(kept.names)} papers.")
    where = f"{kept.output / 'results.json'}" + "".join(f", {kept.output / name}.svg" for name in kept.drawn or [])
    say(out, f"Seed {kept.provenance['seed']}, size {kept.provenance['size']}. Kept: {where}")
    if kept.drawn is None:
        say(out, "No figures: they need matplotlib, pip install 'oram[report]'.")


def _cells(row: Any) -> list[Any]:
    from rich.text import Text

    word, style = _VERDICTS[row.holds]
    if row.control:
        word = "rejected" if row.holds else "ACCEPTED"
    kind = "control" if row.control else str(row.kind or "")
    deviation = "" if row.deviation is None else f"{100 * row.deviation:+.1f} %"
    what = f"  {row.what}" + (f"\n    {row.note}" if row.note else "")
    numbers = (_number(row.measured), _number(row.error, 2), _number(row.reference))
    return [
        *plain(what, *numbers, kind, deviation, row.tolerance),
        Text(word or "not judged" if row.reference is not None else "", style=style),
    ]  # fmt: skip


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.{digits - 1}e}"


def _summary(finding: Any) -> str:
    rows = finding.rows
    judged = [row for row in rows if row.holds is not None and not row.control]
    controls = [row for row in rows if row.control]
    good, caught = (sum(bool(row.holds) for row in some) for some in (judged, controls))
    told = (
        f"{good} of {len(judged)} values within their tolerance, {len(rows) - len(judged) - len(controls)} not judged"
    )
    return (
        told + (f", {caught} of {len(controls)} controls rejected" if controls else "") + f"; {finding.seconds:.0f} s"
    )


def _sources(findings: Sequence[Any]) -> list[str]:
    kinds: dict[str, set[str]] = {}
    for finding in findings:
        for row in finding.rows:
            if row.kind is not None:
                kinds.setdefault(str(row.kind), set()).add(row.source)
    return [f"{kind}: {'; '.join(sorted(sources))}" for kind, sources in sorted(kinds.items())]
