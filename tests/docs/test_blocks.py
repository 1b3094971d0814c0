"""The Python blocks of the documentation run: each page's in one namespace, in a directory of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("doc_blocks", Path(__file__).with_name("blocks.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_BLOCKS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_BLOCKS)

PAGES = [path for path in _BLOCKS.pages() if _BLOCKS.blocks(path)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": f"page_{path.stem}"}
    for line, code in _BLOCKS.blocks(path):
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)


def test_there_are_blocks() -> None:
    assert any(path.name == "quickstart.md" for path in PAGES)


def test_a_failing_block_fails_and_a_marked_one_is_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    good, bad, last = (f"```python\n{code}\n```\n\n" for code in ("a = 1", "1 / 0", "assert a == 2"))
    page.write_text(f"{good}<!-- not run: it would fail -->\n{bad}text\n\n{last}")
    found = _BLOCKS.blocks(page)
    assert [code for _, code in found] == ["a = 1\n", "assert a == 2\n"]
    assert [line for line, _ in found] == [2, 13]
