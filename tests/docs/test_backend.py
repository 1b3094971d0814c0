"""The backend that docs/backends.md shows passes the whole contract."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

_SPEC = importlib.util.spec_from_file_location("doc_blocks", Path(__file__).with_name("blocks.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_BLOCKS = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_BLOCKS)

_EXAMPLE, _TESTS, *_ = [code for _, code in _BLOCKS.blocks(_BLOCKS.ROOT / "docs" / "backends.md")]
_page: dict[str, Any] = {"__name__": __name__}
exec(_EXAMPLE + _TESTS, _page)

TestDirectoryBackend = _page["TestDirectoryBackend"]


def test_it_is_short() -> None:
    body = _EXAMPLE[_EXAMPLE.index("class ") :]
    assert sum(bool(line.strip()) for line in body.splitlines()) < 80
