"""The LMDB file itself, cut off or changed anywhere, also where LMDB keeps its own structure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("kind", "count"), [("cut", 100), ("header", 200), ("bit", 200), ("zeros", 100), ("noise", 100), ("swap", 100)]
)
def test_changed_file(tmp_path: Path, kind: str, count: int) -> None:
    program = Path(__file__).with_name("flipping.py")
    ran = subprocess.run(
        [sys.executable, program, tmp_path / "store", kind, str(count), "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["pages"] > 100
    assert not found.get("wrong"), found
    assert not found.get("untyped"), ran.stderr[-3000:]
    # LMDB trusts the structure of its pages, and aborts where an assertion of its own fails: docs/limitations.md
    killed = sum(n for name, n in found.items() if name.startswith("signal"))
    assert killed <= (0 if kind == "cut" else count // 50), found
    assert found["refused"] > count // 10
