"""docs/performance.md says what its result file says, row by row, and names only groups that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_kernel

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text()
ROWS = re.findall(r"^\| `([^|`]+)` \| ([\d.,e+]+)[^|]* \| ([\d.,]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def test_each_figure_is_that_of_the_result_file() -> None:
    (name,) = set(re.findall(r"bench/results/[\d-]+\.json", PAGE))
    kept = {row["name"]: row for row in json.loads((ROOT / name).read_text())["rows"]}
    assert len(ROWS) == len(re.findall(r"^\| `", PAGE, re.MULTILINE)) > 70
    for row, *shown in ROWS:
        there = kept[row]
        assert shown == [_shown(there["measured"]), _shown(there["reference"]), f"{there['ratio']:.2f}"], row


def test_the_groups_are_there() -> None:
    source = "".join(path.read_text() for path in (ROOT / "bench").glob("*.py"))
    groups = re.search(r"BARS = \{\*\*", source)
    if groups is None:
        pytest.fail("bench has no groups of bars")
    for command in re.findall(r"python -m bench ([a-z -]+)`", PAGE):
        for group in command.split():
            assert group.startswith("--") or f'"{group}": ' in source, group
