"""Python blocks of Markdown pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"(?P<before>[^\n]*)\n(?:[ \t]*\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: .+ -->")


def pages() -> list[Path]:
    """README.md, if there is one, and all of docs/."""
    found = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    readme = ROOT / "README.md"
    return [readme, *found] if readme.exists() else found


def blocks(path: Path) -> list[tuple[int, str]]:
    """(line of the first statement, code) of each block that is to run: all but those behind ``<!-- not run: reason -->``."""
    text = "\n" + path.read_text()
    return [
        (text.count("\n", 0, match.start("code")), match["code"])
        for match in _FENCE.finditer(text)
        if not _NOT_RUN.search(match["before"])
    ]
