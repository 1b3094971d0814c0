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
from oram.cli.output import console, directory, write
from oram.cli.progress import meter
from oram.provenance import provenance

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
    findings = []
    with meter("") as bar:
        run = Run(seed=seed, size=Size.QUICK if quick else Size.FULL)
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
            findings.append(measure(name, run))
        bar.stage("drawing", None)
        drawn = _draw(findings)
    found: dict[str, Any] = {
        "provenance": run.described() | {"oram": oram.__version__} | provenance(),
        "holds": all(each.holds for each in findings),
        "papers": {
            each.paper: {
                "holds": each.holds,
                "seconds": round(each.seconds, 1),
                "rows": [_row(row) for row in each.rows],
                "series": each.series,
            }
            for each in findings
        },
    }
    _write(output, found, drawn)
    if as_json:
        print(json.dumps(found))
    else:
        _report(findings, found["provenance"], output, drawn)
    return 0 if found["holds"] else exits.OUTSIDE


# rich is imported where something is shown: the command line takes this module's command in, whatever it is asked for.


def _list() -> None:
    from rich.text import Text

    from oram.papers import PAPERS

    out = console()
    for paper in PAPERS.values():
        out.print(Text(paper.name, style="bold"), soft_wrap=True, markup=False, highlight=False)
        out.print(Text(f"  {paper.citation}\n  {paper.what}"), soft_wrap=True, markup=False, highlight=False)


def _draw(findings: Sequence[Any]) -> dict[str, bytes] | None:
    """The figures; None where matplotlib is not installed."""
    try:
        figures = importlib.import_module("oram.papers.figures")
    except ImportError:
        return None
    drawn = {}
    for finding in findings:
        drawn.update(figures.draw(finding))
    return drawn


def _row(row: Any) -> dict[str, Any]:
    return {**asdict(row), "deviation": row.deviation}


def _write(output: Path, found: dict[str, Any], drawn: dict[str, bytes] | None) -> None:
    write(output / "results.json", json.dumps(found, indent=1) + "\n")
    for name, figure in (drawn or {}).items():
        write(output / f"{name}.svg", figure)


# --- for people


def _report(findings: Sequence[Any], provenance: dict[str, Any], output: Path, drawn: dict[str, bytes] | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from oram.papers import PAPERS

    out = console()
    for finding in findings:
        table = Table(title=f"{finding.paper}: {PAPERS[finding.paper].citation}", title_justify="left", pad_edge=False)
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
        out.print(_summary(finding), soft_wrap=True, markup=False, highlight=False)
        out.print()
    out.print(_sources(findings), soft_wrap=True, markup=False, highlight=False)
    if provenance["kernels"] != "native":
        out.print(
            "The native kernels are not in use here, so only small trees were simulated: see oram doctor.",
            soft_wrap=True,
        )
    where = f"{output / 'results.json'}" + "".join(f", {output / name}.svg" for name in drawn or {})
    out.print(
        f"Seed {provenance['seed']}, size {provenance['size']}. Kept: {where}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    if drawn is None:
        out.print(
            "No figures: they need matplotlib, pip install 'oram[report]'.",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


def _cells(row: Any) -> list[Any]:
    from rich.text import Text

    word, style = _VERDICTS[row.holds]
    if row.control:
        word = "rejected" if row.holds else "ACCEPTED"
    kind = "control" if row.control else str(row.kind or "")
    deviation = "" if row.deviation is None else f"{100 * row.deviation:+.1f} %"
    what = f"  {row.what}" + (f"\n    {row.note}" if row.note else "")
    return [
        Text(what), _number(row.measured), _number(row.error, 2), _number(row.reference), kind, deviation, row.tolerance,
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


def _sources(findings: Sequence[Any]) -> str:
    kinds: dict[str, set[str]] = {}
    for finding in findings:
        for row in finding.rows:
            if row.kind is not None:
                kinds.setdefault(str(row.kind), set()).add(row.source)
    return "\n".join(f"{kind}: {'; '.join(sorted(sources))}" for kind, sources in sorted(kinds.items()))
