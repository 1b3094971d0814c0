"""One self-contained HTML page: no script, nothing from elsewhere. Each number in it is in the results, which are in the page too."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from typing import Any

from oram.benchmark.figures import Drawn, draw, number
from oram.benchmark.run import Results

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #57606a; --paper: #fff; --line: #d0d7de; --card: #f6f8fa }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --paper: #0d1117; --line: #30363d; --card: #161b22 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem }
p.dim, figcaption, .dim { color: var(--dim) } figure { margin: 1.5rem 0 2.5rem }
figure > svg, figure > .plot { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; display: block }
.plot svg { width: 100%; height: auto } table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right } th:first-child, td:first-child, .text td, .text th { text-align: left }

.wide { overflow-x: auto } code, pre { background: var(--card); border-radius: 4px; padding: .1rem .3rem; font-size: .86rem }
pre { padding: .8rem; overflow-x: auto }

details { margin: .5rem 0 } summary { cursor: pointer; color: var(--dim) } nav a { margin-right: 1rem }
"""


def _cell(text: object, tag: str = "td") -> str:
    return f"<{tag}>{html.escape(str(text))}</{tag}>"


def _table(rows: list[list[str]], kind: str = "wide") -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(_cell(text, "th") for text in head) + "</tr>"]
    lines += ["<tr>" + "".join(map(_cell, row)) + "</tr>" for row in body]
    return f'<div class="{kind}"><table>{"".join(lines)}</table></div>'


def _figure(drawn: Drawn, at: int) -> str:
    title = html.escape(drawn.title)
    return (
        f'<figure id="figure-{at}"><h3>{at}. {title}</h3><div class="plot" role="img" aria-label="{title}">{drawn.svg}</div>'
        f"<figcaption>{html.escape(drawn.caption)}</figcaption>"
        f"<details><summary>The numbers</summary>{_table(drawn.table)}</details></figure>"
    )


def _kinds(results: Results) -> str:
    if not results.kinds:
        return ""
    head = [
        "scheme",
        "request",
        "the server saw",
        "bytes down",
        "bytes up",
        "round trips",
        "N, timed",
        "microseconds",
        "± 95 %",
    ]
    names = ("bytes_down", "bytes_up", "round_trips", "N", "microseconds", "microseconds_ci95")
    rows = [
        [row["scheme"], row["kind"], "the very same" if row["identical"] else "SOMETHING ELSE", *(number(row[name]) for name in names)]
        for row in results.kinds
    ]  # fmt: skip
    seen = results.kinds[0]
    return (
        f"<h2>Hit, miss, get, put and delete cost the same</h2><p>Stores of {seen['seen_N']} blocks whose whole life the server watched, "
        f"{seen['seen_accesses']} accesses, the second half of them of one kind, without a tree-top cache and under randomness that looks up the same for "
        "each kind: event by event it saw the very same, slots of a Ring bucket up to their names. Bytes and round trips are those of an access. "
        "The time is this process's, trace included, of stores of N blocks with the default cache; it differs by what the client does with a record.</p>"
        + _table([head, *rows])
    )  # fmt: skip


def _compared(results: Results) -> str:
    head = [
        "subject",
        "backend",
        "N",
        "B",
        "window",
        "round trip, ms",
        "workload",
        "cipher",
        "requests a second",
        "least and most of 5 turns",
        "p50, ms",
        "p99, ms",
        "p99.9, ms",
    ]
    rows = [
        [
            r["subject"], r["backend"], number(r["N"]), str(r["block_size"]), str(r["batch"]), number(r["rtt"]), r["workload"], r["cipher"],
            number(r["a_second"]), f"{number(r['a_second_least'])} to {number(r['a_second_most'])}", *(number(r[p]) for p in ("p50", "p99", "p999")),
        ]
        for r in results.compared
    ]  # fmt: skip
    return (
        "<h2>All comparisons</h2><p>A window of m requests of a workload is one call for its gets, and one for its puts, each key once; a scan counts as the "
        "records that it asks for.</p>" + _table([head, *rows])
        if rows
        else ""
    )


def _head(where: dict[str, Any]) -> str:
    commit = where.get("commit") or "no commit"
    return (
        f"{where.get('date')} · {where.get('cpu')}, {where.get('cores')} cores · oram {where.get('oram')} at {commit}"
    )


def page(results: Results) -> str:
    """The whole page."""
    where, figures = results.provenance, draw(results)
    listed = [[name, says] for name, says in results.subjects.items()]
    skipped = "".join(
        f"<li><b>{html.escape(row['what'])}</b>: {html.escape(row['why'])}</li>" for row in results.skipped
    )
    kept = json.dumps(asdict(results)).replace("</", "<\\/")
    unfinished = (
        "" if results.complete else "<p><b>The run was interrupted</b>: this is what was measured until then.</p>"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Oblivious stores, measured</title><style>{_STYLE}</style></head><body>
<h1>Oblivious stores, measured</h1>
<p class="dim">{html.escape(_head(where))}</p>
<pre>{html.escape(str(where.get("command")))}</pre>{unfinished}
<p>Subjects that are compared took turns within one run, so that a noisy machine disturbed all of them alike: compare within this page, not across pages.
Times are wall-clock times of one client that makes one call after the other.</p>
<nav>{"".join(f'<a href="#figure-{i}">{i}. {html.escape(drawn.title)}</a> ' for i, drawn in enumerate(figures, 1))}</nav>
<h2>What is compared</h2>{_table([["subject", "what it is"], *listed], "wide text")}
{f"<h3>Not measured here</h3><ul>{skipped}</ul>" if skipped else ""}
<h2>Figures</h2>{"".join(_figure(drawn, i) for i, drawn in enumerate(figures, 1))}
{_kinds(results)}
{_compared(results)}
<h2>Where it was measured</h2>{_table([["", ""], *([name, str(value)] for name, value in where.items())], "wide text")}
<details><summary>The plan</summary><pre>{html.escape(json.dumps(results.plan, indent=1))}</pre></details>
<script type="application/json" id="results">{kept}</script>
</body></html>
"""
