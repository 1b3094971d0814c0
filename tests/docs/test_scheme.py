"""The scheme that docs/writing-a-scheme.md shows passes the whole contract; what else the page checks runs with its blocks."""

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

_SCHEME, _CONTRACT, *_ = [code for _, code in _BLOCKS.blocks(_BLOCKS.ROOT / "docs" / "writing-a-scheme.md")]
_page: dict[str, Any] = {"__name__": __name__}
exec(_SCHEME + _CONTRACT, _page)

TestSquareRoot = _page["TestSquareRoot"]
