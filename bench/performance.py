"""``python -m bench performance``: docs/performance.md says what its result files say, each section of the file that it names, or of the first one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
_FILE = re.compile(r"bench/results/[\d-]+\.json")
_ROW = re.compile(r"^\| `([^|`]+)` \| ([\d.,e+]+)([^|]*) \| ([\d.,]+) \| ([\d.]+) \|$", re.MULTILINE)


def shown(value: float) -> str:
    """As the page has a figure."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Result file and text of each part of the page."""
    usual = ""
    for part in re.split(r"(?m)^(?=## )", text):
        named = _FILE.findall(part)
        usual = usual or named[0]
        yield (named[0] if named else usual), part


def kept(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a result file by their names."""
    return {row["name"]: row for row in json.loads((ROOT / name).read_text())["rows"]}


def rows(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Result file, name and figures of each row."""
    for name, part in sections(text):
        yield from ((name, row[1], [row[2], row[4], row[5]]) for row in _ROW.finditer(part))


def told(row: dict[str, Any]) -> list[str]:
    """The figures of a row of a result file, as the page has them."""
    return [shown(row["measured"]), shown(row["reference"]), f"{row['ratio']:.2f}"]


def rewritten(text: str) -> str:
    """The page with the figures of its files."""

    def row(name: str, match: re.Match[str]) -> str:
        measured, reference, ratio = told(kept(name)[match[1]])
        return f"| `{match[1]}` | {measured}{match[3]} | {reference} | {ratio} |"

    return "".join(_ROW.sub(lambda match, name=name: row(name, match), part) for name, part in sections(text))


def main() -> None:
    """Rewrite it."""
    PAGE.write_text(rewritten(PAGE.read_text()))
