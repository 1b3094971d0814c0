"""``python -m bench [--quick] [name ...]``: measure, print, and keep the figures with their provenance; ``python -m bench readme`` checks README's."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import bars, cuckoo, performance, readme, remote, ring
from bench.measure import Row, machine
from oram.benchmark.counting import seal_4096

BARS = {**bars.BARS, **ring.BARS, **cuckoo.BARS, **remote.BARS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        choices=[[], "readme", "performance", *BARS],
        help="which groups of bars, all by default; readme: the ratios that README states; performance: put kept figures into docs/performance.md",
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--save", action="store_true", help="write bench/results/DATE.json")
    options = parser.parse_args()
    if options.names == ["performance"]:
        performance.main()
        return
    console = Console(width=150)
    where = machine() | {
        f"{cipher}, 4096 bytes, us": f"{seal_4096(cipher):.2f}" for cipher in ("aes-256-gcm", "aegis-256")
    }
    console.print(where)
    if options.names == ["readme"]:
        sys.exit(0 if readme.measure(BARS, console) else "a ratio that README states was not reproduced")
    table = Table(
        "what", "measured", "reference", "unit", "ratio", "bar", "", title="measured beside its reference, in one run"
    )
    rows: list[Row] = []
    for name in options.names or BARS:
        for row in BARS[name](options.quick):
            rows.append(row)
            met = {True: "met", False: "[red]missed[/]", None: ""}[row.met]
            note = f"\n[dim]{row.note}[/]" if row.note else ""
            table.add_row(
                row.name + note,
                f"{row.measured:,.2f}",
                f"{row.reference:,.2f}",
                row.unit,
                f"{row.ratio:.2f}",
                row.bar,
                met,
            )
    console.print(table)
    if options.save:
        path = Path(__file__).parent / "results" / f"{dt.datetime.now(dt.UTC):%Y-%m-%d}.json"
        kept = json.loads(path.read_text())["rows"] if path.exists() else []  # of groups measured earlier that day
        measured = {row.name for row in rows}
        kept = [row for row in kept if row["name"] not in measured] + [asdict(row) for row in rows]
        path.write_text(
            json.dumps({"machine": where, "rows": kept}, indent=1, default=lambda value: value.item()) + "\n"
        )
        console.print(f"kept in {path}")


main()
