"""The blocks of the documentation run, those for Python and for a shell: each page's in one namespace and one directory, in their order.

Where one names ``redis://localhost:6379``, that is a server of the test's own.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oram.testing.servers import redis_server

_SPEC = importlib.util.spec_from_file_location("doc_blocks", Path(__file__).with_name("blocks.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_BLOCKS = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_BLOCKS)

PAGES = [path for path in _BLOCKS.pages() if _BLOCKS.running(path)]


#: What readers have on their own machine.
_SERVER = re.compile(r"redis://localhost:6379\b")


@pytest.fixture
def server(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The start of the URL of a server, where the page names one."""
    if not any(_SERVER.search(block.code) for block in _BLOCKS.running(path)):
        yield "no server"
        return
    with redis_server(tmp_path_factory.mktemp("server"), {"appendfsync": "always"}) as server:
        yield f"redis://127.0.0.1:{server.port}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_blocks_run(path: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": f"page_{path.stem}"}
    for given in _BLOCKS.running(path):
        block = replace(given, code=_SERVER.sub(server, given.code))
        if block.kind != "python":
            _BLOCKS.shell(block, tmp_path)
            continue
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", _BLOCKS.pages(), ids=lambda path: path.stem)
def test_every_block_runs_or_says_why_not(path: Path) -> None:
    assert _BLOCKS.unclear(path) == []


def test_there_are_blocks() -> None:
    assert any(path.name == "quickstart.md" for path in PAGES)
    (readme,) = (path for path in PAGES if path.name == "README.md")
    assert any(_SERVER.search(code) for _, code in _BLOCKS.blocks(readme))


def test_a_failing_block_fails_and_a_marked_one_is_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    good, bad, last = (f"```python\n{code}\n```\n\n" for code in ("a = 1", "1 / 0", "assert a == 2"))
    page.write_text(f"{good}<!-- not run: it would fail -->\n{bad}text\n\n{last}")
    found = _BLOCKS.blocks(page)
    assert [code for _, code in found] == ["a = 1\n", "assert a == 2\n"]
    assert [line for line, _ in found] == [2, 13]


def test_a_shell_block_that_fails_or_writes_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo a b\na ...\n```\n\n```console\n$ echo a\nb\n```\n\n```sh\nfalse\ntrue\n```\n")
    good, other, fails = _BLOCKS.running(page)
    _BLOCKS.shell(good, tmp_path)
    for bad in (other, fails):
        with pytest.raises(AssertionError):
            _BLOCKS.shell(bad, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nls\n```\n",
        "```{code-block} python\nx\n```\n",
        "Then\n\n    pip install x\n",
        "<!-- not run: no block -->\ntext\n",
        "```\nls\n```\n",
    ],
)
def test_a_block_that_neither_runs_nor_says_why_is_found(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert len(_BLOCKS.unclear(page)) == 1
