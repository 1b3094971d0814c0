"""``oram audit``: whether what the server sees depends on what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from oram.cli import exits, places
from oram.cli.exits import InputError
from oram.cli.output import console, write
from oram.cli.progress import meter

__all__ = ["audit"]

_MISSING = "this needs the extra audit: pip install 'oram[audit]'"


def audit(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="A store, whose public parameters are audited; its slots are not touched.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="PATH", help="Its client state, where that is kept apart.")
    ] = None,
    scheme: Annotated[str, typer.Option(help="Without a URL: path, ring, cuckoo or linear.")] = "path",
    capacity: Annotated[int, typer.Option(help="Without a URL: blocks.")] = 1000,
    block_size: Annotated[int, typer.Option(help="Without a URL: bytes of a block.")] = 128,
    cipher: Annotated[str, typer.Option(help="Without a URL.")] = "aes-256-gcm",
    backend: Annotated[str, typer.Option(help="Without a URL: memory, lmdb, or the URL of a server.")] = "memory",
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            metavar="NAME",
            help="module:function or FILE.py:function, a function of a store; two or more are compared, in place of the built-in ones.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Some seconds: less is seen.")] = False,
    accesses: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of each run that statistics watch: more find smaller flaws.", show_default="6000, quick 1200"
        ),
    ] = None,
    leak: Annotated[
        str | None,
        typer.Option(
            "--leak",
            metavar="NAME",
            help="Audit stores that leak on purpose, to see what that looks like: the name of one of the flaws in the verdict.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the workloads, and of the randomness that two worlds share.")] = 1,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The verdict as JSON.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="The verdict as a page.")] = None,
) -> int:
    """Check on scratch stores that what a server sees does not depend on what is asked, and show that the checks find stores that leak.

    Exit code 0 if nothing was found, 15 for a leak, 16 where too little was seen. It is evidence, and not a proof.
    """  # fmt: skip
    try:
        import oram.audit as auditing
        from oram.audit.page import page
    except ImportError:
        raise InputError(_MISSING) from None
    target = _target(auditing, url, state, scheme, capacity, block_size, cipher, backend)
    harmed = None if leak is None else _leak(auditing, leak, target.scheme)
    more = {} if accesses is None else {"accesses": accesses * (5 if quick else 1)}
    with meter("oram audit") as bar:
        verdict = auditing.audit(
            target,
            workload or (),
            quick=quick,
            seed=seed,
            leak=harmed,
            progress=lambda what: bar.stage(what, None),
            **more,
        )
    if as_json is not None:
        write(as_json, verdict.to_json())
    if html is not None:
        write(html, page(verdict))
    _print(verdict)
    return {"nothing found": 0, "leak found": exits.LEAK, "inconclusive": exits.INCONCLUSIVE}[verdict.outcome]


def _target(
    auditing: Any,
    url: str | None,
    state: Path | None,
    scheme: str,
    capacity: int,
    block_size: int,
    cipher: str,
    backend: str,
) -> Any:
    if url is not None:
        return auditing.Target.of_store(places.store(url, state), state)
    from oram.backends.url import SERVERS
    from oram.params import SCHEMES, check_shape, refuse

    if scheme not in SCHEMES:
        raise InputError(f"scheme must be one of {', '.join(SCHEMES)}")
    refuse(check_shape(capacity, block_size))
    server = backend.partition(":")[0] in SERVERS
    if not server and backend not in ("memory", "lmdb"):
        raise InputError("backend must be memory, lmdb or the URL of a server")
    if server:
        places.server(backend)
    return auditing.Target.new(
        "redis" if server else backend, backend if server else None, scheme=scheme, capacity=capacity, block_size=block_size, tree_top=0, cipher=cipher
    )  # fmt: skip


def _leak(auditing: Any, name: str, scheme: str) -> Any:
    known = {leak.name: leak for leak in auditing.LEAKS if leak.applies_to(scheme)}
    if name not in known:
        raise InputError(f"no leak of {scheme} has this name: {', '.join(known)}")
    return known[name]


def _print(verdict: Any) -> None:
    from rich.table import Table

    out = console()
    table = Table(
        "check",
        "observations",
        "false alarms",
        "p-value",
        "found",
        "finds, with probability 0.99",
        title="what the server saw of scratch stores",
    )
    for check in verdict.checks:
        level = "none" if check.level == 0 else f"{check.level:.0e}"
        p = "" if check.p_value is None else f"{check.p_value:.2g}"
        table.add_row(
            check.name, f"{check.observations:,}", level, p, check.found or "nothing", check.detectable or "nothing"
        )
    out.print(table)
    leaks = Table("flaw", "accesses", "found by", title="the same checks on stores that leak on purpose")
    for control in verdict.controls:
        leaks.add_row(control.leak, f"{control.accesses:,}", ", ".join(control.found_by) or "NOT FOUND")
    out.print(leaks)
    out.print("Not covered: " + "; ".join(verdict.not_covered) + ".", markup=False, highlight=False)
    out.print(f"{verdict.outcome.upper()}. {verdict.summary}", markup=False, highlight=False)
