"""The Python blocks of the documentation run: each page's in one namespace, in a directory of its own.

Where one names ``redis://localhost:6379``, that is a server of the test's own.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oram.testing.servers import redis_server

_SPEC = importlib.util.spec_from_file_location("doc_blocks", Path(__file__).with_name("blocks.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_BLOCKS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_BLOCKS)

PAGES = [path for path in _BLOCKS.pages() if _BLOCKS.blocks(path)]


#: What readers have on their own machine.
_SERVER = re.compile(r"redis://localhost:6379\b")


@pytest.fixture
def server(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The start of the URL of a server, where the page names one."""
    if not any(_SERVER.search(code) for _, code in _BLOCKS.blocks(path)):
        yield "no server"
        return
    with redis_server(tmp_path_factory.mktemp("server"), {"appendfsync": "always"}) as server:
        yield f"redis://127.0.0.1:{server.port}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_blocks_run(path: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": f"page_{path.stem}"}
    for line, given in _BLOCKS.blocks(path):
        code = _SERVER.sub(server, given)
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)


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
