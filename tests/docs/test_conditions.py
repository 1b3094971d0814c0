"""The thirteen conditions of docs/schemes/cuckoo.md, with an index and without, are guarded by tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "schemes" / "cuckoo.md").read_text()


@pytest.mark.parametrize("head", ["\n## Thirteen conditions", "\n### The thirteen conditions without an index"])
def test_the_conditions(head: str) -> None:
    table = PAGE.split(head)[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 14))
    for number, guards in rows:
        names = guards.split(", ")
        assert all(re.fullmatch(r"`[a-z/_]+\.py::test_\w+`", name) for name in names), number
        for file, test in (name.strip("`").split("::") for name in names):
            source = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{number}: {file}::{test}"
