"""``oram bench``: flags to a plan, a plan to results, results to a table and a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from oram.cli.exits import InputError
from oram.cli.output import console, directory, plain, say, write
from oram.cli.progress import meter
from oram.cli.signals import ending

__all__ = ["bench"]

_MISSING = "the page needs the extra report: pip install 'oram[report]'"


#: A comma between two places, and not between two nodes of a cluster.
_NEXT = re.compile(r",(?=\s*(?:(?:memory|lmdb|redis)\s*(?:,|$)|\w+://))")


def _many(help: str) -> Any:
    return typer.Option(help=f"{help} Several, separated by commas.", show_default="as the plan says")


def bench(
    subjects: Annotated[
        str | None,
        _many(
            "Schemes, baselines (dict, plain-lmdb, plain-redis, encrypted, pyoram), and those of installed packages."
        ),
    ] = None,
    backends: Annotated[
        str | None,
        _many("memory, lmdb, redis (a server of its own, started here), or the URL of a server, where nothing stays."),
    ] = None,
    ciphers: Annotated[str | None, _many("aes-256-gcm, aegis-256.")] = None,
    capacities: Annotated[str | None, _many("Blocks; half of them are records when a run begins.")] = None,
    block_sizes: Annotated[str | None, _many("Bytes of a block.")] = None,
    batches: Annotated[str | None, _many("Requests of a call.")] = None,
    rtts: Annotated[str | None, _many("Milliseconds of a round trip, added.")] = None,
    workloads: Annotated[str | None, _many("YCSB's A to F, uniform, or files with recorded traces.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="For each subject in each comparison.", show_default="2")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is asked for.", show_default="1")] = None,
    product: Annotated[
        bool | None,
        typer.Option("--all-combinations", help="Of the settings' values, in place of one setting at a time."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="The same settings in TOML; flags come on top.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small stores and short runs: about a minute.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="For results.json and report.html; those of an earlier run are replaced.",
            show_default="oram-bench; where those results are with --report",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Measure nothing: make the page of these results.")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option("--directory", metavar="DIR", help="Scratch stores go there: the disk to be measured."),
    ] = None,
) -> int:
    """Compare oblivious stores, with one another and with stores that hide less.

    One setting at a time is varied; the largest capacity and the first value of all others are the rest.
    What was measured is kept when a run is interrupted.
    """  # fmt: skip
    from oram.benchmark.plan import QUICK, Plan
    from oram.benchmark.run import Results, measure

    if report is not None:
        try:
            results = Results.from_json(report.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {report}: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{report}: {error}") from None
        output = output or report.parent
        directory(output)
        if not _page(results, output):
            raise InputError(_MISSING)
        say(console(), f"page: {output / 'report.html'}")
        return 0
    output = output or Path("oram-bench")
    chosen = QUICK if quick else Plan()
    if plan is not None:
        chosen = Plan.from_toml(plan, chosen)
    given = {
        "subjects": _split(subjects), "backends": _places(backends), "ciphers": _split(ciphers), "workloads": _split(workloads),
        "capacities": _numbers(capacities, int), "block_sizes": _numbers(block_sizes, int), "batches": _numbers(batches, int),
        "rtts": _numbers(rtts, float), "seconds": seconds, "seed": seed, "product": product,
    }  # fmt: skip
    chosen = Plan.of({name: value for name, value in given.items() if value is not None}, chosen)
    directory(output)
    kept: list[Results] = []

    def keep(results: Results) -> None:
        kept[:] = [results]
        write(output / "results.json", results.to_json())

    try:
        with ending(), meter("oram bench") as bar:

            def progress(what: str, steps: int, done: int) -> None:
                bar.stage(what, steps)
                bar.at(done)

            keep(measure(chosen, keep=keep, progress=progress, directory=scratch))
    finally:
        if kept:
            made = _page(kept[0], output)
            _print(kept[0], output, made)
    if not kept[0].compared:
        raise InputError("nothing could be compared")
    return 0


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def _places(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in _NEXT.split(text) if word.strip())


def _numbers(text: str | None, kind: Any) -> tuple[Any, ...] | None:
    try:
        return None if text is None else tuple(map(kind, _split(text) or ()))
    except ValueError:
        raise InputError(f"not numbers, separated by commas: {text}") from None


def _page(results: Any, output: Path) -> bool:
    try:
        from oram.benchmark.report import page
    except ImportError:
        return False
    write(output / "report.html", page(results))
    return True


def _print(results: Any, output: Path, made: bool) -> None:
    from rich.table import Table

    out = console()
    columns = {
        "subject": "subject", "backend": "backend", "N": "N", "block_size": "B", "batch": "window", "rtt": "rtt, ms", "workload": "workload",
        "cipher": "cipher", "a_second": "requests/s", "p50": "p50, ms", "p99": "p99, ms", "p999": "p99.9, ms",
    }  # fmt: skip
    table = Table(*columns.values(), title="compared in turns, within one run")
    for row in results.compared:
        table.add_row(*plain(*(_shown(name, row[name]) for name in columns)))
    out.print(table)
    for row in results.skipped:
        say(out, f"not measured here: {row['what']}: {row['why']}")
    say(out, f"results: {output / 'results.json'}")
    say(out, f"page: {output / 'report.html'}" if made else f"no page: {_MISSING}")


def _shown(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if name in ("N", "a_second"):
        return f"{value:,.0f}"
    return f"{value:.3g}" if name.startswith("p") else f"{value:g}"
