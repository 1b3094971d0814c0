"""A verdict for people: one HTML page, without a script, that a reader who is no statistician can follow."""

# ruff: noqa: E501 - lines of HTML and CSS

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

from oram.audit.verdict import Check, Verdict

__all__ = ["page", "subject"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #57606a; --paper: #fff; --line: #d0d7de; --card: #f6f8fa; --good: #1a7f37; --bad: #cf222e; --odd: #9a6700 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9198a1; --paper: #0d1117; --line: #30363d; --card: #161b22; --good: #3fb950; --bad: #f85149; --odd: #d29922 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
.verdict { border: 2px solid; border-radius: 8px; padding: .8rem 1.2rem; font-size: 1.1rem } .verdict b { font-size: 1.4rem; display: block }
.good { color: var(--good) } .bad { color: var(--bad) } .odd { color: var(--odd) } .verdict span { color: var(--ink) } .dim { color: var(--dim) }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .88rem; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line) }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } tr.bad td { background: color-mix(in srgb, var(--bad) 12%, transparent); color: var(--ink) }
pre { background: var(--card); padding: .8rem; border-radius: 6px; overflow-x: auto; font-size: .82rem }
"""

_PLACES = {"memory": "in memory", "lmdb": "in LMDB on this disk", "redis": "on a Redis or Valkey server"}
_KINDS = {"nothing found": "good", "leak found": "bad", "inconclusive": "odd"}


def _row(check: Check) -> str:
    level = "none" if check.level == 0 else f"{check.level:.0e}"
    p = "" if check.p_value is None else f"{check.p_value:.2g}"
    found = f'<b class="bad">{html.escape(check.found)}</b>' if check.found else '<span class="good">nothing</span>'
    cells = (
        f"<td><b>{html.escape(check.name)}</b><br><span class='dim'>{html.escape(check.says)}</span></td><td class='n'>{check.observations:,}</td>"
        f"<td class='n'>{level}</td><td class='n'>{p}</td><td>{found}</td><td>{html.escape(check.detectable)}</td>"
    )
    return f"<tr{' class=bad' if check.found else ''}>{cells}</tr>"


def _table(checks: Iterable[Check]) -> str:
    head = "<tr><th>check</th><th>observations</th><th>false alarms</th><th>p-value</th><th>found</th><th>would have found, 99 times in 100</th></tr>"
    return f'<div class="wide"><table>{head}{"".join(map(_row, checks))}</table></div>'


def subject(target: Mapping[str, Any]) -> str:
    """What is audited, in a line. target: the fields of a ``Target``, as a verdict has them."""
    params = ", ".join(f"{name}={value}" for name, value in target["params"].items() if value is not None)
    scheme = f"{str(target['scheme']).capitalize()} ORAM" + (f" ({params})" if params else "")
    shards = f" in {target['shards']} shards" if target["shards"] > 1 else ""
    stands_for = f" in place of {target['stands_for']:,}" if target["stands_for"] else ""
    blocks = "a block" if target["blocks_per_value"] == 1 else f"{target['blocks_per_value']} blocks"
    return (
        f"{scheme}{shards}, scratch stores of {target['capacity']:,} records{stands_for}, each {blocks} of {target['block_size']} bytes, "
        f"{target['cipher']}, {_PLACES[target['kind']]}"
    )


def page(verdict: Verdict) -> str:
    """The whole page."""
    kind = _KINDS[verdict.outcome]
    target = verdict.target
    exact = [check for check in verdict.checks if check.kind == "exact"]
    chance = [check for check in verdict.checks if check.kind == "statistical"]
    controls = "".join(
        f"<tr><td><b>{html.escape(each.leak)}</b><br><span class='dim'>{html.escape(each.says)}; asked for: {html.escape(each.workload)}</span></td>"
        f"<td class='n'>{each.accesses:,}</td><td>{html.escape(', '.join(each.found_by)) or '<b class=odd>not found</b>'}</td></tr>"
        for each in verdict.controls
    )
    uncovered = "".join(f"<li>{html.escape(each)}</li>" for each in verdict.not_covered)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Audit: {html.escape(verdict.outcome)}</title><style>{_STYLE}</style></head><body>
<h1>What does the server learn?</h1>
<p class="dim">{html.escape(subject(target))} · {html.escape(str(verdict.provenance["date"]))} · oram {html.escape(str(verdict.provenance["oram"]))}, {html.escape(str(verdict.provenance["kernels"]))} kernels, seed {verdict.provenance["seed"]}</p>
<div class="verdict {kind}"><b>{html.escape(verdict.outcome.capitalize())}</b><span>{html.escape(verdict.summary)}</span></div>
<p>Scratch stores with these parameters were made and used, and all that their server saw was written down: which slots, in which order, how many bytes, how long the records
of the journal. If any of that depended on <em>what</em> was asked for, the server could learn it. The probability that all these checks together accuse a sound store is at most
{verdict.alpha:.0e}. <b>This is evidence, and not a proof.</b></p>
<h2>Exact checks</h2><p>They have no false alarms. Two workloads are run under the same randomness: the server must see the very same, and exactly what a
program says that knows the public parameters and that randomness, and nothing of what was asked.</p>{_table(exact)}
<h2>Statistical checks</h2><p>What is left is whether the randomness itself is random, and tells nothing of what was asked. A small p-value is surprising; below the rate of false alarms
it is an alarm. The last column says how large a flaw would have to be for this number of observations to show it. These checks watch stores of the same
scheme in memory, with nothing in the client's cache, where everything shows.</p>{_table(chance)}
<h2>Each kind of check on stores that leak on purpose for it</h2><p>Checks that accept everything are worth nothing. Each of these stores has one flaw, which checks of one kind have to find:
those named did, after so many accesses.</p>
<div class="wide"><table><tr><th>flaw</th><th>accesses</th><th>found by</th></tr>{controls}</table></div>
<h2>What this does not say anything about</h2><ul>{uncovered}</ul>
<h2>What was audited</h2><pre>{html.escape(json.dumps({"target": target, "provenance": verdict.provenance}, indent=1, default=str))}</pre>
</body></html>
"""
