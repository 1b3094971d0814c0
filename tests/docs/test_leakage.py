"""docs/leakage.md names every public method, and each docstring says what it costs and leaks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import oram

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "leakage.md").read_text()
SECTIONS = {"Module": oram, "ObliviousStore": oram.ObliviousStore, "Blocks": oram.Blocks}
DUNDERS = {  # those that a user of a mapping calls by some syntax
    "__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__", "__iter__", "__bool__", "__eq__", "__enter__", "__exit__", "__repr__",
}  # fmt: skip


def public(where: Any) -> Iterator[str]:
    if inspect.ismodule(where):
        yield from (name for name in where.__all__ if inspect.isfunction(getattr(where, name)))
        return
    for name, value in vars(where).items():
        if name in DUNDERS or (not name.startswith("_") and (callable(value) or isinstance(value, property))):
            yield name


CASES = [(section, where, name) for section, where in SECTIONS.items() for name in public(where)]


def table(section: str) -> list[list[str]]:
    body = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("| ")
    ]
    return rows[2:]  # behind the heading


@pytest.mark.parametrize(("section", "where", "name"), CASES, ids=[f"{s}.{n}" for s, _, n in CASES])
def test_the_table_has_it(section: str, where: Any, name: str) -> None:
    rows = [row for row in table(section) if re.search(rf"`{re.escape(name)}`", row[0])]
    assert len(rows) == 1, "each method has one row"
    assert all(rows[0][1:3]), "a row says cost and leak"


@pytest.mark.parametrize(("section", "where", "name"), CASES, ids=[f"{s}.{n}" for s, _, n in CASES])
def test_the_docstring_says_it(section: str, where: Any, name: str) -> None:
    text = inspect.getattr_static(where, name).__doc__ or ""
    assert ("Cost" in text and re.search("[Ll]eaks", text)) or text.startswith("The same as")


def test_no_row_is_about_nothing() -> None:
    for section, where in SECTIONS.items():
        for row in table(section):
            for name in re.findall(r"`(\w+)`", row[0]):
                known = hasattr(where, name) or name in ("with", "repr", "block_size", "blocks")
                assert known, f"{name} is not there"
