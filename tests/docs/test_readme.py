"""Every ratio in README's table of measurements has a row that measures it, and the other way round."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FIGURES: list[dict[str, Any]] = tomllib.loads((ROOT / "bench" / "readme.toml").read_text())["figure"]
RESULTS = json.loads((ROOT / "bench" / "results" / "2026-11-24.json").read_text())["rows"]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: str(figure["says"]))
def test_what_is_measured_is_said(figure: dict[str, Any]) -> None:
    assert README.count(figure["says"]) == 1
    said = [
        float(number)
        for number in re.findall(r"(?<![\d/.^])\d+(?:\.\d+)?(?![\d.]*\w)", figure["says"].replace("1/8", "8"))
    ]
    assert all(number in said for number in figure["figures"])
    assert len(figure["figures"]) == len(figure["rows"])
    assert 0 < figure["tolerance"] <= 0.5


def test_what_is_said_is_measured() -> None:
    """Each cell of the column of ratios is made of what is listed."""
    table = README.split("## Measured")[1].split("\n\n")[2]
    cells = [line.split("|")[3] for line in table.splitlines()[2:]]
    assert len(cells) > 5
    for cell in cells:
        left = cell
        for figure in FIGURES:
            left = left.replace(figure["says"], "")
        assert not re.search(r"\d", left), cell


def test_the_kept_run_holds() -> None:
    known = {row["name"]: row["ratio"] for row in RESULTS}
    compared = 0
    for figure in FIGURES:
        for value, row in zip(figure["figures"], figure["rows"], strict=True):
            if row in known:
                assert abs(known[row] - value) <= 0.08 * value, row
                compared += 1
    assert compared > 10
