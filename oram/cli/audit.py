"""``oram audit``: whether what the server sees depends on what is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from oram.cli import exits, places, schemes
from oram.cli.exits import InputError
from oram.cli.output import console, plain, say, write
from oram.cli.progress import meter
from oram.cli.signals import ending

__all__ = ["audit"]

_MISSING = "this needs the extra audit: pip install 'oram[audit]'"

_DEFAULTS: dict[str, Any] = {
    "capacity": 1000,
    "block_size": 128,
    "cipher": "aes-256-gcm",
    "backend": "memory",
    "shards": 1,
}
_SAID = 5  # things that exact checks found, in the last line


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
    scheme: Annotated[
        str | None,
        typer.Option(
            help="In place of a URL: path, ring, cuckoo or linear; the options below say more.", show_default=False
        ),
    ] = None,
    capacity: Annotated[int | None, typer.Option(help="Without a URL: blocks.", show_default="1000")] = None,
    block_size: Annotated[int | None, typer.Option(help="Without a URL: bytes of a block.", show_default="128")] = None,
    cipher: Annotated[str | None, typer.Option(help="Without a URL.", show_default="aes-256-gcm")] = None,
    index: Annotated[
        str | None, typer.Option(help="Without a URL, Cuckoo: client or none.", show_default="client")
    ] = None,
    shards: Annotated[int | None, typer.Option(help="Without a URL: as of oram create.", show_default="1")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Without a URL: memory, lmdb, or the URL of a server.", show_default="memory"),
    ] = None,
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

    Give the URL of a store, or --scheme.
    Exit code 0 if nothing was found, 15 for a leak, 16 where too little was seen. It is evidence, and not a proof.
    """  # fmt: skip
    given: dict[str, Any] = {
        "scheme": scheme, "capacity": capacity, "block_size": block_size, "cipher": cipher, "index": index, "shards": shards, "backend": backend,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    _refuse(url, state, given)
    try:
        import oram.audit as auditing
        from oram.audit.page import page, subject
    except ImportError:
        raise InputError(_MISSING) from None
    target = auditing.Target.of_store(places.store(url, state), state) if url else _target(auditing, **given)
    harmed = None if leak is None else _leak(auditing, leak, target.scheme)
    more = {} if accesses is None else {"accesses": accesses * (5 if quick else 1)}
    what = subject(dataclasses.asdict(target))
    out = console()
    say(out, f"Auditing: {what}.")
    with ending(), meter("oram audit") as bar:
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
    _print(out, verdict, what)
    return {"nothing found": 0, "leak found": exits.LEAK, "inconclusive": exits.INCONCLUSIVE}[verdict.outcome]


def _refuse(url: str | None, state: Path | None, given: dict[str, Any]) -> None:
    """InputError unless it is one store that is named, or the parameters of one: an empty variable in a script is neither."""
    if url is None:
        if "scheme" not in given:
            raise InputError("say what to audit: the URL of a store, or --scheme path, ring, cuckoo or linear")
        if state is not None:
            raise InputError("--state: only with the URL of a store")
        return
    if not url:
        raise InputError("the URL of the store is empty: give one, or --scheme in its place")
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{flags}: not together with a URL, for the store there says this itself")


def _target(auditing: Any, *, scheme: str, index: str | None = None, **given: Any) -> Any:
    from oram.backends.url import SERVERS
    from oram.params import SCHEMES, check_shape, refuse

    told = _DEFAULTS | given
    if scheme not in SCHEMES:
        raise InputError(f"scheme must be one of {', '.join(SCHEMES)}")
    refuse(check_shape(told["capacity"], told["block_size"]))
    backend = told.pop("backend")
    server = backend.partition(":")[0] in SERVERS
    if not server and backend not in ("memory", "lmdb"):
        raise InputError("backend must be memory, lmdb or the URL of a server")
    if server:
        places.server(backend)
    return auditing.Target.new(
        "redis" if server else backend, backend if server else None, scheme=schemes.choose(scheme, index=index), tree_top=0, **told
    )  # fmt: skip


def _leak(auditing: Any, name: str, scheme: str) -> Any:
    known = {leak.name: leak for leak in auditing.LEAKS if leak.applies_to(scheme)}
    if name not in known:
        raise InputError(f"no leak of {scheme} has this name: {', '.join(known)}")
    return known[name]


def _print(out: Any, verdict: Any, what: str) -> None:
    from rich.table import Table

    head = ("check", "observations", "false alarms", "p-value", "found", "finds, with probability 0.99")
    checks = Table(*head, title="what the server saw of scratch stores")
    for check in verdict.checks:
        level = "none" if check.level == 0 else f"{check.level:.0e}"
        p = "" if check.p_value is None else f"{check.p_value:.2g}"
        found, finds = check.found or "nothing", check.detectable or "nothing"
        checks.add_row(*plain(check.name, f"{check.observations:,}", level, p, found, finds))
    out.print(checks)
    leaks = Table("flaw", "accesses", "found by", title="each kind of check on stores that leak on purpose for it")
    for control in verdict.controls:
        found = ", ".join(control.found_by) or "NOT FOUND"
        leaks.add_row(*plain(control.leak, f"{control.accesses:,}", found))
    out.print(leaks)
    say(out, "Not covered: " + "; ".join(verdict.not_covered) + ".")
    say(out, f"Audited: {what}.")
    say(out, f"{verdict.outcome.upper()}. {verdict.summary}{_said(verdict)}")


def _said(verdict: Any) -> str:
    """What exact checks found, in their own words: what else it may be than a leak is in there, and who reads a log reads its end."""
    found = list(dict.fromkeys(check.found for check in verdict.checks if check.kind == "exact" and check.found))
    more = "; ..." if len(found) > _SAID else ""
    return f" They say: {'; '.join(found[:_SAID])}{more}." if found else ""
