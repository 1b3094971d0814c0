"""docs/evidence.md lists the controls that there are, and only modules that there are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evidence.md").read_text()


@pytest.mark.parametrize(
    ("head", "module", "control", "least"),
    [
        ("control", "test_controls.py", r"Control\(", 21),
        ("control of Ring", "test_ring.py", r"Control\(", 21),
        ("control of shards", "test_shards.py", r"Control\(", 10),
        ("control of Cuckoo", "test_cuckoo_controls.py", r"[A-Z]\w+,", 12),
        ("control of Cuckoo without an index", "test_binned_controls.py", r"\(by_\w+, [A-Z]\w+\),", 12),
    ],
)
def test_the_controls(head: str, module: str, control: str, least: int) -> None:
    source = (ROOT / "tests" / "controls" / module).read_text()
    there = re.findall(rf'^    "([^"]+)": {control}', source, re.MULTILINE)
    section = PAGE.split("## Negative controls")[1].split("\n## ")[0]
    table = section.split(f"| {head} | rejected by |\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)
    assert sorted(name for row in rows if set(row) != {"-"} for name in row.split("; ")) == sorted(there)
    assert len(there) >= least


def test_the_modules() -> None:
    for name in re.findall(r"`(oram\.[a-z_.]+)(?:\.[A-Z]\w+)?`", PAGE):
        assert importlib.util.find_spec(name) is not None, name
    for name in re.findall(r"`((?:tests|bench|oram)/[\w/.]*)`", PAGE):
        assert (ROOT / name).exists() or name == "bench/README.md", name
